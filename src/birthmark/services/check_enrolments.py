"""Hold operational certificates, and what waits for a person, against the log; a part of ``check``."""

from collections import Counter, defaultdict
from collections.abc import Mapping

from birthmark.floor.devices import Attempt, DeviceState
from birthmark.floor.enrolments import LocalIdentity, WaitingEnrolment, WaitingStatus
from birthmark.floor.shared import SharedCredential
from birthmark.ledger.entry import time_text
from birthmark.ports import Store
from birthmark.services.check_report import Report, scan
from birthmark.services.enrolment_testimony import EnrolmentsSaid, LocalSaid, SharedSaid, WaitingSaid

__all__ = ["Local", "check_enrolments"]


class Local:
    """What devices have from operational runs, for those who count devices and attempts."""

    def __init__(self, report: Report, store: Store) -> None:
        """Read all of it."""
        self.rows = {one.id: one for one in scan(report, store, LocalIdentity)}
        self.runs = frozenset(one.run for one in self.rows.values())
        self.certificates: dict[str, set[str]] = defaultdict(set)
        """Device to the certificates it may have besides its identity's: proved ones, and the newest."""
        self.counted: dict[str, Counter[DeviceState]] = defaultdict(Counter)
        """How many devices each operational run counts, by whether they proved what they got."""

    def count(self, attempts: Mapping[str, Attempt]) -> None:
        """Count what there is, given all attempts."""
        for row in self.rows.values():
            proved = row.certificate is not None
            self.counted[row.run][DeviceState.RELEASED if proved else DeviceState.ISSUED] += 1
            newest = attempts.get(row.attempt)
            held = (row.certificate, None if newest is None else newest.certificate)
            self.certificates[row.device].update(one for one in held if one is not None)


def check_enrolments(report: Report, store: Store, said: EnrolmentsSaid, local: Local) -> None:
    """Each operational certificate and each request that waits is what the last entry about it says."""
    expected = dict(said.local)
    for row in local.rows.values():
        report.counts["operational certificates"] += 1
        now = LocalSaid(attempt=row.attempt, attempts=row.attempts, certificate=row.certificate)
        if expected.pop(row.id, None) != now:
            report.find(f"what {row.device} has from run {row.run} is not what the log says")
    for name in expected:
        report.find(f"the log says {name} was issued a certificate; there is nothing of it")
    waiting, unsettled = dict(said.waiting), Counter[str]()
    for one in scan(report, store, WaitingEnrolment):
        report.counts["enrolments that waited"] += 1
        unsettled[one.client] += one.status is WaitingStatus.WAITING
        if waiting.pop(one.id, None) != _said_of(one):
            report.find(f"the enrolment {one.id} is not what the log says of it")
    for name in waiting:
        report.find(f"the log says the enrolment {name} waited; it is gone")
    uses = Counter(attempt.client for attempt in scan(report, store, Attempt) if attempt.number == 1)
    limits = dict(said.shared)
    for shared in scan(report, store, SharedCredential):
        report.counts["shared credentials"] += 1
        now_shared = SharedSaid(quantity=shared.quantity, networks=shared.networks)
        if limits.pop(shared.id, None) != now_shared:
            report.find(f"{shared.id} has other limits than the log says of it")
        if shared.used != uses[shared.id]:
            report.find(f"{shared.id} counts {shared.used} devices, it brought in {uses[shared.id]}")
        if shared.waiting != unsettled[shared.id]:
            report.find(f"{shared.id} counts {shared.waiting} requests that wait, {unsettled[shared.id]} do")
    for name in limits:
        report.find(f"the log says {name} was shared; its limits are gone")


def _said_of(one: WaitingEnrolment) -> WaitingSaid:
    return WaitingSaid(
        device=one.device,
        run=one.run,
        client=one.client,
        request_sha256=one.request_sha256,
        csr_sha256=one.csr_sha256,
        asked_at=time_text(one.asked_at),
        status=str(one.status),
        decided_by=one.decided_by,
        reason=one.reason,
    )
