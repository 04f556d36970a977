"""A private pcscd for demo, benchmark and tests, with readers that have no hardware (vpcd).

pcscd's socket has one path that cannot be changed, but pcscd takes a listening socket from systemd
(sd_listen_fds(3)), and clients take its path from ``PCSCLITE_CSOCK_NAME``: so this daemon stands beside the
machine's, and neither knows of the other's readers.  libpcsclite reads that variable once in the life of a
process.

Everything is in one temporary folder and is gone afterwards; the daemon dies with whoever started it.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.programs import find

__all__ = ["VARIABLE", "Daemon", "PCSCFailed", "PCSCMissing", "Reader", "running", "wanting"]

VARIABLE = "PCSCLITE_CSOCK_NAME"
"""What leads clients to the daemon's socket."""
_DRIVER = Path("/usr/lib/pcsc/drivers/serial/libifdvpcd.so")
_STOP_SECONDS = 10


class PCSCMissing(RuntimeError):
    """Something that the daemon needs is not there; the message says what."""


class PCSCFailed(RuntimeError):
    """The daemon did not start; the message ends with its own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One reader: the name PC/SC gives it, and the TCP port (of 127.0.0.1) where vpcd waits for its card."""

    name: str
    port: int


def wanting() -> str | None:
    """Return what is missing on this machine; None if a daemon can be started."""
    for program, package in (("pcscd", "pcscd"), ("setpriv", "util-linux")):
        if find(program) is None:
            return f"{program} is not installed (Debian package {package})"
    if not _DRIVER.exists():
        return "the virtual reader is not installed (Debian package vsmartcard-vpcd)"
    if os.geteuid() != 0 and not Path("/run/pcscd").is_dir():
        return "pcscd wants the folder /run/pcscd, which only root can make"
    return None


class Daemon:
    """A running pcscd and its readers."""

    def __init__(self, folder: Path, readers: tuple[Reader, ...]) -> None:
        """Use a folder that holds the readers' configuration; ``start`` starts it."""
        self.readers = readers
        """The first slot of each."""
        self.socket = folder / "pcscd.comm"
        self.log = folder / "pcscd.log"
        self._configuration = folder / "readers"
        self._none = folder / "none"
        self._process: subprocess.Popen[str] | None = None
        self._reading: threading.Thread | None = None

    @property
    def slots(self) -> tuple[Reader, ...]:
        """All slots, in the order of their ports: a second one of each is at the port after the first."""
        return tuple(
            Reader(name=f"{reader.name[:-1]}{slot}", port=reader.port + slot)
            for reader in self.readers
            for slot in (0, 1)
        )

    def start(self) -> None:
        """Start it, on the same socket and with the same readers as before.

        Raises:
            PCSCFailed: it does not start.
            PCSCMissing: it is not installed.
        """
        if (program := find("pcscd")) is None:
            raise PCSCMissing("pcscd is not installed (Debian package pcscd)")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.socket))
            listening.listen(64)
            # It dies with us, also when we are killed.  pcscd takes the place of the shell, and so has the
            # process id that LISTEN_PID has to be.
            command = (
                f"exec 3<&{listening.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 "
                'exec setpriv --pdeathsig KILL "$1" --config "$2" --foreground --info'
            )
            self._process = subprocess.Popen(
                ["/bin/bash", "-c", command, "bash", program, str(self._configuration)],
                # Newer versions look for drivers of real readers here: the machine's own are left alone.
                env={**os.environ, "PCSCLITE_HP_DROPDIR": str(self._none)},
                pass_fds=[listening.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # Ctrl-C is for us first: we end it when its clients are gone
            )
        said = self._process.stdout
        assert said is not None
        with self.log.open("a") as log:
            for line in said:
                log.write(line)
                if "daemon ready" in line:
                    break
        self._reading = threading.Thread(target=self._keep, args=[said], daemon=True)
        self._reading.start()
        if self._process.poll() is not None:
            self.stop()
            raise PCSCFailed(f"pcscd did not start: {self.log.read_text()}")

    def _keep(self, said: Iterator[str]) -> None:
        with self.log.open("a") as log:
            for line in said:
                log.write(line)

    def stop(self) -> None:
        """Stop it; nothing answers at its socket's path, and the cards are out."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_STOP_SECONDS)
            if self._reading is not None:
                self._reading.join()
            if self._process.stdout is not None:
                self._process.stdout.close()
            self._process = None
        self.socket.unlink(missing_ok=True)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Take the daemon away, and start it again."""
        self.stop()
        try:
            yield
        finally:
            self.start()


@contextmanager
def running(ports: Sequence[int]) -> Iterator[Daemon]:
    """Run pcscd with a reader at each of these ports (at most 8; the port after each is taken as well).

    While it runs, ``PCSCLITE_CSOCK_NAME`` leads this process and those it starts to it.

    Raises:
        PCSCMissing: see ``wanting``.
        PCSCFailed: it does not start.
    """
    if (missing := wanting()) is not None:
        raise PCSCMissing(missing)
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="pcscd-")))
        (folder / "none").mkdir()
        (folder / "readers").mkdir()
        made = []
        for number, port in enumerate(ports):
            # vpcd keeps one table a library, so each reader needs a library of its own; the second slot of
            # each takes the port after the first's.
            library = shutil.copy(_DRIVER, folder / f"reader{number}.so")
            (folder / "readers" / str(number)).write_text(
                f'FRIENDLYNAME "Virtual {number}"\n'
                f"DEVICENAME /dev/null:{port}\nLIBPATH {library}\nCHANNELID {port}\n"
            )
            made.append(Reader(name=f"Virtual {number} 00 00", port=port))
        daemon = Daemon(folder, tuple(made))
        before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = str(daemon.socket)
        try:
            daemon.start()
            yield daemon
        finally:
            daemon.stop()
            if before is None:
                del os.environ[VARIABLE]
            else:
                os.environ[VARIABLE] = before
