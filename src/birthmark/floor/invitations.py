"""One-time codes by which a station gets in (SPEC C2).

A code is 128 random bits; the record has its hash.  It is good once, for minutes or hours, for one station's
name, site, line and runs, all fixed by whoever invites.  The station makes its own key; as long as the code
is good, it may ask again for the certificate of that key, because an answer can be lost.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from birthmark import errors
from birthmark.ledger.entry import time_text
from birthmark.secret import SecretBytes

__all__ = [
    "CODE_OCTETS",
    "LONGEST_INVITATION",
    "MOST_HOURS",
    "Invitation",
    "invitation_id",
    "redeem",
    "require_good",
]

CODE_OCTETS = 16
LONGEST_INVITATION = timedelta(days=7)
MOST_HOURS = 30 * 24
"""Of a station's certificate: what the profile ``station`` allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invitation:
    """A station that may come."""

    id: str
    """SHA-256 of the code's octets (hex)."""
    client: str
    """The station's client id."""
    site: str
    line: str
    runs: str
    """As ``Client.runs``."""
    authority: str
    invited_by: str
    hours: int
    """How long the station's certificates are good."""
    expires_at: datetime
    certificate: str | None
    """Serial number of the certificate it was redeemed for (hex); None until then."""


def invitation_id(code: SecretBytes) -> str:
    """Return the id under which a code is on record."""
    return hashlib.sha256(code.reveal()).hexdigest()


def require_good(invitation: Invitation | None, at: datetime) -> Invitation:
    """Return the invitation if its time has not ended; it may be used up.

    Raises:
        errors.Unauthenticated: there is none, or it ended.
    """
    if invitation is None:
        raise errors.Unauthenticated("this code invites nobody: ask for a new one")
    if at >= invitation.expires_at:
        raise errors.Unauthenticated(
            f"this code ended at {time_text(invitation.expires_at)}: ask for a new one"
        )
    return invitation


def redeem(invitation: Invitation | None, at: datetime) -> Invitation:
    """Return the invitation if it is good now and nobody has used it.

    Raises:
        errors.Unauthenticated: there is none, it is used up, or it ended.
    """
    found = require_good(invitation, at)
    if found.certificate is not None:
        raise errors.Unauthenticated("this code was used already: ask for a new one")
    return found
