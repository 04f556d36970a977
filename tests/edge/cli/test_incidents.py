"""An auditor asks what was so, and an incident goes from its list to a recall, by hand (SPEC E6, K1)."""

import csv
import re
from pathlib import Path

import pytest

from birthmark.ledger import proof
from birthmark.ledger.checkpoint import VerifierKey
from tests.edge.cli.command import OTHER_VIN, VIN, Place, birthmark
from tests.edge.cli.test_recalls import ANNA, BELA, make
from tests.support.realm import tamper

FIRMWARE = "bms-4.2.1 sha256:0123"
WINDOW = ("--from", "2020-01-01", "--until", "2199-01-01")


@pytest.fixture
def plant(realm: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A realm with a vehicle on R1 and one on R2, whose licence names a firmware; and anna and bela."""
    monkeypatch.chdir(realm.directory)
    realm.done("operator", "enrol", "bela", "--role", "officer", "--out", "operators/bela", *ANNA)
    assert realm.open_run("R1", "--quantity", "10", *ANNA).code == 0
    opened = realm.open_run("R2", "--quantity", "10", "--firmware", FIRMWARE, *ANNA)
    assert (opened.code, FIRMWARE in opened.out) == (0, True)
    make(realm, "R1", VIN)
    make(realm, "R2", OTHER_VIN)
    return realm


def until_now(place: Place) -> tuple[str, ...]:
    """Return a window that ends where the log does: what is recalled is over."""
    last = place.done("log", "tail", "-n", "1").out.split()[1]
    return ("--from", "2020-01-01", "--until", last)


def test_a_history_is_told_with_its_proofs_and_its_state_at_an_instant(plant: Place, tmp_path: Path) -> None:
    proofs = tmp_path / "proofs"
    said = plant.done("history", f"vin:{VIN}", "--proofs", proofs, "--json").document
    assert [one["entry"]["kind"] for one in said["entries"]] == ["device-issued", "device-released"]
    state = said["state"]
    assert (state["state"], [one["phase"] for one in state["certificates"]]) == ("released", ["live"])
    assert said["contradictions"] == []
    key = VerifierKey.parse(plant.vkey.read_text())
    for one in said["entries"]:
        text = (proofs / f"{one['index']}.tlog-proof").read_text()
        assert proof.verify(text, key) == one["entry"]
        path = proofs / f"{one['index']}.tlog-proof"
        assert birthmark("log", "verify-proof", path, "--vkey", plant.vkey).code == 0
    before = plant.done("history", f"vin:{VIN}", "--at", "2020-01-01", "--json").document
    assert (before["state"]["state"], before["entries"], before["later"]) == ("unknown", [], 2)
    (serial,) = (one["certificate"] for one in state["certificates"])
    for subject in (serial, "station:ST01", "operator:anna", "run:R2", "key:log"):
        assert plant.done("history", subject).out
    printed = plant.done("history", f"vin:{VIN}").out
    assert re.search(r"phase +live", printed)
    assert "read and verified: all" in printed
    assert plant("history", f"vin:{VIN}", "--proofs", proofs).code == 1


def test_a_history_is_told_offline_by_the_public_key_alone(plant: Place, tmp_path: Path) -> None:
    bundle, certificate = tmp_path / "log.zip", tmp_path / "vehicle.pem"
    plant.done("log", "export", bundle)
    certificate.write_text(plant.done("device", "certificate", f"vin:{VIN}").out)
    live = plant.done("history", f"vin:{VIN}", "--json").document
    offline = ("history", f"vin:{VIN}", "--bundle", bundle, "--vkey", plant.vkey)
    for held in ((), ("--certificate", certificate)):
        said = birthmark(*offline, *held, "--json")
        assert said.code == 0, said
        away = said.document
        assert (away["entries"], away["checkpoint"]) == (live["entries"], live["checkpoint"])
        (told,) = away["state"]["certificates"]
        assert (told["phase"], told["not_after"] is not None) == ("live", bool(held))
    said = birthmark(
        "incident", *WINDOW, "--station", "ST01", "--bundle", bundle, "--vkey", plant.vkey, "--json"
    )
    assert (said.code, said.document["devices"]) == (0, 2)


def test_a_record_that_contradicts_the_log_is_told_and_ends_with_an_error(plant: Place) -> None:
    database = plant.directory / "birthmark.db"
    tamper(f"sqlite:///{database}", ("UPDATE device SET state = 'held'", ()))
    said = plant("history", f"vin:{VIN}")
    assert said.code == 1
    assert f"CONTRADICTION: vin:{VIN}: the record says held" in said.out
    assert re.search(r"state +released", said.out)


def test_an_incident_goes_from_its_list_to_a_recall_of_exactly_that(plant: Place, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    chosen = ("incident", *until_now(plant), "--firmware", FIRMWARE)
    seen = plant.done(*chosen, "--csv", listed, "--json").document
    assert (seen["devices"], seen["live"], seen["states"]) == (1, 1, {"released": 1})
    assert seen["counts"] == {"admitted": 1, "issued": 1, "run-opened": 1}
    (row,) = csv.DictReader(listed.read_text().splitlines())
    assert (row["device"], row["status"], row["runs"]) == (f"vin:{OTHER_VIN}", "live", "R2")
    why = ("--propose", "keyCompromise", "--justification", "the firmware leaks keys")
    said = plant.done(*chosen, *why, *ANNA)
    (identifier,) = re.findall(r"proposed as (rc-[0-9a-f]+), for 1 certificates", said.out)
    shown = plant.done("recall", "show", identifier).out
    assert f"incident firmware={FIRMWARE} since" in shown
    assert plant("recall", "approve", identifier, "--yes", *ANNA).code == 77
    said = plant.done("recall", "approve", identifier, "--yes", *BELA)
    assert f"recall {identifier} is done: 1 certificates revoked" in said.out
    after = plant.done(*chosen, "--json").document
    assert (after["live"], after["not_live"]) == (0, {"keyCompromise": 1})
    good = plant.done("history", f"vin:{VIN}", "--json").document
    assert good["state"]["certificates"][0]["phase"] == "live"
    assert plant.done("check", "--json").document["findings"] == []
    refused = plant(*chosen, *why, *ANNA)
    assert (refused.code, "there is nothing to recall" in refused.err) == (1, True)


def test_a_recall_can_be_proposed_for_an_operator_or_a_firmware_alone(plant: Place) -> None:
    _, since, _, until = until_now(plant)
    window = ("--since", since, "--until", until)
    seen = plant.done("recall", "preview", "--firmware", FIRMWARE, *window, "--json").document
    assert seen["changes"] == 1
    assert seen["selection"]["criteria"] == {"firmware": FIRMWARE}
    assert plant.done("recall", "preview", "--operator", "anna", *window, "--json").document["changes"] == 0


def test_what_happened_is_printed_in_words_too(plant: Place) -> None:
    said = plant.done("incident", *WINDOW, "--operator", "anna")
    assert re.search(r"run-opened +operator:anna +run R2", said.out)
    assert "client-enrolled" in said.out


def test_what_nobody_can_mean_is_refused(plant: Place) -> None:
    why = ("--propose", "superseded", "--justification", "x")
    cases: list[tuple[tuple[str, ...], int, str]] = [
        (("history", "R1"), 65, "say whom the history is of"),
        (("history", "vin:WVWZZZ1JZXW000001"), 66, "no entry of the log speaks of"),
        (("history", "run:R1", "--at", "2199-01-01"), 65, "is in the future"),
        (("history", "run:R1", "--at", "noon"), 65, "a time is written like"),
        (("history", "run:R1", "--bundle", "no.zip"), 65, "say with --vkey"),
        (("history", "run:R1", "--bundle", "no.zip", "--vkey", "log.vkey"), 66, "cannot be read"),
        (("history", "run:R1", "--bundle", "log.vkey", "--vkey", "log.vkey"), 65, "is no bundle"),
        (("history", "run:R1", "--vkey", "log.vkey"), 65, "go with --bundle"),
        (("incident", *WINDOW), 65, "say whose acts"),
        (("incident", "--from", "2199-01-01", "--until", "2020-01-01", "--run", "R1"), 65, "ends before"),
        (("incident", *WINDOW, "--run", "R1", "--propose", "superseded"), 65, "go together"),
        (("recall", "preview", "--operator", "anna"), 65, "say with --since"),
        (("incident", *WINDOW, "--station", "ST01", *why, *ANNA), 1, "the window is in the future"),
    ]
    for arguments, code, complaint in cases:
        said = plant(*arguments)
        assert (said.code, complaint in said.err) == (code, True), said
