"""A recall takes two people, takes everything, takes it once (SPEC F1, E6, K1)."""

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark import errors
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.authorities import Authority, AuthorityKind, AuthorityStatus, Custody
from birthmark.floor.clients import Role
from birthmark.floor.devices import Attempt, Device, DeviceCertificate, DeviceEvent
from birthmark.floor.recalls import (
    REASONS,
    Recall,
    RecallAction,
    RecallOrder,
    RecallStatus,
    Selection,
    SelectionKind,
    check_order,
)
from birthmark.floor.revocations import Revocation
from birthmark.ledger.entry import canonical, parse
from birthmark.pki.revocation import ReasonCode, read_entry
from birthmark.services import blastradius
from birthmark.services.acts import recognise
from birthmark.services.check import Report, check
from birthmark.services.recall import Recalls
from birthmark.services.revocations import line_of
from birthmark.services.testimony import Said
from tests.support.realm import (
    PASSPHRASE,
    START,
    Hands,
    Line,
    hierarchy,
    make_line,
    open_service,
    proof,
    tamper,
    workpiece,
)
from tests.support.recalls import People, enrol_with_key, establish, load_fleet, people, sign

RUN, BATCH, DEVICE = SelectionKind.RUN, SelectionKind.BATCH, SelectionKind.DEVICE
SUSPEND, REINSTATE = RecallAction.SUSPEND, RecallAction.REINSTATE


@pytest.fixture
def plant(line: Line) -> People:
    """A line with three released devices on the open run R1 and two on R2, and three people."""
    for name in ("A1", "A2", "A3"):
        line.make(name)
    line.open_run("R2", batch="B8")
    for name in ("B1", "B2"):
        line.make(name, run="R2")
    return people(line)


@pytest.fixture
def small_plant(small_line: Line) -> People:
    """The same on SQLite, R1 closed."""
    for name in ("A1", "A2", "A3"):
        small_line.make(name)
    small_line.clock.turn(minutes=1)
    made = people(small_line)
    close(made, "R1")
    return made


@pytest.fixture
def pages_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let an act take in two certificates, so that few devices make many acts."""
    monkeypatch.setattr(blastradius, "PAGE", 2)


def close(plant: People, *runs: str) -> None:
    for run in runs:
        plant.line.service.carry(plant.line.service.runs.close(plant.anna.caller, run, "recalled"))


def certificate(plant: People, device: str) -> DeviceCertificate:
    attempt = plant.line.the(Attempt, plant.line.the(Device, f"serial:{device}").attempt)
    return plant.line.the(DeviceCertificate, attempt.certificate)


def reason_of(plant: People, device: str) -> ReasonCode | None:
    return plant.line.status(certificate(plant, device))


def report(plant: People) -> Report:
    store = plant.line.another_service().store
    return check(store, store.log, plant.line.realm)


def kinds(plant: People, start: int) -> list[str]:
    return [entry["kind"] for entry in plant.line.entries(start)]


def test_two_people_recall_a_batch_and_nothing_else(plant: People) -> None:
    close(plant, "R1")
    start = plant.line.size()
    done = plant.recall(BATCH, "B7")
    assert (done.status, done.changed) == (RecallStatus.DONE, 3)
    assert {reason_of(plant, name) for name in ("A1", "A2", "A3")} == {ReasonCode.KEY_COMPROMISE}
    assert reason_of(plant, "B1") is None
    assert kinds(plant, start) == [
        "recall-proposed",
        "recall-approved",
        "certificates-revoked",
        "recall-done",
    ]
    named = plant.line.entries(start)[2]
    assert sorted(named["certificates"]) == sorted(certificate(plant, n).serial for n in ("A1", "A2", "A3"))
    assert report(plant).findings == []


def test_the_log_entry_of_the_approval_holds_both_signatures(plant: People) -> None:
    """SPEC K1: who did it is provable with the log alone, and the operators' certificates."""
    close(plant, "R1")
    start = plant.line.size()
    plant.recall(RUN, "R1")
    entry = plant.line.entries(start)[1]
    for who, what in ((plant.anna, "proposal"), (plant.bela, "approval")):
        public = who.key.public_key()
        public.verify(bytes.fromhex(entry[what]), entry["order"].encode(), ec.ECDSA(hashes.SHA256()))
    assert (entry["actor"], entry["approver"]) == ("operator:bela", plant.bela.caller.credential.serial)
    order = RecallOrder.decode(entry["order"].encode())
    assert (order.proposed_by, order.previewed) == ("operator:anna", 3)


