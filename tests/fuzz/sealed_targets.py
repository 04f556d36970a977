"""Targets of what carries something inside: envelopes of private keys, backups."""

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark import errors
from birthmark.adapters.sql.schema import deviations, newest, parts_of_dump
from birthmark.edge.cli.invitations import duration
from birthmark.pki.envelope import NONCE_SIZE, open_envelope, recipient_of, seal
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes
from birthmark.services.backup import Engine, Manifest, open_backup, write_backup
from tests.fuzz.ledger_targets import log
from tests.fuzz.mutators import Shape
from tests.fuzz.pki_targets import issued
from tests.fuzz.target import Target, text
from tests.ledger.sample import VKEY
from tests.pki.sample import FOUNDED, NOW, private_key

AT = datetime(2026, 11, 22, tzinfo=UTC)


@cache
def recipient() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """A key that envelopes are sealed to, and its certificate (DER)."""
    key = private_key(KeyAlgorithm.EC_P256, "recipient")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "ST01")])
    uses = [one for one in x509.KeyUsage.__init__.__annotations__ if one != "return"]
    usage = x509.KeyUsage(**{one: one == "key_agreement" for one in uses})
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(4711)
    builder = builder.not_valid_before(FOUNDED).not_valid_after(NOW).public_key(key.public_key())
    made = builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())
    return key, made.public_bytes(Encoding.DER)


def _envelope(data: bytes) -> object:
    return open_envelope(data, *recipient())


def _envelope_seeds() -> Iterator[bytes]:
    yield seal(SecretBytes(b"a private key"), recipient_of(recipient()[1]), bytes(NONCE_SIZE))


def manifest(database: bytes) -> Manifest:
    """What a backup of the sample log says of itself."""
    return Manifest(
        realm="acme",
        environment="test",
        origin=VKEY.name,
        vkey=str(VKEY),
        engine=Engine.SQLITE,
        schema="0004",
        size=7,
        root=log().root(7),
        checkpoint_sha256=sha256(log().checkpoint().encode()).hexdigest(),
        database_octets=len(database),
        database_sha256=sha256(database).hexdigest(),
        program="1",
        made_at=AT,
    )


def _backup(data: bytes) -> None:
    with open_backup(io.BytesIO(data)) as backup:
        backup.extract(io.BytesIO())


def _backup_seeds() -> Iterator[bytes]:
    out = io.BytesIO()
    write_backup(out, manifest(b"rows"), log().checkpoint(), io.BytesIO(b"rows"))
    yield out.getvalue()


def _schema_dump(data: bytes) -> None:
    deviations("dump", parts_of_dump(data.decode("utf-8", "backslashreplace").split("\n")), newest())


_DUMPED = b"""--
-- Name: leaf; Type: TABLE; Schema: public; Owner: owner
--
CREATE TABLE public.leaf (
    idx bigint NOT NULL
);
-- Name: seen(); Type: FUNCTION; Schema: elsewhere; Owner: owner
CREATE FUNCTION elsewhere.seen() RETURNS integer LANGUAGE sql AS $$SELECT 1$$;
--
-- PostgreSQL database dump complete
--
"""


SEALED_TARGETS = (
    Target(name="envelope", run=_envelope, seeds=_envelope_seeds, shape=Shape.DER),
    Target(
        name="envelope-recipient",
        run=recipient_of,
        seeds=lambda: [recipient()[1], *issued()[:2]],
        refuses=(errors.MalformedRequest, errors.PolicyRefused),
        refused_seeds=True,
        shape=Shape.DER,
    ),
    Target(
        name="backup",
        run=_backup,
        seeds=_backup_seeds,
        refuses=(errors.MalformedRequest, errors.IntegrityFailure),
        longest=16384,
    ),
    Target(
        name="backup-manifest",
        run=Manifest.decode,
        seeds=lambda: [manifest(b"rows").encode()],
        shape=Shape.JSON,
    ),
    Target(name="schema-dump", run=_schema_dump, seeds=lambda: [_DUMPED]),
    Target(name="duration", run=text(duration), seeds=lambda: [b"30m", b"2d"]),
)
