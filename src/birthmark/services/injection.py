"""Secure elements: the service speaks, the station carries (SPEC D2, D5).

A step of a dialogue (``dialogues``) is one act: the journal it needs is durable before the station hears the
next commands.  The responses to the last commands come with the proof (``prove``), which is one commit with
the release; what that needs from here is ``outcome_of`` and ``judge_element``.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from birthmark import errors
from birthmark.element.diversification import ContextSource
from birthmark.element.injection import Evidence
from birthmark.element.profiles import ElementProfile
from birthmark.floor.clients import Capability, Client
from birthmark.floor.devices import Attempt, Device, DeviceCertificate, DeviceEvent, DeviceState, move
from birthmark.floor.elements import ElementJournal, ElementUse, element_use
from birthmark.floor.key_assets import KeyAsset
from birthmark.floor.revocations import Revocation, revocation_key
from birthmark.floor.runs import AllowedDevice, Run
from birthmark.ports import Act, Committed, Decision, Facts, Look, UseCase
from birthmark.services.acts import Caller, allowed_client, client_reads, live_client, refuse
from birthmark.services.challenges import Challenged, Challenges
from birthmark.services.dialogues import (
    BEGIN,
    Commands,
    Dialogues,
    Finished,
    Moved,
    Responses,
    element_of,
    journal_of,
)
from birthmark.services.holding import DEVICE_HELD, put_held
from birthmark.services.revocations import require_good
from birthmark.services.runs import RunContext, Runs, check_scope

__all__ = [
    "InjectDevices",
    "InjectRequest",
    "judge_element",
    "outcome_of",
    "permission_reads",
    "permit",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class InjectRequest:
    """The next step of one attempt's dialogue."""

    attempt: str
    element: Responses


