"""A PKCS#11 token that is a process: it can be killed, stopped and started again, as an HSM can.

``p11-kit server`` holds SoftHSM's module and serves it on a socket; the module that our program loads is
p11-kit's client.  Each connection has a process of its own there (``p11-kit-remote``), forked by the server.
Between p11-kit and the two ends sits ``pkcs11shim.c``, because p11-kit 0.24 carries neither EdDSA nor
AES-CMAC; what it does not carry either (deriving, RFC 5649) cannot be tried here.
"""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support.programs import missing, need
from tests.support.server import group_members, until
from tests.support.softhsm import SoftHSM, softhsm_token

__all__ = ["TokenProcess", "cloned", "token_process"]

_SOURCE = Path(__file__).with_name("pkcs11shim.c")


@dataclass(slots=True, kw_only=True)
class TokenProcess:
    """One token behind a socket."""

    token: SoftHSM
    """What is behind it; SoftHSM's own module sees the same objects."""
    folder: Path
    module: Path
    """What a program loads to reach it."""
    _provider: Path
    _server: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def address(self) -> Path:
        """Where it is served."""
        return self.folder / "socket"

    def start(self) -> None:
        """Serve it."""
        self.address.unlink(missing_ok=True)
        command = [need("p11-kit"), "server", "--foreground", "--name", str(self.address)]
        with (self.folder / "server.log").open("ab") as log:
            self._server = subprocess.Popen(
                [*command, "--provider", str(self._provider), "pkcs11:"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "SOFTHSM2_CONF": str(self.token.configuration)},
            )
        assert until(self._listens), (self.folder / "server.log").read_text()

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.address)) == 0

    def kill(self) -> None:
        """End it with all its connections, at once."""
        if self._server is None:
            return
        group, server, self._server = self._server.pid, self._server, None
        os.killpg(group, signal.SIGKILL)
        server.wait(10)
        assert until(lambda: not group_members(group))

    def connections(self) -> int:
        """Return how many programs are connected."""
        assert self._server is not None
        return len(group_members(self._server.pid)) - 1

    def drop_connections(self) -> None:
        """Kill the processes of the connections; the next call of a client finds a new one."""
        assert self._server is not None
        for pid in group_members(self._server.pid):
            if pid != self._server.pid:
                os.kill(pid, signal.SIGKILL)

    def hang(self) -> None:
        """Stop it: whoever calls waits, for ever."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, signum: int) -> None:
        assert self._server is not None
        os.killpg(self._server.pid, signum)


def _compiled(to: Path, inner: Path, *, address: str = "", token_side: bool) -> Path:
    defines = [f'-DINNER="{inner}"', f'-DADDRESS="{address}"', f"-DTOKEN_SIDE={int(token_side)}"]
    subprocess.run(
        [need("cc", "gcc"), "-shared", "-fPIC", "-O1", *defines, "-o", str(to), str(_SOURCE), "-ldl"],
        check=True,
        capture_output=True,
    )
    return to


def _client() -> Path:
    folders = [Path("/usr/lib"), Path("/usr/lib64"), Path("/usr/local/lib")]
    found = [path for folder in folders for path in folder.glob("**/pkcs11/p11-kit-client.so")]
    if not found:
        missing("p11-kit's client module is not installed (Debian package p11-kit-modules)")
    return found[0]


@contextmanager
def _served(folder: Path, token: SoftHSM) -> Iterator[TokenProcess]:
    folder.mkdir()
    # A copy of its own: the address is the library's, and a process has one of each file.
    inner = folder / "client.so"
    shutil.copy(_client(), inner)
    made = TokenProcess(
        token=token,
        folder=folder,
        module=_compiled(
            folder / "module.so", inner, address=f"unix:path={folder / 'socket'}", token_side=False
        ),
        _provider=_compiled(folder / "provider.so", token.module, token_side=True),
    )
    made.start()
    try:
        yield made
    finally:
        made.kill()


@contextmanager
def token_process(folder: Path, *, label: str = "floor") -> Iterator[TokenProcess]:
    """Make a token in an existing folder, and serve it."""
    with softhsm_token(folder, label=label) as token, _served(folder / "served", token) as served:
        yield served


@contextmanager
def cloned(first: TokenProcess, folder: Path) -> Iterator[TokenProcess]:
    """Serve a second token that holds what the first one holds now, as makers of HSMs clone them."""
    folder.mkdir()
    tokens, configuration = folder / "tokens", folder / "softhsm2.conf"
    shutil.copytree(first.token.tokens, tokens)
    text = first.token.configuration.read_text().replace(str(first.token.tokens), str(tokens))
    configuration.write_text(text)
    twin = replace(first.token, tokens=tokens, configuration=configuration)
    with _served(folder / "served", twin) as served:
        yield served
