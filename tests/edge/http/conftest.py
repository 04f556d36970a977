"""One served realm for all tests of the station plane that leave it working, and the means to ask it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import Http, RealmDirectory, Server, copy_realm, tls_context


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> RealmDirectory:
    return copy_realm(tmp_path_factory.mktemp("plane") / "realm")


@pytest.fixture(scope="module")
def server(realm: RealmDirectory) -> Iterator[Server]:
    quick = realm.listening_on(realm.port, request_seconds="1", max_body_bytes="200000")
    with Server(realm=quick) as running:
        yield running


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[..., Http]]:
    """Open connections with a client's credentials: a station's if left out."""
    opened: list[Http] = []

    def open_connection(directory: Path | None = None, **options: Any) -> Http:
        opened.append(Http(server.address, tls_context(directory or server.realm.station()), **options))
        return opened[-1]

    yield open_connection
    for each in opened:
        each.connection.close()


@pytest.fixture
def station(connect: Callable[..., Http]) -> Http:
    return connect()


@pytest.fixture
def operator(connect: Callable[..., Http], server: Server) -> Http:
    return connect(server.realm.operator)
