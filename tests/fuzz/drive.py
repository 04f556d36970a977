"""libFuzzer on one target: ``python -m tests.fuzz.drive NAME FOLDER [OPTION…]``; ``tests.fuzz`` starts it."""

import logging
import sys
from hashlib import sha256
from pathlib import Path
from random import Random  # noqa: TID251  # the fuzzer says how

import atheris

with atheris.instrument_imports(include=["birthmark"], enable_loader_override=False):
    from tests.fuzz.inputs import kept
    from tests.fuzz.mutators import MUTATORS
    from tests.fuzz.targets import TARGETS

STRUCTURED = 0.7
"""How many of the changes know what the input is made of."""


def main() -> None:
    """Put the seeds beside what earlier runs found, and begin."""
    # A fault is the finding; what is logged of refusals is noise.
    logging.disable(logging.CRITICAL)
    program, name, folder, *options = sys.argv
    target, corpus = TARGETS[name], Path(folder)
    for seed in (*target.seeds(), *(file.read_bytes() for file in kept(name))):
        (corpus / f"seed-{sha256(seed).hexdigest()[:16]}").write_bytes(seed)

    def one(data: bytes) -> None:
        target.attempt(data)

    def changed(data: bytes, longest: int, seed: int) -> bytes:
        random = Random(seed)  # noqa: S311  # repeatable, not secret
        found = None
        if random.random() < STRUCTURED:
            found = MUTATORS[target.shape](data, random, lambda octets: atheris.Mutate(octets, longest))
        return atheris.Mutate(data, longest) if found is None else found[:longest]

    more = {"custom_mutator": changed} if target.shape in MUTATORS else {}
    atheris.Setup([program, f"-max_len={target.longest}", *options, folder], one, **more)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
