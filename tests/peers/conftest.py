"""What the peers' tests share: relying parties that take longer to start than to ask."""

from collections.abc import Iterator

import pytest

from tests.peers.parties import Desk
from tests.support.checkers.java import Java, java
from tests.support.checkers.pyhanko import Pyhanko, pyhanko


@pytest.fixture(scope="session")
def jvm() -> Iterator[Java]:
    """A virtual machine for the whole run."""
    with java() as machine:
        yield machine


@pytest.fixture(scope="session")
def validator() -> Iterator[Pyhanko]:
    """A pyhanko-certvalidator for the whole run."""
    with pyhanko() as running:
        yield running


@pytest.fixture
def desk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """What relying parties need to be asked."""
    return Desk(request, tmp_path_factory)
