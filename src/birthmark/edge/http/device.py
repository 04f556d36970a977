"""The device plane: EST and CMP for devices that come by themselves, put together (SPEC H1, H2).

TLS 1.2 and 1.3, the client certificate optional.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Response

from birthmark import __version__
from birthmark.edge.application import Application
from birthmark.edge.http.cmp import CMPEdge, add_cmp
from birthmark.edge.http.contexts import Admits
from birthmark.edge.http.deviceplane import DevicePlaneApp
from birthmark.edge.http.est import add_est
from birthmark.edge.http.gate import Gate, answer_refusals
from birthmark.edge.http.identity import ServerIdentity
from birthmark.edge.http.screening import ScreenedRoute

__all__ = ["create_device_app"]


def create_device_app(
    application: Application,
    admits: Admits,
    identity: ServerIdentity,
    *,
    at_end: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Return the device plane (ASGI).

    Args:
        application: whose realm it is.
        admits: whom to welcome.
        identity: who signs what the plane signs itself.
        at_end: called before the application closes.
    """
    plane = DevicePlaneApp(application, admits)
    cmp = CMPEdge(plane, identity)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[Mapping[str, Any]]:
        await cmp.unconfirmed.begin()
        yield {}
        await cmp.unconfirmed.end()
        plane.border.close()
        await asyncio.to_thread(plane.refused.end)
        await asyncio.to_thread(at_end)
        await asyncio.to_thread(application.close)

    app = FastAPI(
        title="Birthmark device plane",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.router.route_class = ScreenedRoute
    app.get("/v1/proof", response_class=Response, response_model=None)(plane.challenge)
    app.post("/v1/proof", response_class=Response, response_model=None)(plane.prove)
    add_est(app, plane, identity)
    add_cmp(app, cmp)
    answer_refusals(app, plane.refused)
    table = application.settings.device_plane
    app.add_middleware(Gate, limit=table.max_body_bytes, seconds=table.request_seconds, refused=plane.refused)
    return app
