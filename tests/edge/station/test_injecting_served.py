"""Gangs of devices with secure elements, over the real service (SPEC C10, D5)."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.edge.station import DeviceElement, Enclave, Release, Station
from birthmark.element.card_faults import Fault, FaultKind
from tests.system.element_line import CHIPS, Chip, Line, element_realm, open_line


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    with open_line(element_realm(tmp_path_factory.mktemp("served") / "realm")) as made:
        yield made


def provisioned(line: Line, chips: list[Chip], folder: Path) -> list[Release | errors.Refusal]:
    with ExitStack() as stack:
        given: list[tuple[str, DeviceElement, bool]] = [
            (chip.name, stack.enter_context(Enclave(str(folder / chip.name), card=chip.channel)), False)
            for chip in chips
        ]
        station = stack.enter_context(Station(line.realm.station(), first_pause_seconds=0.05))
        return station.provision_gang(CHIPS, given)


def test_each_device_of_a_gang_is_released_or_held_for_its_own_reason(line: Line, tmp_path: Path) -> None:
    faults: list[list[Fault]] = [
        [],
        [Fault(kind=FaultKind.TEAR_AFTER, at=1, ins=0xD8)],
        [Fault(kind=FaultKind.WRONG_ANSWER, at=1, ins=0xD8)],
        [Fault(kind=FaultKind.TEAR_BEFORE, at=1, ins=0xE4)],
        [Fault(kind=FaultKind.DEAD_AFTER, at=1, ins=0xD8)],
        [Fault(kind=FaultKind.ANSWER_LOST, at=1, ins=0xE2)],
        [],
    ]
    chips = [line.chip(*wrong) for wrong in faults]
    results = provisioned(line, chips, tmp_path)
    assert [type(result) for result in results] == [
        Release,
        Release,
        errors.ProofFailed,
        Release,
        errors.Unavailable,
        Release,
        Release,
    ]
    chips[4].channel.dead = False
    going_on = [chip for chip in chips if chip is not chips[2]]
    again = provisioned(line, going_on, tmp_path)
    for chip, result in zip(going_on, again, strict=True):
        assert isinstance(result, Release)
        assert result.key_set is not None
        assert result.key_set["profile"] == "chip"
        assert chip.holds_what_it_has_to({"key_set": result.key_set})
    for chip, first, second in zip(going_on, (results[n] for n in (0, 1, 3, 4, 5, 6)), again, strict=True):
        if isinstance(first, Release):
            assert first == second, f"{chip.name} was released once"


def test_a_gang_goes_on_although_the_service_was_killed(line: Line, tmp_path: Path) -> None:
    chips = [line.chip(Fault(kind=FaultKind.DEAD_AFTER, at=at)) for at in (2, 4, 6, 8)]
    assert {type(result) for result in provisioned(line, chips, tmp_path)} == {errors.Unavailable}
    line.restart()
    for chip in chips:
        chip.channel.dead = False
    for chip, result in zip(chips, provisioned(line, chips, tmp_path), strict=True):
        assert isinstance(result, Release)
        assert result.key_set is not None
        assert chip.holds_what_it_has_to({"key_set": result.key_set})
