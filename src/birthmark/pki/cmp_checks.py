"""What a message has to show before it is believed (RFC 9483 sections 3.1 to 3.5), as numbered procedures.

``verify_header`` looks at what every message has; then ``verify_signed`` or ``verify_under_secret`` at who it
is from.  Each raises a refusal that ``cmp_status.rejection`` says with the PKIFailureInfo of RFC 9483 section
3.5.

Left to the use cases: that a signer's certificate leads to an authority they trust and is not revoked, that a
transactionID is new, that this kind of message was to be expected, and from the same sender as before.
"""

import hmac
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki.certificates import Certificate
from birthmark.pki.cmp import PKIMessage, read_directory_name
from birthmark.pki.cmp_protection import ProtectionKind, protection_kind, verify_mac, verify_signature
from birthmark.pki.crmf import decode as decode_request
from birthmark.pki.library import UNREADABLE
from birthmark.secret import SecretBytes

__all__ = [
    "NONCE_SIZES",
    "Expected",
    "sender_reference",
    "verify_header",
    "verify_signed",
    "verify_under_secret",
    "verify_update",
]

NONCE_SIZES = range(16, 65)
"""Octets of a transactionID or a nonce: at least 128 bits (RFC 9483 section 3.1), and our own limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a message has to repeat that goes on with a transaction."""

    transaction_id: bytes
    nonce: bytes
    """The senderNonce of the message that it answers: our latest of this transaction."""


def verify_header(
    message: PKIMessage, *, now: datetime, tolerance: timedelta | None, expected: Expected | None = None
) -> ProtectionKind:
    """Return how a message is protected, if its header is in order.

    1. pvno is 2 or 3.
    2. A transactionID of at least 128 bits is there.
    3. A senderNonce of at least 128 bits is there.
    4. The first message of a transaction has no recipNonce; one that goes on with a transaction repeats its
       transactionID, and has as recipNonce our latest senderNonce.
    5. messageTime, where it is there and the caller cares, is about now.
    6. There is a protection, with an algorithm that is one of ours.

    Args:
        message: from ``cmp.decode``.
        now: the time, aware.
        tolerance: how far messageTime may be from ``now``; None if that does not matter, since a device may
            have no clock that it could set before it has a certificate.
        expected: what a message has to repeat that goes on with a transaction; None for the first one.

    Raises:
        MalformedRequest: there is no transactionID of a good size (step 2; badDataFormat).
        PolicyRefused: any other step fails: "message-version" (unsupportedVersion), "message-sender-nonce"
            (badSenderNonce), "message-recipient-nonce" (badRecipientNonce), "message-transaction"
            (badRequest), "message-time" (badTime), "message-protection" (badMessageCheck),
            "protection-algorithm" (badAlg).
    """
    header = message.header
    if header.pvno not in {2, 3}:
        raise PolicyRefused("message-version", f"version {header.pvno} of cmp is not supported, 2 and 3 are")
    if header.transaction_id is None or len(header.transaction_id) not in NONCE_SIZES:
        raise MalformedRequest("the message has no transactionID of 16 to 64 octets")
    if header.sender_nonce is None or len(header.sender_nonce) not in NONCE_SIZES:
        raise PolicyRefused("message-sender-nonce", "the message has no senderNonce of 16 to 64 octets")
    _verify_place(message, expected)
    if (
        header.message_time is not None
        and tolerance is not None
        and abs(header.message_time - now) > tolerance
    ):
        raise PolicyRefused(
            "message-time",
            f"the message is of {header.message_time.isoformat()}, now it is {now.isoformat()}",
        )
    return protection_kind(message)


def _verify_place(message: PKIMessage, expected: Expected | None) -> None:
    """Step 4."""
    header = message.header
    if expected is None:
        if header.recip_nonce is not None:
            raise PolicyRefused("message-recipient-nonce", "the first message of a transaction answers none")
        return
    if header.transaction_id != expected.transaction_id:
        raise PolicyRefused("message-transaction", "the message is of another transaction")
    if header.recip_nonce is None or not hmac.compare_digest(header.recip_nonce, expected.nonce):
        raise PolicyRefused("message-recipient-nonce", "the message does not answer our latest one")


