"""JSON Web Tokens that this service gives (RFC 7519): JWS compact serialization, and the keys to verify it.

A token is three parts in base64url (RFC 7515 section 3.1), signed by a callback: the key is where keys are.
ES256 is ECDSA on P-256 with SHA-256, r and s of 32 octets each (RFC 7518 section 3.4); EdDSA is Ed25519 (RFC
8037).  A key is called by its thumbprint (RFC 7638), so whoever has the key knows its name.

Nothing here reads a token: this service gives them, and believes none.
"""

import base64
import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from birthmark import errors
from birthmark.pki.algorithms import ALGORITHMS, recognise
from birthmark.pki.keys import KeyAlgorithm

__all__ = ["base64url", "jwk", "key_id", "require_algorithm", "sign"]

_ALGORITHM: Mapping[KeyAlgorithm, str] = {KeyAlgorithm.EC_P256: "ES256", KeyAlgorithm.ED25519: "EdDSA"}
_P256_OCTETS = 32


def require_algorithm(algorithm: KeyAlgorithm) -> None:
    """Refuse an algorithm that signs no tokens.

    Raises:
        errors.MalformedRequest: it is one.
    """
    if algorithm not in _ALGORITHM:
        raise errors.MalformedRequest(f"the key of tokens is {' or '.join(_ALGORITHM)}, not {algorithm}")


def base64url(octets: bytes) -> str:
    """Return octets in base64url without padding (RFC 7515 section 2)."""
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode("ascii")


def _key(subject_public_key_info: bytes) -> tuple[KeyAlgorithm, bytes]:
    """Return the algorithm and the octets of a key that signs tokens."""
    algorithm = recognise(subject_public_key_info)
    if algorithm is None:
        raise errors.MalformedRequest("the key of tokens is of no algorithm that we know")
    require_algorithm(algorithm)
    return algorithm, subject_public_key_info[len(ALGORITHMS[algorithm].spki_prefix) :]


def _required(subject_public_key_info: bytes) -> dict[str, str]:
    """Return the members of a JWK that its thumbprint is made of (RFC 7638, RFC 8037)."""
    algorithm, octets = _key(subject_public_key_info)
    if algorithm is KeyAlgorithm.ED25519:
        return {"crv": "Ed25519", "kty": "OKP", "x": base64url(octets)}
    point = octets[1:]  # uncompressed: 04, x, y
    x, y = point[:_P256_OCTETS], point[_P256_OCTETS:]
    return {"crv": "P-256", "kty": "EC", "x": base64url(x), "y": base64url(y)}


def key_id(subject_public_key_info: bytes) -> str:
    """Return the thumbprint of a key (RFC 7638), base64url of SHA-256.

    Raises:
        errors.MalformedRequest: it is no key of an algorithm that tokens are signed with.
    """
    return base64url(sha256(_json(_required(subject_public_key_info))).digest())


def jwk(subject_public_key_info: bytes) -> dict[str, str]:
    """Return a key as a JSON Web Key (RFC 7517) for verifying signatures.

    Raises:
        errors.MalformedRequest: it is no key of an algorithm that tokens are signed with.
    """
    algorithm, _ = _key(subject_public_key_info)
    return {
        **_required(subject_public_key_info),
        "alg": _ALGORITHM[algorithm],
        "use": "sig",
        "kid": key_id(subject_public_key_info),
    }


def sign(
    claims: Mapping[str, Any], subject_public_key_info: bytes, signature_of: Callable[[bytes], bytes]
) -> str:
    """Return claims as a signed token.

    Args:
        claims: JSON object; times are NumericDate, seconds since 1970 (RFC 7519 section 2).
        subject_public_key_info: of the key that signs (DER).
        signature_of: signs with it, as ``KeyStore.sign``.

    Raises:
        errors.MalformedRequest: it is no key of an algorithm that tokens are signed with.
        errors.Unavailable: the key cannot sign now.
    """
    algorithm, _ = _key(subject_public_key_info)
    header = {"alg": _ALGORITHM[algorithm], "kid": key_id(subject_public_key_info), "typ": "JWT"}
    signed = f"{base64url(_json(header))}.{base64url(_json(claims))}"
    signature = signature_of(signed.encode("ascii"))
    if algorithm is KeyAlgorithm.EC_P256:
        r, s = decode_dss_signature(signature)
        signature = r.to_bytes(_P256_OCTETS) + s.to_bytes(_P256_OCTETS)
    return f"{signed}.{base64url(signature)}"


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
