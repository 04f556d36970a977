"""Certification authorities of a realm: what each may issue, and until when (SPEC A1)."""

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from birthmark import errors
from birthmark.ledger.entry import time_text

__all__ = ["Authority", "AuthorityKind", "AuthorityStatus", "count_issuance", "require_issuing"]


class AuthorityKind(StrEnum):
    """Where an authority stands in the hierarchy."""

    ROOT = "root"
    ISSUING = "issuing"


class AuthorityStatus(StrEnum):
    """Whether an authority issues."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """A certification authority and its licence."""

    id: str
    kind: AuthorityKind
    issuer: str
    """Id of the authority above; its own for a root."""
    key_label: str
    """The key's label in the service's key store; empty for a root, whose key no service holds."""
    der: bytes
    owner: str
    scope: str
    """The product it may issue for; ``*`` for any."""
    quota: int | None
    """The most device certificates it may issue; None for no limit."""
    ends_at: datetime
    """Issues nothing from this instant on."""
    status: AuthorityStatus
    issued: int


def require_issuing(authority: Authority, at: datetime) -> None:
    """Refuse unless the authority issues at this moment; its quota is another question.

    Raises:
        errors.IllegalTransition: it is suspended, retired or past its end date.
    """
    if authority.status is not AuthorityStatus.ACTIVE:
        raise errors.IllegalTransition(f"authority {authority.id} is {authority.status}")
    if at >= authority.ends_at:
        raise errors.IllegalTransition(
            f"authority {authority.id} stopped issuing at {time_text(authority.ends_at)}"
        )


def count_issuance(authority: Authority, at: datetime) -> Authority:
    """Return the authority with one more device certificate counted.

    Raises:
        errors.IllegalTransition: it is suspended, retired or past its end date.
        errors.QuotaExhausted: its quota is used up.
    """
    require_issuing(authority, at)
    if authority.quota is not None and authority.issued >= authority.quota:
        raise errors.QuotaExhausted(
            f"authority {authority.id} has issued all {authority.quota} certificates it may"
        )
    return replace(authority, issued=authority.issued + 1)
