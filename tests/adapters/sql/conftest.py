"""A line for the tests of the store, and acts that do one small thing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.realm import Line, make_line


@pytest.fixture
def line(tmp_path: Path, database_url: str) -> Iterator[Line]:
    """A line with run R1 open, on either database."""
    made = make_line(tmp_path, database_url)
    made.open_run()
    yield made
    made.close()


@pytest.fixture
def small_line(tmp_path: Path) -> Iterator[Line]:
    """A line with run R1 open, on SQLite."""
    made = make_line(tmp_path, f"sqlite:///{tmp_path / 'line.sqlite'}")
    made.open_run()
    yield made
    made.close()
