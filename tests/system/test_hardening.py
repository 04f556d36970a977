"""A process that holds secrets keeps them to itself (SPEC B7): asked of the kernel, and tried from outside.

Who tries is a process of the same user, with the tools that a debugger has; a process of that user which did
not shut itself is read by the very same means, or the tests would prove nothing.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cryptography
import pytest

import birthmark
from birthmark.edge.station import Enclave, Station
from tests.support.programs import missing, need
from tests.support.server import RUN, RealmDirectory, Server, copy_realm

USER = "nobody"
_AS_USER: Mapping[str, Any] = {"user": USER, "group": "nogroup", "extra_groups": [], "cwd": "/"}
_PYTHON = "/usr/bin/python3"
"""The system's own: everybody gets to it, as not to the one that runs the tests."""
_PROGRAM = (_PYTHON, "-m", "birthmark")
_ENVIRONMENT = {
    "PYTHONPATH": ":".join(
        str(Path(module.__file__ or "").parents[1]) for module in (birthmark, cryptography)
    )
}
_READER = """
import ctypes, os, sys
pid, address = int(sys.argv[1]), int(sys.argv[2], 16)
class Vector(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("size", ctypes.c_size_t)]
kept = ctypes.create_string_buffer(16)
local, remote = Vector(ctypes.addressof(kept), 16), Vector(address, 16)
libc = ctypes.CDLL(None, use_errno=True)
got = libc.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
print("vm", got if got >= 0 else os.strerror(ctypes.get_errno()))
try:
    memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    print("mem", len(os.pread(memory, 16, address)))
except OSError as refused:
    print("mem", refused.strerror)
"""
"""Reads 16 octets of another process, in two ways, and says what came of it."""
_FILTERED = """
import ctypes, os, platform, struct, sys
prctl = {"x86_64": 157, "aarch64": 167}[platform.machine()]
dumpable, refused, allowed = 4, 0x50001, 0x7FFF0000
program = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (0x20, 0, 0, 0), (0x15, 0, 3, prctl), (0x20, 0, 0, 16), (0x15, 0, 1, dumpable),
        (0x06, 0, 0, refused), (0x06, 0, 0, allowed),
    )
)
octets = ctypes.create_string_buffer(program)
class Program(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("first", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(program) // 8, ctypes.addressof(octets))), 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-m", "birthmark", "version"])
"""
"""Refuses prctl(PR_SET_DUMPABLE) with EPERM (seccomp(2)), and becomes the command."""


@pytest.fixture(name="realm")
def _realm() -> Iterator[RealmDirectory]:
    """Return a realm at a place where others than root can get to."""
    if os.geteuid() != 0:
        missing("only root can become another user")
    here = ".".join(map(str, sys.version_info[:2]))
    if not Path(f"{_PYTHON}{here.removeprefix('3')}").exists():
        missing(f"{_PYTHON} is not Python {here}, for which the dependencies are installed")
    folder = Path(tempfile.mkdtemp(prefix="birthmark-hardening-"))
    try:
        folder.chmod(0o711)
        yield copy_realm(folder / "realm")
    finally:
        shutil.rmtree(folder)


def given_to(realm: RealmDirectory, user: str) -> None:
    """Make somebody the owner of all of it."""
    for path in (realm.path, *realm.path.rglob("*")):
        shutil.chown(path, user)


def with_service(realm: RealmDirectory, *lines: str, environment: str | None = None) -> None:
    """Write the settings' table of the service."""
    text = realm.settings.read_text(encoding="utf-8")
    if environment is not None:
        text = re.sub(r"(?m)^environment = .*$", f'environment = "{environment}"', text)
    realm.settings.write_text("\n".join([text, "[service]", *lines, ""]), encoding="utf-8")