class InjectDevices:
    """Carry dialogues on, and begin them anew."""

    def __init__(self, runs: Runs, challenges: Challenges, dialogues: Dialogues) -> None:
        """Speak under the runs' licences."""
        self._runs = runs
        self._challenges = challenges
        self._dialogues = dialogues

    def __call__(
        self, caller: Caller, requests: Sequence[InjectRequest]
    ) -> UseCase[list[Commands | errors.Refusal]]:
        """Take dialogues one step on; each succeeds or fails alone."""
        challenged = yield from self._challenges.recall([request.attempt for request in requests])
        contexts: dict[str, RunContext] = {}
        for run in {found.run for found in challenged.values()}:
            contexts[run] = yield from self._runs.known(run)
        begun = [
            challenged[request.attempt]
            for request in requests
            if request.element.step == BEGIN and request.attempt in challenged
        ]
        facts: Facts = yield Look(
            permission_reads(caller, contexts, challenged.values())
            | {
                Attempt: [request.attempt for request in requests if request.element.step == BEGIN],
                Device: [found.device for found in begun],
                ElementJournal: [found.device for found in begun],
                DeviceCertificate: [serial for found in begun for serial in found.serials],
            }
        )
        undecided: dict[str, errors.Refusal] = {}
        for run in {found.run for found in begun}:
            try:
                if (profile := element_of(contexts[run])) is not None:
                    yield from self._dialogues.require_decided(profile)
            except errors.Refusal as refusal:
                undecided[run] = refusal
        acts = []
        for request in requests:
            found = challenged.get(request.attempt)
            context = None if found is None else contexts[found.run]
            refused = None if found is None or request.element.step != BEGIN else undecided.get(found.run)
            moved = refused or self._think(caller, context, found, request, facts)
            acts.append(self._act(caller, context, found, request, moved))
        committed: list[Committed[Any]] = yield acts
        return [self._answer(request, item) for request, item in zip(requests, committed, strict=True)]

    def _answer(self, request: InjectRequest, item: Committed[Any]) -> Commands | errors.Refusal:
        answer = item.answer
        if isinstance(answer, errors.ProofFailed | errors.Interrupted):
            self._dialogues.forget(request.attempt)
        if isinstance(answer, errors.Refusal):
            return answer
        if isinstance(answer, Exception):
            raise answer
        commands: Commands = answer
        return commands

    def _act(
        self,
        caller: Caller,
        context: RunContext | None,
        challenged: Challenged | None,
        request: InjectRequest,
        moved: Moved | errors.Refusal,
    ) -> Act[Any]:
        reads = client_reads(caller) | {Attempt: (request.attempt,)}
        fields: dict[str, Any] = {"attempt": request.attempt[:64], "step": request.element.step}
        if challenged is not None and context is not None:
            reads |= {
                Device: (challenged.device,),
                Run: (challenged.run,),
                ElementJournal: (challenged.device,),
                DeviceCertificate: challenged.serials,
                Revocation: [
                    revocation_key(context.licence.authority, context.licence.partition, serial)
                    for serial in challenged.serials
                ],
            }
            if context.licence.allow_list is not None:
                reads[AllowedDevice] = (AllowedDevice.key(context.licence.allow_list, challenged.device),)
            fields |= {"device": challenged.device, "run": challenged.run}
        return Act(
            actor=caller.client.id,
            seq=caller.seq,
            operator=caller.operator,
            decide=partial(self._decide, caller, context, challenged, request, moved),
            refuse=refuse(caller, "inject", fields),
            reads=reads,
        )

    def _think(
        self,
        caller: Caller,
        context: RunContext | None,
        challenged: Challenged | None,
        request: InjectRequest,
        facts: Facts,
    ) -> Moved | errors.Refusal:
        """Speak, if whoever asks may: a token is not used, nor a dialogue moved, for anybody else."""
        try:
            if context is None or challenged is None:
                raise errors.NotFound(f"there is no attempt {request.attempt[:64]}")
            profile = element_of(context)
            if profile is None:
                raise errors.IllegalTransition(f"run {context.licence.id} puts no key set into an element")
            permit(
                facts, allowed_client(facts, caller, Capability.PROVE), self._runs, context, challenged.device
            )
            if request.element.step != BEGIN:
                return self._dialogues.advance(request.attempt, request.element)
            if request.element.responses:
                raise errors.MalformedRequest("a dialogue is begun without responses")
            require_under_way(facts.get(Attempt, request.attempt), facts.get(Device, challenged.device))
            journal = journal_of(facts, challenged.device, request.attempt, profile)
            certificates = [facts.get(DeviceCertificate, serial) for serial in challenged.serials]
            ders = [one.der for one in certificates if one is not None]
            commands = self._dialogues.begin(context, profile, journal, ders)
            return Moved(outcome=commands, before=None, after=None)
        except errors.Refusal as refusal:
            return refusal

    def _decide(
        self,
        caller: Caller,
        context: RunContext | None,
        challenged: Challenged | None,
        request: InjectRequest,
        moved: Moved | errors.Refusal,
        facts: Facts,
        at: datetime,
    ) -> Decision[Any]:
        if isinstance(moved, errors.Refusal):
            live_client(facts, caller, Capability.PROVE, at)
            raise moved
        if context is None or challenged is None or (profile := element_of(context)) is None:
            raise errors.Fault("a dialogue without an element")
        client = live_client(facts, caller, Capability.PROVE, at)
        permit(facts, client, self._runs, context, challenged.device)
        attempt, device = facts.get(Attempt, request.attempt), facts.get(Device, challenged.device)
        attempt, device = require_under_way(attempt, device)
        require_good(facts, attempt)
        journal, outcome = moved.journal(facts, device.id, attempt.id, profile), moved.outcome
        if isinstance(outcome, errors.Refusal):
            return _not_proved(
                facts, device, attempt, profile, journal, outcome, spoken=moved.after is not None
            )
        if isinstance(outcome, Finished):
            raise errors.MalformedRequest("the responses to the last commands go with the proof")
        said = {"device": device.id, "attempt": attempt.id, "run": attempt.run, "step": outcome.step}
        if moved.after is None:
            return Decision(outcome, [("element-begun", said)])
        take_element(facts, profile, journal)
        facts.put(journal)
        final = profile.final
        said |= {"initial_kvn": profile.initial.kvn, "final_kvn": final.kvn, "context": str(final.context)}
        return Decision(outcome, [("element-step", {**said, "journal": journal.said()})])


def permission_reads(
    caller: Caller, contexts: Mapping[str, RunContext], challenged: Iterable[Challenged]
) -> dict[type, Sequence[str]]:
    """Return what ``permit`` is going to look at."""
    lists = [(contexts[found.run].licence.allow_list, found.device) for found in challenged]
    listed = [AllowedDevice.key(one, device) for one, device in lists if one is not None]
    return client_reads(caller) | {AllowedDevice: listed}


def permit(facts: Facts, client: Client, runs: Runs, context: RunContext, device: str) -> None:
    """Refuse to speak to an element for a client that does not work on its device.

    Raises:
        errors.NotPermitted: the client may not on this run, or not for this device.
        errors.PolicyRefused: the device is not on the run's list.
    """
    runs.working(context.licence, client)
    check_scope(facts, client, context, device)


def require_under_way(attempt: Attempt | None, device: Device | None) -> tuple[Attempt, Device]:
    """Refuse to speak to the element of a device that waits for no proof.

    Raises:
        errors.IllegalTransition: the attempt is over.
    """
    if attempt is None or device is None:
        raise errors.IntegrityFailure("an attempt has no device")
    if device.attempt != attempt.id or attempt.state is not DeviceState.ISSUED:
        raise errors.IllegalTransition(
            f"attempt {attempt.id} is over: {device.id} is {device.state} at attempt {device.attempts}"
        )
    move(device.id, device.state, DeviceEvent.PROVE)
    return attempt, device


