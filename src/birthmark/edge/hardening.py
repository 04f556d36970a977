"""What the operating system is told of a process that holds secrets (SPEC B7).

    shut          no core file; nobody of the same user looks in; nothing it starts gains rights
    lock          no page of it goes to the swap
    give_up_root  it was started as root to bind its sockets, and is somebody else from then on

Each is told to the kernel, and holds whatever happens in the process afterwards.  Root, and whoever may
trace any process (``CAP_SYS_PTRACE``), is not kept out: nothing in a process can do that.

Left to others: what is secret (``secret``), and the same once more from outside (``deploy/systemd``).
"""

import ctypes
import grp
import logging
import os
import pwd
import resource
import signal
import sys
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from birthmark import errors

if TYPE_CHECKING:  # every command comes by here, and few have settings
    from birthmark.settings import KeyStoreSettings, ServiceSettings, Settings

__all__ = ["end_with", "give_up_root", "lock", "require_user", "shut"]

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NO_NEW_PRIVS = 38
CAP_IPC_LOCK = 14
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
"""Of mlockall(2), as most machines number them; to another, ours are no flags, and it refuses (EINVAL)."""

_Needed = Collection[tuple[Path, int]]
"""Paths, and what is done with them (``os.R_OK`` and its like)."""


def _prctl(option: int, value: int) -> None:
    if sys.platform != "linux" or ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0:
        return
    why = os.strerror(ctypes.get_errno()).lower()
    raise errors.Unavailable(
        f"this process cannot keep others out: prctl {option}: {why}: allow it where system calls are"
        " filtered"
    )


def shut() -> None:
    """Keep others out of this process, and of those it forks.

    It leaves no core file, not even through a handler (core(5)); no process of the same user reads its memory
    or attaches to it (ptrace(2), "Ptrace access mode checking"); and no program it starts gains rights by a
    set-user-id bit.

    Raises:
        errors.Unavailable: the kernel does not do it.
    """
    if resource.getrlimit(resource.RLIMIT_CORE) != (0, 0):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(PR_SET_DUMPABLE, 0)
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def end_with(parent: int) -> None:
    """Have the kernel end this process when its parent dies: nobody else would know of it any more.

    Raises:
        errors.Unavailable: the kernel does not do it.
    """
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(70)


def lock() -> str | None:
    """Keep all memory of this process out of the swap, what it has and what it will have.

    Pages are locked when they are first touched (``MCL_ONFAULT``), so that nothing is made larger.  Locks do
    not pass to a forked process: it asks anew.  Under a limit (RLIMIT_MEMLOCK) nothing is locked at all: past
    it the process would get no memory any more.

    Returns:
        Why not, and what to do about it; None if it is locked.
    """
    if sys.platform != "linux":
        return "memory is not locked and may be swapped out: this is not Linux"
    unlimited = resource.RLIM_INFINITY
    hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]
    for limit in (unlimited, hard):
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
            break
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] != unlimited and not _capable(CAP_IPC_LOCK):
        return "memory is not locked and may be swapped out: set LimitMEMLOCK=infinity (ulimit -l unlimited)"
    library = ctypes.CDLL(None, use_errno=True)
    if library.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) == 0:
        return None
    why = os.strerror(ctypes.get_errno()).lower()
    return f"memory is not locked and may be swapped out: mlockall: {why}"


def _capable(capability: int) -> bool:
    """Return whether a capability is in effect (capabilities(7))."""
    lines = Path("/proc/self/status").read_bytes().splitlines()
    effective = next(line for line in lines if line.startswith(b"CapEff:"))
    return bool(int(effective.split()[1], 16) >> capability & 1)


