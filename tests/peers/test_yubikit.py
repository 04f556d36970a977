"""Somebody else's host, over a real reader, manages the virtual element; what it says has happened has.

It speaks AES-128, S8 and level 33 alone, loads keys in the bare form, and reads lists of keys without their
template: the element is given that dialect.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from birthmark.edge.station.elements.virtual import on_vpcd
from birthmark.element import tlv
from birthmark.element.card import VirtualElement
from birthmark.element.card_faults import ElementChannel
from birthmark.element.card_keys import Dishonesty
from birthmark.element.card_state import Traits
from birthmark.element.diversification import KeyRole
from birthmark.element.keyset import SoftwareKeys
from tests.element.hosts import FINAL, INITIAL, element_of, set_of
from tests.support.checkers.running import ask, peer_command
from tests.support.pcsc import Daemon

OLD, NEW = set_of(0x40), set_of(0x70)
YUBIKEY = Traits(bare_key_information=True)


def keys_of(keys: SoftwareKeys) -> list[str]:
    return [keys.key(role).reveal().hex() for role in KeyRole]


def authenticate(keys: SoftwareKeys, kvn: int) -> dict[str, Any]:
    return {"do": "authenticate", "kvn": kvn, "keys": keys_of(keys)}


def put(keys: SoftwareKeys, kvn: int, replace: int = 0) -> dict[str, Any]:
    return {"do": "put", "kvn": kvn, "keys": keys_of(keys), "replace": replace}


class Yubikit:
    """What it says of an element in a reader."""

    def __init__(self, reader: str) -> None:
        self._reader = reader

    def __call__(self, *steps: dict[str, Any], extended: bool = False) -> Sequence[dict[str, Any]]:
        question = {"reader": self._reader, "extended": extended, "steps": steps}
        done = ask(peer_command("yubikey"), stdin=json.dumps(question).encode())
        assert done.returncode == 0, done.stderr[-2000:]
        answers: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        return answers


@contextmanager
def inserted(readers: Daemon, element: VirtualElement) -> Iterator[Yubikit]:
    reader = readers.readers[0]
    with on_vpcd(ElementChannel(element), "127.0.0.1", reader.port):
        yield Yubikit(reader.name)


@pytest.mark.parametrize("extended", [False, True], ids=["chained", "extended"])
def test_a_strange_host_rotates_keys_and_stores_data(readers: Daemon, *, extended: bool) -> None:
    element = element_of(YUBIKEY)
    certificate = tlv.encode(0x7F21, bytes(n % 251 for n in range(1400)))
    with inserted(readers, element) as yubikit:
        first = yubikit(
            {"do": "keys"},
            {"do": "recognition"},
            authenticate(OLD, INITIAL),
            put(NEW, FINAL),
            {"do": "store", "data": certificate.hex()},
            {"do": "get", "tag": 0x7F21},
            {"do": "get", "tag": 0x53},
            extended=extended,
        )
        second = yubikit(
            authenticate(NEW, FINAL),
            {"do": "delete", "kvn": INITIAL},
            {"do": "keys"},
            {"do": "delete", "kvn": FINAL},
            put(OLD, FINAL, replace=FINAL),
            extended=extended,
        )
        third = yubikit(authenticate(OLD, INITIAL), authenticate(NEW, FINAL), authenticate(OLD, FINAL))
    assert first[0] == {"value": [[INITIAL, 1], [INITIAL, 2], [INITIAL, 3]]}
    assert first[1]["value"].endswith("640b06092a864886fc6b040370")
    assert first[2:5] == [{"value": None}] * 3
    assert first[5] == {"value": certificate.hex()}
    assert first[6] == {"refused": "ApduError", "sw": 0x6A88}
    assert second == [
        {"value": None},
        {"value": None},
        {"value": [[FINAL, 1], [FINAL, 2], [FINAL, 3]]},
        {"refused": "ApduError", "sw": 0x6985},
        {"value": None},
    ]
    # ValueError is what it makes of 6A88, and of a card cryptogram that is not that of the keys.
    assert third == [
        {"refused": "ValueError", "sw": None},
        {"refused": "ValueError", "sw": None},
        {"value": None},
    ]
    (last,) = element.state.key_sets
    assert (last.kvn, last.static_keys) == (FINAL, OLD)
    assert element.state.objects == ((0x7F21, certificate[5:]),)
    assert element.state.failures == 0


def test_a_default_set_is_found_and_goes_when_another_comes(readers: Daemon) -> None:
    element = element_of(YUBIKEY, kvn=0xFF)
    with inserted(readers, element) as yubikit:
        said = yubikit({"do": "keys"}, authenticate(OLD, 0), put(NEW, FINAL), {"do": "keys"})
    assert said == [
        {"value": [[0xFF, 1], [0xFF, 2], [0xFF, 3]]},
        {"value": None},
        {"value": None},
        {"value": [[FINAL, 1], [FINAL, 2], [FINAL, 3]]},
    ]


def test_a_strange_host_sees_wrong_check_values_and_does_not_see_an_echo(readers: Daemon) -> None:
    """Why our own gate asks for more than check values."""
    for lie, seen in (
        ("wrong-check-values", {"refused": "BadResponseError", "sw": None}),
        ("echo", {"value": None}),
    ):
        element = element_of(YUBIKEY, dishonesty=Dishonesty.parse(lie))
        with inserted(readers, element) as yubikit:
            opened, loaded = yubikit(authenticate(OLD, INITIAL), put(NEW, FINAL))
        assert opened == {"value": None}
        assert loaded == seen
        assert (element.state.key_set(FINAL) is None) == (lie == "echo")
