"""PostgreSQL as the commit train's database: several processes, several machines, a standby that takes over.

What is answered must be where the server promises to keep it.  Three things would break that without an
error, and are looked for here:

- a server set to forget (``fsync=off``, ``full_page_writes=off``), or one that waits for fewer synchronous
  standbys than the settings demand;
- a COMMIT whose wait for its standby is cancelled: it *succeeds*, on this server alone, with a warning
  (PostgreSQL 15, sections 20.6.1 and 27.2.8);
- a commit that a crash cut off from its standby: after recovery it is there for everyone to read.

So a commit that warns is a commit whose outcome is unknown; one that takes too long is let go of and never
cancelled, so that its rows stay invisible and the head stays locked until the standby has them; and every new
connection first waits until all that the server committed before is as durable as it promises.
"""

import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import Diagnostic

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
from birthmark.secret import SecretBytes

__all__ = ["PostgreSQL", "connection_parameters", "standbys_demanded"]

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
TRAIN_SECONDS = 20.0
"""How long a train waits for an answer of the server's, and twice as long as it waits for the log's head."""
READ_SECONDS = 60
"""How long one statement may take; the server does not count the wait for a standby."""
SETTLE_SECONDS = 5.0
"""How long a new connection waits for a standby."""
_SESSION = "; ".join(
    (
        "SET synchronous_commit = on",
        "SET idle_in_transaction_session_timeout = '30s'",
        f"SET statement_timeout = '{READ_SECONDS}s'",
        *PLANNER,
    )
)
_ABROAD = {
    "connect_timeout": "5",
    # A machine that loses its power says no goodbye: without these its silence is believed for two hours.
    "keepalives_idle": "5",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}
"""Parameters of libpq (PostgreSQL 15, section 34.1.2) unless the url has others."""
_PROMISES = (
    "SELECT current_setting('fsync'), current_setting('full_page_writes'),"
    " current_setting('synchronous_commit'), current_setting('synchronous_standby_names')"
)
_SETTLE = (
    "SELECT CASE WHEN pg_is_in_recovery() THEN NULL"
    " ELSE pg_logical_emit_message(true, 'birthmark', '')::text END"
)
"""Writes a record to the WAL that nobody reads: its commit waits as a train's does, for all before it."""
_AWAY = "database: a synchronous standby is away, and the line is held until it is back"
_OF_NO_CONCERN = {"GetNewTransactionId", "SetTransactionIdLimit", "GetNewMultiXactId", "SetMultiXactIdLimit"}
"""Functions of the server that warn of transaction ids running out, which makes no commit less durable."""


def connection_parameters(url: str) -> dict[str, Any]:
    """Return libpq's parameters of a connection URI, with what we want where it says nothing.

    A URI of several hosts means the one that can be written to, unless it says which it means.

    Raises:
        errors.MalformedRequest: it is none.
    """
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError as cause:
        raise errors.MalformedRequest("the database url is none") from cause
    several = "," in str(given.get("host") or "") or "," in str(given.get("hostaddr") or "")
    return {**_ABROAD, **({"target_session_attrs": "read-write"} if several else {}), **given}


def standbys_demanded(names: str) -> int:
    """Return how many standbys a value of ``synchronous_standby_names`` makes a commit wait for.

    (PostgreSQL 15, section 20.6.2: ``[FIRST] n (list)``, ``ANY n (list)``, or a list, which means one.)
    """
    counted = re.match(r"\s*(?:(?:FIRST|ANY)\s+)?(\d+)\s*\(", names, re.IGNORECASE)
    if counted is not None:
        return int(counted[1])
    return 1 if names.strip() else 0


class _Silent(psycopg.OperationalError):
    """The server did not answer in time."""


