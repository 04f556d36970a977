"""A realm made by ``birthmark init`` and served by ``birthmark serve``: real programs, real TLS, real kills.

A realm of one shape (authority, eight stations, operator ``anna``, run ``RUN-1`` of serial numbers) is made
once a test run, on each database, and copied for every test that wants its own: a directory for SQLite, a
``CREATE DATABASE … TEMPLATE`` for PostgreSQL.

Ports come from below the range the kernel gives to outgoing connections: a station that knocks while the
server is down could otherwise be given the server's own port, and keep it.
"""

import atexit
import contextlib
import functools
import http.client
import io
import itertools
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from birthmark import app
from birthmark.adapters.sql.engines import open_database
from birthmark.adapters.sql.log import LogReader
from birthmark.edge.cli.main import run
from birthmark.ledger.entry import decode
from tests.support.guessing import real_cost
from tests.support.postgresql import LocalPostgreSQL

__all__ = [
    "RUN",
    "Answer",
    "Http",
    "RealmDirectory",
    "Server",
    "birthmark",
    "copy_realm",
    "free_port",
    "group_members",
    "make_realm_directory",
    "tls_context",
    "until",
]

T = TypeVar("T")

RUN = "RUN-1"
STATIONS = tuple(f"ST{number:02}" for number in range(1, 9))
START_SECONDS = 30.0
STOP_SECONDS = 15.0
_BIRTHMARK = (sys.executable, "-m", "birthmark")

_numbers = itertools.count(1)
_ports = random.Random(os.getpid())  # noqa: S311  # port numbers


