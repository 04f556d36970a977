"""Power cuts, kills and lies at every command of an injection: nobody is stranded, or released wrongly.

SPEC D5.  Whole programs: the service with its token, a station program that uses the station kit, elements
on sockets.  Whatever breaks off, and whoever is killed with SIGKILL, each device ends released with the right
keys in its element, or held for the true reason; and a held one goes through once it is reworked.  The same
with a station that is somebody else's.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from birthmark.edge.station import Station
from birthmark.element.apdu import Batch, CardChannel, relay
from birthmark.element.card_faults import Fault, FaultKind
from tests.edge.http.test_openapi import Judge
from tests.support.postgresql import LocalPostgreSQL, start
from tests.support.server import Answer
from tests.support.softhsm import softhsm_token
from tests.system.element_line import Chip, Line, Pause, element_realm, open_line
from tests.system.hostile_station import DEEDS, GATE, Dialogue, batch_of
from tests.system.test_kill import seeded

TEARS = (FaultKind.TEAR_BEFORE, FaultKind.TEAR_AFTER, FaultKind.ANSWER_LOST)
ROUNDS, DEVICES = 3, 40


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    folder = tmp_path_factory.mktemp("tears")
    with softhsm_token(folder) as token, open_line(element_realm(folder / "realm", token=token)) as made:
        yield made


@pytest.fixture(scope="module")
def commands(line: Line) -> int:
    return measured(line)


def measured(line: Line) -> int:
    """Return how many commands an undisturbed injection takes."""
    chip = line.chip()
    all_released(line, [chip], line.provision([chip]))
    return chip.channel.commands


def all_released(line: Line, chips: Sequence[Chip], said: dict[str, dict[str, Any]]) -> None:
    """Hold the station's, the log's and the elements' words against each other."""
    records = line.records()
    for chip in chips:
        assert "released" in said[chip.name], (chip, said[chip.name])
        assert chip.holds_what_it_has_to(records[chip.device]), chip
        assert chip.bench.most_failures == 0, "no authentication ever failed"
        chip.served.close()


def settle(
    line: Line, chips: Sequence[Chip], said: dict[str, dict[str, Any]], *, most_failures: int = 0
) -> Counter[str]:
    """See that whoever is not released is held for what the station was told; rework those, to the end."""
    ends: Counter[str] = Counter()
    for _ in range(3):
        records, held = line.records(), line.held()
        again = []
        for chip in chips:
            told = said[chip.name]
            assert chip.bench.most_failures <= most_failures, chip
            if "released" in told:
                assert chip.holds_what_it_has_to(records[chip.device]), chip
                chip.served.close()
                continue
            assert chip.device not in records, chip
            assert told["refused"] == "proof-failed", told
            assert held[chip.device] in told["reason"]
            ends[held[chip.device].split(":")[0]] += 1
            again.append(chip)
        if not again:
            return ends
        with Station(line.realm.operator) as operator:
            for chip in again:
                assert operator.device(chip.device).state == "held"
                operator.rework(chip.device, "its contacts were cleaned")
                chip.channel.faults.clear()
        chips, said = again, line.provision_here(again)
    raise AssertionError(f"devices that rework does not mend: {ends}")


def stop_everywhere(
    line: Line, commands: int, kinds: Sequence[FaultKind | None]
) -> tuple[list[Chip], list[Pause]]:
    """Make devices whose elements stop at every command, with each fault there."""
    chips, pauses = [], []
    for at in range(1, commands + 1):
        for kind in kinds:
            pause = Pause(at=at, after=kind is None)
            faults = [] if kind is None else [Fault(kind=kind, at=at)]
            chips.append(line.chip(*faults, pause=pause))
            pauses.append(pause)
    return chips, pauses


def kill_the_service_everywhere(line: Line, commands: int, kinds: Sequence[FaultKind | None]) -> None:
    chips, pauses = stop_everywhere(line, commands, kinds)
    program = line.program(chips)
    line.await_all(pauses)
    line.restart()
    for pause in pauses:
        pause.go_on.set()
    all_released(line, chips, program.finish())
    line.tears += len(chips)
    line.killed += len(chips)


