"""The exact state of anything at any instant, from the log alone (SPEC E6)."""

import io
from datetime import datetime, timedelta
from typing import Any

import pytest

from birthmark import errors
from birthmark.floor.clients import Role
from birthmark.floor.devices import Attempt, Device, DeviceCertificate, DeviceEvent
from birthmark.floor.recalls import RecallAction, SelectionKind
from birthmark.ledger import proof as ledger_proof
from birthmark.ledger.bundle import Bundle, write_bundle
from birthmark.ports import Decision
from birthmark.services.chronicle_states import (
    AuthorityState,
    CertificateState,
    ClientState,
    DeviceStanding,
    KeyState,
    Phase,
    RunState,
)
from birthmark.services.exposures import close_now
from birthmark.services.investigate import History, Subject, SubjectKind, history, subject_of
from birthmark.services.investigate_record import certificates_of, compare
from birthmark.services.log_reading import log_of, log_of_bundle
from birthmark.services.shipments import record_shipment
from tests.support.acts import act
from tests.support.realm import START, Client, Line, proof, tamper, workpiece
from tests.support.recalls import People, people

MINUTE = timedelta(minutes=1)


def ask(line: Line, text: str, at: datetime | None = None) -> History:
    store = line.service.store
    return history(
        log_of(store.log, line.realm), subject_of(text), at=at, certificates=certificates_of(store)
    )


def device(line: Line, text: str, at: datetime | None = None) -> DeviceStanding:
    state = ask(line, text, at).state
    assert isinstance(state, DeviceStanding)
    return state


def certificate(line: Line, serial: str, at: datetime | None = None) -> CertificateState:
    state = ask(line, f"certificate:{serial}", at).state
    assert isinstance(state, CertificateState)
    return state


def serial_of(line: Line, name: str) -> str:
    return line.the(Attempt, line.the(Device, f"serial:{name}").attempt).certificate


def close(made: People, run: str) -> None:
    made.line.service.carry(made.line.service.runs.close(made.anna.caller, run, "recalled"))


def kinds(found: History) -> list[str]:
    return [event.read()["kind"] for event in found.events]


def test_a_certificate_is_told_at_every_instant_of_its_life(line: Line) -> None:
    made, clock = people(line), line.clock
    clock.turn(minutes=1)
    piece = workpiece("A1")
    issued_at = clock.now()
    issued = line.issue(piece)
    clock.turn(minutes=1)
    proved_at = clock.now()
    line.prove(proof(issued, piece.key))
    serial = serial_of(line, "A1")
    clock.turn(minutes=1)
    suspended_at = clock.now()
    made.recall(SelectionKind.DEVICE, "serial:A1", RecallAction.SUSPEND)
    clock.turn(minutes=1)
    lifted_at = clock.now()
    made.recall(SelectionKind.DEVICE, "serial:A1", RecallAction.REINSTATE)
    clock.turn(minutes=1)
    revoked_at = clock.now()
    done = made.recall(SelectionKind.DEVICE, "serial:A1")
    clock.turn(minutes=1)
    expected = [
        (issued_at - MINUTE / 2, Phase.NOT_ISSUED, None),
        (issued_at, Phase.ISSUED, None),
        (proved_at - MINUTE / 2, Phase.ISSUED, None),
        (proved_at, Phase.LIVE, None),
        (suspended_at, Phase.SUSPENDED, "certificateHold"),
        (lifted_at - MINUTE / 2, Phase.SUSPENDED, "certificateHold"),
        (lifted_at, Phase.LIVE, None),
        (revoked_at, Phase.REVOKED, "keyCompromise"),
        (revoked_at + 9 * MINUTE, Phase.REVOKED, "keyCompromise"),
    ]
    for at, phase, reason in expected:
        state = certificate(line, serial, at)
        assert (state.phase, state.reason) == (phase, reason), at
    last = certificate(line, serial)
    assert (last.phase, last.cause, last.holder) == (Phase.REVOKED, f"recall {done.id}", "serial:A1")
    row = line.the(DeviceCertificate, serial)
    assert (last.sha256, last.authority, last.attempt) == (row.sha256, row.authority, row.attempt)
    found = ask(line, serial)
    assert kinds(found) == [
        "device-issued",
        "device-released",
        *["recall-proposed", "recall-approved", "certificates-suspended", "recall-done"],
        *["recall-proposed", "recall-approved", "certificates-reinstated", "recall-done"],
        *["recall-proposed", "recall-approved", "certificates-revoked", "recall-done"],
    ]
    early = ask(line, serial, proved_at)
    assert (kinds(early), early.later) == (["device-issued", "device-released"], 12)
    assert compare(line.service.store, found.now) == ()


