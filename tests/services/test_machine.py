"""Anything stations and people can do to a few devices, in any order, against a model (SPEC C4, E6, K1).

The model says of each request whether it must succeed, and if not which refusals may be given; after each
step the record is what the model is, and at the end the whole log is held against the whole record.
"""

import itertools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from birthmark import errors
from birthmark.floor.clients import Role
from birthmark.floor.devices import Device, DeviceCertificate, DeviceEvent, DeviceState
from birthmark.floor.recalls import RecallAction, SelectionKind
from birthmark.floor.runs import Run, RunStatus
from birthmark.ledger.proof import verify
from birthmark.pki.certificates import Certificate
from birthmark.pki.revocation import ReasonCode
from birthmark.services.check import check
from birthmark.services.issue import Issued
from birthmark.services.prove import ProveRequest, Released
from tests.support.realm import Client, Line, Workpiece, make_line, proof, workpiece
from tests.support.recalls import People, people

T = TypeVar("T")
S = DeviceState
HOLD = ReasonCode.CERTIFICATE_HOLD
STATIONS = {"R1": ("ST01", "ST02"), "R2": ("ST01",)}
QUANTITY = {"R1": 3, "R2": 1}
NAMES = ("D1", "D2", "D3", "D4", "D5")
DELIVERED = {"D2", "D4"}
STRANGER = ec.generate_private_key(ec.SECP256R1())
AFTER = {
    (S.ADMITTED, DeviceEvent.HOLD): S.HELD,
    (S.ISSUED, DeviceEvent.HOLD): S.HELD,
    (S.HELD, DeviceEvent.REWORK): S.ADMITTED,
    (S.HELD, DeviceEvent.SCRAP): S.SCRAPPED,
}
REVOKED_BY = {
    DeviceEvent.REWORK: ReasonCode.SUPERSEDED,
    DeviceEvent.SCRAP: ReasonCode.CESSATION_OF_OPERATION,
}

names = st.sampled_from(NAMES)
runs = st.sampled_from(sorted(QUANTITY))
stations = st.sampled_from(("ST01", "ST02"))
Reasons = set[type[errors.Refusal]]


@dataclass
class Model:
    """What one device should be."""

    piece: Workpiece
    run: str | None = None
    state: DeviceState | None = None
    key: str = ""
    """Idempotency key of the last issue that succeeded, and who asked."""
    by: str = ""
    issued: Issued | None = None
    proved: tuple[str, ProveRequest, Released] | None = None
    disposed: tuple[str, DeviceEvent, DeviceState] | None = None
    """Idempotency key of the operator's last disposition, and what came of it."""
    certificates: dict[str, ReasonCode | None] = field(default_factory=dict)
    """Serial numbers in the order of issuance; why each is not good."""

    @property
    def current(self) -> str:
        """Return the serial number of the last certificate."""
        return [*self.certificates][-1]

    def certified(self, issued: Issued) -> None:
        """Take in a certificate."""
        self.issued = issued
        self.certificates.setdefault(Certificate.from_der(issued.certificate).serial_hex, None)

    def revoked(self, serial: str, reason: ReasonCode) -> None:
        """Revoke a certificate for good, unless it is."""
        if self.certificates[serial] in (None, HOLD):
            self.certificates[serial] = reason


