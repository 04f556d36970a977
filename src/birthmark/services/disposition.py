"""What becomes of a device that is not released: hold, rework, scrap (SPEC C4).

Rework makes a new attempt possible and revokes the old credential as superseded in the same commit; scrap
ends the device and revokes as cessationOfOperation.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import Any

from birthmark import errors
from birthmark.floor.answers import Answer
from birthmark.floor.clients import Capability, Credential
from birthmark.floor.devices import (
    Attempt,
    Device,
    DeviceEvent,
    DeviceState,
    move,
)
from birthmark.floor.runs import Run, require_station
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Decision, Facts, UseCase
from birthmark.services.acts import Caller, answer_key, decided, earlier_answer, live_client
from birthmark.services.holding import DEVICE_HELD, put_held
from birthmark.services.revocations import revoke_all
from birthmark.services.runs import verified_licence

__all__ = ["Disposed", "dispose"]

_CAPABILITY = {
    DeviceEvent.HOLD: Capability.HOLD,
    DeviceEvent.REWORK: Capability.REWORK,
    DeviceEvent.SCRAP: Capability.SCRAP,
}
_KIND = {
    DeviceEvent.HOLD: DEVICE_HELD,
    DeviceEvent.REWORK: "device-reworked",
    DeviceEvent.SCRAP: "device-scrapped",
}
_REVOKES = {
    DeviceEvent.REWORK: ReasonCode.SUPERSEDED,
    DeviceEvent.SCRAP: ReasonCode.CESSATION_OF_OPERATION,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Disposed:
    """Where the device stands now."""

    device: str
    state: DeviceState


def dispose(caller: Caller, device: str, event: DeviceEvent, *, reason: str, key: str) -> UseCase[Disposed]:
    """Hold, rework or scrap a device.

    Raises:
        errors.NotFound: there is no such device.
        errors.IllegalTransition: the device is in a state that does not allow it.
        errors.NotPermitted: the caller may not, or not on this device's run.
        errors.IntegrityFailure: the run's licence is not what its operator signed.
    """
    if event not in _CAPABILITY:
        raise ValueError(f"{event} is not a disposition")
    digest = sha256(repr((str(event), device, reason)).encode()).hexdigest()
    fields: dict[str, Any] = {"hardware_id": device[:100], "reason": reason[:200]}
    decide = partial(_decide, caller, device, event, reason, key, digest)
    reads = {Answer: (answer_key(caller, key),), Device: (device,)}
    return (yield from decided(caller, str(event), fields, decide, reads, key=key, request_sha256=digest))


def _decide(
    caller: Caller,
    device_id: str,
    event: DeviceEvent,
    reason: str,
    key: str,
    digest: str,
    facts: Facts,
    at: datetime,
) -> Decision[Disposed]:
    client = live_client(facts, caller, _CAPABILITY[event], at)
    earlier = earlier_answer(facts, caller, key, digest)
    device = facts.get(Device, device_id)
    if device is None:
        raise errors.NotFound(f"there is no device {device_id[:100]}")
    if earlier is not None:
        said = {"device": device.id, "request": str(event)}
        return Decision(
            Disposed(device=device.id, state=DeviceState(earlier.detail or "")), [("answer-repeated", said)]
        )
    run, attempt = facts.get(Run, device.run), facts.get(Attempt, device.attempt)
    if run is None or attempt is None:
        raise errors.IntegrityFailure(f"device {device.id} has no run or attempt")
    approver = None if run.approver is None else facts.get(Credential, run.approver)
    licence = verified_licence(run, facts.get(Credential, run.signer), approver)
    require_station(licence, client.role, client.name)
    state = move(device.id, device.state, event)
    if event is DeviceEvent.HOLD:
        entry = put_held(facts, device, attempt, reason)
    else:
        entry = {"device": device.id, "run": run.id, "attempt": attempt.id, "reason": reason}
        scrapped = 1 if event is DeviceEvent.SCRAP else 0
        facts.put(replace(run, held=run.held - 1, scrapped=run.scrapped + scrapped))
        facts.put(replace(device, state=state, reason=None if event is DeviceEvent.REWORK else reason))
        because = _REVOKES[event]
        if revoked := revoke_all(facts, attempt, because, at, str(event)):
            entry |= {"certificates": revoked, "revocation_reason": str(because)}
    facts.put(
        Answer(
            id=answer_key(caller, key),
            request_sha256=digest,
            attempt=None,
            refusal=None,
            detail=str(state),
            at=at,
        )
    )
    return Decision(Disposed(device=device.id, state=state), [(_KIND[event], entry)])
