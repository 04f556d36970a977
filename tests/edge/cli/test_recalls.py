"""Two operators recall a batch by hand, and the warehouse reports what is out (SPEC F1, E8, K1)."""

import io
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark import app
from birthmark.edge.cli import credentials
from birthmark.ports import carry
from birthmark.services.acts import recognise
from birthmark.services.issue import Issued, IssueRequest
from birthmark.services.prove import Released
from birthmark.settings import load
from tests.edge.cli.command import OTHER_VIN, VIN, Place
from tests.support.realm import proof

ANNA, BELA = ("--as", "operators/anna"), ("--as", "operators/bela")


def make(place: Place, run: str, *vins: str) -> None:
    """Take devices through the use cases, as the service does for a station."""
    application = app.build(load(place.settings))
    station = credentials.read(place.directory / "stations/ST01")
    try:
        caller = carry(application.store, recognise(station.certificate.der))
        for vin in vins:
            key = ec.generate_private_key(ec.SECP256R1())
            name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, vin)])
            builder = x509.CertificateSigningRequestBuilder().subject_name(name)
            csr = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
            request = IssueRequest(hardware_id=vin, csr=csr, key=f"issue-{vin}")
            (issued,) = carry(application.store, application.issue(caller, run, [request]))
            assert isinstance(issued, Issued), issued
            (released,) = carry(application.store, application.prove(caller, [proof(issued, key)]))
            assert isinstance(released, Released), released
    finally:
        application.close()


