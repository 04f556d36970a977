"""What stands behind the gateway and before it: tokens, proxies, the certificate that is pinned (SPEC H3).

Tokens are verified by OpenSSL from the published key; pins by curl; a proxy is nginx, an MQTT broker
mosquitto, each with the configuration that ``deploy/gateway`` has.
"""

import base64
import json
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark.floor.locations import crl_path
from tests.edge.cli.command import done
from tests.support.gateways import GatewayRealm, Vehicle, curl, gateway_realm, kinds, vehicle
from tests.support.programs import need
from tests.support.server import Server, free_port, until

DEPLOY = Path(__file__).parents[2] / "deploy" / "gateway"
_names = iter(range(1, 10_000))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayRealm]:
    """A served realm whose gateway has a certificate of its own, and keys of tokens of both kinds."""
    made = gateway_realm(
        tmp_path_factory.mktemp("gateway") / "realm",
        certificate_file="gateway.crt",
        key_file="secrets/gateway.key",
        key_passphrase_file="secrets/gateway.passphrase",
        next_certificate_file="gateway-next.crt",
        next_key_file="secrets/gateway-next.key",
        token_keys=["tokens-1", "tokens-2"],
        audience="https://fleet.example.com",
    )
    command(made, "gateway", "prepare", "--dns", "localhost", "--ip", "127.0.0.1")
    command(made, "gateway", "token-key", "tokens-1")
    command(made, "gateway", "token-key", "tokens-2", "--algorithm", "ed25519")
    with Server(realm=made.realm) as server:
        assert until(lambda: curl(made, "/", None).exit != 7), "it listens"
        yield made
        assert "Traceback" not in server.told()
    made.realm.check()


@pytest.fixture
def car(gateway: GatewayRealm, tmp_path: Path) -> Vehicle:
    return vehicle(gateway.realm, f"UP{next(_names)}", tmp_path)


