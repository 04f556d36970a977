"""The parent of several processes: it starts each again if it dies, and ends them when it is told to stop.

It does nothing else: if it is killed itself, the kernel ends the others (``hardening.end_with``).
"""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence

from birthmark import errors
from birthmark.edge import hardening

__all__ = ["supervise"]

log = logging.getLogger(__name__)

RESTART_SECONDS = 0.5
HASTY_SECONDS = 10.0
"""A process that gives up sooner after its start has not served."""
REFUSED_PIN = 77
"""Exit code (EX_NOPERM of sysexits.h) of a process that may not open what it needs; it is not started again:
a token locks after a few wrong PINs."""
STOP_SECONDS = 10.0
"""How long the parent waits for its processes before it kills them."""


def supervise(works: Sequence[Callable[[], None]]) -> int:
    """Keep a process at each of these works until told to stop."""
    # Signals are taken when we ask for them: none can come between a fork and our knowing of the child.
    awaited = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    started: dict[int, tuple[float, int]] = {}
    failed_at_start, count = 0, len(works)
    while True:
        for number in sorted(set(range(count)) - {number for _, number in started.values()}):
            started[_fork(works[number])] = (time.monotonic(), number)
        signum = signal.sigwait(awaited)
        if signum != signal.SIGCHLD:
            return _stop(set(started), signum)
        for child, code in _ended():
            lived = time.monotonic() - started.pop(child)[0]
            log.error("a process of the service died", extra={"pid": child, "code": code})
            if code == REFUSED_PIN:
                _stop(set(started), signal.SIGTERM)
                return REFUSED_PIN
            # Killed by a signal (code below 0) it may have been the machine's fault; ended, it was its own.
            failed_at_start = failed_at_start + 1 if code >= 0 and lived < HASTY_SECONDS else 0
        if failed_at_start > 3 * count:
            log.error("the service cannot start")
            _stop(set(started), signal.SIGTERM)
            return 70
        signum_or_none = signal.sigtimedwait({signal.SIGTERM, signal.SIGINT}, RESTART_SECONDS)
        if signum_or_none is not None:
            return _stop(set(started), signum_or_none.si_signo)


def _ended() -> Iterator[tuple[int, int]]:
    """Take leave of the children that have ended: process id and exit code."""
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if child == 0:
            return
        yield child, os.waitstatus_to_exitcode(status)


def _stop(children: set[int], signum: int) -> int:
    """End the processes, first politely."""
    deadline = time.monotonic() + STOP_SECONDS
    for child in children:
        os.kill(child, signum)
    while children:
        for child, _code in _ended():
            children.discard(child)
        left = deadline - time.monotonic()
        if children and (left <= 0 or signal.sigtimedwait({signal.SIGCHLD}, left) is None):
            log.error("processes of the service do not stop", extra={"pids": sorted(children)})
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            return 70
    return 0


def _fork(work: Callable[[], None]) -> int:
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        hardening.end_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        work()
        code = 0
    except errors.Refusal as refusal:
        log.error("%s", refusal)  # noqa: TRY400  # a refusal is told, not traced
        code = REFUSED_PIN if isinstance(refusal, errors.NotPermitted) else code
    except KeyboardInterrupt:
        code = 0  # told to stop before it could listen for that
    except BaseException:
        log.exception("the service failed")
    finally:
        logging.shutdown()
        os._exit(code)
