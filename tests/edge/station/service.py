"""A small station plane of the tests' own: real TLS 1.3, real certificates, a real log; and it can misbehave.

It keeps the rules of the interface that matter to a client: one answer for one idempotency key and one
request, another request under it is refused, a repeated delivered key is a new one, a wrong proof holds the
device.
"""

import base64
import json
import re
import ssl
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID

from birthmark.edge.station import write_station_directory
from birthmark.element.injection import Evidence
from birthmark.ledger import entry, merkle
from birthmark.ledger.checkpoint import Checkpoint, VerifierKey, open_note, sign_note
from birthmark.ledger.proof import TlogProof, decode
from birthmark.pki.possession import proof_message, verify_proof
from birthmark.secret import SecretBytes
from tests.edge.station.authorities import DAYS, Authority, authority, certify, name, pem_key
from tests.edge.station.dialogues import Dialogues, Over

NAME = "factory.test"
RUN = "run-1"


class Problem(Exception):
    """A refusal of the tests' service."""

    def __init__(self, status: int, code: str, detail: str, rule: str | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.body = {
            "type": f"urn:birthmark:problem:{code}",
            "title": code,
            "status": status,
            "detail": detail,
            "instance": "1",
            "code": code,
            "retryable": status == 503,
            "rule": rule,
        }


@dataclass
class Device:
    state: str
    run: str
    attempt: str
    number: int
    certificate: x509.Certificate
    challenge: bytes
    leaf: int | None = None
    further: tuple[x509.Certificate, ...] = ()

    @property
    def sha256(self) -> str:
        return _sha256(self.certificate)


def _sha256(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


Mishap = Callable[["Handler"], bool]
"""Called before a request is carried out; True if it has dealt with the request itself."""


@dataclass
class Service:
    """The state of the service, and what it is told to do wrong."""

    root: Authority = field(default_factory=lambda: authority("Root"))
    log_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    devices: dict[str, Device] = field(default_factory=dict)
    answers: dict[str, tuple[str, int, dict[str, Any]]] = field(default_factory=dict)
    entries: list[bytes] = field(default_factory=list)
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    """Method, path, request number and operator of every request that arrived."""
    bodies: list[bytes] = field(default_factory=list)
    witnessed: list[str] = field(default_factory=list)
    """Every question whether the log only grew: the sizes that were asked about.  It stands in ``requests``
    nowhere, because a token may bring one."""
    issued: Counter[str] = field(default_factory=Counter)
    """How many certificates each device was issued."""
    mishaps: list[tuple[str, Mishap]] = field(default_factory=list)
    """A part of a path, and what goes wrong the next time it is asked for."""
    forge: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda _, body: body
    """Alters a good answer, given its path."""
    refuse: Callable[[str], None] = lambda _: None
    """Raises what is to be refused, given a path."""
    further: tuple[str, ...] = ()
    """Profiles of the further certificates that each device gets."""
    elements: Dialogues | None = None
    """Set if the run puts a key set into each device's secure element."""
    tells_further: bool = True
    """False for a service of the time before."""
    proves_growth: bool = True
    """False likewise: its tokens come without proofs that the log only grew."""
    renewed: list[x509.Certificate] = field(default_factory=list)
    """The station's further certificates."""
    last_seq: int = 0
    max_gang: int = 4
    connections: int = 0

    def __post_init__(self) -> None:
        self.authority = authority("Factory CA", self.root, path_length=0)
        self.lock = threading.Lock()
        self.released = threading.Event()

    # --- the log

    @property
    def vkey(self) -> VerifierKey:
        return VerifierKey("factory.test/log", self.log_key.public_key().public_bytes_raw())

    def checkpoint(self, size: int | None = None) -> str:
        return self._grown(self.entries[:size])[1]

    def _grown(self, entries: list[bytes]) -> tuple[merkle.Growth, str]:
        growth = merkle.Growth(merkle.Edge.empty())
        for data in entries:
            growth.append(merkle.leaf_hash(data))
        vkey = self.vkey
        body = Checkpoint(vkey.name, growth.size, growth.root()).body()
        return growth, sign_note(body, vkey.name, vkey.public, self.log_key.sign)

    def log(self, kind: str, **fields: object) -> int:
        self.entries.append(
            entry.encode(
                {"v": 1, "kind": kind, "at": entry.time_text(DAYS[0]), "realm": "acme"}
                | {"environment": "test", "actor": "station:ST01"}
                | fields
            )
        )
        return len(self.entries) - 1

    def token(self, leaf: int) -> str:
        growth, note = self._grown(self.entries)
        return TlogProof(leaf, self.entries[leaf], growth.inclusion_proof(leaf), note).encode()

    # --- the interface

    def answer(  # noqa: C901, PLR0911, PLR0912 -- one line an endpoint
        self, method: str, path: str, body: dict[str, Any]
    ) -> dict[str, Any] | str:
        path, _, query = path.partition("?")
        self.refuse(path)
        parts = path.strip("/").split("/")
        match method, *parts:
            case "GET", "v1", "me":
                return {
                    "client": "station:ST01", "site": "S", "line": "L", "realm": "acme",
                    "environment": "test",
                    "last_seq": self.last_seq, "vkey": str(self.vkey), "development": True,
                    "max_gang": self.max_gang, "new_in_a_later_version": 1,
                }  # fmt: skip
            case "GET", "v1", "runs", run:
                counts = Counter(device.state for device in self.devices.values())
                told: dict[str, Any] = {"further_profiles": list(self.further)} if self.tells_further else {}
                if self.elements is not None:
                    told["element"] = "bench"
                return {
                    "run": run, "product": "p", "batch": "b", "profile": "vehicle", "status": "open",
                    "quantity": 9, "admitted": len(self.devices), "released": counts["released"],
                    "held": counts["held"], "scrapped": counts["scrapped"], "not_before": "", "not_after": "",
                    "hardware_id_kind": "vin", "origins": ["born", "delivered"], **told,
                }  # fmt: skip
            case "GET", "v1", "devices", device:
                return self._status(device)
            case "GET", "v1", "devices", device, "token":
                return self.token(self._device(device).leaf or 0)
            case "GET", "v1", "checkpoint":
                return {"checkpoint": self.checkpoint(), "consistency": self.consistency(query)}
            case "POST", "v1", "me", "certificate":
                return self._renew(body["csr"])
            case "POST", "v1", "runs", run, "issue":
                return self._begun(self._once(("issue", run), body, self._issue))
            case "POST", "v1", "runs", run, "gang-issue":
                return self._each(
                    body["devices"], lambda item: self._begun(self._once(("issue", run), item, self._issue))
                )
            case "POST", "v1", "inject":
                return self._inject(body)
            case "POST", "v1", "gang-inject":
                return self._each(body["dialogues"], self._inject)
            case "POST", "v1", "prove":
                return self._grown_since(query, self._once(("prove",), body, self._prove))
            case "POST", "v1", "gang-prove":
                proved = self._each(body["proofs"], lambda item: self._once(("prove",), item, self._prove))
                released = [number for number, one in enumerate(proved["results"]) if "token" in one]
                if released:
                    last = released[-1]
                    proved["results"][last] = self._grown_since(query, proved["results"][last])
                return proved
            case "POST", "v1", "devices", device, act:
                return self._once((act, device), body, self._dispose)
        raise Problem(404, "not-found", f"there is no {path}")

    def _grown_since(self, query: str, proved: dict[str, Any]) -> dict[str, Any]:
        if not (self.proves_growth and query):
            return proved
        note = decode(proved["token"]).checkpoint_note
        return proved | {"consistency": self.consistency(query, open_note(note, self.vkey).size)}

    def consistency(self, query: str, size: int | None = None) -> list[dict[str, Any]]:
        leaves = [merkle.leaf_hash(data) for data in self.entries[:size]]

        def node(level: int, index: int) -> bytes:
            return merkle.complete_root(leaves[index << level : (index + 1) << level])

        asked = [int(one.removeprefix("since=")) for one in query.split("&") if one]
        return [
            {
                "since": old,
                "proof": [
                    base64.b64encode(one).decode() for one in merkle.consistency_proof(old, len(leaves), node)
                ],
            }
            for old in asked
            if old <= len(leaves)
        ]

    def _renew(self, csr: str) -> dict[str, Any]:
        request = x509.load_pem_x509_csr(csr.encode())
        assert request.is_signature_valid
        key: Any = request.public_key()
        usage = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)
        certificate = certify(name("ST01"), key, self.root, [usage])
        self.renewed.append(certificate)
        self.log("client-renewed", client="station:ST01")
        pem = certificate.public_bytes(Encoding.PEM).decode()
        return {"client": "station:ST01", "certificate": pem, "chain": []}

    def _each(self, items: list[Any], one: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        if len(items) > self.max_gang:
            raise Problem(413, "too-large", "a gang too large")
        results = []
        for item in items:
            try:
                results.append(one(item))
            except Problem as problem:
                results.append(problem.body)
        return {"results": results}

    def _once(
        self, what: tuple[str, ...], body: dict[str, Any], act: Callable[..., dict[str, Any]]
    ) -> dict[str, Any]:
        key, digest = body["idempotency_key"], json.dumps([what, body], sort_keys=True)
        if key in self.answers:
            known, status, answer = self.answers[key]
            if known != digest:
                raise Problem(409, "idempotency-key-reused", f"{key} was used for another request")
            if status != 200:
                raise Problem(status, answer["code"], answer["detail"], answer["rule"])
            if what[0] == "issue" and body.get("csr") is None:
                answer = self._certify(answer["device"], [None] * (1 + len(self.further)), again=True)
            return answer
        try:
            answer = act(what, body)
        except Problem as problem:
            self.answers[key] = (digest, problem.status, problem.body)
            raise
        self.answers[key] = (digest, 200, answer)
        return answer

    def _issue(self, what: tuple[str, ...], body: dict[str, Any]) -> dict[str, Any]:
        if what[1] != RUN:
            raise Problem(404, "not-found", f"there is no run {what[1]}")
        if not re.fullmatch("[A-HJ-NPR-Z0-9]{17}", vin := body["hardware_id"].upper()):
            raise Problem(400, "malformed-request", f"{vin} is no vin")
        if vin.startswith("XXX"):
            raise Problem(422, "policy-refused", f"{vin} is of another maker", "wmi")
        device = self.devices.get(f"vin:{vin}")
        if device is not None and device.state != "admitted":
            raise Problem(409, "illegal-transition", f"cannot issue vin:{vin}: it is {device.state}")
        csr, further = body.get("csr"), body.get("further_csrs", [])
        if len(further) != (0 if csr is None else len(self.further)):
            raise Problem(400, "malformed-request", f"wants {len(self.further)} further requests")
        return self._certify(f"vin:{vin}", [csr, *(further or [None] * len(self.further))], again=False)

    def _one(self, device: str, csr: str | None) -> tuple[x509.Certificate, dict[str, Any]]:
        made = None if csr is not None else ec.generate_private_key(ec.SECP256R1())
        key: Any = made.public_key() if made is not None else None
        if csr is not None:
            request = x509.load_pem_x509_csr(csr.encode())
            assert request.is_signature_valid
            key = request.public_key()
        certificate = certify(name(device.partition(":")[2]), key, self.authority)
        return certificate, {
            "certificate": certificate.public_bytes(Encoding.PEM).decode(),
            "private_key": None if made is None else pem_key(made).decode(),
        }

    def _certify(self, device: str, csrs: Sequence[str | None], *, again: bool) -> dict[str, Any]:
        before = self.devices.get(device)
        if again and before is not None and before.state != "issued":
            raise Problem(409, "illegal-transition", f"{device} is {before.state}")
        number = (before.number if before else 0) + (0 if again else 1)
        self.issued[device] += 1
        (certificate, told), *others = [self._one(device, csr) for csr in csrs]
        attempt = f"{sum(self.issued.values()):032x}"
        if again and before is not None:
            attempt = before.attempt
        challenge = Ed25519PrivateKey.generate().private_bytes_raw()
        further = tuple(one for one, _ in others)
        self.devices[device] = Device("issued", RUN, attempt, number, certificate, challenge, further=further)
        self.log("device-issued", device=device)
        return {
            "device": device, "attempt": attempt, "state": "issued",
            "chain": [self.authority.pem], "challenge": base64.b64encode(challenge).decode(), **told,
            "further": [
                {"profile": profile, **one} for profile, (_, one) in zip(self.further, others, strict=True)
            ],
        }  # fmt: skip

    def _begun(self, issued: dict[str, Any]) -> dict[str, Any]:
        if self.elements is None or not self.elements.begins_at_once:
            return issued
        return issued | {"element": self.elements.begin(issued["attempt"], issued["device"])}

    def _inject(self, body: dict[str, Any]) -> dict[str, Any]:
        device_id, device = self._waiting(body["attempt"])
        if self.elements is None:
            raise Problem(409, "illegal-transition", "the run puts no key set into an element")
        if body["element"]["step"] == 0:
            assert body["element"]["responses"] == []
            step: Any = self.elements.begin(device.attempt, device_id)
        else:
            step = self._advance(device_id, device, body)
        if not isinstance(step, dict):
            raise Problem(400, "malformed-request", "the last responses go with the proof")
        return {"attempt": device.attempt, "element": step}

    def _advance(self, device_id: str, device: Device, body: dict[str, Any]) -> dict[str, Any] | Evidence:
        assert self.elements is not None
        try:
            return self.elements.advance(device.attempt, device_id, body["element"])
        except Over as over:
            if over.why.code == "proof-failed":
                device.state = "held"
            raise Problem(409, over.why.code, str(over.why)) from over

    def _waiting(self, attempt: str) -> tuple[str, Device]:
        found = [item for item in self.devices.items() if item[1].attempt == attempt]
        if not found:
            raise Problem(404, "not-found", "there is no such attempt")
        if found[0][1].state != "issued":
            raise Problem(409, "illegal-transition", f"{found[0][0]} is {found[0][1].state}")
        return found[0]

    def _prove(self, _what: tuple[str, ...], body: dict[str, Any]) -> dict[str, Any]:
        device_id, device = self._waiting(body["attempt"])
        shown = [body, *body.get("further", [])]
        try:
            for certificate, proof in zip((device.certificate, *device.further), shown, strict=True):
                assert proof["certificate_sha256"] == _sha256(certificate)
                message = proof_message(
                    attempt=device.attempt,
                    certificate_sha256=_sha256(certificate),
                    challenge=device.challenge,
                )
                spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
                verify_proof(spki, base64.b64decode(proof["signature"]), message)
        except Exception as wrong:
            device.state = "held"
            raise Problem(409, "proof-failed", f"wrong proof; {device_id} is held") from wrong
        record: dict[str, Any] = {
            "device": device_id, "attempt": device.attempt, "certificate_sha256": device.sha256
        }  # fmt: skip
        if self.elements is not None:
            evidence = self._advance(device_id, device, body) if "element" in body else None
            if not isinstance(evidence, Evidence):
                raise Problem(409, "illegal-transition", "the dialogue with the element is not over")
            record["key_set"] = {"profile": "bench", "transcript_sha256": evidence.transcript_sha256}
        device.state = "released"
        if self.further:
            record["further"] = [
                {"profile": profile, "certificate_sha256": _sha256(certificate)}
                for profile, certificate in zip(self.further, device.further, strict=True)
            ]
        device.leaf = self.log("device-released", device=device_id, record=record)
        return {
            "device": device_id, "attempt": device.attempt, "state": "released",
            "token": self.token(device.leaf),
        }  # fmt: skip

    def _dispose(self, what: tuple[str, ...], _body: dict[str, Any]) -> dict[str, Any]:
        device = self._device(what[1])
        device.state = {"hold": "held", "rework": "admitted", "scrap": "scrapped"}[what[0]]
        return self._status(what[1])

    def _device(self, device: str) -> Device:
        if device not in self.devices:
            raise Problem(404, "not-found", f"there is no device {device}")
        return self.devices[device]

    def _status(self, device_id: str) -> dict[str, Any]:
        device = self._device(device_id)
        return {
            "device": device_id, "state": device.state, "run": device.run, "attempt": device.attempt,
            "attempts": device.number, "reason": None, "certificate": "1",
            "certificate_sha256": device.sha256,
            "revoked": None, "release_leaf": device.leaf,
        }  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True
    server: "Server"

    def setup(self) -> None:
        super().setup()
        self.server.service.connections += 1

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name for it
        """Keep the test's output clean."""

    def do_GET(self) -> None:
        self._do()

    def do_POST(self) -> None:
        self._do()

    def _do(self) -> None:
        service = self.server.service
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        path = self.path.replace("%3A", ":")
        with service.lock:
            seq = self.headers.get("Birthmark-Seq")
            if path.startswith("/v1/checkpoint?"):
                service.witnessed.append(path.partition("?")[2])
            else:
                asked = path.partition("?")[0]
                service.requests.append((self.command, asked, seq, self.headers.get("Birthmark-Operator")))
                service.bodies.append(body)
            service.last_seq = max(service.last_seq, int(seq or 0))
            mishap = next((item for item in service.mishaps if item[0] in path), None)
            if mishap is not None:
                service.mishaps.remove(mishap)
        if mishap is not None and mishap[1](self):
            return
        self.carry_out(path, body)

    def carry_out(self, path: str, body: bytes, *, silently: bool = False) -> None:
        service = self.server.service
        status, content_type = 200, "application/json"
        with service.lock:
            try:
                answer = service.answer(self.command, path, json.loads(body) if body else {})
                if isinstance(answer, dict):
                    answer = service.forge(path.partition("?")[0], answer)
            except Problem as problem:
                status, content_type, answer = problem.status, "application/problem+json", problem.body
        if silently:
            return
        if isinstance(answer, str):
            self.send(status, "text/plain; charset=utf-8", answer.encode())
        else:
            self.send(status, content_type, json.dumps(answer).encode())

    def send(self, status: int, content_type: str, body: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for header, value in headers.items():
            self.send_header(header.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def hang_up(self) -> None:
        self.close_connection = True


# --- what can go wrong


def lose_the_answer(handler: Handler) -> bool:
    """Do what was asked, then drop the connection."""
    handler.carry_out(handler.path.replace("%3A", ":"), handler.server.service.bodies[-1], silently=True)
    handler.hang_up()
    return True


def lose_the_request(handler: Handler) -> bool:
    handler.hang_up()
    return True


def answers(status: int, content_type: str, body: bytes, **headers: str) -> Mishap:
    def mishap(handler: Handler) -> bool:
        handler.send(status, content_type, body, **headers)
        return True

    return mishap


def busy(status: int = 503) -> Mishap:
    return answers(status, "text/html", b"<h1>busy</h1>")


def say_nothing(handler: Handler) -> bool:
    """Keep the connection and stay silent until the test is over."""
    handler.server.service.released.wait(30)
    handler.hang_up()
    return True


class Server(ThreadingHTTPServer):
    """The service on a port of its own, mutual TLS 1.3."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, service: Service, *, server_name: str = NAME, issuer: Authority | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.service = service
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = certify(
            name(server_name), key.public_key(), issuer or service.root,
            [
                (x509.SubjectAlternativeName([x509.DNSName(server_name)]), False),
                (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
            ],
        )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=service.root.pem)
        self._load(context, certificate.public_bytes(Encoding.PEM) + pem_key(key))
        self._context = context

    @staticmethod
    def _load(context: ssl.SSLContext, pem: bytes) -> None:
        with tempfile.NamedTemporaryFile() as file:
            file.write(pem)
            file.flush()
            context.load_cert_chain(file.name)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_address[1]}"

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(30)
        with self._context.wrap_socket(request, server_side=True) as connection:
            super().finish_request(connection, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests."""


def enrol(
    path: Path,
    service: Service,
    url: str,
    *,
    vkey: bool = False,
    passphrase: bytes | None = None,
    issuer: Authority | None = None,
) -> Path:
    """Make a station directory."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = certify(
        name("ST01"), key.public_key(), issuer or service.root,
        [(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False)],
    )  # fmt: skip
    passphrase_file = None
    if passphrase is not None:
        (path.parent / "passphrase").touch(mode=0o600)
        (path.parent / "passphrase").write_bytes(passphrase + b"\n")
        passphrase_file = "../passphrase"
    write_station_directory(
        path,
        name="ST01",
        url=url,
        certificate_pem=certificate.public_bytes(Encoding.PEM).decode(),
        chain_pem="",
        private_key_pem=SecretBytes(pem_key(key, passphrase)),
        root_pem=service.root.pem,
        vkey=str(service.vkey) if vkey else None,
        key_passphrase_file=passphrase_file,
        passphrase=None if passphrase is None else SecretBytes(passphrase),
    )
    return path
