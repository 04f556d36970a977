"""What a device has besides its identity: certificates for where it works (SPEC H1, H2).

A run whose licence is ``operational`` admits nothing: it certifies devices that have their identity already.
What a device has from such a run is its ``LocalIdentity`` (IEEE 802.1AR: the LDevID).  Each certificate is an
``Attempt`` like those of the line; the one before stays good until the device has proved the new one.

Where the licence says that a person looks at each request, it waits as a ``WaitingEnrolment``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from types import MappingProxyType

from birthmark import errors

__all__ = [
    "CMP_OPEN",
    "CMP_TRANSITIONS",
    "WAITING_LIFE",
    "CMPEvent",
    "CMPStatus",
    "CMPTransaction",
    "LocalIdentity",
    "WaitingEnrolment",
    "WaitingStatus",
    "cmp_transaction_id",
    "local_identity_id",
    "moved",
    "waiting_id",
]

WAITING_LIFE = timedelta(days=7)
"""How long a request waits for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalIdentity:
    """What one device has from one operational run."""

    id: str
    """Device and run, joined by ``/``: see ``local_identity_id``."""
    device: str
    run: str
    attempt: str
    """Id of the newest attempt; it is proved if it is RELEASED."""
    attempts: int
    certificate: str | None
    """Serial number of the certificate that was proved last (hex), which is good until another is proved."""


def local_identity_id(device: str, run: str) -> str:
    """Return the id of what a device has from a run."""
    return f"{device}/{run}"


class WaitingStatus(StrEnum):
    """What became of a request that a person looks at."""

    WAITING = "waiting"
    APPROVED = "approved"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingEnrolment:
    """A request for a certificate that waits for a person."""

    id: str
    """Client, and idempotency key of the request: see ``waiting_id``."""
    device: str
    run: str
    client: str
    request_sha256: str
    """What tells it from another request under the same key (hex)."""
    csr_sha256: str
    """SHA-256 of the certification request (hex), to compare with the device's; empty for a delivered key."""
    status: WaitingStatus
    asked_at: datetime
    decided_by: str | None = None
    reason: str | None = None


def waiting_id(client: str, key: str) -> str:
    """Return the id of a client's request."""
    return f"{client}/{key}"


class CMPStatus(StrEnum):
    """Where a CMP transaction stands."""

    WAITING = "waiting"
    """For a person, and the client polls; or for us, who were interrupted."""
    ISSUED = "issued"
    """The certificate was sent; the client has to confirm it."""
    CONFIRMED = "confirmed"
    REJECTED = "rejected"
    """Nothing was issued, or the certificate was not taken or not confirmed in time: that is revoked."""


class CMPEvent(StrEnum):
    """What happens in a CMP transaction."""

    WAIT = "wait"
    """The client was told to ask again."""
    ISSUE = "issue"
    """The certificate is sent, for the first time or again."""
    CONFIRM = "confirm"
    """The client took the certificate, here or in another transaction; or it asked to confirm nothing."""
    REJECT = "reject"
    """It is refused for good, or given up, or not taken, or not confirmed in time."""


_S, _E = CMPStatus, CMPEvent

CMP_TRANSITIONS: Mapping[CMPStatus, Mapping[CMPEvent, CMPStatus]] = MappingProxyType(
    {
        _S.WAITING: {_E.WAIT: _S.WAITING, _E.ISSUE: _S.ISSUED, _E.REJECT: _S.REJECTED},
        _S.ISSUED: {_E.ISSUE: _S.ISSUED, _E.CONFIRM: _S.CONFIRMED, _E.REJECT: _S.REJECTED},
        # An answer that was lost is given again: what has been said twice changes nothing.
        _S.CONFIRMED: {_E.ISSUE: _S.CONFIRMED, _E.CONFIRM: _S.CONFIRMED},
        # Every process ends what is overdue.
        _S.REJECTED: {_E.REJECT: _S.REJECTED},
    }
)
"""What may follow what.  A test visits every pair."""

CMP_OPEN = (CMPStatus.WAITING, CMPStatus.ISSUED)
"""Where something is still to come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CMPTransaction:
    """A transaction that began and must survive a restart (RFC 9810 section 5.1.1)."""

    id: str
    """Client, and transactionID (hex): see ``cmp_transaction_id``."""
    client: str
    run: str
    body: str
    """Kind of the body that began it: ``ir``, ``cr``, ``p10cr``, ``kur``."""
    request: bytes
    """The certification request (DER) as it came, for when it is issued after waiting."""
    request_id: int
    """Its certReqId."""
    key: str
    """Idempotency key under which the certificate is issued."""
    nonce: bytes
    """The senderNonce of our latest message, which the next one of the client repeats."""
    status: CMPStatus
    expires_at: datetime
    """Until when the client may confirm, or poll."""
    attempt: str | None = None
    certificate: str | None = None
    """Serial number of what was issued (hex)."""

    def is_open(self, at: datetime) -> bool:
        """Return whether the client may go on at this time."""
        return self.status in CMP_OPEN and at < self.expires_at


def moved(transaction: CMPTransaction, event: CMPEvent) -> CMPTransaction:
    """Return a transaction after an event.

    Raises:
        errors.IllegalTransition: the event is not allowed in its status.
    """
    following = CMP_TRANSITIONS[transaction.status].get(event)
    if following is None:
        raise errors.IllegalTransition(
            f"cannot {event} in cmp transaction {transaction.id}: it is {transaction.status}; begin another"
        )
    return replace(transaction, status=following)


def cmp_transaction_id(client: str, transaction_id: bytes) -> str:
    """Return the id of a client's transaction."""
    return f"{client}/{transaction_id.hex()}"
