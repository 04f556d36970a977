"""A ceremony from its file to the log, and everything that it refuses (SPEC A1 to A5, B4)."""

import subprocess
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark import errors
from birthmark.adapters.pkcs11 import PKCS11KeyStore
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.adapters.system import SystemClock, SystemEntropy
from birthmark.floor.authorities import Authority, AuthorityStatus, Custody
from birthmark.floor.ceremonies import CeremonyRecord
from birthmark.floor.key_assets import KeyAsset, KeyPolicy, compare
from birthmark.pki import profiles
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.certificates import Certificate, assemble, to_pem
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.pki.profiles import Profile
from birthmark.pki.revocation import ReasonCode, revoked_entry
from birthmark.ports import KeyStore
from birthmark.services.ceremonies import Bench, attend, carry_out, commit, known_of, resume
from birthmark.services.ceremony_events import Event
from birthmark.services.ceremony_file import parse
from birthmark.services.ceremony_record import Record
from birthmark.services.ceremony_steps import Known, Progress
from birthmark.services.check import check
from tests.support.ceremonies import Person, carried_out, sealed
from tests.support.ceremony_files import issuing_text, realm_text
from tests.support.programs import need
from tests.support.realm import PASSPHRASE, START, Hands, Line, hierarchy, make_line
from tests.support.softhsm import softhsm_token

ANNA, BELA, CARL, MALLORY = (Person(name) for name in ("anna", "bela", "carl", "mallory"))
PEOPLE = [ANNA, BELA, CARL]


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[KeyStore]:
    made = SoftwareKeyStore.open(tmp_path / "own-keys", PASSPHRASE)
    yield made
    made.close()


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


# --- who attends --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("present", [[ANNA, BELA], [BELA, CARL], [ANNA, BELA, CARL]])
def test_two_of_three_custodians_suffice(present: list[Person]) -> None:
    progress = begun(realm_text(PEOPLE, required=2))
    progress.take(session(progress, present, Hands()))
    assert progress.attended == tuple(sorted(person.id for person in present))


def test_one_is_refused_before_anybody_is_challenged_or_any_key_touched() -> None:
    progress = begun(realm_text(PEOPLE, required=2))
    asked: list[bytes] = []

    def sign(message: bytes) -> bytes:
        asked.append(message)
        return ANNA.sign(message)

    for present in ([("anna", progress.ceremony.sha256, sign)] * 2, []):
        with pytest.raises(errors.NotPermitted, match="needs 2 of its 3 custodians"):
            attend(progress.ceremony, present, Hands(), SystemEntropy(), "online")
    assert asked == []


def test_each_custodian_gets_a_challenge_of_its_own_that_names_the_file() -> None:
    progress = begun(realm_text(PEOPLE, required=2))
    asked: list[bytes] = []

    def recording(person: Person) -> Any:
        def sign(message: bytes) -> bytes:
            asked.append(message)
            return person.sign(message)

        return sign

    sha256 = progress.ceremony.sha256
    present = [(person.id, sha256, recording(person)) for person in (ANNA, BELA)]
    first = attend(progress.ceremony, present, Hands(), SystemEntropy(), "online")
    attend(progress.ceremony, present, Hands(), SystemEntropy(), "online")
    assert len(set(asked)) == 4
    assert all(sha256.encode() in message for message in asked)
    challenges = [answer["challenge"] for answer in first["custodians"]]
    assert all(challenge.encode() in message for challenge, message in zip(challenges, asked, strict=False))


def test_another_key_under_a_custodians_name_is_refused() -> None:
    progress = begun(realm_text(PEOPLE, required=2))
    with pytest.raises(errors.ProofFailed, match="custodian bela"):
        progress.take(session(progress, [ANNA, Person("bela", MALLORY.key)], Hands()))


def test_a_changed_file_is_refused() -> None:
    reviewed = begun(realm_text(PEOPLE, required=2)).ceremony.sha256
    changed = begun(realm_text(PEOPLE, required=2).replace("quality", "mallory")).ceremony
    present = [(person.id, reviewed, person.sign) for person in (ANNA, BELA)]
    with pytest.raises(errors.NotPermitted, match="not the one that anna reviewed"):
        attend(changed, present, Hands(), SystemEntropy(), "online")


def test_signatures_for_one_file_do_not_open_another() -> None:
    here, there = begun(realm_text(PEOPLE, required=2)), begun(realm_text(PEOPLE, required=2, purpose="x"))
    event = dict(session(here, [ANNA, BELA], Hands()))
    event["custodians"] = [dict(answer, reviewed=there.ceremony.sha256) for answer in event["custodians"]]
    with pytest.raises(errors.ProofFailed):
        there.take(event)


def test_nothing_is_done_when_nobody_attends(keys: KeyStore) -> None:
    progress = begun(realm_text([ANNA]))
    with pytest.raises(errors.MalformedRequest):
        progress.take({"event": "step", "step": 0, "at": "2026-11-22T10:00:00.000Z"})
    assert keys.labels() == ()


# --- interrupted --------------------------------------------------------------------------------------------


