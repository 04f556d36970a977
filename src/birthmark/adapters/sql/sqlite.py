"""SQLite as the commit train's database: one file, any number of processes on one machine."""

import fcntl
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from birthmark import errors
from birthmark.adapters.sql.database import (
    IMPOSSIBLE,
    Query,
    Reads,
    Row,
    TableShape,
    Writes,
    failure_of,
    possible,
)

__all__ = ["SQLite"]

LOCK_POLL_SECONDS = 0.0005


class SQLite:
    """The embedded database: one file, any number of processes on one machine."""

    joins_octets = False

    def __init__(self, path: Path, lock_timeout_seconds: float = 10.0) -> None:
        try:
            there = path.is_file()
        except OSError as cause:
            raise errors.Unavailable(f"database: {path} cannot be looked at: {cause.strerror}") from cause
        if not there:
            raise errors.NotFound(f"there is no database at {path}; 'birthmark init' makes one")
        self._path = path
        self._lock_timeout_seconds = lock_timeout_seconds
        self._local = threading.local()
        self._readers: list[sqlite3.Connection] = []
        self._lock: int | None = None
        self._train: sqlite3.Connection | None = None
        self._files: dict[str, tuple[int, int]] = {}

    def _connect(self) -> sqlite3.Connection:
        db = None
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
            if db is not None:
                db.close()
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
            self._require_file(name)

    def _require_file(self, name: str) -> None:
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
                if self._lock is None:
                    self._lock = os.open(f"{self._path}.train", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise errors.Unavailable(
                        f"database: another process has held {self._path}.train"
                        f" for {self._lock_timeout_seconds:g} seconds"
                    ) from None
                time.sleep(LOCK_POLL_SECONDS)
            except OSError as cause:
                raise errors.Unavailable(
                    f"database: {self._path}.train cannot be locked: {cause.strerror};"
                    " the line goes on by itself when it can"
                ) from cause
            else:
                return

    def _under_way(self) -> sqlite3.Connection:
        if self._train is None:
            raise RuntimeError("no train is under way")
        return self._train

    @staticmethod
    def _fetch(db: sqlite3.Connection, shape: TableShape, asked: Sequence[Any]) -> list[Row]:
        keys = possible(asked)
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
        except (sqlite3.Error, *IMPOSSIBLE) as cause:
            raise failure_of(cause) from cause

    def fetch(self, shape: TableShape, keys: Sequence[Any]) -> list[Row]:
        """See ``Database.fetch``."""
        return self._fetch(self._under_way(), shape, keys)

    def fetch_all(self, statement: str, parameters: Sequence[Any]) -> list[Row]:
        """See ``Database.fetch_all``."""
        try:
            return self._under_way().execute(statement.replace("%s", "?"), parameters).fetchall()
        except (sqlite3.Error, *IMPOSSIBLE) as cause:
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
        except (sqlite3.Error, *IMPOSSIBLE) as cause:
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
            if self._lock is not None:
                fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _reader(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._local, "db", None)
        if db is None:
            db = self._local.db = self._connect()
            self._readers.append(db)
        self._require_file(f"{self._path}")  # SQLite would go on reading what has no name any more
        return db

    def select(self, shape: TableShape, keys: Sequence[Any]) -> list[Row]:
        """See ``Database.select``."""
        return self._fetch(self._reader(), shape, keys)

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """See ``Database.query``."""
        try:
            return self._reader().execute(statement.replace("%s", "?"), parameters).fetchall()
        except (sqlite3.Error, *IMPOSSIBLE) as cause:
            raise failure_of(cause) from cause

    @contextmanager
    def snapshot(self) -> Iterator[Query]:
        """See ``Database.snapshot``."""
        db = self._connect()  # its own: a transaction on the thread's reader would freeze what others read

        def query(statement: str, parameters: Sequence[Any]) -> list[Row]:
            try:
                return db.execute(statement.replace("%s", "?"), parameters).fetchall()
            except (sqlite3.Error, *IMPOSSIBLE) as cause:
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
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
