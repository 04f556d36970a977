"""What an EST service holds a request against: the certificate that is shown with it (RFC 7030 section 4).

Each function refuses what the standard says must not be granted, and knows nothing of runs and devices: those
are for the use cases.
"""

from contextlib import suppress

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der
from birthmark.pki.algorithms import key_identifier
from birthmark.pki.csr import device_of
from birthmark.pki.est import DecryptionKind, RequestedDecryption
from birthmark.pki.keypackage import AES256_CBC, AES256_WRAP
from birthmark.pki.library import UNREADABLE

__all__ = ["named_device", "require_decryptable", "require_same_names"]


def named_device(csr: bytes) -> str | None:
    """Return what a request for a private key calls the device; see ``csr.device_of``.

    The request's key and its signature mean nothing (RFC 7030 section 4.4.1): they are not looked at.

    Args:
        csr: PKCS #10 (DER).

    Raises:
        MalformedRequest: it is no request, or has two names of one kind.
    """
    whole = der.only(csr, der.SEQUENCE)
    info = next(iter(der.children(csr, *whole[2:])), None)
    fields = [] if info is None or info[0] != der.SEQUENCE else der.children(csr, *info[2:])
    if len(fields) < 2 or fields[1][0] != der.SEQUENCE:
        raise MalformedRequest("not a pkcs #10 request: it has no subject")
    return device_of(csr[fields[1][1] : fields[1][3]])


def require_same_names(csr: bytes, certificate: bytes) -> None:
    """Refuse a renewal under other names: subject and alternative names are those of the certificate.

    "The request Subject field and SubjectAltName extension MUST contain the identical values as the
    corresponding fields in the certificate being renewed/rekeyed" (RFC 7030 section 4.2.2).  Values are
    compared, not how they are encoded: clients choose other types of strings.  ChangeSubjectName is not
    granted: what stands in a certificate comes from records.

    Args:
        csr: PKCS #10 (DER).
        certificate: what is to be renewed (DER).

    Raises:
        MalformedRequest: the request, or an extension of it, cannot be read.
        PolicyRefused: a name is another (rule ``renewal-names``).
    """
    try:
        request = x509.load_der_x509_csr(csr)
        wanted = (request.subject, _alternative_names(request.extensions))
    except UNREADABLE as error:
        raise MalformedRequest(f"not a pkcs #10 request: {error}") from error
    shown = x509.load_der_x509_certificate(certificate)
    held = (shown.subject, _alternative_names(shown.extensions))
    for what, one, other in zip(("subject", "subjectAltName"), wanted, held, strict=True):
        if one != other:
            raise PolicyRefused(
                "renewal-names",
                f"the request's {what} is not that of the certificate it is to replace: copy it from there"
                " (RFC 7030 section 4.2.2)",
            )


def _alternative_names(extensions: x509.Extensions) -> frozenset[x509.GeneralName]:
    try:
        return frozenset(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return frozenset()


def require_decryptable(requested: RequestedDecryption, certificate: bytes | None) -> None:
    """Refuse to seal a private key to any other key than that of the certificate that is shown.

    The client names that by the certificate's subjectKeyIdentifier, or by the SHA-1 of its bits (RFC 5280
    section 4.2.1.2).  Whether the certificate is for that is judged where it is sealed (``recipient_of``).

    Args:
        requested: what the request says.
        certificate: the client's (DER); None if it has none.

    Raises:
        PolicyRefused: it names a symmetric key, of which this service keeps none, or another one than the
            certificate's (rule ``envelope-recipient``), or can decrypt only what is not made here
            (``envelope-algorithms``).
    """
    if requested.kind is DecryptionKind.SYMMETRIC:
        raise PolicyRefused("envelope-recipient", "this service shares no symmetric keys with its clients")
    if certificate is None:
        raise PolicyRefused(
            "envelope-recipient",
            "a key is sealed to the certificate that is shown, and none is: leave it to TLS",
        )
    if requested.key_identifier not in _identifiers(certificate):
        raise PolicyRefused(
            "envelope-recipient",
            "the decryption key that is named is not that of the certificate that is shown: name it by its"
            " subjectKeyIdentifier",
        )
    ours = {AES256_CBC, AES256_WRAP}
    if requested.capabilities and not ours.intersection(requested.capabilities):
        raise PolicyRefused(
            "envelope-algorithms",
            "the request's SMIMECapabilities have neither AES-256 in CBC nor its key wrap",
        )


def _identifiers(certificate: bytes) -> set[bytes]:
    read = x509.load_der_x509_certificate(certificate)
    spki = read.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    found = {key_identifier(spki)}
    with suppress(x509.ExtensionNotFound):
        found.add(read.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest)
    return found
