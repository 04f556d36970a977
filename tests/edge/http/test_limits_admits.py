"""Who is welcome is asked in the handshake (SPEC C1): without a certificate, and when it is verified."""

import asyncio
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
import uvicorn
import uvloop
from uvicorn.server import ServerState

from birthmark import errors
from birthmark.edge.http.contexts import Admits, everybody, server_context
from birthmark.edge.http.limits import Door, Limits
from birthmark.edge.http.peer import SCOPE_KEY, protocol
from birthmark.pki.certificates import from_pem
from birthmark.secret import SecretBytes
from birthmark.settings import load
from tests.support.server import RealmDirectory, copy_realm, tls_context

_REQUEST = b"GET /who HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> RealmDirectory:
    return copy_realm(tmp_path_factory.mktemp("admits") / "realm")


class Plane:
    """A listener with our door, TLS and protocol, and an application that answers who asks."""

    def __init__(self, realm: RealmDirectory, admits: Admits | None) -> None:
        self.told: list[tuple[errors.Refusal, bytes]] = []
        self.asked: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        plane = load(realm.settings).station_plane
        passphrase = SecretBytes(plane.key_passphrase_file.read_bytes().strip())
        self._context = server_context(
            plane.certificate_file,
            plane.key_file,
            passphrase,
            plane.client_ca_file,
            lambda _cause, refusal, peer: self.told.append((refusal, peer)),
            *([] if admits is None else [admits]),
        )
        self._ready, self._loop = threading.Event(), uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._over = asyncio.Event()
        tell = lambda _cause, refusal, peer: self.told.append((refusal, peer))  # noqa: E731  # twice the same
        config = uvicorn.Config(
            self._answer, interface="asgi3", ws="none", lifespan="off", log_config=None, access_log=False
        )
        made = protocol(tell, 5, 5, 10)
        welcome = partial(made, config=config, server_state=ServerState(), app_state={})
        limits = Limits(connections=20, handshakes=10, handshake_seconds=5, answer_seconds=5)
        door = Door(listener=self.listener, welcome=welcome, limits=limits, told=tell, context=self._context)
        door.open()
        self._ready.set()
        await self._over.wait()
        door.close()

    async def _answer(self, scope: Mapping[str, Any], _receive: Any, send: Any) -> None:
        self.asked.append(scope["path"])
        body = scope[SCOPE_KEY]
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.listener.close()

    def ask(self, directory: Path, sent: bytes = _REQUEST) -> http.client.HTTPResponse:
        """Ask and return the answer, its body read into ``body``."""
        with connected(self, directory) as tls:
            tls.sendall(sent)
            response = http.client.HTTPResponse(tls)
            response.begin()
            response.body = response.read()  # type: ignore[attr-defined]  # the socket ends with us
            return response


@contextmanager
def connected(plane: Plane, directory: Path) -> Iterator[ssl.SSLSocket]:
    """Connect with a client's credentials; its certificate is judged when it reads."""
    with (
        socket.create_connection(plane.listener.getsockname(), 10) as raw,
        tls_context(directory).wrap_socket(raw, server_hostname="localhost") as tls,
    ):
        yield tls


def certificate(directory: Path) -> bytes:
    return from_pem((directory / "station.crt").read_text(encoding="ascii"))[0]


@pytest.mark.parametrize("admits", [None, everybody])
def test_everybody_whose_certificate_is_verified_is_welcome_if_nothing_else_is_said(
    realm: RealmDirectory, admits: Admits | None
) -> None:
    with Plane(realm, admits) as plane:
        answer = plane.ask(realm.station())
    assert (answer.status, answer.body) == (200, certificate(realm.station()))  # type: ignore[attr-defined]  # read by ask
    assert plane.told == []


def test_it_is_asked_without_a_certificate_and_then_with_it(realm: RealmDirectory) -> None:
    asked: list[bytes | None] = []

    def admits(peer: bytes | None) -> None:
        asked.append(peer)

    with Plane(realm, admits) as plane:
        assert plane.ask(realm.station()).status == 200
    *before, verified = asked
    assert verified == certificate(realm.station())
    assert set(before) == {None}  # twice, if the server had to ask for another group (RFC 8446 section 4.1.4)


def test_a_closed_plane_denies_access_before_it_has_seen_a_certificate(realm: RealmDirectory) -> None:
    asked: list[bytes | None] = []

    def admits(peer: bytes | None) -> errors.Refusal:
        asked.append(peer)
        return errors.NotPermitted("the plane is closed")

    with Plane(realm, admits) as plane, pytest.raises(ssl.SSLError, match=r"(?i)alert access denied"):
        plane.ask(realm.station())
    assert asked == [None]
    ((refusal, peer),) = plane.told
    assert isinstance(refusal, errors.NotPermitted)
    assert (str(refusal), peer, plane.asked) == ("the plane is closed", b"", [])


@pytest.mark.parametrize(
    "sent", [_REQUEST, b"", b"\x00" * 100_000, b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\n"]
)
def test_a_client_that_is_not_welcome_now_is_told_and_nothing_it_sends_is_read(
    realm: RealmDirectory, sent: bytes
) -> None:
    closed, other = certificate(realm.station("ST01")), realm.station("ST02")

    def admits(peer: bytes | None) -> errors.Refusal | None:
        return errors.NotPermitted("its window is closed") if peer == closed else None

    with Plane(realm, admits) as plane:
        answer = plane.ask(realm.station("ST01"), sent)
        assert plane.ask(other).status == 200
    body = answer.body  # type: ignore[attr-defined]  # read by ask
    assert (answer.status, answer.getheader("connection")) == (403, "close")
    assert b"its window is closed" in body
    assert b'"code":"not-permitted"' in body
    assert plane.asked == ["/who"]  # the other's
    ((refusal, peer),) = plane.told
    assert (type(refusal), str(refusal), peer) == (errors.NotPermitted, "its window is closed", closed)


def judged_at_hello(peer: bytes | None) -> errors.Refusal | None:
    raise RuntimeError("no view of the record")


def judged_after(peer: bytes | None) -> errors.Refusal | None:
    if peer is None:
        return None
    raise RuntimeError("no view of the record")


@pytest.mark.parametrize("admits", [judged_at_hello, judged_after])
def test_who_cannot_be_judged_is_not_let_in_and_may_come_again(realm: RealmDirectory, admits: Admits) -> None:
    with Plane(realm, admits) as plane:
        if admits is judged_after:
            assert plane.ask(realm.station()).status == 503
        else:
            with pytest.raises(ssl.SSLError, match=r"(?i)alert internal error"):
                plane.ask(realm.station())
    assert plane.asked == []
    assert [str(refusal) for refusal, _ in plane.told] == ["it cannot be told who is welcome now"]
