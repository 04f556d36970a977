"""Bring a database to the newest schema, and write the realm into an empty one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import sqlalchemy
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from birthmark import errors
from birthmark.adapters.sql.database import Broken, failure_of
from birthmark.adapters.sql.postgresql import connection_parameters
from birthmark.adapters.sql.rows import milliseconds
from birthmark.floor.realm import Realm
from birthmark.secret import SecretBytes

__all__ = ["create_realm", "migrate"]


def _engine(url: str, password: SecretBytes | None) -> sqlalchemy.Engine:
    if url.startswith("postgresql://"):
        # Not by SQLAlchemy's own URLs, which cannot name several hosts as libpq's do.
        parameters = connection_parameters(url)
        if password is not None:
            parameters["password"] = password.reveal().decode()
        return sqlalchemy.create_engine(
            "postgresql+psycopg://",
            creator=lambda: psycopg.connect("", **parameters),
            poolclass=sqlalchemy.NullPool,
        )
    try:
        return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError) as cause:
        raise errors.MalformedRequest("the database url is none") from cause


@contextmanager
def _failures() -> Iterator[None]:
    """Raise what SQLAlchemy's errors mean, as ``Database`` does."""
    try:
        yield
    except sqlalchemy.exc.DBAPIError as cause:
        meant = failure_of(cause.orig) if isinstance(cause.orig, Exception) else Broken(str(cause))
        if isinstance(meant, Broken):
            meant = errors.IntegrityFailure(f"database: {meant}")
        raise meant from cause


def migrate(url: str, password: SecretBytes | None = None, *, revision: str = "head") -> None:
    """Run all migrations that the database has not seen, up to this one.

    Raises:
        errors.MalformedRequest: the url is none.
        errors.Unavailable: the database cannot be reached.
        errors.IntegrityFailure: it has a newer schema than this program, lacks rights, or is damaged.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    try:
        with _failures(), _engine(url, password).connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            connection.commit()
    except CommandError as cause:
        raise errors.IntegrityFailure(f"database: the schema is not one of ours: {cause}") from cause


def create_realm(url: str, realm: Realm, password: SecretBytes | None = None) -> None:
    """Write the realm and an empty log into a migrated database.

    Raises:
        errors.IllegalTransition: the database already belongs to a realm.
        errors.Unavailable: it cannot be reached.
        errors.IntegrityFailure: it was not migrated, lacks rights, or somebody else has just written a realm.
    """
    created_at = milliseconds(realm.created_at)
    with _failures(), _engine(url, password).begin() as connection:
        taken = connection.execute(sqlalchemy.text("SELECT name FROM realm")).scalar()
        if taken is not None:
            raise errors.IllegalTransition(f"the database already belongs to realm {taken}")
        connection.execute(
            sqlalchemy.text("INSERT INTO realm VALUES (:name, :environment, :origin, :vkey, :created_at)"),
            {
                "name": realm.name,
                "environment": realm.environment,
                "origin": realm.origin,
                "vkey": realm.vkey,
                "created_at": created_at,
            },
        )
        connection.execute(
            sqlalchemy.text("INSERT INTO head VALUES (1, 0, :edge, :at)"), {"edge": b"", "at": created_at}
        )
