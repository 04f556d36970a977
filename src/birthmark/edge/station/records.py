"""What a station remembers between requests: its request numbers, the log's key, the newest checkpoint.

Each station numbers its requests, and the log shows the numbers, so that a request that was kept out of the
log leaves a gap anyone can see (SPEC E5).  Numbers are taken under a file lock, so that several processes
can be one station; nothing is flushed, because after a power cut the service says which number it saw last.

The log's key is pinned on first contact.  Every checkpoint met is opened under it; the log never shrinks
and never has two roots for one size, and the newest checkpoint stays here as this station's witness.

A station without a directory remembers all this as long as it lives.
"""

import os
from threading import Lock

from birthmark.edge.station.folder import Folder
from birthmark.errors import IntegrityFailure, MalformedRequest
from birthmark.ledger.checkpoint import Checkpoint, VerifierKey, open_note

__all__ = ["StationRecords"]

_SEQUENCE = "sequence"
_VKEY = "vkey"
_NEWEST = "checkpoint"
_ALL = "checkpoints"


class StationRecords:
    """The memory of one station; any thread may use it."""

    def __init__(self, folder: Folder | None, *, keep_checkpoints: bool = False) -> None:
        """Remember in a directory, or in memory.

        Args:
            folder: the station directory.
            keep_checkpoints: append every distinct checkpoint to the file ``checkpoints``, for audits.

        Raises:
            IntegrityFailure: what is remembered contradicts itself.
        """
        self._folder = folder
        self._keep = keep_checkpoints and folder is not None
        self._lock = Lock()
        self._last_seq = 0
        self._vkey: VerifierKey | None = None
        self._newest: Checkpoint | None = None
        if folder is not None and (pinned := folder.read(_VKEY)):
            self._vkey = _parse_vkey(pinned.decode(errors="replace"))
            self._newest = self._stored_checkpoint(folder)

    @property
    def vkey(self) -> VerifierKey | None:
        """The log's key, once it is known."""
        return self._vkey

    @property
    def newest(self) -> Checkpoint | None:
        """The largest checkpoint seen."""
        return self._newest

    def next_seq(self, seen_by_service: int) -> int:
        """Take a request number: above every one taken before, and above the last one the service saw."""
        with self._lock:
            if self._folder is None:
                self._last_seq = max(self._last_seq, seen_by_service) + 1
                return self._last_seq
            with self._folder.locked(_SEQUENCE) as fd:
                stored = os.pread(fd, 32, 0)
                # An unreadable counter (a power cut, nothing was flushed) is like none: the service knows.
                last = int(stored) if stored.strip().isdigit() else 0
                self._last_seq = max(last, self._last_seq, seen_by_service) + 1
                os.pwrite(fd, b"%019d\n" % self._last_seq, 0)
            return self._last_seq

    def pin(self, text: str) -> VerifierKey:
        """Compare the log's key with the one pinned, or pin it if there is none yet.

        Raises:
            IntegrityFailure: it is another key, or none.
        """
        told = _parse_vkey(text)
        with self._lock:
            if self._vkey is None:
                self._vkey = told if self._folder is None else self._pinned(self._folder, told)
            if told != self._vkey:
                raise IntegrityFailure(f"the log's key is {told} and used to be {self._vkey}")
            return self._vkey

    def _pinned(self, folder: Folder, told: VerifierKey) -> VerifierKey:
        with folder.locked(_SEQUENCE):
            # Another process of this station may have been first.
            if pinned := folder.read(_VKEY):
                return _parse_vkey(pinned.decode(errors="replace"))
            folder.write(_VKEY, f"{told}\n".encode(), mode=0o644)
            return told

    def see(self, note: str, *, at_least: Checkpoint | None = None) -> Checkpoint:
        """Take notice of a checkpoint.

        Args:
            note: the signed checkpoint.
            at_least: what the log cannot have fallen behind: the newest checkpoint before the request was
                sent.

        Raises:
            IntegrityFailure: the pinned key did not sign it, the log shrank, or it has two roots for one
                size.
        """
        if self._vkey is None:
            raise IntegrityFailure("a checkpoint cannot be checked before the log's key is known")
        try:
            checkpoint = open_note(note, self._vkey)
        except MalformedRequest as wrong:
            raise IntegrityFailure(f"the service sent no checkpoint: {wrong}") from wrong
        if at_least is not None and checkpoint.size < at_least.size:
            raise IntegrityFailure(f"the log shrank from {at_least.size} entries to {checkpoint.size}")
        with self._lock:
            newest = self._newest
            if newest is not None and checkpoint.size == newest.size and checkpoint.root != newest.root:
                raise IntegrityFailure(f"the log has two roots for its first {newest.size} entries")
            if checkpoint != newest:
                self._remember(note, checkpoint)
        return checkpoint

    def _remember(self, note: str, checkpoint: Checkpoint) -> None:
        if self._folder is None:
            if self._newest is None or checkpoint.size > self._newest.size:
                self._newest = checkpoint
            return
        with self._folder.locked(_SEQUENCE):
            # Another process of this station may have seen more.
            newest = self._stored_checkpoint(self._folder)
            if newest is None or checkpoint.size > newest.size:
                self._folder.write(_NEWEST, note.encode(), mode=0o644, durable=False)
                newest = checkpoint
            self._newest = newest
            if self._keep:
                self._folder.append(_ALL, note.encode())

    def _stored_checkpoint(self, folder: Folder) -> Checkpoint | None:
        stored = folder.read(_NEWEST)
        if not stored or self._vkey is None:  # empty after a power cut: nothing was flushed
            return None
        try:
            return open_note(stored.decode(errors="replace"), self._vkey)
        except MalformedRequest as wrong:
            raise IntegrityFailure(f"{folder.path / _NEWEST} holds no checkpoint") from wrong


def _parse_vkey(text: str) -> VerifierKey:
    try:
        return VerifierKey.parse(text)
    except MalformedRequest as wrong:
        raise IntegrityFailure(f"not a log's verifier key: {wrong}") from wrong
