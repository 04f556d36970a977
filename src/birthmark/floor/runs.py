"""A production run: a signed licence to issue (SPEC C3).

``RunLicence`` is the document an operator signs: what is made, how many, when, where, under which authority
and for which hardware ids.  It never changes.  ``Run`` is its row: the licence, the signature, and the
counters that the commit train moves in the same transaction as the devices they count.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from birthmark import errors
from birthmark.floor.authorities import (
    Authority,
    AuthorityKind,
    AuthorityStatus,
    Dimension,
    Scope,
    require_issuing,
)
from birthmark.floor.clients import Capability, Role, takes_two
from birthmark.floor.devices import KeyOrigin
from birthmark.floor.hardware_ids import HardwareIdKind, HardwareIdRule
from birthmark.floor.realm import Environment
from birthmark.floor.revocations import Partitioning, partition_name
from birthmark.ledger.entry import canonical, parse, parse_time, time_text

__all__ = [
    "AllowList",
    "AllowedDevice",
    "Run",
    "RunLicence",
    "RunPurpose",
    "RunStatus",
    "admit",
    "allow_list_of",
    "require_authorised",
    "require_going",
    "require_identities",
    "require_station",
    "require_unbroken",
]

_TYPE = "birthmark/run/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowList:
    """The hardware ids a run may provision, by their number and hash."""

    count: int
    sha256: str
    """SHA-256 over the sorted ids, each followed by a newline (hex)."""


def allow_list_of(device_ids: Iterable[str]) -> AllowList:
    """Return the allow-list of these device ids; order and repetition do not matter."""
    unique = sorted(set(device_ids))
    digest = hashlib.sha256("".join(f"{device}\n" for device in unique).encode("ascii"))
    return AllowList(count=len(unique), sha256=digest.hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedDevice:
    """One line of an allow-list."""

    id: str
    """The list's hash and the device id, joined by ``/``: see ``key``."""

    @staticmethod
    def key(allow_list: AllowList, device: str) -> str:
        """Return the id under which a device stands in a list."""
        return AllowedDevice.line(allow_list.sha256, device)

    @staticmethod
    def line(sha256: str, device: str) -> str:
        """Return the same, where only the list's hash is known."""
        return f"{sha256}/{device}"


