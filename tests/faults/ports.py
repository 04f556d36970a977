"""The ports, counted and broken: every call of one is a step with a name, and one of them can fail.

``Steps`` counts.  Around it: a database (the train's own two steps, ``begin`` and ``commit``), a store (what
a use case asks of it), and key stores.  What is not broken is passed on to the real thing.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from enum import StrEnum
from typing import Any, TypeVar, cast

from birthmark import errors
from birthmark.adapters.sql.database import Database, Row, Writes
from birthmark.adapters.sql.database import Reads as Wanted
from birthmark.adapters.sql.store import SQLStore
from birthmark.ports import Act, Committed, Facts, KeyStore, Reads, Store
from tests.support.faults import Passing

__all__ = ["Fault", "Killed", "Steps", "faults_of", "stepped_database", "stepped_keys", "stepped_store"]

T = TypeVar("T")


class Killed(BaseException):  # it is no error, and nothing may catch it
    """The process is gone: nothing after this line of it runs."""


class Fault(StrEnum):
    """What happens at a step."""

    FAILS = "fails"
    """It is not done, and says so."""
    FAILS_BUT_DONE = "fails but done"
    """It is done, and says that it failed: its answer was lost on the way back."""
    KILLED = "killed before"
    """The process dies at it."""
    ANSWER_LOST = "killed after"
    """The process dies once it is done: nobody hears of it."""
    GONE = "gone"
    """What it asked of (database, token) does nothing any more, until somebody sees to it."""


class Steps:
    """The steps of one process, in their order; one of them may be broken."""

    def __init__(self, at: int | None = None, fault: Fault | None = None) -> None:
        self.names: list[str] = []
        self.before: list[int] = []
        """How many commits there were before each step."""
        self.commits = 0
        self.at, self.fault = at, fault
        self.gone: str | None = None
        self.dead = False
        self.on_commit: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    def mend(self) -> None:
        """Put back what was gone."""
        self.gone = None

    def take(self, port: str, name: str, do: Callable[[], T], undo: Callable[[], None] = lambda: None) -> T:
        """Take a step, or break at it; ``undo`` is what the port does when it fails undone."""
        with self._lock:
            number = len(self.names)
            self.names.append(name)
            self.before.append(self.commits)
        if self.dead:
            raise Killed
        fault = self.fault if number == self.at else None
        if fault is Fault.KILLED:
            self.dead = True
            raise Killed
        if fault is Fault.GONE:
            self.gone = port
        if fault is Fault.FAILS or self.gone == port:
            undo()
            raise errors.Unavailable(f"{port}: not now")
        answer = do()
        if name == "commit":
            self.commits += 1
            self.on_commit()
        if fault is Fault.ANSWER_LOST:
            self.dead = True
            raise Killed
        if fault is Fault.FAILS_BUT_DONE:
            raise errors.Unavailable(f"{port}: not now")
        return answer


def faults_of(step: str) -> tuple[Fault, ...]:
    """Return what can happen at a step; of what only reads, done and not done are the same."""
    if step.startswith(("look", "scan", "proof", "begin")):
        return (Fault.FAILS, Fault.KILLED, Fault.GONE)
    return tuple(Fault)


class _Database(Passing):
    def __init__(self, database: Database, steps: Steps) -> None:
        super().__init__(database)
        self._steps = steps

    def begin(self, reads: Wanted) -> tuple[Row, list[list[Row]]]:
        return self._steps.take("database", "begin", lambda: self.database.begin(reads))

    def commit(self, inserts: Writes, updates: Writes) -> None:
        self._steps.take(
            "database", "commit", lambda: self.database.commit(inserts, updates), self.database.rollback
        )

    def rollback(self) -> None:
        if not self._steps.dead:  # who is dead does not tidy up
            self.database.rollback()


def stepped_database(steps: Steps) -> Callable[[Database], Database]:
    """Return what wraps a database."""
    return lambda database: _Database(database, steps)


class _Store:
    """What a use case asks of a store; see ``ports.carry``."""

    def __init__(self, store: SQLStore, steps: Steps) -> None:
        self.inner, self._steps = store, steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def submit(self, acts: Sequence[Act[Any]]) -> "Future[list[Committed[Any]]]":
        if self._steps.dead:
            raise Killed
        return self.inner.submit(acts)

    def look(self, reads: Reads) -> Facts:
        kinds = "+".join(sorted(kind.__name__ for kind, keys in reads.items() if keys))
        return self._steps.take("database", f"look {kinds}", lambda: self.inner.look(reads))

    def scan(self, kind: type[T], **terms: Any) -> Iterator[T]:
        found = self._steps.take(
            "database", f"scan {kind.__name__}", lambda: list(self.inner.scan(kind, **terms))
        )
        return iter(found)

    def token(self, index: int) -> str:
        return self._steps.take("database", "proof", lambda: self.inner.token(index))


def stepped_store(store: SQLStore, steps: Steps) -> Store:
    """Return a store whose questions are steps."""
    return cast("Store", _Store(store, steps))


class _Keys:
    def __init__(self, keys: KeyStore, name: str, steps: Steps) -> None:
        self.inner, self._name, self._steps = keys, name, steps

    def __getattr__(self, method: str) -> Any:
        found = getattr(self.inner, method)
        if not callable(found) or method in ("health", "close"):
            return found

        def step(*args: Any, **fields: Any) -> Any:
            named = f" {args[0]}" if args and isinstance(args[0], str) else ""
            return self._steps.take(
                self._name, f"{self._name}.{method}{named}", lambda: found(*args, **fields)
            )

        return step


def stepped_keys(keys: KeyStore, name: str, steps: Steps) -> KeyStore:
    """Return a key store each use of which is a step."""
    return cast("KeyStore", _Keys(keys, name, steps))
