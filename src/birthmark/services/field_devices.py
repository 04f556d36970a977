"""Devices in the field, held and let go on by people (SPEC H3).

The gateway itself holds those that it finds at two places.  A hold turns a device away at its next request,
whatever its certificate; it is not a revocation, which ``recall`` is for.
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from birthmark import errors
from birthmark.floor.clients import Capability
from birthmark.floor.fleet import FieldDevice, FieldStatus
from birthmark.ports import Decision, Facts, UseCase
from birthmark.services.acts import Caller, decided, live_client

__all__ = ["FIELD_HELD", "FIELD_RESUMED", "hold_device", "resume_device"]

FIELD_HELD, FIELD_RESUMED = "field-device-held", "field-device-resumed"
"""Kinds of entry."""
_LONGEST = 256


def hold_device(caller: Caller, device: str, reason: str) -> UseCase[FieldDevice]:
    """Turn a device away from now on, until somebody resumes it.

    Raises:
        errors.NotPermitted: the caller may not.
        errors.NotFound: the gateway has not met such a device.
        errors.IllegalTransition: it is held already.
    """

    def held(before: FieldDevice, _at: datetime) -> FieldDevice:
        return replace(before, status=FieldStatus.HELD, reason=reason)

    return _meet(caller, device, reason, held, FIELD_HELD)


def resume_device(caller: Caller, device: str, reason: str) -> UseCase[FieldDevice]:
    """Let a device in again; connections from before, from wherever, are not its own.

    Raises:
        errors.NotPermitted: the caller may not.
        errors.NotFound: the gateway has not met such a device.
        errors.IllegalTransition: it is not held.
    """

    def resumed(before: FieldDevice, at: datetime) -> FieldDevice:
        return replace(before, status=FieldStatus.ACTIVE, reason=None, moved_at=at, moves=0, counted_from=at)

    return _meet(caller, device, reason, resumed, FIELD_RESUMED)


def _meet(
    caller: Caller,
    device: str,
    reason: str,
    made: Callable[[FieldDevice, datetime], FieldDevice],
    kind: str,
) -> UseCase[FieldDevice]:
    said = {"device": device[:_LONGEST], "reason": reason}

    def decide(facts: Facts, at: datetime) -> Decision[FieldDevice]:
        live_client(facts, caller, Capability.MEET_DEVICES, at)
        found = facts.get(FieldDevice, device)
        if found is None:
            raise errors.NotFound(f"the gateway has not met {device[:_LONGEST]}")
        changed = made(found, at)
        if changed.status is found.status:
            raise errors.IllegalTransition(f"{device} is {found.status} already")
        facts.put(changed)
        return Decision(changed, [(kind, said)])

    request = "hold-field-device" if kind == FIELD_HELD else "resume-field-device"
    return (yield from decided(caller, request, said, decide, {FieldDevice: (device,)}))
