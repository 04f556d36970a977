"""``python -m tests.fuzz``: run atheris on one target or on all, and say what came of it.

Each target runs in a process of its own (libFuzzer ends the process it runs in), with the package
instrumented.  What was found interesting is kept from run to run in the corpus folder, outside the tree.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(tempfile.gettempdir()) / "birthmark-fuzz"
SLOWEST_SECONDS = 20
"""An input that takes longer is a finding."""
MOST_MEGABYTES = 2048
"""And so is one that takes more memory."""
_NUMBER = re.compile(r"^stat::(\w+):\s+(\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one run."""

    target: str
    seconds: float
    executions: int
    new: int
    """Inputs that reached something that none before had."""
    found: tuple[Path, ...]
    """Inputs that broke it."""
    ended: int
    """Exit status of the fuzzer."""

    @property
    def line(self) -> str:
        """Return it as a line of tab-separated values."""
        found = ",".join(map(str, self.found)) or "-"
        rate = self.executions / max(self.seconds, 1)
        numbers = f"{self.seconds:.0f}\t{self.executions}\t{rate:.0f}\t{self.new}"
        return f"{self.target}\t{numbers}\t{self.ended}\t{found}"


HEADING = "target\tseconds\texecutions\texecutions/s\tnew inputs\texit\tfound"


def fuzz(name: str, seconds: int, corpus: Path) -> Outcome:
    """Run one target for so long, or until something breaks it."""
    own, broken = corpus / name, corpus / "found" / name
    own.mkdir(parents=True, exist_ok=True)
    broken.mkdir(parents=True, exist_ok=True)
    before = set(broken.iterdir())
    command = [
        sys.executable, "-m", "tests.fuzz.drive", name, str(own), f"-max_total_time={seconds}",
        f"-artifact_prefix={broken}/", f"-timeout={SLOWEST_SECONDS}", f"-rss_limit_mb={MOST_MEGABYTES}",
        "-print_final_stats=1",
    ]  # fmt: skip
    begun = time.monotonic()
    with (corpus / f"{name}.log").open("wb") as told:
        done = subprocess.run(command, check=False, stdout=told, stderr=subprocess.STDOUT)
    said = dict(_NUMBER.findall((corpus / f"{name}.log").read_text(encoding="utf-8", errors="replace")))
    return Outcome(
        target=name,
        seconds=time.monotonic() - begun,
        executions=int(said.get("number_of_executed_units", 0)),
        new=int(said.get("new_units_added", 0)),
        found=tuple(sorted(set(broken.iterdir()) - before)),
        ended=done.returncode,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked; return 1 if anything broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="targets; see tests/fuzz/targets.py")
    parser.add_argument("--all", action="store_true", help="all of them, the most exposed first")
    parser.add_argument("--seconds", type=int, default=60, help="for each [60]")
    parser.add_argument("--jobs", type=int, default=1, help="at a time [1]")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help=f"where inputs are kept [{CORPUS}]")
    parser.add_argument("--results", type=Path, help="a file that gets the lines, too")
    asked = parser.parse_args(arguments)
    from tests.fuzz.targets import TARGETS  # noqa: PLC0415  # seconds, which --help does not need

    names = list(TARGETS) if asked.all else asked.names
    if unknown := [name for name in names if name not in TARGETS] or not names:
        parser.error(f"no such target: {unknown}; there are {', '.join(TARGETS)}")
    broken = False
    sys.stdout.write(f"{HEADING}\n")
    sys.stdout.flush()
    with ThreadPoolExecutor(asked.jobs) as pool:
        for outcome in pool.map(lambda name: fuzz(name, asked.seconds, asked.corpus), names):
            sys.stdout.write(f"{outcome.line}\n")
            sys.stdout.flush()
            broken = broken or outcome.ended != 0
            if asked.results is not None:
                with asked.results.open("a", encoding="utf-8") as file:
                    file.write(outcome.line + "\n")
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
