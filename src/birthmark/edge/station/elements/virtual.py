"""Virtual secure elements in reach of stations: as a reader's card, over TCP, or in this process.

For development, tests and demonstrations only: the elements are software (``birthmark.element.card``), and
their files hold their keys in clear.

- **vpcd**, the virtual reader of pcscd: it listens, the element connects, and every program that speaks PC/SC
  finds a card in the reader.
- **TCP**: the element listens, one client at a time.
- **in process**: ``virtual:FILE``, a channel to an element whose file the first two have made.

On both sockets every message is its length in two octets, big-endian, and that many octets.  Messages of
one octet are the reader's: 00 power off, 01 power on, 02 reset, without an answer; 04 asks for the ATR.  All
others are commands and are answered with responses.  A connection that begins powers the element on; an
element that loses its power or its answer ends the connection, as a card that is pulled out, and is there
again soon after, unless it is dead.

Source of the messages: vsmartcard, virtualsmartcard/src/vpcd/vpcd.h.
"""

import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from birthmark.edge.station.elements import allow
from birthmark.edge.station.elements.carded import OPTIONS, CardedEnclave, carded
from birthmark.edge.station.folder import Folder
from birthmark.element.apdu import CardChannel
from birthmark.element.card import VirtualElement
from birthmark.element.card_faults import ElementChannel
from birthmark.element.card_keys import HONEST, Dishonesty
from birthmark.element.card_state import CardState, decode_state, encode_state
from birthmark.element.diversification import Derivation, Scheme
from birthmark.element.keyset import SoftwareKeys
from birthmark.errors import MalformedRequest, NotFound, Unavailable
from birthmark.secret import SecretBytes

__all__ = [
    "ATR",
    "Drawer",
    "FiledChannel",
    "ServedElement",
    "channel",
    "derived_keys",
    "element",
    "initial_keys",
    "on_tcp",
    "on_vpcd",
]

ATR = bytes.fromhex("3B800181")
"""T=1, no historical bytes (ISO/IEC 7816-3 section 8.2): extended lengths go through."""
_POWER_OFF, _POWER_ON, _RESET, _SEND_ATR = 0, 1, 2, 4
_AGAIN = 0.05
"""Seconds before a reader that was not there is looked for again."""
_OUT = 0.6
"""Seconds that a card stays out of its reader: pcscd looks every 0.4 (STATUS_POLL_RATE).

A card that it did not see leave is taken for the one that was there, and is not powered again."""
_PATIENCE = 10.0
"""Seconds a thread is given to end."""


class Drawer:
    """A directory (mode 0700) with the states of elements, a file (mode 0600) each, used by one process.

    Files change whole, so a process may be killed at any moment; they are not flushed to the disk for each
    command, so a power cut of the *machine* can bring an older state back.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open the directory, after making it where it is missing.

        Raises:
            NotPermitted: others than its owner may enter it.
            Unavailable: another process uses it.
        """
        self._folder = Folder(path, create=True)
        self._folder.lock()

    def close(self) -> None:
        """Let another process use it."""
        self._folder.close()

    def secret(self, path: Path) -> SecretBytes:
        """Return what is in a file that only its owner may touch.

        Raises:
            NotFound: there is no such file.
            NotPermitted: others may touch it.
        """
        content = self._folder.read_private(os.fspath(path.absolute()))
        if content is None:
            raise NotFound(f"there is no file {path}")
        return SecretBytes(content)

    def element(
        self, name: str, fresh: CardState | None, *, dishonesty: Dishonesty = HONEST
    ) -> tuple[VirtualElement, bool]:
        """Return the element of a file, and whether it was there before.

        Args:
            name: of the file.
            fresh: what to begin with if there is no such file.
            dishonesty: how the element lies; this is not remembered.

        Raises:
            NotFound: there is neither a file nor something to begin with.
            NotPermitted: others may touch the file.
            MalformedRequest: it is no element's.
        """
        stored = self._folder.read_private(name)
        state = fresh if stored is None else decode_state(SecretBytes(stored))
        if state is None:
            raise NotFound(f"there is no virtual element {self._folder.path / name}")
        if stored is None:
            self._keep(name, state)
        made = VirtualElement(
            state,
            entropy=os.urandom,  # noqa: TID251  # a fixture has no Entropy port
            keep=lambda changed: self._keep(name, changed),
            dishonesty=dishonesty,
        )
        return made, stored is not None

    def _keep(self, name: str, state: CardState) -> None:
        try:
            self._folder.write(name, encode_state(state).reveal(), mode=0o600, durable=False)
        except OSError as wrong:
            raise Unavailable(f"the virtual element {name} cannot be written: {wrong.strerror}") from wrong