def birthmark(*arguments: str | Path, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one ``birthmark`` command and return how it ended."""
    command = [*_BIRTHMARK, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=110, **options)
    if check:
        assert done.returncode == 0, f"{' '.join(command[2:])}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def _in_this_process(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command that is not the subject as ``birthmark`` would."""
    words, out, err = list(map(str, arguments)), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(lambda: app, words)
    if check:
        assert code == 0, f"{' '.join(words)}: {code}\n{out.getvalue()}{err.getvalue()}"
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody has and no outgoing connection will be given."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    for _ in range(1000):
        port = _ports.randrange(10_000, lowest)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port between 10000 and {lowest}")


def until(look: Callable[[], T], seconds: float = 15.0) -> T:
    """Look until something true is seen and return it, or what was seen last when the time is over."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not (seen := look()) and time.monotonic() < deadline:
        pause.wait(0.02)
    return seen


# --- the realm ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RealmDirectory:
    """A directory that ``birthmark init`` made, and its database."""

    path: Path
    port: int
    database_url: str

    @property
    def settings(self) -> Path:
        """The settings file."""
        return self.path / "birthmark.toml"

    @property
    def url(self) -> str:
        """Where the station plane is."""
        return f"https://127.0.0.1:{self.port}"

    def station(self, name: str = "ST01") -> Path:
        """Return a station's credential directory."""
        return self.path / "stations" / name

    @property
    def operator(self) -> Path:
        """The operator's credential directory."""
        return self.path / "operators" / "anna"

    def run(self, *arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on this realm: in this process, which saves the second that a new one takes.

        A token's module belongs to the process that loaded it: a realm with one gets a process.
        """
        tokens = "\nmodule = " in self.settings.read_text(encoding="utf-8")
        helper = birthmark if tokens else _in_this_process
        with real_cost():  # a program made its secret keys
            return helper(*arguments, "--settings", self.settings, check=check)

    def open_run(
        self, run: str, quantity: int, *options: str, kind: str = "serial", stations: Sequence[str] = STATIONS
    ) -> None:
        """Open a production run."""
        named = [word for station in stations for word in ("--station", station)]
        self.run(
            "run", "open", run, "--product", "car", "--quantity", str(quantity), "--hardware-id-kind", kind,
            "--hours", "48", *named, *options,
        )  # fmt: skip

    def entries(self) -> list[Mapping[str, Any]]:
        """Return all committed entries of the audit log, read past the service."""
        url = self.database_url.replace("postgresql+psycopg://", "postgresql://")
        if url.startswith("sqlite:"):
            url = f"sqlite:///{self.path / 'birthmark.db'}"
        vkey = (self.path / "log.vkey").read_text(encoding="ascii")
        database = open_database(url)
        try:
            return [decode(item.entry) for item in LogReader(database, vkey).entries()]
        finally:
            database.close()

    def check(self, received: Sequence[Path] = ()) -> dict[str, Any]:
        """Run ``birthmark check`` and return its report; the test fails if it finds anything."""
        options: list[str | Path] = []
        for path in received:
            options += ["--received-checkpoints", path]
        done = self.run("check", "--json", *options, check=False)
        assert done.stdout, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        assert (report["ok"], report["findings"], done.returncode) == (True, [], 0), report["findings"]
        return report

    def listening_on(self, port: int, **changes: str) -> "RealmDirectory":
        """Return the same realm and database behind another port, with a settings file of its own.

        Args:
            port: where it is to listen.
            changes: keys of the settings (``_`` for ``-``) and their new TOML values; a key the file does
                not have goes to the end, into the table of the station plane.
        """
        text = self.settings.read_text(encoding="utf-8")
        for name, value in {"port": str(port), **changes}.items():
            key = name.replace("_", "-")
            text, found = re.subn(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
            if not found:
                text += f"{key} = {value}\n"
        return _Listening(path=self.path, port=port, database_url=self.database_url).written(text)


class _Listening(RealmDirectory):
    """A realm that is served from a settings file of another name."""

    __slots__ = ()

    @property
    def settings(self) -> Path:
        return self.path / f"birthmark-{self.port}.toml"

    def written(self, text: str) -> Self:
        self.settings.write_text(text, encoding="utf-8")
        return self


def make_realm_directory(
    path: Path, *options: str | Path, database_url: str = "sqlite:///birthmark.db"
) -> RealmDirectory:
    """Make a realm with ``birthmark init``, its stations and the run.

    Args:
        path: the directory to make.
        options: further ones of ``birthmark init``.
        database_url: SQLAlchemy's or libpq's URL; a password in it goes into a file.
    """
    port, arguments = free_port(), list(options)
    url = database_url.replace("postgresql+psycopg://", "postgresql://")
    found = re.fullmatch(r"(postgresql://[^:]+):([^@]+)(@.*)", url)
    if found:
        url = found[1] + found[3]
        password = path.parent / f"{path.name}.password"
        password.touch(mode=0o600)
        password.write_text(found[2] + "\n", encoding="ascii")
        arguments += ["--database-password-file", password]
    for station in STATIONS:
        arguments += ["--station", station]
    make = birthmark if "--token-module" in arguments else _in_this_process
    make(
        "init", path, "--realm", "acme", "--organization", "Acme Motors", "--site", "Graz", "--line", "L1",
        "--operator", "anna", "--port", str(port), "--database-url", url, *arguments,
    )  # fmt: skip
    realm = RealmDirectory(path=path, port=port, database_url=database_url)
    # Tests of other things go as fast as they can; who asks about rates sets them (``listening_on``).
    rates = "".join(f"{name} = 1000000000\n" for name in ("client-per-minute", "client-burst"))
    rates += "".join(f"{name} = 1000000000\n" for name in ("run-per-minute", "run-burst"))
    text = realm.settings.read_text(encoding="utf-8")
    realm.settings.write_text(
        text.replace("[station-plane]\n", f"[station-plane]\n{rates}"), encoding="utf-8"
    )
    realm.open_run(RUN, 100_000)
    return realm


@functools.cache
def _template(cluster: LocalPostgreSQL | None) -> RealmDirectory:
    folder = Path(tempfile.mkdtemp(prefix="birthmark-realm-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if cluster is None:
        return make_realm_directory(folder / "realm")
    return make_realm_directory(folder / "realm", database_url=cluster.create_database("realm_template"))


def copy_realm(path: Path, cluster: LocalPostgreSQL | None = None) -> RealmDirectory:
    """Return a realm of the test's own, on SQLite or in a database of this cluster."""
    template, port = _template(cluster), free_port()
    shutil.copytree(template.path, path)
    for directory in (path, *(each for each in path.rglob("*") if each.is_dir())):
        directory.chmod(0o700)
    url = template.database_url
    changes = {"port": str(port)}
    if cluster is not None:
        name = f"realm_{os.getpid()}_{next(_numbers)}"
        with cluster.connect() as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE realm_template'.encode())
        url = cluster.url(name)
        changes["url"] = json.dumps(
            re.sub(r":[^:@]+@", "@", url.replace("postgresql+psycopg://", "postgresql://"))
        )
    settings = path / "birthmark.toml"
    text = settings.read_text(encoding="utf-8")
    for key, value in changes.items():
        text = re.sub(rf"(?m)^{key} = .*$", f"{key} = {value}", text)
    settings.write_text(text, encoding="utf-8")
    for file in path.glob("*/*/station.toml"):
        told = file.read_text(encoding="utf-8").replace(f":{template.port}", f":{port}")
        file.chmod(0o600)
        file.write_text(told, encoding="utf-8")
    return RealmDirectory(path=path, port=port, database_url=url)


# --- the server ---------------------------------------------------------------------------------------------


def group_members(group: int) -> list[int]:
    """Return the ids of the processes of a process group (proc(5): field 5 of ``stat``)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] not in "ZX":
                found.append(int(stat.parent.name))
    return found


@dataclass(slots=True, kw_only=True)
class Server:
    """One ``birthmark serve``, started by entering it."""

    realm: RealmDirectory
    processes: int | None = None
    command: Sequence[str] = _BIRTHMARK
    environment: Mapping[str, str] = field(default_factory=dict)
    log: Path = field(init=False)
    """Everything it ever wrote, over all restarts."""
    _process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.log = self.realm.path.parent / f"serve-{self.realm.port}.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """The process id of what was started: the server, or the parent of its processes."""
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return "127.0.0.1", self.realm.port

    def workers(self) -> list[int]:
        """Return the ids of the processes that serve."""
        pids = group_members(self.pid)
        return pids if len(pids) == 1 else [pid for pid in pids if pid != self.pid]

    def start(self, *, ready: bool = True) -> None:
        """Start it, and wait until it answers."""
        arguments = [*self.command, "serve", "--settings", str(self.realm.settings)]
        if self.processes is not None:
            arguments += ["--processes", str(self.processes)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **self.environment},
            )  # fmt: skip
        if ready:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until a handshake is answered (the socket listens long before that)."""
        deadline = time.monotonic() + START_SECONDS
        context = tls_context(self.realm.station())
        while True:
            assert self._process is not None
            # Returns at once when the process ends, and that is the only thing to wait for meanwhile.
            died = self._process.poll() is not None
            assert not died, f"the server ended: {self.told()[-3000:]}"
            try:
                with Http(self.address, context, timeout=START_SECONDS) as client:
                    client.get("/openapi.json")
                return
            except OSError:
                assert time.monotonic() < deadline, f"the server does not answer: {self.told()[-3000:]}"
                self._wait_for_death(0.02)

    def _wait_for_death(self, seconds: float) -> None:
        process = os.pidfd_open(self.pid)
        try:
            select.select([process], [], [], seconds)
        finally:
            os.close(process)

    def kill(self) -> None:
        """SIGKILL all its processes at once, and wait until they are gone."""
        if self._process is None:
            return
        group = self._process.pid
        members = []
        for pid in group_members(group):
            with contextlib.suppress(ProcessLookupError):
                members.append(os.pidfd_open(pid))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self._process.wait(STOP_SECONDS)
        for member in members:
            gone = select.select([member], [], [], STOP_SECONDS)[0]
            os.close(member)
            assert gone, "a process of the server survived SIGKILL"
        self._process = None

    def restart(self) -> None:
        """Kill it if it runs, and start it again."""
        self.kill()
        self.start()

    def stop(self, signum: int = signal.SIGTERM) -> int:
        """End it with a signal to the process that was started, and return its exit code."""
        assert self._process is not None, "the server does not run"
        self._process.send_signal(signum)
        code = self._process.wait(STOP_SECONDS)
        left = group_members(self._process.pid)
        self.kill()
        assert not left, f"processes {left} outlived the server"
        return code

    def told(self) -> str:
        """Return all it wrote."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def events(self) -> list[dict[str, Any]]:
        """Return its log, which is one JSON object a line."""
        return [json.loads(line) for line in self.told().splitlines() if line]


# --- the other end ------------------------------------------------------------------------------------------


def tls_context(directory: Path | None, *, root: Path | None = None) -> ssl.SSLContext:
    """Return a client's TLS context: the credentials of a directory, or none; it trusts the realm's root."""
    root = root or (directory / "root.crt" if directory is not None else None)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(root)
    if directory is not None:
        context.load_cert_chain(directory / "station.crt", directory / "station.key")
    return context


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server answered."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def type(self) -> str:
        """The media type."""
        return self.headers.get_content_type()

    @property
    def json(self) -> Any:
        """The body, which must be JSON."""
        assert self.type in ("application/json", "application/problem+json"), self.type
        return json.loads(self.body)


class Http:
    """One kept connection, without the station kit's kindnesses: nothing is repeated."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, *, timeout: float = 20.0) -> None:
        """Connect at the first request."""
        self.connection = http.client.HTTPSConnection(*address, context=context, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Send one request."""
        self.connection.request(method, path, body, dict(headers or {}))
        response = self.connection.getresponse()
        return Answer(status=response.status, headers=response.headers, body=response.read())

    def get(self, path: str, **headers: str) -> Answer:
        """Read."""
        return self.ask("GET", path, headers=_spelled(headers))

    def post(self, path: str, body: object, **headers: str) -> Answer:
        """Send JSON; header names are spelled with ``_`` for ``-``."""
        spelled = {"content-type": "application/json", **_spelled(headers)}
        return self.ask("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), spelled)


def _spelled(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
