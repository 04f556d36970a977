"""Fetching what others say of their certificates, by plain HTTP: CRLs, and OCSP answers (SPEC H3).

What is fetched is signed and verified by others; here it only has an end: so many octets, so many seconds in
all, so many redirects, and those to the same host, so that nobody whom we ask sends us elsewhere.  No proxy
is taken from the environment.

``ForeignWatcher`` is the thread that keeps the CRLs of fleet authorities on record fresh, for all processes
on one database, and has them read in its own before a device asks.
"""

import http.client
import logging
import queue
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from urllib.parse import urljoin, urlsplit

from birthmark import errors
from birthmark.floor.fleet import (
    FleetAuthority,
    FleetPolicy,
    ForeignCRL,
    ForeignCRLOctets,
    check_url,
)
from birthmark.pki.crl_index import LARGEST_CRL, crl_der
from birthmark.pki.ocsp_client import LARGEST_RESPONSE
from birthmark.ports import Clock, Store, carry
from birthmark.services.foreign_lists import take_crl
from birthmark.services.foreign_status import Lists, Question

__all__ = ["ForeignWatcher", "Responders", "fetch"]

log = logging.getLogger(__name__)

MOST_REDIRECTS = 3
CRL_SECONDS, OCSP_SECONDS = 60.0, 5.0
"""How long one fetch may take in all, after the name is resolved."""
REST_SECONDS = 10.0
"""How long a responder that did not answer is left alone."""
LONGEST_PAUSE = timedelta(hours=1)
"""A CRL is fetched again at the latest after this, and more often near its end.

An issuer may publish one long before the last has ended.
"""
REFUSED_FOR = timedelta(minutes=5)
"""After so long a CRL that was refused is tried again: its window may have begun."""
RETRY_SECONDS = 60.0
"""Nothing is fetched more often than this."""
MOST_FETCHES = 16
"""So many CRLs are fetched at a time: a server that is slow does not keep the others' away."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


def fetch(url: str, *, limit: int, seconds: float, body: bytes | None = None, media_type: str = "") -> bytes:
    """Return what is at a place, or what it answers to what is posted there.

    Args:
        url: see ``floor.fleet.check_url``.
        limit: most octets.
        seconds: most time in all.
        body: what is posted; None to get.
        media_type: of the body.

    Raises:
        errors.Unavailable: it does not answer in time, or not with 200.
        errors.TooLarge: it answers more.
        errors.MalformedRequest: it, or where it sends us, is no place to fetch from.
    """
    ends, host = time.monotonic() + seconds, urlsplit(check_url(url)).hostname
    for _ in range(MOST_REDIRECTS + 1):
        try:
            octets, elsewhere = _once(url, limit, ends - time.monotonic(), body, media_type)
        except (OSError, http.client.HTTPException, ValueError) as cause:
            raise errors.Unavailable(f"{url} does not answer: {cause!r}") from cause
        if elsewhere is None:
            return octets
        if body is not None:
            raise errors.Unavailable(f"{url} sends elsewhere what is posted to it")
        url = check_url(urljoin(url, elsewhere))
        if urlsplit(url).hostname != host:
            raise errors.Unavailable(f"{host} sends to another host, {url}")
    raise errors.Unavailable(f"{url}: more than {MOST_REDIRECTS} redirects")


def _once(
    url: str, limit: int, seconds: float, body: bytes | None, media_type: str
) -> tuple[bytes, str | None]:
    """Return what one request is answered, or where it is sent."""
    parts = urlsplit(url)
    if seconds <= 0:
        raise TimeoutError("it took too long")
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)
    connection.connect()
    # A time for each read is not one for all of them: whoever sends an octet a second would go on for ever.
    overdue = threading.Event()
    timer = threading.Timer(seconds, _cut, (connection.sock, overdue))
    timer.daemon = True
    timer.start()
    try:
        target = parts.path or "/"
        target += f"?{parts.query}" if parts.query else ""
        headers = {"Content-Type": media_type} if body is not None else {}
        connection.request("GET" if body is None else "POST", target, body, headers)
        with connection.getresponse() as response:
            if response.status in _REDIRECTS:
                return b"", response.headers.get("Location", "")
            if response.status != http.client.OK:
                raise http.client.HTTPException(f"status {response.status}")
            if (response.length or 0) > limit:
                raise errors.TooLarge(f"{url} has more than {limit} octets")
            octets, missing = response.read(limit + 1), response.length
    finally:
        timer.cancel()
        connection.close()
    if overdue.is_set():
        raise TimeoutError("it took too long")
    if len(octets) > limit:
        raise errors.TooLarge(f"{url} has more than {limit} octets")
    if missing:
        raise http.client.IncompleteRead(octets, missing)
    return octets, None


def _cut(connected: socket.socket, overdue: threading.Event) -> None:
    overdue.set()
    try:
        connected.shutdown(socket.SHUT_RDWR)
    except OSError:
        log.debug("a connection that took too long was over already")


class Responders:
    """Asks OCSP responders; one that does not answer is left alone for a while.  Safe from any thread."""

    def __init__(self, *, seconds: float = OCSP_SECONDS, rest: float = REST_SECONDS) -> None:
        """Wait so long for an answer, and so long after there was none."""
        self._seconds, self._rest = seconds, rest
        self._lock = threading.Lock()
        self._down: dict[str, float] = {}

    def ask(self, question: Question) -> bytes:
        """Return what a responder answers (DER), unverified: see ``foreign_status.take_answer``.

        Raises:
            errors.Unavailable: it does not answer, or did not just now.
            errors.TooLarge: it answers more than a response can be.
        """
        with self._lock:
            if time.monotonic() < self._down.get(question.url, 0.0):
                raise errors.Unavailable(f"{question.url} did not answer just now")
        try:
            octets = fetch(
                question.url,
                limit=LARGEST_RESPONSE,
                seconds=self._seconds,
                body=question.request,
                media_type="application/ocsp-request",
            )
        except errors.Unavailable:
            with self._lock:
                self._down[question.url] = time.monotonic() + self._rest
            raise
        with self._lock:
            self._down.pop(question.url, None)
        return octets


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Where one CRL comes from."""

    crl: str
    authority: FleetAuthority
    url: str
    row: ForeignCRL | None


