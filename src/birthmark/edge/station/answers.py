"""The service's answers as values.

Each class reads itself from the JSON of the station plane; what is missing or of another type raises
``IntegrityFailure``, what is new is passed over, so that an older station works with a newer service.
Binary values are octets, certificates DER, times as the service spells them (RFC 3339).
"""

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from birthmark.element.apdu import Batch, CommandAPDU, Guarded
from birthmark.errors import IntegrityFailure, MalformedRequest
from birthmark.pki.certificates import from_pem
from birthmark.secret import SecretBytes

__all__ = [
    "DeviceStatus",
    "ElementStatus",
    "ElementStep",
    "FurtherStatus",
    "Issued",
    "IssuedCertificate",
    "Me",
    "Proved",
    "Release",
    "RunStatus",
]

_T = TypeVar("_T")
_Body = Mapping[str, Any]
_HEX = re.compile("(?:[0-9A-Fa-f]{2})+")


def take(body: _Body, name: str, kind: type[_T]) -> _T:
    """Return a member of an answer.

    Raises:
        IntegrityFailure: it is missing or of another type.
    """
    value = body.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise IntegrityFailure(f"the service's answer has no {name}, or a strange one")
    return value


def _optional(body: _Body, name: str, kind: type[_T]) -> _T | None:
    return None if body.get(name) is None else take(body, name, kind)


def _texts(body: _Body, name: str) -> tuple[str, ...]:
    values = take(body, name, list)
    if not all(isinstance(value, str) for value in values):
        raise IntegrityFailure(f"the service's answer has a strange {name}")
    return tuple(values)


def _objects(body: _Body, name: str) -> list[_Body]:
    values: list[_Body] = take(body, name, list)
    if not all(isinstance(value, dict) for value in values):
        raise IntegrityFailure(f"the service's answer has a strange {name}")
    return values


def _private_key(body: _Body) -> SecretBytes | None:
    key = _optional(body, "private_key", str)
    return None if key is None else SecretBytes(_one_block(key, "PRIVATE KEY"))


def _envelope(body: _Body) -> bytes | None:
    envelope = _optional(body, "private_key_envelope", str)
    return None if envelope is None else _one_block(envelope, "CMS")


def _certificate(pem: str) -> bytes:
    return _one_block(pem, "CERTIFICATE")


def _one_block(pem: str, label: str) -> bytes:
    try:
        blocks = from_pem(pem, label)
    except MalformedRequest:
        blocks = ()
    if len(blocks) != 1:
        raise IntegrityFailure(f"the service's answer holds no {label.lower()} in pem where one belongs")
    return blocks[0]


