"""Hold ceremonies against the log (SPEC A3).

``CeremonySaid`` is what the log's entry comes to; what does not agree is told to ``find``.
The record itself is judged again, event for event, as its auditor would.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from birthmark import errors
from birthmark.floor.ceremonies import CeremonyRecord
from birthmark.services import ceremony_file
from birthmark.services.ceremony_record import Record, replay
from birthmark.services.ceremony_steps import Loader

__all__ = ["CeremonySaid", "check_ceremonies"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CeremonySaid:
    """A ceremony as the log speaks of it."""

    file_sha256: str
    record_sha256: str
    leaf: int


def check_ceremonies(
    find: Callable[[str], None],
    rows: Iterable[CeremonyRecord],
    said: dict[str, CeremonySaid],
    load: Loader,
) -> None:
    """Find every ceremony whose row, file or record is not what the log says."""
    for row in rows:
        told = said.pop(row.id, None)
        if told is None or (told.file_sha256, told.record_sha256, told.leaf) != (
            row.file_sha256,
            row.record_sha256,
            row.leaf,
        ):
            find(f"ceremony {row.id} is not the one the log says was performed")
        try:
            ceremony, record = ceremony_file.parse(row.file), Record.decode(row.record)
            if (ceremony.id, ceremony.sha256, record.sha256) != (row.id, row.file_sha256, row.record_sha256):
                find(f"ceremony {row.id}: its file or its record is another")
            record.require_signed(ceremony)
            replay(ceremony, record.body, load).require_complete()
        except errors.Refusal as refusal:
            find(f"ceremony {row.id}: {refusal}")
    for name in said:
        find(f"the log says ceremony {name} was performed; its record is gone")
