"""An ATECC as device element: what it refuses, and what it makes of bad wires and of chips of others.

That the simulated chip is like the real one is for ``tests/peers/test_atecc.py``; that the element keeps its
contract, through power cuts at every command, for ``tests/edge/station/test_conformance.py``.
"""

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.edge.station.elements.atecc import ATECCElement, element
from birthmark.edge.station.elements.atecc_commands import (
    CONFIG,
    DATA,
    Chip,
    crc16,
    decode_answer,
    encode_command,
)
from birthmark.pki.csr import vet
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes
from tests.support.atecc_chip import Memory, SimulatedBus
from tests.support.benches import ATECCBench


@pytest.fixture
def bench(tmp_path: Path) -> ATECCBench:
    return ATECCBench(tmp_path)


@pytest.fixture
def chip(bench: ATECCBench) -> Iterator[ATECCElement]:
    opened = bench.open()
    yield opened
    opened.close()


def locks(memory: Memory) -> tuple[bool, bool]:
    """Whether configuration and data zone are locked."""
    return memory.configuration_locked, memory.data_locked


def test_packets_are_those_of_the_data_sheet() -> None:
    # Info, and what a chip says when it is woken: both are printed in the makers' examples.
    assert encode_command(0x30, 0, 0) == bytes.fromhex("0730000000035d")
    assert decode_answer(bytes.fromhex("04113343")) == b"\x11"
    assert crc16(bytes.fromhex("0411")) == bytes.fromhex("3343")


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x04")
@example(bytes.fromhex("03a1b2"))
def test_any_octets_are_an_answer_or_malformed(octets: bytes) -> None:
    try:
        data = decode_answer(octets)
    except errors.MalformedRequest:
        return
    assert octets[1 : octets[0] - 2] == data


def test_the_first_request_configures_the_chip_and_locks_it_for_ever(
    bench: ATECCBench, chip: ATECCElement
) -> None:
    assert locks(bench.memory) == (False, False)
    request = chip.certification_request("VIN-1")
    vetted = vet(request, allowed=(KeyAlgorithm.EC_P256,))
    assert vetted.subject_common_name == "VIN-1"
    assert locks(bench.memory) == (True, True)
    host = Chip(SimulatedBus(bench.memory))
    with pytest.raises(errors.PolicyRefused, match="the chip refuses write: execution error"):
        host.write(CONFIG, 5, bytes(4))
    with pytest.raises(errors.PolicyRefused, match="the chip refuses read: execution error"):
        host.read(DATA, 0, 32)  # the slot of the private key
    with pytest.raises(errors.PolicyRefused, match="the chip refuses write: execution error"):
        host.write(DATA, 0, bytes(32))


def test_a_chip_that_is_locked_in_another_configuration_is_refused(
    bench: ATECCBench, chip: ATECCElement
) -> None:
    bench.memory.configuration[87] = 0
    with pytest.raises(errors.PolicyRefused, match="locked in another configuration"):
        chip.certification_request("VIN-1")
    assert not bench.memory.keys


def test_a_chip_whose_unused_slots_are_others_is_taken(bench: ATECCBench, chip: ATECCElement) -> None:
    chip.certification_request("VIN-1")
    bench.memory.configuration[20 + 2 * 3] ^= 0x0F
    assert chip.certification_request("VIN-1")


def test_the_chip_refuses_to_lock_what_was_garbled_on_the_way(bench: ATECCBench, chip: ATECCElement) -> None:
    host = Chip(SimulatedBus(bench.memory))
    expected = bytearray(host.configuration())
    expected[20] ^= 1
    with pytest.raises(errors.PolicyRefused, match="the chip refuses lock"):
        host.lock_configuration(bytes(expected))
    assert not bench.memory.configuration_locked


def test_nobody_gives_it_a_key(chip: ATECCElement) -> None:
    chip.certification_request("VIN-1")
    with pytest.raises(errors.PolicyRefused, match="takes no delivered key"):
        chip.install(certificate=b"\x30\x00", chain=(), private_key=SecretBytes(b"key"))


def test_a_certificate_fills_the_slots_and_not_one_octet_more(chip: ATECCElement) -> None:
    chip.certification_request("VIN-1")
    largest = b"\x30\x82" + (916 - 4).to_bytes(2, "big") + bytes(916 - 4)
    chip.install(certificate=largest, chain=(), private_key=None)
    assert chip.read_back() == largest
    with pytest.raises(errors.TooLarge, match="has 917 octets, the chip has room for 916"):
        chip.install(certificate=largest + b"\0", chain=(), private_key=None)
    assert chip.read_back() == largest


