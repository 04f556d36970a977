"""A TCP proxy that cuts: connections end after so many octets, half of one closes, octets come late.

What happens next to each direction of a connection is drawn, and after how many octets; it is counted when it
has happened, not before.
"""

import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from enum import StrEnum
from typing import Self

__all__ = ["Cut", "CuttingProxy"]

PIECE = 16384
LATE_SECONDS = 0.05


class Cut(StrEnum):
    """What can happen to a connection."""

    REQUEST = "cut in the request"
    ANSWER = "cut in the answer"
    HALF = "half-closed in the request"
    LATE = "octets late"


class CuttingProxy:
    """Stands before a server on 127.0.0.1; whole connections pass, too."""

    def __init__(self, target: tuple[str, int], chance: random.Random, *, whole: float = 0.4) -> None:
        """Cut by chance; ``whole`` is the share of draws by which nothing happens."""
        self.target, self.whole, self.cutting = target, whole, True
        self.counts: Counter[str] = Counter()
        self._chance, self._lock = chance, threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept, name="cutting-proxy", daemon=True)

    def __enter__(self) -> Self:
        """Begin to accept."""
        self._acceptor.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Accept no more; connections end by themselves."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._acceptor.join()

    @property
    def total(self) -> int:
        """How many faults happened."""
        with self._lock:
            return sum(self.counts.values())

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self.target, timeout=10)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        ways = [(client, server, (Cut.REQUEST, Cut.HALF, Cut.LATE)), (server, client, (Cut.ANSWER, Cut.LATE))]
        up, down = (threading.Thread(target=self._relay, args=way, daemon=True) for way in ways)
        up.start()
        down.start()
        up.join()
        down.join()
        client.close()
        server.close()

    def _drawn(self, cuts: tuple[Cut, ...]) -> tuple[Cut | None, int]:
        """Return what happens next, and after how many octets."""
        with self._lock:
            # A handshake is some thousands of octets, a request some hundreds: both are to be hit.
            after = int(2 ** self._chance.uniform(8, 14))
            if not self.cutting or self._chance.random() < self.whole:
                return None, after
            return self._chance.choice(cuts), after

    def _relay(self, source: socket.socket, sink: socket.socket, cuts: tuple[Cut, ...]) -> None:
        cut, after = self._drawn(cuts)
        with contextlib.suppress(OSError):
            while piece := source.recv(PIECE):
                if after > len(piece):
                    after -= len(piece)
                    sink.sendall(piece)
                    continue
                sink.sendall(piece[:after])
                if cut is not None:
                    with self._lock:
                        self.counts[cut] += 1
                if cut is Cut.HALF:
                    break
                if cut in (Cut.REQUEST, Cut.ANSWER):
                    _reset(source)
                    _reset(sink)
                    return
                if cut is Cut.LATE:
                    threading.Event().wait(LATE_SECONDS)
                sink.sendall(piece[after:])
                cut, after = self._drawn(cuts)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def _reset(connection: socket.socket) -> None:
    """End a connection without a farewell (RFC 9293 section 3.10.4: abort), for both of its threads."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
