"""The tables, as SQLAlchemy Core metadata: what the migrations must arrive at, on both databases.

Every table of values has one key, the first field of the value it holds: a text, except that of
``identity_record``, which is the number of its leaf.  Times are milliseconds since 1970 in UTC.

By trigger (see the migrations) no table loses a row; the rows of ``realm``, ``leaf``, ``tile``,
``checkpoint``, ``identity_record``, ``key_use``, ``element_use``, ``allowed_device``, ``shipped`` and
``ceremony`` never change, and neither do the bytes of a certificate, the document of a run, recall or
proposal, the client of an invitation, the device of an attempt and the fingerprint of a key.

Ids and partitions compare by octets on both databases: a CRL is a walk along ``revocation.id``.
"""

from sqlalchemy import BigInteger, Column, Index, LargeBinary, MetaData, Table, Text

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
    _text("custody"),
    _text("key_label"),
    _text("profile"),
    _bytes("der"),
    _text("owner"),
    _text("scope"),
    _text("profiles"),
    _text("constraints"),
    _integer("quota", null=True),
    _integer("ends_at"),
    _text("status"),
    _integer("issued"),
    _text("ceremony"),
    _text("successor", null=True),
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
    _text("runs"),
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
    _text("approver", null=True),
    _bytes("approval", null=True),
    _integer("opening", null=True),
    _integer("proposed_at", null=True),
)
Table(
    "proposal",
    METADATA,
    _key("id"),
    _bytes("document"),
    _text("proposer"),
    _bytes("proposal"),
    _text("approver", null=True),
    _bytes("approval", null=True),
    _text("status"),
    _integer("proposed_at"),
)
Table(
    "invitation",
    METADATA,
    _key("id"),
    _text("client"),
    _text("site"),
    _text("line"),
    _text("runs"),
    _text("authority"),
    _text("invited_by"),
    _integer("hours"),
    _integer("expires_at"),
    _text("certificate", null=True),
)
Table("bucket", METADATA, _key("id"), _integer("thousandths"), _integer("at"))
Table("exposure", METADATA, _key("id"), _integer("opens_at"), _integer("closes_at", null=True))
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
    _text("further"),
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
    _text("run"),
    _text("partition"),
    _text("client"),
    _integer("issued_at"),
    Index("device_certificate_of_run", "run", "serial"),
)
Table(
    "revocation",
    METADATA,
    _key("id"),
    _bytes("entry"),
    _text("reason"),
    _integer("revoked_at"),
    _text("cause"),
    Index("revocation_at", "revoked_at", "id"),
)
Table(
    "recall",
    METADATA,
    _key("id"),
    _bytes("document"),
    _text("proposer"),
    _bytes("proposal"),
    _text("approver", null=True),
    _bytes("approval", null=True),
    _text("status"),
    _text("cursor"),
    _integer("changed"),
    _integer("proposed_at"),
    _integer("approved_at", null=True),
)
Table("shipped", METADATA, _key("device"), _text("consignment"), _integer("at"))
Table(
    "ceremony",
    METADATA,
    _key("id"),
    _bytes("file"),
    _text("file_sha256"),
    _bytes("record"),
    _text("record_sha256"),
    _integer("performed_at"),
    _integer("leaf"),
)
Table(
    "key_asset",
    METADATA,
    _key("label"),
    _text("store"),
    _text("purpose"),
    _text("kind"),
    _text("policy"),
    _text("users"),
    _text("fingerprint"),
    _text("ceremony", null=True),
    _text("status"),
    _integer("created_at"),
    _integer("backed_up_at", null=True),
    _text("backup_sha256", null=True),
)
Table("key_use", METADATA, _key("spki_sha256"), _text("device"))
Table(
    "element_journal",
    METADATA,
    _key("device"),
    _text("attempt"),
    _text("element"),
    _text("master"),
    _text("phase"),
    _bytes("kdd"),
    _integer("initial_counter"),
    _integer("final_counter"),
    _integer("failures"),
    _integer("tries"),
    _text("reason", null=True),
)
Table("element_use", METADATA, _key("id"), _text("device"))
Table(
    "attestation",
    METADATA,
    _key("id"),
    _text("device"),
    _text("run"),
    _text("client"),
    _bytes("ek_certificate"),
    _text("ek_spki_sha256"),
    _bytes("iak"),
    _bytes("idevid"),
    _bytes("nonce"),
    _text("secret_sha256"),
    _integer("expires_at"),
    _bytes("certify_info", null=True),
    _bytes("certify_signature", null=True),
)
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
    _text("further"),
)
Table(
    "local_identity",
    METADATA,
    _key("id"),
    _text("device"),
    _text("run"),
    _text("attempt"),
    _integer("attempts"),
    _text("certificate", null=True),
)
Table(
    "waiting_enrolment",
    METADATA,
    _key("id"),
    _text("device"),
    _text("run"),
    _text("client"),
    _text("request_sha256"),
    _text("csr_sha256"),
    _text("status"),
    _integer("asked_at"),
    _text("decided_by", null=True),
    _text("reason", null=True),
)
Table(
    "cmp_transaction",
    METADATA,
    _key("id"),
    _text("client"),
    _text("run"),
    _text("body"),
    _bytes("request"),
    _integer("request_id"),
    _text("key"),
    _bytes("nonce"),
    _text("status"),
    _integer("expires_at"),
    _text("attempt", null=True),
    _text("certificate", null=True),
    Index("cmp_transaction_of_attempt", "attempt", "id"),
)
Table(
    "shared_credential",
    METADATA,
    _key("id"),
    _integer("quantity"),
    _integer("used"),
    _text("networks"),
    _integer("waiting"),
)
Table(
    "fleet_authority",
    METADATA,
    _key("id"),
    _bytes("der"),
    _text("policy"),
    _text("status"),
    _text("nonce"),
    _integer("asked_at"),
    _bytes("verification", null=True),
)
Table(
    "foreign_crl",
    METADATA,
    _key("id"),
    _bytes("issuer", null=True),
    _text("url"),
    _text("number"),
    _text("sha256"),
    _integer("entries"),
    _integer("this_update"),
    _integer("next_update"),
)
Table("foreign_crl_octets", METADATA, _key("id"), _text("sha256"), _bytes("der"))
Table(
    "field_device",
    METADATA,
    _key("id"),
    _text("authority"),
    _text("certificate"),
    _text("status"),
    _text("reason", null=True),
    _text("place"),
    _integer("moved_at"),
    _integer("moves"),
    _integer("counted_from"),
    _integer("first_seen_at"),
    _integer("first_seen_leaf"),
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
