"""A bootstrap credential sees the runs under which it may provision, and no others (SPEC C9)."""

from typing import Any

import pytest

from birthmark import errors
from birthmark.edge.http.views import run_view
from birthmark.floor.clients import Client, ClientStatus, Role
from birthmark.floor.hardware_ids import HardwareIdKind, HardwareIdRule
from birthmark.services.acts import require_reader
from tests.support.realm import Line

LISTED, OTHER = "serial:D1", "serial:D2"


def client(role: Role = Role.BOOTSTRAP, **fields: Any) -> Client:
    common = {"site": "", "line": "", "hardware_id": None, "run": None}
    return Client(id=f"{role}:x", role=role, status=ClientStatus.ACTIVE, last_seq=0, **(common | fields))


@pytest.fixture
def runs(small_line: Line) -> Line:
    """Three runs: one with a list, one without, and one for vehicles."""
    small_line.open_run("LISTED", listed=[LISTED])
    small_line.open_run("FREE")
    vehicles = HardwareIdRule(kind=HardwareIdKind.VIN)
    small_line.open_run("VINS", hardware_id=vehicles)
    return small_line


@pytest.mark.parametrize(
    ("who", "run"),
    [
        (client(hardware_id=LISTED), "LISTED"),
        (client(hardware_id=LISTED), "FREE"),
        (client(hardware_id=OTHER), "FREE"),
        (client(run="LISTED"), "LISTED"),
        (client(Role.STATION), "VINS"),
        (client(Role.OPERATOR), "LISTED"),
    ],
)
def test_who_may_provision_for_a_run_sees_it(who: Client, run: str, runs: Line) -> None:
    assert runs.service.carry(run_view(who, run)).run == run


@pytest.mark.parametrize(
    ("who", "run", "complaint"),
    [
        (client(hardware_id=OTHER), "LISTED", "is for serial:D2 only, which run LISTED is not for"),
        (client(hardware_id=LISTED), "VINS", "is for serial:D1 only, which run VINS is not for"),
        (client(run="LISTED"), "FREE", "is for run LISTED only"),
        (client(run="GONE"), "LISTED", "is for run GONE only"),
    ],
)
def test_who_may_not_does_not(who: Client, run: str, complaint: str, runs: Line) -> None:
    with pytest.raises(errors.NotPermitted, match=complaint):
        runs.service.carry(run_view(who, run))


def test_a_certificate_that_ended_reads_no_more_on_a_connection_that_it_opened(small_line: Line) -> None:
    caller = small_line.station.caller
    small_line.service.carry(require_reader(caller, "station", small_line.clock.now()))
    with pytest.raises(errors.Unauthenticated, match="ended: renew it"):
        small_line.service.carry(require_reader(caller, "station", caller.credential.not_after))