def initial_keys(content: SecretBytes) -> SoftwareKeys:
    """Read a key file: K-ENC, K-MAC and K-DEK in hex, each on a line of its own.

    Raises:
        MalformedRequest: it is something else.
    """
    enc, mac, dek = _hex_lines(content, 3, "K-ENC, K-MAC and K-DEK in hex, each on a line of its own")
    return SoftwareKeys(enc=enc, mac=mac, dek=dek)


def derived_keys(content: SecretBytes, scheme: Scheme, key_diversification_data: bytes) -> SoftwareKeys:
    """Read a master key file, the key in hex, and derive the set of one element, as its maker does.

    Raises:
        MalformedRequest: it is something else, or the scheme takes no key diversification data.
    """
    (master,) = _hex_lines(content, 1, "a master key of 16, 24 or 32 octets in hex")
    if len(master) not in (16, 24, 32):
        raise MalformedRequest("a master key has 16, 24 or 32 octets")
    return SoftwareKeys.derived(master, Derivation(scheme=scheme, context=key_diversification_data))


def _hex_lines(content: SecretBytes, count: int, what: str) -> Sequence[SecretBytes]:
    try:
        lines = [bytes.fromhex(line) for line in content.reveal().decode("ascii").split("\n") if line.strip()]
    except ValueError:
        lines = []  # and not the error, which would show what stands in the file
    if len(lines) != count:
        raise MalformedRequest(f"the key file does not hold {what}")
    return [SecretBytes(line) for line in lines]


class FiledChannel(ElementChannel):
    """A ``CardChannel`` to the virtual element in a file, in this process.  Close it."""

    def __init__(self, path: Path) -> None:
        """Power the element on.

        Raises:
            NotFound: there is no such file.
            MalformedRequest: it is no element's.
            NotPermitted: others may touch it, or enter its directory.
            Unavailable: something else uses its directory.
        """
        if not path.is_file():
            raise NotFound(f"there is no virtual element {path}: birthmark element virtual makes them")
        self._drawer = Drawer(path.parent)
        try:
            card, _ = self._drawer.element(path.name, None)
        except BaseException:
            self._drawer.close()
            raise
        super().__init__(card)

    def close(self) -> None:
        """Let others use the file."""
        self._drawer.close()


def channel(place: str, options: Mapping[str, str]) -> FiledChannel:
    """Open the element in the file ``place``; there are no options."""
    allow(options)
    return FiledChannel(Path(place))


def element(place: str, options: Mapping[str, str]) -> CardedEnclave:
    """Open the directory of the option ``enclave``, with the element in the file ``place``."""
    allow(options, *OPTIONS)
    return carded(options, lambda: FiledChannel(Path(place)))


class ServedElement(CardChannel, Protocol):
    """What is served: an ``ElementChannel``, or what stands for one."""

    @property
    def dead(self) -> bool:
        """Return whether it answers no more."""
        ...