def test_a_preview_counts_and_changes_nothing(plant: People) -> None:
    """SPEC E6: the blast radius before anybody decides."""
    line = plant.line
    held = workpiece("A4")
    with pytest.raises(errors.ProofFailed):
        line.prove(proof(line.issue(held), workpiece("X").key))
    line.issue(workpiece("A5"))
    line.dispose(DeviceEvent.HOLD, "serial:A5")
    line.dispose(DeviceEvent.SCRAP, "serial:A5")
    line.clock.turn(hours=1)
    line.make("A6")
    size = line.size()
    seen = plant.preview(BATCH, "B7")
    assert (seen.certificates, seen.changes) == (6, 5)
    assert seen.already == Counter({"cessationOfOperation": 1})
    assert seen.states == Counter({"released": 4, "held": 1})
    assert seen.runs == Counter({"R1": 5})
    assert seen.crls == Counter({"issuing-1/all": 5})
    assert (seen.first_issued, seen.last_issued) == (START, START + timedelta(hours=1))
    assert seen.open_runs == ("R1",)
    assert line.size() == size


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (DEVICE, "serial:A2", {"A2"}),
        (RUN, "R2", {"B1", "B2"}),
        (BATCH, "B8", {"B1", "B2"}),
        (SelectionKind.ISSUED_BY, "issuing-1", {"A1", "A2", "A3", "B1", "B2"}),
    ],
)
def test_each_selection_takes_what_it_names(
    plant: People, kind: SelectionKind, value: str, expected: set[str]
) -> None:
    close(plant, "R1", "R2")
    plant.recall(kind, value)
    names = ("A1", "A2", "A3", "B1", "B2")
    assert {name for name in names if reason_of(plant, name) is not None} == expected
    assert report(plant).findings == []


def test_a_station_is_recalled_for_a_window_of_time(plant: People) -> None:
    """Of a station that was tampered with for an hour, across all runs; what others made stays good."""
    line = plant.line
    other = line.enrol(Role.STATION, "ST02", by=line.operator)
    line.open_run("R3", stations=("ST01", "ST02"), batch="B9")
    line.clock.turn(hours=1)
    line.make("C1", run="R3")
    line.make("C2", run="R3", by=other)
    line.make("B3", run="R2")
    line.clock.turn(hours=1)
    line.make("C3", run="R3")
    since, until = START + timedelta(minutes=30), START + timedelta(minutes=90)
    done = plant.recall(SelectionKind.STATION, "ST01", since=since, until=until, invalidity_date=since)
    assert done.changed == 2
    gone = {n for n in ("A1", "B1", "B3", "C1", "C2", "C3") if reason_of(plant, n) is not None}
    assert gone == {"B3", "C1"}
    revocation = line.the(Revocation, line_of(certificate(plant, "C1")).id)
    assert read_entry(revocation.entry).invalidity_date == since
    assert report(plant).findings == []


def test_suspended_certificates_are_reinstated_or_revoked_and_revoked_ones_stay_so(plant: People) -> None:
    """RFC 5280 section 5.3.1: only certificateHold may be lifted."""
    close(plant, "R1")
    plant.recall(DEVICE, "serial:A3", reason=ReasonCode.CESSATION_OF_OPERATION)
    first = plant.line.the(Revocation, line_of(certificate(plant, "A3")).id)
    assert plant.recall(RUN, "R1", SUSPEND).changed == 2
    assert reason_of(plant, "A1") is ReasonCode.CERTIFICATE_HOLD
    assert plant.recall(DEVICE, "serial:A1", REINSTATE).changed == 1
    assert reason_of(plant, "A1") is None
    assert plant.recall(RUN, "R1").changed == 2
    assert plant.recall(RUN, "R1", REINSTATE).changed == 0
    assert reason_of(plant, "A2") is ReasonCode.KEY_COMPROMISE
    assert plant.line.the(Revocation, first.id) == first
    assert report(plant).findings == []


def test_a_recall_of_what_is_gone_already_changes_nothing_and_says_so(plant: People) -> None:
    close(plant, "R1")
    plant.recall(RUN, "R1")
    again = plant.recall(RUN, "R1")
    assert (again.status, again.changed) == (RecallStatus.DONE, 0)
    assert report(plant).findings == []


# --- an authority


