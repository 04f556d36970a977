"""The operating system's randomness behind the ``Entropy`` port, tested while it is used (SPEC B8).

The tests are those of NIST SP 800-90B section 4.4 on octets, claimed to have 8 bits of min-entropy each, as
the output of a seeded generator must:

- repetition count (4.4.1): C = 1 + ceil(40 / 8) = 6 equal octets in a row;
- adaptive proportion (4.4.2): window W = 512, C = 1 + critbinom(512, 2**-8, 1 - 2**-40) = 19 octets in it
  equal to its first, which counts.

Both cutoffs follow from alpha = 2**-40, the strictest that section 4.4 names.  By chance the repetition count
fails once in 2**40 octets, the adaptive proportion once in 2**37.6 windows (the probability that 18 or more
of 511 octets equal a given one).  A device takes some 100 octets: the chance of one false alarm among
ten million devices is 1 in 1000, and it is over with the next request.  A third test is ours: a draw
of 16 octets and more that equals the one before (by chance: at most once in 2**128), which is how a generator
shows that it was put back to an earlier state.

At the start and after each failure 1024 octets are tested that nobody gets (4.3).  While a test fails nothing
is given out, and every request tests afresh: an alarm lasts as long as its cause.

These tests find a generator that is broken, not one that is predictable: behind the kernel's generator a dead
noise source looks random.  Testing that source is the kernel's and the processor's business.
"""

import hashlib
import os
import re
import threading
from collections.abc import Callable

from birthmark import errors

__all__ = ["IN_WINDOW", "REPEATED", "STARTUP_OCTETS", "WINDOW", "SystemEntropy"]

STARTUP_OCTETS = 1024
REPEATED = 6
"""So many equal octets in a row are a failure."""
WINDOW = 512
IN_WINDOW = 19
"""So many octets of a window equal to its first are a failure."""
_RUN = re.compile(rb"(.)\1{%d}" % (REPEATED - 1), re.DOTALL)
_COMPARED_FROM = 16


class SystemEntropy:
    """The kernel's random number generator, under test.  Safe to call from any thread.

    Args:
        source: gives n octets when called with n; another one than the kernel's is for tests.
    """

    __slots__ = ("_at", "_count", "_first", "_last", "_lock", "_source", "_tail", "_well")

    def __init__(self, source: Callable[[int], bytes] = os.urandom) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._well = False
        self._last = b""
        self._begin()

    def token(self, size: int) -> bytes:
        """Return ``size`` octets, at least 1.

        Raises:
            errors.Unavailable: a health test fails, or the operating system has no randomness to give.
        """
        if size < 1:
            raise ValueError("ask for at least one octet")
        with self._lock:
            if not self._well:
                self._begin()
                self._test(self._drawn(STARTUP_OCTETS))
                self._well = True
            drawn = self._drawn(size)
            self._test(drawn)
            if size >= _COMPARED_FROM:
                # As a digest: the draw itself may be kept secret by whoever gets it.
                digest = hashlib.sha256(drawn).digest()
                if digest == self._last:
                    raise self._failure("it gave the same octets twice")
                self._last = digest
            return drawn

    def _begin(self) -> None:
        self._tail = b""
        self._first, self._at, self._count = -1, 0, 0

    def _drawn(self, size: int) -> bytes:
        try:
            drawn = self._source(size)
        except OSError as failure:
            raise errors.Unavailable("the operating system gives no random octets") from failure
        if len(drawn) != size:
            raise self._failure(f"it gave {len(drawn)} octets for {size}")
        return drawn

    def _test(self, drawn: bytes) -> None:
        if _RUN.search(self._tail + drawn) is not None:
            raise self._failure(f"repetition count, {REPEATED} equal octets in a row")
        self._tail = (self._tail + drawn)[1 - REPEATED :]
        at = 0
        while at < len(drawn):
            if self._at == 0:
                self._first, self._count = drawn[at], 0
            part = drawn[at : at + WINDOW - self._at]
            self._count += part.count(self._first)
            if self._count >= IN_WINDOW:
                raise self._failure(f"adaptive proportion, {self._count} equal octets among {WINDOW}")
            at += len(part)
            self._at = (self._at + len(part)) % WINDOW

    def _failure(self, which: str) -> errors.Unavailable:
        self._well = False
        return errors.Unavailable(f"the source of randomness fails its health test: {which}")
