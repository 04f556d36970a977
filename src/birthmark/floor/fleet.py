"""The fleet: whose devices the gateway accepts, and which it has met (SPEC H3, H5).

A fleet authority is a certificate that devices chain to.  This realm's own root is one without being
registered; a foreign one is registered once its owner has shown to hold the key.  Its policy says how a
device is named by its certificate, whether the first contact registers it, and where its revocations are.

A device is at one place at a time.  A request on a connection that is older than the device's last move comes
from where it is not any more: two have its key, nobody knows which is the clone, and both are held.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Self
from urllib.parse import urlsplit

from birthmark import errors
from birthmark.floor.hardware_ids import check_pattern
from birthmark.ledger.entry import canonical, parse

__all__ = [
    "CHALLENGE_LIFE",
    "FLEET_MOVES",
    "MOST_MOVES",
    "MOVES_WITHIN",
    "NONCE_OCTETS",
    "DeviceNaming",
    "FieldDevice",
    "FieldStatus",
    "FirstContact",
    "FleetAuthority",
    "FleetMove",
    "FleetPolicy",
    "FleetStatus",
    "ForeignCRL",
    "ForeignCRLOctets",
    "RevocationRule",
    "check_url",
    "crl_id",
    "field_id",
    "moved",
    "owner_id",
    "require_accepting",
]

MOST_MOVES = 20
MOVES_WITHIN = timedelta(minutes=10)
"""A device that changes its place more often than that is two."""
NONCE_OCTETS = 32
CHALLENGE_LIFE = timedelta(hours=24)
"""How long the owner of a fleet authority has to show the key."""
_TYPE = "birthmark/fleet-policy/v1"
_LONGEST_URL = 500
_FLEET = "fleet"


def check_url(url: str) -> str:
    """Return a place from which revocations can be fetched: what comes from there is signed.

    Raises:
        errors.MalformedRequest: it is no ``http://HOST…`` of visible ASCII, or has a user or a fragment.
    """
    try:
        parts = urlsplit(url)
        plain = parts.scheme == "http" and parts.hostname and parts.username is None and parts.port != 0
    except ValueError:
        plain = False
    visible = all("!" <= character <= "~" for character in url) and len(url) <= _LONGEST_URL
    if not plain or not visible or "#" in url:
        raise errors.MalformedRequest(f"revocations are fetched by http://HOST/…, not from {url[:200]!r}")
    return url


class DeviceNaming(StrEnum):
    """Which part of a certificate is the device's id."""

    COMMON_NAME = "common-name"
    SERIAL_NUMBER = "serial-number"
    """The subject's serialNumber attribute (IEEE 802.1AR)."""
    DNS_NAME = "dns-name"
    """The only dNSName of the subjectAltName."""
    URI = "uri"
    """The only uniformResourceIdentifier of the subjectAltName."""
    HARDWARE_MODULE = "hardware-module"
    """hwSerialNum of the hardwareModuleName (RFC 4108), if it is printable."""


class FirstContact(StrEnum):
    """What the first contact of an unknown device does."""

    REGISTER = "register"
    LISTED = "listed"
    """Registers it if its id is on an imported list of hardware ids."""
    REFUSE = "refuse"


class RevocationRule(StrEnum):
    """What is asked about a foreign certificate before its device is accepted."""

    REQUIRED = "required"
    """A fresh CRL or OCSP answer must say that it is good; without one the device is refused."""
    NONE = "none"
    """Its authority revokes nothing; only we do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPolicy:
    """What is agreed with whoever owns a fleet authority."""

    naming: DeviceNaming = DeviceNaming.COMMON_NAME
    pattern: str = "[A-Za-z0-9._:-]{1,64}"
    """Regular expression that the whole id must match; of those that cannot be slow (``check_pattern``)."""
    first_contact: FirstContact = FirstContact.REFUSE
    allow_list: str = ""
    """Hash of the list for ``listed``: see ``floor.runs.AllowList``."""
    revocation: RevocationRule = RevocationRule.REQUIRED
    crl_url: str = ""
    """Where its CRL is fetched; empty if it is imported by hand."""
    ocsp_url: str = ""
    """Where it answers about one certificate; empty for nowhere."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        check_pattern(self.pattern)
        if (self.first_contact is FirstContact.LISTED) != bool(self.allow_list):
            raise errors.MalformedRequest(
                "a list of hardware ids goes with first contact `listed`, and only then"
            )
        for url in filter(None, (self.crl_url, self.ocsp_url)):
            check_url(url)
        if self.revocation is RevocationRule.NONE and (self.crl_url or self.ocsp_url):
            raise errors.MalformedRequest("an authority that revokes nothing has no place for revocations")

    def encode(self) -> str:
        """Return the canonical JSON (RFC 8785)."""
        said = {one.name: str(getattr(self, one.name)) for one in fields(self)}
        return canonical({"type": _TYPE, **said}).decode()

    @classmethod
    def decode(cls, document: str) -> Self:
        """Read one back.

        Raises:
            errors.MalformedRequest: this is no such policy.
        """
        try:
            said: dict[str, Any] = parse(document.encode())
            if said.pop("type") != _TYPE:
                raise errors.MalformedRequest(f"not a {_TYPE} document")
            said["naming"] = DeviceNaming(said["naming"])
            said["first_contact"] = FirstContact(said["first_contact"])
            said["revocation"] = RevocationRule(said["revocation"])
            if not all(isinstance(value, str) for value in said.values()):
                raise errors.MalformedRequest("not a fleet policy: a field is of the wrong type")
            return cls(**said)
        except (AttributeError, KeyError, TypeError, ValueError) as cause:
            raise errors.MalformedRequest("not a fleet policy") from cause


