"""Bytes that must not be seen are not (SPEC B7)."""

import copy
import ctypes
import json
import logging
import pickle
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark.secret import SecretBytes, Vanishing, wipe

PLANTED = b"planted-pin-4711"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Something that carries a secret, as settings do."""

    pin: SecretBytes


def test_the_value_is_behind_one_word() -> None:
    assert SecretBytes(PLANTED).reveal() == PLANTED
    assert len(SecretBytes(PLANTED)) == len(PLANTED)


def test_no_way_of_writing_it_shows_it(caplog: pytest.LogCaptureFixture) -> None:
    secret = SecretBytes(PLANTED)
    logging.getLogger("test").warning("%s %r %s", secret, secret, [secret])
    shown = [
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret!r:>60}",
        f"{secret:>60}",
        "{0}".format(secret),  # noqa: UP030, UP032 - the way of writing is the point
        "%s" % secret,  # noqa: UP031  # the way of writing is the point
        repr([secret]),
        repr({"pin": secret}),
        repr(Settings(pin=secret)),
        json.dumps({"pin": secret}, default=str),
        caplog.text,
    ]
    assert not [text for text in shown if "4711" in text or PLANTED.hex() in text]
    assert all("16 bytes" in text for text in shown)


def test_a_traceback_with_locals_does_not_show_it() -> None:
    def fail(pin: SecretBytes) -> None:
        raise RuntimeError("the token said no")

    with pytest.raises(RuntimeError) as failure:
        fail(SecretBytes(PLANTED))
    told = traceback.TracebackException.from_exception(failure.value, capture_locals=True)
    text = "".join(told.format())
    assert "16 bytes" in text
    assert "4711" not in text.replace("PLANTED", "")


def test_it_does_not_leave_the_process() -> None:
    secret = SecretBytes(PLANTED)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="does not leave the process"):
            pickle.dumps(secret, protocol)
    for duplicate in (copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="does not leave the process"):
            duplicate(secret)
    with pytest.raises(TypeError):
        json.dumps(secret)


def test_it_is_no_key_of_a_mapping_and_has_no_room_for_more() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        hash(SecretBytes(PLANTED))
    assert not hasattr(SecretBytes(PLANTED), "__dict__")


def test_it_is_not_bytes_by_accident() -> None:
    secret = SecretBytes(PLANTED)
    careless: tuple[Callable[[Any], object], ...] = (bytes, memoryview, b"".join)
    for use in careless:
        with pytest.raises(TypeError):
            use(secret)
    assert secret != PLANTED


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_secrets_are_equal_when_their_bytes_are(one: bytes, other: bytes) -> None:
    assert (SecretBytes(one) == SecretBytes(other)) is (one == other)
    assert SecretBytes(one) == SecretBytes(bytes(bytearray(one)))


def test_what_is_destroyed_is_overwritten_and_gone() -> None:
    """SPEC B7: a view that somebody still has shows zeros."""
    with SecretBytes(PLANTED) as secret:
        view = secret.view()
        assert view.readonly
        assert bytes(view) == PLANTED
    assert bytes(view) == bytes(len(PLANTED))
    secret.destroy()
    for use in (secret.reveal, secret.view, secret.__len__):
        with pytest.raises(RuntimeError, match="destroyed"):
            use()
    assert repr(secret) == "SecretBytes(<destroyed>)"


def test_a_view_keeps_the_value_as_long_as_somebody_has_it() -> None:
    assert SecretBytes(PLANTED).view() == PLANTED


def test_octets_are_overwritten_when_nobody_refers_to_them_any_more() -> None:
    vanishing = Vanishing(PLANTED)
    address = (ctypes.c_char * len(PLANTED)).from_buffer(vanishing)
    vanishing.__del__()  # what dropping the last reference does
    assert address.raw == bytes(len(PLANTED))


def test_what_a_library_returned_is_taken_and_overwritten() -> None:
    returned = PLANTED[:8] + PLANTED[8:]  # an object of its own
    secret = SecretBytes.taking(returned)
    assert secret.reveal() == PLANTED
    assert returned == bytes(len(PLANTED))


@pytest.mark.parametrize("size", [0, 1])
def test_octets_that_the_interpreter_shares_are_left_alone(size: int) -> None:
    shared = b"x"[:size]
    wipe(shared)
    assert bytes([120]) == b"x"
    assert len(shared) == size


@given(st.binary(min_size=2, max_size=2000))
def test_wiping_leaves_nothing(octets: bytes) -> None:
    for value in (bytearray(octets), bytes(bytearray(octets))):
        wipe(value)
        assert bytes(value) == bytes(len(octets))
