"""Key packages are RFC 5958's, signed and enveloped as RFC 7030 wants: opened by OpenSSL, read by pyasn1."""

import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_der_private_key
from pyasn1.codec.der.decoder import decode  # type: ignore[import-untyped]  # it has no types
from pyasn1.codec.der.encoder import encode  # type: ignore[import-untyped]  # nor has it
from pyasn1_alt_modules import rfc3565, rfc5652, rfc5958  # type: ignore[import-untyped]  # nor have they

from birthmark.adapters.system import SystemEntropy
from birthmark.errors import MalformedRequest
from birthmark.pki import der
from birthmark.pki.algorithms import signature_by
from birthmark.pki.envelope import recipient_of
from birthmark.pki.keypackage import PackageSigner, package_signer, seal_package
from birthmark.secret import SecretBytes
from tests.pki.test_envelope import Holder, certified, delivered, holder, openssl

SIGNERS: dict[str, Callable[[], ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey]] = {
    "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "rsa": lambda: rsa.generate_private_key(65537, 2048),
}


@cache
def maker(kind: str = "p256") -> PackageSigner:
    """Return somebody who makes keys."""
    key = SIGNERS[kind]()
    certificate = certified(key, "digital_signature", number=77)
    return package_signer((certificate,), lambda message: signature_by(key, message))


def sealed(signer: PackageSigner, to: Holder) -> bytes:
    return seal_package(signer, SecretBytes(delivered()), recipient_of(to.certificate), SystemEntropy().token)


def opened(envelope: bytes, to: Holder, folder: Path) -> bytes:
    """Return what openssl decrypts: SignedData, which it does not put into a ContentInfo."""
    certificate, key = to.files(folder)
    return openssl("cms", "-decrypt", "-inform", "DER", "-recip", certificate, "-inkey", key, told=envelope)


def content_info(signed_data: bytes) -> bytes:
    return der.encode(der.SEQUENCE, der.oid("1.2.840.113549.1.7.2"), der.encode(0xA0, signed_data))


@pytest.mark.parametrize("kind", ["p256", "p384", "p521", "rsa"])
@pytest.mark.parametrize("by", list(SIGNERS))
def test_openssl_decrypts_and_verifies_a_package_and_reads_the_key(
    kind: str, by: str, tmp_path: Path
) -> None:
    signer, to = maker(by), holder(kind)
    anchor = tmp_path / "maker.pem"
    anchor.write_bytes(x509.load_der_x509_certificate(signer.certificates[0]).public_bytes(Encoding.PEM))
    signed = content_info(opened(sealed(signer, to), to, tmp_path))
    verify = ("cms", "-verify", "-inform", "DER", "-CAfile", anchor, "-purpose", "any")
    package = openssl(*verify, told=signed)
    (key,), rest = decode(package, asn1Spec=rfc5958.AsymmetricKeyPackage())
    assert (rest, encode(key)) == (b"", delivered())
    public = openssl("pkey", "-inform", "DER", "-pubout", told=encode(key))
    assert public == openssl("pkey", "-inform", "DER", "-pubout", told=delivered())

    at = signed.index(delivered()) + 40
    with pytest.raises(subprocess.CalledProcessError, match=r"non-zero exit status 4"):
        openssl(*verify, told=signed[:at] + bytes((signed[at] ^ 1,)) + signed[at + 1 :])


def test_another_reader_of_asn1_finds_what_the_standards_name(tmp_path: Path) -> None:
    outer, rest = decode(sealed(maker(), holder("p256")), asn1Spec=rfc5652.ContentInfo())
    assert (rest, outer["contentType"]) == (b"", rfc5652.id_envelopedData)
    enveloped, rest = decode(outer["content"], asn1Spec=rfc5652.EnvelopedData())
    assert (rest, enveloped["version"]) == (b"", 2)
    content = enveloped["encryptedContentInfo"]
    assert content["contentType"] == rfc5652.id_signedData
    assert content["contentEncryptionAlgorithm"]["algorithm"] == rfc3565.id_aes256_CBC
    assert enveloped["recipientInfos"][0].getName() == "kari"

    signed, rest = decode(
        opened(sealed(maker(), holder("p256")), holder("p256"), tmp_path), asn1Spec=rfc5652.SignedData()
    )
    assert (rest, signed["version"]) == (b"", 3)
    assert signed["encapContentInfo"]["eContentType"] == rfc5958.id_ct_KP_aKeyPackage
    (info,) = signed["signerInfos"]
    kinds = {attribute["attrType"] for attribute in info["signedAttrs"]}
    assert kinds == {rfc5652.id_contentType, rfc5652.id_messageDigest}
    assert info["sid"]["issuerAndSerialNumber"]["serialNumber"] == 77


def test_an_rsa_recipient_makes_it_version_0() -> None:
    outer, _ = decode(sealed(maker(), holder("rsa")), asn1Spec=rfc5652.ContentInfo())
    enveloped, _ = decode(outer["content"], asn1Spec=rfc5652.EnvelopedData())
    assert (enveloped["version"], enveloped["recipientInfos"][0].getName()) == (0, "ktri")


def test_the_same_key_is_never_sealed_the_same_way_and_is_nowhere_in_it() -> None:
    first, second = (sealed(maker(), holder("p256")) for _ in range(2))
    assert first != second
    key = load_der_private_key(delivered(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    scalar = key.private_numbers().private_value.to_bytes(32, "big")
    assert scalar in delivered()
    assert not any(scalar[at : at + 4] in octets for at in range(28) for octets in (first, second))


def test_a_key_of_an_edwards_curve_signs_no_package() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    with pytest.raises(MalformedRequest, match="ecdsa or rsa"):
        package_signer((certified(key, "digital_signature"),), key.sign)
