"""What becomes of a certificate that was enrolled for: proved, confirmed, or not taken (SPEC H1, H2).

An operational certificate is proved by the first handshake with it, or confirmed by CMP; then, and not
before, the one before it is superseded.  What is not taken is revoked, and a device on the line is held.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from birthmark import errors
from birthmark.floor.clients import Capability, Role
from birthmark.floor.devices import Attempt, Device, DeviceCertificate, DeviceEvent, DeviceState, move
from birthmark.floor.enrolments import LocalIdentity, local_identity_id
from birthmark.floor.runs import Run, RunPurpose
from birthmark.ledger.entry import time_text
from birthmark.pki.certificates import Certificate
from birthmark.pki.possession import proof_message
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Act, Committed, Decision, Facts, Look, UseCase
from birthmark.services.acts import Caller, decided, live_client, outcomes, refuse
from birthmark.services.holding import DEVICE_HELD, put_held
from birthmark.services.revocations import device_status, line_of, revoke, revoke_all, status
from birthmark.services.runs import RunContext, Runs

__all__ = ["LOCAL", "ConfirmEnrolments", "Ended", "give_back", "put_proved"]

_OF_PASSING = frozenset({ReasonCode.CERTIFICATE_HOLD, ReasonCode.REMOVE_FROM_CRL})
LOCAL = "local"
"""What revokes operational certificates here; see ``floor.revocations.Revocation.cause``."""

Ended = Callable[[Facts, bool], None]
"""Puts on record, in the same commit, that what waited for it is over; told if the certificate is good."""


def _nothing_waits(_facts: Facts, _good: bool) -> None:  # noqa: FBT001  # see Ended
    """Put nothing on record."""


class ConfirmEnrolments:
    """The use cases after a certificate was sent."""

    def __init__(self, runs: Runs) -> None:
        """Know the runs of a realm."""
        self._runs = runs

    def proved_by_use(self, caller: Caller) -> UseCase[bool]:
        """Take a device's handshake with its newest operational certificate as proof that it holds the key.

        The signature of the handshake is over octets of ours (RFC 8446 section 4.4.3); no connection gets
        here without it.  Only then is the certificate before it superseded.

        Returns:
            Whether there was anything to prove.

        Raises:
            errors.Unauthenticated: the certificate is revoked.
        """
        if caller.client.role is not Role.DEVICE:
            return False
        serial = caller.credential.serial
        facts: Facts = yield Look({DeviceCertificate: (serial,)})
        shown = facts.get(DeviceCertificate, serial)
        if shown is None:
            return False
        facts = yield Look({Attempt: (shown.attempt,)})
        attempt = facts.get(Attempt, shown.attempt)
        if attempt is None or attempt.state is not DeviceState.ISSUED:
            return False
        context = yield from self._runs.known(shown.run)
        if context.licence.purpose is not RunPurpose.OPERATIONAL:
            return False
        decide = partial(_decide_proved, caller, attempt.id, "handshake")
        yield from decided(caller, "prove-local", {"attempt": attempt.id}, decide, _local_reads(attempt))
        return True

    def challenge(self, caller: Caller) -> UseCase[tuple[str, bytes] | None]:
        """Return the attempt of the certificate a device shows, and what it has to sign for the gate.

        None for an operational certificate: the connection was the proof, the first time.

        Raises:
            errors.NotFound: the certificate is of no attempt that can be proved.
            errors.IllegalTransition: it, or an authority above it, is revoked.
            errors.NotPermitted: the device has further certificates, and proves them at its station.
        """
        serial = caller.credential.serial
        facts: Facts = yield Look({DeviceCertificate: (serial,)})
        shown = facts.get(DeviceCertificate, serial)
        if shown is None:
            raise errors.NotFound(f"certificate {serial} waits for no proof")
        facts = yield Look({Attempt: (shown.attempt,)})
        attempt = facts.get(Attempt, shown.attempt)
        if attempt is None or attempt.certificate != serial:
            raise errors.NotFound(f"certificate {serial} waits for no proof")
        because = device_status(facts, shown)
        if because is not None:
            raise errors.IllegalTransition(f"certificate {serial} is revoked ({because}): enrol again")
        if (yield from self._runs.known(shown.run)).licence.purpose is RunPurpose.OPERATIONAL:
            return None
        if attempt.further:
            raise errors.NotPermitted(f"{attempt.device} has several certificates: its station proves them")
        message = proof_message(
            attempt=attempt.id, certificate_sha256=shown.sha256, challenge=attempt.challenge
        )
        return attempt.id, message

    def confirm(self, caller: Caller, attempt: str, ended: Ended = _nothing_waits) -> UseCase[None]:
        """Take a CMP client's confirmation (RFC 9810 section 5.3.18) of the certificate of an attempt.

        An operational certificate is live from then on; a device on the line still has to pass the gate.

        Raises:
            errors.NotFound: there is no such attempt.
            errors.IllegalTransition: it is over.
        """
        found, context = yield from self._attempt(attempt)
        identity = context.licence.purpose is RunPurpose.IDENTITY  # what it waits for is the gate

        def decide(facts: Facts, at: datetime) -> Decision[None]:
            decision: Decision[None] = Decision(None)
            if not identity:
                decision = _decide_proved(caller, attempt, "confirmation", facts, at)
            ended(facts, True)
            return decision

        yield from decided(caller, "confirm", {"attempt": attempt}, decide, _local_reads(found))

    def reject(self, actor: str, attempt: str, reason: str, ended: Ended = _nothing_waits) -> UseCase[None]:
        """Revoke the certificate of an attempt that the client did not take; a device on the line is held.

        Args:
            actor: id of the client, or of the service itself if it waited in vain.
            attempt: its id.
            reason: for the log.
            ended: ends what waited for it.

        Raises:
            errors.NotFound: there is no such attempt.
            errors.IllegalTransition: it is over.
        """
        found, context = yield from self._attempt(attempt)
        identity = context.licence.purpose is RunPurpose.IDENTITY
        judge = _decide_held if identity else _decide_rejected

        def decide(facts: Facts, at: datetime) -> Decision[None]:
            decision = judge(attempt, reason, facts, at)
            ended(facts, not decision.entries)  # it was used or proved meanwhile
            return decision

        reads = _local_reads(found) | {Run: (found.run,), Device: (found.device,)}
        committed: list[Committed[None]] = yield [
            Act(
                actor=actor,
                decide=decide,
                refuse=refuse(None, "reject", {"attempt": attempt}),
                reads=reads,
            )
        ]
        outcomes(committed)

    def revoke_own(self, caller: Caller, issuer: bytes, serial: str, because: ReasonCode) -> UseCase[None]:
        """Revoke an operational certificate that the device says it has no more use for.

        Its identity is revoked by people only, with a recall.

        Args:
            caller: the device, by any certificate of its own.
            issuer: Name (DER) that the certificate has as its issuer.
            serial: its serial number (hex).
            because: the reason.

        Raises:
            errors.NotFound: the device has no such certificate.
            errors.NotPermitted: it is the device's identity, the caller is no device, or the reason is one of
                passing.
            errors.PolicyRefused: it is revoked already (rule ``certificate-revoked``).
        """
        facts: Facts = yield Look({DeviceCertificate: (serial,)})
        found = facts.get(DeviceCertificate, serial)
        run = None if found is None else (yield from self._runs.known(found.run)).licence

        def decide(facts: Facts, at: datetime) -> Decision[None]:
            client = live_client(facts, caller, Capability.ENROL_SELF, at)
            certificate = None if found is None else Certificate.from_der(found.der)
            if found is None or certificate is None or found.device != client.hardware_id:
                raise errors.NotFound(f"{client.id} has no certificate {serial}")
            if certificate.issuer_name != issuer:
                raise errors.NotFound(f"certificate {serial} is of another authority")
            if run is None or run.purpose is not RunPurpose.OPERATIONAL:
                raise errors.NotPermitted(f"certificate {serial} is an identity: people recall it")
            if because in _OF_PASSING:
                raise errors.NotPermitted("a device revokes for good, or not at all")
            revoked = give_back(facts, [serial], because, at)
            if not revoked:
                raise errors.PolicyRefused("certificate-revoked", f"certificate {serial} is revoked already")
            said = {"device": found.device, "attempt": found.attempt, "run": found.run}
            entry = said | {"certificates": revoked, "revocation_reason": str(because)}
            return Decision(None, [("local-revoked", entry)])

        yield from decided(
            caller, "revoke-own", {"certificate": serial}, decide, {DeviceCertificate: (serial,)}
        )

    def _attempt(self, attempt: str) -> UseCase[tuple[Attempt, RunContext]]:
        facts: Facts = yield Look({Attempt: (attempt,)})
        found = facts.get(Attempt, attempt)
        if found is None:
            raise errors.NotFound(f"there is no attempt {attempt[:64]}")
        return found, (yield from self._runs.known(found.run))


def give_back(facts: Facts, serials: Sequence[str], because: ReasonCode, at: datetime) -> list[str]:
    """Revoke operational certificates; return the serial numbers of those that were good."""
    found = [facts.get(DeviceCertificate, serial) for serial in serials]
    return [
        one.serial for one in found if one is not None and revoke(facts, line_of(one), because, at, LOCAL)
    ]


def _local_reads(attempt: Attempt) -> dict[type, Sequence[str]]:
    return {
        Attempt: (attempt.id,),
        LocalIdentity: (local_identity_id(attempt.device, attempt.run),),
        Run: (attempt.run,),
    }


def _newest(facts: Facts, attempt_id: str) -> tuple[Attempt, LocalIdentity]:
    """Return an attempt that waits for its proof."""
    attempt = facts.get(Attempt, attempt_id)
    if attempt is None:
        raise errors.NotFound(f"there is no attempt {attempt_id[:64]}")
    identity = facts.get(LocalIdentity, local_identity_id(attempt.device, attempt.run))
    if identity is None:
        raise errors.IntegrityFailure(f"attempt {attempt_id} is of no operational run")
    if identity.attempt != attempt.id:
        raise errors.IllegalTransition(f"attempt {attempt.id} is over: {attempt.device} asked again")
    return attempt, identity


def _decide_proved(caller: Caller, attempt_id: str, how: str, facts: Facts, at: datetime) -> Decision[None]:
    client = live_client(facts, caller, Capability.ENROL_SELF, at)
    attempt, identity = _newest(facts, attempt_id)
    if client.hardware_id != attempt.device:
        raise errors.NotPermitted(f"{client.id} proves no certificate of {attempt.device}")
    if attempt.state is DeviceState.RELEASED:
        return Decision(None)
    return Decision(None, [put_proved(facts, attempt, identity, how, at)])


def put_proved(
    facts: Facts, attempt: Attempt, identity: LocalIdentity, how: str, at: datetime
) -> tuple[str, dict[str, Any]]:
    """Take an operational certificate for proved, and revoke the one before; return the log's entry.

    Raises:
        errors.IllegalTransition: it is revoked.
    """
    certificate = facts.get(DeviceCertificate, attempt.certificate)
    if certificate is None or status(facts, line_of(certificate)) is not None:
        raise errors.IllegalTransition(f"certificate {attempt.certificate} is revoked: enrol again")
    proved = move(attempt.device, attempt.state, DeviceEvent.PROVE)
    state = move(attempt.device, proved, DeviceEvent.RELEASE)
    proof = how.encode()
    facts.put(replace(attempt, state=state, proof=proof, released_at=at, release_leaf=facts.next_leaf))
    superseded: list[str] = []
    if identity.certificate is None:
        run = facts.get(Run, attempt.run)
        if run is None:
            raise errors.IntegrityFailure(f"run {attempt.run} is gone")
        facts.put(replace(run, released=run.released + 1))
    else:
        superseded = give_back(facts, [identity.certificate], ReasonCode.SUPERSEDED, at)
    facts.put(replace(identity, certificate=attempt.certificate))
    entry: dict[str, Any] = {
        "device": attempt.device,
        "attempt": attempt.id,
        "run": attempt.run,
        "certificate": attempt.certificate,
        "challenge": attempt.challenge.hex(),
        "released_at": time_text(at),
        "by": how,
        "proof": proof.hex(),
    }
    if superseded:
        entry |= {"certificates": superseded, "revocation_reason": str(ReasonCode.SUPERSEDED)}
    return "local-proved", entry


def _decide_rejected(attempt_id: str, reason: str, facts: Facts, at: datetime) -> Decision[None]:
    attempt, _ = _newest(facts, attempt_id)
    if attempt.state is DeviceState.RELEASED:
        return Decision(None)  # it was used meanwhile
    facts.put(replace(attempt, state=move(attempt.device, attempt.state, DeviceEvent.HOLD)))
    because = ReasonCode.CESSATION_OF_OPERATION
    entry = {
        "device": attempt.device,
        "attempt": attempt.id,
        "run": attempt.run,
        "reason": reason,
        "certificates": give_back(facts, [attempt.certificate], because, at),
        "revocation_reason": str(because),
    }
    return Decision(None, [("local-rejected", entry)])


def _decide_held(attempt_id: str, reason: str, facts: Facts, at: datetime) -> Decision[None]:
    """Hold a device on the line whose certificate was not taken, and revoke that."""
    attempt = facts.get(Attempt, attempt_id)
    if attempt is None:
        raise errors.NotFound(f"there is no attempt {attempt_id[:64]}")
    device = facts.get(Device, attempt.device)
    if device is None:
        raise errors.IntegrityFailure(f"attempt {attempt.id} is of {attempt.device}, which does not exist")
    if attempt.state is DeviceState.RELEASED:
        return Decision(None)  # it was proved meanwhile
    if attempt.state is not DeviceState.ISSUED:
        raise errors.IllegalTransition(f"attempt {attempt.id} is over: it is {attempt.state}")
    if device.attempt != attempt.id:
        raise errors.IllegalTransition(f"attempt {attempt.id} is over: {device.id} is at another")
    because = ReasonCode.CESSATION_OF_OPERATION
    entry = put_held(facts, device, attempt, reason)
    revoked = revoke_all(facts, attempt, because, at, str(DeviceEvent.HOLD))
    entry |= {"certificates": revoked, "revocation_reason": str(because)}
    return Decision(None, [(DEVICE_HELD, entry)])
