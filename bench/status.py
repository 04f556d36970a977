"""OCSP answers a second on one core, live and signed beforehand (SPEC F3).

Each request is about another one of 40,000 certificates, none of them revoked, and has no nonce; ``lately``
are a thousand of them, asked about over and over.  What
is found is held against two things that whoever reads knows: ``openssl ocsp`` as a server over its own index
of the same certificates, and how often a key of the same kind signs an answer's octets when nothing else is
done.  Each server has the first core and the client what is left; the client keeps its connections where the
server lets it (``openssl ocsp`` answers one client at a time and ends each connection after one answer).

Servers are measured in turn, in rounds, and told is the median round: by the clock, in which the client and
whatever else the machine does have a part, and by the server's own processor time, in which OpenSSL's waiting
for its one client does not count.
"""

import argparse
import hashlib
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import ocsp

from bench.crls import sqlite_realm
from birthmark import app, errors
from birthmark.adapters.publication import PublicationDirectory
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.floor.authorities import Authority, AuthorityKind
from birthmark.floor.clients import Credential
from birthmark.floor.devices import DeviceCertificate
from birthmark.floor.revocations import UNPARTITIONED
from birthmark.pki.certificates import serial_hex, to_pem
from birthmark.pki.keys import KeyLabel
from birthmark.pki.ocsp import cert_id
from birthmark.pki.revocation import CertStatus
from birthmark.ports import Act, Decision, Facts, SignedAnswer
from birthmark.secret import SecretBytes
from birthmark.services.status import Standing, delegate, say
from birthmark.settings import load

__all__ = ["TARGETS", "Rate", "Rates", "measure"]

CONNECTIONS = 8
CERTIFICATES = 40_000
LATELY = 1000
"""So many of them are asked about again and again: their answers stay in the server's memory."""
TARGETS = {"presigned / openssl ocsp": 3.0, "live / openssl ocsp": 1.5}
PUBLIC = """\
[realm]
name = "bench"
environment = "test"
organization = "Bench"
[public-plane]
port = {port}
directory = "{www}"
ocsp = "{mode}"
"""
LIVE = """\
[public-plane.key-store]
kind = "software"
directory = "{keys}"
passphrase-file = "{passphrase}"
[database]
url = "sqlite:///{database}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """What was done in a second."""

    clock: float
    """By the wall's clock."""
    processor: float
    """Of processor time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Answers a second."""

    live: Rate
    presigned: Rate
    presigned_lately: Rate
    openssl: Rate
    signatures: Rate
    """Signatures over an answer's octets, by the same library."""

    def ratios(self) -> dict[str, Rate]:
        """Return what is told: more is better."""
        return {
            f"{name} / {against}": Rate(
                clock=one.clock / other.clock, processor=one.processor / other.processor
            )
            for name, one in (
                ("live", self.live),
                ("presigned", self.presigned),
                ("presigned lately", self.presigned_lately),
            )
            for against, other in (("openssl ocsp", self.openssl), ("signatures", self.signatures))
        }

    def document(self) -> dict[str, Any]:
        """Return what the results file says."""
        rates = {name: asdict(getattr(self, name)) for name in self.__slots__}
        ratios = {name: asdict(ratio) for name, ratio in self.ratios().items()}
        return rates | {"ratios": ratios, "targets": dict(TARGETS)}

    def text(self) -> str:
        """Return the figures as a table."""
        lines = [f"{'':30} {'answers/s':>10} {'a CPU-second':>13}"]
        for name in self.__slots__:
            rate = getattr(self, name)
            lines.append(f"{name:30} {rate.clock:10,.0f} {rate.processor:13,.0f}")
        for name, ratio in self.ratios().items():
            target = f"  (target {TARGETS[name]:.1f})" if name in TARGETS else ""
            lines.append(f"{name:30} {ratio.clock:10.2f} {ratio.processor:13.2f}{target}")
        return "\n".join(lines)


