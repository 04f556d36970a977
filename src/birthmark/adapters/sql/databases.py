"""The two databases, as the commit train sees them: begin under the head lock, fetch by key, write, commit.

Both lock the log's head first, so at any time one train in the whole installation reads and writes, and what
it read stays true until it commits.  On SQLite the lock is a lock file (asked for every half millisecond;
SQLite's own busy handler sleeps up to a tenth of a second) and ``BEGIN IMMEDIATE``; on PostgreSQL it is
``SELECT … FOR UPDATE`` on the head row.  Statements are set-wise, and on PostgreSQL a train costs two round
trips: one to lock and read, one to write and commit.

Durability: SQLite runs in WAL mode with ``synchronous=FULL``; a PostgreSQL server that was set to
``fsync=off`` is refused, and ``synchronous_commit`` is forced on.
"""

import fcntl
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import psycopg

from birthmark import errors
from birthmark.secret import SecretBytes

__all__ = [
    "Broken",
    "Database",
    "PostgreSQL",
    "SQLite",
    "TableShape",
    "failure_of",
    "open_database",
]

LOCK_POLL_SECONDS = 0.0005
PLANNER = (
    "SET plan_cache_mode = force_generic_plan",
    "SET enable_seqscan = off",
    "SET enable_hashjoin = off",
    "SET enable_mergejoin = off",
    "SET enable_bitmapscan = off",
    "SET enable_sort = off",
    "SET jit = off",
)
"""Every statement here finds rows by key, or walks one index.

Until its first ANALYZE a growing table looks small to PostgreSQL's planner, which then reads all of it, and
every train would cost more than the one before.  And it takes a range between two unknown keys for a two
hundredth of the table: rather than walk the index to the end of a page, it would sort all the rest for each.
"""
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


_IMPOSSIBLE = (UnicodeEncodeError, OverflowError)
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
    *_IMPOSSIBLE,
)
_WRONG = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.DataCorrupted,
    psycopg.errors.IndexCorrupted,
)
"""What waiting does not mend: the database is not the one that was migrated, not ours, or damaged."""


def failure_of(cause: Exception) -> Exception:
    """Return what a driver's error means: ``Broken``, ``IntegrityFailure`` or ``Unavailable``."""
    if isinstance(cause, _REFUSED):
        return Broken(_first_line(cause))
    if isinstance(cause, sqlite3.Error):
        # SQLITE_ERROR: no such table or column, or a statement that makes no sense now.
        code = getattr(cause, "sqlite_errorcode", None)
        wrong = not isinstance(cause, sqlite3.OperationalError) or code == sqlite3.SQLITE_ERROR
    else:
        wrong = isinstance(cause, _WRONG)
    kind = errors.IntegrityFailure if wrong else errors.Unavailable
    return kind(f"database: {_first_line(cause)}")


def _first_line(cause: Exception) -> str:
    lines = str(cause).splitlines()
    return lines[0] if lines and lines[0] else type(cause).__name__


