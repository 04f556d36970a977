"""The tests' pcscd (``tools.pcsc``), and cards to put into its readers.

A test process talks to one daemon, the one of the fixture, and has its own programs talk to others: where the
daemon is, libpcsclite asks once in the life of a process.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.support.ports import ports
from tests.support.programs import missing
from tools.pcsc import Daemon, Reader, running, wanting

__all__ = ["Daemon", "Reader", "inserted", "pcscd"]

ATR = bytes.fromhex("3B80800101")
"""Answer to reset of a card that speaks T=1 and has nothing to say of itself (ISO/IEC 7816-3)."""


@contextmanager
def pcscd(readers: int = 2) -> Iterator[Daemon]:
    """Start pcscd with some readers (at most 8); skip the test where it or vpcd is not installed.

    While it runs, ``PCSCLITE_CSOCK_NAME`` leads this process and those it starts to it.
    """
    if (reason := wanting()) is not None:
        missing(reason)
    with running(ports(readers)) as daemon:
        yield daemon


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
