"""How a station gets in: an address, a one-time code, and a key it makes itself (SPEC C2).

1. The key is made and written down, before anybody is asked: what is lost on the way is asked for again
   with the same key, and the service gives the same certificate.
2. The service is asked for its root, over a connection that nobody has verified yet, and nothing else.
   The root is what the code pins, or the station stops.
3. Over a new connection, verified under that root and by the service's name, the secret half of the code
   and the certification request are sent.
4. The certificate is for our key and leads to the root; then the station directory is written, whole or
   not at all.
"""

import json
import os
import shutil
import ssl
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from birthmark import errors
from birthmark.edge.station.answers import take
from birthmark.edge.station.codes import JoinCode
from birthmark.edge.station.credentials import write_station_directory
from birthmark.edge.station.folder import Folder
from birthmark.edge.station.ownkeys import new_key, public_key_info, request_for
from birthmark.edge.station.transport import Entropy, OnWait, Transport, decode_object
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.pki.certificates import Certificate, from_pem, one_from_pem, to_pem
from birthmark.secret import SecretBytes

__all__ = ["join", "require_ours"]

_KEY: Final = "station.key"
_HEADERS: Final = {"Accept": "application/json", "Content-Type": "application/json"}

# A station is a program of its own, outside the composition root: nobody hands it an Entropy port.
_urandom: Entropy = os.urandom  # noqa: TID251  # a fixture has no Entropy port


def join(
    url: str,
    code: JoinCode,
    out: Path,
    *,
    server_name: str | None = None,
    patience_seconds: float = 30.0,
    on_wait: OnWait | None = None,
) -> str:
    """Get in, and write the station directory; called again after any failure it goes on where it was.

    Args:
        url: of the enrolment plane, https://host:port.
        code: as it was given.
        out: a directory that does not exist or is empty.
        server_name: the service's name in its certificate, where it is not the host in the URL.
        patience_seconds: how long a request is repeated while the service is away.
        on_wait: told why it waits.

    Returns:
        The station's name.

    Raises:
        errors.NotFound: there is no directory to make ``out`` in.
        errors.IllegalTransition: there is something in ``out`` already.
        errors.IntegrityFailure: it is not the service the code is for, or its answer is not to be believed.
        errors.Unauthenticated: the code is not good, or nobody is invited at this time.
        errors.Refusal: the service refused.
    """
    out = Path(out).absolute()
    if not out.parent.is_dir():
        raise errors.NotFound(f"there is no directory {out.parent} to make {out.name} in")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise errors.IllegalTransition(f"{out} exists already and is not empty")

    def asked(context: ssl.SSLContext, ask: Callable[[Transport], tuple[str, bytes]]) -> dict[str, Any]:
        transport = Transport(
            url,
            context,
            server_name=server_name,
            timeout_seconds=15.0,
            patience_seconds=patience_seconds,
            first_pause_seconds=0.5,
            on_wait=on_wait,
            entropy=_urandom,
        )
        try:
            return decode_object(ask(transport)[1])
        finally:
            transport.close()

    waiting = out.with_name(f".{out.name}.joining")
    key = _kept_key(waiting)
    told = asked(_unverified(), lambda service: service.request("GET", "/v1/root", _HEADERS))
    root = _root(take(told, "root", str))
    code.require_root(root)
    body = json.dumps({"code": code.secret.reveal().hex(), "csr": request_for(key)}).encode()
    joined = asked(
        _verified(to_pem(root)), lambda service: service.request("POST", "/v1/stations/join", _HEADERS, body)
    )
    _write(out, joined, key, root)
    shutil.rmtree(waiting)
    return take(joined, "name", str)


def _kept_key(waiting: Path) -> SecretBytes:
    """Return the key of an attempt that broke off, or a new one that is written down."""
    folder = Folder(waiting, create=True)
    try:
        kept = folder.read_private(_KEY)
        if kept is not None:
            return SecretBytes(kept)
        key = new_key()
        folder.write(_KEY, key.reveal(), mode=0o400)
        return key
    finally:
        folder.close()


def _root(text: str) -> bytes:
    try:
        return one_from_pem(text)
    except errors.MalformedRequest as wrong:
        raise errors.IntegrityFailure(f"the service sent no root: {wrong}") from wrong


def _write(out: Path, joined: dict[str, Any], key: SecretBytes, root: bytes) -> None:
    certificate = take(joined, "certificate", str)
    chain = take(joined, "chain", list)
    require_ours(certificate, chain, public_key_info(key), root)
    vkey = take(joined, "vkey", str)
    try:
        VerifierKey.parse(vkey)
        write_station_directory(
            out,
            name=take(joined, "name", str),
            url=take(joined, "url", str),
            certificate_pem=certificate,
            chain_pem="".join(chain),
            private_key_pem=key,
            root_pem=to_pem(root),
            device_anchors_pem=take(joined, "device_anchors", str),
            vkey=vkey,
        )
    except errors.MalformedRequest as wrong:
        raise errors.IntegrityFailure(f"the service's answer cannot be used: {wrong}") from wrong


def require_ours(certificate_pem: str, chain: list[Any], spki: bytes, *roots: bytes) -> None:
    """Refuse a certificate that is not for our key or does not lead to one of the roots (DER).

    Raises:
        errors.IntegrityFailure: it is not ours.
    """
    try:
        (der,) = from_pem(certificate_pem)
        if Certificate.from_der(der).subject_public_key_info != spki:
            raise errors.IntegrityFailure("the service certified another key than ours")
        path = [der, *(octets for pem in chain for octets in from_pem(str(pem)))]
        parsed = [x509.load_der_x509_certificate(octets) for octets in path]
        anchors = [x509.load_der_x509_certificate(octets) for octets in roots]
        (root,) = [anchor for anchor in anchors if anchor.subject == parsed[-1].issuer]
        for below, above in pairwise([*parsed, root]):
            below.verify_directly_issued_by(above)
    except (ValueError, TypeError, InvalidSignature, errors.MalformedRequest) as wrong:
        raise errors.IntegrityFailure("our certificate does not lead to the service's root") from wrong


def _unverified() -> ssl.SSLContext:
    """Return a context for one question whose answer is compared with the pin."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _verified(root_pem: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the chain and the host name
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=root_pem)
    return context
