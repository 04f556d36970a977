"""CMP over HTTP (RFC 9810, RFC 9811, in the profile of RFC 9483): parsed, believed, carried, answered.

``/.well-known/cmp`` takes all messages; below it ``p/RUN`` names the run, and a last segment the operation,
which then has to be that of the message.  Who asks is found from what protects the message, never from the
connection: the certificate that signed it, or the name of a one-time code and a MAC under that code.  An RA
is a station: what it signs itself it asks for itself; what it nests is asked by whoever signed that.

Every message that can be read gets an answer in CMP with status 200, a refusal as well (RFC 9811 section
3.3); what is no message is refused by HTTP.  Answers are signed as the server, or under the code.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from cryptography import x509
from fastapi import FastAPI, Request, Response

from birthmark import errors
from birthmark.edge.http.deviceplane import DevicePlaneApp
from birthmark.edge.http.identity import ServerIdentity
from birthmark.edge.roots import service_root
from birthmark.floor.clients import Capability, Role
from birthmark.floor.enrolments import CMPStatus, CMPTransaction
from birthmark.floor.locations import crl_path
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
from birthmark.pki.crmf import CertId, CertTemplate
from birthmark.pki.crmf import decode as decode_crmf
from birthmark.pki.profiles import Profile
from birthmark.pki.revocation import ReasonCode
from birthmark.secret import SecretBytes
from birthmark.services.acts import Caller
from birthmark.services.enrolments import Granted, Waiting
from birthmark.services.recognition import recognise_device
from birthmark.services.runs import RunContext

__all__ = ["CMPEdge", "add_cmp"]

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/pkixcmp"
LARGEST = 65_536
NONCE_SIZE = 16
TOLERANCE = timedelta(minutes=5)
"""How far messageTime may be from now, of those who have a clock: RAs; devices may not have one yet."""
SWEEP_SECONDS = 1.0
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
"""What goes on with a transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One message that is believed."""

    message: PKIMessage
    caller: Caller
    by: MACProtector | SignatureProtector
    """What protects the answers."""
    label: str | None

    @property
    def transaction_id(self) -> bytes:
        return self.message.header.transaction_id or b""

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


class CMPEdge:
    """The endpoint, over one plane."""

    def __init__(self, plane: DevicePlaneApp, identity: ServerIdentity) -> None:
        """Answer on this plane, signing as ``identity``."""
        self._plane = plane
        self._app = plane.application
        self._identity = identity
        self._signature = SignatureProtector(
            algorithm=identity.algorithm,
            key_identifier=key_identifier(identity.certificate.subject_public_key_info),
            sign=identity.sign,
            certificates=identity.certificates,
        )
        self._open: dict[str, CMPTransaction] = {}
        self._sweeper: asyncio.Task[None] | None = None

    # --- HTTP

    async def post(self, request: Request) -> Response:
        """Take a message and answer it."""
        name, operation = request.path_params.get("name"), request.path_params.get("operation")
        sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if sent != MEDIA_TYPE:
            raise errors.MalformedRequest(f"a message of CMP is sent as {MEDIA_TYPE}, not as {sent[:100]!r}")
        message = cmp.decode(await request.body(), LARGEST)
        if operation is not None and operation not in _OPERATIONS:
            raise errors.NotFound(f"there is no operation {operation[:64]}")
        # What goes on with a transaction comes to where it began.
        misplaced = operation is not None and _OPERATIONS[operation] is not message.kind
        if misplaced and message.kind not in _FOLLOWING:
            raise errors.MalformedRequest(f"a {message.kind} does not belong under {operation}")
        octets = await self._answered(request, message, name)
        return Response(octets, media_type=MEDIA_TYPE)

    async def _answered(self, request: Request, message: PKIMessage, label: str | None) -> bytes:
        """Return the answer to a message, whatever it is."""
        if message.kind is BodyKind.NESTED:
            return await self._nested(request, message, label)
        by: MACProtector | SignatureProtector = self._signature
        try:
            asked = await self._believed(request, message, label)
            by = asked.by
            answer = await self._carried(asked)
        except errors.Refusal as refusal:
            await self._plane.refused.put_on_record(request, refusal)
            answer = self._refusal(message, refusal)
        return self._sealed(message, answer, by)

    async def _nested(self, request: Request, message: PKIMessage, label: str | None) -> bytes:
        """Answer what an RA sends for others (RFC 9483 section 5.2.2)."""
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
            await self._plane.refused.put_on_record(request, refusal)
            return self._sealed(message, self._refusal(message, refusal), self._signature)
        answers = [await self._answered(request, one, label) for one in inner]
        if len(answers) == 1:
            return answers[0]
        body = cmp_bodies.nested(answers)
        return self._sealed(message, _Answer(kind=BodyKind.NESTED, body=body), self._signature)

    def _refusal(self, message: PKIMessage, refusal: errors.Refusal) -> _Answer:
        status = rejection(refusal)
        if message.kind in _ANSWERS:
            with suppress(errors.Refusal):
                return _Answer(
                    kind=_ANSWERS[message.kind],
                    body=cmp_bodies.rejected(_request_id(message), status),
                )
        return _Answer(kind=BodyKind.ERROR, body=cmp_bodies.error(status))

    def _sealed(self, message: PKIMessage, answer: _Answer, by: MACProtector | SignatureProtector) -> bytes:
        header = cmp.answer_to(
            message.header,
            sender=self._identity.certificate.subject_name,
            now=self._app.clock.now(),
            nonce=answer.nonce or self._nonce(),
            general_info=answer.info,
        )
        return protect(header, answer.kind, answer.body, by, answer.certificates)

    def _nonce(self) -> bytes:
        return self._app.entropy.token(NONCE_SIZE)

    # --- who

    async def _believed(self, request: Request, message: PKIMessage, label: str | None) -> _Asked:
        """Return a message whose header is in order and whose sender is known."""
        kind = message.kind
        if kind not in cmp.FROM_CLIENTS:
            raise errors.MalformedRequest(f"a {kind} is an answer, not a request")
        following = kind in _FOLLOWING
        how = cmp_checks.verify_header(
            message,
            now=self._app.clock.now(),
            tolerance=None,
            expected=None if not following else _same(message),
        )
        by: MACProtector | SignatureProtector
        if how is ProtectionKind.SIGNATURE:
            caller, by = await self._signer(request, message), self._signature
        else:
            caller, secret = await self._sharer(request, message)
            by = MACProtector.answering(message, secret, self._app.entropy.token(SALT_SIZE))
        profiles = message.header.cert_profile
        if len(profiles) > 1:
            raise errors.MalformedRequest("one request names one certProfile")
        return _Asked(message=message, caller=caller, by=by, label=label or next(iter(profiles), None))

    async def _signer(self, request: Request, message: PKIMessage) -> Caller:
        certificate = cmp_checks.verify_signed(message)
        return self._plane.known(request, await self._plane.border.carry(recognise_device(certificate.der)))

    async def _sharer(self, request: Request, message: PKIMessage) -> tuple[Caller, SecretBytes]:
        try:
            name = cmp_checks.sender_reference(message).decode("ascii")
        except UnicodeDecodeError as cause:
            raise errors.Unauthenticated("no such name has a one-time code") from cause
        caller, secret = await self._plane.border.carry(self._app.codes.named(name))
        cmp_checks.verify_under_secret(message, secret)
        return self._plane.known(request, caller), secret

    # --- what

    async def _carried(self, asked: _Asked) -> _Answer:
        kind = asked.message.kind
        carried: dict[BodyKind, Callable[[_Asked], Awaitable[_Answer]]] = {
            BodyKind.CERT_CONF: self._confirmed,
            BodyKind.POLL_REQ: self._polled,
            BodyKind.ERROR: self._gave_up,
            BodyKind.RR: self._revoked,
            BodyKind.GENM: self._told,
        }
        return await carried.get(kind, self._enrolled)(asked)

    async def _enrolled(self, asked: _Asked) -> _Answer:
        message, nonce = asked.message, self._nonce()
        request_id = _request_id(message)
        if message.kind is BodyKind.KUR:
            self._require_updatable(asked)
        row = await self._plane.border.carry(
            self._app.cmp.begin(
                asked.caller,
                asked.label,
                message.kind,
                asked.transaction_id,
                (request_id, message.body),
                nonce,
            )
        )
        answer = await self._plane.border.carry(self._app.cmp.enrol(asked.caller, row, nonce))
        if isinstance(answer, Waiting):
            body = cmp_bodies.waiting(request_id, "a person looks at this request")
            return _Answer(kind=_ANSWERS[message.kind], body=body, nonce=nonce)
        implicit = message.header.implicit_confirm
        return await self._granted(asked, row, answer, nonce, implicit=implicit)

    def _require_updatable(self, asked: _Asked) -> None:
        """Refuse to update another certificate than the one that signs (RFC 9483 section 4.1.3)."""
        if asked.under_secret:
            raise errors.PolicyRefused("protection-kind", "a kur is signed with the key to be updated")
        old = decode_crmf(asked.message.body).old_cert_id
        if old is not None and serial_hex(old.serial_number) != asked.caller.credential.serial:
            raise errors.NotFound("oldCertID is not the certificate that signs the message")

    async def _granted(
        self, asked: _Asked, row: CMPTransaction, answer: Granted, nonce: bytes, *, implicit: bool
    ) -> _Answer:
        kind = _ANSWERS[BodyKind(row.body)]
        if implicit:
            await self._plane.border.carry(self._app.cmp.close(row))
            info = (cmp.implicit_confirm(),)
        else:
            now = await self._plane.border.carry(self._app.cmp.find(asked.caller, asked.transaction_id))
            self._open[row.id] = now
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
        row = await self._plane.border.carry(self._app.cmp.find(asked.caller, asked.transaction_id))
        expected = cmp_checks.Expected(transaction_id=asked.transaction_id, nonce=row.nonce)
        cmp_checks.verify_header(asked.message, now=self._app.clock.now(), tolerance=None, expected=expected)
        return row

    async def _confirmed(self, asked: _Asked) -> _Answer:
        row = await self._row(asked)
        confirmed = cmp_requests.read_confirmations(asked.message.body)
        if row.status is not CMPStatus.ISSUED or row.certificate is None or len(confirmed) > 1:
            raise errors.PolicyRefused("message-expected", "no certificate waits for a confirmation")
        if not confirmed or not confirmed[0].accepted:
            await self._plane.border.carry(
                self._app.cmp.reject(asked.caller.client.id, row, "the client did not take its certificate")
            )
        else:
            certificate = await self._plane.border.carry(self._app.cmp.certificate(row))
            cmp_requests.verify_confirmation(confirmed[0], certificate, pvno=asked.message.header.pvno)
            await self._plane.border.carry(self._app.cmp.confirm(asked.caller, row))
        self._open.pop(row.id, None)
        return _Answer(kind=BodyKind.PKICONF, body=cmp_bodies.PKICONF)

    async def _polled(self, asked: _Asked) -> _Answer:
        row, nonce = await self._row(asked), self._nonce()
        if cmp_requests.read_polls(asked.message.body) != (row.request_id,):
            raise errors.PolicyRefused("message-expected", "no request of that certReqId waits")
        answer = await self._plane.border.carry(self._app.cmp.enrol(asked.caller, row, nonce))
        if isinstance(answer, Waiting):
            body = cmp_bodies.poll_response(row.request_id, answer.retry_after, "nobody has looked at it yet")
            return _Answer(kind=BodyKind.POLL_REP, body=body, nonce=nonce)
        return await self._granted(asked, row, answer, nonce, implicit=False)

    async def _gave_up(self, asked: _Asked) -> _Answer:
        row = await self._row(asked)
        told = cmp_requests.read_error(asked.message.body)
        reason = f"the client gave up: {' '.join(told.text)[:200] or told.status.name.lower()}"
        await self._plane.border.carry(self._app.cmp.reject(asked.caller.client.id, row, reason))
        self._open.pop(row.id, None)
        return _Answer(kind=BodyKind.PKICONF, body=cmp_bodies.PKICONF)

    async def _revoked(self, asked: _Asked) -> _Answer:
        (wanted, *more) = cmp_requests.read_revocations(asked.message.body)
        if more:
            raise errors.MalformedRequest("one message revokes one certificate")
        certificate: CertId = wanted.certificate
        because = wanted.reason or ReasonCode.UNSPECIFIED
        if because in (ReasonCode.CERTIFICATE_HOLD, ReasonCode.REMOVE_FROM_CRL):
            raise errors.NotPermitted("a device revokes for good, or not at all")
        try:
            await self._plane.border.carry(
                self._app.confirmations.revoke_own(
                    asked.caller, certificate.issuer, serial_hex(certificate.serial_number), because
                )
            )
            status: PKIStatusInfo = ACCEPTED
        except errors.Refusal as refusal:
            if refusal.retryable:
                raise
            status = rejection(refusal)
        body = cmp_bodies.revocation_response([status], [certificate])
        return _Answer(kind=BodyKind.RP, body=body)

    # --- general messages (RFC 9483 section 4.3)

    async def _told(self, asked: _Asked) -> _Answer:
        await self._plane.require_known(asked.caller)
        infos = cmp.read_info(asked.message.body)
        if len(infos) != 1:
            raise errors.MalformedRequest("one message asks for one thing")
        (info,) = infos
        told: dict[bytes, Callable[[RunContext, InfoTypeAndValue], Awaitable[InfoTypeAndValue]]] = {
            cmp_bodies.CA_CERTS: self._ca_certs,
            cmp_bodies.ROOT_CA_CERT: self._root_update,
            cmp_bodies.CERT_REQ_TEMPLATE: self._template,
            cmp_bodies.CRL_STATUS_LIST: self._crls,
            cmp_bodies.CURRENT_CRL: self._crls,
        }
        if info.info_type not in told:
            raise errors.MalformedRequest(f"nothing is told about {info.info_type.hex()[:80]}")
        context = await self._plane.border.carry(self._app.enrolments.run_of(asked.caller, asked.label))
        answer = await told[info.info_type](context, info)
        return _Answer(kind=BodyKind.GENP, body=cmp_bodies.general_response(answer))

    async def _ca_certs(self, context: RunContext, _info: InfoTypeAndValue) -> InfoTypeAndValue:
        return cmp_bodies.ca_certs(context.chain)

    async def _root_update(self, _context: RunContext, _info: InfoTypeAndValue) -> InfoTypeAndValue:
        return cmp_bodies.root_ca_key_update(None)  # a realm has one root, for ever

    async def _template(self, context: RunContext, _info: InfoTypeAndValue) -> InfoTypeAndValue:
        profile: Profile = context.template.profile
        return cmp_bodies.cert_req_template(CertTemplate(), profile.subject_key_algorithms)

    async def _crls(self, context: RunContext, info: InfoTypeAndValue) -> InfoTypeAndValue:
        licence = context.licence
        found = await self._plane.border.read(self._published, crl_path(licence.authority, licence.partition))
        if info.info_type == cmp_bodies.CURRENT_CRL:
            if found is None:
                raise errors.Unavailable("no CRL is published here")
            return cmp_bodies.current_crl(found)
        newer = found is not None and _is_newer(found, info)
        return cmp_bodies.crls([found] if found is not None and newer else [])

    def _published(self, path: str) -> bytes | None:
        publication = self._app.publication
        if publication is None:
            return None
        with publication.read(path) as octets:
            return None if octets is None else bytes(octets)

    # --- what nobody confirms

    async def begin(self) -> None:
        """Learn what is open, of earlier processes, too, and end what is not confirmed in time."""
        for row in await self._plane.border.carry(self._app.cmp.unconfirmed()):
            self._open[row.id] = row
        self._sweeper = asyncio.create_task(self._sweep())

    async def end(self) -> None:
        """Stop looking."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._sweeper

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                now = self._app.clock.now()
                for name in [row.id for row in self._open.values() if now >= row.expires_at]:
                    await self._plane.border.carry(self._app.cmp.expire(name))
                    del self._open[name]
            except errors.Refusal as refusal:
                log.warning("what was not confirmed is not revoked yet: %s", refusal)
            except Exception:  # the task must not die of what the next round may be without
                log.exception("what was not confirmed is not revoked yet")


def add_cmp(app: FastAPI, edge: CMPEdge) -> None:
    """Add the endpoint to a plane's application; ``edge.begin`` and ``edge.end`` go around its life."""
    base = "/.well-known/cmp"
    for path in (base, f"{base}/{{operation}}", f"{base}/p/{{name}}", f"{base}/p/{{name}}/{{operation}}"):
        app.post(path, response_class=Response, response_model=None)(edge.post)


def _same(message: PKIMessage) -> cmp_checks.Expected:
    """Return what lets any recipNonce pass for now: it is compared when the sender is known."""
    header = message.header
    return cmp_checks.Expected(transaction_id=header.transaction_id or b"", nonce=header.recip_nonce or b"")


def _request_id(message: PKIMessage) -> int:
    """Return the certReqId that an answer has (RFC 9483 section 4.1.4: -1 for PKCS #10)."""
    return -1 if message.kind is BodyKind.P10CR else decode_crmf(message.body).cert_req_id


def _is_newer(found: bytes, info: InfoTypeAndValue) -> bool:
    statuses = cmp_requests.read_crl_statuses(info.value or b"")
    this_update = x509.load_der_x509_crl(found).last_update_utc
    return any(one.this_update is None or one.this_update < this_update for one in statuses)
