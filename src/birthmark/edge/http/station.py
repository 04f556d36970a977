"""The station plane: what stations, bootstrapping devices and operators at the line may ask.

Each endpoint parses, calls a use case, renders.  Every refusal is a problem (RFC 9457) and stands in the log
before it is sent; what cannot be logged is answered 503.
"""

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from pydantic import BaseModel, Field

from birthmark import __version__, errors
from birthmark.edge.application import Application
from birthmark.edge.http import models
from birthmark.edge.http.attestation import attest_request, attest_result
from birthmark.edge.http.border import Border
from birthmark.edge.http.contexts import Admits, everybody
from birthmark.edge.http.delivery import mark, with_keys
from birthmark.edge.http.gate import Gate, answer_refusals
from birthmark.edge.http.hot import HotPath, HotPaths
from birthmark.edge.http.metrics import CLIENT_KEY
from birthmark.edge.http.peer import SCOPE_KEY, peer_certificate
from birthmark.edge.http.problems import HTTP_STATUS, MEDIA_TYPE
from birthmark.edge.http.refusals import Asker, Refusals
from birthmark.edge.http.screening import ScreenedRoute
from birthmark.edge.http.translations import (
    cms_pem,
    commands_of,
    csr_octets,
    dialogue_step,
    inject_request,
    issue_request,
    prove_request,
    prove_result,
)
from birthmark.edge.http.views import device_view, run_view
from birthmark.floor.clients import Client, Credential, Role
from birthmark.floor.devices import DeviceEvent
from birthmark.floor.exposure import Plane
from birthmark.ledger.checkpoint import Checkpoint
from birthmark.ledger.merkle import consistency_proof
from birthmark.pki.certificates import to_pem
from birthmark.secret import SecretBytes
from birthmark.services.acts import ANONYMOUS, Caller, recognise, require_reader
from birthmark.services.disposition import dispose
from birthmark.services.issue import Issued
from birthmark.services.prove import Released

__all__ = ["StationPlane", "create_app"]

SEQ_HEADER = "birthmark-seq"
OPERATOR_HEADER = "birthmark-operator"
FARTHEST_SEQ = 1_000_000
"""How far a request number may lie above the last one seen."""
REMEMBERED_PEERS = 1024
_JSON = "application/json"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

_RUN = r"[A-Za-z0-9._-]{1,64}"
_RunId = Annotated[str, Path(pattern=rf"^{_RUN}$")]
_DeviceId = Annotated[
    str, Path(max_length=100, pattern=r"^[a-z0-9-]+:[!-~]+$", description="Kind and hardware id: vin:…")
]
_Since = Annotated[
    Sequence[Annotated[int, Field(ge=1, lt=2**63)]],
    Query(max_length=4, description="Size of an earlier checkpoint, to have its consistency proved."),
]
_Seen = Annotated[
    int | None,
    Query(ge=1, lt=2**63, description="Size of an earlier checkpoint, to prove that the log grew from it."),
]
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        "description": "Refused.",
    }
    for status in sorted({*HTTP_STATUS.values()})
}


def _responses(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model}, **_PROBLEMS}


