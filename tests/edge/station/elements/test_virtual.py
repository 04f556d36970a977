"""Virtual elements where stations find them: in readers, behind sockets, in files; and what runs them."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from birthmark import errors
from birthmark.edge.station.elements.pcsc import PCSCChannel
from birthmark.edge.station.elements.tcp import TCPChannel
from birthmark.edge.station.elements.virtual import (
    ATR,
    Drawer,
    FiledChannel,
    channel,
    derived_keys,
    element,
    initial_keys,
    on_tcp,
    on_vpcd,
)
from birthmark.element.apdu import OK, CardChannel
from birthmark.element.card_faults import ElementChannel, Fault
from birthmark.element.card_state import fresh
from birthmark.element.diversification import KeyRole, Scheme
from birthmark.element.scp03 import Mode
from birthmark.secret import SecretBytes
from tests.edge.cli.command import birthmark
from tests.element.hosts import FINAL, GET_STATUS, INITIAL, KDD, Host, element_of, get_data, set_of, store
from tests.element.vectors import WELL_KNOWN, document, key_set
from tests.support.pcsc import Daemon

OLD, NEW = set_of(0x40), set_of(0x70)
STATE = fresh(OLD, key_diversification_data=KDD)
ASK = get_data(0xCF).encode()
ANSWER = b"\xcf\x0a" + KDD + b"\x90\x00"
LARGE = bytes(n % 251 for n in range(3000))


def card_of(*faults: str) -> ElementChannel:
    return ElementChannel(element_of(), [Fault.parse(text) for text in faults])


def rotate(card: CardChannel) -> None:
    """Carry a whole conversation over a channel."""
    host = Host(card)
    assert host.begin(OLD).sw == OK
    assert host.put_key(OLD, NEW).sw == OK
    assert host.begin(NEW, FINAL).sw == OK
    assert host.send(GET_STATUS).sw == OK


# --- over TCP -----------------------------------------------------------------------------------------------


def test_a_station_speaks_to_an_element_over_tcp() -> None:
    card = card_of()
    with on_tcp(card) as port, TCPChannel("127.0.0.1", port) as over:
        rotate(over)
        host = Host(over)
        host.begin(NEW, FINAL)
        assert host.send(store(b"\x7f\x21\x82" + len(LARGE).to_bytes(2, "big") + LARGE)).sw == OK
        assert host.send(get_data(0x7F21)).data[-len(LARGE) :] == LARGE
    assert card.element.state.key_set(FINAL) is not None


def test_clients_come_one_after_the_other_and_find_no_session_open() -> None:
    with on_tcp(card_of()) as port:
        with TCPChannel("127.0.0.1", port) as over:
            host = Host(over)
            host.begin(OLD)
        with TCPChannel("127.0.0.1", port) as over:
            host.card = over
            assert host.send(GET_STATUS).sw == 0x6985


def test_a_reset_over_tcp_ends_the_session() -> None:
    with on_tcp(card_of()) as port, TCPChannel("127.0.0.1", port) as over:
        host = Host(over)
        host.begin(OLD)
        over.reset()
        assert host.send(GET_STATUS).sw == 0x6985


@pytest.mark.parametrize("kind", ["tear-before", "tear-after", "answer-lost"])
def test_an_element_that_lost_its_power_hangs_up_and_is_there_again(kind: str) -> None:
    with on_tcp(card_of(f"{kind}:1")) as port, TCPChannel("127.0.0.1", port) as over:
        with pytest.raises(errors.Unavailable):
            over.transmit(ASK)
        over.reset()
        assert over.transmit(ASK) == ANSWER


@pytest.mark.parametrize("kind", ["dead", "dead-after"])
def test_a_dead_element_never_comes_back(kind: str) -> None:
    with on_tcp(card_of(f"{kind}:1")) as port, TCPChannel("127.0.0.1", port, timeout_seconds=5) as over:
        with pytest.raises(errors.Unavailable):
            over.transmit(ASK)
        with pytest.raises(errors.Unavailable):
            over.reset()


def test_the_framing_is_that_of_vpcd_octet_by_octet() -> None:
    with on_tcp(card_of()) as port, socket.create_connection(("127.0.0.1", port), 10) as link:
        # on, reset, an empty message and one nobody knows: none is answered; then the ATR and a command.
        link.sendall(bytes.fromhex("000101 000102 0000 000109 000104") + b"\x00\x05" + ASK)
        expected = len(ATR).to_bytes(2, "big") + ATR + len(ANSWER).to_bytes(2, "big") + ANSWER
        received = b""
        while len(received) < len(expected):
            received += link.recv(100)
        assert received == expected


def test_a_client_that_breaks_off_in_the_middle_leaves_the_place_to_the_next() -> None:
    with on_tcp(card_of()) as port:
        for beginning in (b"\x00", b"\x00\x05\x80"):
            with socket.create_connection(("127.0.0.1", port), 10) as link:
                link.sendall(beginning)
        with TCPChannel("127.0.0.1", port) as over:
            assert over.transmit(ASK) == ANSWER


def test_a_port_that_is_taken_is_refused() -> None:
    with on_tcp(card_of()) as port, pytest.raises(errors.Unavailable), on_tcp(card_of(), port=port):
        pass


def test_who_serves_stops_although_a_client_is_there() -> None:
    with on_tcp(card_of()) as port:
        over = TCPChannel("127.0.0.1", port)
    with pytest.raises(errors.Unavailable):
        over.transmit(ASK)
    over.close()


# --- in a reader --------------------------------------------------------------------------------------------


def in_reader(name: str) -> PCSCChannel:
    """Connect to the card that was put into a reader; PC/SC looks for one a few times a second."""
    scard = import_module("smartcard.scard")
    _, context = scard.SCardEstablishContext(scard.SCARD_SCOPE_SYSTEM)
    seen = scard.SCARD_STATE_UNAWARE
    try:
        for _ in range(100):
            try:
                return PCSCChannel(name)
            except errors.Unavailable:
                _, ((_, seen, _),) = scard.SCardGetStatusChange(context, 100, [(name, seen)])
    finally:
        scard.SCardReleaseContext(context)
    raise AssertionError("no card was seen")


def test_a_station_speaks_to_an_element_in_a_reader(readers: Daemon) -> None:
    reader = readers.readers[0]
    card = card_of()
    with on_vpcd(card, "127.0.0.1", reader.port), closing(in_reader(reader.name)) as card_in:
        rotate(card_in)
        host = Host(card_in)
        host.begin(NEW, FINAL)
        wide = store(b"\x7f\x21\x82" + len(LARGE).to_bytes(2, "big") + LARGE)
        assert host.send(wide).sw == OK, "an extended length goes through"
        card_in.reset()
        assert host.send(GET_STATUS).sw == 0x6985
    assert dict(card.element.state.objects) == {0x7F21: LARGE}


def test_an_element_that_was_torn_out_of_a_reader_is_there_again(readers: Daemon) -> None:
    reader = readers.readers[1]
    with (
        on_vpcd(card_of("tear-after:3"), "127.0.0.1", reader.port),
        closing(in_reader(reader.name)) as card_in,
    ):
        host = Host(card_in)
        host.begin(OLD)
        with pytest.raises(errors.Unavailable):
            host.put_key(OLD, NEW)
        card_in.close()
        with closing(in_reader(reader.name)) as again:
            assert Host(again).begin(NEW, FINAL).sw == OK


def test_a_reader_that_is_not_there_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(errors.Unavailable), on_vpcd(card_of(), "127.0.0.1", port):
        pass


# --- in files -----------------------------------------------------------------------------------------------


def test_an_element_goes_on_with_what_it_held(tmp_path: Path) -> None:
    with closing(Drawer(tmp_path / "drawer")) as drawer:
        first, was_there = drawer.element("one", STATE)
        assert not was_there
        rotate(ElementChannel(first))
    file = tmp_path / "drawer" / "one"
    assert file.stat().st_mode & 0o777 == 0o600
    with closing(Drawer(tmp_path / "drawer")) as drawer:
        second, was_there = drawer.element("one", None)
        assert was_there
        assert second.state == first.state
        assert Host.of(second).begin(NEW, FINAL).sw == OK


def test_a_file_is_a_channel_in_process(tmp_path: Path) -> None:
    with closing(Drawer(tmp_path / "drawer")) as drawer:
        drawer.element("one", STATE)
        with pytest.raises(errors.Unavailable):
            FiledChannel(tmp_path / "drawer" / "one")
    with closing(channel(str(tmp_path / "drawer" / "one"), {})) as card:
        rotate(card)
    with closing(channel(str(tmp_path / "drawer" / "one"), {})) as card:
        assert Host(card).begin(NEW, FINAL).sw == OK
    device = element(str(tmp_path / "drawer" / "one"), {"enclave": str(tmp_path / "device")})
    with closing(device), pytest.raises(errors.Unavailable):
        channel(str(tmp_path / "drawer" / "one"), {})


def test_what_is_no_element_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        channel(str(tmp_path / "drawer" / "one"), {})
    with pytest.raises(errors.MalformedRequest):
        channel(str(tmp_path / "drawer" / "one"), {"keys": "1"})
    with closing(Drawer(tmp_path / "drawer")) as drawer, pytest.raises(errors.NotFound):
        drawer.element("one", None)
    file = tmp_path / "drawer" / "one"
    file.write_bytes(b"{}")
    file.chmod(0o600)
    for _ in range(2):  # the directory is free again
        with pytest.raises(errors.MalformedRequest):
            channel(str(file), {})
    file.chmod(0o640)
    with pytest.raises(errors.NotPermitted):
        channel(str(file), {})


def test_an_element_that_cannot_be_kept_does_not_answer(tmp_path: Path) -> None:
    with closing(Drawer(tmp_path / "drawer")) as drawer:
        card, _ = drawer.element("one", STATE)
        (tmp_path / "drawer" / "one").unlink()
        (tmp_path / "drawer" / "one").mkdir()
        with pytest.raises(errors.Unavailable):
            Host.of(card).begin(OLD)
        assert card.state == STATE


# --- keys from files ----------------------------------------------------------------------------------------


def test_a_key_file_has_three_lines() -> None:
    lines = b"\n".join(OLD.key(role).reveal().hex().encode() for role in KeyRole)
    assert initial_keys(SecretBytes(lines + b"\n\n")) == OLD


def test_a_set_is_derived_as_its_maker_derives_it() -> None:
    (published,) = [one for one in document("diversification")["kdf3"] if len(one["enc"]) == 32]
    derived = derived_keys(SecretBytes(WELL_KNOWN.hex().encode() + b"\n"), Scheme.KDF3, bytes(range(10)))
    assert derived == key_set(*(bytes.fromhex(published[role]) for role in ("enc", "mac", "dek")))


@pytest.mark.parametrize("content", [b"", b"sesame", b"40" * 16, b"40\n40\n40", b"\xff\n\xff\n\xff"])
def test_a_key_file_that_is_none_is_refused_and_not_shown(content: bytes) -> None:
    with pytest.raises(errors.MalformedRequest) as refused:
        initial_keys(SecretBytes(content))
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "scheme"),
    [(b"", Scheme.KDF3), (b"40", Scheme.KDF3), (WELL_KNOWN.hex().encode(), Scheme.AN10922)],
)
def test_a_master_key_that_cannot_be_diversified_is_refused(content: bytes, scheme: Scheme) -> None:
    with pytest.raises(errors.MalformedRequest):
        derived_keys(SecretBytes(content), scheme, KDD)


# --- the command --------------------------------------------------------------------------------------------


def key_file(folder: Path, *keys: bytes) -> Path:
    path = folder / "keys"
    path.touch(mode=0o600)
    path.write_text("".join(key.hex() + "\n" for key in keys))
    return path


@contextmanager
def running(*arguments: object) -> Iterator[tuple[list[dict[str, Any]], subprocess.Popen[str]]]:
    """Run the command until it has said what it runs, and end it by SIGTERM."""
    command = [sys.executable, "-m", "birthmark", "element", "virtual", "--json", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = ""
        while not said.endswith("\n]\n"):
            line = process.stdout.readline()
            assert line, process.stderr and process.stderr.read()
            said += line
        try:
            yield json.loads(said), process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def places(served: Sequence[dict[str, Any]]) -> list[int]:
    return [int(one["where"].rpartition(":")[2]) for one in served]


def test_the_command_runs_elements_whose_keys_follow_from_a_master_key(tmp_path: Path) -> None:
    keys = key_file(tmp_path, WELL_KNOWN)
    with running(
        "--directory", tmp_path / "d", "--tcp", "127.0.0.1:0", "--count", 3, "--master", keys, "--i", "71"
    ) as (served, process):
        assert [one["kdd"][-2:] for one in served] == ["01", "02", "03"]
        assert {one["state"] for one in served} == {"new"}
        for one, port in zip(served, places(served), strict=True):
            kdd = bytes.fromhex(one["kdd"])
            maker = derived_keys(SecretBytes(WELL_KNOWN.hex().encode()), Scheme.KDF3, kdd)
            with TCPChannel("127.0.0.1", port) as over:
                host = Host(over, mode=Mode.S16)
                assert host.begin(maker).sw == OK
    assert process.returncode == 0


def test_elements_go_on_after_the_command_was_killed(tmp_path: Path) -> None:
    keys = key_file(tmp_path, *(OLD.key(role).reveal() for role in KeyRole))
    options = ("--directory", tmp_path / "d", "--tcp", "127.0.0.1:0", "--keys", keys)
    with running(*options) as (served, process), TCPChannel("127.0.0.1", places(served)[0]) as over:
        host = Host(over)
        host.begin(OLD)
        assert host.put_key(OLD, NEW).sw == OK
        process.kill()
        process.wait(20)
    with running(*options[:4]) as (served, _):
        assert served[0]["state"] == "as it was"
        assert served[0]["key_sets"] == f"{INITIAL:02X} {FINAL:02X}"
        with TCPChannel("127.0.0.1", places(served)[0]) as over:
            assert Host(over).begin(NEW, FINAL).sw == OK


def test_the_command_takes_orders_for_faults_and_lies(tmp_path: Path) -> None:
    keys = key_file(tmp_path, *(OLD.key(role).reveal() for role in KeyRole))
    with (
        running(
            "--directory", tmp_path / "d", "--tcp", "127.0.0.1:0", "--keys", keys, "--fault", "tear-before:1",
            "--lie", "garble:mac", "--delay", "1",
        ) as (served, _),
        TCPChannel("127.0.0.1", places(served)[0]) as over,
    ):  # fmt: skip
        with pytest.raises(errors.Unavailable):
            over.transmit(ASK)
        over.reset()
        host = Host(over)
        host.begin(OLD)
        assert host.put_key(OLD, NEW).sw == OK
        with pytest.raises(errors.ProofFailed):
            host.begin(NEW, FINAL)


def test_the_command_puts_elements_into_readers(tmp_path: Path, readers: Daemon) -> None:
    keys = key_file(tmp_path, *(OLD.key(role).reveal() for role in KeyRole))
    reader = readers.readers[0]
    place = f"127.0.0.1:{reader.port}"
    with (
        running("--directory", tmp_path / "d", "--vpcd", place, "--keys", keys),
        closing(in_reader(reader.name)) as card,
    ):
        rotate(card)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 65),
        (["--tcp", "127.0.0.1:0", "--vpcd", "127.0.0.1:1"], 65),
        (["--tcp", "nowhere"], 65),
        (["--tcp", "127.0.0.1:65535", "--count", "2"], 65),
        (["--tcp", "127.0.0.1:0", "--kdd", "00"], 65),
        (["--tcp", "127.0.0.1:0", "--i", "zz"], 65),
        (["--tcp", "127.0.0.1:0", "--i", "08"], 65),
        (["--tcp", "127.0.0.1:0", "--fault", "flood:1"], 65),
        (["--tcp", "127.0.0.1:0", "--lie", "bluntly"], 65),
        (["--tcp", "127.0.0.1:0", "--keys", "a", "--master", "b"], 65),
        (["--tcp", "127.0.0.1:0", "--keys", "missing"], 66),
        (["--tcp", "127.0.0.1:0"], 66),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], code: int, tmp_path: Path) -> None:
    said = birthmark("element", "virtual", "--directory", tmp_path / "d", *arguments)
    assert said.code == code, said
    assert said.err


def test_the_command_does_not_read_a_key_file_that_others_may_read(tmp_path: Path) -> None:
    keys = key_file(tmp_path, WELL_KNOWN)
    keys.chmod(0o644)
    said = birthmark(
        "element", "virtual", "--directory", tmp_path / "d", "--tcp", "127.0.0.1:0", "--master", keys
    )
    assert said.code == 77, said
