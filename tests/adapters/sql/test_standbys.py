"""What PostgreSQL promises of a commit, and when the promise is not kept (SPEC I4, E4).

No standby is needed to see what a commit does that waits for one: a name that nobody has is enough.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from birthmark import errors
from birthmark.adapters.sql.engines import open_database
from birthmark.adapters.sql.migrate import migrate
from birthmark.adapters.sql.postgresql import PostgreSQL, connection_parameters, standbys_demanded
from birthmark.floor.devices import Device
from birthmark.services.check import check
from birthmark.settings import check_database_url
from tests.support.postgresql import LocalPostgreSQL, start
from tests.support.realm import Line, libpq, make_line, proof, workpiece

WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND query = 'COMMIT'"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalPostgreSQL]:
    """A server whose settings these tests change."""
    with start() as made:
        yield made


@pytest.fixture
def line(tmp_path: Path, cluster: LocalPostgreSQL) -> Iterator[Line]:
    """A line with run R1 open, on that server."""
    name = f"line_{tmp_path.name.replace('-', '_')}"[:60]
    made = make_line(tmp_path, cluster.create_database(name))
    made.open_run()
    yield made
    made.close()
    cluster.drop_database(name)


def demand(cluster: LocalPostgreSQL, names: str) -> None:
    """Make the server's commits wait for these standbys, from now on."""
    with cluster.connect() as server:
        server.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'".encode())
        server.execute("SELECT pg_reload_conf()")
        until(lambda: server.execute("SHOW synchronous_standby_names").fetchone() == (names,))


@contextmanager
def a_standby_is_away(cluster: LocalPostgreSQL) -> Iterator[None]:
    """Let every commit wait for a standby that does not come."""
    demand(cluster, "nobody")
    try:
        yield
    finally:
        demand(cluster, "")


def until(condition: Callable[[], Any]) -> Any:
    """Look until it is so."""
    pause = threading.Event()
    for _ in range(1500):
        if found := condition():
            return found
        pause.wait(0.02)
    raise AssertionError("it never came to be so")


def waiting_commit(cluster: LocalPostgreSQL) -> int:
    """Wait until a commit waits for its standby; return its process."""
    with cluster.connect() as server:
        row = until(lambda: server.execute(WAITING).fetchone())
    return int(row[0])


def clean(line: Line) -> bool:
    return check(line.service.store, line.service.store.log, line.realm).findings == []


@pytest.mark.parametrize("ending", ["pg_cancel_backend", "pg_terminate_backend"])
def test_a_commit_whose_wait_for_a_standby_is_cancelled_is_not_answered(
    line: Line, cluster: LocalPostgreSQL, ending: str
) -> None:
    """It succeeds on this server, with a warning: taken for durable, it would be gone after a failover."""
    device, url = workpiece("D1"), libpq(line.url)
    service = line.another_service(wrap=lambda _: PostgreSQL(url, settle_seconds=0.5))
    line.issue(workpiece("D0"), service=service)
    with ThreadPoolExecutor(1) as pool, a_standby_is_away(cluster):
        asked: Future[Any] = pool.submit(line.issue, device, key="k", service=service)
        process = waiting_commit(cluster)
        with cluster.connect() as server:
            server.execute(f"SELECT {ending}({process})".encode())
        with pytest.raises(errors.Unavailable, match=r"standby|cannot be reached"):
            asked.result(60)
        with cluster.connect(line.url.rpartition("/")[2]) as server:
            rows = server.execute("SELECT id FROM device WHERE id = %s", (device.id,)).fetchall()
        assert rows == [(device.id,)], "it is committed here: that is the trap"
        with pytest.raises(errors.Unavailable, match="standby is away"):
            service.store.look({Device: (device.id,)})
        with pytest.raises(errors.Unavailable, match="standby is away"):
            line.issue(device, key="k", service=service)
    issued = line.issue(device, key="k", service=service)
    assert [entry["kind"] for entry in line.entries()][-2:] == ["device-issued", "answer-repeated"]
    assert line.prove(proof(issued, device.key)).device == device.id
    assert clean(line)