def kill_the_station_everywhere(line: Line, commands: int, kinds: Sequence[FaultKind | None]) -> None:
    chips, pauses = stop_everywhere(line, commands, kinds)
    program = line.program(chips)
    line.await_all(pauses)
    program.kill()
    for pause in pauses:
        pause.go_on.set()
    all_released(line, chips, program.start().finish())
    line.tears += len(chips)


def cut_the_power_everywhere(line: Line, commands: int) -> None:
    chips = [line.chip(Fault(kind=kind, at=at)) for at in range(1, commands + 1) for kind in TEARS]
    all_released(line, chips, line.provision(chips))
    assert all(not chip.channel.faults for chip in chips), "every one of them had its fault"
    line.tears += len(chips)


@pytest.mark.timeout(150)
def test_power_cut_at_any_command_ends_in_a_release_with_the_right_keys(line: Line, commands: int) -> None:
    cut_the_power_everywhere(line, commands)


@pytest.mark.timeout(150)
def test_a_service_killed_at_any_command_ends_in_a_release_with_the_right_keys(
    line: Line, commands: int
) -> None:
    kill_the_service_everywhere(line, commands, (None, FaultKind.TEAR_BEFORE))


@pytest.mark.timeout(150)
def test_a_station_killed_at_any_command_goes_on_where_the_element_stands(line: Line, commands: int) -> None:
    kill_the_station_everywhere(line, commands, (None, FaultKind.TEAR_AFTER))


@pytest.mark.timeout(150)
def test_an_element_that_keeps_breaking_off_is_held_for_that_and_goes_through_reworked(line: Line) -> None:
    chips = [line.chip(*(Fault(kind=kind, at=2 * n) for n in range(1, 6))) for kind in TEARS]
    said = line.provision(chips)
    held = line.held()
    for chip in chips:
        assert said[chip.name]["refused"] == "proof-failed"
        assert "dialogues with its element broke off" in held[chip.device], held[chip.device]
    settle(line, chips, said)
    line.tears += 5 * len(chips)


def refused(answer: Answer) -> dict[str, Any]:
    """Return what a station program would have said of it."""
    assert answer.status == 409, answer.body
    return {"refused": answer.json["code"], "reason": answer.json["detail"]}


@pytest.mark.timeout(150)
def test_a_hostile_station_gets_nobody_released_and_a_better_one_does(line: Line) -> None:
    chips = {deed: line.chip() for deed in DEEDS}
    said = {chip.name: refused(Dialogue(line, chip).carry(deed)) for deed, chip in chips.items()}
    for deed, chip in chips.items():
        assert said[chip.name]["refused"] == "proof-failed", (deed, said[chip.name])
    settle(line, list(chips.values()), said, most_failures=1)


@pytest.mark.timeout(150)
def test_what_another_device_answered_or_this_one_before_releases_nobody(line: Line) -> None:
    heard: dict[int, list[bytes]] = {}

    def listening(card: CardChannel, step: int, batch: Batch) -> list[bytes]:
        heard[step] = relay(card, batch)
        return heard[step]

    def replaying(at: int, card: CardChannel, step: int, batch: Batch) -> list[bytes]:
        return heard[step] if step == at else relay(card, batch)

    first = line.chip()
    assert Dialogue(line, first).carry(listening).status == 200
    assert first.holds_what_it_has_to(line.records()[first.device])
    others = {step: line.chip() for step in heard}
    said = {
        chip.name: refused(Dialogue(line, chip).carry(partial(replaying, step)))
        for step, chip in others.items()
    }

    kept: list[list[bytes]] = []

    def keeping(card: CardChannel, step: int, batch: Batch) -> list[bytes]:
        if step != GATE:
            return relay(card, batch)
        if not kept:
            kept.append(relay(card, batch))
            return []
        return kept[0]

    before = line.chip()
    said[before.name] = refused(Dialogue(line, before).carry(keeping))
    assert {told["refused"] for told in said.values()} == {"proof-failed"}
    settle(line, [*others.values(), before], said)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("steps", [1, 2])
