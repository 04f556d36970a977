"""Hardware ids: what a device is called before it has an identity (SPEC C9).

An id has a kind, and a rule says what ids of that kind a run accepts.  ``HardwareIdRule.parse`` returns the
one spelling that is stored and certified, or refuses with the position and the reason, so that an operator
can see whether it is a scanner, a label or the wrong part.  Letters of a VIN and hex digits become capitals;
nothing is stripped: a space in an id means that the scanner is set up wrong.

Whether an id is on the run's allow-list, or already has an identity, is for the use cases.
"""

import re
from dataclasses import dataclass
from enum import StrEnum

from birthmark.errors import MalformedRequest, PolicyRefused

__all__ = [
    "HardwareId",
    "HardwareIdKind",
    "HardwareIdRule",
    "check_pattern",
    "eid_check_digits",
    "vin_check_digit",
]


class HardwareIdKind(StrEnum):
    """Kinds of hardware id."""

    VIN = "vin"
    """Vehicle identification number, ISO 3779."""
    EUI_64 = "eui-64"
    """IEEE 64-bit extended unique identifier."""
    EID = "eid"
    """Identifier of an embedded UICC, GSMA SGP.02 and SGP.29."""
    SYSTEM_TITLE = "system-title"
    """System title of a meter, DLMS/COSEM Green Book (IEC 62056-5-3): eight octets."""
    SERIAL = "serial"
    """The maker's own serial number."""


@dataclass(frozen=True, slots=True)
class HardwareId:
    """A hardware id in its stored spelling."""

    kind: HardwareIdKind
    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def device(self) -> str:
        """The id of the device it names: kind and hardware id, e.g. ``vin:1M8GDM9AXKP042788``."""
        return f"{self.kind}:{self.text}"


_WMI = re.compile(r"[A-HJ-NPR-Z0-9]{3}")
_LONGEST_SERIAL = 64
_LONGEST_PATTERN = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareIdRule:
    """What ids a run accepts.

    Raises ``MalformedRequest`` when made with a field that does not belong to the kind or does not parse.
    """

    kind: HardwareIdKind
    check_digit: bool = False
    """VIN only: position 9 is a check digit, as 49 CFR 565 (North America) and GB 16735 (China) demand.

    Elsewhere position 9 is free, and checking it would refuse good vehicles.
    """
    wmi: frozenset[str] = frozenset()
    """VIN only: the world manufacturer identifiers accepted (positions 1 to 3); empty accepts all."""
    pattern: str | None = None
    """Serial only: what the whole serial must match.

    Characters, ``\\d``, classes ``[A-Z0-9]`` and quantifiers, of which at most three of variable length; no
    groups and no alternatives, so that no serial can make matching slow.
    """

    def __post_init__(self) -> None:
        if self.kind is not HardwareIdKind.VIN and (self.check_digit or self.wmi):
            raise MalformedRequest(f"check_digit and wmi are for vin, not for {self.kind}")
        if self.kind is not HardwareIdKind.SERIAL and self.pattern is not None:
            raise MalformedRequest(f"pattern is for serial, not for {self.kind}")
        for identifier in sorted(self.wmi):
            if not _WMI.fullmatch(identifier):
                raise MalformedRequest(f"wmi {identifier!r} is not three of A-Z and 0-9 without I, O and Q")
        if self.pattern is not None:
            check_pattern(self.pattern)

    def parse(self, text: str) -> HardwareId:
        """Return the id in its stored spelling.

        Raises:
            MalformedRequest: it is no id of this kind.
            PolicyRefused: it is one that this rule does not accept ("wmi", "serial-pattern").
        """
        if not text.isascii():
            position, character = next((p, c) for p, c in enumerate(text, 1) if not c.isascii())
            raise MalformedRequest(f"{self.kind} {text!r}: position {position}: {character!r} is not ascii")
        match self.kind:
            case HardwareIdKind.VIN:
                return self._vin(text.upper())
            case HardwareIdKind.EUI_64:
                return _eui_64(text)
            case HardwareIdKind.EID:
                return _eid(text)
            case HardwareIdKind.SYSTEM_TITLE:
                return _system_title(text)
            case HardwareIdKind.SERIAL:
                return self._serial(text)

    def _vin(self, vin: str) -> HardwareId:
        _check_vin_characters(vin)
        if self.check_digit and vin[8] != (expected := vin_check_digit(vin)):
            raise MalformedRequest(f"vin {vin}: position 9 should be {expected}, is {vin[8]}")
        if self.wmi and vin[:3] not in self.wmi:
            accepted = ", ".join(sorted(self.wmi))
            raise PolicyRefused("wmi", f"vin {vin}: {vin[:3]} is none of the accepted makers {accepted}")
        return HardwareId(HardwareIdKind.VIN, vin)

    def _serial(self, serial: str) -> HardwareId:
        if not 1 <= len(serial) <= _LONGEST_SERIAL:
            raise MalformedRequest(f"serial has {len(serial)} characters, not 1 to {_LONGEST_SERIAL}")
        for position, character in enumerate(serial, 1):
            if not "!" <= character <= "~":
                raise MalformedRequest(
                    f"serial {serial!r}: position {position}: {character!r} is not visible"
                )
        if self.pattern is not None and not re.fullmatch(self.pattern, serial):
            raise PolicyRefused("serial-pattern", f"serial {serial!r} does not match {self.pattern}")
        return HardwareId(HardwareIdKind.SERIAL, serial)


