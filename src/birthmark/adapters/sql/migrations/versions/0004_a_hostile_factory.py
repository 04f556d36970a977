"""Roles of people, proposals, invitations, rates and exposures.

The table of clients is made anew, because SQLite does not change a CHECK in place.  Until now every person
could do everything: those who are there become officers, and whoever decides that one needs less gives less.
"""

from alembic import op

revision = "0004"
down_revision = "0003"

_NEW = """
CREATE TABLE client (
    id TEXT NOT NULL PRIMARY KEY, role TEXT NOT NULL CHECK (role IN ('station', 'bootstrap', 'operator',
    'line-lead', 'officer', 'auditor', 'server', 'responder')),
    site TEXT NOT NULL, line TEXT NOT NULL, hardware_id TEXT, run TEXT,
    status TEXT NOT NULL CHECK (status IN ('active', 'revoked')), last_seq BIGINT NOT NULL,
    runs TEXT NOT NULL) {strict};
INSERT INTO client SELECT id, CASE WHEN role = 'operator' THEN 'officer' ELSE role END, site, line,
    hardware_id, run, status, last_seq, '' FROM client_0003;
DROP TABLE client_0003;
ALTER TABLE run ADD COLUMN proposed_at BIGINT;
CREATE TABLE proposal (
    id TEXT NOT NULL PRIMARY KEY, document {bytes} NOT NULL, proposer TEXT NOT NULL,
    proposal {bytes} NOT NULL, approver TEXT, approval {bytes},
    status TEXT NOT NULL CHECK (status IN ('proposed', 'approved', 'withdrawn')),
    proposed_at BIGINT NOT NULL,
    CHECK (status <> 'approved' OR (approver IS NOT NULL AND approval IS NOT NULL
        AND approver <> proposer))) {strict};
CREATE TABLE invitation (
    id TEXT NOT NULL PRIMARY KEY, client TEXT NOT NULL, site TEXT NOT NULL, line TEXT NOT NULL,
    runs TEXT NOT NULL, authority TEXT NOT NULL, invited_by TEXT NOT NULL, hours BIGINT NOT NULL,
    expires_at BIGINT NOT NULL, certificate TEXT) {strict};
CREATE TABLE bucket (
    id TEXT NOT NULL PRIMARY KEY, thousandths BIGINT NOT NULL CHECK (thousandths >= 0),
    at BIGINT NOT NULL) {keyed};
CREATE TABLE exposure (
    id TEXT NOT NULL PRIMARY KEY, opens_at BIGINT NOT NULL, closes_at BIGINT) {keyed};
"""
_FROZEN = {"proposal": "document", "invitation": "client"}
_KEPT = ("client", "bucket", "exposure", *_FROZEN)


def _refuse(event: str, table: str, column: str = "", *, sqlite: bool) -> str:
    name = f"{table}_frozen" if column else f"{table}_no_{event.lower()}"
    if sqlite:
        when = f"WHEN NEW.{column} IS NOT OLD.{column}" if column else ""
        return (
            f"CREATE TRIGGER {name} BEFORE {event}{f' OF {column}' if column else ''} ON {table} {when}"
            f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )
    when = f"WHEN (NEW.{column} IS DISTINCT FROM OLD.{column})" if column else ""
    each = "STATEMENT" if event == "TRUNCATE" else "ROW"
    return (
        f"CREATE TRIGGER {name} BEFORE {event} ON {table}"
        f" FOR EACH {each} {when} EXECUTE FUNCTION append_only()"
    )


def upgrade() -> None:
    """Make one table anew, and four more."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    text = _NEW.format(
        bytes="BLOB" if sqlite else "BYTEA",
        strict="STRICT" if sqlite else "",
        keyed="STRICT, WITHOUT ROWID" if sqlite else "",
    )
    if sqlite:
        text = text.replace("BIGINT", "INTEGER")
    op.execute("ALTER TABLE client RENAME TO client_0003")
    for statement in text.split(";"):
        if statement.strip():
            op.execute(statement)
    for table in _KEPT:
        for event in ["DELETE"] if sqlite else ["DELETE", "TRUNCATE"]:
            op.execute(_refuse(event, table, sqlite=sqlite))
    for table, column in _FROZEN.items():
        op.execute(_refuse("UPDATE", table, column, sqlite=sqlite))
