"""The log as everyone may read it: checkpoint and tiles (C2SP tlog-tiles), files that never change.

Tiles come first and the checkpoint last, so that whoever reads a checkpoint finds every tile under it.  A
full tile is written once; a partial one belongs to a checkpoint and goes when its tile is full.  The entries
themselves say what was made where, and are published only where that is wanted: the tiles of hashes suffice
to check every proof and to witness that the log only grows.

Files that somebody took away are published again.  A look at every tile costs one open each, so that is done
when it is asked for, and when the checkpoint itself is gone.
"""

from collections.abc import Callable

from birthmark.floor.locations import CHECKPOINT_PATH, LOG_PREFIX
from birthmark.ledger.checkpoint import VerifierKey, open_note
from birthmark.ledger.tiles import TILE_WIDTH, encode_bundle, entries_path, tile_path
from birthmark.ports import Log, Publication

__all__ = ["publish_log"]

_HASH = 32
"""Octets of a hash in a tile."""
_LENGTH = 2
"""Octets before each entry of a bundle."""


def publish_log(
    note: str,
    log: Log,
    publication: Publication,
    vkey: VerifierKey,
    published: int,
    *,
    entries: bool,
    whole: bool = False,
) -> int:
    """Publish a checkpoint and what belongs to it; return its size.

    Args:
        note: the log's newest checkpoint; empty if it has none.
        log: the log.
        publication: where to.
        vkey: the log's key.
        published: size of the log as it is published, which the log has grown from.
        entries: publish the entries, too.
        whole: look whether every tile is there, and not at what has grown alone.

    Raises:
        errors.IntegrityFailure: the checkpoint is not the log's.
    """
    size = open_note(note, vkey).size if note else 0
    with publication.read(CHECKPOINT_PATH) as octets:
        known = octets is not None and bytes(octets) == note.encode()
        whole = whole or (octets is None and published > 0)
    if size == published and not whole and (known or not note):
        return size
    level = 0
    while size >> 8 * level:

        def hashes(start: int, end: int, level: int = level) -> bytes:
            return b"".join(log.hashes(level, start, end))

        def name(n: int, width: int, level: int = level) -> str:
            return tile_path(level, n, width)

        grown = (published >> 8 * level, size >> 8 * level)
        if whole:
            _restore_level(publication, name, hashes, grown[0], _HASH)
        _publish_level(publication, name, hashes, *grown)
        level += 1
    if entries:

        def bundle(start: int, end: int) -> bytes:
            return encode_bundle(one.entry for one in log.entries(start, end))

        if whole:
            _restore_level(publication, entries_path, bundle, published, _LENGTH)
        _publish_level(publication, entries_path, bundle, published, size)
    if note and not known:
        publication.publish(CHECKPOINT_PATH, (note.encode(),))
    return size


def _restore_level(
    publication: Publication,
    name: Callable[[int, int], str],
    contents: Callable[[int, int], bytes],
    before: int,
    least: int,
) -> None:
    """Publish again what is missing, or too short, of a level that had ``before`` nodes.

    A node takes ``least`` octets or more.
    """
    for start in range(0, before, TILE_WIDTH):
        end = min(start + TILE_WIDTH, before)
        path = LOG_PREFIX + name(start // TILE_WIDTH, end - start)
        with publication.read(path) as octets:
            there = octets is not None and len(octets) >= least * (end - start)
        if not there:
            publication.publish(path, (contents(start, end),))


def _publish_level(
    publication: Publication,
    name: Callable[[int, int], str],
    contents: Callable[[int, int], bytes],
    before: int,
    now: int,
) -> None:
    """Publish the tiles of one level that has grown from ``before`` nodes to ``now``."""
    for n in range(before // TILE_WIDTH, now // TILE_WIDTH):
        start = n * TILE_WIDTH
        publication.publish(LOG_PREFIX + name(n, TILE_WIDTH), (contents(start, start + TILE_WIDTH),))
        publication.withdraw(f"{LOG_PREFIX}{name(n, TILE_WIDTH)}.p")
    if (width := now % TILE_WIDTH) and now != before:
        n = now // TILE_WIDTH
        publication.publish(LOG_PREFIX + name(n, width), (contents(n * TILE_WIDTH, now),))
