"""Typed hardware ids (SPEC C9)."""

import time
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest, PolicyRefused, Refusal
from birthmark.floor.hardware_ids import (
    HardwareId,
    HardwareIdKind,
    HardwareIdRule,
    eid_check_digits,
    vin_check_digit,
)

VECTORS = Path(__file__).parent.parent / "vectors"
VINS = (VECTORS / "vin" / "valid.txt").read_text().split()
EIDS = (VECTORS / "eid" / "valid.txt").read_text().split()
ALPHABET = "0123456789ABCDEFGHJKLMNPRSTUVWXYZ"
VALUES = dict(zip(ALPHABET, (*range(10), *range(1, 9), *range(1, 6), 7, 9, *range(2, 10)), strict=True))

ANYWHERE = HardwareIdRule(kind=HardwareIdKind.VIN)
NORTH_AMERICA = HardwareIdRule(kind=HardwareIdKind.VIN, check_digit=True)
EUI_64 = HardwareIdRule(kind=HardwareIdKind.EUI_64)
EID = HardwareIdRule(kind=HardwareIdKind.EID)
SYSTEM_TITLE = HardwareIdRule(kind=HardwareIdKind.SYSTEM_TITLE)
SERIAL = HardwareIdRule(kind=HardwareIdKind.SERIAL)


def complaint(rule: HardwareIdRule, text: str) -> str:
    with pytest.raises(Refusal) as refusal:
        rule.parse(text)
    return str(refusal.value)


@pytest.mark.parametrize("vin", VINS)
def test_published_vins_have_the_published_check_digit(vin: str) -> None:
    assert vin_check_digit(vin) == vin[8]
    assert NORTH_AMERICA.parse(vin) == HardwareId(HardwareIdKind.VIN, vin)


def test_a_wrong_check_digit_is_told_with_the_right_one() -> None:
    told = complaint(NORTH_AMERICA, "1M8GDM9A0KP042788")
    assert told == "vin 1M8GDM9A0KP042788: position 9 should be X, is 0"


def test_where_the_market_has_no_check_digit_position_9_is_free() -> None:
    assert ANYWHERE.parse("WP0ZZZ99ZTS392124").text == "WP0ZZZ99ZTS392124"
    assert complaint(NORTH_AMERICA, "WP0ZZZ99ZTS392124").startswith(
        "vin WP0ZZZ99ZTS392124: position 9 should be "
    )


@pytest.mark.parametrize("letter", "IOQ")
def test_letters_that_look_like_digits_are_told_with_their_position(letter: str) -> None:
    assert f"position 4: {letter} is not allowed in a VIN" in complaint(
        ANYWHERE, "1M8" + letter + "DM9AXKP042788"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has 0 characters, must have 17"),
        ("1M8GDM9AXKP04278", "has 16 characters, must have 17"),
        (" 1M8GDM9AXKP042788", "has 18 characters, must have 17"),
        ("1M8GDM9AXKP04278 ", "position 17: ' ' is not allowed in a VIN"),
        ("1M8GDM9AXKP04278８", "position 17: '８' is not ascii"),
        ("1M8GDM9AXKP04278ı", "position 17: 'ı' is not ascii"),
        ("1M8GDM9AXKP04278\0", "position 17: '\\x00' is not allowed in a VIN"),
    ],
)
def test_what_is_no_vin_is_told_why(text: str, told: str) -> None:
    assert told in complaint(ANYWHERE, text)


def test_small_letters_of_a_vin_become_capitals() -> None:
    assert NORTH_AMERICA.parse("1m8gdm9axkp042788").text == "1M8GDM9AXKP042788"


def test_a_foreign_maker_is_refused() -> None:
    """SPEC G2: issuance constraint by world manufacturer identifier."""
    rule = HardwareIdRule(kind=HardwareIdKind.VIN, wmi=frozenset({"1M8", "5GZ"}))
    assert rule.parse("1M8GDM9AXKP042788").text == "1M8GDM9AXKP042788"
    with pytest.raises(PolicyRefused, match="1HG is none of the accepted makers 1M8, 5GZ") as refusal:
        rule.parse("1HGCM82633A004352")
    assert refusal.value.rule == "wmi"