def test_a_ceremony_goes_on_after_every_event_it_may_be_interrupted_at(tmp_path: Path) -> None:
    """Whatever became durable last (an intent, a key, a certificate, all), the next performance settles."""
    text, clock = realm_text([ANNA]), Hands()
    whole = begun(text)
    whole.take(session(whole, [ANNA], clock))
    store = SoftwareKeyStore.open(tmp_path / "whole", PASSPHRASE)
    steps(whole, {"service": store, "root": store}, clock)
    store.close()
    count = len(whole.events)
    assert count == 1 + 3 * 2 + 2
    for kept in (1, 2, 5, 8):
        keys = SoftwareKeyStore.open(tmp_path / f"keys-{kept}", PASSPHRASE)
        journal: list[Event] = []
        first = begun(text)
        first.take(session(first, [ANNA], clock))
        journal.append(first.events[0])
        dialogue = carry_out(
            first, Bench(stores={"service": keys, "root": keys}, clock=clock, entropy=SystemEntropy())
        )
        # The event after the last durable one happened, and was lost: a key that nobody wrote down, perhaps.
        for _ in range(kept + 1):
            journal.append(event) if (event := next(dialogue, None)) is not None else None
        journal = journal[: kept + 1]
        again = begun(text)
        resume(again, journal)
        again.take(session(again, [ANNA], clock))
        assert steps(again, {"service": keys, "root": keys}, clock) is None
        assert again.current is None
        assert set(keys.labels()) == {"log", "root", "issuing-1"}
        keys.close()


def test_a_key_that_the_ceremony_did_not_make_is_not_taken(keys: KeyStore) -> None:
    keys.generate(KeyLabel("log"), parse(realm_text([ANNA]).encode()).keys["log"].kind)  # type: ignore[arg-type]
    progress = begun(realm_text([ANNA]))
    progress.take(session(progress, [ANNA], Hands()))
    with pytest.raises(errors.IllegalTransition, match="a key log that this ceremony did not make"):
        steps(progress, {"service": keys, "root": keys}, Hands())


def test_a_journal_that_somebody_changed_is_refused() -> None:
    made = hierarchy().progress
    for number, event in enumerate(made.events):
        if "certificate" not in event:
            continue
        octets = bytearray(b64decode(event["certificate"]))
        octets[-1] ^= 1
        progress = Progress(made.ceremony, Known(), profiles.load)
        resume(progress, made.events[:number])
        with pytest.raises(errors.Refusal):
            progress.take(dict(event, certificate=b64encode(bytes(octets)).decode()))


@given(number=st.integers(0, 7), at=st.integers(0, 800), flip=st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_any_octet_changed_in_a_certificate_is_one_refusal(number: int, at: int, flip: int) -> None:
    made = hierarchy().progress
    number = [n for n, event in enumerate(made.events) if "certificate" in event][number % 2]
    octets = bytearray(b64decode(made.events[number]["certificate"]))
    octets[at % len(octets)] ^= flip
    progress = Progress(made.ceremony, Known(), profiles.load)
    resume(progress, made.events[:number])
    with pytest.raises(errors.Refusal):
        progress.take(dict(made.events[number], certificate=b64encode(bytes(octets)).decode()))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data(), value=_JSON)
@settings(max_examples=100, deadline=None)
def test_any_event_is_taken_or_one_refusal(data: st.DataObject, value: object) -> None:
    made = hierarchy().progress
    number = data.draw(st.integers(0, len(made.events) - 1))
    event = dict(made.events[number])
    event[data.draw(st.sampled_from(sorted(event)))] = value
    progress = Progress(made.ceremony, Known(), profiles.load)
    resume(progress, made.events[:number])
    with suppress(errors.Refusal):
        progress.take(event)


def test_no_event_belongs_after_the_last_step() -> None:
    made = hierarchy().progress
    progress = Progress(made.ceremony, Known(), profiles.load)
    resume(progress, made.events)
    last = made.events[-1]
    for event in (dict(last, step=progress.number), dict(last, event="intent", step=progress.number), last):
        with pytest.raises(errors.MalformedRequest):
            progress.take(event)
    assert progress.events == list(made.events)


def test_a_mistake_of_our_own_is_not_told_as_an_events_fault() -> None:
    made = hierarchy().progress
    number = next(n for n, event in enumerate(made.events) if "certificate" in event)
    no_profiles: dict[str, Profile] = {}
    progress = Progress(made.ceremony, Known(), no_profiles.__getitem__)
    resume(progress, made.events[:number])
    with pytest.raises(KeyError):
        progress.take(made.events[number])


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"sign": 1}, "sign of its key is neither true nor false"),
        ({"label": 7}, "'7' is no text"),
        ({"colour": "red"}, "colour"),
        ({"key_class": "public"}, "public"),
    ],
)
def test_an_event_is_read_whole_before_it_is_judged(change: dict[str, object], complaint: str) -> None:
    made = hierarchy().progress
    number, event = next((n, event) for n, event in enumerate(made.events) if "attributes" in event)
    progress = Progress(made.ceremony, Known(), profiles.load)
    resume(progress, made.events[:number])
    with pytest.raises(errors.MalformedRequest, match=f"lacks something: .*{complaint}"):
        progress.take(dict(event, attributes=event["attributes"] | change))


