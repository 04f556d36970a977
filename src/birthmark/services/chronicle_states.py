"""Where a subject stood at some instant: what a ``Chronicle`` answers (SPEC E6).

Times are spelled as entries spell them.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

__all__ = [
    "AuthorityState",
    "CertificateState",
    "ClientState",
    "DeviceStanding",
    "KeyState",
    "Phase",
    "RunState",
    "State",
]


class Phase(StrEnum):
    """Where a certificate stands."""

    NOT_ISSUED = "not-issued"
    ISSUED = "issued"
    """Not proved yet: nobody has shown that the device holds the key."""
    LIVE = "live"
    """Proved, the device released; of a client or an authority: in force."""
    SUSPENDED = "suspended"
    REVOKED = "revoked"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityState:
    """An authority, at some instant."""

    authority: str
    status: str
    """As ``AuthorityStatus``, or ``not-established``."""
    since: str | None
    reason: str | None
    issuer: str | None
    successor: str | None
    certificate: str | None
    """Serial number (hex)."""
    ends_at: str | None
    """When it stops issuing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateState:
    """A certificate, at some instant."""

    certificate: str
    """Serial number (hex)."""
    sha256: str | None
    phase: Phase
    since: str | None
    """When it came to that."""
    index: int | None
    """The entry that says so."""
    reason: str | None
    """Why it is suspended or revoked (RFC 5280 section 5.3.1)."""
    cause: str | None
    """What revoked it: the entry's kind, or the recall."""
    holder: str | None
    """A device, a client or an authority."""
    run: str | None
    attempt: str | None
    issued_at: str | None
    authority: str | None
    partition: str | None
    """Of the authority's CRL."""
    authorities: tuple[AuthorityState, ...]
    """That authority and those above it, the root last, at that instant."""
    not_after: datetime | None = None
    """From the certificate itself, which no entry holds; None if nobody had it at hand."""
    listed: str | None = None
    """The first published CRL in which it stood, as far as is on record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStanding:
    """A device, at some instant."""

    device: str
    state: str
    """As ``DeviceState``, or ``unknown``."""
    since: str | None
    run: str | None
    attempt: str | None
    attempts: int
    reason: str | None
    consignment: str | None
    shipped_at: str | None
    certificates: tuple[CertificateState, ...]
    """All it ever had, in the order of their issue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientState:
    """A client, at some instant."""

    client: str
    status: str
    """As ``ClientStatus``, or ``unknown``."""
    since: str | None
    reason: str | None
    known: dict[str, str | None]
    """Role, site, line and what else entries say of it."""
    certificates: tuple[CertificateState, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A run, at some instant."""

    run: str
    status: str
    """As ``RunStatus``, or ``unknown``."""
    since: str | None
    product: str | None
    batch: str | None
    authority: str | None
    quantity: int | None
    element: str | None
    firmware: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyState:
    """A key, at some instant."""

    key: str
    status: str
    """``on-record`` or ``unknown``."""
    since: str | None
    purpose: str | None
    store: str | None
    fingerprint: str | None
    backed_up_at: str | None


State = DeviceStanding | CertificateState | ClientState | AuthorityState | RunState | KeyState
