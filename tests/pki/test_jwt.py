"""Tokens and keys as others read them: the thumbprint of RFC 8037, signatures verified by OpenSSL."""

import base64
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark import errors
from birthmark.pki import jwt
from birthmark.pki.keys import KeyAlgorithm
from tests.pki.sample import spki
from tests.support.programs import need

RFC_8037_PRIVATE = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
"""The key of RFC 8037 appendix A.1."""


def decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def public(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_a_key_and_its_thumbprint_are_those_of_rfc_8037() -> None:
    """Appendices A.2 and A.3."""
    key = ed25519.Ed25519PrivateKey.from_private_bytes(decoded(RFC_8037_PRIVATE))
    assert jwt.jwk(public(key)) == {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
        "alg": "EdDSA",
        "use": "sig",
        "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
    }


def test_a_p_256_key_is_the_one_of_rfc_7517() -> None:
    """Appendix A.1."""
    x, y = "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(decoded(x)), int.from_bytes(decoded(y)), ec.SECP256R1()
    )
    octets = numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    read = jwt.jwk(octets)
    assert (read["kty"], read["crv"], read["x"], read["y"]) == ("EC", "P-256", x, y)


def verified(folder: Path, key: bytes, signed: bytes, signature: bytes, *digest: str) -> None:
    for name, octets in (("key.der", key), ("signed", signed), ("signature", signature)):
        (folder / name).write_bytes(octets)
    command = [need("openssl"), "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", "key.der"]
    command += ["-rawin", "-in", "signed", "-sigfile", "signature", *digest]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.mark.parametrize("claims", [{}, {"sub": "vin:1M8GDM9AXKP042788", "iat": 1}, {"sub": "ä\u2028"}])
def test_openssl_verifies_what_is_signed(tmp_path: Path, claims: dict[str, object]) -> None:
    edwards, curve = ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
    sign: Callable[[bytes], bytes] = edwards.sign
    head, body, signature = jwt.sign(claims, public(edwards), sign).split(".")
    assert json.loads(decoded(head)) == {"alg": "EdDSA", "kid": jwt.key_id(public(edwards)), "typ": "JWT"}
    assert json.loads(decoded(body)) == claims
    verified(tmp_path, public(edwards), f"{head}.{body}".encode(), decoded(signature))
    octets = b""
    for _ in range(20):  # r or s begin with zeros now and then
        token = jwt.sign(claims, public(curve), lambda octets: curve.sign(octets, ec.ECDSA(hashes.SHA256())))
        head, body, signature = token.split(".")
        octets = decoded(signature)
        assert len(octets) == 64
    halves = (int.from_bytes(octets[:32]), int.from_bytes(octets[32:]))
    der = encode_dss_signature(*halves)
    verified(tmp_path, public(curve), f"{head}.{body}".encode(), der, "-digest", "sha256")


@pytest.mark.parametrize("algorithm", [KeyAlgorithm.EC_P384, KeyAlgorithm.RSA_2048, KeyAlgorithm.ED448])
def test_other_keys_sign_no_tokens(algorithm: KeyAlgorithm) -> None:
    with pytest.raises(errors.MalformedRequest, match="the key of tokens is ec-p256 or ed25519"):
        jwt.require_algorithm(algorithm)
    with pytest.raises(errors.MalformedRequest, match="the key of tokens"):
        jwt.jwk(spki(algorithm, "device"))


@pytest.mark.parametrize("octets", [b"", b"\x30\x00", bytes(91)])
def test_what_is_no_key_is_refused(octets: bytes) -> None:
    with pytest.raises(errors.MalformedRequest, match="no algorithm that we know"):
        jwt.key_id(octets)