def verify_signed(message: PKIMessage) -> Certificate:
    """Return the certificate whose key signed a message.

    1. The first of extraCerts is a certificate: that of the signer (RFC 9483 section 3.3).
    2. sender is its subject (section 3.1).
    3. senderKID is its subjectKeyIdentifier, if it has one (section 3.1).
    4. Its key usage, if it has one, has digitalSignature (section 3.2).
    5. Its key made the signature, with an algorithm of its kind (section 3.2, RFC 9481 section 3).

    Whether this is anybody we know is not looked at.

    Raises:
        PolicyRefused: step 1 to 4 ("message-sender"; badMessageCheck), the signature does not verify
            ("message-protection"; badMessageCheck), the message is not signed ("protection-kind";
            wrongIntegrity), or with an algorithm that does not go with the key ("key-algorithm",
            "request-signature"; badAlg).
    """
    if protection_kind(message) is not ProtectionKind.SIGNATURE:
        raise PolicyRefused("protection-kind", "the message is under a secret, and a signature is expected")
    if not message.extra_certs:
        raise PolicyRefused("message-sender", "the signer's certificate is not the first of extraCerts")
    try:
        certificate = Certificate.from_der(message.extra_certs[0])
        extensions = x509.load_der_x509_certificate(certificate.der).extensions
        identifiers = [
            one.value.digest for one in extensions if isinstance(one.value, x509.SubjectKeyIdentifier)
        ]
        usages = [one.value for one in extensions if isinstance(one.value, x509.KeyUsage)]
    except (MalformedRequest, *UNREADABLE) as error:
        raise PolicyRefused("message-sender", "the signer's certificate cannot be read") from error
    if read_directory_name(message.header.sender) != certificate.subject_name:
        raise PolicyRefused("message-sender", "the sender is not the subject of the signer's certificate")
    if identifiers and message.header.sender_kid != identifiers[0]:
        raise PolicyRefused(
            "message-sender", "senderKID is not the key identifier of the signer's certificate"
        )
    if usages and not usages[0].digital_signature:
        raise PolicyRefused("message-sender", "the signer's certificate is not for signatures")
    verify_signature(message, certificate.subject_public_key_info)
    return certificate


def verify_update(message: PKIMessage, certificate: bytes) -> None:
    """Check that a kur updates the certificate it is signed with (RFC 9483 section 4.1.3).

    1. It is signed.
    2. oldCertID, where it is there, is issuer and serial number of the signer's certificate.

    Args:
        message: the kur.
        certificate: of who signed it (DER).

    Raises:
        PolicyRefused: step 1 ("protection-kind"; wrongIntegrity), step 2 ("certificate-updated"; badCertId).
        MalformedRequest: its body, or the certificate, cannot be read.
    """
    if protection_kind(message) is not ProtectionKind.SIGNATURE:
        raise PolicyRefused("protection-kind", "a kur is signed with the key to be updated")
    old, own = decode_request(message.body).old_cert_id, Certificate.from_der(certificate)
    if old is not None and (old.issuer, old.serial_number) != (own.issuer_name, own.serial_number):
        raise PolicyRefused("certificate-updated", "oldCertID is not the certificate that signs the message")


def sender_reference(message: PKIMessage) -> bytes:
    """Return what a message under a secret calls that secret: its senderKID (RFC 9483 section 3.1).

    Raises:
        PolicyRefused: it says none ("message-sender"; badMessageCheck).
    """
    if not message.header.sender_kid:
        raise PolicyRefused("message-sender", "the message does not say under which secret it is (senderKID)")
    return message.header.sender_kid


def verify_under_secret(message: PKIMessage, secret: SecretBytes) -> None:
    """Check that a message is under a secret, which was found by ``sender_reference``.

    Raises:
        MalformedRequest: the parameters of its MAC cannot be read.
        PolicyRefused: "message-sender" (badMessageCheck), "protection-kind" (wrongIntegrity),
            "protection-algorithm" (badAlg) or "message-protection" (badMessageCheck).
    """
    sender_reference(message)
    verify_mac(message, secret)
