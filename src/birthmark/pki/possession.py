"""Proof that a device holds its key, after its certificate was installed (SPEC C6).

The service sends a fresh challenge; the device signs ``proof_message``, which names the purpose, the attempt
and the certificate, so that no signature made for anything else, for another attempt or over another
certificate can pass for a proof.  ``verify_proof`` raises or returns nothing.

That a challenge is fresh and used once is the use case's business.
"""

import re

from cryptography.exceptions import InvalidSignature

from birthmark.errors import MalformedRequest, ProofFailed
from birthmark.pki.algorithms import verify

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
        signature: DER Ecdsa-Sig-Value (RFC 3279 section 2.2.3) with SHA-256 for P-256, SHA-384 for P-384 and
            SHA-512 for P-521; 64 octets of Ed25519 or 114 of Ed448 (RFC 8032); or RSASSA-PKCS1-v1_5 with
            SHA-256 (RFC 8017), as long as the modulus.
        message: from ``proof_message``.

    Raises:
        ProofFailed: it did not, whatever the reason.
    """
    try:
        verify(spki_der, signature, message)
    except InvalidSignature as error:
        raise ProofFailed("the device's signature does not verify with the certified key") from error
    except MalformedRequest as error:
        raise ProofFailed(f"the certified key cannot be used: {error}") from error
