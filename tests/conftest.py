"""Fixtures for every part of the tests: a PostgreSQL cluster, databases on either engine, readers, a TPM."""

import itertools
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.guessing import make_cheap
from tests.support.pcsc import Daemon, pcscd
from tests.support.postgresql import LocalPostgreSQL, start
from tests.support.swtpm import SoftwareTPM, software_tpm

# A deadline per example measures how busy the machine is, not us; pytest-timeout bounds the whole test.
settings.register_profile("house", deadline=None, max_examples=100, print_blob=True)
settings.load_profile("house")
make_cheap()
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # What a shell puts into the background is deaf to SIGINT, and so would be every program that tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

_HERE = Path(__file__).parent
_numbers = itertools.count(1)
_LONGEST_FIRST = ("system", "bench", "faults", "edge", "services", "adapters")
"""The folders by what a file of theirs takes."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with what takes longest: workers take file after file, and are to end together."""
    if not hasattr(config, "workerinput"):
        return
    rank = {name: place for place, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.relative_to(_HERE).parts[0], len(rank)))


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name octets by their place: a signature differs from worker to worker, and the names may not."""
    return argname if isinstance(val, bytes) and len(val) > 8 else None


@pytest.fixture(scope="session")
def postgresql() -> Iterator[LocalPostgreSQL]:
    """A cluster shared by the whole run: make databases in it, do not kill it (start your own for that)."""
    with start() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def readers() -> Iterator[Daemon]:
    """A PC/SC daemon with two empty readers, shared by the whole run: take out what you put in."""
    with pcscd(2) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def tpm() -> Iterator[SoftwareTPM]:
    """A TPM with certified endorsement keys, shared by the whole run: flush and evict what you put in."""
    with software_tpm() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The SQLAlchemy URL of an empty database of the test's own, once on each engine."""
    if request.param == "sqlite":
        yield f"sqlite+pysqlite:///{tmp_path / 'birthmark.sqlite'}"
        return
    cluster: LocalPostgreSQL = request.getfixturevalue("postgresql")
    name = f"test_{next(_numbers)}"
    yield cluster.create_database(name)
    cluster.drop_database(name)