@given(st.sampled_from(VINS), st.integers(0, 16), st.sampled_from(ALPHABET))
def test_any_single_wrong_character_that_changes_the_sum_is_caught(vin: str, place: int, other: str) -> None:
    """The weights are all invertible modulo 11, so only letters and digits of equal value escape."""
    changed = vin[:place] + other + vin[place + 1 :]
    assume(changed != vin)
    if place != 8 and VALUES[other] == VALUES[vin[place]]:
        assert NORTH_AMERICA.parse(changed).text == changed
    else:
        assert "position 9 should be" in complaint(NORTH_AMERICA, changed)


@pytest.mark.parametrize(
    "text", ["0011223344AABBCC", "00-11-22-33-44-aa-bb-cc", "00:11:22:33:44:AA:bb:CC", "0011223344aabbcc"]
)
def test_an_eui_64_has_one_stored_spelling(text: str) -> None:
    assert EUI_64.parse(text).text == "0011223344AABBCC"


@pytest.mark.parametrize(
    "text",
    [
        "", "0011223344AABBC", "0011223344AABBCG", "00-11:22-33-44-aa-bb-cc", "0011-2233-44aa-bbcc",
        "00-11-22-33-44-aa-bb-cc-", "0" * 16, "F" * 16, "ff:ff:ff:ff:ff:ff:ff:ff", "0011223344AABBCC\n",
    ],
)  # fmt: skip
def test_what_is_no_eui_64_is_refused(text: str) -> None:
    with pytest.raises(MalformedRequest):
        EUI_64.parse(text)


@pytest.mark.parametrize("text", ["4D4D4D0000BC614E", "4d4d4d0000bc614e", "4D4d4D0000bC614e"])
def test_a_system_title_has_one_stored_spelling(text: str) -> None:
    """DLMS/COSEM: the maker's FLAG id (here "MMM", as in the Green Book's examples), then five octets."""
    found = SYSTEM_TITLE.parse(text)
    assert found == HardwareId(HardwareIdKind.SYSTEM_TITLE, "4D4D4D0000BC614E")
    assert bytes.fromhex(found.text)[:3] == b"MMM"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not 16 hex digits"),
        ("4D4D4D0000BC614", "is not 16 hex digits"),
        ("4D4D4D0000BC614E0", "is not 16 hex digits"),
        ("4D4D4D0000BC614G", "is not 16 hex digits"),
        ("4D-4D-4D-00-00-BC-61-4E", "is not 16 hex digits"),
        ("4D4D4D0000BC614E\n", "is not 16 hex digits"),
        ("MMM0000000000001", "is not 16 hex digits"),
        ("0123456789ABCDEF", "octet 1 is 01, no letter"),
        ("4D6D4D0000BC614E", "octet 2 is 6D, no letter"),
        ("4D4D330000BC614E", "octet 3 is 33, no letter"),
    ],
)
def test_what_is_no_system_title_is_refused(text: str, why: str) -> None:
    assert why in complaint(SYSTEM_TITLE, text)


@given(st.binary(min_size=8, max_size=8))
def test_eight_octets_are_a_system_title_if_they_begin_with_three_letters(octets: bytes) -> None:
    if octets[:3].isalpha() and octets[:3].isupper():
        assert SYSTEM_TITLE.parse(octets.hex()).text == octets.hex().upper()
    else:
        assert "no letter" in complaint(SYSTEM_TITLE, octets.hex())


@pytest.mark.parametrize("eid", EIDS)
def test_published_eids_have_the_published_check_digits(eid: str) -> None:
    """GSMA SGP.02 annex J."""
    assert int(eid) % 97 == 1
    assert eid_check_digits(eid) == eid[-2:]
    assert EID.parse(eid) == HardwareId(HardwareIdKind.EID, eid)


def test_wrong_check_digits_of_an_eid_are_told_with_the_right_ones() -> None:
    told = complaint(EID, "89034011560010000000000000000122")
    assert told == "eid 89034011560010000000000000000122: check digits should be 21, are 22"