class StationPlane:
    """The endpoints, over one application."""

    def __init__(self, application: Application, admits: Admits = everybody) -> None:
        """Serve this application; the connection of who is not (or no longer) welcome ends with a refusal."""
        self._app = application
        self._admits = admits
        self.border = Border(application)
        self.refused = Refusals(application, self.border, asker=self._asker, is_unwelcome=self._is_unwelcome)
        self._peers: dict[bytes, tuple[Client, Credential]] = {}
        self._chain_pem: dict[bytes, str] = {}

    # --- who
    # ----------------------------------------------------------------------------------------------------

    async def caller(self, request: Request) -> Caller:
        """Return who asks; the record decides at the commit whether they still may."""
        client, credential = await self._peer(request)
        seq, operator = await self._number(request), request.headers.get(OPERATOR_HEADER)
        if operator is not None and not _NAME.fullmatch(operator):
            raise errors.MalformedRequest(f"{OPERATOR_HEADER} is the name of an operator")
        if (
            operator is None
            and client.role is Role.STATION
            and self._app.settings.station_plane.require_operator
        ):
            raise errors.NotPermitted(
                f"say who stands at {client.id}: this service asks for {OPERATOR_HEADER}"
            )
        return Caller(
            client=client,
            credential=credential,
            seq=seq,
            operator=operator,
            plane=Plane.STATION,
            rate=self._app.settings.station_plane.client_rate,
        )

    async def _peer(self, request: Request) -> tuple[Client, Credential]:
        peer = peer_certificate(request.scope)
        known = self._peers.get(peer)
        if known is None:
            found = await self.border.carry(recognise(peer))
            known = (found.client, found.credential)
            if len(self._peers) >= REMEMBERED_PEERS:
                self._peers.clear()
            self._peers[peer] = known
        request.scope[CLIENT_KEY] = known[0].id
        return known

    async def _number(self, request: Request) -> int | None:
        """Return the client's number of this request.

        One far above the last would leave the client no numbers for the rest of its life, so it is refused.
        """
        seq, client = _seq(request), (await self._peer(request))[0]
        if seq is None or seq <= client.last_seq + FARTHEST_SEQ:
            return seq
        last = (await self.border.carry(recognise(peer_certificate(request.scope)))).client.last_seq
        if seq > last + FARTHEST_SEQ:
            raise errors.MalformedRequest(f"{SEQ_HEADER} {seq} is too far above {last}, the last one seen")
        return seq

    async def reader(self, request: Request, *, bootstrap: bool = False) -> Client:
        """Return who asks to read, checked against the record now.

        Args:
            request: the request.
            bootstrap: True for what a bootstrap credential may read, too: it needs it to provision.
        """
        found = await self.border.carry(recognise(peer_certificate(request.scope)))
        request.scope[CLIENT_KEY] = found.client.id
        now = self._app.clock.now()
        await self.border.carry(require_reader(found, Plane.STATION, now, bootstrap=bootstrap))
        return found.client

    # --- reading
    # ------------------------------------------------------------------------------------------------

    async def me(self, request: Request) -> Response:
        """Tell the client who it is, and where its request numbers go on."""
        realm, client = self._app.realm, await self.reader(request, bootstrap=True)
        return _json(
            models.Me(
                client=client.id,
                site=client.site,
                line=client.line,
                realm=realm.name,
                environment=realm.environment,
                last_seq=client.last_seq,
                vkey=realm.vkey,
                development=self._app.keys.development,
                max_gang=self._app.settings.station_plane.max_gang,
            )
        )

    async def run(self, request: Request, run: _RunId) -> Response:
        """Show a run and its counters; a bootstrap credential sees those it may provision for."""
        client = await self.reader(request, bootstrap=True)
        return _json(await self.border.carry(run_view(client, run)))

    async def device(self, request: Request, device: _DeviceId) -> Response:
        """Show where a device stands."""
        await self.reader(request)
        return _json(await self.border.carry(device_view(self._app.runs, device)))

    async def token(self, request: Request, device: _DeviceId) -> Response:
        """Return the release token of a released device (C2SP .tlog-proof)."""
        await self.reader(request)
        status = await self.border.carry(device_view(self._app.runs, device))
        if status.release_leaf is None:
            raise errors.NotFound(f"{device} is {status.state}: it has no release token")
        text: str = await self.border.read(self._app.store.token, status.release_leaf)
        return Response(text, media_type="text/plain; charset=utf-8")

    async def checkpoint(self, request: Request, since: _Since = ()) -> Response:
        """Return the log's newest checkpoint, and the proofs that the log only grew since earlier ones."""
        await self.reader(request, bootstrap=True)
        shown: models.Checkpoint = await self.border.read(self._grown, since)
        return _json(shown)

    def _grown(self, since: Sequence[int]) -> models.Checkpoint:
        note = self._app.store.checkpoint()
        return models.Checkpoint(checkpoint=note, consistency=self._consistency(since, _size(note)))

    def _consistency(self, since: Sequence[int], size: int) -> list[models.Consistency]:
        return [
            models.Consistency(
                since=old,
                proof=[
                    base64.b64encode(node).decode()
                    for node in consistency_proof(old, size, self._app.log.node)
                ],
            )
            for old in since
            if old <= size  # whoever saw more sees that there is less now
        ]

    # --- the client itself
    # ----------------------------------------------------------------------------------------------------

    async def renew(self, request: Request, body: models.RenewSelf) -> Response:
        """Certify a new key of the client's; the certificate it has stays good until it ends."""
        caller = await self.caller(request)
        enrolled = await self.border.carry(self._app.renewals.renew(caller, csr_octets(body.csr)))
        return _json(
            models.Renewed(
                client=enrolled.client.id,
                certificate=to_pem(enrolled.certificate.der),
                chain=[to_pem(der) for der in enrolled.chain],
            )
        )

    # --- the transaction
    # ----------------------------------------------------------------------------------------

    async def attest(self, request: Request, run: _RunId, body: models.Attest) -> Response:
        """Ask what a device's TPM has to answer before its certificates are issued."""
        caller = await self.caller(request)
        (result,) = await self.border.carry(self._app.attest(caller, run, [attest_request(body)]))
        if isinstance(result, errors.Refusal):
            raise result
        return _json(attest_result(result))

    async def issue(self, request: Request, run: _RunId, body: models.Issue) -> Response:
        """Admit one device to a run and issue its certificate."""
        caller = await self.caller(request)
        (result,) = await self.border.carry(self._app.issue(caller, run, [issue_request(body)]))
        if isinstance(result, errors.Refusal):
            raise result
        keys: list[SecretBytes] = []
        return with_keys(self._issue_result(result, keys), keys, _JSON)

    async def gang_issue(self, request: Request, run: _RunId, body: models.GangIssue) -> Response:
        """Admit many devices; each succeeds or fails alone."""
        caller = await self.caller(request)
        self._check_gang([item.idempotency_key for item in body.devices])
        results = await self.border.carry(
            self._app.issue(caller, run, [issue_request(item) for item in body.devices])
        )
        keys: list[SecretBytes] = []
        gang = models.GangIssueResult.model_construct(
            results=[
                self.refused.problem(caller.client.id, result)
                if isinstance(result, errors.Refusal)
                else self._issue_result(result, keys)
                for result in results
            ]
        )
        return with_keys(gang, keys, _JSON)

    async def inject(self, request: Request, body: models.Dialogue) -> Response:
        """Carry on the dialogue with one device's secure element, or begin it anew."""
        caller = await self.caller(request)
        (result,) = await self.border.carry(self._app.inject(caller, [inject_request(body)]))
        if isinstance(result, errors.Refusal):
            raise result
        return _json(dialogue_step(result))

    async def gang_inject(self, request: Request, body: models.GangInject) -> Response:
        """Carry on many dialogues; each succeeds or fails alone."""
        caller = await self.caller(request)
        self._check_gang([item.attempt for item in body.dialogues])
        results = await self.border.carry(
            self._app.inject(caller, [inject_request(item) for item in body.dialogues])
        )
        return _json(
            models.GangInjectResult.model_construct(
                results=[
                    self.refused.problem(caller.client.id, result)
                    if isinstance(result, errors.Refusal)
                    else dialogue_step(result)
                    for result in results
                ]
            )
        )

    async def prove(self, request: Request, body: models.Prove, since: _Seen = None) -> Response:
        """Check one device's proof and release it, or hold it."""
        caller = await self.caller(request)
        (result,) = await self.border.carry(self._app.prove(caller, [prove_request(body)]))
        if isinstance(result, errors.Refusal):
            raise result
        growth = await self._growth([result], since)
        return _json(prove_result(result, growth.get(result.token, ())))

    async def gang_prove(self, request: Request, body: models.GangProve, since: _Seen = None) -> Response:
        """Check many proofs; each succeeds or fails alone."""
        caller = await self.caller(request)
        self._check_gang([item.idempotency_key for item in body.proofs])
        results = await self.border.carry(
            self._app.prove(caller, [prove_request(item) for item in body.proofs])
        )
        growth = await self._growth(results, since)
        return _json(
            models.GangProveResult.model_construct(
                results=[
                    self.refused.problem(caller.client.id, result)
                    if isinstance(result, errors.Refusal)
                    else prove_result(result, growth.get(result.token, ()))
                    for result in results
                ]
            )
        )

    async def _growth(
        self, results: Sequence[Released | errors.Refusal], since: int | None
    ) -> Mapping[str, list[models.Consistency]]:
        """Prove that the log only grew, up to the newest checkpoint of these tokens; by one of its tokens."""
        if since is None:
            return {}
        sizes = {
            one.token: _size(one.token.partition("\n\n")[2]) for one in results if isinstance(one, Released)
        }
        if not sizes:
            return {}
        newest = max(sizes, key=sizes.__getitem__)
        return {newest: await self.border.read(self._consistency, (since,), sizes[newest])}

    def disposal(self, event: DeviceEvent) -> Callable[..., Any]:
        """Return the endpoint that holds, reworks or scraps."""

        async def endpoint(request: Request, device: _DeviceId, body: models.Disposal) -> Response:
            caller = await self.caller(request)
            await self.border.carry(
                dispose(caller, device, event, reason=body.reason, key=body.idempotency_key)
            )
            return _json(await self.border.carry(device_view(self._app.runs, device)))

        endpoint.__doc__ = f"{event.capitalize()} a device."
        return endpoint

    def _check_gang(self, keys: list[str]) -> None:
        limit = self._app.settings.station_plane.max_gang
        if len(keys) > limit:
            raise errors.TooLarge(f"a gang has at most {limit} devices, not {len(keys)}")
        if len(set(keys)) != len(keys):
            raise errors.MalformedRequest("two devices of the gang have the same idempotency key")

    def _issue_result(self, issued: Issued, keys: list[SecretBytes]) -> models.IssueResult:
        """Return the body, with marks for the private keys, which are put into ``keys``."""

        def marked(private_key: SecretBytes | None) -> str | None:
            if private_key is None:
                return None
            keys.append(private_key)
            return mark(len(keys) - 1)

        for der in issued.chain:
            if der not in self._chain_pem:
                self._chain_pem[der] = to_pem(der)
        return models.IssueResult.model_construct(
            device=issued.device,
            attempt=issued.attempt,
            state="issued",
            certificate=to_pem(issued.certificate),
            chain=[self._chain_pem[der] for der in issued.chain],
            challenge=base64.b64encode(issued.challenge).decode(),
            private_key=marked(issued.private_key),
            private_key_envelope=cms_pem(issued.envelope),
            further=[
                models.FurtherCertificate.model_construct(
                    profile=one.profile,
                    certificate=to_pem(one.certificate),
                    private_key=marked(one.private_key),
                    private_key_envelope=cms_pem(one.envelope),
                )
                for one in issued.further
            ],
            element=None if issued.element is None else commands_of(issued.element),
        )

    # --- refusing
    # -----------------------------------------------------------------------------------------------

    def _is_unwelcome(self, request: Request, error: Exception) -> bool:
        """Return whether this client would not be let in again: then it has nothing to do in here."""
        if isinstance(error, errors.Unauthenticated):
            return True
        closed = isinstance(error, errors.NotPermitted)
        return closed and self._admits(request.scope.get(SCOPE_KEY, b"") or None) is not None

    async def _asker(self, request: Request) -> Asker:
        actor, seq = ANONYMOUS, None
        with suppress(errors.Unauthenticated):
            actor = (await self._peer(request))[0].id
        with suppress(errors.MalformedRequest, errors.Unauthenticated):
            seq = await self._number(request)
        return Asker(actor=actor, seq=seq)