def test_a_commit_that_waits_for_a_standby_too_long_is_let_go_of_and_nobody_sees_it_before_the_standby_does(
    line: Line, cluster: LocalPostgreSQL
) -> None:
    device, url = workpiece("D1"), libpq(line.url)
    impatient = line.another_service(wrap=lambda _: PostgreSQL(url, train_seconds=1))
    third = line.another_service(wrap=lambda _: PostgreSQL(url, train_seconds=1))
    line.issue(workpiece("D0"), service=impatient)
    assert third.store.log.size() == line.size()
    with a_standby_is_away(cluster):
        with pytest.raises(errors.Unavailable, match="no answer within 1 seconds"):
            line.issue(device, key="k", service=impatient)
        waiting_commit(cluster)
        assert line.get(Device, device.id) is None, "whoever was connected before sees nothing of it"
        with pytest.raises(errors.Unavailable, match="standby"):
            line.issue(device, key="k", service=third)
        assert line.get(Device, device.id) is None
    issued = line.issue(device, key="k", service=impatient)
    assert [entry["kind"] for entry in line.entries()].count("device-issued") == 2
    assert line.prove(proof(issued, device.key), service=third).device == device.id
    assert clean(line)


def test_a_server_that_waits_for_fewer_standbys_than_the_settings_demand_is_refused(
    line: Line, cluster: LocalPostgreSQL
) -> None:
    with pytest.raises(errors.IntegrityFailure, match=r"demand 1 synchronous standbys.* waits for 0"):
        open_database(libpq(line.url), standbys=1).query("SELECT 1")
    with cluster.standby({"cluster_name": "second"}) as second:
        replica = PostgreSQL(libpq(line.url).replace(f":{cluster.port}/", f":{second.port}/"))
        assert replica.query("SELECT size FROM head"), "it may be read from, where a url names it alone"
        with pytest.raises(errors.Unavailable, match="its server is a standby or read-only"):
            replica.begin([])
        replica.close()
        demand(cluster, "FIRST 1 (second)")
        try:
            service = line.another_service(wrap=lambda _: PostgreSQL(libpq(line.url), standbys=1))
            line.issue(workpiece("D1"), service=service)
            demand(cluster, "")
            with pytest.raises(errors.IntegrityFailure, match="demand 1 synchronous standbys"):
                line.issue(workpiece("D2"), service=service)
            demand(cluster, "second")
            line.issue(workpiece("D2"), service=service)  # and it goes on when the promise is back
            with pytest.raises(errors.IntegrityFailure, match="demand 2 synchronous standbys"):
                open_database(libpq(line.url), standbys=2).query("SELECT 1")
        finally:
            demand(cluster, "")
    assert clean(line)


def test_a_connection_that_commits_without_waiting_is_refused_where_standbys_are_demanded(
    line: Line, cluster: LocalPostgreSQL
) -> None:
    """A pooler that hands out one server connection to many loses what a session was set to."""
    database = PostgreSQL(libpq(line.url), standbys=1)
    for commits in ("off", "local", "remote_write"):
        with pytest.raises(errors.IntegrityFailure, match=f"synchronous_commit={commits}"):
            database._require_promises(("on", "on", commits, "second"))  # noqa: SLF001  # no pooler is needed
    for commits in ("on", "remote_apply"):
        database._require_promises(("on", "on", commits, "second"))  # noqa: SLF001  # likewise


@pytest.mark.parametrize(
    ("names", "number"),
    [
        ("", 0), (" ", 0), ("a", 1), ("*", 1), ("a, b", 1), ("2 (a, b)", 2), ("FIRST 2 (a, b, c)", 2),
        ("any 3(a,b,c)", 3), (' ANY  2 ( "b b", c)', 2), ('"2 ("', 1),
    ],
)  # fmt: skip
def test_the_names_of_standbys_say_how_many_are_waited_for(names: str, number: int) -> None:
    assert standbys_demanded(names) == number


def test_a_url_may_name_a_server_and_its_standbys() -> None:
    url = "postgresql://birthmark@a:5432,b:5433/line?connect_timeout=2"
    check_database_url(url)
    found = connection_parameters(url)
    assert (found["host"], found["port"], found["dbname"]) == ("a,b", "5432,5433", "line")
    assert found["target_session_attrs"] == "read-write", "never a standby, unless one is asked for"
    assert found["connect_timeout"] == "2", "the url wins"
    assert connection_parameters(f"{url}&target_session_attrs=any")["target_session_attrs"] == "any"
    assert "target_session_attrs" not in connection_parameters("postgresql://a/line")
    with pytest.raises(errors.MalformedRequest, match="password"):
        check_database_url("postgresql://birthmark@a:5432,b:secret@c:5433/line")
    for wrong in ("postgresql://[", "postgresql://a/line?no_such_parameter=1"):
        with pytest.raises(errors.MalformedRequest, match="url"):
            connection_parameters(wrong)
        with pytest.raises(errors.MalformedRequest, match="url"):
            migrate(wrong)
