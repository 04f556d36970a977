"""A device on the line is held: the same rows and counters whoever finds the reason (SPEC C4)."""

from dataclasses import replace
from typing import Any

from birthmark import errors
from birthmark.floor.devices import Attempt, Device, DeviceEvent, DeviceState, move
from birthmark.floor.runs import Run
from birthmark.ports import Facts

__all__ = ["DEVICE_HELD", "put_held"]

DEVICE_HELD = "device-held"
"""The kind of the log's entry."""


def put_held(facts: Facts, device: Device, attempt: Attempt, reason: str) -> dict[str, Any]:
    """Hold a device, with the attempt it is at, and count it; return what the log's entry says of that.

    Raises:
        errors.IllegalTransition: the device is in a state that does not allow it.
        errors.IntegrityFailure: its run is gone.
    """
    run = facts.get(Run, device.run)
    if run is None:
        raise errors.IntegrityFailure(f"run {device.run} of {device.id} is gone")
    state = move(device.id, device.state, DeviceEvent.HOLD)
    facts.put(replace(device, state=state, reason=reason))
    if attempt.state is DeviceState.ISSUED:  # one that was reworked is over already
        facts.put(replace(attempt, state=state))
    facts.put(replace(run, held=run.held + 1))
    return {"device": device.id, "attempt": attempt.id, "run": run.id, "reason": reason}
