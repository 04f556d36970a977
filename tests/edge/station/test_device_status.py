"""What the line sees of a device's secure element: over HTTP, by the client kit, by the command (SPEC D5)."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from birthmark import errors
from birthmark.edge.station import ElementStatus, Enclave, Release, Station
from birthmark.element.card_faults import Fault, FaultKind
from tests.edge.http.test_openapi import Judge
from tests.support.devices import asked as wanted
from tests.support.server import RUN, Http, tls_context
from tests.system.element_line import CHIPS, Chip, Line, element_realm, open_line

PUT_KEY = 0xD8


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    with open_line(element_realm(tmp_path_factory.mktemp("served") / "realm")) as made:
        yield made


@pytest.fixture(scope="module")
def released(line: Line, tmp_path_factory: pytest.TempPathFactory) -> tuple[Chip, Release]:
    """A device whose first dialogue broke off."""
    chip = line.chip(Fault(kind=FaultKind.TEAR_AFTER, at=1, ins=PUT_KEY))
    release = provisioned(line, chip, tmp_path_factory.mktemp("released"))
    assert isinstance(release, Release)
    return chip, release


@pytest.fixture(scope="module")
def held(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Chip:
    """A device whose element answered PUT KEY wrongly."""
    chip = line.chip(Fault(kind=FaultKind.WRONG_ANSWER, at=1, ins=PUT_KEY))
    with pytest.raises(errors.ProofFailed):
        provisioned(line, chip, tmp_path_factory.mktemp("held"))
    return chip


def provisioned(line: Line, chip: Chip, folder: Path) -> Release:
    with ExitStack() as stack:
        device = stack.enter_context(Enclave(str(folder / chip.name), card=chip.channel))
        station = stack.enter_context(Station(line.realm.station(), first_pause_seconds=0.05))
        return station.provision(CHIPS, chip.name, device)


def asked(line: Line, chip: Chip) -> ElementStatus:
    with Station(line.realm.station()) as station:
        found = station.device(chip.device).element
    assert found is not None
    return found


def shown(line: Line, chip: Chip) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(line.realm.run("device", "show", chip.device, "--json").stdout)
    return document


def test_a_held_devices_element_says_how_far_it_came_and_why_it_went_no_further(
    line: Line, held: Chip
) -> None:
    status = asked(line, held)
    with Station(line.realm.station()) as station:
        device = station.device(held.device)
    assert device.state == "held"
    assert status == ElementStatus(
        profile="chip",
        phase="intended",
        kvn=0x30,
        master="ours",
        key_diversification_data=held.bench.kdd.hex(),
        attempt=device.attempt,
        tries=0,
        failures=1,
        reason=device.reason,
    )
    assert status.reason
    assert shown(line, held)["element"] == asdict(status)


def test_a_released_device_shows_what_was_proved_of_its_key_set(
    line: Line, released: tuple[Chip, Release]
) -> None:
    chip, release = released
    status = asked(line, chip)
    assert (status.phase, status.tries, status.failures, status.reason) == ("confirmed", 1, 0, None)
    (attempt,) = shown(line, chip)["history"]
    assert attempt["key_set"] == release.key_set
    proved: dict[str, Any] = dict(release.key_set or {})
    text = line.realm.run("device", "show", chip.device).stdout
    for value in (proved["card_cryptogram"], proved["objects"][0]["sha256"], "confirmed", "0x30"):
        assert value in text


def test_an_element_that_never_answered_has_no_name_yet(line: Line, tmp_path: Path) -> None:
    chip = line.chip(Fault(kind=FaultKind.DEAD, at=1))
    with pytest.raises(errors.Refusal):
        provisioned(line, chip, tmp_path)
    status = asked(line, chip)
    assert (status.phase, status.tries, status.key_diversification_data) == ("absent", 1, None)
    assert status.reason == "SELECT: no answer; what the element did is unknown"


def test_a_device_of_a_run_without_elements_has_none_to_show(line: Line, tmp_path: Path) -> None:
    with Enclave(str(tmp_path / "PLAIN")) as device, Station(line.realm.station()) as station:
        station.provision(RUN, "PLAIN", device)
        assert station.device("serial:PLAIN").element is None
    document = json.loads(line.realm.run("device", "show", "serial:PLAIN", "--json").stdout)
    assert document["element"] is None
    assert "key_set" not in document["history"][0]
    assert "element" not in line.realm.run("device", "show", "serial:PLAIN").stdout


def test_what_is_shown_is_as_the_interface_is_described(
    line: Line, held: Chip, released: tuple[Chip, Release]
) -> None:
    with Http(line.server.address, tls_context(line.realm.station())) as client:
        judge = Judge(client.get("/openapi.json").json)
        for chip in (held, released[0]):
            judge.take("get", "/v1/devices/{device}", client.get(f"/v1/devices/{chip.device}"))


def test_a_dialogue_is_as_the_interface_is_described(line: Line) -> None:
    chip = line.chip()
    with Http(line.server.address, tls_context(line.realm.station())) as client:
        judge = Judge(client.get("/openapi.json").json)
        _, body = wanted(chip.name)
        issued = judge.take("post", "/v1/runs/{run}/issue", client.post(f"/v1/runs/{CHIPS}/issue", body)).json
        begin = {"attempt": issued["attempt"], "element": {"step": 0, "responses": []}}
        began = judge.take("post", "/v1/inject", client.post("/v1/inject", begin)).json
        assert began["element"]["commands"][0]["command"].startswith("00a40400")
        ended = {**begin, "element": {"step": 1, "responses": ["9000"]}}
        judge.take("post", "/v1/inject", client.post("/v1/inject", ended))
        judge.take("post", "/v1/inject", client.post("/v1/inject", {**begin, "element": {"step": False}}))
        gang = {"dialogues": [begin, {**begin, "attempt": "0" * 32}]}
        results = judge.take("post", "/v1/gang-inject", client.post("/v1/gang-inject", gang)).json["results"]
    assert [result.get("status") for result in results] == [None, 404]
    assert {status for _, path, status in judge.seen if path == "/v1/inject"} == {200, 400, 409}


def test_a_process_that_does_not_know_the_profile_shows_the_journal(line: Line, held: Chip) -> None:
    file = line.realm.path / "elements" / "chip.toml"
    profile = file.read_bytes()
    file.unlink()
    try:
        element = shown(line, held)["element"]
    finally:
        file.write_bytes(profile)
    assert (element["profile"], element["phase"], element["kvn"]) == ("chip", "intended", None)
