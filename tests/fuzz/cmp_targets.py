"""Targets of CMP: whole messages, as a stranger sends them, and the bodies and parameters in them."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from birthmark.errors import MalformedRequest, PolicyRefused, TooLarge
from birthmark.pki import cmp, crmf, der
from birthmark.pki.cmp import BodyKind, PKIMessage, directory_name, read_directory_name
from birthmark.pki.cmp_bodies import error
from birthmark.pki.cmp_checks import Expected, verify_header, verify_signed, verify_under_secret
from birthmark.pki.cmp_protection import (
    MACProtector,
    ProtectionKind,
    encode_mac_algorithm,
    read_mac_algorithm,
)
from birthmark.pki.cmp_requests import (
    certificate_hash,
    read_confirmations,
    read_crl_statuses,
    read_error,
    read_nested,
    read_polls,
    read_revocations,
    verify_confirmation,
)
from birthmark.pki.cmp_status import PKIFailureInfo, PKIStatus, PKIStatusInfo
from birthmark.pki.csr import vet
from birthmark.pki.keys import KeyAlgorithm
from tests.fuzz.mutators import Shape
from tests.fuzz.target import Target
from tests.pki.cmp_parts import PBM, PBMAC1, SECRET, certificate, message, name, under_secret
from tests.pki.sample import NOW

CAPTURED = sorted((Path(__file__).parents[1] / "vectors" / "cmp").glob("*.der"))
ALL = tuple(KeyAlgorithm)


def captured() -> Iterator[bytes]:
    """Messages of OpenSSL."""
    for file in CAPTURED:
        yield file.read_bytes()


def messages() -> Iterator[bytes]:
    """Messages of OpenSSL, and of kinds that it does not send."""
    yield from captured()
    info = PKIStatusInfo(status=PKIStatus.REJECTION, text=("no",), fail_info=PKIFailureInfo.BAD_REQUEST)
    yield message(kind=BodyKind.ERROR, body=error(info)).octets
    yield message(by=under_secret(PBMAC1), kind=BodyKind.NESTED, body=_batch()).octets


def _batch() -> bytes:
    return der.encode(der.SEQUENCE, *list(captured())[:2])


def _message(data: bytes) -> None:
    """Do all that is done with a message before anybody knows who sent it, and then with its body."""
    found = cmp.decode(data)
    header, expected = found.header, None
    _ = header.cert_profile, header.implicit_confirm
    if header.recip_nonce is not None:
        expected = Expected(transaction_id=header.transaction_id or b"", nonce=header.recip_nonce)
    try:
        if verify_header(found, now=NOW, tolerance=None, expected=expected) is ProtectionKind.SIGNATURE:
            verify_signed(found)
        else:
            verify_under_secret(found, SECRET)
            MACProtector.answering(found, SECRET, b"another salt 123")
    finally:
        _body(found)


def _body(found: PKIMessage) -> None:
    match found.kind:
        case BodyKind.IR | BodyKind.CR | BodyKind.KUR:
            crmf.vet(crmf.decode(found.body), allowed=ALL)
        case BodyKind.P10CR:
            vet(found.body, allowed=ALL)
        case BodyKind.CERT_CONF:
            for one in read_confirmations(found.body):
                certificate_hash(certificate("device"), one.hash_algorithm)
                with suppress(PolicyRefused):  # the certificates of these transactions are gone
                    verify_confirmation(one, certificate("device"), pvno=found.header.pvno)
        case BodyKind.RR:
            read_revocations(found.body)
        case BodyKind.POLL_REQ:
            read_polls(found.body)
        case BodyKind.GENM:
            cmp.read_info(found.body)
        case BodyKind.NESTED:
            read_nested(found.body)
        case _:
            read_error(found.body)


def _request_seeds() -> Iterator[bytes]:
    for octets in captured():
        found = cmp.decode(octets)
        if found.kind in {BodyKind.IR, BodyKind.CR, BodyKind.KUR}:
            yield found.body


def _crls() -> Iterator[bytes]:
    issuer = der.encode(0xA1, der.encode(der.SEQUENCE, directory_name(name("ca").public_bytes())))
    place = der.encode(0xA0, der.encode(0xA0, b"\x86\x08http://a"))
    one = der.encode(der.SEQUENCE, issuer, b"\x17\x0d261122123015Z")
    yield der.encode(der.SEQUENCE, one, der.encode(der.SEQUENCE, place))


CMP_TARGETS = (
    Target(
        name="cmp-message",
        shape=Shape.DER,
        run=_message,
        seeds=messages,
        refuses=(MalformedRequest, PolicyRefused, TooLarge),
    ),
    Target(
        name="cmp-request",
        shape=Shape.DER,
        run=lambda data: crmf.vet(crmf.decode(data), allowed=ALL),
        seeds=_request_seeds,
        refuses=(MalformedRequest, PolicyRefused),
    ),
    Target(name="cmp-batch", shape=Shape.DER, run=read_nested, seeds=lambda: [_batch()]),
    Target(name="cmp-crl-status", shape=Shape.DER, run=read_crl_statuses, seeds=_crls),
    Target(
        name="cmp-mac",
        shape=Shape.DER,
        run=read_mac_algorithm,
        seeds=lambda: map(encode_mac_algorithm, (PBM, PBMAC1)),
        refuses=(MalformedRequest, PolicyRefused),
    ),
    Target(
        name="cmp-name",
        shape=Shape.DER,
        run=read_directory_name,
        seeds=lambda: [directory_name(name("ca").public_bytes()), b"\x82\x01a"],
    ),
)