@pytest.fixture(scope="module")
def proxy(gateway: GatewayRealm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a proxy that was let in."""
    out = tmp_path_factory.mktemp("proxy") / "edge-1"
    command(gateway, "proxy", "enrol", "edge-1", "--out", out)
    return out


def command(gateway: GatewayRealm, *words: object) -> str:
    return done(*words, "--settings", gateway.realm.settings, "--as", gateway.realm.operator).out


def decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def verified(token: str, key_set: Any, folder: Path) -> dict[str, Any]:
    """Return what a token claims, its signature verified by OpenSSL with the published key."""
    head, body, signature = token.split(".")
    header = json.loads(decoded(head))
    (key,) = (one for one in key_set["keys"] if one["kid"] == header["kid"])
    assert (header["alg"], key["alg"], key["kty"], key["crv"]) == ("ES256", "ES256", "EC", "P-256")
    x, y = (int.from_bytes(decoded(key[name])) for name in ("x", "y"))
    public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    (folder / "key.pem").write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    octets = decoded(signature)
    assert len(octets) == 64
    halves = (int.from_bytes(octets[:32]), int.from_bytes(octets[32:]))
    (folder / "signature").write_bytes(encode_dss_signature(*halves))
    (folder / "signed").write_bytes(f"{head}.{body}".encode())
    subprocess.run(
        [need("openssl"), "dgst", "-sha256", "-verify", folder / "key.pem", "-signature",
         folder / "signature", folder / "signed"],
        check=True, capture_output=True,
    )  # fmt: skip
    claims: dict[str, Any] = json.loads(decoded(body))
    return claims


# --- tokens


def test_a_token_says_who_came_in_and_anybody_verifies_it_with_the_published_key(
    gateway: GatewayRealm, car: Vehicle, tmp_path: Path
) -> None:
    told = curl(gateway, "/v1/contact", car).json
    published = curl(gateway, "/.well-known/jwks.json", car)
    assert published.headers["content-type"] == "application/jwk-set+json"
    assert published.json == json.loads(command_without_as(gateway, "gateway", "key-set"))
    assert [key["alg"] for key in published.json["keys"]] == ["ES256", "EdDSA"]
    claims = verified(told["token"], published.json, tmp_path)
    assert claims["exp"] - claims["iat"] == 300
    assert len(claims.pop("jti")) == 32
    del claims["exp"], claims["iat"]
    bound = base64.urlsafe_b64encode(bytes.fromhex(car.parsed.fingerprint)).rstrip(b"=").decode()
    assert claims == {
        "iss": "acme",
        "sub": car.id,
        "aud": "https://fleet.example.com",
        "environment": "test",
        "authority": "issuing-1",
        "cnf": {"x5t#S256": bound},
    }
    again = curl(gateway, "/v1/status", car).json
    assert again["token"] != told["token"]


def command_without_as(gateway: GatewayRealm, *words: object) -> str:
    return done(*words, "--settings", gateway.realm.settings).out


# --- pins


def test_a_device_that_pins_the_old_certificate_and_heard_of_the_new_one_goes_on(
    gateway: GatewayRealm, car: Vehicle
) -> None:
    before = curl(gateway, "/v1/contact", car).json
    assert before["next_gateway_pin"] is None
    pinned = ("--pinnedpubkey", f"sha256//{before['gateway_pin']}")
    assert curl(gateway, "/v1/contact", car, *pinned).status == 200
    command(gateway, "gateway", "prepare")
    heard = until(lambda: curl(gateway, "/v1/contact", car, *pinned).json["next_gateway_pin"])
    assert heard
    both = ("--pinnedpubkey", f"sha256//{before['gateway_pin']};sha256//{heard}")
    assert curl(gateway, "/v1/contact", car, *both).json["gateway_pin"] == before["gateway_pin"]
    done("gateway", "rotate", "--settings", gateway.realm.settings)
    after = until(
        lambda: (told := curl(gateway, "/v1/contact", car, *both).json)["gateway_pin"] == heard and told
    )
    assert after["next_gateway_pin"] is None
    assert curl(gateway, "/v1/contact", car, "--pinnedpubkey", f"sha256//{heard}").status == 200
    assert curl(gateway, "/v1/contact", car, *pinned).exit == 90, "who did not hear of it refuses the gateway"


# --- proxies


def asked(
    gateway: GatewayRealm, proxy: Path, car: Vehicle, *options: str, path: str = "/v1/authorise"
) -> Any:
    """Ask about a device as a proxy does."""
    der = base64.b64encode(car.parsed.der).decode()
    who = Vehicle(id="proxy", certificate=proxy / "proxy.crt", key=proxy / "proxy.key")
    headers = ("--header", f"Client-Cert: :{der}:", "--header", "Birthmark-Address: 192.0.2.7")
    return curl(gateway, path, who, *headers, *options)


def test_a_proxy_is_told_whose_certificate_it_has_seen(
    gateway: GatewayRealm, proxy: Path, car: Vehicle, tmp_path: Path
) -> None:
    told = asked(gateway, proxy, car)
    assert told.status == 204, told.body
    names = ("birthmark-device", "birthmark-realm", "birthmark-authority")
    assert [told.headers[name] for name in names] == [car.id, "acme", "issuing-1"]
    token = told.headers["authorization"].removeprefix("Bearer ")
    key_set = json.loads(command_without_as(gateway, "gateway", "key-set"))
    assert verified(token, key_set, tmp_path)["sub"] == car.id
    assert kinds(gateway, car.id) == ["device-first-seen"]
    entry = next(one for one in gateway.realm.entries() if one.get("device") == car.id and "address" in one)
    assert (entry["actor"], entry["address"]) == ("proxy:edge-1", "192.0.2.7")


def test_a_proxy_hears_of_a_clone_by_how_long_connections_are_open(
    gateway: GatewayRealm, proxy: Path, car: Vehicle
) -> None:
    assert asked(gateway, proxy, car).status == 204
    elsewhere = ("--header", "Birthmark-Address: 198.51.100.1")
    old = ("--header", "Birthmark-Open-Seconds: 3600.000")
    refused = asked(gateway, proxy, car, *elsewhere, *old)
    assert (refused.status, "2 times" in refused.body) == (400, True), "a client's and the proxy's"
    who = Vehicle(id="proxy", certificate=proxy / "proxy.crt", key=proxy / "proxy.key")
    der = base64.b64encode(car.parsed.der).decode()
    refused = curl(gateway, "/v1/authorise", who, "--header", f"Client-Cert: :{der}:", *elsewhere, *old)
    assert (refused.status, refused.rule) == (403, "device-cloned")
    assert kinds(gateway, car.id) == ["device-first-seen", "field-device-held"]


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ((), "belongs into client-cert"),
        (("Client-Cert: :AAAA",), "no byte sequence"),
        (("Client-Cert: :AAAA:",), "not an x.509 certificate"),
        (("X-SSL-Client-Cert: -----BEGIN%20CERTIFICATE-----%0AMIIB",), "no block CERTIFICATE"),
        (("X-SSL-Client-Cert: %ff",), "no percent-encoded PEM"),
        (("Client-Cert: :AAAA:", "X-SSL-Client-Cert: a"), "not into both"),
    ],
)
def test_what_is_no_certificate_is_refused_as_malformed(
    gateway: GatewayRealm, proxy: Path, headers: tuple[str, ...], said: str
) -> None:
    who = Vehicle(id="proxy", certificate=proxy / "proxy.crt", key=proxy / "proxy.key")
    options = [word for header in (*headers, "Birthmark-Address: 192.0.2.7") for word in ("--header", header)]
    refused = curl(gateway, "/v1/authorise", who, *options)
    assert (refused.status, said in refused.json["detail"]) == (400, True), refused.body


def test_only_a_proxy_asks_about_others(gateway: GatewayRealm, proxy: Path, car: Vehicle) -> None:
    station = gateway.realm.station()
    refused = asked(gateway, proxy, car, path="/v1/contact")
    assert (refused.status, refused.rule) == (403, "device-unknown"), "a proxy is no device"
    for who in (
        Vehicle(id="", certificate=station / "station.crt", key=station / "station.key"),
        car,
    ):
        der = base64.b64encode(car.parsed.der).decode()
        options = ("--header", f"Client-Cert: :{der}:", "--header", "Birthmark-Address: 192.0.2.7")
        assert curl(gateway, "/v1/authorise", who, *options).status == 403
    assert kinds(gateway, car.id) == []


# --- programs of others, with the configuration of deploy/gateway


class Echo(BaseHTTPRequestHandler):
    """The application: says which headers it was sent."""

    def do_GET(self) -> None:
        body = json.dumps({name.lower(): value for name, value in self.headers.items()}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Be quiet."""


@pytest.fixture
def application() -> Iterator[int]:
    """The port of an application behind a proxy."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def certified(gateway: GatewayRealm, folder: Path) -> None:
    """Make what a proxy shows to devices: a key and certificate of its own making, for 127.0.0.1."""
    subprocess.run(
        [need("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-subj", "/CN=edge", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "server.key",
         "-out", folder / "server.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    shutil.copy(gateway.root, folder / "device-anchors.pem")


@contextmanager
def running(command: Sequence[object], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the context; it listens when the context begins."""
    process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL)
    try:

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        assert until(lambda: process.poll() is not None or listens())
        assert process.poll() is None, "it ended at once"
        yield process
    finally:
        process.terminate()
        process.wait(20)


