"""Ceremonies: the one way in which keys and authorities come to be (SPEC A3).

A ceremony is carried out as a dialogue that yields *events*, each to be made durable before it is asked to go
on.  So an interrupted one is continued from what was written down: a key that was about to be made and is
there is this ceremony's, any other key of that label is not.  What needs a key that is not at hand is not
done: the dialogue ends with what it waits for, and somebody carries the events to where that key is.  Every
event, whoever made it, is judged by ``ceremony_steps.Progress``.

The end is one commit: the record's hash in the log, the record, the authorities and the keys.
"""

from base64 import b64encode
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, assert_never

from birthmark import errors
from birthmark.floor.authorities import Authority, AuthorityStatus, Custody, require_within
from birthmark.floor.ceremonies import (
    AcceptKey,
    Ceremony,
    CeremonyRecord,
    Certify,
    CrossCertify,
    GenerateKey,
    ImportAuthority,
    KeyStep,
    Retire,
    SignCRL,
    attendance_message,
    require_quorum,
    require_succession,
)
from birthmark.floor.clients import Capability
from birthmark.floor.key_assets import KeyAsset
from birthmark.floor.realm import Realm
from birthmark.ledger.entry import parse_time, time_text
from birthmark.pki import der
from birthmark.pki.algorithms import ALGORITHMS, recognise
from birthmark.pki.attributes import SecretKind, TransportKind
from birthmark.pki.certificates import Certificate, assemble
from birthmark.pki.crl import CRLScope, CRLTerms, assemble_crl, crl_number
from birthmark.pki.issuance import serial_number, sign_certificate
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.pki.lint import permit
from birthmark.ports import Clock, Decision, Entropy, Facts, KeyStore, Scan, UseCase
from birthmark.secret import SecretBytes
from birthmark.services import ceremony_file
from birthmark.services.acts import Caller, admitted, decided, live_client, recorded
from birthmark.services.ceremony_events import Event
from birthmark.services.ceremony_handover import handover_event
from birthmark.services.ceremony_judgement import require_realm
from birthmark.services.ceremony_record import Record
from birthmark.services.ceremony_steps import Known, Progress

__all__ = [
    "Bench",
    "CustodianSign",
    "Performed",
    "Waiting",
    "attend",
    "carry_out",
    "commit",
    "hand_over",
    "known_of",
    "require_own",
    "resume",
    "succeed",
]

