"""Opening runs, letting clients in and shutting them out (SPEC A1, C2, C3)."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from birthmark import errors
from birthmark.floor.authorities import Authority
from birthmark.floor.clients import Client as ClientRow
from birthmark.floor.clients import ClientStatus, Role
from birthmark.floor.runs import AllowList, Run, RunLicence
from birthmark.services.acts import recognise
from tests.support.realm import START, Client, Line, workpiece


def open_licence(
    line: Line, licence: RunLicence, *, by: Client | None = None, signer: Client | None = None
) -> Run:
    client = by or line.operator
    signature = line.sign(licence, signer or client)
    return line.service.carry(line.service.runs.open(client.caller, licence, signature))


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
    assert small_line.get(Run, "R2") is None


def test_a_licence_signed_by_somebody_else_opens_nothing(line: Line) -> None:
    """SPEC C3: a run is a signed licence."""
    bob = line.enrol(Role.OPERATOR, "bob", by=line.operator)
    with pytest.raises(errors.NotPermitted, match="is not what was signed"):
        open_licence(line, line.licence("R2"), signer=bob)
    with pytest.raises(errors.NotPermitted, match="the licence is operator:anna's, not operator:bob's"):
        open_licence(line, line.licence("R2"), by=bob, signer=line.operator)
    with pytest.raises(errors.NotPermitted, match="station:ST01 may not open-run"):
        open_licence(line, line.licence("R2", opened_by="station:ST01"), by=line.station)
    assert line.get(Run, "R2") is None


def test_an_authority_issues_inside_its_scope(line: Line) -> None:
    """SPEC A1."""
    meters = replace(line.the(Authority, "issuing-1"), id="meters", scope="meter", issued=0)
    line.service.carry(line.service.authorise.establish(line.operator.caller, meters))
    with pytest.raises(errors.NotPermitted, match="authority meters issues for meter, not for car"):
        open_licence(line, line.licence("R2", authority="meters"))
    assert open_licence(line, line.licence("R2", authority="meters", product="meter")).id == "R2"


def test_a_broken_import_of_a_list_is_simply_done_again(line: Line) -> None:
    """SPEC C9."""
    use = line.service.runs.import_list
    names = [f"serial:L{number}" for number in range(50)]
    first = line.service.carry(use("operator:anna", names))
    assert line.service.carry(use("operator:anna", reversed(names + names))) == first
    assert first.count == 50


def test_a_client_is_recognised_by_its_certificate_octet_by_octet(line: Line) -> None:
    """STYLE P22: never by a name in it."""
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
