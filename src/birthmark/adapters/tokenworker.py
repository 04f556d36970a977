"""The one thread that calls a PKCS#11 library.

python-pkcs11 initialises a library without asking it to lock (``C_Initialize(NULL)``) and calls it without
the interpreter's lock, so two threads in it at once corrupt it: SoftHSM then crashes or spins for ever.  A
library is global to its process: its state, and who is logged in, are shared by all that use it.  So there is
one worker for each library and process, found here by the library's path; this registry is the one global of
the adapters, and it mirrors the other one.

Rules kept here: every call into the library is made by the worker, in order; who asks waits on a future, and
no longer than it said; while a call hangs, who asks next is told at once; an error of the library crosses
threads without its traceback, whose frames could otherwise call the library when they are freed.  Processes
scale, threads do not: after a fork the child opens its own store, and its parent's worker refuses to serve.

Left to ``pkcs11``: sessions, logging in, keys.
"""

import atexit
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import pkcs11
from pkcs11 import _pkcs11
from pkcs11.exceptions import PKCS11Error

__all__ = ["TokenWorker"]

T = TypeVar("T")

_AT_EXIT_SECONDS = 2.0

_workers: dict[str, "TokenWorker"] = {}
_registry = threading.Lock()


class TokenWorker:
    """The thread of one library.  ``engage`` finds it, ``release`` gives it back."""

    def __init__(self, path: str, *, inherited: bool) -> None:
        self.generation = 0
        """Counts initialisations: sessions and handles of an earlier generation are void."""
        self._path = path
        self._inherited = inherited
        self._pid = os.getpid()
        self.tokens: set[str] = set()
        """Labels of the tokens that have a store open."""
        self._busy_since: float | None = None
        self._jobs: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=f"pkcs11 {Path(path).name}", daemon=True)
        self._thread.start()

    @classmethod
    def engage(cls, module_path: Path, token_label: str) -> "TokenWorker":
        """Return the worker of a library, on behalf of the only store of a token in this process.

        Raises:
            RuntimeError: this process has a store open on that token: logging out of one would end the other.
        """
        path = os.path.realpath(module_path)
        with _registry:
            worker = _workers.get(path)
            if worker is None or not worker.is_ours():
                atexit.unregister(_finish_all)
                atexit.register(_finish_all)
                worker = _workers[path] = cls(path, inherited=worker is not None)
            if token_label in worker.tokens:
                raise RuntimeError(f"token {token_label!r} is open in this process already")
            worker.tokens.add(token_label)
            return worker

    def is_ours(self) -> bool:
        """Return whether this process began the worker: its thread does not live in a forked child."""
        return self._pid == os.getpid()

    def release(self, token_label: str, timeout_seconds: float) -> None:
        """Let go of a token; with the last one the library is finalised and the thread ends.

        A worker that hangs in the library stays registered: a second thread must not enter it.
        """
        with _registry:
            self.tokens.discard(token_label)
            if not self.tokens and self.finish(timeout_seconds) and _workers.get(self._path) is self:
                del _workers[self._path]

    def finish(self, timeout_seconds: float) -> bool:
        """Finalise the library and end the thread; return whether that is done.

        Does nothing in a child of the process that began it.
        """
        if not self.is_ours():
            return False
        self._jobs.put(None)
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def run(self, job: Callable[[], T], timeout_seconds: float) -> T:
        """Have the worker do a job, and return what it returns or raise what it raises.

        A job that nobody waits for any more is dropped, unless it has begun.

        Raises:
            TimeoutError: the library does not come back, or has not for that long already.
            RuntimeError: we are a child of the process that opened the library.
        """
        if not self.is_ours():
            raise RuntimeError("this process forked after it opened a token; open the key store in the child")
        if self.busy_seconds() > timeout_seconds:
            raise TimeoutError
        future: Future[T] = Future()
        self._jobs.put((future, job))
        try:
            return future.result(timeout_seconds)
        except TimeoutError:
            future.cancel()
            raise

    def busy_seconds(self) -> float:
        """Return for how long the library has not come back from a call; 0 while none is under way."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def library(self) -> _pkcs11.lib:
        """Return the library, loaded and initialised.  For jobs only.

        Raises:
            PKCS11Error: it cannot be loaded or initialised.
        """
        if self._inherited:
            # PKCS#11 v2.40 section 5.4: the child of a fork that wants the library initialises it anew.
            self._inherited = False
            self.reset()
        return pkcs11.lib(self._path)

    def reset(self) -> None:
        """Finalise the library; the next ``library`` initialises it, which finds tokens that come and go.

        For jobs only.
        """
        self.generation += 1
        # A library that was not initialised complains, and is then where we want it.
        with suppress(PKCS11Error):
            pkcs11.lib(self._path).finalize()

    def _work(self) -> None:
        while (task := self._jobs.get()) is not None:
            future, job = task
            if not future.set_running_or_notify_cancel():
                continue
            self._busy_since = time.monotonic()
            try:
                result = job()
            except BaseException as failure:  # noqa: BLE001 - it is raised again where somebody waits
                self._busy_since = None
                future.set_exception(_portable(failure))
            else:
                self._busy_since = None
                future.set_result(result)
            del task, future, job
        self.reset()


def _portable(failure: BaseException) -> BaseException:
    link: BaseException | None = failure
    while link is not None:
        if isinstance(link, PKCS11Error):
            link.__traceback__ = None
        link = link.__cause__ or link.__context__
    return failure


def _finish_all() -> None:
    """Finalise the libraries as the process ends, each in its worker.

    Otherwise python-pkcs11 does it when the interpreter frees it, in that thread, whatever the worker is in.
    """
    for worker in tuple(_workers.values()):
        worker.finish(_AT_EXIT_SECONDS)
