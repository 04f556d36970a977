"""Handshakes and first contacts a second at the gateway, held against the bare TLS stack (SPEC H3).

The bare stack is an asyncio server under uvloop with the same ssl context (key, anchors, suites, no tickets)
and as many processes, which answers 204 to whatever arrives and has none of our code.  What is told are
ratios: by the clock, in which client and server share the machine, and by the servers' own processor time.

Every device connects anew, with a certificate of its own, and each first contact is a device that was never
there; ``again`` is the same devices once more, which the gateway only reads about.  Contexts and requests are
made before the clock starts.  The three are asked of both servers in turns, so that a slow minute of the
machine falls on both.
"""

import asyncio
import http.client
import json
import multiprocessing
import os
import signal
import socket
import ssl
import statistics
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any, Final

import uvloop
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from bench import machine
from bench.devices import Device, Pool
from bench.installation import RUN, Failed, Installation, installation
from birthmark.edge.http.contexts import server_context
from birthmark.pki.certificates import from_pem
from birthmark.pki.possession import proof_message
from birthmark.secret import SecretBytes

__all__ = ["CONTACT", "Figures", "Vehicle", "fleet", "gateway_of", "measure", "meet", "released"]

GANG: Final = 256
PROCESSES: Final = 2
"""Of each server."""
CLIENTS: Final = 6
"""Processes that connect, each one connection at a time."""
ROUNDS: Final = 3
_ECDSA: Final = ec.ECDSA(hashes.SHA256())
_TIMEOUT: Final = 60.0
_BARE: Final = b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Vehicle:
    """A released device: its credential in one file, as ``ssl`` reads it."""

    id: str
    credential: Path = field(repr=False)

    def context(self, root: Path) -> ssl.SSLContext:
        """Return its TLS context."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(root)
        context.load_cert_chain(self.credential)
        return context


@dataclass(frozen=True, slots=True, kw_only=True)
class Sitting:
    """What was seen of one server in one sitting."""

    asked: int
    seconds: float
    cpu: float
    """Of the server's processes."""

    @property
    def rate(self) -> float:
        """A second, by the clock."""
        return self.asked / self.seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """All sittings: what was asked, of whom, and how it went."""

    vehicles: int
    processes: int
    gateway: dict[str, list[Sitting]]
    bare: dict[str, list[Sitting]]

    def ratios(self) -> dict[str, tuple[float, float]]:
        """Return gateway / bare of each: by the clock, and by processor time of the servers; median."""
        found = {}
        for name, sittings in self.gateway.items():
            pairs = list(zip(sittings, self.bare[name], strict=True))
            found[name] = (
                statistics.median(ours.rate / theirs.rate for ours, theirs in pairs),
                statistics.median(
                    (theirs.cpu / theirs.asked) / (ours.cpu / ours.asked) for ours, theirs in pairs
                ),
            )
        return found

    def document(self) -> dict[str, Any]:
        """Return it for the JSON file."""

        def rows(of: dict[str, list[Sitting]]) -> dict[str, list[dict[str, float]]]:
            return {
                name: [{"asked": one.asked, "seconds": one.seconds, "cpu": one.cpu} for one in sittings]
                for name, sittings in of.items()
            }

        return {
            "vehicles": self.vehicles,
            "processes": self.processes,
            "gateway": rows(self.gateway),
            "bare": rows(self.bare),
            "ratios": self.ratios(),
        }

    def text(self) -> str:
        """Return the table for the screen."""
        lines = [f"{'':<16}{'gateway/s':>12}{'bare/s':>12}{'ratio':>8}{'ratio, cpu':>12}"]
        for name, (clock, cpu) in self.ratios().items():
            ours = statistics.median(one.rate for one in self.gateway[name])
            theirs = statistics.median(one.rate for one in self.bare[name])
            lines.append(f"{name:<16}{ours:>12.0f}{theirs:>12.0f}{clock:>8.2f}{cpu:>12.2f}")
        return "\n".join(lines)


# --- vehicles


