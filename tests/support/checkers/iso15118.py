"""EcoG's iso15118 as the charging station that meets a vehicle's provisioning chain (ISO 15118-2)."""

from datetime import datetime

from tests.support.checkers.running import ask_peer
from tests.support.checkers.values import Chain, Status, Verdict

__all__ = ["chain_verdict"]


def chain_verdict(chain: Chain, *, at: datetime | None = None) -> Verdict:
    """Return what ``iso15118.shared.security.verify_certs`` says of a leaf with one or two sub-authorities.

    It verifies every signature as ecdsa-with-SHA256, so it can judge ISO 15118-2 and not 15118-20, whose
    chains it refuses whether they are good or not.
    """
    question = {
        "leaf": chain.leaf.hex(),
        "between": [octets.hex() for octets in chain.between],
        "root": chain.root.hex(),
    }
    refusal = ask_peer("iso15118", question, at=at)["refusal"]
    return Verdict(status=Status.GOOD if refusal is None else Status.REFUSED, said=refusal or "")
