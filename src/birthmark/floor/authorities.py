"""Certification authorities of a realm: what each may issue, for whom, and until when (SPEC A1, A2, A4, A5).

An authority's licence is its scope, its profiles, its constraints, its quota and its end date.  It is written
down when the authority is established and enforced whenever something is issued under it; a child's licence
never reaches further than its parent's.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Self

from birthmark import errors
from birthmark.ledger.entry import time_text

__all__ = [
    "ANY",
    "Authority",
    "AuthorityKind",
    "AuthorityStatus",
    "Custody",
    "Dimension",
    "Scope",
    "count_issuance",
    "require_issuing",
    "require_within",
]

ANY = "*"
_VALUE = re.compile(r"[^;=|*\x00-\x1f\x7f]{1,64}")


class AuthorityKind(StrEnum):
    """Where an authority stands in the hierarchy."""

    ROOT = "root"
    INTERMEDIATE = "intermediate"
    """Certifies authorities, and no devices."""
    ISSUING = "issuing"


class AuthorityStatus(StrEnum):
    """Whether an authority issues."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    RETIRED = "retired"
    """Issues nothing more; what it issued stays good, and it goes on signing its CRLs."""
    REVOKED = "revoked"
    """Its certificate is on its issuer's CRL: what it issued is good no more."""


class Custody(StrEnum):
    """Who holds an authority's key."""

    SERVICE = "service"
    """The service's own key store."""
    OFFLINE = "offline"
    """A store that no service holds, used in ceremonies."""
    FOREIGN = "foreign"
    """Somebody else: we have the certificate only (SPEC A4)."""


class Dimension(StrEnum):
    """What a scope can be limited in."""

    PRODUCT = "product"
    BATCH = "batch"
    CLASS = "class"
    REGION = "region"
    SITE = "site"


