"""Values to make a first article with: a hardware id that a run would take, and text for every variable.

They are made by what a rule means and then asked of the rule itself, so a sample is never one that the line
would refuse.  Where none can be made up, the answer is None, and whoever asked must be given one.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

from birthmark import errors
from birthmark.floor.hardware_ids import (
    HardwareId,
    HardwareIdKind,
    HardwareIdRule,
    eid_check_digits,
    vin_check_digit,
)
from birthmark.pki.constraints import Check, Constraint
from birthmark.pki.profiles import Profile

__all__ = ["VARIABLE", "example_of", "sample_hardware_id", "sample_values"]

VARIABLE = "hardware_id"
"""The variable of a profile that holds each device's own hardware id."""

_HEX = "0123456789ABCDEF"
_VIN = "1M8GDM9AXKP042788"
_EID = "89049032123451234512345678901235"
_SYSTEM_TITLE = "4D4D4D0000BC614E"
"""Of the maker "MMM", whom the Green Book's examples have."""
_IDS = (_HEX, _VIN, _EID, _SYSTEM_TITLE, "0001")
"""An EUI-64, a VIN, an EID, a system title and a serial number."""

_TEXTS: Mapping[str, str] = {
    "authority": "Sample CA",
    "certificate_policy": "1.3.6.1.4.1.32473.2.1",
    "country": "DE",
    "crl_url": "http://pki.example.com/crl/issuing-1/batch.B7.crl",
    "dns_names": "device.example.com",
    "environment_mark": " TEST",
    "hardware_type": "1.3.6.1.4.1.32473.1.1",
    "host": "device.example.com",
    "ip_addresses": "192.0.2.1",
    "issuer_url": "http://pki.example.com/ca/issuing-1.cer",
    "ocsp_url": "http://pki.example.com/ocsp",
    "organization": "Sample Organization",
    "organizational_unit": "Sample Unit",
    "path_len": "0",
    "permitted_dns_names": "example.com",
    "product_id": "8000",
    "product_uri": "https://example.com/product/",
    "vendor_id": "FFF1",
}
"""Samples that have a form of their own; 32473 is for examples (RFC 5612)."""


def example_of(pattern: str) -> str:
    """Return a text that matches a pattern which ``HardwareIdRule`` or a ``Constraint`` has accepted."""
    text, position = "", 0
    while position < len(pattern):
        first, position = _atom(pattern, position)
        count, position = _count(pattern, position)
        text += first * count
    return text


def _atom(pattern: str, position: int) -> tuple[str, int]:
    """Return the first character that an atom matches, and where the next token begins."""
    character = pattern[position]
    if character == "\\":
        escaped = pattern[position + 1]
        return "0" if escaped == "d" else escaped, position + 2
    if character != "[":
        return character, position + 1
    start = position + 1
    end = start + 1 + (pattern[start] == "\\")
    first = pattern[end - 1]
    while pattern[end] != "]":
        end += 1 + (pattern[end] == "\\")
    return first, end + 1


def _count(pattern: str, position: int) -> tuple[int, int]:
    """Return how often an atom must come at least, once if it need not, and where the next token begins."""
    if position < len(pattern) and pattern[position] in "?*+":
        return 1, position + 1
    if position < len(pattern) and pattern[position] == "{":
        end = pattern.index("}", position)
        least, comma, most = pattern[position + 1 : end].partition(",")
        count = int(least or 0)
        if comma and not count and most != "0":
            count = 1
        return count, end + 1
    return 1, position


def sample_hardware_id(rule: HardwareIdRule, constraints: Sequence[Constraint]) -> HardwareId | None:
    """Return a hardware id that a run with this rule takes and that keeps all constraints, or None.

    Args:
        rule: the run's.
        constraints: of the profile and of the authorities.
    """
    kept = [constraint for constraint in constraints if constraint.variable == VARIABLE]
    for text in _ids(rule, kept):
        try:
            found = rule.parse(text)
        except errors.Refusal:
            continue
        if all(constraint.accepts(found.text) for constraint in kept):
            return found
    return None


def _ids(rule: HardwareIdRule, constraints: Sequence[Constraint]) -> Iterator[str]:
    """Yield ids that might do."""
    patterns = [one.operands[0] for one in constraints if one.check is Check.PATTERN]
    patterns += [] if rule.pattern is None else [rule.pattern]
    begun = [example_of(pattern) for pattern in patterns]
    begun += ["", *sorted(rule.wmi), *(prefix for one in constraints for prefix in _prefixes(one))]
    for text in begun:
        yield from _completed(rule.kind, text)
    yield from _IDS


def _completed(kind: HardwareIdKind, text: str) -> Iterator[str]:
    """Yield ids of a kind that begin with a text."""
    match kind:
        case HardwareIdKind.VIN:
            vin = text + _VIN[len(text) :]
            with suppress(errors.MalformedRequest):
                yield vin[:8] + vin_check_digit(vin) + vin[9:]
            yield vin
        case HardwareIdKind.EID:
            digits = text + _EID[len(text) :]
            with suppress(errors.MalformedRequest):
                yield digits[:-2] + eid_check_digits(digits)
        case HardwareIdKind.EUI_64:
            yield text + _HEX[len(text) :]
        case HardwareIdKind.SYSTEM_TITLE:
            yield text + _SYSTEM_TITLE[len(text) :]
        case _:
            yield text
            yield text + _HEX[len(text) :]
            yield f"{text}0001"


def _prefixes(constraint: Constraint) -> tuple[str, ...]:
    whole = {Check.PREFIX_OF, Check.WMI, Check.ONE_OF, Check.EQUALS}
    return constraint.operands[:8] if constraint.check in whole else ()


def sample_values(
    profile: Profile, constraints: Sequence[Constraint], given: Mapping[str, str]
) -> dict[str, str]:
    """Return a value for every variable of a profile that keeps its constraints.

    Args:
        profile: whose.
        constraints: all that a certificate must keep.
        given: values that are not to be made up.

    Raises:
        errors.NotFound: no value could be made up for one, which must be given.
    """
    found = {name: value for name, value in given.items() if name in profile.variables}
    for variable in sorted(profile.variables - found.keys()):
        kept = [constraint for constraint in constraints if constraint.variable == variable]
        for text in _samples(variable, kept):
            if all(constraint.accepts(text) for constraint in kept):
                found[variable] = text
                break
        else:
            rules = ", ".join(constraint.rule for constraint in kept)
            raise errors.NotFound(
                f"no {variable} could be made up that keeps {rules}: give one ({variable}=...)"
            )
    return found


def _samples(variable: str, constraints: Sequence[Constraint]) -> Iterator[str]:
    yield from (
        _IDS if variable == VARIABLE else (_TEXTS.get(variable, f"sample-{variable.replace('_', '-')}"),)
    )
    for constraint in constraints:
        match constraint.check:
            case Check.PATTERN:
                yield example_of(constraint.operands[0])
            case Check.UNDER_ARC:
                yield f"{constraint.operands[0]}.1"
            case Check.WMI:
                yield constraint.operands[0] + _VIN[3:]
            case Check.PREFIX_OF:
                prefix = constraint.operands[0]
                yield f"{prefix}0001"
                yield prefix + _HEX[len(prefix) :]
            case Check.ONE_OF | Check.EQUALS:
                yield from constraint.operands[:1]