def test_a_certificate_ends_when_it_says_so_itself(small_line: Line) -> None:
    """No entry says when: it is in the certificate, which is believed for its fingerprint alone."""
    credential = small_line.station.caller.credential
    end = credential.not_after
    assert certificate(small_line, credential.serial, end).phase is Phase.LIVE
    over = certificate(small_line, credential.serial, end + timedelta(seconds=1))
    assert (over.phase, over.index, over.not_after) == (Phase.EXPIRED, None, end)
    copy = log_of(small_line.service.store.log, small_line.realm)
    for held in (None, credential.der + b"\0"):  # not at hand, or another one: nothing is said of its end

        def find(_state: CertificateState, held: bytes | None = held) -> bytes | None:
            return held

        late = history(copy, subject_of(credential.serial), at=end + MINUTE, certificates=find).state
        assert isinstance(late, CertificateState)
        assert (late.phase, late.not_after) == (Phase.LIVE, None)


def test_a_device_is_told_with_all_it_ever_had(line: Line) -> None:
    clock = line.clock
    piece = workpiece("A1")
    line.issue(piece)
    clock.turn(minutes=1)
    line.dispose(DeviceEvent.HOLD, "serial:A1", reason="scratched")
    held = clock.now()
    clock.turn(minutes=1)
    line.dispose(DeviceEvent.REWORK, "serial:A1")
    clock.turn(minutes=1)
    again = clock.now()
    line.prove(proof(line.issue(piece), piece.key))
    clock.turn(minutes=1)
    line.service.carry(record_shipment(line.operator.caller, "C1", ["serial:A1"]))
    state = device(line, "serial:A1", held)
    assert (state.state, state.reason, state.attempts, state.consignment) == ("held", "scratched", 1, None)
    assert [one.phase for one in state.certificates] == [Phase.ISSUED]
    state = device(line, "serial:A1", again - MINUTE / 2)
    assert (state.state, [one.phase for one in state.certificates]) == ("admitted", [Phase.REVOKED])
    found = ask(line, "serial:A1")
    assert isinstance(found.state, DeviceStanding)
    assert (found.state.state, found.state.attempts, found.state.consignment) == ("released", 2, "C1")
    phases = [(one.phase, one.reason) for one in found.state.certificates]
    assert phases == [(Phase.REVOKED, "superseded"), (Phase.LIVE, None)]
    assert kinds(found) == [
        "device-issued",
        "device-held",
        "device-reworked",
        "device-issued",
        "device-released",
        "devices-shipped",
    ]
    assert compare(line.service.store, found.now) == ()
    with pytest.raises(errors.NotFound, match="no entry of the log speaks of serial:A2"):
        ask(line, "serial:A2")


def test_an_authority_has_its_own_state_and_certificates_tell_it(line: Line) -> None:
    line.make("A1")
    serial, clock = serial_of(line, "A1"), line.clock
    clock.turn(minutes=1)
    entry = {"authority": "issuing-1", "reason": "keys are looked for"}
    suspended = act(lambda _facts, _at: decision("authority-suspended", entry), actor=line.operator.id)
    line.service.store.submit([suspended]).result()
    clock.turn(minutes=1)
    before = certificate(line, serial, clock.now() - 1.5 * MINUTE)
    after = certificate(line, serial)
    assert [(one.authority, one.status) for one in before.authorities] == [
        ("issuing-1", "active"),
        ("root", "active"),
    ]
    assert [(one.authority, one.status, one.reason) for one in after.authorities] == [
        ("issuing-1", "suspended", "keys are looked for"),
        ("root", "active", None),
    ]
    assert (before.phase, after.phase) == (Phase.LIVE, Phase.LIVE)
    found = ask(line, "authority:issuing-1")
    assert isinstance(found.state, AuthorityState)
    assert (found.state.status, found.state.issuer) == ("suspended", "root")
    assert kinds(found) == ["ceremony-performed", "authority-established", "authority-suspended"]
    assert found.acts["device-issued"].count == 1
    # That entry was put into the log past the product: the record knows nothing of it.
    (wrong,) = compare(line.service.store, found.now)
    assert wrong == "authority issuing-1: the record says active, -, the log suspended, -"


