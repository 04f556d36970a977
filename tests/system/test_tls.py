"""TLS as others see it (SPEC C1): two scanners, a client that breaks every rule, and hellos that are none."""

import json
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.checkers.running import ROOT, ask_peer
from tests.support.programs import missing, need
from tests.support.server import Http, RealmDirectory, Server, copy_realm, free_port, tls_context, until
from tests.system.test_flood import MOST_THREADS, kilobytes, line, sockets, threads

SUITES = {"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"}


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> RealmDirectory:
    return copy_realm(tmp_path_factory.mktemp("tls") / "realm")


ENROLMENT = free_port()
"""Where the enrolment plane is; the ops plane and the public one speak no TLS."""


@pytest.fixture(scope="module")
def server(realm: RealmDirectory) -> Iterator[Server]:
    with realm.settings.open("a", encoding="utf-8") as settings:
        settings.write(f"\n[enrolment-plane]\nport = {ENROLMENT}\n")
    with Server(realm=realm) as running:
        yield running


@pytest.fixture(params=["station", "enrolment"])
def scanned(server: Server, request: pytest.FixtureRequest) -> int:
    """Return the port of a plane; the enrolment plane finishes handshakes only while somebody is invited."""
    if request.param == "station":
        return server.realm.port
    server.realm.run("station", "invite", "ST60", "--site", "Graz", "--line", "L1", "--for", "1h")
    context = tls_context(None, root=server.realm.path / "root.crt")

    def opens() -> bool:
        try:
            with Http(("127.0.0.1", ENROLMENT), context) as client:
                return client.get("/v1/root").status != 0
        except OSError:
            return False

    assert until(opens, 30)
    return ENROLMENT


@pytest.fixture(autouse=True)
def untroubled(server: Server) -> Iterator[None]:
    """Whatever a client does, the server has no fault, and afterwards nothing is left of it."""
    with Http(server.address, tls_context(server.realm.station())) as client:
        assert client.get("/v1/me").status == 200
    kept, size = sockets(server), kilobytes(server)
    yield
    assert until(lambda: sockets(server) <= kept, 30), (sockets(server), kept)
    assert threads(server) <= MOST_THREADS
    assert kilobytes(server) - size < 65_536
    assert not [event for event in server.events() if event["level"] == "error" or "exception" in event]
    with Http(server.address, tls_context(server.realm.station())) as client:
        assert client.get("/v1/me").status == 200


def refused(realm: RealmDirectory) -> int:
    """Return how many handshakes and connections the log says were refused."""
    told = [entry for entry in realm.entries() if entry.get("request") in ("handshake", "connection")]
    return sum(int(entry["count"]) for entry in told)


# --- scanners -----------------------------------------------------------------------------------------------


