"""A private PostgreSQL cluster for demo, benchmark, tests and soak: real, durable, and gone afterwards.

Each cluster has a folder of its own (data, log, socket), a free port on 127.0.0.1, and one superuser with a
random password; nothing is shared with a cluster the machine may already run.  It runs with ``fsync`` and
``synchronous_commit`` on, because what we show and measure is durable.  PostgreSQL refuses to run as root,
so root's cluster belongs to the user ``postgres``, or ``nobody`` where that does not exist.

`LocalPostgreSQL.kill` is a crash of the server, not of the machine: every process of it gets SIGKILL at
once, what it had handed to the kernel stays.  Use it as a context manager; a cluster left running by a
killed parent has to be ended by hand (its folder is below the temporary folder and starts with
``birthmark-postgresql-``).

`LocalPostgreSQL.standby` makes a second server that follows the first by streaming replication, and
`LocalPostgreSQL.promote` makes that one the primary.
"""

import contextlib
import grp
import os
import pwd
import secrets
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg
from psycopg import sql

from tools.programs import find

SUPERUSER = "birthmark"
START_SECONDS = 30
STOP_SECONDS = 30
_DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


class PostgreSQLFailed(RuntimeError):
    """The cluster could not be made or started; the message ends with the server's own last words."""


class LocalPostgreSQL:
    """One running cluster.

    Args:
        settings: server settings that win over the durable ones, spelled as in ``postgresql.conf``.
        within: the folder to make the cluster's in; the temporary folder if left out.
        initdb: further options of ``initdb``.
        primary: the server that this one is to follow; its data is copied instead of made.

    Raises:
        FileNotFoundError: PostgreSQL's server programs are not installed.
        PostgreSQLFailed: ``initdb``, ``pg_basebackup`` or the server refused.
    """

    def __init__(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        within: Path | None = None,
        initdb: Sequence[str] = (),
        primary: "LocalPostgreSQL | None" = None,
    ) -> None:
        self._settings = {**_DURABLE, **(settings or {})}
        self._postgres = _program("postgres")
        self._account = _unprivileged()
        self._password: str = secrets.token_urlsafe(24) if primary is None else primary._password  # noqa: SLF001  # a copy has the same users
        self._server: subprocess.Popen[bytes] | None = None
        self.folder = _folder(self._account, within)
        self.log = self.folder / "log"
        try:
            if primary is None:
                self._initdb(initdb)
            else:
                self._copy(primary)
            self._start_on_a_free_port()
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The process id of the postmaster while it runs."""
        return None if self._server is None else self._server.pid

    def url(self, database: str) -> str:
        """Return the SQLAlchemy URL of *database*, over TCP, with the password in it."""
        return f"postgresql+psycopg://{SUPERUSER}:{self._password}@127.0.0.1:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """Open a connection of the superuser, over the socket, in autocommit mode."""
        return psycopg.connect(
            host=str(self.folder),
            port=self.port,
            user=SUPERUSER,
            password=self._password,
            dbname=database,
            autocommit=True,
        )

    def create_database(self, name: str) -> str:
        """Create an empty database and return its SQLAlchemy URL."""
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, ending the connections that still use it."""
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def standby(self, settings: Mapping[str, str] | None = None) -> "LocalPostgreSQL":
        """Make a server that follows this one, on a copy of its data; commits wait for it if told to.

        Its name in ``synchronous_standby_names`` is that of ``cluster_name``, which ``settings`` may set;
        PostgreSQL's default is ``walreceiver``.
        """
        return LocalPostgreSQL(settings, primary=self)

    def promote(self) -> None:
        """Make a standby a primary, and wait until it is."""
        with self.connect() as connection:
            promoted = connection.execute("SELECT pg_promote(true, %s)", (START_SECONDS,)).fetchone()
        if promoted != (True,):
            raise PostgreSQLFailed("the standby did not become a primary")

    def kill(self) -> None:
        """Crash the server: SIGKILL to the postmaster and all its children, and wait until they are gone."""
        if self._server is None:
            return
        family = [os.pidfd_open(pid) for pid in _children(self._server.pid)]
        self._server.kill()
        self._server.wait()
        self._server = None
        for process in family:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)
            select.select([process], [], [], STOP_SECONDS)
            os.close(process)

    def restart(self) -> None:
        """Start again on the same port and the same data, after `kill` or `shut_down` or from running."""
        self.shut_down()
        self._start()

    def stop(self) -> None:
        """End the server, breaking open connections, and remove its folder.  Does nothing the second time."""
        self.shut_down()
        shutil.rmtree(self.folder, ignore_errors=True)

    def shut_down(self) -> None:
        """End the server, breaking open connections; its data stays."""
        if self._server is None:
            return
        self._server.send_signal(signal.SIGINT)  # "fast shutdown": roll back, checkpoint, leave
        try:
            self._server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._server = None

    def _copy(self, primary: "LocalPostgreSQL") -> None:
        command = [_program("pg_basebackup"), "--pgdata", str(self.folder / "data"), "--write-recovery-conf"]
        command += ["--checkpoint", "fast", "--wal-method", "stream", "--no-sync", "--no-password"]
        command += ["--dbname", f"host=127.0.0.1 port={primary.port} user={SUPERUSER}"]
        done = self._run(command, PGPASSWORD=self._password)
        if done.returncode != 0:
            raise PostgreSQLFailed(f"pg_basebackup failed: {done.stdout.decode(errors='replace')[-2000:]}")

    def _initdb(self, options: Sequence[str]) -> None:
        secret = self.folder / "password"
        secret.write_text(self._password)
        if self._account is not None:
            os.chown(secret, *self._account)
        command = [_program("initdb"), "--pgdata", str(self.folder / "data"), "--username", SUPERUSER]
        command += ["--pwfile", str(secret), "--auth", "scram-sha-256"]
        command += ["--locale", "C.UTF-8", "--encoding", "UTF8", "--no-sync", *options]
        done = self._run(command)
        secret.unlink()
        if done.returncode != 0:
            raise PostgreSQLFailed(f"initdb failed: {done.stdout.decode(errors='replace')[-2000:]}")

    def _start_on_a_free_port(self, tries: int = 5) -> None:
        for last in (False,) * (tries - 1) + (True,):
            self.port = _free_port()
            try:
                self._start()
            except PostgreSQLFailed:  # somebody else may have taken the port in between
                if last or "Address already in use" not in self.log.read_text(errors="replace"):
                    raise
            else:
                return

    def _start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            **self._settings,
        }
        command = [self._postgres, "-D", str(self.folder / "data")]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            self._server = self._popen(command, log.fileno())
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.connect().close()
            except psycopg.OperationalError as refused:
                if self._server.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                self.kill()
                words = self.log.read_text(errors="replace")[-2000:]
                raise PostgreSQLFailed(f"postgres did not start: {words or refused}") from refused
            return

    def _run(self, command: list[str], **environment: str) -> subprocess.CompletedProcess[bytes]:
        with tempfile.TemporaryFile() as output:
            process = self._popen(command, output.fileno(), **environment)
            process.wait()
            output.seek(0)
            return subprocess.CompletedProcess(command, process.returncode, output.read())

    def _popen(self, command: list[str], output: int, **environment: str) -> subprocess.Popen[bytes]:
        """Start *command* in a session of its own: Ctrl-C reaches us first, and the server through us."""
        user, group = self._account or (None, None)
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC", **environment},
            user=user,
            group=group,
            extra_groups=None if user is None else [],
            start_new_session=True,
        )


