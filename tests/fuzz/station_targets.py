"""Targets of the station kit: what the service answers, and what lies in a station's directory."""

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from birthmark import errors
from birthmark.edge.cli.credentials import read as read_credential
from birthmark.edge.station import answers
from birthmark.edge.station.attesting import Asked
from birthmark.edge.station.bodies import read_results
from birthmark.edge.station.checks import (
    spki_of_key,
    spki_of_request,
    verify_certificate,
    verify_token,
)
from birthmark.edge.station.codes import JoinCode
from birthmark.edge.station.credentials import read_station_directory, settings_text
from birthmark.edge.station.elements import algorithm_of, split
from birthmark.edge.station.elements.carded import seconds
from birthmark.edge.station.elements.pins import read_pin
from birthmark.edge.station.pending import ElementPending, FurtherPending, Pending, Phase
from birthmark.edge.station.records import StationRecords
from birthmark.edge.station.transport import decode_object, refusal
from birthmark.ledger.checkpoint import Checkpoint
from birthmark.pki import der
from birthmark.pki.certificates import Certificate, fingerprint, to_pem
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes
from tests.fuzz.files import as_file, folder
from tests.fuzz.ledger_targets import log, token
from tests.fuzz.mutators import Shape
from tests.fuzz.pki_targets import issued, requests
from tests.fuzz.target import Target, halves, pieces, text
from tests.ledger.sample import VKEY
from tests.pki.sample import private_key, realm, spki

P256 = KeyAlgorithm.EC_P256
NOT_THE_SERVICES = (errors.IntegrityFailure,)
"""What the service says is no request: an answer that cannot be read stops the line."""
DEVICE = "vin:1M8GDM9AXKP042788"


def private(form: PrivateFormat = PrivateFormat.PKCS8, encoding: Encoding = Encoding.DER) -> bytes:
    """A delivered key."""
    key = private_key(P256, "device")
    return key.private_bytes(encoding, form, NoEncryption())


STEP = {
    "step": 1,
    "last": False,
    "commands": [
        {"command": "00a40400", "status_words": ["9000", "6a88"], "response_sha256": "0" * 64},
        {"command": "80500000080000000000000000", "status_words": ["9000"], "response_sha256": None},
    ],
}


@cache
def bodies() -> Mapping[str, Mapping[str, Any]]:
    """An answer of each kind, as the service gives them."""
    pem = to_pem(issued()[-1])
    key = to_pem(private(), "PRIVATE KEY")
    further = {"profile": "tls", "certificate": pem, "private_key": key}
    element = {
        "profile": "scp03-generic", "phase": "confirmed", "kvn": 49, "master": "m", "attempt": "0" * 32,
        "key_diversification_data": "00" * 10, "tries": 1, "failures": 0, "reason": None,
    }  # fmt: skip
    status = {"profile": "tls", "certificate": "0f", "certificate_sha256": "0" * 64, "revoked": None}
    return {
        "me": {
            "client": "station:ST01", "site": "Graz", "line": "L1", "realm": "acme", "environment": "test",
            "last_seq": 7, "vkey": str(VKEY), "development": True, "max_gang": 64,
        },
        "run": {
            "run": "R1", "product": "car", "batch": "B7", "profile": "idevid", "status": "open",
            "quantity": 3, "admitted": 2, "released": 1, "held": 1, "scrapped": 0,
            "not_before": "2026-11-22T06:00:00.000Z", "not_after": "2026-11-23T06:00:00.000Z",
            "hardware_id_kind": "vin", "origins": ["born"], "further_profiles": ["tls"], "element": None,
        },
        "device": {
            "device": DEVICE, "state": "held", "run": "R1", "attempt": "0" * 32, "attempts": 1,
            "reason": "x", "certificate": "0f", "certificate_sha256": "0" * 64, "revoked": None,
            "release_leaf": None, "further": [status], "element": element,
        },
        "issued": {
            "device": DEVICE, "attempt": "0" * 32, "certificate": pem, "chain": [pem],
            "challenge": base64.b64encode(bytes(32)).decode(), "private_key": key, "further": [further],
            "element": STEP,
        },
        "proved": {"device": DEVICE, "attempt": "0" * 32, "token": token()},
        "step": {"attempt": "0" * 32, "element": STEP},
        "asked": {
            "attestation": "0" * 32, "id_object": "AAAA", "encrypted_secret": "AAAA", "nonce": "AAAA",
        },
        "refusal": {
            "type": "urn:birthmark:problem:policy-refused", "title": "policy refused", "status": 422,
            "detail": "a key is weak", "instance": "urn:x", "code": "policy-refused", "retryable": False,
            "rule": "weak-key",
        },
    }  # fmt: skip


