"""The machine under the benchmark: what it is, how busy it was, and what processes cost it (proc(5))."""

import os
import platform
import sqlite3
import ssl
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import cryptography
from cryptography.hazmat.backends.openssl import backend

__all__ = ["BUSY", "cpu_seconds", "describe", "family", "load_average"]

BUSY = 0.5
"""A load average above this, before the run, makes its figures doubtful."""
_TICKS = os.sysconf("SC_CLK_TCK")


def describe(directory: Path) -> dict[str, str]:
    """Return what a reader must know of the machine; ``directory`` is where the databases will lie."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": f"{_cpu_model()}, {len(os.sched_getaffinity(0))} cores usable",
        "memory": f"{memory:.0f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "file system": _file_system(directory),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "tls": ssl.OPENSSL_VERSION,
        "signatures": f"cryptography {cryptography.__version__}, {backend.openssl_version_text()}",
        "sqlite": sqlite3.sqlite_version,
    }


def load_average() -> float:
    """Return the load average of the last minute."""
    return os.getloadavg()[0]


def family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            children.setdefault(int(_stat(int(folder.name))[1]), []).append(int(folder.name))
    found = [pid]
    for member in found:  # grows while it is walked
        found += children.get(member, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time these processes and their ended children have used; resolution 1/SC_CLK_TCK."""
    ticks = 0
    for pid in pids:
        with suppress(OSError):
            ticks += sum(int(field) for field in _stat(pid)[11:15])  # utime, stime, cutime, cstime
    return ticks / _TICKS


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, which may hold blanks and parentheses."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def _cpu_model() -> str:
    fields: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    return fields.get("model name") or platform.machine()


def _file_system(directory: Path) -> str:
    """Return type and device of the mount that holds a directory (the longest matching mount point)."""
    best = ("", "unknown")
    for line in Path("/proc/mounts").read_text().splitlines():
        device, point, kind, *_ = line.split()
        if directory.resolve().is_relative_to(point) and len(point) >= len(best[0]):
            best = (point, f"{kind} on {device}")
    return best[1]
