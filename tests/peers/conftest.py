"""What the peers' tests share: one Java virtual machine."""

from collections.abc import Iterator

import pytest

from tests.support.checkers.java import Java, java


@pytest.fixture(scope="session")
def jvm() -> Iterator[Java]:
    """A virtual machine for the whole run; starting one takes most of a second."""
    with java() as machine:
        yield machine
