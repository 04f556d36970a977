"""Certificates for devices that ask by EST or CMP: their identity, and what they have besides (SPEC H1, H2).

Under a run for identities a request is issued like a station's (``issue``), and the device passes the same
gate before it is released.  Under an ``operational`` run a released device gets a certificate for where it
works: its newest one waits until the device has used it, and only then is the one before superseded.  Both
are counted, logged, and answered the same way when they are asked again.

Where the licence says so a person looks at each request first; until then the answer is ``Waiting``.
"""

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from birthmark import errors
from birthmark.floor.answers import Answer
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
from birthmark.floor.enrolments import LocalIdentity, local_identity_id
from birthmark.floor.runs import AllowedDevice, RunPurpose, admit
from birthmark.pki.csr import device_of
from birthmark.pki.est_requests import require_same_names
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Act, Committed, Decision, Entropy, Facts, Look, UseCase
from birthmark.secret import SecretBytes
from birthmark.services.acts import (
    Caller,
    answer_key,
    client_reads,
    decided,
    earlier_answer,
    live_client,
    refuse,
    together,
)
from birthmark.services.approvals import Approvals, require_approved
from birthmark.services.certifying import Certified, Certifier, keep, vet_request
from birthmark.services.confirmations import give_back, put_proved
from birthmark.services.delivered import recipient_for
from birthmark.services.issue import CHALLENGE_SIZE, IssueDevices, IssueRequest
from birthmark.services.revocations import line_of, status
from birthmark.services.runs import RunContext, Runs, check_scope

__all__ = ["EnrolDevices", "Granted", "Waiting"]

