"""Who may talk to the line, and what each may do.

A client is a station, a person, a device, or whoever serves.  A client has
credentials, each one certificate; it is recognised by the certificate it shows, compared byte for byte with
the one on record, never by a name in it.  ``CAPABILITIES`` is the whole of who may do what, and
``TWO_PERSON`` of what nobody does alone.

A person is the same person whatever their role: the id says ``operator:``, and the role is what may change.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from birthmark import errors
from birthmark.floor.realm import Environment
from birthmark.floor.segments import is_segment

__all__ = [
    "CAPABILITIES",
    "CODE",
    "FEWEST_OFFICERS",
    "PEOPLE",
    "PERSON",
    "PROPOSAL_LIFE",
    "TWO_PERSON",
    "Capability",
    "Client",
    "ClientStatus",
    "Credential",
    "Role",
    "check_name",
    "client_id",
    "require",
    "takes_two",
]


CODE = "code:"
"""What the serial of a credential that is a one-time code begins with."""
PERSON = "operator"
"""What the ids of people begin with, and the profile of their certificates, whatever their role."""


class Role(StrEnum):
    """What a client is there for."""

    STATION = "station"
    BOOTSTRAP = "bootstrap"
    """A device, or the one who installs it, that fetches its own identity."""
    SHARED = "shared"
    """Baked into an image that many devices carry, until each has its own certificate (``floor.shared``)."""
    DEVICE = "device"
    """A device by a certificate of its own; it stands in the table of devices, not in that of clients."""
    OPERATOR = "operator"
    """Works at the line: may stop a device, not let it go on."""
    LINE_LEAD = "line-lead"
    """Decides over devices and stations of the line."""
    OFFICER = "officer"
    """Of the maker's product security: opens runs, recalls, changes authorities and roles."""
    AUDITOR = "auditor"
    """Reads everything and changes nothing."""
    CUSTODIAN = "custodian"
    """Attends ceremonies, with a key that the ceremony's file names; is no client and connects to nothing."""
    SERVER = "server"
    PROXY = "proxy"
    """Ends the TLS of devices in the gateway's place, and asks it about each certificate."""
    RESPONDER = "responder"
    """Signs OCSP answers for an authority; connects to nothing."""

    @property
    def kind(self) -> str:
        """What the ids of such clients begin with, and which profile their certificates have."""
        return PERSON if self in PEOPLE else str(self)


PEOPLE = frozenset({Role.OPERATOR, Role.LINE_LEAD, Role.OFFICER, Role.AUDITOR})
"""Roles of those who act in person and are known by an ``operator:`` id."""


class Capability(StrEnum):
    """One thing a client may do."""

    ISSUE = "issue"
    PROVE = "prove"
    HOLD = "hold"
    REWORK = "rework"
    SCRAP = "scrap"
    RENEW_SELF = "renew-self"
    """Have a further certificate for itself."""
    OPEN_RUN = "open-run"
    APPROVE_RUN = "approve-run"
    CLOSE_RUN = "close-run"
    ENROL_STATION = "enrol-station"
    """Let stations and bootstrap credentials in."""
    ENROL_SERVICE = "enrol-service"
    """Let servers and responders of this realm in: who is one speaks for the realm."""
    REVOKE_CLIENT = "revoke-client"
    """Shut a station or a bootstrap credential out."""
    REVOKE_PERSON = "revoke-person"
    CHANGE_ROLES = "change-roles"
    """Let a person in, or give one another role."""
    APPROVE_ROLES = "approve-roles"
    CHANGE_AUTHORITY = "change-authority"
    APPROVE_AUTHORITY = "approve-authority"
    KEEP_KEYS = "keep-keys"
    """Make, adopt, back up and restore keys; perform ceremonies."""
    ATTEND_CEREMONY = "attend-ceremony"
    PROPOSE_RECALL = "propose-recall"
    APPROVE_RECALL = "approve-recall"
    RECORD_SHIPMENT = "record-shipment"
    ENROL_SELF = "enrol-self"
    """Have certificates for where it works, besides its identity."""
    ASK_DEVICE = "ask-device"
    """Ask whether the device of a certificate is accepted."""
    APPROVE_ENROLMENT = "approve-enrolment"
    """Let a request for a certificate go on that waits for a person, or refuse it."""
    CHANGE_FLEET = "change-fleet"
    """Register the authorities of other fleets, and change what is agreed for them."""
    APPROVE_FLEET = "approve-fleet"
    MEET_DEVICES = "meet-devices"
    """Hold a device in the field, or let it go on."""
    SHARE_CREDENTIAL = "share-credential"
    """Make a credential that many devices share."""
    APPROVE_SHARED = "approve-shared"
    SET_EXPOSURE = "set-exposure"
    """Open and close planes, runs and stations for a time."""
    READ = "read"


