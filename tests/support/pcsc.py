"""A pcscd of the tests' own, with readers that have no hardware (vpcd), and cards to put into them.

pcscd's socket has one path that cannot be changed, but pcscd takes a listening socket from systemd
(sd_listen_fds(3)), and clients take its path from ``PCSCLITE_CSOCK_NAME``: so every process of the tests
has a daemon of its own, beside the machine's.  libpcsclite reads that variable once in the life of a process:
a test process talks to one daemon, the one of the fixture, and has its own programs talk to others.
"""

import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.ports import ports
from tests.support.programs import missing, need

__all__ = ["Daemon", "Reader", "inserted", "pcscd"]

ATR = bytes.fromhex("3B80800101")
"""Answer to reset of a card that speaks T=1 and has nothing to say of itself (ISO/IEC 7816-3)."""

_VARIABLE = "PCSCLITE_CSOCK_NAME"
_DRIVER = Path("/usr/lib/pcsc/drivers/serial/libifdvpcd.so")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One reader: the name PC/SC gives it, and the TCP port (of 127.0.0.1) where vpcd waits for its card."""

    name: str
    port: int


class Daemon:
    """A running pcscd and its readers."""

    def __init__(self, folder: Path, readers: tuple[Reader, ...]) -> None:
        self.readers = readers
        self.socket = folder / "pcscd.comm"
        self.log = folder / "pcscd.log"
        self._configuration = folder / "readers"
        self._none = folder / "none"
        self._process: subprocess.Popen[str] | None = None
        self._reading: threading.Thread | None = None

    def start(self) -> None:
        """Start it, on the same socket and with the same readers as before."""
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.socket))
            listening.listen(64)
            # It dies with the tests, also when these are killed.  pcscd takes the place of the shell, and so
            # has the process id that LISTEN_PID has to be.
            command = (
                f"exec 3<&{listening.fileno()}; LISTEN_PID=$$ LISTEN_FDS=1 "
                'exec setpriv --pdeathsig KILL "$1" --config "$2" --foreground --info'
            )
            self._process = subprocess.Popen(
                ["/bin/bash", "-c", command, "bash", need("pcscd"), str(self._configuration)],
                # Newer versions look for drivers of real readers here: the machine's own are left alone.
                env={**os.environ, "PCSCLITE_HP_DROPDIR": str(self._none)},
                pass_fds=[listening.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
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
            raise RuntimeError(f"pcscd did not start: {self.log.read_text()}")

    def _keep(self, said: Iterator[str]) -> None:
        with self.log.open("a") as log:
            for line in said:
                log.write(line)

    def stop(self) -> None:
        """Stop it; nothing answers at its socket's path, and the cards are out."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
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
def pcscd(readers: int = 2) -> Iterator[Daemon]:
    """Start pcscd with some readers (at most 8); skip the test where it or vpcd is not installed.

    While it runs, ``PCSCLITE_CSOCK_NAME`` leads this process and those it starts to it.
    """
    need("pcscd")
    need("setpriv", "util-linux")
    if not _DRIVER.exists():
        missing("the virtual reader is not installed (Debian package vsmartcard-vpcd)")
    if os.geteuid() != 0 and not Path("/run/pcscd").is_dir():
        missing("pcscd wants the folder /run/pcscd, which only root can make")
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="pcscd-")))
        (folder / "none").mkdir()
        (folder / "readers").mkdir()
        made = []
        for number, port in enumerate(ports(readers)):
            # vpcd keeps one table a library, so each reader needs a library of its own; the second slot of
            # each takes the port after the first's.
            library = shutil.copy(_DRIVER, folder / f"reader{number}.so")
            (folder / "readers" / str(number)).write_text(
                f'FRIENDLYNAME "Virtual {number}"\n'
                f"DEVICENAME /dev/null:{port}\nLIBPATH {library}\nCHANNELID {port}\n"
            )
            made.append(Reader(name=f"Virtual {number} 00 00", port=port))
        daemon = Daemon(folder, tuple(made))
        before = os.environ.get(_VARIABLE)
        os.environ[_VARIABLE] = str(daemon.socket)
        try:
            daemon.start()
            yield daemon
        finally:
            daemon.stop()
            if before is None:
                del os.environ[_VARIABLE]
            else:
                os.environ[_VARIABLE] = before


@contextmanager
def inserted(
    reader: Reader, answer: Callable[[bytes], bytes], *, reset: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Put a card into a reader and take it out; PC/SC may need half a second to see it.

    Args:
        reader: in which no card is.
        answer: what the card answers to a command (both are whole APDUs).
        reset: what the card does when it is powered on or off, or reset.
    """
    with socket.create_connection(("127.0.0.1", reader.port)) as line:
        serving = threading.Thread(target=_serve, args=[line, answer, reset], daemon=True)
        serving.start()
        try:
            yield
        finally:
            line.shutdown(socket.SHUT_RDWR)
            serving.join()


def _serve(line: socket.socket, answer: Callable[[bytes], bytes], reset: Callable[[], None]) -> None:
    """Be the card's end of vpcd's protocol: a length of two octets, then a command to the slot or an APDU."""
    while (head := _receive(line, 2)) is not None:
        message = _receive(line, int.from_bytes(head))
        if message is None:
            return
        if len(message) > 1:
            said = answer(message)
        elif message == b"\x04":
            said = ATR
        else:
            reset()
            continue
        try:
            line.sendall(len(said).to_bytes(2) + said)
        except OSError:
            return


def _receive(line: socket.socket, size: int) -> bytes | None:
    """Return that many octets, or None when the reader is gone."""
    octets = b""
    while len(octets) < size:
        try:
            # vpcd writes lengths and bodies apart and waits for each to be acknowledged.
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            part = line.recv(size - len(octets))
        except OSError:
            return None
        if not part:
            return None
        octets += part
    return octets
