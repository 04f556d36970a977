"""A station renews its own certificate, and never has half of one (SPEC C2)."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import birthmark
from birthmark import errors
from birthmark.edge.station import Credentials, IssueItem, Station, read_station_directory
from birthmark.edge.station.renewal import Renewal, due_at
from birthmark.edge.station.transport import Transport
from birthmark.pki.certificates import Certificate, from_pem
from tests.edge.station.service import NAME, RUN, Problem, Server, Service, answers, enrol

LATE = datetime(2045, 1, 1, tzinfo=UTC)
"""When two thirds of the tests' certificates' life are over."""


def serial(home: Path) -> int:
    return Certificate.from_der(from_pem((home / "station.crt").read_text())[0]).serial_number


def test_a_renewed_station_has_another_key_and_goes_on_without_a_pause(
    service: Service, station: Station, home: Path
) -> None:
    station.issue(RUN, "1M8GDM9AXKP042788")
    before, key = serial(home), (home / "station.key").read_bytes()
    connections = service.connections
    station.renew()
    assert serial(home) == service.renewed[0].serial_number != before
    assert (home / "station.key").read_bytes() != key
    assert (home / "station.key").stat().st_mode & 0o777 == 0o400
    assert not (home / "station.key.next").exists()
    read_station_directory(home).tls_context()
    station.issue(RUN, "1M8GDM9AXKP042789")
    assert service.connections == connections + 2, "one to try the new certificate, one to go on with it"
    assert [seq for _, path, seq, _ in service.requests if path == "/v1/me/certificate"] == ["2"]


def test_a_station_may_die_at_every_step_and_has_one_whole_credential(
    service: Service, home: Path, server: Server
) -> None:
    root = Path(__file__).parents[3]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.edge.station.renewing", home, NAME],
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{Path(birthmark.__file__).parents[1]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    deaths = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(deaths) > 15, "it died often enough to mean something"
    assert deaths[-1]["first"] == 0
    for number, death in enumerate(deaths, 1):
        assert (death["left"], death["again"]) == ("whole", 0), f"before operation {number}: {ran.stderr}"
        assert death["keys"] == ["station.key"], f"before operation {number}"


@pytest.fixture
def renewal(service: Service, home: Path, connect: Callable[..., Station]) -> "Kept":
    return Kept(service, home, connect())


class Kept:
    """A renewal whose clock is the test's."""

    def __init__(self, service: Service, home: Path, station: Station) -> None:
        self.now = LATE
        self.asked = 0
        self.used: list[Credentials] = []
        self.station = station
        credentials = read_station_directory(home)
        self.renewal = Renewal(
            credentials,
            home,
            ask=self.ask,
            new_seq=station._next_seq,  # noqa: SLF001  # likewise
            attempt=lambda _: None,
            use=self.used.append,
            now=lambda: self.now,
        )

    def ask(self, csr: str, seq: int) -> Any:
        self.asked += 1
        return self.station._post("/v1/me/certificate", {"csr": csr}, seq)  # noqa: SLF001  # what renewal is given


def test_it_is_time_when_two_thirds_are_over(renewal: Kept) -> None:
    at, third = due_at(renewal.renewal.credentials)
    assert third == timedelta(days=3531)
    renewal.now = at - timedelta(seconds=1)
    renewal.renewal.look()
    assert renewal.asked == 0
    renewal.renewal._next_look = 0.0  # noqa: SLF001  # ten minutes later
    renewal.now = at
    renewal.renewal.look()
    renewal.renewal.look()
    assert (renewal.asked, len(renewal.used)) == (1, 1), "and not again at once"


def test_what_goes_wrong_is_told_and_the_old_certificate_goes_on(
    renewal: Kept, service: Service, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: str) -> None:
        if "certificate" in path:
            raise Problem(409, "illegal-transition", "authority issuing-1 is suspended")

    service.refuse, before = refuse, serial(home)
    with caplog.at_level(logging.WARNING):
        renewal.renewal.look()
    assert "was not renewed: authority issuing-1 is suspended" in caplog.text
    assert (serial(home), renewal.used) == (before, [])
    service.refuse = lambda _: None
    renewal.renewal._next_look = 0.0  # noqa: SLF001  # later
    renewal.renewal.look()
    assert serial(home) == service.renewed[0].serial_number


