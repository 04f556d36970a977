"""CMP transactions that take several messages, and go on after a restart (RFC 9810 section 5.1.1, RFC 9483).

A transaction is on record before anything is issued in it: what was interrupted is asked again, or is found
when its time has ended, and then its certificate is revoked.  Nothing of it stands in the log; what is
issued, confirmed and revoked in it does.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from birthmark import errors
from birthmark.floor.answers import Answer
from birthmark.floor.devices import DeviceCertificate
from birthmark.floor.enrolments import WAITING_LIFE, CMPStatus, CMPTransaction
from birthmark.pki.certificates import Certificate
from birthmark.pki.cmp import BodyKind
from birthmark.ports import Act, Clock, Committed, Decision, Facts, Look, Scan, UseCase
from birthmark.services.acts import Caller, outcomes, refuse
from birthmark.services.confirmations import ConfirmEnrolments
from birthmark.services.enrolments import EnrolDevices, Granted, Waiting
from birthmark.services.issue import IssueRequest
from birthmark.services.recognition import enrolment_key

__all__ = ["SERVICE", "CMPTransactions", "transaction_key"]

SERVICE = "realm:device-plane"
"""The actor of what happens because nobody confirmed."""
_REQUEST = "cmp"
_UNCONFIRMED = "the client did not confirm its certificate in time"
_OPEN = (CMPStatus.WAITING, CMPStatus.ISSUED)


def transaction_key(client: str, transaction_id: bytes) -> str:
    """Return the id of a client's transaction."""
    return f"{client}/{transaction_id.hex()}"


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

    def begin(
        self,
        caller: Caller,
        label: str | None,
        kind: BodyKind,
        transaction_id: bytes,
        request: tuple[int, bytes],
        nonce: bytes,
    ) -> UseCase[CMPTransaction]:
        """Put a transaction on record, or return the one that this very message began.

        Args:
            caller: who asks.
            label: the run, as the client named it.
            kind: of the message that begins it.
            transaction_id: 16 to 64 octets.
            request: certReqId and body of that message (DER).
            nonce: senderNonce of the answer to come.

        Raises:
            errors.PolicyRefused: the client has used the transactionID before (rule ``transaction-in-use``).
            errors.NotFound: there is no such run.
        """
        context = yield from self._enrolments.run_of(caller, label)
        request_id, body = request
        name = transaction_key(caller.client.id, transaction_id)

        def decide(facts: Facts, at: datetime) -> Decision[CMPTransaction]:
            found = facts.get(CMPTransaction, name)
            if found is None:
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
            elif (found.request, found.body) == (body, str(kind)) and found.status in _OPEN:
                row = replace(found, nonce=nonce)  # the answer was lost
            else:
                raise errors.PolicyRefused(
                    "transaction-in-use", "the transactionID was used before: choose another"
                )
            facts.put(row)
            return Decision(row)

        return (yield from self._act(caller.client.id, name, decide))

    def enrol(self, caller: Caller, row: CMPTransaction, nonce: bytes) -> UseCase[Granted | Waiting]:
        """Issue what a transaction asks for, or return that a person has to look at it.

        A refusal ends the transaction.

        Raises:
            errors.Refusal: it is not granted.  It is on record.
        """
        request = IssueRequest(
            hardware_id="", csr=row.request, key=row.key, crmf=row.body != BodyKind.P10CR, keeps_refusal=False
        )
        renewal = row.body == BodyKind.KUR
        try:
            answer = yield from self._enrolments.enrol(caller, row.run, request, renewal=renewal)
        except errors.Refusal as refusal:
            if not refusal.retryable:
                yield from self._put(row, nonce, status=CMPStatus.REJECTED)
            raise
        if isinstance(answer, Waiting):
            yield from self._put(row, nonce, life=True)
            return answer
        serial = Certificate.from_der(answer.certificate).serial_hex
        yield from self._put(row, nonce, status=CMPStatus.ISSUED, attempt=answer.attempt, certificate=serial)
        return answer

    def _put(
        self,
        row: CMPTransaction,
        nonce: bytes,
        *,
        status: CMPStatus = CMPStatus.WAITING,
        attempt: str | None = None,
        certificate: str | None = None,
        life: bool = False,
    ) -> UseCase[CMPTransaction]:
        def decide(facts: Facts, at: datetime) -> Decision[CMPTransaction]:
            now = replace(
                facts.get(CMPTransaction, row.id) or row,
                nonce=nonce,
                status=status,
                attempt=attempt,
                certificate=certificate,
                expires_at=at + (WAITING_LIFE if life else self._confirm_within),
            )
            facts.put(now)
            return Decision(now)

        return (yield from self._act(row.client, row.id, decide))

    def find(self, caller: Caller, transaction_id: bytes) -> UseCase[CMPTransaction]:
        """Return a transaction of the caller's that is still open.

        Raises:
            errors.PolicyRefused: there is none (rule ``message-transaction``).
        """
        name = transaction_key(caller.client.id, transaction_id)
        facts: Facts = yield Look({CMPTransaction: (name,)})
        row = facts.get(CMPTransaction, name)
        if row is None or row.status not in _OPEN or self._clock.now() >= row.expires_at:
            raise errors.PolicyRefused("message-transaction", "the transaction is over, or never began")
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
        """
        yield from self._end(row, CMPStatus.CONFIRMED)

    def confirm(self, caller: Caller, row: CMPTransaction) -> UseCase[None]:
        """End a transaction whose certificate the client took.

        Raises:
            errors.IllegalTransition: its attempt is over.
        """
        yield from self._confirmations.confirm(caller, row.attempt or "")
        yield from self._end(row, CMPStatus.CONFIRMED)

    def reject(self, actor: str, row: CMPTransaction, reason: str) -> UseCase[None]:
        """End a transaction whose certificate the client did not take, and revoke that.

        Where it was interrupted before it could be noted what was issued, the answer that was kept says so.
        """
        attempt = row.attempt
        if attempt is None:
            key = f"{row.client}/{row.key}"
            facts: Facts = yield Look({Answer: (key,)})
            answer = facts.get(Answer, key)
            attempt = None if answer is None else answer.attempt
        if attempt is not None:
            # The device may have asked anew, or was held or scrapped: then nothing waits any more.
            with suppress(errors.IllegalTransition, errors.NotFound):
                yield from self._confirmations.reject(actor, attempt, reason)
        yield from self._end(row, CMPStatus.REJECTED)

    def _end(self, row: CMPTransaction, status: CMPStatus) -> UseCase[CMPTransaction]:
        def decide(facts: Facts, _at: datetime) -> Decision[CMPTransaction]:
            ended = replace(facts.get(CMPTransaction, row.id) or row, status=status)
            facts.put(ended)
            return Decision(ended)

        return (yield from self._act(row.client, row.id, decide))

    def unconfirmed(self) -> UseCase[list[CMPTransaction]]:
        """Return the transactions that are open: of all processes, reading every one there ever was."""
        found: list[CMPTransaction] = []
        for status in _OPEN:
            some: list[CMPTransaction] = yield Scan(kind=CMPTransaction, where={"status": str(status)})
            found += some
        return found

    def expire(self, name: str) -> UseCase[None]:
        """End a transaction if its time has ended and nobody has confirmed it."""
        facts: Facts = yield Look({CMPTransaction: (name,)})
        row = facts.get(CMPTransaction, name)
        if row is not None and row.status in _OPEN and self._clock.now() >= row.expires_at:
            yield from self.reject(SERVICE, row, _UNCONFIRMED)

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
