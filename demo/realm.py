"""The demo's directory and what runs in it: the ``birthmark`` command, the server, a token, a database.

    demo-realm/
    ├── .birthmark-demo      says that this directory may be made anew
    ├── realm/               what ``birthmark init`` made
    ├── vehicles/VIN/        the vehicles' own storage
    ├── public/              the public role's host: its settings, its own key, what is published
    ├── audit/               the exported log
    ├── trials/              what clones, strangers and others show
    ├── fleet/, other/       with --gateway: another fleet's authority, another realm
    ├── edge/                with --gateway: nginx in front of an application
    ├── token/               with --token softhsm2: the token, its configuration and PIN
    └── server.log, public.log

Each server is a process of its own and ends with the demo, however that ends.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep
from urllib.parse import unquote, urlsplit

from demo.screen import Screen
from tools.localpg import LocalPostgreSQL, PostgreSQLFailed
from tools.programs import find

MARKER = ".birthmark-demo"
OPERATOR = "anna"
TOKEN_LABEL = "birthmark-demo"  # noqa: S105  # a name
START_SECONDS = 30
STOP_SECONDS = 15
COMMAND_SECONDS = 120

_SOFTHSM = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib64/pkcs11/libsofthsm2.so"),
    Path("/usr/local/lib/softhsm/libsofthsm2.so"),
    Path("/opt/homebrew/lib/softhsm/libsofthsm2.so"),
)
_FOUNDED = ("realm", "log", "root", "authority", "key store", "stations", "officers")
_MARKED = "Made by 'make demo', which removes this directory and makes it anew.\n"


class CannotBegin(Exception):
    """Something that the demo needs is missing, or in the way; nothing was done."""


class WentWrong(Exception):
    """Something did not come out as expected; the demo cannot go on."""


def make_directory(path: Path) -> None:
    """Make the demo's directory, in place of one that an earlier demo made.

    Raises:
        CannotBegin: there is something of somebody else's.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise CannotBegin(f"{path} exists and is no directory: name another with --directory")
    if path.is_dir() and any(path.iterdir()):
        if not (path / MARKER).is_file():
            raise CannotBegin(f"{path} was not made by the demo, so it stays: name another with --directory")
        shutil.rmtree(path)
    for place in (path, path / "vehicles", path / "audit", path / "public"):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    (path / MARKER).write_text(_MARKED)


class Workshop:
    """The demo's directory, and whatever is run in it."""

    def __init__(self, directory: Path, screen: Screen) -> None:
        """Use an empty directory of the demo's."""
        self.directory = directory.resolve()
        self.realm = self.directory / "realm"
        self.vehicles = self.directory / "vehicles"
        self.audit = self.directory / "audit"
        self.public = self.directory / "public"
        self.log = self.directory / "server.log"
        """What the server that was started last has to say."""
        self.screen = screen
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("BIRTHMARK_")
        }
        self.port, self.public_port = free_ports(2)
        self._server: subprocess.Popen[bytes] | None = None
        self.program = Path(sys.executable).with_name("birthmark")
        """The command."""
        if not self.program.exists():
            raise CannotBegin(f"there is no {self.program}: run scripts/install")

    def birthmark(
        self,
        *words: str,
        expect: int | None = 0,
        show: bool = True,
        answer: Callable[[list[str]], Sequence[str]] | None = None,
        place: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the command in the realm's directory, and show it with its answer.

        Args:
            words: after ``birthmark``.
            expect: the exit code that it has to have; None for any.
            show: False to keep it to ourselves.
            answer: chooses the lines of the answer that are shown; all if left out.
            place: where to run it, if not in the realm.

        Raises:
            WentWrong: it ended with another exit code.
        """
        if show:
            self.screen.command(words)
        try:
            done = subprocess.run(
                [self.program, *words],
                cwd=place or self.realm,
                env=self.environment | {"NO_COLOR": "1"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as hung:
            raise WentWrong(f"'birthmark {words[0]}' does not end") from hung
        lines = (done.stdout + done.stderr).splitlines()
        if expect is not None and done.returncode != expect:
            self.screen.output(lines)
            raise WentWrong(f"'birthmark {' '.join(words[:2])}' ended with {done.returncode}, not {expect}")
        if show:
            self.screen.output(lines if answer is None else answer(lines))
        return done

    @contextmanager
    def server(self, *, processes: int, planes: Sequence[int] = ()) -> Iterator[None]:
        """Run the service until the block ends; ``planes`` are the ports of its further planes.

        Raises:
            WentWrong: it does not start.
        """
        words = ["serve", *(["--processes", str(processes)] if processes > 1 else [])]
        ports = (self.port, *planes)
        with self._serving(words, ports, self.directory / "server.log", self.environment):
            yield

    @contextmanager
    def public_role(self) -> Iterator[None]:
        """Run the public role, with settings of its own, until the block ends.

        Raises:
            WentWrong: it does not start.
        """
        words = ["serve", "--plane", "public", "--settings", "../public/birthmark.toml"]
        # Nothing that leads to the token goes with it.
        environment = {name: value for name, value in self.environment.items() if name != "SOFTHSM2_CONF"}
        with self._serving(words, (self.public_port,), self.directory / "public.log", environment):
            yield

    @contextmanager
    def _serving(
        self, words: Sequence[str], ports: Sequence[int], where: Path, environment: Mapping[str, str]
    ) -> Iterator[None]:
        self.screen.command(words)
        self.log = where
        with where.open("wb") as log:
            process = subprocess.Popen(
                [self.program, *words],
                cwd=self.realm,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us first: we end it when the stations are gone
            )
        self._server = process
        try:
            for port in ports:
                self._wait_for(process, port)
            yield
            self.require_server()
        finally:
            _end(process)

    def require_server(self) -> None:
        """Raise ``WentWrong`` if the server ended by itself."""
        if self._server is not None and self._server.poll() is not None:
            raise WentWrong(f"the server ended by itself, with {self._server.returncode}")

    def _wait_for(self, process: subprocess.Popen[bytes], port: int) -> None:
        deadline = monotonic() + START_SECONDS
        while process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            if monotonic() > deadline:
                break
            sleep(0.05)
        raise WentWrong("the server does not start")

    def last_words(self, count: int = 15) -> list[str]:
        """Return the end of the server's log."""
        if not self.log.exists():
            return []
        return self.log.read_text(errors="replace").splitlines()[-count:]


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)  # a session of its own: nobody else is in this group
            process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody has."""
    with ExitStack() as probing:
        probes = [probing.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


def secret_file(path: Path, secret: str) -> Path:
    """Write a secret into a new file that only its owner may read."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as file:
        file.write(secret + "\n")
    return path


