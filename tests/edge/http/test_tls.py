"""Who gets through the handshake (SPEC C1): TLS 1.3, an AEAD suite, a live client, and nobody else."""

import re
import socket
import ssl
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from birthmark.adapters.system import SystemClock
from birthmark.edge.station import Enclave, Station
from tests.support.programs import need
from tests.support.server import RUN, Http, RealmDirectory, Server, tls_context, until

_DAY = timedelta(days=1)


def now() -> datetime:
    return SystemClock().now().replace(microsecond=0)


def certify(
    folder: Path,
    issuer: x509.Certificate | None,
    issuer_key: ec.EllipticCurvePrivateKey | None,
    *,
    since: datetime,
    until: datetime,
) -> Path:
    """Make a client certificate such as ours, as a station directory; self-signed without an issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ST01")])
    signer = issuer_key or key
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(until)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    certificate = builder.sign(signer, hashes.SHA256())
    folder.mkdir()
    pem = certificate.public_bytes(Encoding.PEM)
    if issuer is not None:
        pem += issuer.public_bytes(Encoding.PEM)
    (folder / "station.crt").write_bytes(pem)
    (folder / "station.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return folder


def issuing_authority(realm: RealmDirectory) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return the realm's own issuing certificate and key, as a thief of the key store would have them."""
    chain = x509.load_pem_x509_certificates((realm.station() / "station.crt").read_bytes())
    passphrase = (realm.path / "secrets" / "keystore.passphrase").read_bytes().strip()
    key = load_pem_private_key((realm.path / "keys" / "issuing-1.p8").read_bytes(), passphrase)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return chain[1], key


def handshakes(realm: RealmDirectory) -> list[str]:
    """Return the reasons of the refused handshakes on record."""
    return [
        str(entry["detail"])
        for entry in realm.entries()
        if entry["kind"] == "refused" and entry["request"] == "handshake"
    ]


def refused(server: Server, context: ssl.SSLContext) -> None:
    """Expect an alert over this context: in TLS 1.3 a client hears of it when it reads."""
    with Http(server.address, context) as client, pytest.raises(ssl.SSLError, match=r"(?i)alert"):
        client.get("/v1/me")


def trusting(server: Server, directory: Path | None) -> ssl.SSLContext:
    return tls_context(directory, root=server.realm.path / "root.crt")


