"""Disks fill up, fail, are set read-only, servers go: the line is held, says why, and goes on (SPEC E4).

Nothing here is told to the service, and nothing of it is restarted.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.adapters.sql.postgresql import PostgreSQL
from birthmark.adapters.sql.sqlite import SQLite
from birthmark.adapters.sql.store import SQLStore
from birthmark.floor.devices import Device, DeviceState
from birthmark.services.acts import ANONYMOUS, record_refusal
from birthmark.services.check import check
from tests.support.devices import asked, signed
from tests.support.disks import Network, small_disk
from tests.support.lossy import mounted
from tests.support.postgresql import LocalPostgreSQL, start
from tests.support.realm import Line, Service, libpq, make_line, proof, workpiece
from tests.support.server import RUN, Http, Server, copy_realm, free_port, tls_context, until

ISSUE = f"/v1/runs/{RUN}/issue"


@contextmanager
def line_at(url: str, folder: Path) -> Iterator[Line]:
    """Make a line with run R1 open; nothing that is stored contradicts anything else when it is closed."""
    line = make_line(folder, url)
    line.open_run()
    try:
        yield line
        assert check(line.service.store, line.service.store.log, line.realm).findings == []
    finally:
        line.close()


def held(line: Line, *acts: Callable[[], object]) -> set[str]:
    """Do what is to be refused, twice; return the reasons."""
    size, reasons = line.size(), set()
    for act in (*acts, *acts):
        with pytest.raises(errors.Unavailable) as caught:
            act()
        reasons.add(str(caught.value))
    assert line.size() == size, "what was refused is not in the log"
    return reasons


def test_a_full_disk_holds_the_line_until_there_is_room_again(tmp_path: Path) -> None:
    with small_disk("8m") as disk, line_at(f"sqlite:///{disk.path}/line.sqlite", tmp_path) as line:
        device, late = workpiece("D1"), workpiece("D2")
        request = proof(line.issue(device), device.key)
        with disk.full():
            reasons = held(line, lambda: line.prove(request), lambda: line.issue(late, key="late"))
            assert all("its disk is full: free some space" in reason for reason in reasons), reasons
            assert line.the(Device, device.id).state is DeviceState.ISSUED, "what is there can be read"
        line.issue(late, key="late")
        assert line.prove(request).device == device.id


def test_a_log_that_cannot_be_emptied_into_the_database_holds_the_line_only_when_the_disk_is_full(
    tmp_path: Path,
) -> None:
    """A reader that never ends keeps SQLite's WAL from being emptied: it grows, and nothing else happens."""
    with small_disk("8m") as disk, line_at(f"sqlite:///{disk.path}/line.sqlite", tmp_path) as line:
        reader = SQLite(disk.path / "line.sqlite")
        spare = disk.path / "spare"
        spare.write_bytes(bytes(2 << 20))
        with reader.snapshot() as query:
            before = query("SELECT size FROM head", ())[0][0]
            reason, written = fill(line)
            assert "its disk is full" in reason
            assert query("SELECT size FROM head", ())[0][0] == before, "the reader sees its own moment"
        assert written > 100
        wal = (disk.path / "line.sqlite-wal").stat().st_size
        assert wal > 4 << 20
        spare.unlink()
        for _ in range(100):
            write(line)
        assert (disk.path / "line.sqlite-wal").stat().st_size <= wal + (1 << 20), "it is written anew"
        line.make("D1")
        reader.close()


def test_a_file_system_that_is_read_only_holds_the_line_until_it_is_not(tmp_path: Path) -> None:
    with small_disk("8m") as disk, line_at(f"sqlite:///{disk.path}/line.sqlite", tmp_path) as line:
        line.make("D1")
        line.close()
        database = SQLite(disk.path / "line.sqlite")
        with disk.read_only():
            for ask in (lambda: database.begin([]), lambda: database.query("SELECT size FROM head")):
                with pytest.raises(
                    errors.Unavailable, match=r"read-only|Read-only|cannot be opened"
                ) as caught:
                    ask()
                assert "the line goes on by itself" in str(caught.value)
        store = SQLStore(database, line.clock, bytes)
        assert store.log.size() > 0
        store.close()
        line.service = line.another_service()
        line.make("D2")


