"""A CA that speaks CMP over HTTP (RFC 9811), made of what is under test: for OpenSSL's client to talk to.

It keeps one transaction, in memory, and believes everybody who protects a message as it should.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key

from birthmark.errors import PolicyRefused, Refusal
from birthmark.pki import cmp_bodies, crmf, csr
from birthmark.pki.cmp import (
    BodyKind,
    PKIMessage,
    answer_to,
    confirm_wait_time,
    decode,
    implicit_confirm,
    read_info,
)
from birthmark.pki.cmp_checks import Expected, verify_header, verify_signed, verify_under_secret
from birthmark.pki.cmp_protection import (
    MACProtector,
    ProtectionKind,
    SignatureProtector,
    protect,
)
from birthmark.pki.cmp_requests import (
    CertStatus,
    RevocationRequest,
    read_confirmations,
    read_polls,
    read_revocations,
    verify_confirmation,
)
from birthmark.pki.cmp_status import ACCEPTED, PKIFailureInfo, PKIStatus, PKIStatusInfo, rejection
from birthmark.pki.keys import KeyAlgorithm
from tests.pki.cmp_parts import SECRET, SINCE, UNTIL, certificate, name, signer, unprotected
from tests.pki.sample import NOW, private_key

_ANSWERS = {
    BodyKind.IR: BodyKind.IP,
    BodyKind.CR: BodyKind.CP,
    BodyKind.P10CR: BodyKind.CP,
    BodyKind.KUR: BodyKind.KUP,
}


class Responder:
    """One transaction after the other."""

    def __init__(self) -> None:
        """Begin without one."""
        self.seen: list[str] = []
        self.confirmed: list[bytes] = []
        self.rejected: list[CertStatus] = []
        self.revoked: list[RevocationRequest] = []
        self.waits = 0
        self.fails = PKIFailureInfo(0)
        self.certifies: bytes | None = None
        self._expected: Expected | None = None
        self._issued = b""
        self._asked: tuple[BodyKind, int] = (BodyKind.IP, 0)
        self._count = 0

    def answer(self, octets: bytes) -> bytes:
        """Return the answer to a message."""
        message = decode(octets)
        self.seen.append(message.kind)
        self._count += 1
        nonce = sha256(b"%d" % self._count).digest()[:16]
        by: SignatureProtector | MACProtector | None = None
        header = answer_to(message.header, sender=name("ca").public_bytes(), now=NOW, nonce=nonce)
        try:
            by = self._believe(message)
            if self.fails:
                info = PKIStatusInfo(status=PKIStatus.REJECTION, text=("no",), fail_info=self.fails)
                return protect(header, BodyKind.ERROR, cmp_bodies.error(info), by)
            kind, body = self._act(message)
        except Refusal as refused:
            body = cmp_bodies.error(rejection(refused))
            return (
                unprotected(header, BodyKind.ERROR, body)
                if by is None
                else protect(header, BodyKind.ERROR, body, by)
            )
        self._expected = Expected(transaction_id=message.header.transaction_id or b"", nonce=nonce)
        infos = [confirm_wait_time(UNTIL)]
        if message.header.implicit_confirm:
            infos = [implicit_confirm()]
        extra = (certificate("ca"),)
        header = answer_to(
            message.header, sender=name("ca").public_bytes(), now=NOW, nonce=nonce, general_info=infos
        )
        return protect(header, kind, body, by, extra)

    def _believe(self, message: PKIMessage) -> SignatureProtector | MACProtector:
        goes_on = message.kind in {BodyKind.CERT_CONF, BodyKind.POLL_REQ}
        kind = verify_header(message, now=NOW, tolerance=None, expected=self._expected if goes_on else None)
        if kind is ProtectionKind.SIGNATURE:
            verify_signed(message)
            return signer("ca")
        verify_under_secret(message, SECRET)
        return MACProtector.answering(message, SECRET, b"another salt 123")

    def _act(self, message: PKIMessage) -> tuple[BodyKind, bytes]:
        if message.kind in _ANSWERS:
            return self._enrol(message)
        if message.kind is BodyKind.POLL_REQ:
            assert read_polls(message.body) == (self._asked[1],)
            self.waits -= 1
            if self.waits:
                return BodyKind.POLL_REP, cmp_bodies.poll_response(self._asked[1], 0, "a moment")
            return self._granted()
        if message.kind is BodyKind.CERT_CONF:
            for status in read_confirmations(message.body):
                if status.accepted:
                    verify_confirmation(status, self._issued, pvno=message.header.pvno)
                    assert status.cert_req_id == self._asked[1]
                    self.confirmed.append(self._issued)
                else:
                    self.rejected.append(status)
            return BodyKind.PKICONF, cmp_bodies.PKICONF
        if message.kind is BodyKind.RR:
            self.revoked = list(read_revocations(message.body))
            which = [asked.certificate for asked in self.revoked]
            return BodyKind.RP, cmp_bodies.revocation_response([ACCEPTED for _ in which], which)
        if message.kind is BodyKind.GENM:
            return BodyKind.GENP, self._informed(message)
        raise PolicyRefused("message-expected", f"a message {message.kind} was not to be expected")

    def _informed(self, message: PKIMessage) -> bytes:
        known = {
            cmp_bodies.CA_CERTS: cmp_bodies.ca_certs([certificate("ca")]),
            cmp_bodies.CURRENT_CRL: cmp_bodies.current_crl(crl()),
        }
        return cmp_bodies.general_response(*(known[info.info_type] for info in read_info(message.body)))

    def _enrol(self, message: PKIMessage) -> tuple[BodyKind, bytes]:
        if message.kind is BodyKind.P10CR:
            number, vetted = -1, csr.vet(message.body, allowed=list(KeyAlgorithm))
        else:
            request = crmf.decode(message.body)
            number, vetted = request.cert_req_id, crmf.vet(request, allowed=list(KeyAlgorithm))
        self._asked = (_ANSWERS[message.kind], number)
        self._issued = issue(self.certifies or vetted.subject_public_key_info)
        if self.waits:
            return self._asked[0], cmp_bodies.waiting(number, "wait")
        return self._granted()

    def _granted(self) -> tuple[BodyKind, bytes]:
        kind, number = self._asked
        roots = [certificate("ca")] if kind is BodyKind.IP else []
        return kind, cmp_bodies.granted(number, self._issued, ca_pubs=roots)


def issue(subject_public_key_info: bytes) -> bytes:
    """A certificate (DER) of this key."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(name("device"))
        .issuer_name(name("ca"))
        .public_key(load_der_public_key(subject_public_key_info))  # type: ignore[arg-type]  # one that signs
        .serial_number(4711)
        .not_valid_before(SINCE)
        .not_valid_after(UNTIL)
    )
    key = private_key(KeyAlgorithm.EC_P256, "ca")
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def crl() -> bytes:
    """An empty CRL (DER) of the CA."""
    builder = x509.CertificateRevocationListBuilder().issuer_name(name("ca"))
    builder = builder.last_update(SINCE).next_update(UNTIL)
    key = private_key(KeyAlgorithm.EC_P256, "ca")
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


@contextmanager
def serving(responder: Responder) -> Iterator[str]:
    """Serve it on a port of the loopback interface; yield ``host:port``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            octets = self.rfile.read(int(self.headers["Content-Length"]))
            answer = responder.answer(octets)
            self.send_response(200)
            self.send_header("Content-Type", "application/pkixcmp")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
