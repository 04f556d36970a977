"""The two databases, as the commit train sees them: begin under the head lock, fetch by key, write, commit.

Both lock the log's head first, so at any time one train in the whole installation reads and writes, and what
it read stays true until it commits.  On SQLite the lock is a lock file (asked for every half millisecond;
SQLite's own busy handler sleeps up to a tenth of a second) and ``BEGIN IMMEDIATE``; on PostgreSQL it is
``SELECT … FOR UPDATE`` on the head row.  Statements are set-wise, and on PostgreSQL a train costs two round
trips: one to lock and read, one to write and commit.

Durability: SQLite runs in WAL mode with ``synchronous=FULL``; a PostgreSQL server that was set to
``fsync=off`` or ``full_page_writes=off`` is refused, and ``synchronous_commit`` is forced on.

What a driver complains of is told as what it means and what to do (``failure_of``): an outage is waited for,
and the line goes on by itself when it ends; damage is not waited for.
"""

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import psycopg

from birthmark import errors

__all__ = [
    "IMPOSSIBLE",
    "Broken",
    "Database",
    "Query",
    "Reads",
    "Row",
    "TableShape",
    "Writes",
    "failure_of",
    "possible",
]

Row = Sequence[Any]


class TableShape(Protocol):
    """A table's name, columns and column types; the first column is the key."""

    @property
    def table(self) -> str:
        """Name of the table."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        ...

    @property
    def types(self) -> tuple[str, ...]:
        """PostgreSQL's names of the columns' types."""
        ...


Reads = Sequence[tuple[TableShape, Sequence[Any]]]
Writes = Sequence[tuple[TableShape, Sequence[Row]]]


Query = Callable[[str, Sequence[Any]], list[Row]]
"""Run a SELECT (placeholders are ``%s``)."""


class Broken(Exception):
    """The database refused a value, or a constraint or trigger refused a write: the train must not commit."""


IMPOSSIBLE = (UnicodeEncodeError, OverflowError)
"""What the drivers raise for a text with lone surrogates, or an integer of more than 64 bits."""


class Database(Protocol):
    """One database.

    A train's methods belong to one thread; ``select`` and ``query`` may be called from any.  In every method
    a driver's error becomes what ``failure_of`` says.
    """

    def begin(self, reads: Reads) -> tuple[Row, list[list[Row]]]:
        """Start a train: lock the head and return its row, and the rows of ``reads`` in their order.

        Raises:
            Broken: a key is none that the database could ever hold; no train was started.
            errors.Unavailable: the database does not answer; no train was started.
            errors.IntegrityFailure: it lacks tables or rights, or is damaged; no train was started.
        """
        ...

    def fetch(self, shape: TableShape, keys: Sequence[Any]) -> list[Row]:
        """Inside a train: return the rows with these keys."""
        ...

    def fetch_all(self, statement: str, parameters: Sequence[Any]) -> list[Row]:
        """Inside a train: run a SELECT (placeholders are ``%s``)."""
        ...

    def commit(self, inserts: Writes, updates: Writes) -> None:
        """Write and commit the train; durable on return.

        Raises:
            Broken: a constraint refused; nothing was committed.
            errors.Unavailable: it is not known whether it was committed.
        """
        ...

    def rollback(self) -> None:
        """End the train without writing."""
        ...

    def select(self, shape: TableShape, keys: Sequence[Any]) -> list[Row]:
        """Outside any train: return committed rows with these keys."""
        ...

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """Outside any train: run a SELECT (placeholders are ``%s``)."""
        ...

    @property
    def joins_octets(self) -> bool:
        """True if it has PostgreSQL's ``string_agg`` for octets."""
        ...

    def snapshot(self) -> AbstractContextManager["Query"]:
        """Outside any train: return a ``query`` all of whose answers are of one moment."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


_REFUSED = (
    sqlite3.IntegrityError,
    psycopg.IntegrityError,
    psycopg.DataError,
    psycopg.errors.RaiseException,
    *IMPOSSIBLE,
)
_WRONG = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.DataCorrupted,
    psycopg.errors.IndexCorrupted,
)
"""What waiting does not mend: the database is not the one that was migrated, not ours, or damaged."""
_BY_ITSELF = "the line goes on by itself afterwards"
_SQLITE_WORDS = {
    sqlite3.SQLITE_FULL: f"its disk is full: free some space; {_BY_ITSELF}",
    sqlite3.SQLITE_READONLY: f"its file or file system is read-only: make it writable; {_BY_ITSELF}",
    sqlite3.SQLITE_IOERR: f"its disk fails, is full or read-only: look at the machine's log; {_BY_ITSELF}",
    sqlite3.SQLITE_CANTOPEN: f"its file cannot be opened: see that it is there and writable; {_BY_ITSELF}",
    sqlite3.SQLITE_PERM: f"its file may not be accessed: give the service its rights back; {_BY_ITSELF}",
    sqlite3.SQLITE_BUSY: "another program has it locked, which nobody may while the line works",
}
"""By primary result code (SQLite, "Result and Error Codes"): what it means, and what to do."""
_POSTGRESQL_WORDS = {
    psycopg.errors.DiskFull: f"the disk of its server is full: free some space there; {_BY_ITSELF}",
    psycopg.errors.IoError: f"the disk of its server fails: look at that machine's log; {_BY_ITSELF}",
    psycopg.errors.TooManyConnections: "its server has no connection left: raise max_connections",
    psycopg.errors.ReadOnlySqlTransaction: (
        "its server is a standby or read-only: name all servers in the url; the line goes on by itself when"
        " one of them is the primary"
    ),
    psycopg.errors.LockNotAvailable: (
        "another service has the head of the log locked; it may be waiting for a synchronous standby"
    ),
    psycopg.errors.QueryCanceled: "its server gave up a statement that took too long",
}


def possible(keys: Sequence[Any]) -> list[Any]:
    """Return the keys that a row can have: no text of PostgreSQL's holds a NUL, which anybody can send."""
    return [key for key in keys if not isinstance(key, str) or "\x00" not in key]


def failure_of(cause: Exception) -> Exception:
    """Return what a driver's error means: ``Broken``, ``IntegrityFailure`` or ``Unavailable``."""
    said = _first_line(cause)
    if isinstance(cause, _REFUSED):
        return Broken(said)
    if isinstance(cause, sqlite3.Error):
        # SQLITE_ERROR: no such table or column, or a statement that makes no sense now.
        code = getattr(cause, "sqlite_errorcode", None)
        wrong = not isinstance(cause, sqlite3.OperationalError) or code == sqlite3.SQLITE_ERROR
        words = None if code is None else _SQLITE_WORDS.get(code & 0xFF)
    else:
        wrong = isinstance(cause, _WRONG)
        words = _postgresql_words(cause)
    kind = errors.IntegrityFailure if wrong else errors.Unavailable
    return kind(f"database: {said}" if words is None or wrong else f"database: {words} ({said})")


def _postgresql_words(cause: Exception) -> str | None:
    for kind, words in _POSTGRESQL_WORDS.items():
        if isinstance(cause, kind):
            return words
    if isinstance(cause, psycopg.OperationalError) and cause.sqlstate is None and str(cause).strip():
        return f"its server cannot be reached; {_BY_ITSELF.removesuffix(' afterwards')} when it can"
    return None


def _first_line(cause: Exception) -> str:
    lines = str(cause).splitlines()
    return lines[0] if lines and lines[0] else type(cause).__name__
