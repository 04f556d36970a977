"""Secure elements in PC/SC readers: ``pcsc:NAME``, ``pcsc:0?wait=60`` (needs the extra ``pcsc``: pyscard).

A channel connects in exclusive mode (PC/SC part 5, SCARD_SHARE_EXCLUSIVE) and stays connected until it is
closed: no other program of the machine can put a command in between, which would break a secure channel, or
see what is selected.  ``reset`` and ``close`` take the power off the element.

T=1 and T=0.  On T=0 a command that sends and wants data goes without its Le (ISO/IEC 7816-3, 12.2.1): the
element answers 61xx and ``relay`` fetches the rest.  Lengths of three octets do not exist there; an element
profile with extended lengths is refused.

Commands and responses are in no message.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from threading import Lock
from typing import Any, Self

from birthmark import errors
from birthmark.edge.station.elements import allow
from birthmark.edge.station.elements.carded import OPTIONS, CardedEnclave, carded, seconds
from birthmark.element.apdu import CommandAPDU

__all__ = ["PCSCChannel", "channel", "element", "readers"]

_PATIENCE = 3.0
"""Seconds to wait for an element, unless told otherwise: pcscd may need one to see that it is there."""
_LOOK = 0.25
"""Seconds until connecting is tried again where nothing seems to change: contacts may bounce unseen."""


class PCSCChannel:
    """A ``CardChannel`` to the element in one reader, held alone.  Close it, or use it in a ``with``."""

    def __init__(self, reader: str, *, wait_seconds: float = _PATIENCE) -> None:
        """Connect to the element.

        Args:
            reader: name of the reader as the system lists it, a part of it that no other reader's name has,
                or its place in that list, from 0.
            wait_seconds: how long to wait for an element that is not there, now and when it is reset.

        Raises:
            NotFound: pyscard is not installed; there is no such reader.
            MalformedRequest: several readers' names have that part.
            NotPermitted: this user may not use readers.
            Unavailable: PC/SC does not run, there is no element in the reader, or somebody else has it.
        """
        self._scard = _scard()
        self._lock = Lock()
        self._context: int | None = None
        self._card: int | None = None
        self._protocol = 0
        self._wait = wait_seconds
        self._reader = _chosen(reader, readers())
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PCSCChannel({self._reader!r})"

    @property
    def reader(self) -> str:
        """Name of the reader."""
        return self._reader

    def transmit(self, command: bytes) -> bytes:
        """Send one command; see ``CardChannel``.

        Raises:
            Unavailable: the element or the reader is gone; whether the command was carried out is unknown.
            MalformedRequest: the command cannot be sent over T=0.
        """
        s = self._scard
        with self._lock:
            if self._card is None:
                raise errors.Unavailable(f"the element in reader {self._reader!r} is not connected")
            t0 = self._protocol == s.SCARD_PROTOCOL_T0
            sent = _for_t0(command) if t0 else command
            code, response = s.SCardTransmit(self._card, s.SCARD_PCI_T0 if t0 else s.SCARD_PCI_T1, list(sent))
            if code != s.SCARD_S_SUCCESS:
                raise _refusal(s, code, self._reader)
            if len(response) < 2:  # what vpcd's driver says where the card was lost in between
                raise errors.Unavailable(f"the element in reader {self._reader!r} was lost while it answered")
            return bytes(octet & 0xFF for octet in response)

    def reset(self) -> None:
        """Take the power off the element and give it back; if it was lost meanwhile, connect again.

        Raises:
            Unavailable: the element or the reader is gone, or somebody else has it now.
            NotPermitted: this user may not use readers any more.
        """
        with self._lock:
            if self._card is not None and self._unpower() == self._scard.SCARD_S_SUCCESS:
                return
            # Taken out and put back, or the service was started anew: the old handles are worth nothing.
            self._release()
            self._open()
            if (code := self._unpower()) != self._scard.SCARD_S_SUCCESS:
                self._release()
                raise _refusal(self._scard, code, self._reader)

    def close(self) -> None:
        """Take the power off the element and give it back to whoever wants it."""
        with self._lock:
            self._release()

    def _open(self) -> None:
        """Connect; where there is no element, or not yet, try again until the wait is over."""
        s = self._scard
        self._context = _context(s)
        deadline = time.monotonic() + self._wait
        seen = s.SCARD_STATE_UNAWARE
        while True:
            code, card, protocol = s.SCardConnect(
                self._context,
                self._reader,
                s.SCARD_SHARE_EXCLUSIVE,
                s.SCARD_PROTOCOL_T0 | s.SCARD_PROTOCOL_T1,
            )
            if code == s.SCARD_S_SUCCESS:
                self._card, self._protocol = card, protocol
                return
            left = deadline - time.monotonic()
            if left <= 0 or code not in _absent(s):
                self._release()
                raise _refusal(s, code, self._reader)
            _, states = s.SCardGetStatusChange(
                self._context, int(min(left, _LOOK) * 1000), [(self._reader, seen)]
            )
            seen = states[0][1] if states else s.SCARD_STATE_UNAWARE

    def _unpower(self) -> int:
        s = self._scard
        code, protocol = s.SCardReconnect(
            self._card,
            s.SCARD_SHARE_EXCLUSIVE,
            s.SCARD_PROTOCOL_T0 | s.SCARD_PROTOCOL_T1,
            s.SCARD_UNPOWER_CARD,
        )
        self._protocol = protocol
        return int(code)

    def _release(self) -> None:
        # What these say does not matter: a handle that is worth nothing is gone already.
        if self._card is not None:
            self._scard.SCardDisconnect(self._card, self._scard.SCARD_UNPOWER_CARD)
        if self._context is not None:
            self._scard.SCardReleaseContext(self._context)
        self._card = self._context = None


def readers() -> list[str]:
    """Return the names of the readers that are there, in the system's order.

    Raises:
        NotFound: pyscard is not installed.
        NotPermitted: this user may not use readers.
        Unavailable: PC/SC does not run.
    """
    s = _scard()
    context = _context(s)
    try:
        code, names = s.SCardListReaders(context, [])
    finally:
        s.SCardReleaseContext(context)
    if code == s.SCARD_E_NO_READERS_AVAILABLE:
        return []
    if code != s.SCARD_S_SUCCESS:
        raise _refusal(s, code, "")
    return [str(name) for name in names]


def channel(place: str, options: Mapping[str, str]) -> PCSCChannel:
    """Connect to the element in the reader ``place``; the option ``wait`` is in seconds."""
    allow(options, "wait")
    return _open(place, options)


def element(place: str, options: Mapping[str, str]) -> CardedEnclave:
    """Open the directory of the option ``enclave``, with the element in the reader ``place``."""
    allow(options, "wait", *OPTIONS)
    return carded(options, lambda: _open(place, options))


def _open(place: str, options: Mapping[str, str]) -> PCSCChannel:
    return PCSCChannel(place, wait_seconds=seconds(options, "wait", _PATIENCE))


def _scard() -> Any:
    try:
        return import_module("smartcard.scard")
    except ImportError as wrong:
        raise errors.NotFound(
            f"readers need pyscard, which cannot be loaded: install birthmark[pcsc] ({wrong})"
        ) from wrong


def _context(s: Any) -> int:
    code, context = s.SCardEstablishContext(s.SCARD_SCOPE_SYSTEM)
    if code != s.SCARD_S_SUCCESS:
        raise _refusal(s, code, "")
    return int(context)


def _chosen(wanted: str, names: list[str]) -> str:
    """Return the reader that is meant."""
    if not names:
        raise errors.NotFound("there is no reader here: connect one (pcscd lists it once it knows it)")
    listed = ", ".join(f"{index}: {name}" for index, name in enumerate(names))
    if wanted in names:
        return wanted
    if wanted.isascii() and wanted.isdigit():
        if int(wanted) < len(names):
            return names[int(wanted)]
        raise errors.NotFound(f"there is no reader {wanted}; there are {listed}")
    found = [name for name in names if wanted.casefold() in name.casefold()]
    if not wanted or not found:
        raise errors.NotFound(f"no reader is called {wanted[:100]!r}; there are {listed}")
    if len(found) > 1:
        raise errors.MalformedRequest(
            f"{wanted[:100]!r} may be {' or '.join(map(repr, found))}: say more of its name"
        )
    return found[0]


def _absent(s: Any) -> frozenset[int]:
    """Return what connecting says of an element that is not there, or not all the way in."""
    return frozenset(
        {
            s.SCARD_E_NO_SMARTCARD,
            s.SCARD_W_REMOVED_CARD,
            s.SCARD_W_UNPOWERED_CARD,
            s.SCARD_W_UNRESPONSIVE_CARD,
        }
    )


def _for_t0(command: bytes) -> bytes:
    decoded = CommandAPDU.decode(command)
    if decoded.is_extended:
        raise errors.MalformedRequest(
            "the element speaks T=0, which has no extended lengths: its profile must not ask for them"
        )
    return replace(decoded, le=None).encode() if decoded.data and decoded.le is not None else command


def _refusal(s: Any, code: int, reader: str) -> errors.Refusal:
    """Say what is wrong and what to do about it."""
    if code in {s.SCARD_E_NO_SERVICE, s.SCARD_E_SERVICE_STOPPED}:
        return errors.Unavailable("pcscd, which serves the readers, does not run: start it")
    if code in {s.SCARD_E_NO_ACCESS, s.SCARD_W_SECURITY_VIOLATION}:
        return errors.NotPermitted(
            "this user may not use readers: pcscd asks polkit for org.debian.pcsc-lite"
        )
    if code == s.SCARD_E_SHARING_VIOLATION:
        return errors.Unavailable(f"another program has the element in reader {reader!r}: close it")
    if code in {s.SCARD_E_NO_SMARTCARD, s.SCARD_W_REMOVED_CARD}:
        return errors.Unavailable(f"there is no secure element in reader {reader!r}: put it in")
    if code in {s.SCARD_W_UNRESPONSIVE_CARD, s.SCARD_W_UNPOWERED_CARD}:
        return errors.Unavailable(
            f"the element in reader {reader!r} does not answer to power: look at its contacts"
        )
    if code in {s.SCARD_E_UNKNOWN_READER, s.SCARD_E_READER_UNAVAILABLE, s.SCARD_E_NO_READERS_AVAILABLE}:
        return errors.Unavailable(f"reader {reader!r} is gone: connect it again")
    said = str(s.SCardGetErrorMessage(code)).rstrip(".").lower()
    return errors.Unavailable(f"the element in reader {reader!r} cannot be reached: {said}")
