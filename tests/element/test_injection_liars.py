"""Elements that do not hold the final set and say they do."""

import itertools
from dataclasses import dataclass, field, replace

import pytest

from birthmark import errors
from birthmark.element.apdu import Batch, CardChannel, CommandAPDU, relay
from birthmark.element.card_faults import ElementChannel
from birthmark.element.card_keys import Dishonesty
from birthmark.element.card_state import Traits
from birthmark.element.diversification import KeyRole
from birthmark.element.injection import KeySetPhase
from birthmark.element.keyset import KeyEntry, SoftwareKeys, check_value
from birthmark.element.profiles import Replacement
from birthmark.element.tlv import encode, encode_key_information
from birthmark.secret import SecretBytes
from tests.support.injecting import FINAL_KVN, INITIAL_KVN, KDD, Bench, profile_of
from tests.support.liars import Liar

SETS_OF_ROLES = [frozenset(roles) for count in (1, 2, 3) for roles in itertools.combinations(KeyRole, count)]


def liar_of(i: int, lacks: frozenset[KeyRole]) -> tuple[Bench, Liar]:
    bench = Bench(profile_of(i=i))
    assert bench.contents is not None
    return bench, Liar(bench.element, bench.profile, bench.final(KDD), lacks, bench.contents)


@pytest.mark.parametrize("i", [0x60, 0x70, 0x61])
@pytest.mark.parametrize("lacks", SETS_OF_ROLES)
def test_an_element_that_lacks_a_key_is_held_however_well_it_lies(i: int, lacks: frozenset[KeyRole]) -> None:
    bench, liar = liar_of(i, lacks)

    with pytest.raises(errors.ProofFailed):
        bench.run(liar)

    assert INITIAL_KVN not in liar.deleted, "the station did not go past the proof"
    assert bench.state.phase is not KeySetPhase.CONFIRMED


@pytest.mark.parametrize("i", [0x60, 0x70, 0x61])
def test_the_liar_lies_so_well_that_only_the_keys_it_lacks_betray_it(i: int) -> None:
    bench, liar = liar_of(i, frozenset())
    assert bench.run(liar).key_sets == (FINAL_KVN,)


def test_what_a_liar_lacks_is_said() -> None:
    for lacks, reason in (
        (KeyRole.MAC, "card cryptogram"),
        (KeyRole.DEK, "lacks the K-DEK"),
        (KeyRole.ENC, "GET STATUS"),
    ):
        bench, liar = liar_of(0x60, frozenset({lacks}))
        with pytest.raises(errors.ProofFailed, match=reason):
            bench.run(liar)


@dataclass(slots=True)
class Instead(Liar):
    """An element with all its keys, that answers one command with something else."""

    ins: int = 0
    p2: int = 0
    answer: bytes = b""

    def wanted(self, plain: CommandAPDU) -> bytes:
        if (plain.ins, plain.p2) == (self.ins, self.p2):
            return self.answer
        return Liar.wanted(self, plain)


def key_information(*entries: tuple[int, int, int, int]) -> bytes:
    return encode_key_information(KeyEntry(kvn=v, kid=k, key_type=t, size=s) for v, k, t, s in entries)


ENC, MAC, DEK = ((FINAL_KVN, int(role), 0x88, 16) for role in KeyRole)
LIES = {
    "no status": (0xF2, 0x02, b"", "GET STATUS was answered without data"),
    "another object": (0xCA, 0x53, encode(0x53, bytes(6) + b"\x01"), "object 53 was read back"),
    "no object": (0xCA, 0x53, b"", "object 53 was read back"),
    "part of an object": (0xCA, 0x53, bytes(5), "object 53 was read back"),
    "no list": (0xCA, 0xE0, b"", "key information"),
    "no list at all": (0xCA, 0xE0, b"\xe0", "data object E0"),
    "no keys": (0xCA, 0xE0, key_information(), "lists keys nothing"),
    "a key missing": (0xCA, 0xE0, key_information(ENC, MAC), "lists keys 30/01, 30/02,"),
    "a key twice": (0xCA, 0xE0, key_information(ENC, MAC, DEK, DEK), "30/03, 30/03"),
    "a key more": (0xCA, 0xE0, key_information(ENC, MAC, DEK, (FINAL_KVN, 4, 0x88, 16)), "30/04"),
    "the initial set": (0xCA, 0xE0, key_information(ENC, MAC, DEK, (INITIAL_KVN, 1, 0x88, 16)), "20/01"),
    "the probe key": (0xCA, 0xE0, key_information(ENC, MAC, DEK, (0x3F, 1, 0x88, 16)), "3F/01"),
    "longer keys": (0xCA, 0xE0, key_information(ENC, MAC, (FINAL_KVN, 3, 0x88, 32)), "128 bit"),
    "DES keys": (0xCA, 0xE0, key_information((FINAL_KVN, 1, 0x80, 16), MAC, DEK), "AES keys"),
}


