"""Write ``adapters/sql/schemas.json``: what the migrations make, on both databases, at each version.

Run it after a migration was added: ``python -m tools.schemas``.  PostgreSQL and pg_dump have to be installed.
"""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from birthmark.adapters.sql.copies import copies_of, dumped_schema
from birthmark.adapters.sql.migrate import migrate
from birthmark.adapters.sql.schema import FILE, Part, parts_of_dump, parts_of_postgresql, parts_of_sqlite
from tools.localpg import LocalPostgreSQL

__all__ = ["made", "spelled"]

VERSIONS = sorted(path.name[:4] for path in (FILE.parent / "migrations/versions").glob("[0-9]*.py"))

Known = dict[str, dict[str, dict[str, str]]]


def made(folder: Path, cluster: LocalPostgreSQL) -> Known:
    """Migrate an empty database of each kind from version to version, and return what is there."""
    found: dict[str, dict[str, dict[str, list[str]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )

    def note(kind: str, version: str, parts: Iterable[Part]) -> None:
        for part in parts:
            found[kind][part.name][part.digest()].append(version)

    name = "schemas"
    file, url = folder / "schemas.db", cluster.create_database(name).replace("+psycopg", "")
    for version in VERSIONS:
        migrate(f"sqlite:///{file}", revision=version)
        with closing(sqlite3.connect(file)) as db:
            note("sqlite", version, parts_of_sqlite(db.execute))
        migrate(url, revision=version)
        with cluster.connect(name) as server:
            note(
                "postgresql",
                version,
                parts_of_postgresql(lambda text: server.execute(text.encode()).fetchall()),
            )
        copy = folder / f"copy{version}"
        copies_of(url).copy(copy, lambda _done, _total: None)
        note("dump", version, parts_of_dump(dumped_schema(copy)))
    cluster.drop_database(name)
    return {
        kind: {
            name: {digest: " ".join(versions) for digest, versions in digests.items()}
            for name, digests in parts.items()
        }
        for kind, parts in found.items()
    }


def spelled(known: Known) -> str:
    """Return the file's text."""
    return json.dumps(known, indent=1, sort_keys=True) + "\n"


def main() -> None:
    """Write the file."""
    cluster = LocalPostgreSQL()
    try:
        with TemporaryDirectory() as folder:
            FILE.write_text(spelled(made(Path(folder), cluster)), encoding="ascii")
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
