"""What a check has seen, and how it reads a record that somebody may have spoilt.

``scan`` and ``get`` survive rows that are none of ours: those are findings, never a crash.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from birthmark.ledger.entry import time_text
from birthmark.ports import Store

__all__ = ["FINDINGS_SHOWN", "PROGRESS_EVERY", "Progress", "Report", "get", "scan", "time_or_none"]

V = TypeVar("V")
Progress = Callable[[str, int], None]
"""Told the stage and how many items of it are done."""
FINDINGS_SHOWN = 1000
PROGRESS_EVERY = 1000
_UNREADABLE = (ValueError, TypeError, OverflowError)
"""What a row that is none of ours comes to when it is read: a status there is not, a year 99999."""


@dataclass(slots=True)
class Report:
    """What the check saw."""

    findings: list[str] = field(default_factory=list)
    """What contradicts itself."""
    notes: list[str] = field(default_factory=list)
    """What somebody should ask about."""
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        """True if nothing contradicts itself."""
        return not self.findings

    def find(self, finding: str) -> None:
        """Add a finding; beyond a thousand they are only counted."""
        self.counts["findings"] += 1
        if len(self.findings) < FINDINGS_SHOWN:
            self.findings.append(finding)

    def compare(self, what: str, **values: tuple[object, object]) -> None:
        """Find each value, by its name, that is stored otherwise than the log says: (stored, said)."""
        for name, (stored, said) in values.items():
            if stored != said:
                self.find(f"{what}: its {name} is {str(stored)[:100]}, the log says {str(said)[:100]}")


def scan(report: Report, store: Store, kind: type[V]) -> Iterator[V]:
    """Iterate over all values of a kind, as far as they can be read."""
    values = store.scan(kind)
    while True:
        try:
            value = next(values)
        except StopIteration:
            return
        except _UNREADABLE as cause:
            report.find(f"a stored {kind.__name__} cannot be read, nor what comes after it: {cause}")
            return
        yield value


def get(store: Store, kind: type[V], key: str) -> V | None:
    """Return a value; None for one that cannot be read, which ``scan`` has told."""
    try:
        return store.look({kind: (key,)}).get(kind, key)
    except _UNREADABLE:
        return None


def time_or_none(at: datetime | None) -> str | None:
    """Return a time as entries spell it."""
    return None if at is None else time_text(at)
