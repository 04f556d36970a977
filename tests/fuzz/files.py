"""Targets that read files get one, in memory where the machine has a place for that."""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

__all__ = ["as_file", "folder"]

_MEMORY = Path("/dev/shm")  # noqa: S108  # the machine's own, and what is made in it has a name of its own


@cache
def folder(name: str) -> Path:
    """Return a directory that is there as long as the machine keeps it."""
    return Path(tempfile.mkdtemp(prefix=f"birthmark-fuzz-{name}-", dir=_MEMORY if _MEMORY.is_dir() else None))


def as_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Put each input into a file of this name, and have it read."""

    def run(data: bytes) -> object:
        file = folder("file") / name
        file.write_bytes(data)
        file.chmod(0o600)
        return read(file)

    return run
