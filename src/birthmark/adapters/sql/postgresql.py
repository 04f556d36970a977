"""PostgreSQL as the commit train's database: several processes, several machines."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg

from birthmark import errors
from birthmark.adapters.sql.database import IMPOSSIBLE, Query, Reads, Row, TableShape, Writes, failure_of
from birthmark.secret import SecretBytes

__all__ = ["PostgreSQL"]

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
        except (psycopg.Error, *IMPOSSIBLE) as cause:
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
        except (psycopg.Error, *IMPOSSIBLE) as cause:
            raise failure_of(cause) from cause

    def fetch_all(self, statement: str, parameters: Sequence[Any]) -> list[Row]:
        """See ``Database.fetch_all``."""
        try:
            return self._under_way().execute(statement.encode(), parameters).fetchall()
        except (psycopg.Error, *IMPOSSIBLE) as cause:
            raise failure_of(cause) from cause

    def commit(self, inserts: Writes, updates: Writes) -> None:
        """See ``Database.commit``."""
        train = self._under_way()
        try:
            with train.pipeline():
                train.execute(_write_statement(inserts, updates), _columns([*inserts, *updates]))
                train.execute("COMMIT")
        except (psycopg.Error, *IMPOSSIBLE) as cause:
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
        except (psycopg.Error, *IMPOSSIBLE) as cause:
            raise failure_of(cause) from cause
        try:
            return self._reader().execute(statement, parameters).fetchall()
        except (psycopg.Error, *IMPOSSIBLE) as cause:
            raise failure_of(cause) from cause

    @contextmanager
    def snapshot(self) -> Iterator[Query]:
        """See ``Database.snapshot``."""
        db = self._connect()

        def query(statement: str, parameters: Sequence[Any]) -> list[Row]:
            try:
                return db.execute(statement.encode(), parameters, binary=True).fetchall()
            except (psycopg.Error, *IMPOSSIBLE) as cause:
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
