"""The bodies of what a CA answers in CMP (RFC 9810 sections 5.2 and 5.3): DER for ``cmp_protection.protect``.

Writes what RFC 9483 lets a CA say and nothing else: certificates in the open, no private keys.  Which status
is the true one is for the use cases.
"""

from collections.abc import Sequence

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark.pki import cmp_der, der
from birthmark.pki.algorithms import ALGORITHMS, throwaway_key
from birthmark.pki.cmp import InfoTypeAndValue, directory_name, encode_info
from birthmark.pki.cmp_status import ACCEPTED, WAITING, PKIStatusInfo, encode_status
from birthmark.pki.crmf import CertId, CertTemplate, encode_template
from birthmark.pki.keys import KeyAlgorithm

__all__ = [
    "CA_CERTS",
    "CERT_REQ_TEMPLATE",
    "CRLS",
    "CRL_STATUS_LIST",
    "CURRENT_CRL",
    "PKICONF",
    "ROOT_CA_CERT",
    "ROOT_CA_KEY_UPDATE",
    "ca_certs",
    "cert_req_template",
    "crls",
    "current_crl",
    "error",
    "general_response",
    "granted",
    "nested",
    "poll_response",
    "rejected",
    "revocation_response",
    "root_ca_key_update",
    "waiting",
]


def _info_type(last: int) -> bytes:
    return der.oid(f"1.3.6.1.5.5.7.4.{last}")


CURRENT_CRL = _info_type(6)
"""id-it-currentCRL (DER; RFC 9810 section 5.3.19.6)."""
CA_CERTS = _info_type(17)
"""id-it-caCerts (DER; section 5.3.19.14)."""
ROOT_CA_KEY_UPDATE = _info_type(18)
"""id-it-rootCaKeyUpdate (DER; section 5.3.19.15): the answer to ``ROOT_CA_CERT``."""
CERT_REQ_TEMPLATE = _info_type(19)
"""id-it-certReqTemplate (DER; section 5.3.19.16)."""
ROOT_CA_CERT = _info_type(20)
"""id-it-rootCaCert (DER; section 5.3.19.15)."""
CRL_STATUS_LIST = _info_type(22)
"""id-it-crlStatusList (DER; section 5.3.19.17)."""
CRLS = _info_type(23)
"""id-it-crls (DER; section 5.3.19.17): the answer to ``CRL_STATUS_LIST``."""

PKICONF = cmp_der.NULL
"""PKIConfirmContent (RFC 9810 section 5.3.17)."""

_ALG_ID = der.oid("1.3.6.1.5.5.7.5.1.11")
_RSA_KEY_LEN = der.oid("1.3.6.1.5.5.7.5.1.12")
_EXPLICIT_0, _EXPLICIT_1 = 0xA0, 0xA1


# --- ip, cp, kup ---


def granted(
    cert_req_id: int,
    certificate: bytes,
    *,
    status: PKIStatusInfo = ACCEPTED,
    ca_pubs: Sequence[bytes] = (),
) -> bytes:
    """Return CertRepMessage (DER) with a certificate (RFC 9810 section 5.3.4).

    Args:
        cert_req_id: of the request; 0 as a rule, -1 for a p10cr (RFC 9483 section 4.1.4).
        certificate: DER.
        status: accepted, or grantedWithMods.
        ca_pubs: roots (DER) that the client is to trust from now on; only in an ip, and only where the client
            believes this message under a secret (RFC 9483 section 4.1.1).
    """
    pair = der.encode(der.SEQUENCE, der.encode(_EXPLICIT_0, certificate))
    return _responses(_response(cert_req_id, status, pair), ca_pubs)


def waiting(cert_req_id: int, *text: str) -> bytes:
    """Return CertRepMessage (DER) that says: ask again, by a pollReq (RFC 9483 section 4.4)."""
    info = PKIStatusInfo(status=WAITING.status, text=text)
    return _responses(_response(cert_req_id, info), ())


def rejected(cert_req_id: int, status: PKIStatusInfo) -> bytes:
    """Return CertRepMessage (DER) that refuses, as ``cmp_status.rejection`` words it."""
    return _responses(_response(cert_req_id, status), ())


def _response(cert_req_id: int, status: PKIStatusInfo, pair: bytes = b"") -> bytes:
    return der.encode(der.SEQUENCE, cmp_der.signed_integer(cert_req_id), encode_status(status), pair)


def _responses(response: bytes, ca_pubs: Sequence[bytes]) -> bytes:
    trusted = der.encode(_EXPLICIT_1, der.encode(der.SEQUENCE, *ca_pubs)) if ca_pubs else b""
    return der.encode(der.SEQUENCE, trusted, der.encode(der.SEQUENCE, response))


# --- error, pollRep, rp ---


def error(status: PKIStatusInfo) -> bytes:
    """Return ErrorMsgContent (DER; RFC 9810 section 5.3.21).

    With the status waiting it tells a client to poll for the whole message (RFC 9483 section 4.4).
    """
    return der.encode(der.SEQUENCE, encode_status(status))


