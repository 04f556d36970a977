"""What a log says of recalls: who ordered what, and whether what was revoked is what they ordered.

The rule it keeps: certificates are revoked, suspended or reinstated by the many only under an order whose
approval stands earlier in the log, in the way the order says, and only those that the order chooses.  That
the order's signatures verify is for ``check_recalls``, which knows whose keys they are of.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime

from birthmark import errors
from birthmark.floor.recalls import RecallAction, RecallOrder, RecallStatus, SelectionKind
from birthmark.ledger.entry import parse_time, time_text

__all__ = ["CARRIED_OUT", "ORDERED", "RecallSaid", "RecallsSaid"]

CARRIED_OUT = {
    "certificates-revoked": RecallAction.REVOKE,
    "certificates-suspended": RecallAction.SUSPEND,
    "certificates-reinstated": RecallAction.REINSTATE,
    "authority-revoked": RecallAction.REVOKE,
}
"""Kinds of entry that need an approved order, and the action it must be of."""
ORDERED = frozenset({"recall-proposed", "recall-approved", "recall-withdrawn", "recall-done"})


@dataclass(slots=True, kw_only=True)
class RecallSaid:
    """A recall, after the last entry about it."""

    order: RecallOrder
    document: str
    proposer: str
    proposal: str
    proposed_at: str
    approver: str | None = None
    approval: str | None = None
    approved_at: str | None = None
    status: RecallStatus = RecallStatus.PROPOSED
    changed: int = 0

    @property
    def complete(self) -> bool:
        """Whether everything it chooses must be revoked now, for good."""
        return self.status is RecallStatus.DONE and self.order.action is RecallAction.REVOKE


@dataclass(slots=True)
class RecallsSaid:
    """All recalls, by id."""

    recalls: dict[str, RecallSaid] = field(default_factory=dict)
    to_judge: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Recall of an incident to the serial numbers that it named: whether rightly, the acts of the log say."""

    def propose(self, recall: str, document: str, proposal: tuple[str, str], at: str) -> None:
        """Take in an order and who signed it: serial number and signature."""
        order = RecallOrder.decode(document.encode())
        if recall in self.recalls or order.id != recall:
            raise errors.MalformedRequest(
                f"recall {recall[:64]} is proposed twice, or its order is another's"
            )
        signer, signature = proposal
        self.recalls[recall] = RecallSaid(
            order=order, document=document, proposer=signer, proposal=signature, proposed_at=at
        )

    def approve(
        self, recall: str, document: str, proposal: tuple[str, str], approval: tuple[str, str], at: str
    ) -> None:
        """Take in that a second person signed the same order."""
        said = self._moved(recall, RecallStatus.PROPOSED, RecallStatus.APPROVED)
        if (document, *proposal) != (said.document, said.proposer, said.proposal):
            raise errors.MalformedRequest(f"recall {recall[:64]} was approved otherwise than it was proposed")
        said.approver, said.approval = approval
        said.approved_at = at

    def withdraw(self, recall: str) -> None:
        """Take in that a proposal was taken back."""
        self._moved(recall, RecallStatus.PROPOSED, RecallStatus.WITHDRAWN)

    def finish(self, recall: str, changed: int) -> None:
        """Take in that a recall is done."""
        said = self._moved(recall, RecallStatus.APPROVED, RecallStatus.DONE)
        if said.changed != changed:
            raise errors.MalformedRequest(
                f"recall {recall[:64]} claims {changed} certificates, {said.changed} were named"
            )

    def carried_out(
        self, recall: str, kind: str, reason: str, invalidity_date: str | None, count: int
    ) -> RecallOrder:
        """Return the order under which certificates were changed, if it says what was done to them."""
        said = self._known(recall)
        order = said.order
        since = order.invalidity_date
        if said.status is not RecallStatus.APPROVED:
            raise errors.MalformedRequest(f"no two people had approved recall {recall[:64]}")
        if (order.action, str(order.reason), None if since is None else time_text(since)) != (
            CARRIED_OUT[kind],
            reason,
            invalidity_date,
        ):
            raise errors.MalformedRequest(f"recall {recall[:64]} orders something else")
        if (kind == "authority-revoked") != (order.selection.kind is SelectionKind.AUTHORITY):
            raise errors.MalformedRequest(f"recall {recall[:64]} chooses something else")
        said.changed += count
        return order

    def approved_at(self, recall: str) -> datetime:
        """Return when a recall was approved."""
        at = self._known(recall).approved_at
        if at is None:
            raise errors.MalformedRequest(f"no two people had approved recall {recall[:64]}")
        return parse_time(at)

    def _known(self, recall: str) -> RecallSaid:
        said = self.recalls.get(recall)
        if said is None:
            raise errors.MalformedRequest(f"nobody proposed recall {recall[:64]}")
        return said

    def _moved(self, recall: str, before: RecallStatus, after: RecallStatus) -> RecallSaid:
        said = self._known(recall)
        if said.status is not before:
            raise errors.MalformedRequest(f"recall {recall[:64]} was {said.status}")
        said.status = after
        return said