def intermediate(line: Line) -> None:
    """Put a second issuing authority between the root and nothing, with one below it."""
    for name, issuer in (("plant-1", "root"), ("plant-1-a", "plant-1")):
        made = replace(
            line.the(Authority, "issuing-1"),
            id=name,
            issuer=issuer,
            kind=AuthorityKind.INTERMEDIATE if issuer == "root" else AuthorityKind.ISSUING,
            issued=0,
        )
        establish(line, made)


def test_an_authority_goes_with_one_line_on_the_crl_above_it(plant: People) -> None:
    line = plant.line
    seen = plant.preview(SelectionKind.AUTHORITY, "issuing-1")
    assert seen.changes == 1
    assert seen.crls == Counter({"root/authorities": 1})
    assert seen.certificates == 5
    assert any("signed in a ceremony" in note for note in seen.notes)
    assert line.the(Authority, "root").custody is Custody.OFFLINE
    before = {one.id for one in line.service.store.scan(Revocation)}
    start = line.size()
    done = plant.recall(SelectionKind.AUTHORITY, "issuing-1", reason=ReasonCode.CA_COMPROMISE)
    assert (done.status, done.changed) == (RecallStatus.DONE, 1)
    authority = line.the(Authority, "issuing-1")
    assert authority.status is AuthorityStatus.REVOKED
    assert {one.id for one in line.service.store.scan(Revocation)} - before == {line_of(authority).id}
    assert kinds(plant, start)[2:] == ["authority-revoked", "recall-done"]
    with pytest.raises(errors.IllegalTransition, match="revoked"):
        line.issue(workpiece("A9"))
    with pytest.raises(errors.IllegalTransition, match="is revoked"):
        line.service.carry(
            line.service.authorise.change(line.operator.caller, "issuing-1", AuthorityStatus.ACTIVE, "please")
        )
    assert report(plant).findings == []


def test_nobody_revokes_an_authority_alone(plant: People) -> None:
    """SPEC K1."""
    line = plant.line
    with pytest.raises(errors.NotPermitted, match="two people"):
        line.service.carry(
            line.service.authorise.change(line.operator.caller, "issuing-1", AuthorityStatus.REVOKED, "alone")
        )


def test_what_lies_below_a_revoked_authority_is_retired_with_it(small_plant: People) -> None:
    intermediate(small_plant.line)
    assert any("plant-1-a" in note for note in small_plant.preview(SelectionKind.AUTHORITY, "plant-1").notes)
    small_plant.recall(SelectionKind.AUTHORITY, "plant-1", reason=ReasonCode.CA_COMPROMISE)
    assert small_plant.line.the(Authority, "plant-1-a").status is AuthorityStatus.RETIRED
    assert small_plant.line.the(Authority, "issuing-1").status is AuthorityStatus.ACTIVE


def test_a_root_cannot_be_recalled(small_plant: People) -> None:
    with pytest.raises(errors.PolicyRefused, match="no CRL can revoke it"):
        small_plant.preview(SelectionKind.AUTHORITY, "root")


# --- who may


def refused(plant: People, start: int) -> str:
    """Return the code of the only refusal in the log since."""
    (code,) = [entry["code"] for entry in plant.line.entries(start) if entry["kind"] == "refused"]
    return str(code)


def test_the_same_person_twice_is_refused_and_logged(plant: People) -> None:
    """SPEC K1."""
    close(plant, "R1")
    recall = plant.propose(plant.order(RUN, "R1"))
    start = plant.line.size()
    with pytest.raises(errors.NotPermitted, match="it takes two"):
        plant.approve(recall, by=plant.anna)
    assert refused(plant, start) == "not-permitted"
    assert reason_of(plant, "A1") is None


def test_the_same_key_under_another_name_is_the_same_person(plant: People) -> None:
    close(plant, "R1")
    recall = plant.propose(plant.order(RUN, "R1"))
    twin = enrol_with_key(plant.line, "anna2", plant.anna.key)
    with pytest.raises(errors.NotPermitted, match="it takes two"):
        plant.approve(recall, by=twin)


def test_a_renewed_certificate_is_the_same_person(plant: People) -> None:
    close(plant, "R1")
    recall = plant.propose(plant.order(RUN, "R1"))
    renewed = plant.line.enrol(Role.OFFICER, "anna", renew=True)
    with pytest.raises(errors.NotPermitted, match="it takes two"):
        plant.approve(recall, by=renewed)