def test_released_the_chip_itself_refuses_every_change(bench: ATECCBench, chip: ATECCElement) -> None:
    chip.certification_request("VIN-1")
    chip.install(certificate=b"\x30\x02\x05\x00", chain=(), private_key=None)
    chip.released("the token")
    host = Chip(SimulatedBus(bench.memory))
    for slot in range(7, 16):
        with pytest.raises(errors.PolicyRefused, match="execution error"):
            host.write(DATA, slot << 3, bytes(32))
    with pytest.raises(errors.PolicyRefused, match="the chip refuses genkey"):
        host.generate_key(0)
    assert chip.read_back() == b"\x30\x02\x05\x00"
    assert (bench.beside / "release.tlog-proof").read_text() == "the token"
    with pytest.raises(errors.IllegalTransition, match="released with another token"):
        chip.released("another token")
    assert (bench.beside / "release.tlog-proof").read_text() == "the token"


def test_the_directory_stays_with_its_chip(bench: ATECCBench, chip: ATECCElement) -> None:
    chip.close()
    other = Memory()
    other.configuration[3] ^= 1
    with pytest.raises(
        errors.NotPermitted, match="belongs to atecc 0123a1b2c3d4e5f6ee, not to atecc 0123a1b3"
    ):
        ATECCElement(SimulatedBus(other), str(bench.beside))


def test_without_a_directory_it_says_what_to_do() -> None:
    with pytest.raises(errors.MalformedRequest, match="beside=DIR"):
        ATECCElement(SimulatedBus(Memory()), None)


@pytest.mark.parametrize("every", [4, 5, 7])
def test_garbled_wires_are_noticed_and_the_command_is_sent_again(every: int, bench: ATECCBench) -> None:
    transfers = count(1)
    bus = SimulatedBus(bench.memory, garble=lambda: next(transfers) % every == 0)
    chip = ATECCElement(bus, str(bench.beside))
    vet(chip.certification_request("VIN-1"), allowed=(KeyAlgorithm.EC_P256,))
    certificate = b"\x30\x82\x02\x00" + bytes(range(256)) * 2
    chip.install(certificate=certificate, chain=(), private_key=None)
    assert chip.read_back() == certificate
    chip.close()


def test_wires_that_carry_nothing_right_are_given_up(bench: ATECCBench) -> None:
    with pytest.raises(errors.Unavailable, match="nothing answers when it is woken"):
        ATECCElement(SimulatedBus(bench.memory, garble=lambda: True), str(bench.beside))


def test_a_chip_that_was_left_awake_is_woken_anew(bench: ATECCBench) -> None:
    bus = SimulatedBus(bench.memory)
    bus.chip.wake()
    bus.chip.read(4)
    bus.chip.write(b"\x03" + encode_command(0x30, 0, 0))
    chip = ATECCElement(bus, str(bench.beside))
    assert chip.serial_number == "0123a1b2c3d4e5f6ee"
    chip.close()


def test_another_kind_of_chip_is_refused(bench: ATECCBench) -> None:
    bench.memory.configuration[4:8] = bytes.fromhex("00000200")  # ATSHA204A
    with pytest.raises(errors.MalformedRequest, match="no atecc508a or 608: its revision is 00000200"):
        ATECCElement(SimulatedBus(bench.memory), str(bench.beside))


@pytest.mark.parametrize(
    ("place", "options", "complaint"),
    [
        ("", {"beside": "/d"}, "write atecc:/dev/i2c-N"),
        ("/dev/i2c-1", {"address": "xx"}, "an i2c address in hex"),
        ("/dev/i2c-1", {"address": "00"}, "an address is 08 to 77"),
        ("/dev/i2c-1", {"pin": "1234"}, "no option 'pin'; it has address, beside"),
    ],
)
def test_a_url_that_names_no_chip_is_malformed(place: str, options: dict[str, str], complaint: str) -> None:
    with pytest.raises(errors.MalformedRequest, match=complaint):
        element(place, options)


def test_a_bus_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match="load i2c-dev"):
        element(str(tmp_path / "i2c-9"), {"beside": str(tmp_path)})
    with pytest.raises(errors.Unavailable, match="is no i2c bus"):
        element("/dev/null", {"beside": str(tmp_path)})