def test_nginx_lets_in_whom_the_gateway_accepts_and_says_who_it_is(
    gateway: GatewayRealm, proxy: Path, application: int, car: Vehicle, tmp_path: Path
) -> None:
    place, port = tmp_path / "etc", free_port()
    shutil.copytree(proxy, place)
    certified(gateway, place)
    text = (DEPLOY / "nginx.conf").read_text()
    for old, new in (
        ("/etc/birthmark", str(place)),
        ("127.0.0.1:8446", f"127.0.0.1:{gateway.port}"),
        ("127.0.0.1:8080", f"127.0.0.1:{application}"),
        ("listen 8443", f"listen 127.0.0.1:{port}"),
    ):
        assert text.count(old) >= 1
        text = text.replace(old, new)
    temporary = "".join(
        f"{name}_temp_path {tmp_path}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; user root; pid {tmp_path}/pid; error_log {tmp_path}/error.log info;"
        f" worker_processes 1; events {{}} http {{ access_log off; {temporary}\n{text}\n}}"
    )
    edge = replace(gateway, port=port)
    trusted = ("--cacert", str(place / "server.crt"))
    with running([need("nginx", "nginx-light"), "-c", tmp_path / "nginx.conf", "-e", tmp_path / "e"], port):
        forged = ("--header", "Birthmark-Device: serial:OTHER", "--header", "Authorization: Bearer forged")
        told = curl(edge, "/anything?at=all", car, *trusted, *forged)
        assert told.status == 200, (told, (tmp_path / "error.log").read_text())
        seen = told.json
        assert (seen["birthmark-device"], seen["birthmark-realm"]) == (car.id, "acme")
        token = seen["authorization"].removeprefix("Bearer ")
        key_set = json.loads(command_without_as(gateway, "gateway", "key-set"))
        assert verified(token, key_set, tmp_path)["sub"] == car.id
        # One that has not left the line, and one that was accepted a moment ago and is recalled now.
        early = vehicle(gateway.realm, f"UP{next(_names)}", tmp_path, release=False)
        assert curl(edge, "/", early, *trusted).status == 403
        recall(gateway, car)
        assert curl(edge, "/", car, *trusted).status == 403
        assert curl(edge, "/", None, *trusted).status == 400, "nginx wants a certificate"
        smuggled = ("--header", f"Client-Cert: :{base64.b64encode(early.parsed.der).decode()}:")
        assert curl(edge, "/", car, *trusted, *smuggled).status == 403
        assert curl(edge, "/_birthmark", car, *trusted).status == 404, "nobody asks through nginx"
    assert kinds(gateway, early.id) == ["device-not-released"]
    assert kinds(gateway, car.id)[:2] == ["device-first-seen", "certificate-revoked"]


