"""What "ready" means, part by part, over a real application."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from birthmark import app, errors
from birthmark.edge.application import Application
from birthmark.edge.readiness import Examined, Part, examine, figures
from birthmark.floor.exposure import Exposed, Exposure, exposure_id
from birthmark.ports import Clock, Entropy
from birthmark.settings import load
from tests.support.acts import put
from tests.support.server import RUN, RealmDirectory, copy_realm


class Hands:
    """A clock that can be set."""

    def __init__(self) -> None:
        self.ahead: timedelta | None = timedelta()

    def now(self) -> datetime:
        if self.ahead is None:
            raise errors.Unavailable("the clock jumped: set it right")
        return app.clock().now() + self.ahead


class Stuck:
    """A source of randomness that may fail its health test."""

    def __init__(self) -> None:
        self.fails = False

    def token(self, size: int) -> bytes:
        if self.fails:
            raise errors.Unavailable("the source of randomness fails its health test")
        return app.entropy().token(size)


@pytest.fixture
def realm(tmp_path: Path) -> RealmDirectory:
    return copy_realm(tmp_path / "realm")


@contextmanager
def built(
    realm: RealmDirectory, clock: Clock | None = None, entropy: Entropy | None = None
) -> Iterator[Application]:
    application = app.build(load(realm.settings), clock=clock, entropy=entropy)
    try:
        yield application
    finally:
        application.close()


def held(found: Examined) -> dict[Part, str]:
    return {part: why for part, why in found.reasons.items() if why}


def look(application: Application, least_free_bytes: int = 1) -> Examined:
    return examine(application, least_free_bytes=least_free_bytes)


def test_a_realm_that_is_well_is_ready_and_looking_adds_no_entry(realm: RealmDirectory) -> None:
    stages: list[Part | None] = []
    with built(realm) as application:
        size = application.log.size()
        found = examine(application, least_free_bytes=1, stage=stages.append)
        assert found.ready, held(found)
        assert stages == [*Part, None]
        assert application.log.size() == size
        assert found.last_entry is not None


def test_each_part_holds_with_its_own_reason_and_lets_go_of_itself(realm: RealmDirectory) -> None:
    clock, entropy = Hands(), Stuck()

    def behind() -> None:
        clock.ahead = timedelta(days=-1)

    def unreadable() -> None:
        clock.ahead = None

    def stuck() -> None:
        entropy.fails = True

    def mend() -> None:
        clock.ahead, entropy.fails = timedelta(), False

    faults: list[tuple[Callable[[], None], Part, str]] = [
        (behind, Part.CLOCK, "which is before the log's last entry"),
        (unreadable, Part.CLOCK, "the clock jumped: set it right"),
        (stuck, Part.ENTROPY, "fails its health test"),
    ]
    with built(realm, clock, entropy) as application:
        for harm, part, reason in faults:
            harm()
            found = held(look(application))
            assert reason in found[part]
            assert found.keys() <= {part, Part.PLANE}, found  # what a plane's window needs is the clock
            mend()
            assert look(application).ready


def test_without_the_log_s_key_nothing_is_ready(realm: RealmDirectory) -> None:
    with built(realm) as application:
        (key, *_) = realm.path.glob("keys/log*")
        away = key.rename(realm.path / "away")
        assert "log" in held(look(application))[Part.LOG_KEY]
        away.rename(key)


def test_a_closed_plane_holds_the_line_and_says_until_when(realm: RealmDirectory) -> None:
    name, opens = exposure_id(Exposed.PLANE, "station"), datetime(2126, 1, 1, tzinfo=UTC)
    with built(realm) as application:
        closed = put(Exposure(id=name, opens_at=opens, closes_at=None))
        application.store.submit([closed]).result(10)
        assert held(look(application)) == {
            Part.PLANE: "plane:station is closed until 2126-01-01T00:00:00.000Z"
        }


def test_what_only_the_record_could_tell_is_not_told_while_it_is_away(realm: RealmDirectory) -> None:
    with built(realm) as application:
        away = (realm.path / "birthmark.db").rename(realm.path / "away")
        found = look(application)
        assert held(found).keys() == {Part.DATABASE}
        assert found.reasons.keys() == set(Part) - {Part.LOG_KEY, Part.PLANE}
        assert not found.ready
        away.rename(realm.path / "birthmark.db")
        assert look(application).ready


def test_a_disk_with_too_little_room_holds_the_line(realm: RealmDirectory) -> None:
    with built(realm) as application:
        assert "make room" in held(look(application, 1 << 60))[Part.DISK]


def test_the_record_says_how_many_devices_its_runs_have_room_for(realm: RealmDirectory) -> None:
    with built(realm) as application:
        found = figures(application)
        assert (found.runs_open, found.room) == (1, ((RUN, 100_000),))
        assert found.log_entries == application.log.size()
        assert found.certificates.keys() == {"server", "station", "operator", "authority"}
        assert found.certificates["station"] < found.certificates["server"]
