"""EcoG's iso15118 as the charging station that meets a vehicle's provisioning chain (ISO 15118-2)."""

import json
from collections.abc import Sequence
from datetime import datetime

from tests.support.checkers.running import ask, peer_command
from tests.support.checkers.values import Chain, Status, Verdict

__all__ = ["chain_verdict", "chain_verdicts"]


def chain_verdict(chain: Chain, *, at: datetime) -> Verdict:
    """Return what ``iso15118.shared.security.verify_certs`` says of a leaf with one or two sub-authorities.

    It verifies every signature as ecdsa-with-SHA256, so it can judge ISO 15118-2 and not 15118-20, whose
    chains it refuses whether they are good or not.
    """
    return chain_verdicts([chain], at=at)[0]


def chain_verdicts(chains: Sequence[Chain], *, at: datetime) -> list[Verdict]:
    """Return the same of several chains, each by itself; starting takes longer than judging."""
    questions = [
        {
            "leaf": chain.leaf.hex(),
            "between": [octets.hex() for octets in chain.between],
            "root": chain.root.hex(),
        }
        for chain in chains
    ]
    asked = "".join(json.dumps(question) + "\n" for question in questions)
    done = ask(peer_command("iso15118"), at=at, stdin=asked.encode())
    assert done.returncode == 0, done.stderr[-2000:]
    refusals = [json.loads(line)["refusal"] for line in done.stdout.splitlines()]
    assert len(refusals) == len(chains)
    return [
        Verdict(status=Status.GOOD if refusal is None else Status.REFUSED, said=refusal or "")
        for refusal in refusals
    ]
