"""What one process does for one plane: build the application, let clients in by our own doors, serve.

``serve`` starts and watches these processes; each of them runs one of the functions here until it is told to
stop.
"""

import asyncio
import logging
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, cast

import uvicorn

from birthmark import errors
from birthmark.edge.application import Application, Factory, PublicApplication
from birthmark.edge.http.board import Board, Desk
from birthmark.edge.http.contexts import anonymous, optional, server_context
from birthmark.edge.http.device import create_device_app
from birthmark.edge.http.direct import public_protocol
from birthmark.edge.http.enrolment import create_enrolment_app
from birthmark.edge.http.exposure import ExposureView
from birthmark.edge.http.gateway import create_gateway_app
from birthmark.edge.http.gateway_view import GatewayView
from birthmark.edge.http.identity import ServerIdentity
from birthmark.edge.http.limits import Cause, Door, Limits, Told, allow_descriptors
from birthmark.edge.http.lookout import Lookout
from birthmark.edge.http.metrics import CountedAnswering, Meter, ObservedApp, counted, measure_process
from birthmark.edge.http.ops import OpsPlaneApp
from birthmark.edge.http.peer import protocol
from birthmark.edge.http.public import PublicPlane
from birthmark.edge.http.refusals import rate_of
from birthmark.edge.http.station import create_app
from birthmark.edge.http.tally import Tally
from birthmark.floor.authorities import Authority
from birthmark.floor.exposure import Plane
from birthmark.floor.limits import Rate
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.pki.keys import KeyLabel
from birthmark.ports import carry
from birthmark.services.acts import ANONYMOUS, recognise, record_refusal
from birthmark.services.foreign_devices import Listed
from birthmark.services.foreign_status import Answers, Lists
from birthmark.settings import Settings

__all__ = ["RUNS", "Run", "run_ops"]

log = logging.getLogger(__name__)

Run = Callable[[Factory, Settings, socket.socket, Meter], None]
_Seen = tuple[type[errors.Refusal], str, bytes]
"""Class and text of a refusal, and the certificate (DER) of who got it."""
_Built = TypeVar("_Built", Application, PublicApplication)
DISTINCT_REFUSALS = 100
FLUSH_SECONDS = 1.0
RETRY_SECONDS = 2.0
"""How often a process that begins tries again what is away: its database, say."""
BEAT_TICKS = 10
MEASURE_TICKS = 100
"""After so many tenths of a second a process shows that it lives, and how large it is."""


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


