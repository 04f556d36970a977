"""What a virtual element tells about itself, and how it reads what is stored in it.

Sources: GlobalPlatform Card Specification v2.3 sections 11.3 (GET DATA), 11.4 (GET STATUS), 11.9 (SELECT),
11.11 (STORE DATA) and H.2 (card data).
"""

from birthmark import errors
from birthmark.element import tlv
from birthmark.element.card_state import CardState, StatusError, StatusWord
from birthmark.element.scp03 import Parameter

__all__ = ["card_data", "issuer_status", "parse_stored", "selection_response"]

_AID, _CARD_DATA, _CARD_RECOGNITION_DATA = 0x4F, 0x66, 0x73
_COUNTER, _DIVERSIFICATION_DATA = 0xC1, 0xCF
_OBJECT_IDENTIFIER = 0x06
_GLOBALPLATFORM = bytes.fromhex("2A864886FC6B")
"""1.2.840.114283"""
_LIFE_CYCLE_SECURED = b"\x0f"
_PRIVILEGES = bytes.fromhex("9EFE80")
"""Of an issuer security domain (Card Specification v2.3 section 6.6.1)."""
_DGI, _BER_TLV, _NO_STRUCTURE = 0x08, 0x10, 0x00
_OURS = frozenset({0x4F, 0x66, 0xC1, 0xCF, 0xE0})
"""Tags under which nothing can be stored: the element says these itself."""


def selection_response(state: CardState) -> bytes:
    """Return the file control information of the security domain (section 11.9.3.1)."""
    proprietary = tlv.encode(0x9F65, b"\xff")
    return tlv.encode(0x6F, tlv.encode(0x84, state.traits.aid) + tlv.encode(0xA5, proprietary))


def card_data(state: CardState, tag: int) -> bytes | None:
    """Return what GET DATA with this tag says of the element itself, or None.

    Raises:
        StatusError: it has none of that.
    """
    if tag == tlv.KEY_INFORMATION_TEMPLATE:
        return tlv.encode_key_information(state.entries(), bare=state.traits.bare_key_information)
    if tag == _CARD_DATA:
        recognition = _recognition_data(state.traits.i)
        return recognition if state.traits.bare_key_information else tlv.encode(_CARD_DATA, recognition)
    if tag == _DIVERSIFICATION_DATA:
        return tlv.encode(_DIVERSIFICATION_DATA, state.key_diversification_data)
    if tag == _COUNTER:
        default = state.session_set(0)
        if default is None or not state.traits.i & Parameter.PSEUDO_RANDOM:
            raise StatusError(StatusWord.REFERENCED_DATA_NOT_FOUND)
        return tlv.encode(_COUNTER, default.counter.to_bytes(3, "big"))
    return None


def _recognition_data(i: int) -> bytes:
    """Return the card recognition data: GlobalPlatform 2.3.1, identified by its AID, SCP03 (section H.2)."""

    def identified(arcs: str) -> bytes:
        return tlv.encode(_OBJECT_IDENTIFIER, _GLOBALPLATFORM + bytes.fromhex(arcs))

    return tlv.encode(
        _CARD_RECOGNITION_DATA,
        identified("01")
        + tlv.encode(0x60, identified("02020301"))
        + tlv.encode(0x63, identified("03"))
        + tlv.encode(0x64, identified(f"0403{i:02X}")),
    )


def issuer_status(state: CardState, p1: int, p2: int, data: bytes) -> bytes:
    """Return the answer to GET STATUS (section 11.4): there is the security domain, and nothing else.

    Args:
        state: of the element.
        p1: 80 for the issuer security domain; what else can be asked for is not there.
        p2: 00 for the short form, 02 for TLV.
        data: search criterion 4F, whole or right-truncated AID, and perhaps 5C, a list of the tags wanted.

    Raises:
        StatusError: nothing is found, or the command is wrong.
    """
    if p1 not in (0x80, 0x40, 0x20, 0x10) or p2 not in (0x00, 0x02):
        raise StatusError(StatusWord.INCORRECT_P1_P2)
    try:
        asked = {found.tag: found.value for found in tlv.decode(data)}
        wanted = _tags(asked[0x5C]) if 0x5C in asked else None
    except errors.MalformedRequest as wrong:
        raise StatusError(StatusWord.INCORRECT_DATA) from wrong
    if _AID not in asked:
        raise StatusError(StatusWord.INCORRECT_DATA)
    aid = state.traits.aid
    if p1 != 0x80 or not aid.startswith(asked[_AID]):
        raise StatusError(StatusWord.REFERENCED_DATA_NOT_FOUND)
    if p2 == 0x00:
        return bytes((len(aid),)) + aid + _LIFE_CYCLE_SECURED + _PRIVILEGES[:1]
    said = {_AID: aid, 0x9F70: _LIFE_CYCLE_SECURED, 0xC5: _PRIVILEGES}
    return tlv.encode(
        0xE3,
        b"".join(tlv.encode(tag, value) for tag, value in said.items() if wanted is None or tag in wanted),
    )


def _tags(octets: bytes) -> frozenset[int]:
    tags, at = set(), 0
    while at < len(octets):
        width = 2 if octets[at] & 0x1F == 0x1F else 1
        tags.add(int.from_bytes(octets[at : at + width], "big"))
        at += width
    return frozenset(tags)


def parse_stored(data: bytes, structure: int) -> list[tuple[int, bytes]]:
    """Read the data of STORE DATA, all blocks joined: tag and value of each object.

    Args:
        data: of the command.
        structure: bits 5 and 4 of P1: BER-TLV or DGI; data without a stated structure are BER-TLV here.

    Raises:
        StatusError: the data are not of that structure, or name what the element says itself.
    """
    try:
        if structure == _DGI:
            objects = _data_groups(data)
        elif structure in (_BER_TLV, _NO_STRUCTURE):
            objects = [(found.tag, found.value) for found in tlv.decode(data)]
        else:
            raise StatusError(StatusWord.INCORRECT_P1_P2)
    except errors.MalformedRequest as wrong:
        raise StatusError(StatusWord.INCORRECT_DATA) from wrong
    if not objects or any(tag in _OURS for tag, _ in objects):
        raise StatusError(StatusWord.INCORRECT_DATA)
    return objects


def _data_groups(data: bytes) -> list[tuple[int, bytes]]:
    """Read data groups: an identifier of two octets, a length of one or of FF and two (section 11.11.2.3).

    GET DATA has to be able to name them, as BER-TLV, so identifiers that are no tags are refused.
    """
    groups, at = [], 0
    while at < len(data):
        tag = int.from_bytes(data[at : at + 2], "big")
        tlv.encode_tag(tag)
        wide = data[at + 2 : at + 3] == b"\xff"
        start = at + (5 if wide else 3)
        size = int.from_bytes(data[at + 3 : start] if wide else data[at + 2 : start], "big")
        if start > len(data) or start + size > len(data):
            raise errors.MalformedRequest("a data group is cut short")
        groups.append((tag, data[start : start + size]))
        at = start + size
    return groups
