"""What a log says of devices in the field: first seen, held, let go on; see ``testimony``."""

from dataclasses import dataclass, field, replace

from birthmark import errors
from birthmark.services.entry_fields import Entry, known, text_of

__all__ = ["GATEWAY_ENTRIES", "FieldDeviceSaid", "GatewaySaid"]

_FIRST, _HELD, _RESUMED = "device-first-seen", "field-device-held", "field-device-resumed"
GATEWAY_ENTRIES = frozenset({_FIRST, _HELD, _RESUMED})


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldDeviceSaid:
    """A device in the field, after the last entry about it; times as entries spell them."""

    fleet_authority: str
    first_seen_at: str
    first_seen_leaf: int
    held: str | None = None
    """Why it is held; None if it is not."""


@dataclass(slots=True)
class GatewaySaid:
    """All that the entries taken so far come to."""

    devices: dict[str, FieldDeviceSaid] = field(default_factory=dict)

    def take(self, index: int, entry: Entry) -> None:
        """Take in an entry of one of ``GATEWAY_ENTRIES``.

        Raises:
            errors.MalformedRequest: as ``testimony.Said.take``.
        """
        kind, name = entry["kind"], text_of(entry, "device")
        if kind == _FIRST:
            if name in self.devices:
                raise errors.MalformedRequest(f"{name[:100]} was seen before")
            self.devices[name] = FieldDeviceSaid(
                fleet_authority=text_of(entry, "fleet_authority"),
                first_seen_at=entry["at"],
                first_seen_leaf=index,
            )
            return
        found = known(self.devices, "the device in the field,", name)
        reason = text_of(entry, "reason")
        if (found.held is None) != (kind == _HELD):
            raise errors.MalformedRequest(f"{name[:100]} is held already, or was not")
        self.devices[name] = replace(found, held=reason if kind == _HELD else None)
