"""A client's certificate as proxies pass it on in a header: RFC 9440, or nginx's own way.

Whoever can send such a header is believed to have verified the certificate: only a proxy, recognised by a
certificate of its own, is asked for one, and none of these headers means anything from a device.
"""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from birthmark import errors
from birthmark.pki.certificates import one_from_pem

__all__ = ["CLIENT_CERT", "LARGEST", "NGINX_CERT", "client_certificate"]

CLIENT_CERT = "client-cert"
"""RFC 9440 section 2.2: a Byte Sequence (RFC 8941 section 3.3.5) of the DER."""
NGINX_CERT = "x-ssl-client-cert"
"""nginx's ``$ssl_client_escaped_cert``: the PEM, percent-encoded."""
LARGEST = 16_384
"""Octets of such a header."""
_BYTE_SEQUENCE = re.compile(r":([A-Za-z0-9+/]*={0,2}):", re.ASCII)


def client_certificate(ours: str | None, nginx: str | None) -> bytes:
    """Return the certificate (DER) that a proxy passes on; whether it is one is not looked at.

    Args:
        ours: the field ``client-cert``; None if it is not there.
        nginx: the field ``x-ssl-client-cert``; likewise.

    Raises:
        errors.MalformedRequest: there is none, there are both, or it is not well formed.
    """
    if (ours is None) == (nginx is None):
        raise errors.MalformedRequest(
            f"the device's certificate belongs into {CLIENT_CERT} (RFC 9440) or {NGINX_CERT}, not into both"
        )
    return _escaped_pem(nginx or "") if ours is None else _byte_sequence(ours)


def _byte_sequence(value: str) -> bytes:
    found = _BYTE_SEQUENCE.fullmatch(value.strip(" \t")) if len(value) <= LARGEST else None
    if found is None:
        raise errors.MalformedRequest(f"{CLIENT_CERT} is no byte sequence (RFC 8941 section 3.3.5)")
    try:
        return base64.b64decode(found[1], validate=True)
    except binascii.Error as cause:
        raise errors.MalformedRequest(f"{CLIENT_CERT} is not base64") from cause


def _escaped_pem(value: str) -> bytes:
    if len(value) > LARGEST:
        raise errors.MalformedRequest(f"{NGINX_CERT} has more than {LARGEST} octets")
    try:
        text = unquote_to_bytes(value).decode("ascii")
    except UnicodeError as cause:
        raise errors.MalformedRequest(f"{NGINX_CERT} is no percent-encoded PEM") from cause
    return one_from_pem(text)
