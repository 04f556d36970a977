"""The record of a ceremony: what its custodians sign, how people read it, and how anybody checks it.

The record is one JSON object in its canonical spelling (RFC 8785): the events as they happened, and what was
there before them.  It needs no database to be read: with the file it says which keys and certificates exist
and who attended.  Text and HTML are rendered from it alone, always to the same octets, so that whoever holds
one of the three holds all of them.  ``verify`` is the procedure for an auditor.
"""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, Self

from birthmark import __version__, errors
from birthmark.floor.authorities import Authority, AuthorityKind, AuthorityStatus, Custody
from birthmark.floor.ceremonies import (
    Ceremony,
    Certify,
    CrossCertify,
    ImportAuthority,
    Retire,
    SignCRL,
    record_message,
    require_quorum,
)
from birthmark.ledger import proof as proofs
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.ledger.entry import canonical, parse, parse_time, time_text
from birthmark.services import ceremony_file
from birthmark.services.ceremony_judgement import require_signature, require_signed
from birthmark.services.ceremony_pages import render_html, render_text
from birthmark.services.ceremony_steps import Known, Loader, Progress

__all__ = [
    "Record",
    "Verified",
    "authority_document",
    "authority_of",
    "body_of",
    "known_document",
    "known_from",
    "pages",
    "verify",
]

_TYPE = "birthmark/ceremony-record/v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record and the signatures of its custodians."""

    body: Mapping[str, Any] = field(repr=False)
    signatures: tuple[tuple[str, bytes], ...] = field(repr=False)
    """Custodian and signature over ``record_message`` of the hash."""

    @property
    def sha256(self) -> str:
        """The record's hash: of its canonical spelling without the signatures, lower-case hex."""
        return sha256(canonical(self.body)).hexdigest()

    @property
    def message(self) -> bytes:
        """What custodians sign."""
        return record_message(self.sha256)

    @property
    def signers(self) -> tuple[str, ...]:
        """Who signed, sorted."""
        return tuple(sorted({person for person, _ in self.signatures}))

    def encode(self) -> bytes:
        """Return record and signatures in canonical spelling."""
        signatures = [
            {"custodian": person, "signature": b64encode(signature).decode()}
            for person, signature in self.signatures
        ]
        return canonical({"record": dict(self.body), "signatures": signatures})

    @classmethod
    def decode(cls, octets: bytes) -> Self:
        """Read it back.

        Raises:
            errors.MalformedRequest: it is none.
        """
        found = parse(octets)
        try:
            body, signatures = found["record"], found["signatures"]
            if not isinstance(body, dict) or not isinstance(signatures, list) or len(found) != 2:
                raise ValueError("no record and signatures")
            if body["type"] != _TYPE:
                raise ValueError(f"of type {str(body['type'])[:64]}")
            read = tuple(
                (str(one["custodian"]), b64decode(one["signature"], validate=True)) for one in signatures
            )
            return cls(body=body, signatures=read)
        except (KeyError, TypeError, ValueError) as wrong:
            raise errors.MalformedRequest(f"not the record of a ceremony: {wrong}") from wrong

    def require_signed(self, ceremony: Ceremony) -> None:
        """Refuse a record that too few custodians signed, or whose signatures are not theirs.

        Raises:
            errors.NotPermitted: too few.
            errors.ProofFailed: a signature is not its custodian's.
        """
        require_quorum(ceremony, self.signers)
        for person, signature in self.signatures:
            key = ceremony.custodian(person).subject_public_key_info
            require_signature(key, signature, self.message, person)


def authority_document(authority: Authority) -> dict[str, Any]:
    """Return an authority as a JSON object, without what changes as it issues."""
    return {
        "id": authority.id,
        "kind": str(authority.kind),
        "issuer": authority.issuer,
        "custody": str(authority.custody),
        "key_label": authority.key_label,
        "profile": authority.profile,
        "certificate": b64encode(authority.der).decode(),
        "owner": authority.owner,
        "scope": authority.scope,
        "profiles": authority.profiles,
        "constraints": authority.constraints,
        "quota": authority.quota,
        "ends_at": time_text(authority.ends_at),
        "status": str(authority.status),
        "ceremony": authority.ceremony,
        "successor": authority.successor,
    }


