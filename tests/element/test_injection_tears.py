"""Power cuts, lost answers and restarts of the service, at every command of an injection.

However often a dialogue breaks off: the next one asks the element, and in the end the element holds the final
set and nothing else, and has not seen one failed authentication.
"""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark import errors
from birthmark.element.apdu import Batch, CardChannel, relay
from birthmark.element.card_faults import ElementChannel, Fault, FaultKind
from birthmark.element.card_state import Traits
from birthmark.element.injection import KeySetPhase
from birthmark.element.profiles import Replacement
from tests.support.injecting import FINAL_KVN, INITIAL_KVN, KDD, Bench, profile_of

BREAKS = (FaultKind.TEAR_BEFORE, FaultKind.TEAR_AFTER, FaultKind.ANSWER_LOST)
ADDED = profile_of(tags=(0x53,), failed_authentications=3)
KINDS = {
    "added": (ADDED, Traits()),
    "added, random challenges": (profile_of(i=0x60, tags=(0x53,)), Traits(i=0x60)),
    "added, S16": (profile_of(i=0x71, key_size=32, tags=(0x53,)), Traits(i=0x71)),
    "added, only successes counted": (ADDED, Traits(counts_successes_only=True)),
    "in place of the factory's": (profile_of(initial_kvn=0, tags=(0x53,)), Traits()),
    "replaced under a new number": (profile_of(replacement=Replacement.REPLACE, tags=(0x53,)), Traits()),
    "replaced under its number": (
        profile_of(replacement=Replacement.REPLACE, initial_kvn=FINAL_KVN, tags=(0x53,)),
        Traits(),
    ),
    "replaced under its number, only successes counted": (
        profile_of(replacement=Replacement.REPLACE, initial_kvn=FINAL_KVN, tags=(0x53,)),
        Traits(counts_successes_only=True),
    ),
}


def bench_of(kind: str) -> Bench:
    profile, traits = KINDS[kind]
    return Bench(profile, traits=traits, contents={0x53: bytes(range(250))})


def commands_of(kind: str) -> int:
    """Return how many commands an injection takes that nothing disturbs."""
    bench = bench_of(kind)
    channel = ElementChannel(bench.element)
    bench.run(channel)
    return channel.commands


def assert_done(bench: Bench) -> None:
    assert bench.state.phase is KeySetPhase.CONFIRMED
    assert bench.state.failures == 0
    assert bench.holds_only_the_final_set()
    assert bench.holds_the_objects()
    assert bench.most_failures == 0, "no authentication ever failed"
    assert bench.opens(bench.final(KDD), FINAL_KVN)
    assert not bench.opens(bench.initial(KDD), bench.profile.initial.kvn)


@pytest.mark.parametrize("kind", KINDS)
def test_a_break_at_any_command_is_survived(kind: str) -> None:
    for at, fault, reset in itertools.product(range(1, commands_of(kind) + 1), BREAKS, (False, True)):
        if fault is not FaultKind.ANSWER_LOST and not reset:
            continue  # without power nothing goes on
        bench = bench_of(kind)
        bench.settle([Fault(kind=fault, at=at)], reset=reset)
        assert_done(bench)


@pytest.mark.parametrize(
    ("kind", "one"),
    [
        ("added", FaultKind.TEAR_BEFORE),
        ("added", FaultKind.TEAR_AFTER),
        ("replaced under its number, only successes counted", FaultKind.TEAR_AFTER),
    ],
)
def test_any_two_breaks_are_survived(kind: str, one: FaultKind) -> None:
    count = commands_of(kind)
    for first, second in itertools.product(range(1, count + 1), range(1, count + 3)):
        bench = bench_of(kind)
        bench.settle([Fault(kind=one, at=first), Fault(kind=FaultKind.TEAR_AFTER, at=first + second)])
        assert_done(bench)


@given(
    kind=st.sampled_from(sorted(KINDS)),
    gaps=st.lists(st.tuples(st.integers(1, 24), st.sampled_from(BREAKS)), max_size=9),
)
@settings(max_examples=60)
def test_any_number_of_breaks_ends_with_the_final_set_or_the_element_held(
    kind: str, gaps: list[tuple[int, FaultKind]]
) -> None:
    bench = bench_of(kind)
    bench.profile = replace(bench.profile, failed_authentications=10)
    faults, at = [], 0
    for gap, fault in gaps:
        at += gap
        faults.append(Fault(kind=fault, at=at))

    bench.settle(faults, tries=11)

    assert_done(bench)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("carried_out", [False, True])
