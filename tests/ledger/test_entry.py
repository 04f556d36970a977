import json
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark import errors
from birthmark.ledger import entry

GOOD: dict[str, object] = {
    "v": 1,
    "kind": "device-released",
    "at": "2026-11-22T10:00:00.000Z",
    "realm": "acme",
    "environment": "test",
    "actor": "station:ST01",
    "seq": 17,
    "operator": "op-7",
    "record": {
        "hardware_id": "SN 1 ÄÖ😀\u2028\x7f",
        "parts": [1, None, True, {"a": []}],
        "note": 'a"\\\n\x01',
    },
}

names = st.from_regex(r"[a-z0-9_]{1,12}", fullmatch=True)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-entry.INTEGER_LIMIT, entry.INTEGER_LIMIT)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(names, values, max_size=6))
@settings(max_examples=100)
def test_objects_are_spelled_as_the_reference_implementation_does(value: dict[str, Any]) -> None:
    """RFC 8785, PyPI rfc8785 as the oracle."""
    data = entry.canonical(value)
    assert data == rfc8785.dumps(value)
    assert entry.parse(data) == value


def test_an_entry_is_spelled_as_the_reference_implementation_does_and_reads_back() -> None:
    data = entry.encode(GOOD)
    assert data == rfc8785.dumps(GOOD)  # type: ignore[arg-type]  # its stub is narrower than JSON
    assert entry.decode(data) == GOOD
    assert entry.encode(MappingProxyType(GOOD)) == data


def test_an_entry_needs_no_number_and_no_operator() -> None:
    short = {name: value for name, value in GOOD.items() if name not in {"seq", "operator"}}
    assert entry.decode(entry.encode(short)) == short


def test_enumerated_kinds_are_spelled_by_their_value() -> None:
    class Kind(StrEnum):
        RELEASED = "device-released"

    assert entry.encode(GOOD | {"kind": Kind.RELEASED}) == entry.encode(GOOD)


@pytest.mark.parametrize(
    "value",
    [
        1.0,
        float("nan"),
        1 << 53,
        -(1 << 53),
        b"octets",
        (1, 2),
        {1, 2},
        datetime(2026, 1, 1, tzinfo=UTC),
        "\ud800",
        "a\udfffb",
        {"Upper": 1},
        {"hy-phen": 1},
        {"": 1},
        {"ä": 1},
        {"x" * 65: 1},
        {"\ud800": 1},
        [[[1.5]]],
        object(),
    ],
)
def test_a_value_without_one_obvious_spelling_is_refused(value: object) -> None:
    for place in (value, [value], {"inner": value}):
        with pytest.raises(errors.MalformedRequest):
            entry.encode(GOOD | {"extra": place})


def test_nesting_has_a_limit() -> None:
    lists: object = 1
    objects: object = 1
    for _ in range(entry.DEPTH_LIMIT + 1):
        lists, objects = [lists], {"a": objects}
    for deep in (lists, objects):
        with pytest.raises(errors.MalformedRequest):
            entry.encode(GOOD | {"extra": deep})


@pytest.mark.parametrize("name", ["v", "kind", "at", "realm", "environment", "actor"])
def test_what_every_entry_has_cannot_be_left_out(name: str) -> None:
    missing = {key: value for key, value in GOOD.items() if key != name}
    for wrong in (missing, GOOD | {name: None}, GOOD | {name: ["x"]}, GOOD | {name: True}, GOOD | {name: ""}):
        with pytest.raises(errors.MalformedRequest):
            entry.encode(wrong)
        with pytest.raises(errors.MalformedRequest):
            entry.decode(rfc8785.dumps(wrong))  # type: ignore[arg-type]  # its stub is narrower than JSON


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("v", 2),
        ("v", "1"),
        ("kind", "Device-released"),
        ("kind", "device_released"),
        ("kind", "device--released"),
        ("kind", "-released"),
        ("kind", "released\n"),
        ("kind", "x" * 65),
        ("environment", "staging"),
        ("actor", "ST01"),
        ("actor", "station:"),
        ("actor", "station:ST 01"),
        ("realm", "two words"),
        ("realm", "x" * 129),
        ("seq", 0),
        ("seq", -1),
        ("seq", True),
        ("seq", "1"),
        ("operator", ""),
        ("operator", 7),
        ("at", "2026-11-22T10:00:00Z"),
        ("at", "2026-11-22T10:00:00.000+00:00"),
        ("at", "2026-11-22 10:00:00.000Z"),
        ("at", "2026-13-22T10:00:00.000Z"),
        ("at", "2026-02-30T10:00:00.000Z"),
        ("at", "2026-11-22T24:00:00.000Z"),
        ("at", "2026-11-22T23:59:60.000Z"),
        ("at", "２026-11-22T10:00:00.000Z"),
        ("at", "2026-11-22T10:00:00.000Z\n"),
    ],
)
def test_a_name_with_a_wrong_value_is_refused_both_ways(name: str, value: object) -> None:
    wrong = GOOD | {name: value}
    with pytest.raises(errors.MalformedRequest):
        entry.encode(wrong)
    with pytest.raises(errors.MalformedRequest):
        entry.decode(rfc8785.dumps(wrong))  # type: ignore[arg-type]  # its stub is narrower than JSON


