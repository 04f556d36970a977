"""A line for every test: on both databases, or on SQLite where the database is not what is asked about."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.ports import KeyStore
from tests.support.realm import PASSPHRASE, Line, make_line


@pytest.fixture
def line(tmp_path: Path, database_url: str) -> Iterator[Line]:
    """A line with run R1 open."""
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


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[KeyStore]:
    """An empty key store."""
    made = SoftwareKeyStore.open(tmp_path / "own-keys", PASSPHRASE)
    yield made
    made.close()


@pytest.fixture
def bare_line(tmp_path: Path, database_url: str) -> Iterator[Line]:
    """A line without a run."""
    made = make_line(tmp_path, database_url)
    yield made
    made.close()
