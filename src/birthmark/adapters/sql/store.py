"""The store: the commit train over one database.

One writer thread a process collects the acts that are waiting (no timer: while one commit is under way the
next train fills) and commits them in one database transaction:

1. take the log head, and fetch for the whole train what its acts are going to look at;
2. let each act decide, in order; a refusal drops that act's changes alone and becomes an entry of its own;
3. append the leaves, move the right edge, sign one checkpoint;
4. write, commit, and only then answer everyone.

Because the head is locked, what was read stays true until the commit, so the guards are plain code in the use
cases.  The database's constraints and triggers stand behind them: a train that breaks one is taken apart and
run act by act, and the act that broke it fails alone.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Mapping as CollectionsMapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeVar

from birthmark import errors
from birthmark.adapters.sql.database import Broken, Database, Row, TableShape, Writes
from birthmark.adapters.sql.log import CHECKPOINT, HEAD, LEAF, TILE, LogReader, full_tiles
from birthmark.adapters.sql.octets import PIECE_ROWS, JoinedOctets, joining, page_joined
from birthmark.adapters.sql.realm import read_realm
from birthmark.adapters.sql.rows import MAPPINGS, Mapping, milliseconds, moment
from birthmark.ledger.checkpoint import Checkpoint, VerifierKey, open_note, sign_note
from birthmark.ledger.entry import encode, time_text
from birthmark.ledger.merkle import EMPTY_ROOT, Edge, Growth, leaf_hash
from birthmark.ledger.proof import TlogProof
from birthmark.ports import (
    BACKWARD_TOLERANCE,
    Act,
    Clock,
    Committed,
    Decision,
    Facts,
    Health,
    LogEntry,
    Observer,
    Octets,
    Reads,
    Unobserved,
)

__all__ = ["SQLStore"]

log = logging.getLogger(__name__)

V = TypeVar("V")
_INTERNAL = "internal fault; see the service's log"
LONGEST_TRAIN = 512
PROBE_SECONDS = 10.0
"""How long a probe waits for its train."""


class _WorkingSet:
    """What a train has read and will write: the newest version of every value, by type and key."""

    __slots__ = ("_fetch", "_size", "changed", "new", "values")

    def __init__(
        self, fetch: Callable[[Mapping[Any], Sequence[str]], list[Sequence[Any]]], size: int | None = None
    ) -> None:
        """Fetch what nobody read in advance; ``size`` is the log's, where its head is locked."""
        self._fetch = fetch
        self._size = size
        self.values: dict[Mapping[Any], dict[str, Any]] = {}
        self.new: dict[Mapping[Any], dict[str, Any]] = {}
        self.changed: dict[Mapping[Any], dict[str, Any]] = {}

    def load(self, mapping: Mapping[Any], keys: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Take in the rows found under these keys; the keys not among them are known to be absent."""
        known = self.values.setdefault(mapping, {})
        known.update(dict.fromkeys(keys))
        for row in rows:
            known[row[0]] = mapping.value(row)

    def get(self, mapping: Mapping[Any], key: str) -> Any:
        """Return a value, from the database if nobody asked before."""
        known = self.values.get(mapping)
        if known is None or key not in known:
            self.load(mapping, (key,), () if self._is_to_come(mapping, key) else self._fetch(mapping, (key,)))
            known = self.values[mapping]
        return known[key]

    def _is_to_come(self, mapping: Mapping[Any], key: Any) -> bool:
        # The head is locked: nothing can be on record under a leaf that the log does not have yet.
        return self._size is not None and mapping.columns[0] == "leaf" and key >= self._size

    def put(self, mapping: Mapping[Any], key: str, value: Any) -> None:
        """Take in a value that must be written."""
        known = self.values.setdefault(mapping, {})
        if key in self.new.get(mapping, {}) or self.get(mapping, key) is None:
            self.new.setdefault(mapping, {})[key] = value
        else:
            self.changed.setdefault(mapping, {})[key] = value
        known[key] = value


class _View:
    """One act's view of the working set: its own changes lie above it until they are merged or dropped."""

    __slots__ = ("_base", "_next_leaf", "changes")

    def __init__(self, base: _WorkingSet, next_leaf: int) -> None:
        self._base = base
        self._next_leaf = next_leaf
        self.changes: dict[tuple[Mapping[Any], str], Any] = {}

    @property
    def next_leaf(self) -> int:
        """See ``Facts.next_leaf``."""
        return self._next_leaf

    def get(self, kind: type[V], key: str) -> V | None:
        """See ``Facts.get``."""
        mapping = MAPPINGS[kind]
        changed: V | None = self.changes.get((mapping, key))
        if changed is not None:
            return changed
        value: V | None = self._base.get(mapping, key)
        return value

    def put(self, value: object) -> None:
        """See ``Facts.put``."""
        mapping = MAPPINGS[type(value)]
        self.changes[mapping, mapping.key(value)] = value

    def merge(self) -> None:
        """Hand the changes on."""
        for (mapping, key), value in self.changes.items():
            self._base.put(mapping, key, value)


class _Train:
    """The part of a train that its answers need once it is durable."""

    __slots__ = ("growth", "kinds", "note")

    def __init__(self, growth: Growth) -> None:
        self.growth = growth
        self.note = ""
        self.kinds: list[str] = []
        """Of its log entries, for the observer."""


@dataclass(frozen=True, slots=True)
class _Committed:
    answer: Any
    leaves: Sequence[LogEntry]
    train: _Train

    def token(self, index: int) -> str:
        """See ``Committed.token``."""
        entry = self.leaves[index - self.leaves[0].index].entry
        return TlogProof(index, entry, self.train.growth.inclusion_proof(index), self.train.note).encode()


def _append_entries(decision: Decision[Any], encoded: Sequence[bytes], train: _Train) -> Sequence[LogEntry]:
    if isinstance(decision.answer, errors.Refusal):
        decision.answer.recorded = True
    train.kinds += [kind for kind, _ in decision.entries]
    return [LogEntry(index=train.growth.append(leaf_hash(entry)), entry=entry) for entry in encoded]


def _impossible(act: Act[Any]) -> Act[Any]:
    """Return the act with the database's refusal as its decision."""

    def decide(_facts: Facts, _at: datetime) -> Decision[Any]:
        raise errors.IntegrityFailure("the database refused this act; see the service's log")

    return replace(act, decide=decide, reads={})


_Job = tuple[Sequence[Act[Any]], "Future[list[Committed[Any]]]"]


class SQLStore:
    """The store over SQLite or PostgreSQL; see ``ports.Store``."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        sign: Callable[[bytes], bytes],
        observer: Observer | None = None,
        agreed: Callable[[], None] = lambda: None,
    ) -> None:
        """Open the store; ``sign`` signs checkpoints with the log's key, ``agreed`` refuses a wrong clock."""
        self.realm = read_realm(database)
        self.log = LogReader(database, self.realm.vkey)
        self._database = database
        self._clock = clock
        self._sign = sign
        self._observer = observer or Unobserved()
        self._agreed = agreed
        self._public = VerifierKey.parse(self.realm.vkey).public
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._submitting = threading.Lock()
        self._closed = False
        self._seen: tuple[int, bytes] | None = None
        """Size and edge of the log as this process last saw them."""
        self._health = Health(up=True, reason="", since=clock.now())
        self._thread = threading.Thread(target=self._run, name="commit-train", daemon=True)
        self._thread.start()

    def submit(self, acts: Sequence[Act[Any]]) -> "Future[list[Committed[Any]]]":
        """See ``Store.submit``."""
        future: Future[list[Committed[Any]]] = Future()
        with self._submitting:
            if self._closed:
                future.set_exception(errors.Unavailable("the service is stopping"))
            else:
                self._observer.waiting(len(acts))
                self._queue.put((acts, future))
        return future

    def look(self, reads: Reads) -> Facts:
        """See ``Store.look``."""
        base = _WorkingSet(self._database.select)
        for kind, keys in reads.items():
            if keys:
                base.load(MAPPINGS[kind], keys, self._database.select(MAPPINGS[kind], keys))
        return _View(base, 0)

    def scan(
        self,
        kind: type[V],
        *,
        where: CollectionsMapping[str, str] | None = None,
        after: str = "",
        limit: int | None = None,
    ) -> Iterator[V]:
        """See ``Store.scan``."""
        mapping = MAPPINGS[kind]
        key, columns = mapping.columns[0], ", ".join(mapping.columns)
        low: Any = -1 if mapping.types[0] == "bigint" and after == "" else after
        named = dict(where or {})
        if not named.keys() <= set(mapping.columns):
            raise ValueError(
                f"{mapping.table} has no {', '.join(sorted(named.keys() - set(mapping.columns)))}"
            )
        conditions = "".join(f"{name} = %s AND " for name in named)
        statement = (
            f"SELECT {columns} FROM {mapping.table} WHERE {conditions}{key} > %s ORDER BY {key} LIMIT %s"
        )
        left = limit
        while left is None or left > 0:
            page = 1000 if left is None else min(left, 1000)
            rows = self._database.query(statement, (*named.values(), low, page))
            for row in rows:
                yield mapping.value(row)
            if len(rows) < page:
                return
            low = rows[-1][0]
            left = None if left is None else left - page

    def since(self, kind: type, field: str, start: datetime) -> Iterator[tuple[str, datetime]]:
        """See ``Store.since``."""
        mapping = MAPPINGS[kind]
        key = mapping.columns[0]
        if mapping.types[mapping.columns.index(field)] != "bigint":
            raise ValueError(f"{mapping.table}.{field} is no time")
        low: tuple[int, str] = (milliseconds(start), "")
        while True:
            rows = self._database.query(
                f"SELECT {field}, {key} FROM {mapping.table} WHERE ({field}, {key}) > (%s, %s)"
                f" ORDER BY {field}, {key} LIMIT {PIECE_ROWS}",
                low,
            )
            for at, found in rows:
                yield found, moment(at)
            if len(rows) < PIECE_ROWS:
                return
            low = (rows[-1][0], rows[-1][1])

    @contextmanager
    def octets(self, kind: type, field: str, *, prefix: str) -> Iterator[Octets]:
        """See ``Store.octets``."""
        mapping = MAPPINGS[kind]
        if field not in mapping.columns or not prefix or not prefix.isascii():
            raise ValueError(f"{mapping.table} has no {field}, or {prefix!r} is no prefix")
        key, until = mapping.columns[0], prefix[:-1] + chr(ord(prefix[-1]) + 1)
        with self._database.snapshot() as query:
            ((at,),) = query("SELECT at FROM head WHERE id = 1", ())
            sum_up = (
                f"SELECT coalesce(sum(length({field})), 0) FROM {mapping.table}"
                f" WHERE {key} > %s AND {key} < %s"
            )
            joined = query if self._database.joins_octets else joining(query, mapping, field)
            yield JoinedOctets(
                joined, query, (page_joined(mapping, field), sum_up), (prefix, until), moment(at)
            )

    def token(self, index: int) -> str:
        """See ``Store.token``."""
        return self.log.token(index)

    def checkpoint(self) -> str:
        """See ``Store.checkpoint``."""
        return self.log.checkpoint()

    def health(self) -> Health:
        """See ``Store.health``."""
        return self._health

    def probe(self) -> datetime:
        """See ``Store.probe``."""
        future = self.submit(())
        try:
            future.result(PROBE_SECONDS)
        except TimeoutError as hangs:
            future.cancel()
            raise errors.Unavailable(f"the database has not answered for {PROBE_SECONDS:g} s") from hangs
        ((at,),) = self._database.query("SELECT at FROM head WHERE id = 1")
        return moment(at)

    def close(self) -> None:
        """Finish the trains that are waiting and close the database."""
        with self._submitting:
            if self._closed:
                return
            self._closed = True
            self._queue.put(None)
        self._thread.join()
        self._database.close()

    def _run(self) -> None:
        while self._depart(self._queue.get()):
            pass

    def _depart(self, job: _Job | None) -> bool:
        """Run the train that begins with this job; return False if it is the end.

        Nothing of it stays behind in this thread, which waits for the next one perhaps for hours: an act, and
        its answer, may hold a key that is delivered (SPEC B7).
        """
        if job is None:
            return False
        jobs, acts = [job], len(job[0])
        while acts < LONGEST_TRAIN and not self._queue.empty():
            following = self._queue.get()
            if following is None:
                self._queue.put(None)
                break
            jobs.append(following)
            acts += len(following[0])
        self._observer.waiting(-acts)
        # Who stopped waiting before its train left does not travel; from here on nobody can cancel.
        jobs = [job for job in jobs if job[1].set_running_or_notify_cancel()]
        if jobs:
            self._commit(jobs)
        return True

    def _commit(self, jobs: Sequence[_Job]) -> None:
        """Commit a train and answer its jobs; whatever happens, every job gets an answer."""
        travelling = [act for acts, _ in jobs for act in acts]
        try:
            results = self._train(travelling)
        except Broken:
            log.exception("the database refused a train of %d", len(travelling))
            self._commit_apart(jobs)
        except BaseException as cause:  # noqa: BLE001  # a job without an answer would hang its client
            self._failed(len(travelling), cause)
            for _, future in jobs:
                future.set_exception(cause)
        else:
            for acts, future in jobs:
                future.set_result(results[: len(acts)])
                results = results[len(acts) :]

    def _commit_apart(self, jobs: Sequence[_Job]) -> None:
        """Run a broken train act by act: one bad act is refused, and does not take the others with it."""
        for acts, future in jobs:
            results: list[Committed[Any]] = []
            try:
                for act in acts:
                    try:
                        results += self._train([act])
                    except Broken:
                        results += self._train([_impossible(act)])
            except BaseException as failed:  # noqa: BLE001  # as above
                if isinstance(failed, Broken):  # not the act's doing: the log itself takes no entry
                    failed = errors.IntegrityFailure(f"the database refuses an entry of the log: {failed}")
                self._failed(len(acts), failed)
                future.set_exception(failed)
            else:
                future.set_result(results)

    def _failed(self, acts: int, cause: BaseException) -> None:
        self._observer.not_committed(acts)
        reason = str(cause) if isinstance(cause, errors.Refusal) else _INTERNAL
        if self._health.up or self._health.reason != reason:
            since = self._clock_or(self._health.since) if self._health.up else self._health.since
            self._health = Health(up=False, reason=reason, since=since)

    def _succeeded(self) -> None:
        if not self._health.up:
            self._health = Health(up=True, reason="", since=self._clock_or(self._health.since))

    def _clock_or(self, otherwise: datetime) -> datetime:
        try:
            return self._clock.now()
        except errors.Refusal:  # what held the train may be the clock
            return otherwise

    def _train(self, acts: Sequence[Act[Any]]) -> list[Committed[Any]]:
        if not acts:
            self._write_nothing()
            return []
        if self._seen is None:
            self._agreed()
        begun = time.perf_counter()
        reads: dict[Mapping[Any], dict[str, None]] = {}
        for act in acts:
            for kind, keys in act.reads.items():
                reads.setdefault(MAPPINGS[kind], {}).update(dict.fromkeys(keys))
        wanted = {mapping: list(keys) for mapping, keys in reads.items() if keys}
        (size, edge, last), rows = self._database.begin(list(wanted.items()))
        try:
            self._require_growth(size, bytes(edge))
            facts = _WorkingSet(self._database.fetch, size)
            for (mapping, keys), found in zip(wanted.items(), rows, strict=True):
                facts.load(mapping, keys, found)
            at = self._time(moment(last))
            train = _Train(Growth(Edge.from_bytes(size, bytes(edge))))
            entries: list[LogEntry] = []
            results: list[Committed[Any]] = []
            for act in acts:
                answer, leaves = self._decide(act, facts, train, at)
                entries += leaves
                results.append(_Committed(answer, leaves, train))
            if not entries and not facts.new and not facts.changed:
                self._database.rollback()
                return results
            inserts: Writes = [
                (mapping, [mapping.row(v) for v in values.values()]) for mapping, values in facts.new.items()
            ]
            updates: Writes = [
                (mapping, [mapping.row(v) for v in values.values()])
                for mapping, values in facts.changed.items()
            ]
            log_inserts, head = self._append(train, size, entries, at)
        except BaseException:
            self._database.rollback()
            raise
        self._database.commit([*inserts, *log_inserts], [*updates, (HEAD, [head])])
        self._seen = (train.growth.size, train.growth.edge.to_bytes())
        self._succeeded()
        self._observer.committed(len(acts), train.kinds, time.perf_counter() - begun)
        return results

    def _write_nothing(self) -> None:
        """Write the head as it is: the train of a probe."""
        self._agreed()
        (size, edge, last), _ = self._database.begin([])
        try:
            self._require_growth(size, bytes(edge))
            self._require_end(size)
        except BaseException:
            self._database.rollback()
            raise
        try:
            self._database.commit([], [(HEAD, [(1, size, bytes(edge), last)])])
        except Broken as refused:
            raise errors.IntegrityFailure(
                f"the database refuses to write the log's head: {refused}"
            ) from refused
        self._succeeded()

    def _require_growth(self, size: int, edge: bytes) -> None:
        """Refuse a log that is not the one this process saw: a backup was put back, or a replica took over.

        To go on would be to sign a second history.
        """
        if self._seen is None:
            self._require_signed(size, edge)
            self._require_end(size)
            self._seen = (size, edge)
        seen, seen_edge = self._seen
        if size < seen or (size == seen and edge != seen_edge):
            raise errors.IntegrityFailure(
                f"the log has {size} entries; this process saw {seen}, or others: the database was put back"
            )
        self._seen = (size, edge)

    def _require_signed(self, size: int, edge: bytes) -> None:
        """Refuse a head its newest checkpoint does not say: what grew from it would contradict the log."""
        rows = self._database.fetch_all("SELECT note FROM checkpoint ORDER BY size DESC LIMIT 1", ())
        signed = (0, EMPTY_ROOT)
        if rows:
            checkpoint = open_note(rows[0][0], VerifierKey.parse(self.realm.vkey))
            signed = (checkpoint.size, checkpoint.root)
        if signed != (size, Edge.from_bytes(size, edge).root()):
            raise errors.IntegrityFailure(
                f"the log's head ({size} entries) is not what its newest checkpoint says"
            )

    def _require_end(self, size: int) -> None:
        """Refuse a log with leaves beyond its head: an entry is in their place, or never gets one."""
        rows = self._database.fetch_all("SELECT idx FROM leaf WHERE idx >= %s ORDER BY idx LIMIT 1", (size,))
        if rows:
            raise errors.IntegrityFailure(
                f"the log's head speaks of {size} entries, and there is an entry {rows[0][0]}:"
                " 'birthmark check' says what else is not as it was"
            )

    def _time(self, last: datetime) -> datetime:
        """Return the time of this train: never before the last one's."""
        now = self._clock.now()
        if now < last - BACKWARD_TOLERANCE:
            raise errors.Unavailable(
                f"the clock says {time_text(now)}, which is before the log's last entry ({time_text(last)}):"
                " the line is held until the clock is right"
            )
        return max(now.replace(microsecond=now.microsecond // 1000 * 1000), last)

    def _decide(
        self, act: Act[Any], facts: _WorkingSet, train: _Train, at: datetime
    ) -> tuple[Any, Sequence[LogEntry]]:
        view = _View(facts, train.growth.size)
        try:
            decision = act.decide(view, at)
            encoded = self._encode(act, decision.entries, at)
        except errors.Refusal as refusal:
            if refusal.retryable:
                return refusal, ()
            return self._refuse(act, facts, train, at, refusal)
        except Exception:
            # A fault of ours in one act must not take the train with it; it is logged like a refusal.
            log.exception("an act of %s failed", act.actor)
            return self._refuse(act, facts, train, at, errors.Fault(_INTERNAL))
        view.merge()
        return decision.answer, _append_entries(decision, encoded, train)

    def _refuse(
        self, act: Act[Any], facts: _WorkingSet, train: _Train, at: datetime, refusal: errors.Refusal
    ) -> tuple[errors.Refusal, Sequence[LogEntry]]:
        view = _View(facts, train.growth.size)
        try:
            decision = act.refuse(view, at, refusal)
            encoded = self._encode(act, decision.entries, at)
        except errors.Refusal as unrecorded:
            return unrecorded, ()  # nothing of the act is committed, not even that it was refused
        except Exception:
            log.exception("a refusal of %s could not be put on record", act.actor)
            return errors.Fault(_INTERNAL), ()
        view.merge()
        return decision.answer, _append_entries(decision, encoded, train)

    def _encode(self, act: Act[Any], entries: Sequence[tuple[str, Any]], at: datetime) -> list[bytes]:
        common: dict[str, Any] = {
            "v": 1,
            "at": time_text(at),
            "realm": self.realm.name,
            "environment": self.realm.environment,
            "actor": act.actor,
        }
        if act.seq is not None:
            common["seq"] = act.seq
        if act.operator is not None:
            common["operator"] = act.operator
        return [encode({**fields, **common, "kind": kind}) for kind, fields in entries]

    def _signed(self, body: bytes) -> bytes:
        try:
            return self._sign(body)
        except errors.Refusal as cause:
            # Whatever is wrong with the log's key, the requests are not to blame, and may come again.
            raise errors.Unavailable(f"the log's key cannot sign: {cause}") from cause

    def _append(
        self, train: _Train, size: int, entries: Sequence[LogEntry], at: datetime
    ) -> tuple[Writes, Row]:
        """Return the log's rows for a train, its checkpoint signed, and the new head."""
        growth = train.growth
        head = (1, growth.size, growth.edge.to_bytes(), milliseconds(at))
        if not entries:
            return [], head
        hashes = [leaf_hash(item.entry) for item in entries]
        leaves = [(item.index, digest, item.entry) for item, digest in zip(entries, hashes, strict=True)]
        tiles = full_tiles(self._database.fetch_all, size, hashes)
        checkpoint = Checkpoint(self.realm.origin, growth.size, growth.root())
        train.note = sign_note(checkpoint.body(), self.realm.origin, self._public, self._signed)
        rows: list[tuple[TableShape, Sequence[Row]]] = [
            (LEAF, leaves),
            (CHECKPOINT, [(growth.size, train.note)]),
        ]
        if tiles:
            rows.append((TILE, tiles))
        return rows, head