@dataclass(frozen=True, slots=True)
class Scope:
    """What an authority may issue for: the values allowed in each dimension; a dimension left out allows any.

    The text form is ``product=VAN|CAR;site=graz``, dimensions and values sorted; ``*`` for any.
    """

    limits: Mapping[Dimension, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text form.

        Raises:
            errors.MalformedRequest: it is none.
        """
        if text == ANY:
            return cls()
        limits: dict[Dimension, frozenset[str]] = {}
        for part in text.split(";"):
            name, equals, values = part.partition("=")
            listed = values.split("|")
            try:
                dimension = Dimension(name.strip())
            except ValueError as cause:
                known = ", ".join(Dimension)
                raise errors.MalformedRequest(
                    f"a scope is * or like product=VAN|CAR;site=graz, with {known}: not {text[:200]!r}"
                ) from cause
            if not equals or dimension in limits or not all(_VALUE.fullmatch(value) for value in listed):
                raise errors.MalformedRequest(
                    f"a scope names each dimension once, with values of 1 to 64 characters: {text[:200]!r}"
                )
            limits[dimension] = frozenset(listed)
        return cls(limits)

    def __str__(self) -> str:
        parts = [
            f"{dimension}={'|'.join(sorted(self.limits[dimension]))}"
            for dimension in Dimension
            if dimension in self.limits
        ]
        return ";".join(parts) or ANY

    def require_covers(self, authority: str, values: Mapping[Dimension, Iterable[str]]) -> None:
        """Refuse values that lie outside.

        Args:
            authority: whose scope it is, for the message.
            values: all values that occur in each dimension; one left out or empty is not said, and so not
                covered by a limit.

        Raises:
            errors.NotPermitted: names the dimension and the value.
        """
        for dimension, allowed in self.limits.items():
            occurring = set(values.get(dimension, ())) - {""}
            wanted = " or ".join(sorted(allowed))
            if not occurring:
                raise errors.NotPermitted(
                    f"authority {authority} issues for {dimension} {wanted} only, and no {dimension} is named"
                )
            if not occurring <= allowed:
                stray = ", ".join(sorted(occurring - allowed))
                raise errors.NotPermitted(
                    f"authority {authority} issues for {dimension} {wanted}, not for {stray}"
                )

    def require_within(self, parent: "Scope", names: tuple[str, str]) -> None:
        """Refuse to reach further than the parent's scope.

        Args:
            parent: the scope of the authority above.
            names: ids of this authority and the one above, for the message.

        Raises:
            errors.NotPermitted: names the dimension.
        """
        child, above = names
        for dimension, allowed in parent.limits.items():
            if not self.limits.get(dimension, frozenset({ANY})) <= allowed:
                raise errors.NotPermitted(
                    f"authority {child} may not reach further than {above}, whose scope is {parent}:"
                    f" its {dimension} is {'|'.join(sorted(self.limits.get(dimension, {ANY})))}"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A certification authority and its licence."""

    id: str
    kind: AuthorityKind
    issuer: str
    """Id of the authority above; its own for a root."""
    custody: Custody
    key_label: str
    """The key's label in the store that holds it; empty for a foreign one."""
    profile: str
    """Name of the profile of its own certificate; empty for a foreign one."""
    der: bytes
    owner: str
    scope: str
    """Text form of its ``Scope``."""
    profiles: str
    """The profiles it may issue, sorted and separated by spaces; ``*`` for any that its kind allows."""
    constraints: str
    """Issuance constraints of its licence (SPEC G2): canonical JSON, a list for ``pki.constraints``."""
    quota: int | None
    """The most device certificates it may issue; None for no limit."""
    ends_at: datetime
    """Issues nothing from this instant on."""
    status: AuthorityStatus
    issued: int
    ceremony: str
    """Id of the ceremony that made it."""
    successor: str | None = None
    """Id of the authority that takes over; both issue until this one ends or is retired (SPEC A5)."""

    def allows(self, profile: str) -> bool:
        """Return whether it may issue certificates of a profile."""
        return self.profiles == ANY or profile in self.profiles.split(" ")


def require_issuing(authority: Authority, at: datetime) -> None:
    """Refuse unless the authority issues at this moment; its quota is another question.

    Raises:
        errors.IllegalTransition: it is suspended, retired, revoked or past its end date.
        errors.NotPermitted: its key is not in the service's hands.
    """
    if authority.status is not AuthorityStatus.ACTIVE:
        raise errors.IllegalTransition(f"authority {authority.id} is {authority.status}")
    if authority.custody is not Custody.SERVICE:
        raise errors.NotPermitted(
            f"authority {authority.id} does not issue here: its key is {authority.custody}"
        )
    if at >= authority.ends_at:
        raise errors.IllegalTransition(
            f"authority {authority.id} stopped issuing at {time_text(authority.ends_at)}"
        )


def require_within(child: Authority, parent: Authority) -> None:
    """Refuse a licence that reaches further than the parent's (SPEC A2).

    Raises:
        errors.NotPermitted: says in what.
        errors.IllegalTransition: the parent is suspended, retired or revoked, or certifies no authorities.
    """
    if parent.status is not AuthorityStatus.ACTIVE:
        raise errors.IllegalTransition(f"authority {parent.id} is {parent.status}")
    if parent.kind is AuthorityKind.ISSUING:
        raise errors.IllegalTransition(f"authority {parent.id} certifies devices, not authorities")
    Scope.parse(child.scope).require_within(Scope.parse(parent.scope), (child.id, parent.id))
    if child.ends_at > parent.ends_at:
        raise errors.NotPermitted(
            f"authority {child.id} may not issue after {parent.id} ends, at {time_text(parent.ends_at)}"
        )
    if parent.quota is not None and (child.quota is None or child.quota > parent.quota):
        raise errors.NotPermitted(
            f"authority {child.id} may not issue more than {parent.id} may: {parent.quota}"
        )
    if parent.profiles != ANY and (
        child.profiles == ANY or not set(child.profiles.split(" ")) <= set(parent.profiles.split(" "))
    ):
        raise errors.NotPermitted(
            f"authority {child.id} may issue {child.profiles}; {parent.id} allows {parent.profiles}"
        )


def count_issuance(authority: Authority, at: datetime) -> Authority:
    """Return the authority with one more device certificate counted.

    Raises:
        errors.IllegalTransition: it is suspended, retired, revoked or past its end date.
        errors.QuotaExhausted: its quota is used up.
    """
    require_issuing(authority, at)
    if authority.quota is not None and authority.issued >= authority.quota:
        raise errors.QuotaExhausted(
            f"authority {authority.id} has issued all {authority.quota} certificates it may"
        )
    return replace(authority, issued=authority.issued + 1)
