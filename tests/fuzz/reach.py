"""Which functions of the package the targets reach: ``python -m tests.fuzz.reach`` prints them, a line each.

In a process of its own, because what is remembered of an octet string is not read again.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random  # noqa: TID251  # not a secret among them
from types import FrameType
from typing import Any

from cryptography.utils import CryptographyDeprecationWarning

from tests.fuzz.decoders import SOURCE
from tests.fuzz.mutators import changed
from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

CHANGES = 8
"""Changed inputs for each target: what is remembered of an octet string is not read again."""


@contextmanager
def calls(into: set[str]) -> Iterator[None]:
    """Take down which functions of the package are called."""
    prefix = f"{SOURCE}/"

    def called(frame: FrameType, event: str, _argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(prefix):
            into.add(f"{code.co_filename.removeprefix(prefix)}:{code.co_qualname}")

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        yield
    finally:
        sys.setprofile(before)


def reached(target: Target) -> set[str]:
    """Return what a target calls with its inputs; what it makes to be able to, was made before."""
    seeds = list(target.seeds())
    target.attempt(seeds[0])
    random, found = Random(1), set[str]()  # noqa: S311  # repeatable, not secret
    with calls(found):
        for seed in seeds:
            target.attempt(seed)
        for _ in range(CHANGES):
            target.attempt(changed(target.shape, random.choice(seeds), random))
    return found


def main() -> None:
    """Print what all targets reach."""
    warnings.simplefilter("ignore", CryptographyDeprecationWarning)
    sys.stdout.writelines(f"{name}\n" for name in sorted(set().union(*map(reached, TARGETS.values()))))


if __name__ == "__main__":
    main()
