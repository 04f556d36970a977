"""CMP over HTTP (RFC 9810, RFC 9811, in the profile of RFC 9483): parsed, believed, carried, answered.

``/.well-known/cmp`` takes all messages; below it ``p/RUN`` names the run, and a last segment the operation,
which then has to be that of the message.  Who asks is found from what protects the message, never from the
connection: the certificate that signed it, or the name of a one-time code and a MAC under that code.  An RA
is a station: what it signs itself it asks for itself; what it nests is asked by whoever signed that.

Every message that can be read is answered in CMP with status 200, a refusal as well (RFC 9811 section 3.3),
with two exceptions.  What is no message is refused by HTTP.  And so is what may be sent again as it is: an
error in CMP would end the transaction for the client, while a 503 or 429 changes nothing in it (section 5).
Answers are signed as the server, or under the code.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from fastapi import FastAPI, Request, Response

from birthmark import errors
from birthmark.edge.http.cmp_information import Information
from birthmark.edge.http.cmp_unconfirmed import Unconfirmed
from birthmark.edge.http.deviceplane import DevicePlaneApp
from birthmark.edge.http.gate import require_media_type
from birthmark.edge.http.identity import ServerIdentity
from birthmark.edge.http.metrics import CLIENT_KEY
from birthmark.edge.roots import service_root
from birthmark.floor.clients import Capability, Role
from birthmark.floor.enrolments import CMPTransaction
from birthmark.pki import cmp, cmp_bodies, cmp_checks, cmp_requests
from birthmark.pki.algorithms import key_identifier
from birthmark.pki.certificates import serial_hex
from birthmark.pki.cmp import BodyKind, InfoTypeAndValue, PKIMessage
from birthmark.pki.cmp_protection import (
    SALT_SIZE,
    MACProtector,
    ProtectionKind,
    SignatureProtector,
    protect,
)
from birthmark.pki.cmp_status import ACCEPTED, PKIStatusInfo, rejection
from birthmark.pki.crmf import CertId
from birthmark.pki.crmf import decode as decode_crmf
from birthmark.pki.revocation import ReasonCode
from birthmark.secret import SecretBytes
from birthmark.services.acts import Caller
from birthmark.services.enrolments import Granted, Waiting
from birthmark.services.recognition import recognise_device

__all__ = ["CMPEdge", "add_cmp"]

MEDIA_TYPE = "application/pkixcmp"
LARGEST = 65_536
NONCE_SIZE = 16
TOLERANCE = timedelta(minutes=5)
"""How far messageTime may be from now, of those who have a clock: RAs; devices may not have one yet."""
_OPERATIONS = {
    "initialization": BodyKind.IR,
    "certification": BodyKind.CR,
    "keyupdate": BodyKind.KUR,
    "pkcs10": BodyKind.P10CR,
    "revocation": BodyKind.RR,
    "getcacerts": BodyKind.GENM,
    "getrootupdate": BodyKind.GENM,
    "getcertreqtemplate": BodyKind.GENM,
    "getcrls": BodyKind.GENM,
    "nested": BodyKind.NESTED,
}
"""The last segment of a path to the message that belongs there (RFC 9811, IANA's registry)."""
_ANSWERS = {
    BodyKind.IR: BodyKind.IP,
    BodyKind.CR: BodyKind.CP,
    BodyKind.P10CR: BodyKind.CP,
    BodyKind.KUR: BodyKind.KUP,
}
_FOLLOWING = frozenset({BodyKind.CERT_CONF, BodyKind.POLL_REQ, BodyKind.ERROR})
"""What goes on with a transaction; it comes to where that began."""

_Protector = MACProtector | SignatureProtector


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One message that is believed."""

    message: PKIMessage
    caller: Caller
    by: _Protector
    """What protects the answers."""
    label: str | None
    """The run, as the path names it."""

    @property
    def transaction_id(self) -> bytes:
        return self.message.header.transaction_id or b""

    @property
    def profile(self) -> str | None:
        """Its certProfile; an empty one names none (RFC 9810 section 5.1.1.4)."""
        return next(iter(self.message.header.cert_profile), None) or None

    @property
    def under_secret(self) -> bool:
        return isinstance(self.by, MACProtector)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    kind: BodyKind
    body: bytes
    nonce: bytes | None = None
    """Our senderNonce, where it stands on record already."""
    info: tuple[InfoTypeAndValue, ...] = ()
    certificates: tuple[bytes, ...] = ()
    refuses: bool = False


class CMPEdge:
    """The endpoint, over one plane."""

    def __init__(self, plane: DevicePlaneApp, identity: ServerIdentity) -> None:
        """Answer on this plane, signing as ``identity``."""
        self._plane = plane
        self._app = plane.application
        self._carry = plane.border.carry
        self._identity = identity
        self._signature = SignatureProtector(
            algorithm=identity.algorithm,
            key_identifier=key_identifier(identity.certificate.subject_public_key_info),
            sign=identity.sign,
            certificates=identity.certificates,
        )
        self._information = Information(plane)
        self.unconfirmed = Unconfirmed(plane.border, plane.application)

    # --- HTTP

    async def post(self, request: Request) -> Response:
        """Take a message and answer it."""
        name, operation = request.path_params.get("name"), request.path_params.get("operation")
        require_media_type(request, MEDIA_TYPE, "a message of CMP")
        message = cmp.decode(await request.body(), LARGEST)
        if operation is not None and operation not in _OPERATIONS:
            raise errors.NotFound(f"there is no operation {operation[:64]}")
        octets, refuses = await self._answered(request, message, name, operation)
        # RFC 9811 section 5: after an error the server should close the connection.
        headers = {"connection": "close"} if refuses else {}
        return Response(octets, media_type=MEDIA_TYPE, headers=headers)

    async def _answered(
        self, request: Request, message: PKIMessage, label: str | None, operation: str | None
    ) -> tuple[bytes, bool]:
        """Return the answer to a message, whatever it is, and whether it refuses.

        Raises:
            errors.Refusal: the same message may be sent again later, or the refusal could not be recorded.
        """
        if message.kind is BodyKind.NESTED:
            return await self._nested(request, message, label, operation)
        by: _Protector = self._signature
        try:
            _require_place(message.kind, operation)
            asked = await self._believed(request, message, label)
            by = asked.by
            answer = await self._carried(asked)
        except errors.Refusal as refusal:
            answer = await self._refused(request, message, refusal)
        return await self._sealed(message, answer, by), answer.refuses

    async def _nested(
        self, request: Request, message: PKIMessage, label: str | None, operation: str | None
    ) -> tuple[bytes, bool]:
        """Answer what an RA sends for others (RFC 9483 section 5.2.2), each message for itself."""
        try:
            cmp_checks.verify_header(message, now=self._app.clock.now(), tolerance=TOLERANCE)
            ra = await self._signer(request, message)
            if ra.client.role is not Role.STATION:
                raise errors.NotPermitted(f"{ra.client.id} is no RA: a station speaks for others")
            await self._plane.require_live(ra, Capability.ISSUE)
            inner = cmp_requests.read_nested(message.body, LARGEST)
            if any(one.kind is BodyKind.NESTED for one in inner):
                raise errors.MalformedRequest("a nested message holds no nested one")
        except errors.Refusal as refusal:
            answer = await self._refused(request, message, refusal)
            return await self._sealed(message, answer, self._signature), True
        answers = []
        place = None if operation == BodyKind.NESTED else operation
        for one in inner:
            request.scope[CLIENT_KEY] = ra.client.id  # until it is known who sent this one
            answers.append((await self._answered(request, one, label, place))[0])
        if len(answers) == 1:
            return answers[0], False
        batch = _Answer(kind=BodyKind.NESTED, body=cmp_bodies.nested(answers))
        return await self._sealed(message, batch, self._signature), False

    async def _refused(self, request: Request, message: PKIMessage, refusal: errors.Refusal) -> _Answer:
        if refusal.retryable:
            raise refusal
        await self._plane.refused.put_on_record(request, refusal)
        status = rejection(refusal)
        if message.kind in _ANSWERS:
            with suppress(errors.Refusal):
                body = cmp_bodies.rejected(_request_id(message), status)
                return _Answer(kind=_ANSWERS[message.kind], body=body, refuses=True)
        return _Answer(kind=BodyKind.ERROR, body=cmp_bodies.error(status), refuses=True)

    async def _sealed(self, message: PKIMessage, answer: _Answer, by: _Protector) -> bytes:
        header = cmp.answer_to(
            message.header,
            sender=self._identity.certificate.subject_name,
            now=self._app.clock.now(),
            nonce=answer.nonce or self._nonce(),
            general_info=answer.info,
        )
        if isinstance(by, SignatureProtector):
            return protect(header, answer.kind, answer.body, by, answer.certificates)
        # The client says how often the code is hashed: not while everybody else waits.
        return await asyncio.to_thread(protect, header, answer.kind, answer.body, by, answer.certificates)

    def _nonce(self) -> bytes:
        return self._app.entropy.token(NONCE_SIZE)

    # --- who

    async def _believed(self, request: Request, message: PKIMessage, label: str | None) -> _Asked:
        """Return a message whose header is in order and whose sender is known."""
        if message.kind not in cmp.FROM_CLIENTS:
            raise errors.PolicyRefused("message-expected", f"a {message.kind} is an answer, not a request")
        how = cmp_checks.verify_header(
            message,
            now=self._app.clock.now(),
            tolerance=None,
            expected=_same(message) if message.kind in _FOLLOWING else None,
        )
        by: _Protector
        if how is ProtectionKind.SIGNATURE:
            caller, by = await self._signer(request, message), self._signature
        else:
            caller, secret = await self._sharer(request, message)
            by = MACProtector.answering(message, secret, self._app.entropy.token(SALT_SIZE))
        if len(message.header.cert_profile) > 1:
            raise errors.MalformedRequest("one request names one certProfile")
        return _Asked(message=message, caller=caller, by=by, label=label)

    async def _signer(self, request: Request, message: PKIMessage) -> Caller:
        certificate = cmp_checks.verify_signed(message)
        return self._plane.known(request, await self._carry(recognise_device(certificate.der)))

    async def _sharer(self, request: Request, message: PKIMessage) -> tuple[Caller, SecretBytes]:
        try:
            name = cmp_checks.sender_reference(message).decode("ascii")
        except UnicodeDecodeError as cause:
            raise errors.Unauthenticated("no such name has a one-time code") from cause
        caller, secret = await self._carry(self._app.codes.named(name))
        await asyncio.to_thread(cmp_checks.verify_under_secret, message, secret)
        return self._plane.known(request, caller), secret

    # --- what

    async def _carried(self, asked: _Asked) -> _Answer:
        carried: dict[BodyKind, Callable[[_Asked], Awaitable[_Answer]]] = {
            BodyKind.CERT_CONF: self._confirmed,
            BodyKind.POLL_REQ: self._polled,
            BodyKind.ERROR: self._gave_up,
            BodyKind.RR: self._revoked,
            BodyKind.GENM: self._told,
        }
        return await carried.get(asked.message.kind, self._enrolled)(asked)

    async def _enrolled(self, asked: _Asked) -> _Answer:
        message, caller = asked.message, asked.caller
        request_id, implicit = _request_id(message), message.header.implicit_confirm
        if message.kind is BodyKind.KUR:
            cmp_checks.verify_update(message, caller.credential.der)
        context = await self._carry(self._app.cmp.run_of(caller, asked.label, asked.profile))
        row = await self._carry(
            self._app.cmp.begin(
                caller,
                context.licence.id,
                message.kind,
                asked.transaction_id,
                (request_id, message.body),
                self._nonce(),
                implicit=implicit,
            )
        )
        self.unconfirmed.watch(row)
        answer = await self._carry(self._app.cmp.enrol(caller, row, row.nonce, counted=True))
        if isinstance(answer, Waiting):
            body = cmp_bodies.waiting(request_id, "a person looks at this request")
            return _Answer(kind=_ANSWERS[message.kind], body=body, nonce=row.nonce)
        return await self._granted(asked, row, answer, row.nonce, implicit=implicit)

    async def _granted(
        self, asked: _Asked, row: CMPTransaction, answer: Granted, nonce: bytes, *, implicit: bool
    ) -> _Answer:
        kind = _ANSWERS[BodyKind(row.body)]
        if implicit:
            await self._carry(self._app.cmp.close(row))
            info = (cmp.implicit_confirm(),)
        else:
            now = await self._carry(self._app.cmp.find(asked.caller, asked.transaction_id))
            self.unconfirmed.watch(now)
            info = (cmp.confirm_wait_time(now.expires_at),)
        roots: Sequence[bytes] = ()
        if asked.under_secret and kind is BodyKind.IP:
            roots = [(await self._plane.border.read(service_root, self._app)).der]
        return _Answer(
            kind=kind,
            body=cmp_bodies.granted(row.request_id, answer.certificate, ca_pubs=roots),
            nonce=nonce,
            info=info,
            certificates=answer.chain,
        )

    async def _row(self, asked: _Asked) -> CMPTransaction:
        """Return the transaction that a message goes on with, if it repeats what it has to."""
        confirms = asked.message.kind is BodyKind.CERT_CONF
        row = await self._carry(self._app.cmp.find(asked.caller, asked.transaction_id, confirms=confirms))
        expected = cmp_checks.Expected(transaction_id=asked.transaction_id, nonce=row.nonce)
        cmp_checks.verify_header(asked.message, now=self._app.clock.now(), tolerance=None, expected=expected)
        return row

    async def _confirmed(self, asked: _Asked) -> _Answer:
        row = await self._row(asked)
        said = cmp_requests.read_confirmations(asked.message.body)
        await self._carry(self._app.cmp.settle(asked.caller, row, said, pvno=asked.message.header.pvno))
        return _Answer(kind=BodyKind.PKICONF, body=cmp_bodies.PKICONF)

    async def _polled(self, asked: _Asked) -> _Answer:
        row, nonce = await self._row(asked), self._nonce()
        if cmp_requests.read_polls(asked.message.body) != (row.request_id,):
            raise errors.PolicyRefused("message-expected", "no request of that certReqId waits")
        answer = await self._carry(self._app.cmp.enrol(asked.caller, row, nonce))
        if isinstance(answer, Waiting):
            body = cmp_bodies.poll_response(row.request_id, answer.retry_after, "nobody has looked at it yet")
            return _Answer(kind=BodyKind.POLL_REP, body=body, nonce=nonce)
        return await self._granted(asked, row, answer, nonce, implicit=False)

    async def _gave_up(self, asked: _Asked) -> _Answer:
        row = await self._row(asked)
        told = cmp_requests.read_error(asked.message.body)
        reason = f"the client gave up: {' '.join(told.text)[:200] or told.status.name.lower()}"
        await self._carry(self._app.cmp.reject(asked.caller.client.id, row, reason))
        return _Answer(kind=BodyKind.PKICONF, body=cmp_bodies.PKICONF)

    async def _revoked(self, asked: _Asked) -> _Answer:
        (wanted, *more) = cmp_requests.read_revocations(asked.message.body)
        if more:
            raise errors.MalformedRequest("one message revokes one certificate")
        certificate: CertId = wanted.certificate
        revoking = self._app.confirmations.revoke_own(
            asked.caller,
            certificate.issuer,
            serial_hex(certificate.serial_number),
            wanted.reason or ReasonCode.UNSPECIFIED,
        )
        status: PKIStatusInfo = ACCEPTED
        try:
            await self._carry(revoking)
        except errors.Refusal as refusal:
            if refusal.retryable or not refusal.recorded:
                raise
            status = rejection(refusal)
        body = cmp_bodies.revocation_response([status], [certificate])
        return _Answer(kind=BodyKind.RP, body=body)

    async def _told(self, asked: _Asked) -> _Answer:
        """Answer a general message (RFC 9483 section 4.3)."""
        await self._plane.require_known(asked.caller)
        infos = cmp.read_info(asked.message.body)
        if len(infos) != 1:
            raise errors.MalformedRequest("one message asks for one thing")
        context = await self._carry(self._app.cmp.run_of(asked.caller, asked.label, asked.profile))
        answer = await self._information.about(infos[0], asked.caller, context)
        return _Answer(kind=BodyKind.GENP, body=cmp_bodies.general_response(answer))


def add_cmp(app: FastAPI, edge: CMPEdge) -> None:
    """Add the endpoint to a plane's application; ``edge.unconfirmed`` begins and ends with its life."""
    base = "/.well-known/cmp"
    for path in (base, f"{base}/{{operation}}", f"{base}/p/{{name}}", f"{base}/p/{{name}}/{{operation}}"):
        app.post(path, response_class=Response, response_model=None)(edge.post)


def _require_place(kind: BodyKind, operation: str | None) -> None:
    """Refuse a message that was sent to another operation's path (RFC 9483 section 6.1)."""
    if operation is not None and _OPERATIONS[operation] is not kind and kind not in _FOLLOWING:
        raise errors.PolicyRefused("message-place", f"a {kind} does not belong under {operation}")


def _same(message: PKIMessage) -> cmp_checks.Expected:
    """Return what lets any recipNonce pass for now: it is compared when the sender is known."""
    header = message.header
    return cmp_checks.Expected(transaction_id=header.transaction_id or b"", nonce=header.recip_nonce or b"")


def _request_id(message: PKIMessage) -> int:
    """Return the certReqId that an answer has (RFC 9483 section 4.1.4: -1 for PKCS #10)."""
    return -1 if message.kind is BodyKind.P10CR else decode_crmf(message.body).cert_req_id
