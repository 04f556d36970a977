"""The log, the record and the line.

The statements are written out, once, with three words that differ between the databases.  SQLite's tables are
STRICT; key tables without other big columns go WITHOUT ROWID, so that a look-up is one walk.
"""

from alembic import op

revision = "0001"
down_revision = None

_CREATE = """
CREATE TABLE realm (
    name TEXT NOT NULL PRIMARY KEY, environment TEXT NOT NULL CHECK (environment IN ('test', 'production')),
    origin TEXT NOT NULL, vkey TEXT NOT NULL, created_at BIGINT NOT NULL) {strict};
CREATE TABLE head (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1), size BIGINT NOT NULL, edge {bytes} NOT NULL,
    at BIGINT NOT NULL) {strict};
CREATE TABLE leaf (idx BIGINT NOT NULL PRIMARY KEY, hash {bytes} NOT NULL, entry {bytes} NOT NULL) {strict};
CREATE TABLE tile (
    level BIGINT NOT NULL, idx BIGINT NOT NULL, root {bytes} NOT NULL, PRIMARY KEY (level, idx)) {strict};
CREATE TABLE checkpoint (size BIGINT NOT NULL PRIMARY KEY, note TEXT NOT NULL) {strict};
CREATE TABLE authority (
    id TEXT NOT NULL PRIMARY KEY, kind TEXT NOT NULL CHECK (kind IN ('root', 'issuing')),
    issuer TEXT NOT NULL,
    key_label TEXT NOT NULL, der {bytes} NOT NULL, owner TEXT NOT NULL, scope TEXT NOT NULL,
    quota BIGINT CHECK (quota >= 0), ends_at BIGINT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('active', 'suspended', 'retired')),
    issued BIGINT NOT NULL CHECK (issued >= 0 AND (quota IS NULL OR issued <= quota))) {strict};
CREATE TABLE client (
    id TEXT NOT NULL PRIMARY KEY, role TEXT NOT NULL CHECK (role IN ('station', 'bootstrap', 'operator',
    'server')),
    site TEXT NOT NULL, line TEXT NOT NULL, hardware_id TEXT, run TEXT,
    status TEXT NOT NULL CHECK (status IN ('active', 'revoked')), last_seq BIGINT NOT NULL) {strict};
CREATE TABLE credential (
    serial TEXT NOT NULL PRIMARY KEY, client TEXT NOT NULL, authority TEXT NOT NULL, profile TEXT NOT NULL,
    der {bytes} NOT NULL, not_after BIGINT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('active', 'revoked'))) {strict};
CREATE TABLE run (
    id TEXT NOT NULL PRIMARY KEY, document {bytes} NOT NULL, signature {bytes} NOT NULL, signer TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('open', 'closed')), quantity BIGINT NOT NULL,
    admitted BIGINT NOT NULL CHECK (admitted BETWEEN 0 AND quantity), released BIGINT NOT NULL,
    held BIGINT NOT NULL,
    scrapped BIGINT NOT NULL, CHECK (released + held + scrapped <= admitted)) {strict};
CREATE TABLE allowed_device (id TEXT NOT NULL PRIMARY KEY) {keyed};
CREATE TABLE device (
    id TEXT NOT NULL PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('admitted', 'issued', 'released', 'held', 'scrapped')),
    run TEXT NOT NULL, attempt TEXT NOT NULL, attempts BIGINT NOT NULL, reason TEXT) {keyed};
CREATE TABLE attempt (
    id TEXT NOT NULL PRIMARY KEY, device TEXT NOT NULL, number BIGINT NOT NULL, run TEXT NOT NULL,
    client TEXT NOT NULL,
    operator TEXT, origin TEXT NOT NULL CHECK (origin IN ('born', 'delivered')),
    state TEXT NOT NULL CHECK (state IN ('issued', 'released', 'held')),
    challenge {bytes} NOT NULL, certificate TEXT NOT NULL, issued_at BIGINT NOT NULL,
    issue_leaf BIGINT NOT NULL,
    proof {bytes}, released_at BIGINT, release_leaf BIGINT,

    CHECK (state <> 'released' OR
        (proof IS NOT NULL AND released_at IS NOT NULL AND release_leaf IS NOT NULL))) {strict};
CREATE TABLE device_certificate (
    serial TEXT NOT NULL PRIMARY KEY, authority TEXT NOT NULL, device TEXT NOT NULL, attempt TEXT NOT NULL,
    der {bytes} NOT NULL, sha256 TEXT NOT NULL,
    revoked TEXT CHECK (revoked IN ('unspecified', 'keyCompromise', 'superseded', 'cessationOfOperation')),
    revoked_at BIGINT) {strict};
CREATE TABLE key_use (spki_sha256 TEXT NOT NULL PRIMARY KEY, device TEXT NOT NULL) {keyed};
CREATE TABLE identity_record (
    leaf BIGINT NOT NULL PRIMARY KEY, device TEXT NOT NULL, attempt TEXT NOT NULL,
    attempt_number BIGINT NOT NULL,
    run TEXT NOT NULL, batch TEXT NOT NULL, product TEXT NOT NULL, profile TEXT NOT NULL,
    authority TEXT NOT NULL,
    certificate TEXT NOT NULL, certificate_sha256 TEXT NOT NULL, spki_sha256 TEXT NOT NULL,
    origin TEXT NOT NULL, site TEXT NOT NULL, line TEXT NOT NULL, client TEXT NOT NULL, operator TEXT,
    issued_at BIGINT NOT NULL, issue_leaf BIGINT NOT NULL, released_at BIGINT NOT NULL,
    challenge {bytes} NOT NULL, proof {bytes} NOT NULL) {strict};
CREATE TABLE answer (
    id TEXT NOT NULL PRIMARY KEY, request_sha256 TEXT NOT NULL, attempt TEXT, refusal TEXT, detail TEXT,
    at BIGINT NOT NULL) {keyed};
"""

