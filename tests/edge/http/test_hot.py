"""What is answered past the framework; everything else gets there as if nobody had looked (SPEC C10)."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from fastapi import Request, Response
from pydantic import BaseModel, ConfigDict

from birthmark import errors
from birthmark.edge.http.hot import HotPath, HotPaths

JSON = (b"content-type", b"application/json")
RIGHT = b'{"name":"D1"}'


class Asked(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str


async def answered(request: Request, body: Asked, parameter: str, since: int | None) -> Response:
    if body.name == "refused":
        raise errors.NotFound("there is none")
    assert request.path_params == ({"run": parameter} if parameter else {}), "the service's log says it"
    return Response(f"hot {body.name} {parameter} {since} {request.url.path}")


async def refused(request: Request, error: Exception, status: int | None = None) -> Response:
    assert request.method == "POST"
    return Response(str(error), status or 404)


HOT = (
    HotPath(path="/runs/{run}/issue", parameter="[A-Z0-9]{1,8}", model=Asked, answer=answered),
    HotPath(path="/prove", parameter="", model=Asked, answer=answered, since=True),
)


async def framework(_scope: Any, receive: Any, send: Any) -> None:
    """Say what came."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            body += b"(left)"
            break
        body += message.get("body", b"")
        more = message.get("more_body", False)
    await Response(b"framework " + body)(_scope, receive, send)


def ask(
    path: str,
    *parts: bytes | Exception | None,
    method: str = "POST",
    query: bytes = b"",
    headers: Sequence[tuple[bytes, bytes]] = (JSON,),
) -> tuple[int, bytes, dict[bytes, bytes]]:
    """Ask; ``None`` among the parts is a client that leaves."""
    scope = {
        "type": "http", "method": method, "path": path, "query_string": query, "headers": list(headers),
        "server": ("localhost", 443), "scheme": "https",
    }  # fmt: skip
    left, said = list(parts), list[Any]()

    async def receive() -> Any:
        part = left.pop(0)
        if isinstance(part, Exception):
            raise part
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    async def send(message: Any) -> None:
        said.append(message)

    asyncio.run(HotPaths(framework, HOT, refused)(scope, receive, send))
    body = b"".join(one.get("body", b"") for one in said[1:])
    return said[0]["status"], body, dict(said[0]["headers"])


@pytest.mark.parametrize(
    ("path", "query", "told"),
    [
        ("/runs/R1/issue", b"", b"hot D1 R1 None /runs/R1/issue"),
        ("/prove", b"", b"hot D1  None /prove"),
        ("/prove", b"since=17", b"hot D1  17 /prove"),
    ],
)
def test_a_request_as_programs_write_it_is_answered_at_once(path: str, query: bytes, told: bytes) -> None:
    assert ask(path, RIGHT, query=query)[:2] == (200, told)
    assert ask(path, RIGHT[:3], RIGHT[3:5], RIGHT[5:], query=query)[:2] == (200, told), "in parts, too"


@pytest.mark.parametrize(
    ("path", "body", "how"),
    [
        ("/runs/R1/issue", RIGHT, {"method": "PUT"}),
        ("/runs/r1/issue", RIGHT, {}),
        ("/runs/R1/R2/issue", RIGHT, {}),
        ("/runs/R1/issue\n", RIGHT, {}),
        ("/runs/R1/issue/", RIGHT, {}),
        ("/runs/R1/issue", RIGHT, {"query": b"since=1"}),
        ("/prove", RIGHT, {"query": b"since=0"}),
        ("/prove", RIGHT, {"query": b"since=1&since=2"}),
        ("/prove", RIGHT, {"query": b"since=1%30"}),
        ("/prove", RIGHT, {"headers": ()}),
        ("/prove", RIGHT, {"headers": ((b"content-type", b"application/json; charset=latin-1"),)}),
        ("/prove", b"", {}),
        ("/prove", b"{", {}),
        ("/prove", b'{"name":7}', {}),
        ("/prove", b'{"name":"D1","more":1}', {}),
        ("/prove", b'{"name":"\xff"}', {}),
        ("/prove", b"[" * 99 + b"]" * 99, {}),
        ("/prove", '{"name":"D1"}'.encode("utf-16"), {}),
    ],
)
def test_everything_else_is_the_frameworks(path: str, body: bytes, how: dict[str, Any]) -> None:
    assert ask(path, body, **how)[:2] == (200, b"framework " + body)
    assert ask(path, body[:1], body[1:], **how)[:2] == (200, b"framework " + body)


def test_a_client_that_leaves_is_the_frameworks_too() -> None:
    assert ask("/prove", RIGHT[:4], None)[:2] == (200, b"framework " + RIGHT[:4] + b"(left)")


def test_what_the_use_case_refuses_is_told_and_the_connection_goes_on() -> None:
    status, told, headers = ask("/prove", b'{"name":"refused"}')
    assert (status, told) == (404, b"there is none")
    assert b"connection" not in headers


def test_what_is_refused_while_it_is_read_ends_the_connection() -> None:
    status, told, headers = ask("/prove", RIGHT[:4], errors.MalformedRequest("it did not arrive"))
    assert (status, told, headers[b"connection"]) == (404, b"it did not arrive", b"close")