def _seq(request: Request) -> int | None:
    text = request.headers.get(SEQ_HEADER)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 15 or int(text) < 1:
        raise errors.MalformedRequest(f"{SEQ_HEADER} is a number from 1 up")
    return int(text)


def _size(note: str) -> int:
    """Return how many entries a checkpoint of ours covers."""
    return Checkpoint.from_body(note.partition("\n\n")[0] + "\n").size


def _json(body: BaseModel) -> Response:
    return Response(body.model_dump_json(), media_type=_JSON)


def create_app(
    application: Application,
    *,
    at_end: Callable[[], None] = lambda: None,
    admits: Admits = everybody,
) -> FastAPI:
    """Return the station plane as an ASGI application.

    Args:
        application: what is served, and closed at the end.
        at_end: called before the application closes.
        admits: who is welcome.
    """
    plane = StationPlane(application, admits)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        yield {}
        plane.border.close()
        await asyncio.to_thread(plane.refused.end)
        await asyncio.to_thread(at_end)
        await asyncio.to_thread(application.close)

    app = FastAPI(
        title="Birthmark station plane",
        version=__version__,
        description="Gives each device its identity. Mutual TLS 1.3; refusals are RFC 9457 problems.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # an address is right or wrong
    )
    app.router.route_class = ScreenedRoute
    reads: tuple[tuple[str, Callable[..., Any], type[BaseModel]], ...] = (
        ("/v1/me", plane.me, models.Me),
        ("/v1/runs/{run}", plane.run, models.RunStatusView),
        ("/v1/devices/{device}", plane.device, models.DeviceStatus),
        ("/v1/checkpoint", plane.checkpoint, models.Checkpoint),
    )
    for path, endpoint, model in reads:
        app.get(path, responses=_responses(model), response_class=Response)(endpoint)
    app.get(
        "/v1/devices/{device}/token",
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **_PROBLEMS},
        response_class=Response,
    )(plane.token)
    acts: tuple[tuple[str, Callable[..., Any], type[BaseModel]], ...] = (
        ("/v1/me/certificate", plane.renew, models.Renewed),
        ("/v1/runs/{run}/attest", plane.attest, models.AttestResult),
        ("/v1/runs/{run}/issue", plane.issue, models.IssueResult),
        ("/v1/runs/{run}/gang-issue", plane.gang_issue, models.GangIssueResult),
        ("/v1/inject", plane.inject, models.DialogueStep),
        ("/v1/gang-inject", plane.gang_inject, models.GangInjectResult),
        ("/v1/prove", plane.prove, models.ProveResult),
        ("/v1/gang-prove", plane.gang_prove, models.GangProveResult),
        ("/v1/devices/{device}/hold", plane.disposal(DeviceEvent.HOLD), models.DeviceStatus),
        ("/v1/devices/{device}/rework", plane.disposal(DeviceEvent.REWORK), models.DeviceStatus),
        ("/v1/devices/{device}/scrap", plane.disposal(DeviceEvent.SCRAP), models.DeviceStatus),
    )
    for path, endpoint, model in acts:
        app.post(path, responses=_responses(model), response_class=Response)(endpoint)

    answer_refusals(app, plane.refused)
    limits = application.settings.station_plane
    app.add_middleware(HotPaths, paths=_hot_paths(plane), refused=plane.refused)
    app.add_middleware(
        Gate, limit=limits.max_body_bytes, seconds=limits.request_seconds, refused=plane.refused
    )
    app.state.plane = plane
    _declare_problem(app)
    return app


