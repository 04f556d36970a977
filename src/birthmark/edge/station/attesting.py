"""What a device with a TPM offers besides, and how its attestation goes (SPEC D6).

A run may want the device's keys attested: that they were made in a TPM of a known maker, and cannot leave it.
For such a run the device is an ``Attestable`` as well.  The station carries what the TPM has to the service,
and the question back; the answer goes with the issue request, and the same issue request always has the same
answer, so it is written down with it.  What is written down opens nothing: the secret in it is only the
answer to one question, of no use once the certificates are issued or a quarter of an hour has passed.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from birthmark.edge.station.answers import take
from birthmark.errors import IntegrityFailure

__all__ = ["Answered", "Asked", "Attestable", "Endorsed", "attest_body", "attested_body", "written"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsed:
    """What a TPM says it is and has."""

    ek_certificate: bytes = field(repr=False)
    """Certificate of the endorsement key (DER), from its maker."""
    ek_chain: tuple[bytes, ...] = field(default=(), repr=False)
    """Authorities above it (DER), where the TPM has them; the service knows the usual ones."""
    iak: bytes = field(repr=False)
    """TPMT_PUBLIC of the attestation key."""
    idevid: bytes = field(repr=False)
    """TPMT_PUBLIC of the identity key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the service asks of a TPM."""

    attestation: str
    """Id of the attestation."""
    id_object: bytes = field(repr=False)
    """TPM2B_ID_OBJECT, its size in front."""
    encrypted_secret: bytes = field(repr=False)
    """TPM2B_ENCRYPTED_SECRET, its size in front."""
    nonce: bytes = field(repr=False)
    """Qualifying data for the certification."""

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> "Asked":
        """Read an answer of the service.

        Raises:
            IntegrityFailure: it is none.
        """
        return cls(
            attestation=take(body, "attestation", str),
            id_object=_octets(body, "id_object"),
            encrypted_secret=_octets(body, "encrypted_secret"),
            nonce=_octets(body, "nonce"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What a TPM answers."""

    secret: bytes = field(repr=False)
    """What TPM2_ActivateCredential gave out."""
    certify_info: bytes = field(repr=False)
    """TPMS_ATTEST of the identity key, by TPM2_Certify with the attestation key."""
    certify_signature: bytes = field(repr=False)
    """TPMT_SIGNATURE over it."""


@runtime_checkable
class Attestable(Protocol):
    """What a device with a TPM 2.0 offers besides."""

    def endorsed(self) -> Endorsed:
        """Return the endorsement key's certificate and both keys' public areas; make a key that is missing.

        Asked after the certification requests: the keys are theirs.

        Raises:
            Refusal: there is no certificate, or the TPM cannot be used.
        """
        ...

    def attested(self, asked: Asked) -> Answered:
        """Have the TPM open the credential and certify the identity key.

        Raises:
            ProofFailed: the credential is not for this TPM and this attestation key.
            Refusal: the TPM cannot be used.
        """
        ...


def attest_body(hardware_id: str, endorsed: Endorsed) -> dict[str, Any]:
    """Return the body of an attest request."""
    return {
        "hardware_id": hardware_id,
        "ek_certificate": _base64(endorsed.ek_certificate),
        "ek_chain": [_base64(one) for one in endorsed.ek_chain],
        "iak": _base64(endorsed.iak),
        "idevid": _base64(endorsed.idevid),
    }


def written(asked: Asked, answered: Answered) -> str:
    """Return what goes with the issue request, as it is written down (JSON)."""
    return json.dumps(
        {
            "attestation": asked.attestation,
            "secret": _base64(answered.secret),
            "certify_info": _base64(answered.certify_info),
            "certify_signature": _base64(answered.certify_signature),
        },
        sort_keys=True,
    )


def attested_body(written: str) -> dict[str, Any]:
    """Return what was written down as a member of an issue request."""
    body: dict[str, Any] = json.loads(written)
    return body


def _base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def _octets(body: Mapping[str, Any], name: str) -> bytes:
    try:
        return base64.b64decode(take(body, name, str), validate=True)
    except ValueError as wrong:
        raise IntegrityFailure(f"the service's {name} is not base64") from wrong
