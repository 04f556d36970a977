"""A day of the line in as little time as it takes: what grows with it is the record, and nothing else.

A served realm (one process, SQLite, keys in software) and several stations, each a program of its own with
the station kit over TLS.  The day has 24 hours of equally many devices.  Every three hours a run is opened
for exactly the devices that come, and the one before is closed; every eight hours the shift changes: other
operators, and stations that come back with a certificate they have renewed.  Every hour each station has a
device that proves with a wrong key, is held, reworked by the operator and made again; after every hour the
CRLs are published, in the middle of the day a backup is made, and somebody reads the ops plane all the time.

``BIRTHMARK_DAY_DEVICES`` says how many devices the day has (200 000).  The table that it prints has a line
for each hour.  Compared is CPU time of the service, which a busy machine changes little, never time on a
wall.  What is bounded, and why so, stands beside ``BOUND`` and the other constants.
"""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import combinations, islice
from pathlib import Path
from typing import Any, Self

import pytest

from bench.machine import cpu_seconds
from bench.measure import percentile
from birthmark import errors
from birthmark.edge.station import Station
from birthmark.edge.station.checks import verify_token
from birthmark.ledger.checkpoint import VerifierKey
from tests.edge.cli.command import done
from tests.support.server import RealmDirectory, Server, copy_realm, free_port, group_members
from tests.system.day_line import resident_octets

DEVICES = int(os.environ.get("BIRTHMARK_DAY_DEVICES", "200000"))
HOURS = 24
STATIONS = ("ST01", "ST02", "ST03", "ST04")
OPERATORS = ("anna", "boris", "clara")
GANG = 64
RUN_HOURS, SHIFT_HOURS = 3, 8
OPS_SECONDS = 3.0

BOUND = 20
"""Octets a device by which a process of the service may grow over the last three quarters of the day, by the
fitted line (``slope``).  What the service remembers between requests is bounded (caches of constant size,
SQLite's page cache, an arena of the allocator for each thread), so the true figure is 0.  One thing that is
kept for each device would cost more: the smallest object of CPython that says anything (a string of a
hardware id, a key of a dictionary) has 50 octets or more, and its place in a table has 8 to 100.  One
process serves all: with several, one's page cache fills when all stations happen to come to it."""
WARM = 40_000
"""Devices after which the caches of the service are full.  A line through fewer would tell of caches: a day
whose first quarter is shorter has ``CEILING`` alone."""
CEILING = 96 << 20
"""Octets by which a process may be larger at any hour than after the first: SQLite's page cache of the
connection that commits (64 MiB, ``adapters/sql/sqlite``), full caches, and an arena for each thread."""
THREADS = 8
"""Of a process of the service: its loop, the commit train, the lookout, who watches exposures, 4 readers."""
DESCRIPTORS = 2
"""Of each reader: the database and its WAL."""
SLOWER = 1.5
"""CPU time of the service a device, the last tenth over the second tenth of the day.  B-trees get a level
deeper and a proof of inclusion a few hashes longer on the way: some per cent.  Anything that is linear in the
size of the record would be a factor of nine."""


# --- what is measured ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process of the service at one moment."""

    pid: int
    resident: int
    """Octets of its own (RssAnon)."""
    mapped: int
    """Octets of files (RssFile, RssShmem): programs, and the database as far as SQLite maps it."""
    files: int
    """Open file descriptors that are no sockets: an idle connection may be on either process."""
    sockets: int
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hour:
    """One line of the table."""

    devices: int
    """Made since the day began."""
    processes: Sequence[Process]
    cpu: float
    """Microseconds of the service a device, in this hour."""
    seconds: Sequence[float]
    """Issue, sign, prove and verify: seconds a device, one figure a gang."""
    database: int
    wal: int
    """Octets."""
    stations: int
    """Octets that the largest station's program has resident."""

    def line(self) -> str:
        """Return it for the table."""
        processes = " ".join(
            f"{one.resident / 2**20:6.1f} {one.mapped / 2**20:5.1f}"
            f" {one.files:3} {one.sockets:2} {one.threads:2} |"
            for one in self.processes
        )
        return (
            f"{self.devices:8} | {processes} {self.cpu:7.0f} | {statistics.median(self.seconds) * 1e3:6.2f}"
            f" {percentile(self.seconds, 99) * 1e3:7.2f} | {self.database / 2**20:8.1f}"
            f" {self.wal / 2**20:6.1f} | {self.stations / 2**20:6.1f}"
        )