class _Table(Protocol):
    """What the settings say of the door of a plane with TLS; each plane's table has it."""

    @property
    def request_seconds(self) -> int: ...
    @property
    def answer_seconds(self) -> int: ...
    @property
    def keep_alive_seconds(self) -> int: ...
    @property
    def handshake_seconds(self) -> int: ...
    @property
    def max_connections(self) -> int: ...
    @property
    def max_connections_per_address(self) -> int: ...
    @property
    def max_connections_per_client(self) -> int: ...
    @property
    def max_handshakes(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """What every plane with TLS has: its application, who is welcome, who hears of refusals at the door."""

    application: Application
    exposures: ExposureView
    refusals: Tally[_Seen]
    told: Told
    meter: Meter

    def end(self) -> None:
        """Put on record what waits, before the application is closed."""
        self.exposures.stop()
        self.refusals.record_all(last=True)

    def serve(
        self,
        listener: socket.socket,
        app: Any,
        table: _Table,
        context: ssl.SSLContext | Callable[[], ssl.SSLContext],
        *,
        several_roots: bool = False,
    ) -> None:
        """Serve an application (ASGI 3) on the socket until told to stop."""
        spoken = protocol(
            self.told,
            table.request_seconds,
            table.answer_seconds,
            table.max_connections_per_client,
            several_roots=several_roots,
        )
        config = _config(app, counted(spoken, self.meter), keep_alive_seconds=table.keep_alive_seconds)
        limits = Limits(
            connections=table.max_connections,
            per_address=table.max_connections_per_address,
            handshakes=table.max_handshakes,
            handshake_seconds=table.handshake_seconds,
            answer_seconds=table.answer_seconds,
        )
        self.exposures.start()
        _Server(config, limits, self.meter.desk, self.told, context).run(sockets=[listener])


def _open(
    factory: Factory,
    settings: Settings,
    meter: Meter,
    plane: Plane,
    table: _Table,
    rate: Callable[[str], Rate] | None = None,
) -> _Opened:
    """Build the application of a plane with TLS, as soon as what it needs is there; see ``_when_it_can``."""
    allow_descriptors(table.max_connections)
    application = _when_it_can(lambda: factory.build(settings, observer=meter), meter)
    _require_log_key(application)
    application.watch_keys()
    refusals, told = _refused_handshakes(application, meter, rate)
    exposures = ExposureView(application.store, application.log, application.clock, plane)
    return _Opened(application=application, exposures=exposures, refusals=refusals, told=told, meter=meter)


def _context(
    factory: Factory, settings: Settings, opened: _Opened, anchors: Path | Sequence[bytes] | None = None
) -> ssl.SSLContext:
    """Return a context with the station plane's certificate; ``anchors`` are the realm's root if left out."""
    plane = settings.station_plane
    return server_context(
        plane.certificate_file,
        plane.key_file,
        factory.read_secret(plane.key_passphrase_file),
        plane.client_ca_file if anchors is None else anchors,
        opened.told,
        opened.exposures.admits,
    )


def _run(factory: Factory, settings: Settings, listener: socket.socket, meter: Meter) -> None:
    """Build the application and serve it on the socket until told to stop."""
    table = settings.station_plane
    opened = _open(factory, settings, meter, Plane.STATION, table)
    application = opened.application
    lookout = None if settings.ops_table is None else Lookout(application, meter.desk, settings.ops_table)

    def at_end() -> None:
        if lookout is not None:
            lookout.stop()
        opened.end()

    app = create_app(application, at_end=at_end, admits=opened.exposures.admits)
    context = _context(factory, settings, opened)
    if lookout is not None:
        lookout.start()
    opened.serve(listener, ObservedApp(app, meter), table, context)


def _run_enrolment(factory: Factory, settings: Settings, listener: socket.socket, meter: Meter) -> None:
    """Build the application and let stations in on the socket until told to stop."""
    table = settings.enrolment_plane
    opened = _open(factory, settings, meter, Plane.ENROLMENT, table)
    app = create_enrolment_app(opened.application, at_end=opened.end)
    context = anonymous(_context(factory, settings, opened))
    opened.serve(listener, ObservedApp(app, meter, Plane.ENROLMENT), table, context)


def _run_device(factory: Factory, settings: Settings, listener: socket.socket, meter: Meter) -> None:
    """Build the application and let devices enrol on the socket until told to stop."""
    table, plane = settings.device_plane, settings.station_plane
    opened = _open(factory, settings, meter, Plane.DEVICE, table)
    # EST gives a device its own certificate only (RFC 7030 section 4.2.3): we know the ones above it.
    above = [authority.der for authority in opened.application.store.scan(Authority)]
    context = optional(_context(factory, settings, opened, above))
    identity = ServerIdentity.open(
        plane.certificate_file, plane.key_file, factory.read_secret(plane.key_passphrase_file)
    )
    app = create_device_app(opened.application, opened.exposures.admits, identity, at_end=opened.end)
    opened.serve(listener, ObservedApp(app, meter, Plane.DEVICE), table, context)


def _run_gateway(factory: Factory, settings: Settings, listener: socket.socket, meter: Meter) -> None:
    """Build the application and meet devices on the socket until told to stop."""
    table = settings.gateway_plane
    opened = _open(factory, settings, meter, Plane.GATEWAY, table, lambda _actor: table.refusal_rate)
    application, admits = opened.application, opened.exposures.admits
    record = (application.store, application.log)
    view = GatewayView(table, record, factory.read_secret, opened.told, admits)
    listed = Listed(lists=Lists(), answers=Answers())
    watcher = application.watch_fleets(listed.lists)

    def at_end() -> None:
        view.stop()
        watcher.close()
        opened.end()

    app = create_gateway_app(
        application,
        pins=lambda: view.pins,
        tell=meter.contact,
        at_end=at_end,
        admits=admits,
        listed=listed,
        ask=application.ask_responder,
    )
    view.start()
    watcher.start()
    opened.serve(listener, ObservedApp(app, meter), table, view.context, several_roots=True)


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
            ObservedApp(plane, meter, Plane.PUBLIC),
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


def run_ops(factory: Factory, settings: Settings, listener: socket.socket, board: Board) -> None:
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


RUNS: Mapping[Plane, Run] = {
    Plane.STATION: _run,
    Plane.ENROLMENT: _run_enrolment,
    Plane.DEVICE: _run_device,
    Plane.GATEWAY: _run_gateway,
    Plane.PUBLIC: _run_public,
}
"""What a process of each plane does, but of that which watches."""


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
        context: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None,
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


def _refused_handshakes(
    application: Application, meter: Meter, rate: Callable[[str], Rate] | None = None
) -> tuple[Tally[_Seen], Told]:
    """Count what is refused before it is a request: failed handshakes, and what is not HTTP.

    The first is recorded at once, a flood of them as one entry a second.

    Args:
        application: whose record it is.
        meter: counts them, too.
        rate: see ``Refusals``.

    Returns:
        The tally, and what is told of each.
    """
    store, rates = application.store, rate or partial(rate_of, application.settings)

    def record(seen: _Seen, count: int, last: bool) -> None:  # noqa: FBT001  # see Tally
        kind, reason, peer = seen
        actor = ANONYMOUS
        if peer:
            with suppress(errors.Unauthenticated):  # it chains to the root and is no client: a device's, say
                actor = carry(store, recognise(peer)).client.id
        what = "handshake" if not peer and issubclass(kind, errors.Unauthenticated) else "connection"
        paid = None if last else rates(actor)
        told = record_refusal(actor, what, {"count": count}, kind(reason), rate=paid)
        carry(store, told)

    tally: Tally[_Seen] = Tally(record, first_seconds=0, seconds=FLUSH_SECONDS)

    def note(cause: Cause, refusal: errors.Refusal, peer: bytes) -> None:
        meter.handshake_refused(cause)
        seen: _Seen = (type(refusal), str(refusal), peer)
        if len(tally) >= DISTINCT_REFUSALS and seen not in tally:
            seen = (errors.Unauthenticated, "more kinds of refusal than are told apart", b"")
        tally.note(seen)

    return tally, note