def status_of(pid: int) -> dict[str, str]:
    """Return what the kernel says of a process (proc(5))."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def limit_of(pid: int, name: str) -> tuple[str, str]:
    """Return the soft and the hard limit of a process."""
    lines = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
    (line,) = [line for line in lines if line.startswith(name)]
    soft, hard = line.removeprefix(name).split()[:2]
    return soft, hard


def low_port() -> int:
    """Return a free port that only root can bind."""
    for port in range(1023, 600, -1):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise OSError("no port below 1024 is free")


def told_by(pid: int, address: int) -> dict[str, str]:
    """Return what a process of the same user hears when it reads another."""
    done = subprocess.run(
        [_PYTHON, "-c", _READER, str(pid), hex(address)],
        check=True, capture_output=True, text=True, **_AS_USER,
    )  # fmt: skip
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def stack_of(pid: int) -> int:
    """Return an address that every process has something at."""
    maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")
    begin, *_ = re.findall(r"^([0-9a-f]+)-\S+ rw.*\[heap\]$", maps, re.MULTILINE)
    return int(begin, 16)


def debugger(pid: int) -> str:
    """Return what gdb says when somebody of the same user attaches with it."""
    done = subprocess.run(
        [need("gdb"), "--batch", "-nx", "-ex", "info proc", "-p", str(pid)],
        check=False, capture_output=True, text=True, **_AS_USER,
        env={"HOME": "/nonexistent", "PATH": os.environ["PATH"], "DEBUGINFOD_URLS": ""}, timeout=60,
    )  # fmt: skip
    said: str = done.stdout + done.stderr
    return said


@contextlib.contextmanager
def open_process() -> Iterator[int]:
    """Run a process of the same user that does not shut itself."""
    program = "import sys; print('ready', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [_PYTHON, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **_AS_USER
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid
        finally:
            process.kill()


@pytest.mark.parametrize("processes", [1, 2])
def test_root_binds_and_somebody_else_serves(realm: RealmDirectory, processes: int) -> None:
    with_service(realm, f'user = "{USER}"')
    given_to(realm, USER)
    low = realm.listening_on(low_port())
    with Server(realm=low, processes=processes, command=_PROGRAM, environment=_ENVIRONMENT) as server:
        station = realm.path.parent / "station"
        shutil.copytree(realm.station(), station)
        given_to(RealmDirectory(path=station, port=0, database_url=""), "root")
        with Station(station, low.url) as line, Enclave(str(realm.path.parent / "device")) as device:
            line.provision(RUN, "HARD-1", device, delivered=True)
        for pid in {server.pid, *server.workers()}:
            status = status_of(pid)
            assert status["Uid"].split() == ["65534"] * 4
            assert status["Gid"].split() == ["65534"] * 4
            assert "0" not in status["Groups"].split()
            assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
            assert status["NoNewPrivs"] == "1"
            assert limit_of(pid, "Max core file size") == ("0", "0")
        assert f"the service runs as {USER}" in server.told()
        assert server.stop() == 0


def test_nobody_of_the_same_user_looks_in(realm: RealmDirectory) -> None:
    with_service(realm, f'user = "{USER}"')
    given_to(realm, USER)
    with open_process() as pid:
        assert told_by(pid, stack_of(pid)) == {"vm": "16", "mem": "16"}
        assert "ptrace" not in debugger(pid)
    with Server(realm=realm, processes=2, command=_PROGRAM, environment=_ENVIRONMENT) as server:
        for pid in {server.pid, *server.workers()}:
            heard = told_by(pid, stack_of(pid))
            assert heard == {"vm": "Operation not permitted", "mem": "Permission denied"}
            assert "Operation not permitted" in debugger(pid)


def test_a_command_shuts_itself_too(realm: RealmDirectory) -> None:
    """While it waits for a service that is away, ``provision`` holds the station's key."""
    command = [
        sys.executable, "-m", "birthmark", "provision", "--station", str(realm.station()), "--run", RUN,
        "--hardware-id", "WAIT-1", "--enclave", str(realm.path.parent / "device"), "--patience", "60",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE) as waiting:
        try:
            assert waiting.stderr is not None
            assert b"waiting" in waiting.stderr.readline()
            assert status_of(waiting.pid)["NoNewPrivs"] == "1"
            assert limit_of(waiting.pid, "Max core file size") == ("0", "0")
        finally:
            waiting.kill()


