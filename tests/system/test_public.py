"""The public role, as real processes: no key of an authority; relying parties that are not ours (SPEC F)."""

import base64
import contextlib
import hashlib
import http.client
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Self
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark import app
from birthmark.adapters.system import SystemClock
from birthmark.floor.authorities import Authority
from birthmark.floor.devices import DeviceCertificate
from birthmark.ledger.checkpoint import VerifierKey, open_note
from birthmark.pki.certificates import from_pem
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Act, Decision, Facts, carry
from birthmark.services.acts import recognise, refuse
from birthmark.services.issue import Issued, IssueRequest
from birthmark.services.revocations import line_of, revoke
from birthmark.settings import load
from tests.support.checkers import gnutls, nss, openssl
from tests.support.checkers.values import Chain, Status
from tests.support.programs import need
from tests.support.realm import workpiece
from tests.support.server import RUN, RealmDirectory, birthmark, copy_realm, free_port, until

PUBLIC = """\
[realm]
name = "acme"
environment = "test"
organization = "Acme Motors"
[public-plane]
port = {port}
directory = "www"
ocsp = "{ocsp}"
request-seconds = 2
"""
LIVE = """\
[public-plane.key-store]
kind = "software"
directory = "keys"
passphrase-file = "passphrase"
[database]
url = "{url}"
"""
PUBLICATION = """
[publication]
url = "http://127.0.0.1:{port}"
directory = "{www}"
"""