@given(st.text("0123456789", min_size=30, max_size=30), st.integers(0, 31), st.sampled_from("0123456789"))
def test_any_single_wrong_digit_of_an_eid_is_caught(start: str, place: int, other: str) -> None:
    """ISO/IEC 7064: MOD 97-10 detects all single substitution errors."""
    eid = start + eid_check_digits(start + "00")
    assert int(eid) % 97 == 1
    assert EID.parse(eid).text == eid
    assume(eid[place] != other)
    assert "check digits should be" in complaint(EID, eid[:place] + other + eid[place + 1 :])


@pytest.mark.parametrize("text", ["", "1" * 31, "1" * 33, "8903401156001000000000000000012x", "²" * 32])
def test_what_is_no_eid_is_refused(text: str) -> None:
    with pytest.raises(MalformedRequest):
        EID.parse(text)


def test_a_serial_matches_the_whole_pattern() -> None:
    rule = HardwareIdRule(kind=HardwareIdKind.SERIAL, pattern=r"AB-\d{4}[A-F]?")
    assert rule.parse("AB-1234") == HardwareId(HardwareIdKind.SERIAL, "AB-1234")
    assert rule.parse("AB-1234F").text == "AB-1234F"
    for text in ("AB-12345", "xAB-1234", "AB-123", "ab-1234"):
        with pytest.raises(PolicyRefused) as refusal:
            rule.parse(text)
        assert refusal.value.rule == "serial-pattern"


@pytest.mark.parametrize("text", ["", "x" * 65, "a b", "a\n", "a\x7f", "é"])
def test_a_serial_is_visible_ascii_of_limited_length(text: str) -> None:
    with pytest.raises(MalformedRequest):
        SERIAL.parse(text)
    assert SERIAL.parse("x" * 64).text == "x" * 64


@pytest.mark.parametrize(
    "pattern",
    [
        "", "(a+)+", "(a|a)*", "a|b", "a**", "a+?", "a++", "^a$", "a.b", r"\w+", r"\1", "[", "[^a]", "[b-a]",
        "a{5,2}", r"\d*\d*\d*\d*", "a" * 129, "a{", "*", "(?i)a", "é", "[a--b]",
    ],
)  # fmt: skip
def test_a_pattern_that_could_be_slow_or_is_none_is_refused(pattern: str) -> None:
    with pytest.raises(MalformedRequest, match="pattern"):
        HardwareIdRule(kind=HardwareIdKind.SERIAL, pattern=pattern)


def test_the_worst_pattern_that_is_accepted_is_quick_enough() -> None:
    rule = HardwareIdRule(kind=HardwareIdKind.SERIAL, pattern=r"[0-9]*\d*[0-9]*X")
    started = time.process_time()
    with pytest.raises(PolicyRefused):
        rule.parse("1" * 64)
    assert time.process_time() - started < 0.5


def test_a_rule_with_a_field_of_another_kind_is_refused() -> None:
    with pytest.raises(MalformedRequest):
        HardwareIdRule(kind=HardwareIdKind.EID, check_digit=True)
    with pytest.raises(MalformedRequest):
        HardwareIdRule(kind=HardwareIdKind.SERIAL, wmi=frozenset({"1M8"}))
    with pytest.raises(MalformedRequest):
        HardwareIdRule(kind=HardwareIdKind.VIN, pattern="a")
    with pytest.raises(MalformedRequest, match="wmi '1mq'"):
        HardwareIdRule(kind=HardwareIdKind.VIN, wmi=frozenset({"1mq"}))


@given(
    st.sampled_from([ANYWHERE, NORTH_AMERICA, EUI_64, EID, SERIAL]),
    st.one_of(
        st.text(max_size=80), st.text(ALPHABET.lower() + ALPHABET + "IOQ-: ", min_size=15, max_size=33)
    ),
)
def test_any_text_is_an_id_or_a_refusal(rule: HardwareIdRule, text: str) -> None:
    """And an id is a fixed point: parsed again it is the same."""
    try:
        found = rule.parse(text)
    except MalformedRequest:
        return
    assert rule.parse(found.text) == found


@given(st.text(max_size=140))
def test_any_pattern_is_accepted_or_refused(pattern: str) -> None:
    try:
        rule = HardwareIdRule(kind=HardwareIdKind.SERIAL, pattern=pattern)
    except MalformedRequest:
        return
    try:
        rule.parse("AB-1234")
    except PolicyRefused:
        return
