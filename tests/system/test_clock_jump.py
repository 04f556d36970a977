"""A real service whose machine's clock is set while it runs (SPEC E4): libfaketime is the clock.

Without the hold one entry would be dated in the future, and the right time refused from then on: the second
test shows that the danger is real, past our clock.
"""

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.devices import asked, signed
from tests.support.programs import missing, need
from tests.support.server import RUN, Http, RealmDirectory, Server, copy_realm, tls_context

_numbers = itertools.count(1)


class Clock:
    """The time of day of a program that is started with ``environment``."""

    def __init__(self, folder: Path) -> None:
        need("faketime")
        found = list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not found:
            missing("libfaketime is not installed (Debian package faketime)")
        self._file = folder / "faketime"
        self.environment = {
            "LD_PRELOAD": str(found[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            # What nobody sets is left alone: CLOCK_MONOTONIC, CLOCK_BOOTTIME.
            "DONT_FAKE_MONOTONIC": "1",
        }
        self.set(0)

    def set(self, seconds: int) -> None:
        """Set it so far ahead of the right time, or behind."""
        written = self._file.with_suffix(".new")
        written.write_text(f"{seconds:+d}\n", encoding="ascii")
        written.replace(self._file)


@pytest.fixture
def realm(tmp_path: Path) -> RealmDirectory:
    return copy_realm(tmp_path / "realm")


def client(server: Server) -> Http:
    return Http(server.address, tls_context(server.realm.station()))


def one_device(station: Http) -> str:
    """Ask once for one device, and return why not; empty if it has it."""
    key, body = asked(f"CLOCK-{next(_numbers)}")
    answer = station.post(f"/v1/runs/{RUN}/issue", body)
    if answer.status == 200:
        answer = station.post("/v1/prove", signed(answer.json, key))
    assert answer.status in (200, 503), answer.body
    return "" if answer.status == 200 else str(answer.json["detail"])


def test_a_clock_that_jumps_holds_the_line_until_it_is_put_back(
    realm: RealmDirectory, tmp_path: Path
) -> None:
    clock = Clock(tmp_path)
    with Server(realm=realm, environment=clock.environment) as server:
        # Connected before: with the clock behind, the station's certificate is not valid yet.
        with client(server) as station:
            assert one_device(station) == ""
            for by, said in ((3 * 3600, "forward by "), (-3600, "back by "), (90, "forward by 0:01:")):
                clock.set(by)
                for _ in range(2):
                    reason = one_device(station)
                    assert f"the machine's clock jumped {said}" in reason
                    assert "if the new time is right, restart the service" in reason
                clock.set(0)
                assert one_device(station) == ""
        assert server.stop() == 0
    written = [datetime.fromisoformat(entry["at"]) for entry in realm.entries()]
    assert written == sorted(written)
    assert written[-1] < datetime.now(UTC) + timedelta(seconds=5), "nothing is dated in the future"
    realm.check()


@pytest.mark.soak
def test_a_restart_takes_the_new_time_and_the_store_never_an_older_one_than_the_logs(
    realm: RealmDirectory, tmp_path: Path
) -> None:
    """What the hold prevents, done on purpose: once an entry is ahead, the right time is too early."""
    clock = Clock(tmp_path)

    def ask() -> str:
        with client(server) as station:
            return one_device(station)

    with Server(realm=realm, environment=clock.environment) as server:
        assert ask() == ""
        clock.set(600)
        assert "jumped forward" in ask()
        server.restart()
        assert ask() == ""
        clock.set(0)
        assert "jumped back" in ask()
        server.restart()
        assert "which is before the log's last entry" in ask()
