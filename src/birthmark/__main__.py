"""The ``birthmark`` command."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line."""
    from birthmark.edge.cli.main import run  # late, so that --help needs no database driver

    sys.exit(run(lambda: __import__("birthmark.app", fromlist=["app"])))


if __name__ == "__main__":
    main()
