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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import StrEnum
from functools import partial
from typing import Any, Literal, TypeVar, cast

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
from birthmark.floor.limits import Rate
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.pki.keys import KeyLabel
from birthmark.ports import carry
from birthmark.services.acts import ANONYMOUS, recognise, record_refusal
from birthmark.services.foreign_devices import Listed
from birthmark.services.foreign_status import Answers, Lists
from birthmark.settings import Settings

__all__ = ["RUNS", "Plane", "Run", "run_ops"]

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


class Plane(StrEnum):
    """One listener."""

    STATION = "station"
    ENROLMENT = "enrolment"
    """Lets stations in that were invited."""
    DEVICE = "device"
    """Lets devices enrol by EST and CMP."""
    GATEWAY = "gateway"
    """Meets devices in the field, and those who ask about them."""
    PUBLIC = "public"
    OPS = "ops"
    """Watches the processes of the others."""


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

    context = anonymous(
        server_context(
            plane.certificate_file,
            plane.key_file,
            factory.read_secret(plane.key_passphrase_file),
            plane.client_ca_file,
            note_refused,
            exposures.admits,
        )
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


def _run_device(factory: Factory, settings: Settings, listener: socket.socket, meter: Meter) -> None:
    """Build the application and let devices enrol on the socket until told to stop."""
    table, plane = settings.device_plane, settings.station_plane
    allow_descriptors(table.max_connections)
    application = _when_it_can(lambda: factory.build(settings, observer=meter), meter)
    _require_log_key(application)
    application.watch_keys()
    refusals, note_refused = _refused_handshakes(application, meter)
    exposures = ExposureView(application.store, application.log, application.clock, Plane.DEVICE)

    def at_end() -> None:
        exposures.stop()
        refusals.record_all(last=True)

    context = optional(
        server_context(
            plane.certificate_file,
            plane.key_file,
            factory.read_secret(plane.key_passphrase_file),
            # EST gives a device its own certificate only (RFC 7030 section 4.2.3): we know the ones above it.
            [authority.der for authority in application.store.scan(Authority)],
            note_refused,
            exposures.admits,
        )
    )
    identity = ServerIdentity.open(
        plane.certificate_file, plane.key_file, factory.read_secret(plane.key_passphrase_file)
    )
    app = create_device_app(application, exposures.admits, identity, at_end=at_end)
    config = _config(
        ObservedApp(app, meter, "device"),
        counted(
            protocol(
                note_refused, table.request_seconds, table.answer_seconds, table.max_connections_per_client
            ),
            meter,
        ),
        keep_alive_seconds=table.keep_alive_seconds,
    )
    limits = Limits(
        connections=table.max_connections,
        per_address=table.max_connections_per_address,
        handshakes=table.max_handshakes,
        handshake_seconds=table.handshake_seconds,
        answer_seconds=table.answer_seconds,
    )
    exposures.start()
    _Server(config, limits, meter.desk, note_refused, context).run(sockets=[listener])


def _run_gateway(factory: Factory, settings: Settings, listener: socket.socket, meter: Meter) -> None:
    """Build the application and meet devices on the socket until told to stop."""
    plane = settings.gateway_plane
    allow_descriptors(plane.max_connections)
    application = _when_it_can(lambda: factory.build(settings, observer=meter), meter)
    _require_log_key(application)
    application.watch_keys()
    refusals, note_refused = _refused_handshakes(application, meter, lambda _actor: plane.refusal_rate)
    exposures = ExposureView(application.store, application.log, application.clock, Plane.GATEWAY)
    record = (application.store, application.log)
    view = GatewayView(plane, record, factory.read_secret, note_refused, exposures.admits)
    listed = Listed(lists=Lists(), answers=Answers())
    watcher = application.watch_fleets(listed.lists)

    def at_end() -> None:
        exposures.stop()
        view.stop()
        watcher.close()
        refusals.record_all(last=True)

    app = create_gateway_app(
        application,
        pins=lambda: view.pins,
        tell=meter.contact,
        at_end=at_end,
        admits=exposures.admits,
        listed=listed,
        ask=application.ask_responder,
    )
    config = _config(
        ObservedApp(app, meter),
        counted(
            protocol(
                note_refused,
                plane.request_seconds,
                plane.answer_seconds,
                plane.max_connections_per_client,
                several_roots=True,
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
    exposures.start()
    view.start()
    watcher.start()
    _Server(config, limits, meter.desk, note_refused, view.context).run(sockets=[listener])


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