def some(has: Callable[[Model], object]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Let a rule wait until there is a device that has something: steps are few, and are to do something."""
    return precondition(lambda self: any(has(device) for device in self.devices.values()))


class Floor(RuleBasedStateMachine):
    """Five devices, two runs with four places, two stations of which one works on one run only."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="birthmark-floor-"))
        self.line: Line = make_line(self.folder, f"sqlite:///{self.folder / 'line.sqlite'}")
        self.clients: dict[str, Client] = {
            "ST01": self.line.station,
            "ST02": self.line.enrol(Role.STATION, "ST02"),
            "anna": self.line.operator,
        }
        self.people: People = people(self.line)
        self.gone: set[str] = set()
        self.closed: set[str] = set()
        for run, quantity in QUANTITY.items():
            self.line.open_run(run, quantity=quantity, stations=STATIONS[run], batch=f"B-{run}")
        self.at = self.line.service
        self.devices = {name: Model(workpiece(name, delivered=name in DELIVERED)) for name in NAMES}
        self.numbers = itertools.count()
        self.received = [self.line.service.store.checkpoint()]

    def expect(self, reasons: Reasons, request: Callable[[], T]) -> T | None:
        """Make a request; it succeeds if there is no reason why not, and is refused for one of them if so."""
        answer: T | None = None
        refused: errors.Refusal | None = None
        try:
            answer = request()
        except errors.Refusal as refusal:
            refused = refusal
        if refused is not None:
            assert type(refused) in reasons, f"refused as {refused.code}: {refused}"
            return None
        assert not reasons, "was not refused"
        return answer

    def may(self, by: str, run: str | None) -> Reasons:
        """Return why a station may not work on a run at all."""
        found: Reasons = set()
        if by in self.gone:
            found.add(errors.Unauthenticated)
        if run is not None and by not in STATIONS[run]:
            found.add(errors.NotPermitted)
        return found

    def taken(self, run: str) -> int:
        """Count the devices that took a place in a run."""
        return sum(device.run == run for device in self.devices.values())

    def pick(self, data: st.DataObject, *states: DeviceState | None) -> str:
        """Pick a device, mostly one in such a state that there is something to do."""
        fitting = [name for name, device in self.devices.items() if device.state in states]
        mostly = bool(fitting) and data.draw(st.booleans() | st.just(value=True))
        picked: str = data.draw(st.sampled_from(fitting) if mostly else names)
        return picked

    # --- the transaction

    @rule(data=st.data(), run=runs, by=stations)
    def issue(self, data: st.DataObject, run: str, by: str) -> None:
        """Ask for a certificate under a new key."""
        device = self.devices[self.pick(data, None, S.ADMITTED)]
        self.issue_to(device, device.run if device.run and data.draw(st.booleans()) else run, by)

    @rule(data=st.data(), run=runs, by=stations)
    def make(self, data: st.DataObject, run: str, by: str) -> None:
        """Issue and prove, as it goes nearly always."""
        device = self.devices[self.pick(data, None, S.ADMITTED)]
        self.issue_to(device, device.run or run, by)
        if device.issued is not None:
            self.prove_by(device, by)

    def issue_to(self, device: Model, run: str, by: str) -> None:
        """Ask for a certificate under a new key."""
        key, reasons = f"issue-{next(self.numbers)}", self.may(by, run)
        if run in self.closed or device.run not in (None, run) or device.state not in (None, S.ADMITTED):
            reasons.add(errors.IllegalTransition)
        if device.state is None and self.taken(run) == QUANTITY[run]:
            reasons.add(errors.QuotaExhausted)
        request = partial(
            self.line.issue, device.piece, run=run, key=key, by=self.clients[by], service=self.at
        )
        if (issued := self.expect(reasons, request)) is not None:
            device.run, device.state, device.key, device.by = run, S.ISSUED, key, by
            device.certified(issued)

    @some(lambda device: device.issued)
    @rule(name=names)
    def issue_again(self, name: str) -> None:
        """Repeat the last issue that succeeded, as after a lost answer."""
        device = self.devices[name]
        if device.issued is None or device.run is None:
            return
        born, before, reasons = device.piece.csr is not None, device.issued, self.may(device.by, device.run)
        if not born and (device.state is not S.ISSUED or device.run in self.closed):
            reasons.add(errors.IllegalTransition)
        by = self.clients[device.by]
        request = partial(
            self.line.issue, device.piece, run=device.run, key=device.key, by=by, service=self.at
        )
        if (issued := self.expect(reasons, request)) is None:
            return
        assert issued.attempt == before.attempt
        assert (issued.certificate == before.certificate) is born
        if not born:
            device.revoked(device.current, ReasonCode.SUPERSEDED)
        device.certified(issued)

    @some(lambda device: device.issued)
    @rule(name=names, other=names)
    def use_the_key_for_another(self, name: str, other: str) -> None:
        """Ask for one device under the idempotency key of another."""
        device, wanted = self.devices[name], self.devices[other]
        if name == other or device.run is None:
            return
        reasons = self.may(device.by, device.run) | {errors.KeyReused}
        by = self.clients[device.by]
        self.expect(
            reasons,
            partial(self.line.issue, wanted.piece, run=device.run, key=device.key, by=by, service=self.at),
        )

    def unprovable(self, device: Model, by: str) -> Reasons:
        """Return why a device cannot be proved, whatever it shows."""
        reasons = self.may(by, device.run)
        if device.state is not S.ISSUED:
            reasons.add(errors.IllegalTransition)
        return reasons

    @some(lambda device: device.issued)
    @rule(data=st.data(), by=stations)
    def prove(self, data: st.DataObject, by: str) -> None:
        """Prove the last certificate."""
        device = self.devices[self.pick(data, S.ISSUED)]
        if device.issued is not None:
            self.prove_by(device, by)

    def prove_by(self, device: Model, by: str) -> None:
        """Prove the last certificate."""
        assert device.issued is not None
        request, reasons = proof(device.issued, device.piece.key), self.unprovable(device, by)
        if device.certificates[device.current] is not None:
            reasons.add(errors.IllegalTransition)
        released = self.expect(
            reasons, partial(self.line.prove, request, by=self.clients[by], service=self.at)
        )
        if released is not None:
            assert verify(released.token, self.line.vkey)["device"] == device.piece.id
            device.state, device.proved = S.RELEASED, (by, request, released)

    @some(lambda device: device.proved)
    @rule(name=names)
    def prove_again(self, name: str) -> None:
        """Repeat the proof that released the device."""
        device = self.devices[name]
        if device.proved is None:
            return
        by, request, released = device.proved
        again = partial(self.line.prove, request, by=self.clients[by], service=self.at)
        answer = self.expect(self.may(by, device.run), again)
        assert answer in (None, released)

    @some(lambda device: device.issued)
    @rule(data=st.data(), by=stations)
    def prove_wrong(self, data: st.DataObject, by: str) -> None:
        """Prove with a key that is not the device's."""
        device = self.devices[self.pick(data, S.ISSUED)]
        if device.issued is None:
            return
        right, wrong = proof(device.issued, device.piece.key), proof(device.issued, STRANGER)
        signature = wrong.signature if device.piece.csr is not None else right.signature[:-1] + b"\x00"
        if signature == right.signature:
            return
        request = ProveRequest(
            attempt=right.attempt,
            certificate_sha256=right.certificate_sha256,
            signature=signature,
            key=right.key,
        )
        reasons = self.unprovable(device, by) or {errors.ProofFailed}
        self.expect(reasons, partial(self.line.prove, request, by=self.clients[by], service=self.at))
        if reasons == {errors.ProofFailed}:
            device.state = S.HELD

    # --- people

    @some(lambda device: device.state)
    @rule(
        data=st.data(),
        event=st.sampled_from((DeviceEvent.HOLD, DeviceEvent.REWORK, DeviceEvent.SCRAP)),
        by=st.sampled_from(("anna", "anna", "ST01", "ST02")),
    )
    def dispose(self, data: st.DataObject, event: DeviceEvent, by: str) -> None:
        """Hold, rework or scrap; a station may hold."""
        name = self.pick(data, *(state for state, possible in AFTER if possible is event))
        device, key = self.devices[name], f"dispose-{next(self.numbers)}"
        reasons = self.may(by, None if by == "anna" else device.run)
        after = None if device.state is None else AFTER.get((device.state, event))
        if by != "anna" and event is not DeviceEvent.HOLD:
            reasons.add(errors.NotPermitted)
        if device.state is None:
            reasons.add(errors.NotFound)
        elif after is None:
            reasons.add(errors.IllegalTransition)
        request = partial(
            self.line.dispose, event, device.piece.id, key=key, by=self.clients[by], service=self.at
        )
        if (disposed := self.expect(reasons, request)) is None:
            return
        assert disposed.state is after
        device.state = disposed.state
        if event in REVOKED_BY and device.certificates:
            device.revoked(device.current, REVOKED_BY[event])
        if by == "anna":
            device.disposed = (key, event, disposed.state)

    @some(lambda device: device.disposed)
    @rule(name=names)
    def dispose_again(self, name: str) -> None:
        """Repeat the last disposition: the same answer, and nothing happens, wherever the device is now."""
        device = self.devices[name]
        if device.disposed is None:
            return
        key, event, state = device.disposed
        disposed = self.line.dispose(event, device.piece.id, key=key, service=self.at)
        assert disposed.state is state

    @some(lambda device: device.certificates)
    @rule(name=names, action=st.sampled_from(RecallAction))
    def recall_device(self, name: str, action: RecallAction) -> None:
        """Have two people revoke, suspend or reinstate what a device was ever given."""
        self.recall(SelectionKind.DEVICE, self.devices[name].piece.id, action, [self.devices[name]])

    @some(lambda device: device.certificates)
    @rule(run=runs, action=st.sampled_from(RecallAction))
    def recall_run(self, run: str, action: RecallAction) -> None:
        """The same with all of a run, which has to be closed for it, unless it is to reinstate."""
        devices = [device for device in self.devices.values() if device.run == run]
        reasons: Reasons = set()
        if run not in self.closed and action is not RecallAction.REINSTATE:
            reasons.add(errors.IllegalTransition)
        self.recall(SelectionKind.RUN, run, action, devices, reasons)

    def recall(
        self,
        kind: SelectionKind,
        value: str,
        action: RecallAction,
        devices: list[Model],
        reasons: Reasons | None = None,
    ) -> None:
        """Order a recall and have it carried out."""
        chosen = [
            (device, serial)
            for device in devices
            for serial, status in device.certificates.items()
            if status is HOLD or (status is None and action is not RecallAction.REINSTATE)
            if not (status is HOLD and action is RecallAction.SUSPEND)
        ]
        if not chosen:
            return
        row = self.expect(reasons or set(), partial(self.people.recall, kind, value, action))
        if row is None:
            return
        assert row.changed == len(chosen)
        status = {
            RecallAction.REVOKE: ReasonCode.KEY_COMPROMISE,
            RecallAction.SUSPEND: HOLD,
            RecallAction.REINSTATE: None,
        }[action]
        for device, serial in chosen:
            device.certificates[serial] = status

    @some(lambda device: device.proved)
    @rule(run=runs)
    def close_run(self, run: str) -> None:
        """Close a run; closing it twice is refused."""
        reasons: Reasons = {errors.IllegalTransition} if run in self.closed else set()
        close = self.at.runs.close(self.line.operator.caller, run, "the order is filled")
        self.expect(reasons, partial(self.at.carry, close))
        self.closed.add(run)

    @precondition(lambda self: "ST02" not in self.gone)
    @rule()
    def shut_out(self) -> None:
        """Revoke a station: from then on nothing it asks for happens."""
        self.at.carry(self.at.authorise.revoke(self.line.operator.caller, "station:ST02", "stolen"))
        self.gone.add("ST02")

    # --- the world

    @rule()
    def restart(self) -> None:
        """Go on in another process, which remembers nothing."""
        self.at = self.line.another_service()
        self.received.append(self.at.store.checkpoint())

    @rule(minutes=st.integers(1, 10))
    def wait(self, minutes: int) -> None:
        """Let time go by."""
        self.line.clock.turn(minutes=minutes)

    # --- what holds after each step

    @invariant()
    def what_is_stored_is_what_should_be(self) -> None:
        """Compare the states, the counters of the runs, and why certificates are not good."""
        store = self.line.service.store
        found = {device.id: (device.state, device.run) for device in store.scan(Device)}
        there = [device for device in self.devices.values() if device.state is not None]
        assert found == {device.piece.id: (device.state, device.run) for device in there}
        for name in QUANTITY:
            run, states = self.line.the(Run, name), [state for state, of in found.values() if of == name]
            assert run.status is (RunStatus.CLOSED if name in self.closed else RunStatus.OPEN)
            assert (run.admitted, run.released, run.held, run.scrapped) == (
                len(states),
                states.count(S.RELEASED),
                states.count(S.HELD),
                states.count(S.SCRAPPED),
            )
        status = {one.serial: self.line.status(one) for one in store.scan(DeviceCertificate)}
        assert status == {
            serial: why for device in self.devices.values() for serial, why in device.certificates.items()
        }

    def teardown(self) -> None:
        """Hold everything against everything else, and clean up."""
        store = self.line.service.store
        report = check(store, store.log, self.line.realm, received_checkpoints=self.received)
        self.line.close()
        shutil.rmtree(self.folder)
        assert report.findings == []


class FloorForLong(Floor):
    """The same, for many long walks."""


TestFloor = Floor.TestCase
TestFloor.settings = settings(
    max_examples=8, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)

TestFloorForLong = pytest.mark.soak(pytest.mark.timeout(3000)(FloorForLong.TestCase))
TestFloorForLong.settings = settings(
    max_examples=400, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
)