def test_two_dialogues_for_one_device_release_nobody_for_the_other(line: Line, steps: int) -> None:
    """The station has two elements at hand, and speaks with both at once for one device."""
    one, other = line.chip(), line.chip()
    dialogue = Dialogue(line, one)
    element = dialogue.issued["element"]
    for _ in range(steps - 1):
        answer = dialogue.inject(element["step"], relay(one.channel, batch_of(element)))
        element = answer.json["element"]
    mine = relay(one.channel, batch_of(element))
    begun = dialogue.inject(0).json["element"]
    theirs = relay(other.channel, batch_of(begun))
    assert dialogue.inject(element["step"], mine).json["code"] == "illegal-transition"
    answer = dialogue.inject(begun["step"], theirs)
    if steps == 1:  # nothing was known of the first one: the second is the device's now
        assert answer.status == 200
        assert one.is_as_it_came
    else:
        said = refused(answer)
        assert said["refused"] == "proof-failed"
        assert other.is_as_it_came
        settle(line, [one], {one.name: said})


@pytest.mark.timeout(150)
def test_nothing_is_wrong_with_the_record_afterwards(line: Line) -> None:
    line.realm.check()
    print(f"{line.tears} dialogues broken off, {line.killed} of them with the service killed")  # noqa: T201  # what it is worth


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_hundreds_of_tears_and_every_part_of_the_line_killed(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    chance, began = seeded(request), time.monotonic()
    ends: Counter[str] = Counter()
    with ExitStack() as stack:
        cluster = stack.enter_context(start()) if database == "postgresql" else None
        token = stack.enter_context(softhsm_token(tmp_path))
        realm = element_realm(tmp_path / "realm", cluster=cluster, token=token)
        line = stack.enter_context(open_line(realm, processes=None if cluster is None else 2))
        commands = measured(line)
        for _ in range(ROUNDS):
            cut_the_power_everywhere(line, commands)
            kill_the_service_everywhere(line, commands, (None, *TEARS))
            kill_the_station_everywhere(line, commands, (None, FaultKind.TEAR_AFTER))
            ends += strike_at_random(line, commands, chance, cluster)
        line.server.wait_ready()
        assert line.server.stop() == 0
        realm.check()
        assert line.tears >= 600
        assert line.killed >= 200
        print(  # noqa: T201  # what it is worth
            f"{database}: {line.made} devices, {line.tears} dialogues broken off, {line.killed} of them with"
            f" the service killed, held and reworked: {dict(ends)}, {time.monotonic() - began:.0f} s"
        )


def crash(cluster: LocalPostgreSQL) -> None:
    cluster.kill()
    cluster.restart()


def strike_at_random(
    line: Line, commands: int, chance: random.Random, cluster: LocalPostgreSQL | None
) -> Counter[str]:
    """Give devices several faults each, and kill the service, a station and the database meanwhile."""
    chips = []
    for _ in range(DEVICES):
        moments = chance.sample(range(1, 3 * commands), chance.randint(1, 6))
        chips.append(line.chip(*(Fault(kind=chance.choice(TEARS), at=at) for at in moments)))
    given = sum(len(chip.channel.faults) for chip in chips)
    program = line.program(chips)
    blows: list[Callable[[], object]] = [line.restart, line.restart, program.again]
    if cluster is not None:
        blows.append(partial(crash, cluster))
    chance.shuffle(blows)
    for blow in blows:
        threading.Event().wait(chance.uniform(0.2, 2.0))
        blow()
    said = program.finish()
    line.tears += given - sum(len(chip.channel.faults) for chip in chips)
    return settle(line, chips, said)


def test_what_a_dialogue_is_answered_is_what_the_description_says(line: Line) -> None:
    first, second = Dialogue(line, line.chip()), Dialogue(line, line.chip())
    judge = Judge(first.client.get("/openapi.json").json)
    element = first.issued["element"]
    responses = relay(first.chip.channel, batch_of(element))

    good = judge.take("post", "/v1/inject", first.inject(element["step"], responses)).json
    assert good["element"]["step"] == element["step"] + 1
    judge.take("post", "/v1/inject", first.inject(-1))
    judge.take("post", "/v1/inject", first.inject(element["step"], responses[:1]))
    judge.take("post", "/v1/inject", second.inject(second.issued["element"]["step"], []))
    dialogues = [
        {"attempt": dialogue.attempt, "element": {"step": 0, "responses": []}} for dialogue in (first, second)
    ]
    answer = first.client.post("/v1/gang-inject", {"dialogues": dialogues})
    results = judge.take("post", "/v1/gang-inject", answer).json["results"]

    assert [len(result["element"]["commands"]) > 0 for result in results] == [True, True]
    assert {status for _, _, status in judge.seen} == {200, 400, 409}
