"""What a virtual secure element is like, and what it keeps when its power is cut.

``CardState`` is one frozen value: a command that changes it makes another one, which takes its place whole.
It is written as JSON with its keys in clear, so the file is as secret as they are, and is only for elements
of development and test: no real element gives its keys away.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

from birthmark import errors
from birthmark.element.diversification import KEY_SIZES, KeyRole
from birthmark.element.keyset import KeyEntry, SoftwareKeys
from birthmark.element.scp03 import KDD_OCTETS, Mode, Parameter
from birthmark.element.tlv import encode_tag
from birthmark.secret import SecretBytes

__all__ = [
    "FACTORY_KVN",
    "ISSUER_SECURITY_DOMAIN",
    "MOST_OBJECT_OCTETS",
    "CardState",
    "KeySet",
    "StatusError",
    "StatusWord",
    "Traits",
    "decode_state",
    "encode_state",
    "fresh",
]

ISSUER_SECURITY_DOMAIN = bytes.fromhex("A000000151000000")
"""AID of an issuer security domain (GlobalPlatform Card Specification v2.3 section H.1)."""
FACTORY_KVN = 0xFF
"""Key version number that elements report of the set they leave their maker with; P1 00 asks for it."""
AES = 0x88
MOST_OBJECT_OCTETS = 0x8000
_FORMAT = "birthmark virtual secure element 1"
_LAST_COUNTER = 0xFFFFFF


class StatusWord(IntEnum):
    """Status words that the element answers (ISO/IEC 7816-4 section 5.6, Card Specification chapter 11)."""

    OK = 0x9000
    AUTHENTICATION_FAILED = 0x6300
    WRONG_LENGTH = 0x6700
    LOGICAL_CHANNEL_NOT_SUPPORTED = 0x6881
    SECURITY_STATUS_NOT_SATISFIED = 0x6982
    AUTHENTICATION_METHOD_BLOCKED = 0x6983
    CONDITIONS_NOT_SATISFIED = 0x6985
    INCORRECT_DATA = 0x6A80
    FILE_NOT_FOUND = 0x6A82
    NOT_ENOUGH_SPACE = 0x6A84
    INCORRECT_P1_P2 = 0x6A86
    REFERENCED_DATA_NOT_FOUND = 0x6A88
    INS_NOT_SUPPORTED = 0x6D00
    CLA_NOT_SUPPORTED = 0x6E00


class StatusError(Exception):
    """A command ends with a status word other than 9000 and changes nothing that lasts."""

    def __init__(self, sw: StatusWord) -> None:
        super().__init__(f"{sw:04X}")
        self.sw = sw


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What an element of this type is like."""

    i: int = 0x70
    """What it reports of its secure channel: see ``scp03.Parameter``.  Its mode is S16 if that bit is set."""
    aid: bytes = ISSUER_SECURITY_DOMAIN
    """Of its security domain, 5 to 16 octets."""
    bare_key_information: bool = False
    """GET DATA E0 and 66 leave out their outermost tag, as YubiKeys do."""
    counts_empty_commands: bool = True
    """False: against Amendment D section 6.2.6, commands without data do not advance its counter."""
    counts_successes_only: bool = False
    """The sequence counter advances with EXTERNAL AUTHENTICATE, not already with INITIALIZE UPDATE."""
    extended_length: bool = True
    """It takes extended lengths."""
    replaces_keys: bool = True
    """PUT KEY replaces keys that are there; many real elements only add."""
    needs_check_values: bool = False
    """PUT KEY takes no key without its check value."""
    most_failures: int = 10
    """Failed authentications in a row after which it locks for good."""

    def __post_init__(self) -> None:
        """Refuse what no element is.

        Raises:
            MalformedRequest: ``i``, the AID or the number of failures is out of range.
        """
        known = sum(Parameter)
        if not 0 <= self.i <= 0xFF or self.i & ~known or self.i & 0x60 == Parameter.R_ENCRYPTION:
            raise errors.MalformedRequest(f"no element of SCP03 has i={self.i:02X}")
        if not 5 <= len(self.aid) <= 16 or self.most_failures < 1:
            raise errors.MalformedRequest("an AID has 5 to 16 octets; an element bears at least one failure")

    @property
    def mode(self) -> Mode:
        """Return the mode of its sessions."""
        return Mode.S16 if self.i & Parameter.S16 else Mode.S8


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """AES keys under one key version number; three of them, 01 to 03 and of one size, can open a session."""

    kvn: int
    keys: tuple[tuple[int, SecretBytes], ...]
    """Key identifier and value, in the order of the identifiers."""
    counter: int = 0
    """Sequence counter as last used."""

    def key(self, kid: int) -> SecretBytes | None:
        """Return a key, or None."""
        return dict(self.keys).get(kid)

    @property
    def static_keys(self) -> SoftwareKeys | None:
        """Return what opens sessions, or None if keys are missing or of different sizes."""
        enc, mac, dek = (self.key(role) for role in KeyRole)
        if enc is None or mac is None or dek is None or len({len(enc), len(mac), len(dek)}) != 1:
            return None
        return SoftwareKeys(enc=enc, mac=mac, dek=dek)

    def advanced(self) -> "KeySet":
        """Return the set with the next sequence counter.

        Raises:
            StatusError: the counter is used up.
        """
        if self.counter >= _LAST_COUNTER:
            raise StatusError(StatusWord.CONDITIONS_NOT_SATISFIED)
        return replace(self, counter=self.counter + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardState:
    """Everything that survives a power cut."""

    traits: Traits
    key_diversification_data: bytes
    """10 octets."""
    key_sets: tuple[KeySet, ...]
    """The first one that can open a session is the default."""
    objects: tuple[tuple[int, bytes], ...] = ()
    """Tag and value, in the order of the tags."""
    failures: int = 0
    """EXTERNAL AUTHENTICATEs that failed since the last good one."""

    @property
    def locked(self) -> bool:
        """Return whether too many authentications failed."""
        return self.failures >= self.traits.most_failures

    def key_set(self, kvn: int) -> KeySet | None:
        """Return the set with this key version number, or None."""
        return next((found for found in self.key_sets if found.kvn == kvn), None)

    def session_set(self, p1: int) -> KeySet | None:
        """Return the set that INITIALIZE UPDATE with this P1 asks for, or None: 00 is the default."""
        usable = (found for found in self.key_sets if found.static_keys is not None)
        if p1 == 0:
            return next(usable, None)
        return next((found for found in usable if found.kvn == p1 != FACTORY_KVN), None)

    def with_key_set(self, changed: KeySet, *, at: int | None = None) -> "CardState":
        """Return the state with a set in the place of the one with the number ``at`` (its own if None)."""
        kvn = changed.kvn if at is None else at
        if self.key_set(kvn) is None:
            return replace(self, key_sets=(*self.key_sets, changed))
        return replace(self, key_sets=tuple(changed if old.kvn == kvn else old for old in self.key_sets))

    def without_key_set(self, kvn: int) -> "CardState":
        """Return the state without a set."""
        return replace(self, key_sets=tuple(old for old in self.key_sets if old.kvn != kvn))

    def with_objects(self, objects: Iterable[tuple[int, bytes]]) -> "CardState":
        """Return the state with data objects stored, in the place of those with the same tags.

        Raises:
            StatusError: they do not all fit.
        """
        stored = dict(self.objects) | dict(objects)
        if sum(len(value) + 5 for value in stored.values()) > MOST_OBJECT_OCTETS:
            raise StatusError(StatusWord.NOT_ENOUGH_SPACE)
        return replace(self, objects=tuple(sorted(stored.items())))

    def entries(self) -> tuple[KeyEntry, ...]:
        """Return what the key information template lists."""
        return tuple(
            KeyEntry(kvn=found.kvn, kid=kid, key_type=AES, size=len(key))
            for found in self.key_sets
            for kid, key in found.keys
        )


def fresh(
    keys: SoftwareKeys, *, key_diversification_data: bytes, kvn: int = 0x30, traits: Traits | None = None
) -> CardState:
    """Return an element as it comes from its maker.

    Args:
        keys: the initial set.
        key_diversification_data: 10 octets.
        kvn: of the initial set, 01 to 7F, or FF for one that only P1 00 asks for.
        traits: of the type.

    Raises:
        MalformedRequest: the key version number or the key diversification data are none.
    """
    if len(key_diversification_data) != KDD_OCTETS:
        raise errors.MalformedRequest(f"key diversification data have {KDD_OCTETS} octets")
    if not 1 <= kvn <= 0x7F and kvn != FACTORY_KVN:
        raise errors.MalformedRequest(
            f"an initial set has a key version number from 01 to 7F, or FF: not {kvn:02X}"
        )
    return CardState(
        traits=traits or Traits(),
        key_diversification_data=key_diversification_data,
        key_sets=(KeySet(kvn=kvn, keys=tuple((int(role), keys.key(role)) for role in KeyRole)),),
    )


def encode_state(state: CardState) -> SecretBytes:
    """Return the state as JSON (UTF-8); the keys are in it."""
    traits = {name: getattr(state.traits, name) for name in Traits.__slots__}
    document = {
        "format": _FORMAT,
        "traits": traits | {"aid": state.traits.aid.hex()},
        "key_diversification_data": state.key_diversification_data.hex(),
        "key_sets": [
            {
                "kvn": found.kvn,
                "counter": found.counter,
                "keys": {str(kid): key.reveal().hex() for kid, key in found.keys},
            }
            for found in state.key_sets
        ],
        "objects": {f"{tag:X}": value.hex() for tag, value in state.objects},
        "failures": state.failures,
    }
    return SecretBytes(json.dumps(document, indent=1).encode() + b"\n")


def decode_state(content: SecretBytes) -> CardState:
    """Read what ``encode_state`` wrote.

    Raises:
        MalformedRequest: it is something else.
    """
    try:
        document = json.loads(content.reveal())
        if document.pop("format") != _FORMAT:
            raise errors.MalformedRequest("the file holds no virtual secure element of this format")
        return _state(document)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        # Without its cause: that would show what stands in the file.
        raise errors.MalformedRequest("the file does not hold a virtual secure element") from None


def _state(document: dict[str, Any]) -> CardState:
    traits = dict(document["traits"])
    for name, kind in (("i", int), ("most_failures", int)):
        if type(traits[name]) is not kind:
            raise TypeError(name)
    key_sets = tuple(_key_set(found) for found in document["key_sets"])
    objects = {int(tag, 16): bytes.fromhex(value) for tag, value in document["objects"].items()}
    for tag in objects:
        encode_tag(tag)
    data = bytes.fromhex(document["key_diversification_data"])
    if len(data) != KDD_OCTETS or len({found.kvn for found in key_sets}) != len(key_sets):
        raise ValueError("key_diversification_data")
    return CardState(
        traits=Traits(**(traits | {"aid": bytes.fromhex(traits["aid"])})),
        key_diversification_data=data,
        key_sets=key_sets,
        objects=tuple(sorted(objects.items())),
        failures=_number(document["failures"], 1 << 30),
    )


def _key_set(found: dict[str, Any]) -> KeySet:
    keys = {_number(int(kid), 0x7F): SecretBytes(bytes.fromhex(key)) for kid, key in found["keys"].items()}
    if any(len(key) not in KEY_SIZES for key in keys.values()):
        raise ValueError("keys")
    return KeySet(
        kvn=_number(found["kvn"], 0xFF),
        keys=tuple((kid, keys[kid]) for kid in sorted(keys)),
        counter=_number(found["counter"], _LAST_COUNTER),
    )


def _number(value: int, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("number")
    return value
