"""The ``birthmark`` command."""

import sys

from birthmark.edge.application import Factory
from birthmark.edge.cli.main import run

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    sys.exit(run(_factory))


def _factory() -> Factory:
    from birthmark import app  # late, so that --help and offline verification need no driver

    return app


if __name__ == "__main__":
    main()