def _program(name: str) -> str:
    """Prefer a server program beside its siblings: a wrapper on PATH may be of another version."""
    path = find(name)
    if path is None:
        raise FileNotFoundError(f"{name} is not installed (Debian package postgresql)")
    return path


def _unprivileged() -> tuple[int, int] | None:
    """Return the user and group ids to run as, or None to stay who we are."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, grp.getgrgid(entry.pw_gid).gr_gid
    raise PostgreSQLFailed("postgres refuses to run as root, and there is neither user postgres nor nobody")


def _folder(account: tuple[int, int] | None, within: Path | None) -> Path:
    """Make the cluster's folder where the account reaches it; a socket's path stays below 108 bytes."""
    parent = within or Path(tempfile.gettempdir())
    if account is not None and not all(each.stat().st_mode & 0o001 for each in (parent, *parent.parents)):
        parent = Path("/tmp")  # noqa: S108 (mkdtemp makes a folder of mode 0700 there)
    folder = Path(tempfile.mkdtemp(prefix="birthmark-postgresql-", dir=parent))
    if account is not None:
        os.chown(folder, *account)
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _children(pid: int) -> list[int]:
    """Return the ids of *pid*'s child processes (proc(5): field 4 of ``stat`` is the parent)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == pid:
                found.append(int(stat.parent.name))
    return found
