"""Opening runs, letting clients in and shutting them out (SPEC A1, C2, C3)."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from importlib.resources import files
from typing import Any

import pytest

from birthmark import errors
from birthmark.floor.authorities import Authority
from birthmark.floor.clients import Client as ClientRow
from birthmark.floor.clients import ClientStatus, Role
from birthmark.floor.devices import DeviceEvent
from birthmark.floor.runs import AllowedDevice, AllowList, Run, RunLicence
from birthmark.services import runs
from birthmark.services.acts import recognise
from tests.support.realm import START, Client, Line, tamper, workpiece


def open_licence(
    line: Line, licence: RunLicence, *, by: Client | None = None, signer: Client | None = None
) -> Run:
    client = by or line.operator
    signature = line.sign(licence, signer or client)
    return line.service.carry(line.service.opening.open(client.caller, licence, signature))


IMPOSSIBLE: dict[str, tuple[dict[str, Any], type[errors.Refusal], str]] = {
    "another realm": ({"realm": "evil"}, errors.PolicyRefused, "the licence is for evil"),
    "the other environment": ({"environment": "production"}, errors.PolicyRefused, "production"),
    "no device": ({"quantity": 0}, errors.PolicyRefused, "not 0"),
    "too many devices": ({"quantity": 10**9}, errors.PolicyRefused, "not 1000000000"),
    "a window that ends before it begins": (
        {"not_after": START - timedelta(hours=2)},
        errors.PolicyRefused,
        "before",
    ),
    "a window that is over": (
        {"not_before": START - timedelta(hours=2), "not_after": START},
        errors.PolicyRefused,
        "the run ended",
    ),
    "no origin of keys": ({"origins": ()}, errors.PolicyRefused, "neither born nor delivered"),
    "a list shorter than the quantity": (
        {"allow_list": AllowList(count=2, sha256="00" * 32), "quantity": 3},
        errors.PolicyRefused,
        "fewer than 3",
    ),
    "an authority's profile": ({"profile": "issuing"}, errors.PolicyRefused, "is for authorities"),
    **{
        f"a profile for {kind}": (
            {"profile": name},
            errors.PolicyRefused,
            f"{name} is for {kind}, not devices",
        )
        for name, kind in (
            ("station", "clients"),
            ("operator", "clients"),
            ("bootstrap", "clients"),
            ("server", "clients"),
            ("ocsp-responder", "responders"),
            ("firmware-signing", "signers"),
            ("matter-pai", "authorities"),
        )
    },
    "a profile that is not there": ({"profile": "lorry"}, errors.NotFound, "there is no profile 'lorry'"),
    "a profile by its path": (
        {"profile": str(files("birthmark.pki") / "profiles" / "vehicle.toml")},
        errors.NotFound,
        "there is no profile",
    ),
    "one hardware id for every device": (
        {"variables": {"organization": "Acme", "hardware_id": "D1"}},
        errors.PolicyRefused,
        "hardware_id is each device's own",
    ),
    "a profile that lacks a value": (
        {"profile": "idevid"},
        errors.PolicyRefused,
        "profile idevid needs a value for hardware_type",
    ),
    "a value no profile asks for": (
        {"variables": {"organization": "Acme", "nonsense": "1"}},
        errors.PolicyRefused,
        "profile vehicle does not use nonsense",
    ),
    **{
        f"a run named {name[:9]!r}": ({"id": name}, errors.PolicyRefused, "a run is named by 1 to 64 of")
        for name in ("", "R 2", "R/2", "R2\n", "..", ".", "Ü", "R" * 65)
    },
    "no product": ({"product": ""}, errors.PolicyRefused, "a product is 1 to 64 printable characters"),
    "a product of two lines": ({"product": "car\n"}, errors.PolicyRefused, "a product is 1 to 64"),
    "a long batch": ({"batch": "B" * 65}, errors.PolicyRefused, "a batch is 1 to 64 printable characters"),
    **{
        f"firmware {name[:9]!r}": ({"firmware": name}, errors.PolicyRefused, "firmware is named by up to 128")
        for name in ("bms\n", "bms-ü", " bms", "b" * 129)
    },
    "an authority that is not there": (
        {"authority": "nobody"},
        errors.NotFound,
        "there is no authority nobody",
    ),
    "the root as its authority": ({"authority": "root"}, errors.Refusal, "root"),
    "a station that is not there": ({"stations": ("ST09",)}, errors.NotFound, "there is no station ST09"),
    "a run there is already": ({"id": "R1"}, errors.IllegalTransition, "there is a run R1 already"),
    "an end after its authority's": (
        {"not_after": START + timedelta(days=365 * 90)},
        errors.NotPermitted,
        "stops issuing",
    ),
    "another operator's name": ({"opened_by": "operator:bob"}, errors.NotPermitted, "operator:bob's, not"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_a_licence_that_cannot_work_is_refused_and_logged(small_line: Line, case: str) -> None:
    changes, kind, complaint = IMPOSSIBLE[case]
    size = small_line.size()
    with pytest.raises(kind, match=complaint):
        open_licence(small_line, replace(small_line.licence("R2"), **changes))
    (entry,) = small_line.entries(size)
    assert (entry["kind"], entry["request"], entry["actor"]) == ("refused", "open-run", "operator:anna")
    assert [run.id for run in small_line.service.store.scan(Run)] == ["R1"]


def test_a_run_is_not_opened_for_a_station_that_was_revoked(small_line: Line) -> None:
    line = small_line
    line.enrol(Role.STATION, "ST09")
    line.service.carry(line.service.authorise.revoke(line.operator.caller, "station:ST09", "stolen"))
    with pytest.raises(errors.IllegalTransition, match="station ST09 was revoked"):
        open_licence(line, line.licence("R2", stations=("ST01", "ST09")))


def test_an_operator_does_not_revoke_itself(small_line: Line) -> None:
    """The last one would leave a realm in which nobody can act."""
    line = small_line
    with pytest.raises(errors.NotPermitted, match="operator:anna cannot revoke itself"):
        line.service.carry(line.service.authorise.revoke(line.operator.caller, "operator:anna", "leaving"))
    bob = line.enrol(Role.OFFICER, "bob")
    revoked = line.service.carry(line.service.authorise.revoke(bob.caller, "operator:anna", "leaving"))
    assert revoked.status == "revoked"


def test_a_licence_signed_by_somebody_else_opens_nothing(line: Line) -> None:
    """SPEC C3: a run is a signed licence."""
    bob = line.enrol(Role.OFFICER, "bob", by=line.operator)
    with pytest.raises(errors.NotPermitted, match="is not what was signed"):
        open_licence(line, line.licence("R2"), signer=bob)
    with pytest.raises(errors.NotPermitted, match="the licence is operator:anna's, not operator:bob's"):
        open_licence(line, line.licence("R2"), by=bob, signer=line.operator)
    with pytest.raises(errors.NotPermitted, match="station:ST01 may not open-run"):
        open_licence(line, line.licence("R2", opened_by="station:ST01"), by=line.station)
    assert line.get(Run, "R2") is None


def test_an_authority_issues_inside_its_scope(line: Line) -> None:
    """SPEC A1."""
    meters = replace(line.the(Authority, "issuing-1"), id="meters", scope="product=meter", issued=0)
    line.establish(meters)
    with pytest.raises(errors.NotPermitted, match="authority meters issues for product meter, not for car"):
        open_licence(line, line.licence("R2", authority="meters"))
    assert open_licence(line, line.licence("R2", authority="meters", product="meter")).id == "R2"


def test_a_broken_import_of_a_list_is_simply_done_again(line: Line) -> None:
    """SPEC C9."""
    use = line.service.runs.import_list
    names = [f"serial:L{number}" for number in range(50)]
    first = line.service.carry(use(line.operator.caller, names))
    assert line.service.carry(use(line.operator.caller, reversed(names + names))) == first
    assert first.count == 50


def test_an_import_leaves_one_entry_with_count_and_hash(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """SPEC C9: whoever signs a run with a list can be asked where it came from."""
    monkeypatch.setattr(runs, "IMPORT_CHUNK", 20)
    size, names = line.size(), [f"serial:L{number}" for number in range(50)]
    listed = line.service.carry(line.service.runs.import_list(line.operator.caller, names))
    (entry,) = line.entries(size)
    assert (entry["kind"], entry["actor"]) == ("hardware-ids-imported", "operator:anna")
    assert (entry["count"], entry["list_sha256"]) == (50, listed.sha256)
    assert len(list(line.service.store.scan(AllowedDevice))) == 50


def test_who_may_not_open_a_run_imports_no_list(line: Line) -> None:
    size = line.size()
    with pytest.raises(errors.NotPermitted, match="station:ST01 may not open-run"):
        line.service.carry(line.service.runs.import_list(line.station.caller, ["serial:L1"]))
    (entry,) = line.entries(size)
    assert (entry["kind"], entry["request"], entry["actor"]) == ("refused", "import-list", "station:ST01")
    assert list(line.service.store.scan(AllowedDevice)) == []
    bob = line.enrol(Role.OFFICER, "bob", by=line.operator)
    line.service.carry(line.service.authorise.revoke(line.operator.caller, bob.id, "left"))
    with pytest.raises(errors.Unauthenticated, match="operator:bob was revoked"):
        line.service.carry(line.service.runs.import_list(bob.caller, ["serial:L1"]))
    assert list(line.service.store.scan(AllowedDevice)) == []


def test_a_disposition_reads_stations_only_from_what_was_signed(small_line: Line) -> None:
    """SPEC C3: whoever owns the database cannot add a station to a run."""
    small_line.issue(workpiece("D1"))
    other = small_line.enrol(Role.STATION, "ST02", by=small_line.operator)
    with pytest.raises(errors.NotPermitted, match="station:ST02 is not allowed on run R1"):
        small_line.dispose(DeviceEvent.HOLD, "serial:D1", by=other)
    tamper(
        small_line.url,
        ("UPDATE run SET document = CAST(replace(CAST(document AS TEXT), 'ST01', 'ST02') AS BLOB)", ()),
    )
    with pytest.raises(errors.IntegrityFailure, match="the licence of run R1 is not what was signed"):
        small_line.dispose(DeviceEvent.HOLD, "serial:D1", by=other)


def test_clients_are_enrolled_while_their_authority_issues_whatever_its_quota(small_line: Line) -> None:
    """SPEC A1: the quota counts devices."""
    tamper(small_line.url, ("UPDATE authority SET quota = 0 WHERE id = 'issuing-1'", ()))
    small_line.enrol(Role.STATION, "ST02", by=small_line.operator)
    with pytest.raises(errors.QuotaExhausted, match="has issued all 0"):
        small_line.issue(workpiece("D1"))
    tamper(small_line.url, ("UPDATE authority SET ends_at = 1000 WHERE id = 'issuing-1'", ()))
    with pytest.raises(errors.IllegalTransition, match=r"stopped issuing at 1970-01-01T00:00:01\.000Z"):
        small_line.enrol(Role.STATION, "ST03", by=small_line.operator)


def test_a_client_is_recognised_by_its_certificate_octet_by_octet(line: Line) -> None:
    """Never by a name in it (decision 6)."""
    der = line.station.caller.credential.der
    assert line.service.carry(recognise(der)).client.id == "station:ST01"
    bent = der[:-1] + bytes([der[-1] ^ 1])
    for peer in (bent, line.the(Authority, "issuing-1").der, b"", b"not DER"):
        with pytest.raises(errors.Unauthenticated):
            line.service.carry(recognise(peer))


def test_a_revoked_name_is_not_given_out_again_and_a_live_one_is_renewed(line: Line) -> None:
    """SPEC C2."""
    attempts: list[tuple[Callable[[], object], type[errors.Refusal]]] = [
        (lambda: line.enrol(Role.STATION, "ST01", by=line.operator), errors.IllegalTransition),
        (lambda: line.enrol(Role.STATION, "ST07", by=line.operator, renew=True), errors.NotFound),
        (lambda: line.enrol(Role.STATION, "ST07", by=line.station), errors.NotPermitted),
    ]
    for act, kind in attempts:
        with pytest.raises(kind):
            act()
        assert line.entries()[-1]["request"] == "enrol"
    renewed = line.enrol(Role.STATION, "ST01", by=line.operator, renew=True)
    line.issue(workpiece("D1"), by=renewed)
    line.issue(workpiece("D2"), by=line.station)
    line.service.carry(line.service.authorise.revoke(line.operator.caller, "station:ST01", "stolen"))
    assert line.the(ClientRow, "station:ST01").status is ClientStatus.REVOKED
    for by in (renewed, line.station):
        with pytest.raises(errors.Unauthenticated):
            line.issue(workpiece("D3"), by=by)
    for renew in (True, False):
        with pytest.raises(errors.IllegalTransition, match="was revoked"):
            line.enrol(Role.STATION, "ST01", by=line.operator, renew=renew)