def test_a_forged_approval_is_refused_and_logged(plant: People) -> None:
    close(plant, "R1")
    recall = plant.propose(plant.order(RUN, "R1"))
    start = plant.line.size()
    with pytest.raises(errors.NotPermitted, match="not operator:bela's signature"):
        plant.approve(recall, by=plant.bela, signature=sign(plant.carl, recall.document))
    assert refused(plant, start) == "not-permitted"
    assert plant.line.the(Recall, recall.id) == recall


def test_an_approval_of_another_document_is_refused(plant: People) -> None:
    close(plant, "R1", "R2")
    small = plant.propose(plant.order(DEVICE, "serial:A1"))
    large = plant.propose(plant.order(RUN, "R1"))
    with pytest.raises(errors.NotPermitted, match="signature over recall"):
        plant.approve(large, signature=sign(plant.bela, small.document))


@pytest.mark.parametrize("role", [Role.STATION])
def test_a_station_neither_proposes_nor_approves(plant: People, role: Role) -> None:
    close(plant, "R1")
    order = plant.order(RUN, "R1", by=plant.line.station)
    with pytest.raises(errors.NotPermitted, match=f"an? {role} does not have it"):
        plant.propose(order, by=plant.line.station)
    recall = plant.propose(plant.order(RUN, "R1"))
    with pytest.raises(errors.NotPermitted, match=f"an? {role} does not have it"):
        plant.approve(recall, by=plant.line.station)


def test_an_approver_who_was_revoked_is_refused(plant: People) -> None:
    close(plant, "R1")
    recall = plant.propose(plant.order(RUN, "R1"))
    plant.line.service.carry(plant.line.service.authorise.revoke(plant.carl.caller, "operator:bela", "left"))
    with pytest.raises(errors.Unauthenticated, match="operator:bela was revoked"):
        plant.approve(recall)


def test_what_somebody_proposed_who_was_revoked_since_is_not_approved(plant: People) -> None:
    close(plant, "R1")
    recall = plant.propose(plant.order(RUN, "R1"))
    plant.line.service.carry(plant.line.service.authorise.revoke(plant.carl.caller, "operator:anna", "left"))
    with pytest.raises(errors.IllegalTransition, match="propose it again"):
        plant.approve(recall)


def test_a_withdrawn_recall_is_not_approved_and_a_done_one_not_withdrawn(plant: People) -> None:
    close(plant, "R1")
    withdrawn = plant.propose(plant.order(RUN, "R1"))
    plant.line.service.carry(plant.recalls.withdraw(plant.carl.caller, withdrawn.id, "wrong run"))
    with pytest.raises(errors.IllegalTransition, match="is withdrawn"):
        plant.approve(withdrawn)
    done = plant.recall(DEVICE, "serial:A1")
    with pytest.raises(errors.IllegalTransition, match="is done"):
        plant.approve(done)
    with pytest.raises(errors.IllegalTransition, match="is done"):
        plant.line.service.carry(plant.recalls.withdraw(plant.anna.caller, done.id, "sorry"))
    with pytest.raises(errors.IllegalTransition, match="is withdrawn"):
        plant.line.service.carry(plant.recalls.resume(plant.anna.caller, withdrawn.id))
    assert report(plant).findings == []


def test_an_order_is_its_proposers_own(plant: People) -> None:
    close(plant, "R1")
    with pytest.raises(errors.NotPermitted, match="operator:anna's, not operator:bela's"):
        plant.propose(plant.order(RUN, "R1"), by=plant.bela)
    with pytest.raises(errors.NotPermitted, match="is not what two people signed"):
        plant.propose(plant.order(RUN, "R1"), signer=plant.bela)
    with pytest.raises(errors.NotPermitted, match="belongs to evil"):
        plant.propose(plant.order(RUN, "R1", realm="evil"))


def test_a_proposal_for_what_does_not_exist_is_refused(small_plant: People) -> None:
    for kind, value in (
        (RUN, "R9"),
        (BATCH, "B9"),
        (DEVICE, "serial:Z"),
        (SelectionKind.STATION, "ST09"),
        (SelectionKind.AUTHORITY, "ca-9"),
        (SelectionKind.ISSUED_BY, "ca-9"),
    ):
        with pytest.raises(errors.NotFound, match="there is no"):
            small_plant.preview(kind, value)
    order = small_plant.order(RUN, "R1", selection=Selection(kind=RUN, value="R9"))
    with pytest.raises(errors.NotFound, match="there is no run R9"):
        small_plant.propose(order)


# --- completeness


