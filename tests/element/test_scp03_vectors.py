"""SCP03 as others speak it: their sessions and values, octet for octet, from both sides (SPEC D4)."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers import algorithms
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFCMAC, CounterLocation
from cryptography.hazmat.primitives.kdf.kbkdf import Mode as KBKDFMode
from hypothesis import given
from hypothesis import strategies as st

from birthmark.element.apdu import CommandAPDU, ResponseAPDU
from birthmark.element.keyset import aes_cmac
from birthmark.element.scp03 import (
    Mode,
    SecureChannel,
    SecurityLevel,
    Session,
    derive,
    establish,
    initialize_update,
    initialize_update_response,
    pseudo_random_challenge,
    read_challenge,
)
from birthmark.secret import SecretBytes
from tests.element.vectors import Recorded, document, key_set, made_up, recorded_sessions, secret

SESSIONS = {recorded.name: recorded for recorded in recorded_sessions()}
RECORDED = {name: one for name, one in SESSIONS.items() if one.initialize_update is not None}
DERIVED = document("derived")


def test_there_is_a_session_of_every_source_mode_and_key_size() -> None:
    assert len(SESSIONS) == 19
    assert {name.split()[0] for name in SESSIONS} == {"pysim", "openscp", "kaoh", "scll"}
    shapes = {(one.challenge.mode, one.keys.size) for one in SESSIONS.values()}
    assert shapes >= {(Mode.S8, 16), (Mode.S8, 24), (Mode.S8, 32), (Mode.S16, 16), (Mode.S16, 32)}


@pytest.fixture(params=SESSIONS)
def recorded(request: pytest.FixtureRequest) -> Recorded:
    return SESSIONS[request.param]


@pytest.mark.parametrize("name", RECORDED)
def test_initialize_update_and_its_answer_are_theirs(name: str) -> None:
    recorded = RECORDED[name]
    assert recorded.initialize_update is not None
    kvn = recorded.initialize_update[2]
    assert initialize_update(kvn, recorded.host_challenge).encode() == recorded.initialize_update
    assert kvn in (0, recorded.challenge.kvn)
    data = initialize_update_response(recorded.challenge)
    assert read_challenge(data) == recorded.challenge


@pytest.mark.parametrize("name", RECORDED)
def test_their_card_has_shown_its_key(name: str) -> None:
    """Where the card's challenge is derived, too: ``aid`` is there."""
    recorded = RECORDED[name]
    session = recorded.establish()
    session.verify_card(recorded.challenge)
    assert (session.card_challenge is not None) == (recorded.aid is not None)


def test_our_host_says_what_theirs_did(recorded: Recorded) -> None:
    level = SecurityLevel(recorded.external_authenticate[2])
    command, channel = recorded.establish().external_authenticate(level)
    assert command.encode() == recorded.external_authenticate
    for exchange in recorded.exchanges:
        wrapped, channel = channel.wrap(exchange.plain)
        assert wrapped.encode() == exchange.wrapped
        if exchange.response is not None:
            assert channel.unwrap(exchange.response) == exchange.answer


def test_our_element_answers_as_theirs_did(recorded: Recorded) -> None:
    channel = recorded.establish().accept_host(CommandAPDU.decode(recorded.external_authenticate))
    for exchange in recorded.exchanges:
        plain, channel = channel.accept(CommandAPDU.decode(exchange.wrapped))
        assert plain == exchange.plain
        if exchange.answer is None or exchange.response is None:
            continue
        if exchange.overpadded:
            shortest = channel.protect(exchange.answer)
            assert len(exchange.response.data) == len(shortest.data) + 16
        else:
            assert channel.protect(exchange.answer) == exchange.response


@pytest.mark.parametrize("case", DERIVED["session_keys"], ids=lambda case: case["name"])
def test_session_keys_and_cryptograms_are_theirs(case: dict[str, str]) -> None:
    value = {key: bytes.fromhex(text) for key, text in case.items() if key != "name"}
    session = establish(
        key_set(value["enc"], value["mac"]),
        Mode.S8,
        value["host_challenge"],
        made_up(value["card_challenge"]),
        None,
    )
    found = {
        "s_enc": session.s_enc.reveal(),
        "s_mac": session.s_mac.reveal(),
        "s_rmac": session.s_rmac.reveal(),
        "card_cryptogram": session.card_cryptogram,
        "host_cryptogram": session.host_cryptogram,
    }
    for name in found.keys() & value.keys():
        assert found[name] == value[name], name


