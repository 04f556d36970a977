"""Read a log from its first entry to its last, and prove what was read (SPEC E6).

Whoever asks what happened reads every entry, in order, and computes the tree over them again: the root has
to be that of the newest signed checkpoint.  So nothing that is told was changed, nothing about it was left
out, and no index, column or stored hash was believed.  A proof of any entry that was kept comes from the same
pass.

The same code reads a live log and an exported bundle.  What an entry says is for others; ``skim`` reads its
JSON without asking whether it is in its canonical spelling, because the root vouches for the octets.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from birthmark import errors
from birthmark.floor.realm import Realm
from birthmark.ledger.bundle import Bundle
from birthmark.ledger.checkpoint import Checkpoint, VerifierKey, open_note
from birthmark.ledger.merkle import Frontier, complete_root, inclusion_proof, leaf_hash
from birthmark.ledger.proof import TlogProof
from birthmark.ports import Log
from birthmark.services.entry_fields import Entry

__all__ = ["LogCopy", "Told", "Walked", "log_of", "log_of_bundle", "skim", "walk"]

Told = Callable[[int, int], None]
"""Told how many entries are read, and of how many."""
_HEIGHT = 8
"""Leaf hashes are kept by tiles of 2**8: only those of tiles with something to prove."""
_TELL_EVERY = 1 << 14
_IN_ALL = ("kind", "at", "actor")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogCopy:
    """A log that can be read from its beginning."""

    vkey: VerifierKey
    note: str
    """The checkpoint to read up to: the newest (C2SP signed note)."""
    entries: Callable[[int], Iterable[bytes]] = field(repr=False)
    """Returns the first so many entries."""


def log_of(log: Log, realm: Realm) -> LogCopy:
    """Return a realm's own log, as it is now.

    Raises:
        errors.NotFound: it has no checkpoint yet.
    """
    notes = [note for _, note in log.checkpoints(log.size() - 1)]
    if not notes:
        raise errors.NotFound("no checkpoint covers the log: 'birthmark check' says more")

    def entries(size: int) -> Iterable[bytes]:
        return (item.entry for item in log.entries(0, size))

    return LogCopy(vkey=VerifierKey.parse(realm.vkey), note=notes[-1], entries=entries)


def log_of_bundle(bundle: Bundle, vkey: VerifierKey) -> LogCopy:
    """Return the log in an exported bundle, which stays open; ``vkey`` is from somebody who is trusted."""

    def entries(size: int) -> Iterable[bytes]:
        for index, entry in enumerate(bundle.entries()):
            if index == size:
                return
            yield entry

    return LogCopy(vkey=vkey, note=bundle.checkpoint, entries=entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class Walked:
    """A log that was read, and what proofs of its entries need."""

    checkpoint: Checkpoint
    note: str
    _roots: list[bytes] = field(repr=False)
    """Of the full tiles."""
    _leaves: dict[int, bytes] = field(repr=False)
    """Leaf hashes, joined, of the tiles that something was kept of, and of the last, unfinished one."""

    def proof(self, index: int, entry: bytes) -> str:
        """Return the proof of an entry that was kept, under the checkpoint (C2SP ``.tlog-proof``)."""
        path = inclusion_proof(index, self.checkpoint.size, self._node)
        return TlogProof(index, entry, path, self.note).encode()

    def _node(self, level: int, index: int) -> bytes:
        if level >= _HEIGHT:
            height = level - _HEIGHT
            return complete_root(self._roots[index << height : (index + 1) << height])
        first = index << level
        tile, start = first >> _HEIGHT, first % (1 << _HEIGHT)
        hashes = self._leaves[tile]
        return complete_root([hashes[32 * at : 32 * at + 32] for at in range(start, start + (1 << level))])


def walk(copy: LogCopy, take: Callable[[int, bytes], bool], told: Told = lambda _done, _size: None) -> Walked:
    """Read a whole log; nothing of what ``take`` made of it may be believed before this returns.

    Args:
        copy: the log.
        take: given each entry and its index; returns whether a proof of it may be asked for.
        told: how far it is.

    Raises:
        errors.IntegrityFailure: the checkpoint is not the log's, or the entries do not lead to it.
    """
    checkpoint = open_note(copy.note, copy.vkey)
    roots, kept = list[bytes](), dict[int, bytes]()
    tile: list[bytes] = []
    wanted, size = False, 0
    for entry in copy.entries(checkpoint.size):
        wanted |= take(size, entry)
        size += 1
        tile.append(leaf_hash(entry))
        if len(tile) == 1 << _HEIGHT:
            if wanted:
                kept[len(roots)] = b"".join(tile)
            roots.append(complete_root(tile))
            tile.clear()
            wanted = False
        if size % _TELL_EVERY == 0:
            told(size, checkpoint.size)
    kept[len(roots)] = b"".join(tile)
    told(size, checkpoint.size)
    if size != checkpoint.size or _root(roots, tile) != checkpoint.root:
        raise errors.IntegrityFailure(
            f"the log's entries do not lead to its checkpoint over {checkpoint.size} entries"
        )
    return Walked(checkpoint=checkpoint, note=copy.note, _roots=roots, _leaves=kept)


def _root(tiles: list[bytes], rest: list[bytes]) -> bytes:
    """Return the root of a tree of full tiles and the leaves of the last one (RFC 6962 section 2.1).

    A split of that section falls on a power of two, so above the tiles it is the tree over their roots, with
    the unfinished tile as its last leaf.
    """
    above, last = Frontier(), Frontier()
    for leaf in rest:
        last.append(leaf)
    for root in tiles:
        above.append(root)
    if rest:
        above.append(last.root())
    return above.root()


def skim(entry: bytes) -> Entry:
    """Read an entry's JSON; kind, time and actor are there, and are texts.

    Raises:
        errors.MalformedRequest: it is no such JSON object.
    """
    try:
        value = json.loads(entry)
    except (ValueError, RecursionError) as wrong:
        raise errors.MalformedRequest("not a JSON object of the kind that entries are") from wrong
    if type(value) is not dict or not all(type(value.get(name)) is str for name in _IN_ALL):
        raise errors.MalformedRequest("not a JSON object with a kind, a time and an actor")
    return value
