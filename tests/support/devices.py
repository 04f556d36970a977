"""Devices as a test's own client sees them: requests and proofs in JSON, made without the station kit."""

import base64
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from birthmark.pki.certificates import Certificate
from birthmark.pki.possession import proof_message
from tests.support.realm import workpiece

__all__ = ["asked", "signed"]


def asked(hardware_id: str) -> tuple[ec.EllipticCurvePrivateKey, dict[str, str]]:
    """Return a device's key, and the body of the request that asks for its identity."""
    device = workpiece(hardware_id)
    assert device.csr is not None
    body = {
        "hardware_id": hardware_id,
        "idempotency_key": f"issue-{hardware_id}",
        "csr": base64.b64encode(device.csr).decode(),
    }
    return device.key, body


def signed(issued: Mapping[str, Any], key: ec.EllipticCurvePrivateKey) -> dict[str, str]:
    """Return the body of the proof that answers what was issued."""
    certificate = Certificate.from_pem(issued["certificate"])
    message = proof_message(
        attempt=issued["attempt"],
        certificate_sha256=certificate.fingerprint,
        challenge=base64.b64decode(issued["challenge"]),
    )
    return {
        "attempt": issued["attempt"],
        "certificate_sha256": certificate.fingerprint,
        "signature": base64.b64encode(key.sign(message, ec.ECDSA(hashes.SHA256()))).decode(),
        "idempotency_key": f"prove-{issued['attempt']}",
    }
