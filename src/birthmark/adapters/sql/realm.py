"""Which realm a database was made for."""

from birthmark import errors
from birthmark.adapters.sql.database import Database
from birthmark.adapters.sql.rows import moment
from birthmark.floor.realm import Environment, Realm

__all__ = ["read_realm"]


def read_realm(database: Database) -> Realm:
    """Return the realm a database was made for.

    Raises:
        errors.NotFound: the database holds no realm.
    """
    rows = database.query("SELECT name, environment, origin, vkey, created_at FROM realm")
    if len(rows) != 1:
        raise errors.NotFound("the database holds no realm; 'birthmark init' makes one")
    name, environment, origin, vkey, created_at = rows[0]
    return Realm(
        name=name,
        environment=Environment(environment),
        origin=origin,
        vkey=vkey,
        created_at=moment(created_at),
    )
