"""Run the planes that the settings switch on: a listening socket each, one or more processes behind it.

With several processes the parent only watches: it starts each again if it dies, and passes on SIGTERM and
SIGINT; if it is killed itself, the kernel ends the others.  The processes share the database, not memory;
each opens its own key store after the fork, because a PKCS#11 session does not survive one.  The public plane
has processes of its own, which never open the store of the authorities' keys.
"""

import asyncio
import ctypes
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from functools import partial
from typing import Any

import structlog
import uvicorn

from birthmark import errors
from birthmark.edge.application import Application, Factory
from birthmark.edge.http.direct import public_protocol
from birthmark.edge.http.peer import protocol, server_context
from birthmark.edge.http.public import PublicPlane
from birthmark.edge.http.station import create_app
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.pki.keys import KeyLabel
from birthmark.ports import carry
from birthmark.services.acts import ANONYMOUS, recognise, record_refusal
from birthmark.settings import Settings

__all__ = ["Plane", "configure_log", "serve"]

log = logging.getLogger(__name__)
_Event = MutableMapping[str, Any]

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
BACKLOG = 512
DISTINCT_REFUSALS = 100
FLUSH_SECONDS = 1.0
RESTART_SECONDS = 0.5
HASTY_SECONDS = 10.0
"""A process that gives up sooner after its start has not served."""
STOP_SECONDS = 10.0
"""How long the parent waits for its processes before it kills them."""


class Plane(StrEnum):
    """One listener."""

    STATION = "station"
    PUBLIC = "public"


def serve(
    factory: Callable[[], Factory],
    settings: Settings,
    *,
    processes: int | None = None,
    planes: Collection[Plane] = (),
) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code.

    Args:
        factory: imports and returns what builds applications.
        settings: of this host.
        processes: of the station plane; as the settings say if None.
        planes: which; if empty, all that the settings have.

    Raises:
        errors.NotFound: the settings do not have such a plane, or none.
        errors.Unavailable: an address cannot be bound.
        errors.Refusal: something the settings name cannot be opened.
    """
    configure_log()
    _forbid_core_dumps()
    works: list[Callable[[], None]] = []
    for plane in planes or _switched_on(settings):
        table = settings.station_plane if plane is Plane.STATION else settings.public_plane
        run = _run if plane is Plane.STATION else _run_public
        listener = _listen(table.host, table.port)
        host, port = listener.getsockname()[:2]
        log.info("%s plane listens", plane, extra={"host": host, "port": port, "realm": settings.realm.name})
        count = processes if processes is not None and plane is Plane.STATION else table.processes
        works += [partial(_start, run, factory, settings, listener)] * count
    if len(works) == 1:
        works[0]()
        return 0
    return _supervise(works)


def _switched_on(settings: Settings) -> list[Plane]:
    found = [Plane.STATION] if settings.station_table is not None else []
    found += [Plane.PUBLIC] if settings.public_table is not None else []
    if not found:
        raise errors.NotFound(
            "the settings have neither [station-plane] nor [public-plane]: nothing to serve"
        )
    return found


def _start(
    run: Callable[[Factory, Settings, socket.socket], None],
    factory: Callable[[], Factory],
    settings: Settings,
    listener: socket.socket,
) -> None:
    run(factory(), settings, listener)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as cause:
        listener.close()
        raise errors.Unavailable(f"cannot listen on {host}:{port}: {cause.strerror}") from cause
    listener.listen(BACKLOG)
    return listener


def _run(factory: Factory, settings: Settings, listener: socket.socket) -> None:
    """Build the application and serve it on the socket until told to stop."""
    application = factory.build(settings)
    _require_log_key(application)
    plane = settings.station_plane
    refusals = _RefusedHandshakes(application)
    context = server_context(
        plane.certificate_file,
        plane.key_file,
        factory.read_secret(plane.key_passphrase_file),
        plane.client_ca_file,
        refusals.note,
    )
    config = uvicorn.Config(
        create_app(application, at_end=refusals.record_all),
        http=protocol(refusals.note, plane.request_seconds),
        loop="uvloop",
        ws="none",
        lifespan="on",
        ssl_context_factory=lambda _config, _default: context,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=None,
    )
    _Server(config).run(sockets=[listener])


def _run_public(factory: Factory, settings: Settings, listener: socket.socket) -> None:
    """Build what the public plane needs and serve it on the socket until told to stop."""
    application, table = factory.build_public(settings), settings.public_plane
    try:
        plane = PublicPlane(application)
        config = uvicorn.Config(
            plane,
            http=public_protocol(table.request_seconds, plane.answering, application.clock, table.prefix),
            loop="uvloop",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=table.max_connections,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=3,
            h11_max_incomplete_event_size=None,
        )
        _Server(config).run(sockets=[listener])
        plane.close()
    finally:
        application.close()


def _require_log_key(application: Application) -> None:
    """Refuse to begin what could not be logged (SPEC E4).

    Raises:
        errors.NotFound: the key store has no such key.
        errors.IntegrityFailure: it has another one than the log is signed with.
    """
    label = KeyLabel(application.settings.log.key)
    if not application.keys.public_key(label).endswith(VerifierKey.parse(application.realm.vkey).public):
        raise errors.IntegrityFailure(f"the key {label} is not the one this log is signed with")


class _Server(uvicorn.Server):
    """uvicorn, but told to stop it ends with exit code 0 and not by the signal a second time."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self.handle_exit)
        yield