CustodianSign = Callable[[bytes], bytes]
"""Signs a message with a custodian's own key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What is at hand while steps are carried out."""

    stores: Mapping[str, KeyStore]
    """By name: ``service``, and offline ones."""
    clock: Clock
    entropy: Entropy
    lines: Mapping[str, bytes] = field(default_factory=dict)
    """CRL entries (DER) by authority."""
    brought: bytes | None = field(default=None, repr=False)
    """The certificate (DER) that a foreign issuer made for the step that waits."""
    officer: SecretBytes | None = None
    """PIN of the token's security officer, for a KEK."""
    rehearsal: bool = False
    """Keys are throwaway ones, also those of the authorities there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A step that cannot be done here."""

    step: int
    """Its number, from 1."""
    store: str
    """The offline store that has the key, or empty: a foreign issuer has it."""
    reason: str
    request: bytes | None = field(repr=False)
    """A certification request (PKCS #10, DER) for the subject's key, where that is at hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Performed:
    """A ceremony that stands in the log."""

    row: CeremonyRecord
    authorities: tuple[Authority, ...]


# --- who attends --------------------------------------------------------------------------------------------


def attend(
    ceremony: Ceremony,
    present: Sequence[tuple[str, str, CustodianSign]],
    clock: Clock,
    entropy: Entropy,
    place: str,
) -> Event:
    """Challenge each custodian by itself and return who attended; too few are refused before any is asked.

    Args:
        ceremony: what they attend.
        present: id, SHA-256 of the file the person reviewed, and what signs with the person's key.
        clock: dates the session.
        entropy: gives the challenges.
        place: ``online``, or ``offline`` for a machine without the realm.

    Raises:
        errors.NotPermitted: too few, somebody the file does not name, or another file was reviewed.
    """
    require_quorum(ceremony, [person for person, _, _ in present])
    answers: list[dict[str, str]] = []
    for person, reviewed, sign in present:
        challenge = entropy.token(32)
        message = attendance_message(ceremony, person, reviewed, challenge)
        answers.append(
            {
                "custodian": person,
                "reviewed": reviewed,
                "challenge": challenge.hex(),
                "signature": b64encode(sign(message)).decode(),
            }
        )
    return {"event": "session", "at": time_text(clock.now()), "place": place, "custodians": answers}


def hand_over(
    progress: Progress, people: Sequence[tuple[str, CustodianSign]], clock: Clock, context: str
) -> Event:
    """Have those who attend sign what leaves them, and return the event, taken by ``progress``.

    Args:
        progress: the ceremony, as far as it has come here.
        people: id, and what signs with the person's key.
        clock: dates it.
        context: ``ceremony_handover.context_sha256`` of the request.

    Raises:
        errors.Refusal: as ``Progress.take``.
    """
    event = handover_event(context, progress.handover_message(context), people, clock.now())
    progress.take(event)
    return event


def known_of(
    authorities: Sequence[Authority], assets: Sequence[KeyAsset], service: str, clients: Sequence[str] = ()
) -> Known:
    """Return what a realm has before a ceremony.

    Args:
        authorities: all of them.
        assets: all keys that are decided upon.
        service: how the service's own store is called in them.
        clients: labels of further keys in the service's store.
    """
    stores = dict.fromkeys(clients, "service")
    for authority in authorities:
        # An offline key that no ceremony made is in the store that is called like its authority.
        if authority.key_label:
            offline = authority.custody is Custody.OFFLINE
            stores[authority.key_label] = authority.id if offline else "service"
    for asset in assets:
        first = asset.stores[0]
        stores[asset.label] = "service" if first == service else first.removeprefix("offline ")
    return Known(authorities={authority.id: authority for authority in authorities}, stores=stores)


def resume(progress: Progress, events: Sequence[Event]) -> None:
    """Take in what was written down before.

    Raises:
        errors.Refusal: as ``Progress.take``; what was written down is not what the file orders.
    """
    for event in events:
        progress.take(event)


# --- the steps ----------------------------------------------------------------------------------------------


def carry_out(progress: Progress, bench: Bench) -> Generator[Event, None, Waiting | None]:
    """Do one step after the other, as long as the keys are at hand.

    Yields events, each of them taken by ``progress`` and to be made durable before the next is asked for;
    returns what it waits for, or None when all is done.

    Raises:
        errors.IllegalTransition: a label is taken by a key that this ceremony did not make.
        errors.Refusal: as ``Progress.take`` and the key stores.
    """
    while (step := progress.current) is not None:
        match step:
            case GenerateKey() | AcceptKey():
                keys = bench.stores.get(step.store)
                if keys is None:
                    what = "makes" if isinstance(step, GenerateKey) else "takes in"
                    return _absent(progress, step.store, f"{what} the key {step.label}")
                if step.label not in progress.intended:
                    if step.label in keys.labels():
                        raise errors.IllegalTransition(
                            f"store {step.store} has a key {step.label} that this ceremony did not make"
                        )
                    yield _taken(progress, bench, {"event": "intent"})
                event = _generate(step, keys, bench)
            case Certify() | CrossCertify():
                made = _certificate(progress, step, bench)
                if isinstance(made, Waiting):
                    return made
                event = made
            case SignCRL():
                above = progress.lister(step)
                store = progress.store_of(above.key_label)
                keys = bench.stores.get(store)
                if keys is None:
                    return _absent(progress, store, "signs a CRL")
                event = _crl(step, above, keys, bench)
            case ImportAuthority() | Retire():
                event = {"event": "step"}
            case _:
                assert_never(step)
        yield _taken(progress, bench, event)
        if isinstance(step, Certify | CrossCertify):
            bench = replace(bench, brought=None)  # it was for this step
    return None


def _taken(progress: Progress, bench: Bench, event: Event) -> Event:
    whole = {"at": time_text(bench.clock.now()), **event, "step": progress.number}
    progress.take(whole)
    return whole


def _absent(progress: Progress, store: str, what: str, request: bytes | None = None) -> Waiting:
    number = progress.number + 1
    reason = f"step {number} {what}, and needs the offline key store {store}"
    return Waiting(step=number, store=store, reason=reason, request=request)


def _generate(step: KeyStep, keys: KeyStore, bench: Bench) -> Event:
    public, shares = b"", tuple[bytes, ...]()
    there = step.label in keys.labels()
    if isinstance(step, AcceptKey):
        if not there and bench.rehearsal:
            keys.generate_secret(step.label, step.kind)  # the transport key is not here, so nothing opens
        elif not there:
            keys.accept_secret(step.label, step.kind, step.share, step.transport)
    elif isinstance(step.kind, KeyAlgorithm):
        public = (
            keys.public_key(step.label)
            if there
            else keys.generate(step.label, step.kind, exportable=step.exportable)
        )
    elif isinstance(step.kind, TransportKind):
        public = keys.public_key(step.label) if there else keys.generate_transport(step.label)
    elif there and step.recipients:
        raise errors.IllegalTransition(
            f"the kek {step.label} was made, and its shares were lost: delete it from store {step.store}"
        )
    elif not there:
        shares = keys.generate_secret(
            step.label, step.kind, recipients=step.recipients, officer=_officer(step, bench)
        ).shares
    return {
        "event": "step",
        "public": b64encode(public).decode(),
        "shares": [b64encode(share).decode() for share in shares],
        "attributes": _plain(asdict(keys.attributes(step.label))),
    }


def _officer(step: GenerateKey, bench: Bench) -> SecretBytes | None:
    return bench.officer if step.kind is SecretKind.KEK else None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, str) else value for name, value in values.items()} | {
        "kind": str(values["kind"])
    }


def _certificate(progress: Progress, step: Certify | CrossCertify, bench: Bench) -> Event | Waiting:
    above = progress.issuer_of(step)
    subject = progress.subject_key(step)
    label = subject if above is None else KeyLabel(above.key_label)
    if above is not None and above.custody is Custody.FOREIGN and not bench.rehearsal:
        return _foreign_certificate(progress, step, above, bench)
    if above is not None and above.status is not AuthorityStatus.ACTIVE:
        raise errors.IllegalTransition(f"authority {above.id} is {above.status}")
    if above is not None and above.custody is Custody.FOREIGN:
        store, label = "service", KeyLabel(f"stand-in-{above.id}")
    else:
        store = progress.store_of(label)
    keys = bench.stores.get(store)
    now = bench.clock.now()
    tbs = progress.order(step, serial_number(bench.entropy.token(20)), now)
    granted = permit(tbs)  # what cannot be signed is not worth a journey, either
    if keys is None:
        name = step.authority if isinstance(step, Certify) else step.name
        return _absent(progress, store, f"certifies {name}", _request(progress, step, bench))
    if not bench.rehearsal and keys.public_key(label) != progress.public_of(label):
        raise errors.NotPermitted(
            f"store {store} holds another key {label} than the one on record: it is another realm's"
        )
    signed = sign_certificate(granted, lambda _label, message: keys.sign(label, message))
    return {"event": "step", "certificate": b64encode(signed).decode(), "at": time_text(now)}


def _foreign_certificate(
    progress: Progress, step: Certify | CrossCertify, above: Authority, bench: Bench
) -> Event | Waiting:
    progress.order(step, 1 << 80, bench.clock.now())  # refuses what cannot be ordered
    if bench.brought is not None:
        return {"event": "step", "certificate": b64encode(bench.brought).decode()}
    number = progress.number + 1
    reason = f"step {number} wants a certificate from {above.id}, whose key is somebody else's"
    return Waiting(step=number, store="", reason=reason, request=_request(progress, step, bench))


def _request(progress: Progress, step: Certify | CrossCertify, bench: Bench) -> bytes | None:
    """Return a certification request (PKCS #10, RFC 2986) with the name and the key that the file orders."""
    label = progress.subject_key(step)
    keys = bench.stores.get(progress.store_of(label))
    if keys is None:
        return None
    spki = progress.public_of(label)
    algorithm = recognise(spki)
    if algorithm is None:
        raise errors.MalformedRequest(f"the key {label} is in none of our encodings")
    name = progress.subject_of(step, bench.clock.now())
    info = der.encode(der.SEQUENCE, der.integer(0), name, spki, der.encode(0xA0))
    return assemble(info, ALGORITHMS[algorithm].signature_algorithm, keys.sign(label, info))


def _crl(step: SignCRL, above: Authority, keys: KeyStore, bench: Bench) -> Event:
    now, label = bench.clock.now(), KeyLabel(above.key_label)
    terms = CRLTerms(
        issuer=Issuer.from_certificate(label, above.der),
        scope=CRLScope(),
        number=crl_number(now),
        this_update=now,
        next_update=step.next_update,
    )
    if not bench.rehearsal and keys.public_key(label) != terms.issuer.subject_public_key_info:
        raise errors.NotPermitted(f"the store holds another key {label} than the one on record")
    octets = assemble_crl(terms, [bench.lines.get(above.id, b"")], keys.sign)
    return {"event": "step", "crl": b64encode(octets).decode(), "at": time_text(now)}


# --- the end ------------------------------------------------------------------------------------------------


_REQUEST = "perform-ceremony"


def require_own(caller: Caller, realm: Realm, ceremony: Ceremony) -> UseCase[None]:
    """Refuse a ceremony of another realm, on record (SPEC H6).

    Raises:
        errors.NotPermitted: it is one, or the caller may not perform any.
        errors.PolicyRefused: see ``require_realm``.
    """

    def judge(facts: Facts, at: datetime) -> None:
        _require_may(caller, facts, at)
        require_realm(realm, ceremony)

    yield from admitted(caller, _REQUEST, {"ceremony": ceremony.id}, judge)


def succeed(
    caller: Caller | None, ceremony: Ceremony, attended: Sequence[str]
) -> UseCase[CeremonyRecord | None]:
    """Return the row of this very ceremony if it was performed already; refuse who may not perform it.

    Asked before any key is touched, and again before the outcome is committed.  A refusal is on record.

    Args:
        caller: the operator at whose machine it is performed; None while a realm is made.
        ceremony: as reviewed.
        attended: ids of its custodians.

    Raises:
        errors.Unauthenticated: the caller was revoked.
        errors.IllegalTransition: another ceremony had this id.
        errors.NotPermitted: the caller may not, or too few custodians of the ceremony before attended.
    """
    said = {"ceremony": ceremony.id}
    yield from admitted(caller, _REQUEST, said, partial(_require_may, caller))
    return (yield from recorded(caller, _REQUEST, said, _succeeds(ceremony, attended)))


def _require_may(caller: Caller | None, facts: Facts, at: datetime) -> None:
    if caller is not None:
        live_client(facts, caller, Capability.KEEP_KEYS, at)


def _succeeds(ceremony: Ceremony, attended: Sequence[str]) -> UseCase[CeremonyRecord | None]:
    rows: list[CeremonyRecord] = yield Scan(kind=CeremonyRecord, where={})
    for row in rows:
        if row.id == ceremony.id:
            if row.file_sha256 != ceremony.sha256:
                raise errors.IllegalTransition(f"there was a ceremony {ceremony.id}, with another file")
            return row
    if rows:
        before = max(rows, key=lambda row: row.leaf)
        require_succession(ceremony_file.parse(before.file), ceremony, attended)
    return None


def commit(caller: Caller | None, progress: Progress, record: Record, service: str) -> UseCase[Performed]:
    """Put a ceremony's outcome on record, all of it or nothing; ``caller`` is None while a realm is made.

    Args:
        caller: the operator at whose machine it was performed.
        progress: the ceremony, all its steps done.
        record: signed by its custodians.
        service: how the service's own key store is called.

    Raises:
        errors.IllegalTransition: an authority, a key or a ceremony of that id exists.
        errors.NotPermitted: an authority would reach further than the one above it, as that is now.
    """
    ceremony = progress.ceremony
    progress.require_complete()
    already: CeremonyRecord | None = yield from succeed(caller, ceremony, record.signers)
    if already is not None:
        return Performed(row=already, authorities=progress.established)

    def decide(facts: Facts, at: datetime) -> Decision[Performed]:
        _require_may(caller, facts, at)
        record.require_signed(ceremony)
        if facts.get(CeremonyRecord, ceremony.id) is not None:
            raise errors.IllegalTransition(f"there was a ceremony {ceremony.id}")
        row = CeremonyRecord(
            id=ceremony.id,
            file=ceremony.file,
            file_sha256=ceremony.sha256,
            record=record.encode(),
            record_sha256=record.sha256,
            performed_at=parse_time(str(record.body["performed_at"])),
            leaf=facts.next_leaf,
        )
        facts.put(row)
        assets = [_keep(facts, made.asset(ceremony.id, service)) for made in progress.keys.values()]
        entries = [("ceremony-performed", _entry(ceremony, record, assets, progress))]
        entries += [
            ("authority-established", establish(facts, authority, at)) for authority in progress.established
        ]
        entries += _changes(facts, progress)
        return Decision(Performed(row=row, authorities=progress.established), entries)

    said = {"ceremony": ceremony.id}
    return (yield from decided(caller, _REQUEST, said, decide, {CeremonyRecord: (ceremony.id,)}))


def establish(facts: Facts, authority: Authority, at: datetime) -> Mapping[str, Any]:
    """Put an authority on record and return its log entry.

    Raises:
        errors.IllegalTransition: the id is taken, or the authority above is not active.
        errors.NotPermitted: it would reach further than the authority above.
        errors.NotFound: there is no authority above.
    """
    if facts.get(Authority, authority.id) is not None:
        raise errors.IllegalTransition(f"there is an authority {authority.id} already")
    if authority.issuer != authority.id:
        above = facts.get(Authority, authority.issuer)
        if above is None:
            raise errors.NotFound(f"there is no authority {authority.issuer}")
        if at >= above.ends_at:
            raise errors.IllegalTransition(f"authority {above.id} ended {time_text(above.ends_at)}")
        require_within(authority, above)
    new = replace(authority, successor=None, status=AuthorityStatus.ACTIVE)
    facts.put(new)
    certificate = Certificate.from_der(authority.der)
    return {
        "authority": authority.id,
        "authority_kind": str(authority.kind),
        "issuer": authority.issuer,
        "custody": str(authority.custody),
        "profile": authority.profile,
        "profiles": authority.profiles,
        "constraints": authority.constraints,
        "ceremony": authority.ceremony,
        "subject": certificate.subject,
        "certificate": certificate.serial_hex,
        "certificate_sha256": certificate.fingerprint,
        "owner": authority.owner,
        "scope": authority.scope,
        "quota": authority.quota,
        "ends_at": time_text(authority.ends_at),
    }


def _keep(facts: Facts, asset: KeyAsset) -> KeyAsset:
    if facts.get(KeyAsset, asset.label) is not None:
        raise errors.IllegalTransition(f"there is a key {asset.label} already: a label names one for good")
    facts.put(asset)
    return asset


def _changes(facts: Facts, progress: Progress) -> list[tuple[str, Mapping[str, Any]]]:
    """Change what authorities the ceremony replaced or retired, and return the log entries."""
    entries: list[tuple[str, Mapping[str, Any]]] = []
    for name, successor in progress.replaced.items():
        found = _there(facts, name)
        if found.successor is not None or found.status is not AuthorityStatus.ACTIVE:
            raise errors.IllegalTransition(
                f"authority {name} is {found.status}, and {found.successor} follows"
            )
        facts.put(replace(found, successor=successor))
        said = {"authority": name, "successor": successor, "ceremony": progress.ceremony.id}
        entries.append(("authority-succeeded", said))
    for name, reason in progress.retired.items():
        found = _there(facts, name)
        if found.status in (AuthorityStatus.RETIRED, AuthorityStatus.REVOKED):
            raise errors.IllegalTransition(f"authority {name} is {found.status} already")
        facts.put(replace(found, status=AuthorityStatus.RETIRED))
        entries.append(("authority-retired", {"authority": name, "reason": reason}))
    return entries


def _there(facts: Facts, name: str) -> Authority:
    found = facts.get(Authority, name)
    if found is None:
        raise errors.IntegrityFailure(f"authority {name} is gone")
    return found


def _entry(
    ceremony: Ceremony, record: Record, assets: Sequence[KeyAsset], progress: Progress
) -> Mapping[str, Any]:
    imported = [step.authority for step in ceremony.steps if isinstance(step, ImportAuthority)]
    return {
        "ceremony": ceremony.id,
        "purpose": ceremony.purpose,
        "file_sha256": ceremony.sha256,
        "record_sha256": record.sha256,
        "required": ceremony.required,
        "custodians": list(record.signers),
        "keys": [
            {
                "label": asset.label,
                "store": asset.store,
                "purpose": str(asset.purpose),
                "kind": asset.kind,
                "policy": str(asset.policy),
                "users": asset.users,
                "fingerprint": asset.fingerprint,
                "created_at": time_text(asset.created_at),
            }
            for asset in assets
        ],
        "certificates": [name for name in progress.certificates if name not in imported],
        "crls": list(progress.crls),
    }
