"""The virtual element: transport, sessions, and what it tells."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.element import tlv
from birthmark.element.apdu import OK, CommandAPDU, ResponseAPDU, chained
from birthmark.element.card import VirtualElement
from birthmark.element.card_state import CardState, Traits, decode_state, encode_state
from birthmark.element.keyset import aes_cmac
from birthmark.element.scp03 import Mode, SecurityLevel, establish, initialize_update, read_challenge
from birthmark.secret import SecretBytes
from tests.element.hosts import (
    FINAL,
    GET_STATUS,
    INITIAL,
    KDD,
    Host,
    delete_set,
    element_of,
    get_data,
    set_of,
    store,
)

LEVELS: dict[int, set[int]] = {
    0x00: {0x00, 0x01, 0x03},
    0x10: {0x00, 0x01, 0x03},
    0x20: {0x00, 0x01, 0x03, 0x11, 0x13},
    0x30: {0x00, 0x01, 0x03, 0x11, 0x13},
    0x60: set(SecurityLevel),
    0x70: set(SecurityLevel),
}
STATUS = bytes.fromhex("E3134F08A0000001510000009F70010FC5039EFE80")


def opened(
    traits: Traits | None = None, *, size: int = 16, level: SecurityLevel = SecurityLevel.FULL
) -> tuple[Host, VirtualElement]:
    """A session with the initial set."""
    element = element_of(traits, size=size)
    host = Host.of(element)
    assert host.begin(set_of(0x40, size), level=level).sw == OK
    return host, element


# --- sessions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("i", [i | mode for i, mode in product(LEVELS, (0, 1))], ids="{:02X}".format)
@pytest.mark.parametrize("size", [16, 24, 32])
def test_sessions_of_all_modes_sizes_and_levels(i: int, size: int) -> None:
    for level in SecurityLevel:
        element = element_of(Traits(i=i), size=size)
        host = Host.of(element)
        response = host.begin(set_of(0x40, size), level=level)
        if level not in LEVELS[i & ~1]:
            assert response.sw == 0x6A86
            continue
        assert response.sw == OK
        for _ in range(2):
            assert host.send(GET_STATUS) == ResponseAPDU(OK, STATUS)
        assert host.send(get_data(0xCF)).data == b"\xcf\x0a" + KDD


def test_a_failed_host_is_counted_and_ten_lock_the_element_for_good() -> None:
    element = element_of()
    host = Host.of(element)
    for failures in range(1, 11):
        with pytest.raises(errors.ProofFailed):
            host.begin(set_of(0x10))
        assert host.plain(CommandAPDU(0x84, 0x82, 0x33, 0x00, bytes(16))).sw == 0x6300
        assert element.state.failures == failures
    assert host.begin(set_of(0x40)).sw == 0x6983
    element.reset()
    assert host.begin(set_of(0x40)).sw == 0x6983


def test_a_good_host_is_forgiven_the_failures_before() -> None:
    element = element_of()
    host = Host.of(element)
    host.plain(initialize_update(INITIAL, bytes(8)))
    assert host.plain(CommandAPDU(0x84, 0x82, 0x33, 0x00, bytes(16))).sw == 0x6300
    assert host.begin(set_of(0x40)).sw == OK
    assert element.state.failures == 0


@pytest.mark.parametrize("octet", range(16))
def test_each_octet_of_external_authenticate_counts(octet: int) -> None:
    element = element_of()
    host = Host.of(element)
    keys = set_of(0x40)
    challenge = read_challenge(host.plain(initialize_update(INITIAL, bytes(8))).data)
    command, _ = establish(keys, Mode.S8, bytes(8), challenge, None).external_authenticate(SecurityLevel.FULL)
    data = bytearray(command.data)
    data[octet] ^= 0x01
    assert host.plain(replace(command, data=bytes(data))).sw == 0x6300
    assert host.plain(command).sw == 0x6985, "the session is over"


@pytest.mark.parametrize("extended", [False, True])
def test_the_c_mac_of_external_authenticate_is_over_its_lengths_as_they_come(*, extended: bool) -> None:
    """yubikit gives all commands extended lengths, this one too, where the reader takes them."""
    element = element_of()
    host = Host.of(element)
    keys = set_of(0x40)
    challenge = read_challenge(host.plain(initialize_update(INITIAL, bytes(8))).data)
    session = establish(keys, Mode.S8, bytes(8), challenge, None)
    header = bytes.fromhex("84823300" + ("000010" if extended else "10"))
    mac = aes_cmac(session.s_mac, bytes(16) + header + session.host_cryptogram)[:8]
    assert element.process(header + session.host_cryptogram + mac) == b"\x90\x00"


@pytest.mark.parametrize(
    ("command", "sw"),
    [
        (CommandAPDU(0x84, 0x82, 0x33, 0x00, bytes(15)), 0x6700),
        (CommandAPDU(0x84, 0x82, 0x02, 0x00, bytes(16)), 0x6A86),
        (CommandAPDU(0x84, 0x82, 0x33, 0x01, bytes(16)), 0x6A86),
        (CommandAPDU(0x80, 0x82, 0x33, 0x00, bytes(16)), 0x6A86),
    ],
)
def test_an_external_authenticate_that_is_none_is_no_failure(command: CommandAPDU, sw: int) -> None:
    element = element_of()
    host = Host.of(element)
    host.plain(initialize_update(INITIAL, bytes(8)))
    assert host.plain(command).sw == sw
    assert element.state.failures == 0


@pytest.mark.parametrize(
    ("command", "sw"),
    [
        (initialize_update(0x31, bytes(8)), 0x6A88),
        (initialize_update(0xFF, bytes(8)), 0x6A88),
        (initialize_update(INITIAL, bytes(16)), 0x6700),
        (CommandAPDU(0x80, 0x50, INITIAL, 0x01, bytes(8), 0x100), 0x6A86),
        (CommandAPDU(0x00, 0x50, INITIAL, 0x00, bytes(8), 0x100), 0x6E00),
        (CommandAPDU(0x84, 0x82, 0x33, 0x00, bytes(16)), 0x6985),
    ],
)
def test_no_session_begins_without_what_it_takes(command: CommandAPDU, sw: int) -> None:
    assert Host.of(element_of()).plain(command).sw == sw


def test_a_default_set_is_asked_for_by_00_alone() -> None:
    host = Host.of(element_of(kvn=0xFF))
    assert host.plain(initialize_update(0xFF, bytes(8))).sw == 0x6A88
    response = host.plain(initialize_update(0x00, bytes(8)))
    assert read_challenge(response.data).kvn == 0xFF


def test_the_sequence_counter_never_stands_still() -> None:
    element = element_of()
    seen = []
    for _ in range(3):
        seen.append(read_challenge(Host.of(element).plain(initialize_update(INITIAL, bytes(8))).data))
        element.reset()
    assert [challenge.sequence_counter for challenge in seen] == [b"\0\0\1", b"\0\0\2", b"\0\0\3"]
    assert len({challenge.card_challenge for challenge in seen}) == 3


def test_some_elements_count_only_sessions_that_opened() -> None:
    element = element_of(Traits(counts_successes_only=True))
    host = Host.of(element)
    for _ in range(2):
        challenge = read_challenge(host.plain(initialize_update(INITIAL, bytes(8))).data)
        assert challenge.sequence_counter == b"\0\0\1"
    host.begin(set_of(0x40))
    challenge = read_challenge(host.plain(initialize_update(INITIAL, bytes(8))).data)
    assert challenge.sequence_counter == b"\0\0\2"


def test_a_counter_that_is_used_up_opens_nothing_more() -> None:
    element = element_of()
    (key_set,) = element.state.key_sets
    worn = VirtualElement(
        replace(element.state, key_sets=(replace(key_set, counter=0xFFFFFF),)), entropy=bytes
    )
    assert Host.of(worn).plain(initialize_update(INITIAL, bytes(8))).sw == 0x6985


def test_an_element_with_random_challenges_takes_them_from_its_source() -> None:
    element = VirtualElement(element_of(Traits(i=0x60)).state, entropy=lambda size: b"\xa5" * size)
    challenge = read_challenge(Host.of(element).plain(initialize_update(INITIAL, bytes(8))).data)
    assert challenge.card_challenge == b"\xa5" * 8
    assert challenge.sequence_counter is None


@pytest.mark.parametrize("level", [SecurityLevel.C_MAC, SecurityLevel.C_MAC_C_DECRYPTION, SecurityLevel.FULL])
def test_a_changed_command_ends_the_session(level: SecurityLevel) -> None:
    for octet in range(1, 4 + 1 + 2 + 8):
        host, element = opened(level=level)
        assert host.channel is not None
        wrapped, _ = host.channel.wrap(GET_STATUS)
        changed = bytearray(wrapped.encode())
        if octet != 4:  # Lc: then it is no command
            changed[octet] ^= 0x40
            assert element.process(bytes(changed)) == b"\x69\x82", octet
            assert element.process(wrapped.encode()) == b"\x69\x85", "the session is over"


def test_a_command_in_clear_ends_a_session_that_protects_commands() -> None:
    host, element = opened()
    assert host.plain(GET_STATUS).sw == 0x6982
    assert host.channel is not None
    assert element.process(host.channel.wrap(GET_STATUS)[0].encode()) == b"\x69\x85"


def test_a_command_is_not_accepted_twice() -> None:
    host, element = opened()
    assert host.channel is not None
    wrapped, host.channel = host.channel.wrap(GET_STATUS)
    assert host.channel.unwrap(host.plain(wrapped)).sw == OK
    assert element.process(wrapped.encode()) == b"\x69\x82"


def test_a_refused_command_leaves_the_session_open() -> None:
    host, _ = opened()
    assert host.send(get_data(0x7F21)).sw == 0x6A88
    assert host.send(GET_STATUS).data == STATUS


def test_a_reset_a_selection_and_a_new_challenge_end_the_session() -> None:
    for end in (
        None,
        CommandAPDU(0x00, 0xA4, 0x04, 0x00, Traits().aid, 0x100),
        initialize_update(INITIAL, bytes(8)),
        initialize_update(FINAL, bytes(8)),
    ):
        host, element = opened()
        if end is None:
            element.reset()
        else:
            host.plain(end)
        assert host.send(GET_STATUS).sw == 0x6985


def test_some_elements_do_not_count_commands_without_data() -> None:
    host, _ = opened(Traits(counts_empty_commands=False))
    assert host.channel is not None
    host.channel = replace(host.channel, counts_empty_commands=False)
    assert host.send(get_data(0xCF)).sw == OK
    assert host.send(GET_STATUS).data == STATUS
    host, _ = opened(Traits(counts_empty_commands=False))
    assert host.send(get_data(0x7F21)).sw == 0x6A88
    assert host.send(GET_STATUS).sw == 0x6982, "the host has counted, the element has not"


def test_commands_that_manage_want_a_session() -> None:
    for command in (
        GET_STATUS,
        delete_set(INITIAL),
        store(b"\x53\x00"),
        CommandAPDU(0x80, 0xD8, 0, 0x81, b"1"),
    ):
        assert Host.of(element_of()).plain(command).sw == 0x6982
    host, _ = opened(level=SecurityLevel.NONE)
    assert host.plain(GET_STATUS).data == STATUS
    assert host.plain(replace(GET_STATUS, cla=0x84)).sw == 0x6985, "nothing protects this session"


# --- transport ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("i", [0x70, 0x71])
@pytest.mark.parametrize("extended", [False, True])
def test_long_commands_and_responses_go_through_whole(i: int, *, extended: bool) -> None:
    """As yubikit has it: the C-MAC is over the whole command with Lc in three octets, the parts are short."""
    host, element = opened(Traits(i=i))
    value = bytes(n % 251 for n in range(1500))
    assert host.channel is not None
    wrapped, host.channel = host.channel.wrap(store(tlv.encode(0x7F21, value)))
    parts = (wrapped,) if extended else chained(wrapped)
    assert (len(parts) == 1) == extended
    for part in parts[:-1]:
        assert element.process(part.encode()) == b"\x90\x00"
    assert host.channel.unwrap(host.plain(parts[-1])).sw == OK
    read = replace(get_data(0x7F21), le=0x10000 if extended else 0x100)
    assert host.send(read) == ResponseAPDU(OK, tlv.encode(0x7F21, value))


def test_a_response_comes_in_as_many_parts_as_the_host_can_take() -> None:
    host, element = opened()
    host.send(store(tlv.encode(0x53, bytes(300))))
    element.reset()
    first = element.process(bytes.fromhex("80CA005300"))
    assert (len(first), first[-2:]) == (258, bytes.fromhex("6130"))
    second = element.process(bytes.fromhex("00C0000010"))
    assert (len(second), second[-2:]) == (18, bytes.fromhex("6120"))
    third = element.process(bytes.fromhex("00C0000020"))
    assert (len(third), third[-2:]) == (34, bytes.fromhex("9000"))
    assert first[:-2] + second[:-2] + third[:-2] == tlv.encode(0x53, bytes(300))
    assert element.process(bytes.fromhex("00C0000000")) == b"\x69\x85"


def test_what_was_not_fetched_is_gone_with_the_next_command() -> None:
    host, element = opened()
    host.send(store(tlv.encode(0x53, bytes(600))))
    element.reset()
    assert element.process(bytes.fromhex("80CA005300"))[-2:] == bytes.fromhex("6100")
    element.process(bytes.fromhex("80CA00CF00"))
    assert element.process(bytes.fromhex("00C0000000")) == b"\x69\x85"


def test_a_chain_that_breaks_off_is_forgotten() -> None:
    element = element_of()
    assert element.process(bytes.fromhex("90E2900003 532000")) == b"\x90\x00"
    select = CommandAPDU(0x00, 0xA4, 0x04, 0x00, Traits().aid, 0x100).encode()
    assert element.process(select)[-2:] == b"\x90\x00"
    assert element.process(bytes.fromhex("80E2900002 5300")) == b"\x69\x82"
    element.process(bytes.fromhex("90E2900003 532000"))
    element.reset()
    assert element.process(bytes.fromhex("80E2900002 5300")) == b"\x69\x82"


def test_a_chain_without_end_is_refused() -> None:
    element = element_of()
    part = CommandAPDU(0x90, 0xE2, 0x90, 0x00, bytes(0xFF00)).encode()
    assert element.process(part) == b"\x90\x00"
    assert element.process(part) == b"\x67\x00"


def test_an_element_without_extended_lengths_refuses_them() -> None:
    element = element_of(Traits(extended_length=False))
    assert element.process(CommandAPDU(0x80, 0xCA, 0, 0xCF, le=0x10000).encode()) == b"\x67\x00"


@pytest.mark.parametrize(
    ("command", "sw"),
    [
        ("", 0x6700),
        ("80CA00", 0x6700),
        ("80CA00CF05AA", 0x6700),
        ("81CA00CF00", 0x6881),
        ("C0CA00CF00", 0x6E00),
        ("FFCA000000", 0x6E00),
        ("80700000", 0x6D00),
        ("84CA00CF00", 0x6985),
        ("00A4000000", 0x6A86),
        ("80A4040000", 0x6A86),
        ("00A4040005A000000002", 0x6A82),
        ("80CA7F2100", 0x6A88),
    ],
)
def test_what_it_does_not_know_it_says(command: str, sw: int) -> None:
    assert element_of().process(bytes.fromhex(command)) == sw.to_bytes(2, "big")


@pytest.mark.parametrize("data", ["A000000151000000", "A0000001", ""])
def test_it_is_selected_by_its_name_or_the_beginning_of_it(data: str) -> None:
    response = Host.of(element_of()).plain(CommandAPDU(0x00, 0xA4, 0x04, 0x00, bytes.fromhex(data), 0x100))
    assert response == ResponseAPDU(OK, bytes.fromhex("6F108408A000000151000000A5049F6501FF"))


# --- what it tells ------------------------------------------------------------------------------------------


def test_it_lists_its_keys_in_both_dialects() -> None:
    inner = "C00401308810C00402308810C00403308810"
    assert Host.of(element_of()).plain(get_data(0xE0)).data == bytes.fromhex("E012" + inner)
    bare = element_of(Traits(bare_key_information=True))
    assert Host.of(bare).plain(get_data(0xE0)).data == bytes.fromhex(inner)


def test_it_says_what_secure_channel_it_has() -> None:
    data = Host.of(element_of(Traits(i=0x71))).plain(get_data(0x66)).data
    ((outer, (*_, channel)),) = (
        (found, found.children()) for found in tlv.decode(tlv.decode_one(data, 0x66))
    )
    assert outer.tag == 0x73
    assert channel == tlv.TLV(0x64, bytes.fromhex("06092A864886FC6B040371"))
    bare = Host.of(element_of(Traits(i=0x71, bare_key_information=True))).plain(get_data(0x66)).data
    assert tlv.encode(0x66, bare) == data


def test_it_says_its_counter_if_it_has_one() -> None:
    host = Host.of(element_of())
    host.plain(initialize_update(INITIAL, bytes(8)))
    assert host.plain(get_data(0xC1)).data == bytes.fromhex("C103000001")
    assert Host.of(element_of(Traits(i=0x60))).plain(get_data(0xC1)).sw == 0x6A88


@pytest.mark.parametrize(
    ("p1", "p2", "data", "answer"),
    [
        (0x80, 0x02, "4F00", STATUS.hex()),
        (0x80, 0x02, "4F04A0000001", STATUS.hex()),
        (0x80, 0x02, "4F005C039F70C5", "E3099F70010FC5039EFE80"),
        (0x80, 0x02, "4F005C014F", "E30A4F08A000000151000000"),
        (0x80, 0x00, "4F00", "08A0000001510000000F9E"),
        (0x80, 0x02, "4F03A00001", "6A88"),
        (0x40, 0x02, "4F00", "6A88"),
        (0x80, 0x01, "4F00", "6A86"),
        (0x08, 0x02, "4F00", "6A86"),
        (0x80, 0x02, "5C014F", "6A80"),
        (0x80, 0x02, "4F", "6A80"),
    ],
)
def test_it_says_its_status(p1: int, p2: int, data: str, answer: str) -> None:
    host, _ = opened()
    response = host.send(CommandAPDU(0x80, 0xF2, p1, p2, bytes.fromhex(data), 0x100))
    assert (response.data.hex().upper() or f"{response.sw:04X}") == answer.upper()


# --- data objects -------------------------------------------------------------------------------------------


def test_data_objects_are_stored_block_by_block_and_all_at_once() -> None:
    host, element = opened()
    data = tlv.encode(0x7F21, bytes(range(200)) * 3) + tlv.encode(0x53, b"label")
    blocks = [data[at : at + 200] for at in range(0, len(data), 200)]
    for number, block in enumerate(blocks[:-1]):
        assert host.send(store(block, p1=0x10, block=number)).sw == OK
        assert element.state.objects == ()
    assert host.send(store(blocks[-1], p1=0x90, block=len(blocks) - 1)).sw == OK
    assert element.state.objects == ((0x53, b"label"), (0x7F21, bytes(range(200)) * 3))
    assert host.send(get_data(0x53)).data == tlv.encode(0x53, b"label")


def test_data_groups_are_stored_under_their_identifiers() -> None:
    host, element = opened()
    long = bytes(300)
    assert host.send(store(bytes.fromhex("0070 02 AABB"), p1=0x88)).sw == OK
    assert host.send(store(bytes.fromhex("5F50 FF012C") + long, p1=0x88)).sw == OK
    assert element.state.objects == ((0x70, b"\xaa\xbb"), (0x5F50, long))


@pytest.mark.parametrize(
    ("p1", "block", "data", "sw"),
    [
        (0x90, 1, "5300", 0x6A86),
        (0xF0, 0, "5300", 0x6A86),
        (0x98, 0, "5300", 0x6A86),
        (0x90, 0, "53", 0x6A80),
        (0x90, 0, "", 0x6A80),
        (0x90, 0, "CF00", 0x6A80),
        (0x90, 0, "E000", 0x6A80),
        (0x88, 0, "0070", 0x6A80),
        (0x88, 0, "007002AA", 0x6A80),
        (0x88, 0, "0070FF01", 0x6A80),
        (0x88, 0, "007FAA", 0x6A80),
    ],
)
def test_what_cannot_be_stored_is_refused(p1: int, block: int, data: str, sw: int) -> None:
    host, element = opened()
    assert host.send(store(bytes.fromhex(data), p1=p1, block=block)).sw == sw
    assert element.state.objects == ()


def test_blocks_that_do_not_follow_one_another_are_forgotten() -> None:
    host, element = opened()
    assert host.send(store(b"\x53\x02", p1=0x10, block=0)).sw == OK
    assert host.send(store(b"AB", p1=0x90, block=2)).sw == 0x6A86
    assert host.send(store(b"AB", p1=0x90, block=1)).sw == 0x6A86
    host.send(store(b"\x53\x02", p1=0x10, block=0))
    host.send(GET_STATUS)
    assert host.send(store(b"AB", p1=0x90, block=1)).sw == 0x6A86
    host.send(store(b"\x53\x02", p1=0x10, block=0))
    assert host.begin(set_of(0x40)).sw == OK
    assert host.send(store(b"AB", p1=0x90, block=1)).sw == 0x6A86
    assert element.state.objects == ()


def test_there_are_256_blocks_and_32_kibibytes() -> None:
    host, _ = opened()
    for number in range(0xFF):
        assert host.send(store(b"\x53", p1=0x10, block=number)).sw == OK
    assert host.send(store(b"\x53", p1=0x10, block=0xFF)).sw == 0x6A86
    for number in range(0x8000 // 200):
        assert host.send(store(bytes(200), p1=0x10, block=number)).sw == OK
    assert host.send(store(bytes(200), p1=0x10, block=0x8000 // 200)).sw == 0x6A84
    assert host.send(store(tlv.encode(0x53, bytes(0x7FF0)))).sw == OK
    assert host.send(store(tlv.encode(0x54, bytes(20)))).sw == 0x6A84
    assert host.send(store(tlv.encode(0x54, bytes(0x8000)))).sw == 0x6A84


# --- power, and anything at all -----------------------------------------------------------------------------


def test_what_cannot_be_kept_has_not_happened() -> None:
    kept: list[CardState] = []
    full = False

    def keep(state: CardState) -> None:
        if full:
            raise errors.Unavailable("the disk is full")
        kept.append(state)

    element = element_of(keep=keep)
    host = Host.of(element)
    host.begin(set_of(0x40))
    host.send(store(b"\x53\x01A"))
    assert kept[-1] == element.state
    full = True
    assert host.channel is not None
    wrapped, _ = host.channel.wrap(store(b"\x53\x01B"))
    with pytest.raises(errors.Unavailable):
        element.process(wrapped.encode())
    assert element.state == kept[-1]


def test_keys_do_not_show_themselves() -> None:
    _, element = opened()
    shown = repr(element.state) + repr(vars(element))
    for role in (element.state.key_sets[0].key(kid) for kid in (1, 2, 3)):
        assert isinstance(role, SecretBytes)
        assert repr(role.reveal())[2:-1] not in shown
        assert role.reveal().hex() not in shown


@given(st.lists(st.binary(max_size=300), max_size=5))
@example([bytes.fromhex("905000000100"), bytes.fromhex("80500000080000000000000000")])
def test_any_octets_are_answered(commands: list[bytes]) -> None:
    element = element_of()
    for command in commands:
        assert len(element.process(command)) >= 2


HEADERS = st.builds(
    lambda cla, ins, p1, p2: bytes((cla, ins, p1, p2)),
    st.sampled_from([0x00, 0x04, 0x10, 0x80, 0x84, 0x90, 0x94]),
    st.sampled_from([0x50, 0x82, 0xA4, 0xC0, 0xCA, 0xD8, 0xE2, 0xE4, 0xF2, 0x00]),
    st.integers(0, 0xFF),
    st.integers(0, 0xFF),
)


@given(
    st.lists(st.tuples(HEADERS, st.binary(max_size=80), st.booleans()), max_size=6),
    st.sampled_from([0x70, 0x61]),
)
def test_any_commands_in_a_session_are_answered_and_leave_a_state_that_can_be_kept(
    commands: list[tuple[bytes, bytes, bool]], i: int
) -> None:
    element = element_of(Traits(i=i))
    host = Host.of(element)
    host.begin(set_of(0x40), level=SecurityLevel.C_MAC)
    for (cla, ins, p1, p2), data, protect in commands:
        command = CommandAPDU(cla & ~0x10 if protect else cla, ins, p1, p2, data, 0x100)
        if protect and host.channel is not None and cla in (0x00, 0x80):
            command, host.channel = host.channel.wrap(command)
        assert len(element.process(command.encode())) >= 2
    assert decode_state(encode_state(element.state)) == element.state
    element.reset()
    assert tlv.read_key_information(Host.of(element).plain(get_data(0xE0)).data) == element.state.entries()
