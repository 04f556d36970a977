"""Run the planes that the settings switch on: a listening socket each, one or more processes behind it.

With several processes the parent only watches: it starts each again if it dies, and passes on SIGTERM and
SIGINT; if it is killed itself, the kernel ends the others.  The processes share the database, not memory;
each opens its own key store after the fork, because a PKCS#11 session does not survive one.  The public plane
has processes of its own, which never open the store of the authorities' keys.
"""

import asyncio
import logging
import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import uvicorn

from birthmark import errors
from birthmark.edge import hardening
from birthmark.edge.application import Application, Factory, PublicApplication
from birthmark.edge.http.board import Board, Desk
from birthmark.edge.http.direct import public_protocol
from birthmark.edge.http.enrolment import anonymous_context, create_enrolment_app
from birthmark.edge.http.exposure import ExposureView
from birthmark.edge.http.limits import Cause, Door, Limits, Told, allow_descriptors
from birthmark.edge.http.lookout import Lookout
from birthmark.edge.http.metrics import LAYOUT, CountedAnswering, Meter, ObservedApp, counted, measure_process
from birthmark.edge.http.ops import OpsPlaneApp
from birthmark.edge.http.peer import protocol, server_context
from birthmark.edge.http.public import PublicPlane
from birthmark.edge.http.refusals import rate_of
from birthmark.edge.http.servicelog import configure_log
from birthmark.edge.http.station import create_app
from birthmark.edge.http.tally import Tally
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.pki.keys import KeyLabel
from birthmark.ports import carry
from birthmark.services.acts import ANONYMOUS, recognise, record_refusal
from birthmark.settings import Settings, TokenKeys

if TYPE_CHECKING:
    from birthmark.edge.http.tracing import Tracing

__all__ = ["Plane", "serve"]

log = logging.getLogger(__name__)

_Seen = tuple[type[errors.Refusal], str, bytes]
"""Class and text of a refusal, and the certificate (DER) of who got it."""
_Built = TypeVar("_Built", Application, PublicApplication)
BACKLOG = 512
DISTINCT_REFUSALS = 100
FLUSH_SECONDS = 1.0
RESTART_SECONDS = 0.5
RETRY_SECONDS = 2.0
"""How often a process that begins tries again what is away: its database, say."""
HASTY_SECONDS = 10.0
"""A process that gives up sooner after its start has not served."""
BEAT_TICKS = 10
MEASURE_TICKS = 100
"""After so many tenths of a second a process shows that it lives, and how large it is."""
REFUSED_PIN = 77
"""Exit code (EX_NOPERM of sysexits.h) of a process that may not open what it needs; it is not started again:
a token locks after a few wrong PINs."""
STOP_SECONDS = 10.0
"""How long the parent waits for its processes before it kills them."""


class Plane(StrEnum):
    """One listener."""

    STATION = "station"
    ENROLMENT = "enrolment"
    """Lets stations in that were invited."""
    PUBLIC = "public"
    OPS = "ops"
    """Watches the processes of the others."""


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
        run = _RUNS[plane]
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
        station=not {Plane.STATION, Plane.ENROLMENT}.isdisjoint(served),
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
    table = settings.station_plane if plane is Plane.STATION else settings.public_plane
    return table.host, table.port, table.processes


def _switched_on(settings: Settings) -> list[Plane]:
    found = [Plane.STATION] if settings.station_table is not None else []
    found += [Plane.ENROLMENT] if settings.enrolment_table is not None else []
    found += [Plane.PUBLIC] if settings.public_table is not None else []
    if not found:
        raise errors.NotFound(
            "the settings have neither [station-plane] nor [public-plane]: nothing to serve"
        )
    return [*found, Plane.OPS] if settings.ops_table is not None else found


