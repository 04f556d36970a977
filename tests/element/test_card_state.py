"""What a virtual element keeps comes back as it was, and nothing else is taken for it."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.element.card_state import CardState, KeySet, Traits, decode_state, encode_state, fresh
from birthmark.secret import SecretBytes
from tests.element.hosts import KDD, set_of

STATE = fresh(set_of(0x40), key_diversification_data=KDD)
RICH = replace(
    STATE,
    traits=Traits(i=0x61, aid=bytes(16), bare_key_information=True, most_failures=3),
    key_sets=(
        *STATE.key_sets,
        KeySet(kvn=0x3F, keys=((1, SecretBytes(bytes(24))),)),
        KeySet(kvn=0x31, keys=STATE.key_sets[0].keys, counter=0xFFFFFF),
    ),
    objects=((0x53, b""), (0x7F21, bytes(300))),
    failures=2,
)


@pytest.mark.parametrize("state", [STATE, RICH, fresh(set_of(1, 32), key_diversification_data=KDD, kvn=0xFF)])
def test_what_was_kept_comes_back(state: CardState) -> None:
    assert decode_state(encode_state(state)) == state


def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(encode_state(RICH).reveal())
    return found


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "something else"),
        (("traits", "i"), 0x08),
        (("traits", "i"), "70"),
        (("traits", "i"), True),
        (("traits", "aid"), "A0"),
        (("traits", "most_failures"), 0),
        (("traits", "colour"), "blue"),
        (("key_diversification_data",), "00"),
        (("key_sets",), None),
        (("key_sets", 0, "kvn"), 0x100),
        (("key_sets", 0, "kvn"), 0x31),
        (("key_sets", 0, "counter"), -1),
        (("key_sets", 0, "keys", "1"), "40"),
        (("key_sets", 0, "keys", "128"), "00" * 16),
        (("objects", "1F"), "00"),
        (("objects", "53"), "0"),
        (("failures",), 1.5),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(path: tuple[str | int, ...], value: object) -> None:
    changed = document()
    place: Any = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(errors.MalformedRequest):
        decode_state(SecretBytes(json.dumps(changed).encode()))


@pytest.mark.parametrize("key", ["format", "traits", "key_sets", "objects", "failures"])
def test_a_file_that_lacks_something_is_refused(key: str) -> None:
    changed = document()
    del changed[key]
    with pytest.raises(errors.MalformedRequest):
        decode_state(SecretBytes(json.dumps(changed).encode()))


@given(
    st.one_of(
        st.binary(max_size=50),
        st.recursive(
            st.one_of(st.none(), st.integers(), st.text(max_size=4)),
            lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(max_size=4), inner)),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
@example(b"[" * 100_000)
def test_any_octets_are_refused_as_malformed(content: bytes) -> None:
    with pytest.raises(errors.MalformedRequest):
        decode_state(SecretBytes(content))


def test_a_refused_file_does_not_show_its_keys() -> None:
    changed = document()
    changed["key_sets"][0]["keys"]["1"] = "sesame"
    with pytest.raises(errors.MalformedRequest) as refused:
        decode_state(SecretBytes(json.dumps(changed).encode()))
    assert refused.value.__suppress_context__
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize("kvn", [0, 0x80, 0xFE, 0x100])
def test_a_new_element_has_a_set_that_can_be_asked_for(kvn: int) -> None:
    with pytest.raises(errors.MalformedRequest):
        fresh(set_of(0x40), key_diversification_data=KDD, kvn=kvn)


def test_a_new_element_has_ten_octets_of_key_diversification_data() -> None:
    with pytest.raises(errors.MalformedRequest):
        fresh(set_of(0x40), key_diversification_data=KDD[1:])


@pytest.mark.parametrize("i", [0x08, 0x40, 0x50, 0x80, 0x100, -1])
def test_what_no_element_says_of_its_secure_channel_is_refused(i: int) -> None:
    with pytest.raises(errors.MalformedRequest):
        Traits(i=i)