@pytest.mark.parametrize("case", DERIVED["pseudo_random_challenges"])
def test_pseudo_random_challenges_are_theirs(case: dict[str, str]) -> None:
    keys, counter, aid = (bytes.fromhex(case[key]) for key in ("enc", "sequence_counter", "aid"))
    for mode in Mode:
        challenge = pseudo_random_challenge(key_set(keys), mode, counter, aid)
        assert challenge.hex().upper() == case[mode.name.lower()]


def channel_of(level: SecurityLevel, counter: int, **keys: SecretBytes) -> SecureChannel:
    """Return a channel in the middle of a session of which only some keys are known."""
    unknown = SecretBytes(bytes(16))
    session = Session(
        mode=Mode.S8,
        s_enc=keys.get("s_enc", unknown),
        s_mac=keys.get("s_mac", unknown),
        s_rmac=keys.get("s_rmac", unknown),
        card_cryptogram=bytes(8),
        host_cryptogram=bytes(8),
    )
    return SecureChannel(session=session, level=level, counter=counter)


def test_the_pieces_that_yubico_tests_are_theirs() -> None:
    case = DERIVED["yubico_net"]["host_cryptogram"]
    context = bytes.fromhex(case["host_challenge"] + case["card_challenge"])
    assert derive(secret(case["s_mac"]), 0x01, context, 64).hex().upper() == case["expected"]

    case = DERIVED["yubico_net"]["command_encryption"]
    channel = channel_of(SecurityLevel.C_MAC_C_DECRYPTION, case["counter"] - 1, s_enc=secret(case["s_enc"]))
    wrapped, _ = channel.wrap(CommandAPDU(0, 0, 0, 0, bytes.fromhex(case["data"])))
    assert wrapped.data[:-8].hex().upper() == case["expected"]

    case = DERIVED["yubico_net"]["response_mac"]
    channel = channel_of(SecurityLevel.C_MAC_R_MAC, 1, s_rmac=secret(case["s_rmac"]))
    channel = replace(channel, mac_chaining_value=bytes.fromhex(case["mac_chaining_value"]))
    clear = ResponseAPDU(int(case["sw"], 16), bytes.fromhex(case["data"]))
    assert channel.protect(clear).data.hex().upper() == case["data"] + case["expected"]
    assert channel.unwrap(channel.protect(clear)) == clear


def test_a_response_that_yubico_decrypts_is_theirs() -> None:
    case = DERIVED["yubico_net"]["response_decryption"]
    channel = channel_of(SecurityLevel.FULL, case["counter"], s_enc=secret(case["s_enc"]))
    response = channel.protect(ResponseAPDU(0x9000, bytes.fromhex(case["expected"])))
    assert response.data[:-8].hex().upper() == case["data"]
    assert channel.unwrap(response).data.hex().upper() == case["expected"]


def test_forty_derivations_each_of_the_two_before_end_where_theirs_do() -> None:
    chain = DERIVED["kdf_chain"]
    key = context = bytes.fromhex(chain["origin_key"])
    found: dict[str, bytes] = {}
    for constant in range(1, 41):
        octets = 16 if constant % 5 in (0, 4) else 32
        derived = derive(SecretBytes(key), constant, context, octets * 8)
        found[str(constant)] = derived
        key, context = (key, derived) if constant == 1 else (context, derived)
    for constant, known in chain["known"].items():
        assert found[constant].hex().upper() == known


@given(
    key=st.sampled_from([16, 24, 32]).flatmap(lambda size: st.binary(min_size=size, max_size=size)),
    constant=st.integers(0, 255),
    context=st.binary(max_size=64),
    octets=st.integers(1, 64),
)
def test_derivation_is_the_one_of_sp_800_108(key: bytes, constant: int, context: bytes, octets: int) -> None:
    fixed = bytes(11) + bytes((constant, 0)) + (octets * 8).to_bytes(2, "big") + context
    oracle = KBKDFCMAC(
        algorithms.AES,
        KBKDFMode.CounterMode,
        octets,
        rlen=1,
        llen=None,
        location=CounterLocation.MiddleFixed,
        label=None,
        context=None,
        fixed=fixed,
        break_location=15,
    )
    assert derive(SecretBytes(key), constant, context, octets * 8) == oracle.derive(key)


@given(st.binary(max_size=80))
def test_a_derivation_of_one_block_is_one_cmac(context: bytes) -> None:
    key = SecretBytes(bytes(range(16)))
    label = bytes.fromhex("0000000000000000000000 04 00 0080 01")
    assert derive(key, 0x04, context, 128) == aes_cmac(key, label + context)
