"""Ask a device's TPM to show that it is one, and that two keys are in it (SPEC C8, D6).

The first half of an attestation; the second goes with the issue request (``attestations``):

1. The endorsement key's certificate has a path to a maker that the run's profile accepts.
2. The attestation key is restricted and fixed to its TPM, the identity key is fixed and unrestricted.  So
   says the station; the TPM will say it by their Names.
3. A secret is encrypted to the endorsement key and the attestation key's Name, and a nonce goes along.

Nobody is promised anything yet, and asking again makes another attestation: there is no idempotency key.  The
secret is kept as its hash only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any

from birthmark import errors
from birthmark.element.profiles import TPMProfile
from birthmark.element.tpm import Public, check_iak, check_idevid
from birthmark.element.tpm_credential import Credential, make_credential
from birthmark.element.tpm_endorsement import check_endorsement
from birthmark.floor.attestations import Attestation
from birthmark.floor.clients import Capability
from birthmark.floor.runs import AllowedDevice
from birthmark.ledger.entry import time_text
from birthmark.ports import Act, Clock, Committed, Decision, Entropy, Facts, UseCase
from birthmark.secret import SecretBytes
from birthmark.services.acts import Caller, client_reads, live_client, refuse, together
from birthmark.services.runs import RunContext, Runs, check_scope

__all__ = ["AttestDevices", "AttestRequest", "Attesting"]

LIFETIME = timedelta(minutes=15)
"""How long an attestation may be answered: slow TPMs take a minute to make a key."""
SECRET_SIZE = 32
NONCE_SIZE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestRequest:
    """What a device's TPM has."""

    hardware_id: str
    ek_certificate: bytes = field(repr=False)
    """Certificate of the endorsement key (DER)."""
    ek_chain: tuple[bytes, ...] = field(default=(), repr=False)
    """Authorities (DER) that came with it, in any order."""
    iak: bytes = field(repr=False)
    """TPMT_PUBLIC of the attestation key."""
    idevid: bytes = field(repr=False)
    """TPMT_PUBLIC of the identity key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attesting:
    """What the TPM has to answer."""

    attestation: str
    """Id of the attestation; the attempt will have the same."""
    credential: Credential = field(repr=False)
    """For TPM2_ActivateCredential with the attestation key and the endorsement key."""
    nonce: bytes = field(repr=False)
    """Qualifying data for TPM2_Certify of the identity key with the attestation key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    attestation: Attestation
    answer: Attesting


class AttestDevices:
    """Begin attestations."""

    def __init__(self, runs: Runs, clock: Clock, entropy: Entropy) -> None:
        """Attest for the runs whose licences name a TPM's profile."""
        self._runs = runs
        self._clock = clock
        self._entropy = entropy

    def __call__(
        self, caller: Caller, run: str, requests: Sequence[AttestRequest]
    ) -> UseCase[list[Attesting | errors.Refusal]]:
        """Begin the attestation of devices; each succeeds or fails alone.

        Raises:
            errors.NotFound: there is no such run.
        """
        context = yield from self._runs.context(run)
        acts = [self._act(caller, context, request) for request in requests]
        committed: list[Committed[Any]] = yield acts
        results: list[Attesting | errors.Refusal] = []
        for item in committed:
            if isinstance(item.answer, Exception) and not isinstance(item.answer, errors.Refusal):
                raise item.answer
            results.append(item.answer)
        return results

    def _act(self, caller: Caller, context: RunContext, request: AttestRequest) -> Act[Attesting]:
        asked: _Asked | errors.Refusal
        try:
            asked = self._ask(caller, context, request)
        except errors.Refusal as refusal:
            asked = refusal
        reads = together(client_reads(caller), self._runs.admitting_reads(context.licence.id))
        if isinstance(asked, _Asked) and context.licence.allow_list is not None:
            listed = AllowedDevice.key(context.licence.allow_list, asked.attestation.device)
            reads |= {AllowedDevice: (listed,)}
        fields = {"run": context.licence.id, "hardware_id": request.hardware_id[:100]}
        return Act(
            actor=caller.client.id,
            seq=caller.seq,
            operator=caller.operator,
            decide=partial(self._decide, caller, context, asked),
            refuse=refuse(caller, "attest", fields),
            reads=reads,
        )

    def _ask(self, caller: Caller, context: RunContext, request: AttestRequest) -> _Asked:
        """Judge what the station says of the TPM, and make the question."""
        licence, profile = context.licence, context.element
        if not isinstance(profile, TPMProfile):
            raise errors.MalformedRequest(f"run {licence.id} is for devices without a tpm")
        hardware_id = licence.hardware_id.parse(request.hardware_id)
        context.judge(hardware_id.text)
        at = self._clock.now()
        endorsement = check_endorsement(profile, request.ek_certificate, request.ek_chain, at)
        iak, idevid = Public.decode(request.iak), Public.decode(request.idevid)
        check_iak(iak)
        check_idevid(idevid)
        secret, nonce = self._entropy.token(SECRET_SIZE), self._entropy.token(NONCE_SIZE)
        attestation = Attestation(
            id=self._entropy.token(16).hex(),
            device=hardware_id.device,
            run=licence.id,
            client=caller.client.id,
            ek_certificate=endorsement.certificate,
            ek_spki_sha256=endorsement.spki_sha256,
            iak=iak.octets,
            idevid=idevid.octets,
            nonce=nonce,
            secret_sha256=sha256(secret).hexdigest(),
            expires_at=at + LIFETIME,
        )
        credential = make_credential(endorsement.key, iak.name, SecretBytes(secret), self._entropy.token)
        answer = Attesting(attestation=attestation.id, credential=credential, nonce=nonce)
        return _Asked(attestation=attestation, answer=answer)

    def _decide(
        self, caller: Caller, context: RunContext, asked: _Asked | errors.Refusal, facts: Facts, at: datetime
    ) -> Decision[Attesting]:
        client = live_client(facts, caller, Capability.ISSUE, at)
        if isinstance(asked, errors.Refusal):
            raise asked
        self._runs.admitting(facts, context, client, at)
        check_scope(facts, client, context, asked.attestation.device)
        facts.put(asked.attestation)
        entry = {
            "device": asked.attestation.device,
            "run": context.licence.id,
            "attestation": asked.attestation.id,
            "nonce": asked.attestation.nonce.hex(),
            "secret_sha256": asked.attestation.secret_sha256,
            "expires_at": time_text(asked.attestation.expires_at),
            "tpm": asked.attestation.said(),
        }
        return Decision(asked.answer, [("attestation-begun", entry)])