@pytest.mark.parametrize("lie", LIES)
def test_an_element_that_shows_something_else_than_wanted_is_held(lie: str) -> None:
    ins, p2, answer, reason = LIES[lie]
    bench = Bench(profile_of(tags=(0x53,)))
    assert bench.contents is not None
    liar = Instead(
        bench.element,
        bench.profile,
        bench.final(KDD),
        frozenset(),
        bench.contents,
        ins=ins,
        p2=p2,
        answer=answer,
    )

    with pytest.raises(errors.ProofFailed, match=reason):
        bench.run(liar)


@dataclass(slots=True)
class Noting(Liar):
    """An element with all its keys, that notes the check values of probe keys."""

    noted: list[bytes] = field(default_factory=list)

    def wanted(self, plain: CommandAPDU) -> bytes:
        answer = Liar.wanted(self, plain)
        if plain.ins == 0xD8:
            self.noted.append(answer[1:])
        return answer


def test_a_probe_key_is_never_used_again() -> None:
    bench = Bench(profile_of())
    noting = Noting(bench.element, bench.profile, bench.final(KDD), frozenset(), bench.contents or {})
    for _ in range(5):
        bench.run(noting)
    known = check_value(SecretBytes(bytes(16)))
    assert len({known, *noting.noted}) == 6


def test_an_element_that_still_answers_for_its_initial_set_is_held() -> None:
    bench, liar = liar_of(0x70, frozenset())
    liar.keeps_initial = True
    with pytest.raises(errors.ProofFailed, match="still has the initial set 20"):
        bench.run(liar)


def test_an_element_that_shows_the_replaced_set_twice_with_one_counter_is_held() -> None:
    profile = profile_of(i=0x70, replacement=Replacement.REPLACE, initial_kvn=FINAL_KVN)

    def liar(bench: Bench, *, counts: bool) -> Liar:
        contents = bench.contents or {}
        return Liar(bench.element, profile, bench.final(KDD), frozenset(), contents, counts=counts)

    counting, standing = Bench(profile), Bench(profile)
    assert counting.run(liar(counting, counts=True)).refused_kvn is None
    with pytest.raises(errors.ProofFailed, match="sequence counter"):
        standing.run(liar(standing, counts=False))


@pytest.mark.parametrize("i", [0x60, 0x70, 0x71])
@pytest.mark.parametrize("replacement", Replacement)
@pytest.mark.parametrize("roles", SETS_OF_ROLES)
def test_an_element_that_stores_other_keys_than_it_says_is_never_released(
    i: int, replacement: Replacement, roles: frozenset[KeyRole]
) -> None:
    for dishonesty in (
        Dishonesty(lacks=roles),
        Dishonesty(garbles=roles),
        Dishonesty(lacks=roles, echoes=True),
        Dishonesty(garbles=roles, echoes=True),
    ):
        bench = Bench(profile_of(i=i, replacement=replacement), dishonesty=dishonesty)
        with pytest.raises((errors.ProofFailed, errors.Interrupted)):
            bench.settle()
        if replacement is Replacement.ADD:
            assert bench.opens(bench.initial(KDD), INITIAL_KVN), (
                "and can still be reached with the initial set"
            )


def test_an_element_without_the_k_dek_keeps_its_initial_set() -> None:
    bench = Bench(profile_of(), dishonesty=Dishonesty(garbles=frozenset({KeyRole.DEK})))

    with pytest.raises(errors.ProofFailed, match="lacks the K-DEK"):
        bench.run()

    assert bench.element.state.key_set(INITIAL_KVN) is not None
    assert not bench.element.state.objects


def test_an_element_that_answers_wrong_check_values_is_held() -> None:
    bench = Bench(profile_of(), dishonesty=Dishonesty(wrong_check_values=True))
    with pytest.raises(errors.ProofFailed, match="other check values"):
        bench.run()


