"""The load generator: processes with raw TLS sockets that know just enough HTTP/1.1 to be cheap.

Each connection is a station that waits for an answer before it asks again (closed loop).  One process carries
several connections over epoll.  Requests are rendered before the clock starts; only what depends on an
answer, the device's signature over its challenge and the request that carries it, is made in the run, and its
time is reported.  Every answer is checked: a refusal ends the measurement, and when the clock has stopped
each certificate is read and its key compared with the device's.
"""

import base64
import gc
import json
import multiprocessing
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from multiprocessing.connection import Connection as Pipe
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from bench.devices import Device
from bench.installation import RUN, Failed, Installation
from birthmark.pki.possession import proof_message

__all__ = ["Connection", "Load", "Outcome", "Refused", "Report", "certify", "read", "run", "spread"]

_ECDSA: Final = ec.ECDSA(hashes.SHA256())
_TIMEOUT_SECONDS: Final = 120.0


class Refused(Failed):
    """An answer with another status than 200."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to ask for."""

    devices: Sequence[Device]
    gang: int
    """Devices in one request; 1 uses the single endpoints."""
    connections: int
    prove: bool
    """Whether each issue is followed by its proof: the whole transaction."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What was seen; times are in seconds."""

    devices: int
    wall: float
    cpu: float
    """CPU time of all processes of the load generator."""
    signing: float
    """Of it, the devices' own signatures."""
    issue: list[float]
    prove: list[float]
    whole: list[float]
    """From the first octet asked to the last octet answered: issue, sign and prove."""
    seqs: dict[str, int]
    refused: int = 0
    """Answers with another status than 200; ours end the measurement."""


@dataclass(slots=True)
class _Job:
    devices: Sequence[Device]
    body: bytes


@dataclass(slots=True)
class Report:
    """What one process of the load generator saw; times are in seconds."""

    started: float = 0.0
    ended: float = 0.0
    cpu: float = 0.0
    signing: float = 0.0
    issue: list[float] = field(default_factory=list)
    prove: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    seqs: dict[str, int] = field(default_factory=dict)
    refused: int = 0
    failure: str = ""


class Connection:
    """A kept HTTP/1.1 connection, asked and answered in turn."""

    def __init__(self, kept: socket.socket, host: str) -> None:
        kept.setblocking(False)
        self.socket, self._host = kept, host
        self._received = bytearray()
        self._wanted = -1
        self.asked = 0.0

    def headers(self) -> str:
        """Return what the next request carries beside the usual."""
        return ""

    def ask(self, path: str, body: bytes, method: str = "POST") -> None:
        """Send a request; the clock of its latency starts here."""
        request = (
            f"{method} {path} HTTP/1.1\r\nhost: {self._host}\r\ncontent-type: application/json\r\n"
            f"{self.headers()}content-length: {len(body)}\r\n\r\n"
        ).encode() + body
        self.asked = time.perf_counter()
        while request:
            try:
                request = request[self.socket.send(request) :]
            except (ssl.SSLWantWriteError, BlockingIOError):
                select.select([], [self.socket], [], _TIMEOUT_SECONDS)

    def answer(self) -> bytes | None:
        """Return the body of the answer once it is complete.

        Raises:
            Refused: it is not status 200.
            Failed: the connection is gone.
        """
        try:
            while True:
                octets = self.socket.recv(1 << 18)
                if not octets:
                    raise Failed("the service closed the connection")
                self._received += octets
        except (ssl.SSLWantReadError, BlockingIOError):
            pass
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return None
        if self._wanted < 0:
            length = bytes(self._received[:end]).lower().partition(b"content-length:")[2]
            self._wanted = end + 4 + int(length.partition(b"\r\n")[0]) if length else self._unchunked(end + 4)
        if self._wanted < 0 or len(self._received) < self._wanted:
            return None
        whole = bytes(self._received[: self._wanted])
        del self._received[: self._wanted]
        self._wanted = -1
        if not whole.startswith(b"HTTP/1.1 200 "):
            raise Refused(f"the service refused: {whole[:600]!r}")
        return whole[end + 4 :]

    def _unchunked(self, start: int) -> int:
        """Put the chunks of a body that is all there together (RFC 9112, 7.1); return its end, or -1."""
        at, body = start, bytearray()
        while (line := self._received.find(b"\r\n", at)) >= 0:
            size = int(self._received[at:line].partition(b";")[0], 16)
            at = line + 2 + size + 2
            if len(self._received) < at:
                return -1
            if size == 0:
                self._received[start:at] = body
                return start + len(body)
            body += self._received[line + 2 : at - 2]
        return -1