class _Connection(psycopg.Connection[Any]):
    """A connection that waits so long and no longer, and remembers what the server warned of."""

    patience = float(READ_SECONDS + 10)
    warned: list[str]

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        """See psycopg; whatever is under way when the time is over is let go of, connection and all."""
        limit = self.patience if timeout is None else timeout
        try:
            return super().wait(gen, interval=interval, timeout=limit)
        except psycopg.errors._WaitTimeout as cause:  # noqa: SLF001  # what psycopg documents that it raises
            self.pgconn.finish()
            raise _Silent(f"no answer within {limit:g} seconds") from cause

    def note(self, notice: Diagnostic) -> None:
        """Remember a warning: psycopg calls this for every notice."""
        if notice.severity_nonlocalized == "WARNING" and notice.source_function not in _OF_NO_CONCERN:
            self.warned.append(f"{notice.message_primary}")


class PostgreSQL:
    """PostgreSQL: several processes, several machines.

    Args:
        url: a libpq connection URI, of one host or several.
        password: goes with it.
        standbys: how many synchronous standbys a commit must wait for at least; a server that waits for
            fewer is refused.
        train_seconds: how long a train waits for an answer of the server's.
        settle_seconds: how long a new connection waits for a standby.
    """

    joins_octets = True

    def __init__(
        self,
        url: str,
        password: SecretBytes | None = None,
        *,
        standbys: int = 0,
        train_seconds: float = TRAIN_SECONDS,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self._parameters = connection_parameters(url)
        self._password = password
        self._standbys = standbys
        self._train_seconds = train_seconds
        self._settle_seconds = settle_seconds
        self._local = threading.local()
        self._readers: list[_Connection] = []
        self._train: _Connection | None = None
        self._doubts = 0
        """How often it was left unknown where a commit is kept."""
        self._settled = 0
        """How many of these doubts are no more."""

    def _connect(self, *, train: bool = False) -> _Connection:
        parameters = dict(self._parameters)
        if self._password is not None:
            parameters["password"] = self._password.reveal().decode()
        try:
            db = _Connection.connect("", autocommit=True, **parameters)
        except psycopg.Error as cause:
            raise failure_of(cause) from cause
        db.warned = []
        db.add_notice_handler(db.note)
        try:
            db.execute(_SESSION.encode())
            self._require_promises(db.execute(_PROMISES).fetchone())
            self._settle(db)
            db.execute(f"SET lock_timeout = '{self._train_seconds * 500:.0f}ms'".encode())
        except psycopg.Error as cause:
            db.close()
            raise failure_of(cause) from cause
        except BaseException:
            db.close()
            raise
        if train:
            db.patience = self._train_seconds
        return db

    def _require_promises(self, promised: Sequence[Any] | None) -> None:
        """Refuse a server that does not keep what it commits, or not where the settings want it."""
        fsync, pages, commits, names = promised or ("", "", "", "")
        for name, value in (("fsync", fsync), ("full_page_writes", pages)):
            if value != "on":
                raise errors.IntegrityFailure(
                    f"the PostgreSQL server runs with {name}=off: what it commits may not outlive a power cut"
                )
        found = standbys_demanded(names)
        if found < self._standbys:
            raise errors.IntegrityFailure(
                f"the settings demand {self._standbys} synchronous standbys, the PostgreSQL server waits for"
                f" {found} (synchronous_standby_names = '{names}')"
            )
        if self._standbys and commits not in ("on", "remote_apply"):
            raise errors.IntegrityFailure(
                f"the PostgreSQL server commits with synchronous_commit={commits}, although it was set to on"
            )

    def _settle(self, db: _Connection) -> None:
        """Wait until all that the server committed before is as durable as it promises.

        Raises:
            errors.Unavailable: it could not be had in time.
        """
        doubts, cancel = self._doubts, db.pgconn.get_cancel()
        patience, db.patience = db.patience, self._settle_seconds
        try:
            db.execute(_SETTLE.encode())
        except _Silent as cause:
            with suppress(psycopg.Error):
                cancel.cancel()  # or the server would go on waiting, for nobody, with one of its connections
            raise errors.Unavailable(f"{_AWAY} ({cause})") from cause
        if db.warned:
            raise errors.Unavailable(f"{_AWAY} ({db.warned[-1]})")
        db.patience = patience
        self._settled = max(self._settled, doubts)

    def begin(self, reads: Reads) -> tuple[Row, list[list[Row]]]:
        """See ``Database.begin``."""
        if self._train is not None:
            try:
                return self._begin(self._train, reads)
            except errors.Unavailable as unavailable:
                if not _is_elsewhere(unavailable.__cause__):
                    raise
                # Nothing was written, and the server may have restarted since: connect, once more.
        self._train = self._connect(train=True)
        return self._begin(self._train, reads)

    def _begin(self, train: _Connection, reads: Reads) -> tuple[Row, list[list[Row]]]:
        promised = None
        try:
            with train.pipeline():
                train.execute("BEGIN")
                head_cursor = train.execute("SELECT size, edge, at FROM head WHERE id = 1 FOR UPDATE")
                if self._standbys:  # what was promised when we connected may be taken back by a reload
                    promised = train.execute(_PROMISES)
                cursors = [
                    train.execute(_select_statement(shape), (possible(keys),)) for shape, keys in reads
                ]
            head = head_cursor.fetchone()
            rows = [cursor.fetchall() for cursor in cursors]
            if promised is not None:
                self._require_promises(promised.fetchone())
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

    def _under_way(self) -> _Connection:
        if self._train is None:
            raise RuntimeError("no train is under way")
        return self._train

    def fetch(self, shape: TableShape, keys: Sequence[Any]) -> list[Row]:
        """See ``Database.fetch``."""
        try:
            return self._under_way().execute(_select_statement(shape), (possible(keys),)).fetchall()
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
        train.warned.clear()
        try:
            with train.pipeline():
                train.execute(_write_statement(inserts, updates), _columns([*inserts, *updates]))
                train.execute("COMMIT")
        except (psycopg.Error, *IMPOSSIBLE) as cause:
            self._doubts += 1
            self._reconnect()
            raise failure_of(cause) from cause
        except BaseException:
            self._doubts += 1
            self._reconnect()
            raise
        if train.warned:
            # "The transaction has already committed locally, but might not have been replicated to the
            # standby" (SyncRepWaitForLSN): whoever asks again is answered when it has been.
            self._doubts += 1
            self._reconnect()
            raise errors.Unavailable(
                f"database: it is not known whether a standby has what was committed ({train.warned[-1]})"
            )

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

    def _reader(self) -> _Connection:
        db: _Connection | None = getattr(self._local, "db", None)
        if db is not None and self._settled < self._doubts:
            db.close()  # it would show what may be gone tomorrow; a new one waits until it is not
        if db is None or db.closed:
            db = self._local.db = self._connect()
            self._readers = [reader for reader in self._readers if not reader.closed] + [db]
        return db

    def select(self, shape: TableShape, keys: Sequence[Any]) -> list[Row]:
        """See ``Database.select``."""
        return self._read(_select_statement(shape), (possible(keys),))

    def query(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """See ``Database.query``."""
        return self._read(statement.encode(), parameters)

    def _read(self, statement: bytes, parameters: Sequence[Any]) -> list[Row]:
        db = self._reader()
        try:
            return db.execute(statement, parameters).fetchall()
        except (psycopg.Error, *IMPOSSIBLE) as cause:
            if not _is_elsewhere(cause):
                raise failure_of(cause) from cause
            db.close()  # the server may have restarted since: try once on a new connection
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


def _is_elsewhere(cause: BaseException | None) -> bool:
    """Return whether a new connection may find what this one lost: a server restarted, or took over.

    Operator interventions are class 57 (shutdowns), connection exceptions class 08; a connection that is cut
    off has no code at all (PostgreSQL 15, appendix A).
    """
    if not isinstance(cause, psycopg.Error) or isinstance(cause, _Silent):
        return False
    if isinstance(cause, psycopg.errors.ReadOnlySqlTransaction):
        return True
    if isinstance(cause, psycopg.errors.QueryCanceled) or not isinstance(cause, psycopg.OperationalError):
        return False
    return cause.sqlstate is None or cause.sqlstate[:2] in ("08", "57", "25")


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
