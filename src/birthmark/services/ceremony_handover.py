"""What was done at one place, and whether those who attended there signed it before it left (SPEC A3).

A ceremony whose keys are on two machines travels as files that anybody on the way can change.  So the
custodians who attended sign what leaves with them: a *handover* is an event that closes all events since
their place was reached, and no session at another place is taken before it.  It holds in both directions (a
request brings the public keys that are to be certified) and for ever (the record keeps it).

A *stay* is what lies between: it begins with a session and ends with a handover.  Sessions in a row at one
place, as an interrupted ceremony has them, are one stay.
"""

from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any

from birthmark import errors
from birthmark.floor.ceremonies import Ceremony, answer_message, require_quorum
from birthmark.ledger.entry import canonical, time_text
from birthmark.services.ceremony_events import Event, HandoverEvent, SessionEvent, read_event
from birthmark.services.ceremony_judgement import require_signature

__all__ = [
    "OFFLINE",
    "ONLINE",
    "REHEARSAL",
    "Stays",
    "context_sha256",
    "handover_event",
    "require_answer",
    "require_request",
]

ONLINE, OFFLINE, REHEARSAL = "online", "offline", "rehearsal"


@dataclass(slots=True, kw_only=True)
class _Stay:
    place: str
    before: str
    """SHA-256 of the steps before it."""
    events: list[Event] = field(default_factory=list)
    present: set[str] = field(default_factory=set)
    """Who attended, in any of its sessions."""


class Stays:
    """The stays of a ceremony so far; each is closed by the signatures of its people, or is the last."""

    def __init__(self, ceremony: Ceremony, steps: Sequence[Event] = ()) -> None:
        """Begin, after ``steps``: the step events of before, if there are some."""
        self._ceremony = ceremony
        self._steps = list(steps)
        self._stay: _Stay | None = None

    @property
    def under_way(self) -> bool:
        """Whether custodians attend: no step is taken while nobody does."""
        return self._stay is not None

    def require_may_begin(self, place: str) -> None:
        """Refuse a session at another place than the last while nobody signed what was done there.

        Raises:
            errors.ProofFailed: nobody did.
        """
        if self._stay is not None and self._stay.place != place:
            raise errors.ProofFailed(
                f"no custodian signed what was made {self._stay.place}: bring what they signed, whole"
            )

    def begin(self, event: Event, session: SessionEvent) -> None:
        """Take a session, whose attendances were looked at."""
        if self._stay is None:
            self._stay = _Stay(place=session.place, before=_digest(self._steps))
        self._stay.present |= {answer.custodian for answer in session.attendances}
        self._stay.events.append(event)

    def add(self, event: Event) -> None:
        """Take what was done during the stay."""
        if self._stay is None:
            raise errors.MalformedRequest("nobody attends")
        self._stay.events.append(event)
        if event["event"] == "step":
            self._steps.append(event)

    def message(self, context: str) -> bytes:
        """Return what is signed to close the stay; ``context`` is that of the request.

        Raises:
            errors.MalformedRequest: nobody attends.
        """
        if self._stay is None:
            raise errors.MalformedRequest(
                "there is nothing to hand over: nobody attended since the last time"
            )
        stay = self._stay
        return answer_message(self._ceremony, stay.place, context, stay.before, _digest(stay.events))

    def close(self, event: HandoverEvent) -> None:
        """Close the stay.

        Raises:
            errors.NotPermitted: too few of those who attended signed.
            errors.ProofFailed: a signature is not its custodian's, or is about something else.
            errors.MalformedRequest: nobody attends.
        """
        message = self.message(event.context)
        people = [person for person, _ in event.signatures]
        if self._stay is not None and not set(people) <= self._stay.present:
            raise errors.NotPermitted("somebody signed what was made without attending")
        require_quorum(self._ceremony, people)
        for person, signature in event.signatures:
            key = self._ceremony.custodian(person).subject_public_key_info
            require_signature(key, signature, message, person)
        self._stay = None

    def require_closed(self) -> None:
        """Refuse to end with something made offline that nobody signed.

        Raises:
            errors.ProofFailed: it was not signed.
        """
        if self._stay is not None and self._stay.place == OFFLINE:
            self.require_may_begin(ONLINE)


def handover_event(
    context: str, message: bytes, people: Sequence[tuple[str, Callable[[bytes], bytes]]], at: datetime
) -> Event:
    """Have a message signed by everybody there, and return the event."""
    signatures = [
        {"custodian": person, "signature": b64encode(sign(message)).decode()} for person, sign in people
    ]
    return {"event": "handover", "at": time_text(at), "context": context, "signatures": signatures}


def require_answer(ceremony: Ceremony, steps: Sequence[Event], answer: Sequence[Event]) -> None:
    """Refuse an answer that the custodians at the other place did not sign, whatever is in it.

    Args:
        ceremony: says who the custodians are.
        steps: the step events that the answer follows.
        answer: events of the other machine.

    Raises:
        errors.ProofFailed: its end is unsigned, a signature is not its custodian's, or the answer is to
            something else.
        errors.NotPermitted: too few signed, or it does not begin with the people at the other place.
        errors.MalformedRequest: it is none.
    """
    stays = Stays(ceremony, steps)
    for event in answer:
        kind = event.get("event")
        if kind in {"session", "handover"}:
            match read_event(event, None):
                case SessionEvent(place=place) as session:
                    if place != OFFLINE:
                        raise errors.NotPermitted("an answer holds what was made offline, and nothing else")
                    stays.begin(event, session)
                case HandoverEvent() as handover:
                    stays.close(handover)
                case _:
                    raise errors.MalformedRequest("an answer's event is none")
        elif not stays.under_way:
            raise errors.NotPermitted("the answer has a step that no custodian attended")
        else:
            stays.add(event)
    stays.require_closed()


def context_sha256(before: Mapping[str, Any], lines: Sequence[Mapping[str, str]]) -> str:
    """Return the hash of what a request says beside the events: what there was before, and CRL entries."""
    return sha256(canonical({"before": dict(before), "lines": [dict(line) for line in lines]})).hexdigest()


def require_request(events: Sequence[Event], context: str) -> None:
    """Refuse a request whose context is not the one that was signed; the signatures are looked at later.

    Raises:
        errors.ProofFailed: it is not, or nobody signed.
    """
    last = events[-1] if events else {}
    if last.get("event") != "handover":
        raise errors.ProofFailed("no custodian signed the request")
    if last.get("context") != context:
        raise errors.ProofFailed("what the request says was there before is not what its custodians signed")


def _digest(events: Sequence[Event]) -> str:
    return sha256(canonical({"events": [dict(event) for event in events]})).hexdigest()
