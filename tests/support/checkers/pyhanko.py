"""pyhanko-certvalidator: a path validation written in Python after RFC 5280, with CRLs, deltas and OCSP."""

from collections.abc import Sequence
from datetime import datetime

from tests.support.checkers.running import ask_peer, camel
from tests.support.checkers.values import Chain, Status, Verdict

__all__ = ["crl_verdict", "ocsp_verdict", "path_verdict"]


def path_verdict(chain: Chain, *, at: datetime) -> Verdict:
    """Return what it says of a path."""
    return _ask(chain, at, "none")


def crl_verdict(chain: Chain, crls: Sequence[bytes], *, at: datetime) -> Verdict:
    """Return what it says of a path whose leaf's status the CRLs (DER) have to tell."""
    return _ask(chain, at, "crls", crls)


def ocsp_verdict(chain: Chain, response: bytes, *, at: datetime) -> Verdict:
    """Return what it says of a path whose leaf's status an OCSP response (DER) has to tell.

    It makes no difference between a status that is unknown and one that was not told.
    """
    return _ask(chain, at, "response", (response,))


def _ask(chain: Chain, at: datetime, source: str, evidence: Sequence[bytes] = ()) -> Verdict:
    answer = ask_peer(
        "pyhanko",
        {
            "leaf": chain.leaf.hex(),
            "between": [octets.hex() for octets in chain.between],
            "root": chain.root.hex(),
            "at": at.timestamp(),
            "source": source,
            "evidence": [octets.hex() for octets in evidence],
        },
    )
    # It spells reasons as words (key_compromise, certificate_hold).
    reason = answer["reason"] and camel(answer["reason"])
    return Verdict(status=Status(answer["status"]), reason=reason, said=answer["said"])
