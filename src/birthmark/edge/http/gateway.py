"""The gateway plane: where devices report once they are in the world, and proxies ask about them (SPEC H3).

A device reports with the certificate of its handshake and is told whether it is one of ours, with a token for
the applications behind.  A proxy that ends the devices' TLS itself passes each certificate on and gets the
same decision as headers; it is recognised by a certificate of its own, and from nobody else does such a
header mean anything.  Each endpoint parses, calls the use case and renders: what is decided, the record says.
"""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response

from birthmark import __version__, errors
from birthmark.edge.application import Application
from birthmark.edge.http import models
from birthmark.edge.http.border import Border
from birthmark.edge.http.client_certificates import CLIENT_CERT, NGINX_CERT, client_certificate
from birthmark.edge.http.contexts import Admits, everybody
from birthmark.edge.http.gate import Gate, answer_refusals
from birthmark.edge.http.metrics import CLIENT_KEY
from birthmark.edge.http.peer import opened_seconds_ago, path_above, peer_certificate
from birthmark.edge.http.places import UNKNOWN, place_of
from birthmark.edge.http.refusals import Asker, Refusals
from birthmark.edge.pins import Pins, other_realms
from birthmark.floor.limits import Rate
from birthmark.ledger.entry import time_text
from birthmark.pki.certificates import fingerprint
from birthmark.pki.keys import KeyLabel
from birthmark.secret import SecretBytes
from birthmark.services.acts import Caller, recognise
from birthmark.services.foreign_devices import ForeignDevices, Listed, StatusMissing
from birthmark.services.foreign_status import Answers, Lists, Question, take_answer
from birthmark.services.gateway import Gateway, require_proxy
from birthmark.services.gateway_tokens import Tokens, TokenTerms
from birthmark.services.own_devices import OwnDevices
from birthmark.services.visits import AT_THE_DOOR, TurnedAway, Visit, Welcome

__all__ = ["ADDRESS_HEADER", "OPEN_SECONDS_HEADER", "Ask", "GatewayApp", "create_gateway_app", "tokens_of"]

log = logging.getLogger(__name__)

LARGEST_BODY = 4096
"""Nothing is asked with a body; what a proxy repeats of one is not read."""
ADDRESS_HEADER = "birthmark-address"
"""Where a proxy says from where the device came."""
OPEN_SECONDS_HEADER = "birthmark-open-seconds"
"""Where it says for how long the device's connection has been open: nginx's ``$connection_time``."""
_SECONDS = re.compile(r"[0-9]{1,8}(?:\.[0-9]{1,6})?", re.ASCII)
_WHO = "birthmark.visit"
"""Where the plane leaves what a refusal's entry says of whoever asked."""
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
Ask = Callable[[Question], bytes]
"""Asks a responder and returns what it answers (DER), or raises ``errors.Unavailable``; it blocks."""


def tokens_of(application: Application) -> Tokens | None:
    """Return what gives tokens, as the settings say; None where no key is named.

    Raises:
        errors.NotFound: the key store has no such key.
        errors.MalformedRequest: a key is of an algorithm that signs no tokens.
        errors.Unavailable: the key store does not answer.
    """
    plane = application.settings.gateway_plane
    if not plane.token_keys:
        return None
    terms = TokenTerms(
        keys=tuple(map(KeyLabel, plane.token_keys)),
        audience=plane.audience or application.realm.name,
        life=timedelta(seconds=plane.token_seconds),
    )
    return Tokens(application.realm, application.keys, application.entropy, terms)


