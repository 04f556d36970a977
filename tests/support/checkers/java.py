"""The JDK's path validation as a relying party: CRLs from a collection, OCSP from a responder.

A virtual machine takes most of a second to start, so one is kept for as long as the caller wants it and
answers questions in turn.  ``java/PathStatus.java`` is compiled once for each of its versions, into
.tools/peers/java.
"""

import base64
import hashlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from tests.support.checkers.running import ROOT, camel, conversing
from tests.support.checkers.values import Chain, Status, Verdict
from tests.support.programs import need

__all__ = ["Java", "java"]

_SOURCE = Path(__file__).parent / "java/PathStatus.java"


class Java:
    """One running virtual machine."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self._answer = answer

    def path_verdict(self, chain: Chain, *, at: datetime) -> Verdict:
        """Return what CertPathValidator says of a path."""
        return self._ask(chain, at, "none")

    def crl_verdict(self, chain: Chain, crls: Sequence[bytes], *, at: datetime) -> Verdict:
        """Return what it says of a path whose leaf's status the CRLs (DER) tell."""
        return self._ask(chain, at, "crls", crls)

    def ocsp_verdict(self, chain: Chain, url: str, *, at: datetime) -> Verdict:
        """Return what it says of a path after asking a responder for the leaf's status."""
        return self._ask(chain, at, url)

    def _ask(self, chain: Chain, at: datetime, source: str, crls: Sequence[bytes] = ()) -> Verdict:
        path = ",".join(map(_text, (chain.leaf, *chain.between)))
        parts = [str(int(at.timestamp())), source, _text(chain.root), path, ",".join(map(_text, crls))]
        status, reason, said = self._answer("\t".join(parts)).split("\t", 2)
        return Verdict(status=Status(status), reason=camel(reason) if reason else None, said=said)


@contextmanager
def java() -> Iterator[Java]:
    """Start a virtual machine and end it afterwards."""
    command = [
        need("java", "default-jdk-headless"), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xshare:auto",
        # It fetches CRLs from where certificates say they are: every host but this one is a closed port.
        "-Dhttp.proxyHost=127.0.0.1", "-Dhttp.proxyPort=1",
        "-cp", str(_compiled()), "PathStatus",
    ]  # fmt: skip
    with conversing(command) as answer:
        yield Java(answer)


def _compiled() -> Path:
    """Return the folder with the class, compiled if this version of the source was not yet."""
    compiler = need("javac", "default-jdk-headless")
    done = ROOT / ".tools/peers/java" / hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]
    if not done.exists():
        done.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=done.parent) as folder:
            made = Path(folder) / "made"
            subprocess.run([compiler, "-Xlint:all", "-Werror", "-d", str(made), str(_SOURCE)], check=True)
            # Two runs at once make the same: the one that comes second finds it there.
            try:
                made.rename(done)
            except OSError:
                assert done.exists()
    return done


def _text(octets: bytes) -> str:
    return base64.b64encode(octets).decode()