def test_a_recall_of_a_run_that_still_issues_is_not_approved_until_it_is_closed(plant: People) -> None:
    """What is issued after the approval would be left out without anybody having said so."""
    recall = plant.propose(plant.order(BATCH, "B7"))
    with pytest.raises(errors.IllegalTransition, match=r"close the runs that still issue .*: R1"):
        plant.approve(recall)
    plant.line.make("A4")
    close(plant, "R1")
    with pytest.raises(errors.IllegalTransition, match="closed"):
        plant.line.make("A5")
    assert plant.approve(recall).changed == 4


def test_an_order_to_reinstate_needs_no_closed_run(plant: People) -> None:
    assert plant.recall(BATCH, "B7", REINSTATE).status is RecallStatus.DONE


def test_a_device_whose_certificate_was_recalled_is_not_released(plant: People) -> None:
    """SPEC C4: issued, recalled, and only then proved."""
    line = plant.line
    device = workpiece("A4")
    issued = line.issue(device)
    plant.recall(DEVICE, "serial:A4")
    with pytest.raises(errors.IllegalTransition, match=r"is revoked \(keyCompromise\)"):
        line.prove(proof(issued, device.key))
    line.dispose(DeviceEvent.HOLD, "serial:A4")
    line.dispose(DeviceEvent.REWORK, "serial:A4")
    line.prove(proof(line.issue(device, key="again"), device.key))
    assert reason_of(plant, "A4") is None
    assert report(plant).findings == []


@pytest.mark.usefixtures("pages_of_two")
def test_the_line_goes_on_between_two_acts_of_a_recall(plant: People) -> None:
    """Another run issues while a recall is carried out, and is not touched."""
    close(plant, "R1")
    for name in ("A1", "A2", "A3"):
        assert reason_of(plant, name) is None
    made: list[str] = []

    def issue_meanwhile(_done: int, _total: int) -> None:
        made.append(f"N{len(made)}")
        plant.line.make(made[-1], run="R2")

    done = plant.approve(plant.propose(plant.order(BATCH, "B7")), told=issue_meanwhile)
    assert (done.changed, len(made)) == (3, 4)
    assert {reason_of(plant, name) for name in made} == {None}
    assert report(plant).findings == []


class _Killed(BaseException):
    """Stands for the end of the process: nothing in the product catches it."""


def _kill_at(number: int) -> Callable[[int, int], None]:
    def kill(done: int, _total: int) -> None:
        if done == number:
            raise _Killed

    return kill


@pytest.mark.usefixtures("pages_of_two")
@pytest.mark.parametrize("again", ["resume", "approve"])
def test_a_recall_that_was_broken_off_is_carried_on_and_nothing_is_done_twice(
    plant: People, again: str
) -> None:
    close(plant, "R1")
    recall = plant.propose(plant.order(BATCH, "B7"))
    start = plant.line.size()

    with pytest.raises(_Killed):
        plant.approve(recall, told=_kill_at(2))
    broken = plant.line.the(Recall, recall.id)
    assert (broken.status, broken.changed) == (RecallStatus.APPROVED, 2)
    assert report(plant).findings == []
    with pytest.raises(errors.IllegalTransition, match="is approved"):
        plant.approve(recall, by=plant.carl)
    if again == "resume":
        done = plant.line.service.carry(plant.recalls.resume(plant.carl.caller, recall.id))
    else:
        done = plant.approve(recall)
    assert (done.status, done.changed) == (RecallStatus.DONE, 3)
    named = [
        serial
        for entry in plant.line.entries(start)
        if entry["kind"] == "certificates-revoked"
        for serial in entry["certificates"]
    ]
    assert sorted(named) == sorted(certificate(plant, name).serial for name in ("A1", "A2", "A3"))
    assert plant.line.service.carry(plant.recalls.resume(plant.carl.caller, recall.id)) == done
    assert report(plant).findings == []


# --- what the check finds


Tamper = Callable[[People, Recall], list[tuple[str, tuple[Any, ...]]]]


def _column(column: str, value: Callable[[People, Recall], Any]) -> Tamper:
    def statements(plant: People, recall: Recall) -> list[tuple[str, tuple[Any, ...]]]:
        statement = f"UPDATE recall SET {column} = %s WHERE id = %s"  # noqa: S608  # a name of ours
        return [(statement, (value(plant, recall), recall.id))]

    return statements


def _other_order(plant: People, recall: Recall) -> bytes:
    fields = parse(recall.document)
    return canonical({**fields, "justification": "because"})


