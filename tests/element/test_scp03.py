"""What SCP03 refuses, and that both sides of it agree (SPEC D4)."""

from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.element.apdu import CommandAPDU, ResponseAPDU, chained
from birthmark.element.scp03 import (
    Challenge,
    Mode,
    Parameter,
    SecureChannel,
    SecurityLevel,
    Session,
    establish,
    initialize_update_response,
    is_protected,
    pseudo_random_challenge,
    read_challenge,
)
from tests.element.vectors import key_set, made_up

AID = bytes.fromhex("A000000151000000")
LEVELS = list(SecurityLevel)
WITH_R_MAC = [level for level in LEVELS if level & 0x10]
WITH_C_MAC = [level for level in LEVELS if level]
ENCRYPTED = [level for level in LEVELS if level & 0x02]
KEY = {size: bytes(range(size)) for size in (16, 24, 32)}
OTHER = {size: bytes(range(1, size + 1)) for size in (16, 24, 32)}


def session_of(mode: Mode = Mode.S8, size: int = 16) -> Session:
    keys = key_set(KEY[size], OTHER[size])
    return establish(keys, mode, bytes(range(mode)), made_up(bytes(range(mode, 2 * mode))), None)


def channel_of(level: SecurityLevel, mode: Mode = Mode.S8) -> SecureChannel:
    return session_of(mode).external_authenticate(level)[1]


MODES = st.sampled_from(list(Mode))
COMMANDS = st.builds(
    CommandAPDU,
    st.sampled_from([0x00, 0x80]),
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 255),
    st.one_of(st.binary(max_size=64), st.binary(min_size=220, max_size=600)),
    st.sampled_from([None, 1, 0x100, 0x10000]),
    st.booleans(),
)
ANSWERS = st.builds(ResponseAPDU, st.sampled_from([0x9000, 0x6200, 0x6310, 0x63CF]), st.binary(max_size=300))


# --- challenges -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("counter", [None, b"\0\0\x07"])
def test_a_challenge_is_read_as_it_was_written(mode: Mode, counter: bytes | None) -> None:
    challenge = Challenge(
        key_diversification_data=bytes(range(10)),
        kvn=0x31,
        i=0x60 | (Parameter.PSEUDO_RANDOM if counter else 0),
        card_challenge=b"c" * mode,
        card_cryptogram=b"g" * mode,
        sequence_counter=counter,
    )
    octets = initialize_update_response(challenge)
    assert len(octets) in (29, 32, 45, 48)
    assert read_challenge(octets) == challenge
    assert read_challenge(octets).mode is mode


@given(
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from([29, 32, 45, 48]).flatmap(
            lambda size: st.binary(min_size=size - 12, max_size=size - 12).map(
                lambda rest: bytes(11) + b"\x03" + rest
            )
        ),
    )
)
def test_any_octets_are_a_challenge_that_is_written_alike_or_malformed(octets: bytes) -> None:
    try:
        challenge = read_challenge(octets)
    except errors.MalformedRequest:
        return
    assert initialize_update_response(challenge) == octets


@pytest.mark.parametrize(
    ("octets", "complaint"),
    [
        (bytes(28), "answered with 28 octets"),
        (bytes(11) + b"\x02\x60" + bytes(16), "protocol 02"),
        (bytes(11) + b"\x03\x70" + bytes(16), "i=70 and sends 0 counter octets"),
        (bytes(11) + b"\x03\x60" + bytes(19), "i=60 and sends 3 counter octets"),
    ],
)
def test_a_challenge_that_is_none_is_malformed(octets: bytes, complaint: str) -> None:
    with pytest.raises(errors.MalformedRequest, match=complaint):
        read_challenge(octets)


@pytest.mark.parametrize(("host", "card"), [(8, 16), (16, 8), (7, 8)])
def test_challenges_of_another_mode_are_refused(host: int, card: int) -> None:
    with pytest.raises(errors.MalformedRequest, match="mode S8 have 8 octets"):
        establish(key_set(KEY[16]), Mode.S8, bytes(host), made_up(bytes(card)), None)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("size", [16, 24, 32])
