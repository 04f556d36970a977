"""Targets that are whole planes: a request goes in, and an answer or a refusal comes out, never a fault.

The applications are the real ones, built from settings as ``birthmark serve`` builds them, over a realm of
their own; only sockets and TLS are left out, which the tests of ``edge.http`` have.
"""

import asyncio
import atexit
import base64
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.parse import quote, unquote

from uvicorn import Config
from uvicorn.server import ServerState

from birthmark import app, errors
from birthmark.edge.http.direct import public_protocol
from birthmark.edge.http.peer import SCOPE_KEY
from birthmark.edge.http.public import PublicPlane
from birthmark.edge.http.station import create_app
from birthmark.edge.http.tracecontext import trace_of
from birthmark.ledger.tiles import tile_path
from birthmark.pki.certificates import fingerprint, one_from_pem, to_pem
from birthmark.pki.keys import KeyAlgorithm
from birthmark.settings import Settings
from tests.fuzz.files import folder
from tests.fuzz.mutators import Shape
from tests.fuzz.pki_targets import asked, lists, requests
from tests.fuzz.target import Target, halves
from tests.pki.sample import realm
from tests.support.realm import PASSPHRASE, Line, hierarchy, make_line


@dataclass(slots=True)
class Answered:
    """What an application sent."""

    status: int = 0
    body: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)


async def answer_of(application: Any, scope: Mapping[str, Any], body: bytes) -> Answered:
    """Return what an application (ASGI 3) answers to a request."""
    answered = Answered()
    left = [body]

    async def receive() -> Mapping[str, Any]:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return {"type": "http.disconnect"}

    async def send(message: Mapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answered.status, answered.headers = message["status"], dict(message["headers"])
        else:
            answered.body += bytes(message.get("body", b""))

    await application(scope, receive, send)
    return answered


def scope_of(document: Mapping[str, Any]) -> dict[str, Any]:
    """A request as the server hands it over: any octets in the path, latin-1 in headers."""
    raw = str(document.get("path")).encode("utf-8", "surrogatepass")[:2000]
    path = raw.partition(b"?")[0]
    headers = document.get("headers")
    given = headers.items() if isinstance(headers, dict) else ()
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": str(document.get("method"))[:20].encode("ascii", "replace").decode().upper(),
        "path": unquote(path.decode("latin-1"), errors="replace"),
        "raw_path": path,
        "query_string": raw.partition(b"?")[2],
        "root_path": "",
        "scheme": "https",
        "server": ("127.0.0.1", 8443),
        "client": ("127.0.0.1", 4711),
        "headers": [
            (str(name).lower().encode("ascii", "replace"), str(value).encode("latin-1", "replace"))
            for name, value in given
        ],
    }


def document_of(data: bytes) -> dict[str, Any]:
    """Return the request that an input describes (JSON)."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise errors.MalformedRequest("not of the form of this target") from None
    if not isinstance(found, dict):
        raise errors.MalformedRequest("not of the form of this target")
    return found


def body_of(document: Mapping[str, Any]) -> bytes:
    """Return its body."""
    if isinstance(raw := document.get("raw"), str):
        return raw.encode("utf-8", "surrogatepass")
    return json.dumps(document["body"]).encode() if "body" in document else b""


@cache
def loop() -> asyncio.AbstractEventLoop:
    """Return the loop on which the targets' applications live."""
    return asyncio.new_event_loop()


# --- the station plane

RUN = "R1"
NAMED = "1M8GDM9AXKP042788"
"""Whom the request of ``pki_targets`` is for."""


