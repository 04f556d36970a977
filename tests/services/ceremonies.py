"""People who attend, and how a test begins, carries out and commits a ceremony."""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.authorities import Authority
from birthmark.floor.ceremonies import CeremonyRecord
from birthmark.floor.key_assets import KeyAsset
from birthmark.pki import profiles
from birthmark.pki.certificates import to_pem
from birthmark.ports import KeyStore
from birthmark.services.ceremonies import Bench, attend, carry_out, commit, hand_over, known_of, resume
from birthmark.services.ceremony_events import Event
from birthmark.services.ceremony_file import parse
from birthmark.services.ceremony_steps import Known, Progress
from tests.support.ceremonies import Person, carried_out, sealed
from tests.support.ceremony_files import issuing_text, realm_text
from tests.support.programs import need
from tests.support.realm import PASSPHRASE, Hands, Line, hierarchy

__all__ = [
    "ANNA",
    "BELA",
    "CARL",
    "CONTEXT",
    "MALLORY",
    "PEOPLE",
    "Journey",
    "begun",
    "journey_in",
    "more",
    "performed",
    "session",
    "signed",
    "steps",
    "unique",
]

ANNA, BELA, CARL, MALLORY = (Person(name) for name in ("anna", "bela", "carl", "mallory"))
PEOPLE = [ANNA, BELA, CARL]
unique = iter(range(10_000))
"""Numbers for ids that nothing else in this process has."""


def begun(text: str, known: Known | None = None) -> Progress:
    return Progress(parse(text.encode()), known or Known(), profiles.load)


def session(progress: Progress, people: list[Person], clock: Hands, place: str = "online") -> Event:
    ceremony = progress.ceremony
    present = [(person.id, ceremony.sha256, person.sign) for person in people]
    return attend(ceremony, present, clock, SystemEntropy(), place)


def steps(progress: Progress, stores: Mapping[str, KeyStore], clock: Hands, **more: Any) -> Any:
    """Carry out what can be done; return what is waited for."""
    dialogue = carry_out(progress, Bench(stores=stores, clock=clock, entropy=SystemEntropy(), **more))
    while True:
        try:
            next(dialogue)
        except StopIteration as done:
            return done.value


def more(line: Line, *, people: list[Person] | None = None, **fields: Any) -> tuple[str, Progress]:
    """Carry out a ceremony that makes one more issuing authority; return its id and what it came to."""
    number = next(unique)
    name = fields.pop("authority", f"trucks-{number}")
    there = people or [hierarchy().custodian]
    values = {"label": f"trucks-{number}", "authority": name, "ceremony": f"acme-{number + 1}"} | fields
    text = issuing_text(there, **values)
    known = known_of(
        list(line.service.store.scan(Authority)), list(line.service.store.scan(KeyAsset)), "software"
    )
    stores = {"service": line.keys, "root": line.keys}
    return name, carried_out(parse(text.encode()), there, stores, line.clock, known=known)


def performed(line: Line, progress: Progress, people: list[Person] | None = None) -> CeremonyRecord:
    record = sealed(progress, people or [hierarchy().custodian], line.clock)
    return line.service.carry(commit(line.operator.caller, progress, record, "software")).row


# --- a key elsewhere ----------------------------------------------------------------------------------------

CONTEXT = "ab" * 32
"""What a request says beside the events, where a test does not care."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """A ceremony whose root key is on another machine, as far as the second answer."""

    text: str
    first: list[Event]
    """What the first request brings: the log's key is made, the root's is wanted."""
    first_answer: list[Event]
    asked: list[Event]
    answer: list[Event]
    clock: Hands
    there: KeyStore


def signed(progress: Progress, people: list[Person], clock: Hands) -> Event:
    return hand_over(progress, [(person.id, person.sign) for person in people], clock, CONTEXT)


@contextmanager
def journey_in(place: Path) -> Iterator[Journey]:
    """On the way out the log's key is made; the root's key and certificate are made offline; back online the
    issuing key is made, and travels."""
    clock = Hands()
    here = SoftwareKeyStore.open(place / "here", PASSPHRASE)
    there = SoftwareKeyStore.open(place / "there", PASSPHRASE)
    text = realm_text(PEOPLE, required=2)
    online = begun(text)
    online.take(session(online, [ANNA, BELA], clock))
    waiting = steps(online, {"service": here}, clock)
    assert (waiting.step, waiting.store) == (2, "root")
    signed(online, [ANNA, BELA], clock)
    offline = begun(text)
    resume(offline, online.events)
    offline.take(session(offline, [BELA, CARL], clock, "offline"))
    waiting = steps(offline, {"root": there}, clock)
    assert (waiting.step, waiting.store) == (4, "service")
    signed(offline, [BELA, CARL], clock)
    back = begun(text)
    resume(back, offline.events)
    back.take(session(back, [ANNA, BELA], clock))
    waiting = steps(back, {"service": here}, clock)
    assert (waiting.step, waiting.store) == (5, "root")
    signed(back, [ANNA, BELA], clock)
    request = subprocess.run(
        [need("openssl"), "req", "-verify", "-noout", "-subject"],
        input=to_pem(waiting.request, "CERTIFICATE REQUEST").encode(), capture_output=True, check=True,
    )  # fmt: skip
    assert b"acme Issuing CA 1 TEST" in request.stdout + request.stderr
    again = begun(text)
    resume(again, back.events)
    clock.turn(minutes=5)
    again.take(session(again, [ANNA, CARL], clock, "offline"))
    assert steps(again, {"root": there}, clock) is None
    signed(again, [ANNA, CARL], clock)
    here.close()
    first, asked = list(online.events), list(back.events)
    yield Journey(
        text=text,
        first=first,
        first_answer=list(offline.events[len(first) :]),
        asked=asked,
        answer=list(again.events[len(asked) :]),
        clock=clock,
        there=there,
    )
    there.close()
