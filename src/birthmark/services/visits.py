"""What comes to the gateway, and what becomes of it: the values that its use cases share (SPEC H3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from birthmark import errors
from birthmark.floor import naming
from birthmark.floor.exposure import Exposed, Plane, exposure_id
from birthmark.pki import paths
from birthmark.ports import Facts

__all__ = ["AT_THE_DOOR", "PLANE_EXPOSURE", "Candidate", "Reason", "TurnedAway", "Visit", "Welcome"]

PLANE_EXPOSURE = exposure_id(Exposed.PLANE, Plane.GATEWAY)
AT_THE_DOOR = "peer:device"
"""The actor of what a device does by itself: it is no client, and entries name it in a field of their own."""


class Reason(StrEnum):
    """Why a device is turned away: the rule that its refusal names."""

    UNKNOWN = "device-unknown"
    """No such certificate is on record, and no registered authority stands above it."""
    NOT_RELEASED = "device-not-released"
    HELD = "device-held"
    """At the line, or in the field."""
    CLONED = "device-cloned"
    """It is at two places at once; from now on it is held."""
    ENDED = "certificate-ended"
    """Or not yet valid."""
    REVOKED = "certificate-revoked"
    SUSPENDED = "certificate-suspended"
    AUTHORITY_REVOKED = "authority-revoked"
    WRONG_REALM = "wrong-realm"
    FLEET_CLOSED = "fleet-authority-closed"
    """The registered authority above it is suspended or retired."""
    FOREIGN_PATH = paths.RULE
    """The registered authority does not stand for it: see ``pki.paths``."""
    FOREIGN_REVOKED = "foreign-revoked"
    STATUS_UNKNOWN = "foreign-status-unknown"
    """Nothing fresh says that its certificate is good."""
    NAME = naming.RULE
    """Its certificate names no device as the policy wants it."""
    NOT_REGISTERED = "device-not-registered"
    """It was never here, and the policy does not register it."""


class TurnedAway(errors.PolicyRefused):
    """A device that is not let in; ``rule`` is the ``Reason``."""

    def __init__(self, reason: Reason, complaint: str, *, device: str = "") -> None:
        super().__init__(str(reason), complaint)
        self.device = device
        """Its id, where one is known for its certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A certificate, and where whoever has its key is."""

    certificate: bytes = field(repr=False)
    """DER; possession of its key was shown in a handshake."""
    path: tuple[bytes, ...] = field(repr=False)
    """The certificates above it (DER), the lowest first.

    From a handshake they are the path that was verified, the anchor last; from a proxy what it passed on.
    """
    place: str
    """The address, or IPv6 network of 64 bits."""
    connected_at: datetime
    """When its connection was opened."""
    actor: str = AT_THE_DOOR
    """Who asks: the device itself, or a proxy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A device that somebody certified, and how to tell whether it comes in now."""

    device: str
    """``FieldDevice.id``."""
    authority: str
    """Who certified it: an authority of this realm, or a fleet authority."""
    fleet: str
    """The fleet authority; empty for this realm's own."""
    judge: Callable[[Facts, datetime], None] = field(repr=False)
    """Raises ``TurnedAway`` for what forbids it at this moment, apart from what the gateway knows itself."""
    register: Callable[[Facts], None] = field(repr=False)
    """Raises ``TurnedAway`` if the first contact is not to register it."""
    reads: dict[type, Sequence[str]] = field(repr=False)
    """What both look at."""
    anchor: bytes = field(default=b"", repr=False)
    """Certificate (DER) of the fleet authority."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Welcome:
    """A device that is let in."""

    device: str
    """``FieldDevice.id``."""
    authority: str
    """See ``Candidate``."""
    certificate_sha256: str
    """Fingerprint (hex)."""
    first_seen_at: datetime
    at: datetime
    first: bool
    """This is its first contact."""
