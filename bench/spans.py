"""A server that times its own parts: ``python -m bench.spans SETTINGS RESULT WARM_UP``.

The same ``serve`` as ever, with a stopwatch around the functions named below; the program itself knows
nothing of it.  Parts nest (``PARTS`` says in what), so a part's own time is its total less its children's.
With one request at a time, which is how the profile asks, wall-clock totals add up across the event loop and
the commit train's thread.  A name that is gone from the program is an error here, not a hole in the table.

The first WARM_UP requests do not count.  On SIGTERM the result (JSON) is written: a list for each part, of
calls and seconds.
"""

import functools
import inspect
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from birthmark import app, settings
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.adapters.sql import postgresql, sqlite, store
from birthmark.edge.http import border, listeners, serve, station
from birthmark.pki import issuance
from birthmark.services import certifying, issue, prove

__all__ = ["PARTS"]

PARTS: Final = {
    # part: (what it is part of, what it is)
    "http": ("request", "HTTP/1.1: parse the request (httptools)"),
    "asgi": ("request", "FastAPI: routing, JSON, pydantic"),
    "answer": ("asgi", "HTTP/1.1: write the answer; TLS encrypt"),
    "endpoint": ("asgi", "endpoint: await, wake the event loop"),
    "caller": ("endpoint", "recognise the client"),
    "think": ("endpoint", "the use case around what follows"),
    "vet": ("think", "CSR: read, verify its signature, judge the key"),
    "fill": ("think", "certificate: fill the template"),
    "permit": ("think", "certificate: lint the bytes to sign"),
    "sign": ("think", "certificate: sign (ECDSA P-256)"),
    "reparse": ("think", "certificate: remember it for the proof to come"),
    "verify": ("think", "proof: verify the device's signature"),
    "token": ("think", "release token: inclusion proof and checkpoint"),
    "commit": ("endpoint", "to the commit train's thread and back"),
    "train": ("commit", "train: working set, rows, leaves"),
    "fetch": ("train", "store: lock the head, fetch the facts"),
    "decide": ("train", "store: decide, encode the entries"),
    "append": ("train", "log: hash, grow the tree"),
    "checkpoint": ("append", "log: sign the checkpoint (Ed25519)"),
    "write": ("train", "store: write, commit, wait for the disk"),
    "render": ("endpoint", "render the answer (PEM, pydantic, JSON)"),
}
"""Every part that is timed; ``request`` is what the client sees."""

_seconds: Final = dict.fromkeys(PARTS, 0.0)
_calls: Final = dict.fromkeys(PARTS, 0)


def _count(part: str, begun: float) -> None:
    # One request at a time: no two threads are ever in the same part.
    _seconds[part] += time.perf_counter() - begun
    _calls[part] += 1


def _time(owner: Any, name: str, part: str | Callable[..., str]) -> None:
    """Put a stopwatch around a function; ``part`` may depend on its arguments."""
    timed = inspect.getattr_static(owner, name)
    function: Callable[..., Any] = timed.__func__ if isinstance(timed, staticmethod) else timed

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def watch(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return await function(*arguments, **named)
            finally:
                _count(part if isinstance(part, str) else part(*arguments), begun)

    else:

        @functools.wraps(function)
        def watch(*arguments: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                _count(part if isinstance(part, str) else part(*arguments), begun)

    setattr(owner, name, staticmethod(watch) if isinstance(timed, staticmethod) else watch)


def install() -> None:
    """Put all stopwatches in place."""
    for endpoint in ("issue", "gang_issue", "prove", "gang_prove"):
        _time(station.StationPlane, endpoint, "endpoint")
    _time(station.StationPlane, "caller", "caller")
    _time(station.StationPlane, "_issue_result", "render")
    _time(station, "_json", "render")
    _time(border, "_advance", "think")
    _time(certifying, "vet", "vet")
    _time(issuance.Template, "fill", "fill")
    _time(certifying, "permit", "permit")
    _time(SoftwareKeyStore, "sign", lambda _, label, *__: "checkpoint" if label == "log" else "sign")
    _time(issue.IssueDevices, "_issued", "reparse")
    _time(prove, "verify_proof", "verify")
    _time(vars(store)["_Committed"], "token", "token")
    _time(store.SQLStore, "_train", "train")
    _time(store.SQLStore, "_decide", "decide")
    _time(store.SQLStore, "_append", "append")
    for database in (sqlite.SQLite, postgresql.PostgreSQL):
        _time(database, "begin", "fetch")
        _time(database, "commit", "write")
    submit = store.SQLStore.submit

    def submit_timed(self: store.SQLStore, acts: Any) -> Any:
        begun = time.perf_counter()
        future = submit(self, acts)
        future.add_done_callback(lambda _: _count("commit", begun))
        return future

    store.SQLStore.submit = submit_timed  # type: ignore[method-assign]


def _around(create_app: Callable[..., Any], warm_up: int) -> Callable[..., Any]:
    """Return a ``create_app`` whose application is timed as a whole, and forgets its first requests."""

    def create(application: Any, **named: Any) -> Any:
        inner, requests = create_app(application, **named), 0

        async def timed(scope: Any, receive: Any, send: Any) -> None:
            nonlocal requests
            if scope["type"] != "http":
                await inner(scope, receive, send)
                return
            requests += 1
            if requests == warm_up + 1:
                for part in PARTS:
                    _seconds[part], _calls[part] = 0.0, 0

            async def answer(message: Any) -> None:
                begun = time.perf_counter()
                await send(message)
                _count("answer", begun)

            begun = time.perf_counter()
            try:
                await inner(scope, receive, answer)
            finally:
                _count("asgi", begun)

        return timed

    return create


def main() -> None:
    """Serve until SIGTERM, then write what was counted."""
    path, result, warm_up = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    install()
    names = vars(listeners)
    names["create_app"] = _around(names["create_app"], warm_up)
    names["protocol"] = _http_timed(names["protocol"])
    signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again once it has stopped
    serve.serve(lambda: app, settings.load(path), processes=1)
    result.write_text(json.dumps({part: [_calls[part], _seconds[part]] for part in PARTS}))


def _http_timed(protocol: Callable[..., Any]) -> Callable[..., Any]:
    def make(*arguments: Any, **options: Any) -> Any:
        made = protocol(*arguments, **options)
        _time(made, "data_received", "http")
        return made

    return make


if __name__ == "__main__":
    main()
