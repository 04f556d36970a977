"""Whom the gateway's handshake believes, and the certificate it shows: built anew when either changes.

A thread looks every second: at the record, for roots of this realm and registered authorities, and at the
files, for the certificate and the one after it.  Connections that are open keep what they were opened with.
What cannot be built (half of a pair of files was replaced) leaves what was there, and is tried again.

A registered authority is believed here whatever its status, as long as its owner has shown its key: a device
of one that is suspended is to hear why it is refused, which a handshake cannot tell.
"""

import logging
import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from birthmark import errors
from birthmark.edge.http.contexts import Admits, server_context
from birthmark.edge.http.limits import Told
from birthmark.edge.pins import other_realms, pins_of
from birthmark.floor.authorities import Authority, AuthorityKind
from birthmark.floor.fleet import FleetAuthority, FleetStatus
from birthmark.pki.certificates import Certificate
from birthmark.pki.names import comparable
from birthmark.ports import Log, Store
from birthmark.secret import SecretBytes
from birthmark.settings_gateway import GatewayPlane

__all__ = ["GatewayView"]

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
_Stamp = tuple[tuple[int, int, int] | None, ...]
"""Inode, size and time of change of each file; None for one that is not there."""


class GatewayView:
    """What one process of the gateway shows and believes; see the module."""

    def __init__(
        self,
        plane: GatewayPlane,
        record: tuple[Store, Log],
        read_secret: Callable[[Path], SecretBytes],
        on_refused: Told,
        admits: Admits,
    ) -> None:
        """Build the first context.

        Args:
            plane: the settings.
            record: whose authorities are believed.
            read_secret: reads a passphrase file.
            on_refused: see ``server_context``.
            admits: likewise.

        Raises:
            errors.NotFound: a file cannot be read.
            errors.MalformedRequest: one is not what it should be, or they do not belong together.
            errors.Unavailable: the record cannot be read.
        """
        self._plane = plane
        self._store, self._log = record
        self._read_secret = read_secret
        self._on_refused = on_refused
        self._admits = admits
        self._others = tuple(other_realms(plane))
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._size, self._stamp = self._log.size(), self._stamped()
        self._left_out: list[str] = []
        self._anchors = self._read_anchors()
        self.pins = pins_of(plane)
        """Of the certificate that is shown, and of the one after it."""
        self._context = self._build()

    def context(self) -> ssl.SSLContext:
        """Return the context for a connection that is opened now."""
        return self._context

    def start(self) -> None:
        """Look every second until ``stop``."""
        self._thread = threading.Thread(target=self._run, name="gateway-view", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the looking."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def look(self) -> None:
        """Look once, and build anew what changed."""
        size, stamp = self._log.size(), self._stamped()
        anchors = self._anchors if size == self._size else self._read_anchors()
        if (anchors, stamp) != (self._anchors, self._stamp):
            before, self._anchors = self._anchors, anchors
            try:
                pins, self._context = pins_of(self._plane), self._build()
            except errors.Refusal:
                self._anchors = before
                raise
            self.pins, self._stamp = pins, stamp
            log.info("the gateway's context is new", extra={"anchors": len(anchors), "pin": pins.now})
        self._size = size

    def _run(self) -> None:
        told = ""
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self.look()
                told = ""
            except errors.Refusal as refusal:
                if str(refusal) != told:
                    log.warning("the gateway's context is not built anew: %s", refusal)
                told = str(refusal)
            except Exception:  # the thread must not die of what the next look may be without
                log.exception("the gateway's context is not built anew")

    def _read_anchors(self) -> frozenset[bytes]:
        """Return who is believed in the handshake.

        OpenSSL looks an issuer up by its name, and looks no further when the key turns out to be another's:
        of two anchors with one name, one shuts the other's devices out.  No name is given twice: the names
        of our authorities are ours, and of two fleets the one that was there first has it.
        """
        own = list(self._store.scan(Authority))
        anchors = {one.der for one in own if one.kind is AuthorityKind.ROOT}
        taken = {comparable(Certificate.from_der(one.der).subject_name) for one in own}
        fleets = sorted(
            (one for one in self._store.scan(FleetAuthority) if one.is_registered),
            key=lambda one: (one.status is FleetStatus.RETIRED, one.asked_at),
        )
        left_out = []
        others = [(der, "another realm") for der in self._others]
        for der, who in [*others, *((one.der, one.id) for one in fleets)]:
            name = comparable(Certificate.from_der(der).subject_name)
            if name in taken:
                left_out.append(who)
            else:
                taken.add(name)
                anchors.add(der)
        if left_out != self._left_out:
            self._left_out = left_out
            log.warning(
                "authorities are not believed: their names are taken", extra={"authorities": left_out}
            )
        return frozenset(anchors)

    def _stamped(self) -> _Stamp:
        plane = self._plane
        files: Sequence[Path | None] = (
            plane.certificate_file,
            plane.key_file,
            plane.key_passphrase_file,
            plane.next_certificate_file,
        )
        return tuple(_stat(path) for path in files if path is not None)

    def _build(self) -> ssl.SSLContext:
        plane = self._plane
        return server_context(
            plane.certificate_file,
            plane.key_file,
            self._read_secret(plane.key_passphrase_file),
            sorted(self._anchors),
            self._on_refused,
            self._admits,
        )


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
