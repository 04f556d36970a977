"""A station that does what it likes with commands and responses.

It can stop an injection and have the element held.  It cannot have an element released that does not hold the
final set, and it learns no key.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.element.apdu import Batch, CardChannel, Guarded, relay
from birthmark.element.card_faults import ElementChannel
from birthmark.element.diversification import KeyRole
from birthmark.element.injection import Evidence, KeySetPhase, inject
from birthmark.element.profiles import Replacement
from tests.support.injecting import FINAL_KVN, KDD, Bench, profile_of

OK = b"\x90\x00"
PROFILES = {
    "added": profile_of(i=0x70, tags=(0x53,)),
    "added, S16 and random challenges": profile_of(i=0x61, key_size=32, tags=(0x53,)),
    "replaced": profile_of(i=0x70, tags=(0x53,), replacement=Replacement.REPLACE, initial_kvn=FINAL_KVN),
    "the factory's": profile_of(i=0x60, initial_kvn=0, tags=(0x53,)),
}
Change = Callable[[list[bytes], int], list[bytes]]
"""Responses to a batch and a position in them, and what the service gets instead."""


def flipped(octets: bytes, at: int, bit: int = 1) -> bytes:
    at %= len(octets)
    return octets[:at] + bytes((octets[at] ^ bit,)) + octets[at + 1 :]


def at(change: Callable[[bytes], bytes]) -> Change:
    return lambda responses, n: [change(r) if k == n else r for k, r in enumerate(responses)]


CHANGES: dict[str, Change] = {
    "first octet": at(lambda r: flipped(r, 0)),
    "first octet, high bit": at(lambda r: flipped(r, 0, 0x80)),
    "middle octet": at(lambda r: flipped(r, len(r) // 2)),
    "last octet of the data": at(lambda r: flipped(r, -3) if len(r) > 2 else r + b"\0"),
    "eighth octet from the end": at(lambda r: flipped(r, -10) if len(r) > 10 else b"\0" + r),
    "kvn": at(lambda r: flipped(r, 10) if len(r) > 12 else b""),
    "protocol": at(lambda r: flipped(r, 11) if len(r) > 13 else b"\x90"),
    "i": at(lambda r: flipped(r, 12, 0x10) if len(r) > 14 else OK * 2),
    "challenge": at(lambda r: flipped(r, 13) if len(r) > 15 else OK * 3),
    "cryptogram": at(lambda r: flipped(r, 22) if len(r) > 24 else OK * 4),
    "status word": at(lambda r: flipped(r, -1)),
    "warning": at(lambda r: r[:-2] + b"\x63\x10"),
    "warning alone": at(lambda r: b"\x62\x00"),
    "failure": at(lambda r: b"\x6f\x00"),
    "refusal": at(lambda r: b"\x6a\x88"),
    "locked": at(lambda r: b"\x69\x83"),
    "bare success": at(lambda r: OK),
    "data and bare success": at(lambda r: bytes(16) + OK),
    "the R-MAC cut off": at(lambda r: r[:-10] + OK if len(r) >= 10 else OK + OK),
    "one octet less": at(lambda r: r[1:]),
    "one octet more": at(lambda r: b"\0" + r),
    "nothing": at(lambda r: b""),
    "far too much": at(lambda r: bytes(70_000) + OK),
    "cut": lambda responses, n: responses[:n],
    "dropped": lambda responses, n: responses[:n] + responses[n + 1 :],
    "doubled": lambda responses, n: responses[: n + 1] + responses[n:],
    "exchanged with the next": lambda responses, n: (
        responses[:n] + responses[n : n + 2][::-1] + responses[n + 2 :]
    ),
    "the one before again": lambda responses, n: (
        responses[:n] + responses[max(n - 1, 0) : max(n, 1)] + responses[n + 1 :]
    ),
    "the first again": lambda responses, n: [*responses[:n], responses[0], *responses[n + 1 :]],
    "one put in": lambda responses, n: [*responses[:n], OK, *responses[n:]],
    "all the others nothing but success": lambda responses, n: [
        r if k == n else OK for k, r in enumerate(responses)
    ],
}


@dataclass(slots=True)
class Changing:
    """A relay that changes the responses of one batch, and remembers which ones differ then."""

    batch: int
    position: int
    change: Change
    carried: int = 0
    changed: set[tuple[int, int]] = field(default_factory=set)

    def __call__(self, channel: CardChannel, batch: Batch) -> list[bytes]:
        responses = relay(channel, batch)
        self.carried += 1
        if self.carried - 1 != self.batch or self.position >= len(responses):
            return responses
        after = self.change(list(responses), self.position)
        for n, (one, other) in enumerate(itertools.zip_longest(responses, after)):
            if one != other:
                self.changed.add((self.batch, n))
        return after


def places(name: str) -> list[tuple[int, int]]:
    """Return where there is a response: number of the batch, and number in it."""
    bench = Bench(PROFILES[name])
    bench.run()
    return [(batch, n) for batch, step in enumerate(bench.steps) for n in range(len(step.batch))]


def unprotected(name: str) -> set[tuple[int, int]]:
    """Return where nobody relies on a response: those to SELECT, and refusals."""
    found = {(0, 0)}

    def looking(channel: CardChannel, batch: Batch) -> list[bytes]:
        responses = relay(channel, batch)
        found.update((len(bench.steps) - 1, n) for n, r in enumerate(responses) if not r.endswith(OK))
        return responses

    bench = Bench(PROFILES[name])
    bench.run(by=looking)
    return found


def released(bench: Bench, by: Callable[[CardChannel, Batch], list[bytes]]) -> Evidence | None:
    try:
        return bench.run(by=by)
    except (errors.ProofFailed, errors.Interrupted):
        return None


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_response_releases_nothing_but_what_nobody_relies_on(name: str, change: str) -> None:
    believed_by_nobody = unprotected(name)
    assert len(believed_by_nobody) <= 2
    for batch, position in places(name):
        bench = Bench(PROFILES[name])
        by = Changing(batch, position, CHANGES[change])
        evidence = released(bench, by)
        if evidence is not None:
            # Where the default set is asked for at the end, a refusal is as good as the final set.
            last = {(batch, position)} if evidence.refused_kvn == 0 else set()
            assert by.changed <= believed_by_nobody | last, (batch, position)
            assert bench.holds_only_the_final_set()
        assert (bench.state.phase is KeySetPhase.CONFIRMED) == (evidence is not None)
        assert_no_key_was_sent(bench)


def assert_no_key_was_sent(bench: Bench) -> None:
    wire = b"".join(bench.sent)
    for keys in (bench.initial(KDD), bench.final(KDD)):
        for role in KeyRole:
            key = keys.key(role).reveal()
            assert all(key[n : n + 8] not in wire for n in range(0, len(key), 8))


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [(sw, None) for sw in (0x6A88, 0x6A86, 0x6A80, 0x6985, 0x6982)]
    + [(sw, errors.Interrupted) for sw in (0x6F00, 0x6700, 0x6D00, 0x6E00, 0x6581, 0x6200, 0x6310, 0x6B00)]
    + [(0x9000, errors.ProofFailed)],
)
def test_only_what_says_no_is_a_refusal_of_the_initial_set(
    answer: int, refusal: type[errors.Refusal] | None
) -> None:
    bench = Bench(PROFILES["added"])
    by = Changing(*places("added")[-1], at(lambda _: answer.to_bytes(2, "big")))
    if refusal is None:
        assert bench.run(by=by).refusal == answer
        return
    with pytest.raises(refusal):
        bench.run(by=by)


@pytest.mark.parametrize("name", PROFILES)
def test_what_a_changed_response_interrupted_goes_on_with_an_honest_station(name: str) -> None:
    for change in ("failure", "refusal", "cut", "nothing", "doubled"):
        for batch, position in places(name):
            bench = Bench(PROFILES[name])
            try:
                bench.run(by=Changing(batch, position, CHANGES[change]))
            except errors.ProofFailed:
                continue
            except errors.Interrupted:
                bench.settle()
            assert bench.holds_only_the_final_set()
            assert bench.holds_the_objects()


@pytest.mark.parametrize("answer", [OK, bytes(8) + OK, bytes(32) + OK, b"\x6a\x88", b"\x63\x10", b""])
@pytest.mark.parametrize("phase", KeySetPhase)
@pytest.mark.parametrize("name", PROFILES)
def test_a_station_without_an_element_has_nothing_released(
    name: str, phase: KeySetPhase, answer: bytes
) -> None:
    bench = Bench(PROFILES[name])
    bench.state = replace(bench.state, phase=phase)
    assert released(bench, lambda _, batch: [answer] * len(batch)) is None


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("honest", [0, 1, 2])
def test_answers_of_an_earlier_dialogue_release_nothing(name: str, honest: int) -> None:
    earlier: list[list[bytes]] = []

    def recording(channel: CardChannel, batch: Batch) -> list[bytes]:
        earlier.append(relay(channel, batch))
        return earlier[-1]

    Bench(PROFILES[name]).run(by=recording)
    bench = Bench(PROFILES[name])
    bench.token.seed = b"another day"
    carried = 0

    def replaying(channel: CardChannel, batch: Batch) -> list[bytes]:
        nonlocal carried
        carried += 1
        return relay(channel, batch) if carried <= honest else earlier[carried - 1]

    assert released(bench, replaying) is None


@pytest.mark.parametrize("name", PROFILES)
def test_the_gate_is_not_passed_twice_with_one_recording(name: str) -> None:
    bench = Bench(PROFILES[name])
    bench.run()
    recorded: list[list[bytes]] = []

    def recording(channel: CardChannel, batch: Batch) -> list[bytes]:
        recorded.append(relay(channel, batch))
        return recorded[-1]

    bench.run(by=recording)
    assert released(bench, lambda _, batch: recorded[0] if len(batch) < 4 else recorded[1]) is None


COMMANDS: dict[str, Callable[[list[Guarded], int], list[Guarded]]] = {
    "a header changed": lambda batch, n: _with(batch, n, lambda c: flipped(c, 2)),
    "an instruction changed": lambda batch, n: _with(batch, n, lambda c: flipped(c, 1, 0x10)),
    "data changed": lambda batch, n: _with(batch, n, lambda c: flipped(c, 6)),
    "the MAC changed": lambda batch, n: _with(batch, n, lambda c: flipped(c, -2)),
    "left out": lambda batch, n: batch[:n] + batch[n + 1 :],
    "sent twice": lambda batch, n: batch[: n + 1] + batch[n:],
    "exchanged with the next": lambda batch, n: batch[:n] + batch[n : n + 2][::-1] + batch[n + 2 :],
    "the rest left out": lambda batch, n: batch[:n],
}


def _with(batch: list[Guarded], n: int, change: Callable[[bytes], bytes]) -> list[Guarded]:
    return [replace(g, command=change(g.command)) if k == n else g for k, g in enumerate(batch)]


def _heedless(channel: CardChannel, batch: Sequence[Guarded]) -> list[bytes]:
    """Carry on whatever comes back."""
    return [relay(channel, (guarded,))[0] for guarded in batch]


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("change", COMMANDS)
@pytest.mark.parametrize("padded", [False, True])
def test_changed_commands_release_only_what_holds_the_final_set(
    name: str, change: str, *, padded: bool
) -> None:
    for number, position in places(name):
        bench = Bench(PROFILES[name])
        carried = 0

        def tampering(
            channel: CardChannel, batch: Batch, number: int = number, position: int = position
        ) -> list[bytes]:
            nonlocal carried
            carried += 1
            if carried - 1 != number:
                return relay(channel, batch)
            responses = _heedless(channel, COMMANDS[change](list(batch), position))
            return (responses + [OK] * len(batch))[: len(batch)] if padded else responses[: len(batch)]

        if released(bench, tampering) is not None:
            assert bench.holds_only_the_final_set(), (number, position)
            assert bench.holds_the_objects(), (number, position)
        assert_no_key_was_sent(bench)


@pytest.mark.parametrize("name", PROFILES)
def test_a_station_that_ignores_the_guards_gains_nothing(name: str) -> None:
    bench = Bench(PROFILES[name])
    assert released(bench, _heedless) is not None
    assert bench.holds_only_the_final_set()


@given(
    data=st.lists(st.lists(st.binary(max_size=80), max_size=16), max_size=4),
    phase=st.sampled_from(KeySetPhase),
)
def test_no_octets_from_a_station_end_in_anything_but_a_refusal(
    data: list[list[bytes]], phase: KeySetPhase
) -> None:
    bench = Bench(PROFILES["added"])
    bench.state = replace(bench.state, phase=phase)
    dialogue = inject(bench.order())
    next(dialogue)
    told = iter([*data, []])

    def talk() -> None:
        while True:
            dialogue.send(next(told))

    with pytest.raises((errors.ProofFailed, errors.Interrupted)):
        talk()


def test_an_honest_station_stops_where_the_probe_is_not_answered_as_foretold() -> None:
    bench = Bench(PROFILES["added"])
    channel = ElementChannel(bench.element)
    bench.run(channel)
    gate = bench.steps[-1].batch
    guarded = [guard for guard in gate if guard.response_sha256 is not None]
    assert len(guarded) == 1
    assert guarded[0].command[1] == 0xD8
    later = [guard.command[1] for guard in gate[gate.index(guarded[0]) + 1 :]]
    assert later == [0xE4, 0xE4, 0xE2, 0xCA, 0xCA, 0x50], "nothing is deleted or stored before"
