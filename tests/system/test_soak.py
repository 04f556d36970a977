"""Ten thousand faults, and nothing lost, doubled or released without its proof (SPEC E4).

Station programs provision devices over TLS through a proxy that cuts their connections, while the server's
processes, the whole server, the database's connections, the database server, the token, its connections and
the stations themselves are killed.  After each round everything on record is held against everything else and
against the devices.

BIRTHMARK_SOAK_FAULTS says how many faults a database gets (10 000 if it is not set), BIRTHMARK_KILL_SEED
repeats a run.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from birthmark.edge.station import Enclave
from birthmark.edge.station.checks import verify_token
from birthmark.ledger.checkpoint import VerifierKey
from tests.support.cutting import CuttingProxy
from tests.support.postgresql import LocalPostgreSQL, start
from tests.support.server import (
    RealmDirectory,
    Server,
    birthmark,
    copy_realm,
    make_realm_directory,
    until,
)
from tests.support.tokenprocess import TokenProcess, token_process
from tests.system.station_program import hardware_id
from tests.system.test_kill import ready, seeded, wait

ORDER = "SOAK"
STATIONS = 8
FAULTS_A_BLOW = 50
"""How many cuts come before something is killed; fewer in a short one."""
_ROOT = Path(__file__).parents[2]


class Soak:
    """A realm, its server, the proxy before it, and what was done to them."""

    def __init__(
        self, realm: RealmDirectory, server: Server, proxy: CuttingProxy, chance: random.Random
    ) -> None:
        self.realm, self.server, self.proxy, self.chance = realm, server, proxy, chance
        self.cluster: LocalPostgreSQL | None = None
        self.token: TokenProcess | None = None
        self.devices = 0
        self.blows: Counter[str] = Counter()
        self.programs: dict[int, subprocess.Popen[bytes]] = {}
        self.shares: dict[int, tuple[int, int]] = {}
        self.folder = realm.path.parent / "devices"
        self.folder.mkdir()
        for file in realm.path.glob("stations/*/station.toml"):
            told = file.read_text(encoding="utf-8")
            assert f":{realm.port}" in told
            file.write_text(told.replace(f":{realm.port}", f":{proxy.port}"), encoding="utf-8")

    @property
    def faults(self) -> int:
        """How many there were."""
        return self.proxy.total + sum(self.blows.values())

    # --- the work

    def begin(self, number: int) -> None:
        """Start a station's program on its share of this round, for the first time or again."""
        name, (first, count) = f"ST{number + 1:02}", self.shares[number]
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
    def working(self) -> bool:
        """Whether any station is at work; the test fails if one gave up."""
        running = False
        for number, program in self.programs.items():
            code = program.poll()
            running |= code is None
            log = self.folder.parent / f"ST{number + 1:02}.log"
            assert code in (None, 0), log.read_text(encoding="utf-8", errors="replace")[-3000:]
        return running

    def end(self) -> None:
        """Kill what is left."""
        for program in self.programs.values():
            program.kill()
            program.wait()

    # --- the blows

    def kill_server(self) -> None:
        """Kill all of it, perhaps once more while it starts."""
        self.server.kill()
        if self.chance.random() < 0.2:
            self.server.start(ready=False)
            wait(self.chance.uniform(0, 1.0))
            self.server.kill()
        self.server.start(ready=False)

    def kill_process(self) -> None:
        """Kill one of the processes that serve; its parent starts another."""
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(self.chance.choice(self.server.workers()), signal.SIGKILL)

    def kill_station(self) -> None:
        """Kill a station, which begins again."""
        number = self.chance.randrange(STATIONS)
        program = self.programs[number]
        program.kill()
        if program.wait() != 0:  # it may have been done already
            self.begin(number)

    def cut_database(self) -> None:
        """Cut every connection to the database."""
        assert self.cluster is not None
        with self.cluster.connect() as connection:
            connection.execute(
                b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                b" WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"
            )

    def kill_database(self) -> None:
        """Kill the database server, and start it again."""
        assert self.cluster is not None
        self.cluster.kill()
        wait(self.chance.uniform(0, 1.0))
        self.cluster.restart()

    def cut_token(self) -> None:
        """Kill the processes of the connections to the token, with what they are signing."""
        assert self.token is not None
        self.token.drop_connections()

    def kill_token(self) -> None:
        """Kill the token's process, and start it again."""
        assert self.token is not None
        self.token.kill()
        wait(self.chance.uniform(0, 1.0))
        self.token.start()

    def deal(self) -> None:
        """Deal one blow."""
        every: list[Callable[[], None]] = [self.kill_server] * 3 + [self.kill_station] * 2
        if self.server.processes is not None:
            every += [self.kill_process] * 4
        if self.cluster is not None:
            every += [self.cut_database] * 4 + [self.kill_database] * 3
        if self.token is not None:
            every += [self.cut_token] * 3 + [self.kill_token] * 3
        blow = self.chance.choice(every)
        blow()
        self.blows[blow.__name__] += 1

    # --- rounds

    def round(self, devices: int, target: int, deadline: float) -> None:
        """Provision so many devices under faults, and hold everything against everything."""
        share = devices // STATIONS
        for number in range(STATIONS):
            self.shares[number] = (self.devices + number * share, share)
            self.begin(number)
        self.proxy.cutting, last = True, self.faults
        while self.working:
            assert time.monotonic() < deadline, f"{self.faults} faults in the time there was"
            if self.faults >= target:
                self.proxy.cutting = False
            elif self.faults - last >= min(FAULTS_A_BLOW, max(4, target // 10)):
                self.deal()
                last = self.faults
            wait(0.02)
        self.devices += share * STATIONS
        until(lambda: ready(self.server), 60)
        assert self.server.stop() == 0
        self.reckon(self.devices - share * STATIONS)
        self.server.start()

    def reckon(self, first: int) -> None:
        """Hold the record against itself, the stations' checkpoints, and the devices from ``first`` on."""
        counts = self.realm.check(sorted(self.realm.path.glob("stations/*/checkpoints")))["counts"]
        # All stations are done, so nothing is under way: a device that is not released is an orphan.
        assert (counts["devices released"], counts["records"]) == (self.devices, self.devices)
        assert counts["entries device-issued"] == self.devices
        assert counts["certificates"] == self.devices + counts.get("entries device-reissued", 0)
        released = {
            entry["record"]["device"]: entry["record"]
            for entry in self.realm.entries()
            if entry["kind"] == "device-released"
        }
        assert len(released) == self.devices
        vkey = VerifierKey.parse((self.realm.path / "log.vkey").read_text(encoding="ascii"))
        for number in range(first, self.devices):
            name = hardware_id(number)
            record = released[f"serial:{name}"]
            with Enclave(str(self.folder / name)) as device:
                token = device.token()
                assert token is not None
                assert device.fingerprint() == record["certificate_sha256"]
                verify_token(
                    token, vkey, device=record["device"], attempt=record["attempt"],
                    certificate_sha256=device.fingerprint(),
                )  # fmt: skip

    def table(self, seconds: float) -> str:
        """Return what was done, as a table."""
        rows = sorted((self.proxy.counts + self.blows).items())
        lines = [f"{count:7} {name}" for name, count in rows]
        lines += [f"{self.faults:7} faults", f"{self.devices:7} devices released", f"{seconds:7.0f} s"]
        return "\n".join(lines)


def realm_on(token: TokenProcess, folder: Path, cluster: LocalPostgreSQL | None) -> RealmDirectory:
    """Make a realm whose keys are in this token, which it looks at often."""
    url = "sqlite:///birthmark.db" if cluster is None else cluster.create_database("line")
    options = ("--token-module", token.module, "--token-label", token.token.label)
    realm = make_realm_directory(
        folder / "realm", *options, "--token-pin-file", token.token.pin_file, database_url=url
    )
    kind, text = 'kind = "pkcs11"\n', realm.settings.read_text(encoding="utf-8")
    assert kind in text
    often = f"{kind}check-seconds = 0.1\nanswer-seconds = 5\ngive-up-seconds = 60\n"
    realm.settings.write_text(text.replace(kind, often), encoding="utf-8")
    return realm


def soak(  # what a soak is made of
    folder: Path,
    chance: random.Random,
    *,
    cluster: LocalPostgreSQL | None,
    token: TokenProcess | None,
    faults: int,
    devices: int,
    seconds: float,
) -> Soak:
    """Deal faults until there were so many, in rounds of so many devices."""
    began = time.monotonic()
    realm = copy_realm(folder / "realm") if token is None else realm_on(token, folder, cluster)
    realm.open_run(ORDER, 1_000_000)
    processes = None if cluster is None else 2
    with (
        Server(realm=realm, processes=processes) as server,
        CuttingProxy(server.address, random.Random(chance.random())) as proxy,  # noqa: S311  # as `chance`
    ):
        made = Soak(realm, server, proxy, chance)
        made.cluster, made.token = cluster, token
        try:
            while made.faults < faults:
                made.round(devices, faults, began + seconds)
        finally:
            made.end()
            print(made.table(time.monotonic() - began))  # noqa: T201  # the evidence
        bundle = folder / "bundle"
        realm.run("log", "export", bundle)
        birthmark("log", "verify", bundle, "--vkey", realm.path / "log.vkey")
    return made


@pytest.mark.timeout(300)
@pytest.mark.soak
def test_a_dozen_faults_and_nothing_is_lost(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    made = soak(tmp_path, seeded(request), cluster=None, token=None, faults=12, devices=16, seconds=280)
    assert made.proxy.total >= 1


@pytest.mark.soak
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_ten_thousand_faults_and_nothing_is_lost(
    request: pytest.FixtureRequest, tmp_path: Path, database: str
) -> None:
    faults = int(os.environ.get("BIRTHMARK_SOAK_FAULTS", "10000"))
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(start()) if database == "postgresql" else None
        (tmp_path / "token").mkdir()
        token = stack.enter_context(token_process(tmp_path / "token"))
        made = soak(
            tmp_path, seeded(request), cluster=cluster, token=token,
            faults=faults, devices=min(600, max(40, faults // 4)), seconds=2900,
        )  # fmt: skip
    assert made.faults >= faults
