"""What has left the building: reported by the warehouse or the MES, so that a recall knows (SPEC E8, F1).

A list is judged whole before anything of it is put on record: a device nobody made, or one that was never
released, is no shipment but a mistake, and is named.  The first report of a device counts and is never
changed, so the same list again does no harm.  What was revoked is recorded like anything else: that it is
gone is just what one wants to know then.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from birthmark import errors
from birthmark.floor.clients import Capability
from birthmark.floor.devices import Device, DeviceState
from birthmark.floor.shipments import Shipped
from birthmark.ports import Decision, Facts, Look, UseCase
from birthmark.services.acts import Caller, decided, live_client
from birthmark.services.blastradius import Told

__all__ = ["Recorded", "record_shipment"]

CHUNK = 1000
CHUNK_OCTETS = 50_000
"""Device ids in one log entry, which has at most 65 535 octets."""
_NAMED = 20
"""How many wrong devices are named; the others are counted."""
LONGEST_CONSIGNMENT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What became of a list."""

    consignment: str
    new: int
    known: int
    """Reported before, with this consignment."""
    elsewhere: int
    """Reported before with another consignment, with which they stay."""


def record_shipment(
    caller: Caller,
    consignment: str,
    devices: Iterable[str],
    told: Told = lambda _done, _total: None,
) -> UseCase[Recorded]:
    """Put on record that devices were shipped.

    Args:
        caller: may record shipments.
        consignment: name of the delivery; 1 to 100 printable characters.
        devices: device ids; order and repetition do not matter.
        told: how far it is.

    Raises:
        errors.NotFound: a device is not known; nothing of the list is recorded.
        errors.IllegalTransition: a device is not released; likewise.
        errors.MalformedRequest: the consignment has no name, or no device.
    """
    unique = sorted(set(devices))
    unready = yield from _judge(consignment, unique)
    said = {"consignment": consignment[:100]}
    new = known = elsewhere = done = 0
    for chunk in _chunks(unique) if unready is None else iter([()]):
        decide = partial(_decide, caller, consignment, chunk, unready)
        reads = {Device: chunk, Shipped: chunk}
        recorded = yield from decided(caller, "record-shipment", said, decide, reads)
        new, known = new + recorded.new, known + recorded.known
        elsewhere, done = elsewhere + recorded.elsewhere, done + len(chunk)
        told(done, len(unique))
    return Recorded(consignment=consignment, new=new, known=known, elsewhere=elsewhere)


def _chunks(devices: Sequence[str]) -> Iterator[tuple[str, ...]]:
    chunk: list[str] = []
    octets = 0
    for device in devices:
        size = len(device.encode()) + 3  # quotes and a comma
        if len(chunk) == CHUNK or octets + size > CHUNK_OCTETS:
            yield tuple(chunk)
            chunk, octets = [], 0
        chunk.append(device)
        octets += size
    yield tuple(chunk)


def _judge(consignment: str, devices: Sequence[str]) -> UseCase[errors.Refusal | None]:
    if not 1 <= len(consignment) <= LONGEST_CONSIGNMENT or not consignment.isprintable():
        return errors.MalformedRequest("a consignment is named by 1 to 100 printable characters")
    if not devices:
        return errors.MalformedRequest(f"consignment {consignment} holds no device")
    unknown: list[str] = []
    unreleased: list[str] = []
    for start in range(0, len(devices), CHUNK):
        chunk = devices[start : start + CHUNK]
        facts: Facts = yield Look({Device: chunk})
        for name in chunk:
            device = facts.get(Device, name)
            if device is None:
                unknown.append(name)
            elif device.state is not DeviceState.RELEASED:
                unreleased.append(f"{name} ({device.state})")
    if unknown:
        return errors.NotFound(f"nothing was recorded: there is no device {_named(unknown)}")
    if unreleased:
        return errors.IllegalTransition(f"nothing was recorded: not released is {_named(unreleased)}")
    return None


def _named(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(name[:100] for name in names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _decide(
    caller: Caller,
    consignment: str,
    devices: Sequence[str],
    unready: errors.Refusal | None,
    facts: Facts,
    at: datetime,
) -> Decision[Recorded]:
    live_client(facts, caller, Capability.RECORD_SHIPMENT, at)
    if unready is not None:
        raise unready
    new: list[str] = []
    elsewhere = 0
    for name in devices:
        device, before = facts.get(Device, name), facts.get(Shipped, name)
        if device is None or device.state is not DeviceState.RELEASED:
            raise errors.IllegalTransition(f"{name} is not released")
        if before is None:
            facts.put(Shipped(device=name, consignment=consignment, at=at))
            new.append(name)
        elif before.consignment != consignment:
            elsewhere += 1
    recorded = Recorded(
        consignment=consignment,
        new=len(new),
        known=len(devices) - len(new) - elsewhere,
        elsewhere=elsewhere,
    )
    said = {"consignment": consignment, "devices": new}
    return Decision(recorded, [("devices-shipped", said)] if new else [])