READERS: Mapping[str, Callable[[Mapping[str, Any]], object]] = {
    "me": answers.Me.read,
    "run": answers.RunStatus.read,
    "device": answers.DeviceStatus.read,
    "issued": answers.Issued.read,
    "proved": answers.Proved.read,
    "step": answers.ElementStep.of,
    "asked": Asked.read,
    "refusal": refusal,
}


def _answer(data: bytes) -> object:
    """An answer as it comes over the wire, and which request it answers."""
    document = decode_object(data)
    kind = document.get("kind")
    reader = READERS.get(kind if isinstance(kind, str) else "", answers.Issued.read)
    body = document.get("body")
    if not isinstance(body, dict):
        raise errors.IntegrityFailure("no object")
    read_results({"results": [body]}, 1, reader)
    return reader(body)


def _answer_seeds() -> Iterator[bytes]:
    for kind, body in bodies().items():
        yield json.dumps({"kind": kind, "body": body}).encode()


def _request(data: bytes) -> object:
    kind, rest = halves(data, 2)
    return spki_of_request(
        to_pem(rest, "CERTIFICATE REQUEST") if kind else rest.decode("utf-8", "surrogateescape")
    )


def _key(data: bytes) -> object:
    return spki_of_key(SecretBytes(data))


def _certificate(data: bytes) -> None:
    """A certificate and its chain, from a service that may be anybody's."""
    # SEQUENCE { certificate, its issuer's, device }: so that mutations know where each ends.
    certificate, above, device = _three(data)
    try:  # whoever makes up a certificate makes it for the key that was asked for
        key = Certificate.from_der(certificate).subject_public_key_info
    except errors.MalformedRequest:
        key = b""
    verify_certificate(
        certificate,
        [above] if above else [],
        anchors=[realm(P256).root_der],
        device=device.decode("utf-8", "surrogateescape"),
        hardware_id="1M8GDM9AXKP042788",
        public_key=key,
    )


def _three(data: bytes) -> list[bytes]:
    try:
        _, _, start, stop = der.only(data, der.SEQUENCE)
        found = der.children(data, start, stop)
    except errors.MalformedRequest:
        raise errors.IntegrityFailure("not of the form of this target") from None
    if len(found) != 3:
        raise errors.IntegrityFailure("not of the form of this target")
    return [data[begin:end] for _, begin, _, end in found[:2]] + [data[found[2][2] : found[2][3]]]


def _certificate_seeds() -> Iterator[bytes]:
    device = der.encode(der.OCTET_STRING, DEVICE.encode())
    for made in issued()[2:]:
        yield der.encode(der.SEQUENCE, made, realm(P256).issuing_der, device)


def _token(told: str) -> None:
    verify_token(told, VKEY, device=DEVICE, attempt="0" * 32, certificate_sha256=fingerprint(issued()[0]))


def _seen(note: str) -> Checkpoint:
    records = StationRecords(None)
    records.pin(str(VKEY))
    return records.open(note)


# --- what lies in a directory