def test_a_key_with_other_attributes_than_ordered_is_refused() -> None:
    made = hierarchy().progress
    number, event = next((n, event) for n, event in enumerate(made.events) if "attributes" in event)
    for change in ({"sign": False}, {"derive": True}, {"fingerprint": "00" * 32}, {"kind": "ec-p384"}):
        progress = Progress(made.ceremony, Known(), profiles.load)
        resume(progress, made.events[:number])
        with pytest.raises(errors.PolicyRefused, match="the key log is not as"):
            progress.take(dict(event, attributes=event["attributes"] | change))


# --- one commit ---------------------------------------------------------------------------------------------


@pytest.fixture
def bare_line(tmp_path: Path, database_url: str) -> Iterator[Line]:
    made = make_line(tmp_path, database_url)
    yield made
    made.close()


_unique = iter(range(10_000))


def more(line: Line, *, people: list[Person] | None = None, **fields: Any) -> tuple[str, Progress]:
    """Carry out a ceremony that makes one more issuing authority; return its id and what it came to."""
    number = next(_unique)
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


def test_all_that_a_ceremony_makes_is_in_one_commit_with_the_records_hash(bare_line: Line) -> None:
    name, progress = more(bare_line, scope="product=T9", quota=5)
    before = bare_line.size()
    row = performed(bare_line, progress)
    entries = bare_line.entries(before)
    assert [entry["kind"] for entry in entries] == ["ceremony-performed", "authority-established"]
    assert entries[0]["record_sha256"] == row.record_sha256 == Record.decode(row.record).sha256
    assert entries[0]["file_sha256"] == progress.ceremony.sha256
    assert entries[0]["custodians"] == ["carla"]
    assert (entries[1]["ceremony"], entries[1]["scope"]) == (row.id, "product=T9")
    assert row.leaf == before
    made = bare_line.the(Authority, name)
    assert (made.quota, made.custody, made.issuer) == (5, Custody.SERVICE, "root")
    asset = bare_line.the(KeyAsset, made.key_label)
    assert (asset.policy, asset.ceremony) == (KeyPolicy.SIGNING, row.id)
    live = bare_line.keys.attributes(KeyLabel(made.key_label))
    assert [finding.rule for finding in compare([asset], [live], "software")] == ["development"]
    report = check(bare_line.service.store, bare_line.service.store.log, bare_line.realm)
    assert report.findings == []


def test_a_ceremony_that_was_performed_is_not_performed_again(bare_line: Line) -> None:
    _, progress = more(bare_line)
    row, size = performed(bare_line, progress), bare_line.size()
    assert performed(bare_line, progress) == row
    assert bare_line.size() == size


def test_what_a_commit_finds_taken_is_refused_whole(bare_line: Line) -> None:
    name, first = more(bare_line)
    _, second = more(bare_line, authority=name)
    performed(bare_line, first)
    with pytest.raises(errors.IllegalTransition, match=f"an authority {name} already"):
        performed(bare_line, second)
    assert bare_line.get(CeremonyRecord, second.ceremony.id) is None
    assert bare_line.get(KeyAsset, next(iter(second.keys))) is None
    assert bare_line.entries()[-1]["kind"] == "refused"


def test_strangers_do_not_perform_a_ceremony_of_the_realm(bare_line: Line) -> None:
    _, progress = more(bare_line, people=[MALLORY])
    with pytest.raises(errors.NotPermitted, match="custodians of acme-0"):
        performed(bare_line, progress, [MALLORY])


def test_the_custodians_appoint_others_and_then_those_perform(bare_line: Line) -> None:
    carla = hierarchy().custodian
    number = next(_unique)
    text = issuing_text(
        [carla, ANNA, BELA], ceremony=f"acme-{number + 1}", label=f"k-{number}", authority="a"
    )
    known = known_of(list(bare_line.service.store.scan(Authority)), [], "software")
    stores = {"service": bare_line.keys, "root": bare_line.keys}
    progress = carried_out(parse(text.encode()), [carla], stores, bare_line.clock, known=known)
    performed(bare_line, progress, [carla])
    _, after = more(bare_line, people=[ANNA])
    performed(bare_line, after, [ANNA])


def test_an_unsigned_record_is_not_committed(bare_line: Line) -> None:
    _, progress = more(bare_line)
    record = sealed(progress, [hierarchy().custodian], bare_line.clock)
    forged = replace(record, signatures=(("carla", MALLORY.sign(record.message)),))
    with pytest.raises(errors.ProofFailed):
        bare_line.service.carry(commit(bare_line.operator.caller, progress, forged, "software"))
    with pytest.raises(errors.NotPermitted):
        bare_line.service.carry(
            commit(bare_line.operator.caller, progress, replace(record, signatures=()), "software")
        )


def test_an_authority_rolls_over_with_overlap(bare_line: Line) -> None:
    """SPEC A5: both issue until the old one is retired, and its successor is known."""
    name, progress = more(bare_line, replaces="issuing-1")
    performed(bare_line, progress)
    old, new = bare_line.the(Authority, "issuing-1"), bare_line.the(Authority, name)
    assert (old.status, old.successor, new.status) == (AuthorityStatus.ACTIVE, name, AuthorityStatus.ACTIVE)
    kinds = [entry["kind"] for entry in bare_line.entries()[-3:]]
    assert kinds == ["ceremony-performed", "authority-established", "authority-succeeded"]
    with pytest.raises(errors.IllegalTransition, match="took over from issuing-1 already"):
        more(bare_line, replaces="issuing-1")
    assert check(bare_line.service.store, bare_line.service.store.log, bare_line.realm).findings == []


