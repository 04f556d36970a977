"""What an OCSP client asks (RFC 6960 section 4.1), from a body or from the path of a GET.

``decode_request`` is total: any octets become an ``OCSPRequest`` or ``errors.MalformedRequest``.  It is
strict about DER, since a responder signs back the very CertID it was asked about.  The requestor's name, a
signature of the request and extensions other than the nonce are passed over (sections 4.1.2 and 4.4), except
that a critical one is refused.

``issuer_ids`` says under which hashes the certificates of an authority are asked about.
"""

import base64
import binascii
import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from urllib.parse import unquote

from birthmark.errors import MalformedRequest
from birthmark.pki import der
from birthmark.pki.algorithms import SHA2

__all__ = [
    "MAX_CERT_IDS",
    "MAX_NONCE_SIZE",
    "MAX_REQUEST_SIZE",
    "NONCE",
    "CertID",
    "CertIDHash",
    "IssuerID",
    "OCSPRequest",
    "cert_id",
    "decode_get",
    "decode_request",
    "issuer_ids",
    "request_of_get",
]

MAX_REQUEST_SIZE = 8192
"""Octets of a request; our own limit."""
MAX_CERT_IDS = 32
"""Certificates that one request may ask about; our own limit."""
MAX_NONCE_SIZE = 128
"""Octets of a nonce (RFC 9654 section 2.1)."""

NONCE = der.oid("1.3.6.1.5.5.7.48.1.2")
"""id-pkix-ocsp-nonce (DER)."""


class CertIDHash(StrEnum):
    """What a CertID hashes its issuer's name and key with."""

    SHA1 = "sha1"
    """What the lightweight profile asks with (RFC 5019 section 2.1.1); nothing here rests on its strength."""
    SHA256 = "sha256"
    SHA384 = "sha384"
    SHA512 = "sha512"


_HASH_OIDS = {
    CertIDHash.SHA1: der.oid("1.3.14.3.2.26"),
    **{CertIDHash(name): identifier for name, identifier in SHA2.items()},
}
_NULL = b"\x05\x00"
_SIZES = {CertIDHash.SHA1: 20, CertIDHash.SHA256: 32, CertIDHash.SHA384: 48, CertIDHash.SHA512: 64}
# The parameters are NULL in RFC 6960's own examples and absent in RFC 5754 section 2: clients do both.
_HASHES = {oid + ending: name for name, oid in _HASH_OIDS.items() for ending in (b"", _NULL)}

IssuerID = tuple[CertIDHash, bytes, bytes]
"""Whose certificate a CertID means: hash algorithm, hash of the issuer's name, hash of its key."""


@dataclass(frozen=True, slots=True)
class CertID:
    """Which certificate is meant (RFC 6960 section 4.1.1)."""

    issuer: IssuerID
    serial_number: int
    """As asked: may be one that no authority gives, such as zero."""
    octets: bytes = field(repr=False, compare=False)
    """As it stands in the request (DER), for the response to repeat."""


@dataclass(frozen=True, slots=True)
class OCSPRequest:
    """What a client wants to know."""

    cert_ids: tuple[CertID, ...]
    """One to MAX_CERT_IDS."""
    nonce: bytes | None
    """One to MAX_NONCE_SIZE octets that the response has to repeat."""


def issuer_ids(subject: bytes, subject_public_key_info: bytes) -> tuple[IssuerID, ...]:
    """Return what a CertID may call the issuer of its certificate, one for each hash algorithm.

    Args:
        subject: the issuer's name (DER), as its certificates carry it.
        subject_public_key_info: the issuer's key (DER).

    Raises:
        MalformedRequest: that is no SubjectPublicKeyInfo.
    """
    _, _, start, stop = der.only(subject_public_key_info, der.SEQUENCE)
    parts = der.children(subject_public_key_info, start, stop)
    if [part[0] for part in parts] != [der.SEQUENCE, der.BIT_STRING]:
        raise MalformedRequest("a public key is algorithm and bits")
    key = subject_public_key_info[parts[1][2] + 1 : parts[1][3]]  # without the count of unused bits
    return tuple((name, _digest(name, subject), _digest(name, key)) for name in CertIDHash)


def _digest(name: CertIDHash, octets: bytes) -> bytes:
    return hashlib.new(name, octets, usedforsecurity=False).digest()


def cert_id(issuer: IssuerID, serial_number: int) -> CertID:
    """Return the CertID of a certificate, for a response that nobody has asked for yet.

    Args:
        issuer: one of ``issuer_ids``.
        serial_number: of the certificate; not negative.
    """
    algorithm, name_hash, key_hash = issuer
    octets = der.encode(
        der.SEQUENCE,
        der.encode(der.SEQUENCE, _HASH_OIDS[algorithm], _NULL),
        der.encode(der.OCTET_STRING, name_hash),
        der.encode(der.OCTET_STRING, key_hash),
        der.integer(serial_number),
    )
    return CertID(issuer, serial_number, octets)


# --- decoding ---


def decode_get(path: str) -> OCSPRequest:
    """Return what a GET asks; see ``request_of_get``.

    Raises:
        MalformedRequest: it is something else.
    """
    return decode_request(request_of_get(path))