def test_a_service_that_restarts_between_any_two_steps_goes_on(kind: str, *, carried_out: bool) -> None:
    for forgotten in itertools.product((False, True), repeat=3):
        bench = bench_of(kind)
        channel = ElementChannel(bench.element)
        left = list(forgotten)

        def forgetting(channel: CardChannel, batch: Batch, left: list[bool] = left) -> list[bytes]:
            """Lose the answers to a batch, and perhaps the batch: nobody sends them to the service."""
            if left and left.pop(0):
                return relay(channel, batch) and [] if carried_out else []
            return relay(channel, batch)

        for _ in range(4):
            try:
                bench.run(channel, by=forgetting)
            except errors.Interrupted:
                continue
            break
        assert_done(bench)


def test_an_answer_lost_to_put_key_is_made_up_for_by_asking_the_element() -> None:
    bench = bench_of("added")

    evidence = bench.settle([Fault(kind=FaultKind.TEAR_AFTER, at=1, ins=0xD8)])

    assert not evidence.put_key_answered
    assert_done(bench)
    assert sum(command[1] == 0xD8 for command in bench.sent) == 2, "PUT KEY once, and the probe"


def test_a_probe_key_left_by_a_power_cut_is_gone_afterwards() -> None:
    bench = bench_of("added")
    channel = ElementChannel(bench.element, [Fault(kind=FaultKind.TEAR_AFTER, at=2, ins=0xD8)])
    with pytest.raises(errors.Interrupted, match="PUT KEY of the probe key: no answer"):
        bench.run(channel)
    kvns = {found.kvn for found in bench.element.state.key_sets}
    assert kvns == {INITIAL_KVN, FINAL_KVN, bench.profile.probe_kvn}

    bench.settle()

    assert_done(bench)


def test_authentications_of_unknown_outcome_are_counted_and_stop_before_the_element_locks() -> None:
    for limit in (1, 2, 3, 5):
        bench = bench_of("added")
        bench.profile = replace(bench.profile, failed_authentications=limit)
        for count in range(limit):
            channel = ElementChannel(bench.element, [Fault(kind=FaultKind.TEAR_BEFORE, at=1, ins=0x82)])
            with pytest.raises(errors.Interrupted, match="EXTERNAL AUTHENTICATE with the initial set"):
                bench.run(channel)
            assert bench.state.failures == count + 1
        with pytest.raises(errors.ProofFailed, match="not risking"):
            bench.run()
        sent = sum(guarded.command[1] == 0x82 for step in bench.steps for guarded in step.batch)
        assert sent == limit


def test_an_accepted_authentication_sets_the_count_back() -> None:
    bench = bench_of("added")
    for _ in range(2):
        with pytest.raises(errors.Interrupted):
            bench.run(ElementChannel(bench.element, [Fault(kind=FaultKind.TEAR_BEFORE, at=1, ins=0x82)]))
    assert bench.state.failures == 2

    bench.run()

    counts = [step.state.failures for step in bench.steps[-3:]]
    assert counts == [2, 3, 1]
    assert bench.state.failures == 0


def test_an_element_that_stays_dead_is_given_up_with_its_reason() -> None:
    bench = bench_of("added")
    with pytest.raises(errors.Interrupted, match="PUT KEY: no answer"):
        bench.run(ElementChannel(bench.element, [Fault(kind=FaultKind.DEAD_AFTER, at=1, ins=0xD8)]))
    assert bench.state.phase is KeySetPhase.INTENDED


def test_phases_only_ever_go_forward() -> None:
    order = list(KeySetPhase)
    for at in range(1, commands_of("added") + 1):
        bench = bench_of("added")
        bench.settle([Fault(kind=FaultKind.TEAR_AFTER, at=at)])
        bench.run()
        phases = [order.index(step.state.phase) for step in bench.steps]
        assert phases == sorted(phases)
        for step in bench.steps:
            loads = any(guarded.command[1] == 0xD8 for guarded in step.batch)
            assert not loads or step.state.phase is not KeySetPhase.ABSENT
