"""JSON is looked at before it is parsed: a small body can be a great many objects.

Octets that cost nothing to send (``[[[[``, ``{},{},``) become objects a hundred times their size, and more
where each of them becomes a complaint of the validator's.  Counting them costs some milliseconds a megabyte.
"""

import re
from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute

from birthmark import errors

__all__ = ["MOST_DEPTH", "MOST_MEMBERS", "MOST_NAMES", "ScreenedRoute", "screen"]

MOST_DEPTH: Final = 16
"""Levels of arrays and objects; the bodies of this interface have six."""
MOST_MEMBERS: Final = 100_000
"""Commas, colons and opening brackets, those within strings too; a gang of 512 elements that answer 128
commands each has about seventy thousand."""
MOST_NAMES: Final = 20_000
"""Colons, likewise; each name that is not expected becomes a complaint of its own."""
_MOST_SIGNS: Final = 200_000
"""Quotation marks, and escapes; a certification request in PEM has one a line."""
_ESCAPED: Final = re.compile(rb"\\.", re.DOTALL)
_STRING: Final = re.compile(rb'"[^"]*"?')
_NO_STRUCTURE: Final = bytes(set(range(256)) - set(b'"[]{}'))


def screen(body: bytes) -> None:
    """Refuse a JSON text (RFC 8259) that would cost much more to read than it cost to write.

    Nothing else is judged: what is no JSON at all is the parser's affair.

    Raises:
        errors.MalformedRequest: it is nested too deeply, has too many members, or is not UTF-8.
    """
    if b"\0" in body:  # in a string it would be escaped (section 7): this is UTF-16 or UTF-32
        raise errors.MalformedRequest("the body is no json in utf-8 (RFC 8259 section 8.1)")
    names, quotes, escapes = map(body.count, (b":", b'"', b"\\"))
    members = names + sum(map(body.count, (b",", b"[", b"{")))
    if members > MOST_MEMBERS or names > MOST_NAMES or max(quotes, escapes) > _MOST_SIGNS:
        raise errors.MalformedRequest(
            f"the body has more than {MOST_MEMBERS} members or {MOST_NAMES} names: send it in parts"
        )
    if b"\\" in body:
        body = _ESCAPED.sub(b"", body)
    depth = 0
    for mark in _STRING.sub(b"", body.translate(None, _NO_STRUCTURE)):
        depth += 1 if mark in b"[{" else -1
        if depth > MOST_DEPTH:
            raise errors.MalformedRequest(f"the body is nested more than {MOST_DEPTH} levels deep")


class _Screened(Request):
    async def json(self) -> Any:
        screen(await self.body())
        return await super().json()


class ScreenedRoute(APIRoute):
    """A route whose JSON bodies are screened before they are parsed."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See FastAPI."""
        handler = super().get_route_handler()

        async def screened(request: Request) -> Response:
            return await handler(_Screened(request.scope, request.receive))

        return screened
