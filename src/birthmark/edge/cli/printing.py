"""How the commands print: aligned columns or JSON on standard output, progress on standard error.

Nothing is cut off, so that output can be searched and piped; what was stored by others is shown without
control characters, so that no hardware id or reason can talk to the terminal.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from birthmark.ledger.entry import time_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

__all__ = ["Advance", "columns", "fields", "json_text", "line", "progress", "shown", "stages", "warn"]

_STYLES = {
    "active": "green",
    "open": "green",
    "released": "green",
    "ok": "green",
    "held": "yellow",
    "suspended": "yellow",
    "soon": "yellow",
    "warning": "yellow",
    "scrapped": "red",
    "revoked": "red",
    "retired": "red",
    "closed": "dim",
    "failed": "red",
}


class Advance(Protocol):
    """Tells a progress display how far things are."""

    def __call__(self, done: int, total: int, /) -> None:
        """Take notice of it."""
        ...


def shown(value: object) -> str:
    """Return a value as a cell shows it."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(value)) or "-"


def json_text(value: object) -> str:
    """Return a value as JSON for programs: times as the log spells them, octets as hex."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=_json_default)


def _json_default(value: object) -> object:
    if isinstance(value, datetime):
        return time_text(value)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, set | frozenset):
        return sorted(value)
    return str(value)


def line(text: str = "") -> None:
    """Print one line."""
    sys.stdout.write(text + "\n")


def warn(text: str) -> None:
    """Print one line on standard error."""
    sys.stderr.write(text + "\n")


def columns(heads: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str = "none") -> None:
    """Print a table in aligned columns, however wide."""
    cells = [[shown(value) for value in row] for row in rows]
    if not cells:
        line(empty)
        return
    widths = [max(len(head), *(len(row[at]) for row in cells)) for at, head in enumerate(heads)]
    console = _console()
    console.print(_padded(heads, widths, style="bold"))
    for row in cells:
        console.print(_padded(row, widths))


def fields(values: Mapping[str, object]) -> None:
    """Print names and values, one a line."""
    from rich.text import Text  # noqa: PLC0415  # what prints JSON or one line does without

    width = max(map(len, values), default=0)
    console = _console()
    for name, value in values.items():
        text = shown(value)
        console.print(Text(f"{name:<{width}}  ").append(text, style=_STYLES.get(text, "")))


def _console() -> "Console":
    from rich.console import Console  # noqa: PLC0415  # likewise

    return Console(soft_wrap=True, highlight=False)


def _padded(row: Sequence[str], widths: Sequence[int], *, style: str = "") -> "Text":
    from rich.text import Text  # noqa: PLC0415  # likewise

    text = Text()
    for at, cell in enumerate(row):
        last = at == len(row) - 1
        text.append(cell, style=style or _STYLES.get(cell, ""))
        text.append("" if last else " " * (widths[at] - len(cell) + 2))
    return text


def _watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def progress(title: str) -> Iterator[Advance]:
    """Show a bar on standard error while something long goes on; nothing where that is no terminal."""
    if not _watched():
        yield lambda _done, _total: None
        return
    from rich.console import Console  # noqa: PLC0415  # for who looks on
    from rich.progress import (  # noqa: PLC0415  # likewise
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def stages() -> Iterator[Callable[[str, int], None]]:
    """Show on standard error which stage is under way; nothing where that is no terminal."""
    if not _watched():
        yield lambda _stage, _done: None
        return
    from rich.console import Console  # noqa: PLC0415  # for who looks on

    with Console(stderr=True).status("") as status:
        yield lambda stage, done: status.update(f"{stage}: {done}")