def test_a_card_with_the_keys_is_believed_and_no_other(mode: Mode, size: int) -> None:
    keys = key_set(KEY[size], OTHER[size])
    card = replace(
        made_up(pseudo_random_challenge(keys, mode, b"\0\0\x01", AID)),
        i=0x70,
        sequence_counter=b"\0\0\x01",
    )
    host_challenge = bytes(mode)
    session = establish(keys, mode, host_challenge, card, AID)
    honest = replace(card, card_cryptogram=session.card_cryptogram)
    session.verify_card(honest)
    with pytest.raises(errors.ProofFailed, match="not that of key set 30"):
        session.verify_card(card)
    with pytest.raises(errors.ProofFailed, match="not that of key set 30"):
        session.verify_card(replace(honest, card_cryptogram=honest.card_cryptogram[:-1]))
    # K-MAC alone makes the cryptogram right; a challenge from another counter, or under another AID, is not.
    for other in (replace(card, sequence_counter=b"\0\0\x02"), replace(card, card_challenge=b"x" * mode)):
        shifted = establish(keys, mode, host_challenge, other, AID)
        with pytest.raises(errors.ProofFailed, match="does not follow from the sequence counter"):
            shifted.verify_card(replace(other, card_cryptogram=shifted.card_cryptogram))
    elsewhere = establish(keys, mode, host_challenge, card, AID + b"\0")
    with pytest.raises(errors.ProofFailed, match="does not follow"):
        elsewhere.verify_card(replace(card, card_cryptogram=elsewhere.card_cryptogram))
    # The element's own side does not look.
    assert establish(keys, mode, host_challenge, card, None).card_challenge is None


def test_other_static_keys_make_another_session() -> None:
    challenge = made_up(bytes(8))
    session = establish(key_set(KEY[16], OTHER[16]), Mode.S8, bytes(8), challenge, None)
    swapped = establish(key_set(OTHER[16], KEY[16]), Mode.S8, bytes(8), challenge, None)
    assert session.card_cryptogram != swapped.card_cryptogram
    assert session.host_cryptogram != session.card_cryptogram
    assert session.s_enc != session.s_mac != session.s_rmac


# --- EXTERNAL AUTHENTICATE ------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("mode", list(Mode))
def test_the_host_is_believed_at_every_level(level: SecurityLevel, mode: Mode) -> None:
    command, ours = session_of(mode).external_authenticate(level)
    theirs = session_of(mode).accept_host(command)
    assert theirs == ours
    assert theirs.level is level


def test_a_host_that_gives_everything_extended_lengths_is_believed_by_their_mac() -> None:
    """As yubikit does over USB; Lc is MACed as it is on the wire."""
    session = session_of()
    bare = CommandAPDU(0x84, 0x82, 0x33, 0, session.host_cryptogram, extended=True)
    mac = SecureChannel(session=session, level=SecurityLevel.C_MAC, counter=0).command_mac(bare)
    command = replace(bare, data=bare.data + mac[:8])
    assert command.encode()[4:7] == b"\0\0\x10"
    assert session.accept_host(command).mac_chaining_value == mac
    with pytest.raises(errors.ProofFailed):
        session.accept_host(replace(command, extended=False))


@given(mode=MODES, at=st.integers(0, 31), change=st.integers(1, 255))
def test_any_changed_octet_of_external_authenticate_is_refused(mode: Mode, at: int, change: int) -> None:
    command, _ = session_of(mode).external_authenticate(SecurityLevel.FULL)
    data = bytearray(command.data)
    data[at % len(data)] ^= change
    with pytest.raises(errors.ProofFailed):
        session_of(mode).accept_host(replace(command, data=bytes(data)))
    with pytest.raises(errors.ProofFailed):
        session_of(mode).accept_host(replace(command, data=command.data[: at % len(data)]))


def test_a_lower_level_than_the_host_asked_for_is_refused() -> None:
    command, _ = session_of().external_authenticate(SecurityLevel.FULL)
    for level in (*LEVELS[:-1], 0x31):
        with pytest.raises((errors.ProofFailed, errors.MalformedRequest)):
            session_of().accept_host(replace(command, p1=level))


@pytest.mark.parametrize("change", [{"cla": 0x80}, {"ins": 0x50}, {"p2": 1}, {"p1": 0x31}, {"p1": 0x02}])
def test_another_command_is_no_external_authenticate(change: dict[str, int]) -> None:
    command, _ = session_of().external_authenticate(SecurityLevel.FULL)
    with pytest.raises(errors.MalformedRequest, match="no EXTERNAL AUTHENTICATE"):
        session_of().accept_host(replace(command, **change))  # type: ignore[arg-type]  # header octets, all int


# --- commands and responses -----------------------------------------------------------------------