# --- VIN ---

_VIN_LENGTH = 17
_VALUES = dict(zip("0123456789", range(10), strict=True)) | dict(
    # 49 CFR 565.15(c), table III: letters restart at A, J and S; I, O and Q do not occur.
    zip("ABCDEFGHJKLMNPRSTUVWXYZ", (*range(1, 9), *range(1, 6), 7, 9, *range(2, 10)), strict=True)
)
_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
"""49 CFR 565.15(c), table IV; position 9, the check digit itself, has none."""


def vin_check_digit(vin: str) -> str:
    """Return what position 9 of a VIN must be (49 CFR 565.15(c)): 0 to 9 or X.

    Args:
        vin: 17 characters in capitals; its position 9 does not matter.

    Raises:
        MalformedRequest: it is no VIN (ISO 3779).
    """
    _check_vin_characters(vin)
    remainder = sum(weight * _VALUES[character] for weight, character in zip(_WEIGHTS, vin, strict=True)) % 11
    return "0123456789X"[remainder]


def _check_vin_characters(vin: str) -> None:
    """ISO 3779: 17 characters, capital letters without I, O and Q, and digits."""
    if len(vin) != _VIN_LENGTH:
        raise MalformedRequest(f"vin {vin!r}: has {len(vin)} characters, must have {_VIN_LENGTH}")
    for position, character in enumerate(vin, 1):
        if character not in _VALUES:
            shown = character if character in "IOQ" else repr(character)
            raise MalformedRequest(f"vin {vin!r}: position {position}: {shown} is not allowed in a VIN")


# --- EUI-64 ---

_EUI_64 = re.compile(r"[0-9A-Fa-f]{16}|[0-9A-Fa-f]{2}(?:(?:-[0-9A-Fa-f]{2}){7}|(?::[0-9A-Fa-f]{2}){7})")


def _eui_64(text: str) -> HardwareId:
    """Sixteen hex digits, or eight pairs separated by - or by :; stored as capitals without separators."""
    if not _EUI_64.fullmatch(text):
        raise MalformedRequest(f"eui-64 {text!r} is not 16 hex digits, or 8 pairs separated by - or :")
    digits = text.replace("-", "").replace(":", "").upper()
    if digits in {"0" * 16, "F" * 16}:
        raise MalformedRequest(f"eui-64 {text!r} is all {'zeros' if digits[0] == '0' else 'ones'}")
    return HardwareId(HardwareIdKind.EUI_64, digits)


# --- EID ---

_EID_LENGTH = 32


