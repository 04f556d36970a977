"""Run the station plane: one listening socket, one or more processes behind it.

With several processes the parent only watches: it starts each again if it dies, and passes on SIGTERM and
SIGINT.  The processes share the database, not memory; each opens its own key store after the fork, because a
PKCS#11 session does not survive one.
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
from collections.abc import Callable

import structlog
import uvicorn

from birthmark import errors
from birthmark.edge.application import Application, Factory
from birthmark.edge.http.peer import protocol, server_context
from birthmark.edge.http.station import create_app
from birthmark.ports import carry
from birthmark.services.acts import ANONYMOUS, record_refusal
from birthmark.settings import Settings

__all__ = ["serve"]

log = logging.getLogger(__name__)

PR_SET_DUMPABLE = 4
BACKLOG = 512
FLUSH_SECONDS = 1.0
RESTART_SECONDS = 0.5


def serve(factory: Callable[[], Factory], settings: Settings, *, processes: int | None = None) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code.

    Raises:
        errors.Unavailable: the address cannot be bound.
        errors.Refusal: something the settings name cannot be opened.
    """
    _configure_log()
    _forbid_core_dumps()
    plane = settings.station_plane
    listener = _listen(plane.host, plane.port)
    host, port = listener.getsockname()[:2]
    log.info("station plane listens", extra={"host": host, "port": port, "realm": settings.realm.name})
    count = processes or plane.processes
    if count == 1:
        _run(factory(), settings, listener)
        return 0
    return _supervise(lambda: _run(factory(), settings, listener), count)


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
    listener.set_inheritable(True)
    return listener


def _run(factory: Factory, settings: Settings, listener: socket.socket) -> None:
    """Build the application and serve it on the socket until told to stop."""
    application = factory.build(settings)
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
        create_app(application),
        http=protocol(refusals.note),
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
    uvicorn.Server(config).run(sockets=[listener])


class _RefusedHandshakes:
    """Puts failed handshakes on record: the first at once, a flood of them as one entry a second."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._counts: dict[str, int] = {}
        self._busy = False

    def note(self, reason: str) -> None:
        """Note one, on the loop's thread."""
        if len(self._counts) < 100 or reason in self._counts:
            self._counts[reason] = self._counts.get(reason, 0) + 1
        if not self._busy:
            self._busy = True
            asyncio.get_running_loop().create_task(self._flush())

    async def _flush(self) -> None:
        while self._counts:
            counts, self._counts = self._counts, {}
            for reason, count in counts.items():
                refusal = errors.Unauthenticated(reason)
                use_case = record_refusal(ANONYMOUS, "handshake", {"count": count}, refusal)
                try:
                    await asyncio.to_thread(carry, self._application.store, use_case)
                except errors.Refusal as unrecorded:
                    # The handshake was refused all the same; it goes on record when the store is back.
                    self._counts[reason] = self._counts.get(reason, 0) + count
                    log.warning("refused handshakes wait to be recorded: %s", unrecorded)
            await asyncio.sleep(FLUSH_SECONDS)
        self._busy = False


def _supervise(work: Callable[[], None], count: int) -> int:
    """Keep ``count`` processes working until told to stop."""
    children: set[int] = set()
    stopping = False

    def stop(signum: int, _frame: object) -> None:
        nonlocal stopping
        stopping = True
        for child in children:
            os.kill(child, signum)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    failed_at_start = 0
    while children or not stopping:
        while not stopping and len(children) < count:
            children.add(_fork(work))
        started = time.monotonic()
        child, status = os.wait()
        children.discard(child)
        if stopping:
            continue
        log.error(
            "a process of the station plane died",
            extra={"pid": child, "code": os.waitstatus_to_exitcode(status)},
        )
        failed_at_start = failed_at_start + 1 if time.monotonic() - started < RESTART_SECONDS else 0
        if failed_at_start > 3 * count:
            log.error("the station plane cannot start")
            stop(signal.SIGTERM, None)
            return 70
        time.sleep(RESTART_SECONDS)
    return 0


def _fork(work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    code = 70
    try:
        work()
        code = 0
    except errors.Refusal as refusal:
        log.error("%s", refusal)  # noqa: TRY400  # a refusal is told, not traced
    except BaseException:
        log.exception("the station plane failed")
    finally:
        logging.shutdown()
        os._exit(code)


def _forbid_core_dumps() -> None:
    """Keys in memory must not reach a disk that way (SPEC B7)."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def _configure_log() -> None:
    """One JSON object a line on standard error: for operators, not auditors."""
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
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
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