def poll_response(cert_req_id: int, check_after: int, *reason: str) -> bytes:
    """Return PollRepContent (DER; RFC 9810 section 5.3.22).

    Args:
        cert_req_id: as in the pollReq.
        check_after: seconds after which it is worth asking again.
        reason: for people.
    """
    entry = der.encode(
        der.SEQUENCE,
        cmp_der.signed_integer(cert_req_id),
        der.integer(check_after),
        cmp_der.text_sequence(*reason),
    )
    return der.encode(der.SEQUENCE, entry)


def revocation_response(statuses: Sequence[PKIStatusInfo], certificates: Sequence[CertId] = ()) -> bytes:
    """Return RevRepContent (DER; RFC 9810 section 5.3.10).

    Args:
        statuses: one for each certificate of the request, in its order.
        certificates: those certificates, in the same order; or none, to leave them out.
    """
    ids = (
        der.encode(der.SEQUENCE, directory_name(one.issuer), cmp_der.signed_integer(one.serial_number))
        for one in certificates
    )
    listed = der.encode(_EXPLICIT_0, der.encode(der.SEQUENCE, *ids)) if certificates else b""
    return der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, *map(encode_status, statuses)), listed)


def nested(messages: Sequence[bytes]) -> bytes:
    """Return PKIMessages (DER; RFC 9810 section 5.1.3.4): the answers to what an RA nested."""
    return der.encode(der.SEQUENCE, *messages)


# --- genp ---


def general_response(*infos: InfoTypeAndValue) -> bytes:
    """Return GenRepContent (DER; RFC 9810 section 5.3.20)."""
    return encode_info(infos)


def ca_certs(certificates: Sequence[bytes]) -> InfoTypeAndValue:
    """Return the certificates (DER) of authorities (RFC 9483 section 4.3.1); no value if there are none."""
    return InfoTypeAndValue(
        info_type=CA_CERTS, value=der.encode(der.SEQUENCE, *certificates) if certificates else None
    )


def root_ca_key_update(
    new_with_new: bytes | None, new_with_old: bytes | None = None, old_with_new: bytes | None = None
) -> InfoTypeAndValue:
    """Return the certificates (DER) of a new root (RootCaKeyUpdateContent; RFC 9483 section 4.3.2).

    Args:
        new_with_new: the new root; None if there is no newer one than asked about, which leaves out all.
        new_with_old: the new key, certified by the old root.
        old_with_new: the old key, certified by the new root.
    """
    value = None
    if new_with_new is not None:
        value = der.encode(
            der.SEQUENCE,
            new_with_new,
            b"" if new_with_old is None else der.encode(_EXPLICIT_0, new_with_old),
            b"" if old_with_new is None else der.encode(_EXPLICIT_1, old_with_new),
        )
    return InfoTypeAndValue(info_type=ROOT_CA_KEY_UPDATE, value=value)


def cert_req_template(
    template: CertTemplate | None, algorithms: Sequence[KeyAlgorithm] = ()
) -> InfoTypeAndValue:
    """Return what a request has to look like (CertReqTemplateContent; RFC 9483 section 4.3.3).

    Args:
        template: the fields that are wanted; an empty value stands for one that the client fills in.  None if
            there is nothing to say, which leaves out all.
        algorithms: the kinds of key that may be asked for.
    """
    value = None
    if template is not None:
        keys = der.encode(der.SEQUENCE, *map(_key_spec, algorithms)) if algorithms else b""
        value = der.encode(der.SEQUENCE, encode_template(template), keys)
    return InfoTypeAndValue(info_type=CERT_REQ_TEMPLATE, value=value)


def _key_spec(algorithm: KeyAlgorithm) -> bytes:
    """Return a control that says what kind of key (RFC 9810 section 5.3.19.16): algId, or rsaKeyLen."""
    if ALGORITHMS[algorithm].key_suffix:
        bits = int(algorithm.removeprefix("rsa-"))
        return der.encode(der.SEQUENCE, _RSA_KEY_LEN, der.integer(bits))
    spki = throwaway_key(algorithm).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    identifier, _ = der.children(spki, *der.only(spki, der.SEQUENCE)[2:])
    return der.encode(der.SEQUENCE, _ALG_ID, cmp_der.whole(spki, identifier))


def crls(lists: Sequence[bytes]) -> InfoTypeAndValue:
    """Return CRLs (DER; RFC 9483 section 4.3.4); no value if there is no newer one."""
    return InfoTypeAndValue(info_type=CRLS, value=der.encode(der.SEQUENCE, *lists) if lists else None)


def current_crl(crl: bytes) -> InfoTypeAndValue:
    """Return one CRL (DER), as clients of RFC 4210 ask for it."""
    return InfoTypeAndValue(info_type=CURRENT_CRL, value=crl)
