"""Commands to a security domain, in clear: GlobalPlatform Card Specification v2.3, chapter 11.

INITIALIZE UPDATE and EXTERNAL AUTHENTICATE are those of the protocol: see ``scp03``.
"""

from collections.abc import Sequence

from birthmark import errors
from birthmark.element import tlv
from birthmark.element.apdu import CommandAPDU
from birthmark.element.keyset import KeyBlockForm, WrappedKey, encode_put_key
from birthmark.element.scp03 import BLOCK, Mode

__all__ = ["delete_key_set", "get_data", "get_status", "put_key", "select", "store_data"]

_SHORT_FIELD = 0xFF
_EXTENDED_FIELD = 1024
"""Octets of a data field where lengths are extended: elements that take such fields take this one."""
_BER_TLV = 0x10
_LAST_BLOCK = 0x80
_SEVERAL_KEYS = 0x80


def select(aid: bytes) -> CommandAPDU:
    """Return SELECT by name (section 11.9)."""
    return CommandAPDU(0x00, 0xA4, 0x04, 0x00, aid, 0x100)


def put_key(
    replaced: int,
    kvn: int,
    keys: Sequence[WrappedKey],
    form: KeyBlockForm,
    *,
    with_check_values: bool = True,
) -> CommandAPDU:
    """Return PUT KEY (section 11.8) for keys with the identifiers 1, 2 and so on.

    Args:
        replaced: key version number of the set to be replaced; 0 for a new set.
        kvn: key version number that the keys get.
        keys: as they travel.
        form: of the key blocks.
        with_check_values: see ``encode_put_key``.
    """
    p2 = 1 | (_SEVERAL_KEYS if len(keys) > 1 else 0)
    data = encode_put_key(kvn, keys, form, with_check_values=with_check_values)
    return CommandAPDU(0x80, 0xD8, replaced, p2, data, 0x100)


def delete_key_set(kvn: int) -> CommandAPDU:
    """Return DELETE of all keys with a key version number (section 11.2.2.3.2)."""
    return CommandAPDU(0x80, 0xE4, 0x00, 0x00, tlv.encode(0xD2, bytes((kvn,))), 0x100)


def get_status() -> CommandAPDU:
    """Return GET STATUS of the security domain itself (section 11.4), a command and an answer with data."""
    return CommandAPDU(0x80, 0xF2, 0x80, 0x02, tlv.encode(0x4F, b""), 0x100)


def store_data(tag: int, value: bytes, mode: Mode, *, extended_length: bool) -> tuple[CommandAPDU, ...]:
    """Return the STORE DATA commands (section 11.11) that write one data object, as blocks.

    Every block still fits its command when it is encrypted and has its C-MAC.

    Args:
        tag: BER-TLV tag of the object.
        value: of the object.
        mode: of the session, which says how long the C-MAC is.
        extended_length: the element takes extended lengths.

    Raises:
        PolicyRefused: the object takes more than 256 blocks (rule ``object-size``).
    """
    octets = tlv.encode(tag, value)
    size = ((_EXTENDED_FIELD if extended_length else _SHORT_FIELD) - mode) // BLOCK * BLOCK - 1
    blocks = [octets[at : at + size] for at in range(0, len(octets), size)]
    if len(blocks) > 0x100:
        raise errors.PolicyRefused("object-size", f"object {tag:X} takes more than 256 STORE DATA commands")
    last = len(blocks) - 1
    return tuple(
        CommandAPDU(0x80, 0xE2, _BER_TLV | (_LAST_BLOCK if number == last else 0), number, block)
        for number, block in enumerate(blocks)
    )


def get_data(tag: int, *, extended_length: bool = False) -> CommandAPDU:
    """Return GET DATA (section 11.3)."""
    return CommandAPDU(0x80, 0xCA, tag >> 8, tag & 0xFF, le=0x10000 if extended_length else 0x100)