@pytest.mark.parametrize("forged", ["another key", "another authority", "not accepted"])
def test_a_certificate_that_would_lock_the_station_out_is_not_taken(
    service: Service, station: Station, home: Path, tmp_path: Path, forged: str
) -> None:
    before = serial(home)
    other = Service()
    stranger = enrol(
        tmp_path / "stranger", other if forged == "another authority" else service, "https://x:1"
    )

    def forge(path: str, body: dict[str, Any]) -> dict[str, Any]:
        if "certificate" in path and forged != "not accepted":
            return body | {"certificate": (stranger / "station.crt").read_text()}
        if path == "/v1/me" and service.renewed:
            return body | {"client": "station:ST99"}
        return body

    station.me()
    service.forge = forge
    with pytest.raises(errors.IntegrityFailure):
        station.renew()
    assert serial(home) == before
    read_station_directory(home).tls_context()


def test_another_process_of_the_station_takes_what_one_has_renewed(
    service: Service, connect: Callable[..., Station], home: Path
) -> None:
    first, second = connect(), connect()
    first.renew()
    service.requests.clear()
    second.renew()
    assert len(service.renewed) >= 1
    second.issue(RUN, "1M8GDM9AXKP042788")
    read_station_directory(home).tls_context()


def test_requests_of_other_threads_go_on_while_a_station_renews(
    service: Service, connect: Callable[..., Station]
) -> None:
    station, failed = connect(), []
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            try:
                station.run(RUN)
            except errors.Refusal as refused:
                failed.append(refused)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for _ in range(5):
        station.renew()
    stop.set()
    for worker in workers:
        worker.join()
    assert failed == []
    assert len({one.serial_number for one in service.renewed}) == 5


def test_a_number_that_nobody_saw_is_used_again(service: Service, connect: Callable[..., Station]) -> None:
    """SPEC E5: the service was away, and no gap says that something was kept out of the log."""
    station = connect()
    station.me()

    def away(path: str) -> None:
        if "certificate" in path:
            raise Problem(503, "unavailable", "the log cannot be written")

    service.refuse = away
    with pytest.raises(errors.Unavailable):
        station.renew()
    service.refuse = lambda _: None
    station.renew()
    assert {seq for _, path, seq, _ in service.requests if "certificate" in path} == {"1"}


# --- too fast


def test_a_station_waits_as_long_as_it_is_told_and_asks_again_for_the_same(
    service: Service, station: Station, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def pause(_: Transport, _why: str, seconds: float) -> bool:
        waited.append(seconds)
        return False

    station.me()
    monkeypatch.setattr(Transport, "pause", pause)
    problem = Problem(429, "rate-limited", "station:ST01 may make 60 requests a minute, 3 at once").body
    service.mishaps.append(
        ("issue", answers(429, "application/problem+json", json.dumps(problem).encode(), Retry_After="7"))
    )
    station.issue(RUN, "1M8GDM9AXKP042788")
    assert waited == [7.0]
    asked = [(path, seq) for _, path, seq, _ in service.requests if "issue" in path]
    assert asked[0] == asked[1], "the same number: no gap"


def test_the_items_of_a_gang_that_went_too_fast_are_asked_for_again(
    service: Service, station: Station
) -> None:
    hasty = Problem(429, "rate-limited", "run-1 may make 60 requests a minute, 2 at once").body
    items = [IssueItem(hardware_id=f"1M8GDM9AXKP{n:06d}", key=f"key-{n}") for n in range(4)]
    left = [2]

    def forge(path: str, body: dict[str, Any]) -> dict[str, Any]:
        if "gang-issue" in path and left[0]:
            left[0] -= 1
            return {"results": [*body["results"][:-1], hasty]}
        return body

    service.forge = forge
    results = station.gang_issue(RUN, items)
    assert not any(isinstance(one, errors.Refusal) for one in results)
    sizes = [len(json.loads(body)["devices"]) for body in service.bodies if b"devices" in body]
    assert sizes == [4, 1, 1]
