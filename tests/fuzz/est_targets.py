"""Targets of EST: the bodies of requests, what their attributes say, and the names they are for."""

import base64
from collections.abc import Iterator
from pathlib import Path

from birthmark.errors import MalformedRequest, PolicyRefused, TooLarge
from birthmark.pki import der, est, est_requests
from birthmark.pki.certificates import to_pem
from birthmark.pki.keys import KeyAlgorithm
from tests.fuzz.mutators import Shape
from tests.fuzz.target import Target
from tests.pki.sample import realm

_VECTORS = Path(__file__).parent.parent / "vectors" / "est"
_LIMIT = 4000


def _examples() -> Iterator[bytes]:
    for name in ("simpleenroll-request.b64", "serverkeygen-request.b64"):
        yield base64.b64decode((_VECTORS / name).read_bytes())


def _bodies() -> Iterator[bytes]:
    for octets in _examples():
        yield octets
        yield est.to_base64(octets)
        yield base64.encodebytes(octets)
        yield to_pem(octets, "CERTIFICATE REQUEST").encode()


def _with(*attributes: bytes) -> bytes:
    """A request with these attributes; its signature is not looked at."""
    info = der.encode(der.SEQUENCE, der.integer(0), b"\x30\x00\x30\x00", der.encode(0xA0, *attributes))
    return der.encode(der.SEQUENCE, info, b"\x30\x00", der.encode(der.BIT_STRING, b"\0"))


def _attribute(kind: str, value: bytes) -> bytes:
    return der.encode(der.SEQUENCE, der.oid(kind), der.encode(der.SET, value))


def _attributes() -> Iterator[bytes]:
    yield from _examples()
    wrap = der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, der.oid("2.16.840.1.101.3.4.1.45")))
    for kind in ("1.2.840.113549.1.9.16.2.37", "1.2.840.113549.1.9.16.2.54"):
        named = _attribute(kind, der.encode(der.OCTET_STRING, b"key 4711"))
        yield _with(named, _attribute("1.2.840.113549.1.9.15", wrap))
    yield _with(_attribute("1.2.840.113549.1.9.7", b"\x1e\x04\x00a\x00b"))


def _body(data: bytes) -> object:
    return est.from_body(data, _LIMIT)


def _said(data: bytes) -> None:
    """Both readers look at the same octets, whichever of them refuses."""
    try:
        est.challenge_password(data)
    finally:
        est.requested_decryption(data)


def _names(data: bytes) -> None:
    """Compared with those of an authority's certificate, which are nobody's."""
    try:
        est_requests.named_device(data)
    finally:
        est_requests.require_same_names(data, realm(KeyAlgorithm.EC_P256).issuing_der)


EST_TARGETS = (
    Target(name="est-body", run=_body, seeds=_bodies, refuses=(MalformedRequest, TooLarge)),
    Target(name="est-request-attributes", shape=Shape.DER, run=_said, seeds=_attributes),
    Target(
        name="est-request-names",
        shape=Shape.DER,
        run=_names,
        seeds=_examples,
        refuses=(MalformedRequest, PolicyRefused),
        refused_seeds=True,
    ),
)
