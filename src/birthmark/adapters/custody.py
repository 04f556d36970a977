"""What every key store checks before it reads a secret: whose the file is, and who else may touch it.

The rule kept here: a file that holds a secret is a regular file of this user (or of root) which group and
others cannot touch, checked on the opened descriptor, so that nothing can be swapped between check and read.
The symbolic links that orchestrators mount secrets through are followed; it is the file behind them that is
checked.  One exception: on a read-only mount other than that of ``/``, as
container engines and systemd hand secrets over, mode and owner are the mount's affair and are not looked at.

Left to others: encryption (``softkeys``), what the secret opens (``pkcs11``), asking at a terminal (edges).
"""

import os
import stat
from pathlib import Path

from birthmark import errors
from birthmark.secret import SecretBytes

__all__ = ["SECRET_FILE_LIMIT", "read_passphrase_file", "read_private_file"]

SECRET_FILE_LIMIT = 1024
"""The longest passphrase file we read, in octets."""


def read_passphrase_file(path: Path) -> SecretBytes:
    """Read a passphrase or PIN: the octets of the file without one line end (LF or CR LF).

    Raises:
        errors.NotFound: there is no such file.
        errors.NotPermitted: others than its owner may touch it, or it belongs to somebody else, and it is not
            on a read-only mount of its own.
        errors.MalformedRequest: it holds nothing.
        errors.TooLarge: it is longer than ``SECRET_FILE_LIMIT``.
        errors.Unavailable: the operating system cannot read it.
    """
    content = read_private_file(path, SECRET_FILE_LIMIT)
    secret = content.removesuffix(b"\n")
    if secret != content:
        secret = secret.removesuffix(b"\r")
    if not secret:
        raise errors.MalformedRequest(f"{path} holds no passphrase")
    return SecretBytes(secret)


def read_private_file(path: Path, limit: int, *, follow_links: bool = True) -> bytes:
    """Read a file of at most ``limit`` octets which only its owner, who is we or root, may touch.

    On a read-only mount other than that of ``/`` any regular file will do.

    Raises:
        errors.NotFound: there is no such file.
        errors.NotPermitted: its mode, owner or kind is not that of a private file; says how to mend it.
        errors.TooLarge: it is longer than ``limit``.
        errors.Unavailable: the operating system cannot read it.
    """
    # O_NONBLOCK: opening a FIFO must not wait for a writer; it means nothing to the regular files we accept.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    if not follow_links and path.is_symlink():
        raise errors.NotPermitted(f"{path} is a symbolic link: put the file itself there")
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError as missing:
        raise errors.NotFound(f"there is no file {path}") from missing
    except OSError as failure:
        raise errors.Unavailable(f"{path} cannot be opened: {failure.strerror}") from failure
    try:
        try:
            _require_private(path, descriptor)
        except errors.Refusal:
            os.close(descriptor)
            raise
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(limit + 1)
    except OSError as failure:
        raise errors.Unavailable(f"{path} cannot be read: {failure.strerror}") from failure
    if len(content) > limit:
        raise errors.TooLarge(f"{path} is longer than {limit} bytes")
    return content


def _require_private(path: Path, descriptor: int) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise errors.NotPermitted(f"{path} is not a regular file")
    read_only = os.fstatvfs(descriptor).f_flag & os.ST_RDONLY
    if read_only and status.st_dev != Path("/").stat().st_dev:
        # Handed over by a container engine or systemd on a mount of its own: the mount says who reads it,
        # and the modes there (0444 as a rule) are not ours to choose.
        return
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise errors.NotPermitted(
            f"{path} is open to group or others (mode {mode:04o}): run chmod go= {path}, "
            "and change what others may have read"
        )
    if status.st_uid not in {0, os.geteuid()}:
        raise errors.NotPermitted(
            f"{path} belongs to user {status.st_uid}, not to us or root: run chown on it"
        )