def recall(gateway: GatewayRealm, car: Vehicle) -> None:
    """Have two people revoke a device's certificate."""
    said = command(
        gateway,
        "recall",
        "propose",
        "--device",
        car.id,
        "--reason",
        "keyCompromise",
        "--because",
        "t",
        "--json",
    )
    bela = gateway.realm.path / "operators/bela"
    if not bela.exists():
        command(gateway, "operator", "enrol", "bela", "--role", "officer", "--out", bela)
    identifier = json.loads(said)["id"]
    done("recall", "approve", identifier, "--yes", "--settings", gateway.realm.settings, "--as", bela)


def published_crl(gateway: GatewayRealm, folder: Path) -> None:
    """Publish, and put the issuing authority's CRL where the broker reads it."""
    command_without_as(gateway, "publish")
    der = gateway.realm.path / "www" / crl_path("issuing-1")
    subprocess.run(
        [need("openssl"), "crl", "-inform", "DER", "-in", der, "-out", folder / "crls.pem"],
        check=True, capture_output=True,
    )  # fmt: skip


def test_mosquitto_takes_a_vehicle_by_its_certificate_until_it_has_the_crl_that_revokes_it(
    gateway: GatewayRealm, car: Vehicle, tmp_path: Path
) -> None:
    place, port = tmp_path / "etc", free_port()
    place.mkdir()
    certified(gateway, place)
    with gateway.realm.settings.open("a") as file:
        file.write('\n[publication]\nurl = "http://pki.example.com"\ndirectory = "www"\n')
    published_crl(gateway, place)
    shutil.copy(DEPLOY / "topics.acl", place)
    text = (DEPLOY / "mosquitto.conf").read_text().replace("/etc/birthmark", str(place))
    (tmp_path / "mosquitto.conf").write_text(
        text.replace("listener 8883", f"listener {port} 127.0.0.1")
        + f"\nuser root\nlog_dest file {tmp_path}/broker.log\n"
    )

    def published(topic: str) -> str:
        """Publish as the vehicle; return what mosquitto_pub complains of, nothing if it was taken."""
        told = subprocess.run(
            [need("mosquitto_pub", "mosquitto-clients"), "-h", "127.0.0.1", "-p", str(port), "-q", "1",
             "--cafile", place / "server.crt", "--cert", car.certificate, "--key", car.key, "-V", "mqttv5",
             "-t", topic, "-m", "hello"],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        return told.stderr or ("" if told.returncode == 0 else f"exit {told.returncode}")

    name = car.id.removeprefix("serial:")
    broker = [need("mosquitto"), "-c", tmp_path / "mosquitto.conf"]
    with running(broker, port) as process:
        assert published(f"devices/{name}/up/position") == ""
        assert "Not authorized" in published("devices/OTHER/up/position")
        recall(gateway, car)
        assert published(f"devices/{name}/up/position") == "", "the broker knows no more than its CRL"
        published_crl(gateway, place)
        process.send_signal(signal.SIGHUP)
        assert until(lambda: published(f"devices/{name}/up/position")), "it has the CRL now"
    assert "certificate verify failed" in (tmp_path / "broker.log").read_text()
