"""Allow-lists from CSV files: every line is judged before the first is taken in (SPEC C9).

A file has a column headed ``hardware_id``, or no heading and the ids in its first column.  Nothing is
repaired: what the rule of the run refuses is shown with its line number, so that the right person can mend
the file it came from.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from birthmark import errors
from birthmark.edge.cli.printing import Advance
from birthmark.edge.cli.spreadsheets import column
from birthmark.floor.hardware_ids import HardwareIdRule
from birthmark.floor.runs import AllowList
from birthmark.ports import Store, UseCase, carry
from birthmark.services.acts import Caller
from birthmark.services.runs import IMPORT_CHUNK, Runs

__all__ = ["SHOWN_COMPLAINTS", "Listed", "import_list", "read_list", "shown_complaints"]

HEADING = "hardware_id"
SHOWN_COMPLAINTS = 20
"""How many wrong lines are shown; the others are counted."""
_TEST_EVERY = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A list, judged."""

    device_ids: list[str]
    """In the order of the file; ``vin:…``."""
    complaints: list[str]
    """What is wrong, ``line 7: …``; if there is any, nothing may be imported."""


def read_list(path: Path, rule: HardwareIdRule, advance: Advance) -> Listed:
    """Read and judge a file.

    Raises:
        errors.NotFound: it cannot be read.
        errors.MalformedRequest: it is not text in UTF-8, or holds nothing.
    """
    try:
        size = path.stat().st_size
        with path.open(encoding="utf-8-sig", newline="") as file:
            listed = _judge(column(file, HEADING), rule, advance, size)
    except OSError as cause:
        raise errors.NotFound(f"{path} cannot be read: {cause.strerror}") from cause
    except (UnicodeDecodeError, csv.Error) as cause:
        raise errors.MalformedRequest(f"{path} is no CSV file in UTF-8: {cause}") from cause
    if not listed.device_ids and not listed.complaints:
        raise errors.MalformedRequest(f"{path} holds no hardware id")
    return listed


def _judge(rows: Iterator[tuple[int, str]], rule: HardwareIdRule, advance: Advance, size: int) -> Listed:
    seen: dict[str, int] = {}
    complaints: list[str] = []
    octets = 0
    for count, (line, text) in enumerate(rows):
        octets += len(text) + 1
        if count % _TEST_EVERY == 0:
            advance(octets, max(size, octets))
        try:
            device = rule.parse(text).device
        except errors.Refusal as refusal:
            hint = f" (is it a heading? name the column {HEADING})" if count == 0 else ""
            complaints.append(f"line {line}: {refusal}{hint}")
            continue
        earlier = seen.setdefault(device, line)
        if earlier != line:
            complaints.append(f"line {line}: {text} stands in line {earlier} already")
    advance(max(size, octets), max(size, octets))
    return Listed(device_ids=list(seen), complaints=complaints)


def shown_complaints(listed: Listed) -> list[str]:
    """Return the first complaints, and how many more there are."""
    shown = list(islice(listed.complaints, SHOWN_COMPLAINTS))
    more = len(listed.complaints) - len(shown)
    return [*shown, f"… and {more} more"] if more else shown


def import_list(
    store: Store, runs: Runs, caller: Caller, device_ids: list[str], advance: Advance
) -> AllowList:
    """Take a judged list in; a broken import is simply done again."""
    use_case = runs.import_list(caller, device_ids)
    return carry(store, _watched(use_case, advance, len(device_ids)))


def _watched(use_case: UseCase[AllowList], advance: Advance, total: int) -> UseCase[AllowList]:
    """Carry a use case's dialogue on and tell how far it is after each step."""
    done = 0
    advance(0, total)
    try:
        step = next(use_case)
        while True:
            answer = yield step
            done = min(done + IMPORT_CHUNK, total)
            advance(done, total)
            step = use_case.send(answer)
    except StopIteration as finished:
        allow_list: AllowList = finished.value
        return allow_list
