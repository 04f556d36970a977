"""Gangs of devices with secure elements: a request for all, each succeeds or fails alone (SPEC C10, D5)."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.edge.station import DeviceElement, Enclave, Release, Station
from birthmark.element.card_faults import ElementChannel, Fault, FaultKind
from tests.edge.station.dialogues import Dialogues
from tests.edge.station.injections import bodies, check_released, paths
from tests.edge.station.service import RUN, Problem, Service


class Line:
    """Several devices with an element each."""

    def __init__(self, folder: Path, elements: Dialogues, count: int) -> None:
        self.vins = [f"1M8GDM9AXKP0428{n:02}" for n in range(count)]
        self.benches = [elements.bench(f"vin:{vin}") for vin in self.vins]
        self.cards = [ElementChannel(bench.element) for bench in self.benches]
        self.devices = [
            Enclave(str(folder / vin), card=card) for vin, card in zip(self.vins, self.cards, strict=True)
        ]

    def given(self) -> list[tuple[str, DeviceElement, bool]]:
        return [(vin, device, False) for vin, device in zip(self.vins, self.devices, strict=True)]


@pytest.fixture
def line(tmp_path: Path, elements: Dialogues) -> Iterator[Line]:
    line = Line(tmp_path, elements, 6)
    yield line
    for device in line.devices:
        device.close()


def test_a_gang_is_carried_with_a_request_for_all(service: Service, station: Station, line: Line) -> None:
    service.max_gang = 6
    results = station.provision_gang(RUN, line.given())
    for result, device, bench in zip(results, line.devices, line.benches, strict=True):
        assert isinstance(result, Release)
        check_released(service, device, result, bench)
    assert Counter(paths(service)) == {
        f"/v1/runs/{RUN}": 1,
        "/v1/me": 1,
        f"/v1/runs/{RUN}/gang-issue": 1,
        "/v1/gang-inject": 2,
        "/v1/gang-prove": 1,
    }
    assert [len(body["dialogues"]) for body in bodies(service, "/v1/gang-inject")] == [6, 6]


def test_a_gang_is_no_larger_than_the_service_takes(service: Service, station: Station, line: Line) -> None:
    results = station.provision_gang(RUN, line.given())
    assert all(isinstance(result, Release) for result in results)
    assert [len(body["dialogues"]) for body in bodies(service, "/v1/gang-inject")] == [4, 2, 4, 2]


def test_each_device_of_a_gang_succeeds_or_fails_alone(
    service: Service, station: Station, line: Line, tmp_path: Path
) -> None:
    """One lies, one breaks off in the middle, one at the end, one is dead, one has no element."""
    line.cards[0].faults.append(Fault(kind=FaultKind.WRONG_ANSWER, at=1, ins=0xD8))
    line.cards[1].faults.append(Fault(kind=FaultKind.TEAR_AFTER, at=1, ins=0xD8))
    line.cards[2].faults.append(Fault(kind=FaultKind.TEAR_BEFORE, at=1, ins=0xE4))
    line.cards[3].faults.append(Fault(kind=FaultKind.DEAD, at=1))
    given = line.given()
    with Enclave(str(tmp_path / "none")) as none:
        given[4] = (line.vins[4], none, False)
        results = station.provision_gang(RUN, given)
    assert [type(result) for result in results] == [
        errors.ProofFailed,
        Release,
        Release,
        errors.Unavailable,
        errors.MalformedRequest,
        Release,
    ]
    line.cards[3].dead = False
    again = station.provision_gang(RUN, line.given()[1:])
    for result, device, bench in zip(again, line.devices[1:], line.benches[1:], strict=True):
        assert isinstance(result, Release)
        check_released(service, device, result, bench)


def test_devices_that_share_a_channel_are_refused_before_anything_is_sent(
    service: Service, station: Station, line: Line, tmp_path: Path
) -> None:
    given = line.given()
    with Enclave(str(tmp_path / "shared"), card=line.cards[0]) as shared:
        given[3] = (line.vins[3], shared, False)
        results = station.provision_gang(RUN, given)
    for index in (0, 3):
        assert isinstance(results[index], errors.MalformedRequest)
        assert "same secure element" in str(results[index])
    assert line.cards[0].commands == 0
    assert sum(isinstance(result, Release) for result in results) == 4


def test_a_gang_request_that_is_refused_as_a_whole_is_each_one_s_and_all_can_go_on(
    service: Service, station: Station, line: Line
) -> None:
    def refuse(path: str) -> None:
        if path == "/v1/gang-inject":
            raise Problem(500, "internal", "no")

    service.refuse = refuse
    results = station.provision_gang(RUN, line.given())
    assert {type(result) for result in results} == {errors.Fault}
    service.refuse = lambda _: None
    assert all(isinstance(result, Release) for result in station.provision_gang(RUN, line.given()))
