"""What the other tests stand on: the private PostgreSQL and the rule about missing programs."""

from pathlib import Path

import psycopg
import pytest
import sqlalchemy

from tests.support.postgresql import LocalPostgreSQL, start
from tests.support.programs import need
from tools.programs import find


def test_a_fresh_database_is_empty_and_writable(database_url: str) -> None:
    engine = sqlalchemy.create_engine(database_url)
    with engine.begin() as connection:
        assert sqlalchemy.inspect(connection).get_table_names() == []
        connection.execute(sqlalchemy.text("CREATE TABLE mark (value INTEGER)"))
        connection.execute(sqlalchemy.text("INSERT INTO mark VALUES (7)"))
    with engine.connect() as connection:
        assert connection.execute(sqlalchemy.text("SELECT value FROM mark")).scalar_one() == 7
    engine.dispose()


@pytest.mark.parametrize("setting", ["fsync", "synchronous_commit", "full_page_writes"])
def test_the_cluster_is_durable_unless_told_otherwise(postgresql: LocalPostgreSQL, setting: str) -> None:
    with postgresql.connect() as connection:
        assert connection.execute(f"SHOW {setting}".encode()).fetchone() == ("on",)


def test_the_cluster_lets_nobody_in_without_the_password(postgresql: LocalPostgreSQL) -> None:
    for host in ("127.0.0.1", str(postgresql.folder)):
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host=host, port=postgresql.port, user="birthmark", dbname="postgres")


def test_a_crashed_cluster_comes_back_with_what_was_committed_and_nothing_else() -> None:
    with start() as cluster:
        url = cluster.create_database("crash")
        port, before = cluster.port, cluster.pid
        with cluster.connect("crash") as connection:
            connection.execute("CREATE TABLE mark (value integer)")
            connection.execute("INSERT INTO mark VALUES (1)")
            connection.execute("BEGIN")
            connection.execute("INSERT INTO mark VALUES (2)")
            cluster.kill()
            with pytest.raises(psycopg.OperationalError):
                connection.execute("COMMIT")
        assert cluster.pid is None
        cluster.restart()
        assert (cluster.port, cluster.create_database("again")) == (port, cluster.url("again"))
        assert cluster.pid != before
        engine = sqlalchemy.create_engine(url)
        with engine.connect() as connection2:
            assert connection2.execute(sqlalchemy.text("SELECT value FROM mark")).scalars().all() == [1]
        engine.dispose()
        assert "not properly shut down" in cluster.log.read_text()
    assert not cluster.folder.exists()


def test_a_cluster_that_cannot_start_says_why_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    need("initdb", "postgresql")
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(RuntimeError, match='unrecognized configuration parameter "no_such_setting"'):
        LocalPostgreSQL({"no_such_setting": "1"})


def test_a_program_of_the_system_is_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    initdb = need("initdb", "postgresql")
    monkeypatch.setenv("PATH", "/nowhere")
    assert find("initdb") is not None
    assert Path(initdb).is_absolute()


def test_a_missing_program_skips_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="Debian package no-such-package"):
        need("no-such-program", "no-such-package")


def test_a_missing_program_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no-such-program is not installed"):
        need("no-such-program")