def over_the_wire(command: CommandAPDU) -> CommandAPDU:
    return CommandAPDU.decode(command.encode())


@given(
    level=st.sampled_from(LEVELS),
    mode=MODES,
    exchanges=st.lists(st.tuples(COMMANDS, ANSWERS), max_size=4),
    counts=st.booleans(),
)
def test_both_sides_agree_over_many_commands(
    level: SecurityLevel, mode: Mode, exchanges: list[tuple[CommandAPDU, ResponseAPDU]], *, counts: bool
) -> None:
    host = element = replace(channel_of(level, mode), counts_empty_commands=counts)
    for command, answer in exchanges:
        wrapped, host = host.wrap(command)
        plain, element = element.accept(over_the_wire(wrapped))
        assert (plain.header, plain.data) == (command.header, command.data)
        assert element == host
        assert host.unwrap(element.protect(answer)) == answer


@given(
    level=st.sampled_from(WITH_C_MAC),
    mode=MODES,
    command=COMMANDS,
    at=st.integers(0),
    change=st.integers(1, 255),
)
def test_any_changed_octet_of_a_command_is_refused(
    level: SecurityLevel, mode: Mode, command: CommandAPDU, at: int, change: int
) -> None:
    """Le is not MACed, and neither is what is no command any more sent on."""
    wrapped, _ = channel_of(level, mode).wrap(replace(command, le=None))
    octets = bytearray(wrapped.encode())
    octets[at % len(octets)] ^= change
    with pytest.raises((errors.ProofFailed, errors.MalformedRequest)):
        channel_of(level, mode).accept(CommandAPDU.decode(bytes(octets)))


@given(
    level=st.sampled_from(WITH_R_MAC),
    mode=MODES,
    answer=ANSWERS,
    at=st.integers(0),
    change=st.integers(1, 255),
)
def test_any_changed_octet_of_a_response_is_refused_or_says_nothing(
    level: SecurityLevel, mode: Mode, answer: ResponseAPDU, at: int, change: int
) -> None:
    _, channel = channel_of(level, mode).wrap(CommandAPDU(0x80, 0xF2, 0, 0, b"\x4f\0", 0x100))
    octets = bytearray(channel.protect(answer).encode())
    octets[at % len(octets)] ^= change
    changed = ResponseAPDU.decode(bytes(octets))
    if is_protected(changed.sw):
        with pytest.raises(errors.ProofFailed):
            channel.unwrap(changed)
    else:  # an error's status word is anybody's: nothing comes with it
        assert channel.unwrap(changed) == ResponseAPDU(changed.sw)


@pytest.mark.parametrize("level", WITH_R_MAC)
@pytest.mark.parametrize("sw", [0x9000, 0x6200, 0x6310])
def test_a_success_without_its_r_mac_is_refused(level: SecurityLevel, sw: int) -> None:
    _, channel = channel_of(level).wrap(CommandAPDU(0x80, 0xF2, 0, 0, b"\x4f\0"))
    for data in (b"", b"short", bytes(8), b"something that is longer"):
        with pytest.raises(errors.ProofFailed, match="not authentic"):
            channel.unwrap(ResponseAPDU(sw, data))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("sw", [0x6A88, 0x6982, 0x6700, 0x6F00, 0x6100, 0x9001])
def test_an_error_has_no_protection_and_no_data(level: SecurityLevel, sw: int) -> None:
    _, channel = channel_of(level).wrap(CommandAPDU(0x80, 0xF2, 0, 0, b"\x4f\0"))
    assert channel.protect(ResponseAPDU(sw, b"leak")) == ResponseAPDU(sw)
    assert channel.unwrap(ResponseAPDU(sw, b"forged")) == ResponseAPDU(sw)


@pytest.mark.parametrize("level", LEVELS)
def test_an_answer_without_data_has_the_r_mac_alone(level: SecurityLevel) -> None:
    _, channel = channel_of(level).wrap(CommandAPDU(0x80, 0xE4, 0, 0, b"\xd2\x01\x30"))
    protected = channel.protect(ResponseAPDU(0x9000))
    assert len(protected.data) == (8 if level & 0x10 else 0)
    assert channel.unwrap(protected) == ResponseAPDU(0x9000)


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_said_in_clear_is_what_the_level_leaves_in_clear(level: SecurityLevel) -> None:
    command = CommandAPDU(0x80, 0xE2, 0x90, 0, b"in the clear", 0x100)
    wrapped, channel = channel_of(level).wrap(command)
    protected = channel.protect(ResponseAPDU(0x9000, b"in the clear"))
    assert (b"in the clear" in wrapped.data) == (not level & 0x02)
    assert (b"in the clear" in protected.data) == (not level & 0x20)
    assert (wrapped.cla == 0x84) == bool(level)