class FleetStatus(StrEnum):
    """Where a fleet authority stands."""

    CHALLENGED = "challenged"
    """Its owner was given a nonce and has not shown the key yet."""
    ACTIVE = "active"
    SUSPENDED = "suspended"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetMove:
    """How a registered authority comes to a status."""

    before: frozenset[FleetStatus]
    """From where it may come."""
    entry: str
    """Kind of the log entry that says so."""


FLEET_MOVES: Mapping[FleetStatus, FleetMove] = {
    FleetStatus.SUSPENDED: FleetMove(before=frozenset({FleetStatus.ACTIVE}), entry="fleet-suspended"),
    FleetStatus.ACTIVE: FleetMove(before=frozenset({FleetStatus.SUSPENDED}), entry="fleet-resumed"),
    FleetStatus.RETIRED: FleetMove(
        before=frozenset({FleetStatus.ACTIVE, FleetStatus.SUSPENDED}), entry="fleet-retired"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetAuthority:
    """A foreign certificate that devices chain to."""

    id: str
    """See ``floor.clients.check_name``."""
    der: bytes
    policy: str
    """``FleetPolicy``, encoded."""
    status: FleetStatus
    nonce: str
    """What its owner has certified to show that they hold the key (hex)."""
    asked_at: datetime
    """When the nonce was given."""
    verification: bytes | None = None
    """The verification certificate (DER); None until it was shown."""

    @property
    def is_registered(self) -> bool:
        """Whether its owner has shown the key, whatever its status since."""
        return self.status is not FleetStatus.CHALLENGED

    @property
    def is_watched(self) -> bool:
        """Whether its revocations are fetched: it is accepted, or may be again."""
        return self.status in (FleetStatus.ACTIVE, FleetStatus.SUSPENDED)


def require_accepting(authority: FleetAuthority) -> None:
    """Refuse the devices of an authority that is not accepted now.

    Raises:
        errors.NotPermitted: it is not registered, suspended or retired.
    """
    if authority.status is not FleetStatus.ACTIVE:
        said = authority.status if authority.is_registered else "not registered"
        raise errors.NotPermitted(f"fleet authority {authority.id} is {said}")


def owner_id(authority: str) -> str:
    """Return as whose an authority's key is kept: no device and no other authority may have it."""
    return f"{_FLEET}:{authority}"


def field_id(authority: str, name: str) -> str:
    """Return the id of another fleet's device."""
    return f"{_FLEET}:{authority}/{name}"


def crl_id(authority: str, intermediate: str = "") -> str:
    """Return the id of a CRL: the authority's own, or that of one below it.

    Args:
        authority: the fleet authority.
        intermediate: SHA-256 (hex) of name and key (DER) of the one below, whose certificate may be renewed;
            empty for its own.
    """
    return f"{authority}/{intermediate}" if intermediate else authority


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignCRL:
    """The newest CRL of a fleet authority, or of one below it, that was fetched or imported and verified.

    Its octets can be many megabytes and stand in ``ForeignCRLOctets``: who asks at every contact whether
    there is a newer one reads this.
    """

    id: str
    """See ``crl_id``."""
    issuer: bytes | None
    """The certificate (DER) of the authority below whose CRL it is; None for the fleet authority's own."""
    url: str
    """Where the next one of an authority below is fetched; empty if it is imported by hand.

    Where the fleet authority's own is fetched says its policy.
    """
    number: str
    """CRLNumber (hex); never goes back."""
    sha256: str
    """Of the octets (hex)."""
    entries: int
    """How many certificates it revokes."""
    this_update: datetime
    next_update: datetime

    @property
    def authority(self) -> str:
        """The fleet authority."""
        return self.id.partition("/")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignCRLOctets:
    """The octets of a ``ForeignCRL``."""

    id: str
    """The same."""
    sha256: str
    der: bytes


class FieldStatus(StrEnum):
    """Whether a device in the field is accepted, apart from its certificate."""

    ACTIVE = "active"
    HELD = "held"
    """Seen at two places at once, or turned away by a person; a person decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldDevice:
    """A device that the gateway has met."""

    id: str
    """The device id for this realm's own; ``fleet:AUTHORITY/ID`` for another's."""
    authority: str
    """The fleet authority; empty for this realm's own."""
    certificate: str
    """Fingerprint (SHA-256, hex) of the certificate it showed last."""
    status: FieldStatus
    reason: str | None
    place: str
    """The address, or IPv6 network of 64 bits, it was at last."""
    moved_at: datetime
    """When the connection was opened by which it was seen to be there."""
    moves: int
    """How often it moved since ``counted_from``."""
    counted_from: datetime
    first_seen_at: datetime
    first_seen_leaf: int
    """Index of the log entry of its first contact."""


def moved(device: FieldDevice, place: str, connected_at: datetime, at: datetime) -> FieldDevice:
    """Return where the device is after a request from a place.

    Args:
        device: as it was.
        place: where the request comes from.
        connected_at: when its connection was opened.
        at: now.

    Raises:
        errors.NotPermitted: it is at two places at once.
    """
    if place == device.place:
        return device
    if connected_at < device.moved_at:
        raise errors.NotPermitted(
            f"{device.id} speaks from {place} while it is at {device.place}: one is a clone"
        )
    fresh = at - device.counted_from > MOVES_WITHIN
    moves = 1 if fresh else device.moves + 1
    if moves > MOST_MOVES:
        raise errors.NotPermitted(
            f"{device.id} moved {moves} times within {MOVES_WITHIN}: it is more than one"
        )
    counted_from = at if fresh else device.counted_from
    return replace(device, place=place, moved_at=connected_at, moves=moves, counted_from=counted_from)