def test_a_command_that_cannot_shut_itself_does_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", _FILTERED], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (75, "")
    assert "cannot keep others out: prctl 4: operation not permitted: allow it where" in done.stderr
    assert "Traceback" not in done.stderr


def test_memory_is_locked_where_that_is_allowed(realm: RealmDirectory) -> None:
    with Server(realm=realm, processes=2) as server:
        for pid in server.workers():
            locked = int(status_of(pid)["VmLck"].split()[0])
            assert locked > 0 or "set LimitMEMLOCK=infinity" in server.told()
            if int(status_of(pid)["CapEff"], 16) >> 14 & 1:
                assert locked > 0


def test_under_a_limit_nothing_is_locked_and_the_log_says_what_to_set(realm: RealmDirectory) -> None:
    with_service(realm, f'user = "{USER}"')
    given_to(realm, USER)
    limited = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 << 20, 8 << 20))\n"
        "from birthmark.edge import hardening\n"
        "from birthmark.__main__ import main\n"
        "main()\n"
    )
    with Server(realm=realm, command=(_PYTHON, "-c", limited), environment=_ENVIRONMENT) as server:
        limit = limit_of(server.pid, "Max locked memory")
        status = status_of(server.pid)
        if "unlimited" not in limit:
            assert status["VmLck"] == "0 kB"
            (line,) = [one for one in server.events() if "memory is not locked" in one["event"]]
            assert "set LimitMEMLOCK=infinity" in line["event"]


def refused(realm: RealmDirectory, code: int = 77, program: str = "") -> str:
    """Return what ``serve`` says when it refuses to; ``program`` is what comes before it."""
    begin = "from birthmark.__main__ import main\nmain()\n"
    done = subprocess.run(
        [_PYTHON, "-c", program + begin, "serve", "--settings", str(realm.settings)],
        check=False, capture_output=True, text=True, timeout=100, env=os.environ | _ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_root_does_not_serve_a_realm_of_production(realm: RealmDirectory) -> None:
    with_service(realm, environment="production")
    assert "a realm of production is not served by root" in refused(realm)


def test_root_serves_production_where_the_settings_say_so(realm: RealmDirectory) -> None:
    with_service(realm, "allow-root = true", environment="production")
    # It goes on to find that this realm is of a test environment.
    assert "the service runs as root" in refused(realm, 70)


def test_what_the_user_cannot_read_is_named_at_the_start(realm: RealmDirectory) -> None:
    with_service(realm, f'user = "{USER}"')
    given_to(realm, USER)
    for name in ("secrets/server.key", "birthmark.db"):
        shutil.chown(realm.path / name, "root")
    told = refused(realm)
    assert f"{USER} has no access to" in told
    assert "server.key" in told
    assert "birthmark.db" in told
    assert "chown" in told


def test_who_is_not_root_becomes_nobody_else(realm: RealmDirectory) -> None:
    with_service(realm, 'user = "daemon"')
    given_to(realm, USER)
    as_user = (
        "import os\nos.setgroups([])\nos.setresgid(65534, 65534, 65534)\nos.setresuid(65534, 65534, 65534)\n"
    )
    assert "only root can become daemon" in refused(realm, program=as_user)


def test_a_user_who_does_not_exist_is_told(realm: RealmDirectory) -> None:
    with_service(realm, 'user = "no-such-user"')
    assert "there is no user no-such-user" in refused(realm, 66)
    found = json.loads(realm.run("config", "check", "--json", check=False).stdout)
    assert {row["check"]: row["verdict"] for row in found}["service user"] == "failed"