def request_of_get(path: str) -> bytes:
    """Return the request (DER) of a GET (RFC 6960 appendix A.1): base64 of it, URL-escaped, as the path.

    Args:
        path: what follows the responder's own path, escaped or not, with or without a slash before it.

    Raises:
        MalformedRequest: it is no base64, or too long.
    """
    if len(path) > 4 * MAX_REQUEST_SIZE:
        raise MalformedRequest(f"an ocsp request has at most {MAX_REQUEST_SIZE} octets")
    text = unquote(path)
    # A slash is a digit of base64, but DER's first octet, 30, makes it begin with M.
    try:
        return base64.b64decode(text.removeprefix("/").encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise MalformedRequest("the path is not base64") from error


def decode_request(octets: bytes) -> OCSPRequest:
    """Return what an OCSPRequest (DER) asks.

    Raises:
        MalformedRequest: it is something else; it asks about nothing or about too many certificates, with a
            hash algorithm that ``CertIDHash`` has not, or with a nonce that is empty or too long.
    """
    if len(octets) > MAX_REQUEST_SIZE:
        raise MalformedRequest(f"an ocsp request has at most {MAX_REQUEST_SIZE} octets")
    fields = der.children(octets, *der.only(octets, der.SEQUENCE)[2:])
    if not fields or fields[0][0] != der.SEQUENCE or [field[0] for field in fields[1:]] not in ([], [0xA0]):
        raise MalformedRequest("an ocsp request is the asked and perhaps a signature")
    parts = der.children(octets, *fields[0][2:])
    tags = bytes(part[0] for part in parts)
    if tags not in _REQUEST_FORMS:
        raise MalformedRequest("not version, requestor, list and extensions")
    if tags[0] == 0xA0 and octets[parts[0][2] : parts[0][3]] != b"\x02\x01\x00":
        raise MalformedRequest("the version is not 1")
    _, _, start, stop = parts[tags.index(der.SEQUENCE)]
    asked = der.children(octets, start, stop)
    if not 1 <= len(asked) <= MAX_CERT_IDS:
        raise MalformedRequest(f"{len(asked)} certificates are asked about, not 1 to {MAX_CERT_IDS}")
    nonce = _extensions(octets, *parts[-1][2:]) if tags[-1] == 0xA2 else None
    return OCSPRequest(tuple(_request(octets, element) for element in asked), nonce)


_REQUEST_FORMS = frozenset(
    version + name + b"\x30" + extensions
    for version in (b"", b"\xa0")
    for name in (b"", b"\xa1")
    for extensions in (b"", b"\xa2")
)


def _request(octets: bytes, element: der.Element) -> CertID:
    parts = der.children(octets, *element[2:])
    if element[0] != der.SEQUENCE or bytes(part[0] for part in parts) not in {b"\x30", b"\x30\xa0"}:
        raise MalformedRequest("what is asked is not a certificate and extensions")
    if len(parts) == 2 and _extensions(octets, *parts[1][2:]) is not None:
        raise MalformedRequest("a nonce is for the whole request")
    _, first, start, stop = parts[0]
    found = der.children(octets, start, stop)
    if bytes(part[0] for part in found) != b"\x30\x04\x04\x02":
        raise MalformedRequest("a CertID is algorithm, two hashes and a serial number")
    algorithm = _HASHES.get(octets[found[0][2] : found[0][3]])
    if algorithm is None:
        raise MalformedRequest("the hash algorithm of a CertID is none of SHA-1, SHA-256, SHA-384, SHA-512")
    name_hash, key_hash, serial = (octets[part[2] : part[3]] for part in found[1:])
    if not len(name_hash) == len(key_hash) == _SIZES[algorithm]:
        raise MalformedRequest(f"the hashes of a CertID are not {algorithm}'s")
    if not 1 <= len(serial) <= 20 or (len(serial) > 1 and serial[:2] < b"\0\x80"):
        raise MalformedRequest("a serial number is empty, too long or not in the shortest form")
    if len(serial) > 1 and serial[:2] >= b"\xff\x80":
        raise MalformedRequest("a serial number is not in the shortest form")
    number = int.from_bytes(serial, "big", signed=True)
    return CertID((algorithm, name_hash, key_hash), number, octets[first:stop])


def _extensions(octets: bytes, start: int, stop: int) -> bytes | None:
    """Return the nonce among some Extensions, or None."""
    nonce = None
    seen = set()
    _, _, start, stop = der.only(octets, der.SEQUENCE, start, stop)
    for tag, _, *contents in der.children(octets, start, stop):
        parts = der.children(octets, *contents)
        tags = bytes(part[0] for part in parts)
        if tag != der.SEQUENCE or tags not in {b"\x06\x04", b"\x06\x01\x04"}:
            raise MalformedRequest("an extension is not identifier, criticality and value")
        if len(parts) == 3 and octets[parts[1][2] : parts[1][3]] != b"\xff":
            raise MalformedRequest("criticality is not TRUE: FALSE is left out (X.690 section 11.5)")
        identifier = octets[parts[0][1] : parts[0][3]]
        if identifier in seen:
            raise MalformedRequest("an extension occurs twice")
        seen.add(identifier)
        if identifier == NONCE:
            _, _, inner, last = der.only(octets, der.OCTET_STRING, *parts[-1][2:])
            nonce = octets[inner:last]
            if not 1 <= len(nonce) <= MAX_NONCE_SIZE:
                raise MalformedRequest(f"a nonce has 1 to {MAX_NONCE_SIZE} octets, not {len(nonce)}")
        elif len(parts) == 3:
            raise MalformedRequest(f"extension {identifier.hex()} is critical and unknown")
    return nonce
