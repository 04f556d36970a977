"""Ceremonies: what one reviewed file orders, who must be present, and the row that is left (SPEC A3).

A ``Ceremony`` is the file as values: custodians, how many of them must be present, and steps in their order.
Nothing in it is decided when it is performed: what a step does not say, no step does.  Who the custodians are
goes on from ceremony to ceremony: see ``require_succession``.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from birthmark import errors
from birthmark.floor.authorities import AuthorityKind
from birthmark.floor.key_assets import KeyPurpose
from birthmark.pki.attributes import SecretKind, TransportKind
from birthmark.pki.keys import KeyAlgorithm, KeyLabel

__all__ = [
    "ITSELF",
    "SERVICE",
    "AcceptKey",
    "Ceremony",
    "CeremonyRecord",
    "Certify",
    "CrossCertify",
    "Custodian",
    "GenerateKey",
    "ImportAuthority",
    "KeyKind",
    "KeyStep",
    "Licence",
    "Retire",
    "SignCRL",
    "Step",
    "answer_message",
    "attendance_message",
    "record_message",
    "require_quorum",
    "require_succession",
]

SERVICE = "service"
"""Name of the service's own key store; every other store is an offline one."""
ITSELF = "self"
"""Issuer of a root."""
KeyKind = KeyAlgorithm | SecretKind | TransportKind
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Custodian:
    """A person who may attend."""

    id: str
    role: str
    """What the person is: "head of quality"."""
    subject_public_key_info: bytes = field(repr=False)
    """Of the person's own key (DER)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateKey:
    """Make a key."""

    label: KeyLabel
    store: str
    """``service``, or the name of an offline store."""
    purpose: KeyPurpose
    kind: KeyKind
    exportable: bool
    """May leave its store wrapped under a trusted key-encryption key."""
    users: str
    """Who may use it: names of services or roles, with commas."""
    recipients: tuple[bytes, ...] = field(repr=False)
    """Of a KEK: transport keys of other stores (SubjectPublicKeyInfo, DER), each of which gets a share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptKey:
    """Take in a secret key that somebody else made: the maker of secure elements."""

    label: KeyLabel
    store: str
    """``service``, or the name of an offline store."""
    purpose: KeyPurpose
    kind: SecretKind
    users: str
    """Who may use it: names of services or roles, with commas."""
    share: bytes = field(repr=False)
    """The key, encrypted to the transport key."""
    transport: KeyLabel
    """A transport key of the same store."""
    check_value: str
    """As its maker says it; 10 hexadecimal digits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """What an authority may issue; see ``floor.authorities.Authority``."""

    owner: str
    scope: str
    profiles: str
    constraints: str
    quota: int | None
    ends_at: datetime | None
    """None: as long as its certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certify:
    """Certify a key as an authority's, and establish the authority."""

    authority: str
    kind: AuthorityKind
    profile: str
    key: KeyLabel
    issuer: str
    """Id of the authority above, or ``self``."""
    variables: Mapping[str, str]
    not_after: datetime | None
    """An earlier end than the profile's; from a foreign issuer, the earliest end that will do."""
    licence: Licence
    replaces: str | None
    """Id of the authority it takes over from; both issue meanwhile (SPEC A5)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossCertify:
    """Certify an authority's key and name under another issuer, too (SPEC A5)."""

    name: str
    """Of the certificate; no authority is established."""
    authority: str
    issuer: str
    profile: str
    variables: Mapping[str, str]
    not_after: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportAuthority:
    """Establish an authority whose key is somebody else's (SPEC A4)."""

    authority: str
    kind: AuthorityKind
    issuer: str
    """Id of the authority above, or ``self``."""
    certificate: bytes = field(repr=False)
    """DER."""
    licence: Licence


@dataclass(frozen=True, slots=True, kw_only=True)
class SignCRL:
    """Sign the list of what an authority revoked."""

    authority: str
    next_update: datetime
    revoked: tuple[str, ...]
    """Serial numbers (lower-case hex), sorted: all of them, and no others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retire:
    """Let an authority issue nothing more."""

    authority: str
    reason: str


KeyStep = GenerateKey | AcceptKey
Step = GenerateKey | AcceptKey | Certify | CrossCertify | ImportAuthority | SignCRL | Retire


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceremony:
    """A reviewed file."""

    id: str
    """1 to 64 of ``a-z 0-9 . -``."""
    realm: str
    environment: str
    mark: str
    """What the names of its authorities carry: the environment's mark."""
    purpose: str
    required: int
    """How many custodians must be present."""
    custodians: tuple[Custodian, ...]
    steps: tuple[Step, ...]
    file: bytes = field(repr=False)
    sha256: str
    """Of ``file``, lower-case hex."""

    def custodian(self, custodian: str) -> Custodian:
        """Return a custodian.

        Raises:
            errors.NotPermitted: the file names nobody of this id.
        """
        for found in self.custodians:
            if found.id == custodian:
                return found
        raise errors.NotPermitted(f"ceremony {self.id} names no custodian {custodian[:64]}")

    @property
    def keys(self) -> Mapping[str, KeyStep]:
        """The keys it makes or takes in, by label."""
        return {step.label: step for step in self.steps if isinstance(step, KeyStep)}


