"""What CMP says of success and failure: PKIStatusInfo (RFC 9810 section 5.2.3), and how we say our refusals.

``FAILURES`` gives every class of ``errors`` its PKIFailureInfo; a test proves that it covers each.  A
``PolicyRefused`` says more by its rule: those about keys, proofs of possession and messages are in
``FAILURES_OF_RULES``, the rest are about what was asked for.  The bits are those that RFC 9483 section 3.5
expects of each fault of a message.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from birthmark import errors
from birthmark.errors import MalformedRequest
from birthmark.pki import cmp_der, der

__all__ = [
    "ACCEPTED",
    "FAILURES",
    "FAILURES_OF_RULES",
    "WAITING",
    "PKIFailureInfo",
    "PKIStatus",
    "PKIStatusInfo",
    "encode_status",
    "failure_of",
    "read_status",
    "rejection",
]


class PKIStatus(IntEnum):
    """How a request ended."""

    ACCEPTED = 0
    GRANTED_WITH_MODS = 1
    REJECTION = 2
    WAITING = 3
    REVOCATION_WARNING = 4
    REVOCATION_NOTIFICATION = 5
    KEY_UPDATE_WARNING = 6


class PKIFailureInfo(IntFlag):
    """Why a request failed; the number of a bit is that of RFC 9810 section 5.2.3."""

    BAD_ALG = 1 << 0
    BAD_MESSAGE_CHECK = 1 << 1
    BAD_REQUEST = 1 << 2
    BAD_TIME = 1 << 3
    BAD_CERT_ID = 1 << 4
    BAD_DATA_FORMAT = 1 << 5
    WRONG_AUTHORITY = 1 << 6
    INCORRECT_DATA = 1 << 7
    MISSING_TIME_STAMP = 1 << 8
    BAD_POP = 1 << 9
    CERT_REVOKED = 1 << 10
    CERT_CONFIRMED = 1 << 11
    WRONG_INTEGRITY = 1 << 12
    BAD_RECIPIENT_NONCE = 1 << 13
    TIME_NOT_AVAILABLE = 1 << 14
    UNACCEPTED_POLICY = 1 << 15
    UNACCEPTED_EXTENSION = 1 << 16
    ADD_INFO_NOT_AVAILABLE = 1 << 17
    BAD_SENDER_NONCE = 1 << 18
    BAD_CERT_TEMPLATE = 1 << 19
    SIGNER_NOT_TRUSTED = 1 << 20
    TRANSACTION_ID_IN_USE = 1 << 21
    UNSUPPORTED_VERSION = 1 << 22
    NOT_AUTHORIZED = 1 << 23
    SYSTEM_UNAVAIL = 1 << 24
    SYSTEM_FAILURE = 1 << 25
    DUPLICATE_CERT_REQ = 1 << 26


FAILURES: Mapping[type[errors.Refusal], PKIFailureInfo] = {
    errors.MalformedRequest: PKIFailureInfo.BAD_DATA_FORMAT,
    errors.TooLarge: PKIFailureInfo.BAD_DATA_FORMAT,
    errors.Unauthenticated: PKIFailureInfo.SIGNER_NOT_TRUSTED,
    errors.NotPermitted: PKIFailureInfo.NOT_AUTHORIZED,
    errors.NotFound: PKIFailureInfo.BAD_CERT_ID,
    errors.IllegalTransition: PKIFailureInfo.BAD_REQUEST,
    errors.KeyReused: PKIFailureInfo.DUPLICATE_CERT_REQ,
    errors.QuotaExhausted: PKIFailureInfo.NOT_AUTHORIZED,
    errors.ProofFailed: PKIFailureInfo.BAD_POP,
    errors.Interrupted: PKIFailureInfo.BAD_REQUEST,
    errors.PolicyRefused: PKIFailureInfo.BAD_CERT_TEMPLATE,
    errors.Unavailable: PKIFailureInfo.SYSTEM_UNAVAIL,
    errors.RateLimited: PKIFailureInfo.SYSTEM_UNAVAIL,
    errors.Fault: PKIFailureInfo.SYSTEM_FAILURE,
    errors.IntegrityFailure: PKIFailureInfo.SYSTEM_FAILURE,
}
"""How each class of ``errors`` is said in CMP."""

FAILURES_OF_RULES: Mapping[str, PKIFailureInfo] = {
    "certificate-confirmation": PKIFailureInfo.BAD_CERT_ID,
    "certificate-confirmed": PKIFailureInfo.CERT_CONFIRMED,
    "certificate-profile": PKIFailureInfo.BAD_REQUEST,
    "certificate-revoked": PKIFailureInfo.CERT_REVOKED,
    "certificate-updated": PKIFailureInfo.BAD_CERT_ID,
    "information-available": PKIFailureInfo.ADD_INFO_NOT_AVAILABLE,
    "key-algorithm": PKIFailureInfo.BAD_ALG,
    "message-expected": PKIFailureInfo.BAD_REQUEST,
    "message-place": PKIFailureInfo.BAD_REQUEST,
    "message-protection": PKIFailureInfo.BAD_MESSAGE_CHECK,
    "message-recipient-nonce": PKIFailureInfo.BAD_RECIPIENT_NONCE,
    "message-sender": PKIFailureInfo.BAD_MESSAGE_CHECK,
    "message-sender-nonce": PKIFailureInfo.BAD_SENDER_NONCE,
    "message-time": PKIFailureInfo.BAD_TIME,
    "message-transaction": PKIFailureInfo.BAD_REQUEST,
    "message-version": PKIFailureInfo.UNSUPPORTED_VERSION,
    "proof-of-possession": PKIFailureInfo.BAD_POP,
    "protection-algorithm": PKIFailureInfo.BAD_ALG,
    "protection-kind": PKIFailureInfo.WRONG_INTEGRITY,
    "request-signature": PKIFailureInfo.BAD_ALG,
    "transaction-in-use": PKIFailureInfo.TRANSACTION_ID_IN_USE,
}
"""How a ``PolicyRefused`` with one of these rules is said."""


_NONE = PKIFailureInfo(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PKIStatusInfo:
    """How a request ended, and why (RFC 9810 section 5.2.3)."""

    status: PKIStatus
    text: tuple[str, ...] = ()
    """For people."""
    fail_info: PKIFailureInfo = _NONE


ACCEPTED = PKIStatusInfo(status=PKIStatus.ACCEPTED)
WAITING = PKIStatusInfo(status=PKIStatus.WAITING)
_HIGHEST = max(PKIFailureInfo).bit_length() - 1
_NOT_SAID = "see the service's own log"


def failure_of(refusal: BaseException) -> PKIFailureInfo:
    """Return how a refusal is said; anything that is none is a failure of the system."""
    if isinstance(refusal, errors.PolicyRefused) and refusal.rule in FAILURES_OF_RULES:
        return FAILURES_OF_RULES[refusal.rule]
    found = next((failure for kind, failure in FAILURES.items() if isinstance(refusal, kind)), None)
    return PKIFailureInfo.SYSTEM_FAILURE if found is None else found


def rejection(refusal: BaseException) -> PKIStatusInfo:
    """Return the rejection that a refusal becomes, with its reason; what is none of ours shows no detail."""
    text = str(refusal) if isinstance(refusal, errors.Refusal) else _NOT_SAID
    return PKIStatusInfo(status=PKIStatus.REJECTION, text=(text,), fail_info=failure_of(refusal))


def encode_status(info: PKIStatusInfo) -> bytes:
    """Return PKIStatusInfo (DER)."""
    return der.encode(
        der.SEQUENCE,
        der.integer(info.status),
        cmp_der.text_sequence(*info.text),
        _encode_failure(info.fail_info) if info.fail_info else b"",
    )


def _encode_failure(failure: PKIFailureInfo) -> bytes:
    """Return a BIT STRING of named bits, without zeros at its end (X.690 section 11.2.2)."""
    size = failure.bit_length()
    octets = sum(1 << 8 * (size // 8 + 1) - 1 - bit for bit in range(size) if failure >> bit & 1)
    content = octets.to_bytes(size // 8 + 1, "big")[: (size + 7) // 8]
    return der.encode(der.BIT_STRING, bytes((-size % 8,)), content)


def read_status(octets: bytes, element: der.Element) -> PKIStatusInfo:
    """Return the PKIStatusInfo (DER) at an element.

    Raises:
        MalformedRequest: something else stands there, or a status or a failure that RFC 9810 does not have.
    """
    found = cmp_der.fields(octets, element, "PKIStatusInfo")
    if not found:
        raise MalformedRequest("PKIStatusInfo: empty")
    status = cmp_der.named_number(octets, found[0], "PKIStatus", min(PKIStatus), max(PKIStatus))
    optional = cmp_der.tagged(found[1:], (der.SEQUENCE, der.BIT_STRING), "PKIStatusInfo")
    text, failure = optional.get(der.SEQUENCE), optional.get(der.BIT_STRING)
    return PKIStatusInfo(
        status=PKIStatus(status),
        text=() if text is None else cmp_der.texts(octets, text, "statusString"),
        fail_info=_NONE if failure is None else _failure(cmp_der.contents(octets, failure)),
    )


def _failure(contents: bytes) -> PKIFailureInfo:
    if not 1 <= len(contents) <= 1 + (_HIGHEST + 8) // 8 or contents[0] > 7 or contents == b"\x07":
        raise MalformedRequest("PKIFailureInfo: no bit string of its size")
    failure = 0
    for bit in range(8 * (len(contents) - 1)):
        failure |= (contents[1 + bit // 8] >> 7 - bit % 8 & 1) << bit
    if failure.bit_length() > _HIGHEST + 1 or _encode_failure(PKIFailureInfo(failure))[2:] != contents:
        raise MalformedRequest("PKIFailureInfo: unknown bits, or not in the shortest form")
    return PKIFailureInfo(failure)