def fleet(
    line: tuple[str, int], context: ssl.SSLContext, run: str, devices: Sequence[Device], folder: Path
) -> list[Vehicle]:
    """Bring devices through a line that is served.

    Args:
        line: address of the station plane.
        context: of a station.
        run: that admits them.
        devices: with their keys.
        folder: gets their credentials.

    Raises:
        Failed: one was refused.
    """
    folder.mkdir(exist_ok=True)
    made: list[Vehicle] = []
    station = http.client.HTTPSConnection(*line, context=context, timeout=_TIMEOUT)
    try:
        for start in range(0, len(devices), GANG):
            gang = devices[start : start + GANG]
            orders = ",".join(device.order for device in gang)
            issued = _posted(station, f"/v1/runs/{run}/gang-issue", f'{{"devices":[{orders}]}}')
            pairs = list(zip(gang, issued["results"], strict=True))
            proofs = json.dumps({"proofs": [_proof(device, result) for device, result in pairs]})
            released = _posted(station, "/v1/gang-prove", proofs)
            if any(one.get("state") != "released" for one in released["results"]):
                raise Failed("not every device was released")
            made += [_vehicle(device, result, folder) for device, result in pairs]
    finally:
        station.close()
    return made


def _posted(station: http.client.HTTPSConnection, path: str, body: str) -> Any:
    station.request("POST", path, body, {"content-type": "application/json"})
    answer = station.getresponse()
    octets = answer.read()
    if answer.status != http.HTTPStatus.OK:
        raise Failed(f"{path} was answered {answer.status}: {octets[:300]!r}")
    return json.loads(octets)


def _proof(device: Device, issued: Any) -> dict[str, str]:
    digest = sha256(ssl.PEM_cert_to_DER_cert(issued["certificate"])).hexdigest()
    challenge = b64decode(issued["challenge"])
    message = proof_message(attempt=issued["attempt"], certificate_sha256=digest, challenge=challenge)
    signature = b64encode(device.key.sign(message, _ECDSA)).decode()
    return {
        "attempt": issued["attempt"],
        "certificate_sha256": digest,
        "signature": signature,
        "idempotency_key": f"p-{device.hardware_id}",
    }


def _vehicle(device: Device, issued: Any, folder: Path) -> Vehicle:
    key = device.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    path = folder / f"{device.hardware_id}.pem"
    path.write_text("\n".join([key, issued["certificate"], *issued["chain"]]), encoding="ascii")
    return Vehicle(id=issued["device"], credential=path)


def released(site: Installation, devices: Sequence[Device]) -> list[Vehicle]:
    """Bring devices through the line of a served installation; as ``fleet``."""
    station = site.context(site.stations[0])
    return fleet((site.host, site.port), station, RUN, devices, site.folder / "vehicles")


# --- servers


def gateway_of(site: Installation, *, processes: int = PROCESSES) -> int:
    """Give an installation a gateway, which shows the server's certificate; return its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    with site.settings.open("a", encoding="utf-8") as settings:
        settings.write(
            f"""
[gateway-plane]
port = {port}
processes = {processes}
certificate-file = "server.crt"
key-file = "secrets/server.key"
key-passphrase-file = "secrets/server.passphrase"
"""
        )
    return port


@contextmanager
def _bare(site: Installation, processes: int) -> Iterator[tuple[int, list[int]]]:
    """Serve 204 with the gateway's ssl context and none of its code; yields port and process ids."""
    context = _context(site)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(512)
    fork = multiprocessing.get_context("fork")
    servers = [
        fork.Process(target=_serve_bare, args=(listener, context), daemon=True) for _ in range(processes)
    ]
    for server in servers:
        server.start()
    try:
        yield listener.getsockname()[1], [server.pid or 0 for server in servers]
    finally:
        for server in servers:
            os.kill(server.pid or 0, signal.SIGKILL)
            server.join()
        listener.close()


def _context(site: Installation) -> ssl.SSLContext:
    secret = (site.folder / "secrets/server.passphrase").read_bytes().strip()
    anchors = from_pem((site.folder / "root.crt").read_text(encoding="ascii"))
    context = server_context(
        site.folder / "server.crt",
        site.folder / "secrets/server.key",
        SecretBytes(secret),
        anchors,
        lambda _cause, _refusal, _peer: None,
    )
    context.sslobject_class = ssl.SSLObject
    context.sni_callback = None
    return context