@pytest.fixture
def plant(realm: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A realm with two released vehicles of batch W47 on the closed run R1, and operators anna and bela."""
    monkeypatch.chdir(realm.directory)
    realm.done("operator", "enrol", "bela", "--role", "officer", "--out", "operators/bela", *ANNA)
    assert realm.open_run("R1", "--batch", "W47", "--quantity", "10", *ANNA).code == 0
    make(realm, "R1", VIN, OTHER_VIN)
    return realm


def proposed(plant: Place, *arguments: str) -> str:
    said = plant.done("recall", "propose", *arguments, "--because", "keys left the plant", "--json", *ANNA)
    identifier: str = said.document["id"]
    return identifier


COMPROMISE = ("--batch", "W47", "--reason", "keyCompromise")


def test_two_operators_recall_a_batch_by_hand(plant: Place) -> None:
    listed = plant.directory / "gone.csv"
    listed.write_text(f"device;pallet\nvin:{VIN};7\n")
    said = plant.done("shipment", "record", listed, "--consignment", "C1", "--json", *ANNA).document
    assert said == {"consignment": "C1", "recorded": 1, "known": 0, "elsewhere": 0}
    seen = plant.done("recall", "preview", "--batch", "W47", "--json").document
    assert (seen["changes"], seen["shipped"], seen["consignments"]) == (2, 1, {"C1": 1})
    assert seen["open_runs"] == ["R1"]
    said = plant.done("recall", "propose", *COMPROMISE, "--because", "keys left the plant", *ANNA)
    assert "run R1 still issues: close it" in said.out
    identifier = plant.done("recall", "list", "--json").document[0]["id"]
    assert f"proposed as {identifier}" in said.out
    refused = plant("recall", "approve", identifier, "--yes", *BELA)
    assert (refused.code, "close the runs that still issue" in refused.err) == (1, True)
    plant.done("run", "close", "R1", "--reason", "recalled", *ANNA)
    assert plant("recall", "approve", identifier, "--json", *BELA).code == 65
    refused = plant("recall", "approve", identifier, "--yes", *ANNA)
    assert (refused.code, "it takes two" in refused.err) == (77, True)
    said = plant.done("recall", "approve", identifier, "--yes", *BELA)
    assert "keys left the plant" in said.out
    assert f"recall {identifier} is done: 2 certificates revoked" in said.out
    shown = plant.done("recall", "show", identifier, "--json").document
    assert (shown["status"], shown["changed"], shown["proposed_by"]) == ("done", 2, "operator:anna")
    assert plant.done("recall", "list", "--status", "proposed", "--json").document == []
    assert plant.done("recall", "resume", identifier, "--json", *ANNA).document["changed"] == 2
    assert plant.done("check", "--json").document["findings"] == []


def test_who_approves_is_asked_and_may_think_better_of_it(
    plant: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant.done("run", "close", "R1", "--reason", "recalled", *ANNA)
    identifier = proposed(plant, *COMPROMISE)
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    said = plant("recall", "approve", identifier, *BELA)
    assert said.code == 130
    assert "revoke them?" in said.err
    assert plant.done("recall", "show", identifier, "--json").document["status"] == "proposed"


def test_a_suspension_is_lifted_again(plant: Place) -> None:
    plant.done("run", "close", "R1", "--reason", "looking", *ANNA)
    for option, action in (("--suspend", "suspended"), ("--reinstate", "reinstated")):
        said = plant.done("recall", "approve", proposed(plant, "--batch", "W47", option), "--yes", *BELA)
        assert f"2 certificates {action}" in said.out
    assert plant.done("recall", "preview", "--batch", "W47", "--json").document["changes"] == 2


def test_a_proposal_is_withdrawn(plant: Place) -> None:
    identifier = proposed(plant, "--device", f"vin:{VIN}", "--reason", "superseded")
    said = plant.done("recall", "withdraw", identifier, "--because", "not this one", *BELA)
    assert said.out == f"recall {identifier} is withdrawn\n"
    assert plant("recall", "approve", identifier, "--yes", *BELA).code == 1


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        ((), 65, "say which certificates"),
        (("--batch", "W47", "--run", "R1"), 65, "say which certificates"),
        (("--run", "R1", "--since", "2026-01-01"), 65, "go with --station"),
        (("--run", "R9"), 66, "there is no run R9"),
        (("--run", "R1", "--suspend", "--reinstate"), 65, "either --suspend or --reinstate"),
        (("--device", "VIN"), 65, "a device is named"),
    ],
)
def test_what_nobody_can_mean_is_refused(
    plant: Place, arguments: tuple[str, ...], code: int, complaint: str
) -> None:
    said = plant("recall", "preview", *arguments)
    assert said.code == code
    assert complaint in said.err


def test_a_station_is_recalled_up_to_now_if_nothing_else_is_said(plant: Place) -> None:
    shown = plant.done("recall", "preview", "--station", "ST01", "--json").document
    assert shown["changes"] == 2
    assert shown["selection"]["until"] is not None


def test_a_revocation_has_a_reason(plant: Place) -> None:
    said = plant("recall", "propose", "--run", "R1", "--because", "x", *ANNA)
    assert said.code == 65
    assert "keyCompromise" in said.err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", f"vin:{VIN}\nvin:{OTHER_VIN}\n"),
        ("b.csv", f"pallet,Device\n7,vin:{VIN}\n8,vin:{OTHER_VIN.lower()}\n"),
        ("c.json", json.dumps([f"vin:{VIN}", {"device": f"vin:{OTHER_VIN}", "pallet": 7}])),
    ],
)
def test_lists_of_shipments_are_csv_or_json(plant: Place, tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert (
        plant.done("shipment", "record", path, "--consignment", "C1", "--json", *ANNA).document["recorded"]
        == 2
    )
    (row,) = plant.done("shipment", "list", "--json").document
    assert (row["consignment"], row["devices"]) == ("C1", 2)
    devices = plant.done("shipment", "list", "--consignment", "C1", "--json").document
    assert {one["device"] for one in devices} == {f"vin:{VIN}", f"vin:{OTHER_VIN}"}


@pytest.mark.parametrize(
    ("name", "text", "code", "complaint"),
    [
        ("a.csv", f"vin:{VIN}\nbicycle\n", 65, "line 2: a device is named"),
        ("a.json", "{}", 65, "is a list of devices"),
        ("b.json", "[7]", 65, "item 1: a device is named"),
        ("c.json", "[", 65, "neither CSV nor JSON"),
        ("b.csv", "vin:WVWZZZ1JZXW000001\n", 66, "there is no device vin:WVWZZZ1JZXW000001"),
        ("c.csv", "", 65, "holds no device"),
    ],
)
def test_a_wrong_list_of_shipments_is_refused_whole(
    plant: Place, tmp_path: Path, name: str, text: str, code: int, complaint: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    said = plant("shipment", "record", path, "--consignment", "C1", *ANNA)
    assert (said.code, complaint in said.err) == (code, True), said
    assert plant.done("shipment", "list", "--json").document == []
