"""A file system that keeps until a power cut what was synchronised, and of the rest what chance leaves.

A directory of files in the memory of a program of its own, mounted by FUSE.  What is written is read back at
once, and is durable only after ``fsync`` of the file; that a name was given, taken or changed is durable only
after ``fsync`` of the directory.  ``cut`` is the power cut: of each file's unsynchronised writes a prefix
survives, torn in the middle of one, or any of their sectors (512 or 4096 octets) does, in whatever order; of
the directory's changes a prefix does.  ``fail`` makes it a disk that is full, cannot be written (EIO), or was
set read-only.

As in production nothing is opened for direct I/O: SQLite maps its WAL index and its database through the
kernel's page cache.  What differs: there is one directory, and an ``fsync`` that failed once keeps its writes
for the next.

Whoever has the process running as ``python -m tests.support.lossy DIR`` tells it lines on its standard input;
``mounted`` does.
"""

import contextlib
import errno
import os
import random
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.programs import missing, need

__all__ = ["LossyDisk", "mounted"]

_ROOT = Path(__file__).parents[2]
_FAULTS = {"full": errno.ENOSPC, "broken": errno.EIO, "read-only": errno.EROFS}


@dataclass(slots=True)
class _File:
    number: int
    mode: int
    now: bytearray = field(default_factory=bytearray)
    disk: bytearray = field(default_factory=bytearray)
    unsynchronised: list[tuple[int, bytes | None]] = field(default_factory=list)
    """Writes by offset, and truncations (None), in their order."""

    def write(self, data: bytes, offset: int) -> None:
        _put(self.now, offset, data)
        self.unsynchronised.append((offset, data))

    def truncate(self, size: int) -> None:
        _put(self.now, size, None)
        self.unsynchronised.append((size, None))

    def synchronise(self) -> None:
        for offset, data in self.unsynchronised:
            _put(self.disk, offset, data)
        self.unsynchronised.clear()

    def cut(self, chance: random.Random) -> None:
        """Lose what chance takes of the unsynchronised writes."""
        sector = chance.choice((512, 4096))
        pieces = [piece for write in self.unsynchronised for piece in _sectors(*write, sector)]
        if chance.random() < 0.5:
            survivors = pieces[: chance.randint(0, len(pieces))]
        else:
            survivors = [piece for piece in pieces if chance.random() < 0.5]
        for offset, data in survivors:
            _put(self.disk, offset, data)
        self.now = bytearray(self.disk)
        self.unsynchronised.clear()


def _put(octets: bytearray, offset: int, data: bytes | None) -> None:
    if len(octets) < offset:
        octets.extend(bytes(offset - len(octets)))
    if data is None:
        del octets[offset:]
    else:
        octets[offset : offset + len(data)] = data