@contextmanager
def on_vpcd(card: ServedElement, host: str, port: int, *, delay: float = 0.0) -> Iterator[None]:
    """Keep an element in a virtual reader, and leave when the reader has seen it go.

    Args:
        card: the element.
        host: where pcscd runs.
        port: of the reader's slot; 35963 is the first of vpcd's own configuration.
        delay: seconds that each command takes.

    Raises:
        Unavailable: nobody listens there.
    """
    first: socket.socket | None = _connect(host, port)

    def next_link(stop: threading.Event) -> socket.socket | None:
        nonlocal first
        link, first = first, None
        if link is None:
            stop.wait(_OUT)
        while link is None and not stop.is_set():
            with suppress(Unavailable):
                link = _connect(host, port)
            if link is None:
                stop.wait(_AGAIN)
        return link

    try:
        with _served(card, next_link, lambda: None, delay):
            yield
    finally:
        threading.Event().wait(_OUT)


@contextmanager
def on_tcp(
    card: ServedElement, host: str = "127.0.0.1", port: int = 0, *, delay: float = 0.0
) -> Iterator[int]:
    """Let clients connect to an element, one after the other; yield the port.

    Args:
        card: the element.
        host: address to listen at.
        port: 0 for any that is free.
        delay: seconds that each command takes.

    Raises:
        Unavailable: the address cannot be had.
    """
    try:
        listener = socket.create_server((host, port), backlog=1)
    except OSError as wrong:
        raise Unavailable(f"{host}:{port} cannot be had: {wrong.strerror}") from wrong

    def next_link(_stop: threading.Event) -> socket.socket | None:
        try:
            return listener.accept()[0]
        except OSError:  # shut down
            return None

    def unblock() -> None:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)

    with listener, _served(card, next_link, unblock, delay):
        yield listener.getsockname()[1]


def _connect(host: str, port: int) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=_PATIENCE)
    except OSError as wrong:
        raise Unavailable(f"no virtual reader listens at {host}:{port}: is pcscd running?") from wrong


@contextmanager
def _served(
    card: ServedElement,
    next_link: Callable[[threading.Event], socket.socket | None],
    unblock: Callable[[], None],
    delay: float,
) -> Iterator[None]:
    """Serve one link after the other in a thread until the caller is done."""
    stop = threading.Event()
    links: list[socket.socket] = []

    def run() -> None:
        while not (stop.is_set() or card.dead) and (link := next_link(stop)) is not None:
            links.append(link)
            with link, suppress(OSError, Unavailable):
                if not stop.is_set():  # who stops us shuts down what is in the list
                    _serve(card, link, stop, delay)
            links.clear()
        unblock()

    thread = threading.Thread(target=run, name="virtual element", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        unblock()
        for link in links[:]:
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        thread.join(_PATIENCE)


def _serve(card: ServedElement, link: socket.socket, stop: threading.Event, delay: float) -> None:
    """Answer messages until the other side ends the connection.

    Raises:
        Unavailable: the element lost its power or its answer, or is dead.
    """
    link.settimeout(None)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    card.reset()
    while (message := _receive(link)) is not None:
        if len(message) > 1:
            if delay:
                stop.wait(delay)
            _send(link, card.transmit(message))
        elif message == bytes((_SEND_ATR,)):
            _send(link, ATR)
        elif message and message[0] in (_POWER_OFF, _POWER_ON, _RESET):
            card.reset()


def _receive(link: socket.socket) -> bytes | None:
    length = _octets(link, 2)
    return None if length is None else _octets(link, int.from_bytes(length, "big"))


def _octets(link: socket.socket, count: int) -> bytes | None:
    """Return so many octets, or None at the end of the connection.

    vpcd sends length and message in two pieces and waits for the first to be acknowledged (Nagle's
    algorithm); a delayed acknowledgement would make each command take 40 ms.  The option holds until the
    kernel thinks otherwise, so it is given again before each read.
    """
    received = b""
    while len(received) < count:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        piece = link.recv(count - len(received))
        if not piece:
            return None
        received += piece
    return received


def _send(link: socket.socket, message: bytes) -> None:
    link.sendall(len(message).to_bytes(2, "big") + message)