def test_an_element_that_echoes_check_values_is_found_out_unless_its_profile_sends_that_of_the_probe() -> (
    None
):
    echoes = Dishonesty(garbles=frozenset({KeyRole.DEK}), echoes=True)
    bench = Bench(profile_of(), dishonesty=echoes)
    with pytest.raises(errors.ProofFailed, match="lacks the K-DEK"):
        bench.run()

    # The limit that such a profile has: the element is trusted to compare what it is sent.
    trusting = Bench(replace(profile_of(), probe_check_value=True), dishonesty=echoes)
    assert trusting.run().key_sets == (FINAL_KVN,)


def test_an_element_with_other_initial_keys_is_never_authenticated_to() -> None:
    bench = Bench(profile_of())
    (made,) = bench.element.state.key_sets
    other = replace(made, keys=tuple((kid, SecretBytes(bytes(16))) for kid, _ in made.keys))
    bench.element._state = bench.element.state.with_key_set(other)  # noqa: SLF001  # a state from elsewhere

    with pytest.raises(errors.ProofFailed, match="card cryptogram"):
        bench.settle()

    assert all(guarded.command[1] != 0x82 for step in bench.steps for guarded in step.batch)


def test_an_element_in_an_earlier_state_is_held() -> None:
    bench = Bench(profile_of(i=0x70))
    bench.run()
    earlier = bench.element.state
    bench.run()

    bench.element._state = earlier  # noqa: SLF001  # a copy, made before
    with pytest.raises(errors.ProofFailed, match="sequence counter"):
        bench.run()


def test_an_element_whose_counter_stands_still_is_held() -> None:
    bench = Bench(profile_of(i=0x70), traits=Traits(counts_successes_only=True))
    bench.run()
    for key_set in bench.element.state.key_sets:
        stopped = replace(key_set, counter=key_set.counter - 1)
        bench.element._state = bench.element.state.with_key_set(stopped)  # noqa: SLF001  # as after a fault
    with pytest.raises(errors.ProofFailed, match="sequence counter"):
        bench.run()


def test_an_element_that_stops_counting_is_held() -> None:
    profile = replace(profile_of(i=0x70), parameters=frozenset({0x70, 0x60}))
    bench = Bench(replace(profile, parameters=frozenset({0x70})))
    bench.profile = profile
    bench.run()
    bench.element._state = replace(bench.element.state, traits=Traits(i=0x60))  # noqa: SLF001  # a copy
    with pytest.raises(errors.ProofFailed, match="sequence counter"):
        bench.run()


class OfOneDelivery(Bench):
    """An element whose initial set all elements of a delivery share."""

    def initial(self, kdd: bytes) -> SoftwareKeys:
        return Bench.initial(self, KDD)


@pytest.mark.parametrize("kind", [Bench, OfOneDelivery])
@pytest.mark.parametrize("first", [1, 2])
def test_an_element_exchanged_during_the_dialogue_ends_it(kind: type[Bench], first: int) -> None:
    one, other = kind(profile_of()), kind(profile_of(), kdd=bytes(10))
    channels = [ElementChannel(one.element)] * first + [ElementChannel(other.element)] * 3

    def exchanging(_channel: CardChannel, batch: Batch) -> list[bytes]:
        return relay(channels.pop(0), batch)

    with pytest.raises((errors.ProofFailed, errors.Interrupted)):
        one.run(by=exchanging)

    assert other.opens(other.initial(other.kdd), INITIAL_KVN), "the other one was not changed"
    one.settle()
    assert one.holds_only_the_final_set()


@pytest.mark.parametrize("kind", [Bench, OfOneDelivery])
@pytest.mark.parametrize("phase", [KeySetPhase.INTENDED, KeySetPhase.CONFIRMED])
def test_a_dialogue_begun_anew_with_another_element_ends_at_once(
    kind: type[Bench], phase: KeySetPhase
) -> None:
    one, other = kind(profile_of()), kind(profile_of(), kdd=bytes(10))
    one.state = replace(one.state, phase=phase, key_diversification_data=KDD)

    for element in (other, other):
        with pytest.raises(errors.ProofFailed, match="another element: key diversification data 0000"):
            one.run(ElementChannel(element.element))
        other.run()
