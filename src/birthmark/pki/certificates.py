"""Certificates as values: one to be signed, and one that exists.

``TBSCertificate`` is what issuance makes and lint reads; ``assemble`` puts a signature to it.
``Certificate`` is parsed once from DER of any origin and holds what the rest of the program asks of it.
Neither decides anything: the rules are in ``lint``.
"""

import base64
import binascii
import re
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.x509.oid import NameOID

from birthmark.errors import MalformedRequest
from birthmark.pki import der
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyLabel
from birthmark.pki.library import UNREADABLE
from birthmark.pki.profiles import Profile

__all__ = [
    "Certificate",
    "TBSCertificate",
    "assemble",
    "fingerprint",
    "from_pem",
    "issued_by",
    "one_from_pem",
    "serial_hex",
    "to_pem",
]

_PEM = re.compile(
    r"-----BEGIN (?P<label>[A-Z0-9 ]{1,40})-----[ \t]*\r?\n"
    r"(?P<body>[A-Za-z0-9+/=\r\n]*)-----END (?P=label)-----"
)
_ATTRIBUTE_NAMES = {
    NameOID.SERIAL_NUMBER: "serialNumber",
    x509.ObjectIdentifier("1.3.6.1.4.1.37244.2.1"): "matterVID",
    x509.ObjectIdentifier("1.3.6.1.4.1.37244.2.2"): "matterPID",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TBSCertificate:
    """The part of a certificate that gets signed (RFC 5280 section 4.1.2), and whose rules it must keep."""

    der: bytes
    serial_number: int
    profile: Profile = field(repr=False)
    issuer: Issuer = field(repr=False)

    @property
    def issuer_key(self) -> KeyLabel:
        """Return the label of the key that is to sign it."""
        return self.issuer.key_label


def assemble(tbs_der: bytes, signature_algorithm: bytes, signature: bytes) -> bytes:
    """Return SEQUENCE { tbs, algorithm, BIT STRING signature }: a certificate, or likewise a CRL.

    Args:
        tbs_der: what was signed.
        signature_algorithm: AlgorithmIdentifier (DER), the same as inside ``tbs_der``.
        signature: as the key store answered it.
    """
    return der.encode(
        der.SEQUENCE, tbs_der, signature_algorithm, der.encode(der.BIT_STRING, b"\0" + signature)
    )


def fingerprint(certificate_der: bytes) -> str:
    """Return the SHA-256 of a certificate in lower-case hex."""
    return sha256(certificate_der).hexdigest()


def serial_hex(number: int) -> str:
    """Return a serial number as we write it: lower-case hex, two digits an octet.

    Raises:
        MalformedRequest: it is negative, which RFC 5280 section 4.1.2.2 forbids, and some wrote all the same.
    """
    if number < 0:
        raise MalformedRequest("a serial number is negative")
    return number.to_bytes((number.bit_length() + 7) // 8 or 1).hex()


def to_pem(octets: bytes, label: str = "CERTIFICATE") -> str:
    """Return octets in PEM (RFC 7468), lines of 64 characters."""
    text = base64.b64encode(octets).decode("ascii")
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def from_pem(text: str, label: str = "CERTIFICATE") -> tuple[bytes, ...]:
    """Return the contents of all PEM blocks with this label, in order; text between blocks is passed over.

    Raises:
        MalformedRequest: there is no such block, or one that is not base64.
    """
    found: list[bytes] = []
    for block in _PEM.finditer(text):
        if block["label"] != label:
            continue
        try:
            found.append(base64.b64decode("".join(block["body"].split()), validate=True))
        except binascii.Error as error:
            raise MalformedRequest(f"pem: a block {label} is not base64") from error
    if not found:
        raise MalformedRequest(f"pem: there is no block {label}")
    return tuple(found)


def one_from_pem(text: str, label: str = "CERTIFICATE") -> bytes:
    """Return the contents (DER) of the only block of one label; blocks of others are passed over.

    Raises:
        MalformedRequest: there is not exactly one such block, or it is not base64.
    """
    found = from_pem(text, label)
    if len(found) != 1:
        raise MalformedRequest(f"pem: {len(found)} blocks {label} where one belongs")
    return found[0]


def issued_by(certificate: bytes, issuer: bytes) -> bool:
    """Return whether a certificate (DER) has another's (DER) subject as its issuer, and that key's signature.

    Nothing else is looked at: what the issuer may sign, and when, is ``lint``'s and the path's business.
    """
    try:
        x509.load_der_x509_certificate(certificate).verify_directly_issued_by(
            x509.load_der_x509_certificate(issuer)
        )
    except (InvalidSignature, *UNREADABLE):
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate of any origin, parsed once."""

    der: bytes = field(repr=False)
    serial_number: int
    subject: str
    """RFC 4514 text, for people."""
    subject_name: bytes = field(repr=False)
    """Name (DER), as it stands in the certificate."""
    issuer_name: bytes = field(repr=False)
    """Name (DER), as it stands in the certificate."""
    not_before: datetime
    not_after: datetime
    subject_public_key_info: bytes = field(repr=False)
    """SubjectPublicKeyInfo (DER), as it stands in the certificate."""

    @classmethod
    def from_der(cls, octets: bytes) -> Self:
        """Parse one certificate.

        Raises:
            MalformedRequest: the octets are not exactly one X.509 version 3 certificate, or it has a negative
                serial number (RFC 5280 section 4.1.2.2).
        """
        try:
            parsed = x509.load_der_x509_certificate(octets)
            serial_number = parsed.serial_number
            subject = parsed.subject.rfc4514_string(_ATTRIBUTE_NAMES)
            not_before, not_after = parsed.not_valid_before_utc, parsed.not_valid_after_utc
            tbs_der = parsed.tbs_certificate_bytes
        except UNREADABLE as error:
            raise MalformedRequest(f"not an x.509 certificate: {error}") from error
        if serial_number < 0:
            raise MalformedRequest("not an x.509 certificate: its serial number is negative")
        _, _, content, end = der.only(tbs_der, der.SEQUENCE)
        # RFC 5280 section 4.1: version, serialNumber, signature, issuer, validity, subject, key.
        fields = [(tag, tbs_der[start:stop]) for tag, start, _, stop in der.children(tbs_der, content, end)]
        if len(fields) < 7 or fields[0][0] != 0xA0:
            raise MalformedRequest("not an x.509 certificate: version 1")
        return cls(
            der=octets,
            serial_number=serial_number,
            subject=subject,
            subject_name=fields[5][1],
            issuer_name=fields[3][1],
            not_before=not_before,
            not_after=not_after,
            subject_public_key_info=fields[6][1],
        )

    @classmethod
    def from_pem(cls, text: str) -> Self:
        """Parse the one certificate in a PEM text.

        Raises:
            MalformedRequest: there is not exactly one, or it is no certificate.
        """
        return cls.from_der(one_from_pem(text))

    @property
    def pem(self) -> str:
        """Return it in PEM."""
        return to_pem(self.der)

    @property
    def serial_hex(self) -> str:
        """Return the serial number in hex, see ``serial_hex``."""
        return serial_hex(self.serial_number)

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 of the certificate in lower-case hex."""
        return fingerprint(self.der)
