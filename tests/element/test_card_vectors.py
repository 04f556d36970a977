"""The virtual element in the place of the elements that others recorded, or computed, sessions with."""

from dataclasses import replace

import pytest

from birthmark.element.apdu import OK, CommandAPDU, ResponseAPDU
from birthmark.element.card import VirtualElement
from birthmark.element.card_state import ISSUER_SECURITY_DOMAIN, Traits, fresh
from birthmark.element.scp03 import Parameter, read_challenge
from tests.element.vectors import Recorded, recorded_sessions

SESSIONS = recorded_sessions()
WITH_COUNTER = [recorded for recorded in SESSIONS if recorded.aid is not None and recorded.initialize_update]


def in_place_of(recorded: Recorded) -> VirtualElement:
    """An element that answers INITIALIZE UPDATE as the recorded one did.

    Where the recorded challenge does not follow from a counter the element says it is random, and its source
    of random octets gives that one.
    """
    challenge = recorded.challenge
    counted = recorded.aid is not None and challenge.sequence_counter is not None
    i = challenge.i if counted else challenge.i & ~Parameter.PSEUDO_RANDOM
    state = fresh(
        recorded.keys,
        key_diversification_data=challenge.key_diversification_data,
        kvn=challenge.kvn or 0x30,
        traits=Traits(i=i, aid=recorded.aid or ISSUER_SECURITY_DOMAIN),
    )
    if counted:
        (key_set,) = state.key_sets
        before = int.from_bytes(challenge.sequence_counter or b"", "big") - 1
        state = replace(state, key_sets=(replace(key_set, counter=before),))
    return VirtualElement(state, entropy=lambda _size: challenge.card_challenge)


def begun(recorded: Recorded, element: VirtualElement) -> ResponseAPDU:
    command = (
        recorded.initialize_update
        or CommandAPDU(0x80, 0x50, 0x00, 0x00, recorded.host_challenge, 0x100).encode()
    )
    return ResponseAPDU.decode(element.process(command))


@pytest.mark.parametrize("recorded", WITH_COUNTER, ids=lambda recorded: recorded.name)
def test_the_challenge_that_follows_from_a_counter_is_the_recorded_one(recorded: Recorded) -> None:
    response = begun(recorded, in_place_of(recorded))
    assert response.sw == OK
    assert read_challenge(response.data) == recorded.challenge


def test_there_are_recorded_challenges_with_counters() -> None:
    assert len(WITH_COUNTER) >= 9


@pytest.mark.parametrize("recorded", SESSIONS, ids=lambda recorded: recorded.name)
def test_a_recorded_host_is_let_in_and_its_commands_are_authentic(recorded: Recorded) -> None:
    element = in_place_of(recorded)
    challenge = read_challenge(begun(recorded, element).data)
    assert challenge.card_challenge == recorded.challenge.card_challenge
    if recorded.initialize_update is not None:
        assert challenge.card_cryptogram == recorded.challenge.card_cryptogram
    assert element.process(recorded.external_authenticate) == b"\x90\x00"
    assert recorded.exchanges
    for exchange in recorded.exchanges:
        response = ResponseAPDU.decode(element.process(exchange.wrapped))
        # What it makes of the command is its own matter; that it comes from the host it has verified.
        assert response.sw != 0x6982


def test_the_same_answer_is_encrypted_in_the_same_way() -> None:
    compared = 0
    for recorded in SESSIONS:
        element = in_place_of(recorded)
        begun(recorded, element)
        element.process(recorded.external_authenticate)
        for exchange in recorded.exchanges:
            response = element.process(exchange.wrapped)
            if exchange.response is not None and exchange.plain.header == bytes.fromhex("80F28000"):
                # GET STATUS of the issuer domain, which is called the same.  The recorded element pads with a
                # block more than it has to, so what can be compared is the first block.
                assert exchange.overpadded
                assert response[:16] == exchange.response.data[:16]
                compared += 1
    assert compared == 3


@pytest.mark.parametrize("recorded", WITH_COUNTER, ids=lambda recorded: recorded.name)
def test_a_recorded_session_does_not_open_twice(recorded: Recorded) -> None:
    element = in_place_of(recorded)
    begun(recorded, element)
    element.process(recorded.external_authenticate)
    again = read_challenge(begun(recorded, element).data)
    assert again.card_challenge != recorded.challenge.card_challenge
    assert element.process(recorded.external_authenticate) == b"\x63\x00"
