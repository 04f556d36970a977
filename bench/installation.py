"""One installation to measure: a realm made by ``birthmark init``, and ``birthmark serve`` over it.

Everything goes through the command, as an operator would do it; the benchmark knows the files that ``init``
leaves and nothing of the program's inside.  Databases lie below one temporary directory and go with it.
"""

import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from birthmark.adapters.sql.engines import open_database
from birthmark.secret import SecretBytes
from tools.localpg import LocalPostgreSQL

__all__ = ["RUN", "STATIONS", "Failed", "Installation", "free_port", "installation"]

RUN = "BENCH-1"
STATIONS = 32
"""A connection is a station; no measurement has more connections than this."""
QUANTITY = 100_000_000
START_SECONDS = 30.0
STOP_SECONDS = 30.0


class Failed(RuntimeError):
    """A program of the installation did not do what it should; the message ends with its own last words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """A realm with an open run."""

    folder: Path
    host: str
    port: int
    stations: tuple[str, ...]
    durability: dict[str, str]
    """What the service's own database connections answer when asked how durable they are."""
    postgresql: LocalPostgreSQL | None

    @property
    def settings(self) -> Path:
        """The settings file."""
        return self.folder / "birthmark.toml"

    def context(self, station: str) -> ssl.SSLContext:
        """Return the TLS context of a station: TLS 1.3, its certificate, the realm's root."""
        credential = self.folder / "stations" / station
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(credential / "root.crt")
        context.load_cert_chain(credential / "station.crt", credential / "station.key")
        return context

    def command(self, *arguments: str) -> None:
        """Run a ``birthmark`` command in the realm's directory.

        Raises:
            Failed: it ended with another code than 0.
        """
        _birthmark(self.folder, arguments)

    @contextmanager
    def serving(self, processes: int) -> Iterator[int]:
        """Serve with so many processes; yields the id of the first."""
        with self.running([sys.executable, "-m", "birthmark", "serve", "--processes", str(processes)]) as pid:
            yield pid

    @contextmanager
    def running(self, command: Sequence[str]) -> Iterator[int]:
        """Run a server in the realm's directory until the block ends; yields its process id."""
        words = self.folder / "server.log"
        with words.open("ab") as log:
            server = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, env=_environment())
        try:
            self._wait(server, words)
            yield server.pid
        finally:
            server.terminate()
            try:
                server.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()

    def _wait(self, server: subprocess.Popen[bytes], words: Path) -> None:
        deadline = time.monotonic() + START_SECONDS
        context = self.context(self.stations[0])
        while True:
            try:
                # A full handshake: the socket listens before the application behind it is built.
                with (
                    socket.create_connection((self.host, self.port), timeout=START_SECONDS) as plain,
                    context.wrap_socket(plain, server_hostname=self.host),
                ):
                    return
            except OSError as cause:
                if server.poll() is not None or time.monotonic() > deadline:
                    said = words.read_text(errors="replace")[-2000:]
                    raise Failed(f"the service did not start: {said or cause}") from cause
                time.sleep(0.05)


_NO_LIMIT = 1_000_000_000


@contextmanager
def installation(database: str) -> Iterator[Installation]:
    """Make a realm on ``sqlite`` or ``postgresql``, and remove all of it afterwards.

    Raises:
        FileNotFoundError: PostgreSQL's server programs are not installed.
        Failed: ``birthmark init`` or ``birthmark run open`` refused.
    """
    parent = Path(tempfile.mkdtemp(prefix="birthmark-bench-"))
    cluster = LocalPostgreSQL() if database == "postgresql" else None
    try:
        yield _make(parent, cluster)
    finally:
        if cluster is not None:
            cluster.stop()
        shutil.rmtree(parent, ignore_errors=True)


def _make(parent: Path, cluster: LocalPostgreSQL | None) -> Installation:
    folder, host, port = parent / "realm", "127.0.0.1", free_port()
    stations = tuple(f"ST{number:02d}" for number in range(1, STATIONS + 1))
    init = ["init", str(folder), "--realm", "bench", "--organization", "Bench Motors", "--port", str(port)]
    for station in stations:
        init += ["--station", station]
    url, secret = f"sqlite:///{folder}/birthmark.db", None
    if cluster is not None:
        parts = urlsplit(cluster.create_database("bench"))
        url = f"postgresql://{parts.username}@{parts.hostname}:{parts.port}/bench"
        secret = SecretBytes((parts.password or "").encode())
        password = parent / "database.password"
        password.touch(mode=0o600)
        password.write_bytes(secret.reveal())
        init += ["--database-url", url, "--database-password-file", str(password)]
    _birthmark(parent, init)
    _take_the_brakes_off(folder / "birthmark.toml")
    order = [
        "run",
        "open",
        RUN,
        "--product",
        "vehicle",
        "--quantity",
        str(QUANTITY),
        "--hardware-id-kind",
        "vin",
    ]
    for station in stations:
        order += ["--station", station]
    _birthmark(folder, order)
    return Installation(
        folder=folder,
        host=host,
        port=port,
        stations=stations,
        durability=_durability(url, secret),
        postgresql=cluster,
    )


def _take_the_brakes_off(settings: Path) -> None:
    """Measure how fast the service is, not how fast it lets one go: buckets are asked, and never empty."""
    rates = "".join(
        f"{name} = {_NO_LIMIT}\n"
        for name in ("client-per-minute", "client-burst", "run-per-minute", "run-burst")
    )
    text = settings.read_text(encoding="utf-8")
    settings.write_text(text.replace("[station-plane]\n", f"[station-plane]\n{rates}"), encoding="utf-8")


def _durability(url: str, secret: SecretBytes | None) -> dict[str, str]:
    database = open_database(url, secret)
    asked = (
        (
            "SHOW fsync",
            "SHOW synchronous_commit",
            "SHOW wal_sync_method",
            "SHOW full_page_writes",
            "SHOW server_version",
        )
        if url.startswith("postgresql")
        else ("PRAGMA journal_mode", "PRAGMA synchronous")
    )
    try:
        return {question.split()[1]: str(database.query(question)[0][0]) for question in asked}
    finally:
        database.close()


def _birthmark(folder: Path, arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "birthmark", *arguments]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env=_environment()
    )
    if done.returncode != 0:
        raise Failed(f"birthmark {arguments[0]} ended with {done.returncode}: {done.stderr[-2000:]}")


def _environment() -> dict[str, str]:
    """Return the environment of a server: this tree on the path, and nothing that names another realm."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BIRTHMARK_")}
    return kept | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