def _sectors(offset: int, data: bytes | None, size: int) -> Iterator[tuple[int, bytes | None]]:
    if data is None:
        yield offset, None
        return
    at = offset
    while at < offset + len(data):
        end = min((at // size + 1) * size, offset + len(data))
        yield at, data[at - offset : end - offset]
        at = end


class _Disk:
    """What FUSE asks for; one call at a time."""

    use_ns = True

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = iter(range(2, sys.maxsize))
        self._names: dict[str, _File] = {}
        self._durable_names: dict[str, _File] = {}
        self._changes: list[dict[str, _File]] = []
        """The directory after each change that is not synchronised."""
        self._open: dict[int, _File] = {}
        self._handles = iter(range(1, sys.maxsize))
        self._fault = 0

    # --- what the test says ---

    def cut(self, seed: int) -> None:
        """Cut the power; nobody has a file open any more."""
        with self._lock:
            chance = random.Random(seed)  # noqa: S311  # which sectors survive, no secret
            survived = chance.randint(0, len(self._changes))
            self._durable_names = dict(([self._durable_names, *self._changes])[survived])
            self._names = dict(self._durable_names)
            self._changes.clear()
            for file in self._names.values():
                file.cut(chance)

    def settle(self) -> None:
        """Make everything durable."""
        with self._lock:
            for file in self._names.values():
                file.synchronise()
            self._durable_names, self._changes = dict(self._names), []

    def fail(self, fault: str) -> None:
        """Fail from now on; ``nothing`` ends it."""
        self._fault = _FAULTS.get(fault, 0)

    # --- what FUSE says ---

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, Any]:
        with self._lock:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2, "st_ino": 1}
            file = self._file(path, fh)
            mode = stat.S_IFREG | file.mode
            return {"st_mode": mode, "st_nlink": 1, "st_size": len(file.now), "st_ino": file.number}

    def readdir(self, _path: str, _fh: int) -> list[tuple[str, dict[str, int], int]]:
        with self._lock:
            named = [(name.removeprefix("/"), file.number) for name, file in self._names.items()]
            return [(name, {"st_ino": number}, 0) for name, number in [(".", 1), ("..", 1), *named]]

    def create(self, path: str, mode: int, _flags: int | None = None) -> int:
        with self._lock:
            self._require_health()
            self._names[path] = _File(next(self._numbers), mode & 0o777)
            self._changed()
            return self._opened(self._names[path])

    def open(self, path: str, flags: int) -> int:
        with self._lock:
            if flags & (os.O_WRONLY | os.O_RDWR) and self._fault == errno.EROFS:
                raise OSError(errno.EROFS, "")
            return self._opened(self._file(path, None))

    def opendir(self, _path: str) -> int:
        return 0

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        with self._lock:
            return bytes(self._file(path, fh).now[offset : offset + size])

    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        with self._lock:
            self._require_health()
            self._file(path, fh).write(bytes(data), offset)
            return len(data)

    def truncate(self, path: str | None, length: int, fh: int | None = None) -> int:
        with self._lock:
            self._require_health()
            self._file(path, fh).truncate(length)
            return 0

    def fsync(self, path: str | None, _datasync: int, fh: int) -> int:
        with self._lock:
            self._require_health()
            self._file(path, fh).synchronise()
            return 0

    def fsyncdir(self, _path: str, _datasync: int, _fh: int) -> int:
        with self._lock:
            self._require_health()
            self._durable_names, self._changes = dict(self._names), []
            return 0

    def unlink(self, path: str) -> int:
        with self._lock:
            self._require_health()
            del self._names[path]
            self._changed()
            return 0

    def rename(self, old: str, new: str, _flags: int = 0) -> int:
        with self._lock:
            self._require_health()
            self._names[new] = self._names.pop(old)
            self._changed()
            return 0

    def chmod(self, path: str | None, mode: int, fh: int | None = None) -> int:
        with self._lock:
            self._file(path, fh).mode = mode & 0o777
            return 0

    def chown(self, _path: str, _uid: int, _gid: int) -> int:
        return 0

    def utimens(self, _path: str, _times: object = None) -> int:
        return 0

    def release(self, _path: str | None, fh: int) -> int:
        with self._lock:
            self._open.pop(fh, None)
            return 0

    def _opened(self, file: _File) -> int:
        handle = next(self._handles)
        self._open[handle] = file
        return handle

    def _file(self, path: str | None, fh: int | None) -> _File:
        file = self._open.get(fh or 0) or self._names.get(path or "")
        if file is None:
            raise OSError(errno.ENOENT, "")
        return file

    def _changed(self) -> None:
        self._changes.append(dict(self._names))

    def _require_health(self) -> None:
        if self._fault:
            raise OSError(self._fault, "")


@dataclass(slots=True, kw_only=True)
class LossyDisk:
    """One that is mounted."""

    path: Path
    _process: subprocess.Popen[str]

    def cut(self, seed: int) -> None:
        """Cut the power; whoever used it must be dead."""
        self._tell(f"cut {seed}")

    def settle(self) -> None:
        """Make durable what is there now."""
        self._tell("settle")

    @contextlib.contextmanager
    def failing(self, fault: str) -> Iterator[None]:
        """Be ``full``, ``broken`` or ``read-only`` for a while."""
        self._tell(f"fail {fault}")
        try:
            yield
        finally:
            self._tell("fail nothing")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n", "the file system died"


@contextlib.contextmanager
def mounted(path: Path) -> Iterator[LossyDisk]:
    """Mount one; skip the test (fail it in CI) where FUSE cannot be used."""
    unmount = need("fusermount3", "fuse3")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing("/dev/fuse cannot be used here")
    path.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.lossy", str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    try:
        pause = threading.Event()
        for _ in range(1500):
            if path.is_mount() or process.poll() is not None:
                break
            pause.wait(0.02)
        if not path.is_mount():
            missing(f"FUSE cannot mount here (exit code {process.poll()})")
        yield LossyDisk(path=path, _process=process)
    finally:
        process.kill()
        process.communicate()
        subprocess.run([unmount, "-u", "-z", str(path)], check=False, capture_output=True)


def _obey(commands: dict[str, Callable[[str], None]]) -> None:
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        commands[word](rest)
        sys.stdout.write("done\n")
        sys.stdout.flush()


def _main() -> None:
    from mfusepy import FUSE  # type: ignore[import-untyped]  # noqa: PLC0415  # it has no types; and is needed here only

    disk = _Disk()
    commands: dict[str, Callable[[str], None]] = {
        "cut": lambda rest: disk.cut(int(rest)),
        "settle": lambda _rest: disk.settle(),
        "fail": disk.fail,
    }
    threading.Thread(target=_obey, args=(commands,), daemon=True).start()
    FUSE(
        disk,
        sys.argv[1],
        foreground=True,
        nothreads=True,
        use_ino=True,
        hard_remove=True,
        # What the kernel remembered would outlive a power cut.
        attr_timeout=0,
        entry_timeout=0,
        default_permissions=True,
    )


if __name__ == "__main__":
    _main()
