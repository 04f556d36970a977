"""Nobody on the way between two machines changes a ceremony: what leaves one is signed there (SPEC A3)."""

from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.floor.ceremonies import CeremonyRecord
from birthmark.ledger.checkpoint import VerifierKey, vkey
from birthmark.pki import profiles
from birthmark.services.ceremonies import resume
from birthmark.services.ceremony_events import Event
from birthmark.services.ceremony_handover import require_answer, require_request
from birthmark.services.ceremony_record import Record, pages, verify
from birthmark.services.check_ceremonies import CeremonySaid, check_ceremonies
from tests.services.ceremonies import (
    ANNA,
    BELA,
    CARL,
    CONTEXT,
    MALLORY,
    Journey,
    begun,
    journey_in,
    session,
    steps,
)
from tests.support.ceremonies import Person, sealed
from tests.support.realm import PASSPHRASE, Hands


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    with journey_in(tmp_path_factory.mktemp("journey")) as found:
        yield found


@pytest.fixture(scope="module")
def evil(journey: Journey, tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    """What somebody makes of the first request with a store of his own, and no custodian: another root."""
    store = SoftwareKeyStore.open(tmp_path_factory.mktemp("evil") / "keys", PASSPHRASE)
    progress = begun(journey.text)
    resume(progress, journey.first[:-1])
    steps(progress, {"root": store}, Hands())
    store.close()
    made = progress.events[len(journey.first) - 1 :]
    assert [event["event"] for event in made] == ["intent", "step", "step"]
    return made


def answered(journey: Journey, answer: list[Event]) -> None:
    """Look at an answer to the first request as the command does."""
    ceremony = begun(journey.text).ceremony
    require_answer(ceremony, [event for event in journey.first if event["event"] == "step"], answer)


def test_the_genuine_answer_is_taken(journey: Journey) -> None:
    answered(journey, journey.first_answer)
    progress = begun(journey.text)
    resume(progress, [*journey.first, *journey.first_answer])
    progress.take(session(progress, [ANNA, BELA], journey.clock))
    assert "root" in progress.authorities


def test_steps_that_no_custodian_attended_are_no_answer(journey: Journey, evil: list[Event]) -> None:
    """The session of the first machine does not stand for one on the other."""
    with pytest.raises(errors.NotPermitted, match="no custodian attended"):
        answered(journey, evil)
    progress = begun(journey.text)
    resume(progress, journey.first)
    with pytest.raises(errors.MalformedRequest, match="no event 'intent' belongs"):
        progress.take(evil[0])


def test_a_genuine_session_does_not_vouch_for_others_events(journey: Journey, evil: list[Event]) -> None:
    genuine, *_, handover = journey.first_answer
    for answer in ([genuine, *evil, handover], [genuine, *evil]):
        with pytest.raises(errors.ProofFailed):
            answered(journey, answer)
    with pytest.raises(errors.NotPermitted, match="made offline, and nothing else"):
        answered(journey, [dict(genuine, place="online"), *evil])
    progress = begun(journey.text)
    resume(progress, [*journey.first, genuine, *evil])
    with pytest.raises(errors.ProofFailed, match="not of the key"):
        progress.take(handover)
    with pytest.raises(errors.ProofFailed, match="no custodian signed what was made offline"):
        progress.take(session(progress, [ANNA, BELA], journey.clock))


def resigned(answer: list[Event], names: list[str], messages: list[bytes], people: list[Person]) -> Event:
    signatures = [
        {"custodian": name, "signature": b64encode(person.sign(message)).decode()}
        for name, message, person in zip(names, messages, people, strict=True)
    ]
    return dict(answer[-1], signatures=signatures)


def test_an_answer_is_signed_by_as_many_as_the_file_requires_and_by_those_who_attended(
    journey: Journey,
) -> None:
    progress = begun(journey.text)
    resume(progress, [*journey.first, *journey.first_answer[:-1]])
    message = progress.handover_message(CONTEXT)
    for names, people, refusal in (
        (["bela"], [BELA], errors.NotPermitted),
        (["bela", "bela"], [BELA, BELA], errors.NotPermitted),
        ([], [], errors.NotPermitted),
        (["bela", "anna"], [BELA, ANNA], errors.NotPermitted),
        (["bela", "carl"], [BELA, MALLORY], errors.ProofFailed),
    ):
        event = resigned(journey.first_answer, names, [message] * len(names), people)
        with pytest.raises(refusal):
            progress.take(event)
        with pytest.raises(refusal):
            answered(journey, [*journey.first_answer[:-1], event])
    progress.take(resigned(journey.first_answer, ["bela", "carl"], [message] * 2, [BELA, CARL]))


def test_an_answer_to_another_request_is_none(journey: Journey) -> None:
    with pytest.raises(errors.ProofFailed):
        answered(journey, journey.answer)


def test_a_request_with_another_key_in_it_is_refused_where_the_root_is(
    journey: Journey, tmp_path: Path
) -> None:
    """Else the genuine root would certify a stranger's key, and the stranger has the certificate."""
    store = SoftwareKeyStore.open(tmp_path / "evil", PASSPHRASE)
    progress = begun(journey.text)
    until = max(number for number, event in enumerate(journey.asked) if event["event"] == "session") + 1
    resume(progress, journey.asked[:until])
    steps(progress, {"service": store}, Hands())
    store.close()
    there = begun(journey.text)
    with pytest.raises(errors.ProofFailed):
        resume(there, [*progress.events, journey.asked[-1]])
    there = begun(journey.text)
    resume(there, progress.events)
    with pytest.raises(errors.ProofFailed, match="no custodian signed what was made online"):
        there.take(session(there, [ANNA, CARL], journey.clock, "offline"))


def test_what_a_request_says_was_there_before_is_what_was_signed(journey: Journey) -> None:
    require_request(journey.asked, CONTEXT)
    with pytest.raises(errors.ProofFailed, match="was there before"):
        require_request(journey.asked, "cd" * 32)
    with pytest.raises(errors.ProofFailed, match="no custodian signed the request"):
        require_request(journey.asked[:-1], CONTEXT)


def found_by_check(journey: Journey, record: Record) -> list[str]:
    ceremony = begun(journey.text).ceremony
    row = CeremonyRecord(
        id=ceremony.id,
        file=ceremony.file,
        file_sha256=ceremony.sha256,
        record=record.encode(),
        record_sha256=record.sha256,
        performed_at=journey.clock.now(),
        leaf=0,
    )
    said = {row.id: CeremonySaid(file_sha256=ceremony.sha256, record_sha256=record.sha256, leaf=0)}
    found: list[str] = []
    check_ceremonies(found.append, [row], said, profiles.load)
    return found


def test_a_record_without_what_was_signed_offline_is_refused_whoever_signed_it(journey: Journey) -> None:
    """Not even the custodians' signatures over the whole record make up for the answer's."""
    progress = begun(journey.text)
    resume(progress, [*journey.asked, *journey.answer])
    whole = sealed(progress, [ANNA, BELA], journey.clock)
    assert found_by_check(journey, whole) == []
    handovers = [n for n, event in enumerate(whole.body["events"]) if event["event"] == "handover"]
    assert len(handovers) == 4
    for number in handovers:
        events = [event for n, event in enumerate(whole.body["events"]) if n != number]
        unsigned = replace(whole, body={**whole.body, "events": events}, signatures=())
        people = [(one.id, one.sign(unsigned.message)) for one in (ANNA, BELA, CARL)]
        record = replace(unsigned, signatures=tuple(people))
        (found,) = found_by_check(journey, record)
        assert "no custodian signed what was made" in found
        key = VerifierKey.parse(vkey("acme/log", bytes(32)))
        with pytest.raises(errors.ProofFailed, match="no custodian signed what was made"):
            verify(progress.ceremony.file, record.encode(), pages(progress, record), "", key, profiles.load)