@cache
def station_plane() -> tuple[Any, Mapping[str, bytes]]:
    """The application of a realm with a run, and the certificates (DER) of those who may ask."""
    place = folder("plane")
    line: Line = make_line(place, f"sqlite:///{place / 'line.sqlite'}")
    line.open_run(RUN, quantity=1000)
    (place / "passphrase").write_bytes(PASSPHRASE.reveal())
    (place / "passphrase").chmod(0o600)
    unused = str(place / "unused")
    settings = Settings.model_validate(
        {
            "realm": {"name": "acme", "environment": "test", "organization": "Acme Motors"},
            "database": {"url": f"sqlite:///{place / 'line.sqlite'}"},
            "log": {"key": "log"},
            "key-store": {
                "kind": "software",
                "directory": str(hierarchy().directory),
                "passphrase-file": str(place / "passphrase"),
            },
            "station-plane": {
                "certificate-file": unused,
                "key-file": unused,
                "key-passphrase-file": unused,
                "client-ca-file": unused,
                "client-per-minute": 1_000_000_000,
                "client-burst": 1_000_000_000,
                "stranger-per-minute": 1_000_000_000,
                "stranger-burst": 1_000_000_000,
                "run-per-minute": 1_000_000_000,
                "run-burst": 1_000_000_000,
            },
        }
    )
    line.close()
    application = app.build(settings, clock=line.clock)
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    atexit.register(application.close)
    people = {"station": line.station, "operator": line.operator}
    return create_app(application), {name: one.caller.credential.der for name, one in people.items()}


_issued: dict[bytes, bytes] = {}


def _station(data: bytes) -> None:
    """A request of a station or an operator of ours gone mad: it is answered, and with no fault.

    ``@attempt`` and ``@sha256`` in it stand for what the last certificate was issued under.
    """
    document = document_of(data)
    application, people = station_plane()
    peer = people["operator" if document.get("who") == "operator" else "station"]
    body = body_of(document)
    for name, value in _issued.items():
        body = body.replace(name, value)
    answered = loop().run_until_complete(answer_of(application, scope_of(document) | {SCOPE_KEY: peer}, body))
    if answered.status >= 500:
        raise AssertionError(f"answered {answered.status}: {answered.body[:500]!r}")
    if (
        answered.status == 200
        and answered.body.startswith(b'{"device":')
        and b'"challenge":' in answered.body
    ):
        told = json.loads(answered.body)
        _issued[b"@attempt"] = told["attempt"].encode()
        _issued[b"@sha256"] = fingerprint(one_from_pem(told["certificate"])).encode()
    if answered.status >= 400:
        problem = json.loads(answered.body)
        raise errors.MalformedRequest(problem["code"])


def _station_seeds() -> Iterator[bytes]:
    csr = to_pem(requests()[0], "CERTIFICATE REQUEST")
    issue: dict[str, object] = {
        "hardware_id": NAMED,
        "idempotency_key": "issue-1",
        "csr": csr,
        "further_csrs": [],
        "attested": None,
    }
    prove: dict[str, object] = {
        "attempt": "@attempt", "certificate_sha256": "@sha256", "signature": "MAA=", "further": [],
        "element": None, "idempotency_key": "prove-1",
    }  # fmt: skip
    attest = {
        "hardware_id": NAMED,
        "ek_certificate": "MAA=",
        "ek_chain": ["MAA="],
        "iak": "AAAA",
        "idevid": "AAAA",
    }
    dialogue = {"attempt": "@attempt", "element": {"step": 0, "responses": []}}
    disposal = {"reason": "scratched", "idempotency_key": "hold-1"}
    posted: dict[str, object] = {
        f"/v1/runs/{RUN}/issue": issue,
        f"/v1/runs/{RUN}/gang-issue": {
            "devices": [issue | {"csr": None, "hardware_id": "D2", "idempotency_key": "issue-2"}]
        },
        f"/v1/runs/{RUN}/attest": attest,
        "/v1/prove": prove,
        "/v1/gang-prove": {"proofs": [prove]},
        "/v1/inject": dialogue,
        "/v1/gang-inject": {"dialogues": [dialogue]},
        f"/v1/devices/serial:{NAMED}/hold": disposal,
        f"/v1/devices/serial:{NAMED}/rework": disposal,
        f"/v1/devices/serial:{NAMED}/scrap": disposal,
    }
    headers = {"content-type": "application/json", "birthmark-seq": "7", "birthmark-operator": "anna"}
    for path in (
        "/v1/me",
        f"/v1/runs/{RUN}",
        f"/v1/devices/serial:{NAMED}",
        "/v1/checkpoint",
        "/openapi.json",
    ):
        yield json.dumps({"method": "GET", "path": path, "headers": {"birthmark-seq": "1"}}).encode()
    for path, body in posted.items():
        who = "operator" if path.startswith("/v1/devices") else "station"
        yield json.dumps(
            {"method": "POST", "who": who, "path": path, "headers": headers, "body": body}
        ).encode()


# --- the public plane


