"""An OpenPGP card as device element: PINs that are not wasted, and cards that are not what they should be.

The card is a program of others (``smartcard-app-openpgp``).  That the element keeps its contract is for
``tests/edge/station/test_conformance.py``.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.edge.station.elements import opened, openpgp
from birthmark.edge.station.elements.openpgp import OpenPGPElement
from birthmark.edge.station.elements.tcp import TCPChannel
from birthmark.pki.csr import vet
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes
from tests.support.benches import PW1, PW3, OpenPGPCard
from tests.support.pcsc import Daemon, inserted
from tests.support.programs import need_extra

WRONG = SecretBytes(b"87654321")
STATUS = bytes.fromhex("00ca00c400")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenPGPCard]:
    with OpenPGPCard(tmp_path_factory.mktemp("openpgp") / "card") as card:
        yield card


@pytest.fixture
def card(program: OpenPGPCard) -> Iterator[TCPChannel]:
    """The card with all its tries left, whatever a test before did."""
    with program.channel() as channel:
        yield channel
        channel.reset()
        channel.transmit(bytes.fromhex("00a4040006d27600012401"))
        for reference, pin in ((0x81, PW1), (0x83, PW3)):
            command = bytes((0, 0x20, 0, reference, len(pin))) + pin.reveal()
            assert channel.transmit(command) == b"\x90\x00"
        assert tries(channel) == (3, 3)


class Watched:
    """A channel that notes what passes it, and can answer a command itself."""

    def __init__(self, channel: TCPChannel, answers: dict[bytes, bytes] | None = None) -> None:
        self._channel = channel
        self._answers = answers or {}
        self.commands: list[bytes] = []

    def transmit(self, command: bytes) -> bytes:
        self.commands.append(command)
        return self._answers.get(command) or self._channel.transmit(command)

    def reset(self) -> None:
        self._channel.reset()

    def pins(self) -> int:
        """How often a PIN was sent."""
        return sum(command[1] == 0x20 and len(command) > 4 for command in self.commands)


def tries(channel: TCPChannel) -> tuple[int, int]:
    """What PW1 and PW3 have left."""
    status = channel.transmit(STATUS)
    if status[0] == 0x61:
        status = channel.transmit(bytes((0, 0xC0, 0, 0, status[1])))
    return status[4], status[6]


def element(
    channel: Watched | TCPChannel, folder: Path, pin: SecretBytes = PW1, admin_pin: SecretBytes = PW3
) -> OpenPGPElement:
    return OpenPGPElement(channel, pin=pin, admin_pin=admin_pin, beside=str(folder / "beside"))


def test_a_refused_admin_pin_is_sent_once_and_never_again(card: TCPChannel, tmp_path: Path) -> None:
    watched = Watched(card)
    device = element(watched, tmp_path, admin_pin=WRONG)
    for _ in range(3):
        with pytest.raises(errors.NotPermitted, match="PW3"):
            device.certification_request("VIN-1")
    assert watched.pins() == 1
    assert tries(card) == (3, 2)
    device.close()


def test_another_program_does_not_waste_a_try_that_is_one_of_the_last(
    card: TCPChannel, tmp_path: Path
) -> None:
    first = element(card, tmp_path, admin_pin=WRONG)
    with pytest.raises(errors.NotPermitted, match="the card refuses PW3: 6982"):
        first.certification_request("VIN-1")
    first.close()
    watched = Watched(card)
    second = element(watched, tmp_path)
    with pytest.raises(errors.NotPermitted, match="has 2 tries left: enter it by hand first"):
        second.certification_request("VIN-1")
    assert watched.pins() == 0
    second.close()


def test_a_refused_pin_stops_the_request(card: TCPChannel, tmp_path: Path) -> None:
    device = element(card, tmp_path, pin=WRONG)
    with pytest.raises(errors.NotPermitted, match="the card refuses PW1"):
        device.certification_request("VIN-1")
    assert tries(card) == (2, 3)
    device.close()


def test_no_pin_stays_verified_when_the_element_is_closed(card: TCPChannel, tmp_path: Path) -> None:
    device = element(card, tmp_path)
    device.certification_request("VIN-1")
    device.close()
    card.transmit(bytes.fromhex("00a4040006d27600012401"))
    assert card.transmit(bytes.fromhex("00da010201aa")) == b"\x69\x82"  # PW3 is asked for
    assert card.transmit(bytes.fromhex("002a9e9a20") + bytes(32) + b"\0") == b"\x69\x82"


def test_a_key_on_p384_signs_its_request(card: TCPChannel, tmp_path: Path) -> None:
    device = OpenPGPElement(
        card, pin=PW1, admin_pin=PW3, beside=str(tmp_path / "beside"), algorithm=KeyAlgorithm.EC_P384
    )
    vetted = vet(device.certification_request("VIN-1"), allowed=(KeyAlgorithm.EC_P384,))
    assert vetted.subject_common_name == "VIN-1"
    device.close()


@pytest.mark.parametrize(
    ("command", "answer", "refusal", "complaint"),
    [
        ("00ca00f900", "8101039000", errors.PolicyRefused, "wants its PINs hashed"),
        ("00ca010200", "6982", errors.PolicyRefused, "does not tell data object 102: 6982"),
        ("0047800002b60000", "6985", errors.PolicyRefused, "does not generate key: 6985"),
        ("0047800002b60000", "7f49048602" + "04009000", errors.IntegrityFailure, "no uncompressed ec-p256"),
        ("0047800002b60000", "7f49ff9000", errors.IntegrityFailure, "data objects cannot be read"),
    ],
)
def test_a_card_that_answers_otherwise_is_refused(
    card: TCPChannel,
    tmp_path: Path,
    command: str,
    answer: str,
    refusal: type[errors.Refusal],
    complaint: str,
) -> None:
    device = element(Watched(card, {bytes.fromhex(command): bytes.fromhex(answer)}), tmp_path)
    with pytest.raises(refusal, match=complaint):
        device.certification_request("VIN-1")
    device.close()


def test_a_card_that_shows_one_key_and_signs_with_another_makes_no_request(
    card: TCPChannel, tmp_path: Path
) -> None:
    device = element(card, tmp_path)
    device.certification_request("VIN-1")
    device.close()
    card.transmit(bytes.fromhex("00a4040006d27600012401"))
    shown = card.transmit(bytes.fromhex("0047810002b60000"))  # the key of before
    device = element(Watched(card, {bytes.fromhex("0047800002b60000"): shown}), tmp_path)
    device_makes = bytes.fromhex("0047800002b60000")
    assert shown.endswith(b"\x90\x00")
    card.transmit(bytes.fromhex("00200083") + bytes((len(PW3),)) + PW3.reveal())
    card.transmit(device_makes)  # past the element: what signs now is another key
    with pytest.raises(errors.IntegrityFailure, match="does not verify with the key it showed"):
        device.certification_request("VIN-1")
    device.close()


def test_a_card_that_says_its_key_was_imported_makes_no_request(card: TCPChannel, tmp_path: Path) -> None:
    device = element(card, tmp_path)
    device.certification_request("VIN-1")  # one that it has generated
    read = bytes.fromhex("00ca006e00")
    more = card.transmit(read)
    told = card.transmit(bytes((0, 0xC0, 0, 0, more[1])))
    generated, imported = bytes.fromhex("de060001"), bytes.fromhex("de060002")
    assert generated in told
    device.close()
    device = element(Watched(card, {read: told.replace(generated, imported)}), tmp_path)
    with pytest.raises(errors.IntegrityFailure, match="its signature key was not generated on it"):
        device.certification_request("VIN-1")
    device.close()


def test_a_card_of_another_kind_is_not_found(card: TCPChannel, tmp_path: Path) -> None:
    select = bytes.fromhex("00a4040006d2760001240100")
    with pytest.raises(errors.NotFound, match="no openpgp application"):
        element(Watched(card, {select: b"\x6a\x82"}), tmp_path)


def test_a_url_opens_it_with_pins_from_files(program: OpenPGPCard, tmp_path: Path) -> None:
    for name, pin in (("pw1", PW1), ("pw3", PW3)):
        file = tmp_path / name
        file.touch(mode=0o600)
        file.write_bytes(pin.reveal() + b"\n")
    url = f"openpgp:tcp:127.0.0.1:{program.port}?pin={tmp_path}/pw1&admin-pin={tmp_path}/pw3"
    with pytest.raises(errors.MalformedRequest, match="beside=DIR"), opened(url):
        pass
    with opened(f"{url}&beside={tmp_path}/beside") as device:
        assert PW3.reveal().decode() not in repr(device)
        request = device.certification_request("VIN-1")
        assert request is not None
        assert vet(request, allowed=(KeyAlgorithm.EC_P256,)).subject_common_name == "VIN-1"
    (tmp_path / "pw3").chmod(0o644)
    with pytest.raises(errors.NotPermitted, match="0644"), opened(f"{url}&beside={tmp_path}/beside"):
        pass


def test_it_works_in_a_reader_too(
    program: OpenPGPCard, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The same card, behind pcscd and a virtual reader."""
    need_extra("smartcard", "pcsc")
    daemon: Daemon = request.getfixturevalue("readers")
    reader = daemon.readers[0]
    for name, pin in (("pw1", PW1), ("pw3", PW3)):
        file = tmp_path / name
        file.touch(mode=0o600)
        file.write_bytes(pin.reveal())
    options = f"pin={tmp_path}/pw1&admin-pin={tmp_path}/pw3&beside={tmp_path}/beside"
    certificate = b"\x30\x82\x03\x00" + bytes(range(256)) * 3
    with (
        program.channel() as behind,
        inserted(reader, behind.transmit, reset=behind.reset),
        opened(f"openpgp:pcsc:{reader.name}%3Fwait=10?{options}") as device,
    ):
        made = device.certification_request("VIN-1")
        assert made is not None
        vet(made, allowed=(KeyAlgorithm.EC_P256,))
        device.install(certificate=certificate, chain=(), private_key=None)
        assert device.read_back() == certificate


@given(st.binary(max_size=40))
def test_any_historical_bytes_are_read(octets: bytes) -> None:
    assert openpgp._takes_extended(octets) in (True, False)  # noqa: SLF001  # a decoder, and total


def test_what_a_card_says_of_lengths_is_believed() -> None:
    assert openpgp._takes_extended(bytes.fromhex("0031e473fb11ff059000"))  # noqa: SLF001  # a decoder
    assert not openpgp._takes_extended(bytes.fromhex("0031c573c00180059000"))  # noqa: SLF001  # a decoder
