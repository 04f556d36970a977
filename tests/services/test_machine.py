"""Anything stations and operators can do to a few devices, in any order, against a model (SPEC C4)."""

import itertools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from birthmark import errors
from birthmark.floor.devices import Device, DeviceEvent, DeviceState
from birthmark.floor.runs import Run
from birthmark.ledger.proof import verify
from birthmark.services.check import check
from birthmark.services.issue import Issued
from birthmark.services.prove import ProveRequest, Released
from tests.support.realm import Line, Workpiece, make_line, proof, workpiece

S = DeviceState
QUANTITY = 3
names = st.sampled_from(["D1", "D2", "D3", "D4"])
STRANGER = ec.generate_private_key(ec.SECP256R1())


@dataclass
class Model:
    """What one device should be."""

    piece: Workpiece
    state: DeviceState | None = None
    key: str = ""
    issued: Issued | None = None
    proved: tuple[ProveRequest, Released] | None = None


class Floor(RuleBasedStateMachine):
    """Four devices, three places in the run, half of them with delivered keys."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="birthmark-floor-"))
        self.line: Line = make_line(self.folder, f"sqlite:///{self.folder / 'line.sqlite'}")
        self.line.open_run(quantity=QUANTITY)
        self.at = self.line.service
        self.devices = {
            name: Model(workpiece(name, delivered=name in ("D2", "D4"))) for name in ("D1", "D2", "D3", "D4")
        }
        self.numbers = itertools.count()
        self.received = [self.line.service.store.checkpoint()]

    def admitted(self) -> int:
        """Count the devices that took a place."""
        return sum(device.state is not None for device in self.devices.values())

    @rule(name=names)
    def issue(self, name: str) -> None:
        """Ask for a certificate under a new key."""
        device, key = self.devices[name], f"issue-{next(self.numbers)}"
        try:
            issued = self.line.issue(device.piece, key=key, service=self.at)
        except errors.QuotaExhausted:
            assert device.state is None
            assert self.admitted() == QUANTITY
        except errors.IllegalTransition:
            assert device.state not in (None, S.ADMITTED)
        else:
            assert device.state in (None, S.ADMITTED)
            device.state, device.issued, device.key = S.ISSUED, issued, key

    @rule(name=names)
    def issue_again(self, name: str) -> None:
        """Repeat the last issue that succeeded, as after a lost answer."""
        device = self.devices[name]
        if device.issued is None:
            return
        born = device.piece.csr is not None
        try:
            issued = self.line.issue(device.piece, key=device.key, service=self.at)
        except errors.IllegalTransition:
            assert not born
            assert device.state is not S.ISSUED
        else:
            assert issued.attempt == device.issued.attempt
            assert (issued.certificate == device.issued.certificate) is born
            assert born or device.state is S.ISSUED
            device.issued = issued

    @rule(name=names)
    def prove(self, name: str) -> None:
        """Prove the last certificate."""
        device = self.devices[name]
        if device.issued is None:
            return
        request = proof(device.issued, device.piece.key)
        try:
            released = self.line.prove(request, service=self.at)
        except errors.IllegalTransition:
            assert device.state is not S.ISSUED
        else:
            assert device.state is S.ISSUED
            assert verify(released.token, self.line.vkey)["device"] == device.piece.id
            device.state, device.proved = S.RELEASED, (request, released)

    @rule(name=names)
    def prove_again(self, name: str) -> None:
        """Repeat the proof that released the device."""
        device = self.devices[name]
        if device.proved is not None:
            assert self.line.prove(device.proved[0], service=self.at) == device.proved[1]

    @rule(name=names)
    def prove_wrong(self, name: str) -> None:
        """Prove with a key that is not the device's."""
        device = self.devices[name]
        if device.issued is None:
            return
        right = proof(device.issued, device.piece.key)
        wrong = proof(device.issued, STRANGER)
        signature = wrong.signature if device.piece.csr is not None else right.signature[:-1] + b"\x00"
        request = ProveRequest(
            attempt=right.attempt,
            certificate_sha256=right.certificate_sha256,
            signature=signature,
            key=right.key,
        )
        if signature == right.signature:
            return
        try:
            self.line.prove(request, service=self.at)
        except errors.ProofFailed:
            assert device.state is S.ISSUED
            device.state = S.HELD
        except errors.IllegalTransition:
            assert device.state is not S.ISSUED
        else:
            raise AssertionError("a wrong proof released a device")

    @rule(name=names, event=st.sampled_from([DeviceEvent.HOLD, DeviceEvent.REWORK, DeviceEvent.SCRAP]))
    def dispose(self, name: str, event: DeviceEvent) -> None:
        """Hold, rework or scrap."""
        device = self.devices[name]
        after = {
            (S.ADMITTED, DeviceEvent.HOLD): S.HELD,
            (S.ISSUED, DeviceEvent.HOLD): S.HELD,
            (S.HELD, DeviceEvent.REWORK): S.ADMITTED,
            (S.HELD, DeviceEvent.SCRAP): S.SCRAPPED,
        }
        allowed = None if device.state is None else after.get((device.state, event))
        try:
            disposed = self.line.dispose(event, device.piece.id, service=self.at)
        except (errors.IllegalTransition, errors.NotFound):
            assert allowed is None
        else:
            assert disposed.state is allowed
            device.state = disposed.state

    @rule()
    def restart(self) -> None:
        """Go on in another process, which remembers nothing."""
        self.at = self.line.another_service()
        self.received.append(self.at.store.checkpoint())

    @invariant()
    def what_is_stored_is_what_should_be(self) -> None:
        """Compare the states, and the counters of the run."""
        found = {device.id: device.state for device in self.line.service.store.scan(Device)}
        assert found == {d.piece.id: d.state for d in self.devices.values() if d.state is not None}
        run, states = self.line.the(Run, "R1"), list(found.values())
        assert (run.admitted, run.released, run.held, run.scrapped) == (
            len(states),
            states.count(S.RELEASED),
            states.count(S.HELD),
            states.count(S.SCRAPPED),
        )

    def teardown(self) -> None:
        """Hold everything against everything else, and clean up."""
        store = self.line.service.store
        report = check(store, store.log, self.line.realm, received_checkpoints=self.received)
        self.line.close()
        shutil.rmtree(self.folder)
        assert report.findings == []


TestFloor = Floor.TestCase
TestFloor.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