def measure(seconds: float = 5.0, rounds: int = 3) -> Rates:
    """Set everything up and measure each server for so long, in so many rounds."""
    with tempfile.TemporaryDirectory(prefix="birthmark-status-") as temporary, ExitStack() as servers:
        folder = Path(temporary)
        settings = sqlite_realm(folder, folder / "www")
        issuer, serials = _issue(settings)
        requests = _requests(issuer, serials)
        asked: dict[str, Callable[[float], Rate]] = {}
        for mode in ("live", "presigned"):
            port, file = _free_port(), folder / f"{mode}.toml"
            file.write_text(PUBLIC.format(port=port, www=folder / "www", mode=mode))
            if mode == "live":
                _delegate(settings, file)
            else:
                _sign_all(issuer, serials, folder)
            command = [sys.executable, "-m", "birthmark", "serve", "--settings", str(file)]
            pid = servers.enter_context(_running(command, port))
            asked[mode] = partial(_rate, port, pid, "/ocsp", requests)
            if mode == "presigned":
                asked["presigned_lately"] = partial(_rate, port, pid, "/ocsp", requests[:LATELY])
        port = _free_port()
        pid = servers.enter_context(_running(_openssl(folder, serials, issuer, port), port))
        asked["openssl"] = partial(_rate, port, pid, "/", requests, kept=False)
        asked["signatures"] = _signatures
        found: dict[str, list[Rate]] = {name: [] for name in asked}
        for _ in range(rounds):
            for name, ask in asked.items():
                found[name].append(ask(seconds / rounds))
    return Rates(**{name: _median(some) for name, some in found.items()})


def _median(rates: Sequence[Rate]) -> Rate:
    return Rate(
        clock=statistics.median(one.clock for one in rates),
        processor=statistics.median(one.processor for one in rates),
    )


def _delegate(settings: Path, public: Path) -> None:
    """Give the host of live answers its key and its certificate."""
    folder, passphrase = public.parent, public.parent / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text("bench\n")
    with public.open("a") as file:
        database = settings.parent / "birthmark.db"
        file.write(LIVE.format(keys=folder / "keys", passphrase=passphrase, database=database))
    key = folder / "responder.pem"
    key.write_text(_birthmark("responder", "key", "--settings", str(public)))
    _birthmark(
        "responder", "enrol", "--authority", "issuing-1", "--key", str(key), "--name", "ocsp",
        "--settings", str(settings),
    )  # fmt: skip
    _birthmark("publish", "--settings", str(settings))


def _issue(settings: Path) -> tuple[bytes, list[int]]:
    """Put certificates of devices on record; return their issuer's and their serial numbers."""
    serials = [int.from_bytes(b"\x7f" + os.urandom(19), "big") for _ in range(CERTIFICATES)]
    application = app.build(load(settings))
    try:
        (issuing,) = (one for one in application.store.scan(Authority) if one.kind is AuthorityKind.ISSUING)
        of_a_kind = next(iter(application.store.scan(Credential))).der  # nobody reads what it says

        def decide(facts: Facts, at: datetime) -> Decision[None]:
            for index, serial in enumerate(serials):
                facts.put(
                    DeviceCertificate(
                        serial=serial_hex(serial), authority=issuing.id, device=f"serial:{index}",
                        attempt=f"{index}", der=of_a_kind, sha256=f"{serial:064x}", run="bench",
                        partition=UNPARTITIONED, client="station:ST01", issued_at=at,
                    )
                )  # fmt: skip
            return Decision(None, [("benched", {})])

        application.store.submit([Act(actor="bench", decide=decide, refuse=_refuse, reads={})]).result()
    finally:
        application.close()
    return issuing.der, serials


def _refuse(_facts: Facts, _at: datetime, refusal: errors.Refusal) -> Decision[errors.Refusal]:
    raise refusal


def _requests(issuer: bytes, serials: Sequence[int]) -> list[bytes]:
    found = x509.load_der_x509_certificate(issuer)
    name = hashlib.sha1(found.subject.public_bytes(), usedforsecurity=False).digest()
    key = x509.SubjectKeyIdentifier.from_public_key(found.public_key()).digest
    empty = ocsp.OCSPRequestBuilder()
    made = (empty.add_certificate_by_hash(name, key, serial, hashes.SHA1()) for serial in serials)  # noqa: S303  # RFC 5019
    return [one.build().public_bytes(Encoding.DER) for one in made]


def _sign_all(issuer: bytes, serials: Sequence[int], folder: Path) -> None:
    """Put answers about the certificates where those signed beforehand are."""
    www, keys = folder / "www", SoftwareKeyStore.open(folder / "keys", SecretBytes(b"bench"))
    responder = (www / "responders/ocsp/issuing-1.cer").read_bytes()
    delegation = delegate("issuing-1", issuer, responder, KeyLabel("ocsp"))
    at, validity, good = app.clock().now(), timedelta(days=3), Standing(status=CertStatus.GOOD)
    answers = []
    for serial in serials:
        asked = cert_id(delegation.issuers[0], serial)
        said = say(delegation, [(asked, good)], keys.sign, at=at, validity=validity)
        answers.append(
            SignedAnswer(
                algorithm="sha1", serial_number=serial, octets=said.octets, this_update=at,
                next_update=at + validity,
            )
        )  # fmt: skip
    publication = PublicationDirectory(www)
    with publication.lock(), publication.answers("issuing-1", anew=True) as signed:
        signed.put(answers)