_REQUEST = "enrol"
_NAMES = "csr-names-the-device"


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """A certificate that was asked for."""

    device: str
    run: str
    attempt: str
    certificate: bytes = field(repr=False)
    """DER."""
    chain: tuple[bytes, ...] = field(repr=False)
    """The authorities above it (DER), the root not included."""
    private_key: SecretBytes | None = None
    """PKCS#8 (DER) of a delivered key: this is the only time it exists outside the device."""
    envelope: bytes | None = field(default=None, repr=False)
    """The same in CMS (DER), if that was asked for."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A person has to look at the request; the same request gets the certificate later."""

    retry_after: int
    """Seconds after which it is worth asking again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    attempt: str
    challenge: bytes = field(repr=False)
    certified: Certified
    origin: KeyOrigin


class EnrolDevices:
    """The use cases behind EST and CMP."""

    def __init__(
        self,
        runs: Runs,
        issue: IssueDevices,
        certifier: Certifier,
        entropy: Entropy,
        default_run: str | None = None,
        retry_after: int = 30,
    ) -> None:
        """Enrol under the runs' licences.

        Args:
            runs: of the realm.
            issue: issues identities.
            certifier: makes the other certificates.
            entropy: for attempts and challenges.
            default_run: for devices that name none.
            retry_after: seconds after which it is worth asking again about what waits for a person.
        """
        self._runs = runs
        self._issue = issue
        self._certifier = certifier
        self._entropy = entropy
        self._default = default_run
        self._waiting = Waiting(retry_after)
        self._approvals = Approvals()

    def run_of(self, caller: Caller | None, label: str | None) -> UseCase[RunContext]:
        """Return the run a request is for: the one it names, its credential's, or that of devices.

        Raises:
            errors.NotFound: there is no such run, or none is named and none follows.
        """
        run = label or (None if caller is None else caller.client.run)
        if run is None and caller is not None and caller.client.role is Role.DEVICE:
            serial = caller.credential.serial
            facts: Facts = yield Look({DeviceCertificate: (serial,)})
            shown = facts.get(DeviceCertificate, serial)
            context = None if shown is None else (yield from self._runs.known(shown.run))
            if context is not None and context.licence.purpose is RunPurpose.OPERATIONAL:
                run = context.licence.id
        run = run or self._default
        if run is None:
            raise errors.NotFound("no run is named, and none follows from who asks: name one as the label")
        return (yield from self._runs.context(run))

    def enrol(
        self, caller: Caller, label: str | None, request: IssueRequest, *, renewal: bool = False
    ) -> UseCase[Granted | Waiting]:
        """Certify a device's key.

        Args:
            caller: whoever asks: the device, by a certificate of its own, a bootstrap or shared credential.
            label: the run; None for the one that follows from who asks.
            request: with the key.  Its hardware id is empty where it follows from who asks, or else from the
                names in the certification request.
            renewal: the certificate that is shown is of this very run, and to be replaced by one of the same
                names: those of a PKCS #10 request are compared (RFC 7030 section 4.2.2).

        Raises:
            errors.Refusal: it is not granted.  It is on record.
        """
        try:
            context = yield from self.run_of(caller, label)
            named = _named(caller, context, request)
            policy, approval = context.licence.hardware_id, context.licence.approval
            looked_at = policy.parse(named.hardware_id) if approval else None
            if renewal:
                yield from self._require_renewable(caller, context)
                if named.csr is not None and not named.crmf:
                    require_same_names(named.csr, caller.credential.der)
        except errors.Refusal as refusal:
            raise (yield from self._recorded(caller, label, request, refusal)) from None
        if looked_at is not None:
            device, digest = looked_at.device, named.digest(context.licence.id)
            if not (yield from self._approvals.ask(caller, context, device, named.key, digest, named.csr)):
                return self._waiting
        if context.licence.purpose is RunPurpose.IDENTITY:
            (issued,) = yield from self._issue(caller, context.licence.id, [named])
            if isinstance(issued, errors.Refusal):
                issued.recorded = True
                raise issued
            return Granted(
                device=issued.device,
                run=context.licence.id,
                attempt=issued.attempt,
                certificate=issued.certificate,
                chain=issued.chain,
                private_key=issued.private_key,
                envelope=issued.envelope,
            )
        return (yield from self._enrol_local(caller, context, named))

    def _recorded(
        self, caller: Caller, label: str | None, request: IssueRequest, refusal: errors.Refusal
    ) -> UseCase[errors.Refusal]:
        """Put on record a refusal from before any act, under the idempotency key too."""
        if refusal.retryable:
            return refusal
        fields = {"run": (label or "")[:64], "hardware_id": request.hardware_id[:100]}

        def decide(_facts: Facts, _at: datetime) -> Decision[None]:
            raise refusal

        committed: list[Committed[None]] = yield [
            Act(
                actor=caller.client.id,
                decide=decide,
                refuse=refuse(caller, _REQUEST, fields),
                reads=client_reads(caller),
            )
        ]
        answer = committed[0].answer
        told = answer if isinstance(answer, errors.Refusal) else refusal
        told.recorded = True
        return told

    def _require_renewable(self, caller: Caller, context: RunContext) -> UseCase[None]:
        serial = caller.credential.serial
        facts: Facts = yield Look({DeviceCertificate: (serial,)})
        shown = facts.get(DeviceCertificate, serial)
        if shown is None or shown.run != context.licence.id:
            raise errors.NotPermitted(
                f"only a certificate of run {context.licence.id} is renewed there: enrol for one"
            )

    # --- operational runs

    def _enrol_local(self, caller: Caller, context: RunContext, request: IssueRequest) -> UseCase[Granted]:
        licence, run = context.licence, context.licence.id
        digest = request.digest(run)
        prepared: _Prepared | errors.Refusal
        try:
            prepared = self._prepare(caller, context, request)
        except errors.Refusal as refusal:
            prepared = refusal
        device = caller.client.hardware_id or ""
        reads = together(client_reads(caller), self._runs.admitting_reads(run))
        reads |= {
            Answer: (answer_key(caller, request.key),),
            Device: (device,),
            LocalIdentity: (local_identity_id(device, run),),
        }
        reads[Authority] = [*reads.get(Authority, ()), *context.authorities]
        if isinstance(prepared, _Prepared):
            reads[KeyUse] = (prepared.certified.spki_sha256,)
        if licence.allow_list is not None:
            reads[AllowedDevice] = (AllowedDevice.key(licence.allow_list, device),)

        def decide(facts: Facts, at: datetime) -> Decision[Granted]:
            decision = self._decide_local(caller, context, prepared, request.key, digest, facts, at)
            if request.noted is not None:
                request.noted(facts, at, decision.answer.attempt, decision.answer.certificate)
            return decision

        said = {"run": run, "device": device}
        kept = request.key if request.keeps_refusal else None
        granted: Granted = yield from decided(
            caller, _REQUEST, said, decide, reads, key=kept, request_sha256=digest
        )
        return granted

    def _prepare(self, caller: Caller, context: RunContext, request: IssueRequest) -> _Prepared:
        licence = context.licence
        if caller.client.role is not Role.DEVICE:
            raise errors.NotPermitted(
                f"{caller.client.id} may not enrol under run {licence.id}: devices do, by their certificates"
            )
        hardware_id = licence.hardware_id.parse(request.hardware_id)
        context.judge(hardware_id.text)
        origin = KeyOrigin.DELIVERED if request.csr is None else KeyOrigin.BORN
        if origin not in licence.origins:
            raise errors.NotPermitted(f"run {licence.id} does not allow {origin} keys")
        born = request.csr is not None
        recipient = recipient_for(caller.credential, born=born) if request.envelope else None
        return _Prepared(
            attempt=self._entropy.token(16).hex(),
            challenge=self._entropy.token(CHALLENGE_SIZE),
            certified=self._certifier.certify(
                context.template,
                request.csr,
                hardware_id,
                recipient=recipient,
                sealer=request.sealer,
                crmf=request.crmf,
            ),
            origin=origin,
        )

    def _decide_local(
        self,
        caller: Caller,
        context: RunContext,
        prepared: _Prepared | errors.Refusal,
        key: str,
        digest: str,
        facts: Facts,
        at: datetime,
    ) -> Decision[Granted]:
        client = live_client(facts, caller, Capability.ENROL_SELF, at)
        earlier = earlier_answer(facts, caller, key, digest)
        if earlier is not None and earlier.attempt is not None:
            held = facts.get(Attempt, earlier.attempt)
            if held is not None and held.origin is KeyOrigin.BORN:
                return _again(facts, context, held)
        if isinstance(prepared, errors.Refusal):
            raise prepared
        run = self._runs.admitting(facts, context, client, at)
        device = _require_released(facts, client)
        check_scope(facts, client, context, device)
        require_approved(facts, context, caller, key, digest)
        name, made = local_identity_id(device, context.licence.id), prepared.certified
        before = facts.get(LocalIdentity, name)
        if before is None:
            facts.put(admit(run))
        entries = _take_shown(facts, caller, before, at)
        before = facts.get(LocalIdentity, name)
        given_up = _give_up(facts, before, at)
        keep(facts, context, client.id, device, prepared.attempt, [made], at)
        leaf = facts.next_leaf + len(entries)
        attempt = _put_attempt(facts, context, device, client.id, prepared, before, leaf, at)
        facts.put(
            Answer(
                id=answer_key(caller, key),
                request_sha256=digest,
                attempt=attempt.id,
                refusal=None,
                detail=None,
                at=at,
            )
        )
        entry = _issued_said(caller, context, attempt, made, given_up)
        entry["key_store"] = self._certifier.key_store
        return Decision(_granted(context, attempt, made), [*entries, ("local-issued", entry)])


def _named(caller: Caller, context: RunContext, request: IssueRequest) -> IssueRequest:
    """Return the request with the hardware id it is for."""
    known = caller.client.hardware_id
    if known is not None:
        own = known.partition(":")[2]
        if request.hardware_id and request.hardware_id.upper() != own.upper():
            raise errors.PolicyRefused(_NAMES, f"the request names {request.hardware_id[:100]}, not {own}")
        return replace(request, hardware_id=own)
    if request.hardware_id:
        return request
    if request.csr is None:
        raise errors.PolicyRefused(_NAMES, "the request names no device, and nothing else does")
    named = device_of(vet_request(context.template, request.csr, crmf=request.crmf).subject)
    if not named:
        raise errors.PolicyRefused(
            _NAMES,
            "the certification request names no device: give its hardware id as serialNumber or common name",
        )
    return replace(request, hardware_id=named)


def _again(facts: Facts, context: RunContext, attempt: Attempt) -> Decision[Granted]:
    held = facts.get(DeviceCertificate, attempt.certificate)
    if held is None:
        raise errors.IntegrityFailure(f"the certificate of attempt {attempt.id} is gone")
    if status(facts, line_of(held)) is not None:
        raise errors.IllegalTransition(
            f"what this request got, certificate {held.serial}, is revoked: make a new key, and ask with that"
        )
    granted = Granted(
        device=attempt.device,
        run=attempt.run,
        attempt=attempt.id,
        certificate=held.der,
        chain=context.chain,
    )
    said = {"device": attempt.device, "attempt": attempt.id, "run": attempt.run, "request": _REQUEST}
    return Decision(granted, [("answer-repeated", said)])


def _require_released(facts: Facts, client: Client) -> str:
    """Return the id of the device that a client is, if it has left the line."""
    device = facts.get(Device, client.hardware_id or "")
    if device is None or device.state is not DeviceState.RELEASED:
        standing = "not known" if device is None else str(device.state)
        raise errors.IllegalTransition(f"{client.hardware_id} is {standing}: only a released device enrols")
    return device.id


def _take_shown(
    facts: Facts, caller: Caller, before: LocalIdentity | None, at: datetime
) -> list[tuple[str, dict[str, Any]]]:
    """Take the newest certificate for proved, if it waits for that and is the one that asks; return entries.

    Who asks with it holds it, and it is not given up.
    """
    attempt = None if before is None else facts.get(Attempt, before.attempt)
    if before is None or attempt is None or attempt.state is not DeviceState.ISSUED:
        return []
    if attempt.certificate != caller.credential.serial:
        return []
    return [put_proved(facts, attempt, before, "request", at)]


def _give_up(facts: Facts, before: LocalIdentity | None, at: datetime) -> list[str]:
    """Give up the newest attempt if nobody proved it: its certificate was perhaps never received."""
    attempt = None if before is None else facts.get(Attempt, before.attempt)
    if attempt is None or attempt.state is not DeviceState.ISSUED:
        return []
    facts.put(replace(attempt, state=move(attempt.device, attempt.state, DeviceEvent.HOLD)))
    return give_back(facts, [attempt.certificate], ReasonCode.SUPERSEDED, at)


def _put_attempt(
    facts: Facts,
    context: RunContext,
    device: str,
    client: str,
    prepared: _Prepared,
    before: LocalIdentity | None,
    leaf: int,
    at: datetime,
) -> Attempt:
    """Put on record that a certificate is the device's newest, which waits for its proof."""
    number = 1 if before is None else before.attempts + 1
    attempt = Attempt(
        id=prepared.attempt,
        device=device,
        number=number,
        run=context.licence.id,
        client=client,
        operator=None,
        origin=prepared.origin,
        state=DeviceState.ISSUED,
        challenge=prepared.challenge,
        certificate=prepared.certified.serial,
        issued_at=at,
        issue_leaf=leaf,
        proof=None,
        released_at=None,
        release_leaf=None,
    )
    identity = LocalIdentity(
        id=local_identity_id(device, attempt.run),
        device=device,
        run=attempt.run,
        attempt=attempt.id,
        attempts=number,
        certificate=None if before is None else before.certificate,
    )
    facts.put(identity)
    facts.put(attempt)
    return attempt


def _issued_said(
    caller: Caller, context: RunContext, attempt: Attempt, made: Certified, given_up: list[str]
) -> dict[str, Any]:
    licence = context.licence
    entry: dict[str, Any] = {
        "device": attempt.device,
        "attempt": attempt.id,
        "attempt_number": attempt.number,
        "run": licence.id,
        "authority": licence.authority,
        "partition": licence.partition,
        "shown": caller.credential.serial,
        **made.said(),
        "origin": str(attempt.origin),
    }
    if given_up:
        entry |= {"certificates": given_up, "revocation_reason": str(ReasonCode.SUPERSEDED)}
    return entry


def _granted(context: RunContext, attempt: Attempt, made: Certified) -> Granted:
    return Granted(
        device=attempt.device,
        run=attempt.run,
        attempt=attempt.id,
        certificate=made.certificate,
        chain=context.chain,
        private_key=made.private_key,
        envelope=made.envelope,
    )
