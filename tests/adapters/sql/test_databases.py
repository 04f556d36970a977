"""What the drivers' errors mean: wait, look, or refuse the train (SPEC C4, I4)."""

import sqlite3
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
import sqlalchemy

from birthmark import errors
from birthmark.adapters.sql.database import Broken, Database, failure_of
from birthmark.adapters.sql.engines import open_database
from birthmark.adapters.sql.log import CHECKPOINT, HEAD, LEAF
from birthmark.adapters.sql.migrate import create_realm, migrate
from birthmark.adapters.sql.postgresql import PostgreSQL
from birthmark.floor.realm import Environment, Realm
from tests.support.postgresql import LocalPostgreSQL
from tests.support.realm import START, libpq

REALM = Realm(name="acme", environment=Environment.TEST, origin="acme/log", vkey="k", created_at=START)


def execute(url: str, *statements: str) -> None:
    address = url if "+" in url else url.replace("postgresql://", "postgresql+psycopg://")
    with sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool).begin() as connection:
        for statement in statements:
            connection.execute(sqlalchemy.text(statement))


@pytest.fixture
def database(database_url: str) -> Any:
    migrate(libpq(database_url))
    create_realm(libpq(database_url), REALM)
    opened = open_database(libpq(database_url))
    yield opened
    opened.close()


def in_a_train(database: Database, step: Callable[[], object]) -> object:
    database.begin([])
    try:
        return step()
    finally:
        database.rollback()


ASKING: dict[str, Callable[[Database], object]] = {
    "begin": lambda db: db.begin([(CHECKPOINT, [1])]),
    "fetch": lambda db: in_a_train(db, lambda: db.fetch(CHECKPOINT, [1])),
    "fetch_all": lambda db: in_a_train(db, lambda: db.fetch_all("SELECT note FROM checkpoint", ())),
    "commit": lambda db: in_a_train(db, lambda: db.commit([(CHECKPOINT, [(1, "")])], [])),
    "select": lambda db: db.select(CHECKPOINT, [1]),
    "query": lambda db: db.query("SELECT note FROM checkpoint"),
}


@pytest.mark.parametrize("way", ASKING)
def test_a_missing_table_is_nothing_to_wait_for(database: Database, database_url: str, way: str) -> None:
    execute(database_url, "DROP TABLE checkpoint")
    with pytest.raises(errors.IntegrityFailure, match="checkpoint"):
        ASKING[way](database)
    assert database.query("SELECT size FROM head") == [(0,)], "the connection is still of use"
    assert database.begin([(HEAD, [1])])[0][0] == 0
    database.rollback()


@pytest.mark.parametrize("way", ASKING)
def test_a_missing_right_is_nothing_to_wait_for(postgresql: LocalPostgreSQL, way: str) -> None:
    url = libpq(postgresql.create_database("rights"))
    try:
        migrate(url)
        create_realm(url, REALM)
        execute(
            url, "DROP ROLE IF EXISTS guest", "CREATE ROLE guest", "GRANT SELECT, UPDATE ON head TO guest"
        )
        database = PostgreSQL(f"{url}{'&' if '?' in url else '?'}options=-crole%3Dguest")
        with pytest.raises(errors.IntegrityFailure, match="permission denied for table checkpoint"):
            ASKING[way](database)
        database.close()
        execute(url, "DROP OWNED BY guest", "DROP ROLE guest")
    finally:
        postgresql.drop_database("rights")


@pytest.mark.parametrize("way", ["fetch_all", "query"])
def test_a_text_that_no_database_holds_is_refused(database: Database, way: str) -> None:
    statement, lone = "SELECT size FROM checkpoint WHERE note = %s", ("\ud800",)
    ask: dict[str, Callable[[], object]] = {
        "fetch_all": lambda: in_a_train(database, lambda: database.fetch_all(statement, lone)),
        "query": lambda: database.query(statement, lone),
    }
    with pytest.raises(Broken):
        ask[way]()
    assert database.select(LEAF, [0]) == []


def test_a_lost_connection_is_replaced_by_one(postgresql: LocalPostgreSQL) -> None:
    made: list[psycopg.Connection[Any]] = []

    class Counting(PostgreSQL):
        def _connect(self, *, train: bool = False) -> Any:
            made.append(super()._connect(train=train))
            return made[-1]

    database = Counting(libpq(postgresql.url("postgres")))
    mine = database.query("SELECT pg_backend_pid()")
    with postgresql.connect() as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (mine[0][0],))
    assert database.query("SELECT 1") == [(1,)]
    assert len(made) == 2
    assert made[0].closed
    database.close()


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (psycopg.errors.DataCorrupted("page"), errors.IntegrityFailure),
        (psycopg.errors.IndexCorrupted("btree"), errors.IntegrityFailure),
        (psycopg.errors.UndefinedColumn("x"), errors.IntegrityFailure),
        (psycopg.errors.AdminShutdown("bye"), errors.Unavailable),
        (psycopg.errors.DiskFull("full"), errors.Unavailable),
        (psycopg.errors.CheckViolation("no"), Broken),
        (psycopg.errors.RaiseException("append-only"), Broken),
        (sqlite3.IntegrityError("no"), Broken),
        (sqlite3.DatabaseError("malformed"), errors.IntegrityFailure),
        (OverflowError("large"), Broken),
    ],
)
def test_every_error_has_one_meaning(cause: Exception, kind: type[Exception]) -> None:
    assert type(failure_of(cause)) is kind


def test_an_error_without_words_has_its_name() -> None:
    assert str(failure_of(psycopg.OperationalError())) == "database: OperationalError"
    assert str(failure_of(psycopg.InterfaceError("\nlater"))) == "database: InterfaceError"


def test_a_realm_is_written_into_a_migrated_database_only(database_url: str) -> None:
    with pytest.raises(errors.IntegrityFailure, match="realm"):
        create_realm(libpq(database_url), REALM)


def test_a_realm_is_not_written_into_a_database_that_is_away() -> None:
    with pytest.raises(errors.Unavailable):
        create_realm("postgresql://nobody@127.0.0.1:1/nothing", REALM)


def test_half_a_realm_is_refused(database_url: str) -> None:
    migrate(libpq(database_url))
    execute(
        database_url,
        "INSERT INTO head VALUES (1, 0, '', 0)".replace("''", "x''" if "sqlite" in database_url else "''"),
    )
    with pytest.raises(errors.IntegrityFailure, match=r"head"):
        create_realm(libpq(database_url), REALM)


def test_a_schema_of_a_later_program_is_left_alone(database_url: str) -> None:
    migrate(libpq(database_url))
    execute(database_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(errors.IntegrityFailure, match="9999"):
        migrate(libpq(database_url))


def test_a_url_that_is_none_is_refused() -> None:
    with pytest.raises(errors.MalformedRequest, match="url"):
        migrate("no url")
