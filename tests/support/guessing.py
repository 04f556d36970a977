"""What a guess at the passphrase of a key in a file costs while tests run: next to nothing.

The software store makes every guess cost scrypt's time, and so every opening.  A run of all tests opens ten
thousand keys, and what a guess costs is the subject of one test, which asks for the ``REAL`` cost.  A private
key's file says itself what it costs (RFC 7914 section 7), so programs that tests start open it, too.  One of
a secret key (``softsecrets``) does not: a store shared with a program is opened at the ``real_cost``.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from birthmark.adapters import softsecrets
from birthmark.adapters.softsecrets import Cost

__all__ = ["REAL", "make_cheap", "real_cost"]

REAL = softsecrets.COST
"""As the product has it."""


def make_cheap() -> None:
    """From now on, in this process, a guess costs nothing (N=2 is the least that scrypt has)."""
    softsecrets.COST = Cost(n=2, r=1, p=1)


@contextmanager
def real_cost() -> Iterator[None]:
    """For a while it costs what it costs, as in any other process."""
    before, softsecrets.COST = softsecrets.COST, REAL
    try:
        yield
    finally:
        softsecrets.COST = before
