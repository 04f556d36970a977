"""What a station remembers between requests: its request numbers, the log's key, the newest checkpoint.

Each station numbers its requests, and the log shows the numbers, so that a request that was kept out of the
log leaves a gap anyone can see (SPEC E5).  Numbers are taken under a file lock, so that several processes
can be one station; nothing is flushed, because after a power cut the service says which number it saw last.

The log's key is pinned on first contact.  The newest checkpoint stays here as this station's witness: every
other one that is met has to be proved consistent with it (RFC 6962 section 2.1.2), or the service's log went
back, to a backup say, and what it was told since is lost.  Nothing is believed of such a service.

A station without a directory remembers all this as long as it lives.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock

from birthmark.edge.station.folder import Folder
from birthmark.errors import IntegrityFailure, MalformedRequest
from birthmark.ledger.checkpoint import Checkpoint, VerifierKey, open_note
from birthmark.ledger.merkle import verify_consistency

__all__ = ["StationRecords"]

_SEQUENCE = "sequence"
_VKEY = "vkey"
_NEWEST = "checkpoint"
_ALL = "checkpoints"
_PROVED = 1024
"""Checkpoints that are remembered as consistent, as long as this object lives."""


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
        self._proved: dict[Checkpoint, None] = {}
        """Shown to be prefixes of one another, the oldest first."""
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

    def open(self, note: str) -> Checkpoint:
        """Read a checkpoint; nothing is remembered of it yet.

        Raises:
            IntegrityFailure: the pinned key did not sign it.
        """
        if self._vkey is None:
            raise IntegrityFailure("a checkpoint cannot be checked before the log's key is known")
        try:
            return open_note(note, self._vkey)
        except MalformedRequest as wrong:
            raise IntegrityFailure(f"the service sent no checkpoint: {wrong}") from wrong

    def unproved(self, checkpoint: Checkpoint | None = None) -> list[Checkpoint]:
        """Return what has to be proved consistent before anything more is believed.

        Args:
            checkpoint: one that was met; None for what this station remembers from before.

        Raises:
            IntegrityFailure: the log has two roots for one size.
        """
        with self._lock:
            newest = self._newest
            if checkpoint is None:
                return [] if newest is None or newest in self._proved else [newest]
            if newest is not None and checkpoint.size == newest.size and checkpoint.root != newest.root:
                raise IntegrityFailure(
                    f"the service's log went back: it has two roots for its first {newest.size} entries"
                )
            if checkpoint in self._proved:
                return []
            return [checkpoint] if newest in (None, checkpoint) else [newest, checkpoint]

    def prove(
        self, known: Iterable[Checkpoint], note: str, proofs: Mapping[int, Sequence[bytes]]
    ) -> Checkpoint:
        """Remember the service's newest checkpoint, if every known one is a prefix of it.

        Args:
            known: checkpoints.
            note: the signed checkpoint of the service.
            proofs: consistency proofs by the size they begin with.

        Raises:
            IntegrityFailure: the log went back, or nothing shows that it did not.
        """
        current = self.open(note)
        for one in known:
            if current.size < one.size:
                raise IntegrityFailure(
                    f"the service's log went back: it had {one.size} entries and has {current.size}"
                )
            _verify_grown(one, current, proofs)
        with self._lock:
            self._believe(note, (*known, current))
        return current

    def grown(self, note: str, proofs: Mapping[int, Sequence[bytes]]) -> bool:
        """Remember a checkpoint that comes with the proof that it grew from the newest one.

        Args:
            note: the signed checkpoint.
            proofs: consistency proofs by the size they begin with.

        Returns:
            False if none of them begins with the newest checkpoint, as it is now: nothing is shown.

        Raises:
            IntegrityFailure: the log did not grow from it.
        """
        current = self.open(note)
        with self._lock:
            newest = self._newest
            if newest is None or newest.size > current.size or newest.size not in proofs:
                return False
            _verify_grown(newest, current, proofs)
            self._believe(note, (newest, current))
        return True

    def _believe(self, note: str, grown: Sequence[Checkpoint]) -> None:
        """Remember checkpoints that are prefixes of the last of them, which ``note`` is."""
        self._proved.update(dict.fromkeys(grown))
        while len(self._proved) > _PROVED:
            del self._proved[next(iter(self._proved))]
        if grown[-1] != self._newest:
            self._remember(note, grown[-1])

    def keep(self, note: str) -> None:
        """Append a checkpoint that was proved to those that are kept for audits, if they are."""
        if self._keep and self._folder is not None:
            with self._lock, self._folder.locked(_SEQUENCE):
                self._folder.append(_ALL, note.encode())

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


def _verify_grown(one: Checkpoint, current: Checkpoint, proofs: Mapping[int, Sequence[bytes]]) -> None:
    if one.size == 0:
        return
    try:
        verify_consistency(one.size, current.size, proofs.get(one.size, ()), one.root, current.root)
    except IntegrityFailure as wrong:
        raise IntegrityFailure(
            f"the service's log went back: its {current.size} entries do not begin with the {one.size} that"
            f" were there: {wrong}"
        ) from wrong


def _parse_vkey(text: str) -> VerifierKey:
    try:
        return VerifierKey.parse(text)
    except MalformedRequest as wrong:
        raise IntegrityFailure(f"not a log's verifier key: {wrong}") from wrong
