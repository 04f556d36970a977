"""A production run is opened by two people (SPEC C3, K1)."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark import errors
from birthmark.floor.clients import Role
from birthmark.floor.realm import Environment
from birthmark.floor.runs import Run, RunLicence, RunStatus
from birthmark.services.check import check
from tests.services.test_opening import open_licence
from tests.support.realm import Client, Line, make_line, tamper, workpiece
from tests.support.recalls import enrol_with_key, sign


@pytest.fixture
def production(tmp_path: Path, database_url: str) -> Iterator[Line]:
    """A production line without a run."""
    made = make_line(tmp_path, database_url, environment=Environment.PRODUCTION)
    yield made
    made.close()


@pytest.fixture
def small_production(tmp_path: Path) -> Iterator[Line]:
    """The same on SQLite."""
    url = f"sqlite:///{tmp_path / 'line.sqlite'}"
    made = make_line(tmp_path, url, environment=Environment.PRODUCTION)
    yield made
    made.close()


def approve(line: Line, run: str, by: Client, *, signature: bytes | None = None) -> Run:
    document = line.the(Run, run).document if line.get(Run, run) else b""
    signed = signature or by.key.sign(document, ec.ECDSA(hashes.SHA256()))
    return line.service.carry(line.service.opening.approve(by.caller, run, signed))


def two_opened(line: Line) -> Client:
    """Open run R1 by two people; return the second."""
    open_licence(line, line.licence("R1"))
    bela = line.enrol(Role.OFFICER, "bela")
    approve(line, "R1", bela)
    return bela


def test_one_operator_proposes_and_another_opens(production: Line) -> None:
    line = production
    proposed = open_licence(line, line.licence("R1"))
    assert (proposed.status, proposed.approver) == (RunStatus.PROPOSED, None)
    assert line.entries()[-1]["kind"] == "run-proposed"
    with pytest.raises(errors.IllegalTransition, match="run R1 is proposed: a second operator opens it"):
        line.issue(workpiece("D1"))
    bela = line.enrol(Role.OFFICER, "bela")
    opened = approve(line, "R1", bela)
    assert (opened.status, opened.approver) == (RunStatus.OPEN, bela.caller.credential.serial)
    entry = line.entries()[-1]
    assert (entry["kind"], entry["actor"]) == ("run-opened", "operator:bela")
    assert (entry["signer"], entry["approver"]) == (opened.signer, opened.approver)
    assert entry["inspections"][0]["inspector"].startswith("pkilint")
    assert line.make("D1").device == "serial:D1"
    assert line.make("D2", service=line.another_service()).device == "serial:D2"
    report = check(line.service.store, line.service.store.log, line.realm)
    assert report.findings == []


def test_in_a_test_realm_one_operator_opens(line: Line) -> None:
    assert open_licence(line, line.licence("R2")).status is RunStatus.OPEN
    with pytest.raises(errors.IllegalTransition, match="run R2 is open, not proposed"):
        approve(line, "R2", line.enrol(Role.OFFICER, "bela"))


def test_nobody_approves_alone_twice_or_something_else(small_production: Line) -> None:
    line = small_production
    open_licence(line, line.licence("R1"))
    bela = line.enrol(Role.OFFICER, "bela")
    other = bela.key.sign(line.licence("R2").encode(), ec.ECDSA(hashes.SHA256()))
    refused: list[tuple[Callable[[], object], type[errors.Refusal], str]] = [
        (lambda: approve(line, "R1", line.operator), errors.NotPermitted, "it takes two"),
        (lambda: approve(line, "R1", line.station), errors.NotPermitted, "may not approve-run"),
        (lambda: approve(line, "R1", bela, signature=other), errors.NotPermitted, "is not what was signed"),
        (lambda: approve(line, "R9", bela, signature=other), errors.NotFound, "there is no run R9"),
    ]
    for act, kind, complaint in refused:
        with pytest.raises(kind, match=complaint):
            act()
        assert (line.entries()[-1]["kind"], line.entries()[-1]["request"]) == ("refused", "approve-run")
        assert line.the(Run, "R1").status is RunStatus.PROPOSED
    approve(line, "R1", bela)
    with pytest.raises(errors.IllegalTransition, match="run R1 is open, not proposed"):
        approve(line, "R1", bela)


def test_the_same_key_under_another_name_opens_nothing(production: Line) -> None:
    """SPEC K1: neither as the second operator nor as a row that somebody wrote past the product."""
    line = production
    open_licence(line, line.licence("R1"))
    twin = enrol_with_key(line, "anna2", line.operator.key)
    start = line.size()
    with pytest.raises(errors.NotPermitted, match=r"anna2 cannot approve what operator:anna .* it takes two"):
        approve(line, "R1", twin)
    assert [entry["kind"] for entry in line.entries(start)] == ["refused"]
    assert line.the(Run, "R1").status is RunStatus.PROPOSED
    approve(line, "R1", line.enrol(Role.OFFICER, "bela"))
    forged = (twin.caller.credential.serial, sign(twin, line.the(Run, "R1").document))
    tamper(line.url, ("UPDATE run SET approver = %s, approval = %s", forged))
    with pytest.raises(errors.IntegrityFailure, match="is not signed by a second person"):
        line.issue(workpiece("D1"), service=line.another_service())
    findings = check(line.service.store, line.service.store.log, line.realm).findings
    assert any("is not signed by a second person" in finding for finding in findings), findings


def test_a_station_is_no_second_person(small_production: Line) -> None:
    """SPEC K1: also where its signature was written past the product."""
    line = small_production
    two_opened(line)
    forged = (line.station.caller.credential.serial, sign(line.station, line.the(Run, "R1").document))
    tamper(line.url, ("UPDATE run SET approver = %s, approval = %s", forged))
    with pytest.raises(errors.IntegrityFailure, match="station:ST01 is no operator"):
        line.issue(workpiece("D1"), service=line.another_service())


def test_a_proposal_under_a_credential_that_was_revoked_is_not_approved(small_production: Line) -> None:
    """The person is still there; the certificate that signed is not."""
    line = small_production
    open_licence(line, line.licence("R1"))
    bela = line.enrol(Role.OFFICER, "bela")
    serial = line.operator.caller.credential.serial
    tamper(line.url, ("UPDATE credential SET status = 'revoked' WHERE serial = %s", (serial,)))
    with pytest.raises(errors.IllegalTransition, match="was revoked since it proposed run R1"):
        approve(line, "R1", bela)


def test_a_proposal_is_judged_again_when_it_is_approved(small_production: Line) -> None:
    line = small_production
    open_licence(line, line.licence("R1"))
    bela = line.enrol(Role.OFFICER, "bela")
    tamper(line.url, ("UPDATE authority SET status = 'suspended' WHERE id = 'root'", ()))
    with pytest.raises(errors.IllegalTransition, match="authority root is suspended"):
        approve(line, "R1", bela)
    tamper(line.url, ("UPDATE authority SET status = 'active' WHERE id = 'root'", ()))
    line.service.carry(line.service.authorise.revoke(bela.caller, line.operator.id, "left"))
    with pytest.raises(errors.IllegalTransition, match="operator:anna was revoked since it proposed run R1"):
        approve(line, "R1", bela)


def test_a_proposal_can_be_withdrawn(small_production: Line) -> None:
    line = small_production
    open_licence(line, line.licence("R1"))
    closed = line.service.carry(line.service.runs.close(line.operator.caller, "R1", "a mistake"))
    assert closed.status is RunStatus.CLOSED
    bela = line.enrol(Role.OFFICER, "bela")
    with pytest.raises(errors.IllegalTransition, match="run R1 is closed, not proposed"):
        approve(line, "R1", bela)
    assert check(line.service.store, line.service.store.log, line.realm).findings == []


BY_ONE = {
    "a proposal set open": ("UPDATE run SET status = 'open'", "is open with one signature: it takes two"),
    "an approval taken away": (
        "UPDATE run SET approver = NULL, approval = NULL",
        "is open with one signature: it takes two",
    ),
    "the first person as the second": (
        "UPDATE run SET approver = signer, approval = signature",
        "is not signed by a second person",
    ),
    "somebody else's signature": (
        "UPDATE run SET approval = signature",
        "the licence of run R1 is not what was signed",
    ),
    "an approver without a signature": (
        "UPDATE run SET approval = NULL",
        "is not signed by a second person",
    ),
}


@pytest.mark.parametrize("case", BY_ONE)
def test_a_production_run_without_a_second_signature_admits_nothing(production: Line, case: str) -> None:
    """SPEC K1: whoever owns the database cannot be the second person; the check tells, too."""
    line = production
    statement, complaint = BY_ONE[case]
    if "proposal" in case:
        open_licence(line, line.licence("R1"))
    else:
        two_opened(line)
    tamper(line.url, (statement, ()))
    service = line.another_service()
    with pytest.raises(errors.IntegrityFailure, match=complaint):
        line.issue(workpiece("D1"), service=service)
    findings = check(line.service.store, line.service.store.log, line.realm).findings
    assert any(complaint in finding for finding in findings), findings


TAMPERED = {
    "an open run proposed again": ("UPDATE run SET status = 'proposed'", "run R1 is proposed, the log says"),
    "another entry that opened it": ("UPDATE run SET opening = 0", "run R1 is not the one the log says"),
    "no entry that opened it": ("UPDATE run SET opening = NULL", "run R1 is not the one the log says"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_a_tampering_with_a_run_of_two_is_found(small_production: Line, case: str) -> None:
    line = small_production
    two_opened(line)
    statement, complaint = TAMPERED[case]
    tamper(line.url, (statement, ()))
    findings = check(line.service.store, line.service.store.log, line.realm).findings
    assert any(complaint in finding for finding in findings), findings


def test_a_licence_of_before_profiles_were_pinned_reads_as_it_was_signed(small_line: Line) -> None:
    """What was signed is compared octet by octet: fields that came later are not in it."""
    old = replace(small_line.licence("R0"), profile_sha256="")
    assert b"profile_sha256" not in old.encode()
    assert RunLicence.decode(old.encode()) == old