@pytest.mark.parametrize("level", WITH_C_MAC)
def test_a_command_that_was_sent_before_is_refused(level: SecurityLevel) -> None:
    wrapped, after = channel_of(level).wrap(CommandAPDU(0x80, 0xF2, 0, 0, b"\x4f\0"))
    with pytest.raises(errors.ProofFailed, match="C-MAC is wrong"):
        after.accept(wrapped)


@pytest.mark.parametrize("level", WITH_R_MAC)
def test_an_answer_to_another_command_is_refused(level: SecurityLevel) -> None:
    command = CommandAPDU(0x80, 0xF2, 0, 0, b"\x4f\0")
    _, first = channel_of(level).wrap(command)
    _, second = first.wrap(command)
    with pytest.raises(errors.ProofFailed):
        second.unwrap(first.protect(ResponseAPDU(0x9000, b"yes")))


@pytest.mark.parametrize("level", WITH_C_MAC)
def test_a_command_without_a_c_mac_is_refused(level: SecurityLevel) -> None:
    for command in (CommandAPDU(0x80, 0xF2, 0, 0, bytes(20)), CommandAPDU(0x84, 0xF2, 0, 0, bytes(7))):
        with pytest.raises(errors.ProofFailed, match="no C-MAC"):
            channel_of(level).accept(command)


@pytest.mark.parametrize("cla", [0x01, 0x40, 0x81, 0x83, 0x84, 0x90, 0x94, 0xC0])
def test_a_command_of_another_class_is_not_protected(cla: int) -> None:
    with pytest.raises(errors.MalformedRequest, match=f"class {cla:02X}"):
        channel_of(SecurityLevel.FULL).wrap(CommandAPDU(cla, 0xF2, 0, 0))


def test_a_channel_without_protection_leaves_everything_as_it_is() -> None:
    channel, command = channel_of(SecurityLevel.NONE), CommandAPDU(0x80, 0xF2, 0, 0, b"\x4f\0", 5)
    assert channel.wrap(command) == (command, channel)
    assert channel.accept(command) == (command, channel)
    assert channel.unwrap(ResponseAPDU(0x9000, b"data")) == ResponseAPDU(0x9000, b"data")


# --- encryption -----------------------------------------------------------------------------------


def authentic(channel: SecureChannel, level: SecurityLevel, encrypted: bytes) -> CommandAPDU:
    """Return a command with a right C-MAC over something that nobody encrypted."""
    bare = CommandAPDU(0x84, 0xF2, 0, 0, encrypted)
    mac = replace(channel, counter=channel.counter + 1).command_mac(bare)
    return replace(bare, data=encrypted + mac[: channel.session.mode])


@pytest.mark.parametrize("level", ENCRYPTED)
def test_a_field_that_is_no_whole_number_of_blocks_is_refused(level: SecurityLevel) -> None:
    channel = channel_of(level)
    with pytest.raises(errors.ProofFailed, match="no whole number of blocks"):
        channel.accept(authentic(channel, level, bytes(15)))


@pytest.mark.parametrize("padded", [bytes(16), b"x" * 16, b"x" * 15 + b"\x01", b"\x80" + bytes(14) + b"\x01"])
def test_padding_that_is_none_is_refused(padded: bytes) -> None:
    """What is under the encryption has a right MAC, and is still not padded."""
    session = session_of()
    channel = channel_of(SecurityLevel.C_MAC_C_DECRYPTION)
    number = (1).to_bytes(16, "big")
    with pytest.raises(errors.ProofFailed, match="not padded"):
        channel.accept(authentic(channel, channel.level, cbc(session, number, padded)))


@pytest.mark.parametrize("padded", [b"\x80" + bytes(15), b"\x80" + bytes(31)])
def test_a_field_that_is_all_padding_is_empty(padded: bytes) -> None:
    """Hosts are seen that encrypt an empty field, and elements that pad with a block too many."""
    channel = channel_of(SecurityLevel.C_MAC_C_DECRYPTION)
    encrypted = cbc(session_of(), (1).to_bytes(16, "big"), padded)
    plain, _ = channel.accept(authentic(channel, channel.level, encrypted))
    assert plain.data == b""


