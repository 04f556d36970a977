"""What every device asks, answered past the framework, whose routing and validation cost more than the work.

``HotPaths`` stands before an application that has the same routes.  Here a request goes only if it is
exactly as programs write it: this path, JSON, a body that is right.  Everything else, and whatever is to be
refused for its form, is the application's, which gets the body as if nobody had read it: so there is one
answer to it, and one description.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fastapi import Request, Response
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from birthmark import errors
from birthmark.edge.http.gate import Refused
from birthmark.edge.http.screening import screen

__all__ = ["HotPath", "HotPaths"]

_JSON: Final = b"application/json"
_SINCE: Final = re.compile(rb"since=([1-9][0-9]{0,17})")


@dataclass(frozen=True, slots=True, kw_only=True)
class HotPath:
    """One of them."""

    path: str
    """As the application's route has it; one parameter at most."""
    parameter: str
    """What the parameter looks like (a regular expression); empty where there is none."""
    model: type[BaseModel]
    """Of the body."""
    answer: Callable[[Request, Any, str, int | None], Awaitable[Response]]
    """Answers the body; gets the parameter, and the size of a checkpoint that the client knows."""
    since: bool = False
    """The query may name such a size."""

    @property
    def name(self) -> str:
        """Of the parameter."""
        return self.path.partition("{")[2].partition("}")[0]

    @property
    def pattern(self) -> re.Pattern[str]:
        """What its paths look like."""
        return re.compile(re.sub(r"\{\w+\}", lambda _found: f"({self.parameter})", self.path))


class HotPaths:
    """An ASGI application before another."""

    def __init__(self, app: ASGIApp, paths: Sequence[HotPath], refused: Refused) -> None:
        """Answer these paths, and leave the others to ``app``; ``refused`` makes the answers of refusals."""
        self._app = app
        self._paths = [(one.path.rpartition("/")[2], one.pattern, one) for one in paths]
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        found = self._find(scope)
        if found is None:
            await self._app(scope, receive, send)
            return
        hot, parameter, since = found
        scope["route"] = hot
        scope["path_params"] = {hot.name: parameter} if hot.parameter else {}
        request = Request(scope, receive)
        read: list[Message] = []
        try:
            body = await _body(receive, read)
            asked = None if body is None else _asked(hot.model, body)
            if asked is None:
                await self._app(scope, _again(read, receive), send)
                return
        except errors.Refusal as refusal:
            response = await self._refused(request, refusal)
            response.headers["connection"] = "close"  # nobody is going to read the rest
        else:
            try:
                response = await hot.answer(request, asked, parameter, since)
            except errors.Refusal as refusal:
                response = await self._refused(request, refusal)
        await response(scope, receive, send)

    def _find(self, scope: Scope) -> tuple[HotPath, str, int | None] | None:
        if scope["type"] != "http" or scope["method"] != "POST":
            return None
        if not any(name == b"content-type" and value == _JSON for name, value in scope["headers"]):
            return None
        path: str = scope["path"]
        last = path.rpartition("/")[2]
        for name, pattern, hot in self._paths:
            if name == last and (match := pattern.fullmatch(path)) is not None:
                known, since = _known(scope["query_string"], hot)
                return (hot, match[1] if hot.parameter else "", since) if known else None
        return None


def _known(query: bytes, hot: HotPath) -> tuple[bool, int | None]:
    """Return whether a query is one that is answered here, and what it names."""
    if not query:
        return True, None
    named = _SINCE.fullmatch(query) if hot.since else None
    return named is not None, None if named is None else int(named[1])


async def _body(receive: Receive, read: list[Message]) -> bytes | None:
    """Return a body, and keep what it came in; None if the client went away."""
    while True:
        message = await receive()
        read.append(message)
        if message["type"] != "http.request":
            return None
        if not message.get("more_body", False):
            return b"".join([one.get("body", b"") for one in read])


def _asked(model: type[BaseModel], body: bytes) -> BaseModel | None:
    """Return what a body says; None if it is not as it should be, which others tell."""
    try:
        screen(body)
        return model.model_validate_json(body)
    except (errors.MalformedRequest, ValidationError):
        return None


def _again(read: list[Message], receive: Receive) -> Receive:
    """Return what gives the messages that were read once more, and then those that come."""
    left = iter(read)

    async def again() -> Message:
        for message in left:
            return message
        return await receive()

    return again
