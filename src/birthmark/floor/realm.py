"""The realm: whose identities these are, and whether they are real (SPEC H6)."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

__all__ = ["Environment", "Realm"]


class Environment(StrEnum):
    """Test and production are separate realms; nothing moves from one to the other."""

    TEST = "test"
    PRODUCTION = "production"

    @property
    def mark(self) -> str:
        """What a test realm's certificate authorities carry in their names."""
        return " TEST" if self is Environment.TEST else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Realm:
    """Who a database, a log and a hierarchy belong to."""

    name: str
    environment: Environment
    origin: str
    """Name of the log (C2SP tlog-checkpoint)."""
    vkey: str
    """The log's verifier key (C2SP signed-note)."""
    created_at: datetime