def look(pid: int) -> Process:
    """Read what a process has, from ``/proc``."""
    ends = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            ends.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue  # closed while we look
    sockets = sum(end.startswith("socket:") for end in ends)
    return Process(
        pid=pid,
        resident=resident_octets(pid),
        mapped=resident_octets(pid, "RssFile") + resident_octets(pid, "RssShmem"),
        files=len(ends) - sockets,
        sockets=sockets,
        threads=len(list(Path(f"/proc/{pid}/task").iterdir())),
    )


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the line through the points after Theil and Sen: the median over all pairs.

    Something that is kept for each device raises every pair; a step (an arena of the allocator, when all
    stations happen to come to one process after a change of shift) fewer than half of them.
    """
    return statistics.median((y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2))


# --- who works ----------------------------------------------------------------------------------------------


class Worker:
    """A station's program (``day_line``)."""

    def __init__(self, home: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.day_line", str(home)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def tell(self, order: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"a station ended: {self._process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        assert "fault" not in answer, answer["fault"]
        return answer

    def end(self) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        code = self._process.wait(30)
        self._process.stdout.close()
        return code

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Watcher(threading.Thread):
    """Reads the ops plane every few seconds, as a monitoring system does."""

    def __init__(self, port: int) -> None:
        super().__init__(name="watcher")
        self._base = f"http://127.0.0.1:{port}"
        self._over = threading.Event()
        self.readings = 0
        self.wrong: list[str] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(OPS_SECONDS):
            for path in ("/metrics", "/health"):
                try:
                    with urllib.request.urlopen(f"{self._base}{path}", timeout=60) as answer:  # noqa: S310  # our own
                        answer.read()
                    self.readings += 1
                except OSError as failed:
                    self.wrong.append(f"{path}: {failed}")


@dataclass(slots=True, kw_only=True)
class Day:
    """The day, as far as it has come."""

    realm: RealmDirectory
    server: Server
    workers: Mapping[str, Worker]
    each: int
    """Devices of a station and hour."""
    made: int = 0
    hours: list[Hour] = field(default_factory=list)
    tokens: list[dict[str, str]] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    _numbers: int = 0
    _cpu: float = 0.0

    def say(self, line: str) -> None:
        """Tell whoever watches, at once."""
        self.told.append(line)
        print(line, flush=True)  # noqa: T201  # the table is what the test is read for

    def command(self, *arguments: object) -> str:
        """Run a command on the realm, in this process; it must succeed, however long it takes."""
        begun = time.process_time()
        said = done(*arguments, "--settings", self.realm.settings)
        if arguments[0] in {"backup", "check"} or len(self.hours) == HOURS:
            self.say(f"birthmark {arguments[0]}: {time.process_time() - begun:.1f} s of CPU time")
        return said.out

    def open_run(self, run: str, quantity: int) -> None:
        """Open a run for exactly so many devices."""
        named = [word for name in self.workers for word in ("--station", name)]
        self.command(
            "run", "open", run, "--product", "car", "--quantity", quantity, "--hardware-id-kind", "serial",
            "--hours", 48, "--as", self.realm.operator, *named,
        )  # fmt: skip

    def shift(self, number: int) -> None:
        """Change the shift."""
        for worker in self.workers.values():
            worker.tell({"do": "shift", "operator": OPERATORS[number % len(OPERATORS)], "renew": number > 0})
        for worker in self.workers.values():
            worker.answer()

    def hour(self, run: str, lead: Station) -> None:
        """Make an hour's devices, and again those that were held."""
        orders = {name: self._order(run) for name in self.workers}
        answers = self._work(orders)
        again = {}
        for name, answer in answers.items():
            assert len(answer["held"]) == len(orders[name]["wrong"]) == 1
            for device in answer["held"]:
                assert lead.rework(device, "the fixture was dirty").state == "admitted"
            again[name] = orders[name] | {"gangs": [orders[name]["wrong"]], "wrong": []}
        repeated = self._work(again)
        everything = [*answers.values(), *repeated.values()]
        released = sum(answer["released"] for answer in everything)
        assert released == self.each * len(self.workers)
        self.made += released
        for answer in everything:
            self.tokens += answer["tokens"]
        self._measure(
            released,
            [seconds for answer in answers.values() for seconds in answer["seconds"]],
            max(answer["resident"] for answer in everything),
        )

    def _order(self, run: str) -> dict[str, Any]:
        numbers = iter(range(self._numbers, self._numbers + self.each))
        self._numbers += self.each
        gangs = []
        while gang := [f"D{number:08}" for number in islice(numbers, GANG)]:
            gangs.append(gang)
        return {"do": "work", "run": run, "gangs": gangs, "wrong": [gangs[0][0]]}

    def _work(self, orders: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, worker in self.workers.items():
            worker.tell(orders[name])
        return {name: worker.answer() for name, worker in self.workers.items()}

    def begin(self) -> None:
        """Look at the clock of the processors before the first hour."""
        self._cpu = cpu_seconds(group_members(self.server.pid))
        self.say(
            " devices | each process: MiB of its own, of files, descriptors, sockets, threads | CPU µs/device"
            " | ms/device p50, p99 | database, WAL MiB | station MiB"
        )

    def _measure(self, devices: int, seconds: Sequence[float], stations: int) -> None:
        pids = sorted(group_members(self.server.pid))
        cpu = cpu_seconds(pids)
        database = self.realm.path / "birthmark.db"
        wal = database.with_name("birthmark.db-wal")
        hour = Hour(
            devices=self.made,
            processes=[look(pid) for pid in pids],
            cpu=(cpu - self._cpu) / devices * 1e6,
            seconds=seconds,
            database=database.stat().st_size,
            wal=wal.stat().st_size if wal.exists() else 0,
            stations=stations,
        )
        self._cpu = cpu
        self.hours.append(hour)
        self.say(hour.line())

    # --- what must hold at the end ---

    def require_flat(self) -> None:
        """Hold memory, descriptors and CPU time against their bounds."""
        late = self.hours[len(self.hours) // 4 :]
        assert {tuple(one.pid for one in hour.processes) for hour in late} == {
            tuple(one.pid for one in self.hours[0].processes)
        }, "a process of the service is another than in the morning"
        span = late[-1].devices - late[0].devices
        for index, process in enumerate(late[0].processes):
            seen = [hour.processes[index] for hour in late]
            rise = slope([(hour.devices, hour.processes[index].resident) for hour in late])
            self.say(
                f"process {process.pid}: {rise:.1f} octets a device, {rise * span / 2**20:.2f} MiB in all"
            )
            if late[0].devices >= WARM:
                assert rise < BOUND, f"process {process.pid} grows"
            first = self.hours[0].processes[index].resident
            assert max(one.resident for one in seen) - first < CEILING, process.pid
            assert max(one.threads for one in seen) <= THREADS, process.pid
            # What a reader opens, and no more: it may be busy for the first time at any hour.
            own = {one.files - DESCRIPTORS * one.threads for one in seen}
            assert max(own) <= seen[0].files - DESCRIPTORS * seen[0].threads, (process.pid, own)
        connections = [sum(one.sockets for one in hour.processes) for hour in late]
        assert max(connections) - min(connections) <= len(self.workers) + 2, connections
        tenth = max(1, len(self.hours) // 10)
        second = statistics.median(hour.cpu for hour in self.hours[tenth : 3 * tenth])
        last = statistics.median(hour.cpu for hour in self.hours[-2 * tenth :])
        self.say(f"CPU time a device: {second:.0f} µs in the second tenth, {last:.0f} µs in the last")
        assert last < SLOWER * second

    def require_true(self, lead: Station) -> None:
        """Verify the tokens that the stations got, and what the service says of the same devices now."""
        vkey = VerifierKey.parse((self.realm.path / "log.vkey").read_text(encoding="ascii"))
        step = max(1, len(self.tokens) // 200)
        for one in self.tokens:
            require_release(one["token"], vkey, one)
        for one in self.tokens[::step]:
            require_release(lead.token(one["device"]), vkey, one)
        self.say(f"{len(self.tokens)} release tokens verified, one a gang")


def require_release(token: str, vkey: VerifierKey, one: Mapping[str, str]) -> None:
    """Verify a token of a device that a station told of."""
    verify_token(
        token, vkey, device=one["device"], attempt=one["attempt"],
        certificate_sha256=one["certificate_sha256"],
    )  # fmt: skip


def make_realm(folder: Path) -> tuple[RealmDirectory, int]:
    """Make a realm that publishes, and is watched; return also the port of the ops plane."""
    realm, port = copy_realm(folder / "realm"), free_port()
    with realm.settings.open("a", encoding="utf-8") as settings:
        settings.write(f"\n[ops-plane]\nport = {port}\n")
        settings.write(f'[publication]\nurl = "http://pki.example.com"\ndirectory = "{folder / "www"}"\n')
    for name in OPERATORS[1:]:
        realm.run("operator", "enrol", name, "--role", "line-lead", "--out", realm.path / "operators" / name,
                  "--as", realm.operator)  # fmt: skip
    return realm, port


def live_through(day: Day, hours: int) -> Iterator[tuple[int, Station]]:
    """Live through a day; yields the hour, and who is on shift, before each hour's devices are made."""
    quantity = day.each * len(day.workers) * RUN_HOURS
    with ExitStack() as shift:
        lead: Station | None = None
        for hour in range(hours):
            if hour % RUN_HOURS == 0:
                day.open_run(run_of(hour), quantity)
            if hour % SHIFT_HOURS == 0:
                shift.close()
                day.shift(hour // SHIFT_HOURS)
                name = OPERATORS[hour // SHIFT_HOURS % len(OPERATORS)]
                lead = shift.enter_context(Station(day.realm.path / "operators" / name, day.realm.url))
            assert lead is not None
            yield hour, lead
            if hour % RUN_HOURS == RUN_HOURS - 1:
                status = lead.run(run_of(hour))
                assert (status.admitted, status.released, status.held) == (quantity, quantity, 0)
                day.realm.run(
                    "run", "close", run_of(hour), "--reason", "all made", "--as", day.realm.operator
                )


def run_of(hour: int) -> str:
    """Return the name of the run that is open in an hour."""
    return f"DAY-{hour // RUN_HOURS}"


@pytest.mark.soak
@pytest.mark.timeout(12 * 3600)
def test_a_day_leaves_nothing_behind_but_the_record(tmp_path: Path) -> None:
    realm, port = make_realm(tmp_path)
    each = max(GANG // 2, DEVICES // (HOURS * len(STATIONS)))
    with ExitStack() as stack:
        server = stack.enter_context(Server(realm=realm, processes=1))
        workers = {}
        for name in STATIONS:
            workers[name] = Worker(realm.station(name))
            stack.callback(workers[name].kill)
        day = Day(realm=realm, server=server, workers=workers, each=each)
        watcher = stack.enter_context(Watcher(port))
        day.begin()
        for hour, lead in live_through(day, HOURS):
            day.hour(run_of(hour), lead)
            day.command("publish")
            if hour == HOURS // 2:
                day.command("backup", "create", "--out", tmp_path / "noon.backup")
        with Station(realm.operator, realm.url) as anna:
            day.require_true(anna)
        with Station(realm.station("ST01")) as late, pytest.raises(errors.Refusal, match="closed"):
            late.issue(run_of(HOURS - 1), "D99999999")
        assert [worker.end() for worker in workers.values()] == [0] * len(workers)
        assert watcher.wrong == []
        assert watcher.readings > 0
        day.require_flat()
        assert server.stop() == 0
    counts = json.loads(day.command("check", "--json"))["counts"]
    assert counts["devices released"] == counts["records"] == day.made == each * HOURS * len(STATIONS)
