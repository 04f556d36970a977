"""Secure elements: how far each has come, and whose it is."""

from alembic import op

revision = "0003"
down_revision = "0002"

_NEW = """
CREATE TABLE element_journal (
    device TEXT NOT NULL PRIMARY KEY, attempt TEXT NOT NULL, element TEXT NOT NULL, master TEXT NOT NULL,
    phase TEXT NOT NULL CHECK (phase IN ('absent', 'intended', 'confirmed')), kdd {bytes} NOT NULL,
    initial_counter BIGINT NOT NULL, final_counter BIGINT NOT NULL, failures BIGINT NOT NULL,
    tries BIGINT NOT NULL, reason TEXT) {strict};
CREATE TABLE element_use (id TEXT NOT NULL PRIMARY KEY, device TEXT NOT NULL) {keyed};
CREATE TABLE attestation (
    id TEXT NOT NULL PRIMARY KEY, device TEXT NOT NULL, run TEXT NOT NULL, client TEXT NOT NULL,
    ek_certificate {bytes} NOT NULL, ek_spki_sha256 TEXT NOT NULL, iak {bytes} NOT NULL,
    idevid {bytes} NOT NULL, nonce {bytes} NOT NULL, secret_sha256 TEXT NOT NULL, expires_at BIGINT NOT NULL,
    certify_info {bytes}, certify_signature {bytes},
    CHECK ((certify_info IS NULL) = (certify_signature IS NULL))) {strict};
"""
_APPEND_ONLY = ("element_use",)
_KEPT = ("element_journal", "attestation", *_APPEND_ONLY)


def _refuse(event: str, table: str, *, sqlite: bool) -> str:
    name = f"{table}_no_{event.lower()}"
    if sqlite:
        return (
            f"CREATE TRIGGER {name} BEFORE {event} ON {table}"
            f" BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )
    each = "STATEMENT" if event == "TRUNCATE" else "ROW"
    return f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH {each} EXECUTE FUNCTION append_only()"


def upgrade() -> None:
    """Make the new tables."""
    sqlite = op.get_bind().dialect.name == "sqlite"
    text = _NEW.format(
        bytes="BLOB" if sqlite else "BYTEA",
        strict="STRICT" if sqlite else "",
        keyed="STRICT, WITHOUT ROWID" if sqlite else "",
    )
    if sqlite:
        text = text.replace("BIGINT", "INTEGER")
    for statement in text.split(";"):
        if statement.strip():
            op.execute(statement)
    for table in _KEPT:
        events = ["DELETE"] if sqlite else ["DELETE", "TRUNCATE"]
        for event in [*events, *(["UPDATE"] if table in _APPEND_ONLY else [])]:
            op.execute(_refuse(event, table, sqlite=sqlite))