def test_a_disk_that_fails_while_a_service_works_is_told_to_every_client(tmp_path: Path) -> None:
    """The whole service; and nobody can write its log down meanwhile, which stops nothing."""
    with mounted(tmp_path / "disk") as disk:
        copied = copy_realm(tmp_path / "realm")
        (disk.path / "line.db").write_bytes((copied.path / "birthmark.db").read_bytes())
        realm = copied.listening_on(free_port(), url=f'"sqlite:///{disk.path}/line.db"')
        server = Server(realm=realm)
        server.log = Path("/dev/full")
        with server, Http(server.address, tls_context(realm.station())) as station:
            for number, fault in enumerate(("full", "broken", "read-only")):
                key, body = asked(f"DISK-{number}-1")
                _, late = asked(f"DISK-{number}-2")
                issued = station.post(ISSUE, body).json
                with disk.failing(fault):
                    for answer in (
                        station.post(ISSUE, late),
                        station.post("/v1/prove", signed(issued, key)),
                        station.post(ISSUE, b"{"),
                        station.get("/v1/nothing"),
                    ):
                        assert answer.status == 503, answer.body
                        assert answer.json["detail"].startswith("database: its disk "), answer.json
                        assert "goes on by itself" in answer.json["detail"]
                    assert station.get("/v1/me").status in (200, 503)
                assert station.post(ISSUE, late).status == 200
                assert station.post("/v1/prove", signed(issued, key)).status == 200
            assert server.stop() == 0
        realm.check()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_service_that_starts_on_a_full_disk_says_so_and_begins_when_there_is_room(
    tmp_path: Path, processes: int
) -> None:
    copied = copy_realm(tmp_path / "realm")
    with small_disk("8m") as disk:
        (disk.path / "line.db").write_bytes((copied.path / "birthmark.db").read_bytes())
        realm = copied.listening_on(free_port(), url=f'"sqlite:///{disk.path}/line.db"')
        server = Server(realm=realm, processes=processes)

        def held() -> int:
            return sum("held from the start: database: " in event["event"] for event in server.events())

        try:
            with disk.full():
                server.start(ready=False)
                assert until(lambda: held() == processes, 60), server.told()
                assert server.stop() == 0, "told to stop it does"
                server.start(ready=False)
                assert until(lambda: held() == 2 * processes, 60), server.told()
            server.wait_ready()
            assert "died" not in server.told()
            with Http(server.address, tls_context(realm.station())) as station:
                key, body = asked("ROOM-1")
                issued = station.post(ISSUE, body).json
                assert station.post("/v1/prove", signed(issued, key)).status == 200
            assert server.stop() == 0
        finally:
            server.kill()
        realm.check()


# --- PostgreSQL ---


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalPostgreSQL]:
    """A server of this file's own, whose connections it cuts."""
    with start() as made:
        yield made


@pytest.mark.parametrize("way", ["cut", "swallow"])
def test_a_network_that_loses_the_database_holds_the_line_until_it_is_back(
    tmp_path: Path, cluster: LocalPostgreSQL, way: str
) -> None:
    url = cluster.create_database(f"network_{way}")
    with line_at(url, tmp_path) as line, Network(cluster.port) as network:
        through = libpq(url).replace(f":{cluster.port}/", f":{network.port}/") + "?connect_timeout=2"
        service = line.another_service(wrap=lambda _: PostgreSQL(through, train_seconds=1))
        device, late = workpiece("D1"), workpiece("D2")
        request = proof(line.issue(device, service=service), device.key)
        getattr(network, way)()
        with pytest.raises(errors.Unavailable) as caught:
            write(line, service)
        assert "its server cannot be reached; the line goes on by itself" in str(caught.value)
        with pytest.raises(errors.Unavailable, match="its server cannot be reached"):
            write(line, service)
        network.mend()
        line.issue(late, key="late", service=service)
        assert line.prove(request, service=service).device == device.id


@pytest.mark.timeout(240)
def test_a_full_disk_of_the_server_holds_the_line_until_there_is_room_again(tmp_path: Path) -> None:
    settings = {"max_wal_size": "2MB", "min_wal_size": "2MB", "shared_buffers": "8MB"}
    with (
        small_disk("96m") as disk,
        start(settings, within=disk.path, initdb=("--wal-segsize", "1")) as cluster,
        line_at(cluster.create_database("line"), tmp_path) as line,
    ):
        device = workpiece("D1")
        request = proof(line.issue(device), device.key)
        with disk.full():
            reason, _ = fill(line)
            with pytest.raises(errors.Unavailable):
                line.prove(request)
        if not until(lambda: answers(line), 5):
            cluster.restart()  # as whatever supervises it does: a server without room for its log ends
        assert until(lambda: answers(line), 30)
        assert line.prove(request).device == device.id
        assert "disk of its server is full" in reason or "cannot be reached" in reason


def write(line: Line, service: Service | None = None) -> None:
    """Put something on record that takes room and is of no consequence."""
    refusal = errors.MalformedRequest("x" * 400)
    (service or line.service).carry(record_refusal(ANONYMOUS, "fill", {}, refusal))


def fill(line: Line) -> tuple[str, int]:
    """Write until there is no room for it; return the reason, and how often it could be written."""
    for number in range(5000):
        try:
            write(line)
        except errors.Unavailable as unavailable:
            return str(unavailable), number
    raise AssertionError("the disk was never full")


def answers(line: Line) -> bool:
    try:
        return line.size() > 0
    except errors.Unavailable:
        return False
