"""The injection dialogue with an element that does what it is told."""

import itertools
from dataclasses import replace
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFCMAC, CounterLocation
from cryptography.hazmat.primitives.kdf.kbkdf import Mode as CounterMode

from birthmark import errors
from birthmark.element.apdu import Batch, CardChannel, relay
from birthmark.element.card import VirtualElement
from birthmark.element.card_state import Traits
from birthmark.element.diversification import ContextSource, KeyRole, Scheme
from birthmark.element.injection import KeySetPhase
from birthmark.element.keyset import KeyBlockForm, KeyRoute, SoftwareKeys, check_value
from birthmark.element.profiles import Replacement
from birthmark.secret import SecretBytes
from tests.support.injecting import FINAL_KVN, INITIAL_KVN, KDD, Bench, Numbers, key_set, profile_of

WAYS = {
    "added": (INITIAL_KVN, FINAL_KVN, Replacement.ADD),
    "replaced under a new number": (INITIAL_KVN, FINAL_KVN, Replacement.REPLACE),
    "replaced under its number": (FINAL_KVN, FINAL_KVN, Replacement.REPLACE),
    "in place of the factory's": (0, FINAL_KVN, Replacement.ADD),
}


def bench_of(way: str, *, i: int = 0x70, key_size: int = 16) -> Bench:
    initial, final, replacement = WAYS[way]
    return Bench(
        profile_of(i=i, key_size=key_size, initial_kvn=initial, final_kvn=final, replacement=replacement)
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key_size", [16, 24, 32])
@pytest.mark.parametrize("i", [0x60, 0x70, 0x61, 0x71])
def test_every_kind_of_element_ends_with_the_final_set_alone(way: str, key_size: int, i: int) -> None:
    initial, final, replacement = WAYS[way]
    schemes = [
        (Scheme.KDF3, ContextSource.KDD),
        (Scheme.AN10922, ContextSource.HARDWARE_ID),
        (Scheme.SP800_108, ContextSource.KDD),
    ]
    for form, (scheme, context) in itertools.product(KeyBlockForm, schemes):
        bench = Bench(
            profile_of(
                i=i,
                key_size=key_size,
                initial_kvn=initial,
                final_kvn=final,
                replacement=replacement,
                key_blocks=form,
                scheme=scheme,
                context=context,
            )
        )

        evidence = bench.run()

        assert len(bench.steps) == 3
        assert [step.last for step in bench.steps] == [False, False, True]
        assert bench.holds_only_the_final_set()
        assert bench.holds_the_objects()
        assert bench.opens(bench.final(KDD), final)
        assert not bench.opens(bench.initial(KDD), initial)
        assert bench.state.phase is KeySetPhase.CONFIRMED
        assert evidence.put_key_answered
        assert evidence.key_sets == (final,)
        assert bench.most_failures == 0


def test_a_shorter_final_set_travels_under_a_longer_initial_one_and_not_the_other_way_round() -> None:
    bench = Bench(profile_of(key_size=16), initial_size=32)
    bench.run()
    assert bench.holds_only_the_final_set()

    weaker = Bench(profile_of(key_size=32), initial_size=16)
    with pytest.raises(errors.PolicyRefused, match="does not travel") as refused:
        weaker.run()
    assert refused.value.rule == "transport-strength"
    assert len(weaker.steps) == 1, "nothing was sent after the initial set was asked for"


def test_keys_of_another_size_than_the_profile_says_are_not_sent() -> None:
    class Shorter(Bench):
        def final(self, kdd: bytes) -> SoftwareKeys:
            return key_set("ours", 16, Scheme.KDF3, ContextSource.KDD, kdd)

    bench = Shorter(profile_of(key_size=24))

    with pytest.raises(errors.PolicyRefused) as refused:
        bench.run()

    assert refused.value.rule == "key-size"
    assert len(bench.steps) == 1


@pytest.mark.parametrize("i", [0x00, 0x10, 0x20, 0x30, 0x01, 0x31])
def test_an_element_whose_answers_cannot_be_authentic_is_held_whatever_its_profile_says(i: int) -> None:
    bench = Bench(profile_of(i=i))

    with pytest.raises(errors.ProofFailed, match="could not be believed"):
        bench.run()

    assert len(bench.steps) == 1


def test_an_element_that_reports_another_i_than_its_profile_is_held() -> None:
    bench = Bench(profile_of(i=0x70), traits=Traits(i=0x60))

    with pytest.raises(errors.ProofFailed, match="i=60"):
        bench.run()


def test_an_element_in_the_other_mode_is_held() -> None:
    profile = replace(profile_of(i=0x70), parameters=frozenset({0x71}))
    bench = Bench(profile, traits=Traits(i=0x71, extended_length=False))

    def padded(channel: CardChannel, batch: Batch) -> list[bytes]:
        """Carry the batch with a challenge as long as the element wants it: 16 octets."""
        asked = [
            replace(guarded, command=bytes.fromhex("8050200010") + bytes(16) + b"\0")
            if guarded.command[1] == 0x50
            else guarded
            for guarded in batch
        ]
        return relay(channel, asked)

    with pytest.raises(errors.ProofFailed, match="speaks S16, not S8"):
        bench.run(by=padded)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("i", [0x60, 0x71])
def test_the_evidence_can_be_checked_again_by_whoever_holds_the_keys(way: str, i: int) -> None:
    bench = bench_of(way, i=i, key_size=32)
    heard: list[bytes] = []

    def listening(channel: CardChannel, batch: Batch) -> list[bytes]:
        responses = relay(channel, batch)
        for guarded, response in zip(batch, responses, strict=True):
            heard.extend(len(octets).to_bytes(2, "big") + octets for octets in (guarded.command, response))
        return responses

    evidence = bench.run(by=listening)

    final = bench.final(KDD)

    def derived(key: bytes, constant: int, size: int) -> bytes:
        """SCP03's derivation as another library does it (Amendment D section 4.1.5)."""
        return KBKDFCMAC(
            algorithm=algorithms.AES,
            mode=CounterMode.CounterMode,
            length=size,
            rlen=1,
            llen=None,
            location=CounterLocation.MiddleFixed,
            label=None,
            context=None,
            fixed=bytes(11)
            + bytes((constant, 0))
            + (size * 8).to_bytes(2, "big")
            + evidence.host_challenge
            + evidence.card_challenge,
            break_location=15,
        ).derive(key)

    s_mac = derived(final.mac.reveal(), 0x06, 32)
    mode = bench.profile.mode
    assert derived(s_mac, 0x00, mode) == evidence.card_cryptogram
    assert derived(s_mac, 0x01, mode) == evidence.host_cryptogram
    assert evidence.check_values == tuple(check_value(final.key(role)) for role in KeyRole)
    assert evidence.transcript_sha256 == sha256(b"".join(heard)).hexdigest()
    assert evidence.key_diversification_data == KDD
    assert (evidence.kvn, evidence.i, evidence.route) == (FINAL_KVN, i, KeyRoute.SERVICE)
    assert (evidence.sequence_counter is None) == (i == 0x60)
    assert bench.contents is not None
    assert evidence.objects == {tag: sha256(value).hexdigest() for tag, value in bench.contents.items()}
    gone = way in {"added", "replaced under a new number"}
    assert (evidence.refused_kvn, evidence.refusal) == ((INITIAL_KVN, 0x6A88) if gone else (None, None))


@pytest.mark.parametrize("i", [0x70, 0x71])
@pytest.mark.parametrize("extended", [False, True])
def test_objects_of_all_sizes_come_back_as_they_were_stored(i: int, *, extended: bool) -> None:
    tags = (0x53, 0x7F21, 0x7F22, 0xC8, 0x9F21, 0xDF21, 0xDF22, 0xDF23)
    sizes = (0, 1, 217, 218, 234, 235, 1001, 7000)
    contents = {tag: bytes(n % 253 for n in range(size)) for tag, size in zip(tags, sizes, strict=True)}
    bench = Bench(profile_of(i=i, tags=tags, extended_length=extended), contents=contents)

    bench.run()

    assert bench.holds_the_objects()
    longest = max(len(command) for command in bench.sent)
    assert longest <= (1024 + 9 if extended else 5 + 255 + 1)


def test_an_object_too_large_is_refused_before_the_element_is_touched() -> None:
    bench = Bench(profile_of(tags=(0x53,)), contents={0x53: bytes(62_000)})

    with pytest.raises(errors.PolicyRefused) as refused:
        bench.run()

    assert refused.value.rule == "object-size"
    assert bench.steps == []


def test_elements_that_deviate_where_their_profile_says_so_are_injected() -> None:
    ordinary = profile_of()
    deviations = [
        (Traits(bare_key_information=True), replace(ordinary, bare_key_information=True)),
        (Traits(counts_empty_commands=False), replace(ordinary, counts_empty_commands=False)),
        (Traits(needs_check_values=True), replace(ordinary, probe_check_value=True)),
        (Traits(counts_successes_only=True), ordinary),
    ]
    for traits, profile in deviations:
        bench = Bench(profile, traits=traits)
        bench.run()
        assert bench.holds_only_the_final_set()


def test_elements_that_deviate_against_their_profile_are_not_released() -> None:
    for traits in (
        Traits(bare_key_information=True),
        Traits(counts_empty_commands=False),
        Traits(needs_check_values=True),
    ):
        bench = Bench(profile_of(), traits=traits)
        with pytest.raises((errors.ProofFailed, errors.Interrupted)):
            bench.settle()


def test_what_has_to_be_durable_is_said_before_anything_is_sent() -> None:
    bench = Bench(profile_of(i=0x70))

    bench.run()

    asked, loaded, proved = (step.state for step in bench.steps)
    assert (asked.phase, asked.failures, asked.key_diversification_data) == (KeySetPhase.ABSENT, 0, b"")
    assert (loaded.phase, loaded.failures) == (KeySetPhase.INTENDED, 1)
    assert (loaded.key_diversification_data, loaded.initial_counter) == (KDD, 1)
    assert (proved.phase, proved.failures, proved.final_counter) == (KeySetPhase.INTENDED, 1, 1)
    assert (bench.state.phase, bench.state.failures) == (KeySetPhase.CONFIRMED, 0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("traits", [Traits(), Traits(counts_successes_only=True), Traits(i=0x60)])
def test_an_element_that_went_all_the_way_is_released_again_by_the_gate(way: str, traits: Traits) -> None:
    bench = Bench(bench_of(way, i=traits.i).profile, traits=traits)
    first = bench.run()

    for _ in range(3):
        bench.steps.clear()
        again = bench.run()

        assert len(bench.steps) == 2, "it is asked where it stands, and the gate"
        assert not again.put_key_answered
        assert again.check_values == first.check_values
        assert again.host_challenge != first.host_challenge
        assert bench.holds_only_the_final_set()
        assert bench.state.phase is KeySetPhase.CONFIRMED


@pytest.mark.parametrize("phase", [KeySetPhase.INTENDED, KeySetPhase.CONFIRMED])
def test_a_dialogue_that_begins_anew_asks_for_the_final_set_first_and_never_guesses(
    phase: KeySetPhase,
) -> None:
    bench = Bench(profile_of())
    bench.state = replace(bench.state, phase=phase, final_counter=7)

    evidence = bench.run()

    assert len(bench.steps) == 3
    asked = [guarded.command[:3] for guarded in bench.steps[0].batch]
    assert asked[1:] == [bytes((0x80, 0x50, FINAL_KVN)), bytes((0x80, 0x50, INITIAL_KVN))]
    assert evidence.put_key_answered
    assert bench.steps[1].state.phase is KeySetPhase.INTENDED
    assert bench.steps[1].state.final_counter == -1, "a set that is put in begins to count anew"
    assert bench.holds_only_the_final_set()


def test_every_challenge_and_every_probe_key_is_new() -> None:
    bench = Bench(profile_of(i=0x71))
    bench.run()
    bench.run()
    challenges = [command[5:21] for command in bench.sent if command[1] == 0x50]
    assert len(challenges) == len(set(challenges)) >= 5
    assert all(len(set(challenge)) > 8 for challenge in challenges)


def test_an_element_with_a_further_key_set_is_held() -> None:
    bench = Bench(profile_of())
    other = replace(bench.element.state.key_sets[0], kvn=0x41)
    bench.element._state = bench.element.state.with_key_set(other)  # noqa: SLF001  # a state from elsewhere

    with pytest.raises(errors.ProofFailed, match="41/01"):
        bench.run()


@pytest.mark.parametrize(
    ("phase", "refusal", "reason"),
    [
        (KeySetPhase.ABSENT, errors.Interrupted, "PUT KEY: the element answered 6A80"),
        (KeySetPhase.INTENDED, errors.ProofFailed, "card cryptogram is not that of key set 30"),
        (KeySetPhase.CONFIRMED, errors.ProofFailed, "card cryptogram is not that of key set 30"),
    ],
)
def test_an_element_whose_final_number_is_taken_by_other_keys_is_held_or_refuses(
    phase: KeySetPhase, refusal: type[errors.Refusal], reason: str
) -> None:
    bench = Bench(profile_of())
    other = replace(bench.element.state.key_sets[0], kvn=FINAL_KVN)
    bench.element._state = bench.element.state.with_key_set(other)  # noqa: SLF001  # a state from elsewhere
    bench.state = replace(bench.state, phase=phase)

    with pytest.raises(refusal, match=reason):
        bench.run()

    assert bench.element.state.key_set(INITIAL_KVN) is not None


def test_a_set_that_is_not_changed_at_all_is_no_replacement() -> None:
    class Unchanged(Bench):
        def final(self, kdd: bytes) -> SoftwareKeys:
            return self.initial(kdd)

    bench = Unchanged(bench_of("replaced under its number").profile)

    with pytest.raises(errors.ProofFailed, match="initial keys still open"):
        bench.run()


def test_secrets_are_in_no_value_that_leaves_the_dialogue() -> None:
    bench = Bench(profile_of())
    evidence = bench.run()
    shown = repr((bench.steps, evidence, bench.state)).encode() + b"".join(bench.sent)
    for keys in (bench.initial(KDD), bench.final(KDD)):
        for role in KeyRole:
            key = keys.key(role)
            assert isinstance(key, SecretBytes)
            assert key.reveal() not in shown
            assert key.reveal().hex().encode() not in shown


def test_a_set_of_another_protocol_is_allowed_by_name_only() -> None:
    """SPEC D4: what the profile does not name, the element must not have."""
    named = replace(profile_of(), other_key_sets=frozenset({0x70}))
    for profile in (named, profile_of()):
        bench = Bench(profile=profile)
        state = bench.element.state
        (initial,) = state.key_sets
        besides = state.with_key_set(replace(initial, kvn=0x70))
        bench.element = VirtualElement(besides, entropy=Numbers(b"card"))
        if profile is named:
            assert bench.run().key_sets == (profile.final.kvn, 0x70)
        else:
            with pytest.raises(errors.ProofFailed, match=r"lists keys .*70/01"):
                bench.run()
