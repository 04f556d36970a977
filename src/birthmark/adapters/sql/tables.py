"""The tables, as SQLAlchemy Core metadata: what the migrations must arrive at, on both databases.

Every table of values has one key, the first field of the value it holds: a text, except that of
``identity_record``, which is the number of its leaf.  Times are milliseconds since 1970 in UTC.

By trigger (see the migrations) no table loses a row; the rows of ``realm``, ``leaf``, ``tile``,
``checkpoint``, ``identity_record``, ``key_use`` and ``allowed_device`` never change, and neither do the bytes
of a certificate, the document of a run and the device of an attempt.
"""

from sqlalchemy import BigInteger, Column, LargeBinary, MetaData, Table, Text

__all__ = ["METADATA"]

METADATA = MetaData()


def _text(name: str, *, null: bool = False) -> Column[str]:
    return Column(name, Text, nullable=null)


def _key(name: str) -> Column[str]:
    return Column(name, Text, primary_key=True, nullable=False)


def _integer(name: str, *, null: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=null)


def _bytes(name: str, *, null: bool = False) -> Column[bytes]:
    return Column(name, LargeBinary, nullable=null)


# The realm: one row, written once.
Table(
    "realm",
    METADATA,
    _key("name"),
    _text("environment"),
    _text("origin"),
    _text("vkey"),
    _integer("created_at"),
)

# The log.
Table(
    "head",
    METADATA,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    _integer("size"),
    _bytes("edge"),
    _integer("at"),
)
Table(
    "leaf",
    METADATA,
    Column("idx", BigInteger, primary_key=True, autoincrement=False),
    _bytes("hash"),
    _bytes("entry"),
)
Table(
    "tile",
    METADATA,
    Column("level", BigInteger, primary_key=True, autoincrement=False),
    Column("idx", BigInteger, primary_key=True, autoincrement=False),
    _bytes("root"),
)
Table(
    "checkpoint", METADATA, Column("size", BigInteger, primary_key=True, autoincrement=False), _text("note")
)

# What the log's entries made true.
Table(
    "authority",
    METADATA,
    _key("id"),
    _text("kind"),
    _text("issuer"),
    _text("key_label"),
    _bytes("der"),
    _text("owner"),
    _text("scope"),
    _integer("quota", null=True),
    _integer("ends_at"),
    _text("status"),
    _integer("issued"),
)
Table(
    "client",
    METADATA,
    _key("id"),
    _text("role"),
    _text("site"),
    _text("line"),
    _text("hardware_id", null=True),
    _text("run", null=True),
    _text("status"),
    _integer("last_seq"),
)
Table(
    "credential",
    METADATA,
    _key("serial"),
    _text("client"),
    _text("authority"),
    _text("profile"),
    _bytes("der"),
    _integer("not_after"),
    _text("status"),
)
Table(
    "run",
    METADATA,
    _key("id"),
    _bytes("document"),
    _bytes("signature"),
    _text("signer"),
    _text("status"),
    _integer("quantity"),
    _integer("admitted"),
    _integer("released"),
    _integer("held"),
    _integer("scrapped"),
)
Table("allowed_device", METADATA, _key("id"))
Table(
    "device",
    METADATA,
    _key("id"),
    _text("state"),
    _text("run"),
    _text("attempt"),
    _integer("attempts"),
    _text("reason", null=True),
)
Table(
    "attempt",
    METADATA,
    _key("id"),
    _text("device"),
    _integer("number"),
    _text("run"),
    _text("client"),
    _text("operator", null=True),
    _text("origin"),
    _text("state"),
    _bytes("challenge"),
    _text("certificate"),
    _integer("issued_at"),
    _integer("issue_leaf"),
    _bytes("proof", null=True),
    _integer("released_at", null=True),
    _integer("release_leaf", null=True),
)
Table(
    "device_certificate",
    METADATA,
    _key("serial"),
    _text("authority"),
    _text("device"),
    _text("attempt"),
    _bytes("der"),
    _text("sha256"),
    _text("revoked", null=True),
    _integer("revoked_at", null=True),
)
Table("key_use", METADATA, _key("spki_sha256"), _text("device"))
Table(
    "identity_record",
    METADATA,
    Column("leaf", BigInteger, primary_key=True, autoincrement=False),
    _text("device"),
    _text("attempt"),
    _integer("attempt_number"),
    _text("run"),
    _text("batch"),
    _text("product"),
    _text("profile"),
    _text("authority"),
    _text("certificate"),
    _text("certificate_sha256"),
    _text("spki_sha256"),
    _text("origin"),
    _text("site"),
    _text("line"),
    _text("client"),
    _text("operator", null=True),
    _integer("issued_at"),
    _integer("issue_leaf"),
    _integer("released_at"),
    _bytes("challenge"),
    _bytes("proof"),
)
Table(
    "answer",
    METADATA,
    _key("id"),
    _text("request_sha256"),
    _text("attempt", null=True),
    _text("refusal", null=True),
    _text("detail", null=True),
    _integer("at"),
)
