"""OCSP answers a second on one core, live and signed beforehand (SPEC F3).

Held against two things that whoever reads knows: ``openssl ocsp`` as a server over its own index of the same
certificates, and how often the same key signs an answer's octets when it does nothing else.  Each server has
the first core and the client what is left; the client keeps its connections where the server lets it
(``openssl ocsp`` answers one client at a time and ends each connection after one answer).
"""

import argparse
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import ocsp

from bench.crls import sqlite_realm
from birthmark import app
from birthmark.floor.authorities import Authority, AuthorityKind
from birthmark.floor.clients import Credential
from birthmark.pki.certificates import to_pem
from birthmark.settings import load

__all__ = ["Rates", "measure"]

CONNECTIONS = 8
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
class Rates:
    """Answers a second."""

    live: float
    presigned: float
    openssl: float
    signatures: float
    """Signatures over an answer's octets a second, by the same library."""

    def ratios(self) -> dict[str, float]:
        """Return what is told: more is better."""
        return {
            "live / openssl ocsp": self.live / self.openssl,
            "live / signatures": self.live / self.signatures,
            "presigned / openssl ocsp": self.presigned / self.openssl,
            "presigned / signatures": self.presigned / self.signatures,
        }


def measure(seconds: float = 5.0) -> Rates:
    """Set everything up and measure."""
    with tempfile.TemporaryDirectory(prefix="birthmark-status-") as temporary:
        folder = Path(temporary)
        settings = sqlite_realm(folder, folder / "www")
        request, leaf, issuer = _request(settings)
        passphrase = folder / "passphrase"
        passphrase.touch(mode=0o600)
        passphrase.write_text("bench\n")
        rates = {}
        for mode in ("live", "presigned"):
            port, file = _free_port(), folder / f"{mode}.toml"
            text = PUBLIC.format(port=port, www=folder / "www", mode=mode)
            if mode == "live":
                database = settings.parent / "birthmark.db"
                text += LIVE.format(keys=folder / "keys", passphrase=passphrase, database=database)
                file.write_text(text)
                key = _birthmark("responder", "key", "--settings", str(file))
                (folder / "responder.pem").write_text(key)
                _birthmark(
                    "responder", "enrol", "--authority", "issuing-1", "--key", str(folder / "responder.pem"),
                    "--name", "ocsp", "--settings", str(settings),
                )  # fmt: skip
                _birthmark("publish", "--settings", str(settings))
            else:
                file.write_text(text)
                _sign_one(settings, folder)
            command = [sys.executable, "-m", "birthmark", "serve", "--settings", str(file)]
            with _running(command, port):
                rates[mode] = _rate(port, "/ocsp", request, seconds)
        port = _free_port()
        with _running(_openssl(folder, leaf, issuer, port), port):
            openssl = _rate(port, "/", request, seconds, kept=False)
    return Rates(
        live=rates["live"], presigned=rates["presigned"], openssl=openssl, signatures=_signatures(seconds / 2)
    )


def _request(settings: Path) -> tuple[bytes, bytes, bytes]:
    """Return a request about a certificate on record, and that and its issuer."""
    application = app.build(load(settings))
    try:
        (issuing,) = (one for one in application.store.scan(Authority) if one.kind is AuthorityKind.ISSUING)
        leaf = next(iter(application.store.scan(Credential)))
    finally:
        application.close()
    found = (x509.load_der_x509_certificate(leaf.der), x509.load_der_x509_certificate(issuing.der))
    builder = ocsp.OCSPRequestBuilder().add_certificate(*found, hashes.SHA1())  # noqa: S303  # RFC 5019
    return builder.build().public_bytes(Encoding.DER), leaf.der, issuing.der


def _sign_one(settings: Path, folder: Path) -> None:
    """Put an answer about the certificate where those signed beforehand are."""
    from datetime import timedelta  # noqa: PLC0415  # for this alone

    from birthmark.adapters.publication import PublicationDirectory  # noqa: PLC0415
    from birthmark.adapters.softkeys import SoftwareKeyStore  # noqa: PLC0415
    from birthmark.pki.keys import KeyLabel  # noqa: PLC0415
    from birthmark.pki.ocsp import cert_id  # noqa: PLC0415
    from birthmark.pki.revocation import CertStatus  # noqa: PLC0415
    from birthmark.ports import SignedAnswer  # noqa: PLC0415
    from birthmark.secret import SecretBytes  # noqa: PLC0415
    from birthmark.services.status import Standing, delegate, say  # noqa: PLC0415

    _, leaf, issuer = _request(settings)
    www, keys = folder / "www", SoftwareKeyStore.open(folder / "keys", SecretBytes(b"bench"))
    responder = (www / "responders/ocsp/issuing-1.cer").read_bytes()
    delegation = delegate("issuing-1", issuer, responder, KeyLabel("ocsp"))
    serial = x509.load_der_x509_certificate(leaf).serial_number
    asked = cert_id(delegation.issuers[0], serial)
    at = app.clock().now()
    said = say(
        delegation, [(asked, Standing(status=CertStatus.GOOD))], keys.sign, at=at, validity=timedelta(days=3)
    )
    one = SignedAnswer(
        algorithm="sha1", serial_number=serial, octets=said.octets, this_update=at,
        next_update=at + timedelta(days=3),
    )  # fmt: skip
    with PublicationDirectory(www).answers("issuing-1", anew=True) as signed:
        signed.put([one])


def _openssl(folder: Path, leaf: bytes, issuer: bytes, port: int) -> list[str]:
    """Return the command of OpenSSL's own responder over the same certificate."""
    found = x509.load_der_x509_certificate(leaf)
    ends = found.not_valid_after_utc.strftime("%y%m%d%H%M%SZ")
    (folder / "index.txt").write_text(f"V\t{ends}\t\t{found.serial_number:040X}\tunknown\t/CN=x\n")
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


def _signatures(seconds: float) -> float:
    key, octets, count = ec.generate_private_key(ec.SECP256R1()), os.urandom(200), 0
    started = time.perf_counter()
    while time.perf_counter() - started < seconds:
        key.sign(octets, ec.ECDSA(hashes.SHA256()))
        count += 1
    return count / (time.perf_counter() - started)


def _rate(port: int, path: str, body: bytes, seconds: float, *, kept: bool = True) -> float:
    """Ask for a while, on some connections in step, and return the answers a second."""
    head = (
        f"POST {path} HTTP/1.{int(kept)}\r\nHost: localhost\r\nContent-Type: application/ocsp-request\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    question, count, connections = head.encode() + body, 0, CONNECTIONS if kept else 1
    started = time.perf_counter()
    clients: list[socket.socket] = []
    while time.perf_counter() - started < seconds:
        if not clients:
            clients = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(connections)]
        for client in clients:
            client.sendall(question)
        for client in clients:
            _answer(client)
            count += 1
        if not kept:
            while clients:
                clients.pop().close()
    for client in clients:
        client.close()
    return count / (time.perf_counter() - started)


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
def _running(command: list[str], port: int) -> Iterator[None]:
    """Run a server on the first core."""
    pinned = ["taskset", "-c", "0", *command]
    server = subprocess.Popen(pinned, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not _listens(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not serve")
            time.sleep(0.05)
        yield
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
    rates = measure(parser.parse_args().seconds)
    for name in Rates.__slots__:
        print(f"{name:26} {getattr(rates, name):10,.0f} /s")
    for name, ratio in rates.ratios().items():
        print(f"{name:26} {ratio:10.2f}")


if __name__ == "__main__":
    main()
