"""The log as everyone may read it: checkpoint and tiles (C2SP tlog-tiles), files that never change.

Tiles come first and the checkpoint last, so that whoever reads a checkpoint finds every tile under it.  A
full tile is written once; a partial one belongs to a checkpoint and goes when its tile is full.  The entries
themselves say what was made where, and are published only where that is wanted: the tiles of hashes suffice
to check every proof and to witness that the log only grows.
"""

from collections.abc import Callable

from birthmark.floor.locations import CHECKPOINT_PATH, LOG_PREFIX
from birthmark.ledger.checkpoint import VerifierKey, open_note
from birthmark.ledger.tiles import TILE_WIDTH, encode_bundle, entries_path, tile_path
from birthmark.ports import Log, Publication

__all__ = ["publish_log"]


def publish_log(
    note: str, log: Log, publication: Publication, vkey: VerifierKey, published: int, *, entries: bool
) -> int:
    """Publish a checkpoint and what belongs to it; return its size.

    Args:
        note: the log's newest checkpoint; empty if it has none.
        log: the log.
        publication: where to.
        vkey: the log's key.
        published: size of the log as it is published, which the log has grown from.
        entries: publish the entries, too.

    Raises:
        errors.IntegrityFailure: the checkpoint is not the log's.
    """
    size = open_note(note, vkey).size if note else 0
    if size == published:
        return size
    level = 0
    while size >> 8 * level:

        def hashes(start: int, end: int, level: int = level) -> bytes:
            return b"".join(log.hashes(level, start, end))

        def name(n: int, width: int, level: int = level) -> str:
            return tile_path(level, n, width)

        _publish_level(publication, name, hashes, published >> 8 * level, size >> 8 * level)
        level += 1
    if entries:

        def bundle(start: int, end: int) -> bytes:
            return encode_bundle(one.entry for one in log.entries(start, end))

        _publish_level(publication, entries_path, bundle, published, size)
    publication.publish(CHECKPOINT_PATH, (note.encode(),))
    return size


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
