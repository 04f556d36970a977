"""A service, a station enrolled with it, and devices."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from birthmark.edge.station import Enclave, Station
from tests.edge.station.dialogues import Dialogues
from tests.edge.station.service import NAME, Server, Service, enrol


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def elements(service: Service) -> Dialogues:
    """Have the run put a key set into each device's secure element."""
    service.elements = Dialogues()
    return service.elements


@pytest.fixture
def server(service: Service) -> Iterator[Server]:
    server = Server(service)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    service.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def home(tmp_path: Path, service: Service, server: Server) -> Path:
    return enrol(tmp_path / "station", service, server.url)


@pytest.fixture
def connect(home: Path) -> Iterator[Callable[..., Station]]:
    """Open stations that lose their patience and their pauses quickly."""
    opened: list[Station] = []

    def open_station(credentials: Any = home, **options: Any) -> Station:
        quick: dict[str, Any] = {"server_name": NAME, "patience_seconds": 20.0, "first_pause_seconds": 0.001}
        opened.append(Station(credentials, **(quick | options)))
        return opened[-1]

    yield open_station
    for station in opened:
        station.close()


@pytest.fixture
def station(connect: Callable[..., Station]) -> Station:
    return connect()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Enclave]:
    with Enclave(str(tmp_path / "device")) as enclave:
        yield enclave
