"""What one person proposes and another makes true: changes of authorities, and of who may do what (SPEC K1).

Both sign the same document with their own keys.  A proposal ends by itself after ``PROPOSAL_LIFE``.  Runs and
recalls have documents of their own (``runs``, ``recalls``) and keep the same rules.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from birthmark import errors
from birthmark.floor.clients import PROPOSAL_LIFE
from birthmark.ledger.entry import canonical, parse, time_text

__all__ = ["Deed", "Motion", "Proposal", "ProposalStatus", "require_fresh"]

_TYPE = "birthmark/proposal/v1"


class Deed(StrEnum):
    """What is proposed."""

    CHANGE_AUTHORITY = "change-authority"
    """Suspend, resume or retire one: ``status``."""
    ENROL_PERSON = "enrol-person"
    """Let a person in: ``role``, ``authority``, ``public_key`` (SubjectPublicKeyInfo, hex), ``not_after``."""
    CHANGE_ROLE = "change-role"
    """Give a person another role: ``role``."""
    REGISTER_FLEET = "register-fleet"
    """Accept a fleet authority whose owner has shown the key: ``verification`` (DER, hex), ``policy``."""
    CHANGE_FLEET = "change-fleet"
    """Change what is agreed for one, ``policy``, or resume or retire it, ``status``."""
    SHARE_CREDENTIAL = "share-credential"
    """Make a credential that many devices share: ``run``, ``quantity``, ``networks``, ``not_after``,
    ``authority``, ``organization``, ``public_key`` (SubjectPublicKeyInfo, hex)."""


class ProposalStatus(StrEnum):
    """Where a proposal stands."""

    PROPOSED = "proposed"
    APPROVED = "approved"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """What is to be done; ``encode`` is what gets signed."""

    realm: str
    environment: str
    id: str
    """``pp-`` and ten hex digits."""
    deed: Deed
    subject: str
    """Whom or what it is about: an authority's id, a person's client id, a fleet authority's."""
    terms: Mapping[str, str] = field(default_factory=dict)
    """The rest, by deed; all texts."""
    reason: str
    proposed_by: str

    def encode(self) -> bytes:
        """Return the canonical JSON (RFC 8785): the bytes that are signed."""
        return canonical(
            {
                "type": _TYPE,
                "realm": self.realm,
                "environment": self.environment,
                "proposal": self.id,
                "deed": self.deed,
                "subject": self.subject,
                "terms": dict(self.terms),
                "reason": self.reason,
                "proposed_by": self.proposed_by,
            }
        )

    @classmethod
    def decode(cls, document: bytes) -> "Motion":
        """Read one back.

        Raises:
            errors.MalformedRequest: these bytes are no such document.
        """
        try:
            fields: dict[str, Any] = parse(document)
            if fields.pop("type") != _TYPE:
                raise errors.MalformedRequest(f"not a {_TYPE} document")
            motion = cls(id=fields.pop("proposal"), deed=Deed(fields.pop("deed")), **fields)
            texts = [motion.realm, motion.environment, motion.id, motion.subject, motion.reason]
            texts += [motion.proposed_by, *motion.terms.values()]
            if not all(type(text) is str for text in texts) or motion.encode() != document:
                raise errors.MalformedRequest("not a proposal: a field is of the wrong type")
        except (AttributeError, KeyError, TypeError, ValueError) as cause:
            raise errors.MalformedRequest("not a proposal") from cause
        return motion


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A motion on record."""

    id: str
    document: bytes
    proposer: str
    """Serial number of the proposing person's certificate (hex)."""
    proposal: bytes
    """The proposer's signature over ``document``."""
    approver: str | None
    approval: bytes | None
    status: ProposalStatus
    proposed_at: datetime


def require_fresh(proposed_at: datetime | None, at: datetime, what: str) -> None:
    """Refuse to approve what has waited too long; what says no time was proposed before there was an end.

    Raises:
        errors.IllegalTransition: it ended.
    """
    said = what if what.startswith("proposal ") else f"the proposal of {what}"
    if proposed_at is not None and at >= proposed_at + PROPOSAL_LIFE:
        raise errors.IllegalTransition(
            f"{said} ended at {time_text(proposed_at + PROPOSAL_LIFE)}: propose it again"
        )
