"""The attestation of a device's TPM: what was asked of it, and what it answered (SPEC D6).

An attestation is for one device and one attempt, which takes over its id; so nothing has to say which attempt
used it.  What was asked is written when it is asked, what the TPM answered when the certificates are issued,
in the same commit.
"""

from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256

from birthmark.element.tpm import Public

__all__ = ["Attestation", "endorsement_use"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attestation:
    """A TPM that was asked to show that two keys are in it."""

    id: str
    """32 hex digits; the id of the attempt it is used for."""
    device: str
    run: str
    client: str
    """Who asked, e.g. ``station:ST01``."""
    ek_certificate: bytes = field(repr=False)
    """Of the endorsement key (DER); its path to an anchor of the profile was verified."""
    ek_spki_sha256: str
    """SHA-256 of the endorsement key's SubjectPublicKeyInfo (hex)."""
    iak: bytes = field(repr=False)
    """TPMT_PUBLIC of the attestation key."""
    idevid: bytes = field(repr=False)
    """TPMT_PUBLIC of the identity key."""
    nonce: bytes = field(repr=False)
    """32 random octets that the certification has to repeat."""
    secret_sha256: str
    """SHA-256 (hex) of the 32 random octets that only this TPM could read; they are kept nowhere."""
    expires_at: datetime
    certify_info: bytes | None = field(default=None, repr=False)
    """TPMS_ATTEST by which the attestation key certified the identity key; None until it is used."""
    certify_signature: bytes | None = field(default=None, repr=False)
    """TPMT_SIGNATURE over it."""

    def said(self) -> dict[str, object]:
        """Return what the log and the identity record say of it."""
        return {
            "ek_certificate_sha256": sha256(self.ek_certificate).hexdigest(),
            "ek_spki_sha256": self.ek_spki_sha256,
            "iak_name": Public.decode(self.iak).name.hex(),
            "idevid_name": Public.decode(self.idevid).name.hex(),
            **(
                {} if self.certify_info is None else {"certify_sha256": sha256(self.certify_info).hexdigest()}
            ),
        }


def endorsement_use(ek_spki_sha256: str) -> str:
    """Return the id under which an endorsement key stands among the elements that devices have.

    No other element's begins like it: labels of master keys have no underscore.
    """
    return f"tpm_ek/{ek_spki_sha256}"