def _start(
    run: Callable[[Factory, Settings, socket.socket, Meter], None],
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


def _when_it_can(build: Callable[[], _Built], meter: Meter) -> _Built:
    """Build an application as soon as what it needs is there; until then the line is held.

    A disk that is full, a database server that is away: the same, and said in the same words, as when it
    happens later.  Nothing is listened to meanwhile; who connects waits.

    Raises:
        errors.Refusal: it cannot be built, and waiting does not mend it.
    """
    told = ""
    while True:
        try:
            return build()
        except errors.Unavailable as away:
            meter.desk.beat()
            meter.desk.note({"waits": str(away)})
            if str(away) != told:
                told = str(away)
                log.error("the line is held from the start: %s", told)  # noqa: TRY400  # told, not traced
        time.sleep(RETRY_SECONDS)


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
    return lambda: _run_ops(factory(), settings, listener, board)


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


def _run(factory: Factory, settings: Settings, listener: socket.socket, meter: Meter) -> None:
    """Build the application and serve it on the socket until told to stop."""
    plane = settings.station_plane
    allow_descriptors(plane.max_connections)
    application = _when_it_can(lambda: factory.build(settings, observer=meter), meter)
    _require_log_key(application)
    application.watch_keys()
    refusals, note_refused = _refused_handshakes(application, meter)
    lookout = None if settings.ops_table is None else Lookout(application, meter.desk, settings.ops_table)

    exposures = ExposureView(application.store, application.log, application.clock, Plane.STATION)

    def at_end() -> None:
        if lookout is not None:
            lookout.stop()
        exposures.stop()
        refusals.record_all(last=True)

    context = server_context(
        plane.certificate_file,
        plane.key_file,
        factory.read_secret(plane.key_passphrase_file),
        plane.client_ca_file,
        note_refused,
        exposures.admits,
    )
    config = _config(
        ObservedApp(create_app(application, at_end=at_end, admits=exposures.admits), meter),
        counted(
            protocol(
                note_refused, plane.request_seconds, plane.answer_seconds, plane.max_connections_per_client
            ),
            meter,
        ),
        keep_alive_seconds=plane.keep_alive_seconds,
    )
    limits = Limits(
        connections=plane.max_connections,
        per_address=plane.max_connections_per_address,
        handshakes=plane.max_handshakes,
        handshake_seconds=plane.handshake_seconds,
        answer_seconds=plane.answer_seconds,
    )
    if lookout is not None:
        lookout.start()
    exposures.start()
    _Server(config, limits, meter.desk, note_refused, context).run(sockets=[listener])


def _run_enrolment(factory: Factory, settings: Settings, listener: socket.socket, meter: Meter) -> None:
    """Build the application and let stations in on the socket until told to stop."""
    table, plane = settings.enrolment_plane, settings.station_plane
    allow_descriptors(table.max_connections)
    application = _when_it_can(lambda: factory.build(settings, observer=meter), meter)
    _require_log_key(application)
    application.watch_keys()
    refusals, note_refused = _refused_handshakes(application, meter)
    exposures = ExposureView(application.store, application.log, application.clock, Plane.ENROLMENT)

    def at_end() -> None:
        exposures.stop()
        refusals.record_all(last=True)

    context = anonymous_context(
        plane.certificate_file,
        plane.key_file,
        factory.read_secret(plane.key_passphrase_file),
        plane.client_ca_file,
        note_refused,
        exposures.admits,
    )
    config = _config(
        ObservedApp(create_enrolment_app(application, at_end=at_end), meter, "enrolment"),
        counted(protocol(note_refused, table.request_seconds, plane.answer_seconds, 0), meter),
        keep_alive_seconds=table.request_seconds,
    )
    limits = Limits(
        connections=table.max_connections,
        per_address=table.max_connections_per_address,
        handshakes=table.max_connections,
        handshake_seconds=table.handshake_seconds,
        answer_seconds=plane.answer_seconds,
    )
    exposures.start()
    _Server(config, limits, meter.desk, note_refused, context).run(sockets=[listener])


def _run_public(factory: Factory, settings: Settings, listener: socket.socket, meter: Meter) -> None:
    """Build what the public plane needs and serve it on the socket until told to stop."""
    table = settings.public_plane
    allow_descriptors(table.max_connections)
    application = _when_it_can(lambda: factory.build_public(settings), meter)
    limits = Limits(
        connections=table.max_connections,
        per_address=table.max_connections_per_address,
        answer_seconds=table.request_seconds,
    )
    try:
        plane = PublicPlane(application)
        if plane.answering is not None:
            plane.answering = CountedAnswering(plane.answering, meter)
        config = _config(
            ObservedApp(plane, meter, "public"),
            counted(
                public_protocol(table.request_seconds, plane.answering, application.clock, table.prefix),
                meter,
            ),
            keep_alive_seconds=15,
            lifespan="off",
        )
        _Server(config, limits, meter.desk).run(sockets=[listener])
        plane.close()
    finally:
        application.close()


def _run_ops(factory: Factory, settings: Settings, listener: socket.socket, board: Board) -> None:
    """Show the board until told to stop."""
    table, clock = settings.ops_plane, factory.clock()
    config = _config(
        OpsPlaneApp(board, settings, clock),
        public_protocol(table.request_seconds, None, clock, ""),
        keep_alive_seconds=75,
        lifespan="off",
        stop_seconds=1,
    )
    limits = Limits(connections=table.max_connections, answer_seconds=table.request_seconds)
    _Server(config, limits, None).run(sockets=[listener])


def _config(
    app: Any,
    http: type[asyncio.Protocol],
    *,
    keep_alive_seconds: int,
    lifespan: Literal["on", "off"] = "on",
    stop_seconds: int = 3,
) -> uvicorn.Config:
    """Return how uvicorn serves an application (ASGI 3) by this protocol; doors, TLS and log are ours."""
    return uvicorn.Config(
        app,
        http=http,
        loop="uvloop",
        ws="none",
        lifespan=lifespan,
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=keep_alive_seconds,
        timeout_graceful_shutdown=stop_seconds,
    )


_RUNS = {Plane.STATION: _run, Plane.ENROLMENT: _run_enrolment, Plane.PUBLIC: _run_public}


def _require_log_key(application: Application) -> None:
    """Refuse to begin what could not be logged (SPEC E4); a token that cannot be reached may come yet.

    Raises:
        errors.NotFound: the key store has no such key.
        errors.IntegrityFailure: it has another one than the log is signed with.
    """
    label = KeyLabel(application.settings.log.key)
    try:
        public = application.keys.public_key(label)
    except errors.Unavailable as down:
        log.error("the line is held from the start: %s", down)  # noqa: TRY400  # a refusal is told, not traced
        return
    if not public.endswith(VerifierKey.parse(application.realm.vkey).public):
        raise errors.IntegrityFailure(f"the key {label} is not the one this log is signed with")


class _Server(uvicorn.Server):
    """uvicorn behind our own doors; told to stop it ends with exit code 0, not by the signal once more."""

    def __init__(
        self,
        config: uvicorn.Config,
        limits: Limits,
        desk: Desk | None,
        told: Told = lambda _cause, _refusal, _peer: None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(config)
        self._limits, self._desk, self._told, self._context = limits, desk, told, context

    async def on_tick(self, counter: int) -> bool:
        """See uvicorn: it is called ten times a second as long as the event loop goes round."""
        if self._desk is not None and counter % BEAT_TICKS == 0:
            self._desk.beat()
            if counter % MEASURE_TICKS == 0:
                measure_process(self._desk)
        return await super().on_tick(counter)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        welcome: Callable[[], asyncio.Protocol] = partial(
            cast("Callable[..., asyncio.Protocol]", self.config.http_protocol_class),
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        for listener in sockets or []:
            door = Door(
                listener=listener,
                welcome=welcome,
                limits=self._limits,
                told=self._told,
                context=self._context,
            )
            self.servers.append(door.open())  # type: ignore[arg-type]  # as far as uvicorn uses one

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self.handle_exit)
        yield


def _refused_handshakes(application: Application, meter: Meter) -> tuple[Tally[_Seen], Told]:
    """Count what is refused before it is a request: failed handshakes, and what is not HTTP.

    The first is recorded at once, a flood of them as one entry a second.

    Returns:
        The tally, and what is told of each.
    """
    store = application.store

    def record(seen: _Seen, count: int, last: bool) -> None:  # noqa: FBT001  # see Tally
        kind, reason, peer = seen
        actor = ANONYMOUS
        if peer:
            with suppress(errors.Unauthenticated):  # it chains to the root and is no client: a device's, say
                actor = carry(store, recognise(peer)).client.id
        what = "handshake" if not peer and issubclass(kind, errors.Unauthenticated) else "connection"
        rate = None if last else rate_of(application.settings, actor)
        told = record_refusal(actor, what, {"count": count}, kind(reason), rate=rate)
        carry(store, told)

    tally: Tally[_Seen] = Tally(record, first_seconds=0, seconds=FLUSH_SECONDS)

    def note(cause: Cause, refusal: errors.Refusal, peer: bytes) -> None:
        meter.handshake_refused(cause)
        seen: _Seen = (type(refusal), str(refusal), peer)
        if len(tally) >= DISTINCT_REFUSALS and seen not in tally:
            seen = (errors.Unauthenticated, "more kinds of refusal than are told apart", b"")
        tally.note(seen)

    return tally, note


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