class _RefusedHandshakes:
    """Puts on record what is refused before it is a request: failed handshakes, and what is not HTTP.

    The first at once, a flood of them as one entry a second.
    """

    def __init__(self, application: Application) -> None:
        self._application = application
        self._counts: dict[tuple[str, bytes], int] = {}
        self._busy = False

    def note(self, reason: str, peer: bytes) -> None:
        """Note one, on the loop's thread; *peer* is the verified certificate, if it came so far."""
        seen = (reason, peer)
        if len(self._counts) >= DISTINCT_REFUSALS and seen not in self._counts:
            seen = ("more kinds of refusal than are told apart", b"")
        self._counts[seen] = self._counts.get(seen, 0) + 1
        if not self._busy:
            self._busy = True
            asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        try:
            while self._counts:
                await asyncio.to_thread(self.record_all)
                await asyncio.sleep(FLUSH_SECONDS)
        finally:
            self._busy = False

    def record_all(self) -> None:
        """Put on record what waits; what cannot be recorded now waits on."""
        counts, self._counts = self._counts, {}
        for (reason, peer), count in counts.items():
            try:
                self._record(reason, peer, count)
            except errors.Refusal as unrecorded:
                # The peer was refused all the same; it goes on record when the store is back.
                self._counts[reason, peer] = self._counts.get((reason, peer), 0) + count
                log.warning("refused handshakes wait to be recorded: %s", unrecorded)

    def _record(self, reason: str, peer: bytes, count: int) -> None:
        store, actor = self._application.store, ANONYMOUS
        if not peer:
            refusal: errors.Refusal = errors.Unauthenticated(reason)
            carry(store, record_refusal(actor, "handshake", {"count": count}, refusal))
            return
        with suppress(errors.Unauthenticated):  # it chains to the root and is no client: a device's, say
            actor = carry(store, recognise(peer)).client.id
        refusal = errors.MalformedRequest(reason)
        carry(store, record_refusal(actor, "connection", {"count": count}, refusal))


def _supervise(works: Sequence[Callable[[], None]]) -> int:
    """Keep a process at each of these works until told to stop."""
    # Signals are taken when we ask for them: none can come between a fork and our knowing of the child.
    awaited = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    started: dict[int, tuple[float, int]] = {}
    failed_at_start, count = 0, len(works)
    while True:
        for number in sorted(set(range(count)) - {number for _, number in started.values()}):
            started[_fork(works[number])] = (time.monotonic(), number)
        signum = signal.sigwait(awaited)
        if signum != signal.SIGCHLD:
            return _stop(set(started), signum)
        for child, code in _ended():
            lived = time.monotonic() - started.pop(child)[0]
            log.error("a process of the service died", extra={"pid": child, "code": code})
            # Killed by a signal (code below 0) it may have been the machine's fault; ended, it was its own.
            failed_at_start = failed_at_start + 1 if code >= 0 and lived < HASTY_SECONDS else 0
        if failed_at_start > 3 * count:
            log.error("the service cannot start")
            _stop(set(started), signal.SIGTERM)
            return 70
        signum_or_none = signal.sigtimedwait({signal.SIGTERM, signal.SIGINT}, RESTART_SECONDS)
        if signum_or_none is not None:
            return _stop(set(started), signum_or_none.si_signo)


def _ended() -> Iterator[tuple[int, int]]:
    """Take leave of the children that have ended: process id and exit code."""
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if child == 0:
            return
        yield child, os.waitstatus_to_exitcode(status)


def _stop(children: set[int], signum: int) -> int:
    """End the processes, first politely."""
    deadline = time.monotonic() + STOP_SECONDS
    for child in children:
        os.kill(child, signum)
    while children:
        for child, _code in _ended():
            children.discard(child)
        left = deadline - time.monotonic()
        if children and (left <= 0 or signal.sigtimedwait({signal.SIGCHLD}, left) is None):
            log.error("processes of the service do not stop", extra={"pids": sorted(children)})
            for child in children:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
            return 70
    return 0


def _fork(work: Callable[[], None]) -> int:
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        _end_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        work()
        code = 0
    except errors.Refusal as refusal:
        log.error("%s", refusal)  # noqa: TRY400  # a refusal is told, not traced
    except KeyboardInterrupt:
        code = 0  # told to stop before it could listen for that
    except BaseException:
        log.exception("the service failed")
    finally:
        logging.shutdown()
        os._exit(code)


def _end_with(parent: int) -> None:
    """Have the kernel end this process when its parent dies: nobody else would know of it any more."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(70)


def _forbid_core_dumps() -> None:
    """Keys in memory must not reach a disk that way (SPEC B7)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def configure_log() -> None:
    """One JSON object a line on standard error: for operators, not auditors."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            _without_colours,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


def _without_colours(_logger: object, _method: str, event: _Event) -> _Event:
    event.pop("color_message", None)  # uvicorn's second copy of the message, for terminals
    return event
