"""Files of profiles that an installation takes in: read whole, put in place whole."""

import os
from pathlib import Path

from birthmark import errors
from birthmark.edge.station.folder import flush_directory

__all__ = ["put_in_place", "read_whole"]


def read_whole(file: Path, longest: int) -> bytes:
    """Return what is in a file.

    Raises:
        errors.NotFound: it cannot be read.
        errors.TooLarge: it has more octets than the longest.
    """
    try:
        with file.open("rb") as opened:
            octets = opened.read(longest + 1)
    except OSError as cause:
        raise errors.NotFound(f"cannot read {file}: {cause.strerror}") from cause
    if len(octets) > longest:
        raise errors.TooLarge(f"{file} has more than {longest} octets")
    return octets


def put_in_place(directory: Path, name: str, octets: bytes) -> None:
    """Put a file into a directory, whole or not at all; make the directory if there is none.

    Raises:
        errors.Unavailable: it cannot be written.
    """
    unfinished = directory / f".{name}.unfinished"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            file.write(octets)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(directory / name)
    except OSError as cause:
        raise errors.Unavailable(f"cannot write {directory / name}: {cause.strerror}") from cause
    flush_directory(directory)