PENDING = Pending(
    station="ST01",
    hardware_id="1M8GDM9AXKP042788",
    run="r",
    delivered=False,
    issue_key="k",
    issue_seq=1,
    phase=Phase.PROVING,
    device=DEVICE,
    attempt="0" * 32,
    challenge="00" * 32,
    certificate_sha256="0" * 64,
    prove_key="p",
    prove_seq=2,
    signature="00",
    further=(FurtherPending(profile="tls", certificate_sha256="0" * 64, signature="00"),),
    element=ElementPending(step=3, responses=("9000", "6a88")),
)

FILES = ("station.toml", "station.crt", "station.key", "root.crt", "device-anchors.pem")


def _directory(data: bytes) -> None:
    place = folder("station")
    place.chmod(0o700)
    for name, content in zip(FILES, pieces(data, len(FILES)), strict=True):
        file = place / name
        file.unlink(missing_ok=True)
        file.write_bytes(content)
        file.chmod(0o600)
    credentials = read_station_directory(place)
    credentials.anchors()
    credentials.device_anchors()
    credentials.tls_context()
    read_credential(place)


def _directory_seeds() -> Iterator[bytes]:
    ours = realm(P256)
    key = private_key(P256, "station")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    certificate = to_pem(next(one for one in issued() if spki(P256, "station") in one))
    parts = (
        settings_text(name="ST01", url="https://factory.example:8443").encode(),
        (certificate + to_pem(ours.issuing_der)).encode(),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        to_pem(ours.root_der).encode(),
        to_pem(ours.root_der).encode(),
    )
    yield b"".join(len(part).to_bytes(2, "big") + part for part in parts)


def _element_url(url: str) -> None:
    _, _, options = split(url)
    algorithm_of(options)
    seconds(options, "timeout", 1.0)


STATION_TARGETS = (
    Target(
        name="service-answer",
        run=_answer,
        seeds=_answer_seeds,
        refuses=NOT_THE_SERVICES,
        shape=Shape.JSON,
        longest=16384,
    ),
    Target(
        name="service-certificate",
        run=_certificate,
        seeds=_certificate_seeds,
        refuses=NOT_THE_SERVICES,
        refused_seeds=True,
        shape=Shape.DER,
        longest=8192,
    ),
    Target(
        name="service-token",
        run=text(_token),
        seeds=lambda: [token().encode()],
        refuses=NOT_THE_SERVICES,
        refused_seeds=True,
        longest=8192,
    ),
    Target(
        name="service-checkpoint",
        run=text(_seen),
        seeds=lambda: [log().checkpoint().encode()],
        refuses=NOT_THE_SERVICES,
    ),
    Target(
        name="delivered-key", run=_key, seeds=lambda: [private()], refuses=NOT_THE_SERVICES, shape=Shape.DER
    ),
    Target(
        name="request-of-a-device",
        run=_request,
        seeds=lambda: [
            b"\1" + requests()[0],
            b"\0" + to_pem(requests()[0], "NEW CERTIFICATE REQUEST").encode(),
        ],
    ),
    Target(
        name="join-code",
        run=text(JoinCode.parse),
        seeds=lambda: [JoinCode(secret=SecretBytes(bytes(16)), pin=bytes(16)).spell().encode()],
    ),
    Target(
        name="pending-device",
        run=Pending.decode,
        seeds=lambda: [PENDING.encode()],
        refuses=NOT_THE_SERVICES,
        shape=Shape.JSON,
    ),
    Target(
        name="station-directory",
        run=_directory,
        seeds=_directory_seeds,
        refuses=(errors.MalformedRequest, errors.NotFound, errors.NotPermitted),
        longest=16384,
    ),
    Target(
        name="pin-file",
        run=as_file("pin", lambda path: read_pin(str(path), "pin")),
        seeds=lambda: [b"123456\n"],
        refuses=(errors.MalformedRequest, errors.TooLarge),
    ),
    Target(
        name="element-url", run=text(_element_url), seeds=lambda: [b"tcp:h:1?timeout=2&algorithm=ec-p384"]
    ),
)