_APPEND_ONLY = ("realm", "leaf", "tile", "checkpoint", "identity_record", "key_use", "allowed_device")
"""Tables whose rows are written once."""
_FROZEN = {
    "authority": "der",
    "credential": "der",
    "device_certificate": "der",
    "run": "document",
    "attempt": "device",
}
"""Tables that lose no row, and one column of each that never changes."""
_KEPT = ("head", "client", "device", "answer")
"""Tables that only lose no row."""


def _sqlite_triggers() -> list[str]:
    def refuse(name: str, event: str, table: str, when: str = "") -> str:
        return (
            f"CREATE TRIGGER {name} BEFORE {event} ON {table} {when}"
            f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )

    return [
        *(refuse(f"{table}_no_update", "UPDATE", table) for table in _APPEND_ONLY),
        *(refuse(f"{table}_no_delete", "DELETE", table) for table in (*_APPEND_ONLY, *_FROZEN, *_KEPT)),
        *(
            refuse(f"{table}_frozen", f"UPDATE OF {column}", table, f"WHEN NEW.{column} IS NOT OLD.{column}")
            for table, column in _FROZEN.items()
        ),
    ]


def _postgresql_triggers() -> list[str]:
    def refuse(name: str, event: str, table: str, when: str = "", each: str = "ROW") -> str:
        return (
            f"CREATE TRIGGER {name} BEFORE {event} ON {table}"
            f" FOR EACH {each} {when} EXECUTE FUNCTION append_only()"
        )

    return [
        (
            "CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
        ),
        *(refuse(f"{table}_no_update", "UPDATE", table) for table in _APPEND_ONLY),
        *(refuse(f"{table}_no_delete", "DELETE", table) for table in (*_APPEND_ONLY, *_FROZEN, *_KEPT)),
        *(
            refuse(f"{table}_no_truncate", "TRUNCATE", table, each="STATEMENT")
            for table in (*_APPEND_ONLY, *_FROZEN, *_KEPT)
        ),
        *(
            refuse(f"{table}_frozen", "UPDATE", table, f"WHEN (NEW.{column} IS DISTINCT FROM OLD.{column})")
            for table, column in _FROZEN.items()
        ),
    ]


def upgrade() -> None:
    """Create everything."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    text = _CREATE.format(
        bytes="BLOB" if sqlite else "BYTEA",
        strict="STRICT" if sqlite else "",
        keyed="STRICT, WITHOUT ROWID" if sqlite else "",
    )
    if sqlite:
        text = text.replace("BIGINT", "INTEGER")
    for statement in text.split(";"):
        if statement.strip():
            op.execute(statement)
    for statement in _sqlite_triggers() if sqlite else _postgresql_triggers():
        op.execute(statement)
