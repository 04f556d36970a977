"""Whether a database's schema is the one that the migrations make: nothing less, and nothing that runs.

What lies in a database is trusted to refuse changes to the record (its triggers), and runs with the
service's rights.  So every table, column, constraint, index, trigger and function is held against
``schemas.json``, which has the SHA-256 of each as the migrations make it, by schema version;
``python -m tools.schemas`` writes it, and a test migrates both databases and compares.

An administrator may add tables, views and plain indexes, for reporting: the service never looks at them.
What could run when the service reads or writes is never accepted: triggers, rules, functions, operators,
casts, policies, event triggers, statistics objects, subscriptions, children of our tables, unique indexes and
those over expressions.  On PostgreSQL, what lies in schemas outside the service's search path is nobody's
concern: nothing that it runs can name it, and a trigger on our tables that calls it is found as one.

Somebody who can write to the catalogues or the file directly (a PostgreSQL superuser, root) can make them
lie.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path

from birthmark import errors
from birthmark.adapters.sql.database import Broken, Row

__all__ = [
    "FILE",
    "Part",
    "deviations",
    "newest",
    "parts_of_dump",
    "parts_of_postgresql",
    "parts_of_sqlite",
    "require_schema",
]

FILE = Path(__file__).with_name("schemas.json")
_TOLD = 3
"""How many deviations a refusal names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One thing that a schema consists of."""

    name: str
    """Its kind and name: ``trigger leaf.leaf_no_update``."""
    text: str
    """All that it does, spelled always the same way."""
    harmless: bool
    """Whether it may be there although the migrations do not make it."""

    def digest(self) -> str:
        """Return SHA-256 of the text, in hex."""
        return sha256(self.text.encode()).hexdigest()


@cache
def _known() -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    known: dict[str, dict[str, dict[str, str]]] = json.loads(FILE.read_text(encoding="ascii"))
    return known


def newest() -> str:
    """Return the schema version that this program works with."""
    return max(
        version
        for parts in _known().values()
        for digests in parts.values()
        for versions in digests.values()
        for version in versions.split()
    )


def deviations(kind: str, parts: Iterable[Part], version: str) -> list[str]:
    """Return how a schema differs from what the migrations make; nothing if it does not.

    Args:
        kind: ``sqlite``, ``postgresql``, or ``dump``, which is what pg_dump writes.
        parts: all that was found.
        version: of the schema.
    """
    missing = {
        name: digest
        for name, digests in _known()[kind].items()
        for digest, versions in digests.items()
        if version in versions.split()
    }
    if not missing:
        return [f"the schema has version {version[:40]!r}, which this program does not know"]
    found = []
    for part in parts:
        wanted = missing.pop(part.name, None)
        if wanted is None and not part.harmless:
            found.append(f"{part.name} is there, which no migration makes")
        elif wanted is not None and part.digest() != wanted:
            found.append(f"{part.name} is another than the migrations make")
    return [*(f"{name} is missing" for name in sorted(missing)), *sorted(found)]


def require_schema(query: Callable[[str], Sequence[Row]], url: str) -> None:
    """Refuse a live database whose schema is not this program's; costs one query.

    Args:
        query: runs a SELECT on it.
        url: its own.

    Raises:
        errors.IntegrityFailure: it is another.
    """
    sqlite = url.startswith("sqlite:")
    try:
        parts = parts_of_sqlite(query) if sqlite else parts_of_postgresql(query)
        found = deviations("sqlite" if sqlite else "postgresql", parts, newest())
        if not found:
            return
        version = str(query("SELECT version_num FROM alembic_version")[0][0])
    except (Broken, IndexError) as cause:
        raise errors.IntegrityFailure("database: its schema cannot be read") from cause
    if version < newest():
        raise errors.IntegrityFailure(
            f"database: its schema has version {version[:40]!r}, this program works with {newest()!r}: run"
            " 'birthmark database migrate'"
        )
    more = f", and {len(found) - _TOLD} more" if len(found) > _TOLD else ""
    raise errors.IntegrityFailure(
        f"database: its schema was changed: {'; '.join(found[:_TOLD])}{more}; nothing is served from it:"
        " find out who did it, and restore a backup or undo the change"
    )


def _spelled(text: str) -> str:
    return " ".join(text.split())


# --- SQLite -------------------------------------------------------------------------------------------------

_PLAIN_INDEX = re.compile(
    r'CREATE INDEX "?\w+"? ON "?\w+"? ?\( ?"?\w+"?( (ASC|DESC))?( ?, ?"?\w+"?( (ASC|DESC))?)* ?\)',
    re.IGNORECASE,
)


def parts_of_sqlite(query: Callable[[str], Iterable[Row]]) -> list[Part]:
    """Return what a SQLite database consists of."""
    rows = query("SELECT type, name, tbl_name, sql FROM sqlite_master")
    return [
        Part(
            name=f"{kind} {name}",
            text=f"{table}\n{_spelled(str(sql))}",
            harmless=_harmless_in_sqlite(str(kind), _spelled(str(sql))),
        )
        for kind, name, table, sql in rows
        if not (kind == "index" and sql is None and str(name).startswith("sqlite_autoindex_"))
    ]


def _harmless_in_sqlite(kind: str, sql: str) -> bool:
    if kind == "index":
        return _PLAIN_INDEX.fullmatch(sql) is not None
    return (kind == "table" and sql.upper().startswith("CREATE TABLE")) or kind == "view"


# --- PostgreSQL ---------------------------------------------------------------------------------------------

# Ids from 16384 on are given to what is made after initdb (FirstNormalObjectId, access/transam.h): a function
# in pg_catalog is no exception.  Schemas' names are left out of definitions, which else depend on the search
# path.
_CATALOGUE = r"""
WITH ours AS (
    SELECT c.*, n.nspname || '.' AS space
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid >= 16384 AND c.relkind IN ('r', 'p', 'f', 'v', 'm') AND c.relpersistence <> 't'
        AND pg_catalog.pg_table_is_visible(c.oid))
