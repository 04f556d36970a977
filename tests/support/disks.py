"""Small disks that fill up, and a network between a service and its database that can be cut."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.support.programs import missing

__all__ = ["Network", "SmallDisk", "small_disk"]


class SmallDisk:
    """A file system in memory that takes so much and no more."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def free(self) -> int:
        """Octets that are left."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_bsize

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Let nothing be left of it."""
        filler = self.path / "filler"
        try:
            with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            yield
        finally:
            filler.unlink()

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Be mounted read-only; nobody may have a file open for writing."""
        _mount("-o", "remount,ro", str(self.path))
        try:
            yield
        finally:
            _mount("-o", "remount,rw", str(self.path))


@contextlib.contextmanager
def small_disk(size: str) -> Iterator[SmallDisk]:
    """Mount one, of ``8m`` or so; skip the test (fail it in CI) where nothing can be mounted."""
    path = Path(tempfile.mkdtemp(prefix="birthmark-disk-"))
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", str(path)],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        if mounted.returncode != 0:
            missing(f"nothing can be mounted here: {mounted.stderr.strip()}")
        try:
            yield SmallDisk(path)
        finally:
            subprocess.run(["umount", "-l", str(path)], check=True)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _mount(*options: str) -> None:
    subprocess.run(["mount", *options], check=True, capture_output=True)


class Network:
    """Carries connections to a port, until it is told not to.

    ``cut`` breaks all connections and takes no new ones; ``swallow`` leaves them open and carries nothing any
    more, as when a machine lost its power; ``mend`` ends both, what is open being broken.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        self._carries = threading.Event()
        self._carries.set()
        self._cut = False
        self._ended = False
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept)
        self._acceptor.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._listener.shutdown(socket.SHUT_RDWR)
        self._carries.set()
        self._acceptor.join()
        self._listener.close()
        self._break()
        for thread in self._threads:
            thread.join()

    def cut(self) -> None:
        """Break everything."""
        self._cut = True
        self._break()

    def swallow(self) -> None:
        """Carry nothing, and say nothing."""
        self._carries.clear()

    def mend(self) -> None:
        """Work again, for new connections."""
        self._break()
        self._cut = False
        self._carries.set()

    def _break(self) -> None:
        for end in tuple(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._ended:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._cut:
                near.close()
                continue
            self._threads.append(threading.Thread(target=self._serve, args=(near,)))
            self._threads[-1].start()

    def _serve(self, near: socket.socket) -> None:
        with near:
            try:
                far = socket.create_connection(self._target)
            except OSError:
                return
            with far:
                self._open |= {near, far}
                back = threading.Thread(target=self._carry, args=(far, near))
                back.start()
                self._carry(near, far)
                back.join()
                self._open -= {near, far}

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._carries.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