def test_two_do_not_take_over_from_one(bare_line: Line) -> None:
    """Two ceremonies carried out at the same time: the second to commit finds what the first did."""
    name, first = more(bare_line, replaces="issuing-1")
    _, second = more(bare_line, replaces="issuing-1")
    performed(bare_line, first)
    with pytest.raises(errors.IllegalTransition, match=f"{name} follows"):
        performed(bare_line, second)
    assert bare_line.the(Authority, "issuing-1").successor == name


def test_an_authority_is_retired_by_its_custodians(bare_line: Line) -> None:
    carla = hierarchy().custodian
    text = issuing_text([carla], ceremony="acme-retire").partition("steps:")[0]
    text += "steps:\n  - retire: issuing-1\n    reason: the contract ended\n"
    known = known_of(list(bare_line.service.store.scan(Authority)), [], "software")
    progress = carried_out(parse(text.encode()), [carla], {}, bare_line.clock, known=known)
    performed(bare_line, progress)
    assert bare_line.the(Authority, "issuing-1").status is AuthorityStatus.RETIRED
    assert bare_line.entries()[-1]["reason"] == "the contract ended"
    assert check(bare_line.service.store, bare_line.service.store.log, bare_line.realm).findings == []


# --- a licence that reaches too far (SPEC A2) ---------------------------------------------------------------

_PLANT = """\
  - generate-key: plant
    store: service
    purpose: intermediate-ca
    kind: ec-p256
  - certificate: plant
    kind: intermediate
    profile: intermediate
    key: plant
    issuer: root
    subject: {organization: Acme Motors, authority: Plant, permitted-dns-names: plant.example}
    licence:
      owner: plant manager
      scope: product=VAN|CAR;site=graz
      profiles: [vehicle, idevid]
      quota: 100
      ends: 2028-01-01
      constraints:
        - {rule: country, variable: country, equals: AT}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plant:
    """A root, and below it an intermediate authority with a narrow licence."""

    keys: KeyStore
    known: Known
    clock: Hands


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    keys = SoftwareKeyStore.open(tmp_path_factory.mktemp("plant") / "keys", PASSPHRASE)
    text = realm_text([ANNA])
    root, _, _ = text.partition("  - generate-key: issuing-1")
    root = root.replace('organization: "Acme Motors"', 'organization: "Acme Motors"\n      path-len: "2"')
    progress = carried_out(parse((root + _PLANT).encode()), [ANNA], {"service": keys, "root": keys}, Hands())
    known = Known(
        authorities=progress.authorities, stores={"plant": "service", "root": "root", "log": "service"}
    )
    yield Plant(keys=keys, known=known, clock=Hands())
    keys.close()


_CHILD = """\
  - generate-key: {label}
    store: service
    purpose: {purpose}
    kind: ec-p256
  - certificate: vans
    kind: {kind}
    profile: {profile}
    key: {label}
    issuer: plant
    subject: {subject}
    licence:
      owner: line 4
      scope: {scope}
      profiles: {profiles}
      quota: {quota}
      ends: {ends}
