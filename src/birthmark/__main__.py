"""The ``birthmark`` command."""

import sys
from typing import TYPE_CHECKING

from birthmark import errors
from birthmark.edge import hardening
from birthmark.edge.cli.exits import complain_of
from birthmark.edge.cli.main import run

if TYPE_CHECKING:  # it knows every use case, and what needs none of them starts without
    from birthmark.edge.application import Factory

__all__ = ["main"]


def main() -> None:
    """Run the command line, in a process that keeps what it reads to itself (SPEC B7)."""
    try:
        hardening.shut()
    except errors.Unavailable as refusal:
        sys.exit(complain_of(refusal))
    hardening.lock()  # for a command that is over in a moment it is no matter if not; ``serve`` tells
    sys.exit(run(_factory))


def _factory() -> "Factory":
    from birthmark import app  # late, so that --help and offline verification need no driver

    return app


if __name__ == "__main__":
    main()
