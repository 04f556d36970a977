"""The power goes in the middle of commits, and nothing that was answered is lost (SPEC C4, E2, E4).

A real line works on a file system that forgets what was not synchronised and tears what was under way; it is
killed, the power is cut, and what is left is opened and held against what was answered.  SQLite runs as in
production.  The machine's own disk is not tried: that a disk keeps what it says it has is the disk's promise.
"""

import base64
import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from birthmark.floor.devices import IdentityRecord
from birthmark.ledger.proof import decode, verify
from birthmark.services.check import check
from tests.support.lossy import LossyDisk, mounted
from tests.support.realm import Line, hierarchy, make_line, open_service
from tests.system.test_kill import seeded

_ROOT = Path(__file__).parents[2]
_COMMITS = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute(f"PRAGMA {sys.argv[2]}")
for number in range(20):
    db.execute("INSERT INTO t VALUES (?)", (number,))
os.kill(os.getpid(), signal.SIGKILL)
"""


class Zygote:
    """The program that forks lines."""

    def __init__(self, url: str, certificate: Path) -> None:
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "tests.system.powercut_line", url, str(hierarchy().directory),
                str(certificate),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT,
            env={
                **os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
            },
        )  # fmt: skip
        assert self._read() == "ready"
        self.child = 0

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the line ended by itself"
        return line.rstrip("\n")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answered(self, name: str, count: int) -> dict[str, str]:
        """Have a line work, kill it after so many answers; return all it gave: device to token."""
        tokens: dict[str, str] = {}
        self._tell(f"work {name}")
        child = 0
        while child == 0 or len(tokens) < count:
            word, _, rest = self._read().partition(" ")
            if word == "child":
                child = int(rest)
            else:
                tokens[word] = base64.b64decode(rest).decode()
        os.kill(child, signal.SIGKILL)
        self._tell("killed")
        while (line := self._read()) != "dead -":
            word, _, rest = line.partition(" ")
            tokens[word] = base64.b64decode(rest).decode()
        return tokens

    def end(self) -> None:
        """End it, and what it forked."""
        self._process.kill()
        self._process.communicate()


@contextlib.contextmanager
def line_on(disk: LossyDisk, folder: Path) -> Iterator[tuple[Line, Zygote]]:
    """Make a line on a disk, and the program that will work on it."""
    line = make_line(folder, f"sqlite:///{disk.path / 'line.sqlite'}")
    line.open_run(quantity=100_000)
    line.close()
    disk.settle()
    certificate = folder / "station.crt"
    certificate.write_bytes(line.station.caller.credential.der)
    zygote = Zygote(line.url, certificate)
    try:
        yield line, zygote
    finally:
        zygote.end()


def cut_again_and_again(request: pytest.FixtureRequest, folder: Path, cuts: int) -> None:
    """Cut the power so often; after each cut everything that was ever answered must be there."""
    chance = seeded(request)
    with mounted(folder / "disk") as disk, line_on(disk, folder) as (line, zygote):
        tokens: dict[str, str] = {}
        for number in range(cuts):
            tokens |= zygote.answered(f"C{number}", chance.randint(1, 12))
            disk.cut(chance.randrange(1 << 32))
            store = open_service(line.url, line.keys, line.clock).store
            try:
                received = [decode(token).checkpoint_note for token in tokens.values()]
                report = check(store, store.log, store.realm, received_checkpoints=received)
                assert report.findings == [], f"after cut {number + 1}"
                released = {record.device for record in store.scan(IdentityRecord)}
                assert released >= tokens.keys(), f"after cut {number + 1}: an answered release is lost"
            finally:
                store.close()
        for device, token in tokens.items():
            assert verify(token, line.vkey)["device"] == device
        print(f"{len(tokens)} answered releases in {cuts} power cuts")  # noqa: T201  # what was tried


@pytest.mark.parametrize("weaker", ["synchronous=NORMAL", "synchronous=OFF"])
@pytest.mark.timeout(120)
def test_the_disk_takes_what_a_weaker_setting_leaves_to_chance(
    request: pytest.FixtureRequest, tmp_path: Path, weaker: str
) -> None:
    """Or the tests here would prove nothing: without the setting we insist on, answers are lost."""
    chance = seeded(request)
    with mounted(tmp_path / "disk") as disk:
        path, lost = disk.path / "any.sqlite", 0
        for _ in range(20):
            for file in disk.path.iterdir():
                file.unlink()
            with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("CREATE TABLE t (n INTEGER)")
            disk.settle()
            done = subprocess.run([sys.executable, "-c", _COMMITS, str(path), weaker], check=False)
            assert done.returncode == -signal.SIGKILL
            disk.cut(chance.randrange(1 << 32))
            with contextlib.closing(sqlite3.connect(path)) as db:
                lost += db.execute("SELECT count(*) FROM t").fetchone() != (20,)
        assert lost > 0


@pytest.mark.timeout(120)
def test_a_power_cut_loses_nothing_that_was_answered(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    cut_again_and_again(request, tmp_path, 5)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_two_hundred_power_cuts_lose_nothing_that_was_answered(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    cut_again_and_again(request, tmp_path, 200)
