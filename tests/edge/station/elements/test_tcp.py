"""Elements behind sockets: a virtual one, and servers that misbehave."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.edge.station.elements import opened, opened_channel
from birthmark.edge.station.elements.carded import CardedEnclave
from birthmark.edge.station.elements.tcp import TCPChannel, channel
from birthmark.edge.station.elements.virtual import on_tcp
from birthmark.element.card_faults import ElementChannel, Fault, FaultKind
from birthmark.element.scp03 import initialize_update
from tests.support.injecting import INITIAL_KVN, Bench, profile_of

SELECT = bytes.fromhex("00A4040008A00000015100000000")
BEGIN = initialize_update(INITIAL_KVN, bytes(8)).encode()
AUTHENTICATE = bytes.fromhex("8482330010") + bytes(16)
CONDITIONS = bytes.fromhex("6985")


@pytest.fixture
def bench() -> Bench:
    return Bench(profile_of(tags=(0x53,)))


@pytest.fixture
def card(bench: Bench) -> ElementChannel:
    return ElementChannel(bench.element)


@pytest.fixture
def port(card: ElementChannel) -> Iterator[int]:
    with on_tcp(card) as port:
        yield port


@contextmanager
def serving(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve each connection in turn by hand; the connection is closed afterwards."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                link = listener.accept()[0]
            except OSError:
                return
            with link:
                serve(link)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def power(link: socket.socket, atr: bytes = b"\x3b\x00") -> None:
    """Read power off, power on and the wish for an ATR, and answer that."""
    octets = b""
    while len(octets) < 9:
        octets += link.recv(9 - len(octets))
    assert octets == bytes.fromhex("000100 000101 000104")
    link.sendall(len(atr).to_bytes(2, "big") + atr)


def test_an_injection_goes_over_it(bench: Bench, port: int) -> None:
    with TCPChannel("127.0.0.1", port) as reader:
        bench.run(reader)
    assert bench.holds_only_the_final_set()


def test_a_reset_takes_what_was_begun_away(port: int) -> None:
    with TCPChannel("127.0.0.1", port) as reader:
        reader.transmit(SELECT)
        assert reader.transmit(BEGIN)[-2:] == b"\x90\x00"
        assert reader.transmit(AUTHENTICATE) != CONDITIONS, "it was judged"
        assert reader.transmit(BEGIN)[-2:] == b"\x90\x00"
        reader.reset()
        assert reader.transmit(AUTHENTICATE) == CONDITIONS, "nothing had begun"


@pytest.mark.parametrize("kind", [FaultKind.TEAR_BEFORE, FaultKind.TEAR_AFTER, FaultKind.ANSWER_LOST])
def test_a_lost_element_says_so_until_it_is_reset(card: ElementChannel, port: int, kind: FaultKind) -> None:
    card.faults.append(Fault(kind=kind, at=2))
    with TCPChannel("127.0.0.1", port) as reader:
        reader.transmit(SELECT)
        for _ in range(2):
            with pytest.raises(errors.Unavailable, match="does not answer"):
                reader.transmit(SELECT)
        reader.reset()
        assert reader.transmit(SELECT)[-2:] == b"\x90\x00"


def test_a_late_answer_is_not_taken_for_the_next_one() -> None:
    late = threading.Event()

    def serve(link: socket.socket) -> None:
        power(link)
        link.recv(100)
        if late.is_set():
            link.sendall(bytes.fromhex("0003 02 9000"))
            link.recv(1)
        else:
            late.set()
            link.recv(1)  # until the other side hangs up

    with serving(serve) as port, TCPChannel("127.0.0.1", port, timeout_seconds=0.1) as reader:
        with pytest.raises(errors.Unavailable, match="timeout"):
            reader.transmit(SELECT)
        with pytest.raises(errors.Unavailable, match="closed"):
            reader.transmit(SELECT)
        reader.reset()
        assert reader.transmit(SELECT) == bytes.fromhex("029000")


@pytest.mark.parametrize("answer", [b"", b"\x00", b"\x00\x05abc"], ids=["none", "half a length", "half"])
def test_an_answer_that_does_not_come_whole_is_none(answer: bytes) -> None:
    def serve(link: socket.socket) -> None:
        power(link)
        link.recv(100)
        link.sendall(answer)

    with (
        serving(serve) as port,
        TCPChannel("127.0.0.1", port) as reader,
        pytest.raises(errors.Unavailable, match="hung up"),
    ):
        reader.transmit(SELECT)


def test_a_socket_without_an_element_is_refused() -> None:
    with (
        serving(lambda link: power(link, b"")) as port,
        pytest.raises(errors.Unavailable, match="there is none"),
    ):
        TCPChannel("127.0.0.1", port)


def test_nobody_there_is_told_with_the_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(errors.Unavailable, match=rf"127\.0\.0\.1:{port} does not answer: connection refused"):
        TCPChannel("127.0.0.1", port)


def test_messages_are_neither_power_nor_too_long(port: int) -> None:
    with TCPChannel("127.0.0.1", port) as reader:
        for command in (b"", b"\x00", b"\x00\xa4\x04", bytes(0x10000)):
            with pytest.raises(errors.MalformedRequest):
                reader.transmit(command)
        assert reader.transmit(SELECT)[-2:] == b"\x90\x00"
    with pytest.raises(errors.Unavailable, match="closed"):
        reader.transmit(SELECT)


@pytest.mark.parametrize("place", ["", "host", "host:", ":9", "host:x", "host:0", "host:65536", "::1:9"])
def test_what_is_no_place_is_refused(place: str) -> None:
    with pytest.raises(errors.MalformedRequest, match="HOST:PORT"):
        channel(place, {})


@pytest.mark.parametrize("timeout", ["0", "-1", "nan", "inf", "x", "3601"])
def test_what_is_no_timeout_is_refused(timeout: str) -> None:
    with pytest.raises(errors.MalformedRequest, match="timeout"):
        channel("127.0.0.1:9", {"timeout": timeout})


def test_both_urls_open_it(card: ElementChannel, port: int, tmp_path: Path) -> None:
    with opened_channel(f"tcp:127.0.0.1:{port}?timeout=5") as found:
        assert found.transmit(SELECT)[-2:] == b"\x90\x00"
    with opened(f"tcp:127.0.0.1:{port}?enclave={tmp_path / 'device'}") as device:
        assert isinstance(device, CardedEnclave)
        reader = device.card()
        assert reader.transmit(SELECT)[-2:] == b"\x90\x00"
    with pytest.raises(errors.Unavailable, match="closed"):
        reader.transmit(SELECT)
    with (
        pytest.raises(errors.MalformedRequest, match="enclave=DIR"),
        opened(f"tcp:127.0.0.1:{port}"),
    ):
        pass
    with (
        pytest.raises(errors.MalformedRequest, match="algorithm is one of"),
        opened(f"tcp:127.0.0.1:{port}?enclave={tmp_path / 'other'}&algorithm=rsa"),
    ):
        pass


def test_a_directory_that_is_refused_leaves_no_open_channel(port: int, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    with (
        pytest.raises(errors.NotPermitted),
        opened(f"tcp:127.0.0.1:{port}?enclave={tmp_path / 'open'}"),
    ):
        pass
    # The server serves one after the other: it would wait for the first one's end.
    with opened_channel(f"tcp:127.0.0.1:{port}?timeout=5") as found:
        assert found.transmit(SELECT)[-2:] == b"\x90\x00"