TAMPERINGS: dict[str, tuple[Tamper, str]] = {
    "another document": (_column("document", _other_order), "is not what two people signed"),
    "an approval by nobody": (_column("approval", lambda *_: b"x"), "is not what two people signed"),
    "the proposer's signature as approval": (
        lambda _, recall: [("UPDATE recall SET approval = proposal WHERE id = %s", (recall.id,))],
        "is not what two people signed",
    ),
    "another approver": (
        _column("approver", lambda plant, _: plant.carl.caller.credential.serial),
        "is not what two people signed",
    ),
    "another count": (_column("changed", lambda *_: 2), "its count is 2, the log says 3"),
    "undone": (_column("status", lambda *_: "approved"), "its status is approved, the log says done"),
    "approved later": (_column("approved_at", lambda *_: 1), "its time of approval is 1970"),
    "gone": (
        lambda _, recall: [("DELETE FROM recall WHERE id = %s", (recall.id,))],
        "was proposed; it is gone",
    ),
    "one certificate made good again": (
        lambda plant, _: [
            ("DELETE FROM revocation WHERE id = %s", (line_of(certificate(plant, "A1")).id,)),
        ],
        "is done; it left out certificate",
    ),
    "another cause": (
        lambda plant, _: [
            (
                "UPDATE revocation SET cause = 'rework' WHERE id = %s",
                (line_of(certificate(plant, "A1")).id,),
            )
        ],
        "rework revoked it, the log says recall:",
    ),
    "a station that did not ask for it": (
        lambda plant, _: [
            (
                "UPDATE device_certificate SET client = 'station:ST02' WHERE serial = %s",
                (certificate(plant, "A1").serial,),
            )
        ],
        "its client is station:ST02, the log says station:ST01",
    ),
}


@pytest.mark.parametrize("what", TAMPERINGS)
def test_the_check_finds_what_somebody_did_to_a_recall(small_plant: People, what: str) -> None:
    done = small_plant.recall(RUN, "R1")
    statements, finding = TAMPERINGS[what]
    tamper(small_plant.line.url, *statements(small_plant, done))
    assert any(finding in found for found in report(small_plant).findings), report(small_plant).findings


@pytest.mark.usefixtures("pages_of_two")
def test_a_recall_that_was_made_to_skip_certificates_is_found(small_plant: People) -> None:
    """Somebody who owns the database moves the cursor of a recall that was broken off."""
    recall = small_plant.propose(small_plant.order(RUN, "R1"))
    with pytest.raises(_Killed):
        small_plant.approve(recall, told=_kill_at(2))
    tamper(small_plant.line.url, ("UPDATE recall SET cursor = 'R1/g'", ()))
    done = small_plant.line.service.carry(small_plant.recalls.resume(small_plant.carl.caller, recall.id))
    assert (done.status, done.changed) == (RecallStatus.DONE, 2)
    (finding,) = report(small_plant).findings
    assert f"recall {recall.id} is done; it left out certificate" in finding


def test_a_proposal_that_says_it_was_begun_is_not_approved(small_plant: People) -> None:
    """Somebody who owns the database would have the recall pass over all that it chose."""
    recall = small_plant.propose(small_plant.order(RUN, "R1"))
    tamper(small_plant.line.url, ("UPDATE recall SET cursor = 'zzz'", ()))
    with pytest.raises(errors.IntegrityFailure, match="is a proposal and says"):
        small_plant.approve(recall)


def test_a_recall_that_nobody_signed_is_not_carried_out_and_is_found(small_plant: People) -> None:
    """Somebody who owns the database writes an approval into it."""
    recall = small_plant.propose(small_plant.order(RUN, "R1"))
    tamper(
        small_plant.line.url,
        (
            "UPDATE recall SET status = 'approved', approved_at = 1, approver = %s, approval = %s",
            (small_plant.bela.caller.credential.serial, recall.proposal),
        ),
    )
    start = small_plant.line.size()
    with pytest.raises(errors.IntegrityFailure, match="is not what two people signed"):
        small_plant.line.service.carry(small_plant.recalls.resume(small_plant.carl.caller, recall.id))
    assert refused(small_plant, start) == "integrity-failure"
    assert reason_of(small_plant, "A1") is None
    assert any("not what two people signed" in found for found in report(small_plant).findings)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"recall": "rc-none"}, "nobody proposed recall rc-none"),
        ({"kind": "certificates-suspended"}, "orders something else"),
        ({"revocation_reason": "superseded"}, "orders something else"),
        ({"invalidity_date": "2026-11-22T10:00:00.000Z"}, "orders something else"),
    ],
)
def test_the_log_itself_is_held_against_the_orders_in_it(
    small_plant: People, change: dict[str, str], complaint: str
) -> None:
    """Whoever holds the log's key and writes revocations that nobody ordered contradicts the orders."""
    small_plant.recall(RUN, "R1")
    with pytest.raises(errors.MalformedRequest, match=complaint):
        read_again(small_plant.line, change)


