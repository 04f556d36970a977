"""OCSP responses (RFC 6960, RFC 9654, and the lightweight profile of RFC 5019): made, permitted, signed.

The way of an answer is ``decode_request`` or ``decode_get`` (``ocsp_request``), ``response_data`` here,
``permit`` (``ocsp_lint``), ``sign_response`` here.  A response signed beforehand goes the same way: a CertID
of our own (``cert_id``) and no nonce.  What cannot be answered gets an unsigned ``error_response``.

Whose certificates are known and what their status is, is the use cases' business; so is which serial numbers
were ever given, and the answer for the others is "unknown" (see ``SingleResponse``).
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from enum import IntEnum
from functools import lru_cache

from birthmark.errors import PolicyRefused
from birthmark.pki import der
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.keys import KeyLabel
from birthmark.pki.ocsp_lint import OCSPPermit, permit
from birthmark.pki.ocsp_reading import Responder, SingleResponse, TBSResponse
from birthmark.pki.ocsp_request import (
    NONCE,
    CertID,
    CertIDHash,
    IssuerID,
    OCSPRequest,
    cert_id,
    decode_get,
    decode_request,
    issuer_ids,
)
from birthmark.pki.revocation import ENUMERATED, CertStatus, ReasonCode, encode_generalized_time

__all__ = [
    "CertID",
    "CertIDHash",
    "IssuerID",
    "OCSPPermit",
    "OCSPRequest",
    "Responder",
    "ResponseStatus",
    "SingleResponse",
    "TBSResponse",
    "cert_id",
    "decode_get",
    "decode_request",
    "error_response",
    "issuer_ids",
    "permit",
    "response_data",
    "sign_response",
]


class ResponseStatus(IntEnum):
    """Why there is no answer (OCSPResponseStatus, RFC 6960 section 2.3)."""

    MALFORMED_REQUEST = 1
    TRY_LATER = 3
    UNAUTHORIZED = 6
    """We have nothing to say about this certificate (RFC 5019 section 2.2.3): its issuer is not ours."""


_BASIC = der.oid("1.3.6.1.5.5.7.48.1.1")
_SUCCESSFUL = der.encode(ENUMERATED, b"\x00")


def error_response(status: ResponseStatus) -> bytes:
    """Return an unsigned OCSPResponse (DER) that says only this."""
    return der.encode(der.SEQUENCE, der.encode(ENUMERATED, bytes((status,))))


def response_data(
    responder: Responder,
    responses: Sequence[SingleResponse],
    *,
    produced_at: datetime,
    nonce: bytes | None = None,
) -> TBSResponse:
    """Return the ResponseData (RFC 6960 section 4.2.1) that says this; ``permit`` judges it.

    Args:
        responder: who will sign.
        responses: in the order of the request.
        produced_at: now, aware; parts of a second are cut off.
        nonce: the request's.

    Raises:
        PolicyRefused: a certificate is revoked without a time.
    """
    extensions = b""
    if nonce is not None:
        value = der.encode(der.OCTET_STRING, der.encode(der.OCTET_STRING, nonce))
        extensions = der.encode(0xA1, der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, NONCE, value)))
    octets = der.encode(
        der.SEQUENCE,
        responder.responder_id,
        _time(produced_at),
        der.encode(der.SEQUENCE, *map(_single, responses)),
        extensions,
    )
    return TBSResponse(
        der=octets, responder=responder, responses=tuple(responses), produced_at=produced_at, nonce=nonce
    )


_time = lru_cache(maxsize=64)(encode_generalized_time)  # most responses of a moment share theirs


def _single(single: SingleResponse) -> bytes:
    return der.encode(
        der.SEQUENCE,
        single.cert_id.octets,
        _status(single),
        _time(single.this_update),
        der.encode(0xA0, _time(single.next_update)),
    )


def _status(single: SingleResponse) -> bytes:
    if single.status is CertStatus.GOOD:
        return b"\x80\x00"
    if single.status is CertStatus.UNKNOWN:
        return b"\x82\x00"
    if single.revoked_at is None:
        raise PolicyRefused("revocation_has_happened", "revoked, but not when")
    reason = b""
    if single.reason is not ReasonCode.UNSPECIFIED:
        reason = der.encode(0xA0, der.encode(ENUMERATED, bytes((single.reason.number,))))
    return der.encode(0xA1, _time(single.revoked_at), reason)


def sign_response(permit: OCSPPermit, sign: Callable[[KeyLabel, bytes], bytes]) -> bytes:
    """Return the OCSPResponse (DER): exactly the octets that were permitted, signed by the responder.

    Args:
        permit: from ``permit``.
        sign: ``KeyStore.sign``; what it raises passes through.
    """
    tbs = permit.tbs
    responder = tbs.responder
    signature = sign(responder.key_label, tbs.der)
    return _wrap(
        der.encode(
            der.SEQUENCE,
            tbs.der,
            ALGORITHMS[responder.key_algorithm].signature_algorithm,
            der.encode(der.BIT_STRING, b"\0", signature),
            responder.carried,
        )
    )


def _wrap(basic: bytes) -> bytes:
    """OCSPResponse { successful, [0] { id-pkix-ocsp-basic, OCTET STRING } }."""
    return der.encode(
        der.SEQUENCE,
        _SUCCESSFUL,
        der.encode(0xA0, der.encode(der.SEQUENCE, _BASIC, der.encode(der.OCTET_STRING, basic))),
    )
