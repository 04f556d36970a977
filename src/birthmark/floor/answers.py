"""The answer given to an idempotency key, kept so that the same key always gets the same answer (SPEC C4)."""

from dataclasses import dataclass
from datetime import datetime

__all__ = ["Answer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a client was told.

    It refers to the attempt instead of repeating its certificate, and never holds a key: a delivered key
    cannot be sent again, so its retry makes a new one.
    """

    id: str
    """Client id and idempotency key, joined by ``/``."""
    request_sha256: str
    """SHA-256 of the request it answered (hex)."""
    attempt: str | None
    """The attempt issued or released; None for a refusal."""
    refusal: str | None
    """``code``, or ``code:rule``, of a refusal."""
    detail: str | None
    at: datetime
