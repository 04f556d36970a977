"""Recalls: one person proposes, another approves, the certificates go a thousand at a time (SPEC F1, K1).

Both sign the same document, each with their own key; whoever carries it out verifies both signatures first,
so that a row somebody wrote into the database recalls nothing.  An act takes in up to a thousand
certificates, says which in one log entry, and moves the cursor in the same commit: the line goes on between
two acts, and after a crash, or with two processes at it, each certificate is taken once.

What is recalled is what was issued up to the commit of the approval.  While a run still issues what is
chosen, a recall of it is not approved: it would leave out what comes after.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from birthmark import errors
from birthmark.floor.authorities import Authority, AuthorityStatus
from birthmark.floor.clients import TWO_PERSON, Capability, Credential
from birthmark.floor.devices import DeviceCertificate
from birthmark.floor.realm import Realm
from birthmark.floor.recalls import (
    WINDOWED,
    Recall,
    RecallAction,
    RecallOrder,
    RecallStatus,
    Selection,
    check_order,
)
from birthmark.floor.revocations import Revocation
from birthmark.floor.runs import Run
from birthmark.ledger.entry import time_text
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Clock, Decision, Entropy, Facts, Log, Look, UseCase
from birthmark.services.acts import Caller, decided, live_client, record_refusal
from birthmark.services.blastradius import (
    Chosen,
    Preview,
    Told,
    changes,
    choose,
    gone_since,
    next_page,
    preview,
    still_issuing,
)
from birthmark.services.incidents import incident
from birthmark.services.log_reading import log_of
from birthmark.services.revocations import line_of, reinstate, revoke, status
from birthmark.services.two_people import require_second, require_two, verify_approval, verify_signed

__all__ = ["Recalls", "signed_order"]

PROPOSE = Capability.PROPOSE_RECALL
APPROVE = TWO_PERSON[PROPOSE]
_KIND = {
    RecallAction.REVOKE: "certificates-revoked",
    RecallAction.SUSPEND: "certificates-suspended",
    RecallAction.REINSTATE: "certificates-reinstated",
}
_SHOWN = 10


def _silent(_done: int, _total: int) -> None: ...


def signed_order(
    recall: Recall, realm: Realm, proposer: Credential | None, approver: Credential | None
) -> RecallOrder:
    """Return the order of a recall, if the people it names signed it: two of them once it is approved.

    Raises:
        errors.IntegrityFailure: a signature, a signer, the realm or the id is not the order's, or both
            signatures are one person's.
    """
    try:
        order = RecallOrder.decode(recall.document)
        _require_signed(recall, proposer, recall.proposer, recall.proposal)
        if proposer is None or proposer.client != order.proposed_by:
            raise errors.IntegrityFailure(f"recall {recall.id} is not signed by {order.proposed_by}")
        if recall.status not in (RecallStatus.PROPOSED, RecallStatus.WITHDRAWN):
            _require_signed(recall, approver, recall.approver, recall.approval)
            require_two(proposer, approver)
    except (errors.MalformedRequest, errors.ProofFailed, errors.NotPermitted) as cause:
        raise errors.IntegrityFailure(f"recall {recall.id} is not what two people signed: {cause}") from cause
    if (order.id, order.realm, order.environment) != (recall.id, realm.name, realm.environment):
        raise errors.IntegrityFailure(
            f"recall {recall.id} belongs to {order.realm} ({order.environment}) as {order.id}"
        )
    return order


def _require_signed(
    recall: Recall, credential: Credential | None, serial: str | None, signature: bytes | None
) -> None:
    if credential is None or credential.serial != serial or signature is None:
        raise errors.IntegrityFailure(f"recall {recall.id} is signed by nobody of this realm")
    verify_signed(credential, signature, recall.document)


class Recalls:
    """The recalls of a realm."""

    def __init__(self, realm: Realm, clock: Clock, entropy: Entropy, log: Log) -> None:
        """Recall what this realm issued; ``log`` says what an incident touched."""
        self._realm = realm
        self._log = log
        self._clock = clock
        self._entropy = entropy

    # --- looking

    def preview(self, selection: Selection, action: RecallAction, told: Told = _silent) -> UseCase[Preview]:
        """Count what a recall would do, as of now; see ``blastradius.preview``.

        Raises:
            errors.NotFound: there is no such device, run, batch, authority or station.
            errors.PolicyRefused: a root cannot be revoked.
        """
        chosen: Chosen = yield from choose(selection, self._listed)
        return (yield from preview(chosen, action, self._clock.now(), told))

    def _listed(self, selection: Selection) -> Iterable[str]:
        return incident(log_of(self._log, self._realm), selection).listed

    def get(self, recall: str) -> UseCase[tuple[Recall, RecallOrder]]:
        """Return a recall and its order, the signatures verified.

        Raises:
            errors.NotFound: there is none of this id.
            errors.IntegrityFailure: it is not what was signed.
        """
        facts: Facts = yield Look({Recall: (recall,)})
        found = facts.get(Recall, recall)
        if found is None:
            raise errors.NotFound(f"there is no recall {recall[:64]}")
        facts = yield Look({Credential: [found.proposer, *([found.approver] if found.approver else [])]})
        approver = None if found.approver is None else facts.get(Credential, found.approver)
        return found, signed_order(found, self._realm, facts.get(Credential, found.proposer), approver)

    # --- proposing, approving, withdrawing

    def draft(
        self,
        caller: Caller,
        seen: Preview,
        reason: ReasonCode,
        justification: str,
        invalidity_date: datetime | None = None,
    ) -> RecallOrder:
        """Write the order for what a preview showed; its ``encode`` is what is to be signed."""
        return RecallOrder(
            realm=self._realm.name,
            environment=str(self._realm.environment),
            id=f"rc-{self._entropy.token(5).hex()}",
            selection=seen.selection,
            action=seen.action,
            reason=reason,
            justification=justification,
            previewed=seen.changes,
            proposed_by=caller.client.id,
            invalidity_date=invalidity_date,
        )

    def propose(self, caller: Caller, order: RecallOrder, signature: bytes) -> UseCase[Recall]:
        """Put an order on record that one person signed; nothing is recalled yet.

        Raises:
            errors.NotFound: what it chooses does not exist.
            errors.NotPermitted: the order or the signature is not the caller's.
            errors.PolicyRefused: the order makes no sense.
            errors.IllegalTransition: it says another count than there is.
        """
        unready: errors.Refusal | None = None
        try:
            check_order(order)
            chosen: Chosen = yield from choose(order.selection, self._listed)
            if order.selection.kind in WINDOWED:
                yield from _require_unchanged(chosen, order, None)
        except errors.Refusal as refusal:
            unready = refusal
        decide = partial(self._decide_propose, caller, order, signature, unready)
        said = {"recall": order.id[:64]}
        return (yield from decided(caller, "propose-recall", said, decide, {Recall: (order.id,)}))

    def approve(self, caller: Caller, recall: str, approval: bytes, told: Told = _silent) -> UseCase[Recall]:
        """Sign an order as the second person, and carry it out.

        Given again by the same person it goes on with a recall that was broken off.

        Args:
            caller: another person than who proposed it.
            recall: its id.
            approval: the caller's signature over the order's document.
            told: how far it is.

        Raises:
            errors.NotFound: there is no such recall.
            errors.IllegalTransition: it is withdrawn, done or approved by another, its proposer was revoked,
                a run still issues what it chooses, or of a window there are not as many certificates left as
                the order says, without those that went meanwhile.
            errors.NotPermitted: the caller is the proposer, or the signature is not the caller's over this
                order.
        """
        chosen: Chosen | None = None
        unready: errors.Refusal | None = None
        try:
            row, order = yield from self.get(recall)
            chosen = yield from choose(order.selection, self._listed)
            if order.selection.kind in WINDOWED and row.status is RecallStatus.PROPOSED:
                yield from _require_unchanged(chosen, order, row.proposed_at)
        except errors.Refusal as refusal:
            unready = refusal
        reads: dict[type, Sequence[str]] = {Recall: (recall,)}
        if chosen is not None:
            authorities = {chosen.runs[name].authority for name in chosen.issuing}
            reads |= {Run: chosen.issuing, Authority: sorted(authorities)}
        decide = partial(self._decide_approve, caller, recall, approval, chosen, unready)
        row = yield from decided(caller, "approve-recall", {"recall": recall[:64]}, decide, reads)
        return (yield from self._carry_out(caller, row, told))

    def resume(self, caller: Caller, recall: str, told: Told = _silent) -> UseCase[Recall]:
        """Go on with an approved recall that was broken off; what is done is not done again.

        Raises:
            errors.NotFound: there is no such recall.
            errors.IllegalTransition: it is not approved, or withdrawn.
            errors.IntegrityFailure: it is not what two people signed.
        """
        decide, said = partial(_decide_resume, caller, recall), {"recall": recall[:64]}
        row = yield from decided(caller, "resume-recall", said, decide, {Recall: (recall,)})
        return (yield from self._carry_out(caller, row, told))

    def withdraw(self, caller: Caller, recall: str, reason: str) -> UseCase[Recall]:
        """Take a proposal back before anybody approved it.

        Raises:
            errors.NotFound: there is no such recall.
            errors.IllegalTransition: it is no proposal any more.
        """

        def decide(facts: Facts, at: datetime) -> Decision[Recall]:
            live_client(facts, caller, PROPOSE, at)
            row = _proposed(facts, recall)
            withdrawn = replace(row, status=RecallStatus.WITHDRAWN)
            facts.put(withdrawn)
            return Decision(withdrawn, [("recall-withdrawn", {"recall": recall, "reason": reason})])

        said = {"recall": recall[:64]}
        return (yield from decided(caller, "withdraw-recall", said, decide, {Recall: (recall,)}))

    def _decide_propose(
        self,
        caller: Caller,
        order: RecallOrder,
        signature: bytes,
        unready: errors.Refusal | None,
        facts: Facts,
        at: datetime,
    ) -> Decision[Recall]:
        live_client(facts, caller, PROPOSE, at)
        if unready is not None:
            raise unready
        if order.proposed_by != caller.client.id:
            raise errors.NotPermitted(f"the order is {order.proposed_by}'s, not {caller.client.id}'s")
        if facts.get(Recall, order.id) is not None:
            raise errors.IllegalTransition(f"there is a recall {order.id} already")
        for what, moment in (("window", order.selection.until), ("invalidity date", order.invalidity_date)):
            if moment is not None and moment > at:
                raise errors.PolicyRefused("time", f"the {what} is in the future: {time_text(moment)}")
        recall = Recall(
            id=order.id,
            document=order.encode(),
            proposer=caller.credential.serial,
            proposal=signature,
            approver=None,
            approval=None,
            status=RecallStatus.PROPOSED,
            cursor="",
            changed=0,
            proposed_at=at,
            approved_at=None,
        )
        try:
            signed_order(recall, self._realm, caller.credential, None)
        except errors.IntegrityFailure as cause:
            raise errors.NotPermitted(str(cause)) from cause
        facts.put(recall)
        entry = {
            "recall": recall.id,
            "order": recall.document.decode(),
            "signature": signature.hex(),
            "signer": recall.proposer,
        }
        return Decision(recall, [("recall-proposed", entry)])

    def _decide_approve(
        self,
        caller: Caller,
        recall: str,
        approval: bytes,
        chosen: Chosen | None,
        unready: errors.Refusal | None,
        facts: Facts,
        at: datetime,
    ) -> Decision[Recall]:
        live_client(facts, caller, APPROVE, at)
        row = facts.get(Recall, recall)
        if row is not None and (row.status, row.approver) == (
            RecallStatus.APPROVED,
            caller.credential.serial,
        ):
            return Decision(row)  # broken off; it is carried on with
        row = _proposed(facts, recall)
        if unready is not None or chosen is None:
            raise unready or errors.Fault("an approved recall became a proposal again")
        proposer = facts.get(Credential, row.proposer)
        signed_order(row, self._realm, proposer, None)
        what = f"recall {recall}"
        require_second(facts, caller.credential, proposer, PROPOSE, row.proposed_at, at, what)
        verify_approval(caller.credential, approval, row.document, what)
        if row.cursor or row.changed:
            raise errors.IntegrityFailure(
                f"recall {recall} is a proposal and says that {row.changed} certificates are done"
            )
        action = RecallOrder.decode(row.document).action
        issuing = [] if action is RecallAction.REINSTATE else still_issuing(facts, chosen, at)
        if issuing:
            names = ", ".join(issuing[:_SHOWN]) + (", …" if len(issuing) > _SHOWN else "")
            raise errors.IllegalTransition(
                f"close the runs that still issue such certificates, or they are left out: {names}"
            )
        approved = replace(
            row,
            approver=caller.credential.serial,
            approval=approval,
            status=RecallStatus.APPROVED,
            approved_at=at,
        )
        facts.put(approved)
        entry = {
            "recall": row.id,
            "order": row.document.decode(),
            "proposal": row.proposal.hex(),
            "proposer": row.proposer,
            "approval": approval.hex(),
            "approver": approved.approver,
        }
        return Decision(approved, [("recall-approved", entry)])

    # --- carrying out

    def _carry_out(self, caller: Caller, row: Recall, told: Told) -> UseCase[Recall]:
        """Go on until the recall is done, whoever else is at it."""
        try:
            row, order = yield from self.get(row.id)
        except errors.Refusal as refusal:
            yield from record_refusal(
                caller.client.id, "carry-out-recall", {"recall": row.id}, refusal, seq=caller.seq
            )
            raise
        chosen: Chosen = yield from choose(order.selection, self._listed)
        told(row.changed, order.previewed)
        while row.status is RecallStatus.APPROVED:
            reads: dict[type, Sequence[str]] = {Recall: (row.id,)}
            if chosen.authority is not None:
                lines = [line_of(chosen.authority)]
                reads[Authority] = [chosen.authority.id, *(one.id for one in chosen.below)]
                decide = partial(_decide_authority, caller, row, order, chosen)
            else:
                page = yield from next_page(chosen, row.cursor, row.approved_at)
                certificates, cursor = page or ([], row.cursor)
                lines = [line_of(one) for one in certificates]
                decide = partial(_decide_page, caller, row, order, certificates, cursor)
            reads |= {Revocation: [line.id for line in lines]}
            row = yield from decided(caller, "carry-out-recall", {"recall": row.id}, decide, reads)
            told(row.changed, max(order.previewed, row.changed))
        return row


def _proposed(facts: Facts, recall: str) -> Recall:
    row = facts.get(Recall, recall)
    if row is None:
        raise errors.NotFound(f"there is no recall {recall[:64]}")
    if row.status is not RecallStatus.PROPOSED:
        raise errors.IllegalTransition(f"recall {recall} is {row.status}")
    return row


def _decide_resume(caller: Caller, recall: str, facts: Facts, at: datetime) -> Decision[Recall]:
    live_client(facts, caller, PROPOSE, at)
    row = facts.get(Recall, recall)
    if row is None:
        raise errors.NotFound(f"there is no recall {recall[:64]}")
    if row.status not in (RecallStatus.APPROVED, RecallStatus.DONE):
        raise errors.IllegalTransition(f"recall {recall} is {row.status}")
    return Decision(row)


def _require_unchanged(chosen: Chosen, order: RecallOrder, proposed_at: datetime | None) -> UseCase[None]:
    """Refuse an order that says another count than there is, but for what went since it was proposed.

    Args:
        chosen: where its certificates are.
        order: what is signed.
        proposed_at: when it was proposed; None if that is just being done.

    Raises:
        errors.IllegalTransition: people signed, or are to sign, for something else than would be done.
    """
    left, gone = yield from gone_since(chosen, order.action, proposed_at)
    if left + gone != order.previewed:
        raise errors.IllegalTransition(
            f"recall {order.id} is for {order.previewed} certificates; there are {left}, and {gone} went"
            " since it was proposed: look again and propose it anew"
        )


def _done(row: Recall) -> tuple[Recall, tuple[str, Mapping[str, Any]]]:
    return replace(row, status=RecallStatus.DONE), (
        "recall-done",
        {"recall": row.id, "changed": row.changed},
    )


def _row(facts: Facts, expected: Recall) -> Recall:
    """Return the recall as it is now; its signatures, which were verified, must be the same."""
    row = facts.get(Recall, expected.id)
    if row is None or expected != replace(
        row, status=expected.status, cursor=expected.cursor, changed=expected.changed
    ):
        raise errors.IntegrityFailure(f"recall {expected.id} is not what two people signed any more")
    return row


def _decide_page(
    caller: Caller,
    expected: Recall,
    order: RecallOrder,
    certificates: Sequence[DeviceCertificate],
    cursor: str,
    facts: Facts,
    at: datetime,
) -> Decision[Recall]:
    """Take in the certificates after the cursor, none to finish; nothing if somebody else has gone on."""
    live_client(facts, caller, PROPOSE, at)
    row = _row(facts, expected)
    if row != expected:
        return Decision(row)
    if not certificates:
        row, entry = _done(row)
        facts.put(row)
        return Decision(row, [entry])
    changed = [one.serial for one in certificates if _change(facts, order, one, at)]
    row = replace(row, cursor=cursor, changed=row.changed + len(changed))
    facts.put(row)
    return Decision(row, [(_KIND[order.action], _said(order, changed))] if changed else [])


def _said(order: RecallOrder, changed: Sequence[str]) -> dict[str, Any]:
    since = order.invalidity_date
    entry = {"recall": order.id, "certificates": changed, "revocation_reason": str(order.reason)}
    return entry if since is None else entry | {"invalidity_date": time_text(since)}


def _change(
    facts: Facts, order: RecallOrder, certificate: DeviceCertificate | Authority, at: datetime
) -> bool:
    line, cause = line_of(certificate), f"recall:{order.id}"
    if not changes(order.action, status(facts, line)):
        return False
    if order.action is RecallAction.REINSTATE:
        return reinstate(facts, line, at, cause)
    return revoke(facts, line, order.reason, at, cause, invalidity_date=order.invalidity_date)


def _decide_authority(
    caller: Caller, expected: Recall, order: RecallOrder, chosen: Chosen, facts: Facts, at: datetime
) -> Decision[Recall]:
    """Revoke an authority's own certificate, and retire those below it, all at once."""
    live_client(facts, caller, PROPOSE, at)
    row = _row(facts, expected)
    authority = None if chosen.authority is None else facts.get(Authority, chosen.authority.id)
    if authority is None:
        raise errors.IntegrityFailure(f"the authority of recall {expected.id} is gone")
    if row != expected:
        return Decision(row)
    entries: list[tuple[str, Mapping[str, Any]]] = []
    if _change(facts, order, authority, at):
        facts.put(replace(authority, status=AuthorityStatus.REVOKED))
        serial = line_of(authority).serial
        entries.append(("authority-revoked", _said(order, [serial]) | {"authority": authority.id}))
        row = replace(row, changed=1)
        for below in chosen.below:
            under = facts.get(Authority, below.id)
            if under is None or under.status in (AuthorityStatus.RETIRED, AuthorityStatus.REVOKED):
                continue
            facts.put(replace(under, status=AuthorityStatus.RETIRED))
            said = {"authority": under.id, "reason": f"{authority.id} above it was revoked", "recall": row.id}
            entries.append(("authority-retired", said))
    row, entry = _done(row)
    facts.put(row)
    return Decision(row, [*entries, entry])
