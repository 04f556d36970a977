"""How many copies of a secret a running service holds, and how long: measured, as a table (SPEC B7).

    python -m tests.system.memory_table [--further N]

A real ``birthmark serve`` delivers keys over TLS, in the clear and enveloped.  Its memory is read through
``/proc`` as root, which alone may: at the moment of the answer, a little later, and after N further requests.
Counted is every place where a secret stands as it is, in DER, or in base64.  ``docs/secrets-in-memory.md``
has the table; ``test_memory.py`` holds the program to what is said there.
"""

import argparse
import base64
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from birthmark.pki.certificates import from_pem, to_pem
from birthmark.pki.envelope import open_envelope
from tests.support.server import RUN, Http, RealmDirectory, Server, copy_realm, tls_context

__all__ = ["Copies", "Forms", "Moment", "copies_in", "forms_of", "measure", "pages_of"]

_WRITABLE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw", re.MULTILINE)
_PIECE = 1 << 24
Forms = Mapping[str, bytes]
"""How a secret may stand in memory, by the name of the form."""


def pages_of(pid: int) -> Iterator[bytes]:
    """Return what a process can write to, one run of pages after the other.

    Raises:
        PermissionError: we are not root.
    """
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        for begin, end in _WRITABLE.findall(maps):
            at, last = int(begin, 16), int(end, 16)
            whole = bytearray()
            while at < last and (piece := os.pread(memory, min(last - at, _PIECE), at)):
                whole += piece
                at += len(piece)
            yield bytes(whole)
    finally:
        os.close(memory)


def forms_of(key: ec.EllipticCurvePrivateKey) -> Forms:
    """Return how a P-256 key may stand in memory.

    ``head`` and ``tail`` are halves of the number, so that one that was partly overwritten is seen, too, and
    ``limbs`` is how OpenSSL computes with it: from its least octet on.  ``base64`` is what stands between two
    line ends of its PEM, however those are spelled, and in no other key's.
    """
    scalar = key.private_numbers().private_value.to_bytes(32, "big")
    coded = base64.b64encode(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    return {"head": scalar[:16], "tail": scalar[16:], "limbs": scalar[:15:-1], "base64": coded[64:88]}


Copies = Mapping[str, int]
"""How often each form stands in a process."""


def copies_in(pids: Iterable[int], forms: Forms) -> Copies:
    """Count the places in all these processes together."""
    counts = dict.fromkeys(forms, 0)
    for pid in pids:
        for pages in pages_of(pid):
            for name, octets in forms.items():
                counts[name] += pages.count(octets)
    return counts


# --- the service ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What was counted at one moment."""

    what: str
    """Whose secret, and how it was delivered."""
    when: str
    copies: Copies


def delivered(
    server: Server, credential: Path, hardware_id: str, *, envelope: bool
) -> ec.EllipticCurvePrivateKey:
    """Have a key delivered, and return it as soon as the answer is here."""
    body = {"hardware_id": hardware_id, "idempotency_key": f"memory-{hardware_id}", "envelope": envelope}
    with Http(server.address, tls_context(credential)) as client:
        answer = client.post(f"/v1/runs/{RUN}/issue", body).json
    octets = (answer["private_key"] or "").encode()
    if envelope:
        own = load_pem_private_key((credential / "station.key").read_bytes(), None)
        (certificate, *_) = from_pem((credential / "station.crt").read_text(encoding="ascii"))
        (sealed,) = from_pem(answer["private_key_envelope"], "CMS")
        assert isinstance(own, ec.EllipticCurvePrivateKey)
        octets = to_pem(open_envelope(sealed, own, certificate).reveal(), "PRIVATE KEY").encode()
    key = load_pem_private_key(octets, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def measure(server: Server, *, further: int) -> Iterator[Moment]:
    """Have keys delivered in both ways, and count at each moment; then count what the service keeps.

    Args:
        server: runs; its realm has no device yet whose hardware id begins with ``MEM``.
        further: how many requests follow each key.
    """
    realm, pids = server.realm, server.workers()
    sealed = realm.path / "memory-bootstrap"
    realm.run("bootstrap", "issue", "--name", "memory", "--hardware-id", "serial:MEM-1", "--out", sealed)
    with Http(server.address, tls_context(realm.station())) as station:
        for what, credential, hardware_id in (
            ("delivered key, PEM", realm.station(), "MEM-0"),
            ("delivered key, enveloped", sealed, "MEM-1"),
        ):
            key = delivered(server, credential, hardware_id, envelope=credential is sealed)
            forms = forms_of(key)
            yield Moment(what=what, when="the answer has just arrived", copies=copies_in(pids, forms))
            for _ in range(further):
                station.get("/v1/me")
            yield Moment(what=what, when=f"after {further} GET", copies=copies_in(pids, forms))
            for number in range(further):
                body = {
                    "hardware_id": f"{hardware_id}-{number}",
                    "idempotency_key": f"more-{hardware_id}-{number}",
                }
                assert station.post(f"/v1/runs/{RUN}/issue", body).status == 200
            yield Moment(what=what, when=f"and {further} issued", copies=copies_in(pids, forms))
    yield from kept(realm, pids)


def kept(realm: RealmDirectory, pids: Iterable[int]) -> Iterator[Moment]:
    """Count what a service with keys in software keeps as long as it runs."""
    passphrase = (realm.path / "secrets" / "keystore.passphrase").read_bytes().strip()
    other = (realm.path / "secrets" / "server.passphrase").read_bytes().strip()
    for what, text in (
        ("passphrase of the key store", passphrase),
        ("passphrase of the server's key", other),
    ):
        yield Moment(what=what, when="all the time", copies=copies_in(pids, {"text": text}))
    with_key = load_pem_private_key((realm.path / "keys" / "issuing-1.p8").read_bytes(), passphrase)
    assert isinstance(with_key, ec.EllipticCurvePrivateKey)
    yield Moment(
        what="an authority's key, in software",
        when="all the time",
        copies=copies_in(pids, forms_of(with_key)),
    )


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description="Count copies of secrets in a running service.")
    parser.add_argument("--further", type=int, default=100, help="requests that follow each key")
    further = parser.parse_args().further
    with tempfile.TemporaryDirectory() as folder:
        realm = copy_realm(Path(folder) / "realm")
        with Server(realm=realm) as server:
            sys.stdout.write("| secret | when | copies |\n|---|---|---|\n")
            for moment in measure(server, further=further):
                copies = ", ".join(f"{count} {form}" for form, count in moment.copies.items())
                sys.stdout.write(f"| {moment.what} | {moment.when} | {copies} |\n")


if __name__ == "__main__":
    main()
