"""Enrollment over Secure Transport, on the device plane (SPEC H1; RFC 7030, 8951, 9908).

A translator: it reads requests, calls the use cases, and writes answers.  The label of a path is the id of a
run, whose licence says which authority issues by which profile; without one the run follows from who asks.

- Bodies are base64 in one line with their length (strongSwan reads no others); requests may have lines, and
  a Content-Transfer-Encoding is ignored (RFC 8951 section 3).
- Who has no certificate shows a one-time code by HTTP Basic, which is never spoken outside TLS (RFC 7030
  section 3.2.3).  A code is good for one request; others are known by their certification request: the same
  one again gets the same answer.
- A challengePassword is compared with the connection's tls-unique (section 3.5).  TLS 1.3 has none, so that
  there a request must not have one: what cannot be verified is not believed.
- Full CMC (section 4.3) and server-generated keys under symmetric keys (section 4.4.1.1) are not spoken.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from hmac import compare_digest
from typing import TypeVar

from fastapi import FastAPI, Request, Response

from birthmark import errors
from birthmark.edge.http.deviceplane import DevicePlaneApp
from birthmark.edge.http.gate import require_media_type
from birthmark.edge.http.identity import ServerIdentity
from birthmark.edge.http.peer import SCOPE_KEY, tls_unique
from birthmark.edge.roots import service_root
from birthmark.pki.est import (
    certs_only,
    challenge_password,
    from_body,
    requested_decryption,
    server_key_parts,
    to_base64,
)
from birthmark.pki.est_attributes import csr_attributes
from birthmark.pki.est_requests import named_device, require_decryptable
from birthmark.pki.keypackage import PackageSigner, package_signer, seal_package
from birthmark.ports import UseCase
from birthmark.services.acts import Caller
from birthmark.services.enrolments import Granted, Waiting
from birthmark.services.issue import IssueRequest
from birthmark.services.recognition import enrolment_key, is_code
from birthmark.services.runs import authorities_above, values_known

__all__ = ["add_est"]

T = TypeVar("T")
_ROOT = "/.well-known/est"
_PKCS10 = "application/pkcs10"
_CERTS_ONLY = "application/pkcs7-mime; smime-type=certs-only"
_CSR_ATTRIBUTES = "application/csrattrs"
_LARGEST = 16_384
"""Octets of a request's body: base64, in lines or PEM, of what ``csr.vet`` looks at."""

_Use = Callable[[Request, Caller], Awaitable[Response]]


def add_est(app: FastAPI, plane: DevicePlaneApp, identity: ServerIdentity) -> None:
    """Put the endpoints of EST on the device plane; ``identity`` signs key packages, if its key can."""
    try:
        signer = package_signer(identity.certificates, identity.sign)
    except errors.MalformedRequest:
        signer = None
    est = _EST(plane, signer)
    for base in (_ROOT, f"{_ROOT}/{{label}}"):
        app.add_route(f"{base}/cacerts", est.cacerts, methods=["GET"])
        app.add_route(f"{base}/csrattrs", est.csrattrs, methods=["GET"])
        app.add_route(f"{base}/simpleenroll", est.simpleenroll, methods=["POST"])
        app.add_route(f"{base}/simplereenroll", est.simplereenroll, methods=["POST"])
        app.add_route(f"{base}/serverkeygen", est.serverkeygen, methods=["POST"])
        app.add_route(f"{base}/fullcmc", est.fullcmc, methods=["POST"])


