"""Programs of others that a test needs.

A developer without SoftHSM should still be able to run everything else, so a missing program skips the test
and says which package brings it.  In CI a skipped test is an argument nobody heard, so there it fails.
"""

import importlib
import os
from types import ModuleType
from typing import NoReturn

import pytest

from tools.programs import find


def need(program: str, package: str | None = None) -> str:
    """Return the absolute path of *program*; without it skip the test, or fail it when CI=true.

    Args:
        program: the name to look for on PATH, in the sbin folders and among PostgreSQL's server programs.
        package: the Debian package that brings it, where it has another name than the program.
    """
    if (path := find(program)) is None:
        missing(f"{program} is not installed (Debian package {package or program})")
    return path


def need_extra(module: str, extra: str) -> ModuleType:
    """Import what an extra of the project brings; without it skip the test, or fail it when CI=true.

    Args:
        module: the name to import.
        extra: the one of ``project.optional-dependencies``.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        missing(f"{module} is not installed (requirements/{extra}.txt, compiled by scripts/install)")


def missing(reason: str) -> NoReturn:
    """Skip the running test with *reason*, or fail it when CI=true."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
