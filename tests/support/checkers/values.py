"""What relying parties are given and what they answer, in one vocabulary for all of them."""

from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Chain", "Status", "Verdict"]


class Status(StrEnum):
    """What a relying party would do with the certificate."""

    GOOD = "good"
    """The path is valid; where it was asked for the status, the certificate is not revoked."""
    REVOKED = "revoked"
    UNKNOWN = "unknown"
    """The OCSP responder says that it does not know the certificate."""
    UNDETERMINED = "undetermined"
    """What was given does not tell: out of date, of another scope, not signed by who may sign it."""
    REFUSED = "refused"
    """The path itself is not valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one relying party said."""

    status: Status
    reason: str | None = None
    """Why it is revoked, as RFC 5280 section 5.3.1 spells it; None where the party does not tell."""
    said: str = ""
    """Its own words."""

    @property
    def good(self) -> bool:
        """Return whether it would rely on the certificate."""
        return self.status is Status.GOOD


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A certification path (certificates in DER)."""

    root: bytes = field(repr=False)
    """The trust anchor."""
    between: tuple[bytes, ...] = field(default=(), repr=False)
    """From the leaf's issuer up to what the root issued."""
    leaf: bytes = field(repr=False)

    @property
    def issuer(self) -> bytes:
        """Return the certificate that issued the leaf."""
        return self.between[0] if self.between else self.root