class SQLite:
    """The embedded database: one file, any number of processes on one machine."""

    joins_octets = False

    def __init__(self, path: Path, lock_timeout_seconds: float = 10.0) -> None:
        if not path.is_file():
            raise errors.NotFound(f"there is no database at {path}; 'birthmark init' makes one")
        self._path = path
        self._lock_timeout_seconds = lock_timeout_seconds
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._lock = os.open(f"{path}.train", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._train: sqlite3.Connection | None = None
        self._files: dict[str, tuple[int, int]] = {}

    def _connect(self) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?mode=rw",  # what is not there is not made anew, empty
                uri=True,
                isolation_level=None,
                timeout=self._lock_timeout_seconds,
                check_same_thread=False,
            )
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA cache_size=-65536")
            db.execute("PRAGMA mmap_size=268435456")
        except sqlite3.Error as cause:
            raise failure_of(cause) from cause
        return db

    def begin(self, reads: Reads) -> tuple[Row, list[list[Row]]]:
        """See ``Database.begin``."""
        if self._train is None:
            self._train = self._connect()
            self._files.pop(f"{self._path}-wal", None)  # made anew when nobody had the database open
        self._take_lock()
        try:
            self._train.execute("BEGIN IMMEDIATE")
            self._require_files()
            head = self._train.execute("SELECT size, edge, at FROM head WHERE id = 1").fetchone()
            rows = [self.fetch(shape, keys) for shape, keys in reads]
        except sqlite3.Error as cause:
            self.rollback()
            raise failure_of(cause) from cause
        except BaseException:
            self.rollback()
            raise
        if head is None:
            self.rollback()
            raise errors.IntegrityFailure("the database has no log head")
        return head, rows

    def _require_files(self) -> None:
        """Refuse to go on if the files behind the train's connection have been deleted or replaced.

        SQLite would commit to the files it has open, under no name any more: an answer would be given and its
        record lost.  What took their place is not adopted either; a restart does that, where somebody looks.
        """
        for name in (f"{self._path}", f"{self._path}-wal"):
            try:
                stat = Path(name).stat()
            except OSError as cause:
                raise errors.Unavailable(
                    f"database: {name} is gone: {cause.strerror}; put it back and restart the service"
                ) from cause
            found = (stat.st_dev, stat.st_ino)
            if self._files.setdefault(name, found) != found:
                raise errors.Unavailable(
                    f"database: {name} was replaced while it was in use; restart the service"
                )

    def _take_lock(self) -> None:
        # Polled, because a blocking flock has no end: a stopped process would stop all others.
        deadline = time.monotonic() + self._lock_timeout_seconds
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise errors.Unavailable(
                        f"database: another process has held {self._path}.train"
                        f" for {self._lock_timeout_seconds:g} seconds"
                    ) from None
                time.sleep(LOCK_POLL_SECONDS)
            else:
                return

    def _under_way(self) -> sqlite3.Connection:
        if self._train is None:
            raise RuntimeError("no train is under way")
        return self._train

    @staticmethod
    def _fetch(db: sqlite3.Connection, shape: TableShape, keys: Sequence[Any]) -> list[Row]:
        columns, key = ", ".join(shape.columns), shape.columns[0]
        try:
            if len(keys) == 1:
                return db.execute(
                    f"SELECT {columns} FROM {shape.table} WHERE {key} = ?", (keys[0],)
                ).fetchall()
            return db.execute(
                f"SELECT {columns} FROM {shape.table} WHERE {key} IN (SELECT value FROM json_each(?))",
                (json.dumps(keys),),
            ).fetchall()
        except (sqlite3.Error, *_IMPOSSIBLE) as cause:
            raise failure_of(cause) from cause

    def fetch(self, shape: TableShape, keys: Sequence[Any]) -> list[Row]:
        """See ``Database.fetch``."""
        return self._fetch(self._under_way(), shape, keys)

    def fetch_all(self, statement: str, parameters: Sequence[Any]) -> list[Row]:
        """See ``Database.fetch_all``."""
        try:
            return self._under_way().execute(statement.replace("%s", "?"), parameters).fetchall()
        except (sqlite3.Error, *_IMPOSSIBLE) as cause:
            raise failure_of(cause) from cause

    def commit(self, inserts: Writes, updates: Writes) -> None:
        """See ``Database.commit``."""
        train = self._under_way()
        try:
            for shape, rows in inserts:
                marks = ", ".join("?" * len(shape.columns))
                train.executemany(
                    f"INSERT INTO {shape.table} ({', '.join(shape.columns)}) VALUES ({marks})", rows
                )
            for shape, rows in updates:
                key, *rest = shape.columns
                train.executemany(
                    f"UPDATE {shape.table} SET {', '.join(f'{name} = ?' for name in rest)} WHERE {key} = ?",
                    [(*row[1:], row[0]) for row in rows],
                )
            train.execute("COMMIT")
            self._require_files()
        except (sqlite3.Error, *_IMPOSSIBLE) as cause:
            raise failure_of(cause) from cause
        finally:
            self.rollback()

    def rollback(self) -> None:
        """See ``Database.rollback``."""
        try:
            if self._train is not None and self._train.in_transaction:
                self._train.execute("ROLLBACK")
        except sqlite3.Error:
            # The connection is in an unknown state: the next train opens another.
            lost, self._train = self._train, None
            if lost is not None:
                lost.close()
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _reader(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = self._connect()
            self._readers.append(db)
        return db

    def select(self, shape: TableShape, keys: Sequence[Any]) -> list[Row]:
        """See ``Database.select``."""
        return self._fetch(self._reader(), shape, keys)

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """See ``Database.query``."""
        try:
            return self._reader().execute(statement.replace("%s", "?"), parameters).fetchall()
        except (sqlite3.Error, *_IMPOSSIBLE) as cause:
            raise failure_of(cause) from cause

    @contextmanager
    def snapshot(self) -> Iterator[Query]:
        """See ``Database.snapshot``."""
        db = self._connect()  # its own: a transaction on the thread's reader would freeze what others read

        def query(statement: str, parameters: Sequence[Any]) -> list[Row]:
            try:
                return db.execute(statement.replace("%s", "?"), parameters).fetchall()
            except (sqlite3.Error, *_IMPOSSIBLE) as cause:
                raise failure_of(cause) from cause

        try:
            query("BEGIN", ())
            yield query
        finally:
            db.close()

    def close(self) -> None:
        """See ``Database.close``."""
        if self._train is not None:
            self._train.close()
            self._train = None
        while self._readers:
            self._readers.pop().close()
        os.close(self._lock)


class PostgreSQL:
    """PostgreSQL: several processes, several machines."""

    joins_octets = True

    def __init__(self, conninfo: str, password: SecretBytes | None = None) -> None:
        self._conninfo = conninfo
        self._password = password
        self._local = threading.local()
        self._readers: list[psycopg.Connection[Any]] = []
        self._train: psycopg.Connection[Any] | None = None

    def _connect(self) -> psycopg.Connection[Any]:
        password = None if self._password is None else self._password.reveal().decode()
        try:
            db = psycopg.connect(self._conninfo, autocommit=True, connect_timeout=5, password=password)
            db.execute("SET synchronous_commit = on")
            db.execute("SET lock_timeout = '10s'")
            db.execute("SET statement_timeout = '60s'")
            db.execute("SET idle_in_transaction_session_timeout = '30s'")
            for setting in PLANNER:
                db.execute(setting.encode())
            fsync = db.execute("SHOW fsync").fetchone()
        except psycopg.Error as cause:
            raise failure_of(cause) from cause
        if fsync is None or fsync[0] != "on":
            db.close()
            raise errors.IntegrityFailure(
                "the PostgreSQL server runs with fsync=off: nothing it commits is durable"
            )
        return db

    def begin(self, reads: Reads) -> tuple[Row, list[list[Row]]]:
        """See ``Database.begin``."""
        if self._train is not None:
            try:
                return self._begin(self._train, reads)
            except errors.Unavailable:
                pass  # nothing was written, and the server may have restarted since: connect, once more
        self._train = self._connect()
        return self._begin(self._train, reads)

    def _begin(self, train: psycopg.Connection[Any], reads: Reads) -> tuple[Row, list[list[Row]]]:
        try:
            with train.pipeline():
                train.execute("BEGIN")
                head_cursor = train.execute("SELECT size, edge, at FROM head WHERE id = 1 FOR UPDATE")
                cursors = [train.execute(_select_statement(shape), (list(keys),)) for shape, keys in reads]
            head = head_cursor.fetchone()
            rows = [cursor.fetchall() for cursor in cursors]
        except (psycopg.Error, *_IMPOSSIBLE) as cause:
            self._reconnect()
            raise failure_of(cause) from cause
        except BaseException:
            self._reconnect()
            raise
        if head is None:
            self.rollback()
            raise errors.IntegrityFailure("the database has no log head")
        return head, rows

    def _under_way(self) -> psycopg.Connection[Any]:
        if self._train is None:
            raise RuntimeError("no train is under way")
        return self._train

    def fetch(self, shape: TableShape, keys: Sequence[Any]) -> list[Row]:
        """See ``Database.fetch``."""
        try:
            return self._under_way().execute(_select_statement(shape), (list(keys),)).fetchall()
        except (psycopg.Error, *_IMPOSSIBLE) as cause:
            raise failure_of(cause) from cause

    def fetch_all(self, statement: str, parameters: Sequence[Any]) -> list[Row]:
        """See ``Database.fetch_all``."""
        try:
            return self._under_way().execute(statement.encode(), parameters).fetchall()
        except (psycopg.Error, *_IMPOSSIBLE) as cause:
            raise failure_of(cause) from cause

    def commit(self, inserts: Writes, updates: Writes) -> None:
        """See ``Database.commit``."""
        train = self._under_way()
        try:
            with train.pipeline():
                train.execute(_write_statement(inserts, updates), _columns([*inserts, *updates]))
                train.execute("COMMIT")
        except (psycopg.Error, *_IMPOSSIBLE) as cause:
            self._reconnect()
            raise failure_of(cause) from cause
        except BaseException:
            self._reconnect()
            raise

    def _reconnect(self) -> None:
        """Roll back, and let the next train connect again.

        The server skips the rest of a pipeline after an error, and psycopg goes on believing in statements
        that were never prepared.
        """
        self.rollback()
        if self._train is not None:
            self._train.close()
            self._train = None

    def rollback(self) -> None:
        """See ``Database.rollback``."""
        if self._train is None:
            return
        try:
            if self._train.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                self._train.execute("ROLLBACK")
        except psycopg.Error:
            # Lost: the next train connects again.
            self._train.close()
            self._train = None

    def _reader(self) -> psycopg.Connection[Any]:
        db: psycopg.Connection[Any] | None = getattr(self._local, "db", None)
        if db is None or db.closed:
            db = self._local.db = self._connect()
            self._readers = [reader for reader in self._readers if not reader.closed] + [db]
        return db

    def select(self, shape: TableShape, keys: Sequence[Any]) -> list[Row]:
        """See ``Database.select``."""
        return self._read(_select_statement(shape), (list(keys),))

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """See ``Database.query``."""
        return self._read(statement.encode(), parameters)

    def _read(self, statement: bytes, parameters: Sequence[Any]) -> list[Row]:
        db = self._reader()
        try:
            return db.execute(statement, parameters).fetchall()
        except psycopg.OperationalError:
            db.close()  # the server may have restarted since: try once on a new connection
        except (psycopg.Error, *_IMPOSSIBLE) as cause:
            raise failure_of(cause) from cause
        try:
            return self._reader().execute(statement, parameters).fetchall()
        except (psycopg.Error, *_IMPOSSIBLE) as cause:
            raise failure_of(cause) from cause

    @contextmanager
    def snapshot(self) -> Iterator[Query]:
        """See ``Database.snapshot``."""
        db = self._connect()

        def query(statement: str, parameters: Sequence[Any]) -> list[Row]:
            try:
                return db.execute(statement.encode(), parameters, binary=True).fetchall()
            except (psycopg.Error, *_IMPOSSIBLE) as cause:
                raise failure_of(cause) from cause

        try:
            db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield query
        except psycopg.Error as cause:
            raise failure_of(cause) from cause
        finally:
            db.close()

    def close(self) -> None:
        """See ``Database.close``."""
        if self._train is not None:
            self._train.close()
            self._train = None
        while self._readers:
            self._readers.pop().close()


def _select_statement(shape: TableShape) -> bytes:
    columns, key, kind = ", ".join(shape.columns), shape.columns[0], shape.types[0]
    return f"SELECT {columns} FROM {shape.table} WHERE {key} = ANY(%s::{kind}[])".encode()


def _write_statement(inserts: Writes, updates: Writes) -> bytes:
    """Return one statement for all of a train's rows."""
    # One, because psycopg waits for the socket at each statement it sends.
    writes = [_insert(shape) for shape, _ in inserts] + [_update(shape) for shape, _ in updates]
    named = ", ".join(f"w{number} AS ({write})" for number, write in enumerate(writes))
    return f"WITH {named} SELECT".encode()


def _insert(shape: TableShape) -> str:
    return f"INSERT INTO {shape.table} ({', '.join(shape.columns)}) SELECT * FROM unnest({_arrays(shape)})"


def _update(shape: TableShape) -> str:
    key, *rest = shape.columns
    return (
        f"UPDATE {shape.table} SET {', '.join(f'{name} = v.{name}' for name in rest)}"
        f" FROM unnest({_arrays(shape)}) AS v({', '.join(shape.columns)}) WHERE {shape.table}.{key} = v.{key}"
    )


def _arrays(shape: TableShape) -> str:
    return ", ".join(f"%s::{kind}[]" for kind in shape.types)


def _columns(writes: Writes) -> list[list[Any]]:
    return [list(column) for _, rows in writes for column in zip(*rows, strict=True)]


def open_database(url: str, password: SecretBytes | None = None) -> Database:
    """Open the database of a URL: ``sqlite:///PATH`` or ``postgresql://…`` (a libpq connection URI).

    Raises:
        errors.MalformedRequest: another kind of URL.
        errors.NotFound: there is no such SQLite file.
    """
    if url.startswith("sqlite:///"):
        return SQLite(Path(url.removeprefix("sqlite:///")))
    if url.startswith("postgresql://"):
        return PostgreSQL(url, password)
    raise errors.MalformedRequest(
        f"a database url starts with sqlite:/// or postgresql://, not {url.partition(':')[0]}:"
    )