def authority_of(document: Mapping[str, Any]) -> Authority:
    """Read it back.

    Raises:
        errors.MalformedRequest: it is none.
    """
    try:
        quota, successor = document["quota"], document["successor"]
        if type(quota) not in {int, type(None)} or type(successor) not in {str, type(None)}:
            raise ValueError("its quota is no number, or its successor no text")
        return Authority(
            id=str(document["id"]),
            kind=AuthorityKind(document["kind"]),
            issuer=str(document["issuer"]),
            custody=Custody(document["custody"]),
            key_label=str(document["key_label"]),
            profile=str(document["profile"]),
            der=b64decode(document["certificate"], validate=True),
            owner=str(document["owner"]),
            scope=str(document["scope"]),
            profiles=str(document["profiles"]),
            constraints=str(document["constraints"]),
            quota=quota,
            ends_at=parse_time(document["ends_at"]),
            status=AuthorityStatus(document["status"]),
            issued=0,
            ceremony=str(document["ceremony"]),
            successor=successor,
        )
    except (KeyError, TypeError, ValueError) as wrong:
        raise errors.MalformedRequest(f"not an authority: {wrong}") from wrong


def known_document(known: Known, ceremony: Ceremony) -> dict[str, Any]:
    """Return what a ceremony relies on of what was there before it, as a JSON object."""
    named: set[str] = set()
    for step in ceremony.steps:
        if isinstance(step, Certify | CrossCertify | ImportAuthority):
            named |= {step.issuer, step.authority}
        if isinstance(step, Certify) and step.replaces is not None:
            named.add(step.replaces)
        if isinstance(step, Retire | SignCRL):
            named.add(step.authority)
    labels: set[str] = {step.key for step in ceremony.steps if isinstance(step, Certify)}
    named |= {one.id for one in known.authorities.values() if one.key_label in labels}
    for name in list(named):
        while name in known.authorities and known.authorities[name].issuer not in named:
            name = known.authorities[name].issuer  # noqa: PLW2901  # the walk up to the root
            named.add(name)
    relied = [known.authorities[name] for name in sorted(named) if name in known.authorities]
    labels |= {one.key_label for one in relied} | set(ceremony.keys)
    return {
        "authorities": [authority_document(authority) for authority in relied],
        "stores": [
            {"label": label, "store": store}
            for label, store in sorted(known.stores.items())
            if label in labels
        ],
    }


def known_from(document: Mapping[str, Any]) -> Known:
    """Read it back.

    Raises:
        errors.MalformedRequest: it is none.
    """
    try:
        authorities = [authority_of(entry) for entry in document["authorities"]]
        stores = {str(entry["label"]): str(entry["store"]) for entry in document["stores"]}
    except (KeyError, TypeError) as wrong:
        raise errors.MalformedRequest(f"not what was there before a ceremony: {wrong}") from wrong
    return Known(authorities={authority.id: authority for authority in authorities}, stores=stores)


def body_of(
    progress: Progress, at: datetime, stores: Mapping[str, str], *, software: str = __version__
) -> dict[str, Any]:
    """Return the record of a ceremony whose steps are all done.

    Args:
        progress: the ceremony.
        at: when it was performed.
        stores: what kind of key store each is that was at hand: name to ``token`` or ``development``.
        software: version that performed it.
    """
    ceremony = progress.ceremony
    return {
        "type": _TYPE,
        "ceremony": ceremony.id,
        "realm": ceremony.realm,
        "environment": ceremony.environment,
        "purpose": ceremony.purpose,
        "file_sha256": ceremony.sha256,
        "required": ceremony.required,
        "performed_at": time_text(at),
        "software": f"birthmark {software}" if not software.startswith("birthmark ") else software,
        "stores": [{"store": name, "kind": kind} for name, kind in sorted(stores.items())],
        "profiles": [
            {"profile": name, "sha256": digest} for name, digest in sorted(progress.profiles.items())
        ],
        "before": known_document(progress.known, ceremony),
        "events": [dict(event) for event in progress.events],
    }


