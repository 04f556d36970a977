"""Waiting for what takes a moment."""

from collections.abc import Callable
from time import monotonic, sleep

LONGEST_SECONDS = 15.0


def until(look: Callable[[], bool]) -> bool:
    """Look until it is so, or for as long as anybody waits; return whether it is."""
    deadline = monotonic() + LONGEST_SECONDS
    while not look():
        if monotonic() > deadline:
            return False
        sleep(0.1)
    return True
