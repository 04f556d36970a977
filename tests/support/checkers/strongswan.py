"""strongSwan's ``pki --verify``: how an IPsec gateway judges a path.

It takes no date and runs with the clock set.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from tests.support.checkers.running import ask, camel, write_der
from tests.support.checkers.values import Chain, Status, Verdict
from tests.support.programs import need

__all__ = ["crl_verdict", "path_verdict"]

_REASON = re.compile(r"certificate was revoked on .*, reason: ([a-zA-Z ]+)")
_ASKED = "checking certificate status of "


def path_verdict(chain: Chain, folder: Path, *, at: datetime) -> Verdict:
    """Return what it says of a path; it wants one that ends in a self-signed certificate."""
    done, said = _run(chain, (), folder, at)
    accepted = done == 0 and "certificate trusted, lifetimes valid" in said
    return Verdict(status=Status.GOOD if accepted else Status.REFUSED, said=said)


def crl_verdict(chain: Chain, crls: Sequence[bytes], folder: Path, *, at: datetime) -> Verdict:
    """Return what it says of a path and of the leaf's status by these CRLs (DER).

    ``pki`` itself trusts what it has no status for and ends with success; here that is undetermined.
    """
    done, said = _run(chain, crls, folder, at)
    # It looks at every certificate of the path in turn, from the leaf up.
    about_leaf = said.split(_ASKED)[1] if _ASKED in said else ""
    if reason := _REASON.search(about_leaf):
        return Verdict(status=Status.REVOKED, reason=camel(reason[1]), said=said)
    if done != 0 or "certificate trusted, lifetimes valid" not in said:
        return Verdict(status=Status.REFUSED, said=said)
    told = "certificate status is good" in about_leaf
    return Verdict(status=Status.GOOD if told else Status.UNDETERMINED, said=said)


def _run(chain: Chain, crls: Sequence[bytes], folder: Path, at: datetime) -> tuple[int, str]:
    command = [need("pki", "strongswan-pki"), "--verify", "--in", write_der(folder / "leaf.der", chain.leaf)]
    for number, authority in enumerate((*chain.between, chain.root)):
        command += ["--cacert", write_der(folder / f"authority-{number}.der", authority)]
    for number, crl in enumerate(crls):
        command += ["--crl", write_der(folder / f"{number}.crl", crl)]
    done = ask(command, at=at)
    lines = (done.stdout + done.stderr).splitlines()
    return done.returncode, "\n".join(line for line in lines if not line.startswith("plugin "))
