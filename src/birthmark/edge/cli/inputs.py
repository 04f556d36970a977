"""What people type, as values: times, pairs, hardware ids."""

from datetime import UTC, datetime

from birthmark import errors
from birthmark.floor.hardware_ids import HardwareIdKind, HardwareIdRule

__all__ = ["device_id", "moment", "pairs"]


def moment(text: str) -> datetime:
    """Read a time: ISO 8601 with an offset (``Z`` is one), or a day, which begins at midnight UTC.

    Raises:
        errors.MalformedRequest: it is not that.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError as cause:
        raise errors.MalformedRequest(f"a time is written like 2026-11-22T06:00Z, not {text!r}") from cause
    if found.tzinfo is None:
        if len(text) > len("2026-11-22"):
            raise errors.MalformedRequest(
                f"{text} does not say in which time zone: end it with Z or an offset"
            )
        found = found.replace(tzinfo=UTC)
    try:
        return found.astimezone(UTC).replace(microsecond=found.microsecond // 1000 * 1000)
    except OverflowError as cause:
        raise errors.MalformedRequest(f"{text} is before the year 1 or after the year 9999 in UTC") from cause


def pairs(texts: list[str]) -> dict[str, str]:
    """Read ``name=value`` texts.

    Raises:
        errors.MalformedRequest: one is not that, or names the same twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or name in found:
            raise errors.MalformedRequest(f"a variable is written name=value, each once, not {text!r}")
        found[name] = value
    return found


def device_id(text: str) -> str:
    """Read a device's id, kind and hardware id, into the spelling under which it is stored.

    Raises:
        errors.MalformedRequest: it is no kind and hardware id, such as ``vin:…`` or ``system-title:…``.
    """
    kind, colon, hardware_id = text.partition(":")
    if not colon or kind not in set(HardwareIdKind):
        kinds = ", ".join(f"{kind}:…" for kind in HardwareIdKind)
        raise errors.MalformedRequest(f"a device is named {kinds}, not {text!r}")
    return HardwareIdRule(kind=HardwareIdKind(kind)).parse(hardware_id).device
