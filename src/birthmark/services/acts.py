"""What every use case shares: who is asking, whether they still may, and how a refusal is put on record."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from cryptography import x509

from birthmark import errors
from birthmark.floor.answers import Answer
from birthmark.floor.authorities import Authority
from birthmark.floor.clients import (
    CAPABILITIES,
    CODE,
    PERSON,
    Capability,
    Client,
    ClientStatus,
    Credential,
    Role,
    require,
)
from birthmark.floor.devices import DeviceCertificate
from birthmark.floor.exposure import Exposed, Exposure, exposure_id, require_open
from birthmark.floor.fleet import FieldDevice, FieldStatus
from birthmark.floor.limits import Bucket, Rate, bucket_of, take
from birthmark.floor.shared import SharedCredential, require_network
from birthmark.pki.certificates import serial_hex
from birthmark.pki.library import UNREADABLE
from birthmark.ports import Act, Committed, Decision, Facts, Look, Reads, UseCase
from birthmark.services.revocations import device_status, identity_status

__all__ = [
    "ANONYMOUS",
    "INIT",
    "Caller",
    "admitted",
    "allowed_client",
    "answer_key",
    "client_reads",
    "decided",
    "earlier_answer",
    "exposures_of",
    "live_client",
    "outcomes",
    "recognise",
    "record_refusal",
    "recorded",
    "refuse",
    "require_now",
    "require_reader",
    "stored_refusal",
    "together",
]

T = TypeVar("T")
ANONYMOUS = "peer:anonymous"
"""The actor of a request whose sender is not a client of the realm."""
INIT = "realm:init"
"""The actor of what happens before there is an operator."""
DETAIL_LIMIT = 500
"""Characters of a refusal's detail that go into the log."""

