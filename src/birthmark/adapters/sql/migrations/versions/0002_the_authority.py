"""Authorities with a scope, runs opened by two people, revocations by CRL, recalls, shipments, ceremonies.

Four tables are made anew, because SQLite changes neither a CHECK nor the order of columns in place.  What was
revoked moves from the certificates to ``revocation``, each with its CRL entry.  Its ids compare by octets on
PostgreSQL, whatever the database's collation: a CRL is a walk along them, and the entries lie in that order.
"""

from datetime import UTC, datetime, timedelta

import sqlalchemy
from alembic import op

from birthmark.pki.revocation import ReasonCode, revoked_entry

revision = "0002"
down_revision = "0001"

_ANEW = """
CREATE TABLE authority (
    id TEXT NOT NULL PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('root', 'intermediate', 'issuing')),
    issuer TEXT NOT NULL, custody TEXT NOT NULL CHECK (custody IN ('service', 'offline', 'foreign')),
    key_label TEXT NOT NULL, profile TEXT NOT NULL, der {bytes} NOT NULL, owner TEXT NOT NULL,
    scope TEXT NOT NULL,
    profiles TEXT NOT NULL, constraints TEXT NOT NULL,
    quota BIGINT CHECK (quota >= 0), ends_at BIGINT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('active', 'suspended', 'retired', 'revoked')),
    issued BIGINT NOT NULL CHECK (issued >= 0 AND (quota IS NULL OR issued <= quota)),
    ceremony TEXT NOT NULL, successor TEXT) {strict};
INSERT INTO authority SELECT id, kind, issuer, CASE WHEN key_label = '' THEN 'offline' ELSE 'service' END,
    CASE WHEN key_label = '' THEN 'root' ELSE key_label END, kind, der, owner,
    CASE WHEN scope = '*' THEN '*' ELSE 'product=' || scope END, '*', '[]', quota, ends_at, status, issued,
    '', NULL
    FROM authority_0001;
CREATE TABLE client (
    id TEXT NOT NULL PRIMARY KEY, role TEXT NOT NULL CHECK (role IN ('station', 'bootstrap', 'operator',
    'server', 'responder')),
    site TEXT NOT NULL, line TEXT NOT NULL, hardware_id TEXT, run TEXT,
    status TEXT NOT NULL CHECK (status IN ('active', 'revoked')), last_seq BIGINT NOT NULL) {strict};
INSERT INTO client SELECT id, role, site, line, hardware_id, run, status, last_seq FROM client_0001;
CREATE TABLE run (
    id TEXT NOT NULL PRIMARY KEY, document {bytes} NOT NULL, signature {bytes} NOT NULL, signer TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('proposed', 'open', 'closed')), quantity BIGINT NOT NULL,
    admitted BIGINT NOT NULL CHECK (admitted BETWEEN 0 AND quantity), released BIGINT NOT NULL,
    held BIGINT NOT NULL,
    scrapped BIGINT NOT NULL, approver TEXT, approval {bytes}, opening BIGINT,
    CHECK (released + held + scrapped <= admitted)) {strict};
INSERT INTO run SELECT id, document, signature, signer, status, quantity, admitted, released, held, scrapped,
    NULL, NULL, NULL FROM run_0001;
CREATE TABLE device_certificate (
    serial TEXT NOT NULL PRIMARY KEY, authority TEXT NOT NULL, device TEXT NOT NULL, attempt TEXT NOT NULL,
    der {bytes} NOT NULL, sha256 TEXT NOT NULL, run TEXT NOT NULL, partition TEXT NOT NULL,
    client TEXT NOT NULL, issued_at BIGINT NOT NULL) {strict};
INSERT INTO device_certificate SELECT c.serial, c.authority, c.device, c.attempt, c.der, c.sha256, a.run,
    'all', a.client, a.issued_at FROM device_certificate_0001 c JOIN attempt a ON a.id = c.attempt;
"""
_NEW = """
ALTER TABLE attempt ADD COLUMN further TEXT NOT NULL DEFAULT '';
ALTER TABLE identity_record ADD COLUMN further TEXT NOT NULL DEFAULT '';
CREATE INDEX device_certificate_of_run ON device_certificate (run, serial);
CREATE TABLE revocation (
    id TEXT {octets} NOT NULL, entry {bytes} NOT NULL, reason TEXT NOT NULL CHECK (reason IN (
        'unspecified', 'keyCompromise', 'cACompromise', 'affiliationChanged', 'superseded',
        'cessationOfOperation', 'certificateHold', 'removeFromCRL', 'privilegeWithdrawn', 'aACompromise')),
    revoked_at BIGINT NOT NULL, cause TEXT NOT NULL, PRIMARY KEY (id) {entries}) {keyed};
CREATE INDEX revocation_at ON revocation (revoked_at, id);
CREATE TABLE recall (
    id TEXT NOT NULL PRIMARY KEY, document {bytes} NOT NULL, proposer TEXT NOT NULL,
    proposal {bytes} NOT NULL, approver TEXT, approval {bytes},
    status TEXT NOT NULL CHECK (status IN ('proposed', 'approved', 'done', 'withdrawn')),
    cursor TEXT NOT NULL, changed BIGINT NOT NULL, proposed_at BIGINT NOT NULL, approved_at BIGINT,
    CHECK (status IN ('proposed', 'withdrawn') OR (approver IS NOT NULL AND approval IS NOT NULL
        AND approved_at IS NOT NULL AND approver <> proposer))) {strict};
CREATE TABLE shipped (
    device TEXT NOT NULL PRIMARY KEY, consignment TEXT NOT NULL, at BIGINT NOT NULL) {keyed};
CREATE TABLE ceremony (
    id TEXT NOT NULL PRIMARY KEY, file {bytes} NOT NULL, file_sha256 TEXT NOT NULL, record {bytes} NOT NULL,
    record_sha256 TEXT NOT NULL, performed_at BIGINT NOT NULL, leaf BIGINT NOT NULL) {strict};
CREATE TABLE key_asset (
    label TEXT NOT NULL PRIMARY KEY, store TEXT NOT NULL, purpose TEXT NOT NULL, kind TEXT NOT NULL,
    policy TEXT NOT NULL, users TEXT NOT NULL, fingerprint TEXT NOT NULL, ceremony TEXT,
    status TEXT NOT NULL CHECK (status IN ('active', 'destroyed')), created_at BIGINT NOT NULL,
    backed_up_at BIGINT, backup_sha256 TEXT) {strict};
"""