_READER = frozenset({Capability.READ})
_OPERATOR = _READER | {Capability.HOLD, Capability.RENEW_SELF}
_LINE_LEAD = _OPERATOR | {
    Capability.REWORK,
    Capability.SCRAP,
    Capability.CLOSE_RUN,
    Capability.ENROL_STATION,
    Capability.REVOKE_CLIENT,
    Capability.RECORD_SHIPMENT,
    Capability.SET_EXPOSURE,
    Capability.APPROVE_ENROLMENT,
    Capability.MEET_DEVICES,
}
_OFFICER = _LINE_LEAD | {
    Capability.OPEN_RUN,
    Capability.APPROVE_RUN,
    Capability.ENROL_SERVICE,
    Capability.REVOKE_PERSON,
    Capability.CHANGE_ROLES,
    Capability.APPROVE_ROLES,
    Capability.CHANGE_AUTHORITY,
    Capability.APPROVE_AUTHORITY,
    Capability.KEEP_KEYS,
    Capability.PROPOSE_RECALL,
    Capability.APPROVE_RECALL,
    Capability.CHANGE_FLEET,
    Capability.APPROVE_FLEET,
    Capability.SHARE_CREDENTIAL,
    Capability.APPROVE_SHARED,
}

CAPABILITIES: Mapping[Role, frozenset[Capability]] = {
    Role.STATION: _READER | {Capability.ISSUE, Capability.PROVE, Capability.HOLD, Capability.RENEW_SELF},
    Role.BOOTSTRAP: frozenset({Capability.ISSUE, Capability.PROVE}),
    Role.SHARED: frozenset({Capability.ISSUE}),
    Role.DEVICE: frozenset({Capability.PROVE, Capability.ENROL_SELF}),
    Role.OPERATOR: _OPERATOR,
    Role.LINE_LEAD: _LINE_LEAD,
    Role.OFFICER: _OFFICER,
    Role.AUDITOR: _READER | {Capability.RENEW_SELF},
    Role.CUSTODIAN: frozenset({Capability.ATTEND_CEREMONY}),
    Role.SERVER: frozenset(),
    Role.PROXY: frozenset({Capability.ASK_DEVICE, Capability.RENEW_SELF}),
    Role.RESPONDER: frozenset(),
}

TWO_PERSON: Mapping[Capability, Capability] = {
    Capability.PROPOSE_RECALL: Capability.APPROVE_RECALL,
    Capability.OPEN_RUN: Capability.APPROVE_RUN,
    Capability.CHANGE_AUTHORITY: Capability.APPROVE_AUTHORITY,
    Capability.CHANGE_ROLES: Capability.APPROVE_ROLES,
    Capability.CHANGE_FLEET: Capability.APPROVE_FLEET,
    Capability.SHARE_CREDENTIAL: Capability.APPROVE_SHARED,
}
"""Acts that take two people (SPEC K1): what the first may do, and what the second must be allowed to.

A recall always takes both; the others do in production, and in a test realm one person does them.  A
ceremony's custodians stand in its file.  To shut a client out, to close a run or a window takes one: what
stops the line is never kept waiting for a second person.
"""
_ALWAYS_TWO = frozenset({Capability.PROPOSE_RECALL})
FEWEST_OFFICERS = 2
"""What a production realm needs, to begin with and after every change of a role."""
PROPOSAL_LIFE = timedelta(hours=24)
"""How long a proposal waits for its second person; then it can only be made anew."""


def takes_two(capability: Capability, environment: Environment) -> bool:
    """Return whether an act takes two people in this environment."""
    one = environment is Environment.TEST and capability not in _ALWAYS_TWO
    return capability in TWO_PERSON and not one


def client_id(role: Role, name: str) -> str:
    """Return the id under which a client of this role and name is known."""
    return f"{role.kind}:{name}"


class ClientStatus(StrEnum):
    """Whether a client or credential is accepted."""

    ACTIVE = "active"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Client:
    """Somebody who may connect."""

    id: str
    """Kind and name, e.g. ``station:ST01``, ``operator:anna``: see ``client_id``."""
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
    runs: str = ""
    """Names of the runs a station may work on, joined by commas; empty for all whose licences name it."""

    @property
    def name(self) -> str:
        """The part of the id after the kind."""
        return self.id.partition(":")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """One certificate of a client, or a one-time code (``services.recognition``)."""

    serial: str
    """Serial number, lower-case hex; ``code:`` and a name for a code."""
    client: str
    authority: str
    profile: str
    der: bytes
    """Of a code: the salt it is derived with."""
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
        article = "an" if client.role[0] in "aeiou" else "a"
        raise errors.NotPermitted(
            f"{client.id} may not {capability}: {article} {client.role} does not have it"
        )


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
