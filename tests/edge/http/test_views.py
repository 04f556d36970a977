"""What the station plane shows of a run is what its licence says."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from birthmark.edge.http.views import run_view
from tests.support.realm import Line, make_line

FIRMWARE = "bms-4.2.1 sha256:0123"


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = make_line(tmp_path, f"sqlite:///{tmp_path / 'line.sqlite'}")
    yield made
    made.close()


@pytest.mark.parametrize(("named", "shown"), [(FIRMWARE, FIRMWARE), ("", None)])
def test_a_run_shows_the_firmware_that_its_licence_names(line: Line, named: str, shown: str | None) -> None:
    line.open_run("R1", firmware=named)
    view = line.service.carry(run_view(line.station.caller.client, "R1"))
    assert (view.run, view.firmware) == ("R1", shown)


def test_a_run_shows_what_it_issues_for_and_whether_a_person_looks(line: Line) -> None:
    line.open_run("R1", approval=True)
    view = line.service.carry(run_view(line.station.caller.client, "R1"))
    assert (view.purpose, view.looked_at) == ("identity", True)