def test_the_largest_entry_has_65535_octets() -> None:
    """C2SP tlog-tiles: the length of an entry is a 16-bit number."""
    room = entry.ENTRY_LIMIT - len(entry.encode(GOOD | {"filler": ""}))
    largest = entry.encode(GOOD | {"filler": "x" * room})
    assert len(largest) == 65_535
    assert entry.decode(largest)["filler"] == "x" * room
    with pytest.raises(errors.TooLarge):
        entry.encode(GOOD | {"filler": "x" * (room + 1)})
    with pytest.raises(errors.MalformedRequest):
        entry.decode(largest.replace(b"xxx", b"xxxx", 1))


@pytest.mark.parametrize(
    "spelling",
    [
        json.dumps(GOOD).encode(),
        json.dumps(GOOD, separators=(",", ":"), sort_keys=True).encode(),  # escapes what needs none
        entry.encode(GOOD) + b"\n",
        b" " + entry.encode(GOOD),
        b"\xef\xbb\xbf" + entry.encode(GOOD),
        entry.encode(GOOD).decode().encode("utf-16"),
        entry.encode(GOOD).replace(b'"seq":17', b'"seq":17.0'),
        entry.encode(GOOD).replace(b'"seq":17', b'"seq":017'),
        entry.encode(GOOD).replace(b'"seq":17', b'"seq":1.7e1'),
        entry.encode(GOOD).replace(b'"seq":17', b'"seq":17,"seq":17'),
        entry.encode(GOOD).replace(b'"seq":17', b'"seq":' + b"1" * 5000),
        entry.encode(GOOD).replace(b'"seq":17', b'"seq":NaN'),
        entry.encode(GOOD).replace(b"\\u0001", b"\\u0001\\ud800"),
        entry.encode(GOOD).replace(b"\\n", b"\n"),
        entry.encode(GOOD).replace(b"\\n", b"\\u000a"),
        b"[" * 60_000,
        b'{"a":' * 10_000,
        b"[]",
        b"null",
        b"",
        b"\xff",
    ],
)
def test_any_other_spelling_is_refused(spelling: bytes) -> None:
    with pytest.raises(errors.MalformedRequest):
        entry.decode(spelling)


@given(st.data())
@settings(max_examples=100)
def test_any_octets_are_a_canonical_entry_or_refused(data: st.DataObject) -> None:
    good = bytearray(entry.encode(GOOD))
    at = data.draw(st.integers(0, len(good) - 1))
    good[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    octets = data.draw(st.sampled_from([bytes(good), data.draw(st.binary(max_size=50))]))
    try:
        decoded = entry.decode(octets)
    except errors.MalformedRequest:
        return
    assert rfc8785.dumps(decoded) == octets  # type: ignore[arg-type]  # its stub is narrower than JSON


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_are_cut_to_milliseconds_and_sort_as_text(moment: datetime) -> None:
    text = entry.time_text(moment)
    assert entry.parse_time(text) == moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    if moment.year < 9999:
        assert entry.time_text(moment + timedelta(milliseconds=1)) > text


def test_times_are_told_in_utc() -> None:
    local = datetime(2026, 11, 22, 11, 0, tzinfo=timezone(timedelta(hours=1)))
    assert entry.time_text(local) == "2026-11-22T10:00:00.000Z"
    with pytest.raises(ValueError, match="time zone"):
        entry.time_text(local.replace(tzinfo=None))
