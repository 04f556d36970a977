"""Readers and the virtual secure elements in them.

The readers are those of a pcscd of our own (``tools.pcsc``), so the machine's is left alone; where it cannot
be had, the elements are reached over TCP, which is said.  The elements are ``birthmark element virtual``: a
process beside the stations, which keeps what they hold in files.
"""

import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import sleep

from demo.realm import WentWrong, Workshop
from tools.pcsc import VARIABLE, PCSCFailed, PCSCMissing, Reader, running

MASTER = "../maker/master"
"""What the elements' maker keeps to itself, seen from the realm."""
_FIRST, _LAST = 20000, 32000
"""Below what the kernel gives to those who ask for any port."""
_WAIT_SECONDS = 10
_LOOK_SECONDS = 0.4
"""So often pcscd looks whether a card is there: it is to see each one go, before the next one comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readers:
    """What the stations' elements are reached through."""

    slots: tuple[Reader, ...]
    missing: str | None
    """Why there is no PC/SC; None if there is."""

    def url(self, at: int, *, wait: int = _WAIT_SECONDS) -> str:
        """Return what a station calls the element in this place, for which it waits so many seconds."""
        slot = self.slots[at]
        if self.missing is not None:
            return f"tcp:127.0.0.1:{slot.port}"
        return f"pcsc:{slot.name}?wait={wait}"

    def option(self, at: int) -> tuple[str, str]:
        """Return where ``birthmark element virtual`` has to put elements, beginning with this place."""
        return ("--tcp" if self.missing else "--vpcd", f"127.0.0.1:{self.slots[at].port}")


@contextmanager
def readers(workshop: Workshop, count: int) -> Iterator[Readers]:
    """Connect so many readers (an even number, at most 16) until the block ends."""
    port = _free_row(count)
    with ExitStack() as until_the_end:
        try:
            if find_spec("smartcard") is None:
                raise PCSCMissing("pyscard is not installed (requirements/pcsc.txt)")
            daemon = until_the_end.enter_context(running(range(port, port + count, 2)))
        except (PCSCMissing, PCSCFailed) as wanting:
            names = (Reader(name=f"TCP {at}", port=port + at) for at in range(count))
            yield Readers(slots=tuple(names), missing=str(wanting).partition("\n")[0])
            return
        workshop.environment[VARIABLE] = str(daemon.socket)
        yield Readers(slots=daemon.slots, missing=None)


@contextmanager
def inserted(
    workshop: Workshop,
    where: Readers,
    tray: str,
    *,
    at: int = 0,
    count: int = 1,
    kdd: int,
    more: Sequence[str] = (),
    show: bool = True,
) -> Iterator[None]:
    """Have elements in readers until the block ends.

    Args:
        workshop: where they keep what they hold, below ``elements``.
        where: the readers.
        tray: name of their directory; elements that are there already go on with what they hold.
        at: place of the first.
        count: how many.
        kdd: key diversification data of the first; the next count up.
        more: faults and lies.
        show: the command.

    Raises:
        WentWrong: they do not start.
    """
    words = [
        *("element", "virtual", "--directory", f"../elements/{tray}", *where.option(at)),
        *(("--count", str(count)) if count > 1 else ()),
        *("--master", MASTER, "--kdd", f"{kdd:020X}", *more),
    ]
    if show:
        workshop.screen.command(words, more="&")
    with (workshop.directory / "elements.log").open("ab") as log:
        process = subprocess.Popen(
            [workshop.program, *words],
            cwd=workshop.realm,
            env=workshop.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us first
        )
    assert process.stdout is not None
    try:
        with process.stdout as said:
            for _ in range(1 + count):  # a heading, and a line for each that is in its place
                if not said.readline():
                    raise WentWrong(f"the elements do not start: see {os.path.relpath(Path(log.name))}")
            yield
    finally:
        process.kill()  # pulled out, as a tray is: what the elements hold is in files that change whole
        process.wait()
        if where.missing is None:
            sleep(_LOOK_SECONDS)


def _free_row(count: int) -> int:
    for port in range(_FIRST + os.getpid() * 64 % (_LAST - _FIRST), _LAST + 64, 64):
        try:
            for each in range(port, port + count):
                with socket.socket() as trial:
                    trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    trial.bind(("", each))
        except OSError:
            continue
        return port
    raise WentWrong(f"there are no {count} free ports in a row")