def pages(progress: Progress, record: Record) -> tuple[str, str]:
    """Return the record as text and as HTML, for people."""
    return render_text(progress, record.body, record.sha256, record.signers), render_html(
        progress, record.body, record.sha256, record.signers
    )


# --- verification -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What an auditor knows now."""

    progress: Progress
    record: Record
    entry: Mapping[str, object]
    """The log entry with the record's hash."""
    notes: tuple[str, ...]


def verify(
    octets: bytes,
    record_octets: bytes,
    rendered: tuple[str, str],
    proof: str,
    vkey: VerifierKey,
    load: Loader,
) -> Verified:
    """Check a ceremony's record offline.

    1. The record is of this file.
    2. Each event is what the file orders: custodians attended and signed what left them, keys have
       their attributes, every certificate is the one ordered and signed by its issuer.
    3. So many custodians as the file requires signed the record's hash.
    4. The record says nothing else than the events do, and text and HTML are rendered from it.
    5. What it relied on chains to its root.
    6. The log has the record's hash, as its key says.

    Raises:
        errors.Refusal: the first step that fails, by what is wrong.
    """
    # 1.
    ceremony, record = ceremony_file.parse(octets), Record.decode(record_octets)
    body = record.body
    if body.get("file_sha256") != ceremony.sha256 or body.get("ceremony") != ceremony.id:
        raise errors.IntegrityFailure("the record is that of another file")
    # 2.
    progress = replay(ceremony, body, load)
    progress.require_complete()
    # 3.
    record.require_signed(ceremony)
    # 4.
    if body != _again(progress, body):
        raise errors.IntegrityFailure("the record says something that its events do not")
    for name, found, wanted in zip(("text", "html"), rendered, pages(progress, record), strict=True):
        if found != wanted:
            raise errors.IntegrityFailure(f"the record's {name} is not what the record says")
    # 5.
    _require_chains(progress.known)
    # 6.
    entry = proofs.verify(proof, vkey)
    said = {
        "kind": "ceremony-performed",
        "ceremony": ceremony.id,
        "realm": ceremony.realm,
        "environment": ceremony.environment,
        "file_sha256": ceremony.sha256,
        "record_sha256": record.sha256,
    }
    for name, value in said.items():
        if entry.get(name) != value:
            raise errors.IntegrityFailure(f"the log's entry is about something else: its {name} is another")
    notes = tuple(
        f"the certificate of {name} was not built again: its profile is another in this version"
        for name in progress.unjudged
    )
    return Verified(progress=progress, record=record, entry=entry, notes=notes)


def replay(ceremony: Ceremony, body: Mapping[str, Any], load: Loader) -> Progress:
    """Judge the events of a record again.

    Raises:
        errors.Refusal: as ``Progress.take``.
    """
    try:
        profiles = {str(entry["profile"]): str(entry["sha256"]) for entry in body["profiles"]}
        progress = Progress(ceremony, known_from(body["before"]), load, profiles=profiles)
        for event in body["events"]:
            progress.take(event)
    except (KeyError, TypeError) as wrong:
        raise errors.MalformedRequest(f"not the record of a ceremony: {wrong}") from wrong
    return progress


def _again(progress: Progress, body: Mapping[str, Any]) -> dict[str, Any]:
    try:
        at = parse_time(body["performed_at"])
        stores = {str(entry["store"]): str(entry["kind"]) for entry in body["stores"]}
        return body_of(progress, at, stores, software=str(body["software"]))
    except (KeyError, TypeError) as wrong:
        raise errors.MalformedRequest(f"not the record of a ceremony: {wrong}") from wrong


def _require_chains(known: Known) -> None:
    for authority in known.authorities.values():
        above = known.authorities.get(authority.issuer)
        if above is None:
            raise errors.IntegrityFailure(f"the record lacks authority {authority.issuer}")
        require_signed(authority.der, above.der, f"the certificate of {authority.id}", above.id)