def cbc(session: Session, number: bytes, padded: bytes) -> bytes:
    """Encrypt as section 6.2.6 has it: the number of the command makes the initial vector."""
    key = algorithms.AES(session.s_enc.reveal())
    icv = Cipher(key, modes.ECB()).encryptor().update(number)  # noqa: S305  # one block
    return Cipher(key, modes.CBC(icv)).encryptor().update(padded)


def test_every_command_counts_unless_the_element_is_known_not_to_count_empty_ones() -> None:
    empty, full = CommandAPDU(0x80, 0xCA, 0, 0x66, le=0x100), CommandAPDU(0x80, 0xF2, 0, 0, b"\x4f\0")
    strict = channel_of(SecurityLevel.FULL)
    odd = replace(strict, counts_empty_commands=False)
    for command, counted, counted_by_the_odd in ((empty, 1, 0), (full, 2, 1), (empty, 3, 1)):
        _, strict = strict.wrap(command)
        _, odd = odd.wrap(command)
        assert (strict.counter, odd.counter) == (counted, counted_by_the_odd)
    wrapped, _ = odd.wrap(full)
    with pytest.raises(errors.ProofFailed):
        strict.accept(wrapped)


# --- lengths --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "most"), [(Mode.S8, 239), (Mode.S16, 223)])
def test_a_short_command_has_room_for_so_much(mode: Mode, most: int) -> None:
    channel = channel_of(SecurityLevel.FULL, mode)
    for octets, extended in ((most, False), (most + 1, True)):
        wrapped, _ = channel.wrap(CommandAPDU(0x80, 0xE2, 0, 0, bytes(octets)))
        assert wrapped.is_extended is extended


@given(level=st.sampled_from(WITH_C_MAC), mode=MODES, data=st.binary(min_size=230, max_size=900))
def test_a_chain_of_short_commands_has_the_mac_of_the_long_one(
    level: SecurityLevel, mode: Mode, data: bytes
) -> None:
    """As yubikit does it: Lc is MACed in three octets, and the command sent in pieces."""
    command = CommandAPDU(0x80, 0xD8, 0, 0x81, data, 0x100)
    wrapped, host = channel_of(level, mode).wrap(command)
    pieces = [over_the_wire(piece) for piece in chained(wrapped)]
    assert {piece.cla & 0x10 for piece in pieces[:-1]} <= {0x10}
    whole = replace(pieces[-1], data=b"".join(piece.data for piece in pieces))
    plain, element = channel_of(level, mode).accept(whole)
    assert (plain.data, element) == (data, host)


@pytest.mark.parametrize("level", WITH_C_MAC)
def test_an_extended_command_is_maced_as_it_is_sent_however_short(level: SecurityLevel) -> None:
    command = CommandAPDU(0x80, 0xF2, 0x80, 2, b"\x4f\0", 0x10000, extended=True)
    wrapped, host = channel_of(level).wrap(command)
    assert wrapped.encode()[4:5] == b"\0"
    assert channel_of(level).accept(over_the_wire(wrapped))[1] == host
    short, _ = channel_of(level).wrap(replace(command, le=0x100, extended=False))
    assert short.data != wrapped.data
    with pytest.raises(errors.ProofFailed):
        channel_of(level).accept(replace(over_the_wire(wrapped), extended=False, le=None))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("le", "sent"), [(None, None), (5, 0x100), (0x100, 0x100), (0x10000, 0x10000)])
def test_le_leaves_room_for_protection(level: SecurityLevel, le: int | None, sent: int | None) -> None:
    wrapped, _ = channel_of(level).wrap(CommandAPDU(0x80, 0xCA, 0, 0x66, le=le))
    assert wrapped.le == (sent if level & 0x10 else le)


# --- secrets --------------------------------------------------------------------------------------


def test_a_session_and_its_channel_show_no_key_and_no_cryptogram() -> None:
    session = session_of()
    shown = repr(session) + repr(channel_of(SecurityLevel.FULL))
    for octets in (session.s_enc.reveal(), session.s_mac.reveal(), session.s_rmac.reveal()):
        assert repr(octets)[2:-1] not in shown
        assert octets.hex() not in shown
    assert repr(session.host_cryptogram) not in shown
    assert repr(session.card_cryptogram) not in shown
