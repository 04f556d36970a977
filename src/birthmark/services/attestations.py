"""What issuing asks of a device's attestation: that its TPM holds the keys it wants certified (SPEC C8, D6).

The certificates of a run with a TPM are for the keys that were attested and for no others: the first for the
identity key, which the attestation key certified; a second one for the attestation key, which opened a
credential that only the TPM of the endorsement key could open.

``judged`` thinks, before the commit; ``spend`` decides, in it.
"""

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from typing import TypeAlias

from birthmark import errors
from birthmark.element.profiles import TPMProfile
from birthmark.element.tpm import Attest, Public, Signature, check_certified
from birthmark.floor.attestations import Attestation, endorsement_use
from birthmark.floor.elements import ElementUse
from birthmark.ports import Facts, Look, UseCase
from birthmark.secret import SecretBytes
from birthmark.services.runs import RunContext

__all__ = ["Attested", "Known", "attested_said", "judged", "keys_in", "recalled", "require_key", "spend"]

Known: TypeAlias = Mapping[str, Attestation]
"""Attestations by their ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attested:
    """What a TPM answered."""

    attestation: str
    """Id of the attestation."""
    secret: SecretBytes
    """As TPM2_ActivateCredential gave it out."""
    certify_info: bytes = field(repr=False)
    """TPMS_ATTEST of the identity key."""
    certify_signature: bytes = field(repr=False)
    """TPMT_SIGNATURE of the attestation key over it."""

    def digest(self) -> str:
        """Return what tells this answer from another."""
        parts = (self.attestation.encode(), self.secret.reveal(), self.certify_info, self.certify_signature)
        return sha256(b"".join(sha256(part).digest() for part in parts)).hexdigest()


def recalled(context: RunContext, answers: Iterable[Attested | None]) -> UseCase[Known]:
    """Return the attestations that are answered, by their ids; a run without TPMs looks nothing up."""
    ids = [] if not isinstance(context.element, TPMProfile) else [one.attestation for one in answers if one]
    if not ids:
        return {}
    facts: Facts = yield Look({Attestation: ids})
    found = (facts.get(Attestation, key) for key in ids)
    return {one.id: one for one in found if one is not None}


def judged(context: RunContext, device: str, answer: Attested | None, known: Known) -> Attestation | None:
    """Return a device's attestation with its answer, if that proves that its TPM holds both keys.

    1. The attestation was asked of this device in this run.
    2. The secret came back: the attestation key, restricted and fixed, is in the TPM of the endorsement key.
    3. The attestation key certified the identity key, which is fixed to the same TPM, for our nonce.

    What both keys may do was judged when the attestation began: the Names stand for it.

    Args:
        context: of the run.
        device: kind and hardware id.
        answer: of its TPM.
        known: from ``recalled``.

    Returns:
        None for a run without TPMs.

    Raises:
        errors.PolicyRefused: names the rule: ``tpm-attestation``, ``tpm-activation``, ``tpm-certify``.
        errors.MalformedRequest: the answer cannot be read, or there is one where nobody asked.
    """
    if not isinstance(context.element, TPMProfile):
        if answer is not None:
            raise errors.MalformedRequest(f"run {context.licence.id} is for devices without a tpm")
        return None
    if answer is None:
        raise errors.PolicyRefused(
            "tpm-attestation", f"run {context.licence.id} wants the tpm of each device attested first"
        )
    asked = known.get(answer.attestation)
    if asked is None or (asked.device, asked.run) != (device, context.licence.id):
        raise errors.PolicyRefused(
            "tpm-attestation", f"attestation {answer.attestation[:32]} is none of {device} in this run"
        )
    shown = sha256(answer.secret.view()).hexdigest()
    if not hmac.compare_digest(shown, asked.secret_sha256):
        raise errors.PolicyRefused(
            "tpm-activation",
            "the secret is not the one that the endorsement key's tpm could read: attest again",
        )
    check_certified(
        iak=Public.decode(asked.iak),
        certified=Public.decode(asked.idevid),
        attest=Attest.decode(answer.certify_info),
        signature=Signature.decode(answer.certify_signature),
        nonce=asked.nonce,
    )
    return replace(asked, certify_info=answer.certify_info, certify_signature=answer.certify_signature)


def keys_in(answered: Attestation | None, count: int) -> tuple[bytes | None, ...]:
    """Return the keys (SubjectPublicKeyInfo, DER) that so many certificates have to be for, in their order.

    Returns:
        None for each certificate whose key nobody attested.

    Raises:
        errors.PolicyRefused: a TPM has no keys for so many (rule ``attested-key``).
    """
    if answered is None:
        return (None,) * count
    if count > 2:
        raise errors.PolicyRefused(
            "attested-key",
            f"a tpm has an identity key and an attestation key: no keys for {count} certificates",
        )
    return tuple(
        Public.decode(one).subject_public_key_info for one in (answered.idevid, answered.iak)[:count]
    )


def require_key(wanted: bytes | None, key: bytes) -> None:
    """Refuse to certify another key than the one that was attested; None for any.

    Raises:
        errors.PolicyRefused: it is another (rule ``attested-key``).
    """
    if wanted is not None and key != wanted:
        raise errors.PolicyRefused(
            "attested-key", "the certification request is not for the key that the tpm was shown to hold"
        )


def spend(facts: Facts, answered: Attestation | None, at: datetime) -> None:
    """Use an attestation up, and take its TPM for the device.

    Raises:
        errors.PolicyRefused: it was used, has expired (rule ``tpm-attestation``), or the TPM is another
            device's (rule ``tpm-is-unique``).
    """
    if answered is None:
        return
    kept = facts.get(Attestation, answered.id)
    if kept is None:
        raise errors.IntegrityFailure(f"attestation {answered.id} is gone")
    if kept.certify_info is not None:
        raise errors.PolicyRefused("tpm-attestation", f"attestation {answered.id} was used: ask for another")
    if at >= kept.expires_at:
        raise errors.PolicyRefused(
            "tpm-attestation", f"attestation {answered.id} has expired: ask for another"
        )
    use = endorsement_use(kept.ek_spki_sha256)
    used = facts.get(ElementUse, use)
    if used is None:
        facts.put(ElementUse(id=use, device=answered.device))
    elif used.device != answered.device:
        raise errors.PolicyRefused(
            "tpm-is-unique", f"this tpm already belongs to {used.device}: hold this device, and look at both"
        )
    facts.put(answered)


def attested_said(answered: Attestation | None) -> dict[str, object]:
    """Return what a log entry or an identity record says of a device's attestation, under ``tpm``."""
    return {} if answered is None else {"tpm": answered.said()}