_REBUILT = ("authority", "client", "run", "device_certificate")
_APPEND_ONLY = ("shipped", "ceremony")
_FROZEN = {
    "authority": "der",
    "run": "document",
    "device_certificate": "der",
    "recall": "document",
    "key_asset": "fingerprint",
}
_KEPT = ("client", "revocation")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def _refuse(name: str, event: str, table: str, column: str = "", *, sqlite: bool) -> str:
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


def _triggers(*, sqlite: bool) -> list[str]:
    kept = (*_APPEND_ONLY, *_FROZEN, *_KEPT)
    return [
        *(_refuse(f"{table}_no_update", "UPDATE", table, sqlite=sqlite) for table in _APPEND_ONLY),
        *(_refuse(f"{table}_no_delete", "DELETE", table, sqlite=sqlite) for table in kept),
        *(_refuse(f"{table}_no_truncate", "TRUNCATE", table, sqlite=sqlite) for table in kept if not sqlite),
        *(_refuse(f"{t}_frozen", "UPDATE", t, column, sqlite=sqlite) for t, column in _FROZEN.items()),
    ]


def _revocations() -> None:
    """Give every certificate that was revoked its entry."""
    connection = op.get_bind()
    rows = connection.execute(
        sqlalchemy.text(
            "SELECT serial, authority, revoked, revoked_at FROM device_certificate_0001"
            " WHERE revoked IS NOT NULL"
        )
    )
    for serial, authority, revoked, revoked_at in rows.fetchall():
        reason, at = ReasonCode(revoked), _EPOCH + timedelta(milliseconds=revoked_at)
        connection.execute(
            sqlalchemy.text("INSERT INTO revocation VALUES (:id, :entry, :reason, :at, :cause)"),
            {
                "id": f"{authority}/all/{serial}",
                "entry": revoked_entry(int(serial, 16), at, reason),
                "reason": str(reason),
                "at": revoked_at,
                "cause": "earlier",
            },
        )


def upgrade() -> None:
    """Make four tables anew, and six more."""
    sqlite = op.get_bind().dialect.name == "sqlite"

    def run(text: str) -> None:
        text = text.format(
            bytes="BLOB" if sqlite else "BYTEA",
            strict="STRICT" if sqlite else "",
            keyed="STRICT, WITHOUT ROWID" if sqlite else "",
            octets="" if sqlite else 'COLLATE "C"',
            entries="" if sqlite else "INCLUDE (entry)",
        )
        if sqlite:
            text = text.replace("BIGINT", "INTEGER")
        for statement in text.split(";"):
            if statement.strip():
                op.execute(statement)

    for table in _REBUILT:
        op.execute(f"ALTER TABLE {table} RENAME TO {table}_0001")
    run(_ANEW)
    run(_NEW)
    _revocations()
    for table in _REBUILT:
        op.execute(f"DROP TABLE {table}_0001")
    for statement in _triggers(sqlite=sqlite):
        op.execute(statement)