# --- a token and a database --------------------------------------------------------------------------


def softhsm_options(workshop: Workshop) -> list[str]:
    """Make a SoftHSM token of the demo's own and return what ``birthmark init`` has to be told about it.

    Raises:
        CannotBegin: SoftHSM or OpenSC is not installed.
    """
    tool, module = find("pkcs11-tool"), next((path for path in _SOFTHSM if path.exists()), None)
    if tool is None or module is None:
        raise CannotBegin("--token softhsm2 needs the Debian packages softhsm2 and opensc")
    place = workshop.directory / "token"
    (place / "objects").mkdir(mode=0o700, parents=True)
    configuration = place / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {place / 'objects'}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    workshop.environment["SOFTHSM2_CONF"] = str(configuration)
    pin, so_pin = secrets.token_hex(8), secrets.token_hex(8)
    pin_file = secret_file(place / "pin", pin)
    secret_file(place / "so-pin", so_pin)
    # Every user of the machine sees arguments; the environment is seen by this user alone.
    known = {"DEMO_PIN": pin, "DEMO_SO_PIN": so_pin}
    for words in (
        ["--init-token", "--label", TOKEN_LABEL, "--so-pin", "env:DEMO_SO_PIN"],
        [
            *("--init-pin", "--token-label", TOKEN_LABEL, "--login", "--login-type", "so"),
            *("--so-pin", "env:DEMO_SO_PIN", "--new-pin", "env:DEMO_PIN"),
        ],
    ):
        done = subprocess.run(
            [tool, "--module", str(module), *words],
            env=workshop.environment | known,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise CannotBegin(f"pkcs11-tool {words[0]} failed: {done.stderr.strip()}")
    files = ["--token-module", str(module), "--token-label", TOKEN_LABEL]
    return [*files, "--token-pin-file", os.path.relpath(pin_file, workshop.directory)]


@contextmanager
def postgresql_options(workshop: Workshop) -> Iterator[list[str]]:
    """Run a PostgreSQL of the demo's own and yield what ``birthmark init`` has to be told about it.

    Raises:
        CannotBegin: PostgreSQL is not installed, or does not start.
    """
    try:
        cluster = LocalPostgreSQL()
    except (FileNotFoundError, PostgreSQLFailed) as wrong:
        raise CannotBegin(f"--database postgresql: {wrong}") from wrong
    with cluster:
        parts = urlsplit(cluster.create_database("birthmark"))
        password = secret_file(workshop.directory / "database-password", unquote(parts.password or ""))
        url = f"postgresql://{parts.username}@{parts.hostname}:{parts.port}{parts.path}"
        where = os.path.relpath(password, workshop.directory)
        yield ["--database-url", url, "--database-password-file", where]


def make_realm(
    workshop: Workshop,
    token: str | None,
    database: str | None,
    stations: Sequence[str],
    until_the_end: ExitStack,
    *more: str,
) -> None:
    """Make the realm by ``birthmark init``, with a token or a database of the demo's own where one is wanted.

    Args:
        workshop: where.
        token: the kind of token, or None.
        database: likewise.
        stations: their names.
        until_the_end: keeps the database running.
        more: further options of ``birthmark init``.

    Raises:
        CannotBegin: what that needs is not installed.
    """
    options: list[str] = []
    if token == "softhsm2":  # noqa: S105  # the name of a program
        options += softhsm_options(workshop)
    if database == "postgresql":
        options += until_the_end.enter_context(postgresql_options(workshop))
    names = [word for name in stations for word in ("--station", name)]
    workshop.birthmark(
        *("init", "realm", "--realm", "acme", "--organization", "Acme Motors", "--port", str(workshop.port)),
        *(*names, "--operator", OPERATOR, *options, *more),
        place=workshop.directory,
        answer=lambda lines: [line for line in lines if line.startswith(_FOUNDED)],
    )
