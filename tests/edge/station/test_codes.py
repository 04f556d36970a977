"""One-time codes as people write and type them (SPEC C2)."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.edge.station.codes import JoinCode, pin_of
from birthmark.secret import SecretBytes

ROOT = b"a root's certificate"


def code(secret: bytes = bytes(range(16))) -> JoinCode:
    return JoinCode(secret=SecretBytes(secret), pin=pin_of(ROOT))


@given(st.binary(min_size=16, max_size=16))
def test_what_is_spelled_is_read_again_however_it_is_typed(secret: bytes) -> None:
    text = code(secret).spell()
    assert len(text.split("-")) == 14
    assert not set(text) & set("ILOU")
    typed = text.lower().replace("-", " ").replace("0", "o").replace("1", "l") + "\n"
    for spelled in (text, typed, text.replace("-", "").replace("1", "I")):
        read = JoinCode.parse(spelled)
        assert (read.secret.reveal(), read.pin) == (secret, pin_of(ROOT))


@given(st.integers(0, 55), st.sampled_from("0123456789ABCDEFGHJKMNPQRSTVWXYZ"))
def test_one_wrong_letter_is_told(place: int, letter: str) -> None:
    letters = code().spell().replace("-", "")
    if letters[place] == letter:
        return
    with pytest.raises(errors.MalformedRequest, match="mistyped"):
        JoinCode.parse(letters[:place] + letter + letters[place + 1 :])


@given(st.text())
def test_anything_else_is_no_code(text: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        JoinCode.parse(text)


def test_the_pin_is_the_beginning_of_the_fingerprint_that_openssl_prints() -> None:
    assert pin_of(ROOT) == hashlib.sha256(ROOT).digest()[:16]
    code().require_root(ROOT)
    with pytest.raises(errors.IntegrityFailure, match="another fingerprint"):
        code().require_root(ROOT + b".")


def test_no_representation_shows_the_secret() -> None:
    made = code(b"sixteen octets!!")
    assert "sixteen" not in repr(made) + str(made)