_BY_CODE: Mapping[str, type[errors.Refusal]] = {
    kind.code: kind
    for kind in errors.Refusal.__subclasses__()
    if kind is not errors.PolicyRefused and not kind.retryable
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """A recognised client and the request it makes."""

    client: Client
    credential: Credential
    seq: int | None = None
    """The client's number for the request."""
    operator: str | None = None
    """Name of the operator at the station, as the station says."""
    plane: str | None = None
    """The plane it came by; None for somebody at this host's own command line."""
    rate: Rate | None = None
    """How fast it may go; None for as fast as it likes."""
    address: str = ""
    """Where it asks from; empty where that decides nothing."""


def recognise(peer: bytes, *, seq: int | None = None, operator: str | None = None) -> UseCase[Caller]:
    """Find the client a certificate (DER) belongs to.

    The certificate is compared byte for byte with the one on record; the names in it decide nothing.

    Raises:
        errors.Unauthenticated: no live client of this realm has this certificate.
    """
    try:
        serial = serial_hex(x509.load_der_x509_certificate(peer).serial_number)
    except (errors.MalformedRequest, *UNREADABLE) as cause:
        raise errors.Unauthenticated("the client certificate cannot be read") from cause
    facts: Facts = yield Look({Credential: (serial,)})
    credential = facts.get(Credential, serial)
    if credential is None or credential.der != peer:
        raise errors.Unauthenticated(f"certificate {serial} belongs to no client of this realm")
    facts = yield Look({Client: (credential.client,)})
    client = facts.get(Client, credential.client)
    if client is None:
        raise errors.IntegrityFailure(f"credential {serial} names {credential.client}, which does not exist")
    return Caller(client=client, credential=credential, seq=seq, operator=operator)


def client_reads(caller: Caller) -> dict[type, Sequence[str]]:
    """Return what ``live_client`` is going to look at."""
    clients = [caller.client.id]
    if caller.operator is not None:
        clients.append(f"{PERSON}:{caller.operator}")
    reads: dict[type, Sequence[str]] = {Client: clients, Credential: (caller.credential.serial,)}
    if caller.plane is not None:
        reads[Exposure] = exposures_of(caller.plane, caller.client)
    if caller.rate is not None:
        reads[Bucket] = (bucket_of("client", caller.client.id),)
    if caller.client.role is Role.DEVICE:
        reads[DeviceCertificate] = (caller.credential.serial,)
        reads[FieldDevice] = (caller.client.hardware_id or "",)
        reads[Authority] = (caller.credential.authority,)
    if caller.client.role is Role.SHARED:
        reads[SharedCredential] = (caller.client.id,)
    return reads


def together(*reads: Reads) -> dict[type, Sequence[str]]:
    """Return what several are going to look at."""
    joined: dict[type, Sequence[str]] = {}
    for one in reads:
        for kind, keys in one.items():
            joined[kind] = [*joined.get(kind, ()), *keys]
    return joined


def exposures_of(plane: str, client: Client) -> list[str]:
    """Return the ids of what must be open for a client to do anything by a plane."""
    ids = [exposure_id(Exposed.PLANE, plane), client.id]
    return ids if client.run is None else [*ids, exposure_id(Exposed.RUN, client.run)]


def allowed_client(facts: Facts, caller: Caller, capability: Capability) -> Client:
    """Check that the caller may do this, apart from all that time has a part in.

    Raises:
        errors.Unauthenticated: it was revoked since it connected.
        errors.NotPermitted: its role may not, the operator it names is none who may work at a line, or it is
            shared and not for where it asks from.
    """
    if caller.client.role is Role.DEVICE:
        return _live_device(facts, caller, capability)
    client = facts.get(Client, caller.client.id)
    credential = facts.get(Credential, caller.credential.serial)
    if client is None or credential is None:
        raise errors.Unauthenticated(f"{caller.client.id} is not known")
    require(client, credential, capability)
    if client.role is Role.SHARED:
        shared = facts.get(SharedCredential, client.id)
        if shared is None:
            raise errors.IntegrityFailure(f"the limits of {client.id} are gone")
        require_network(shared, caller.address)
    if caller.operator is not None:
        operator = facts.get(Client, f"{PERSON}:{caller.operator}")
        if operator is None or operator.status is not ClientStatus.ACTIVE:
            raise errors.NotPermitted(
                f"{caller.operator} is no live operator of this realm: name who stands there, as enrolled"
            )
        if Capability.HOLD not in CAPABILITIES[operator.role]:
            raise errors.NotPermitted(f"{caller.operator} is an {operator.role} and works at no line")
    return client


def _live_device(facts: Facts, caller: Caller, capability: Capability) -> Client:
    """Return a device that shows a certificate of its own, if that is good: our record says so, not a CRL."""
    issued = facts.get(DeviceCertificate, caller.credential.serial)
    if issued is None or issued.der != caller.credential.der:
        raise errors.Unauthenticated(f"{caller.client.id} is not known")
    reason = device_status(facts, issued)
    if reason is not None:
        raise errors.Unauthenticated(f"certificate {issued.serial} of {issued.device} is revoked ({reason})")
    reason = identity_status(facts, issued)
    if reason is not None:
        raise errors.Unauthenticated(f"the identity of {issued.device} is revoked ({reason})")
    # Two may have its key, or it was stolen: nobody gets anything by it until a person has decided.
    met = facts.get(FieldDevice, issued.device)
    if met is not None and met.status is FieldStatus.HELD:
        raise errors.NotPermitted(f"{issued.device} is held in the field: {met.reason}")
    require(caller.client, caller.credential, capability)
    return caller.client


def live_client(facts: Facts, caller: Caller, capability: Capability, at: datetime) -> Client:
    """Check, at the moment of the commit, that the caller may do this now, and count the request.

    Raises:
        errors.Unauthenticated: it was revoked since it connected, or its certificate ended.
        errors.NotPermitted: its role may not, it or its plane is closed at this time, or the operator it
            names is none who may work at a line.
        errors.RateLimited: it goes too fast.
    """
    client = allowed_client(facts, caller, capability)
    if caller.plane is not None:
        require_now(facts, client, caller.credential, caller.plane, at)
    _charge(facts, caller.client.id, caller.rate, at)
    _count(facts, client, caller.seq)
    return client


def require_now(facts: Facts, client: Client, credential: Credential, plane: str, at: datetime) -> None:
    """Refuse a credential that has ended, and whoever is closed at this time.

    Raises:
        errors.Unauthenticated: it has ended; a connection outlives the certificate that opened it.
        errors.NotPermitted: the client, its run or the plane is closed.
    """
    if at >= credential.not_after:
        code = credential.serial.startswith(CODE)
        raise errors.Unauthenticated(
            f"the one-time code of {client.id} ended: ask for a new one"
            if code
            else f"the certificate of {client.id} ended: renew it"
        )
    require_open((facts.get(Exposure, name) for name in exposures_of(plane, client)), at)


def require_reader(caller: Caller, plane: str, at: datetime, *, bootstrap: bool = False) -> UseCase[None]:
    """Refuse whoever may not read by this plane at this time.

    Args:
        caller: recognised just now.
        plane: that it came by.
        at: now.
        bootstrap: True for what a bootstrap credential may read, too: it needs it to provision.

    Raises:
        errors.Unauthenticated: it was revoked, or its certificate ended.
        errors.NotPermitted: its role may not read, or it or the plane is closed.
    """
    provisions = bootstrap and caller.client.role is Role.BOOTSTRAP
    require(caller.client, caller.credential, Capability.PROVE if provisions else Capability.READ)
    facts: Facts = yield Look({Exposure: exposures_of(plane, caller.client)})
    require_now(facts, caller.client, caller.credential, plane, at)


def _count(facts: Facts, client: Client, seq: int | None) -> None:
    if seq is not None and seq > client.last_seq:
        facts.put(replace(client, last_seq=seq))


def _charge(facts: Facts, actor: str, rate: Rate | None, at: datetime) -> None:
    if rate is not None:
        name = bucket_of("client", actor)
        facts.put(take(facts.get(Bucket, name), name, rate, at))


def answer_key(caller: Caller, key: str) -> str:
    """Return the id of the answer to a caller's idempotency key."""
    return f"{caller.client.id}/{key}"


def earlier_answer(facts: Facts, caller: Caller, key: str, request_sha256: str) -> Answer | None:
    """Return the answer this key already got.

    Raises:
        errors.KeyReused: the key came with another request.
        errors.Refusal: the refusal this key already got.
    """
    answer = facts.get(Answer, answer_key(caller, key))
    if answer is None:
        return None
    if answer.request_sha256 != request_sha256:
        raise errors.KeyReused(f"idempotency key {key} was used for another request")
    if answer.refusal is not None:
        raise stored_refusal(answer)
    return answer


def stored_refusal(answer: Answer) -> errors.Refusal:
    """Return the refusal that an answer holds."""
    code, _, rule = (answer.refusal or "").partition(":")
    if rule:
        return errors.PolicyRefused(rule, answer.detail or "")
    return _BY_CODE[code](answer.detail or "")


def refuse(
    caller: Caller | None,
    request: str,
    fields: Mapping[str, Any],
    *,
    key: str | None = None,
    request_sha256: str = "",
) -> Callable[[Facts, datetime, errors.Refusal], Decision[errors.Refusal]]:
    """Return the ``refuse`` of an act: the log entry, and the answer kept under the idempotency key."""

    def decide(facts: Facts, at: datetime, refusal: errors.Refusal) -> Decision[errors.Refusal]:
        if caller is not None:
            # A refusal is an entry, and costs as much as what is granted.
            _charge(facts, caller.client.id, caller.rate, at)
            client = facts.get(Client, caller.client.id)
            if client is not None:
                _count(facts, client, caller.seq)
            if key is not None and _is_kept(refusal) and facts.get(Answer, answer_key(caller, key)) is None:
                facts.put(
                    Answer(
                        id=answer_key(caller, key),
                        request_sha256=request_sha256,
                        attempt=None,
                        refusal=_spelled(refusal),
                        detail=str(refusal),
                        at=at,
                    )
                )
        return Decision(refusal, [("refused", _entry(request, fields, refusal))])

    return decide


def _is_kept(refusal: errors.Refusal) -> bool:
    # A client that is not (any longer) one of ours leaves no answers behind; a fault of ours may be gone
    # tomorrow.
    if refusal.retryable:
        return False
    # So may be what became of a dialogue with an element, which is begun anew.
    passing = (
        errors.Unauthenticated
        | errors.IntegrityFailure
        | errors.Fault
        | errors.KeyReused
        | errors.Interrupted
    )
    return not isinstance(refusal, passing)


def _spelled(refusal: errors.Refusal) -> str:
    return f"{refusal.code}:{refusal.rule}" if isinstance(refusal, errors.PolicyRefused) else refusal.code


def _entry(request: str, fields: Mapping[str, Any], refusal: errors.Refusal) -> dict[str, Any]:
    said = {name: _clean(value) if isinstance(value, str) else value for name, value in fields.items()}
    entry = {**said, "request": request, "code": refusal.code, "detail": _clean(str(refusal))[:DETAIL_LIMIT]}
    if isinstance(refusal, errors.PolicyRefused):
        entry["rule"] = refusal.rule
    return entry


def _clean(text: str) -> str:
    # What a client sent may hold what no entry can (a lone surrogate); its refusal is recorded all the same.
    return text.encode("utf-8", "replace").decode()


def record_refusal(
    actor: str,
    request: str,
    fields: Mapping[str, Any],
    refusal: errors.Refusal,
    *,
    seq: int | None = None,
    rate: Rate | None = None,
) -> UseCase[None]:
    """Put on record a refusal that was decided before any act could be made.

    Raises:
        errors.RateLimited: the actor has been refused too often of late.
    """

    def decide(facts: Facts, at: datetime) -> Decision[None]:
        _charge(facts, actor, rate, at)
        client = facts.get(Client, actor)
        if client is not None:
            _count(facts, client, seq)
        return Decision(None, [("refused", _entry(request, fields, refusal))])

    committed: list[Committed[None]] = yield [
        Act(
            actor=actor,
            decide=decide,
            refuse=refuse(None, request, fields),
            reads={Client: (actor,), **({} if rate is None else {Bucket: (bucket_of("client", actor),)})},
            seq=seq,
        )
    ]
    outcomes(committed)


def decided(
    caller: Caller | None,
    request: str,
    fields: Mapping[str, Any],
    decide: Callable[[Facts, datetime], Decision[T]],
    reads: Reads,
    *,
    key: str | None = None,
    request_sha256: str = "",
) -> UseCase[T]:
    """Have one act of a caller's decided; its refusal is on record.

    Args:
        caller: None while a realm is made.
        request: its name in the log, if it is refused.
        fields: what the log says of it then.
        decide: see ``ports.Act``.
        reads: what it looks at besides the caller.
        key: idempotency key under which a refusal is kept, too.
        request_sha256: of what was asked under that key.

    Raises:
        errors.Refusal: what ``decide`` raised.
    """
    committed: list[Committed[T]] = yield [
        Act(
            actor=INIT if caller is None else caller.client.id,
            seq=None if caller is None else caller.seq,
            operator=None if caller is None else caller.operator,
            decide=decide,
            refuse=refuse(caller, request, fields, key=key, request_sha256=request_sha256),
            reads=reads if caller is None else together(client_reads(caller), reads),
        )
    ]
    (answer,) = outcomes(committed)
    return answer


def admitted(
    caller: Caller | None,
    request: str,
    fields: Mapping[str, Any],
    judge: Callable[[Facts, datetime], object],
    reads: Reads | None = None,
) -> UseCase[None]:
    """Judge a caller before anything is done that no commit takes back: a key made, a signature given.

    A refusal is on record, once.  The commit of the outcome judges again, for much may change in between.

    Args:
        caller: None while a realm is made.
        request: its name in the log.
        fields: what the log says of it.
        judge: raises the refusal; it changes nothing but what the request costs.
        reads: what it looks at besides the caller.

    Raises:
        errors.Refusal: what ``judge`` raised.
    """

    def decide(facts: Facts, at: datetime) -> Decision[None]:
        judge(facts, at)
        return Decision(None)

    yield from decided(caller, request, fields, decide, reads or {})


def recorded(caller: Caller | None, request: str, fields: Mapping[str, Any], work: UseCase[T]) -> UseCase[T]:
    """Carry out what comes before the act, and put its refusal on record; ``work`` makes no act itself.

    What may be tried again as it is (``retryable``) leaves no entry, as with acts.
    """
    try:
        return (yield from work)
    except errors.Refusal as refusal:
        if not refusal.retryable:
            actor, seq, rate = (
                (INIT, None, None) if caller is None else (caller.client.id, caller.seq, caller.rate)
            )
            yield from record_refusal(actor, request, fields, refusal, seq=seq, rate=rate)
            refusal.recorded = True
        raise


def outcomes(committed: Sequence[Committed[T]]) -> list[T]:
    """Return the answers of acts that must all have succeeded; raise the first refusal."""
    answers: list[T] = []
    for item in committed:
        if isinstance(item.answer, Exception):
            raise item.answer
        answers.append(item.answer)
    return answers
