"""CMP transactions of which two know at the same time: what came first stands (SPEC H1)."""

from datetime import timedelta

import pytest

from birthmark import errors
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.devices import Device, DeviceCertificate, DeviceState
from birthmark.floor.enrolments import CMPStatus, CMPTransaction
from birthmark.pki.cmp import BodyKind
from birthmark.pki.revocation import ReasonCode
from birthmark.services.acts import Caller
from birthmark.services.check import check
from birthmark.services.cmp_transactions import SERVICE, CMPTransactions
from birthmark.services.codes import Guest, give_code
from tests.support.realm import Line, proof, workpiece

WITHIN = timedelta(seconds=600)
NONCE = bytes(16)


class Clients:
    """Transactions of a line's realm, and two who begin some."""

    def __init__(self, line: Line) -> None:
        self.line = line
        service = line.service
        self.cmp = CMPTransactions(service.enrolments, service.confirmations, line.clock, WITHIN)

    def device(self) -> Caller:
        """Return a device that is released, by its identity."""
        device = workpiece("D1")
        issued = self.line.issue(device)
        self.line.prove(proof(issued, device.key))
        return self.line.device(issued.certificate, device.key).caller

    def guest(self) -> Caller:
        """Return a device that has a one-time code yet."""
        service = self.line.service
        guest = Guest(name="dock-1", device="serial:D1", run="R1")
        giving = give_code(service.codes, service.runs, SystemEntropy(), self.line.operator.caller, guest)
        code, _ = service.carry(giving)
        return service.carry(service.codes.recognise("dock-1", code))

    def begun(self, caller: Caller, run: str) -> CMPTransaction:
        """Return a transaction in which nothing is issued yet."""
        body = workpiece("D1").csr
        assert body is not None
        beginning = self.cmp.begin(caller, run, BodyKind.P10CR, bytes(16), (-1, body), NONCE)
        return self.line.service.carry(beginning)

    def enrol(self, caller: Caller, row: CMPTransaction) -> None:
        self.line.service.carry(self.cmp.enrol(caller, row, NONCE))

    def issued(self, caller: Caller, run: str) -> CMPTransaction:
        """Return a transaction whose client has to confirm."""
        row = self.begun(caller, run)
        self.enrol(caller, row)
        return self.now(row)

    def now(self, row: CMPTransaction) -> CMPTransaction:
        return self.line.the(CMPTransaction, row.id)

    def reason(self, row: CMPTransaction) -> ReasonCode | None:
        assert row.certificate is not None
        return self.line.status(self.line.the(DeviceCertificate, row.certificate))

    def assert_sound(self) -> None:
        store = self.line.service.store
        assert check(store, store.log, self.line.realm).findings == []


@pytest.fixture
def clients(line: Line) -> Clients:
    line.open_operational("L1")
    return Clients(line)


def test_what_was_revoked_before_the_client_could_leave_it_at_that_is_not_confirmed(clients: Clients) -> None:
    """SPEC H1: implicitConfirm comes in a commit of its own."""
    row = clients.issued(clients.device(), "L1")
    clients.line.service.carry(clients.cmp.reject(SERVICE, row, "in vain"))
    with pytest.raises(errors.IllegalTransition, match="it is rejected"):
        clients.line.service.carry(clients.cmp.close(row))
    assert clients.now(row).status is CMPStatus.REJECTED
    assert clients.reason(row) is ReasonCode.CESSATION_OF_OPERATION
    clients.assert_sound()


def test_what_the_client_confirmed_stays_good(clients: Clients) -> None:
    """SPEC H1: whoever looked at the clock before comes too late."""
    caller = clients.device()
    row = clients.issued(caller, "L1")
    clients.line.service.carry(clients.cmp.confirm(caller, row))
    clients.line.service.carry(clients.cmp.reject(SERVICE, row, "in vain"))
    assert clients.now(row).status is CMPStatus.CONFIRMED
    assert clients.reason(row) is None
    clients.assert_sound()


def test_a_device_on_the_line_is_not_held_for_what_it_confirmed(clients: Clients) -> None:
    """SPEC H1: it waits for the gate, and for no confirmation any more."""
    caller = clients.guest()
    row = clients.issued(caller, "R1")
    clients.line.service.carry(clients.cmp.confirm(caller, row))
    with pytest.raises(errors.IllegalTransition, match="it is confirmed"):
        clients.line.service.carry(clients.cmp.reject(SERVICE, row, "in vain"))
    assert clients.now(row).status is CMPStatus.CONFIRMED
    assert clients.reason(row) is None
    assert clients.line.the(Device, "serial:D1").state is DeviceState.ISSUED
    clients.assert_sound()


def test_asking_again_does_not_put_off_the_end(clients: Clients) -> None:
    """SPEC H1."""
    caller = clients.device()
    row = clients.issued(caller, "L1")
    clients.line.clock.turn(minutes=5)
    clients.enrol(caller, row)
    again = clients.now(row)
    assert (again.certificate, again.expires_at) == (row.certificate, row.expires_at)
    clients.assert_sound()


def test_two_that_end_what_is_overdue_end_it_once(clients: Clients) -> None:
    """SPEC H1: every process of the plane looks."""
    row = clients.issued(clients.device(), "L1")
    for _ in range(2):
        clients.line.service.carry(clients.cmp.reject(SERVICE, row, "in vain"))
    assert clients.now(row).status is CMPStatus.REJECTED
    clients.assert_sound()


def test_nothing_is_issued_in_a_transaction_that_ended_meanwhile(clients: Clients) -> None:
    """SPEC H1."""
    caller = clients.device()
    row = clients.begun(caller, "L1")
    clients.line.service.carry(clients.cmp.reject(SERVICE, row, "in vain"))
    with pytest.raises(errors.IllegalTransition, match=r"cannot issue in .*: it is rejected"):
        clients.enrol(caller, row)
    assert clients.now(row).certificate is None
    assert [one for one in clients.line.service.store.scan(DeviceCertificate) if one.run == "L1"] == []
    clients.assert_sound()
