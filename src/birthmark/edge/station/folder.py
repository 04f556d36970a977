"""A directory whose files change only whole.

``Folder`` holds a directory open and does everything relative to it, so that nobody can put another
directory in its place meanwhile.  ``write`` makes the new content in a temporary file that has its final
mode from the first moment, flushes it, renames it over the old one and flushes the directory: a crash at
any moment leaves the old content or the new, never half.  ``lock`` keeps other processes out.

``read_private`` reads what nobody else may have: it looks at the file it has opened, not at its name.

Linux only: ``flock`` and file modes are part of the promise.  What the files mean is for others.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE, S_ISREG

from birthmark.errors import IntegrityFailure, NotFound, NotPermitted, Unavailable

__all__ = ["Folder", "flush_directory"]

_LARGEST_FILE = 1 << 20
_TEMPORARY = ".{}.new"


class Folder:
    """A directory that only its owner can enter."""

    def __init__(self, path: str | os.PathLike[str], *, create: bool = False) -> None:
        """Open a directory, with ``create`` after making it (mode 0700) where it is missing.

        Raises:
            NotFound: there is no such directory.
            NotPermitted: it may not be opened, or others than its owner may enter it.
        """
        self.path = Path(path)
        self._fd = -1
        if create and not self.path.exists():
            with suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            flush_directory(self.path.parent)
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as wrong:
            raise NotFound(f"there is no directory {self.path}") from wrong
        except PermissionError as wrong:
            raise NotPermitted(f"{self.path} may not be opened") from wrong
        if (mode := S_IMODE(os.fstat(self._fd).st_mode)) & 0o077:
            raise NotPermitted(f"{self.path} has the mode {mode:04o}: others may enter; chmod 700")

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the directory and of its lock."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def lock(self) -> None:
        """Keep the directory for this object until it is closed.

        Raises:
            Unavailable: somebody else has it.
        """
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            raise Unavailable(f"{self.path} is in use by another process") from taken

    @contextmanager
    def locked(self, name: str) -> Iterator[int]:
        """Wait for the lock on a file (made where it is missing, mode 0600) and yield its descriptor."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(name, flags, 0o600, dir_fd=self._fd)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)

    def read(self, name: str) -> bytes | None:
        """Return a file's content, or None if there is no such file.

        Raises:
            NotPermitted: it may not be read.
            IntegrityFailure: it is larger than 1 MiB: none of ours is.
        """
        fd = self._open(name)
        return None if fd is None else self._content(name, fd)

    def read_private(self, name: str) -> bytes | None:
        """Return the content of a file that holds a secret, or None if there is no such file.

        Args:
            name: of the file, in this directory; or a path, relative to it or absolute.

        Raises:
            NotPermitted: it is no regular file, others than its owner may touch it, or it belongs to somebody
                else than us or root.
            IntegrityFailure: it is larger than 1 MiB: none of ours is.
        """
        fd = self._open(name)
        if fd is None:
            return None
        try:
            self._require_private(name, os.fstat(fd))
        except NotPermitted:
            os.close(fd)
            raise
        return self._content(name, fd)

    def _open(self, name: str) -> int | None:
        try:
            # O_NONBLOCK: opening a FIFO must not wait for a writer.
            return os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=self._fd)
        except FileNotFoundError:
            return None
        except PermissionError as wrong:
            raise NotPermitted(f"{self.path / name} may not be read") from wrong

    def _content(self, name: str, fd: int) -> bytes:
        with os.fdopen(fd, "rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise IntegrityFailure(f"{self.path / name} is larger than {_LARGEST_FILE} octets")
        return content

    def _require_private(self, name: str, status: os.stat_result) -> None:
        path = self.path / name
        if not S_ISREG(status.st_mode):
            raise NotPermitted(f"{path} is not a regular file")
        if (mode := S_IMODE(status.st_mode)) & 0o077:
            raise NotPermitted(f"{path} has the mode {mode:04o}: others may touch it; chmod 400")
        if status.st_uid not in {0, os.geteuid()}:
            raise NotPermitted(f"{path} belongs to user {status.st_uid}, not to us or root: run chown on it")

    def exists(self, name: str) -> bool:
        """Tell whether there is a file of this name."""
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def write(self, name: str, content: bytes, *, mode: int, durable: bool = True) -> None:
        """Replace a file's content.

        Args:
            name: of the file, in this directory.
            content: all of it.
            mode: permission bits, from the first moment on.
            durable: with False the rename is still atomic, but a power cut may bring the old content back.
        """
        temporary = _TEMPORARY.format(name)
        with suppress(FileNotFoundError):  # what a crash left behind
            os.unlink(temporary, dir_fd=self._fd)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(temporary, flags, mode, dir_fd=self._fd), "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        if durable:
            os.fsync(self._fd)

    def append(self, name: str, content: bytes) -> None:
        """Add to the end of a file (made where it is missing, mode 0600)."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        with os.fdopen(os.open(name, flags, 0o600, dir_fd=self._fd), "ab", buffering=0) as file:
            file.write(content)

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in the place of whatever had that name."""
        os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        os.fsync(self._fd)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)
            os.fsync(self._fd)


def flush_directory(path: Path) -> None:
    """Make durable which names a directory has (fsync(2))."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
