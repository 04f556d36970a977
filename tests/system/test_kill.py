"""The server is killed, again and again, and nothing is lost, doubled or left in doubt (SPEC C4, E2).

Station programs of their own provision devices through the station kit while SIGKILL takes the server at
random moments (and, in the long form, PostgreSQL and the stations themselves).  Nobody tells the stations
anything.  At the end everything that is on record is held against everything else, against what is in the
devices, and against every checkpoint any station ever saw.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from birthmark.edge.station import Enclave
from birthmark.edge.station.checks import verify_token
from birthmark.ledger.checkpoint import VerifierKey
from tests.support.postgresql import LocalPostgreSQL, start
from tests.support.server import (
    RealmDirectory,
    Server,
    birthmark,
    copy_realm,
    make_realm_directory,
    until,
)
from tests.system.station_program import hardware_id

ORDER = "KILL"
_ROOT = Path(__file__).parents[2]


@dataclass(slots=True, kw_only=True)
class Shift:
    """Station programs at work on one run."""

    realm: RealmDirectory
    stations: int
    devices: int
    folder: Path = field(init=False)
    programs: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = self.realm.path.parent / "devices"
        self.folder.mkdir()

    def begin(self, number: int) -> None:
        """Start a station's program, for the first time or again."""
        share = self.devices // self.stations
        first = number * share
        count = share if number < self.stations - 1 else self.devices - first
        name = f"ST{number + 1:02}"
        with (self.folder.parent / f"{name}.log").open("ab") as log:
            self.programs[number] = subprocess.Popen(
                [
                    sys.executable, "-m", "tests.system.station_program", str(self.realm.station(name)),
                    str(self.folder), ORDER, str(first), str(count),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=_ROOT,
                env={**os.environ, "PYTHONPATH": str(_ROOT)},
            )  # fmt: skip

    @property
    def done(self) -> int:
        """How many devices the programs said are released."""
        return sum(path.read_bytes().count(b"\n") for path in self.folder.parent.glob("ST*.done"))

    @property
    def working(self) -> bool:
        """Whether any program still runs; the test fails if one gave up."""
        running = False
        for number, program in self.programs.items():
            code = program.poll()
            running |= code is None
            assert code in (None, 0), self.said(number)
        return running

    def said(self, number: int) -> str:
        """Return what a station's program wrote."""
        return (self.folder.parent / f"ST{number + 1:02}.log").read_text(encoding="utf-8", errors="replace")

    def end(self) -> None:
        """Kill what is left."""
        for program in self.programs.values():
            program.kill()
            program.wait()


@contextlib.contextmanager
def shift(realm: RealmDirectory, *, stations: int, devices: int) -> Iterator[Shift]:
    """Open a run for exactly so many devices and put stations to work on it."""
    realm.open_run(ORDER, devices)
    at_work = Shift(realm=realm, stations=stations, devices=devices)
    try:
        for number in range(stations):
            at_work.begin(number)
        yield at_work
    finally:
        at_work.end()


def wait(seconds: float) -> None:
    threading.Event().wait(seconds)


def disturb(
    at_work: Shift, chance: random.Random, blows: list[Callable[[], None]], seconds: float
) -> Counter[str]:
    """Deal the blows at random moments of the work, spread over it, then wait for its end."""
    deadline = time.monotonic() + seconds
    moments = sorted(chance.sample(range(int(at_work.devices * 0.9)), len(blows)))
    dealt: Counter[str] = Counter()
    for moment, blow in zip(moments, blows, strict=True):
        reached = until(
            lambda moment=moment: at_work.done >= moment or not at_work.working,  # type: ignore[misc]  # bound at once: a loop variable
            deadline - time.monotonic(),
        )
        assert reached, (
            f"{at_work.done} devices of {at_work.devices} were released in {seconds} s: {at_work.said(0)}"
        )
        wait(chance.uniform(0, 0.1))
        assert at_work.working, "the work was done before the last blow: it proves nothing"
        blow()
        dealt[blow.__name__] += 1
    assert until(lambda: not at_work.working, deadline - time.monotonic()), at_work.done
    return dealt


def reckon(at_work: Shift) -> None:
    """Hold everything against everything."""
    realm, total = at_work.realm, at_work.devices
    received = sorted(realm.path.glob("stations/*/checkpoints"))
    assert len(received) == at_work.stations
    report = realm.check(received)
    counts = report["counts"]
    assert (counts["devices released"], counts["records"]) == (total, total)
    assert counts["checkpoints received"] >= at_work.stations
    reissued = counts.get("entries device-reissued", 0)
    assert counts["certificates"] == counts["entries device-issued"] + reissued
    assert counts["entries device-issued"] == total
    released = {
        entry["record"]["device"]: entry["record"]
        for entry in realm.entries()
        if entry["kind"] == "device-released"
    }
    vkey = VerifierKey.parse((realm.path / "log.vkey").read_text(encoding="ascii"))
    for number in range(total):
        name = hardware_id(number)
        record = released.pop(f"serial:{name}")
        with Enclave(str(at_work.folder / name)) as device:
            assert device.fingerprint() == record["certificate_sha256"]
            token = device.token()
            assert token is not None
            verify_token(
                token, vkey, device=record["device"], attempt=record["attempt"],
                certificate_sha256=device.fingerprint(),
            )  # fmt: skip
    assert released == {}
    bundle = realm.path.parent / "bundle"
    realm.run("log", "export", bundle)
    birthmark("log", "verify", bundle, "--vkey", realm.path / "log.vkey")


def seeded(request: pytest.FixtureRequest) -> random.Random:
    """Return the test's chance; the seed is printed, and BIRTHMARK_KILL_SEED repeats it."""
    seed = int(os.environ.get("BIRTHMARK_KILL_SEED", str(time.time_ns() % 1_000_000)))
    print(f"{request.node.name}: BIRTHMARK_KILL_SEED={seed}")  # noqa: T201  # what to repeat it with
    return random.Random(seed)  # noqa: S311  # moments, not secrets


@pytest.mark.timeout(300)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_server_killed_at_random_moments_loses_nothing(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    chance = seeded(request)
    cluster = request.getfixturevalue("postgresql") if database == "postgresql" else None
    realm = copy_realm(tmp_path / "realm", cluster)
    with Server(realm=realm) as server, shift(realm, stations=3, devices=150) as at_work:

        def kill_server() -> None:
            server.kill()
            server.start(ready=False)

        disturb(at_work, chance, [kill_server] * 5, seconds=200)
        server.wait_ready()
        assert server.stop() == 0
        reckon(at_work)


@pytest.mark.soak
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_two_thousand_devices_and_every_part_of_the_line_killed(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    chance, began = seeded(request), time.monotonic()
    with contextlib.ExitStack() as stack:
        cluster: LocalPostgreSQL | None = None
        if database == "postgresql":
            cluster = stack.enter_context(start())
        # A cluster of the test's own is no place for the template that others copy.
        realm = copy_realm(tmp_path / "realm") if cluster is None else own_realm(tmp_path, cluster)
        processes = 1 if cluster is None else 2
        server = stack.enter_context(Server(realm=realm, processes=processes))
        at_work = stack.enter_context(shift(realm, stations=4, devices=2000))

        def kill_server() -> None:
            server.kill()
            if chance.random() < 0.3:  # and once more while it starts
                server.start(ready=False)
                wait(chance.uniform(0, 1.0))
                server.kill()
            server.start(ready=False)

        def kill_database() -> None:
            assert cluster is not None
            cluster.kill()
            wait(chance.uniform(0, 1.5))
            cluster.restart()

        def kill_station() -> None:
            number = chance.randrange(at_work.stations)
            program = at_work.programs[number]
            program.send_signal(signal.SIGKILL)
            if program.wait() != 0:  # it may have been done already
                at_work.begin(number)

        blows = [kill_server] * 24 + [kill_station] * 6 + [kill_database] * (2 if cluster else 0)
        chance.shuffle(blows)
        dealt = disturb(at_work, chance, blows, seconds=1200)
        until(lambda: ready(server), 60)
        assert server.stop() == 0
        reckon(at_work)
        print(f"{dict(dealt)} in {time.monotonic() - began:.0f} s")  # noqa: T201  # what to repeat it with


def ready(server: Server) -> bool:
    with contextlib.suppress(AssertionError):
        server.wait_ready()
        return True
    return False


def own_realm(folder: Path, cluster: LocalPostgreSQL) -> RealmDirectory:
    return make_realm_directory(folder / "realm", database_url=cluster.create_database("line"))