def test_a_certificate_outside_the_order_cannot_be_slipped_in(plant: People) -> None:
    close(plant, "R1")
    plant.recall(RUN, "R1")
    stray = certificate(plant, "B1").serial
    with pytest.raises(errors.MalformedRequest, match=f"does not choose certificate {stray}"):
        read_again(plant.line, {"certificates": [stray]})


def read_again(line: Line, change: dict[str, Any]) -> None:
    """Read the log as the check does, with a change to what it says was revoked."""
    said = Said()
    for index, entry in enumerate(line.entries()):
        said.take(index, {**entry, **change} if entry["kind"] == "certificates-revoked" else entry)


# --- orders


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        ({"justification": ""}, "justification"),
        ({"justification": "x" * 501}, "justification"),
        ({"justification": "a\nb"}, "justification"),
        ({"id": "../x"}, "recall"),
        ({"reason": ReasonCode.CERTIFICATE_HOLD}, "reason"),
        ({"reason": ReasonCode.REMOVE_FROM_CRL}, "reason"),
        ({"reason": ReasonCode.AA_COMPROMISE}, "reason"),
        ({"reason": ReasonCode.CA_COMPROMISE}, "reason"),
        ({"selection": Selection(kind=RUN, value="")}, "selection"),
        ({"selection": Selection(kind=RUN, value="R1", until=START)}, "selection"),
        ({"selection": Selection(kind=SelectionKind.STATION, value="ST01")}, "selection"),
        (
            {"selection": Selection(kind=SelectionKind.STATION, value="ST01", since=START, until=START)},
            "selection",
        ),
        (
            {
                "selection": Selection(kind=SelectionKind.AUTHORITY, value="ca"),
                "action": SUSPEND,
                "reason": ReasonCode.CERTIFICATE_HOLD,
            },
            "action",
        ),
        ({"reason": ReasonCode.SUPERSEDED, "invalidity_date": START}, "invalidity-date"),
    ],
)
def test_an_order_that_makes_no_sense_is_refused(fields: dict[str, Any], rule: str) -> None:
    with pytest.raises(errors.PolicyRefused) as refusal:
        check_order(replace(ORDER, **fields))
    assert refusal.value.rule == rule


ORDER = RecallOrder(
    realm="acme",
    environment="test",
    id="rc-1",
    selection=Selection(kind=RUN, value="R1"),
    action=RecallAction.REVOKE,
    reason=ReasonCode.KEY_COMPROMISE,
    justification="keys left the plant",
    previewed=3,
    proposed_by="operator:anna",
)


@pytest.mark.parametrize("action", RecallAction)
def test_every_sensible_reason_makes_an_order_that_reads_back(action: RecallAction) -> None:
    for reason in REASONS[action] - {ReasonCode.CA_COMPROMISE}:
        order = replace(ORDER, action=action, reason=reason)
        check_order(order)
        assert RecallOrder.decode(order.encode()) == order


@pytest.mark.parametrize(
    "change", [{"previewed": "3"}, {"justification": 7}, {"recall": None}, {"type": "x"}, {"more": 1}]
)
def test_a_document_with_a_field_of_another_type_is_no_order(change: dict[str, Any]) -> None:
    with pytest.raises(errors.MalformedRequest):
        RecallOrder.decode(canonical({**parse(ORDER.encode()), **change}))


def test_times_in_the_future_are_refused(small_plant: People) -> None:
    later = START + timedelta(hours=2)
    station = SelectionKind.STATION
    with pytest.raises(errors.PolicyRefused, match="the window is in the future"):
        small_plant.propose(small_plant.order(station, "ST01", until=later))
    with pytest.raises(errors.PolicyRefused, match="the invalidity date is in the future"):
        small_plant.propose(small_plant.order(RUN, "R1", invalidity_date=later))


# --- from several processes