def proofs_of(body: _Body) -> dict[int, tuple[bytes, ...]]:
    """Return the consistency proofs of an answer by the size they begin with; none of an older service.

    Raises:
        IntegrityFailure: they cannot be read.
    """
    found: dict[int, tuple[bytes, ...]] = {}
    for one in _objects(body, "consistency") if "consistency" in body else []:
        try:
            proof = tuple(base64.b64decode(text, validate=True) for text in _texts(one, "proof"))
        except ValueError as wrong:
            raise IntegrityFailure("the service's answer has a strange proof") from wrong
        found[take(one, "since", int)] = proof
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Me:
    """Who the client is, as the service sees it."""

    client: str
    site: str
    line: str
    realm: str
    environment: str
    last_seq: int
    """The highest request number seen from this client."""
    vkey: str
    """The log's verifier key (C2SP signed-note)."""
    development: bool
    """True if the authorities' keys are in a software store."""
    max_gang: int

    @classmethod
    def read(cls, body: _Body) -> "Me":
        """Read an answer."""
        return cls(
            client=take(body, "client", str),
            site=take(body, "site", str),
            line=take(body, "line", str),
            realm=take(body, "realm", str),
            environment=take(body, "environment", str),
            last_seq=take(body, "last_seq", int),
            vkey=take(body, "vkey", str),
            development=take(body, "development", bool),
            max_gang=max(1, take(body, "max_gang", int)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatus:
    """A run and its counters."""

    run: str
    product: str
    batch: str
    profile: str
    status: str
    quantity: int
    admitted: int
    released: int
    held: int
    scrapped: int
    not_before: str
    not_after: str
    hardware_id_kind: str
    origins: tuple[str, ...]
    """``born``, ``delivered``: how its devices may come by their keys."""
    further_profiles: tuple[str, ...] = ()
    """Profiles of the further certificates that each device gets, for a key of its own each."""
    element: str | None = None
    """Profile of the secure element that each device has; None for none."""

    @classmethod
    def read(cls, body: _Body) -> "RunStatus":
        """Read an answer."""
        return cls(
            run=take(body, "run", str),
            product=take(body, "product", str),
            batch=take(body, "batch", str),
            profile=take(body, "profile", str),
            status=take(body, "status", str),
            quantity=take(body, "quantity", int),
            admitted=take(body, "admitted", int),
            released=take(body, "released", int),
            held=take(body, "held", int),
            scrapped=take(body, "scrapped", int),
            not_before=take(body, "not_before", str),
            not_after=take(body, "not_after", str),
            hardware_id_kind=take(body, "hardware_id_kind", str),
            origins=_texts(body, "origins"),
            further_profiles=_texts(body, "further_profiles") if "further_profiles" in body else (),
            element=_optional(body, "element", str),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherStatus:
    """A further certificate of a device."""

    profile: str
    certificate: str
    """Serial number (hex)."""
    certificate_sha256: str
    revoked: str | None
    """Why it is revoked; None while it is good."""

    @classmethod
    def read(cls, body: _Body) -> "FurtherStatus":
        """Read a part of an answer."""
        return cls(
            profile=take(body, "profile", str),
            certificate=take(body, "certificate", str),
            certificate_sha256=take(body, "certificate_sha256", str),
            revoked=_optional(body, "revoked", str),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementStatus:
    """How far the key set of a device's secure element has come, as far as the service knows."""

    profile: str
    phase: str
    """absent, intended or confirmed."""
    kvn: int | None
    """Key version number of the final set; None where the service does not know the profile."""
    master: str
    """Label of the master key of that set."""
    key_diversification_data: str | None
    """Hex: names the chip; None before it was seen."""
    attempt: str
    """The attempt under which it was last spoken to."""
    tries: int
    """Dialogues of that attempt that broke off."""
    failures: int
    """Authentications whose outcome is not known, since the last that was accepted."""
    reason: str | None
    """Why the last dialogue broke off, or why the device is held."""

    @classmethod
    def read(cls, body: _Body) -> "ElementStatus":
        """Read a part of an answer."""
        return cls(
            profile=take(body, "profile", str),
            phase=take(body, "phase", str),
            kvn=_optional(body, "kvn", int),
            master=take(body, "master", str),
            key_diversification_data=_optional(body, "key_diversification_data", str),
            attempt=take(body, "attempt", str),
            tries=take(body, "tries", int),
            failures=take(body, "failures", int),
            reason=_optional(body, "reason", str),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStatus:
    """Where a device stands."""

    device: str
    state: str
    """admitted, issued, proved, released, held or scrapped."""
    run: str
    attempt: str
    attempts: int
    reason: str | None
    certificate: str | None
    """Serial number (hex)."""
    certificate_sha256: str | None
    revoked: str | None
    release_leaf: int | None
    """Index of the release in the log."""
    further: tuple[FurtherStatus, ...] = ()
    """The further certificates, in the order of the run's profiles."""
    element: ElementStatus | None = None
    """Its secure element that gets a key set; None before it was spoken to."""

    @classmethod
    def read(cls, body: _Body) -> "DeviceStatus":
        """Read an answer."""
        element: _Body | None = _optional(body, "element", dict)
        return cls(
            device=take(body, "device", str),
            state=take(body, "state", str),
            run=take(body, "run", str),
            attempt=take(body, "attempt", str),
            attempts=take(body, "attempts", int),
            reason=_optional(body, "reason", str),
            certificate=_optional(body, "certificate", str),
            certificate_sha256=_optional(body, "certificate_sha256", str),
            revoked=_optional(body, "revoked", str),
            release_leaf=_optional(body, "release_leaf", int),
            further=tuple(map(FurtherStatus.read, _objects(body, "further"))) if "further" in body else (),
            element=None if element is None else ElementStatus.read(element),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """A further certificate of a device."""

    profile: str
    certificate: bytes = field(repr=False)
    """DER."""
    private_key: SecretBytes | None
    """PKCS#8 (DER) of a delivered key: sent once, kept nowhere."""
    envelope: bytes | None = field(default=None, repr=False)
    """The same in CMS (DER) to the key of the station, if that was asked for."""

    @classmethod
    def read(cls, body: _Body) -> "IssuedCertificate":
        """Read a part of an answer."""
        return cls(
            profile=take(body, "profile", str),
            certificate=_certificate(take(body, "certificate", str)),
            private_key=_private_key(body),
            envelope=_envelope(body),
        )


def _octets(text: object) -> bytes:
    """Return the octets of a hexadecimal text; none of anything else."""
    return bytes.fromhex(text) if isinstance(text, str) and _HEX.fullmatch(text) else b""


def _command(body: _Body) -> Guarded:
    command = _octets(body.get("command"))
    status_words = [_octets(word) for word in _texts(body, "status_words")]
    digest = _optional(body, "response_sha256", str)
    if not status_words or any(len(word) != 2 for word in status_words):
        raise IntegrityFailure("the service's answer says nothing of the status words of a command")
    if digest is not None and len(_octets(digest)) != 32:
        raise IntegrityFailure("the service's answer foretells a response with a strange hash")
    try:
        CommandAPDU.decode(command)
    except MalformedRequest as wrong:
        raise IntegrityFailure(f"the service sent no command for a secure element: {wrong}") from wrong
    return Guarded(
        command=command,
        status_words=tuple(int.from_bytes(word, "big") for word in status_words),
        response_sha256=None if digest is None else digest.lower(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementStep:
    """Commands for a secure element, each with what has to come back for the next one to be sent."""

    step: int
    """From 1 on: goes back with the responses."""
    last: bool
    """True if the responses go with the proof."""
    batch: Batch = field(repr=False)
    attempt: str | None = None
    """The attempt it belongs to; None in the answer to an issue request, which names it."""

    @classmethod
    def read(cls, body: _Body, *, attempt: str | None = None) -> "ElementStep":
        """Read a part of an answer."""
        found = cls(
            step=take(body, "step", int),
            last=take(body, "last", bool),
            batch=tuple(map(_command, _objects(body, "commands"))),
            attempt=attempt,
        )
        if found.step < 1 or not found.batch:
            raise IntegrityFailure("the service's answer has no commands for the secure element")
        return found

    @classmethod
    def of(cls, body: _Body) -> "ElementStep":
        """Read the answer to an inject request."""
        return cls.read(take(body, "element", dict), attempt=take(body, "attempt", str))


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate to install, and the challenge to sign afterwards.  Nothing is verified yet."""

    device: str
    """Kind and hardware id, e.g. ``vin:1M8GDM9AXKP042788``."""
    attempt: str
    certificate: bytes = field(repr=False)
    """DER."""
    chain: tuple[bytes, ...] = field(repr=False)
    """DER, the issuer first, the root not included."""
    challenge: bytes = field(repr=False)
    private_key: SecretBytes | None
    """PKCS#8 (DER) of a delivered key: sent once, kept nowhere."""
    envelope: bytes | None = field(default=None, repr=False)
    """The same in CMS (DER) to the key of the station, if that was asked for."""
    further: tuple[IssuedCertificate, ...] = ()
    """For the run's further profiles, in their order: proved with the same challenge."""
    element: ElementStep | None = None
    """The first batch for the device's secure element; None if the run puts nothing into it, or the dialogue
    has to be begun by a request of its own."""

    @classmethod
    def read(cls, body: _Body) -> "Issued":
        """Read an answer."""
        try:
            challenge = base64.b64decode(take(body, "challenge", str), validate=True)
        except ValueError as wrong:
            raise IntegrityFailure("the service's challenge is not base64") from wrong
        element = _optional(body, "element", dict)
        return cls(
            device=take(body, "device", str),
            attempt=take(body, "attempt", str),
            certificate=_certificate(take(body, "certificate", str)),
            chain=tuple(_certificate(pem) for pem in _texts(body, "chain")),
            challenge=challenge,
            private_key=_private_key(body),
            envelope=_envelope(body),
            further=tuple(map(IssuedCertificate.read, _objects(body, "further")))
            if "further" in body
            else (),
            element=None if element is None else ElementStep.read(element),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """The service believes the proof.  The token is not verified yet."""

    device: str
    attempt: str
    token: str = field(repr=False)
    """C2SP ``.tlog-proof``."""
    growth: Mapping[int, Sequence[bytes]] = field(default_factory=dict, repr=False)
    """Consistency proofs to the token's checkpoint, by the size they begin with."""

    @classmethod
    def read(cls, body: _Body) -> "Proved":
        """Read an answer."""
        return cls(
            device=take(body, "device", str),
            attempt=take(body, "attempt", str),
            token=take(body, "token", str),
            growth=proofs_of(body),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A device that may leave the line: verified here, token and all."""

    device: str
    """Kind and hardware id, e.g. ``vin:1M8GDM9AXKP042788``."""
    hardware_id: str
    """As it was asked for."""
    run: str
    attempt: str
    certificate_sha256: str
    """Of the certificate (DER) as the device reads it back, hex."""
    leaf: int
    """Index of the release in the log."""
    token: str = field(repr=False)
    """C2SP ``.tlog-proof``: checked offline with the log's public key."""
    further: tuple[tuple[str, str], ...] = ()
    """Profile and fingerprint (hex) of each further certificate, likewise read back."""
    key_set: Mapping[str, object] | None = field(default=None, repr=False)
    """What the token says of the key set in the device's secure element; None if the run puts none there."""