class RunPurpose(StrEnum):
    """What a run issues for."""

    IDENTITY = "identity"
    """It admits devices and gives each its identity."""
    OPERATIONAL = "operational"
    """It certifies devices that have their identity for where they work (SPEC H2), and admits nothing.

    What they get is an LDevID (IEEE 802.1AR); entries call it local.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLicence:
    """What a run may issue.  Times are UTC; ``encode`` is what gets signed."""

    realm: str
    environment: str
    id: str
    product: str
    batch: str
    profile: str
    authority: str
    quantity: int
    """The most devices it may admit, for ever."""
    not_before: datetime
    not_after: datetime
    stations: tuple[str, ...]
    """Names of the stations that may work on it; empty for none but bootstrap certificates."""
    hardware_id: HardwareIdRule
    allow_list: AllowList | None
    origins: tuple[KeyOrigin, ...]
    variables: Mapping[str, str]
    """Values for the profile's names that are the same for the whole run, e.g. the hwType of an IDevID."""
    opened_by: str
    device_class: str = ""
    """The class of device that is made, where the authority's scope asks for one."""
    site: str = ""
    """Where it is made, likewise; the stations must be of that site."""
    region: str = ""
    """For which region, likewise."""
    partitioning: Partitioning = Partitioning.NONE
    """Which CRL the certificates name."""
    further_profiles: tuple[str, ...] = ()
    """Profiles of further certificates that each device gets, each for a key of its own (SPEC C5)."""
    further_sha256: tuple[str, ...] = ()
    """Hashes of those profiles' files (hex), in the same order."""
    profile_sha256: str = ""
    """Hash of the profile's file (hex): a profile changed since is not the one that was signed for.

    Empty in licences of before; nothing is opened without.
    """
    element: str = ""
    """Profile of the secure element that each device has; empty for none (SPEC D1, D6)."""
    element_sha256: str = ""
    """Hash of that profile's file (hex)."""
    firmware: str = ""
    """Reference of the firmware that the devices carry, e.g. ``bms-4.2.1 sha256:…``; empty for none named.

    Printable ASCII, up to 128.  What it is compared with is for whoever asks: here it is a name (SPEC E6).
    """
    purpose: RunPurpose = RunPurpose.IDENTITY
    approval: bool = False
    """A person looks at each request before it is granted (SPEC H1)."""

    def encode(self) -> bytes:
        """Return the canonical JSON (RFC 8785) of the licence: the bytes that are signed."""
        rule = self.hardware_id
        return canonical(
            self._later_fields()
            | {
                "type": _TYPE,
                "realm": self.realm,
                "environment": self.environment,
                "run": self.id,
                "product": self.product,
                "batch": self.batch,
                "profile": self.profile,
                "authority": self.authority,
                "quantity": self.quantity,
                "not_before": time_text(self.not_before),
                "not_after": time_text(self.not_after),
                "stations": list(self.stations),
                "hardware_id": {
                    "kind": rule.kind,
                    "check_digit": rule.check_digit,
                    "wmi": sorted(rule.wmi),
                    "pattern": rule.pattern,
                },
                "allow_list": (
                    None
                    if self.allow_list is None
                    else {"count": self.allow_list.count, "sha256": self.allow_list.sha256}
                ),
                "origins": list(self.origins),
                "variables": dict(self.variables),
                "opened_by": self.opened_by,
            }
        )

    def _later_fields(self) -> dict[str, object]:
        """Return what licences did not say before they pinned profiles: those stay as they were signed."""
        if not self.profile_sha256:
            return {}
        element = {"element": self.element, "element_sha256": self.element_sha256}
        firmware = {"firmware": self.firmware}
        operational = self.purpose is not RunPurpose.IDENTITY
        return {
            "device_class": self.device_class,
            "site": self.site,
            "region": self.region,
            "partitioning": self.partitioning,
            "profile_sha256": self.profile_sha256,
            "further_profiles": list(self.further_profiles),
            "further_sha256": list(self.further_sha256),
            **(element if any(element.values()) else {}),
            **(firmware if self.firmware else {}),
            **({"purpose": self.purpose} if operational else {}),
            **({"approval": True} if self.approval else {}),
        }

    @property
    def takes_two(self) -> bool:
        """Return whether it takes a second person's signature (SPEC C3, K1)."""
        test = self.environment == Environment.TEST
        return takes_two(Capability.OPEN_RUN, Environment.TEST if test else Environment.PRODUCTION)

    @property
    def profiles(self) -> tuple[tuple[str, str], ...]:
        """Return the profiles of the certificates each device gets, each with the hash of its file."""
        pinned = (self.profile_sha256, *self.further_sha256)
        return tuple(zip((self.profile, *self.further_profiles), pinned, strict=False))

    @property
    def partition(self) -> str:
        """Return the partition of the CRL that its certificates belong to."""
        return partition_name(self.partitioning, self.id, self.batch)

    @classmethod
    def decode(cls, document: bytes) -> "RunLicence":
        """Read a licence back.

        Raises:
            errors.MalformedRequest: these bytes are not a run licence.
        """
        try:
            fields: dict[str, Any] = parse(document)
            if fields.pop("type") != _TYPE:
                raise errors.MalformedRequest(f"not a {_TYPE} document")
            rule, allowed = fields.pop("hardware_id"), fields.pop("allow_list")
            licence = cls(
                id=fields.pop("run"),
                hardware_id=HardwareIdRule(
                    kind=HardwareIdKind(rule["kind"]),
                    check_digit=rule["check_digit"],
                    wmi=frozenset(rule["wmi"]),
                    pattern=rule["pattern"],
                ),
                allow_list=None if allowed is None else AllowList(**allowed),
                not_before=parse_time(fields.pop("not_before")),
                not_after=parse_time(fields.pop("not_after")),
                stations=tuple(fields.pop("stations")),
                origins=tuple(KeyOrigin(origin) for origin in fields.pop("origins")),
                partitioning=Partitioning(fields.pop("partitioning", Partitioning.NONE)),
                purpose=RunPurpose(fields.pop("purpose", RunPurpose.IDENTITY)),
                further_profiles=tuple(fields.pop("further_profiles", ())),
                further_sha256=tuple(fields.pop("further_sha256", ())),
                **fields,
            )
            if not _is_typed(licence) or licence.encode() != document:
                raise errors.MalformedRequest("not a run licence: a field is of the wrong type")
        except (AttributeError, KeyError, TypeError, ValueError) as cause:
            raise errors.MalformedRequest("not a run licence") from cause
        return licence


def _is_typed(licence: RunLicence) -> bool:
    """Tell whether JSON brought what the annotations say, where nothing else has looked at it."""
    rule, allowed = licence.hardware_id, licence.allow_list
    texts: list[Any] = [
        licence.realm,
        licence.environment,
        licence.id,
        licence.product,
        licence.batch,
        licence.profile,
        licence.authority,
        licence.opened_by,
        licence.device_class,
        licence.site,
        licence.region,
        licence.profile_sha256,
        licence.element,
        licence.element_sha256,
        licence.firmware,
        *licence.further_profiles,
        *licence.further_sha256,
        *licence.stations,
        *licence.variables.values(),
        *rule.wmi,
        *([] if rule.pattern is None else [rule.pattern]),
        *([] if allowed is None else [allowed.sha256]),
    ]
    numbers: list[Any] = [licence.quantity, *([] if allowed is None else [allowed.count])]
    return (
        all(type(text) is str for text in texts)
        and all(type(number) is int for number in numbers)
        and all(type(flag) is bool for flag in (rule.check_digit, licence.approval))
    )


