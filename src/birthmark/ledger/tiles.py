"""Names and contents of the static resources a log publishes (C2SP tlog-tiles).

A tile holds up to 256 hashes of one tree level, an entry bundle up to 256 entries; both are written once and
cached for ever.  Here are only names and encodings: which tiles exist follows from the tree's size, and who
keeps and serves them is for others.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from birthmark import errors

__all__ = [
    "ENTRY_LIMIT",
    "TILE_WIDTH",
    "TileName",
    "encode_bundle",
    "entries_path",
    "parse_path",
    "tile_path",
]

TILE_WIDTH = 256
"""Hashes in a full tile, entries in a full bundle."""

ENTRY_LIMIT = 65_535
"""Largest entry, in octets: its length is an unsigned 16-bit number."""

_INDEX_LIMIT = 1 << 63

_NAME = re.compile(
    r"tile/(?P<level>entries|0|[1-5]?[1-9]|[1-5]0|6[0-3])"
    r"/(?P<index>(?:x[0-9]{3}/){0,6}[0-9]{3})"
    r"(?:\.p/(?P<width>[1-9][0-9]{0,2}))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TileName:
    """What a path names: a tile, or an entry bundle where ``level`` is None."""

    level: int | None
    index: int
    width: int


def tile_path(level: int, n: int, width: int = TILE_WIDTH) -> str:
    """Name the tile ``n`` of a level: ``tile/0/x001/x234/067``, with ``.p/W`` when it holds W < 256 hashes.

    Raises:
        ValueError: there is no such tile.
    """
    if not 0 <= level <= 63:
        raise ValueError(f"there are no tiles on level {level}")
    return f"tile/{level}/{_index_and_width(n, width)}"


def entries_path(n: int, width: int = TILE_WIDTH) -> str:
    """Name the entry bundle ``n``: ``tile/entries/x001/x234/067``, with ``.p/W`` for W < 256 entries.

    Raises:
        ValueError: there is no such bundle.
    """
    return f"tile/entries/{_index_and_width(n, width)}"


def _index_and_width(n: int, width: int) -> str:
    if not 0 <= n < _INDEX_LIMIT or not 1 <= width <= TILE_WIDTH:
        raise ValueError(f"there is no tile {n} of width {width}")
    path = f"{n % 1000:03d}"
    while n := n // 1000:
        path = f"x{n % 1000:03d}/{path}"
    return path if width == TILE_WIDTH else f"{path}.p/{width}"


def parse_path(path: str) -> TileName:
    """Read a path that ``tile_path`` or ``entries_path`` made.

    Raises:
        errors.MalformedRequest: it names no tile, or not in the one spelling it has.
    """
    match = _NAME.fullmatch(path)
    if match is None:
        raise errors.MalformedRequest("the path names no tile")
    level = None if match["level"] == "entries" else int(match["level"])
    index = int(match["index"].replace("/", "").replace("x", ""))
    width = int(match["width"] or TILE_WIDTH)
    # Zero groups in front, an index out of range and the width 256 spelled out have no place in a name.
    try:
        canonical = entries_path(index, width) if level is None else tile_path(level, index, width)
    except ValueError as wrong:
        raise errors.MalformedRequest("the path names no tile") from wrong
    if canonical != path:
        raise errors.MalformedRequest("the path names no tile")
    return TileName(level=level, index=index, width=width)


def encode_bundle(entries: Iterable[bytes]) -> bytes:
    """Join entries, each behind its length as an unsigned 16-bit big-endian number.

    Raises:
        errors.TooLarge: an entry has more than 65 535 octets.
    """
    parts = []
    for entry in entries:
        if len(entry) > ENTRY_LIMIT:
            raise errors.TooLarge(f"an entry of {len(entry)} octets is larger than {ENTRY_LIMIT}")
        parts.append(len(entry).to_bytes(2, "big"))
        parts.append(entry)
    return b"".join(parts)
