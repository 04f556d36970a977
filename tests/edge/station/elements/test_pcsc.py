"""Elements in readers: a real pcscd with virtual readers, and virtual elements in them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.edge.station.elements import opened, opened_channel
from birthmark.edge.station.elements.carded import CardedEnclave
from birthmark.edge.station.elements.pcsc import PCSCChannel, _chosen, _for_t0, readers
from birthmark.edge.station.elements.virtual import on_vpcd
from birthmark.element.apdu import CommandAPDU
from birthmark.element.card_faults import ElementChannel, Fault, FaultKind
from birthmark.element.scp03 import initialize_update
from tests.support.injecting import INITIAL_KVN, Bench, profile_of
from tests.support.pcsc import Daemon, Reader
from tests.support.programs import need_extra

SELECT = bytes.fromhex("00A4040008A00000015100000000")
BEGIN = initialize_update(INITIAL_KVN, bytes(8)).encode()
AUTHENTICATE = bytes.fromhex("8482330010") + bytes(16)
CONDITIONS = bytes.fromhex("6985")
LONG = 10.0
"""Seconds that a slow machine may need to see a card."""


@pytest.fixture
def reader(request: pytest.FixtureRequest) -> Reader:
    need_extra("smartcard", "pcsc")
    daemon: Daemon = request.getfixturevalue("readers")
    return daemon.readers[0]


@pytest.fixture
def bench() -> Bench:
    return Bench(profile_of(tags=(0x53,)))


@pytest.fixture
def card(bench: Bench) -> ElementChannel:
    return ElementChannel(bench.element)


@pytest.fixture
def inserted(card: ElementChannel, reader: Reader) -> Iterator[Reader]:
    with on_vpcd(card, "127.0.0.1", reader.port):
        yield reader


def test_an_injection_goes_through_a_reader(bench: Bench, inserted: Reader) -> None:
    with PCSCChannel(inserted.name, wait_seconds=LONG) as channel:
        bench.run(channel)
    assert bench.holds_only_the_final_set()


def test_the_reader_is_held_alone_until_the_channel_is_closed(inserted: Reader) -> None:
    with PCSCChannel(inserted.name, wait_seconds=LONG) as channel:
        with pytest.raises(errors.Unavailable, match="another program has the element"):
            PCSCChannel(inserted.name)
        assert channel.transmit(SELECT)[-2:] == b"\x90\x00"
    with pytest.raises(errors.Unavailable, match="not connected"):
        channel.transmit(SELECT)
    with PCSCChannel(inserted.name, wait_seconds=LONG) as channel:
        assert channel.transmit(SELECT)[-2:] == b"\x90\x00"


def test_a_reset_takes_what_was_begun_away(inserted: Reader) -> None:
    with PCSCChannel(inserted.name, wait_seconds=LONG) as channel:
        channel.transmit(SELECT)
        assert channel.transmit(BEGIN)[-2:] == b"\x90\x00"
        assert channel.transmit(AUTHENTICATE) != CONDITIONS, "it was judged"
        assert channel.transmit(BEGIN)[-2:] == b"\x90\x00"
        channel.reset()
        assert channel.transmit(AUTHENTICATE) == CONDITIONS, "nothing had begun"


def test_an_element_that_loses_its_contacts_is_found_again(card: ElementChannel, inserted: Reader) -> None:
    card.faults.append(Fault(kind=FaultKind.TEAR_AFTER, at=2))
    with PCSCChannel(inserted.name, wait_seconds=LONG) as channel:
        channel.transmit(SELECT)
        with pytest.raises(errors.Unavailable):
            channel.transmit(SELECT)
        channel.reset()
        assert channel.transmit(SELECT)[-2:] == b"\x90\x00"


def test_an_element_that_is_taken_out_is_told_and_can_be_put_back(
    card: ElementChannel, reader: Reader
) -> None:
    with on_vpcd(card, "127.0.0.1", reader.port):
        channel = PCSCChannel(reader.name, wait_seconds=LONG)
        channel.transmit(SELECT)
    with pytest.raises(errors.Unavailable):
        channel.transmit(SELECT)
    with on_vpcd(card, "127.0.0.1", reader.port), channel:
        channel.reset()
        assert channel.transmit(SELECT)[-2:] == b"\x90\x00"


def test_an_empty_reader_is_told(reader: Reader) -> None:
    """The daemon may need a moment to see that the last test took its element out."""
    with pytest.raises(errors.Unavailable, match=r"does not answer to power|there is no secure element"):
        PCSCChannel(reader.name, wait_seconds=0.01)


def test_readers_are_listed_and_chosen(reader: Reader, inserted: Reader, tmp_path: Path) -> None:
    names = readers()
    assert reader.name in names
    with opened_channel(f"pcsc:{names.index(reader.name)}?wait=10") as channel:
        assert isinstance(channel, PCSCChannel)
        assert channel.reader == reader.name
    with opened(f"pcsc:{reader.name}?wait=10&enclave={tmp_path / 'device'}") as device:
        assert isinstance(device, CardedEnclave)
        assert device.card().transmit(SELECT)[-2:] == b"\x90\x00"
    with pytest.raises(errors.NotFound, match="no reader is called 'Nobody'"):
        PCSCChannel("Nobody")


def test_a_long_answer_comes_whole(bench: Bench, inserted: Reader) -> None:
    """What pcscd and the reader do with 61xx is theirs; all of it arrives."""
    bench.contents = {0x53: bytes(n % 251 for n in range(2000))}
    with PCSCChannel(inserted.name, wait_seconds=LONG) as channel:
        bench.run(channel)
    assert bench.holds_the_objects()


# --- without a reader

NAMES = ["Acme Reader 00 00", "Acme Reader 00 01", "Other 00"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [("0", NAMES[0]), ("2", NAMES[2]), ("Other 00", NAMES[2]), ("other", NAMES[2]), ("00 01", NAMES[1])],
)
def test_a_reader_is_named_by_its_place_its_name_or_a_part_of_it(wanted: str, found: str) -> None:
    assert _chosen(wanted, NAMES) == found


@pytest.mark.parametrize("wanted", ["3", "x", "", "²"])
def test_a_reader_that_is_not_there_is_told_with_those_that_are(wanted: str) -> None:
    with pytest.raises(errors.NotFound, match="0: Acme Reader 00 00, 1: Acme Reader 00 01, 2: Other 00"):
        _chosen(wanted, NAMES)


def test_a_part_of_several_names_is_refused() -> None:
    with pytest.raises(errors.MalformedRequest, match="'Acme Reader 00 00' or 'Acme Reader 00 01'"):
        _chosen("acme", NAMES)


def test_no_reader_at_all_is_told() -> None:
    with pytest.raises(errors.NotFound, match="there is no reader here"):
        _chosen("0", [])


def test_without_pyscard_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smartcard.scard", None)
    with pytest.raises(errors.NotFound, match=r"install birthmark\[pcsc\]"):
        PCSCChannel("0")


def test_over_t0_a_command_goes_without_its_le_and_with_short_lengths() -> None:
    both = CommandAPDU(0x80, 0x50, 0, 0, bytes(8), 256)
    assert _for_t0(both.encode()) == both.encode()[:-1]
    for command in (CommandAPDU(0, 0xA4, 4, 0), CommandAPDU(0, 0xB0, 0, 0, le=16)):
        assert _for_t0(command.encode()) == command.encode()
    data = CommandAPDU(0, 0xD6, 0, 0, bytes(8))
    assert _for_t0(data.encode()) == data.encode()
    with pytest.raises(errors.MalformedRequest, match="T=0"):
        _for_t0(CommandAPDU(0, 0xD6, 0, 0, bytes(300)).encode())
