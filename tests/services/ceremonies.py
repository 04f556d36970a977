"""People who attend, and how a test begins, carries out and commits a ceremony."""

from collections.abc import Mapping
from typing import Any

from birthmark.adapters.system import SystemEntropy
from birthmark.floor.authorities import Authority
from birthmark.floor.ceremonies import CeremonyRecord
from birthmark.floor.key_assets import KeyAsset
from birthmark.pki import profiles
from birthmark.ports import KeyStore
from birthmark.services.ceremonies import Bench, attend, carry_out, commit, known_of
from birthmark.services.ceremony_events import Event
from birthmark.services.ceremony_file import parse
from birthmark.services.ceremony_steps import Known, Progress
from tests.support.ceremonies import Person, carried_out, sealed
from tests.support.ceremony_files import issuing_text
from tests.support.realm import Hands, Line, hierarchy

__all__ = [
    "ANNA",
    "BELA",
    "CARL",
    "MALLORY",
    "PEOPLE",
    "begun",
    "more",
    "performed",
    "session",
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
