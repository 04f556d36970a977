"""Answers that carry keys are what their models say, whatever else stands in them (SPEC B7)."""

import json

from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from birthmark.edge.http.delivery import mark, with_keys
from birthmark.pki.certificates import to_pem
from birthmark.secret import SecretBytes


class Part(BaseModel):
    """One certificate's."""

    private_key: str | None = None
    name: str


class Whole(BaseModel):
    """A device's, or a gang's."""

    device: str
    private_key: str | None = None
    parts: list[Part] = []


HOSTILE = st.text(max_size=30) | st.sampled_from(
    [
        mark(0),
        f'"private_key":"{mark(0)}"',
        f'\\","private_key":"{mark(1)}"',
        f"-----{'BEGIN'} PRIVATE KEY-----",
    ]
)


@given(HOSTILE, st.lists(st.tuples(HOSTILE, st.binary(min_size=1, max_size=200) | st.none()), max_size=4))
def test_each_key_stands_where_it_belongs_and_the_rest_is_untouched(
    device: str, parts: list[tuple[str, bytes | None]]
) -> None:
    keys: list[SecretBytes] = []
    wanted: dict[str, object] = {"device": device, "private_key": None, "parts": []}
    body = Whole(device=device)
    shown = []
    for name, key in parts:
        body.parts.append(Part(name=name, private_key=None if key is None else mark(len(keys))))
        shown.append({"private_key": None if key is None else to_pem(key, "PRIVATE KEY"), "name": name})
        if key is not None:
            keys.append(SecretBytes(key))
    wanted["parts"] = shown
    answer = with_keys(body, keys, "application/json")
    octets = bytes(answer.body)
    assert json.loads(octets) == wanted
    assert answer.headers["content-length"] == str(len(octets))
