"""A flood of handshakes while a station works (SPEC C1, C2): the line goes on, and nothing is left of it."""

import json
import logging
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from birthmark.edge.station import Enclave, Station
from tests.support.server import RUN, RealmDirectory, Server, copy_realm, until

log = logging.getLogger(__name__)

PROGRAM = Path(__file__).with_name("tls_flood.py")
KINDS = ("full", "half-open", "garbage", "drop")
GROWTH_KILOBYTES = 65_536
"""What a process may keep of a flood: allocators do not give back everything."""


MOST_THREADS = 24
"""What the loop's pool may grow to; each has a connection to the database."""


def sockets(server: Server) -> int:
    """Return how many sockets the server has open."""
    found = 0
    for descriptor in Path(f"/proc/{server.pid}/fd").iterdir():
        with suppress(OSError):
            found += descriptor.readlink().name.startswith("socket:")
    return found


def threads(server: Server) -> int:
    return len(list(Path(f"/proc/{server.pid}/task").iterdir()))


def kilobytes(server: Server) -> int:
    status = Path(f"/proc/{server.pid}/status").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in status if line.startswith("VmRSS:")]
    return int(line.split()[1])


@contextmanager
def line(realm: RealmDirectory, folder: Path, name: str) -> Iterator[list[str]]:
    """Let a station provision devices, one after the other, until the block ends; yield those released."""
    released: list[str] = []
    failed: list[BaseException] = []
    over = threading.Event()

    def work() -> None:
        try:
            with Station(realm.station("ST02")) as station:
                while not over.is_set():
                    device = f"{name}-{len(released)}"
                    with Enclave(str(folder / device)) as enclave:
                        station.provision(RUN, device, enclave)
                    released.append(device)
        except BaseException as why:
            failed.append(why)
            raise

    worker = threading.Thread(target=work)
    worker.start()
    try:
        assert until(lambda: released or failed), "the station does not begin"
        yield released
        before = len(released)
        assert until(lambda: len(released) > before or failed, 60), "the station does not go on"
    finally:
        over.set()
        worker.join(60)
    assert not failed, failed
    assert not worker.is_alive()


def flood(server: Server, count: int, seconds: float) -> dict[str, Counter[str]]:
    """Flood with so many handshakes of each kind and return what was heard."""
    command = [sys.executable, str(PROGRAM), str(server.realm.port), str(server.realm.station("ST08"))]
    command += [f"{kind}={count}" for kind in KINDS]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=seconds)
    return {kind: Counter(heard) for kind, heard in json.loads(done.stdout).items()}


def endure(realm: RealmDirectory, folder: Path, count: int, seconds: float) -> None:
    """Flood a server while a station works, and hold both to what they must not do."""
    with Server(realm=realm) as server:
        flood(server, 25, seconds)  # what it keeps for itself it has now
        with line(realm, folder, "BEFORE"):
            pass
        kept, size = sockets(server), kilobytes(server)
        with line(realm, folder, "FLOOD") as released:
            heard = flood(server, count, seconds)
            meanwhile = len(released)
        log.info("heard: %s; devices released meanwhile: %d", json.dumps(heard), meanwhile)
        assert meanwhile > 0
        assert {kind: sum(outcomes.values()) for kind, outcomes in heard.items()} == dict.fromkeys(
            KINDS, count
        )
        statuses = {outcome for outcome in heard["full"] if outcome.startswith("status")}
        assert statuses <= {"status 200", "status 503"}, heard
        assert heard["full"]["status 200"] > 0
        assert until(lambda: sockets(server) <= kept, 30), (sockets(server), kept)
        assert threads(server) <= MOST_THREADS
        log.info("sockets: %d, then %d; threads: %d", kept, sockets(server), threads(server))
        log.info("kilobytes: %d, then %d", size, kilobytes(server))
        assert kilobytes(server) - size < GROWTH_KILOBYTES
        assert not [event for event in server.events() if event["level"] == "error" or "exception" in event]
        assert until(lambda: refused(realm) >= 2 * count, 30), refused(realm)
        assert server.stop() == 0
    realm.check()


def refused(realm: RealmDirectory) -> int:
    """Return how many handshakes the log says were refused."""
    entries = realm.entries()
    return sum(int(entry["count"]) for entry in entries if entry.get("request") == "handshake")


def test_a_flood_of_handshakes_does_not_stop_the_line(tmp_path: Path) -> None:
    endure(copy_realm(tmp_path / "realm"), tmp_path, 75, 60)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_ten_thousand_handshakes_do_not_stop_the_line(tmp_path: Path) -> None:
    endure(copy_realm(tmp_path / "realm"), tmp_path, 2500, 600)
