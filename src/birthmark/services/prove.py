"""Check a device's proof, and release the device or hold it (SPEC C4, C6, C7).

The record, the proof, the run's counter and the audit leaf are one commit with the release (SPEC E2).

The proof is the device's signature over the challenge of its attempt, made with the key its certificate
names.  The same idempotency key gets the same release token, byte for byte.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import Any

from birthmark import errors
from birthmark.element.profiles import ElementProfile
from birthmark.floor.answers import Answer
from birthmark.floor.attestations import Attestation
from birthmark.floor.clients import Capability, Client
from birthmark.floor.devices import (
    Attempt,
    Device,
    DeviceCertificate,
    DeviceEvent,
    IdentityRecord,
    move,
)
from birthmark.floor.elements import ElementJournal
from birthmark.floor.revocations import Revocation, revocation_key
from birthmark.floor.runs import Run
from birthmark.ledger.entry import canonical
from birthmark.pki.possession import proof_message, verify_proof
from birthmark.ports import Act, Committed, Decision, Facts, Look, ProofOf, UseCase
from birthmark.services.acts import (
    Caller,
    allowed_client,
    answer_key,
    client_reads,
    earlier_answer,
    live_client,
    refuse,
)
from birthmark.services.attestations import attested_said
from birthmark.services.challenges import Challenged, Challenges
from birthmark.services.dialogues import Dialogues, Moved, Responses, element_of
from birthmark.services.holding import DEVICE_HELD, put_held
from birthmark.services.injection import judge_element, outcome_of, permission_reads, permit
from birthmark.services.revocations import require_good
from birthmark.services.runs import RunContext, Runs, check_scope

__all__ = ["ProveDevices", "ProveRequest", "Released"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProveRequest:
    """A device shows that it holds its key."""

    attempt: str
    certificate_sha256: str
    """Fingerprint of the certificate as read back from the device (hex)."""
    signature: bytes
    """Over ``pki.possession.proof_message``."""
    key: str
    """Idempotency key."""
    further: tuple[tuple[str, bytes], ...] = ()
    """Fingerprint and signature for each further certificate, in the order of the run's profiles."""
    element: Responses | None = None
    """What the device's secure element answered to the last commands, if a key set was put into it."""

    def digest(self) -> str:
        """Return what tells this request from another under the same key."""
        asked: tuple[object, ...] = ("prove", self.attempt, self.certificate_sha256, self.signature)
        if self.further:
            asked += self.further
        if self.element is not None:
            asked += (self.element.digest(),)
        return sha256(repr(asked).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Released:
    """A device that may leave the line, and the proof of it."""

    device: str
    attempt: str
    token: str = field(repr=False)
    """C2SP ``.tlog-proof`` of the release: checked offline with the log's public key."""


class ProveDevices:
    """Prove and release."""

    def __init__(self, runs: Runs, challenges: Challenges, dialogues: Dialogues) -> None:
        """Release under the runs' licences."""
        self._runs = runs
        self._challenges = challenges
        self._dialogues = dialogues

    def __call__(
        self, caller: Caller, requests: Sequence[ProveRequest]
    ) -> UseCase[list[Released | errors.Refusal]]:
        """Check devices' proofs and release or hold them; each succeeds or fails alone."""
        challenged = yield from self._challenges.recall([request.attempt for request in requests])
        contexts: dict[str, RunContext] = {}
        for run in {found.run for found in challenged.values()}:
            contexts[run] = yield from self._runs.known(run)
        seen = yield from self._seen(caller, contexts, challenged)
        acts = [
            self._prove_act(caller, contexts, challenged.get(request.attempt), request, seen)
            for request in requests
        ]
        committed: list[Committed[Any]] = yield acts
        results: list[Released | errors.Refusal] = []
        for request, item in zip(requests, committed, strict=True):
            answer = item.answer
            if isinstance(answer, _StaleChallenge):
                self._challenges.forget(request.attempt)
                results += yield from self(caller, [request])
            elif isinstance(answer, errors.ProofFailed | errors.Interrupted):
                self._dialogues.forget(request.attempt)
                if isinstance(answer, errors.ProofFailed):
                    self._challenges.forget(request.attempt)
                results.append(answer)
            elif isinstance(answer, errors.Refusal):
                results.append(answer)
            elif isinstance(answer, Exception):
                raise answer
            elif item.leaves and item.leaves[0].index == answer.release_leaf:
                # A lost answer is asked for again rarely, and then looked up.
                self._challenges.forget(request.attempt)
                self._dialogues.forget(request.attempt)
                results.append(_released(answer, item.token(item.leaves[0].index)))
            else:
                results.append(_released(answer, (yield ProofOf(answer.release_leaf))))
        return results

    def _prove_act(
        self,
        caller: Caller,
        contexts: Mapping[str, RunContext],
        challenged: Challenged | None,
        request: ProveRequest,
        seen: Facts | None,
    ) -> Act[Attempt | errors.ProofFailed]:
        failure = None if challenged is None else _check_proof(challenged, request)
        moved = None
        if challenged is not None:
            moved = self._moved(caller, contexts[challenged.run], challenged, request, seen)
        digest = request.digest()
        reads = client_reads(caller)
        reads |= {Answer: (answer_key(caller, request.key),), Attempt: (request.attempt,)}
        fields: dict[str, Any] = {"attempt": request.attempt[:64]}
        if challenged is not None:
            reads |= {
                Device: (challenged.device,),
                Run: (challenged.run,),
                DeviceCertificate: challenged.serials,
            }
            if isinstance(moved, Moved):
                reads[ElementJournal] = (challenged.device,)
            licence = contexts[challenged.run].licence
            reads[Revocation] = [
                revocation_key(licence.authority, licence.partition, serial) for serial in challenged.serials
            ]
            fields |= {"device": challenged.device, "run": challenged.run}
        return Act(
            actor=caller.client.id,
            seq=caller.seq,
            operator=caller.operator,
            decide=partial(self._decide_prove, caller, contexts, challenged, request, failure, moved),
            refuse=refuse(caller, "prove", fields, key=request.key, request_sha256=digest),
            reads=reads,
        )

    def _seen(
        self, caller: Caller, contexts: Mapping[str, RunContext], challenged: Mapping[str, Challenged]
    ) -> UseCase[Facts | None]:
        """Return what is looked at before a dialogue is moved; None where no device has an element."""
        if not any(isinstance(context.equipment, ElementProfile) for context in contexts.values()):
            return None
        found: Facts = yield Look(permission_reads(caller, contexts, challenged.values()))
        return found

    def _moved(
        self,
        caller: Caller,
        context: RunContext,
        challenged: Challenged,
        request: ProveRequest,
        seen: Facts | None,
    ) -> Moved | errors.Refusal | None:
        """Return what the element's last responses come to; None for a device that has no element.

        A dialogue is moved by nobody who may not prove.
        """
        try:
            if element_of(context) is None:
                if request.element is not None:
                    raise errors.MalformedRequest(f"run {context.licence.id} puts no key set into an element")
                return None
            if request.element is None:
                raise errors.IllegalTransition(
                    f"run {context.licence.id} puts a key set into each device's secure element: the proof"
                    " comes with its last responses"
                )
            if seen is None:
                raise errors.Fault("an element, and nobody looked who asks")
            permit(
                seen, allowed_client(seen, caller, Capability.PROVE), self._runs, context, challenged.device
            )
            return outcome_of(self._dialogues, request.attempt, request.element)
        except errors.Refusal as refusal:
            return refusal

    def _decide_prove(
        self,
        caller: Caller,
        contexts: Mapping[str, RunContext],
        challenged: Challenged | None,
        request: ProveRequest,
        failure: errors.ProofFailed | None,
        moved: Moved | errors.Refusal | None,
        facts: Facts,
        at: datetime,
    ) -> Decision[Any]:
        client = live_client(facts, caller, Capability.PROVE, at)
        earlier = earlier_answer(facts, caller, request.key, request.digest())
        attempt = facts.get(Attempt, request.attempt)
        if attempt is None or challenged is None:
            raise errors.NotFound(f"there is no attempt {request.attempt[:64]}")
        if earlier is not None:
            said = {"device": attempt.device, "attempt": attempt.id, "run": attempt.run, "request": "prove"}
            return Decision(attempt, [("answer-repeated", said)])
        if attempt.challenge != challenged.challenge or attempt.certificates != challenged.serials:
            raise _StaleChallenge("the attempt got another challenge meanwhile")
        context = contexts[attempt.run]
        self._runs.working(context.licence, client)
        check_scope(facts, client, context, attempt.device)
        device, run = facts.get(Device, attempt.device), facts.get(Run, attempt.run)
        if device is None or run is None:
            raise errors.IntegrityFailure(f"attempt {attempt.id} has no device or run")
        if device.attempt != attempt.id:
            raise errors.IllegalTransition(
                f"attempt {attempt.id} is over: {device.id} is at attempt {device.attempts}"
            )
        # Before the failure is looked at: only what can be proved is held for failing.
        proved = move(device.id, device.state, DeviceEvent.PROVE)
        if failure is not None:
            return _hold_unproved(facts, caller, device, attempt, request, failure, at)
        require_good(facts, attempt)
        if isinstance(moved, errors.Refusal):
            raise moved
        key_set: dict[str, Any] | None = None
        if moved is not None:
            judged = judge_element(facts, context, device, attempt, moved)
            if isinstance(judged, Decision):
                if isinstance(judged.answer, errors.ProofFailed):
                    facts.put(_prove_answer(caller, request, attempt.id, at, judged.answer))
                return judged
            key_set = judged
        state = move(device.id, proved, DeviceEvent.RELEASE)
        released = replace(
            attempt, state=state, proof=request.signature, released_at=at, release_leaf=facts.next_leaf
        )
        record = _record(facts, context, client, caller, released, challenged, request, key_set, at)
        facts.put(replace(device, state=state))
        facts.put(replace(run, released=run.released + 1))
        facts.put(released)
        facts.put(record)
        facts.put(_prove_answer(caller, request, attempt.id, at))
        return Decision(released, [("device-released", {"device": device.id, "record": record.document()})])


class _StaleChallenge(errors.Unavailable):
    """What this process remembers of an attempt is out of date; look again.  Commits nothing."""


def _released(attempt: Attempt, token: str) -> Released:
    return Released(device=attempt.device, attempt=attempt.id, token=token)


def _check_proof(challenged: Challenged, request: ProveRequest) -> errors.ProofFailed | None:
    shown = ((request.certificate_sha256, request.signature), *request.further)
    if len(shown) != len(challenged.provable):
        return errors.ProofFailed(
            f"the device has {len(challenged.provable)} certificates and shows {len(shown)} keys"
        )
    for provable, (read_back, signature) in zip(challenged.provable, shown, strict=True):
        if read_back != provable.sha256:
            return errors.ProofFailed(
                "the certificate read back from the device is not the one that was issued"
            )
        message = proof_message(
            attempt=request.attempt, certificate_sha256=provable.sha256, challenge=challenged.challenge
        )
        try:
            verify_proof(provable.spki, signature, message)
        except errors.ProofFailed as failure:
            return failure
    return None


def _prove_answer(
    caller: Caller,
    request: ProveRequest,
    attempt: str,
    at: datetime,
    failure: errors.ProofFailed | None = None,
) -> Answer:
    return Answer(
        id=answer_key(caller, request.key),
        request_sha256=request.digest(),
        attempt=attempt,
        refusal=None if failure is None else failure.code,
        detail=None if failure is None else str(failure),
        at=at,
    )


def _hold_unproved(
    facts: Facts,
    caller: Caller,
    device: Device,
    attempt: Attempt,
    request: ProveRequest,
    failure: errors.ProofFailed,
    at: datetime,
) -> Decision[errors.Refusal]:
    """Hold a device whose proof is wrong: the refusal is the answer, and it is committed."""
    refusal = errors.ProofFailed(f"{failure}; {device.id} is held")
    entry = put_held(facts, device, attempt, str(failure))
    entry |= {"code": failure.code, "signature_sha256": sha256(request.signature).hexdigest()}
    facts.put(_prove_answer(caller, request, attempt.id, at, refusal))
    return Decision(refusal, [(DEVICE_HELD, entry)])


def _record(
    facts: Facts,
    context: RunContext,
    client: Client,
    caller: Caller,
    attempt: Attempt,
    challenged: Challenged,
    request: ProveRequest,
    key_set: dict[str, Any] | None,
    at: datetime,
) -> IdentityRecord:
    licence = context.licence
    first, *others = challenged.provable
    further = [
        {
            "profile": profile,
            "certificate": one.serial,
            "certificate_sha256": one.sha256,
            "spki_sha256": sha256(one.spki).hexdigest(),
            "proof": signature.hex(),
        }
        for profile, one, (_, signature) in zip(
            licence.further_profiles, others, request.further, strict=True
        )
    ]
    besides: dict[str, Any] = {"further": further} if further else {}
    if key_set is not None:
        besides["key_set"] = key_set
    besides |= attested_said(facts.get(Attestation, attempt.id))
    return IdentityRecord(
        leaf=facts.next_leaf,
        device=attempt.device,
        attempt=attempt.id,
        attempt_number=attempt.number,
        run=licence.id,
        batch=licence.batch,
        product=licence.product,
        profile=licence.profile,
        authority=licence.authority,
        certificate=attempt.certificate,
        certificate_sha256=first.sha256,
        spki_sha256=sha256(first.spki).hexdigest(),
        origin=attempt.origin,
        site=client.site,
        line=client.line,
        client=client.id,
        operator=caller.operator,
        issued_at=attempt.issued_at,
        issue_leaf=attempt.issue_leaf,
        released_at=at,
        challenge=attempt.challenge,
        proof=attempt.proof or b"",
        further=canonical(besides).decode() if besides else "",
    )