def give_up_root(settings: "Settings", *, station: bool, public: bool, gateway: bool = False) -> None:
    """Become the service's user, for good; called when every socket is bound and nothing else is open.

    Args:
        settings: of this host.
        station: the station plane is going to be served.
        public: the public plane is.
        gateway: the gateway is.

    Raises:
        errors.NotPermitted: root and nobody to become, in a realm of production whose settings do not allow
            it; or another user than root, who can become nobody; or the new user may not touch what is
            needed; or root could be had back.
        errors.NotFound: there is no such user or group.
    """
    service = settings.service
    if os.geteuid() != 0:
        if service.user is not None and _user(service.user).pw_uid != os.geteuid():
            raise errors.NotPermitted(
                f"only root can become {service.user}: start the service as one of them"
            )
        return
    if service.user is None:
        if settings.realm.environment == "production" and not service.allow_root:
            raise errors.NotPermitted(
                "a realm of production is not served by root: set user in [service], or start the service as"
                " another user (or set allow-root = true there)"
            )
        log.warning("the service runs as root: set user in [service]")
        return
    user = _user(service.user)
    if user.pw_uid == 0:
        raise errors.NotPermitted("user in [service] is root: leave it out, and set allow-root = true")
    # What even root does not find is left for the opening to tell.
    needed = _needed(settings, station=station, gateway=gateway, public=public)
    there = [(path, use) for path, use in needed if path.exists()]
    _become(user, user.pw_gid if service.group is None else _group(service.group))
    log.info("the service runs as %s", service.user, extra={"uid": os.getuid(), "gid": os.getgid()})
    closed = [str(path) for path, use in there if not os.access(path, use)]
    if closed:
        raise errors.NotPermitted(
            f"{service.user} has no access to {', '.join(closed)}: run chown -R {service.user} on it, or put"
            " it where others may read it"
        )


def _needed(settings: "Settings", *, station: bool, gateway: bool, public: bool) -> _Needed:
    """Return what the service opens for these planes, and what for."""
    from birthmark.settings import SoftwareKeys  # noqa: PLC0415  # see above

    # The program itself: parts of it are read when they are first wanted.
    read: list[Path | None] = [Path(os.__file__), Path(errors.__file__)]
    read += [settings.profiles_directory, settings.elements_directory]
    stores: list[KeyStoreSettings | None] = []
    database = settings.database_table
    if station:
        plane = settings.station_plane
        read += [plane.certificate_file, plane.key_file, plane.key_passphrase_file, plane.client_ca_file]
    if gateway:
        field = settings.gateway_plane
        read += [field.certificate_file, field.key_file, field.key_passphrase_file, *field.other_realms]
        read += [field.next_certificate_file, field.next_key_file]
    if station or gateway:
        stores.append(settings.key_store)
    elif settings.public_plane.ocsp != "live":
        database = None
    if public:
        read.append(settings.public_directory)
        stores.append(settings.public_plane.key_store)
    for store in stores:
        if isinstance(store, SoftwareKeys):
            read += [store.directory, store.passphrase_file]
        elif store is not None:
            read += [store.module, store.pin_file]
            read += [] if store.standby is None else [store.standby.module, store.standby.pin_file]
    needed = [(path, os.R_OK | (os.X_OK if path.is_dir() else 0)) for path in read if path is not None]
    if database is not None:
        needed += [] if database.password_file is None else [(database.password_file, os.R_OK)]
        if database.url.startswith("sqlite:///"):
            file = Path(database.url.removeprefix("sqlite:///"))
            # Beside the file SQLite keeps its journal.
            needed += [(file, os.R_OK | os.W_OK), (file.parent, os.W_OK | os.X_OK)]
    return needed


def require_user(service: "ServiceSettings") -> None:
    """Refuse if the service's user or group is not there.

    Raises:
        errors.NotFound: so it is.
    """
    if service.user is not None:
        _user(service.user)
    if service.group is not None:
        _group(service.group)


def _become(user: pwd.struct_passwd, gid: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).munlockall()  # what root locked would stay under the limit that holds from now on
    os.initgroups(user.pw_name, gid)
    os.setresgid(gid, gid, gid)
    os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
    _require_no_way_back(user.pw_uid, gid)
    os.environ.update(HOME=user.pw_dir, USER=user.pw_name, LOGNAME=user.pw_name)
    shut()  # another user is another owner of the process, and the kernel sets the default again


def _require_no_way_back(uid: int, gid: int) -> None:
    """Refuse if anything of root is left (setresuid(2); capabilities(7), "Effect of user ID changes")."""
    for become in (os.setresuid, os.setresgid):
        with suppress(PermissionError):
            become(-1, 0, -1)
            raise errors.NotPermitted("root can be had back: the service does not run so")
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or (0 in os.getgroups() and gid != 0):
        raise errors.NotPermitted("something of root is left: the service does not run so")


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except KeyError as unknown:
        raise errors.NotFound(f"[service]: there is no user {name}") from unknown


def _group(name: str) -> int:
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as unknown:
        raise errors.NotFound(f"[service]: there is no group {name}") from unknown