class GatewayApp:
    """The endpoints, over one application."""

    def __init__(
        self,
        application: Application,
        pins: Callable[[], Pins],
        tell: Callable[[str], None],
        admits: Admits = everybody,
        *,
        listed: Listed | None = None,
        ask: Ask | None = None,
    ) -> None:
        """Meet devices for this application's realm.

        Args:
            application: whose record decides.
            pins: returns what devices are to pin now.
            tell: told what became of each contact, for the figures.
            admits: the connection of who is not (or no longer) welcome ends with a refusal.
            listed: what this process has of other fleets' revocations; nothing yet if None.
            ask: asks OCSP responders; None for a gateway that asks nobody.
        """
        self._app = application
        self._plane = application.settings.gateway_plane
        self._pins = pins
        self._tell = tell
        self._admits = admits
        self.border = Border(application)
        self._listed = listed or Listed(lists=Lists(), answers=Answers())
        self._ask = ask
        foreign = ForeignDevices(application.clock, application.entropy, self._listed)
        self._gateway = Gateway(
            application.clock, OwnDevices(), foreign, application.confirmations, other_realms(self._plane)
        )
        self._tokens = tokens_of(application)
        self._refusals = Refusals(
            application, self.border, asker=_asker, is_unwelcome=self._is_unwelcome, rate=self._rate
        )

    # --- devices

    async def contact(self, request: Request) -> Response:
        """Let a device in, for the first time or again."""
        visit = Visit(
            certificate=peer_certificate(request.scope),
            path=path_above(request.scope),
            place=place_of(request.client.host if request.client else ""),
            connected_at=self._app.clock.now() - timedelta(seconds=opened_seconds_ago(request.scope)),
        )
        welcome = await self._meet(request, visit)
        pins, realm = self._pins(), self._app.realm
        answer = models.Contact(
            device=welcome.device,
            realm=realm.name,
            environment=realm.environment,
            authority=welcome.authority,
            status="accepted",
            first_seen_at=time_text(welcome.first_seen_at),
            time=time_text(welcome.at),
            token=await self._token(welcome),
            gateway_pin=pins.now,
            next_gateway_pin=pins.next,
            ask_again_seconds=self._plane.ask_again_seconds,
        )
        return Response(
            answer.model_dump_json(), media_type="application/json", headers={"cache-control": "no-store"}
        )

    async def key_set(self, _request: Request) -> Response:
        """Return the keys that tokens are verified with."""
        keys: Mapping[str, Any] = {"keys": []} if self._tokens is None else self._tokens.key_set
        return Response(models.KeySet(**keys).model_dump_json(), media_type="application/jwk-set+json")

    # --- proxies

    async def authorise(self, request: Request) -> Response:
        """Tell a proxy whether the device of a certificate is accepted."""
        caller: Caller = await self.border.carry(recognise(peer_certificate(request.scope)))
        request.scope[CLIENT_KEY] = caller.client.id
        request.scope[_WHO] = Asker(actor=caller.client.id)
        now = self._app.clock.now()
        await self.border.carry(require_proxy(caller, now))
        place = place_of(_only(request, ADDRESS_HEADER) or "")
        if place == UNKNOWN:
            raise errors.MalformedRequest(f"{ADDRESS_HEADER} is the address of the device")
        visit = Visit(
            certificate=client_certificate(_only(request, CLIENT_CERT), _only(request, NGINX_CERT)),
            path=(),
            place=place,
            connected_at=now - timedelta(seconds=_open_seconds(request)),
            actor=caller.client.id,
        )
        welcome = await self._meet(request, visit)
        headers = {
            "birthmark-device": welcome.device,
            "birthmark-realm": self._app.realm.name,
            "birthmark-authority": welcome.authority,
            "cache-control": "no-store",
        }
        token = await self._token(welcome)
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        return Response(status_code=HTTPStatus.NO_CONTENT, headers=headers)

    # --- what both do

    async def _meet(self, request: Request, visit: Visit) -> Welcome:
        said = {"address": visit.place, "certificate_sha256": fingerprint(visit.certificate)}
        request.scope[_WHO] = Asker(actor=visit.actor, said=said)
        try:
            welcome = await self._judged(visit)
        except TurnedAway as refusal:
            self._tell(refusal.rule)
            if refusal.device:
                request.scope[_WHO] = Asker(actor=visit.actor, said={"device": refusal.device, **said})
            raise
        except errors.Refusal:
            self._tell("other")
            raise
        request.scope.setdefault(CLIENT_KEY, welcome.device)
        self._tell("first-seen" if welcome.first else "accepted")
        return welcome

    async def _judged(self, visit: Visit) -> Welcome:
        """Judge a visit; once more, if what was missing could be had."""
        try:
            first: Welcome = await self.border.carry(self._gateway.meet(visit))
        except StatusMissing as missing:
            if not await self._answered(missing):
                raise
        else:
            return first
        again: Welcome = await self.border.carry(self._gateway.meet(visit))
        return again

    async def _answered(self, missing: StatusMissing) -> bool:
        """Ask OCSP responders about a path; return whether each of them answered."""
        ask, now = self._ask, self._app.clock.now()
        if ask is None or not missing.questions:
            return False
        try:
            for question in missing.questions:
                octets = await asyncio.to_thread(ask, question)
                take_answer(self._listed.answers, question, octets, now)
        except errors.Refusal as refusal:
            log.warning("an OCSP responder gave no answer to rely on: %s", refusal)
            return False
        return True

    async def _token(self, welcome: Welcome) -> str | None:
        if self._tokens is None:
            return None
        given: SecretBytes = await self.border.carry(self._tokens.give(welcome))
        return given.reveal().decode("ascii")

    # --- refusals

    async def refused(self, request: Request, error: Exception, status: int | None = None) -> Response:
        """Put a refusal on record and answer it; of a device that is turned away with 403.

        Proxies take 403 for no, and any other status for a fault of ours (nginx's auth_request).
        """
        if isinstance(error, TurnedAway):
            status = HTTPStatus.FORBIDDEN
        return await self._refusals(request, error, status)

    def end(self) -> None:
        """Put on record what waits, at the end of the service.  Blocks."""
        self._refusals.end()

    def _rate(self, actor: str) -> Rate:
        return self._plane.refusal_rate if actor == AT_THE_DOOR else self._plane.proxy_rate

    def _is_unwelcome(self, request: Request, error: Exception) -> bool:
        asker: Asker | None = request.scope.get(_WHO)
        if asker is not None and asker.actor == AT_THE_DOOR:
            return isinstance(error, errors.Refusal) and not error.retryable
        if isinstance(error, errors.Unauthenticated):
            return True
        return self._admits(peer_certificate(request.scope)) is not None


