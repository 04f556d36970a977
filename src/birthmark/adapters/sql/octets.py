"""One field of many rows, joined: what ``Store.octets`` answers, page by page in the order of the keys."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any

from birthmark.adapters.sql.database import Row
from birthmark.adapters.sql.rows import Mapping

__all__ = ["PIECE_ROWS", "JoinedOctets", "joining", "page_joined"]

PIECE_ROWS = 10_000
"""Rows of a page."""


class JoinedOctets:
    """See ``ports.Octets``."""

    __slots__ = ("_page", "_pages", "_prefix", "_query", "_sum", "_until", "as_of")

    def __init__(
        self,
        pages: Callable[[str, Sequence[Any]], list[Row]],
        query: Callable[[str, Sequence[Any]], list[Row]],
        statements: tuple[str, str],
        bounds: tuple[str, str],
        as_of: datetime,
    ) -> None:
        self._pages = pages
        self._query = query
        self._page, self._sum = statements
        self._prefix, self._until = bounds
        self.as_of = as_of

    @property
    def size(self) -> int:
        """See ``ports.Octets.size``."""
        ((size,),) = self._query(self._sum, (self._prefix, self._until))
        return int(size)

    def pieces(self) -> Iterator[bytes]:
        """See ``ports.Octets.pieces``."""
        # No key is the prefix itself: all have something behind it.
        low, count = self._prefix, PIECE_ROWS
        while count == PIECE_ROWS:
            ((count, low, piece),) = self._pages(self._page, (low, self._until))
            if piece:
                yield piece


def page_joined(mapping: Mapping[Any], field: str) -> str:
    """Return the query for a page of octets: how many rows, the last key, the field of all joined."""
    key = mapping.columns[0]
    page = (
        f"SELECT {key}, {field} FROM {mapping.table} WHERE {key} > %s AND {key} < %s"
        f" ORDER BY {key} LIMIT {PIECE_ROWS}"
    )
    return f"SELECT count(*), max({key}), string_agg({field}, ''::bytea ORDER BY {key}) FROM ({page}) page"


def joining(
    query: Callable[[str, Sequence[Any]], list[Row]], mapping: Mapping[Any], field: str
) -> Callable[[str, Sequence[Any]], list[Row]]:
    """Return what answers the same where the database cannot join octets."""
    key = mapping.columns[0]

    def page(_statement: str, bounds: Sequence[Any]) -> list[Row]:
        rows = query(
            f"SELECT {key}, {field} FROM {mapping.table} WHERE {key} > %s AND {key} < %s"
            f" ORDER BY {key} LIMIT {PIECE_ROWS}",
            bounds,
        )
        return [(len(rows), rows[-1][0] if rows else None, b"".join([row[1] for row in rows]))]

    return page
