"""Which of the two databases a URL means."""

from pathlib import Path

from birthmark import errors
from birthmark.adapters.sql.database import Database
from birthmark.adapters.sql.postgresql import PostgreSQL
from birthmark.adapters.sql.sqlite import SQLite
from birthmark.secret import SecretBytes

__all__ = ["open_database"]


def open_database(url: str, password: SecretBytes | None = None, *, standbys: int = 0) -> Database:
    """Open the database of a URL: ``sqlite:///PATH`` or ``postgresql://…`` (a libpq connection URI).

    Args:
        url: of one PostgreSQL server or, with a comma between them, of several of which one is the primary.
        password: of PostgreSQL's user.
        standbys: how many synchronous standbys PostgreSQL must wait for at least.

    Raises:
        errors.MalformedRequest: another kind of URL.
        errors.NotFound: there is no such SQLite file.
    """
    if url.startswith("sqlite:///"):
        return SQLite(Path(url.removeprefix("sqlite:///")))
    if url.startswith("postgresql://"):
        return PostgreSQL(url, password, standbys=standbys)
    raise errors.MalformedRequest(
        f"a database url starts with sqlite:/// or postgresql://, not {url.partition(':')[0]}:"
    )
