"""pyhanko-certvalidator: a path validation written in Python after RFC 5280, with CRLs, deltas and OCSP.

It takes longer to import than to ask, so one process is kept for as long as the caller wants it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

from tests.support.checkers.running import camel, conversing, peer_command
from tests.support.checkers.values import Chain, Status, Verdict

__all__ = ["Pyhanko", "pyhanko"]


class Pyhanko:
    """One running process."""

    def __init__(self, answer: Callable[[str], str]) -> None:
        self._answer = answer

    def path_verdict(self, chain: Chain, *, at: datetime) -> Verdict:
        """Return what it says of a path."""
        return self._ask(chain, at, "none")

    def crl_verdict(self, chain: Chain, crls: Sequence[bytes], *, at: datetime) -> Verdict:
        """Return what it says of a path whose leaf's status the CRLs (DER) have to tell."""
        return self._ask(chain, at, "crls", crls)

    def ocsp_verdict(self, chain: Chain, response: bytes, *, at: datetime) -> Verdict:
        """Return what it says of a path whose leaf's status an OCSP response (DER) has to tell.

        It makes no difference between a status that is unknown and one that was not told.
        """
        return self._ask(chain, at, "response", (response,))

    def _ask(self, chain: Chain, at: datetime, source: str, evidence: Sequence[bytes] = ()) -> Verdict:
        question = {
            "leaf": chain.leaf.hex(),
            "between": [octets.hex() for octets in chain.between],
            "root": chain.root.hex(),
            "at": at.timestamp(),
            "source": source,
            "evidence": [octets.hex() for octets in evidence],
        }
        answer = json.loads(self._answer(json.dumps(question)))
        # It spells reasons as words (key_compromise, certificate_hold).
        reason = answer["reason"] and camel(answer["reason"])
        return Verdict(status=Status(answer["status"]), reason=reason, said=answer["said"])


@contextmanager
def pyhanko() -> Iterator[Pyhanko]:
    """Start a process with the validator and end it afterwards."""
    with conversing(peer_command("pyhanko")) as answer:
        yield Pyhanko(answer)
