"""The primary dies under load, its standby takes over, nothing that was answered is missing (SPEC I4, E4).

Two servers of Debian's package, streaming replication, every commit confirmed by both; the line knows both
from its database's url and is told nothing.
"""

import contextlib
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.adapters.sql.postgresql import PostgreSQL
from birthmark.ledger.proof import decode, verify
from birthmark.services.check import check
from tests.support.postgresql import LocalPostgreSQL, start
from tests.support.realm import Line, libpq, make_line, proof, workpiece
from tests.support.server import Server, make_realm_directory, until
from tests.system.test_kill import disturb, reckon, seeded, shift

SYNCHRONOUS = {"synchronous_standby_names": "FIRST 1 (second)"}


@contextlib.contextmanager
def pair(settings: dict[str, str]) -> Iterator[tuple[LocalPostgreSQL, LocalPostgreSQL]]:
    """Two servers, the second following the first."""
    with start(settings) as first, first.standby({"cluster_name": "second"}) as second:
        yield first, second


def both(first: LocalPostgreSQL, second: LocalPostgreSQL, url: str) -> str:
    """Return the url of a database on both servers."""
    return url.replace(f":{first.port}/", f":{first.port},127.0.0.1:{second.port}/")


@dataclass(slots=True, kw_only=True)
class Shop:
    """Stations that make one device after the other and ask again when they are told to."""

    line: Line
    tokens: dict[str, str] = field(default_factory=dict)
    """What was answered: device to release token."""
    outages: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def station(self, name: str) -> None:
        """Make devices until the shop is closed."""
        service = self.line.another_service()
        for number in itertools.count():
            device = workpiece(f"{name}{number}")
            while not self.stop.is_set():
                try:
                    issued = self.line.issue(device, key=device.hardware_id, service=service)
                    request = proof(issued, device.key, idempotency=f"prove-{device.hardware_id}")
                    self.tokens[device.id] = self.line.prove(request, service=service).token
                    break
                except errors.Unavailable as unavailable:
                    self.outages.append(str(unavailable))
                    self.stop.wait(0.02)
            if self.stop.is_set():
                return

    def reached(self, devices: int) -> bool:
        return until(lambda: len(self.tokens) >= devices, 100)


@pytest.mark.timeout(240)
def test_a_primary_that_dies_under_load_takes_nothing_with_it_that_was_answered(tmp_path: Path) -> None:
    with pair(SYNCHRONOUS) as (first, second):
        line = make_line(tmp_path, both(first, second, first.create_database("line")))
        line.open_run()
        shop = Shop(line=line)
        with ThreadPoolExecutor(3) as pool:
            work = [pool.submit(shop.station, name) for name in "ABC"]
            try:
                assert shop.reached(15), shop.outages
                first.kill()
                assert until(lambda: shop.outages != [], 60), "the line is held"
                answered = dict(shop.tokens)
                second.promote()
                assert shop.reached(len(answered) + 15), shop.outages[-5:]
            finally:
                shop.stop.set()
            for one in work:
                one.result(60)
        assert all("database: " in outage for outage in shop.outages)
        assert shop.tokens.items() >= answered.items()
        for device, token in shop.tokens.items():
            assert verify(token, line.vkey)["device"] == device
        released = {entry["device"] for entry in line.entries() if entry["kind"] == "device-released"}
        assert released >= shop.tokens.keys()
        received = [decode(token).checkpoint_note for token in shop.tokens.values()]
        report = check(line.service.store, line.service.store.log, line.realm, received_checkpoints=received)
        assert report.findings == []
        line.close()


def test_a_standby_that_lagged_behind_and_took_over_stops_the_line(tmp_path: Path) -> None:
    """What was answered is gone: to go on would be to sign a second history."""
    with pair({}) as (first, second):
        url = both(first, second, first.create_database("line"))
        line = make_line(tmp_path, url)
        line.open_run()
        line.make("D1")
        with first.connect() as primary, second.connect() as standby:
            at = primary.execute("SELECT pg_current_wal_flush_lsn()").fetchone()
            assert until(
                lambda: standby.execute("SELECT pg_last_wal_replay_lsn() >= %s", at).fetchone() == (True,), 30
            )
        second.shut_down()
        token = line.make("D2").token
        first.kill()
        second.restart()
        second.promote()
        with pytest.raises(errors.IntegrityFailure, match="this process saw"):
            line.make("D3")
        # Whoever comes new cannot know it, unless somebody brings what the stations hold.
        fresh = line.another_service(wrap=lambda _: PostgreSQL(libpq(url))).store
        received = [decode(token).checkpoint_note]
        assert check(fresh, fresh.log, line.realm).findings == []
        (finding,) = check(fresh, fresh.log, line.realm, received_checkpoints=received).findings
        assert "a checkpoint speaks of" in finding
        line.close()


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_service_goes_on_with_the_standby_and_its_stations_notice_nothing(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    chance = seeded(request)
    with pair(SYNCHRONOUS) as (first, second):
        realm = make_realm_directory(
            tmp_path / "realm", database_url=both(first, second, first.create_database("line"))
        )
        with Server(realm=realm, processes=2) as server, shift(realm, stations=3, devices=300) as at_work:

            def fail_over() -> None:
                first.kill()
                second.promote()

            disturb(at_work, chance, [fail_over], seconds=400)
            assert server.stop() == 0
            reckon(at_work)