@pytest.fixture(scope="module")
def strangers(realm: RealmDirectory, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return credentials that must not open the door, by why."""
    folder = tmp_path_factory.mktemp("strangers")
    issuer, issuer_key = issuing_authority(realm)
    foreign_key = ec.generate_private_key(ec.SECP256R1())
    return {
        "expired": certify(
            folder / "expired", issuer, issuer_key, since=now() - 9 * _DAY, until=now() - _DAY
        ),
        "early": certify(folder / "early", issuer, issuer_key, since=now() + _DAY, until=now() + 9 * _DAY),
        "foreign": certify(folder / "foreign", issuer, foreign_key, since=now() - _DAY, until=now() + _DAY),
        "self-signed": certify(folder / "self", None, None, since=now() - _DAY, until=now() + _DAY),
    }


EXPECTED = {
    "none": "did not return a certificate",
    "expired": "expired",
    "early": "not yet valid",
    "foreign": "local issuer certificate",
    "self-signed": "self-signed|self signed",
    "tls-1.2": "unsupported protocol",
}


@pytest.mark.parametrize("why", EXPECTED)
def test_a_refused_handshake_is_on_record_with_its_reason(
    server: Server, strangers: dict[str, Path], why: str
) -> None:
    context = trusting(server, strangers.get(why))
    if why == "tls-1.2":
        context = tls_context(server.realm.station())
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    before = len(handshakes(server.realm))
    refused(server, context)
    found = until(lambda: handshakes(server.realm)[before:])
    assert len(found) == 1
    assert re.search(EXPECTED[why], found[0]), found


def test_a_flood_of_refused_handshakes_becomes_few_entries_that_count_them(
    server: Server, strangers: dict[str, Path]
) -> None:
    context, before = trusting(server, strangers["self-signed"]), len(server.realm.entries())
    for _ in range(60):
        refused(server, context)

    def counted() -> int:
        news = server.realm.entries()[before:]
        return sum(int(entry["count"]) for entry in news if entry.get("request") == "handshake")

    assert until(lambda: counted() == 60), counted()
    assert len(server.realm.entries()) - before < 40


def test_a_certificate_of_our_own_making_that_is_no_clients_is_refused_and_recorded(
    server: Server, tmp_path: Path
) -> None:
    """A thief of the issuing key makes one that no record knows: the chain is good, the client is none."""
    issuer, key = issuing_authority(server.realm)
    forged = certify(tmp_path / "forged", issuer, key, since=now() - _DAY, until=now() + _DAY)
    with Http(server.address, trusting(server, forged)) as client:
        answer = client.get("/v1/me")
    assert (answer.status, answer.json["code"]) == (403, "unauthenticated")
    assert server.realm.entries()[-1]["actor"] == "peer:anonymous"


def test_a_devices_certificate_is_no_clients(server: Server, tmp_path: Path) -> None:
    with Station(server.realm.station("ST02")) as station, Enclave(str(tmp_path / "device")) as device:
        station.provision(RUN, "TLS-1", device)
    context = tls_context(None, root=server.realm.path / "root.crt")
    chain = tmp_path / "both.pem"
    chain.write_bytes((tmp_path / "device" / "device.crt").read_bytes())
    with chain.open("ab") as file:
        file.write((tmp_path / "device" / "chain.pem").read_bytes())
    context.load_cert_chain(chain, tmp_path / "device" / "device.key")
    with Http(server.address, context) as client:
        try:
            answer = client.get("/v1/me")
        except (ssl.SSLError, ConnectionError):
            return  # its extended key usage does not say client, and the handshake says so
    assert (answer.status, answer.json["code"]) == (403, "unauthenticated")


def test_a_station_that_is_revoked_is_refused_at_once_on_its_open_connection(server: Server) -> None:
    """SPEC C2: no new handshake, no new process; the next request is refused."""
    realm = server.realm
    with Http(server.address, tls_context(realm.station("ST08"))) as client:
        assert client.get("/v1/me").status == 200
        asked = {"hardware_id": "TLS-2", "idempotency_key": "tls-2"}
        assert client.post(f"/v1/runs/{RUN}/issue", asked, birthmark_seq="1").status == 200
        realm.run("station", "revoke", "ST08", "--reason", "stolen")
        for path in ("/v1/me", f"/v1/runs/{RUN}", "/v1/checkpoint", "/v1/devices/serial:TLS-2"):
            answer = client.get(path)
            assert (answer.status, answer.json["code"]) == (403, "unauthenticated"), path
        answer = client.post(f"/v1/runs/{RUN}/issue", asked, birthmark_seq="2")
        assert (answer.status, answer.json["code"]) == (403, "unauthenticated")
    # At the door, before there is a request: such refusals are told together, once a second.
    told = until(lambda: realm.entries()[-1]["kind"] == "refused")
    last = realm.entries()[-1]
    assert told
    assert (last["actor"], last["code"]) == ("station:ST08", "unauthenticated")


@pytest.mark.parametrize(
    "header",
    ["X-SSL-Client-Cert", "X-Forwarded-Client-Cert", "SSL-Client-Cert", "X-Forwarded-User", "Client-Cert"],
)
def test_no_header_says_who_asks(server: Server, station: Http, header: str) -> None:
    operator = (server.realm.operator / "station.crt").read_text(encoding="ascii").replace("\n", " ")
    answer = station.ask("GET", "/v1/me", headers={header: operator})
    assert answer.json["client"] == "station:ST01"


def test_the_client_refuses_another_server(server: Server, tmp_path: Path) -> None:
    other = certify(tmp_path / "other", None, None, since=now() - _DAY, until=now() + _DAY)
    with pytest.raises(ssl.SSLCertVerificationError):
        Http(server.address, tls_context(server.realm.station(), root=other / "station.crt")).get("/v1/me")


def test_the_server_shows_its_chain_and_a_name_that_fits(server: Server) -> None:
    context = tls_context(server.realm.station())
    for name in ("127.0.0.1", "localhost"):
        with (
            socket.create_connection(server.address, 10) as raw,
            context.wrap_socket(raw, server_hostname=name) as tls,
        ):
            cipher = tls.cipher()
            assert (tls.version(), cipher is not None and cipher[1]) == ("TLSv1.3", "TLSv1.3")
    with (
        socket.create_connection(server.address, 10) as raw,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        context.wrap_socket(raw, server_hostname="elsewhere.example")


# --- what OpenSSL's own client sees -------------------------------------------------------------------------


def s_client(server: Server, *options: str) -> str:
    """Ask with openssl s_client and return all it prints."""
    home = server.realm.station()
    command = [
        need("openssl"), "s_client", "-connect", f"127.0.0.1:{server.realm.port}",
        "-CAfile", str(home / "root.crt"),
        "-cert", str(home / "station.crt"), "-cert_chain", str(home / "station.crt"),
        "-key", str(home / "station.key"), "-ign_eof", *options,
    ]  # fmt: skip
    request = "GET /v1/me HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    done = subprocess.run(command, input=request, check=False, capture_output=True, text=True, timeout=30)
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "suite", ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]
)
def test_the_aead_suites_of_tls_1_3_work(server: Server, suite: str) -> None:
    said = s_client(server, "-ciphersuites", suite)
    assert f"Cipher is {suite}" in said
    assert "HTTP/1.1 200" in said


@pytest.mark.parametrize("version", ["-tls1", "-tls1_1", "-tls1_2"])
def test_older_versions_do_not_whatever_their_suites(server: Server, version: str) -> None:
    said = s_client(server, version, "-cipher", "ALL:eNULL:@SECLEVEL=0")
    assert "Cipher is (NONE)" in said
    assert "HTTP/1.1" not in said


def test_no_session_can_be_resumed(server: Server, tmp_path: Path) -> None:
    """A resumed session would not show its certificate again; so there is no ticket to resume with."""
    said = s_client(server, "-sess_out", str(tmp_path / "session"))
    assert "HTTP/1.1 200" in said
    assert "New Session Ticket" not in said
    assert "Early data was not sent" in said or "Max Early Data: 0" in said
    context = tls_context(server.realm.station())
    with Http(server.address, context) as client:
        assert client.get("/v1/me").status == 200
        session = client.connection.sock.session
        assert session is None or not session.has_ticket
