"""Open for a time, and closed before and after it: planes, runs, stations, what is shared (SPEC C1, C2).

Whoever has an exposure on record is open from its beginning to its end and at no other time; whoever has none
is open as long as nothing else forbids it.  A closed plane or station is refused in the handshake, and again
where every act is decided.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from birthmark import errors
from birthmark.floor.clients import check_name
from birthmark.ledger.entry import time_text

__all__ = [
    "PLANES",
    "Exposed",
    "Exposure",
    "Plane",
    "exposure_id",
    "parse_exposure",
    "require_open",
    "why_closed",
]


class Plane(StrEnum):
    """One listener of the service."""

    STATION = "station"
    ENROLMENT = "enrolment"
    """Lets stations in that were invited."""
    DEVICE = "device"
    """Lets devices enrol by EST and CMP."""
    GATEWAY = "gateway"
    """Meets devices in the field, and those who ask about them."""
    PUBLIC = "public"
    OPS = "ops"
    """Watches the processes of the others."""


PLANES = (Plane.DEVICE, Plane.ENROLMENT, Plane.GATEWAY, Plane.STATION)
"""Those that can be open for a time: the others let nobody do anything."""


class Exposed(StrEnum):
    """What can be open for a time."""

    PLANE = "plane"
    RUN = "run"
    STATION = "station"
    SHARED = "shared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposure:
    """When somebody or something may be reached."""

    id: str
    """``plane:station``, ``run:R1``, ``station:ST01``, ``shared:IMAGE-7``."""
    opens_at: datetime
    closes_at: datetime | None
    """None: until somebody closes it."""


def exposure_id(kind: Exposed, name: str) -> str:
    """Return the id of an exposure; of a station, or what is shared, it is the client's id."""
    return f"{kind}:{name}"


def parse_exposure(text: str) -> tuple[Exposed, str]:
    """Take an exposure's id apart: what it is of, and its name.

    Raises:
        errors.MalformedRequest: it is no id of an exposure.
    """
    kind, colon, name = text.partition(":")
    if not colon or kind not in set(Exposed) or not name:
        raise errors.MalformedRequest(
            "what can be open for a time is written plane:NAME, run:NAME, station:NAME or shared:NAME, not"
            f" {text[:100]!r}"
        )
    if kind == Exposed.PLANE and name not in PLANES:
        raise errors.MalformedRequest(f"there is no plane {name[:64]!r}: {' and '.join(PLANES)} are")
    return Exposed(kind), check_name(kind, name)


def why_closed(exposure: Exposure | None, at: datetime) -> str | None:
    """Return why it is closed at a moment, in words for whoever is shut out; None if it is open."""
    if exposure is None:
        return None
    if at < exposure.opens_at:
        return f"{exposure.id} is closed until {time_text(exposure.opens_at)}"
    if exposure.closes_at is not None and at >= exposure.closes_at:
        return f"{exposure.id} is closed since {time_text(exposure.closes_at)}"
    return None


def require_open(exposures: Iterable[Exposure | None], at: datetime) -> None:
    """Refuse what is closed at this moment.

    Raises:
        errors.NotPermitted: one of them is closed; says which, and since or until when.
    """
    for exposure in exposures:
        reason = why_closed(exposure, at)
        if reason is not None:
            raise errors.NotPermitted(reason)
