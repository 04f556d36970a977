"""Admit a device to its run and issue its certificate, in one commit (SPEC C4, C5, C8–C10).

The use case vets each request, builds, lints and signs its certificate, and lets the commit decide: whether
the client may, the run has room, the hardware id is on its list and has no identity yet, and the key
belongs to nobody else.  What was signed and not committed never leaves the process.

Every request carries an idempotency key.  The same key gets the same answer, with one exception that is
told: a delivered key is kept nowhere, so asking again makes a new one, and the certificate that was never
proved is revoked in the same commit.  A delivered key is of the first algorithm that the profile allows.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from hashlib import sha256
from typing import Any

from birthmark import errors
from birthmark.floor.answers import Answer
from birthmark.floor.attestations import Attestation
from birthmark.floor.authorities import Authority
from birthmark.floor.clients import Capability, Client, Role
from birthmark.floor.devices import (
    Attempt,
    Device,
    DeviceCertificate,
    DeviceEvent,
    DeviceState,
    KeyOrigin,
    KeyUse,
    move,
)
from birthmark.floor.elements import ElementJournal
from birthmark.floor.runs import AllowedDevice, admit, require_identities
from birthmark.floor.shared import SharedCredential, use_once
from birthmark.pki.certificates import Certificate
from birthmark.pki.envelope import Sealer
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Act, Committed, Decision, Entropy, Facts, Look, UseCase
from birthmark.secret import SecretBytes
from birthmark.services import attestations
from birthmark.services.acts import (
    Caller,
    answer_key,
    client_reads,
    earlier_answer,
    live_client,
    refuse,
    together,
)
from birthmark.services.approvals import require_approved
from birthmark.services.attestations import Attested, Known
from birthmark.services.certifying import Certified, Certifier, keep
from birthmark.services.challenges import Challenged, Challenges, Provable
from birthmark.services.delivered import recipient_for
from birthmark.services.dialogues import Commands, Dialogues, element_of, journal_of
from birthmark.services.revocations import line_of, revoke
from birthmark.services.runs import RunContext, Runs, check_scope

__all__ = ["IssueDevices", "IssueRequest", "Issued", "IssuedCertificate", "Noted"]

CHALLENGE_SIZE = 32
Noted = Callable[[Facts, datetime, str, bytes], None]
"""Given the id of an attempt and its certificate (DER); what it raises refuses the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueRequest:
    """One device asks for its identity."""

    hardware_id: str
    csr: bytes | None
    """Certification request (DER or PEM) for a key born in the device; None to have the key delivered."""
    key: str
    """Idempotency key, 1 to 64 characters chosen by the client."""
    further_csrs: tuple[bytes, ...] = ()
    """Certification requests for the run's further profiles, in their order; none if keys are delivered."""
    attested: Attested | None = None
    """What the device's TPM answered, for a run of devices with a TPM."""
    envelope: bool = False
    """Deliver the keys in envelopes to the key of the certificate the client shows."""
    sealer: Sealer | None = field(default=None, repr=False)
    """Makes those envelopes, where their form is not ``pki.envelope``'s."""
    keeps_refusal: bool = True
    """A refusal is the answer to the same request for ever; not where the client did not choose the key."""
    crmf: bool = False
    """``csr`` is a request in the form of CMP: CertReqMessages (RFC 4211), DER."""
    noted: Noted | None = field(default=None, repr=False, compare=False)
    """Puts on record where the certificate goes, in the commit that issues it or repeats the answer."""

    def digest(self, run: str) -> str:
        """Return what tells this request from another under the same key."""
        asked: tuple[object, ...] = ("issue", run, self.hardware_id, self.csr)
        if self.further_csrs:
            asked += self.further_csrs
        if self.attested is not None:
            asked += (self.attested.digest(),)
        if self.envelope:
            asked += ("envelope",)
        if self.crmf:
            asked += ("crmf",)
        return sha256(repr(asked).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedCertificate:
    """One certificate of a device."""

    profile: str
    certificate: bytes = field(repr=False)
    """DER."""
    private_key: SecretBytes | None
    """PKCS#8 (DER) of a delivered key: this is the only time it exists outside the device."""
    envelope: bytes | None = field(default=None, repr=False)
    """The same in CMS (DER, ``pki.envelope``), if that was asked for; then ``private_key`` is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate, and the challenge by which the device shows that it holds the key."""

    device: str
    attempt: str
    certificate: bytes = field(repr=False)
    """DER."""
    chain: tuple[bytes, ...] = field(repr=False)
    """The authorities above it (DER), the root not included."""
    challenge: bytes = field(repr=False)
    private_key: SecretBytes | None
    """PKCS#8 (DER) of a delivered key: this is the only time it exists outside the device."""
    envelope: bytes | None = field(default=None, repr=False)
    """The same in CMS (DER, ``pki.envelope``), if that was asked for; then ``private_key`` is None."""
    further: tuple[IssuedCertificate, ...] = ()
    """One for each further profile of the run: proved with the same challenge, released with the first."""
    element: Commands | None = field(default=None, repr=False)
    """What the device's secure element is told first, if a key set is put into it and it can be begun now."""

    @property
    def certificates(self) -> tuple[bytes, ...]:
        """Return all certificates (DER), in the order of the run's profiles."""
        return (self.certificate, *(one.certificate for one in self.further))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """All that one device gets."""

    device: str
    attempt: str
    challenge: bytes = field(repr=False)
    first: Certified
    further: tuple[Certified, ...]
    attestation: Attestation | None
    """Of the device's TPM, with its answer."""
    origin: KeyOrigin
    enveloped_to: str | None
    """Serial number (hex) of the certificate whose key opens the keys' envelopes."""

    @property
    def all(self) -> tuple[Certified, ...]:
        return (self.first, *self.further)

    def issued(self, chain: tuple[bytes, ...], attempt: str) -> Issued:
        return Issued(
            device=self.device,
            attempt=attempt,
            certificate=self.first.certificate,
            chain=chain,
            challenge=self.challenge,
            private_key=self.first.private_key,
            envelope=self.first.envelope,
            further=tuple(
                IssuedCertificate(
                    profile=one.profile,
                    certificate=one.certificate,
                    private_key=one.private_key,
                    envelope=one.envelope,
                )
                for one in self.further
            ),
        )


class IssueDevices:
    """Admit and issue."""

    def __init__(
        self,
        runs: Runs,
        challenges: Challenges,
        dialogues: Dialogues,
        certifier: Certifier,
        entropy: Entropy,
    ) -> None:
        """Issue under the runs' licences."""
        self._runs = runs
        self._challenges = challenges
        self._dialogues = dialogues
        self._certifier = certifier
        self._entropy = entropy

    def __call__(
        self, caller: Caller, run: str, requests: Sequence[IssueRequest]
    ) -> UseCase[list[Issued | errors.Refusal]]:
        """Admit devices to a run and issue their certificates; each succeeds or fails alone.

        Raises:
            errors.NotFound: there is no such run.
        """
        context = yield from self._runs.context(run)
        known = yield from attestations.recalled(context, (one.attested for one in requests))
        ready = [self._prepare_or_refuse(caller, context, request, known) for request in requests]
        committed: list[Committed[Any]] = yield [
            self._issue_act(caller, context, request, prepared)
            for request, prepared in zip(requests, ready, strict=True)
        ]
        results = [
            self._issued(context, prepared, item) for prepared, item in zip(ready, committed, strict=True)
        ]
        return (yield from self._begun(context, results))

    def _begun(
        self, context: RunContext, results: list[Issued | errors.Refusal]
    ) -> UseCase[list[Issued | errors.Refusal]]:
        """Begin the dialogues with the devices' secure elements, if they have any.

        Where it cannot be begun now the station asks again, and gets the refusal on record.
        """
        profile = element_of(context)
        if profile is None:
            return results
        devices = [result.device for result in results if isinstance(result, Issued)]
        try:
            yield from self._dialogues.require_decided(profile)
        except errors.Refusal:
            return results
        facts: Facts = yield Look({ElementJournal: devices})
        for index, result in enumerate(results):
            if isinstance(result, Issued):
                with suppress(errors.Refusal):
                    journal = journal_of(facts, result.device, result.attempt, profile)
                    begun = self._dialogues.begin(context, profile, journal, result.certificates)
                    results[index] = replace(result, element=begun)
        return results

    def _issued(
        self, context: RunContext, prepared: _Prepared | errors.Refusal, item: Committed[Any]
    ) -> Issued | errors.Refusal:
        answer = item.answer
        if isinstance(answer, errors.Refusal):
            return answer
        if isinstance(answer, Exception):
            raise answer
        issued: Issued = answer
        if isinstance(prepared, _Prepared) and prepared.first.certificate == issued.certificate:
            proved = tuple(Provable(one.serial, one.sha256, one.spki) for one in prepared.all)
        else:  # a repeated request was answered with the certificates on record
            proved = tuple(Provable.of(Certificate.from_der(der)) for der in issued.certificates)
        self._challenges.remember(
            issued.attempt,
            Challenged(
                device=issued.device, run=context.licence.id, challenge=issued.challenge, provable=proved
            ),
        )
        return issued

    def _prepare_or_refuse(
        self, caller: Caller, context: RunContext, request: IssueRequest, known: Known
    ) -> _Prepared | errors.Refusal:
        try:
            return self._prepare(caller, context, request, known)
        except errors.Refusal as refusal:
            return refusal

    def _issue_act(
        self,
        caller: Caller,
        context: RunContext,
        request: IssueRequest,
        prepared: _Prepared | errors.Refusal,
    ) -> Act[Issued]:
        key, digest = request.key, request.digest(context.licence.id)
        fields: dict[str, Any] = {"run": context.licence.id, "hardware_id": request.hardware_id[:100]}
        reads = together(client_reads(caller), self._runs.admitting_reads(context.licence.id))
        reads |= {
            Answer: (answer_key(caller, key),),
            Authority: context.authorities,
        }
        if isinstance(prepared, _Prepared):
            reads |= {Device: (prepared.device,), Attempt: (prepared.attempt,)}
            reads |= {
                KeyUse: [one.spki_sha256 for one in prepared.all],
                DeviceCertificate: [one.serial for one in prepared.all],
            }
            if context.licence.allow_list is not None:
                reads[AllowedDevice] = (AllowedDevice.key(context.licence.allow_list, prepared.device),)

        def decide(facts: Facts, at: datetime) -> Decision[Issued]:
            decision = self._decide_issue(caller, context, prepared, key, digest, facts, at)
            if request.noted is not None:
                request.noted(facts, at, decision.answer.attempt, decision.answer.certificate)
            return decision

        return Act(
            actor=caller.client.id,
            seq=caller.seq,
            operator=caller.operator,
            decide=decide,
            refuse=refuse(
                caller, "issue", fields, key=key if request.keeps_refusal else None, request_sha256=digest
            ),
            reads=reads,
        )

    def _prepare(self, caller: Caller, context: RunContext, request: IssueRequest, known: Known) -> _Prepared:
        """Vet, build, lint and sign; nothing here is known to anybody yet."""
        licence = context.licence
        hardware_id = licence.hardware_id.parse(request.hardware_id)
        context.judge(hardware_id.text)
        origin = KeyOrigin.DELIVERED if request.csr is None else KeyOrigin.BORN
        if origin not in licence.origins:
            raise errors.NotPermitted(f"run {licence.id} does not allow {origin} keys")
        wanted = len(context.further) if request.csr is not None else 0
        if len(request.further_csrs) != wanted:
            raise errors.MalformedRequest(
                f"run {licence.id} wants {wanted} further certification requests, not"
                f" {len(request.further_csrs)}"
            )
        born = request.csr is not None
        recipient = recipient_for(caller.credential, born=born) if request.envelope else None
        csrs = (request.csr, *(request.further_csrs or (None,) * len(context.further)))
        templates = (context.template, *context.further)
        device = hardware_id.device
        attestation = attestations.judged(context, device, request.attested, known)
        keys = attestations.keys_in(attestation, len(templates))
        certified = [
            self._certifier.certify(
                template,
                csr,
                hardware_id,
                wanted=key,
                recipient=recipient,
                sealer=request.sealer,
                crmf=request.crmf,
            )
            for template, csr, key in zip(templates, csrs, keys, strict=True)
        ]
        if len({one.spki_sha256 for one in certified}) != len(certified):
            raise errors.PolicyRefused("key-is-unique", "each certificate of a device needs a key of its own")
        return _Prepared(
            device=device,
            attempt=self._entropy.token(16).hex() if attestation is None else attestation.id,
            challenge=self._entropy.token(CHALLENGE_SIZE),
            first=certified[0],
            further=tuple(certified[1:]),
            attestation=attestation,
            origin=origin,
            enveloped_to=None if recipient is None else caller.credential.serial,
        )

    def _decide_issue(
        self,
        caller: Caller,
        context: RunContext,
        prepared: _Prepared | errors.Refusal,
        key: str,
        digest: str,
        facts: Facts,
        at: datetime,
    ) -> Decision[Issued]:
        client = live_client(facts, caller, Capability.ISSUE, at)
        earlier = earlier_answer(facts, caller, key, digest)
        if earlier is not None and earlier.attempt is not None:
            return self._issue_again(facts, context, client, prepared, earlier.attempt, at)
        if isinstance(prepared, errors.Refusal):
            raise prepared
        run = self._runs.admitting(facts, context, client, at)
        check_scope(facts, client, context, prepared.device)
        require_identities(context.licence)
        require_approved(facts, context, caller, key, digest)
        device = facts.get(Device, prepared.device)
        if device is None:
            facts.put(admit(run))
            _use_shared(facts, caller)
            device = Device(
                id=prepared.device,
                state=DeviceState.ADMITTED,
                run=run.id,
                attempt="",
                attempts=0,
                reason=None,
            )
        elif device.run != run.id:
            raise errors.IllegalTransition(f"{device.id} belongs to run {device.run}: it is {device.state}")
        state = move(device.id, device.state, DeviceEvent.ISSUE)
        attestations.spend(facts, prepared.attestation, at)
        keep(facts, context, client.id, prepared.device, prepared.attempt, prepared.all, at)
        facts.put(
            replace(device, state=state, attempt=prepared.attempt, attempts=device.attempts + 1, reason=None)
        )
        facts.put(
            Attempt(
                id=prepared.attempt,
                device=device.id,
                number=device.attempts + 1,
                run=run.id,
                client=client.id,
                operator=caller.operator,
                origin=prepared.origin,
                state=state,
                challenge=prepared.challenge,
                certificate=prepared.first.serial,
                issued_at=at,
                issue_leaf=facts.next_leaf,
                proof=None,
                released_at=None,
                release_leaf=None,
                further=" ".join(one.serial for one in prepared.further),
            )
        )
        facts.put(
            Answer(
                id=answer_key(caller, key),
                request_sha256=digest,
                attempt=prepared.attempt,
                refusal=None,
                detail=None,
                at=at,
            )
        )
        entry = self._issue_entry(context, prepared, prepared.attempt, device.attempts + 1)
        return Decision(prepared.issued(context.chain, prepared.attempt), [("device-issued", entry)])

    def _issue_again(
        self,
        facts: Facts,
        context: RunContext,
        client: Client,
        prepared: _Prepared | errors.Refusal,
        attempt_id: str,
        at: datetime,
    ) -> Decision[Issued]:
        """Answer a repeated request: with the same certificate, or with a new key for a delivered one."""
        attempt = facts.get(Attempt, attempt_id)
        if attempt is None:
            raise errors.IntegrityFailure(f"attempt {attempt_id} was answered and is gone")
        certificates = [facts.get(DeviceCertificate, serial) for serial in attempt.certificates]
        held = [certificate for certificate in certificates if certificate is not None]
        if len(held) != len(certificates):
            raise errors.IntegrityFailure(f"a certificate of attempt {attempt_id} is gone")
        said = {"device": attempt.device, "attempt": attempt.id, "run": attempt.run, "request": "issue"}
        if attempt.origin is KeyOrigin.BORN:
            issued = Issued(
                device=attempt.device,
                attempt=attempt.id,
                certificate=held[0].der,
                chain=context.chain,
                challenge=attempt.challenge,
                private_key=None,
                further=tuple(
                    IssuedCertificate(profile=template.profile.name, certificate=one.der, private_key=None)
                    for template, one in zip(context.further, held[1:], strict=True)
                ),
            )
            return Decision(issued, [("answer-repeated", said)])
        if attempt.state is not DeviceState.ISSUED:
            raise errors.IllegalTransition(
                f"{attempt.device} is {attempt.state}: its delivered key was sent and is kept nowhere"
            )
        if isinstance(prepared, errors.Refusal):
            raise prepared
        # Another certificate is another issuance: it needs the run's licence like the first.
        self._runs.admitting(facts, context, client, at)
        check_scope(facts, client, context, attempt.device)
        because = ReasonCode.SUPERSEDED
        lost = [one.serial for one in held if revoke(facts, line_of(one), because, at, "reissue")]
        keep(facts, context, client.id, prepared.device, attempt.id, prepared.all, at)
        facts.put(
            replace(
                attempt,
                certificate=prepared.first.serial,
                challenge=prepared.challenge,
                issued_at=at,
                issue_leaf=facts.next_leaf,
                further=" ".join(one.serial for one in prepared.further),
            )
        )
        entry = self._issue_entry(context, prepared, attempt.id, attempt.number)
        entry |= {"certificates": lost, "revocation_reason": str(because)}
        return Decision(prepared.issued(context.chain, attempt.id), [("device-reissued", entry)])

    def _issue_entry(
        self, context: RunContext, prepared: _Prepared, attempt: str, number: int
    ) -> dict[str, Any]:
        licence = context.licence
        further = [one.said() for one in prepared.further]
        return (
            attestations.attested_said(prepared.attestation)
            | ({"further": further} if further else {})
            | ({"enveloped_to": prepared.enveloped_to} if prepared.enveloped_to else {})
            | {
                "device": prepared.device,
                "attempt": attempt,
                "attempt_number": number,
                "run": licence.id,
                "batch": licence.batch,
                "product": licence.product,
                "profile": licence.profile,
                "authority": licence.authority,
                "partition": licence.partition,
                "certificate": prepared.first.serial,
                "certificate_sha256": prepared.first.sha256,
                "spki_sha256": prepared.first.spki_sha256,
                "origin": str(prepared.origin),
                "key_store": self._certifier.key_store,
            }
        )


def _use_shared(facts: Facts, caller: Caller) -> None:
    """Count a device that is brought in by a shared credential (SPEC H4); the caller was judged before."""
    if caller.client.role is not Role.SHARED:
        return
    shared = facts.get(SharedCredential, caller.client.id)
    if shared is None:
        raise errors.IntegrityFailure(f"the limits of {caller.client.id} are gone")
    facts.put(use_once(shared))