"""
_WITHIN: dict[str, str] = {
    "kind": "issuing",
    "purpose": "issuing-ca",
    "profile": "issuing",
    "subject": "{organization: Acme Motors, authority: Vans}",
    "scope": "product=VAN;site=graz",
    "profiles": "[vehicle]",
    "quota": "100",
    "ends": "2027-06-01",
}


def child(plant: Plant, **changes: str) -> Progress:
    top = realm_text([ANNA], ceremony=f"acme-{next(_unique)}").partition("steps:\n")[0] + "steps:\n"
    text = top + _CHILD.format(**(_WITHIN | changes), label=f"vans-{next(_unique)}")
    if changes.get("quota") == "":
        text = text.replace("      quota: \n", "")
    stores = {"service": plant.keys, "root": plant.keys}
    return carried_out(parse(text.encode()), [ANNA], stores, plant.clock, known=plant.known)


def test_a_child_within_its_parents_licence_is_made_and_keeps_its_constraints(plant: Plant) -> None:
    made = child(plant).authorities["vans"]
    assert made.scope == "product=VAN;site=graz"
    assert made.constraints == '[{"equals":"AT","rule":"country","variable":"country"}]'


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"scope": "product=VAN"}, "may not reach further than plant.*site is \\*"),
        ({"scope": "'*'"}, "may not reach further than plant.*product is \\*"),
        ({"scope": "product=VAN|TRUCK;site=graz"}, "may not reach further than plant"),
        ({"quota": "101"}, "may not issue more than plant may: 100"),
        ({"quota": ""}, "may not issue more than plant may: 100"),
        ({"ends": "2028-01-02"}, "may not issue after plant ends"),
        ({"profiles": "['*']"}, "plant allows idevid vehicle"),
        ({"profiles": "[vehicle, matter-dac]"}, "plant allows idevid vehicle"),
        (
            {
                "kind": "intermediate",
                "purpose": "intermediate-ca",
                "profile": "intermediate",
                "subject": "{organization: A, authority: V, path-len: '1'}",
            },
            "pathLen is 1",
        ),
        (
            {
                "kind": "intermediate",
                "purpose": "intermediate-ca",
                "profile": "intermediate",
                "subject": "{organization: A, authority: V, path-len: '0', permitted-dns-names: ex}",
            },
            "permits more than the authority above",
        ),
        ({"subject": "{organization: A, authority: V, country: DE}"}, "country"),
        ({"subject": "{organization: A, authority: V, realm: other}"}, "realm is the realm's"),
        ({"subject": "{organization: A, authority: V, station: x}"}, "does not use station"),
        ({"profile": "vehicle", "subject": "{}"}, "not for authorities"),
        ({"ends": "2025-01-01"}, "would have ended already"),
    ],
)  # fmt: skip
def test_an_authority_that_breaks_its_parents_licence_cannot_be_made(
    plant: Plant, changes: dict[str, str], complaint: str
) -> None:
    with pytest.raises(errors.Refusal, match=complaint):
        child(plant, **changes)


@pytest.mark.parametrize(
    "status", [AuthorityStatus.SUSPENDED, AuthorityStatus.RETIRED, AuthorityStatus.REVOKED]
)
def test_an_authority_that_is_not_active_certifies_nobody(plant: Plant, status: AuthorityStatus) -> None:
    idle = replace(plant.known.authorities["plant"], status=status)
    known = replace(plant.known, authorities={**plant.known.authorities, "plant": idle})
    with pytest.raises(errors.IllegalTransition, match=f"plant is {status}"):
        child(replace(plant, known=known))


def test_a_parent_that_changed_meanwhile_is_seen_in_the_commit(bare_line: Line) -> None:
    """SPEC A2: what held when the certificate was signed must hold when the authority is established."""
    _, progress = more(bare_line)
    change = bare_line.service.authorise.change
    bare_line.service.carry(change(bare_line.operator.caller, "root", AuthorityStatus.SUSPENDED, "audit"))
    with pytest.raises(errors.IllegalTransition, match="authority root is suspended"):
        performed(bare_line, progress)


# --- a key elsewhere ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """A ceremony whose root key is on another machine, as far as the answer."""

    text: str
    asked: list[Event]
    answer: list[Event]
    clock: Hands
    there: KeyStore


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    place, clock = tmp_path_factory.mktemp("journey"), Hands()
    here = SoftwareKeyStore.open(place / "here", PASSPHRASE)
    there = SoftwareKeyStore.open(place / "there", PASSPHRASE)
    text = realm_text(PEOPLE, required=2)
    # On the way out the log's key is made; the root's key and certificate are made offline; back online the
    # issuing key is made, and travels.
    online = begun(text)
    online.take(session(online, [ANNA, BELA], clock))
    waiting = steps(online, {"service": here}, clock)
    assert (waiting.step, waiting.store) == (2, "root")
    offline = begun(text)
    resume(offline, online.events)
    offline.take(session(offline, [BELA, CARL], clock, "offline"))
    waiting = steps(offline, {"root": there}, clock)
    assert (waiting.step, waiting.store) == (4, "service")
    back = begun(text)
    resume(back, offline.events)
    waiting = steps(back, {"service": here}, clock)
    assert (waiting.step, waiting.store) == (5, "root")
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
    here.close()
    asked = list(back.events)
    yield Journey(text=text, asked=asked, answer=list(again.events[len(asked) :]), clock=clock, there=there)
    there.close()


def test_what_was_made_offline_is_taken_when_it_is_what_the_file_orders(journey: Journey) -> None:
    progress = begun(journey.text)
    resume(progress, [*journey.asked, *journey.answer])
    assert progress.current is None
    assert progress.authorities["root"].custody is Custody.OFFLINE
    assert {one.place for one in progress.sessions} == {"online", "offline"}
    assert sealed(progress, [ANNA, BELA], journey.clock).signers == ("anna", "bela")


_ALTERED: dict[str, tuple[dict[str, Any], str]] = {
    "another subject": ({"subject": "Mallory CA"}, "subject"),
    "another key": ({"key": MALLORY.key.public_key()}, "subject public key info"),
    "another issuer": ({"issuer": "Mallory Root"}, "issuer"),
    "another begin": ({"begin": timedelta(seconds=30)}, "it begins"),
    "an earlier end": ({"end": datetime(2031, 1, 1, tzinfo=UTC)}, "not after"),
    "a short serial number": ({"serial": 5}, "serialNumber has"),
    "another path length": ({"replace": x509.BasicConstraints(ca=True, path_length=1)}, "extensions"),
    "no authority": ({"replace": x509.BasicConstraints(ca=False, path_length=None)}, "extensions"),
    "a missing extension": ({"drop": x509.KeyUsage}, "extensions"),
    "one more extension": (
        {"add": x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])}, "extensions"
    ),
    "another criticality": ({"critical": False}, "criticality"),
    "another signer": ({"signer": MALLORY}, "signed by root"),
}  # fmt: skip


def altered(original: bytes, root: KeyStore, changes: dict[str, Any]) -> bytes:
    """Return the certificate with one thing changed, signed all the same."""
    old = x509.load_der_x509_certificate(original)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .serial_number(changes.get("serial", old.serial_number))
        .issuer_name(name(changes["issuer"]) if "issuer" in changes else old.issuer)
        .subject_name(name(changes["subject"]) if "subject" in changes else old.subject)
        .not_valid_before(old.not_valid_before_utc + changes.get("begin", timedelta()))
        .not_valid_after(changes.get("end", old.not_valid_after_utc))
        .public_key(changes.get("key", old.public_key()))
    )
    for extension in old.extensions:
        value = extension.value
        if isinstance(value, changes.get("drop", ())):
            continue
        if isinstance(value, x509.BasicConstraints):
            value = changes.get("replace", value)
            critical = changes.get("critical", True)
        else:
            critical = extension.critical
        builder = builder.add_extension(value, critical=critical)
    if "add" in changes:
        builder = builder.add_extension(changes["add"], critical=False)
    made = builder.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    signer: Person | None = changes.get("signer")
    tbs = made.tbs_certificate_bytes
    signature = signer.sign(tbs) if signer else root.sign(KeyLabel("root"), tbs)
    return assemble(tbs, ALGORITHMS[KeyAlgorithm.EC_P256].signature_algorithm, signature)


@pytest.mark.parametrize("case", _ALTERED)
def test_a_certificate_from_offline_that_differs_in_anything_is_refused(journey: Journey, case: str) -> None:
    changes, complaint = _ALTERED[case]
    octets = altered(b64decode(journey.answer[1]["certificate"]), journey.there, changes)
    progress = begun(journey.text)
    resume(progress, [*journey.asked, journey.answer[0]])
    with pytest.raises(errors.PolicyRefused, match=complaint):
        progress.take(dict(journey.answer[1], certificate=b64encode(octets).decode()))
    progress.take(journey.answer[1])


def test_an_answer_that_too_few_attended_is_refused(journey: Journey) -> None:
    progress = begun(journey.text)
    resume(progress, journey.asked)
    alone = dict(journey.answer[0], custodians=journey.answer[0]["custodians"][:1])
    with pytest.raises(errors.NotPermitted, match="needs 2 of its 3 custodians"):
        progress.take(alone)


# --- keys and certificates of others (SPEC A4) --------------------------------------------------------------


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root that OpenSSL made, and that knows nothing of us."""
    place = tmp_path_factory.mktemp("group")
    subprocess.run(
        [
            need("openssl"), "req", "-x509", "-newkey", "rsa:3072", "-nodes", "-days", "7300",
            "-keyout", place / "root.key", "-out", place / "root.crt", "-subj", "/O=Group/CN=Group Root",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return place


_FOREIGN = """\
  - import-authority: group
    kind: root
    issuer: self
    sha256: {sha256}
    certificate: |
{pem}
    licence:
      owner: the group's own authority
"""
_OURS = """\
  - generate-key: below-group
    store: service
    purpose: issuing-ca
    kind: ec-p256
  - certificate: below-group
    kind: issuing
    profile: issuing
    key: below-group
    issuer: group
    subject: {organization: Acme Motors, authority: Acme under Group}
    not-after: 2030-01-01
    licence:
      owner: quality
      ends: 2030-01-01
"""


def now_hands() -> Hands:
    """A clock that shows what OpenSSL's shows, and a minute more."""
    return Hands(SystemClock().now().replace(microsecond=0) + timedelta(minutes=1))


def foreign_text(group: Path, rest: str = _OURS) -> str:
    root = Certificate.from_pem((group / "root.crt").read_text())
    pem = "\n".join(f"      {line}" for line in root.pem.splitlines())
    top = realm_text([ANNA]).partition("steps:\n")[0] + "steps:\n"
    return top + _FOREIGN.format(sha256=root.fingerprint, pem=pem) + rest


def signed_by_group(group: Path, request: bytes, *, days: int = 3650, extensions: str) -> bytes:
    """Return what the group's people make of our request."""
    (group / "our.csr").write_text(to_pem(request, "CERTIFICATE REQUEST"))
    (group / "ext").write_text(extensions)
    subprocess.run(
        [
            need("openssl"), "x509", "-req", "-in", group / "our.csr", "-CA", group / "root.crt",
            "-CAkey", group / "root.key", "-CAcreateserial", "-days", str(days), "-extfile", group / "ext",
            "-out", group / "our.crt",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return Certificate.from_pem((group / "our.crt").read_text()).der


GOOD = (
    "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n"
    "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
)


@pytest.fixture(scope="module")
def asked_group(group: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Event], bytes]:
    """Events up to the request, and the request."""
    keys = SoftwareKeyStore.open(tmp_path_factory.mktemp("byo") / "keys", PASSPHRASE)
    clock = now_hands()
    progress = begun(foreign_text(group))
    progress.take(session(progress, [ANNA], clock))
    waiting = steps(progress, {"service": keys}, clock)
    keys.close()
    assert (waiting.step, waiting.store) == (3, "")
    return list(progress.events), waiting.request


def test_our_authority_under_a_foreign_root_is_established_with_its_certificate(
    group: Path, asked_group: tuple[list[Event], bytes]
) -> None:
    events, request = asked_group
    certificate = signed_by_group(group, request, extensions=GOOD)
    progress = begun(foreign_text(group))
    resume(progress, events)
    assert steps(progress, {}, now_hands(), brought=certificate) is None
    ours, theirs = progress.authorities["below-group"], progress.authorities["group"]
    assert (ours.issuer, ours.custody, theirs.custody) == ("group", Custody.SERVICE, Custody.FOREIGN)
    assert theirs.key_label == ""
    (group / "ours.crt").write_text(to_pem(ours.der))
    subprocess.run(
        [need("openssl"), "verify", "-x509_strict", "-CAfile", group / "root.crt", group / "ours.crt"],
        check=True, capture_output=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("extensions", "days", "complaint"),
    [
        (GOOD.replace(",pathlen:0", ""), 3650, "path length"),
        (GOOD.replace("pathlen:0", "pathlen:3"), 3650, "path length"),
        (GOOD.replace("CA:TRUE,pathlen:0", "CA:FALSE"), 3650, "does not let it certify"),
        (GOOD.replace(",cRLSign", ""), 3650, "key usage"),
        (GOOD, 30, "its end"),
    ],
    ids=["no path length", "longer path", "no authority", "signs no lists", "ends early"],
)
def test_a_foreign_certificate_that_falls_short_is_refused(
    group: Path, asked_group: tuple[list[Event], bytes], extensions: str, days: int, complaint: str
) -> None:
    events, request = asked_group
    certificate = signed_by_group(group, request, extensions=extensions, days=days)
    progress = begun(foreign_text(group))
    resume(progress, events)
    with pytest.raises(errors.PolicyRefused, match=complaint):
        steps(progress, {}, now_hands(), brought=certificate)


def test_a_certificate_for_another_key_or_of_another_root_is_refused(
    group: Path, asked_group: tuple[list[Event], bytes]
) -> None:
    events, _ = asked_group
    for certificate in (hierarchy().issuing, hierarchy().root):
        progress = begun(foreign_text(group))
        resume(progress, events)
        with pytest.raises(errors.PolicyRefused, match="not as the ceremony's file orders"):
            steps(progress, {}, now_hands(), brought=certificate)


def test_a_foreign_certificate_is_imported_by_its_hash_only(group: Path) -> None:
    text = foreign_text(group, "")
    with pytest.raises(errors.MalformedRequest, match="sha256: the certificate's is"):
        begun(text.replace("sha256: ", "sha256: 00"))
    issuing_pem = to_pem(hierarchy().issuing)
    root = Certificate.from_pem((group / "root.crt").read_text())
    block = "\n".join(f"      {line}" for line in root.pem.splitlines())
    other = "\n".join(f"      {line}" for line in issuing_pem.splitlines())
    wrong = text.replace(block, other).replace(
        root.fingerprint, Certificate.from_der(hierarchy().issuing).fingerprint
    )
    progress = begun(wrong)
    progress.take(session(progress, [ANNA], now_hands()))
    with pytest.raises(errors.PolicyRefused, match="not signed by self"):
        steps(progress, {}, now_hands())


def test_a_foreign_certificate_with_names_nobody_reads_is_one_refusal(group: Path) -> None:
    """An x400Address (RFC 5280 section 4.2.1.6) is a name that the library does not read."""
    text = foreign_text(group, "")
    root = Certificate.from_pem((group / "root.crt").read_text())
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Group Root")])
    names = x509.UnrecognizedExtension(ExtensionOID.SUBJECT_ALTERNATIVE_NAME, bytes.fromhex("3004a3023000"))
    odd = to_pem(
        x509.CertificateBuilder(name, name, key.public_key(), 7, START, datetime(2030, 1, 1, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(names, critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    block, other = ("\n".join(f"      {line}" for line in pem.splitlines()) for pem in (root.pem, odd))
    progress = begun(
        text.replace(block, other).replace(root.fingerprint, Certificate.from_pem(odd).fingerprint)
    )
    progress.take(session(progress, [ANNA], now_hands()))
    with pytest.raises(errors.PolicyRefused, match="x400Address"):
        steps(progress, {}, now_hands())


def test_a_cross_certificate_has_the_authoritys_name_and_key(keys: KeyStore, tmp_path: Path) -> None:
    """SPEC A5: whoever believes the old root believes what the new one certifies."""
    text = realm_text([ANNA, BELA], required=2, environment="production")
    first = text.partition("  - generate-key: issuing-1")[0]
    first = first.replace('organization: "Acme Motors"', 'organization: "Acme Motors"\n      path-len: "2"')
    second = first[first.index("  - generate-key: root\n") :].replace('"Acme Motors"', '"Acme Neu"')
    for old in ("generate-key: root", "certificate: root", "    key: root"):
        second = second.replace(old, f"{old}-2")
    cross = (
        "  - cross-certificate: root-2-by-root\n    authority: root-2\n    issuer: root\n"
        "    profile: intermediate\n"
        "    subject: {organization: Acme Neu, authority: NAME, path-len: '1'}\n"
    )
    stores, people = {"service": keys, "root": keys}, [ANNA, BELA]
    made = carried_out(
        parse((first + second + cross.replace("NAME", "acme Root CA")).encode()), people, stores, Hands()
    )
    assert set(made.authorities) == {"root", "root-2"}
    for name in ("root", "root-2-by-root"):
        (tmp_path / f"{name}.crt").write_text(to_pem(made.certificates[name]))
    command: list[str | Path] = [
        need("openssl"),
        "verify",
        "-no_check_time",
        "-x509_strict",
        "-CAfile",
        tmp_path / "root.crt",
    ]
    subprocess.run([*command, tmp_path / "root-2-by-root.crt"], check=True, capture_output=True)
    first_one = Certificate.from_der(made.certificates["root-2"])
    crossed = Certificate.from_der(made.certificates["root-2-by-root"])
    assert first_one.subject_name == crossed.subject_name
    assert first_one.subject_public_key_info == crossed.subject_public_key_info
    wrong = Progress(
        parse((first + second + cross.replace("NAME", "Root CA")).encode()), Known(), profiles.load
    )
    assert wrong.ceremony.sha256 != made.ceremony.sha256
    fresh = SoftwareKeyStore.open(tmp_path / "fresh", PASSPHRASE)
    wrong.take(session(wrong, people, Hands()))
    with pytest.raises(errors.PolicyRefused, match="its subject is not root-2's"):
        steps(wrong, {"service": fresh, "root": fresh}, Hands())
    fresh.close()


# --- lists of revocations -----------------------------------------------------------------------------------


def test_a_root_signs_exactly_the_list_that_the_file_names(bare_line: Line) -> None:
    carla, at = hierarchy().custodian, START
    serial = Certificate.from_der(hierarchy().issuing).serial_hex
    entry = revoked_entry(int(serial, 16), at, ReasonCode.CA_COMPROMISE)
    known = known_of(list(bare_line.service.store.scan(Authority)), [], "software")

    def ordered(revoked: str) -> Progress:
        text = issuing_text([carla], ceremony="acme-crl").partition("steps:")[0]
        text += f"steps:\n  - sign-crl: root\n    next-update: 2027-01-01\n    revoked: [{revoked}]\n"
        return carried_out(
            parse(text.encode()),
            [carla],
            {"root": bare_line.keys},
            bare_line.clock,
            known=known,
            lines={"root": entry},
        )

    octets = ordered(serial).crls["root"]
    crl = x509.load_der_x509_crl(octets)
    key = x509.load_der_x509_certificate(hierarchy().root).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert crl.is_signature_valid(key)
    assert [f"{one.serial_number:040x}" for one in crl] == [serial]
    with pytest.raises(errors.PolicyRefused, match="it lists"):
        ordered("")
    with pytest.raises(errors.PolicyRefused, match="it lists"):
        ordered(f"{serial}, 4a")


@pytest.mark.parametrize(
    ("change", "refusal"),
    [
        ({"custody": Custody.FOREIGN, "key_label": ""}, errors.NotPermitted),
        ({"status": AuthorityStatus.REVOKED}, errors.IllegalTransition),
        ({"status": AuthorityStatus.SUSPENDED}, None),
        ({"status": AuthorityStatus.RETIRED}, None),
    ],
)
def test_an_authority_signs_its_list_as_long_as_it_has_the_key_and_is_believed(
    bare_line: Line, change: dict[str, Any], refusal: type[errors.Refusal] | None
) -> None:
    carla = hierarchy().custodian
    known = known_of(list(bare_line.service.store.scan(Authority)), [], "software")
    root = replace(known.authorities["root"], **change)
    known = replace(known, authorities={**known.authorities, "root": root})
    text = issuing_text([carla], ceremony="acme-crl").partition("steps:")[0]
    text += "steps:\n  - sign-crl: root\n    next-update: 2027-01-01\n    revoked: []\n"
    signed = partial(
        carried_out, parse(text.encode()), [carla], {"root": bare_line.keys}, bare_line.clock, known=known
    )
    if refusal is None:
        assert list(signed().crls) == ["root"]
    else:
        with pytest.raises(refusal, match="authority root"):
            signed()


# --- a token ------------------------------------------------------------------------------------------------


def test_a_ceremony_makes_its_keys_in_a_token(tmp_path: Path) -> None:
    text = realm_text([ANNA]).replace(
        "    purpose: issuing-ca\n", "    purpose: issuing-ca\n    exportable-under-kek: true\n"
    )
    master = "  - generate-key: master-1\n    store: service\n    purpose: master-diversification\n"
    master += "    kind: master-aes-128\n"
    with softhsm_token(tmp_path) as token:
        service = PKCS11KeyStore.open(token.module, token.label, token.pin)
        root = SoftwareKeyStore.open(tmp_path / "root", PASSPHRASE)
        try:
            progress = carried_out(
                parse((text + master).encode()), [ANNA], {"service": service, "root": root}, Hands()
            )
        finally:
            service.close()
            root.close()
    issuing_key, log = progress.keys["issuing-1"].attributes, progress.keys["log"].attributes
    assert (log.never_extractable, log.sensitive, log.development) == (True, True, False)
    assert (issuing_key.extractable, issuing_key.wrap_with_trusted) == (True, True)
    assert progress.keys["issuing-1"].asset("acme-1", "floor").policy is KeyPolicy.SIGNING_WITH_BACKUP
    assert progress.keys["master-1"].public == b""
    assert progress.keys["root"].attributes.development