def test_sslyze_finds_tls_1_3_with_its_aead_suites_and_nothing_else(
    server: Server, scanned: int, tmp_path: Path
) -> None:
    """It shows a station's certificate, so it sees what a station sees.

    SSL 2 it does not try: it calls a server that answers with an alert a fault of its own.
    """
    program, home, found = ROOT / ".tools/peers/sslyze/bin/sslyze", server.realm.station(), tmp_path / "found"
    if not program.exists():
        missing(".tools/peers/sslyze is not installed (scripts/install --system)")
    command = [
        str(program), "--cert", str(home / "station.crt"), "--key", str(home / "station.key"),
        "--certinfo", "--certinfo_ca_file", str(home / "root.crt"),
        "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2",
        "--tlsv1_3", "--early_data", "--resum", "--compression", "--heartbleed", "--openssl_ccs", "--robot",
        "--elliptic_curves", "--json_out", str(found), f"127.0.0.1:{scanned}",
    ]  # fmt: skip
    subprocess.run(command, check=False, capture_output=True, timeout=100)
    (scan,) = json.loads(found.read_text(encoding="utf-8"))["server_scan_results"]
    assert scan["scan_status"] == "COMPLETED", scan
    results: Mapping[str, Any] = {
        name: told["result"] for name, told in scan["scan_result"].items() if told["status"] == "COMPLETED"
    }
    accepted: dict[str, set[str]] = {}
    for version in ("ssl_3_0", "tls_1_0", "tls_1_1", "tls_1_2", "tls_1_3"):
        suites = results[f"{version}_cipher_suites"]["accepted_cipher_suites"]
        accepted[version] = {each["cipher_suite"]["name"] for each in suites}
    assert accepted.pop("tls_1_3") == SUITES
    assert not any(accepted.values()), accepted
    curves = results["elliptic_curves"]["supported_curves"]
    assert {curve["name"] for curve in curves} == {"secp256r1"}
    assert results["tls_1_3_early_data"]["supports_early_data"] is False
    assert results["tls_compression"]["supports_compression"] is False
    assert results["heartbleed"]["is_vulnerable_to_heartbleed"] is False
    assert results["openssl_ccs_injection"]["is_vulnerable_to_ccs_injection"] is False
    assert results["robot"]["robot_result"].startswith("NOT_VULNERABLE")
    (deployment,) = results["certificate_info"]["certificate_deployments"]
    paths = deployment["path_validation_results"]
    ours = [told for told in paths if told["trust_store"]["name"].startswith("Supplied")]
    assert [told["was_validation_successful"] for told in ours] == [True], deployment


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_testssl_finds_nothing_worse_than_what_a_private_authority_has(
    server: Server, scanned: int, tmp_path: Path
) -> None:
    """It has no certificate to show: it sees what anybody sees up to the point where one is demanded."""
    program, found = need("testssl", "testssl.sh"), tmp_path / "found.json"
    command = [
        program, "--nodns", "none", "--quiet", "--warnings", "off", "--color", "0", "--add-ca",
        str(server.realm.station() / "root.crt"), "--jsonfile", str(found),
        "-p", "-f", "-P", "-S", "-s", "-U", f"127.0.0.1:{scanned}",
    ]  # fmt: skip
    environment = {**os.environ, "TERM": "dumb"}
    subprocess.run(
        command, check=False, capture_output=True, timeout=500, stdin=subprocess.DEVNULL, env=environment
    )
    findings = json.loads(found.read_text(encoding="utf-8"))
    told = {finding["id"]: finding for finding in findings}
    offered = {name: told[name]["finding"] for name in ("SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2")}
    assert all(said.startswith("not offered") for said in offered.values()), offered
    assert told["TLS1_3"]["finding"].startswith("offered")
    assert told["cert_chain_of_trust"]["finding"].startswith("passed"), told["cert_chain_of_trust"]
    # Of its own authority: no CRL or OCSP is named in a server's certificate that only stations look at.
    known = {"cert_revocation", "cert_crlDistributionPoints", "cert_ocspURL"}
    bad = [finding for finding in findings if finding["severity"] in ("MEDIUM", "HIGH", "CRITICAL")]
    assert [finding for finding in bad if finding["id"] not in known] == []


# --- a client that breaks every rule ------------------------------------------------------------------------

ALLOWED = {
    "a good client", "a chain of 100", "a warning in the middle", "an extension twice",
    "an extension of 60 000 octets", "two thousand new keys",
}  # fmt: skip
"""What OpenSSL puts up with: unknown extensions and their number, a warning, more certificates, new keys."""
SILENT = {
    "a fatal alert in the middle", "a farewell in the middle", "an unknown alert", "a farewell and a request",
    "a chain of a megabyte", "a message of sixteen megabytes",
}  # fmt: skip
"""Who says goodbye hears nothing more, and who is still sending may not."""


