"""Finding other people's programs, also where Debian keeps them off an ordinary user's PATH."""

import shutil
from pathlib import Path

_SYSTEM = (Path("/usr/local/sbin"), Path("/usr/sbin"), Path("/sbin"))


def find(program: str) -> str | None:
    """Return the absolute path of *program*, or None.

    Looks on PATH first, then in the sbin folders, then in Debian's folders of PostgreSQL's server programs
    (``/usr/lib/postgresql/<version>/bin``), newest version first.
    """
    if (path := shutil.which(program)) is not None:
        return str(Path(path).absolute())
    folders = [*_SYSTEM, *postgresql_folders()]
    return shutil.which(program, path=":".join(map(str, folders)))


def postgresql_folders() -> list[Path]:
    """Return the folders that hold PostgreSQL's server programs, newest version first."""

    def version(folder: Path) -> float:
        try:
            return float(folder.parent.name)
        except ValueError:
            return 0.0

    return sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=version, reverse=True)