def approve_in_another_process(
    both: Barrier, url: str, keys: str, recall: str, approver: bytes, approval: bytes
) -> None:
    """Approve as another process of the service would, and carry out once both have approved."""
    waited: list[int] = []

    def wait(done: int, _total: int) -> None:
        if not waited:
            waited.append(done)
            both.wait(60)

    blastradius.PAGE = 5
    service = open_service(url, SoftwareKeyStore.open(Path(keys), PASSPHRASE), Hands())
    recalls = Recalls(service.store.realm, Hands(), SystemEntropy(), service.store.log)
    caller = service.carry(recognise(approver))
    done = service.carry(recalls.approve(caller, recall, approval, wait))
    service.store.close()
    assert (done.status, done.changed) == (RecallStatus.DONE, 203)


def test_two_processes_that_approve_at_once_carry_it_out_once(plant: People) -> None:
    load_fleet(plant.line, "R1", 200)
    close(plant, "R1")
    recall = plant.propose(plant.order(BATCH, "B7"))
    start = plant.line.size()
    approval = sign(plant.bela, recall.document)
    arguments = (
        plant.line.url,
        str(hierarchy().directory),
        recall.id,
        plant.bela.caller.credential.der,
        approval,
    )
    context = multiprocessing.get_context("spawn")
    both = context.Barrier(2)
    processes = [
        context.Process(target=approve_in_another_process, args=(both, *arguments)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    entries = plant.line.entries(start)
    assert Counter(entry["kind"] for entry in entries)["recall-approved"] == 1
    named = Counter(serial for entry in entries for serial in entry.get("certificates", ()))
    assert (len(named), set(named.values())) == (203, {1})
    assert report(plant).findings == []


def approve_and_be_killed(
    url: str, keys: str, recall: str, approver: bytes, approval: bytes, seconds: float
) -> None:
    """Approve or go on, until SIGKILL comes so long after the first act."""

    def doom(done: int, _total: int) -> None:
        if done > begun:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()

    blastradius.PAGE = 5
    service = open_service(url, SoftwareKeyStore.open(Path(keys), PASSPHRASE), Hands())
    recalls = Recalls(service.store.realm, Hands(), SystemEntropy(), service.store.log)
    caller = service.carry(recognise(approver))
    begun = service.carry(recalls.get(recall))[0].changed
    service.carry(recalls.approve(caller, recall, approval, doom))


def test_a_recall_survives_kill_9(plant: People) -> None:
    """SPEC E2: whatever moment it comes at, what was named in the log is revoked, and nothing else."""
    line = plant.line
    load_fleet(line, "R1", 300)
    close(plant, "R1")
    recall = plant.propose(plant.order(BATCH, "B7"))
    start = line.size()
    arguments = (
        line.url,
        str(hierarchy().directory),
        recall.id,
        plant.bela.caller.credential.der,
        sign(plant.bela, recall.document),
    )
    context, far = multiprocessing.get_context("spawn"), 0
    for seconds in (0.0, 0.004, 0.011):
        process = context.Process(target=approve_and_be_killed, args=(*arguments, seconds))
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        now = line.the(Recall, recall.id)
        assert (now.status, now.changed > far) == (RecallStatus.APPROVED, True)
        far = now.changed
    assert report(plant).findings == []
    done = line.service.carry(plant.recalls.resume(plant.carl.caller, recall.id))
    assert (done.status, done.changed) == (RecallStatus.DONE, 303)
    named = Counter(serial for entry in line.entries(start) for serial in entry.get("certificates", ()))
    assert (len(named), set(named.values())) == (303, {1})
    assert report(plant).findings == []


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """A closed run of 2500 devices on SQLite."""
    folder = tmp_path_factory.mktemp("fleet")
    line = make_line(folder, f"sqlite:///{folder / 'line.sqlite'}")
    line.open_run(quantity=2500)
    load_fleet(line, "R1", 2500)
    made = people(line)
    close(made, "R1")
    yield made
    line.close()


def test_an_act_names_at_most_a_thousand_certificates(fleet: People) -> None:
    """Log entries have at most 65 535 octets."""
    start = fleet.line.size()
    told: list[tuple[int, int]] = []
    done = fleet.approve(fleet.propose(fleet.order(BATCH, "B7")), told=lambda *far: told.append(far))
    assert done.changed == 2500
    sizes = [
        len(entry["certificates"])
        for entry in fleet.line.entries(start)
        if entry["kind"] == "certificates-revoked"
    ]
    assert sizes == [1000, 1000, 500]
    assert told == [(0, 2500), (1000, 2500), (2000, 2500), (2500, 2500), (2500, 2500)]
    assert report(fleet).findings == []
