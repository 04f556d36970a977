"""What a device has besides its identity stands on that: who recalls the one ends the other (SPEC H2)."""

import pytest

from birthmark import errors
from birthmark.floor.devices import DeviceCertificate
from birthmark.floor.recalls import RecallAction, SelectionKind
from birthmark.pki.revocation import ReasonCode
from birthmark.services.check import check
from birthmark.services.enrolments import Granted
from birthmark.services.issue import IssueRequest
from birthmark.services.visits import Reason
from tests.services.test_gateway import Door
from tests.support.realm import Client, Line, proof, successor, workpiece
from tests.support.recalls import People, people


@pytest.fixture
def plant(line: Line) -> People:
    line.open_operational()
    return people(line)


def released(line: Line, name: str) -> Client:
    device = workpiece(name)
    issued = line.issue(device)
    line.prove(proof(issued, device.key))
    return line.device(issued.certificate, device.key)


def enrolled(line: Line, by: Client, key: str = "k", *, renewal: bool = False) -> Client:
    name = (by.caller.client.hardware_id or "").partition(":")[2]
    device = successor(by.caller.credential.der) if renewal else workpiece(name)
    request = IssueRequest(hardware_id="", csr=device.csr, key=key)
    granted = line.service.carry(line.service.enrolments.enrol(by.caller, "L1", request, renewal=renewal))
    assert isinstance(granted, Granted)
    return line.device(granted.certificate, device.key)


def status(line: Line, client: Client) -> ReasonCode | None:
    return line.status(line.the(DeviceCertificate, client.caller.credential.serial))


def test_a_recall_of_a_device_takes_all_it_has(plant: People) -> None:
    line = plant.line
    idevid = released(line, "D1")
    ldevid = enrolled(line, idevid)
    other = enrolled(line, released(line, "D2"))
    line.service.carry(line.service.confirmations.proved_by_use(ldevid.caller))
    line.clock.turn(seconds=1)
    plant.recall(SelectionKind.DEVICE, "serial:D1")
    assert [status(line, one) for one in (idevid, ldevid, other)] == [
        ReasonCode.KEY_COMPROMISE, ReasonCode.KEY_COMPROMISE, None,
    ]  # fmt: skip
    assert check(line.service.store, line.service.store.log, line.realm).findings == []


def test_nothing_is_renewed_on_an_identity_that_was_recalled(plant: People) -> None:
    """The recall of the run that made it chooses no certificate of an operational run."""
    line = plant.line
    ldevid = enrolled(line, released(line, "D1"))
    line.service.carry(line.service.confirmations.proved_by_use(ldevid.caller))
    line.service.carry(line.service.runs.close(plant.anna.caller, "R1", "keys left the plant"))
    line.clock.turn(seconds=1)
    plant.recall(SelectionKind.RUN, "R1")
    assert status(line, ldevid) is None
    with pytest.raises(
        errors.Unauthenticated, match=r"the identity of serial:D1 is revoked \(keyCompromise\)"
    ):
        enrolled(line, ldevid, "again", renewal=True)
    assert line.entries()[-1]["code"] == "unauthenticated"
    assert check(line.service.store, line.service.store.log, line.realm).findings == []


def test_the_gateway_takes_the_recall_of_an_identity_for_one_of_the_device(plant: People) -> None:
    line, door = plant.line, Door(plant.line)
    idevid = released(line, "D1")
    ldevid = enrolled(line, idevid)
    shown = ldevid.caller.credential.der
    door.refuses(shown, Reason.NOT_RELEASED, actor="proxy:edge-1")  # whose word is no handshake
    door.meet(shown)
    line.service.carry(line.service.runs.close(plant.anna.caller, "R1", "keys left the plant"))
    line.clock.turn(seconds=1)
    plant.recall(SelectionKind.RUN, "R1", RecallAction.SUSPEND)
    door.refuses(shown, Reason.SUSPENDED)
    line.clock.turn(seconds=1)
    plant.recall(SelectionKind.RUN, "R1", RecallAction.REINSTATE)
    door.meet(shown)
    line.clock.turn(seconds=1)
    plant.recall(SelectionKind.RUN, "R1")
    assert "identity of serial:D1 is revoked" in str(door.refuses(shown, Reason.REVOKED))
    assert status(line, ldevid) is None
    assert door.findings() == []