def eid_check_digits(eid: str) -> str:
    """Return what the last two digits of an EID must be (GSMA SGP.02 annex J; ISO/IEC 7064 MOD 97-10).

    The 32 digits as a number leave 1 on division by 97.

    Args:
        eid: 32 digits; the last two do not matter.

    Raises:
        MalformedRequest: it is not 32 digits.
    """
    if len(eid) != _EID_LENGTH:
        raise MalformedRequest(f"eid {eid!r}: has {len(eid)} characters, must have {_EID_LENGTH} digits")
    for position, character in enumerate(eid, 1):
        if character not in "0123456789":
            raise MalformedRequest(f"eid {eid!r}: position {position}: {character!r} is no digit")
    return f"{98 - int(eid[:-2] + '00') % 97:02d}"


def _eid(text: str) -> HardwareId:
    expected = eid_check_digits(text)
    if text[-2:] != expected:
        raise MalformedRequest(f"eid {text}: check digits should be {expected}, are {text[-2:]}")
    return HardwareId(HardwareIdKind.EID, text)


# --- system titles ---

_SYSTEM_TITLE = re.compile(r"[0-9A-F]{16}")
_FLAG = range(ord("A"), ord("Z") + 1)


def _system_title(text: str) -> HardwareId:
    """Sixteen hex digits, stored as capitals: three ASCII letters of the maker's FLAG id, then five octets.

    What the five octets mean is the maker's business: IDIS has two device types and a serial number in them.
    The Green Book was not at hand; the rule is that of makers' manuals (Elvaco CMe3100, section 7.2.1).
    """
    digits = text.upper()
    if not _SYSTEM_TITLE.fullmatch(digits):
        raise MalformedRequest(f"system-title {text!r} is not 16 hex digits")
    for octet, code in enumerate(bytes.fromhex(digits[:6]), 1):
        if code not in _FLAG:
            raise MalformedRequest(
                f"system-title {text!r}: octet {octet} is {code:02X}, no letter A to Z (41 to 5A): the first"
                " three are the maker's FLAG id"
            )
    return HardwareId(HardwareIdKind.SYSTEM_TITLE, digits)


# --- serial patterns ---

_TOKEN = re.compile(
    r"""(?P<atom>\[(?!\^)(?:[A-Za-z0-9_.:/+]|-(?!-)|\\[\[\]^\\-])+\]  # a class, not negated
          |\\[d.+*?()\[\]{}|^$\\/-]                               # a digit, or an escaped character
          |[A-Za-z0-9_:/=,;@%~!"'<>&\#-])                         # a character that stands for itself
        (?P<quantifier>\{\d{1,2}\}|\{\d{0,2},\d{0,2}\}|[?*+])?""",
    re.VERBOSE,
)
_MOST_VARIABLE = 3


def check_pattern(pattern: str) -> None:
    """Accept only patterns that cannot be slow.

    Backtracking tries at most (length of the serial) to the power of (variable quantifiers) ways when there
    are no groups: 64 to the third here.

    Raises:
        MalformedRequest: it has groups, alternatives or too many quantifiers, or is no regular expression.
    """
    if not 1 <= len(pattern) <= _LONGEST_PATTERN:
        raise MalformedRequest(f"pattern has {len(pattern)} characters, not 1 to {_LONGEST_PATTERN}")
    position = variable = 0
    while position < len(pattern):
        token = _TOKEN.match(pattern, position)
        if token is None:
            raise MalformedRequest(
                f"pattern {pattern!r}: position {position + 1}: only characters, \\d, classes and quantifiers"
            )
        quantifier = token["quantifier"] or ""
        variable += bool(quantifier) and ("," in quantifier or quantifier in "?*+")
        position = token.end()
    if variable > _MOST_VARIABLE:
        raise MalformedRequest(f"pattern {pattern!r}: {variable} quantifiers of variable length, at most 3")
    try:
        re.compile(pattern)
    except re.error as error:
        raise MalformedRequest(f"pattern {pattern!r}: {error}") from error
