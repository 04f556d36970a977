"""Ceremony files to begin with: complete, and to be reviewed and changed before anybody attends.

Every value is written as a JSON string, which is a YAML string, so that no name can become syntax.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from birthmark.floor.ceremonies import SERVICE, Custodian
from birthmark.floor.key_assets import KeyPurpose
from birthmark.pki.certificates import Certificate, to_pem
from birthmark.pki.keys import KeyAlgorithm

__all__ = ["Head", "Issuing", "crl_file", "import_file", "issuing_file", "realm_file", "store_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What every file says first."""

    ceremony: str
    realm: str
    environment: str
    purpose: str
    required: int
    custodians: Sequence[Custodian]


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuing:
    """An authority of the service, and its key."""

    authority: str
    label: str
    algorithm: KeyAlgorithm
    issuer: str
    owner: str
    ends: datetime
    kind: str = "issuing"
    profile: str = "issuing"
    subject: Mapping[str, str] = field(default_factory=dict)
    scope: str = "*"
    profiles: Sequence[str] = ("*",)
    quota: int | None = None
    replaces: str | None = None


def _text(value: object) -> str:
    return json.dumps(str(value), ensure_ascii=False)


def store_text(store: str) -> str:
    """Return how a file names a key store."""
    return SERVICE if store == SERVICE else f"offline {store}"


def _head(head: Head) -> Iterator[str]:
    yield "# A ceremony.  'birthmark ceremony rehearse FILE' shows what it comes to; whoever attends has"
    yield "# reviewed it, and says so with its SHA-256."
    yield f"ceremony: {head.ceremony}"
    yield f"realm: {_text(head.realm)}"
    yield f"environment: {head.environment}"
    yield f"purpose: {_text(head.purpose)}"
    yield f"required: {head.required}"
    yield "custodians:"
    for person in head.custodians:
        yield f"  - id: {_text(person.id)}"
        yield f"    role: {_text(person.role)}"
        yield "    public-key: |"
        yield from _block(to_pem(person.subject_public_key_info, "PUBLIC KEY"))
    yield "steps:"


def _block(text: str) -> Iterator[str]:
    return (f"      {line}" for line in text.splitlines())


def _key(label: str, store: str, purpose: KeyPurpose, kind: str) -> Iterator[str]:
    yield f"  - generate-key: {label}"
    yield f"    store: {store_text(store)}"
    yield f"    purpose: {purpose}"
    yield f"    kind: {kind}"


def _subject(values: Mapping[str, str]) -> Iterator[str]:
    if not values:
        return  # a key without a value would be a text, and no table
    yield "    subject:"
    for name, value in values.items():
        yield f"      {name.replace('_', '-')}: {_text(value)}"


def _issuing(issuing: Issuing) -> Iterator[str]:
    purpose = KeyPurpose.ISSUING_CA if issuing.kind == "issuing" else KeyPurpose.INTERMEDIATE_CA
    yield from _key(issuing.label, SERVICE, purpose, issuing.algorithm)
    yield f"  - certificate: {issuing.authority}"
    yield f"    kind: {issuing.kind}"
    yield f"    profile: {issuing.profile}"
    yield f"    key: {issuing.label}"
    yield f"    issuer: {issuing.issuer}"
    yield from _subject(issuing.subject)
    if issuing.replaces is not None:
        yield f"    replaces: {issuing.replaces}"
    yield "    licence:"
    yield f"      owner: {_text(issuing.owner)}"
    yield f"      scope: {_text(issuing.scope)}"
    yield f"      profiles: [{', '.join(map(_text, issuing.profiles))}]"
    if issuing.quota is not None:
        yield f"      quota: {issuing.quota}"
    yield f"      ends: {issuing.ends:%Y-%m-%dT%H:%M:%SZ}"


def _joined(*parts: Iterator[str]) -> str:
    return "".join(f"{line}\n" for part in parts for line in part)


def realm_file(
    head: Head, issuing: Issuing, *, root: str, root_store: str, organization: str, log: str
) -> str:
    """Return the file of a new realm: log key, root with an offline key, first issuing authority.

    Args:
        head: who attends, and why.
        issuing: the first issuing authority, under the root.
        root: id of the root, and label of its key.
        root_store: the offline store that gets the root's key.
        organization: stands in the root's name.
        log: label of the log's key.
    """

    def root_steps() -> Iterator[str]:
        yield from _key(root, root_store, KeyPurpose.ROOT_CA, issuing.algorithm)
        yield f"  - certificate: {root}"
        yield "    kind: root"
        yield "    profile: root"
        yield f"    key: {root}"
        yield "    issuer: self"
        yield from _subject({"organization": organization})
        yield "    licence:"
        yield f"      owner: {_text(organization)}"

    log_key = _key(log, SERVICE, KeyPurpose.LOG, KeyAlgorithm.ED25519)
    return _joined(_head(head), log_key, root_steps(), _issuing(issuing))


def issuing_file(head: Head, issuing: Issuing) -> str:
    """Return the file of one more authority in the service's hands."""
    return _joined(_head(head), _issuing(issuing))


def import_file(head: Head, authority: str, certificate: Certificate, *, owner: str, issuer: str) -> str:
    """Return the file that establishes an authority whose key is somebody else's."""

    def steps() -> Iterator[str]:
        yield f"  - import-authority: {authority}"
        yield f"    kind: {'root' if issuer == 'self' else 'intermediate'}"
        yield f"    issuer: {issuer}"
        yield f"    sha256: {certificate.fingerprint}"
        yield "    certificate: |"
        yield from _block(certificate.pem)
        yield "    licence:"
        yield f"      owner: {_text(owner)}"

    return _joined(_head(head), steps())


def crl_file(head: Head, authority: str, revoked: Sequence[str], next_update: datetime) -> str:
    """Return the file that has an offline authority sign the list of what it revoked."""

    def steps() -> Iterator[str]:
        yield f"  - sign-crl: {authority}"
        yield f"    next-update: {next_update:%Y-%m-%dT%H:%M:%SZ}"
        yield f"    revoked: [{', '.join(map(_text, revoked))}]"

    return _joined(_head(head), steps())
