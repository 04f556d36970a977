"""Bring a database to the newest schema, and write the realm into an empty one."""

from pathlib import Path

import sqlalchemy
from alembic import command
from alembic.config import Config

from birthmark import errors
from birthmark.adapters.sql.rows import milliseconds
from birthmark.floor.realm import Realm
from birthmark.secret import SecretBytes

__all__ = ["create_realm", "migrate"]


def _engine(url: str, password: SecretBytes | None) -> sqlalchemy.Engine:
    address = sqlalchemy.make_url(url)
    if address.get_backend_name() == "postgresql":
        address = address.set(drivername="postgresql+psycopg")
        if password is not None:
            address = address.set(password=password.reveal().decode())
    return sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)


def migrate(url: str, password: SecretBytes | None = None) -> None:
    """Run all migrations that the database has not seen.

    Raises:
        errors.Unavailable: the database cannot be reached.
    """
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    try:
        with _engine(url, password).connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
            connection.commit()
    except sqlalchemy.exc.OperationalError as cause:
        raise errors.Unavailable(f"database: {str(cause.orig).splitlines()[0]}") from cause


def create_realm(url: str, realm: Realm, password: SecretBytes | None = None) -> None:
    """Write the realm and an empty log into a migrated database.

    Raises:
        errors.IllegalTransition: the database already belongs to a realm.
    """
    created_at = milliseconds(realm.created_at)
    with _engine(url, password).begin() as connection:
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
