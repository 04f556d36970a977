"""The bodies of attestations (``models``), to what the use cases take and from what they give."""

import base64

from birthmark.edge.http import models
from birthmark.secret import SecretBytes
from birthmark.services.attest import Attesting, AttestRequest
from birthmark.services.attestations import Attested

__all__ = ["attest_request", "attest_result", "attested"]


def attest_request(body: models.Attest) -> AttestRequest:
    """Return what is asked."""
    return AttestRequest(
        hardware_id=body.hardware_id,
        ek_certificate=base64.b64decode(body.ek_certificate),
        ek_chain=tuple(base64.b64decode(text) for text in body.ek_chain),
        iak=base64.b64decode(body.iak),
        idevid=base64.b64decode(body.idevid),
    )


def attest_result(asking: Attesting) -> models.AttestResult:
    """Return what the TPM has to answer."""
    return models.AttestResult.model_construct(
        attestation=asking.attestation,
        id_object=base64.b64encode(asking.credential.id_object).decode(),
        encrypted_secret=base64.b64encode(asking.credential.encrypted_secret).decode(),
        nonce=base64.b64encode(asking.nonce).decode(),
    )


def attested(body: models.Attested | None) -> Attested | None:
    """Return what the TPM answered."""
    if body is None:
        return None
    return Attested(
        attestation=body.attestation,
        secret=SecretBytes(base64.b64decode(body.secret)),
        certify_info=base64.b64decode(body.certify_info),
        certify_signature=base64.b64decode(body.certify_signature),
    )