def take_element(facts: Facts, profile: ElementProfile, journal: ElementJournal) -> None:
    """Note whose element it is, as soon as it is known and where it can be told from others.

    Raises:
        errors.PolicyRefused: another device has it (rule ``element-is-unique``).
    """
    if profile.final.context is not ContextSource.KDD or not journal.kdd:
        return
    key = element_use(journal.master, journal.kdd.hex())
    used = facts.get(ElementUse, key)
    if used is None:
        facts.put(ElementUse(id=key, device=journal.device))
    elif used.device != journal.device:
        raise errors.PolicyRefused(
            "element-is-unique",
            f"the secure element {journal.kdd.hex()} already belongs to {used.device}: hold this device, and"
            " look at both",
        )


def outcome_of(dialogues: Dialogues, attempt: str, answer: Responses) -> Moved:
    """Return what the responses to the last commands come to.

    Raises:
        errors.IllegalTransition: these were not the last.
    """
    moved = dialogues.advance(attempt, answer)
    if isinstance(moved.outcome, Commands):
        raise errors.IllegalTransition(
            f"the dialogue with the element goes on at step {moved.outcome.step}: carry it on, then prove"
        )
    return moved


def judge_element(
    facts: Facts, context: RunContext, device: Device, attempt: Attempt, moved: Moved
) -> dict[str, Any] | Decision[errors.Refusal]:
    """Return what the record says of a device's key set, or the decision that it is not proved.

    Raises:
        errors.Interrupted: the dialogue is not known here, or another one went on.
        errors.PolicyRefused: another device has this element.
    """
    profile = element_of(context)
    if profile is None:
        raise errors.Fault("a dialogue without an element")
    journal, outcome = moved.journal(facts, device.id, attempt.id, profile), moved.outcome
    if isinstance(outcome, errors.Refusal):
        return _not_proved(facts, device, attempt, profile, journal, outcome, spoken=moved.after is not None)
    if isinstance(outcome, Commands):
        raise errors.IllegalTransition("the dialogue with the element goes on: carry it on, then prove")
    return _confirm(facts, profile, journal, outcome.evidence)


def _not_proved(
    facts: Facts,
    device: Device,
    attempt: Attempt,
    profile: ElementProfile,
    journal: ElementJournal,
    outcome: errors.ProofFailed | errors.Interrupted,
    *,
    spoken: bool,
) -> Decision[errors.Refusal]:
    """Hold the device, or count the try; the refusal is the answer, and is committed.

    Raises:
        errors.Interrupted: nothing was said to the element, so that was no try.
    """
    said = {"device": device.id, "attempt": attempt.id, "run": attempt.run, "code": outcome.code}
    held = outcome
    if isinstance(outcome, errors.Interrupted):
        if not spoken:
            raise outcome
        journal = replace(journal, tries=journal.tries + 1, reason=str(outcome))
        if journal.tries < profile.tries:
            facts.put(journal)
            said["reason"] = str(outcome)
            return Decision(outcome, [("element-interrupted", {**said, "journal": journal.said()})])
        held = errors.ProofFailed(
            f"{journal.tries} dialogues with its element broke off, the last: {outcome}"
        )
    journal = replace(journal, reason=str(held))
    facts.put(journal)
    entry = put_held(facts, device, attempt, str(held)) | {"code": held.code, "journal": journal.said()}
    return Decision(errors.ProofFailed(f"{held}; {device.id} is held"), [(DEVICE_HELD, entry)])


def _confirm(
    facts: Facts, profile: ElementProfile, journal: ElementJournal, evidence: Evidence
) -> dict[str, Any]:
    """Note that an element has proved its key set, and return what the record says of it.

    Raises:
        errors.PolicyRefused: another device has this element.
    """
    take_element(facts, profile, journal)
    confirmed = replace(journal, reason=None)
    facts.put(confirmed)
    final = profile.final
    asset = facts.get(KeyAsset, final.master)
    return {
        "profile": profile.name,
        "profile_sha256": profile.sha256,
        "master": final.master,
        "master_check_value": None if asset is None else asset.fingerprint,
        "scheme": str(final.scheme),
        "context": str(final.context),
        "route": str(evidence.route),
        "kvn": evidence.kvn,
        "key_diversification_data": evidence.key_diversification_data.hex(),
        "i": evidence.i,
        "host_challenge": evidence.host_challenge.hex(),
        "card_challenge": evidence.card_challenge.hex(),
        "card_cryptogram": evidence.card_cryptogram.hex(),
        "host_cryptogram": evidence.host_cryptogram.hex(),
        "sequence_counter": None if evidence.sequence_counter is None else evidence.sequence_counter.hex(),
        "check_values": [value.hex() for value in evidence.check_values],
        "put_key_answered": evidence.put_key_answered,
        "key_sets": list(evidence.key_sets),
        "refused_kvn": evidence.refused_kvn,
        "refusal": None if evidence.refusal is None else f"{evidence.refusal:04x}",
        "objects": [{"tag": f"{tag:x}", "sha256": digest} for tag, digest in evidence.objects.items()],
        "transcript_sha256": evidence.transcript_sha256,
        "journal": confirmed.said(),
    }
