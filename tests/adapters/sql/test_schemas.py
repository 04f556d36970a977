"""A database whose schema is another than the migrations make is found, whichever it is."""

import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.adapters.sql.copies import copies_of
from birthmark.adapters.sql.engines import open_database
from birthmark.adapters.sql.migrate import migrate
from birthmark.adapters.sql.schema import FILE, newest, parts_of_dump, require_schema
from tests.adapters.sql.test_schema import connected
from tests.support.postgresql import LocalPostgreSQL
from tests.support.programs import need
from tests.support.realm import libpq
from tools.schemas import VERSIONS, made, spelled


def test_the_file_says_what_the_migrations_make(tmp_path: Path, postgresql: LocalPostgreSQL) -> None:
    """If not: ``python -m tools.schemas`` writes it anew."""
    need("pg_dump", "postgresql-client")
    assert spelled(made(tmp_path, postgresql)) == FILE.read_text(encoding="ascii")
    assert newest() == VERSIONS[-1]


def examined(url: str) -> None:
    with connected(url) as connection:
        require_schema(
            lambda text: [tuple(row) for row in connection.exec_driver_sql(text).fetchall()], libpq(url)
        )


def change(url: str, statements: str) -> None:
    with connected(url) as connection:
        for statement in statements.split(";;"):
            connection.exec_driver_sql(statement)
        connection.commit()


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite database, which nobody changes."""
    path = tmp_path_factory.mktemp("empty") / "empty.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite(empty: Path, tmp_path: Path) -> str:
    """A copy of it."""
    (tmp_path / "copy.db").write_bytes(empty.read_bytes())
    return f"sqlite:///{tmp_path / 'copy.db'}"


@pytest.fixture(scope="module")
def server(postgresql: LocalPostgreSQL) -> str:
    """A migrated database, which nobody changes for good."""
    url = postgresql.create_database("schema_held")
    migrate(libpq(url))
    return url


SQLITE = {
    "DROP TRIGGER leaf_no_update": "trigger leaf_no_update is missing",
    "DROP TRIGGER leaf_no_update;;CREATE TRIGGER leaf_no_update BEFORE UPDATE ON leaf WHEN 0"
    " BEGIN SELECT RAISE(ABORT, 'leaf is append-only'); END": "trigger leaf_no_update is another",
    "CREATE TRIGGER later AFTER INSERT ON checkpoint BEGIN UPDATE client SET role = 'officer'; END": (
        "trigger later is there"
    ),
    "CREATE TABLE report (a);;CREATE TRIGGER later AFTER INSERT ON report BEGIN DELETE FROM answer; END": (
        "trigger later is there"
    ),
    "DROP INDEX revocation_at": "index revocation_at is missing",
    "CREATE UNIQUE INDEX one ON device (run)": "index one is there",
    "CREATE INDEX one ON device (json(run))": "index one is there",
    "CREATE INDEX one ON device (run) WHERE run > 'R'": "index one is there",
    "ALTER TABLE client ADD COLUMN more TEXT": "table client is another",
    "DROP TABLE bucket": "table bucket is missing",
    "PRAGMA writable_schema = ON;;UPDATE sqlite_master SET sql = replace(sql, 'quantity),', 'quantity + 9),')"
    " WHERE name = 'run'": "table run is another",
    "CREATE VIRTUAL TABLE words USING fts5(word)": "table words is there",
}
POSTGRESQL = {
    "DROP TRIGGER leaf_no_update ON leaf": "trigger leaf.leaf_no_update is missing",
    "ALTER TABLE leaf DISABLE TRIGGER leaf_no_update": "trigger leaf.leaf_no_update is another",
    "ALTER TABLE leaf ENABLE REPLICA TRIGGER leaf_no_update": "trigger leaf.leaf_no_update is another",
    "CREATE OR REPLACE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RETURN NEW; END $$": "function append_only() is another",
    "CREATE SCHEMA aside;;CREATE FUNCTION aside.later() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN UPDATE client SET role = 'officer'; RETURN NULL; END $$;;"
    "CREATE TRIGGER later AFTER INSERT ON checkpoint EXECUTE FUNCTION aside.later()": (
        "trigger checkpoint.later is there"
    ),
    "CREATE RULE later AS ON INSERT TO checkpoint DO ALSO UPDATE client SET role = 'officer'": (
        "rule checkpoint.later is there"
    ),
    "ALTER TABLE device ENABLE ROW LEVEL SECURITY": "table device is another",
    "CREATE POLICY later ON device USING (false)": "policy device.later is there",
    "ALTER TABLE leaf SET UNLOGGED": "table leaf is another",
    "CREATE TABLE more () INHERITS (client)": "child of client more is there",
    "ALTER TABLE client ALTER COLUMN role SET DEFAULT 'officer'": "table client is another",
    "ALTER TABLE client DROP CONSTRAINT client_role_check": "table client is another",
    'ALTER TABLE revocation ALTER COLUMN id TYPE text COLLATE "POSIX"': "table revocation is another",
    "CREATE FUNCTION unnest(text[]) RETURNS SETOF text LANGUAGE sql AS 'SELECT NULL'": (
        "function unnest(text[]) is there"
    ),
    "CREATE OPERATOR = (leftarg = text, rightarg = integer, function = left)": "operator =(text,integer)",
    "CREATE CAST (text AS bytea) WITHOUT FUNCTION AS IMPLICIT": "cast text to bytea is there",
    "CREATE STATISTICS more ON run, state FROM device": "statistics more is there",
    "CREATE UNIQUE INDEX one ON device (run)": "index one is there",
    "CREATE INDEX one ON device (lower(run))": "index one is there",
    "DROP INDEX revocation_at": "index revocation_at is missing",
    "CREATE SCHEMA birthmark;;CREATE TABLE birthmark.client (id text)": "table client is another",
    "CREATE SCHEMA first;;CREATE FUNCTION first.append_only() RETURNS trigger LANGUAGE plpgsql AS"
    " $$ BEGIN RETURN NEW; END $$;;SET search_path = first, public": "function append_only() is another",
    "SET search_path = public, pg_catalog": "first schema of the search path is another",
    "SET session_replication_role = replica": "setting session_replication_role is another",
}
HARMLESS = (
    "CREATE TABLE report (a TEXT PRIMARY KEY, b TEXT UNIQUE);;CREATE VIEW released AS SELECT id FROM device;;"
    "CREATE INDEX of_report ON device (run, state DESC);;ANALYZE"
)


@pytest.mark.parametrize("statements", SQLITE)
def test_a_sqlite_database_whose_schema_was_changed_is_refused(sqlite: str, statements: str) -> None:
    examined(sqlite)
    change(sqlite, statements)
    with pytest.raises(errors.IntegrityFailure, match="its schema was changed") as refused:
        examined(sqlite)
    assert SQLITE[statements] in str(refused.value)


@pytest.mark.parametrize("statements", POSTGRESQL)
def test_a_postgresql_database_whose_schema_was_changed_is_refused(server: str, statements: str) -> None:
    examined(server)
    with connected(server) as connection:  # in a transaction that is not committed
        for statement in statements.split(";;"):
            connection.exec_driver_sql(statement)
        with pytest.raises(errors.IntegrityFailure, match="its schema was changed") as refused:
            require_schema(
                lambda text: [tuple(row) for row in connection.exec_driver_sql(text).fetchall()],
                libpq(server),
            )
    assert POSTGRESQL[statements] in str(refused.value)
    examined(server)


def test_what_never_runs_may_be_added(sqlite: str, postgresql: LocalPostgreSQL, tmp_path: Path) -> None:
    change(sqlite, HARMLESS)
    examined(sqlite)
    url = postgresql.create_database("schema_more")
    migrate(libpq(url))
    change(url, HARMLESS)
    change(url, "CREATE SCHEMA aside;;CREATE FUNCTION aside.f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
    examined(url)
    copies = copies_of(libpq(url))
    copies.copy(tmp_path / "copy", lambda _done, _total: None)
    other = postgresql.create_database("schema_other")
    copies_of(libpq(other)).put_back(tmp_path / "copy", newest())
    with postgresql.connect("schema_other") as db:
        assert db.execute("SELECT to_regclass('report'), to_regclass('aside.f')").fetchall() == [(None, None)]
    for name in ("schema_more", "schema_other"):
        postgresql.drop_database(name)


def test_an_event_trigger_is_found(postgresql: LocalPostgreSQL) -> None:
    url = postgresql.create_database("schema_event")
    migrate(libpq(url))
    change(
        url,
        "CREATE SCHEMA aside;;CREATE FUNCTION aside.later() RETURNS event_trigger LANGUAGE plpgsql AS"
        " $$ BEGIN END $$;;CREATE EVENT TRIGGER later ON ddl_command_end EXECUTE FUNCTION aside.later()",
    )
    with pytest.raises(errors.IntegrityFailure, match="event trigger later is there"):
        examined(url)
    postgresql.drop_database("schema_event")


def test_postgresqls_own_programs_carry_the_same_schema_over(
    server: str, postgresql: LocalPostgreSQL, tmp_path: Path
) -> None:
    """What an administrator moves to another server is spelled there as it was here."""
    copy, moved = tmp_path / "copy", postgresql.create_database("schema_moved")
    copies_of(libpq(server)).copy(copy, lambda _done, _total: None)
    program = need("pg_restore", "postgresql-client")
    done = subprocess.run(
        [program, "--exit-on-error", f"--dbname={libpq(moved)}", str(copy)], check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    examined(moved)
    postgresql.drop_database("schema_moved")


def test_nothing_that_a_copy_says_is_run_when_it_is_put_back(
    postgresql: LocalPostgreSQL, tmp_path: Path
) -> None:
    url, copy = postgresql.create_database("schema_bad"), tmp_path / "copy"
    migrate(libpq(url))
    change(
        url,
        "INSERT INTO checkpoint VALUES (1, E'a\\\\\\n\\tb');;DROP TRIGGER leaf_no_update ON leaf;;"
        "CREATE FUNCTION later() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " UPDATE client SET role = 'officer'; RETURN NULL; END $$;;"
        "CREATE TRIGGER later AFTER INSERT ON checkpoint EXECUTE FUNCTION later();;"
        "CREATE TABLE bait (a bigint DEFAULT 1);;INSERT INTO bait VALUES (2)",
    )
    copies_of(libpq(url)).copy(copy, lambda _done, _total: None)
    other = postgresql.create_database("schema_good")
    copies_of(libpq(other)).put_back(copy, newest())
    examined(other)
    with postgresql.connect("schema_good") as db:
        assert db.execute("SELECT size, note FROM checkpoint").fetchall() == [(1, "a\\\n\tb")]
    for name in ("schema_bad", "schema_good"):
        postgresql.drop_database(name)


@pytest.mark.parametrize(
    "statements",
    [
        "DROP TABLE bucket",
        "ALTER TABLE bucket ADD COLUMN more TEXT",
        "ALTER TABLE run RENAME COLUMN held TO h",
    ],
)
def test_a_copy_that_lacks_or_has_more_than_its_schema_leaves_nothing(
    postgresql: LocalPostgreSQL, tmp_path: Path, statements: str
) -> None:
    url, copy = postgresql.create_database("schema_less"), tmp_path / "copy"
    migrate(libpq(url))
    change(url, statements)
    copies_of(libpq(url)).copy(copy, lambda _done, _total: None)
    other = postgresql.create_database("schema_none")
    with pytest.raises(errors.MalformedRequest, match=r"in the copy|lacks table"):
        copies_of(libpq(other)).put_back(copy, newest())
    copies_of(libpq(other)).require_empty()
    for name in ("schema_less", "schema_none"):
        postgresql.drop_database(name)


def test_a_schema_of_another_version_is_told_as_such(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'old.db'}"
    migrate(url, revision=VERSIONS[-2])
    with pytest.raises(errors.IntegrityFailure, match="birthmark database migrate"):
        examined(url)


def test_a_file_without_a_schema_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "nothing.db")) as db:
        db.execute("CREATE TABLE t (a)")
    url = f"sqlite:///{tmp_path / 'nothing.db'}"
    database = open_database(url)
    with pytest.raises(errors.IntegrityFailure, match="no such table"):
        require_schema(database.query, url)
    database.close()


def test_a_dump_is_taken_apart_at_its_comments() -> None:
    text = (
        "SET x = 0;\n--\n-- Name: a; Type: TABLE; Schema: public; Owner: -\n--\n\nCREATE TABLE\n public.a;\n"
        "SET row_security = off;\n--\n-- Name: f(); Type: FUNCTION; Schema: more; Owner: -\n--\nCREATE f\n"
        "--\n-- PostgreSQL database dump complete\n--\n"
    )
    assert [(part.name, part.text, part.harmless) for part in parts_of_dump(text.splitlines())] == [
        ("table a", "CREATE TABLE public.a;", True),
        ("function more.f()", "CREATE f", True),
    ]