class ForeignWatcher:
    """Keeps foreign CRLs on record fresh, and reads them before they are asked for."""

    def __init__(
        self, store: Store, clock: Clock, lists: Lists | None = None, *, every_seconds: float = 30.0
    ) -> None:
        """Watch over a record.

        Args:
            store: the record.
            clock: says what is near its end.
            lists: where this process keeps what it has read; None for nowhere.
            every_seconds: how often it looks.
        """
        self._store, self._clock, self._lists, self._every = store, clock, lists, every_seconds
        self._tried: dict[str, float] = {}
        self._fetched: dict[str, datetime] = {}
        self._refused: dict[str, tuple[str, datetime]] = {}
        """Hash of what was refused last, and when: it stands in the log again only after a while."""
        self._under_way: set[str] = set()
        self._answers: queue.SimpleQueue[tuple[_Source, bytes | errors.Refusal] | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, on a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="fleet-watcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End; a fetch that is under way is left to itself.  Closing twice does nothing."""
        self._over.set()
        self._answers.put(None)
        if self._thread is not None:
            self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                self.look()
            except errors.Refusal as refusal:
                log.warning("foreign CRLs cannot be looked after: %s", refusal)
            except Exception:
                log.exception("foreign CRLs cannot be looked after")
            self._over.wait(self._every)

    def look(self) -> None:
        """Fetch what is due, put it on record, and read what is new there.

        It waits for what is fetched no longer than until it looks again; what comes later is taken then.
        """
        ends = time.monotonic() + self._every
        # Who was asked longest ago comes first: however many are slow, the others get their turn.
        for source in sorted(self._sources(), key=lambda one: self._tried.get(one.crl, 0.0)):
            if len(self._under_way) == MOST_FETCHES:
                break
            if self._is_due(source):
                self._tried[source.crl] = time.monotonic()
                self._under_way.add(source.crl)
                # The end of the program does not wait for a thread of this kind.
                threading.Thread(target=self._fetch, args=(source,), name="fleet-crl", daemon=True).start()
        self._read()
        while self._under_way and not self._over.is_set():
            try:
                answered = self._answers.get(timeout=max(0.0, ends - time.monotonic()))
            except queue.Empty:
                return
            if answered is None:
                return
            source, answer = answered
            self._under_way.discard(source.crl)
            self._take(source, answer)
            self._read()

    def _sources(self) -> Iterator[_Source]:
        authorities = {one.id: one for one in self._store.scan(FleetAuthority) if one.is_watched}
        rows = {row.id: row for row in self._store.scan(ForeignCRL)}
        for authority in authorities.values():
            url = FleetPolicy.decode(authority.policy).crl_url
            if url:
                yield _Source(crl=authority.id, authority=authority, url=url, row=rows.get(authority.id))
        for row in rows.values():
            if row.url and row.authority in authorities:
                yield _Source(crl=row.id, authority=authorities[row.authority], url=row.url, row=row)

    def _is_due(self, source: _Source) -> bool:
        rested = time.monotonic() - self._tried.get(source.crl, -RETRY_SECONDS) >= RETRY_SECONDS
        if source.crl in self._under_way or not rested:
            return False
        fetched = self._fetched.get(source.crl)
        if source.row is None or fetched is None:
            return True
        at = self._clock.now()
        return at >= fetched + min(LONGEST_PAUSE, (source.row.next_update - at) / 10)

    def _fetch(self, source: _Source) -> None:
        try:
            answer: bytes | errors.Refusal = crl_der(
                fetch(source.url, limit=LARGEST_CRL, seconds=CRL_SECONDS)
            )
        except errors.Refusal as refusal:
            answer = refusal
        except Exception as cause:
            log.exception("the CRL %s cannot be fetched", source.crl)
            answer = errors.Unavailable(f"{source.url}: {cause!r}")
        self._answers.put((source, answer))

    def _take(self, source: _Source, octets: bytes | errors.Refusal) -> None:
        if isinstance(octets, errors.Refusal):
            log.warning("the CRL %s cannot be fetched: %s", source.crl, octets)
            return
        digest = sha256(octets).hexdigest()
        self._fetched[source.crl] = now = self._clock.now()
        before, when = self._refused.get(source.crl, ("", now))
        if digest == before and now - when < REFUSED_FOR:
            return
        issuer = None if source.row is None else source.row.issuer
        url = source.url if issuer is not None else ""
        try:
            carry(self._store, take_crl(None, source.authority.id, octets, issuer=issuer, url=url))
        except errors.Refusal as refusal:
            log.warning("the CRL %s from %s is refused: %s", source.crl, source.url, refusal)
            if not refusal.retryable:
                self._refused[source.crl] = (digest, now)

    def _read(self) -> None:
        if (lists := self._lists) is None:
            return
        for row in self._store.scan(ForeignCRL):
            if lists.find(row) is not None:
                continue
            facts = self._store.look({FleetAuthority: (row.authority,), ForeignCRLOctets: (row.id,)})
            authority, octets = (
                facts.get(FleetAuthority, row.authority),
                facts.get(ForeignCRLOctets, row.id),
            )
            if authority is not None and octets is not None and octets.sha256 == row.sha256:
                lists.read(row, octets, authority.der if row.issuer is None else row.issuer)
