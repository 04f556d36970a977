"""The operating system's clock and randomness, behind the ``Clock`` and ``Entropy`` ports.

Rules kept here: times are aware and in UTC; random octets come from the kernel's generator, which blocks
until it is seeded (PEP 524, getrandom(2)); a draw that shows a stuck generator is refused, not used.

Left to others: cutting times to seconds where DER needs it, and the statistical tests of NIST SP 800-90B
section 4, which belong to the noise source below the kernel's generator and cannot be made from here.
"""

import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime

from birthmark import errors

__all__ = ["SystemClock", "SystemEntropy"]

_JUDGED_FROM = 16
"""Octets from which a draw is judged: by chance, it repeats or is all one octet in less than 1 of 2**119."""


class SystemClock:
    """The time of day, as the operating system keeps it."""

    __slots__ = ()

    def now(self) -> datetime:
        """Return the time, aware, in UTC."""
        return datetime.now(UTC)


class SystemEntropy:
    """The kernel's random number generator, watched for being stuck.

    Draws of 16 octets and more are compared with the draw before (as a digest; the draw itself may be a key)
    and looked at for being one octet repeated: the two ways in which a broken source behind a kernel, or a
    virtual machine's, has been seen to fail.  Safe to call from any thread.

    Args:
        source: gives n octets when called with n; another one than the kernel's is for tests.
    """

    __slots__ = ("_last", "_source")

    def __init__(self, source: Callable[[int], bytes] = os.urandom) -> None:
        self._source = source
        self._last = b""

    def token(self, size: int) -> bytes:
        """Return ``size`` octets, at least 1.

        Raises:
            errors.IntegrityFailure: the generator is stuck; stop issuing.
            errors.Unavailable: the operating system has no randomness to give.
        """
        if size < 1:
            raise ValueError("ask for at least one octet")
        try:
            drawn = self._source(size)
        except OSError as failure:
            raise errors.Unavailable("the operating system gives no random octets") from failure
        if len(drawn) != size:
            raise errors.IntegrityFailure(f"the random generator gave {len(drawn)} octets for {size}")
        if size >= _JUDGED_FROM:
            digest = hashlib.sha256(drawn).digest()
            if digest == self._last or drawn.count(drawn[0]) == size:
                raise errors.IntegrityFailure("the random generator is stuck: it repeats itself")
            self._last = digest
        return drawn