def decision(kind: str, entry: dict[str, Any]) -> Decision[None]:
    return Decision(None, [(kind, entry)])


def test_a_client_is_told_and_what_it_did_is_counted(line: Line) -> None:
    clock = line.clock
    station = line.enrol(Role.STATION, "ST02", by=line.operator)
    clock.turn(minutes=1)
    line.open_run("R2", stations=("ST02",))
    _make(line, "A1", "R2", station)
    at = clock.now()
    clock.turn(minutes=1)
    line.service.carry(line.service.authorise.revoke(line.operator.caller, "station:ST02", "stolen"))
    found = ask(line, "station:ST02")
    assert isinstance(found.state, ClientState)
    assert (found.state.status, found.state.reason) == ("revoked", "stolen")
    assert [one.phase for one in found.state.certificates] == [Phase.REVOKED]
    assert kinds(found) == ["client-enrolled", "client-revoked"]
    assert {kind: acts.count for kind, acts in found.acts.items()} == {
        "device-issued": 1,
        "device-released": 1,
    }
    earlier = ask(line, "station:ST02", at)
    assert isinstance(earlier.state, ClientState)
    assert (earlier.state.status, earlier.later) == ("active", 1)
    assert [one.phase for one in earlier.state.certificates] == [Phase.LIVE]
    assert compare(line.service.store, found.now) == ()


def _make(line: Line, name: str, run: str, by: Client) -> None:
    piece = workpiece(name)
    line.prove(proof(line.issue(piece, run=run, by=by), piece.key), by=by)


def test_a_run_and_a_key_are_told(line: Line) -> None:
    line.open_run("R2", firmware="bms-4.2.1", batch="B8")
    _make(line, "A1", "R2", line.station)
    line.clock.turn(minutes=1)
    made = people(line)
    close(made, "R2")
    made.recall(SelectionKind.BATCH, "B8")
    found = ask(line, "run:R2")
    assert isinstance(found.state, RunState)
    assert (found.state.status, found.state.firmware, found.state.batch) == ("closed", "bms-4.2.1", "B8")
    assert kinds(found) == ["run-opened", "run-closed", "recall-proposed", "recall-approved", "recall-done"]
    assert found.acts["device-released"].count == 1
    opened = ask(line, "run:R2", START).state
    assert isinstance(opened, RunState)
    assert opened.status == "open"
    key = ask(line, "key:issuing-1")
    assert isinstance(key.state, KeyState)
    assert (key.state.status, key.state.purpose) == ("on-record", "issuing-ca")
    assert kinds(key) == ["ceremony-performed"]
    for one in (found, key):
        assert compare(line.service.store, one.now) == ()


def test_when_a_run_and_a_station_were_open_is_told(small_line: Line) -> None:
    line = small_line
    for what in ("run:R1", "station:ST01", "plane:station"):
        line.service.carry(close_now(line.operator.caller, what, "night"))
    assert kinds(ask(line, "run:R1"))[-1] == kinds(ask(line, "station:ST01"))[-1] == "exposure-set"
    assert len([one for one in kinds(ask(line, "run:R1")) if one == "exposure-set"]) == 1


