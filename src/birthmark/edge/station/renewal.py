"""A station's next certificate, before the one it has ends (SPEC C2).

It is asked for when two thirds of a certificate's life are over, for a new key, over the connection that the
present one opens.  What is on disk changes so that whoever reads the directory, after a crash at any step,
finds a certificate with its key:

    1. The next key is written beside the present one; a key that a crash left there is used again.
    2. The service certifies it.
    3. The new pair is tried: the service answers who we are.  If it does not, everything stays as it is.
    4. The certificate is replaced, in one step; from here on the waiting key is the key (``credentials``).
    5. The waiting key takes its name.

Processes that share a directory renew one after the other, and take what another one has brought.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Any, Final

from birthmark import errors
from birthmark.edge.station.answers import take
from birthmark.edge.station.credentials import (
    CERTIFICATE,
    NEXT_KEY,
    RENEWAL_LOCK,
    Credentials,
    read_station_directory,
    settle,
)
from birthmark.edge.station.folder import Folder
from birthmark.edge.station.joining import require_ours
from birthmark.edge.station.ownkeys import new_key, public_key_info, request_for
from birthmark.pki.certificates import Certificate, from_pem
from birthmark.secret import SecretBytes

__all__ = ["Renewal", "due_at", "renew_directory", "renewed"]

log = logging.getLogger(__name__)

Ask = Callable[[str], Mapping[str, Any]]
"""Sends a certification request (PEM) to the service and returns its answer."""
Try = Callable[[Credentials], None]
"""Shows new credentials to the service; raises a refusal if they are not good."""


def _leaf(credentials: Credentials) -> Certificate:
    return Certificate.from_der(from_pem(credentials.certificate_pem)[0])


def due_at(credentials: Credentials) -> tuple[datetime, timedelta]:
    """Return when a certificate wants to be renewed, and how long it is good then."""
    leaf = _leaf(credentials)
    third = (leaf.not_after - leaf.not_before) / 3
    return leaf.not_after - third, third


def renewed(credentials: Credentials, key: SecretBytes, ask: Ask, attempt: Try) -> Credentials:
    """Return credentials for a new key, which the service has accepted already; nothing is written.

    Raises:
        errors.IntegrityFailure: the certificate is for another key, or does not lead to our trust anchors.
        errors.Refusal: the service refused, or the new pair is not accepted.
    """
    answer = ask(request_for(key, credentials.passphrase))
    certificate, chain = take(answer, "certificate", str), take(answer, "chain", list)
    require_ours(certificate, chain, public_key_info(key, credentials.passphrase), *credentials.anchors())
    fresh = replace(credentials, certificate_pem=certificate + "".join(chain), private_key=key)
    attempt(fresh)
    return fresh


def renew_directory(
    path: str | os.PathLike[str], credentials: Credentials, ask: Ask, attempt: Try
) -> Credentials:
    """Renew what is in a station directory, or return what another process has renewed.

    Args:
        path: the directory.
        credentials: in use.
        ask: see ``Ask``.
        attempt: see ``Try``.

    Raises:
        errors.Refusal: as ``renewed``; the directory is as it was, but for a key that waits.
    """
    folder = Folder(path)
    try:
        with folder.locked(RENEWAL_LOCK):
            settle(folder)
            there = read_station_directory(path)
            if _leaf(there).not_after > _leaf(credentials).not_after:
                return there
            key = _waiting_key(folder, there)
            fresh = renewed(there, key, ask, attempt)
            folder.write(CERTIFICATE, fresh.certificate_pem.encode(), mode=0o644)
            settle(folder)
            return fresh
    finally:
        folder.close()


def _waiting_key(folder: Folder, credentials: Credentials) -> SecretBytes:
    """Return the next key, durable on disk."""
    kept = folder.read_private(NEXT_KEY)
    if kept is not None:
        key = SecretBytes(kept)
        try:
            public_key_info(key, credentials.passphrase)
        except errors.MalformedRequest:  # half a file, or of another passphrase: nothing was certified for it
            pass
        else:
            return key
    key = new_key(credentials.passphrase)
    folder.write(NEXT_KEY, key.reveal(), mode=0o400)
    return key


_LOOK_SECONDS: Final = 600.0
"""How often a station looks whether it is time."""
_MOST_OFTEN: Final = 1.0


class Renewal:
    """Keeps the credentials of a running station fresh; any thread may look.

    The clock of a station is not to be trusted: one that is wrong renews too early, and no more often than
    this, or too late, and then somebody has to.
    """

    def __init__(
        self,
        credentials: Credentials,
        path: str | os.PathLike[str] | None,
        *,
        ask: Callable[[str, int], Mapping[str, Any]],
        new_seq: Callable[[], int],
        attempt: Try,
        use: Callable[[Credentials], None],
        now: Callable[[], datetime] | None = None,
    ) -> None:
        """Watch over these credentials.

        Args:
            credentials: in use.
            path: of the directory they are from; None for credentials in memory.
            ask: as ``Ask``, with a request number.
            new_seq: takes a request number.
            attempt: see ``Try``.
            use: told the new credentials.
            now: the time of day.
        """
        self.credentials = credentials
        self._path = path
        self._numbered = ask
        self._new_seq = new_seq
        self._seq: int | None = None
        self._attempt = attempt
        self._use = use
        self._now = now or _wall_clock
        self._lock = Lock()
        self._next_look = 0.0

    def look(self) -> None:
        """Renew if it is time; what goes wrong is told in the log, and the old certificate goes on."""
        if time.monotonic() < self._next_look or not self._lock.acquire(blocking=False):
            return
        try:
            at, third = due_at(self.credentials)
            left = (at - self._now()).total_seconds()
            if left > 0:
                self._next_look = time.monotonic() + min(left, _LOOK_SECONDS)
                return
            # Not again before long, whatever comes of it.
            pause = min(max(third.total_seconds() / 20, _MOST_OFTEN), _LOOK_SECONDS)
            self._next_look = time.monotonic() + pause
            self.renew()
        except (errors.NotPermitted, errors.NotFound) as refused:
            # Who has a bootstrap credential, or an older service, never will.
            self._next_look = float("inf")
            log.warning("the certificate of %s cannot be renewed: %s", self.credentials.name, refused)
        except (errors.Refusal, OSError) as failed:
            name, ends = self.credentials.name, _leaf(self.credentials).not_after
            log.warning("the certificate of %s ends at %s and was not renewed: %s", name, ends, failed)
        finally:
            self._lock.release()

    def renew(self) -> None:
        """Renew now.

        Raises:
            errors.Refusal: as ``renewed``; everything is as it was.
        """
        if self._path is None:
            key = new_key(self.credentials.passphrase)
            fresh = renewed(self.credentials, key, self._ask, self._attempt)
        else:
            fresh = renew_directory(self._path, self.credentials, self._ask, self._attempt)
        self._use(fresh)
        self.credentials = fresh

    def _ask(self, csr: str) -> Mapping[str, Any]:
        """Ask; a number that nobody has seen is used again, or it would look like a gap (SPEC E5)."""
        self._seq = self._seq or self._new_seq()
        try:
            answer = self._numbered(csr, self._seq)
        except errors.Refusal as refused:
            if not refused.retryable:
                self._seq = None
            raise
        self._seq = None
        return answer


def _wall_clock() -> datetime:
    return datetime.now(UTC)  # noqa: TID251  # a station is a program of its own, without a Clock port
