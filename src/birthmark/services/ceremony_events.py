"""The events of a ceremony as values: each is read whole before anybody judges it.

An *event* is a JSON object: who attended, which key is about to be made, what a step came to.  It comes from
this process, a journal, another machine or a record of long ago, so it may be anything; ``read_event`` says
what it is, or raises one ``MalformedRequest``.  What an event says is believed by nobody: see
``ceremony_steps``.
"""

from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from birthmark import errors
from birthmark.floor.ceremonies import AcceptKey, Certify, CrossCertify, GenerateKey, SignCRL, Step
from birthmark.floor.key_assets import kind_of
from birthmark.ledger.entry import parse_time
from birthmark.pki.attributes import KeyAttributes, KeyClass

__all__ = [
    "Attendance",
    "Event",
    "HandoverEvent",
    "IntentEvent",
    "KeyOutcome",
    "SessionEvent",
    "StepEvent",
    "read_event",
]

Event = Mapping[str, Any]
_PLACES = frozenset({"online", "offline", "rehearsal"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Attendance:
    """What one custodian answered to a challenge."""

    custodian: str
    reviewed: str
    """SHA-256 of the file that was reviewed, as it was said."""
    challenge: bytes = field(repr=False)
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEvent:
    """Custodians attended."""

    at: datetime
    place: str
    attendances: tuple[Attendance, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoverEvent:
    """Custodians signed what leaves them."""

    at: datetime
    context: str
    """SHA-256 of what the request says beside the events."""
    signatures: tuple[tuple[str, bytes], ...] = field(repr=False)
    """Custodian and signature over ``answer_message``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IntentEvent:
    """A key is about to be made, or taken in."""

    at: datetime
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOutcome:
    """A key was made, or taken in."""

    public: bytes = field(repr=False)
    """SubjectPublicKeyInfo (DER); empty for a secret key."""
    attributes: KeyAttributes
    shares: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """A step was done."""

    at: datetime
    step: int
    outcome: KeyOutcome | bytes | None = field(repr=False)
    """The key, or the certificate or list (DER); None for a step that comes to nothing but what it orders."""


def read_event(event: Event, step: Step | None) -> SessionEvent | HandoverEvent | IntentEvent | StepEvent:
    """Read an event.

    Args:
        event: the JSON object.
        step: the step that is to be done, if one is left: an outcome is of its kind.

    Raises:
        errors.MalformedRequest: it is none.
    """
    try:
        at, kind = parse_time(event["at"]), event["event"]
        if kind == "session":
            attendances = tuple(_attendance(answer) for answer in event["custodians"])
            place = _text(event["place"])
            if place not in _PLACES:
                raise ValueError(f"{place[:64]!r} is no place")
            return SessionEvent(at=at, place=place, attendances=attendances)
        if kind == "handover":
            signatures = tuple(
                (_text(one["custodian"]), b64decode(one["signature"], validate=True))
                for one in event["signatures"]
            )
            return HandoverEvent(at=at, context=_text(event["context"]), signatures=signatures)
        number = event["step"]
        if type(number) is not int:
            raise TypeError("its step is no number")
        if kind == "intent":
            return IntentEvent(at=at, step=number)
        if kind == "step":
            return StepEvent(at=at, step=number, outcome=_outcome(event, step))
    except (KeyError, TypeError, ValueError, AttributeError) as wrong:
        raise errors.MalformedRequest(f"an event of a ceremony lacks something: {wrong}") from wrong
    raise errors.MalformedRequest("an event of a ceremony is of a kind that there is not")


def _attendance(answer: Mapping[str, Any]) -> Attendance:
    return Attendance(
        custodian=_text(answer["custodian"]),
        reviewed=_text(answer["reviewed"]),
        challenge=bytes.fromhex(answer["challenge"]),
        signature=b64decode(answer["signature"], validate=True),
    )


def _outcome(event: Event, step: Step | None) -> KeyOutcome | bytes | None:
    match step:
        case GenerateKey() | AcceptKey():
            return KeyOutcome(
                public=b64decode(event["public"], validate=True),
                attributes=_attributes(event["attributes"]),
                shares=tuple(b64decode(share, validate=True) for share in event["shares"]),
            )
        case Certify() | CrossCertify():
            return b64decode(event["certificate"], validate=True)
        case SignCRL():
            return b64decode(event["crl"], validate=True)
        case _:
            return None


def _attributes(given: Mapping[str, Any]) -> KeyAttributes:
    values = dict(given)
    for one in fields(KeyAttributes):
        if one.type is bool and type(values[one.name]) is not bool:
            raise TypeError(f"{one.name} of its key is neither true nor false")
    values["label"], values["fingerprint"] = _text(values["label"]), _text(values["fingerprint"])
    values["key_class"], values["kind"] = KeyClass(values["key_class"]), kind_of(values["kind"])
    return KeyAttributes(**values)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:64]!r} is no text")
    return value
