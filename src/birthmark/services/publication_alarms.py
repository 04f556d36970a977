"""Alarms of the publisher: what people must see to before relying parties notice (SPEC F2).

An alarm is told each time somebody looks, and put on record once for each CRL: by a cycle alone, since
whoever monitors may have another clock, and an entry of the log dates all later ones.  An entry on record
stays when the alarm has gone.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime

from birthmark.floor.answers import Answer
from birthmark.floor.authorities import Authority, Custody
from birthmark.floor.locations import crl_path
from birthmark.ports import Act, Decision, Facts, UseCase
from birthmark.services.acts import outcomes, refuse
from birthmark.services.publication_index import Published

__all__ = ["PUBLICATION", "Alarm", "missing", "record_alarm"]

PUBLICATION = "realm:publication"
"""The actor of what the publisher does by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something that people must see to before relying parties notice."""

    kind: str
    """``crl-late``, ``crl-missing``, ``crl-failed`` or ``crl-behind``."""
    authority: str
    partition: str
    number: int
    """Of the CRL that is published; 0 if none is."""
    detail: str


def missing(authority: Authority, partition: str, known: Published | None) -> str:
    """Say which CRL is missing, and what to do."""
    path, told = crl_path(authority.id, partition), "run 'birthmark publish'"
    if authority.custody is Custody.OFFLINE:
        told = "take in that of its last ceremony with 'birthmark publish --crl FILE'"
    if known is None:
        return f"{path} is not published: {told}"
    return f"{path} is gone, damaged or not number {known.number}, which was published last: {told}"


def record_alarm(alarm: Alarm) -> UseCase[bool]:
    """Put an alarm into the audit log, once for each CRL; return whether it was the first time."""
    key = f"{PUBLICATION}/{alarm.kind}/{alarm.authority}/{alarm.partition}/{alarm.number}"
    entry = {
        "authority": alarm.authority,
        "partition": alarm.partition,
        "crl_number": str(alarm.number),
        "detail": alarm.detail,
    }

    def decide(facts: Facts, at: datetime) -> Decision[bool]:
        if facts.get(Answer, key) is not None:
            return Decision(answer=False)
        facts.put(
            Answer(
                id=key,
                request_sha256=hashlib.sha256(key.encode()).hexdigest(),
                attempt=None,
                refusal=None,
                detail=None,
                at=at,
            )
        )
        return Decision(True, [(alarm.kind, entry)])

    committed = yield [
        Act(
            actor=PUBLICATION,
            decide=decide,
            refuse=refuse(None, alarm.kind, entry),
            reads={Answer: (key,)},
        )
    ]
    first: bool = outcomes(committed)[0]
    return first
