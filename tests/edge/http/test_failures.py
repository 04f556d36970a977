"""Something behind the plane breaks: 503 and one clear reason while it is away, "internal" if it is us."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.devices import asked, signed
from tests.support.postgresql import LocalPostgreSQL, start
from tests.support.server import (
    RUN,
    Http,
    RealmDirectory,
    Server,
    copy_realm,
    make_realm_directory,
    tls_context,
    until,
)

ISSUE = f"/v1/runs/{RUN}/issue"


@pytest.fixture
def cluster() -> Iterator[LocalPostgreSQL]:
    """A cluster of the test's own, because it is going to be stopped."""
    with start() as own:
        yield own


def test_while_postgresql_is_away_the_line_is_held_and_goes_on_by_itself(
    tmp_path: Path, cluster: LocalPostgreSQL
) -> None:
    realm = make_realm_directory(tmp_path / "realm", database_url=cluster.create_database("line"))
    key, body = asked("AWAY-1")
    _, late = asked("AWAY-2")
    with Server(realm=realm) as server, Http(server.address, tls_context(realm.station())) as station:
        issued = station.post(ISSUE, body, birthmark_seq="1").json
        cluster.kill()
        for answer in (
            station.post(ISSUE, late, birthmark_seq="2"),
            station.post("/v1/prove", signed(issued, key), birthmark_seq="3"),
            station.get("/v1/me"),
            station.get(f"/v1/runs/{RUN}"),
            station.get("/v1/checkpoint"),
            station.get("/v1/nothing"),
        ):
            assert (answer.status, answer.type) == (503, "application/problem+json"), answer.body
            assert answer.headers["retry-after"] == "1"
            told = answer.json
            assert (told["code"], told["retryable"]) == ("unavailable", True)
            assert told["detail"].startswith("database: ")
            assert "\n" not in told["detail"]
            assert realm.database_url.split(":")[2].split("@")[0] not in told["detail"]  # the password
        pid = server.pid
        cluster.restart()
        # The same requests, with the same keys and numbers, on the same connection.
        assert until(lambda: station.post(ISSUE, late, birthmark_seq="2").status == 200)
        assert station.post("/v1/prove", signed(issued, key), birthmark_seq="3").json["state"] == "released"
        assert server.pid == pid
        assert "Traceback" not in server.told()
        assert server.stop() == 0
        realm.check()


@contextlib.contextmanager
def damaged(realm: RealmDirectory, damage: str, repair: str) -> Iterator[None]:
    """Write into the database what it would not take, so that our code meets what cannot be."""
    for statement in (damage, repair):
        with contextlib.closing(sqlite3.connect(realm.path / "birthmark.db", isolation_level=None)) as db:
            db.execute("PRAGMA ignore_check_constraints = ON")
            assert db.execute(statement).rowcount > 0
        if statement is damage:
            yield


def test_a_fault_of_ours_says_nothing_but_where_to_look(tmp_path: Path) -> None:
    realm = copy_realm(tmp_path / "realm")
    _, body = asked("FAULT-1")
    with Server(realm=realm) as server, Http(server.address, tls_context(realm.station())) as station:
        assert station.get("/v1/me").status == 200
        spoil = "UPDATE authority SET status = '{}' WHERE id = 'issuing-1'"
        with damaged(realm, spoil.format("s3cr3t-value"), spoil.format("active")):
            answer = station.post(ISSUE, body, birthmark_seq="5")
        assert (answer.status, answer.type) == (500, "application/problem+json")
        told = answer.json
        assert (told["code"], told["retryable"]) == ("internal", False)
        assert "s3cr3t-value" not in answer.body.decode()
        instance = told["instance"]
        (event,) = [event for event in server.events() if event.get("instance") == instance]
        assert event["level"] == "error"
        assert "Traceback" in event["exception"]
        entry = until(lambda: [each for each in realm.entries() if instance in str(each.get("detail"))])
        assert [(each["kind"], each["actor"], each["seq"]) for each in entry] == [
            ("refused", "station:ST01", 5)
        ]
        # What was wrong is right again: the same request with the same key succeeds.
        assert station.post(ISSUE, body, birthmark_seq="5").status == 200


def test_a_damaged_record_stops_the_line_with_its_own_code(tmp_path: Path) -> None:
    realm = copy_realm(tmp_path / "realm")
    with Server(realm=realm) as server, Http(server.address, tls_context(realm.station())) as station:
        with damaged(
            realm,
            "UPDATE run SET quantity = quantity + 1",
            "UPDATE run SET quantity = quantity - 1",
        ):
            answer = station.post(ISSUE, asked("MORE-1")[1])
            assert (answer.status, answer.json["code"]) == (500, "integrity-failure")
        assert realm.entries()[-1]["code"] == "integrity-failure"


def test_a_leaf_that_somebody_wrote_beyond_the_logs_head_is_told_and_not_a_fault_of_ours(
    tmp_path: Path,
) -> None:
    realm = copy_realm(tmp_path / "realm")
    _, body = asked("STRAY-1")
    _, late = asked("STRAY-2")
    with Server(realm=realm) as server, Http(server.address, tls_context(realm.station())) as station:
        assert station.post(ISSUE, body, birthmark_seq="4").status == 200
        with contextlib.closing(sqlite3.connect(realm.path / "birthmark.db", isolation_level=None)) as db:
            db.execute("INSERT INTO leaf SELECT max(idx) + 1, zeroblob(32), entry FROM leaf")
        for answer in (
            station.post(ISSUE, late, birthmark_seq="5"),
            station.post(ISSUE, {"devices": "none"}, birthmark_seq="6"),  # its refusal cannot be recorded
            station.get("/v1/nothing"),
        ):
            assert (answer.status, answer.type) == (500, "application/problem+json"), answer.body
            assert answer.json["code"] == "integrity-failure", answer.body
            assert "the database refuses an entry of the log" in answer.json["detail"]
        assert station.get("/v1/me").status == 200
        server.stop()