def test_the_same_is_told_offline_by_somebody_who_has_the_key_alone(line: Line) -> None:
    made = people(line)
    line.make("A1")
    line.clock.turn(minutes=1)
    made.recall(SelectionKind.DEVICE, "serial:A1")
    store, out = line.service.store, io.BytesIO()
    write_bundle(
        out,
        vkey=line.vkey,
        checkpoint=store.checkpoint(),
        entries=(item.entry for item in store.log.entries()),
        records=(),
    )
    live = ask(line, "serial:A1")
    with Bundle(out) as bundle:
        away = history(log_of_bundle(bundle, line.vkey), subject_of("serial:A1"))
    assert away.events == live.events
    assert isinstance(away.state, DeviceStanding)
    assert isinstance(live.now, DeviceStanding)
    assert away.state == live.now
    for event in away.events:
        entry = ledger_proof.verify(away.proof(event), line.vkey)
        assert entry == event.read()


@pytest.mark.parametrize(
    ("statement", "told"),
    [
        ("UPDATE device SET state = 'held'", "serial:A1: the record says held"),
        ("UPDATE revocation SET reason = 'superseded'", "the record says superseded, the log keyCompromise"),
        ("DELETE FROM revocation", "the record says good, the log keyCompromise"),
    ],
)
def test_a_record_that_says_something_else_is_told_and_does_not_decide(
    line: Line, statement: str, told: str
) -> None:
    made = people(line)
    line.make("A1")
    made.recall(SelectionKind.DEVICE, "serial:A1")
    before = ask(line, "serial:A1")
    tamper(line.url, (statement, ()))
    store = line.another_service().store
    after = history(log_of(store.log, line.realm), subject_of("serial:A1"))
    assert after.now == before.now
    assert any(told in one for one in compare(store, after.now))


def test_a_log_in_which_an_entry_was_changed_tells_nothing(line: Line) -> None:
    line.make("A1")
    (issued,) = (event for event in ask(line, "serial:A1").events if b"device-issued" in event.entry)
    other = issued.entry.replace(b"serial:A1", b"serial:A2")
    tamper(line.url, ("UPDATE leaf SET entry = %s WHERE idx = %s", (other, issued.index)))
    store = line.another_service().store
    for name in ("serial:A1", "serial:A2", "run:R1"):
        with pytest.raises(errors.IntegrityFailure, match="do not lead to its checkpoint"):
            history(log_of(store.log, line.realm), subject_of(name))


def test_a_revocation_without_its_entry_is_a_contradiction(small_line: Line) -> None:
    """Revoked for good is for good: an entry that says otherwise is told, and changes nothing."""
    made = people(small_line)
    small_line.make("A1")
    made.recall(SelectionKind.DEVICE, "serial:A1")
    serial = serial_of(small_line, "A1")
    lifted = {"recall": "rc-0", "certificates": [serial], "revocation_reason": "removeFromCRL"}
    forged = act(lambda _facts, _at: decision("certificates-reinstated", lifted))
    small_line.service.store.submit([forged]).result()
    found = ask(small_line, serial)
    assert isinstance(found.state, CertificateState)
    assert found.state.phase is Phase.REVOKED
    (wrong,) = found.contradictions
    assert "was revoked for good and changes again" in wrong


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("vin:1M8GDM9AXKP042788", SubjectKind.DEVICE, "vin:1M8GDM9AXKP042788"),
        ("station:ST01", SubjectKind.CLIENT, "station:ST01"),
        ("operator:anna", SubjectKind.CLIENT, "operator:anna"),
        ("authority:issuing-1", SubjectKind.AUTHORITY, "issuing-1"),
        ("run:R1", SubjectKind.RUN, "R1"),
        ("key:log", SubjectKind.KEY, "log"),
        ("5A5A5A5A5A5A5A5A", SubjectKind.CERTIFICATE, "5a5a5a5a5a5a5a5a"),
        ("certificate:00:0A:01", SubjectKind.CERTIFICATE, "0a01"),
    ],
)
def test_a_subject_is_named_as_people_name_it(text: str, kind: SubjectKind, name: str) -> None:
    assert subject_of(text) == Subject(kind=kind, name=name)


@pytest.mark.parametrize("text", ["", "R1", "run:", "car:1", "zz", ":"])
def test_what_names_no_subject_is_refused(text: str) -> None:
    with pytest.raises(errors.MalformedRequest, match="say whom the history is of"):
        subject_of(text)