def _hot_paths(plane: StationPlane) -> list[HotPath]:
    """Return what every device asks."""
    return [
        HotPath(
            path="/v1/runs/{run}/issue",
            parameter=_RUN,
            model=models.Issue,
            answer=lambda request, body, run, _since: plane.issue(request, run, body),
        ),
        HotPath(
            path="/v1/runs/{run}/gang-issue",
            parameter=_RUN,
            model=models.GangIssue,
            answer=lambda request, body, run, _since: plane.gang_issue(request, run, body),
        ),
        HotPath(
            path="/v1/prove",
            parameter="",
            model=models.Prove,
            answer=lambda request, body, _none, since: plane.prove(request, body, since),
            since=True,
        ),
        HotPath(
            path="/v1/gang-prove",
            parameter="",
            model=models.GangProve,
            answer=lambda request, body, _none, since: plane.gang_prove(request, body, since),
            since=True,
        ),
    ]


def _declare_problem(app: FastAPI) -> None:
    """Put the Problem schema into the OpenAPI description, and take FastAPI's own 422 out."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = original()
            components = schema.setdefault("components", {}).setdefault("schemas", {})
            components["Problem"] = models.Problem.model_json_schema(
                ref_template="#/components/schemas/{model}"
            )
            for unused in ("HTTPValidationError", "ValidationError"):
                components.pop(unused, None)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to change the description
