"""Who may connect at this moment, in memory: asked in every handshake (SPEC C1, C2).

A thread reads the record every second: which planes, runs and stations are open when, which clients were
revoked, which codes are good.  What this view answers is a second old at most, and time itself needs no
reading: what ends, ends.  If the record cannot be read for ten seconds nobody is let in.  The view opens no
door that the commit would not: every act is judged there again.

The credentials are read again only when the log says that one of them changed.
"""

import hashlib
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from birthmark import errors
from birthmark.floor.clients import Client, ClientStatus, Credential
from birthmark.floor.exposure import Exposed, Exposure, Plane, exposure_id, why_closed
from birthmark.floor.invitations import Invitation
from birthmark.ports import Clock, Log, Store
from birthmark.services.acts import exposures_of

__all__ = ["OLDEST_SECONDS", "ExposureView"]

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 1.0
OLDEST_SECONDS: Final = 10.0
"""A view that is older lets nobody in."""
_UNREAD = "the record cannot be read"
_CHANGES: Final = (b'"client-', b'"exposure-', b'"station-invited"', b'"invitation-', b'"role-')
"""What the entries hold after which the view is another; a name with such a part costs one reading."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What the record said."""

    size: int
    """Of the log; what is here is not older."""
    exposures: Mapping[str, Exposure] = field(default_factory=dict)
    clients: Mapping[bytes, Client] = field(default_factory=dict)
    """SHA-256 of each certificate (DER) to whom it belongs."""
    revoked: frozenset[bytes] = frozenset()
    """SHA-256 of the certificates that are not good any more."""
    codes_until: datetime | None = None
    """When the last code ends."""


class ExposureView:
    """What one plane of one process knows of who may connect."""

    def __init__(self, store: Store, log: Log, clock: Clock, plane: str) -> None:
        """Know nothing yet; until ``start`` has read the record nobody is welcome."""
        self._store = store
        self._log = log
        self._clock = clock
        self._now = clock.now()
        self._plane = plane
        self._seen = _Seen(size=-1)
        self._read_at = -OLDEST_SECONDS
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Read the record, and again every second until ``stop``."""
        self.look()
        self._thread = threading.Thread(target=self._run, name="exposure", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the reading."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """Read the record once, if it can be read."""
        begun = time.monotonic()
        try:
            size = self._log.size()
            if size < self._seen.size:  # another database than before: the trains refuse it, too
                raise errors.IntegrityFailure(f"the log had {self._seen.size} entries and has {size}")
            if self._seen.size < 0 or self._changed(size):
                self._seen = self._read(size)
        except errors.Refusal as refusal:
            log.warning("who may connect cannot be read: %s", refusal)
        except Exception:  # the thread must not die of what the next reading may be without
            log.exception("who may connect cannot be read")
        else:
            self._read_at = begun

    def admits(self, peer: bytes | None) -> errors.Refusal | None:
        """Return why a client is not welcome now, or None if it is; never blocks.

        Args:
            peer: its certificate (DER), which the handshake has verified; None before there is any.
        """
        if time.monotonic() - self._read_at > OLDEST_SECONDS:
            return errors.Unavailable(_UNREAD)
        seen, now = self._seen, self._time()
        plane = exposure_id(Exposed.PLANE, self._plane)
        if self._plane == Plane.ENROLMENT and (seen.codes_until is None or now >= seen.codes_until):
            return errors.NotPermitted("no station is invited now")
        if peer is None:
            return _closed([why_closed(seen.exposures.get(plane), now)])
        digest = hashlib.sha256(peer).digest()
        client = seen.clients.get(digest)
        if client is None:  # of nobody, or of somebody who is new: the record will say which
            return _closed([why_closed(seen.exposures.get(plane), now)])
        if digest in seen.revoked:
            return errors.Unauthenticated(f"{client.id} was revoked")
        names = exposures_of(self._plane, client)
        return _closed(why_closed(seen.exposures.get(name), now) for name in names)

    def _time(self) -> datetime:
        """Return the time; while the clock has jumped, the last one before: every act says why it is held."""
        with suppress(errors.Unavailable):
            self._now = self._clock.now()
        return self._now

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            self.look()

    def _changed(self, size: int) -> bool:
        if size == self._seen.size:
            return False
        for item in self._log.entries(self._seen.size, size):
            if any(mark in item.entry for mark in _CHANGES):
                return True
        self._seen = replace(self._seen, size=size)
        return False

    def _read(self, size: int) -> _Seen:
        clients = {client.id: client for client in self._store.scan(Client)}
        by_certificate: dict[bytes, Client] = {}
        revoked: set[bytes] = set()
        for credential in self._store.scan(Credential):
            client = clients.get(credential.client)
            if client is None:
                continue
            digest = hashlib.sha256(credential.der).digest()
            by_certificate[digest] = client
            if ClientStatus.REVOKED in (client.status, credential.status):
                revoked.add(digest)
        invites = self._plane == Plane.ENROLMENT
        codes = [one.expires_at for one in self._store.scan(Invitation)] if invites else []
        return _Seen(
            size=size,
            exposures={one.id: one for one in self._store.scan(Exposure)},
            clients=by_certificate,
            revoked=frozenset(revoked),
            codes_until=max(codes, default=None),
        )


def _closed(reasons: Iterable[str | None]) -> errors.Refusal | None:
    reason = next((reason for reason in reasons if reason is not None), None)
    return None if reason is None else errors.NotPermitted(reason)
