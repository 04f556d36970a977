"""Targets of the gateway: what a proxy says of a device, what a device shows, and whole requests."""

import atexit
import base64
import json
import shutil
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from birthmark import app, errors
from birthmark.adapters.system import SystemEntropy
from birthmark.edge.http.client_certificates import client_certificate
from birthmark.edge.http.gateway import create_gateway_app
from birthmark.edge.http.peer import PATH_KEY, SCOPE_KEY
from birthmark.edge.pins import Pins
from birthmark.floor.clients import Role
from birthmark.floor.fleet import FirstContact, FleetPolicy, RevocationRule
from birthmark.pki import jwt
from birthmark.pki.certificates import to_pem
from birthmark.pki.keys import KeyAlgorithm
from birthmark.services.fleet import Fleet
from birthmark.settings import Settings
from tests.fuzz.files import folder
from tests.fuzz.mutators import Shape
from tests.fuzz.plane_targets import Answered, answer_of, body_of, document_of, loop, scope_of
from tests.fuzz.target import Target, text
from tests.pki.sample import spki
from tests.support.foreign import ForeignPKI
from tests.support.realm import PASSPHRASE, Line, hierarchy, make_line, proof, workpiece

__all__ = ["GATEWAY_TARGETS"]

HOME = {"birthmark-address": "192.0.2.1"}


@cache
def gateway_plane() -> tuple[Any, Mapping[str, bytes], Mapping[str, tuple[bytes, ...]]]:
    """The application of a realm with a fleet, certificates (DER) of who may ask, and paths above them."""
    place = folder("gateway")
    line: Line = make_line(place, f"sqlite:///{place / 'line.sqlite'}")
    line.open_run("R1")
    device = workpiece("D1")
    issued = line.issue(device)
    line.prove(proof(issued, device.key))
    proxy = line.enrol(Role.PROXY, "edge-1")
    fjord = ForeignPKI(folder=place / "fjord").root()
    fleet = Fleet(line.realm, SystemEntropy())
    policy = FleetPolicy(first_contact=FirstContact.REGISTER, revocation=RevocationRule.NONE)
    challenged = line.service.carry(fleet.challenge(line.operator.caller, "fjord", fjord.der, policy))
    line.service.carry(fleet.register(line.operator.caller, "fjord", fjord.verification(challenged.nonce)))
    people = {
        "device": issued.certificate,
        "proxy": proxy.caller.credential.der,
        "boat": fjord.certify("BOAT-1"),
    }
    paths = {"device": (hierarchy().issuing, hierarchy().root), "boat": (fjord.der,)}
    line.close()
    application = app.build(_settings(place), clock=line.clock)
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    atexit.register(application.close)
    pins = Pins(now="A" * 43 + "=", next=None)
    return create_gateway_app(application, pins=lambda: pins), people, paths


def _settings(place: Path) -> Settings:
    passphrase, unused = place / "passphrase", str(place / "unused")
    passphrase.write_bytes(PASSPHRASE.reveal())
    passphrase.chmod(0o600)
    return Settings.model_validate(
        {
            "realm": {"name": "acme", "environment": "test", "organization": "Acme Motors"},
            "database": {"url": f"sqlite:///{place / 'line.sqlite'}"},
            "log": {"key": "log"},
            "key-store": {
                "kind": "software",
                "directory": str(hierarchy().directory),
                "passphrase-file": str(passphrase),
            },
            "gateway-plane": {
                "certificate-file": unused,
                "key-file": unused,
                "key-passphrase-file": unused,
                "refusals-per-minute": 1_000_000_000,
                "refusals-burst": 1_000_000_000,
                "proxy-per-minute": 1_000_000_000,
                "proxy-burst": 1_000_000_000,
            },
        }
    )


def _request(data: bytes) -> None:
    """A request of a device or a proxy: it is answered, and with no fault.

    ``who`` is somebody of ``gateway_plane``, or a certificate in base64.
    """
    document = document_of(data)
    application, people, paths = gateway_plane()
    who = str(document.get("who"))
    peer = people.get(who) or _octets(who)
    scope = scope_of(document) | {SCOPE_KEY: peer, PATH_KEY: paths.get(who, ())}
    answered: Answered = loop().run_until_complete(answer_of(application, scope, body_of(document)))
    if answered.status >= 500:
        raise AssertionError(f"answered {answered.status}: {answered.body[:500]!r}")
    if answered.status >= 400:
        raise errors.MalformedRequest(json.loads(answered.body)["code"])


def _octets(who: str) -> bytes:
    try:
        return base64.b64decode(who.encode("ascii", "replace"))
    except ValueError:
        return who.encode("utf-8", "surrogatepass")


def _seeds() -> Iterator[bytes]:
    _, people, _ = gateway_plane()
    for who in ("device", "boat"):
        for method, path in (
            ("POST", "/v1/contact"),
            ("GET", "/v1/status"),
            ("GET", "/.well-known/jwks.json"),
        ):
            yield json.dumps({"method": method, "path": path, "who": who, "headers": {}}).encode()
        der = base64.b64encode(people[who]).decode()
        yield json.dumps({"method": "POST", "path": "/v1/contact", "who": der, "headers": {}}).encode()
        for header in (
            {"client-cert": f":{der}:"},
            {"x-ssl-client-cert": quote(to_pem(people[who])), "birthmark-open-seconds": "12.345"},
        ):
            asking = {"method": "GET", "path": "/v1/authorise", "who": "proxy", "headers": header | HOME}
            yield json.dumps(asking).encode()


# --- the parts


def _key(octets: bytes) -> None:
    jwt.jwk(octets)
    jwt.key_id(octets)
    jwt.sign({"sub": "x"}, octets, lambda _message: bytes.fromhex("3006020101020101"))


def _rfc_9440() -> Iterator[bytes]:
    for _, der in sorted(gateway_plane()[1].items()):
        yield b":" + base64.b64encode(der) + b":"


def _escaped() -> Iterator[bytes]:
    for _, der in sorted(gateway_plane()[1].items()):
        yield quote(to_pem(der)).encode()


GATEWAY_TARGETS = (
    Target(name="gateway-plane", run=_request, seeds=_seeds, shape=Shape.JSON, longest=8192),
    Target(name="client-cert", run=text(lambda said: client_certificate(said, None)), seeds=_rfc_9440),
    Target(name="x-ssl-client-cert", run=text(lambda said: client_certificate(None, said)), seeds=_escaped),
    Target(
        name="token-key",
        run=_key,
        seeds=lambda: [spki(KeyAlgorithm.EC_P256, "device"), spki(KeyAlgorithm.ED25519, "device")],
    ),
)
