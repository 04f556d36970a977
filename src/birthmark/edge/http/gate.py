"""Around an application: bodies that are too large or do not come, faults that nobody foresaw, refusals."""

import asyncio
from typing import Protocol, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from birthmark import errors

__all__ = ["Gate", "Refused", "answer_refusals", "require_media_type"]


class Refused(Protocol):
    """Puts a refusal, or a fault of ours, on record and makes the answer."""

    async def __call__(self, request: Request, error: Exception, status: int | None = None) -> Response:
        """See the class; ``status`` is that of an error of HTTP itself."""
        ...


class Gate:
    """Refuses a body that is too large or does not come, before it is in memory, and answers our faults."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float, refused: Refused) -> None:
        """Wait so many seconds for bodies of so many octets; ``refused`` makes the answers."""
        self._app = app
        self._limit = limit
        self._seconds = seconds
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        left, more, started = self._limit, True, False
        too_large = errors.TooLarge(f"a request body has at most {self._limit} octets")
        deadline = asyncio.get_running_loop().time() + self._seconds

        async def limited() -> Message:
            nonlocal left, more
            if not more:  # all of it is here: what comes next is the end of the connection, whenever
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise errors.MalformedRequest(f"the body did not arrive within {self._seconds:g} s") from None
            left -= len(message.get("body", b""))
            more = message.get("more_body", False)
            if left < 0:
                raise too_large
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        length = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            if length.isdigit() and int(length) > self._limit:
                raise too_large
            await self._app(scope, limited, watched)
        except errors.TooLarge as refusal:
            response = await self._refused(Request(scope, receive), refusal)
            response.headers["connection"] = "close"
            await response(scope, receive, send)
        except Exception as fault:
            # Beyond us the server would log it a second time and drop the connection.
            if started:
                raise
            response = await self._refused(Request(scope, receive), fault)
            await response(scope, receive, send)


def answer_refusals(app: FastAPI, refused: Refused) -> None:
    """Have all that an application refuses, or the framework for it, answered by ``refused``."""

    async def on_refusal(request: Request, error: Exception) -> Response:
        return await refused(request, error)

    async def on_invalid(request: Request, error: Exception) -> Response:
        return await refused(request, _malformed(cast("RequestValidationError", error)))

    async def on_http_error(request: Request, error: Exception) -> Response:
        failure = cast("HTTPException", error)
        if isinstance(failure.__cause__, errors.Refusal):  # raised while the body was read
            response = await refused(request, failure.__cause__)
            response.headers["connection"] = "close"  # nobody is going to read the rest
            return response
        refusal: errors.Refusal = errors.MalformedRequest(
            f"{request.method} {request.url.path[:100]}: {failure.detail}"
        )
        if failure.status_code == 404:
            refusal = errors.NotFound(f"there is no {request.url.path[:100]}")
        response = await refused(request, refusal, status=failure.status_code)
        response.headers.update(
            failure.headers or {}
        )  # Allow, which a 405 must have (RFC 9110 section 15.5.6)
        return response

    app.add_exception_handler(errors.Refusal, on_refusal)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_error)


def _malformed(error: RequestValidationError) -> errors.MalformedRequest:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first.get("loc", ()))
    return errors.MalformedRequest(f"{place}: {first.get('msg', 'invalid')}"[:500])


def require_media_type(request: Request, expected: str, what: str) -> None:
    """Refuse a body that is said to be something else; parameters such as a charset are passed over.

    Raises:
        HTTPException: 415 (RFC 9110 section 15.5.16); ``what`` says what the body is.
    """
    shown = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if shown != expected:
        raise HTTPException(415, f"{what} is {expected}, not {shown[:60] or 'of no type'}")
