"""Running somebody else's checker: as a process, at a date, and in Python environments that are not ours.

Several relying parties know no time but the machine's.  They run under faketime (libfaketime), so that the
tests say the same today and in ten years.
"""

import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from birthmark.pki.certificates import to_pem
from tests.support.programs import missing, need

__all__ = ["ROOT", "ask", "ask_peer", "camel", "conversing", "peer_command", "write_der", "write_pem"]

ROOT = Path(__file__).parents[3]
_INSIDE = Path(__file__).parent / "inside"
_SECONDS = 60.0


def ask(
    command: Sequence[str], *, at: datetime | None = None, stdin: bytes | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, with the machine's clock seen as ``at`` if that is given, and return how it ended."""
    before: list[str] = []
    if at is not None:
        moment = at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
        before = [need("env", "coreutils"), "TZ=UTC", need("faketime"), moment]
    done = subprocess.run(
        [*before, *command], input=stdin, capture_output=True, check=False, timeout=_SECONDS
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    )


@contextmanager
def conversing(command: Sequence[str]) -> Iterator[Callable[[str], str]]:
    """Start a program that answers each line with a line; yield what asks it, and end it afterwards."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None

        def answer(question: str) -> str:
            stdin.write(question + "\n")
            stdin.flush()
            line = stdout.readline().rstrip("\n")
            assert line, (
                f"{command[0]} ended without an answer; what it complained of is in the test's output"
            )
            return line

        yield answer
        stdin.close()
        assert process.wait(timeout=_SECONDS) == 0


def peer_command(name: str) -> list[str]:
    """Return the command that runs ``inside/NAME_peer.py`` with the checker's own Python.

    Without its environment (requirements/peers/NAME.txt) the test is skipped, or fails in CI.
    """
    folder = ROOT / ".tools/peers" / name
    if not (folder / ".installed").exists():
        missing(f".tools/peers/{name} is not installed (scripts/install --system)")
    # Isolated (-I): neither our packages nor ours of the same name are in its way.
    return [str(folder / "bin/python"), "-I", str(_INSIDE / f"{name}_peer.py")]


def ask_peer(name: str, question: dict[str, Any], *, at: datetime | None = None) -> dict[str, Any]:
    """Put one question to a checker's process that ends with the answer.

    Native code may run there: a crash has to fail the test, not the runner.

    Returns:
        Its answer, the last line of what it printed.
    """
    done = ask(peer_command(name), at=at, stdin=json.dumps(question).encode())
    assert done.returncode == 0, f"{name} ended with {done.returncode}: {done.stderr[-2000:]}"
    answer = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(answer, dict)
    return answer


def write_pem(path: Path, *objects: bytes, label: str = "CERTIFICATE") -> str:
    """Write objects (DER) as one PEM file and return its name."""
    path.write_text("".join(to_pem(octets, label) for octets in objects))
    return str(path)


def write_der(path: Path, octets: bytes) -> str:
    """Write one object and return the file's name."""
    path.write_bytes(octets)
    return str(path)


def camel(words: str) -> str:
    """Return a reason as RFC 5280 section 5.3.1 spells it, from words between blanks or underlines."""
    first, *rest = words.lower().replace("_", " ").split()
    return {"ca": "cA", "aa": "aA"}.get(first, first) + "".join(word.capitalize() for word in rest)
