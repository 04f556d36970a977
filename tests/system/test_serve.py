"""The service as a program: it starts, is told to stop, loses processes, and guards what is in its memory."""

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.devices import asked, signed
from tests.support.server import (
    RUN,
    Http,
    RealmDirectory,
    Server,
    birthmark,
    copy_realm,
    group_members,
    tls_context,
    until,
)


@pytest.fixture
def realm(tmp_path: Path) -> RealmDirectory:
    return copy_realm(tmp_path / "realm")


def client(server: Server) -> Http:
    return Http(server.address, tls_context(server.realm.station()))


def listens(server: Server) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(server.address) == 0


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("processes", [1, 2])
def test_told_to_stop_it_ends_with_zero_and_nothing_is_left(
    realm: RealmDirectory, signum: signal.Signals, processes: int
) -> None:
    with Server(realm=realm, processes=processes) as server:
        with client(server) as station:
            assert station.get("/v1/me").status == 200
            assert server.stop(signum) == 0  # with the connection open
        assert not listens(server)
        grave = [event for event in server.events() if event["level"] in ("error", "warning")]
        # Whom the service is started by, and what that one may, is the machine's affair.
        assert not [
            event
            for event in grave
            if "as root" not in event["event"] and "LimitMEMLOCK" not in event["event"]
        ]


def test_what_is_under_way_when_it_is_told_to_stop_is_finished(realm: RealmDirectory) -> None:
    """A request is half sent when the signal comes: its answer arrives whole, and is on record."""
    body = json.dumps({"devices": list(dict(asked(f"STOP-{n}") for n in range(100)).values())}).encode()
    with Server(realm=realm) as server:
        with client(server) as station:
            plane = station.connection
            plane.putrequest("POST", f"/v1/runs/{RUN}/gang-issue")
            for name, value in (
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("expect", "100-continue"),
            ):
                plane.putheader(name, value)
            plane.endheaders()
            assert plane.sock.recv(100).startswith(b"HTTP/1.1 100")  # it waits for the body now
            os.kill(server.pid, signal.SIGTERM)
            assert until(lambda: not listens(server))
            plane.sock.sendall(body)
            response = plane.getresponse()
            answer = json.loads(response.read())
        assert server.stop() == 0
    issued = [entry for entry in realm.entries() if entry["kind"] == "device-issued"]
    assert response.status == 200
    assert [result["state"] for result in answer["results"]] == ["issued"] * 100
    assert len(issued) == 100


def test_a_process_that_is_killed_is_started_again(realm: RealmDirectory) -> None:
    with Server(realm=realm, processes=2) as server:
        assert until(lambda: len(server.workers()) == 2)
        before = set(server.workers())
        for victim in before:
            os.kill(victim, signal.SIGKILL)
        assert until(lambda: len(set(server.workers()) - before) == 2), server.told()
        server.wait_ready()
        with client(server) as station:
            assert station.get("/v1/me").status == 200
        died = [event for event in server.events() if event["event"] == "a process of the service died"]
        assert {event["pid"] for event in died} == before
        assert server.stop() == 0


def test_processes_do_not_outlive_a_parent_that_is_killed(realm: RealmDirectory) -> None:
    """Orphans would keep the port, and nobody would restart them."""
    with Server(realm=realm, processes=2) as server:
        assert until(lambda: len(server.workers()) == 2)
        group = server.pid
        os.kill(server.pid, signal.SIGKILL)
        assert until(lambda: group_members(group) == []), server.told()
        assert not listens(server)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_service_that_cannot_start_says_why_and_ends(realm: RealmDirectory, processes: int) -> None:
    (realm.path / "keys" / "log.p8").unlink()
    with (
        pytest.raises(AssertionError, match="the server ended"),
        Server(realm=realm, processes=processes) as server,
    ):
        pytest.fail(f"it serves: {server.told()}")
    told = Server(realm=realm).told()
    assert "there is no key 'log'" in told, told
    assert "Traceback" not in told


def test_an_address_that_is_taken_is_told(realm: RealmDirectory) -> None:
    with Server(realm=realm):
        done = birthmark("serve", "--settings", realm.settings, check=False)
    assert done.returncode == 75
    assert f"cannot listen on 127.0.0.1:{realm.port}" in done.stderr


@contextlib.contextmanager
def observed(realm: RealmDirectory, folder: Path) -> Iterator[tuple[Server, Path]]:
    """Serve from a program that answers, from inside, whether its memory may be dumped (prctl(2))."""
    told, ask = folder / "dumpable", folder / "ask"
    os.mkfifo(ask)
    program = (
        "import ctypes, pathlib, sys, threading\n"
        "def look():\n"
        f"    open({str(ask)!r}).read()\n"
        f"    pathlib.Path({str(told)!r}).write_text(str(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0)))\n"
        "threading.Thread(target=look, daemon=True).start()\n"
        "from birthmark.__main__ import main\n"
        "main()\n"
    )
    with Server(realm=realm, command=(sys.executable, "-c", program)) as server:
        yield server, told


def test_no_core_dump_of_the_serving_process_reaches_a_disk(realm: RealmDirectory, tmp_path: Path) -> None:
    """SPEC B7: keys in memory must not reach a disk that way."""
    with observed(realm, tmp_path) as (server, told):
        (tmp_path / "ask").write_text("?", encoding="ascii")
        assert until(lambda: told.exists() and told.read_text(encoding="ascii")) == "0"
        limits = Path(f"/proc/{server.pid}/limits").read_text(encoding="ascii")
        (core,) = [line.split() for line in limits.splitlines() if line.startswith("Max core file size")]
        assert core[4:6] == ["0", "0"]


def test_the_processes_of_a_plane_may_not_be_dumped_either(realm: RealmDirectory) -> None:
    with Server(realm=realm, processes=2) as server:
        assert until(lambda: len(server.workers()) == 2)
        for pid in server.workers():
            limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
            (core,) = [line.split() for line in limits.splitlines() if line.startswith("Max core file size")]
            assert core[4:6] == ["0", "0"]


def test_what_was_answered_before_a_restart_is_known_after_it(realm: RealmDirectory) -> None:
    """SPEC C4: the same key gets the same answer, from a process that never saw the request."""
    key, body = asked("AGAIN-1")
    with Server(realm=realm) as server:
        with client(server) as station:
            issued = station.post(f"/v1/runs/{RUN}/issue", body).json
        server.restart()
        with client(server) as station:
            assert station.post(f"/v1/runs/{RUN}/issue", body).json == issued
            proof = signed(issued, key)
            released = station.post("/v1/prove", proof).json
        server.restart()
        with client(server) as station:
            assert station.post("/v1/prove", proof).json == released
        assert released["state"] == "released"
