"""CMP transactions that take several messages, and go on after a restart (RFC 9810 section 5.1.1, RFC 9483).

A transaction is on record before anything is issued in it, and changes in the commit that issues, confirms
or revokes: what was interrupted is asked again, or is found when its time has ended, and then its certificate
is revoked.  Nothing of it stands in the log; what is issued, confirmed and revoked in it does.

The message that began a transaction may come again: whoever lost the answer gets the same one.  What may be
granted later (who asks is closed out now, or we are at fault) ends no transaction; what is refused for good
does, unless something was issued in it, which then has to be confirmed or is revoked.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from birthmark import errors
from birthmark.floor.devices import DeviceCertificate
from birthmark.floor.enrolments import (
    CMP_OPEN,
    WAITING_LIFE,
    CMPEvent,
    CMPStatus,
    CMPTransaction,
    cmp_transaction_id,
    moved,
)
from birthmark.pki.certificates import Certificate
from birthmark.pki.cmp import BodyKind
from birthmark.pki.cmp_requests import CertStatus, verify_confirmation
from birthmark.ports import Act, Clock, Committed, Decision, Facts, Look, Scan, UseCase
from birthmark.services.acts import Caller, decided, live_client, outcomes, refuse
from birthmark.services.confirmations import ConfirmEnrolments
from birthmark.services.enrolments import EnrolDevices, Granted, Waiting
from birthmark.services.issue import IssueRequest
from birthmark.services.recognition import enrolment_key, to_enrol
from birthmark.services.runs import RunContext

__all__ = ["SERVICE", "CMPTransactions"]

SERVICE = "realm:device-plane"
"""The actor of what happens because nobody confirmed."""
_REQUEST = "cmp"
_UNCONFIRMED = "the client did not confirm its certificate in time"
_NOT_TAKEN = "the client did not take its certificate"
_ANOTHER = "the client confirmed another certificate than it was sent"
_OF_THE_MOMENT = errors.Unauthenticated | errors.NotPermitted | errors.IntegrityFailure | errors.Fault
"""Refusals that say nothing about the request: of who may not ask now, and of faults of ours."""
_PKCS10_IDS = frozenset({-1, 0})
"""certReqIds by which a certificate for a p10cr is confirmed: RFC 9483 section 4.1.4, and OpenSSL 3.0."""


class CMPTransactions:
    """The use cases of transactions."""

    def __init__(
        self,
        enrolments: EnrolDevices,
        confirmations: ConfirmEnrolments,
        clock: Clock,
        confirm_within: timedelta,
    ) -> None:
        """Enrol and confirm as others do; what is not confirmed within this time is revoked."""
        self._confirm_within = confirm_within
        self._enrolments = enrolments
        self._confirmations = confirmations
        self._clock = clock

    def run_of(self, caller: Caller, label: str | None, profile: str | None) -> UseCase[RunContext]:
        """Return the run that a message is for; see ``EnrolDevices.run_of``.

        Args:
            caller: who asks.
            label: the run, as the path names it.
            profile: its certProfile (RFC 9810 section 5.1.1.4): the run, or beside a label the name of the
                profile by which that certifies.

        Raises:
            errors.NotFound: there is no such run.
            errors.PolicyRefused: path and certProfile contradict each other (rule ``certificate-profile``).
        """
        context = yield from self._enrolments.run_of(caller, label or profile)
        licence = context.licence
        if profile not in {None, licence.id, licence.profile}:
            raise errors.PolicyRefused(
                "certificate-profile",
                f"run {licence.id} certifies by profile {licence.profile}, not {profile[:64]}",
            )
        return context

    def begin(
        self,
        caller: Caller,
        label: str | None,
        kind: BodyKind,
        transaction_id: bytes,
        request: tuple[int, bytes],
        nonce: bytes,
        *,
        implicit: bool = False,
    ) -> UseCase[CMPTransaction]:
        """Put a transaction on record, or return the one that this very message began.

        The message is counted here; see ``enrol``.

        Args:
            caller: who asks.
            label: the run, as the client named it.
            kind: of the message that begins it.
            transaction_id: 16 to 64 octets.
            request: certReqId and body of that message (DER).
            nonce: senderNonce of the answer to come.  Of a message that comes again it is the one on record:
                whoever repeats somebody's message cannot spoil the transaction.
            implicit: the client asks to confirm nothing.

        Raises:
            errors.PolicyRefused: the client has used the transactionID before (rule ``transaction-in-use``).
            errors.NotFound: there is no such run.
            errors.Refusal: the client may not enrol now.  It is on record.
        """
        context = yield from self._enrolments.run_of(caller, label)
        request_id, body = request
        name = cmp_transaction_id(caller.client.id, transaction_id)

        def decide(facts: Facts, at: datetime) -> Decision[CMPTransaction]:
            # Before there is a row: else whoever was shut out could have as many as it likes.
            live_client(facts, caller, to_enrol(caller), at)
            row = facts.get(CMPTransaction, name)
            if row is None:
                row = CMPTransaction(
                    id=name,
                    client=caller.client.id,
                    run=context.licence.id,
                    body=str(kind),
                    request=body,
                    request_id=request_id,
                    key=enrolment_key(caller, "cmp", body),
                    nonce=nonce,
                    status=CMPStatus.WAITING,
                    expires_at=at + self._confirm_within,
                )
                facts.put(row)
            elif (row.request, row.body) != (body, str(kind)) or not _goes_on(row, at, implicit=implicit):
                raise errors.PolicyRefused(
                    "transaction-in-use", "the transactionID was used before: choose another"
                )
            return Decision(row)

        said = {"transaction": name[:200]}
        return (yield from decided(caller, _REQUEST, said, decide, {CMPTransaction: (name,)}))

    def enrol(
        self, caller: Caller, row: CMPTransaction, nonce: bytes, *, counted: bool = False
    ) -> UseCase[Granted | Waiting]:
        """Issue what a transaction asks for, or return that a person has to look at it.

        Args:
            caller: who asks.
            row: the transaction.
            nonce: senderNonce of the answer.
            counted: the message has begun the transaction, and was counted then.

        Raises:
            errors.Refusal: it is not granted.  It is on record.
        """
        if counted:
            caller = replace(caller, rate=None)
        request = IssueRequest(
            hardware_id="",
            csr=row.request,
            key=row.key,
            crmf=row.body != BodyKind.P10CR,
            keeps_refusal=False,
            noted=partial(self._note, row, nonce),
        )
        renewal = row.body == BodyKind.KUR
        try:
            answer = yield from self._enrolments.enrol(caller, row.run, request, renewal=renewal)
        except errors.Refusal as refusal:
            if not refusal.retryable and not isinstance(refusal, _OF_THE_MOMENT):
                yield from self._unissued(row, nonce, CMPEvent.REJECT, self._confirm_within)
            raise
        if isinstance(answer, Waiting):
            yield from self._unissued(row, nonce, CMPEvent.WAIT, WAITING_LIFE)
        return answer

    def _note(
        self,
        row: CMPTransaction,
        nonce: bytes,
        facts: Facts,
        at: datetime,
        attempt: str,
        certificate: bytes,
    ) -> None:
        """Put on record, in the commit that issues it, what a transaction got."""
        before = _current(facts, row)
        now = moved(before, CMPEvent.ISSUE)  # or its time ended while this was being signed
        if now.status is CMPStatus.CONFIRMED:  # the answer was lost; see ``begin``
            return
        # What is asked again is to be confirmed by when it was to be the first time.
        again = attempt == before.attempt and before.status is CMPStatus.ISSUED
        facts.put(
            replace(
                now,
                nonce=nonce,
                attempt=attempt,
                certificate=Certificate.from_der(certificate).serial_hex,
                expires_at=before.expires_at if again else at + self._confirm_within,
            )
        )

    def _unissued(
        self, row: CMPTransaction, nonce: bytes, event: CMPEvent, life: timedelta
    ) -> UseCase[CMPTransaction]:
        """Put on record what becomes of a transaction in which nothing was issued; of another, nothing."""

        def decide(facts: Facts, at: datetime) -> Decision[CMPTransaction]:
            now = _current(facts, row)
            if now.status is CMPStatus.WAITING:
                now = replace(moved(now, event), nonce=nonce, expires_at=at + life)
                facts.put(now)
            return Decision(now)

        return (yield from self._act(row.client, row.id, decide))

    def find(
        self, caller: Caller, transaction_id: bytes, *, confirms: bool = False
    ) -> UseCase[CMPTransaction]:
        """Return a transaction of the caller's that is still open.

        Raises:
            errors.PolicyRefused: there is none (rule ``message-transaction``); or the caller ``confirms``
                what it has confirmed before (rule ``certificate-confirmed``).
        """
        name = cmp_transaction_id(caller.client.id, transaction_id)
        facts: Facts = yield Look({CMPTransaction: (name,)})
        row = facts.get(CMPTransaction, name)
        if confirms and row is not None and row.status is CMPStatus.CONFIRMED:
            raise errors.PolicyRefused("certificate-confirmed", "the certificate was confirmed before")
        if row is None or not row.is_open(self._clock.now()):
            raise _over()
        return row

    def certificate(self, row: CMPTransaction) -> UseCase[bytes]:
        """Return the certificate of a transaction (DER)."""
        serial = row.certificate or ""
        facts: Facts = yield Look({DeviceCertificate: (serial,)})
        found = facts.get(DeviceCertificate, serial)
        if found is None:
            raise errors.IntegrityFailure(f"the certificate of transaction {row.id} is gone")
        return found.der

    def close(self, row: CMPTransaction) -> UseCase[None]:
        """End a transaction whose client confirms nothing, as it asked for (RFC 9810 section 5.1.1.1).

        An operational certificate still has to be used before the one before it is superseded.

        Raises:
            errors.IllegalTransition: it was not confirmed in time before.
        """
        yield from self._end(row, CMPEvent.CONFIRM)

    def settle(
        self, caller: Caller, row: CMPTransaction, said: Sequence[CertStatus], *, pvno: int
    ) -> UseCase[None]:
        """Take what a client says of its certificate (RFC 9810 section 5.3.18): it is live, or revoked.

        Whoever confirms another certificate than it was sent has not got this one: that is revoked, too
        (section 4.2.2.2).

        Args:
            caller: the client.
            row: the transaction.
            said: what its certConf holds; nothing means that it does not take the certificate.
            pvno: version of that message.

        Raises:
            errors.PolicyRefused: no certificate waits (rule ``message-expected``), or it is of another (rule
                ``certificate-confirmation``).
            errors.IllegalTransition: its attempt is over.
        """
        if row.status is not CMPStatus.ISSUED or len(said) > 1:
            raise errors.PolicyRefused("message-expected", "no certificate waits for such a confirmation")
        if not said or not said[0].accepted:
            yield from self.reject(caller.client.id, row, _NOT_TAKEN)
            return
        certificate = yield from self.certificate(row)
        try:
            _verify_taken(row, said[0], certificate, pvno)
        except errors.PolicyRefused:
            yield from self.reject(caller.client.id, row, _ANOTHER)
            raise
        yield from self.confirm(caller, row)

    def confirm(self, caller: Caller, row: CMPTransaction) -> UseCase[None]:
        """End a transaction whose certificate the client took.

        Raises:
            errors.IllegalTransition: it, or its attempt, is over.
        """
        yield from self._confirmations.confirm(caller, row.attempt or "", partial(_put_ended, row))

    def reject(self, actor: str, row: CMPTransaction, reason: str) -> UseCase[None]:
        """End a transaction whose certificate the client did not take, and revoke that.

        What was used or proved meanwhile stays good: then the transaction is confirmed.

        Raises:
            errors.IllegalTransition: the client has confirmed it, and nothing is revoked.
        """
        if row.attempt is not None:
            # The device may have asked anew, or was held or scrapped: then nothing waits any more.
            with suppress(errors.IllegalTransition, errors.NotFound):
                yield from self._confirmations.reject(actor, row.attempt, reason, partial(_put_ended, row))
                return
        yield from self._end(row, CMPEvent.REJECT)

    def _end(self, row: CMPTransaction, event: CMPEvent) -> UseCase[CMPTransaction]:
        def decide(facts: Facts, _at: datetime) -> Decision[CMPTransaction]:
            ended = moved(_current(facts, row), event)
            facts.put(ended)
            return Decision(ended)

        return (yield from self._act(row.client, row.id, decide))

    def unconfirmed(self) -> UseCase[list[CMPTransaction]]:
        """Return the transactions that are open: of all processes, reading every one there ever was."""
        found: list[CMPTransaction] = []
        for status in CMP_OPEN:
            some: list[CMPTransaction] = yield Scan(kind=CMPTransaction, where={"status": str(status)})
            found += some
        return found

    def expire(self, name: str) -> UseCase[datetime | None]:
        """End a transaction if its time has ended and nobody has confirmed what was issued in it.

        A client that lost an answer may ask the same in another transaction, and gets the same certificate:
        then it counts what becomes of it there.

        Returns:
            When to look again, if its time has not ended; None for one that is over.
        """
        facts: Facts = yield Look({CMPTransaction: (name,)})
        row, now = facts.get(CMPTransaction, name), self._clock.now()
        if row is None or row.status not in CMP_OPEN:
            return None
        if now < row.expires_at:
            return row.expires_at
        others: list[CMPTransaction] = []
        if row.attempt is not None:
            others = yield Scan(kind=CMPTransaction, where={"attempt": row.attempt})
        if any(one.status is CMPStatus.CONFIRMED for one in others):
            yield from self._end(row, CMPEvent.CONFIRM)
            return None
        later = [one.expires_at for one in others if one.is_open(now)]
        if later:
            return max(later)
        yield from self.reject(SERVICE, row, _UNCONFIRMED)
        return None

    def _act(
        self, actor: str, name: str, decide: Callable[[Facts, datetime], Decision[CMPTransaction]]
    ) -> UseCase[CMPTransaction]:
        committed: list[Committed[CMPTransaction]] = yield [
            Act(
                actor=actor,
                decide=decide,
                refuse=refuse(None, _REQUEST, {"transaction": name[:200]}),
                reads={CMPTransaction: (name,)},
            )
        ]
        (row,) = outcomes(committed)
        return row


def _over() -> errors.PolicyRefused:
    return errors.PolicyRefused("message-transaction", "the transaction is over, or never began")


def _current(facts: Facts, row: CMPTransaction) -> CMPTransaction:
    found = facts.get(CMPTransaction, row.id)
    if found is None:
        raise errors.IntegrityFailure(f"cmp transaction {row.id} is gone")
    return found


def _put_ended(row: CMPTransaction, facts: Facts, good: bool) -> None:  # noqa: FBT001  # confirmations.Ended
    event = CMPEvent.CONFIRM if good else CMPEvent.REJECT
    facts.put(moved(_current(facts, row), event))


def _goes_on(row: CMPTransaction, at: datetime, *, implicit: bool) -> bool:
    """Return whether the message that began a transaction may come again."""
    if row.status is CMPStatus.CONFIRMED:
        return implicit  # nothing was confirmed: the answer may have been lost
    return row.is_open(at)


def _verify_taken(row: CMPTransaction, said: CertStatus, certificate: bytes, pvno: int) -> None:
    expected = _PKCS10_IDS if row.body == BodyKind.P10CR else {row.request_id}
    if said.cert_req_id not in expected:
        raise errors.PolicyRefused(
            "certificate-confirmation", f"certReqId {said.cert_req_id} is of no request in this transaction"
        )
    verify_confirmation(said, certificate, pvno=pvno)