SELECT 'table ' || c.relname, pg_catalog.concat_ws(E'\n', c.relkind, c.relpersistence, c.relrowsecurity,
    c.relforcerowsecurity, (
        SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ', a.attname,
            pg_catalog.format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
            (SELECT l.collname FROM pg_catalog.pg_collation l
             WHERE l.oid = a.attcollation AND l.collname <> 'default'),
            (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid) FROM pg_catalog.pg_attrdef d
             WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum)), E'\n' ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped), (
        SELECT pg_catalog.string_agg(pg_catalog.pg_get_constraintdef(k.oid), E'\n'
            ORDER BY pg_catalog.pg_get_constraintdef(k.oid) COLLATE "C")
        FROM pg_catalog.pg_constraint k WHERE k.conrelid = c.oid AND k.contype IN ('c', 'p', 'u', 'f', 'x'))),
    true
FROM ours c
UNION ALL
SELECT 'index ' || i.relname, pg_catalog.replace(pg_catalog.pg_get_indexdef(i.oid), c.space, ''),
    NOT x.indisunique AND x.indexprs IS NULL AND x.indpred IS NULL
        AND (SELECT pg_catalog.max(o) < 16384 FROM pg_catalog.unnest(x.indclass::pg_catalog.oid[]) o)
FROM pg_catalog.pg_index x JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid
    JOIN ours c ON c.oid = x.indrelid
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = i.oid)
UNION ALL
SELECT 'trigger ' || t.relname || '.' || g.tgname, g.tgenabled::text || ' '
    || pg_catalog.pg_function_is_visible(g.tgfoid)::text || ' '
    || pg_catalog.replace(pg_catalog.pg_get_triggerdef(g.oid), t.space, ''), false
FROM pg_catalog.pg_trigger g JOIN ours t ON t.oid = g.tgrelid WHERE NOT g.tgisinternal
UNION ALL
SELECT 'disabled constraint of ' || t.relname, '', false
FROM pg_catalog.pg_trigger g JOIN ours t ON t.oid = g.tgrelid WHERE g.tgisinternal AND g.tgenabled <> 'O'
UNION ALL
SELECT 'rule ' || t.relname || '.' || r.rulename, '', false
FROM pg_catalog.pg_rewrite r JOIN ours t ON t.oid = r.ev_class
WHERE r.oid >= 16384 AND NOT (r.rulename = '_RETURN' AND t.relkind IN ('v', 'm'))
UNION ALL
SELECT 'policy ' || t.relname || '.' || p.polname, '', false
FROM pg_catalog.pg_policy p JOIN ours t ON t.oid = p.polrelid
UNION ALL
SELECT 'child of ' || c.relname || ' ' || h.inhrelid::pg_catalog.regclass, '', false
FROM pg_catalog.pg_inherits h JOIN ours c ON c.oid = h.inhparent
UNION ALL
SELECT 'function ' || p.proname || '(' || pg_catalog.pg_get_function_identity_arguments(p.oid) || ')',
    pg_catalog.concat_ws(E'\n', l.lanname, p.prokind, p.prosecdef, p.provolatile,
        pg_catalog.array_to_string(p.proconfig, ' '), pg_catalog.format_type(p.prorettype, NULL),
        p.prosrc), false
FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_language l ON l.oid = p.prolang
WHERE p.oid >= 16384 AND pg_catalog.pg_function_is_visible(p.oid)
UNION ALL
SELECT 'operator ' || o.oid::pg_catalog.regoperator, '', false
FROM pg_catalog.pg_operator o WHERE o.oid >= 16384 AND pg_catalog.pg_operator_is_visible(o.oid)
UNION ALL
SELECT 'cast ' || pg_catalog.format_type(s.castsource, NULL) || ' to '
    || pg_catalog.format_type(s.casttarget, NULL), '', false
FROM pg_catalog.pg_cast s WHERE s.oid >= 16384
UNION ALL
SELECT 'event trigger ' || e.evtname, '', false FROM pg_catalog.pg_event_trigger e
UNION ALL
SELECT 'statistics ' || s.stxname, '', false FROM pg_catalog.pg_statistic_ext s
UNION ALL
SELECT 'subscription ' || s.subname, '', false FROM pg_catalog.pg_subscription s
WHERE s.subdbid = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
UNION ALL
SELECT 'setting session_replication_role', pg_catalog.current_setting('session_replication_role'), false
UNION ALL
SELECT 'first schema of the search path', (pg_catalog.current_schemas(true))[1]::text, false
"""


def parts_of_postgresql(query: Callable[[str], Iterable[Row]]) -> list[Part]:
    """Return what a PostgreSQL database consists of, as far as a session of this user can come upon it."""
    return [
        Part(name=str(name), text=str(text), harmless=bool(harmless))
        for name, text, harmless in query(_CATALOGUE)
    ]


# --- what pg_dump writes ------------------------------------------------------------------------------------

_ENTRY = re.compile(
    r"^-- (?:Data for )?Name: (?P<name>.{0,1000}); Type: (?P<kind>[A-Z ]{1,40}); Schema: (?P<schema>.{0,200})"
    r"; Owner: "
)
"""Bounded, because a hostile copy writes what it likes."""
_IDLE = frozenset(
    {
        "TABLE", "VIEW", "MATERIALIZED VIEW", "INDEX", "CONSTRAINT", "FK CONSTRAINT", "SEQUENCE", "DEFAULT",
        "SEQUENCE OWNED BY", "SCHEMA", "EXTENSION", "COMMENT", "FOREIGN TABLE", "TYPE", "DOMAIN", "SERVER",
        "TABLE ATTACH", "INDEX ATTACH", "PUBLICATION", "PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA",
    }
)  # fmt: skip
"""Types of entries that an administrator may have added; a restore makes none of them."""
_UNSEEN = frozenset(
    {"FUNCTION", "PROCEDURE", "AGGREGATE", "OPERATOR", "TRIGGER", "RULE", "POLICY", "ROW SECURITY"}
)
"""Types that may be added in a schema of their own."""


def parts_of_dump(lines: Iterable[str]) -> Iterator[Part]:
    """Iterate over the parts of a schema as ``pg_restore --schema-only`` prints it.

    Each entry begins with a comment that says what it is (PostgreSQL 15, ``_printTocEntry`` in
    pg_backup_archiver.c).  What is written there is compared, and run by nobody: a restore makes the
    schema by the migrations.
    """
    name, kind, schema, body = "", "", "", list[str]()
    for line in lines:
        entry = _ENTRY.match(line)
        if entry is None:
            if line.strip() not in ("", "--") and not line.startswith("-- PostgreSQL database dump complete"):
                body.append(line)
            continue
        if kind:
            yield _dumped(name, kind, schema, body)
        name, kind, schema, body = entry["name"], entry["kind"], entry["schema"], []
    if kind:
        yield _dumped(name, kind, schema, body)


def _dumped(name: str, kind: str, schema: str, body: Sequence[str]) -> Part:
    # Settings that come between entries differ between versions of pg_dump, and so do backslash commands.
    text = " ".join(line for line in body if not re.match(r"SET \w+ = \S+;$|\\(un)?restrict ", line))
    elsewhere = schema not in ("public", "-")
    return Part(
        name=f"{kind.lower()} {f'{schema}.' if elsewhere else ''}{name}",
        text=_spelled(text),
        harmless=kind in _IDLE or (elsewhere and kind in _UNSEEN),
    )
