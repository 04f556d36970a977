"""Commands, responses and batches (ISO/IEC 7816-3 and -4)."""

from dataclasses import dataclass, field, replace
from hashlib import sha256

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.element.apdu import (
    OK,
    Batch,
    CommandAPDU,
    Guarded,
    ResponseAPDU,
    chained,
    relay,
)

OCTET = st.integers(0, 255)
COMMANDS = st.builds(
    CommandAPDU,
    OCTET,
    OCTET,
    OCTET,
    OCTET,
    st.one_of(st.binary(max_size=300), st.binary(min_size=65_500, max_size=65_535)),
    st.one_of(st.none(), st.integers(1, 0x10000)),
    st.booleans(),
)

# The seven cases of ISO/IEC 7816-3 section 12.1.3, by hand.
CASES = {
    "1": ("00A40400", CommandAPDU(0, 0xA4, 4, 0)),
    "2S": ("80CA006610", CommandAPDU(0x80, 0xCA, 0, 0x66, le=0x10)),
    "2S, all": ("80CA006600", CommandAPDU(0x80, 0xCA, 0, 0x66, le=0x100)),
    "3S": ("00A4040002A000", CommandAPDU(0, 0xA4, 4, 0, b"\xa0\0")),
    "4S": ("00A4040002A00000", CommandAPDU(0, 0xA4, 4, 0, b"\xa0\0", 0x100)),
    "2E": ("80CA0066000101", CommandAPDU(0x80, 0xCA, 0, 0x66, le=0x101, extended=True)),
    "2E, all": ("80CA0066000000", CommandAPDU(0x80, 0xCA, 0, 0x66, le=0x10000, extended=True)),
    "3E": ("00A40400000002A000", CommandAPDU(0, 0xA4, 4, 0, b"\xa0\0", extended=True)),
    "4E": ("00A40400000002A0000000", CommandAPDU(0, 0xA4, 4, 0, b"\xa0\0", 0x10000, extended=True)),
    "3E, long": ("00DA0000000100" + "AB" * 256, CommandAPDU(0, 0xDA, 0, 0, b"\xab" * 256, extended=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_every_case_of_the_standard_is_written_and_read(case: str) -> None:
    octets, command = CASES[case]
    assert command.encode().hex().upper() == octets
    assert CommandAPDU.decode(bytes.fromhex(octets)) == command
    assert (
        command.header + command.lc + command.data
        == bytes.fromhex(octets)[: len(octets) // 2][: 4 + len(command.lc) + len(command.data)]
    )


@given(COMMANDS)
def test_a_command_that_was_written_is_read(command: CommandAPDU) -> None:
    read = CommandAPDU.decode(command.encode())
    assert replace(read, extended=command.extended) == command
    assert read.is_extended == command.is_extended or (not command.data and command.le is None)


@given(st.binary(max_size=300))
@example(bytes(4))
@example(bytes(6))
@example(bytes(8))
@example(bytes.fromhex("00000000 000001"))
@example(bytes.fromhex("00000000 000001 AA"))
@example(bytes.fromhex("00000000 000001 AA 00"))
@example(bytes.fromhex("00000000 01 AA 0000"))
def test_any_octets_are_a_command_that_is_written_alike_or_malformed(octets: bytes) -> None:
    try:
        command = CommandAPDU.decode(octets)
    except errors.MalformedRequest:
        return
    assert command.encode() == octets


@pytest.mark.parametrize("octets", ["", "000000", "00000000 00AA", "00000000 02AA", "00000000 01AA0000"])
def test_lengths_that_do_not_fit_are_malformed(octets: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        CommandAPDU.decode(bytes.fromhex(octets))


@pytest.mark.parametrize(
    ("cla", "le", "data"), [(-1, None, b""), (256, None, b""), (0, 0, b""), (0, 0x10001, b"")]
)
def test_a_command_that_cannot_be_written_is_none(cla: int, le: int | None, data: bytes) -> None:
    with pytest.raises(errors.MalformedRequest):
        CommandAPDU(cla, 0, 0, 0, data, le)
    with pytest.raises(errors.MalformedRequest):
        CommandAPDU(0, 0, 0, 0, bytes(0x10000))


@given(st.binary(max_size=300))
@example(bytes(0x10003))
def test_any_octets_are_a_response_that_is_written_alike_or_malformed(octets: bytes) -> None:
    try:
        response = ResponseAPDU.decode(octets)
    except errors.MalformedRequest:
        assert not 2 <= len(octets) <= 0x10002
        return
    assert response.encode() == octets


@given(COMMANDS)
def test_a_chain_has_short_commands_that_hold_the_same(command: CommandAPDU) -> None:
    pieces = chained(command)
    assert b"".join(piece.data for piece in pieces) == command.data
    assert not any(piece.is_extended for piece in pieces)
    assert all(piece.cla == command.cla | 0x10 and piece.le is None for piece in pieces[:-1])
    assert pieces[-1].cla == command.cla
    assert pieces[-1].le == (command.le if command.le is None else min(command.le, 0x100))
    assert len(pieces) == max(1, -(-len(command.data) // 255))


# --- batches --------------------------------------------------------------------------------------


@dataclass(slots=True)
class Script:
    """A channel that answers as it was told, and then is gone."""

    answers: list[bytes]
    sent: list[bytes] = field(default_factory=list)

    def transmit(self, command: bytes) -> bytes:
        self.sent.append(command)
        if not self.answers:
            raise errors.Unavailable("the element is gone")
        return self.answers.pop(0)

    def reset(self) -> None:
        raise errors.Unavailable("the element is gone")


def select(p2: int) -> bytes:
    return CommandAPDU(0, 0xA4, 4, p2).encode()


BATCH = tuple(Guarded(command=select(number)) for number in range(3))


def test_a_batch_is_carried_to_its_end() -> None:
    script = Script([b"\x01\x90\0", b"\x02\x90\0", b"\x90\0"])
    assert relay(script, BATCH) == [b"\x01\x90\0", b"\x02\x90\0", b"\x90\0"]
    assert script.sent == [select(0), select(1), select(2)]


def test_a_batch_stops_where_another_status_word_comes_back() -> None:
    script = Script([b"\x90\0", b"\x69\x82", b"\x90\0"])
    assert relay(script, BATCH) == [b"\x90\0", b"\x69\x82"]
    assert len(script.sent) == 2


def test_a_guard_may_ask_for_a_refusal() -> None:
    batch = (Guarded(command=select(0), status_words=(0x6A88, 0x6A82)), *BATCH)
    assert len(relay(Script([b"\x6a\x88", *[b"\x90\0"] * 3]), batch)) == 4
    assert len(relay(Script([b"\x90\0"] * 4), batch)) == 1


def test_a_guard_may_ask_for_one_response_by_its_hash() -> None:
    guarded = replace(BATCH[0], response_sha256=sha256(b"\x05\x90\0").hexdigest())
    assert len(relay(Script([b"\x05\x90\0", b"\x90\0"]), (guarded, BATCH[1]))) == 2
    assert len(relay(Script([b"\x06\x90\0", b"\x90\0"]), (guarded, BATCH[1]))) == 1
    assert not guarded.lets_through(b"\x05\x69\x82")


def test_what_was_answered_before_the_element_was_lost_is_kept() -> None:
    assert relay(Script([b"\x90\0"]), BATCH) == [b"\x90\0"]
    assert relay(Script([]), BATCH) == []


@pytest.mark.parametrize("answer", [b"", b"\x90"])
def test_an_answer_without_a_status_word_is_a_lost_element(answer: bytes) -> None:
    assert relay(Script([answer]), BATCH) == []
    assert relay(Script([b"\x61\x00", answer]), BATCH) == []


def test_the_rest_of_a_long_answer_is_fetched() -> None:
    script = Script([b"ab\x61\x02", b"cd\x61\x00", b"ef\x90\0"])
    assert relay(script, BATCH[:1]) == [b"abcdef\x90\0"]
    assert script.sent[1:] == [bytes.fromhex("00C0000002"), bytes.fromhex("00C0000000")]


@pytest.mark.parametrize(("cla", "asked"), [(0x01, 0x01), (0x80, 0x00), (0x84, 0x00), (0x03, 0x03)])
def test_the_rest_is_asked_for_without_secure_messaging(cla: int, asked: int) -> None:
    script = Script([b"\x61\x01", b"x\x90\0"])
    relay(script, [Guarded(command=CommandAPDU(cla, 0xCA, 0, 0, le=0x100).encode())])
    assert script.sent[1][0] == asked


def test_an_answer_that_does_not_end_is_a_lost_element() -> None:
    script = Script([b"\x61\x00"] * 400)
    assert relay(script, BATCH) == []
    assert len(script.sent) < 400


def test_a_wrong_le_is_corrected_once() -> None:
    command = CommandAPDU(0x80, 0xCA, 0, 0x66, le=0x100).encode()
    script = Script([b"\x6c\x05", b"12345\x90\0"])
    assert relay(script, [Guarded(command=command)]) == [b"12345\x90\0"]
    assert script.sent[1] == bytes.fromhex("80CA006605")
    whole = Script([b"\x6c\x00", b"\x6c\x01"])
    assert relay(whole, [Guarded(command=command)]) == [b"\x6c\x01"]
    assert whole.sent[1] == command


def test_data_before_6c_are_an_answer_like_any() -> None:
    assert relay(Script([b"x\x6c\x05"]), BATCH) == [b"x\x6c\x05"]


def test_a_pin_or_a_key_does_not_show_in_a_command_or_a_response() -> None:
    assert "secret" not in repr(CommandAPDU(0x00, 0x20, 0x00, 0x81, b"secret"))
    assert "secret" not in repr(ResponseAPDU(OK, b"secret"))


def test_a_command_does_not_show_in_a_batch() -> None:
    batch: Batch = (Guarded(command=b"\x80\xd8secret"),)
    assert "secret" not in repr(batch)
