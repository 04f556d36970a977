"""The directory that is published: files replaced wholly and at once (``ports.Publication``).

A file is written under another name in ``.new``, brought to stable storage, and then renamed over the old
one, so that a reader or a crash finds the one or the other (POSIX ``rename``).  Whoever takes the lock clears
``.new``, so nothing is written without it.  Names that begin with a dot are ours; nobody serves them.  The
directory can be copied to a public host with rsync: nothing in it is a secret.

Answers that were signed beforehand are one SQLite file per authority, replaced like any other; a server that
has the old one open goes on with it until it looks again.
"""

import fcntl
import mmap
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from birthmark import errors
from birthmark.floor.locations import answers_path
from birthmark.pki.crl import Buffer
from birthmark.ports import Draft, SignedAnswer, SignedAnswers

__all__ = ["PublicationDirectory", "PublishedAnswers"]

_NEW = ".new"
_LOCK = ".lock"
_STEP = 1 << 20


@contextmanager
def _translated(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as cause:
        said = getattr(cause, "strerror", None) or str(cause)
        raise errors.Unavailable(f"publication: {what}: {said}") from cause


@contextmanager
def _mapped(fd: int) -> Iterator[Buffer]:
    """Map a file for reading; the pages are the kernel's, not ours."""
    if os.fstat(fd).st_size == 0:
        yield b""
        return
    with _translated("a file"):
        octets = mmap.mmap(fd, 0, access=mmap.ACCESS_READ)
    try:
        yield octets
    finally:
        with suppress(BufferError):  # an exception's traceback may hold a view; it is unmapped with that
            octets.close()


class _Draft:
    """See ``ports.Draft``."""

    def __init__(self, file: BinaryIO, what: str) -> None:
        self._file = file
        self._what = what

    def write(self, piece: Buffer) -> None:
        """See ``ports.Draft.write``."""
        with _translated(self._what):
            self._file.write(piece)

    def octets(self) -> AbstractContextManager[Buffer]:
        """See ``ports.Draft.octets``."""
        with _translated(self._what):
            self._file.flush()
        return _mapped(self._file.fileno())


class _SignedAnswers:
    """See ``ports.SignedAnswers``."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def put(self, answers: Iterable[SignedAnswer]) -> None:
        """See ``ports.SignedAnswers.put``."""
        rows = (
            (
                _answer_key(one.algorithm, one.serial_number),
                one.octets,
                int(one.this_update.timestamp()),
                int(one.next_update.timestamp()),
            )
            for one in answers
        )
        with _translated("signed answers"):
            self._db.executemany("INSERT OR REPLACE INTO answer VALUES (?, ?, ?, ?)", rows)


def _answer_key(algorithm: str, serial_number: int) -> str:
    return f"{algorithm}/{serial_number:x}"


class PublicationDirectory:
    """See ``ports.Publication``."""

    def __init__(self, directory: Path) -> None:
        """Publish into a directory, which is made if it does not exist."""
        self._directory = directory
        self._locked = False

    @contextmanager
    def lock(self) -> Iterator[None]:
        """See ``Publication.lock``."""
        with _translated(str(self._directory)):
            (self._directory / _NEW).mkdir(parents=True, exist_ok=True)
            fd = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as cause:
                raise errors.Unavailable(
                    f"publication: another process is publishing into {self._directory}"
                ) from cause
            with _translated(_NEW):
                for left in (self._directory / _NEW).iterdir():
                    left.unlink()
            self._locked = True
            try:
                yield
            finally:
                self._locked = False
        finally:
            os.close(fd)

    def _require_lock(self) -> None:
        if not self._locked:
            raise errors.Fault("publication: something would be written without the lock")

    @contextmanager
    def read(self, path: str) -> Iterator[Buffer | None]:
        """See ``Publication.read``."""
        with _translated(path):
            try:
                fd = os.open(self._directory / path, os.O_RDONLY | os.O_CLOEXEC)
            except (FileNotFoundError, NotADirectoryError):
                fd = -1
        if fd < 0:
            yield None
            return
        try:
            with _mapped(fd) as octets:
                yield octets
        finally:
            os.close(fd)

    @contextmanager
    def draft(self) -> Iterator[Draft]:
        """See ``Publication.draft``."""
        what = f"a draft in {self._directory / _NEW}"
        with _translated(what):
            fd = os.open(self._directory / _NEW, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            file = os.fdopen(fd, "w+b", buffering=_STEP)
        try:
            yield _Draft(file, what)
        finally:
            with suppress(
                OSError
            ):  # to close is to write the rest, which nobody will read; the disk may be full
                file.close()

    def publish(self, path: str, pieces: Iterable[Buffer]) -> None:
        """See ``Publication.publish``."""
        self._require_lock()
        with _translated(path):
            new = self._new(path)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            with os.fdopen(fd, "wb", buffering=0) as file:
                for piece in pieces:
                    with memoryview(piece) as view:
                        for start in range(0, len(view), _STEP):
                            _write(file, view[start : start + _STEP])
                os.fchmod(fd, 0o644)
            self._replace(new, path)

    @contextmanager
    def answers(self, authority: str, *, anew: bool) -> Iterator[SignedAnswers]:
        """See ``Publication.answers``."""
        self._require_lock()
        path = answers_path(authority)
        with _translated(path):
            new, published = self._new(path), self._directory / path
            new.unlink(missing_ok=True)
            if not anew and published.is_file():
                shutil.copyfile(published, new)
            db = sqlite3.connect(new)
        with closing(db):
            with _translated(path):
                # Whole or not at all is the rename's work: no journal, and one fsync at the end.
                db.execute("PRAGMA journal_mode=OFF")
                db.execute("PRAGMA synchronous=OFF")
                db.execute(
                    "CREATE TABLE IF NOT EXISTS answer"
                    " (cert TEXT NOT NULL PRIMARY KEY, response BLOB NOT NULL, this_update INTEGER NOT NULL,"
                    " next_update INTEGER NOT NULL) STRICT"
                )
            yield _SignedAnswers(db)
            with _translated(path):
                db.commit()
        with _translated(path):
            new.chmod(0o644)
            self._replace(new, path)

    def withdraw(self, folder: str) -> None:
        """See ``Publication.withdraw``."""
        self._require_lock()
        with _translated(folder), suppress(FileNotFoundError):
            shutil.rmtree(self._directory / folder)

    def _new(self, path: str) -> Path:
        (self._directory / _NEW).mkdir(parents=True, exist_ok=True)
        return self._directory / _NEW / f"{os.getpid()}.{path.replace('/', ',')}"

    def _replace(self, new: Path, path: str) -> None:
        """Put a finished file in its place, for good."""
        place = self._directory / path
        _sync(new)
        made = []
        folder = place.parent
        while not folder.is_dir():
            made.append(folder)
            folder = folder.parent
        place.parent.mkdir(parents=True, exist_ok=True)
        for folder in made:
            folder.chmod(0o755)  # whoever serves it may be another user
        new.rename(place)
        for changed in (place.parent, *(folder.parent for folder in made)):
            _sync(changed)


def _write(file: BinaryIO, view: memoryview) -> None:
    with view:
        done = 0
        while done < len(view):
            done += file.write(view[done:])


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class PublishedAnswers:
    """An authority's signed answers, as published; opened again when they were replaced."""

    def __init__(self, directory: Path, authority: str) -> None:
        """Read the answers of an authority; there need not be any yet."""
        self._path = directory / answers_path(authority)
        self._db: sqlite3.Connection | None = None
        self._seen: tuple[int, int, int] | None = None

    def refresh(self) -> None:
        """Look whether there are newer ones.

        Raises:
            errors.Unavailable: they cannot be read.
        """
        with _translated(str(self._path)):
            try:
                stat = self._path.stat()
            except (FileNotFoundError, NotADirectoryError):
                self.close()
                return
        seen = (stat.st_dev, stat.st_ino, stat.st_mtime_ns)
        if seen != self._seen:
            self.close()
            with _translated(str(self._path)):
                # Nobody writes to a file that is published, so none of SQLite's locks are wanted.
                self._db = sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
                self._db.execute("PRAGMA mmap_size=1073741824")
            self._seen = seen

    def find(self, algorithm: str, serial_number: int) -> SignedAnswer | None:
        """Return the answer about a certificate, if there is one.

        Raises:
            errors.Unavailable: the file cannot be read.
        """
        if self._db is None:
            return None
        with _translated(str(self._path)):
            row = self._db.execute(
                "SELECT response, this_update, next_update FROM answer WHERE cert = ?",
                (_answer_key(algorithm, serial_number),),
            ).fetchone()
        if row is None:
            return None
        octets, this_update, next_update = row
        return SignedAnswer(
            algorithm=algorithm,
            serial_number=serial_number,
            octets=octets,
            this_update=datetime.fromtimestamp(this_update, UTC),
            next_update=datetime.fromtimestamp(next_update, UTC),
        )

    def close(self) -> None:
        """Let go of the file."""
        if self._db is not None:
            self._db.close()
            self._db = self._seen = None
