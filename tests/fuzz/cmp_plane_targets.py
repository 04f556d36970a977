"""CMP behind its protection: messages that are signed as they should be, and whose bodies are anything."""

import atexit
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

from birthmark import errors
from birthmark.pki import cmp, cmp_bodies, der
from birthmark.pki.cmp import FROM_CLIENTS, BodyKind, InfoTypeAndValue, encode_info
from birthmark.pki.cmp_status import PKIFailureInfo, PKIStatus, PKIStatusInfo
from tests.fuzz.files import folder
from tests.fuzz.mutators import Shape
from tests.fuzz.target import Target
from tests.support.cmpplane import CMPPlane, Party, cmp_plane, pkcs10, request
from tests.support.realm import make_line

__all__ = ["CMP_PLANE_TARGETS"]

_KINDS = {kind.tag: kind for kind in FROM_CLIENTS}
_MANY = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """A plane, and those who ask."""

    plane: CMPPlane
    device: Party
    boot: Party

    def begun(self, path: str) -> tuple[bytes, bytes]:
        """Begin a transaction of the device's; return its transactionID, and the nonce to go on with."""
        answered = self.plane.post(self.device.says(BodyKind.CR, request()), path)
        header = cmp.decode(answered.body).header
        return header.transaction_id or b"", header.sender_nonce or b""


@cache
def served() -> _Served:
    """Serve a realm with a device, and one that has a code."""
    place, stack = folder("cmp-plane"), ExitStack()
    line = make_line(place, f"sqlite:///{place / 'line.sqlite'}")
    line.open_run()
    line.open_operational(quantity=1_000_000)
    line.open_operational("L2", quantity=1_000_000, approval=True)
    unhurried = cmp_plane(
        line, place, client_per_minute=_MANY, client_burst=_MANY, shared_per_minute=_MANY, shared_burst=_MANY
    )
    plane = stack.enter_context(unhurried)
    stack.callback(line.close)
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    atexit.register(stack.close)
    return _Served(plane=plane, device=plane.device(), boot=plane.code())


# --- CMP, past its protection


def _body(data: bytes) -> None:
    """A message of the device, of somebody with a code, or of an RA gone mad: it is answered in CMP.

    The input is a PKIBody (RFC 9810 section 5.1.2), whose tag says which; its length, whose message it is in.
    """
    found = der.children(data)
    if len(found) != 1 or found[0][0] not in _KINDS:
        raise errors.MalformedRequest("no body of a client's")
    at, kind = served(), _KINDS[found[0][0]]
    body, way = data[found[0][2] :], len(data) % 3
    by = at.boot if way == 1 else at.device
    transaction, nonce = None, None
    if kind in (BodyKind.CERT_CONF, BodyKind.POLL_REQ, BodyKind.ERROR):
        by = at.device
        transaction, nonce = at.begun("/p/L2" if kind is BodyKind.POLL_REQ else "/p/L1")
    if kind is BodyKind.NESTED:
        octets = at.plane.station.says(kind, body)
    else:
        octets = by.says(kind, body, transaction=transaction, nonce=nonce)
        if way == 2:
            octets = at.plane.station.says(BodyKind.NESTED, der.encode(der.SEQUENCE, octets))
    answered = at.plane.post(octets, "/p/R1" if by is at.boot else "/p/L1")
    if answered.status in (400, 413):  # some bodies make no message: a length, a tag
        raise errors.MalformedRequest("no message")
    if answered.status != 200:
        raise AssertionError(f"answered {answered.status}: {answered.body[:500]!r}")
    cmp.decode(answered.body, 4_000_000)


def _bodies() -> Iterator[bytes]:
    at = served()
    ask = at.device.says(BodyKind.CR, request())
    info = PKIStatusInfo(status=PKIStatus.REJECTION, text=("no",), fail_info=PKIFailureInfo.BAD_REQUEST)
    status = der.encode(der.SEQUENCE, der.encode(der.OCTET_STRING, bytes(32)), der.integer(0))
    named = der.encode(der.SEQUENCE, b"\x81\x01\x05", der.encode(0xA3, at.device.sender))
    bodies: dict[BodyKind, tuple[bytes, ...]] = {
        BodyKind.CR: (request(), request("D9")),
        BodyKind.IR: (request("D7"),),
        BodyKind.KUR: (request(),),
        BodyKind.P10CR: (pkcs10(),),
        BodyKind.CERT_CONF: (b"\x30\x00", der.encode(der.SEQUENCE, status)),
        BodyKind.POLL_REQ: (b"\x30\x05\x30\x03\x02\x01\x00",),
        BodyKind.ERROR: (cmp_bodies.error(info),),
        BodyKind.RR: (der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, named)),),
        BodyKind.NESTED: (der.encode(der.SEQUENCE, ask, ask),),
        BodyKind.GENM: tuple(
            encode_info([InfoTypeAndValue(info_type=kind, value=None)])
            for kind in (
                cmp_bodies.CA_CERTS,
                cmp_bodies.ROOT_CA_CERT,
                cmp_bodies.CERT_REQ_TEMPLATE,
                cmp_bodies.CRL_STATUS_LIST,
                cmp_bodies.CURRENT_CRL,
            )
        ),
    }
    for kind, examples in bodies.items():
        for example in examples:
            yield der.encode(kind.tag, example)


CMP_PLANE_TARGETS = (Target(name="cmp-plane", run=_body, seeds=_bodies, shape=Shape.DER, longest=8192),)
