"""What Enrollment over Secure Transport says, as octets (RFC 7030, 8951, 9908).

Requests are read, answers are written; paths, headers and who may ask what belong to the edge and the use
cases.  A request is a PKCS #10 (``csr.vet`` judges it) whose attributes may say two things more: that it
belongs to this TLS session (``challenge_password``), and which key seals a private key that is made for it
(``requested_decryption``).

What a request should be like is said by ``est_attributes``.
"""

import binascii
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from birthmark.errors import MalformedRequest, TooLarge
from birthmark.pki import der
from birthmark.pki.csr import request_der
from birthmark.secret import SecretBytes, Vanishing, wipe

__all__ = [
    "DecryptionKind",
    "RequestedDecryption",
    "certs_only",
    "challenge_password",
    "from_body",
    "requested_decryption",
    "server_key_parts",
    "to_base64",
]

# --- bodies ---


def certs_only(certificates: Sequence[bytes]) -> bytes:
    """Return a certs-only Simple PKI Response (DER; RFC 5272 section 4.1): CMS SignedData nobody signed.

    The answer to an enrolment holds "only the certificate that was issued" (RFC 7030 section 4.2.3), that of
    cacerts all that lead to the root (section 4.1.3).  They are a SET OF: DER sorts them, and whoever wants
    one of several finds it by its key.

    Args:
        certificates: DER, at least one.

    Raises:
        ValueError: there is none, or one that is no certificate.
    """
    if not certificates:
        raise ValueError("an answer without a certificate")
    return pkcs7.serialize_certificates(
        [x509.load_der_x509_certificate(octets) for octets in certificates], Encoding.DER
    )


def to_base64(octets: bytes | memoryview) -> bytes:
    """Return base64 (RFC 4648 section 4) in one line without an end.

    RFC 8951 section 3.1 lets a body have lines; strongSwan 5.9.8 reads none that has.
    """
    return binascii.b2a_base64(octets, newline=False)


def from_body(body: bytes, limit: int) -> bytes:
    """Return the one DER element that is a request's body.

    Base64 with white space anywhere (RFC 8951 section 3.1); but clients send DER as it is, and PEM, too, and
    nothing is both: the base64 of a SEQUENCE begins with M, DER with 0.

    Args:
        body: as it came.
        limit: most octets of it that are looked at.

    Raises:
        TooLarge: there are more.
        MalformedRequest: it is none of the three, or not exactly one SEQUENCE.
    """
    if len(body) > limit:
        raise TooLarge(f"the body has {len(body)} octets, the limit is {limit}")
    octets = request_der(body)
    if octets is body and not body.startswith(b"0"):
        try:
            octets = binascii.a2b_base64(b"".join(body.split()), strict_mode=True)
        except binascii.Error as error:
            raise MalformedRequest(f"the body is neither base64 nor der: {error}") from error
    der.only(octets, der.SEQUENCE)
    return octets


# --- a private key and its certificate (RFC 7030 section 4.4.2) ---

_PKCS8 = "application/pkcs8"
_ENVELOPED = "application/pkcs7-mime; smime-type=server-generated-key"
_CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=?-]{1,70}")
"""RFC 2046 section 5.1.1, without the space."""
_LINE = 76
"""Characters: in a part with this transfer encoding lines are no longer (RFC 2045 section 6.8)."""