class _EST:
    """The endpoints."""

    def __init__(self, plane: DevicePlaneApp, signer: PackageSigner | None) -> None:
        self._plane = plane
        self._app = plane.application
        self._signer = signer
        self._service_root: bytes | None = None

    # --- what everybody may know

    async def cacerts(self, request: Request) -> Response:
        """Answer the authorities above a run's certificates, the root too; without a run, all that issue.

        And the root of the service: from this answer a client knows whom it may enrol with (RFC 7030 section
        4.1.3).
        """
        caller = await self._plane.caller(request)
        try:
            context = await self._carry(self._app.enrolments.run_of(caller, _label(request)))
        except errors.NotFound:
            if _label(request) is not None:
                raise
            context = None
        found = await self._carry(authorities_above(context))
        if self._service_root is None:  # it is another only with another certificate, in another process
            self._service_root = (await self._plane.border.read(service_root, self._app)).der
        return _certificates_answer(list(dict.fromkeys([*found, self._service_root])))

    async def csrattrs(self, request: Request) -> Response:
        """Answer what a certification request for a run should hold."""
        caller = await self._plane.caller(request)
        context = await self._carry(self._app.enrolments.run_of(caller, _label(request)))
        profile = context.template.profile
        variables = values_known(profile, context.licence, None if caller is None else caller.client)
        return Response(to_base64(csr_attributes(profile, variables)), media_type=_CSR_ATTRIBUTES)

    async def fullcmc(self, _request: Request) -> Response:
        """Say that it is not there (RFC 7030 section 4.3: it is optional)."""
        raise errors.NotFound("full CMC is not spoken here: simpleenroll is")

    # --- certificates

    async def simpleenroll(self, request: Request) -> Response:
        """Certify the key of a certification request."""
        return await self._known(request, partial(self._certified, renewal=False))

    async def simplereenroll(self, request: Request) -> Response:
        """Replace the certificate that is shown by one of the same names."""
        return await self._known(request, partial(self._certified, renewal=True))

    async def serverkeygen(self, request: Request) -> Response:
        """Make a key, and certify it."""
        return await self._known(request, self._generated)

    async def _certified(self, request: Request, caller: Caller, *, renewal: bool) -> Response:
        csr = await _certification_request(request)
        asked = IssueRequest(
            hardware_id="", csr=csr, key=enrolment_key(caller, "est", csr), keeps_refusal=False
        )
        enrolled = await self._carry(
            self._app.enrolments.enrol(caller, _label(request), asked, renewal=renewal)
        )
        if isinstance(enrolled, Waiting):
            return _waits(enrolled)
        return _certificates_answer([enrolled.certificate])

    async def _generated(self, request: Request, caller: Caller) -> Response:
        csr = await _certification_request(request)
        requested = requested_decryption(csr)
        sealer = None
        if requested is not None:
            require_decryptable(requested, None if is_code(caller.credential) else caller.credential.der)
            if self._signer is None:
                raise errors.PolicyRefused(
                    "envelope-algorithms", "the service's key signs no key package: leave the key to TLS"
                )
            sealer = partial(seal_package, self._signer)
        asked = IssueRequest(
            hardware_id=named_device(csr) or "",
            csr=None,
            key=enrolment_key(caller, "keygen", csr),
            envelope=requested is not None,
            sealer=sealer,
            keeps_refusal=False,
        )
        enrolled = await self._carry(self._app.enrolments.enrol(caller, _label(request), asked))
        return _waits(enrolled) if isinstance(enrolled, Waiting) else self._with_key(enrolled)

    def _with_key(self, granted: Granted) -> Response:
        key = granted.envelope or granted.private_key
        if key is None:
            raise errors.Fault("a key was made, and is not there")
        boundary = self._app.entropy.token(16).hex()
        body = server_key_parts(key, certs_only([granted.certificate]), boundary)
        return Response(
            memoryview(body),
            media_type=f"multipart/mixed; boundary={boundary}",
            headers={"cache-control": "no-store"},
        )

    async def _known(self, request: Request, use: _Use) -> Response:
        """Answer somebody who is known; ask others who they are (RFC 9110 section 11.6.1)."""
        challenge = {"www-authenticate": f'Basic realm="{self._app.realm.name}", charset="UTF-8"'}
        try:
            caller = await self._plane.holder(request)
        except errors.Unauthenticated as refusal:
            if request.scope.get(SCOPE_KEY):
                raise
            answer = await self._plane.refused(request, refusal, status=401)
            if answer.status_code == 401:  # or it could not be put on record
                answer.headers.update(challenge)
            return answer
        if caller is None:
            # A question, which many clients wait for, and no refusal: nothing was asked for by anybody.
            said = "nobody is named: show a certificate, or a name and one-time code\n"
            return Response(said, status_code=401, headers=challenge, media_type="text/plain")
        return await use(request, caller)

    async def _carry(self, use_case: UseCase[T]) -> T:
        return await self._plane.border.carry(use_case)


def _label(request: Request) -> str | None:
    label: str | None = request.path_params.get("label")
    return label


async def _certification_request(request: Request) -> bytes:
    """Return the PKCS #10 (DER) of a request's body, which belongs to this connection if it says so.

    Raises:
        HTTPException: the body is said to be something else.
        errors.Refusal: it is too large, is none, or belongs to another connection (rule ``channel-binding``).
    """
    require_media_type(request, _PKCS10, "the body")
    csr = from_body(await request.body(), _LARGEST)
    password = challenge_password(csr)
    if password is not None:
        binding = tls_unique(request.scope)
        if binding is None:
            raise errors.PolicyRefused(
                "channel-binding", "TLS 1.3 has no tls-unique: leave challengePassword out, or speak TLS 1.2"
            )
        if not compare_digest(to_base64(binding), password.encode("utf-8", "surrogatepass")):
            raise errors.PolicyRefused(
                "channel-binding", "the challengePassword is not the tls-unique of this connection"
            )
    return csr


def _certificates_answer(certificates: list[bytes]) -> Response:
    return Response(to_base64(certs_only(certificates)), media_type=_CERTS_ONLY)


def _waits(waiting: Waiting) -> Response:
    headers = {"retry-after": str(waiting.retry_after)}
    return Response("it waits for a person: ask again\n", 202, headers=headers, media_type="text/plain")
