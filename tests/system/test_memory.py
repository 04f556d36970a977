"""What stands in docs/secrets-in-memory.md of delivered keys, held against a running service (SPEC B7)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.programs import missing
from tests.support.server import Server, copy_realm
from tests.system.memory_table import measure


@pytest.fixture(name="server")
def _server(tmp_path: Path) -> Iterator[Server]:
    if os.geteuid() != 0:
        missing("the memory of other processes can be read by root alone")
    with Server(realm=copy_realm(tmp_path / "realm")) as running:
        yield running


def test_a_delivered_key_is_gone_when_its_answer_is_there(server: Server) -> None:
    """Neither while nothing else is asked, which may be for hours, nor afterwards."""
    moments = list(measure(server, further=3))
    keys = [moment for moment in moments if moment.what.startswith("delivered key")]
    assert len(keys) == 6
    for moment in keys:
        assert not any(moment.copies.values()), moment
    # The search finds what is there, or it would prove nothing.
    found = {moment.what: any(moment.copies.values()) for moment in moments if moment not in keys}
    assert found == {
        "passphrase of the key store": True,
        "passphrase of the server's key": False,
        "an authority's key, in software": True,
    }
