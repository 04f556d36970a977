"""Who may talk to the line, and what each may do.

A client is a station, an operator, a device holding a bootstrap certificate, or the server itself.  A client
has credentials, each one certificate; it is recognised by the certificate it shows, compared byte for byte
with the one on record, never by a name in it.  ``CAPABILITIES`` is the whole of who may do what.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from birthmark import errors
from birthmark.floor.realm import Environment
from birthmark.floor.segments import is_segment

__all__ = [
    "CAPABILITIES",
    "TWO_PERSON",
    "Capability",
    "Client",
    "ClientStatus",
    "Credential",
    "Role",
    "check_name",
    "require",
    "takes_two",
]


class Role(StrEnum):
    """What kind of client it is."""

    STATION = "station"
    BOOTSTRAP = "bootstrap"
    OPERATOR = "operator"
    SERVER = "server"
    RESPONDER = "responder"
    """Signs OCSP answers for an authority; connects to nothing."""


class Capability(StrEnum):
    """One thing a client may do."""

    ISSUE = "issue"
    PROVE = "prove"
    HOLD = "hold"
    REWORK = "rework"
    SCRAP = "scrap"
    OPEN_RUN = "open-run"
    CLOSE_RUN = "close-run"
    ENROL_CLIENT = "enrol-client"
    REVOKE_CLIENT = "revoke-client"
    CHANGE_AUTHORITY = "change-authority"
    PROPOSE_RECALL = "propose-recall"
    APPROVE_RECALL = "approve-recall"
    APPROVE_RUN = "approve-run"
    RECORD_SHIPMENT = "record-shipment"
    READ = "read"


CAPABILITIES: Mapping[Role, frozenset[Capability]] = {
    Role.STATION: frozenset({Capability.ISSUE, Capability.PROVE, Capability.HOLD, Capability.READ}),
    Role.BOOTSTRAP: frozenset({Capability.ISSUE, Capability.PROVE}),
    Role.OPERATOR: frozenset(
        {
            Capability.HOLD,
            Capability.REWORK,
            Capability.SCRAP,
            Capability.OPEN_RUN,
            Capability.CLOSE_RUN,
            Capability.ENROL_CLIENT,
            Capability.REVOKE_CLIENT,
            Capability.CHANGE_AUTHORITY,
            Capability.PROPOSE_RECALL,
            Capability.APPROVE_RECALL,
            Capability.APPROVE_RUN,
            Capability.RECORD_SHIPMENT,
            Capability.READ,
        }
    ),
    Role.SERVER: frozenset(),
    Role.RESPONDER: frozenset(),
}

TWO_PERSON: Mapping[Capability, Capability] = {
    Capability.PROPOSE_RECALL: Capability.APPROVE_RECALL,
    Capability.OPEN_RUN: Capability.APPROVE_RUN,
}
"""Acts that take two people (SPEC K1): what the first may do, and what the second must be allowed to.

A recall always takes both; a run does in production, and in a test realm one person opens it.  A ceremony's
custodians stand in its file.
"""
_ONE_PERSON_IN_TEST = frozenset({Capability.OPEN_RUN})


def takes_two(capability: Capability, environment: Environment) -> bool:
    """Return whether an act takes two people in this environment."""
    one = environment is Environment.TEST and capability in _ONE_PERSON_IN_TEST
    return capability in TWO_PERSON and not one


class ClientStatus(StrEnum):
    """Whether a client or credential is accepted."""

    ACTIVE = "active"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Somebody who may connect."""

    id: str
    """Role and name, e.g. ``station:ST01``, ``operator:anna``."""
    role: Role
    site: str
    line: str
    hardware_id: str | None
    """For a bootstrap certificate: the one device it may provision."""
    run: str | None
    """For a bootstrap certificate: the run whose listed devices it may provision."""
    status: ClientStatus
    last_seq: int
    """The highest request number seen from this client; 0 before the first."""

    @property
    def name(self) -> str:
        """The part of the id after the role."""
        return self.id.partition(":")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """One certificate of a client."""

    serial: str
    """Serial number, lower-case hex."""
    client: str
    authority: str
    profile: str
    der: bytes
    not_after: datetime
    status: ClientStatus


def require(client: Client, credential: Credential, capability: Capability) -> None:
    """Refuse unless the client is live and its role has the capability.

    Raises:
        errors.Unauthenticated: the client or its credential was revoked.
        errors.NotPermitted: its role does not have the capability.
    """
    if client.status is not ClientStatus.ACTIVE or credential.status is not ClientStatus.ACTIVE:
        raise errors.Unauthenticated(f"{client.id} was revoked")
    if capability not in CAPABILITIES[client.role]:
        raise errors.NotPermitted(f"{client.id} may not {capability}: a {client.role} does not have it")


def check_name(what: str, name: str, *, longest: int = 64) -> str:
    """Return a name that can stand in paths, URLs and ids.

    It is 1 to ``longest`` of ``A-Z a-z 0-9 . _ -``, and does not begin with a dot (``segments``).

    Args:
        what: whose name, for the message: "station", say.
        name: the name.
        longest: in characters, at most 64.

    Raises:
        errors.MalformedRequest: it is no such name.
    """
    if not is_segment(name) or len(name) > longest:
        raise errors.MalformedRequest(
            f"a {what}'s name is 1 to {longest} of A-Z a-z 0-9 . _ -, does not begin with a dot, and is not"
            f" {name[:80]!r}"
        )
    return name
