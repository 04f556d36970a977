"""Envelopes are as RFC 5083 and 5753 say: opened by OpenSSL, read by pyasn1, and nobody else's (SPEC B7)."""

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)
from hypothesis import given
from hypothesis import strategies as st
from pyasn1.codec.der.decoder import decode  # type: ignore[import-untyped]  # it has no types
from pyasn1_alt_modules import (  # type: ignore[import-untyped]  # nor has it
    rfc4055,
    rfc5083,
    rfc5084,
    rfc5480,
    rfc5652,
    rfc5753,
)

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der
from birthmark.pki.envelope import LONGEST, open_envelope, recipient_of, seal
from birthmark.secret import SecretBytes
from tests.support.programs import need

NONCE = bytes.fromhex("00112233445566778899aabb")
_START = datetime(2026, 1, 1, tzinfo=UTC)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
_MAKERS: dict[str, Callable[[], Key]] = {
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "p521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
}
_KDF = {"p256": "sha256", "p384": "sha384", "p521": "sha512"}


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Somebody with a certificate."""

    key: Key
    certificate: bytes

    def open(self, envelope: bytes) -> bytes:
        return open_envelope(envelope, self.key, self.certificate).reveal()

    def seal(self, content: bytes) -> bytes:
        return seal(SecretBytes(content), recipient_of(self.certificate), NONCE)

    def files(self, folder: Path) -> tuple[Path, Path]:
        """Return the files of certificate and key."""
        certificate, key = folder / "recipient.crt", folder / "recipient.key"
        pem = x509.load_der_x509_certificate(self.certificate).public_bytes(Encoding.PEM)
        certificate.write_bytes(pem)
        key.write_bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return certificate, key


def certified(key: Key | ed25519.Ed25519PrivateKey, *usages: str, number: int = 5) -> bytes:
    """Return a certificate of one's own; without usages it does not say what the key is for."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Zoë's bench")])
    known = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .serial_number(number)
        .not_valid_before(_START)
        .not_valid_after(_START + timedelta(days=20_000))
        .public_key(key.public_key())
    )
    if usages:
        builder = builder.add_extension(
            x509.KeyUsage(**{each: each in usages for each in known}), critical=True
        )
    hashed = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, hashed).public_bytes(Encoding.DER)


@cache
def holder(kind: str, number: int = 5) -> Holder:
    """Return a holder whose certificate says what its key is for."""
    key = _MAKERS[kind]()
    usage = "key_encipherment" if kind == "rsa" else "key_agreement"
    return Holder(key=key, certificate=certified(key, "digital_signature", usage, number=number))


