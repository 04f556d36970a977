"""What a process knows of who may connect: no more than the record, and nothing for long (SPEC C2)."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from birthmark import errors
from birthmark.edge.http.exposure import OLDEST_SECONDS, ExposureView
from birthmark.floor.clients import Role
from birthmark.services.exposures import close_now, set_exposure
from tests.support.realm import Line, make_line


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    made = make_line(tmp_path, f"sqlite:///{tmp_path / 'line.sqlite'}")
    made.open_run()
    yield made
    made.close()


class Failing:
    """A log that cannot be read when it is told to."""

    def __init__(self, line: Line) -> None:
        self._log = line.service.store.log
        self.failing: Exception | None = None
        self.read = 0

    def size(self) -> int:
        if self.failing is not None:
            raise self.failing
        return self._log.size()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)


def view_of(line: Line, plane: str = "station", log: Any = None) -> ExposureView:
    made = ExposureView(line.service.store, log or line.service.store.log, line.clock, plane)
    made.look()
    return made


def age(view: ExposureView, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.monotonic() + seconds
    monkeypatch.setattr(time, "monotonic", lambda: now)


def test_a_view_that_has_read_nothing_lets_nobody_in(line: Line) -> None:
    view = ExposureView(line.service.store, line.service.store.log, line.clock, "station")
    for peer in (None, line.station.caller.credential.der):
        assert str(view.admits(peer)) == "the record cannot be read"


@pytest.mark.parametrize(
    "failure", [errors.Unavailable("gone"), errors.IntegrityFailure("torn"), OSError("?")]
)
def test_a_record_that_cannot_be_read_for_ten_seconds_lets_nobody_in_and_comes_back_by_itself(
    line: Line, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    log, peer = Failing(line), line.station.caller.credential.der
    view = view_of(line, log=log)
    log.failing = failure
    view.look()
    assert view.admits(peer) is None, "what it knows is not old yet"
    age(view, monkeypatch, OLDEST_SECONDS + 1)
    view.look()
    for who in (None, peer):
        assert str(view.admits(who)) == "the record cannot be read"
    log.failing = None
    view.look()
    assert view.admits(peer) is None


def test_another_database_with_an_older_log_is_not_believed(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Failing(line)
    view = view_of(line, log=log)
    monkeypatch.setattr(log, "size", lambda: 1)
    age(view, monkeypatch, OLDEST_SECONDS + 1)
    view.look()
    assert str(view.admits(None)) == "the record cannot be read"


def test_who_is_revoked_or_closed_is_told_so_and_nobody_else(line: Line) -> None:
    view, anna = view_of(line), line.operator.caller
    other, boot = line.enrol(Role.STATION, "ST02"), line.enrol(Role.BOOTSTRAP, "b1", run="R1")
    line.service.carry(line.service.authorise.revoke(anna, "station:ST01", "stolen"))
    line.service.carry(close_now(anna, "run:R1", "a doubt"))
    assert view.admits(line.station.caller.credential.der) is None, "not read yet"
    view.look()
    assert str(view.admits(line.station.caller.credential.der)) == "station:ST01 was revoked"
    assert str(view.admits(boot.caller.credential.der)).startswith("run:R1 is closed since")
    assert view.admits(other.caller.credential.der) is None
    assert view.admits(b"a certificate of nobody's") is None, "the record will say"
    assert view.admits(None) is None


def test_what_ends_ends_without_a_reading(line: Line) -> None:
    end = line.clock.now() + timedelta(hours=8)
    line.service.carry(set_exposure(line.operator.caller, "plane:station", None, end, "shift"))
    view = view_of(line)
    assert view.admits(None) is None
    line.clock.turn(hours=8)
    assert str(view.admits(None)).startswith("plane:station is closed since")


def test_credentials_are_read_again_only_when_one_changed(line: Line) -> None:
    view = view_of(line)
    scans: list[type] = []
    store, scan = line.service.store, line.service.store.scan

    class Counting:
        def scan(self, kind: type, **options: Any) -> Any:
            scans.append(kind)
            return scan(kind, **options)

    view._store = Counting()  # type: ignore[assignment]  # noqa: SLF001  # a store that counts
    line.make("V1")
    view.look()
    assert (scans, view.admits(line.station.caller.credential.der)) == ([], None)
    line.enrol(Role.STATION, "ST02")
    view.look()
    assert len(scans) == 3
    assert store.log.size() > 0


def test_the_enrolment_plane_is_open_as_long_as_a_code_is_good(line: Line) -> None:
    from tests.services.test_stations import Gate  # noqa: PLC0415  # what invites there invites here

    view = view_of(line, "enrolment")
    assert str(view.admits(None)) == "no station is invited now"
    Gate(line=line).invite(life=timedelta(minutes=5))
    view.look()
    assert view.admits(None) is None
    line.clock.turn(minutes=5)
    assert str(view.admits(None)) == "no station is invited now"
