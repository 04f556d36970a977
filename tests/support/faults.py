"""A database that fails where it is told to: in the two ways in which a commit can fail."""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Any

from birthmark import errors
from birthmark.adapters.sql.database import Database, Query, Reads, Row, TableShape, Writes

__all__ = ["Failing", "Fault", "Gate", "Passing"]


class Fault(StrEnum):
    """Where it fails, once."""

    IN_BEGIN = "in begin"
    IN_COMMIT_NOT_DONE = "in commit, and not done"
    IN_COMMIT_BUT_DONE = "in commit, but done"


class Passing:
    """Passes everything on to the database it stands before."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def begin(self, reads: Reads) -> tuple[Row, list[list[Row]]]:
        return self.database.begin(reads)

    def fetch(self, shape: TableShape, keys: Sequence[Any]) -> list[Row]:
        return self.database.fetch(shape, keys)

    def fetch_all(self, statement: str, parameters: Sequence[Any]) -> list[Row]:
        return self.database.fetch_all(statement, parameters)

    def commit(self, inserts: Writes, updates: Writes) -> None:
        self.database.commit(inserts, updates)

    def rollback(self) -> None:
        self.database.rollback()

    def select(self, shape: TableShape, keys: Sequence[Any]) -> list[Row]:
        return self.database.select(shape, keys)

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return self.database.query(statement, parameters)

    @property
    def joins_octets(self) -> bool:
        return self.database.joins_octets

    def snapshot(self) -> AbstractContextManager[Query]:
        return self.database.snapshot()

    def close(self) -> None:
        self.database.close()


class Failing(Passing):
    """Fails once with ``fault``, then works."""

    fault: Fault | None = None

    def begin(self, reads: Reads) -> tuple[Row, list[list[Row]]]:
        """Fail before anything was read, or pass on."""
        if self.fault is Fault.IN_BEGIN:
            self.fault = None
            raise errors.Unavailable("database: connection lost")
        return self.database.begin(reads)

    def commit(self, inserts: Writes, updates: Writes) -> None:
        """Fail with the train rolled back, or after it was committed, or pass on."""
        fault, self.fault = self.fault, None
        if fault is Fault.IN_COMMIT_NOT_DONE:
            self.database.rollback()
        else:
            self.database.commit(inserts, updates)
        if fault is not None:
            raise errors.Unavailable("database: connection lost")


class Gate(Passing):
    """Lets no train begin while it is shut."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._open, self._waiting = threading.Event(), threading.Event()
        self._open.set()

    def shut(self) -> None:
        """Let no train begin."""
        self._open.clear()

    def open(self) -> None:
        """Let them begin."""
        self._open.set()

    def wait_for_train(self) -> None:
        """Wait until a train stands before the gate."""
        if not self._waiting.wait(10):
            raise TimeoutError("no train came")

    def begin(self, reads: Reads) -> tuple[Row, list[list[Row]]]:
        """Wait for the gate."""
        self._waiting.set()
        if not self._open.wait(10):
            raise TimeoutError("the gate was left shut")
        return self.database.begin(reads)
