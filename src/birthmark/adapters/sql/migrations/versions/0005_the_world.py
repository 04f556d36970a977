"""Devices outside of the factory: what they enrol for, by what they share, and where they are met.

The table of clients takes two more roles; SQLite does not change a CHECK in place, and makes it anew.
"""

from alembic import op

revision = "0005"
down_revision = "0004"

_ROLES = """CHECK (role IN ('station', 'bootstrap', 'shared', 'operator', 'line-lead', 'officer', 'auditor',
    'server', 'responder', 'proxy'))"""
_CLIENT_SQLITE = f"""
ALTER TABLE client RENAME TO client_0004;
CREATE TABLE client (
    id TEXT NOT NULL PRIMARY KEY, role TEXT NOT NULL {_ROLES},
    site TEXT NOT NULL, line TEXT NOT NULL, hardware_id TEXT, run TEXT,
    status TEXT NOT NULL CHECK (status IN ('active', 'revoked')), last_seq INTEGER NOT NULL,
    runs TEXT NOT NULL) STRICT;
INSERT INTO client SELECT id, role, site, line, hardware_id, run, status, last_seq, runs FROM client_0004;
DROP TABLE client_0004;
CREATE TRIGGER client_no_delete BEFORE DELETE ON client
    BEGIN SELECT RAISE(ABORT, 'client is append-only')
"""
_CLIENT_POSTGRESQL = f"""
ALTER TABLE client DROP CONSTRAINT client_role_check;
ALTER TABLE client ADD CONSTRAINT client_role_check {_ROLES}
"""
_NEW = """
CREATE TABLE local_identity (
    id TEXT NOT NULL PRIMARY KEY, device TEXT NOT NULL, run TEXT NOT NULL, attempt TEXT NOT NULL,
    attempts BIGINT NOT NULL CHECK (attempts > 0), certificate TEXT) {keyed};
CREATE TABLE waiting_enrolment (
    id TEXT NOT NULL PRIMARY KEY, device TEXT NOT NULL, run TEXT NOT NULL, client TEXT NOT NULL,
    request_sha256 TEXT NOT NULL, csr_sha256 TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('waiting', 'approved', 'refused')), asked_at BIGINT NOT NULL,
    decided_by TEXT, reason TEXT, CHECK ((status = 'waiting') = (decided_by IS NULL))) {strict};
CREATE TABLE cmp_transaction (
    id TEXT NOT NULL PRIMARY KEY, client TEXT NOT NULL, run TEXT NOT NULL, body TEXT NOT NULL,
    request {bytes} NOT NULL, request_id BIGINT NOT NULL, key TEXT NOT NULL,
    nonce {bytes} NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('waiting', 'issued', 'confirmed', 'rejected')),
    expires_at BIGINT NOT NULL, attempt TEXT, certificate TEXT) {strict};
CREATE INDEX cmp_transaction_of_attempt ON cmp_transaction (attempt, id);
CREATE TABLE shared_credential (
    id TEXT NOT NULL PRIMARY KEY, quantity BIGINT NOT NULL,
    used BIGINT NOT NULL CHECK (used BETWEEN 0 AND quantity), networks TEXT NOT NULL,
    waiting BIGINT NOT NULL CHECK (waiting BETWEEN 0 AND quantity)) {keyed};
CREATE TABLE fleet_authority (
    id TEXT NOT NULL PRIMARY KEY, der {bytes} NOT NULL, policy TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('challenged', 'active', 'suspended', 'retired')),
    nonce TEXT NOT NULL, asked_at BIGINT NOT NULL, verification {bytes},
    CHECK (status = 'challenged' OR verification IS NOT NULL)) {strict};
CREATE TABLE foreign_crl (
    id TEXT NOT NULL PRIMARY KEY, issuer {bytes}, url TEXT NOT NULL, number TEXT NOT NULL,
    sha256 TEXT NOT NULL, entries BIGINT NOT NULL, this_update BIGINT NOT NULL,
    next_update BIGINT NOT NULL) {strict};
CREATE TABLE foreign_crl_octets (
    id TEXT NOT NULL PRIMARY KEY, sha256 TEXT NOT NULL, der {bytes} NOT NULL) {strict};
CREATE TABLE field_device (
    id TEXT NOT NULL PRIMARY KEY, authority TEXT NOT NULL, certificate TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('active', 'held')), reason TEXT, place TEXT NOT NULL,
    moved_at BIGINT NOT NULL, moves BIGINT NOT NULL, counted_from BIGINT NOT NULL,
    first_seen_at BIGINT NOT NULL, first_seen_leaf BIGINT NOT NULL) {keyed};
"""
_FROZEN = {
    "local_identity": "device",
    "waiting_enrolment": "request_sha256",
    "cmp_transaction": "request",
    "shared_credential": "quantity",
    "fleet_authority": "der",
    "field_device": "first_seen_leaf",
}
_KEPT = ("foreign_crl", "foreign_crl_octets", *_FROZEN)


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
    """Let clients have more roles, and make eight tables."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    text = _NEW.format(
        bytes="BLOB" if sqlite else "BYTEA",
        strict="STRICT" if sqlite else "",
        keyed="STRICT, WITHOUT ROWID" if sqlite else "",
    )
    if sqlite:
        text = text.replace("BIGINT", "INTEGER")
    for statement in (_CLIENT_SQLITE if sqlite else _CLIENT_POSTGRESQL).split(";"):
        op.execute(f"{statement}; END" if "TRIGGER" in statement else statement)
    for statement in text.split(";"):
        if statement.strip():
            op.execute(statement)
    for table in _KEPT:
        for event in ["DELETE"] if sqlite else ["DELETE", "TRUNCATE"]:
            op.execute(_refuse(event, table, sqlite=sqlite))
    for table, column in _FROZEN.items():
        op.execute(_refuse("UPDATE", table, column, sqlite=sqlite))