async def _asker(request: Request) -> Asker:
    found: Asker | None = request.scope.get(_WHO)
    if found is not None:
        return found
    place = place_of(request.client.host if request.client else "")
    return Asker(actor=AT_THE_DOOR, said={"address": place})


def _only(request: Request, name: str) -> str | None:
    """Return a field, None if it is not there; one that comes twice may be a client's and the proxy's."""
    found = request.headers.getlist(name)
    if len(found) > 1:
        raise errors.MalformedRequest(f"{name} stands there {len(found)} times: strip what clients send")
    return found[0] if found else None


def _open_seconds(request: Request) -> float:
    """Return for how long the device's connection has been open; nothing said is: since now."""
    said = _only(request, OPEN_SECONDS_HEADER)
    if said is None:
        return 0.0
    if _SECONDS.fullmatch(said) is None:
        raise errors.MalformedRequest(f"{OPEN_SECONDS_HEADER} is a number of seconds, like 12.345")
    return float(said)


def create_gateway_app(
    application: Application,
    *,
    pins: Callable[[], Pins],
    tell: Callable[[str], None] = lambda _outcome: None,
    at_end: Callable[[], None] = lambda: None,
    admits: Admits = everybody,
    listed: Listed | None = None,
    ask: Ask | None = None,
) -> FastAPI:
    """Return the gateway plane (ASGI); ``at_end`` is called before the application closes."""
    plane = GatewayApp(application, pins, tell, admits, listed=listed, ask=ask)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        yield {}
        plane.border.close()
        await asyncio.to_thread(plane.end)
        await asyncio.to_thread(at_end)
        await asyncio.to_thread(application.close)

    app = FastAPI(
        title="Birthmark gateway plane",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.post("/v1/contact", response_class=Response, response_model=None)(plane.contact)
    app.get("/v1/status", response_class=Response, response_model=None)(plane.contact)
    # Envoy's ext_authz asks with the path of the request it holds behind its own prefix, and with its method.
    for path, methods in (("/v1/authorise", ["GET", "POST"]), ("/v1/authorise/{rest:path}", _METHODS)):
        app.api_route(path, methods=methods, response_class=Response, response_model=None)(plane.authorise)
    app.get("/.well-known/jwks.json", response_class=Response, response_model=None)(plane.key_set)
    answer_refusals(app, plane.refused)
    seconds = application.settings.gateway_plane.request_seconds
    app.add_middleware(Gate, limit=LARGEST_BODY, seconds=seconds, refused=plane.refused)
    return app
