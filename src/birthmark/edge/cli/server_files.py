"""The server's key and certificate on disk, which change as one.

Two files cannot be renamed in one step, and a service that starts between two renames would find a key and a
certificate that do not belong together.  So both names become symbolic links through one that is changed in
one step (rename(2)):

    server.crt                    -> secrets/server.key.d/current/certificate.pem
    secrets/server.key            -> server.key.d/current/key.pem
    secrets/server.key.d/current  -> 5f2c…, a directory that holds both files of one generation

Rules kept here: whatever step a crash comes after, the two names lead to files that belong together, the
former pair or the new one, and the next renewal goes on from there; every file is durable before a name leads
to it; links are relative, so that a realm's directory may be moved.  The first renewal makes plain files into
links without changing what is read through them.  The passphrase stays: it is the key that is new.

Left to others: what is certified (``servers``), and that a running service reads the files again.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from birthmark import errors
from birthmark.edge.cli.credentials import DIRECTORY_MODE, PRIVATE_MODE, write_new_file
from birthmark.edge.station.folder import flush_directory
from birthmark.settings import StationPlane
from birthmark.settings_gateway import GatewayPlane

__all__ = ["ServerFiles", "changing"]

_CURRENT = "current"
_CERTIFICATE, _KEY = "certificate.pem", "key.pem"


class ServerFiles:
    """The two names of a server's files, and the directory that keeps what they lead to."""

    def __init__(self, certificate_file: Path, key_file: Path) -> None:
        """Know the names; nothing is read or written yet."""
        self._names = {_CERTIFICATE: _real_name(certificate_file), _KEY: _real_name(key_file)}
        self.directory = self._names[_KEY].with_name(f"{key_file.name}.d")

    def make_links(self) -> None:
        """Make both names links, if they are plain files; what is read through them stays the same."""
        plain = [name for name in self._names if not self._is_linked(name)]
        if not plain:
            return
        current = self.directory / _CURRENT
        if len(plain) == len(self._names) and current.is_dir() and not current.is_symlink():
            shutil.rmtree(current)  # the realm was copied by a program that copies what links lead to
        self.put(*(path.read_text(encoding="ascii") for path in self._names.values()))
        for name in plain:
            path = self._names[name]
            _point(path, Path(os.path.relpath(current / name, path.parent)))

    def put(self, certificate_pem: str, key_pem: str) -> None:
        """Make this the pair that both names lead to, in one step and durably, and forget every other.

        The certificate comes with the authorities above it; the key is encrypted PKCS #8.
        """
        generation = Path(mkdtemp(dir=self.directory, prefix=""))  # mode 0700
        write_new_file(generation / _CERTIFICATE, certificate_pem)
        write_new_file(generation / _KEY, key_pem, PRIVATE_MODE)
        flush_directory(generation)
        flush_directory(self.directory)
        _point(self.directory / _CURRENT, Path(generation.name))
        for other in self.directory.iterdir():
            if other.name not in {_CURRENT, generation.name}:
                other.unlink() if other.is_symlink() else shutil.rmtree(other)

    def _is_linked(self, name: str) -> bool:
        path = self._names[name]
        if not path.is_symlink():
            return False
        return os.path.normpath(path.parent / path.readlink()) == str(self.directory / _CURRENT / name)


@contextmanager
def changing(plane: StationPlane | GatewayPlane) -> Iterator[ServerFiles]:
    """Make ready to change the files of a plane's server: nobody else changes them meanwhile.

    Raises:
        errors.NotFound: there is no key or certificate to be renewed.
        errors.Unavailable: they cannot be replaced, or somebody is replacing them.
    """
    files = ServerFiles(plane.certificate_file, plane.key_file)
    descriptor = -1
    try:
        files.directory.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        descriptor = os.open(files.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        files.make_links()
        yield files
    except BlockingIOError as cause:
        raise errors.Unavailable(f"somebody else is renewing {plane.key_file}") from cause
    except FileNotFoundError as cause:
        raise errors.NotFound(f"{cause.filename} cannot be read: {cause.strerror}") from cause
    except OSError as cause:
        raise errors.Unavailable(
            f"{cause.filename or plane.key_file} cannot be replaced: {cause.strerror}"
        ) from cause
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _real_name(path: Path) -> Path:
    """Return the path without links in its directories; the last part may be one."""
    return path.parent.resolve() / path.name


def _point(link: Path, target: Path) -> None:
    """Have a name lead to a target, in one step and durably, whatever it was before."""
    waiting = link.with_name(f".{link.name}.next")
    waiting.unlink(missing_ok=True)  # what a crash left behind
    waiting.symlink_to(target)
    waiting.rename(link)
    flush_directory(link.parent)