class RunStatus(StrEnum):
    """Whether a run admits devices."""

    PROPOSED = "proposed"
    """Signed by one person; a second one opens it (SPEC C3, K1)."""
    OPEN = "open"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A licence at work."""

    id: str
    document: bytes
    signature: bytes
    """By the operator who opened it, over ``document``."""
    signer: str
    """Serial number of the operator's certificate (hex)."""
    status: RunStatus
    quantity: int
    admitted: int
    released: int
    held: int
    """Devices held now."""
    scrapped: int
    approver: str | None = None
    """Serial number of the certificate of the second person (hex), where two open a run."""
    approval: bytes | None = None
    """Signature of the second person over ``document``."""
    opening: int | None = None
    """Log index of the entry that opened it: what was inspected and tested then stands there."""
    proposed_at: datetime | None = None
    """When the first person proposed it, where two open a run."""


def admit(run: Run) -> Run:
    """Return the run with one more device counted.

    Raises:
        errors.QuotaExhausted: the run is full.
    """
    if run.admitted >= run.quantity:
        raise errors.QuotaExhausted(f"run {run.id} is full: all {run.quantity} devices are admitted")
    return replace(run, admitted=run.admitted + 1)


def require_station(licence: RunLicence, role: Role, name: str) -> None:
    """Refuse a station that the licence does not name.

    Only stations are named: a bootstrap certificate carries its own limits, and an operator works on any run.

    Raises:
        errors.NotPermitted: the licence does not name this station.
    """
    if role is Role.STATION and name not in licence.stations:
        raise errors.NotPermitted(f"station:{name} is not allowed on run {licence.id}")


def require_going(run: Run, licence: RunLicence, at: datetime) -> None:
    """Refuse a run that is not open, or over.

    Raises:
        errors.IllegalTransition: says what it is, or when it ended.
    """
    if run.status is not RunStatus.OPEN:
        raise errors.IllegalTransition(f"run {run.id} is {run.status}")
    if at >= licence.not_after:
        raise errors.IllegalTransition(f"run {run.id} ended at {time_text(licence.not_after)}")


def require_identities(licence: RunLicence) -> None:
    """Refuse a run that gives devices certificates besides their identity.

    Raises:
        errors.NotPermitted: says who enrols there.
    """
    if licence.purpose is not RunPurpose.IDENTITY:
        raise errors.NotPermitted(
            f"run {licence.id} is for devices that have their identity: they enrol there with that"
        )


def require_authorised(licence: RunLicence, chain: Sequence[Authority]) -> None:
    """Refuse a licence that its authority, or one above, does not cover at this moment (SPEC A1, A2).

    Every authority of the chain must be active, allow the profile, have the run inside its scope and outlive
    it.  One above may have a successor already, which is the overlap of a rollover; the issuing one may not,
    for its successor takes new runs (SPEC A5).

    What an authority may still issue is compared with the whole run, because a run that cannot be finished
    stops the line in the middle; other open runs are not counted, since they may end short, and each
    certificate is counted again when it is issued.

    Args:
        licence: of the run.
        chain: the authority, those above it, the root last.

    Raises:
        errors.IllegalTransition: one is suspended, retired, revoked, superseded or past its end.
        errors.NotPermitted: the run lies outside the scope, the profiles or the end date of one.
        errors.QuotaExhausted: the authority may not issue as many any more.
    """
    issuing = chain[0]
    if issuing.kind is not AuthorityKind.ISSUING:
        raise errors.IllegalTransition(f"authority {issuing.id} is {issuing.kind}: it certifies no devices")
    if issuing.successor is not None:
        raise errors.IllegalTransition(
            f"authority {issuing.id} is superseded by {issuing.successor}: open the run under that"
        )
    values = {
        Dimension.PRODUCT: (licence.product,),
        Dimension.BATCH: (licence.batch,),
        Dimension.CLASS: (licence.device_class,),
        Dimension.REGION: (licence.region,),
        Dimension.SITE: (licence.site,),
    }
    for authority in chain:
        if authority.status is not AuthorityStatus.ACTIVE:
            raise errors.IllegalTransition(f"authority {authority.id} is {authority.status}")
        Scope.parse(authority.scope).require_covers(authority.id, values)
        for profile, _ in licence.profiles:
            if not authority.allows(profile):
                raise errors.NotPermitted(
                    f"authority {authority.id} issues {authority.profiles}, not {profile}"
                )
        if licence.not_after > authority.ends_at:
            raise errors.NotPermitted(
                f"authority {authority.id} stops issuing at {time_text(authority.ends_at)}"
            )
    require_issuing(issuing, licence.not_before)
    wanted = licence.quantity * len(licence.profiles)
    if issuing.quota is not None and wanted > issuing.quota - issuing.issued:
        raise errors.QuotaExhausted(
            f"authority {issuing.id} may issue {issuing.quota - issuing.issued} more certificates, the run is"
            f" for {wanted}"
        )


def require_unbroken(above: Iterable[Authority]) -> None:
    """Refuse to issue below an authority that is suspended or revoked.

    A retired one issues nothing more itself; those below it go on.

    Raises:
        errors.IllegalTransition: names it.
    """
    for authority in above:
        if authority.status in (AuthorityStatus.SUSPENDED, AuthorityStatus.REVOKED):
            raise errors.IllegalTransition(
                f"authority {authority.id}, above the run's, is {authority.status}"
            )