@dataclass(slots=True, kw_only=True)
class PublicHost:
    """A host with nothing but the public role."""

    path: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(init=False, default=None)

    @property
    def settings(self) -> Path:
        return self.path / "birthmark.toml"

    @property
    def www(self) -> Path:
        return self.path / "www"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        with (self.path / "serve.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "birthmark", "serve", "--settings", str(self.settings)],
                stdout=log,
                stderr=log,
            )
        assert until(self._answers), (self.path / "serve.log").read_text()
        return self

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/index.json").status in {200, 404}
        return False

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(10) == 0

    def ask(
        self, method: str, target: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> "Got":
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, target, body, dict(headers or {}))
            answer = connection.getresponse()
            return Got(status=answer.status, headers=answer.headers, body=answer.read())

    def get(self, target: str, **headers: str) -> "Got":
        return self.ask(
            "GET", target, headers={name.replace("_", "-"): value for name, value in headers.items()}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Got:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """A realm, some of its devices' certificates, and a public host."""

    realm: RealmDirectory
    host: PublicHost
    chains: Mapping[str, Chain]

    def publish(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.realm.run("publish", *options, check=check)


def populate(realm: RealmDirectory) -> dict[str, Chain]:
    """Issue three certificates, revoke one and suspend one; return their chains, and those of others."""
    application = app.build(load(realm.settings))
    try:
        store = application.store
        (station, *_) = from_pem((realm.station() / "station.crt").read_text())
        caller = carry(store, recognise(station))
        authorities = {one.id: one for one in store.scan(Authority)}
        root, issuing = authorities.pop("root"), next(iter(authorities.values()))
        chains = {}
        for name in ("good", "revoked", "suspended"):
            device = workpiece(name.upper())
            request = IssueRequest(hardware_id=device.hardware_id, csr=device.csr, key=name)
            (issued,) = carry(store, application.issue(caller, RUN, [request]))
            assert isinstance(issued, Issued)
            chains[name] = Chain(leaf=issued.certificate, between=(issuing.der,), root=root.der)

        def decide(facts: Facts, at: datetime) -> Decision[None]:
            for name, reason in (
                ("revoked", ReasonCode.KEY_COMPROMISE),
                ("suspended", ReasonCode.CERTIFICATE_HOLD),
            ):
                serial = f"{x509.load_der_x509_certificate(chains[name].leaf).serial_number:040x}"
                certificate = facts.get(DeviceCertificate, serial)
                assert certificate is not None
                assert revoke(facts, line_of(certificate), reason, at, "test")
            return Decision(None, [("noted", {})])

        act = Act(actor="operator:anna", decide=decide, refuse=refuse(None, "test", {}), reads={})
        assert store.submit([act]).result()[0].answer is None
        chains["station"] = Chain(leaf=station, between=(issuing.der,), root=root.der)
        return chains
    finally:
        application.close()


def make_scene(tmp_path: Path, ocsp_mode: str) -> Scene:
    realm, port = copy_realm(tmp_path / "realm"), free_port()
    path = tmp_path / "public"
    path.mkdir()
    host = PublicHost(path=path, port=port)
    text = PUBLIC.format(port=port, ocsp=ocsp_mode)
    if ocsp_mode == "live":
        text += LIVE.format(url=f"sqlite:///{realm.path / 'birthmark.db'}")
        (path / "passphrase").touch(mode=0o600)
        (path / "passphrase").write_text("opens the responder's key\n")
    host.settings.write_text(text)
    with realm.settings.open("a") as settings_file:
        settings_file.write(PUBLICATION.format(port=port, www=host.www))
    return Scene(realm=realm, host=host, chains=populate(realm))


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Live answers, on a host that got its right from another one's operator."""
    tmp_path = tmp_path_factory.mktemp("live")
    scene = make_scene(tmp_path, "live")
    public_key = tmp_path / "responder.pem"
    public_key.write_text(birthmark("responder", "key", "--settings", scene.host.settings).stdout)
    scene.realm.run("responder", "enrol", "--authority", "issuing-1", "--key", public_key)
    scene.publish()
    # The realm's own keys go away: nothing of what follows needs them.
    shutil.move(scene.realm.path / "keys", tmp_path / "away")
    assert not list(scene.host.path.rglob("*issuing*.pem"))
    with scene.host:
        yield scene


@pytest.fixture(scope="module")
def presigned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Answers signed beforehand, on a host without record or key."""
    scene = make_scene(tmp_path_factory.mktemp("presigned"), "presigned")
    scene.realm.run("responder", "enrol", "--authority", "issuing-1")
    said = scene.publish("--ocsp").stdout
    assert "signed 3 answers for issuing-1" in said
    with scene.host:
        yield scene


def now() -> datetime:
    return SystemClock().now()


VERDICTS = {"good": Status.GOOD, "revoked": Status.REVOKED, "suspended": Status.REVOKED}


@pytest.mark.parametrize("name", VERDICTS)
def test_relying_parties_get_the_right_answer_live(live: Scene, tmp_path: Path, name: str) -> None:
    """SPEC F3."""
    chain, url, at = live.chains[name], f"{live.host.url}/ocsp", now()
    seen = [
        openssl.ocsp_verdict(chain, url, tmp_path, at=at, nonce=True),
        openssl.ocsp_verdict(chain, url, tmp_path, at=at),
        openssl.ocsp_get_verdict(chain, url, tmp_path, at=at),
        gnutls.ocsp_verdict(chain, url, tmp_path, at=at, nonce=True),
    ]
    assert [verdict.status for verdict in seen] == [VERDICTS[name]] * 4, seen
    if name == "suspended":
        assert seen[0].reason == "certificateHold"


@pytest.mark.parametrize("name", VERDICTS)
def test_relying_parties_get_the_right_answer_signed_beforehand(
    presigned: Scene, tmp_path: Path, name: str
) -> None:
    """SPEC F3: the lightweight profile; the host has neither key nor record."""
    chain, url, at = presigned.chains[name], f"{presigned.host.url}/ocsp", now()
    seen = [
        openssl.ocsp_verdict(chain, url, tmp_path, at=at),
        openssl.ocsp_get_verdict(chain, url, tmp_path, at=at),
    ]
    assert [verdict.status for verdict in seen] == [VERDICTS[name]] * 2, seen
    assert not [path for path in presigned.host.path.rglob("*") if b"PRIVATE" in _head(path)]


def _head(path: Path) -> bytes:
    return path.read_bytes()[:100] if path.is_file() else b""


def test_nss_gets_the_right_answer(live: Scene, tmp_path: Path) -> None:
    """SPEC F3."""
    responder = (live.host.www / "responders/ocsp/issuing-1.cer").read_bytes()
    for name, status in VERDICTS.items():
        folder = tmp_path / name
        folder.mkdir()
        verdict = nss.ocsp_verdict(
            live.chains[name], folder, at=now(), url=f"{live.host.url}/ocsp", responder=responder
        )
        assert verdict.status is status, verdict


def request_for(
    chain: Chain, *, nonce: bytes | None = None, algorithm: hashes.HashAlgorithm | None = None
) -> bytes:
    leaf, issuer = (x509.load_der_x509_certificate(der) for der in (chain.leaf, chain.issuer))
    builder = ocsp.OCSPRequestBuilder().add_certificate(leaf, issuer, algorithm or hashes.SHA1())  # noqa: S303  # names an issuer, protects nothing
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


def asked(scene: Scene, body: bytes) -> ocsp.OCSPResponse:
    got = scene.host.ask("POST", "/ocsp", body, {"content-type": "application/ocsp-request"})
    assert (got.status, got.headers["content-type"]) == (200, "application/ocsp-response")
    assert got.headers["cache-control"] == "no-store"
    return ocsp.load_der_ocsp_response(got.body)


def test_clients_and_authorities_certificates_are_answered_too(live: Scene) -> None:
    """SPEC F3: the issuing authority speaks for stations; nobody here speaks for the root."""
    station = asked(live, request_for(live.chains["station"]))
    assert station.certificate_status is ocsp.OCSPCertStatus.GOOD
    chain = live.chains["good"]
    above = Chain(leaf=chain.issuer, between=(), root=chain.root)
    assert asked(live, request_for(above)).response_status is ocsp.OCSPResponseStatus.UNAUTHORIZED


def test_a_serial_number_never_spelledis_unknown_live_and_unauthorized_beforehand(
    live: Scene, presigned: Scene
) -> None:
    """SPEC F3; RFC 6960 section 2.2, RFC 5019 section 2.2.3."""
    for scene in (live, presigned):
        issuer = x509.load_der_x509_certificate(scene.chains["good"].issuer)
        name_hash = hashlib.sha1(issuer.subject.public_bytes()).digest()  # noqa: S324  # names an issuer, protects nothing
        key_hash = x509.SubjectKeyIdentifier.from_public_key(issuer.public_key()).digest
        for serial in (1, 0x7F << 144):
            body = (
                ocsp.OCSPRequestBuilder()
                .add_certificate_by_hash(name_hash, key_hash, serial, hashes.SHA1())  # noqa: S303  # names an issuer, protects nothing
                .build()
                .public_bytes(Encoding.DER)
            )
            answer = asked(scene, body)
            if scene is live:
                assert answer.certificate_status is ocsp.OCSPCertStatus.UNKNOWN
            else:
                assert answer.response_status is ocsp.OCSPResponseStatus.UNAUTHORIZED


def test_nonces_are_echoed_live_and_their_answers_are_not_kept(live: Scene) -> None:
    """RFC 9654 section 2.1, RFC 5019 section 6."""
    for nonce in (b"n", bytes(16), bytes(range(128))):
        body = request_for(live.chains["good"], nonce=nonce, algorithm=hashes.SHA256())
        answer = asked(live, body)
        assert answer.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce == nonce
    encoded = quote(base64.b64encode(request_for(live.chains["good"], nonce=b"n" * 16)).decode(), safe="")
    assert live.host.get(f"/ocsp/{encoded}").headers["cache-control"] == "no-store"


@pytest.mark.parametrize("escaped", [True, False])
def test_a_get_may_be_kept_until_next_update(live: Scene, presigned: Scene, escaped: bool) -> None:  # noqa: FBT001  # a case, not a switch
    """RFC 5019 section 6."""
    for scene, seconds in ((live, 3600), (presigned, 72 * 3600)):
        text = base64.b64encode(request_for(scene.chains["good"])).decode()
        got = scene.host.get(f"/ocsp/{quote(text, safe='') if escaped else text}")
        answer = ocsp.load_der_ocsp_response(got.body)
        assert answer.certificate_status is ocsp.OCSPCertStatus.GOOD
        found = re.fullmatch(
            r"public, max-age=(\d+), no-transform, must-revalidate", got.headers["cache-control"]
        )
        assert found is not None
        assert seconds - 120 < int(found[1]) <= seconds
        assert got.headers["expires"].endswith("GMT")
        assert got.headers["last-modified"].endswith("GMT")
        if scene is presigned:
            again = scene.host.get(f"/ocsp/{quote(text, safe='')}", if_none_match=got.headers["etag"])
            assert (again.status, again.body) == (304, b"")


@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=300))
def test_no_octets_are_a_fault_of_the_server(live: Scene, presigned: Scene, body: bytes) -> None:
    """SPEC F3: what is no request is malformedRequest."""
    for scene in (live, presigned):
        for got in (
            scene.host.ask("POST", "/ocsp", body),
            scene.host.get(f"/ocsp/{quote(base64.b64encode(body).decode(), safe='')}"),
            scene.host.get(f"/ocsp/{quote(body)}"),
            scene.host.get(f"/{quote(body)}"),
        ):
            assert got.status in {200, 404}, got


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_broken_request_is_no_fault_of_the_server(
    live: Scene, presigned: Scene, data: st.DataObject
) -> None:
    """SPEC F3: a request with an octet changed is answered, or malformed."""
    for scene in (live, presigned):
        body = bytearray(request_for(scene.chains["good"], nonce=b"n" * 16))
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        got = scene.host.ask("POST", "/ocsp", bytes(body))
        assert got.status == 200
        ocsp.load_der_ocsp_response(got.body)


def test_bodies_methods_and_slow_clients_are_bounded(live: Scene) -> None:
    """SPEC F4."""
    assert live.host.ask("POST", "/ocsp", bytes(100_000)).status == 413
    assert live.host.ask("PUT", "/ocsp", b"x").status == 405
    assert live.host.ask("POST", "/index.json", b"x").status == 405
    with socket.create_connection(("127.0.0.1", live.host.port), timeout=10) as slow:
        slow.sendall(b"POST /ocsp HTTP/1.1\r\nhost: x\r\ncontent-length: 80\r\n\r\n0")
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", live.host.port), timeout=10) as slow:
        slow.sendall(b"GET /index.json HTT")
        assert slow.recv(100).startswith(b"HTTP/1.1 400")


# --- files


@pytest.mark.parametrize(
    ("path", "content_type", "cache"),
    [
        ("crl/issuing-1.crl", "application/pkix-crl", r"public, max-age=3600, must-revalidate"),
        ("ca/issuing-1.cer", "application/pkix-cert", r"public, max-age=86400"),
        ("log/checkpoint", "text/plain; charset=utf-8", r"public, max-age=5, must-revalidate"),
        ("index.json", "application/json", r"public, max-age=60"),
    ],
)
def test_files_have_their_types_and_may_be_kept_as_long_as_they_are_right(
    live: Scene, path: str, content_type: str, cache: str
) -> None:
    """SPEC F4; RFC 5280 section 4.2.1.13, RFC 9111."""
    got = live.host.get(f"/{path}")
    assert (got.status, got.body) == (200, (live.host.www / path).read_bytes())
    assert got.headers["content-type"] == content_type
    assert re.fullmatch(cache, got.headers["cache-control"])
    assert live.host.get(f"/{path}", if_none_match=got.headers["etag"]).status == 304
    head = live.host.ask("HEAD", f"/{path}")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(got.body)))


def test_curl_and_openssl_read_the_crl_where_it_is_said_to_be(live: Scene, tmp_path: Path) -> None:
    """SPEC F2, F4."""
    file = tmp_path / "got.crl"
    subprocess.run(
        [need("curl"), "--fail", "--silent", "--output", str(file), f"{live.host.url}/crl/issuing-1.crl"],
        check=True,
    )
    for name, status in VERDICTS.items():
        verdict = openssl.crl_verdict(live.chains[name], [file.read_bytes()], tmp_path, at=now())
        assert verdict.status is status, verdict


@pytest.mark.parametrize(
    "target",
    [
        "/", "/.lock", "/.new", "/crl/../index.json", "/crl/%2e%2e/index.json", "/crl/..%2f..%2fpassphrase",
        "/passphrase", "/answers/issuing-1.sqlite", "/log/tile/0/x000/000", "/log/tile/0/000.p/256",
        "//index.json", "/crl/issuing-1.crl/", "/log/", "/crl/%00.crl", "/responders/ocsp/issuing-1.cer",
    ],
)  # fmt: skip
def test_nothing_but_known_names_is_served(live: Scene, target: str) -> None:
    """SPEC F4."""
    assert live.host.get(target).status == 404


def test_the_checkpoint_and_its_tiles_are_served(live: Scene) -> None:
    """SPEC E3, F4: C2SP tlog-tiles."""
    vkey = VerifierKey.parse((live.realm.path / "log.vkey").read_text().strip())
    size = open_note(live.host.get("/log/checkpoint").body.decode(), vkey).size
    assert 0 < size < 256
    got = live.host.get(f"/log/tile/0/000.p/{size}")
    assert (got.status, len(got.body), got.headers["content-type"]) == (
        200,
        32 * size,
        "application/octet-stream",
    )
    assert live.host.get("/log/tile/0/000").status == 404


# --- the command


def test_the_public_host_has_nothing_to_publish_with(live: Scene) -> None:
    """SPEC F4."""
    done = birthmark("publish", "--settings", live.host.settings, check=False)
    assert done.returncode == 66
    assert "no [key-store]" in done.stderr or "no [publication]" in done.stderr


def test_check_tells_monitoring_what_is_missing_and_leaves_no_entry(tmp_path: Path) -> None:
    """SPEC F2."""
    scene = make_scene(tmp_path, "off")
    done = scene.publish("--check", check=False)
    assert done.returncode == 1
    assert "crl-missing" in done.stdout
    assert '"level": "error"' in done.stderr
    assert "crl-missing" not in [entry["kind"] for entry in scene.realm.entries()]
    scene.publish()
    assert scene.publish("--check").returncode == 0


def test_watching_publishes_what_is_revoked_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """SPEC F2."""
    scene = make_scene(tmp_path, "off")
    text = scene.realm.settings.read_text()
    scene.realm.settings.write_text(f"{text}watch-seconds = 1\n")
    command = [
        sys.executable,
        "-m",
        "birthmark",
        "publish",
        "--watch",
        "--settings",
        str(scene.realm.settings),
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        crl = scene.host.www / "crl/issuing-1.crl"
        assert until(crl.exists)
        process.terminate()
        assert process.wait(15) == 0
    assert len(x509.load_der_x509_crl(crl.read_bytes())) == 2