def _openssl(folder: Path, serials: Sequence[int], issuer: bytes, port: int) -> list[str]:
    """Return the command of OpenSSL's own responder over the same certificates."""
    lines = (f"V\t491231235959Z\t\t{serial:040X}\tunknown\t/CN={serial}\n" for serial in serials)
    (folder / "index.txt").write_text("".join(lines))
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "openssl.key").write_bytes(pem)
    (folder / "issuer.pem").write_text(to_pem(issuer))
    signer = folder / "signer.pem"
    made = ["openssl", "req", "-x509", "-key", str(folder / "openssl.key"), "-subj", "/CN=signer", "-out"]
    subprocess.run([*made, str(signer)], check=True, capture_output=True)
    return [
        "openssl", "ocsp", "-index", str(folder / "index.txt"), "-port", str(port), "-rsigner", str(signer),
        "-rkey", str(folder / "openssl.key"), "-CA", str(folder / "issuer.pem"), "-ndays", "1",
    ]  # fmt: skip


def _signatures(seconds: float) -> Rate:
    key, octets, count = ec.generate_private_key(ec.SECP256R1()), os.urandom(200), 0
    started, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - started < seconds:
        key.sign(octets, ec.ECDSA(hashes.SHA256()))
        count += 1
    return Rate(clock=count / (time.perf_counter() - started), processor=count / (time.process_time() - used))


def _rate(
    port: int, pid: int, path: str, bodies: Sequence[bytes], seconds: float, *, kept: bool = True
) -> Rate:
    """Ask for a while, on some connections in step, and return the answers a second."""
    head = f"POST {path} HTTP/1.{int(kept)}\r\nHost: localhost\r\nContent-Type: application/ocsp-request\r\n"
    begin = int.from_bytes(os.urandom(4)) % len(
        bodies
    )  # not with those that were asked about in the last round
    bodies = [*bodies[begin:], *bodies[:begin]]
    questions = cycle(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies)
    count, connections = 0, CONNECTIONS if kept else 1
    started, used = time.perf_counter(), _processor_seconds(pid)
    clients: list[socket.socket] = []
    while time.perf_counter() - started < seconds:
        if not clients:
            clients = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(connections)]
        for client in clients:
            client.sendall(next(questions))
        for client in clients:
            _answer(client)
            count += 1
        if not kept:
            while clients:
                clients.pop().close()
    for client in clients:
        client.close()
    return Rate(
        clock=count / (time.perf_counter() - started), processor=count / (_processor_seconds(pid) - used)
    )


def _processor_seconds(pid: int) -> float:
    """Return what a process has used so far, in user and kernel (proc(5): fields 14 and 15)."""
    fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _answer(client: socket.socket) -> None:
    """Read one answer to its end, and refuse one that says nothing of a certificate."""
    octets = client.recv(65_536)
    while b"\r\n\r\n" not in octets:
        octets += client.recv(65_536)
    head, _, body = octets.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while length is not None and len(body) < int(length[1]):
        body += client.recv(65_536)
    if b" 200 " not in head or len(body) < 100:
        raise RuntimeError(f"no answer: {head[:40]!r} {body[:40].hex()}")


@contextmanager
def _running(command: list[str], port: int) -> Iterator[int]:
    """Run a server on the first core; the context is its process id."""
    pinned = ["taskset", "-c", "0", *command]
    server = subprocess.Popen(pinned, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not _listens(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not serve")
            time.sleep(0.05)
        yield server.pid  # taskset becomes the server
    finally:
        server.terminate()
        server.wait(15)


def _listens(port: int) -> bool:
    """Return whether a port is listened on (proc(5)); OpenSSL's responder hangs after a mere connection."""
    wanted = f":{port:04X}"
    for table in ("tcp", "tcp6"):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1].endswith(wanted) and fields[3] == "0A":
                return True
    return False


def _birthmark(*arguments: str) -> str:
    command = [sys.executable, "-m", "birthmark", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    print(measure(parser.parse_args().seconds).text())


if __name__ == "__main__":
    main()
