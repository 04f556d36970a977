"""Run the planes that the settings switch on: a listening socket each, one or more processes behind it.

With several processes the parent only watches: it starts each again if it dies, and passes on SIGTERM and
SIGINT; if it is killed itself, the kernel ends the others.  The processes share the database, not memory;
each opens its own key store after the fork, because a PKCS#11 session does not survive one.  The public plane
has processes of its own, which never open the store of the authorities' keys.
"""

import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from birthmark import errors
from birthmark.edge import hardening
from birthmark.edge.application import Factory
from birthmark.edge.http.board import Board, Desk
from birthmark.edge.http.listeners import RUNS, Run, run_ops
from birthmark.edge.http.metrics import LAYOUT, Meter
from birthmark.edge.http.servicelog import configure_log
from birthmark.floor.exposure import Plane
from birthmark.settings import Settings, TokenKeys

if TYPE_CHECKING:
    from birthmark.edge.http.tracing import Tracing

__all__ = ["serve"]

log = logging.getLogger(__name__)

BACKLOG = 512
RESTART_SECONDS = 0.5
HASTY_SECONDS = 10.0
"""A process that gives up sooner after its start has not served."""
REFUSED_PIN = 77
"""Exit code (EX_NOPERM of sysexits.h) of a process that may not open what it needs; it is not started again:
a token locks after a few wrong PINs."""
STOP_SECONDS = 10.0
"""How long the parent waits for its processes before it kills them."""


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
        errors.NotPermitted: it is not to run as this user; see ``hardening.give_up_root``.
        errors.Refusal: something the settings name cannot be opened.
    """
    configure_log()
    hardening.shut()
    wanted = list(planes or _switched_on(settings))
    served = [plane for plane in wanted if plane is not Plane.OPS]
    if not served:
        raise errors.NotFound("the ops plane watches the planes that are served beside it: name another one")
    works: list[tuple[str, Callable[[Desk], None]]] = []
    for plane in served:
        host, port, count = _place(plane, settings)
        run = RUNS[plane]
        listener = _listen(host, port)
        host, port = listener.getsockname()[:2]
        log.info("%s plane listens", plane, extra={"host": host, "port": port, "realm": settings.realm.name})
        count = processes if processes is not None and plane is Plane.STATION else count
        start = partial(_start, run, factory, settings, listener)
        works += [(f"{plane}-{number}", start) for number in range(1, count + 1)]
    board = Board([name for name, _ in works], LAYOUT)
    begun: list[Callable[[], None]] = [partial(work, board.desk(name)) for name, work in works]
    if Plane.OPS in wanted:
        begun.append(_watch(factory, settings, board))
    hardening.give_up_root(
        settings,
        station=not {Plane.STATION, Plane.ENROLMENT, Plane.DEVICE}.isdisjoint(served),
        gateway=Plane.GATEWAY in served,
        public=Plane.PUBLIC in served,
    )
    if len(begun) == 1 and not isinstance(settings.key_store_table, TokenKeys):
        with suppress(KeyboardInterrupt):  # told to stop before it could listen for that
            begun[0]()
        return 0
    # A process whose token never comes back from a call ends, and somebody has to start another.
    return _supervise(begun)


def _place(plane: Plane, settings: Settings) -> tuple[str, int, int]:
    """Return where a plane listens, and with how many processes."""
    if plane is Plane.ENROLMENT:
        return settings.enrolment_plane.host, settings.enrolment_plane.port, 1
    if plane is Plane.DEVICE:
        return settings.device_plane.host, settings.device_plane.port, settings.device_plane.processes
    if plane is Plane.GATEWAY:
        return settings.gateway_plane.host, settings.gateway_plane.port, settings.gateway_plane.processes
    table = settings.station_plane if plane is Plane.STATION else settings.public_plane
    return table.host, table.port, table.processes


def _switched_on(settings: Settings) -> list[Plane]:
    found = [Plane.STATION] if settings.station_table is not None else []
    found += [Plane.ENROLMENT] if settings.enrolment_table is not None else []
    found += [Plane.DEVICE] if settings.device_table is not None else []
    found += [Plane.GATEWAY] if settings.gateway_table is not None else []
    found += [Plane.PUBLIC] if settings.public_table is not None else []
    if not found:
        raise errors.NotFound(
            "the settings have no [station-plane], [gateway-plane] or [public-plane]: nothing to serve"
        )
    return [*found, Plane.OPS] if settings.ops_table is not None else found


def _start(
    run: Run,
    factory: Callable[[], Factory],
    settings: Settings,
    listener: socket.socket,
    desk: Desk,
) -> None:
    if (why_not := hardening.lock()) is not None:
        log.warning("%s", why_not)
    desk.take()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # until the server takes its signals itself
    spans = _spans(settings)
    try:
        run(factory(), settings, listener, Meter(desk, spans))
    finally:
        if spans is not None:
            spans.close()


def _spans(settings: Settings) -> "Tracing | None":
    if settings.tracing_table is None:
        return None
    from birthmark.edge.http.tracing import Tracing  # noqa: PLC0415  # an extra, which is not everywhere

    return Tracing.open(settings.tracing_table, settings.realm)


def _watch(factory: Callable[[], Factory], settings: Settings, board: Board) -> Callable[[], None]:
    table = settings.ops_plane
    listener = _listen(table.host, table.port)
    host, port = listener.getsockname()[:2]
    log.info("ops plane listens", extra={"host": host, "port": port, "realm": settings.realm.name})
    return lambda: run_ops(factory(), settings, listener, board)


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
            if code == REFUSED_PIN:
                _stop(set(started), signal.SIGTERM)
                return REFUSED_PIN
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
        hardening.end_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        work()
        code = 0
    except errors.Refusal as refusal:
        log.error("%s", refusal)  # noqa: TRY400  # a refusal is told, not traced
        code = REFUSED_PIN if isinstance(refusal, errors.NotPermitted) else code
    except KeyboardInterrupt:
        code = 0  # told to stop before it could listen for that
    except BaseException:
        log.exception("the service failed")
    finally:
        logging.shutdown()
        os._exit(code)