@cache
def delivered() -> bytes:
    """Return a device's key (PKCS#8, DER)."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def openssl(*arguments: str | Path, told: bytes = b"") -> bytes:
    return subprocess.run(
        [need("openssl"), *map(str, arguments)], input=told, capture_output=True, check=True
    ).stdout


@pytest.mark.parametrize("kind", list(_MAKERS))
def test_openssl_opens_an_envelope_and_reads_the_key(kind: str, tmp_path: Path) -> None:
    certificate, key = holder(kind).files(tmp_path)
    envelope = holder(kind).seal(delivered())
    opened = openssl("cms", "-decrypt", "-inform", "DER", "-recip", certificate, "-inkey", key, told=envelope)
    assert opened == delivered()
    public = openssl("pkey", "-inform", "DER", "-pubout", "-outform", "DER", told=opened)
    assert public == openssl("pkey", "-inform", "DER", "-pubout", "-outform", "DER", told=delivered())


@pytest.mark.parametrize("kind", list(_MAKERS))
def test_what_openssl_seals_in_the_same_way_opens_here(kind: str, tmp_path: Path) -> None:
    certificate, _ = holder(kind).files(tmp_path)
    how = ["rsa_padding_mode:oaep", "rsa_oaep_md:sha256", "rsa_mgf1_md:sha256"]
    if kind in _KDF:
        how = [f"ecdh_kdf_md:{_KDF[kind]}"]
    options = [word for option in how for word in ("-keyopt", option)]
    envelope = openssl(
        "cms", "-encrypt", "-binary", "-noindef", "-aes-256-gcm", "-outform", "DER", "-recip", certificate,
        *options, told=delivered(),
    )  # fmt: skip
    assert holder(kind).open(envelope) == delivered()


def test_another_reader_of_asn1_finds_what_the_standards_name() -> None:
    envelope = holder("p384").seal(delivered())
    outer, rest = decode(envelope, asn1Spec=rfc5652.ContentInfo())
    assert (str(outer["contentType"]), rest) == (str(rfc5083.id_ct_authEnvelopedData), b"")
    body, rest = decode(outer["content"], asn1Spec=rfc5083.AuthEnvelopedData())
    assert (int(body["version"]), len(body["recipientInfos"]), rest) == (0, 1, b"")
    assert not body["authAttrs"].isValue
    info = body["recipientInfos"][0]["kari"]
    assert int(info["version"]) == 3
    assert str(info["originator"]["originatorKey"]["algorithm"]["algorithm"]) == str(rfc5480.id_ecPublicKey)
    agreement = info["keyEncryptionAlgorithm"]
    assert str(agreement["algorithm"]) == str(rfc5753.dhSinglePass_stdDH_sha384kdf_scheme)
    wrap, _ = decode(agreement["parameters"], asn1Spec=rfc5753.KeyWrapAlgorithm())
    assert str(wrap["algorithm"]) == "2.16.840.1.101.3.4.1.45"
    named = info["recipientEncryptedKeys"][0]["rid"]["issuerAndSerialNumber"]
    assert int(named["serialNumber"]) == 5
    content = body["authEncryptedContentInfo"]
    assert str(content["contentType"]) == str(rfc5652.id_data)
    assert str(content["contentEncryptionAlgorithm"]["algorithm"]) == str(rfc5084.id_aes256_GCM)
    parameters, _ = decode(
        content["contentEncryptionAlgorithm"]["parameters"], asn1Spec=rfc5084.GCMParameters()
    )
    assert (bytes(parameters["aes-nonce"]), int(parameters["aes-ICVlen"])) == (NONCE, 16)
    assert len(body["mac"]) == 16


def test_an_rsa_recipient_is_named_with_oaep() -> None:
    outer, _ = decode(holder("rsa").seal(delivered()), asn1Spec=rfc5652.ContentInfo())
    body, _ = decode(outer["content"], asn1Spec=rfc5083.AuthEnvelopedData())
    info = body["recipientInfos"][0]["ktri"]
    assert str(info["keyEncryptionAlgorithm"]["algorithm"]) == str(rfc4055.id_RSAES_OAEP)


def test_the_same_key_is_never_sealed_the_same_way() -> None:
    one, other = (holder("p256").seal(delivered()) for _ in range(2))
    assert one != other
    assert delivered() not in one
    assert holder("p256").open(one) == holder("p256").open(other) == delivered()


# --- for whom ---


@pytest.mark.parametrize("kind", ["p256", "rsa"])
def test_nobody_else_opens_it(kind: str) -> None:
    envelope = holder(kind).seal(delivered())
    other = Holder(key=_MAKERS[kind](), certificate=holder(kind).certificate)
    with pytest.raises(MalformedRequest, match="does not open with this key"):
        other.open(envelope)
    renamed = Holder(key=holder(kind).key, certificate=holder(kind, 6).certificate)
    with pytest.raises(MalformedRequest, match="recipient is another than expected"):
        renamed.open(envelope)


@pytest.mark.parametrize(
    ("certificate", "why"),
    [
        (lambda: certified(_MAKERS["p256"](), "digital_signature"), "lacks keyAgreement"),
        (lambda: certified(_MAKERS["p256"](), "key_encipherment"), "lacks keyAgreement"),
        (lambda: certified(_MAKERS["rsa"](), "digital_signature", "key_agreement"), "lacks keyEncipherment"),
        (lambda: certified(ed25519.Ed25519PrivateKey.generate(), "digital_signature"), "can only sign"),
        (lambda: certified(ec.generate_private_key(ec.SECP256K1()), "key_agreement"), "is on secp256k1"),
        (lambda: certified(_MAKERS["p256"]()), "does not say what its key is for"),
    ],
)
def test_a_certificate_for_another_use_receives_nothing(certificate: Callable[[], bytes], why: str) -> None:
    """RFC 5280 section 4.2.1.3."""
    with pytest.raises(PolicyRefused, match=why) as refusal:
        recipient_of(certificate())
    assert refusal.value.rule == "envelope-recipient"


def test_a_certificate_that_is_none_is_malformed() -> None:
    with pytest.raises(MalformedRequest):
        recipient_of(b"no certificate")


# --- what is not opened ---


@pytest.mark.parametrize("kind", ["p256", "rsa"])
def test_no_octet_of_it_can_be_changed(kind: str) -> None:
    envelope = holder(kind).seal(delivered())
    for at in range(len(envelope)):
        changed = envelope[:at] + bytes((envelope[at] ^ 1,)) + envelope[at + 1 :]
        with pytest.raises(MalformedRequest):
            holder(kind).open(changed)


def test_an_envelope_ends_where_it_ends() -> None:
    envelope = holder("p256").seal(delivered())
    for wrong in (envelope + b"\0", envelope[:-1], b"", bytes(LONGEST + 1)):
        with pytest.raises(MalformedRequest):
            holder("p256").open(wrong)


def test_a_point_that_is_not_on_the_curve_is_refused() -> None:
    """The attack by invalid curves asks for exactly this."""
    envelope = bytearray(holder("p256").seal(delivered()))
    at = envelope.index(b"\x03\x42\x00\x04") + 4
    envelope[at + 32 : at + 64] = bytes(31) + b"\x01"
    with pytest.raises(MalformedRequest, match="does not open with this key"):
        holder("p256").open(bytes(envelope))


def test_the_refusal_shows_nothing_of_the_key() -> None:
    envelope = bytearray(holder("p256").seal(delivered()))
    envelope[-1] ^= 1
    with pytest.raises(MalformedRequest) as refusal:
        holder("p256").open(bytes(envelope))
    assert str(refusal.value) == "the envelope was changed on its way"
    assert refusal.value.__cause__ is None


@given(st.binary(max_size=300))
def test_any_octets_are_an_envelope_or_malformed(octets: bytes) -> None:
    for wrong in (octets, der.encode(der.SEQUENCE, octets)):
        with pytest.raises(MalformedRequest):
            holder("p256").open(wrong)


@given(st.data())
def test_an_envelope_that_was_damaged_anywhere_is_malformed(data: st.DataObject) -> None:
    envelope = holder("p256").seal(delivered())
    start = data.draw(st.integers(0, len(envelope) - 1))
    stop = data.draw(st.integers(start, min(len(envelope), start + 40)))
    damaged = envelope[:start] + data.draw(st.binary(max_size=40)) + envelope[stop:]
    if damaged != envelope:
        with pytest.raises(MalformedRequest):
            holder("p256").open(damaged)


def test_the_sealed_key_is_the_one_that_was_given() -> None:
    for algorithm in (ec.generate_private_key(ec.SECP521R1()), ed25519.Ed25519PrivateKey.generate()):
        octets = algorithm.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        opened = load_der_private_key(holder("p256").open(holder("p256").seal(octets)), None)
        assert opened.public_key() == algorithm.public_key()
