"""A column of a CSV file, as spreadsheets write it.

Columns are separated by commas, semicolons or tabs (spreadsheets differ by country), whichever stands first
in that order in the first line.  The first row that is not empty may be headings; without the wanted one
among them it is a row like the others, and the first column is meant.  Nothing is repaired.
"""

import csv
from collections.abc import Iterator
from itertools import chain

__all__ = ["column"]


def column(file: Iterator[str], heading: str) -> Iterator[tuple[int, str]]:
    """Yield line number and cell of each row that is not empty; a row that is too short has an empty cell.

    Args:
        file: opened with ``newline=""``.
        heading: of the column, in lower case.

    Raises:
        csv.Error: a quotation does not end, or the like.
    """
    first = next(file, "")
    delimiter = next((mark for mark in ",;\t" if mark in first), ",")
    reader = csv.reader(chain([first], file), delimiter=delimiter, strict=True)
    place, beginning = 0, True
    for row in reader:
        if not any(row):
            continue
        if beginning:
            beginning = False
            heads = [cell.strip().lower() for cell in row]
            if heading in heads:
                place = heads.index(heading)
                continue
        yield reader.line_num, row[place] if place < len(row) else ""
