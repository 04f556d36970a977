"""BER-TLV, and the list of keys in both dialects."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.element import tlv
from birthmark.element.keyset import KeyEntry

TAGS = st.one_of(
    st.integers(1, 0xFF).filter(lambda tag: tag & 0x1F != 0x1F),
    st.builds(
        lambda first, second: (first | 0x1F) << 8 | second,
        st.sampled_from(range(0x1F, 0x100, 0x20)),
        st.integers(0x1F, 0x7F),
    ),
)

# Published by GlobalPlatformPro's unit tests: three AES keys, an RSA key and an exotic one.
PLAIN_LIST = bytes.fromhex("E020C00401018820C00402018820C00403018820C0060170A180A003C00401718010")
EXTENDED_LIST = bytes.fromhex("E021C00401018010C00402018010C00403018010C00D0173FFA10080A0000301840100")


@given(st.lists(st.builds(tlv.TLV, TAGS, st.one_of(st.binary(max_size=300), st.just(bytes(0x10000 - 1))))))
def test_what_was_written_is_read(objects: list[tlv.TLV]) -> None:
    assert tlv.decode(b"".join(found.encode() for found in objects)) == tuple(objects)


@given(st.binary(max_size=64))
@example(b"\x7f")
@example(b"\x5f\x21\x82\x00")
def test_a_decoder_takes_any_octets(octets: bytes) -> None:
    for decode in (
        tlv.decode,
        tlv.read_key_information,
        lambda data: tlv.read_key_information(data, bare=True),
        lambda data: tlv.read_key_information(tlv.encode(0xC0, data), bare=True),
        lambda data: tlv.decode_one(data, 0x66),
    ):
        try:
            decode(octets)
        except errors.MalformedRequest:
            continue


@pytest.mark.parametrize(
    ("size", "length"), [(0, "00"), (0x7F, "7F"), (0x80, "8180"), (0xFF, "81FF"), (0x100, "820100")]
)
def test_lengths_are_written_as_short_as_they_can_be(size: int, length: str) -> None:
    assert tlv.encode(0x53, bytes(size)) == b"\x53" + bytes.fromhex(length) + bytes(size)


def test_lengths_longer_than_need_be_are_read() -> None:
    assert tlv.decode_one(bytes.fromhex("53820001AA"), 0x53) == b"\xaa"


@pytest.mark.parametrize(
    "octets",
    ["53", "5F", "5301", "5380", "538100"[:4], "53830000 00", "5F8101 00", "5F1E00", "0000", "1F"],
    ids=str,
)
def test_what_is_no_data_object_is_refused(octets: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        tlv.decode(bytes.fromhex(octets))


@pytest.mark.parametrize("tag", [0, 0x1F, 0x100, 0x7F80, 0x7F1E, 0x6601, 0x10000, -1])
def test_what_is_no_tag_is_not_written(tag: int) -> None:
    with pytest.raises(errors.MalformedRequest):
        tlv.encode(tag, b"")


def test_a_value_has_its_limit() -> None:
    with pytest.raises(errors.MalformedRequest):
        tlv.encode(0x53, bytes(0x10000))


def test_the_one_object_that_was_wanted_is_the_only_one() -> None:
    assert tlv.decode_one(b"\x66\x01\xaa", 0x66) == b"\xaa"
    for octets in (b"", b"\x67\x00", b"\x66\x00\x66\x00"):
        with pytest.raises(errors.MalformedRequest):
            tlv.decode_one(octets, 0x66)


def test_a_constructed_object_gives_what_it_is_made_of() -> None:
    (outer,) = tlv.decode(bytes.fromhex("7F210453029000"))
    assert outer.children() == (tlv.TLV(0x53, b"\x90\x00"),)


def test_a_value_does_not_show_itself() -> None:
    assert "41" not in repr(tlv.TLV(0x53, b"AAAA"))


def test_the_published_list_of_keys_is_read() -> None:
    assert tlv.read_key_information(PLAIN_LIST) == (
        KeyEntry(kvn=0x01, kid=1, key_type=0x88, size=32),
        KeyEntry(kvn=0x01, kid=2, key_type=0x88, size=32),
        KeyEntry(kvn=0x01, kid=3, key_type=0x88, size=32),
        KeyEntry(kvn=0x70, kid=1, key_type=0xA1, size=128),
        KeyEntry(kvn=0x71, kid=1, key_type=0x80, size=16),
    )


def test_the_published_list_in_the_extended_form_is_read() -> None:
    *plain, extended = tlv.read_key_information(EXTENDED_LIST)
    assert [entry.kid for entry in plain] == [1, 2, 3]
    assert extended == KeyEntry(kvn=0x73, kid=1, key_type=0xA1, size=128)


@pytest.mark.parametrize("bare", [False, True])
def test_both_dialects_are_written_and_read(*, bare: bool) -> None:
    entries = tuple(KeyEntry(kvn=0x30, kid=kid, key_type=0x88, size=16) for kid in (1, 2, 3))
    encoded = tlv.encode_key_information(entries, bare=bare)
    assert encoded == bytes.fromhex(("" if bare else "E012") + "C00401308810C00402308810C00403308810")
    assert tlv.read_key_information(encoded, bare=bare) == entries
    with pytest.raises(errors.MalformedRequest):
        tlv.read_key_information(encoded, bare=not bare)


def test_a_list_may_come_in_several_templates() -> None:
    first, second = tlv.read_key_information(bytes.fromhex("E006C00401308810E006C00402308810"))
    assert (first.kid, second.kid) == (1, 2)


def test_a_size_of_256_octets_or_more_is_not_known() -> None:
    entry = KeyEntry(kvn=0x30, kid=1, key_type=0xA1, size=256)
    assert tlv.read_key_information(tlv.encode_key_information([entry]))[0].size == 0


@pytest.mark.parametrize(
    "octets",
    [
        "C10401308810",
        "C003013088",
        "C005 01 30 88 10 88",
        "C005 01 73 FF A1 00",
        "C007 01 73 FF A1 0080 01",
        "C009 01 73 FF A1 0080 01 84 01",
        "C005 01 73 FF 01 84",
    ],
    ids=str,
)
def test_a_list_of_something_else_than_keys_is_refused(octets: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        tlv.read_key_information(bytes.fromhex(octets), bare=True)