def test_every_broken_handshake_is_refused_with_an_alert_and_counted_while_the_line_goes_on(
    server: Server, tmp_path: Path
) -> None:
    home = server.realm.station()
    deeds = ask_peer("tlslite", {})["deeds"]
    question = {
        "host": "127.0.0.1",
        "port": server.realm.port,
        "chain": (home / "station.crt").read_text(encoding="ascii"),
        "key": (home / "station.key").read_text(encoding="ascii"),
        "deeds": deeds,
    }
    before = refused(server.realm)
    with line(server.realm, tmp_path, "BROKEN"):
        heard = ask_peer("tlslite", question)
    assert {name for name, said in heard.items() if said == "status 200"} == ALLOWED
    broken = {name: said for name, said in heard.items() if name not in ALLOWED}
    assert not [name for name, said in broken.items() if said.startswith("status")], broken
    assert {name for name, said in broken.items() if not said.startswith("alert")} <= SILENT, broken
    assert until(lambda: refused(server.realm) - before >= len(broken) - 1), (refused(server.realm), before)


# --- hellos -------------------------------------------------------------------------------------------------


def hello() -> bytes:
    """Return the record with OpenSSL's ClientHello."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    client = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def answer(server: Server, *sent: bytes) -> bytes:
    """Send, say that there will be no more, and return what comes until the end."""
    heard = b""
    with socket.create_connection(server.address, 30) as raw:
        try:
            for octets in sent:
                raw.sendall(octets)
            raw.shutdown(socket.SHUT_WR)
            while more := raw.recv(65_536):
                heard += more
        except ConnectionError:
            pass
    return heard


HANDSHAKE, ALERT = b"\x16", b"\x15"


def test_a_hello_cut_off_after_any_octet_is_refused_and_counted(server: Server) -> None:
    whole, before = hello(), refused(server.realm)
    answers = [answer(server, whole[:length]) for length in range(1, len(whole))]
    assert not [heard for heard in answers if heard.startswith(HANDSHAKE)]
    assert until(lambda: refused(server.realm) - before >= len(answers), 30)


def test_a_hello_with_any_octet_changed_gets_an_answer_or_an_end(server: Server) -> None:
    whole = bytearray(hello())
    for place in range(len(whole)):
        changed = whole.copy()
        changed[place] ^= 0xFF
        assert answer(server, bytes(changed))[:1] in (b"", HANDSHAKE, ALERT), place


def test_a_hello_in_records_of_one_octet_is_understood(server: Server) -> None:
    """RFC 8446 section 5.1: a message may be spread over records; OpenSSL takes any number of them."""
    whole = hello()
    pieces = [whole[:3] + b"\0\x01" + bytes([octet]) for octet in whole[5:]]
    assert answer(server, *pieces).startswith(HANDSHAKE)


def record(kind: bytes, body: bytes) -> bytes:
    return kind + b"\x03\x01" + (len(body) & 0xFFFF).to_bytes(2, "big") + body


UNTLS: Mapping[str, bytes] = {
    "an empty record": record(HANDSHAKE, b""),
    "many empty records": record(HANDSHAKE, b"") * 1000,
    "a record of 2^14 + 1 octets": record(HANDSHAKE, b"\x01\0\x40\0" + bytes((1 << 14) - 3)),
    "a record of 2^16 - 1 octets": record(HANDSHAKE, b"\x01\0\xff\0" + bytes((1 << 16) - 5)),
    "a hello of sixteen megabytes": record(HANDSHAKE, b"\x01\xff\xff\xff" + bytes(1 << 14)),
    "application data": record(b"\x17", bytes(100)),
    "an alert": record(ALERT, b"\x02\x28"),
    "a thousand warnings": record(ALERT, b"\x01\x5a") * 1000,
    "a change of cipher": record(b"\x14", b"\x01") * 100,
    "a record of no kind": record(b"\x63", b"x"),
    "a heartbeat": record(b"\x18", b"\x01\x40\0"),
    "SSL 2": b"\x80\x2e\x01\0\x02\0\x15\0\0\0\x10\x01\0\x80" + bytes(40),
    "HTTP": b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "zeros": bytes(4096),
    "nothing": b"",
}


@pytest.mark.parametrize("what", UNTLS)
def test_what_is_no_hello_is_refused_and_counted(server: Server, what: str) -> None:
    before = refused(server.realm)
    assert not answer(server, UNTLS[what]).startswith(HANDSHAKE)
    assert until(lambda: refused(server.realm) > before)


# --- certificates -------------------------------------------------------------------------------------------


def authority(realm: RealmDirectory) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return the realm's issuing certificate and key, as a thief of the key store would have them."""
    chain = x509.load_pem_x509_certificates((realm.station() / "station.crt").read_bytes())
    passphrase = (realm.path / "secrets" / "keystore.passphrase").read_bytes().strip()
    key = load_pem_private_key((realm.path / "keys" / "issuing-1.p8").read_bytes(), passphrase)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return chain[1], key


Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def forged(
    realm: RealmDirectory, folder: Path, key: Key, *, usage: x509.ObjectIdentifier, ca: bool = False
) -> Path:
    """Make a client's directory with a certificate that the issuing key signed for us."""
    issuer, issuer_key = authority(realm)
    now = datetime.now(UTC).replace(microsecond=0)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ST01")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    folder.mkdir()
    pem = certificate.public_bytes(Encoding.PEM) + issuer.public_bytes(Encoding.PEM)
    (folder / "station.crt").write_bytes(pem)
    (folder / "station.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / "root.crt").write_bytes((realm.station() / "root.crt").read_bytes())
    return folder


_TOO_FEW = 1024
CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
FORGED: Mapping[str, tuple[Any, x509.ObjectIdentifier, bool]] = {
    "a server's": (lambda: ec.generate_private_key(ec.SECP256R1()), SERVER, False),
    "an authority's": (lambda: ec.generate_private_key(ec.SECP256R1()), CLIENT, True),
    "rsa of 1024 bits": (lambda: rsa.generate_private_key(65_537, _TOO_FEW), CLIENT, False),
    "secp256k1": (lambda: ec.generate_private_key(ec.SECP256K1()), CLIENT, False),
    "brainpoolP256r1": (lambda: ec.generate_private_key(ec.BrainpoolP256R1()), CLIENT, False),
    "ed25519, and no client's": (ed25519.Ed25519PrivateKey.generate, CLIENT, False),
}


@pytest.mark.parametrize("why", FORGED)
def test_a_certificate_of_a_stolen_authority_opens_nothing(server: Server, tmp_path: Path, why: str) -> None:
    make, usage, ca = FORGED[why]
    home = forged(server.realm, tmp_path / "forged", make(), usage=usage, ca=ca)
    before = refused(server.realm)
    entries = len(server.realm.entries())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.load_verify_locations(home / "root.crt")
    context.load_cert_chain(home / "station.crt", home / "station.key")
    with Http(server.address, context) as client:
        try:
            told = client.get("/v1/me")
        except (ssl.SSLError, ConnectionError):
            assert until(lambda: refused(server.realm) > before)
            return
    assert (told.status, told.json["code"]) == (403, "unauthenticated")
    assert [entry["actor"] for entry in server.realm.entries()[entries:]] == ["peer:anonymous"]


def test_an_authority_is_no_client(server: Server) -> None:
    """It has a chain to the root and a key; its usage is another."""
    chain, key = authority(server.realm)
    folder = server.realm.path.parent
    (folder / "ca.pem").write_bytes(chain.public_bytes(Encoding.PEM))
    (folder / "ca.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(server.realm.station() / "root.crt")
    context.load_cert_chain(folder / "ca.pem", folder / "ca.key")
    with Http(server.address, context) as client:
        try:
            assert client.get("/v1/me").status == 403
        except (ssl.SSLError, ConnectionError) as refusal:
            assert not isinstance(refusal, ssl.SSLCertVerificationError), refusal  # noqa: PT017  # either will do


def test_handshakes_from_many_threads_end_each_alone(server: Server) -> None:
    """One that hangs holds up nobody."""
    with socket.create_connection(server.address, 30) as hanging:
        hanging.sendall(hello()[:100])
        statuses: list[int] = []

        def ask() -> None:
            with Http(server.address, tls_context(server.realm.station())) as client:
                statuses.append(client.get("/v1/me").status)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert statuses == [200] * 8
