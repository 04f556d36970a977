"""Hold recalls and shipments on record against what the log says of them; a part of ``check``.

What was revoked is held against the orders while the log is read (``recall_testimony``).  Here it is asked
whether two people signed each order, whether each row is what the log says, and whether a recall that is
done left anything out.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping

from birthmark import errors
from birthmark.floor.clients import Credential
from birthmark.floor.devices import DeviceCertificate
from birthmark.floor.realm import Realm
from birthmark.floor.recalls import Recall, SelectionKind
from birthmark.floor.revocations import Revocation
from birthmark.floor.shipments import Shipped
from birthmark.ledger.entry import parse_time, time_text
from birthmark.pki.revocation import ReasonCode, revoked_entry
from birthmark.ports import Log
from birthmark.services.incidents import listed_in
from birthmark.services.recall import signed_order
from birthmark.services.recall_testimony import RecallSaid, RecallsSaid
from birthmark.services.testimony import Said

__all__ = ["EARLIER", "Recalled", "check_incidents", "check_recalls", "check_shipments", "crl_entry_of"]

EARLIER = "earlier"
"""Cause of what was revoked before causes were kept."""
Find = Callable[[str], None]


def crl_entry_of(revocation: Revocation, invalidity_date: str | None) -> bytes | None:
    """Return the octets that a revocation must have; None if there are none for it."""
    if revocation.status is None:
        return b""
    try:
        return revoked_entry(
            int(revocation.id.rpartition("/")[2], 16),
            revocation.revoked_at,
            revocation.reason,
            invalidity_date=None if invalidity_date is None else parse_time(invalidity_date),
        )
    except (errors.Refusal, ValueError):
        return None


class Recalled:
    """Which certificates the finished recalls must have revoked."""

    def __init__(self, said: Said) -> None:
        """Take the recalls from what the log says; where there are none, nothing costs anything."""
        self._said = said
        self._done = [
            (name, one, parse_time(one.approved_at or one.proposed_at))
            for name, one in said.recalls.recalls.items()
            if one.complete
        ]

    def missing(self, certificate: DeviceCertificate, reason: ReasonCode | None) -> Iterator[str]:
        """Iterate over the recalls that chose a certificate and did not revoke it for good."""
        if reason is not None and reason is not ReasonCode.CERTIFICATE_HOLD:
            return
        for name, recall, approved_at in self._done:
            # What was issued in the same millisecond may stand in the log after the approval.
            if certificate.issued_at < approved_at and recall.order.selection.chooses(
                device=certificate.device,
                run=certificate.run,
                batch=self._batch(certificate.run),
                authority=certificate.authority,
                client=certificate.client,
                issued_at=certificate.issued_at,
            ):
                yield name

    def _batch(self, run: str) -> str:
        try:
            return self._said.batch(run)
        except errors.MalformedRequest:
            return ""  # a run that the log does not know is told elsewhere


def check_recalls(
    find: Find,
    realm: Realm,
    recalls: Iterable[Recall],
    credential: Callable[[str], Credential | None],
    said: RecallsSaid,
) -> None:
    """Check that two people signed each recall that was carried out, and that each row is the log's."""
    left = dict(said.recalls)
    for recall in recalls:
        approver = None if recall.approver is None else credential(recall.approver)
        try:
            signed_order(recall, realm, credential(recall.proposer), approver)
        except errors.Refusal as refusal:
            find(str(refusal))
        was = left.pop(recall.id, None)
        if was is None:
            find(f"recall {recall.id} has no entry in the log")
        else:
            _compare(find, recall, was)
    for name in left:
        find(f"the log says recall {name} was proposed; it is gone")


def check_incidents(find: Find, log: Log, said: RecallsSaid) -> None:
    """Read the log again for each recalled incident: exactly what its acts touched has to be recalled."""

    def entries() -> Iterator[tuple[int, bytes]]:
        return ((item.index, item.entry) for item in log.entries())

    for name, recall in said.recalls.items():
        if recall.order.selection.kind is not SelectionKind.INCIDENT or recall.approved_at is None:
            continue
        try:
            listed = listed_in(entries, recall.order.selection)
        except errors.Refusal as refusal:
            find(f"what recall {name} chooses cannot be told: {refusal}")
            continue
        for serial in sorted(said.to_judge[name] - listed.keys()):
            find(f"recall {name} does not choose certificate {serial}")
        for serial, one in listed.items():
            if recall.complete and one.reason in (None, ReasonCode.CERTIFICATE_HOLD):
                find(f"recall {name} is done; it left out certificate {serial}")


def _compare(find: Find, recall: Recall, was: RecallSaid) -> None:
    for what, stored, logged in (
        ("order", recall.document.decode(errors="replace"), was.document),
        ("proposer", recall.proposer, was.proposer),
        ("proposal", recall.proposal.hex(), was.proposal),
        ("approver", recall.approver, was.approver),
        ("approval", None if recall.approval is None else recall.approval.hex(), was.approval),
        ("status", str(recall.status), str(was.status)),
        ("count", str(recall.changed), str(was.changed)),
        ("time of proposal", time_text(recall.proposed_at), was.proposed_at),
        (
            "time of approval",
            None if recall.approved_at is None else time_text(recall.approved_at),
            was.approved_at,
        ),
    ):
        if stored != logged:
            find(f"recall {recall.id}: its {what} is {str(stored)[:100]}, the log says {str(logged)[:100]}")


def check_shipments(find: Find, shipments: Iterable[Shipped], said: Mapping[str, tuple[str, str]]) -> None:
    """Check that exactly what the log says was shipped is on record as shipped."""
    left = dict(said)
    for shipped in shipments:
        if left.pop(shipped.device, None) != (shipped.consignment, time_text(shipped.at)):
            find(f"{shipped.device} was shipped otherwise than the log says, or not at all")
    for device, (consignment, _) in left.items():
        find(f"the log says {device} was shipped with {consignment}; the record does not")