def server_key_parts(key: SecretBytes | bytes, certificates: bytes, boundary: str) -> Vanishing:
    """Return the body of an answer of multipart/mixed: a private key, then its certificate.

    The key is copied once, into octets that vanish when nobody refers to them any more; what the base64
    encoder returned is overwritten.

    Args:
        key: PKCS#8 (DER) in the clear; or, as ``bytes``, the CMS (DER) that it is sealed in.
        certificates: from ``certs_only``.
        boundary: 1 to 70 characters (RFC 2046 section 5.1.1), the same as in the header; it has two hyphens
            before it, which base64 has not, so that it cannot occur in a part.

    Raises:
        ValueError: the boundary is none.
    """
    if _BOUNDARY.fullmatch(boundary) is None:
        raise ValueError(f"{boundary!r} is no boundary of parts")
    in_clear = isinstance(key, SecretBytes)
    coded = to_base64(key.view()) if isinstance(key, SecretBytes) else to_base64(key)
    pieces = [
        *_part(boundary, _PKCS8 if in_clear else _ENVELOPED, coded),
        *_part(boundary, _CERTS_ONLY, to_base64(certificates)),
        f"--{boundary}--\r\n".encode("ascii"),
    ]
    body = Vanishing(sum(map(len, pieces)))
    at = 0
    with memoryview(body) as place:
        for piece in pieces:
            place[at : at + len(piece)] = piece
            at += len(piece)
    if in_clear:
        wipe(coded)
    return body


def _part(boundary: str, media_type: str, coded: bytes) -> Iterator[bytes | memoryview]:
    yield f"--{boundary}\r\nContent-Type: {media_type}\r\n".encode("ascii")
    yield b"Content-Transfer-Encoding: base64\r\n\r\n"
    lines = memoryview(coded)
    for start in range(0, len(coded), _LINE):
        yield lines[start : start + _LINE]
        yield b"\r\n"


# --- what the attributes of a request say ---

_CHALLENGE_PASSWORD = der.oid("1.2.840.113549.1.9.7")
_SMIME_CAPABILITIES = der.oid("1.2.840.113549.1.9.15")
_ATTRIBUTES = 0xA0
_TEXTS = {
    der.UTF8_STRING: "utf-8",
    der.PRINTABLE_STRING: "ascii",
    0x14: "latin-1",  # TeletexString, as it is meant by those who write it
    der.IA5_STRING: "ascii",  # not of a DirectoryString, and written all the same
    0x1E: "utf-16-be",
}
_LONGEST_PASSWORD = 255
"""Characters (RFC 2985 appendix B.3)."""


class DecryptionKind(StrEnum):
    """What kind of key seals a private key; the values are our words."""

    SYMMETRIC = "symmetric"
    """A DecryptKeyIdentifier (RFC 7030 section 4.4.1.1, RFC 4108 section 2.2.5)."""
    ASYMMETRIC = "asymmetric"
    """An AsymmetricDecryptKeyIdentifier (RFC 7030 section 4.4.1.2)."""


