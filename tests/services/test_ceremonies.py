"""A ceremony from its file to the log, and everything that it refuses (SPEC A1 to A5, B4)."""

from base64 import b64decode, b64encode
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark import errors
from birthmark.adapters.pkcs11 import PKCS11KeyStore
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.adapters.softsecrets import check_value, share_with
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.authorities import Authority, AuthorityStatus, Custody
from birthmark.floor.ceremonies import CeremonyRecord
from birthmark.floor.key_assets import KeyAsset, KeyPolicy, compare
from birthmark.pki import profiles
from birthmark.pki.attributes import SecretKind
from birthmark.pki.certificates import Certificate
from birthmark.pki.keys import KeyLabel
from birthmark.pki.profiles import Profile
from birthmark.pki.revocation import ReasonCode, revoked_entry
from birthmark.ports import KeyStore
from birthmark.secret import SecretBytes
from birthmark.services.ceremonies import Bench, attend, carry_out, commit, known_of, resume
from birthmark.services.ceremony_events import Event
from birthmark.services.ceremony_file import parse
from birthmark.services.ceremony_record import Record
from birthmark.services.ceremony_steps import Known, Progress
from birthmark.services.check import check
from tests.services.ceremonies import (
    ANNA,
    BELA,
    CARL,
    MALLORY,
    PEOPLE,
    begun,
    more,
    performed,
    session,
    steps,
    unique,
)
from tests.support.ceremonies import Person, carried_out, sealed
from tests.support.ceremony_files import issuing_text, realm_text
from tests.support.keystores import TRANSPORT, sites
from tests.support.realm import PASSPHRASE, START, Hands, Line, hierarchy
from tests.support.softhsm import softhsm_token

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
    keys.generate(KeyLabel("log"), parse(realm_text([ANNA]).encode()).keys["log"].kind)  # type: ignore[arg-type]  # the file says which of the kinds it is
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
    number = next(unique)
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


def maker_text(share: bytes, check_value: str, *, kind: SecretKind = SecretKind.DIVERSIFY_AES_256) -> str:
    """Return a ceremony that takes a key of the maker of elements in."""
    text = realm_text([ANNA])
    return (
        f"{text}  - accept-key: maker-1\n    store: service\n    purpose: master-diversification\n"
        f"    kind: {kind}\n    transport: transport\n    share: {b64encode(share).decode()}\n"
        f"    check-value: {check_value}\n"
    )


def test_a_ceremony_takes_a_key_of_somebody_else_in(tmp_path: Path) -> None:
    """From token to token, or from the maker's safe: the value read out must be the one that comes in."""
    value = SecretBytes(bytes(range(32)))
    right = check_value(SecretKind.DIVERSIFY_AES_256, value)
    with sites("token", tmp_path) as place:
        share = share_with(place.here.generate_transport(TRANSPORT), value)
        root = SoftwareKeyStore.open(tmp_path / "root", PASSPHRASE)
        stores = {"service": place.here, "root": root}
        progress = carried_out(parse(maker_text(share, right).encode()), [ANNA], stores, Hands())
        made = progress.keys["maker-1"]
        assert made.attributes.kind is SecretKind.DIVERSIFY_AES_256
        assert made.asset("acme-1", "floor").policy is KeyPolicy.SECRET_ACCEPTED
        assert place.here.attributes(KeyLabel("maker-1")).fingerprint == right
        root.close()


def test_a_key_of_somebody_else_with_another_check_value_ends_the_ceremony(tmp_path: Path) -> None:
    """Nor does going on take it: it is in the store, and no step comes of it."""
    value = SecretBytes(bytes(range(32)))
    with sites("software", tmp_path) as place:
        share = share_with(place.here.generate_transport(TRANSPORT), value)
        root = SoftwareKeyStore.open(tmp_path / "root", PASSPHRASE)
        progress = begun(maker_text(share, "0123456789"))
        progress.take(session(progress, [ANNA], Hands()))
        for _ in range(2):
            with pytest.raises(errors.PolicyRefused, match="destroy it in its store"):
                steps(progress, {"service": place.here, "root": root}, Hands())
        assert "maker-1" not in progress.keys


def test_a_rehearsal_stands_in_for_a_key_of_somebody_else(tmp_path: Path) -> None:
    """The transport key is not there, so nothing opens; the file can be rehearsed all the same."""
    text = maker_text(b"a share that nothing here opens", "0123456789")
    with sites("software", tmp_path) as place:
        stores = {"service": place.here, "root": place.mirror}
        progress = Progress(parse(text.encode()), Known(), profiles.load, rehearsal=True)
        progress.take(session(progress, [ANNA], Hands(), "rehearsal"))
        assert steps(progress, stores, Hands(), rehearsal=True) is None
        assert progress.keys["maker-1"].attributes.kind is SecretKind.DIVERSIFY_AES_256