@dataclass(frozen=True, slots=True, kw_only=True)
class CeremonyRecord:
    """A ceremony that was performed."""

    id: str
    """1 to 64 of ``a-z 0-9 . -``."""
    file: bytes
    """The reviewed file (YAML), as it was read."""
    file_sha256: str
    record: bytes
    """The signed record (canonical JSON)."""
    record_sha256: str
    performed_at: datetime
    leaf: int
    """Index of the log entry with the record's hash."""


def attendance_message(ceremony: Ceremony, custodian: str, reviewed: str, challenge: bytes) -> bytes:
    r"""Return what a custodian signs to attend: six lines of ASCII, each ended by a line feed.

    ``birthmark/ceremony/v1``, the ceremony's id, the SHA-256 of the file, the SHA-256 of what the custodian
    reviewed, the custodian's id, and the fresh challenge in hex.

    Raises:
        errors.NotPermitted: what was reviewed is another file.
        errors.MalformedRequest: the hash is none.
    """
    if not _FINGERPRINT.fullmatch(reviewed):
        raise errors.MalformedRequest(f"a SHA-256 is 64 lower-case hex digits, not {reviewed[:80]!r}")
    if reviewed != ceremony.sha256:
        raise errors.NotPermitted(
            f"the file is not the one that {custodian} reviewed: its SHA-256 is {ceremony.sha256},"
            f" not {reviewed}"
        )
    lines = ("birthmark/ceremony/v1", ceremony.id, ceremony.sha256, reviewed, custodian, challenge.hex())
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def answer_message(ceremony: Ceremony, place: str, context: str, before: str, events: str) -> bytes:
    """Return what custodians sign before a request or an answer leaves them: seven lines of ASCII.

    ``birthmark/ceremony-answer/v1``, the ceremony's id, the SHA-256 of the file, the place, the SHA-256 of
    the request's context, of all steps before, and of the events that leave, each ended by a line feed.

    Raises:
        errors.MalformedRequest: a hash is none.
    """
    for digest in (context, before, events):
        if not _FINGERPRINT.fullmatch(digest):
            raise errors.MalformedRequest(f"a SHA-256 is 64 lower-case hex digits, not {digest[:80]!r}")
    lines = ("birthmark/ceremony-answer/v1", ceremony.id, ceremony.sha256, place, context, before, events)
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def record_message(record_sha256: str) -> bytes:
    """Return what a custodian signs at the end: two lines of ASCII, the second the record's hash."""
    return f"birthmark/ceremony-record/v1\n{record_sha256}\n".encode("ascii")


def require_quorum(ceremony: Ceremony, present: Collection[str]) -> None:
    """Refuse unless enough custodians are present; the same person twice is one.

    Raises:
        errors.NotPermitted: too few, or somebody the file does not name.
    """
    people = {ceremony.custodian(name).id for name in present}
    if len(people) < ceremony.required:
        raise errors.NotPermitted(
            f"ceremony {ceremony.id} needs {ceremony.required} of its {len(ceremony.custodians)} custodians;"
            f" present: {', '.join(sorted(people)) or 'nobody'}"
        )


def require_succession(before: Ceremony, ceremony: Ceremony, present: Collection[str]) -> None:
    """Refuse a ceremony that the custodians of the one before did not attend.

    Whoever writes a file names its custodians.  So as many of those present as the ceremony before required
    must have been custodians there, known by their keys: they appoint new ones, nobody else does.

    Raises:
        errors.NotPermitted: too few of them are present, or fewer people would be required from now on than
            two where two were.
    """
    trusted = {custodian.subject_public_key_info for custodian in before.custodians}
    there = {ceremony.custodian(name).subject_public_key_info for name in present}
    if len(there & trusted) < before.required:
        raise errors.NotPermitted(
            f"ceremony {ceremony.id} needs {before.required} of the custodians of {before.id}, the ceremony"
            f" before it; present: {len(there & trusted)}"
        )
    if ceremony.required < min(2, before.required):
        raise errors.NotPermitted(
            f"ceremony {ceremony.id} requires {ceremony.required} custodian; {before.id} required"
            f" {before.required}"
        )
