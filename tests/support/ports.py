"""TCP ports for programs that bind their own and take no socket."""

import os
import socket
from collections.abc import Iterator
from itertools import islice

__all__ = ["ports"]

# Below what the kernel gives to those who ask for any port.
_FIRST, _LAST = 20000, 32000


def ports(count: int) -> tuple[int, ...]:
    """Return ports that nobody listens at, neither there nor at the port after each.

    Two processes of the tests begin to look at different places, so that they do not find the same.
    """
    found = tuple(islice(_free(), count))
    if len(found) < count:
        raise RuntimeError(f"no {count} pairs of free ports from {_FIRST} to {_LAST}")
    return found


def _free() -> Iterator[int]:
    size = _LAST - _FIRST
    for step in range(0, size, 2):
        port = _FIRST + (os.getpid() * 64 + step) % size
        try:
            for each in (port, port + 1):
                with socket.socket() as trial:
                    trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    trial.bind(("", each))
                    trial.listen()
        except OSError:
            continue
        yield port