@cache
def public_plane() -> tuple[Config, ServerState, type[asyncio.Protocol]]:
    """What a connection of the public plane is made with, over a directory with one of each kind of file."""
    place = folder("public")
    files = {
        "crl/issuing-1.crl": lists()[0],
        "ca/issuing-1.cer": realm(KeyAlgorithm.EC_P256).issuing_der,
        "log/" + tile_path(0, 0): bytes(8192),
        "log/checkpoint": b"x\n",
        "index.json": b"{}",
    }
    for name, content in files.items():
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    settings = Settings.model_validate(
        {
            "realm": {"name": "acme", "environment": "test", "organization": "Acme Motors"},
            "public-plane": {"directory": str(place), "ocsp": "presigned"},
        }
    )
    application = app.build_public(settings)
    plane = PublicPlane(application)
    protocol = public_protocol(5.0, plane.answering, application.clock, "")
    config = Config(plane, http=protocol, lifespan="off", log_config=None, server_header=False)
    config.load()
    return config, ServerState(), protocol


class _Wire(asyncio.Transport):
    """A connection whose other end takes everything."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 4711), "sockname": ("192.0.2.2", 80)})
        self.said = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Keep it."""
        self.said += bytes(data)

    def is_closing(self) -> bool:
        """Return whether it was closed."""
        return self.closed

    def close(self) -> None:
        """Close it."""
        self.closed = True

    abort = close

    def get_write_buffer_size(self) -> int:
        """Everything is taken at once."""
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """There are none."""

    def pause_reading(self) -> None:
        """What comes is there already."""

    def resume_reading(self) -> None:
        """Likewise."""


_FAULT = re.compile(rb"HTTP/1\.1 5(?!03)")


async def _connection(pieces_of: list[bytes]) -> bytes:
    config, state, protocol = public_plane()
    wire = _Wire()
    connection: Any = protocol(config=config, server_state=state, app_state={})  # type: ignore[call-arg]  # uvicorn's
    connection.connection_made(wire)
    for piece in pieces_of:
        if not wire.closed:
            connection.data_received(piece)
        await asyncio.sleep(0)
    waiting = set(state.tasks)
    if waiting:
        # One that waits for a body which never comes ends when the connection does.
        connection.connection_lost(None)
        await asyncio.gather(*waiting)
    else:
        connection.connection_lost(None)
    return wire.said


def _public(data: bytes) -> None:
    """What anybody may send: octets, in one piece or in two."""
    cut, octets = halves(data, 256)
    said = loop().run_until_complete(_connection([octets[:cut], octets[cut:]] if cut else [octets]))
    if _FAULT.search(said):
        raise AssertionError(f"answered {said[:500]!r}")
    if not said.startswith((b"HTTP/1.1 2", b"HTTP/1.1 304")):
        raise errors.MalformedRequest("no such answer")


def _public_seeds() -> Iterator[bytes]:
    host = b"host: pki.example\r\n"
    for path in (
        "crl/issuing-1.crl",
        "ca/issuing-1.cer",
        "log/" + tile_path(0, 0),
        "log/checkpoint",
        "index.json",
    ):
        yield b"\0GET /" + path.encode() + b" HTTP/1.1\r\n" + host + b'if-none-match: W/"x", "y"\r\n\r\n'
    for octets in asked():
        got = quote(base64.b64encode(octets).decode(), safe="").encode()
        yield b"\0GET /ocsp/" + got + b" HTTP/1.1\r\n" + host + b"\r\n"
        size = str(len(octets)).encode()
        post = b"POST /ocsp HTTP/1.1\r\n" + host + b"content-length: " + size + b"\r\n\r\n"
        yield b"\x20" + post + octets
        yield b"\x20" + (post + octets) * 2
    yield b"\0HEAD /index.json HTTP/1.0\r\n\r\n"


def _trace(data: bytes) -> None:
    if trace_of([(b"traceparent", data)]) is None:
        raise errors.MalformedRequest("no trace")


PLANE_TARGETS = (
    Target(name="trace-header", run=_trace, seeds=lambda: [b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01"]),
    Target(name="public-plane", run=_public, seeds=_public_seeds, longest=8192),
    Target(
        name="station-plane",
        run=_station,
        seeds=_station_seeds,
        shape=Shape.JSON,
        refused_seeds=True,
        longest=16384,
    ),
)
