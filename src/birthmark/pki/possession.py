"""Proof that a device holds its key, after its certificate was installed (SPEC C6).

The service sends a fresh challenge; the device signs ``proof_message``, which names the purpose, the attempt
and the certificate, so that no signature made for anything else, for another attempt or over another
certificate can pass for a proof.  ``verify_proof`` raises or returns nothing.

That a challenge is fresh and used once is the use case's business.
"""

import re

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_der_public_key

from birthmark.errors import MalformedRequest, ProofFailed
from birthmark.pki.algorithms import ALGORITHMS, recognise

__all__ = ["proof_message", "verify_proof"]

_ATTEMPT = re.compile(r"[!-~]{1,128}")
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_SHORTEST_CHALLENGE = 16
_LONGEST_CHALLENGE = 64


def proof_message(*, attempt: str, certificate_sha256: str, challenge: bytes) -> bytes:
    r"""Return what the device signs: four lines of ASCII, each ended by a line feed.

    ``birthmark/proof/v1``, the attempt, the SHA-256 of the certificate in lower-case hex, the challenge in
    lower-case hex.  One message has one reading: no field can contain a line feed.

    Args:
        attempt: id of the attempt; 1 to 128 visible ASCII characters.
        certificate_sha256: 64 lower-case hex digits.
        challenge: 16 to 64 random octets.

    Raises:
        MalformedRequest: an argument is not of that form.
    """
    if not _ATTEMPT.fullmatch(attempt):
        raise MalformedRequest(f"attempt {attempt!r} is not 1 to 128 visible ascii characters")
    if not _FINGERPRINT.fullmatch(certificate_sha256):
        raise MalformedRequest(f"certificate_sha256 {certificate_sha256!r} is not 64 lower-case hex digits")
    if not _SHORTEST_CHALLENGE <= len(challenge) <= _LONGEST_CHALLENGE:
        raise MalformedRequest(f"a challenge has 16 to 64 octets, not {len(challenge)}")
    return f"birthmark/proof/v1\n{attempt}\n{certificate_sha256}\n{challenge.hex()}\n".encode("ascii")


def verify_proof(spki_der: bytes, signature: bytes, message: bytes) -> None:
    """Check that the key signed the message.

    Args:
        spki_der: SubjectPublicKeyInfo (DER) of the certificate that was installed.
        signature: DER Ecdsa-Sig-Value (RFC 3279 section 2.2.3) with SHA-256 for P-256 and SHA-384 for P-384,
            or 64 octets of Ed25519.
        message: from ``proof_message``.

    Raises:
        ProofFailed: it did not, whatever the reason.
    """
    algorithm = recognise(spki_der)
    if algorithm is None:
        raise ProofFailed("the key is not an uncompressed P-256 or P-384 point or an Ed25519 key")
    hash_algorithm = ALGORITHMS[algorithm].hash_algorithm
    try:
        key = load_der_public_key(spki_der)
        if isinstance(key, ec.EllipticCurvePublicKey) and hash_algorithm is not None:
            key.verify(signature, message, ec.ECDSA(hash_algorithm))
        elif isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        else:
            raise ProofFailed(f"a key of another kind than {algorithm}")
    except InvalidSignature as error:
        raise ProofFailed("the device's signature does not verify with the certified key") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ProofFailed("the certified key is no point of its curve") from error