_IDENTIFIERS = {
    DecryptionKind.SYMMETRIC: der.oid("1.2.840.113549.1.9.16.2.37"),
    DecryptionKind.ASYMMETRIC: der.oid("1.2.840.113549.1.9.16.2.54"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedDecryption:
    """Which key a client wants a private key to be sealed to.

    If there is no such key, "the request MUST be terminated and an error returned" (RFC 7030 section
    4.4.1.2): a client that asks for this never gets a key in the clear.
    """

    kind: DecryptionKind
    key_identifier: bytes
    """As the client names its key; client and service have to agree on what it means."""
    capabilities: tuple[bytes, ...]
    """OBJECT IDENTIFIERs (DER) of its SMIMECapabilities, the most wanted first: how a key may be encrypted.

    Empty if there are none, although section 4.4.1 demands them.
    """


def challenge_password(csr: bytes) -> str | None:
    """Return the challengePassword of a request, if it has one.

    RFC 7030 section 3.5: the tls-unique of the session in base64, which links a request to who authenticated
    there.  Nobody but the edge knows what it should be.

    Args:
        csr: PKCS #10 (DER), as from ``from_body``.

    Raises:
        MalformedRequest: it is no request, or has that attribute more than once, or not as a text of 1 to 255
            characters.
    """
    found = _single(csr, _CHALLENGE_PASSWORD, "challengePassword")
    if found is None:
        return None
    tag, _, content, end = found
    try:
        text = csr[content:end].decode(_TEXTS[tag])
    except (KeyError, UnicodeDecodeError):
        # The library's error would show the octets, which may be a password.
        raise MalformedRequest("the request's challengePassword is no text") from None
    if not 1 <= len(text) <= _LONGEST_PASSWORD:
        raise MalformedRequest(f"the request's challengePassword has {len(text)} characters, not 1 to 255")
    return text


def requested_decryption(csr: bytes) -> RequestedDecryption | None:
    """Return which key a request for a private key names; None if the client wants it in the clear.

    Args:
        csr: PKCS #10 (DER), as from ``from_body``.

    Raises:
        MalformedRequest: it is no request, names a key more than once or in another way, or its
            SMIMECapabilities cannot be read.
    """
    named = [
        (kind, found)
        for kind, attribute in _IDENTIFIERS.items()
        if (found := _single(csr, attribute, f"{kind} decryption key")) is not None
    ]
    if not named:
        return None
    if len(named) > 1:
        raise MalformedRequest("the request names two decryption keys; one seals a key")
    kind, (tag, _, content, end) = named[0]
    if tag != der.OCTET_STRING or content == end:
        raise MalformedRequest(f"the request's {kind} decryption key has no name in octets")
    return RequestedDecryption(kind=kind, key_identifier=csr[content:end], capabilities=_capabilities(csr))


def _capabilities(csr: bytes) -> tuple[bytes, ...]:
    """Read a SEQUENCE OF SEQUENCE { OBJECT IDENTIFIER, parameters OPTIONAL } (RFC 8551 section 2.5.2)."""
    found = _single(csr, _SMIME_CAPABILITIES, "SMIMECapabilities")
    if found is None:
        return ()
    wanted = []
    for tag, _, content, end in _children(csr, found, der.SEQUENCE):
        parts = der.children(csr, content, end)
        if tag != der.SEQUENCE or not 1 <= len(parts) <= 2 or parts[0][0] != der.OID:
            raise MalformedRequest("the request's SMIMECapabilities are not algorithms")
        wanted.append(csr[parts[0][1] : parts[0][3]])
    return tuple(wanted)


def _single(csr: bytes, wanted: bytes, name: str) -> der.Element | None:
    """Return the value of an attribute that has one (RFC 2985: SINGLE VALUE TRUE), wherever it stands."""
    values = [value for kind, found in _attributes(csr) if kind == wanted for value in found]
    if len(values) > 1:
        raise MalformedRequest(f"the request has its {name} {len(values)} times")
    return values[0] if values else None


def _attributes(csr: bytes) -> Iterator[tuple[bytes, list[der.Element]]]:
    """Yield type (DER) and values of every attribute (RFC 2986 section 4.1)."""
    whole = der.only(csr, der.SEQUENCE)
    request = _children(csr, whole, der.SEQUENCE)
    if [part[0] for part in request] != [der.SEQUENCE, der.SEQUENCE, der.BIT_STRING]:
        raise MalformedRequest("not a pkcs #10 request")
    info = _children(csr, request[0], der.SEQUENCE)
    if [part[0] for part in info] != [der.INTEGER, der.SEQUENCE, der.SEQUENCE, _ATTRIBUTES]:
        raise MalformedRequest("not a pkcs #10 request: it has other fields")
    for attribute in _children(csr, info[3], _ATTRIBUTES):
        parts = _children(csr, attribute, der.SEQUENCE)
        if [part[0] for part in parts] != [der.OID, der.SET]:
            raise MalformedRequest("not a pkcs #10 request: an attribute is not a type and its values")
        values = _children(csr, parts[1], der.SET)
        if not values:
            raise MalformedRequest("not a pkcs #10 request: an attribute has no value")
        yield csr[parts[0][1] : parts[0][3]], values


def _children(octets: bytes, element: der.Element, tag: int) -> list[der.Element]:
    if element[0] != tag:
        raise MalformedRequest(f"the request has tag {element[0]:02x} where {tag:02x} belongs")
    return der.children(octets, *element[2:])
