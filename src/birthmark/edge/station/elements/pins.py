"""PINs, from files that nobody else can read: a PIN in a URL would stand in every list of processes."""

from pathlib import Path

from birthmark.edge.station.folder import Folder
from birthmark.errors import MalformedRequest, NotFound
from birthmark.secret import SecretBytes

__all__ = ["read_pin"]


def read_pin(path: str | None, option: str) -> SecretBytes:
    """Return the PIN in a file: its octets, without the line's end.

    Args:
        path: of the file; it and its directory belong to their owner alone.
        option: what names the file, for the complaint.

    Raises:
        MalformedRequest: no file is named, or there is no PIN in it.
        NotFound: there is no such file.
        NotPermitted: others may read it.
    """
    if not path:
        raise MalformedRequest(f"the element needs a PIN: name a file that holds it, {option}=FILE")
    file = Path(path).absolute()
    folder = Folder(file.parent)
    try:
        content = folder.read_private(file.name)
    finally:
        folder.close()
    if content is None:
        raise NotFound(f"there is no {file}")
    pin = content.removesuffix(b"\n").removesuffix(b"\r")
    if not 1 <= len(pin) <= 127:
        raise MalformedRequest(f"{file} holds no PIN of 1 to 127 octets")
    return SecretBytes(pin)