class _Says204(asyncio.Protocol):
    """Answers the first octets that come, and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = transport

    def data_received(self, _data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        self._transport.write(_BARE)  # type: ignore[attr-defined]  # a transport that writes
        self._transport.close()


def _serve_bare(listener: socket.socket, context: ssl.SSLContext) -> None:
    async def forever() -> None:
        server = await asyncio.get_running_loop().create_server(_Says204, sock=listener, ssl=context)
        await server.serve_forever()

    uvloop.install()
    asyncio.run(forever())


# --- clients

Ask = tuple[str, str]
"""Method and path."""
HANDSHAKE: Final[Ask] = ("GET", "/.well-known/jwks.json")
"""What costs a handshake and hardly anything else: no look at the record."""
CONTACT: Final[Ask] = ("POST", "/v1/contact")


def meet(vehicles: Sequence[Vehicle], root: Path, port: int, ask: Ask) -> float:
    """Have each vehicle connect and ask once; return the seconds it took all of them.

    Raises:
        Failed: one was not answered with 200 or 204.
    """
    fork, workers = multiprocessing.get_context("fork"), []
    for number in range(CLIENTS):
        ours, theirs = fork.Pipe()
        share = vehicles[number::CLIENTS]
        process = fork.Process(target=_connect, args=(share, root, port, ask, theirs), daemon=True)
        process.start()
        theirs.close()
        workers.append((ours, process))
    try:
        for pipe, _ in workers:
            _told(pipe)
        begun = time.perf_counter()
        for pipe, _ in workers:
            pipe.send("go")
        for pipe, _ in workers:
            _told(pipe)
        return time.perf_counter() - begun
    finally:
        for pipe, process in workers:
            pipe.close()
            process.join(_TIMEOUT)


def _told(pipe: Any) -> None:
    if not pipe.poll(10 * _TIMEOUT):
        raise Failed("a process that connects is silent")
    said = pipe.recv()
    if said:
        raise Failed(said)


def _connect(vehicles: Sequence[Vehicle], root: Path, port: int, ask: Ask, pipe: Pipe) -> None:
    method, path = ask
    request = (
        f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    ).encode()
    try:
        contexts = [vehicle.context(root) for vehicle in vehicles]
        pipe.send("")
        pipe.recv()
        for context in contexts:
            with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT) as plain:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with context.wrap_socket(plain, server_hostname="127.0.0.1") as tls:
                    tls.sendall(request)
                    answer = tls.recv(65_536)
            if not answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 204 ")):
                raise Failed(f"refused: {answer[:400]!r}")
        pipe.send("")
    except (Failed, OSError) as failed:
        pipe.send(f"{type(failed).__name__}: {failed}")


# --- measuring


def measure(vehicles: int, database: str = "sqlite") -> Figures:
    """Measure with so many vehicles, a third of them new in each round.

    Raises:
        Failed: a vehicle was refused, or the record does not have each of them once.
    """
    each = vehicles // ROUNDS
    names = ("handshakes", "first contacts", "again")
    figures = Figures(
        vehicles=each * ROUNDS,
        processes=PROCESSES,
        gateway={name: [] for name in names},
        bare={name: [] for name in names},
    )
    with installation(database) as site:
        port, root, pool = gateway_of(site), site.folder / "root.crt", Pool()
        with site.serving(1) as pid, _bare(site, PROCESSES) as (bare_port, bare_pids):
            cars = released(site, pool.take(each * ROUNDS))
            _until_served(cars[0], root, port)
            for number in range(ROUNDS):
                share = cars[number * each : (number + 1) * each]
                for name, ask in zip(names, (HANDSHAKE, CONTACT, CONTACT), strict=True):
                    ours = _sit(machine.family(pid), partial(meet, share, root, port, ask), each)
                    figures.gateway[name].append(ours)
                    theirs = _sit(bare_pids, partial(meet, share, root, bare_port, ask), each)
                    figures.bare[name].append(theirs)
        site.command("check")
    return figures


def _sit(pids: Sequence[int], ask: Callable[[], float], asked: int) -> Sitting:
    before = machine.cpu_seconds(list(pids))
    seconds = ask()
    return Sitting(asked=asked, seconds=seconds, cpu=machine.cpu_seconds(list(pids)) - before)


def _until_served(car: Vehicle, root: Path, port: int) -> None:
    deadline = time.monotonic() + _TIMEOUT
    while True:
        try:
            meet([car], root, port, HANDSHAKE)
        except Failed:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return
