"""A network that loses answers: a TCP proxy that can be told to cut the next one.

What it cuts has reached the service: octets go through to the service unchanged, and when the first octets of
the answer come back, both connections are closed instead of passing them on.  The client cannot tell whether
its request was carried out.  TLS goes through untouched; the proxy sees nothing.
"""

import select
import socket
from contextlib import suppress
from threading import Event, Thread
from typing import Self


class LossyNetwork:
    """A proxy to one service on this machine; use it in a ``with`` statement."""

    def __init__(self, port: int) -> None:
        """Listen on a free port of 127.0.0.1; ``port`` is the service's."""
        self._service = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._armed = Event()
        self._stopped = Event()
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self.cuts = 0
        """How many answers were cut off."""
        self._threads = [Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)

    def lose_next_answer(self) -> None:
        """Cut the next answer of the service, on any connection."""
        self._armed.set()

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = Thread(target=self._carry, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _carry(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._service) as service, suppress(OSError):
            while not self._stopped.is_set():
                readable, _, _ = select.select([client, service], [], [], 0.2)
                for source in readable:
                    octets = source.recv(65536)
                    if not octets:
                        return
                    if source is service and self._armed.is_set():
                        self._armed.clear()
                        self.cuts += 1
                        return
                    (service if source is client else client).sendall(octets)