class _Station(Connection):
    """One station's kept connection."""

    def __init__(self, site: Installation, station: str, seq: int) -> None:
        self.station, self.seq = station, seq
        plain = socket.create_connection((site.host, site.port), timeout=_TIMEOUT_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = site.context(station).wrap_socket(plain, server_hostname=site.host)
        super().__init__(tls, f"{site.host}:{site.port}")
        self.job: _Job | None = None
        self.begun = 0.0
        self.proving = False

    def headers(self) -> str:
        """Return the request's number."""
        self.seq += 1
        return f"birthmark-seq: {self.seq}\r\n"


class _Worker:
    """One process of the load generator."""

    def __init__(self, load: Load, connections: Sequence[_Station], jobs: list[_Job]) -> None:
        self._load, self._connections, self._jobs, self._report = load, connections, jobs, Report()
        self._certificates: list[tuple[Device, str]] = []
        single = load.gang == 1
        self._issue_path = f"/v1/runs/{RUN}/{'issue' if single else 'gang-issue'}"
        self._prove_path = f"/v1/{'prove' if single else 'gang-prove'}"

    def run(self, pipe: Pipe) -> None:
        """Say that all is ready, wait for the start, ask until all is answered, and report."""
        report = self._report
        try:
            pipe.send(None)
            pipe.recv()
            gc.disable()
            cpu, report.started = time.process_time(), time.perf_counter()
            self._carry()
            report.ended, report.cpu = time.perf_counter(), time.process_time() - cpu
            for device, certificate in self._certificates:
                certify(device, certificate)
            report.seqs = {connection.station: connection.seq for connection in self._connections}
        except (Failed, OSError, ValueError, KeyError) as failed:
            report.failure = f"{type(failed).__name__}: {failed}"
        pipe.send(report)

    def _carry(self) -> None:
        epoll = select.epoll()
        busy: dict[int, _Station] = {}
        for connection in self._connections:
            if self._next(connection):
                busy[connection.socket.fileno()] = connection
                epoll.register(connection.socket.fileno(), select.EPOLLIN)
        while busy:
            ready = epoll.poll(_TIMEOUT_SECONDS)
            if not ready:
                raise Failed(f"no answer for {_TIMEOUT_SECONDS:.0f} s")
            for number, _ in ready:
                body = busy[number].answer()
                if body is not None and not self._answered(busy[number], body):
                    epoll.unregister(number)
                    del busy[number]
        epoll.close()

    def _next(self, connection: _Station) -> bool:
        if not self._jobs:
            return False
        connection.job, connection.proving = self._jobs.pop(), False
        connection.ask(self._issue_path, connection.job.body)
        connection.begun = connection.asked
        return True

    def _answered(self, connection: _Station, body: bytes) -> bool:
        """Take an answer in and ask the next thing; False if there is none."""
        now = time.perf_counter()
        job = connection.job
        if job is None:
            raise Failed("an answer to nothing")
        if connection.proving:
            self._report.prove.append(now - connection.asked)
            self._report.whole.append(now - connection.begun)
            _results(body, len(job.devices), "released")
            return self._next(connection)
        self._report.issue.append(now - connection.asked)
        results = _results(body, len(job.devices), "issued")
        self._certificates += [
            (device, result["certificate"]) for device, result in zip(job.devices, results, strict=True)
        ]
        if not self._load.prove:
            return self._next(connection)
        connection.proving = True
        proofs = [self._proof(device, result) for device, result in zip(job.devices, results, strict=True)]
        connection.ask(
            self._prove_path, json.dumps(proofs[0] if self._load.gang == 1 else {"proofs": proofs}).encode()
        )
        return True

    def _proof(self, device: Device, issued: dict[str, Any]) -> dict[str, str]:
        fingerprint = sha256(ssl.PEM_cert_to_DER_cert(issued["certificate"])).hexdigest()
        message = proof_message(
            attempt=issued["attempt"],
            certificate_sha256=fingerprint,
            challenge=base64.b64decode(issued["challenge"]),
        )
        begun = time.perf_counter()
        signature = device.key.sign(message, _ECDSA)
        self._report.signing += time.perf_counter() - begun
        return {
            "attempt": issued["attempt"],
            "certificate_sha256": fingerprint,
            "signature": base64.b64encode(signature).decode(),
            "idempotency_key": f"p-{device.hardware_id}",
        }


def certify(device: Device, certificate: str) -> None:
    """Read a certificate (PEM) and see that its key is the device's.

    Raises:
        Failed: it is of another key.
        ValueError: it is no certificate.
    """
    if x509.load_pem_x509_certificate(certificate.encode()).public_key() != device.key.public_key():
        raise Failed(f"the certificate for {device.hardware_id} has another key")


def _jobs(load: Load) -> list[_Job]:
    """Render the issue requests."""
    if load.gang == 1:
        return [_Job([device], device.order.encode()) for device in load.devices]
    batches = [load.devices[at : at + load.gang] for at in range(0, len(load.devices), load.gang)]
    return [_Job(batch, f'{{"devices":[{",".join(d.order for d in batch)}]}}'.encode()) for batch in batches]


def _results(body: bytes, count: int, state: str) -> list[dict[str, Any]]:
    answer = json.loads(body)
    results: list[dict[str, Any]] = answer.get("results", [answer])
    if len(results) != count or any(result.get("state") != state for result in results):
        raise Failed(f"not every device was {state}: {body[:600]!r}")
    return results


def run(site: Installation, load: Load, seqs: dict[str, int], processes: int) -> Outcome:
    """Put a load on an installation and say what was seen.

    Args:
        site: the installation, being served.
        load: what to ask for.
        seqs: the last request number of each station so far.
        processes: how many processes to spread the connections over; at most one a connection.

    Raises:
        Failed: a request was refused or not answered.
    """
    processes = min(processes, load.connections)
    jobs = _jobs(load)

    def work(number: int, pipe: Pipe) -> None:
        stations = site.stations[: load.connections][number::processes]
        connections = [_Station(site, station, seqs.get(station, 0)) for station in stations]
        _Worker(load, connections, jobs[number::processes]).run(pipe)

    reports = spread(work, processes)
    seqs |= {station: seq for report in reports for station, seq in report.seqs.items()}
    return Outcome(
        devices=len(load.devices),
        wall=max(report.ended for report in reports) - min(report.started for report in reports),
        cpu=sum(report.cpu for report in reports),
        signing=sum(report.signing for report in reports),
        issue=[seconds for report in reports for seconds in report.issue],
        prove=[seconds for report in reports for seconds in report.prove],
        whole=[seconds for report in reports for seconds in report.whole],
        seqs=seqs,
    )


def spread(work: Callable[[int, Pipe], None], processes: int) -> list[Report]:
    """Do a piece of work in several processes that begin together, and collect their reports.

    Args:
        work: is told the number of its process and a pipe: sends None when it is ready, waits until
            something comes, and sends its ``Report``.
        processes: how many.

    Raises:
        Failed: one of them failed.
    """
    workers = []
    fork = multiprocessing.get_context("fork")  # the devices come along without being copied
    for number in range(processes):
        ours, theirs = fork.Pipe()
        process = fork.Process(target=_try, args=(work, number, theirs), daemon=True)
        process.start()
        theirs.close()
        workers.append((ours, process))
    try:
        for pipe, _ in workers:
            _received(pipe)
        for pipe, _ in workers:
            pipe.send(None)
        return [_received(pipe) for pipe, _ in workers]
    finally:
        for pipe, process in workers:
            pipe.close()
            process.join(_TIMEOUT_SECONDS)


def _try(work: Callable[[int, Pipe], None], number: int, pipe: Pipe) -> None:
    try:
        work(number, pipe)
    except (Failed, OSError) as failed:
        pipe.send(Report(failure=f"{type(failed).__name__}: {failed}"))


def _received(pipe: Any) -> Report:
    if not pipe.poll(_TIMEOUT_SECONDS * 2):
        raise Failed("a process of the load generator is silent")
    try:
        report = pipe.recv() or Report()
    except EOFError as cause:
        raise Failed("a process of the load generator died") from cause
    if report.failure:
        raise Failed(report.failure)
    return report


def read(site: Installation, path: str) -> dict[str, Any]:
    """Return what a GET answers."""
    connection = _Station(site, site.stations[0], 0)
    connection.ask(path, b"", "GET")
    while (body := connection.answer()) is None:
        select.select([connection.socket], [], [], _TIMEOUT_SECONDS)
    connection.socket.close()
    answer: dict[str, Any] = json.loads(body)
    return answer
