"""A machine whose clock is wrong dates nothing, where another machine can tell (SPEC E4)."""

import time
from pathlib import Path

import pytest

from birthmark import app, errors
from birthmark.adapters.clocks import WatchedClock
from birthmark.settings import load
from tests.support.acts import note
from tests.support.postgresql import LocalPostgreSQL
from tests.support.server import make_realm_directory

DAY = 86400.0


def ahead(by: float) -> type[WatchedClock]:
    class Ahead(WatchedClock):
        def __init__(self, tolerance_seconds: float) -> None:
            super().__init__(tolerance_seconds, wall=lambda: time.time() + by)

    return Ahead


@pytest.mark.parametrize("by", [DAY, -DAY, 35.0])
def test_a_process_whose_clock_is_not_the_database_servers_dates_nothing(
    tmp_path: Path, postgresql: LocalPostgreSQL, monkeypatch: pytest.MonkeyPatch, by: float
) -> None:
    """One command on a laptop a day ahead would hold the line for a day."""
    url = postgresql.create_database(f"servertime{int(by) % 7}")
    settings = load(make_realm_directory(tmp_path / "realm", database_url=url).settings)
    monkeypatch.setattr(app, "WatchedClock", ahead(by))
    wrong = app.build(settings)
    size = wrong.log.size()
    for ask in (wrong.store.probe, lambda: wrong.store.submit([note()]).result(10)):
        with pytest.raises(errors.Unavailable, match=r"the clock says .*, the database server's .*: nothing"):
            ask()
    assert not wrong.store.health().up
    wrong.close()
    monkeypatch.setattr(app, "WatchedClock", ahead(5.0))
    right = app.build(settings)
    assert right.log.size() == size
    right.store.probe()
    right.store.submit([note()]).result(10)
    assert right.log.size() == size + 1
    right.close()
    postgresql.drop_database(f"servertime{int(by) % 7}")
