"""The enrolment plane: where a station comes in that has only an address and a one-time code (SPEC C2).

TLS 1.3 without a client certificate, two endpoints.  The root is given to everyone who gets so far: a station
compares it with the fingerprint in its code, and shows the other half of the code to nobody it has not
verified so.  The plane lets nobody finish a handshake unless some code is good.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response

from birthmark import __version__
from birthmark.edge.addresses import station_plane_url
from birthmark.edge.application import Application
from birthmark.edge.http import models
from birthmark.edge.http.border import Border
from birthmark.edge.http.gate import Gate, answer_refusals
from birthmark.edge.http.places import place_of
from birthmark.edge.http.refusals import Asker, Refusals
from birthmark.edge.http.screening import ScreenedRoute
from birthmark.edge.http.translations import csr_octets
from birthmark.edge.roots import device_roots, service_root
from birthmark.pki.certificates import to_pem
from birthmark.secret import SecretBytes
from birthmark.services.authorise import Enrolled

__all__ = ["EnrolmentApp", "create_enrolment_app"]

LARGEST_BODY = 32_768


class EnrolmentApp:
    """The endpoints, over one application."""

    def __init__(self, application: Application) -> None:
        """Let stations into this application's realm."""
        self._app = application
        self.border = Border(application)
        self.refused = Refusals(
            application, self.border, asker=_stranger, is_unwelcome=lambda _request, _error: True
        )

    async def root(self) -> Response:
        """Say who signs for the service."""
        found = await self.border.read(service_root, self._app)
        return _json(models.ServiceRoot(root=to_pem(found.der)))

    async def join(self, request: Request, body: models.Join) -> Response:
        """Let a station in by its code, or answer it once more."""
        code = SecretBytes(bytes.fromhex(body.code))
        enrolled = await self.border.carry(
            self._app.invitations.join(code, csr_octets(body.csr), _network(request))
        )
        joined: models.Joined = await self.border.read(self._joined, enrolled)
        return _json(joined)

    def _joined(self, enrolled: Enrolled) -> models.Joined:
        return models.Joined(
            name=enrolled.client.name,
            certificate=to_pem(enrolled.certificate.der),
            chain=[to_pem(der) for der in enrolled.chain],
            device_anchors="".join(to_pem(root.der) for root in device_roots(self._app)),
            vkey=self._app.realm.vkey,
            url=station_plane_url(self._app.settings),
        )


async def _stranger(request: Request) -> Asker:
    return Asker(said={"address": _network(request)})


def _network(request: Request) -> str:
    return place_of(request.client.host if request.client else "")


def _json(body: Any) -> Response:
    return Response(body.model_dump_json(), media_type="application/json")


def create_enrolment_app(application: Application, *, at_end: Callable[[], None] = lambda: None) -> FastAPI:
    """Return the enrolment plane (ASGI); ``at_end`` is called before the application closes."""
    plane = EnrolmentApp(application)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        yield {}
        plane.border.close()
        await asyncio.to_thread(plane.refused.end)
        await asyncio.to_thread(at_end)
        await asyncio.to_thread(application.close)

    app = FastAPI(
        title="Birthmark enrolment plane",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = ScreenedRoute
    app.get("/v1/root", response_class=Response, response_model=None)(plane.root)
    app.post("/v1/stations/join", response_class=Response, response_model=None)(plane.join)
    answer_refusals(app, plane.refused)
    seconds = application.settings.enrolment_plane.request_seconds
    app.add_middleware(Gate, limit=LARGEST_BODY, seconds=seconds, refused=plane.refused)
    return app
