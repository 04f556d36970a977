"""The log as it lies in the database: leaves, the roots of full tiles, and every checkpoint ever signed.

A *tile* at level L covers 256 nodes of level 8·L (C2SP tlog-tiles).  Only the root of each full tile is kept
beside the leaf hashes: any node of the tree is at most 256 hashes away from one of them, so proofs for old
leaves cost a bounded number of reads, and a train writes at the right edge only.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from birthmark import errors
from birthmark.adapters.sql.database import Database
from birthmark.adapters.sql.rows import moment
from birthmark.ledger.checkpoint import VerifierKey, open_note
from birthmark.ledger.merkle import complete_root, inclusion_proof
from birthmark.ledger.proof import TlogProof
from birthmark.ports import LogEntry

__all__ = ["CHECKPOINT", "HEAD", "LEAF", "TILE", "LogReader", "full_tiles"]

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
_HIGHEST = 7
"""Level of the highest tile that a log of less than 2**64 entries has."""
_LEAVES, _TILES, _FEW = (
    "SELECT idx FROM leaf WHERE",
    "SELECT level, idx FROM tile WHERE",
    "ORDER BY idx LIMIT 8",
)
Query = Callable[[str, Sequence[Any]], list[Sequence[Any]]]


@dataclass(frozen=True, slots=True)
class _Shape:
    table: str
    columns: tuple[str, ...]
    types: tuple[str, ...]


HEAD = _Shape("head", ("id", "size", "edge", "at"), ("bigint", "bigint", "bytea", "bigint"))
LEAF = _Shape("leaf", ("idx", "hash", "entry"), ("bigint", "bytea", "bytea"))
TILE = _Shape("tile", ("level", "idx", "root"), ("bigint", "bigint", "bytea"))
CHECKPOINT = _Shape("checkpoint", ("size", "note"), ("bigint", "text"))


def _hashes(query: Query, level: int, start: int, end: int) -> list[bytes]:
    """Return the nodes [start, end) of tile level ``level``: leaf hashes, or roots of the tiles below."""
    if level == 0:
        rows = query("SELECT hash FROM leaf WHERE idx >= %s AND idx < %s ORDER BY idx", (start, end))
    else:
        rows = query(
            "SELECT root FROM tile WHERE level = %s AND idx >= %s AND idx < %s ORDER BY idx",
            (level - 1, start, end),
        )
    if len(rows) != end - start:
        raise errors.IntegrityFailure(f"the log lacks hashes between {start} and {end} of tile level {level}")
    return [bytes(row[0]) for row in rows]


def full_tiles(query: Query, first: int, leaves: Sequence[bytes]) -> list[tuple[int, int, bytes]]:
    """Return the tiles that ``leaves``, appended from index ``first`` on, complete: (level, index, root)."""
    tiles: list[tuple[int, int, bytes]] = []
    level, start, fresh = 0, first, list(leaves)
    while fresh:
        roots: list[bytes] = []
        end = start + len(fresh)
        for index in range(start >> TILE_HEIGHT, end >> TILE_HEIGHT):
            low, high = index << TILE_HEIGHT, (index + 1) << TILE_HEIGHT
            old = _hashes(query, level, low, start) if low < start else []
            root = complete_root(old + fresh[max(low - start, 0) : high - start])
            tiles.append((level, index, root))
            roots.append(root)
        start, fresh, level = start >> TILE_HEIGHT, roots, level + 1
    return tiles


class LogReader:
    """Reads the log: entries, checkpoints and proofs, from committed rows only."""

    def __init__(self, database: Database, vkey: str) -> None:
        self._database = database
        self._vkey = VerifierKey.parse(vkey)

    def node(self, level: int, index: int) -> bytes:
        """Return the root of the complete subtree of leaves [index·2^level, (index+1)·2^level)."""
        tile_level, height = divmod(level, TILE_HEIGHT)
        hashes = _hashes(self._database.query, tile_level, index << height, (index + 1) << height)
        return complete_root(hashes)

    def hashes(self, level: int, start: int, end: int) -> list[bytes]:
        """Return the nodes [start, end) of level 8·``level``."""
        return _hashes(self._database.query, level, start, end)

    def size(self) -> int:
        """Return the number of entries."""
        (row,) = self._database.query("SELECT size FROM head WHERE id = 1")
        size: int = row[0]
        return size

    def moved_at(self) -> datetime:
        """Return the time of the last commit."""
        ((at,),) = self._database.query("SELECT at FROM head WHERE id = 1")
        return moment(at)

    def strays(self) -> list[str]:
        """Return what lies in the log's tables and is none of its entries, the first few of each table."""
        size, query = self.size(), self._database.query
        found = [f"entry {index}" for (index,) in query(f"{_LEAVES} idx < 0 {_FEW}")]
        found += [f"entry {index}" for (index,) in query(f"{_LEAVES} idx >= %s {_FEW}", (size,))]
        for level in range(_HIGHEST + 1):
            end = size >> TILE_HEIGHT * (level + 1)
            rows = query(f"{_TILES} level = %s AND (idx < 0 OR idx >= %s) {_FEW}", (level, end))
            found += [f"tile {index} of level {level}" for _, index in rows]
        rows = query(f"{_TILES} level < 0 OR level > %s {_FEW}", (_HIGHEST,))
        return found + [f"tile {index} of level {level}" for level, index in rows]

    def entries(self, start: int = 0, end: int | None = None) -> Iterator[LogEntry]:
        """Iterate over entries [start, end)."""
        at, stop = start, self.size() if end is None else end
        while at < stop:
            rows = self._database.query(
                "SELECT idx, entry FROM leaf WHERE idx >= %s AND idx < %s ORDER BY idx",
                (at, min(at + 1024, stop)),
            )
            if not rows:
                return
            for row in rows:
                yield LogEntry(index=row[0], entry=bytes(row[1]))
            at = rows[-1][0] + 1

    def checkpoints(self, after: int = -1) -> Iterator[tuple[int, str]]:
        """Iterate over all checkpoints ever signed, as (size, note), oldest first."""
        while rows := self._database.query(
            "SELECT size, note FROM checkpoint WHERE size > %s ORDER BY size LIMIT 1024", (after,)
        ):
            for row in rows:
                yield row[0], row[1]
            after = rows[-1][0]

    def checkpoint(self) -> str:
        """Return the newest checkpoint."""
        rows = self._database.query("SELECT note FROM checkpoint ORDER BY size DESC LIMIT 1")
        if not rows:
            raise errors.NotFound("the log has no checkpoint yet")
        note: str = rows[0][0]
        return note

    def token(self, index: int) -> str:
        """Return the proof of an entry under the first checkpoint that covers it."""
        rows = self._database.query("SELECT entry FROM leaf WHERE idx = %s", (index,))
        notes = self._database.query(
            "SELECT note FROM checkpoint WHERE size > %s ORDER BY size LIMIT 1", (index,)
        )
        if not rows or not notes:
            raise errors.NotFound(f"the log has no entry {index}")
        note: str = notes[0][0]
        path = inclusion_proof(index, open_note(note, self._vkey).size, self.node)
        return TlogProof(index, bytes(rows[0][0]), path, note).encode()
