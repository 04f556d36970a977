"""What two people sign: a signature over a document, and whether the second is another person (SPEC K1).

A document is a run's licence, a recall's order or a proposal's motion.  Each signs its octets with the
operator's own key; whoever relies on it verifies again, for rows of a database prove nothing by themselves.
The same person is known as client, as certificate and as key: whoever is enrolled twice with one key is still
one.

Which acts take two stands in ``floor.clients``; what a document says is its own module's business.
"""

from datetime import datetime

from birthmark import errors
from birthmark.floor.clients import PERSON, Capability, Client, Credential, require
from birthmark.floor.proposals import require_fresh
from birthmark.pki.certificates import Certificate
from birthmark.pki.possession import verify_proof
from birthmark.ports import Facts

__all__ = ["require_second", "require_two", "verify_approval", "verify_signed"]


def verify_signed(credential: Credential, signature: bytes, document: bytes) -> None:
    """Refuse a signature that is not an operator's over these octets.

    Raises:
        errors.NotPermitted: the credential is no operator's.
        errors.ProofFailed: its key did not make the signature.
        errors.MalformedRequest: the credential holds no certificate.
    """
    if not credential.client.startswith(f"{PERSON}:"):
        raise errors.NotPermitted(f"{credential.client} is no operator and signs nothing")
    verify_proof(_key(credential), signature, document)


def require_two(one: Credential | None, other: Credential | None) -> None:
    """Refuse the same person twice: as client, as certificate or as key, under whatever name.

    Raises:
        errors.NotPermitted: it is the same, or one of them is nobody.
        errors.MalformedRequest: a credential holds no certificate.
    """
    if one is None or other is None:
        raise errors.NotPermitted("two people are needed")
    if one.client == other.client or one.serial == other.serial or _key(one) == _key(other):
        raise errors.NotPermitted(f"{other.client} cannot approve what {one.client} proposed: it takes two")


def require_second(
    facts: Facts,
    approver: Credential,
    proposer: Credential | None,
    capability: Capability,
    proposed_at: datetime | None,
    at: datetime,
    what: str,
) -> None:
    """Refuse an approval now: by the same person, of who may not propose any more, or too late.

    Args:
        facts: as the approval sees them.
        approver: the credential that the second person uses.
        proposer: the credential that signed the proposal, as it is now.
        capability: what the proposer must still be allowed to.
        proposed_at: see ``floor.proposals.require_fresh``.
        at: now.
        what: was proposed, for the message: "run R1", say.

    Raises:
        errors.NotPermitted: it takes two.
        errors.IllegalTransition: the proposer, or this credential, was revoked, or may not any more; or the
            proposal ended.
        errors.IntegrityFailure: the proposer is gone.
    """
    require_two(proposer, approver)
    client = None if proposer is None else facts.get(Client, proposer.client)
    if proposer is None or client is None:
        raise errors.IntegrityFailure(f"who proposed {what} is gone")
    try:
        require(client, proposer, capability)
    except errors.Refusal as cause:
        raise errors.IllegalTransition(f"{cause} since it proposed {what}: propose it again") from cause
    require_fresh(proposed_at, at, what)


def verify_approval(approver: Credential, approval: bytes, document: bytes, what: str) -> None:
    """Refuse an approval that is not this person's signature over the document.

    Raises:
        errors.NotPermitted: it is not, or the credential is no operator's.
        errors.MalformedRequest: the credential holds no certificate.
    """
    try:
        verify_signed(approver, approval, document)
    except errors.ProofFailed as cause:
        raise errors.NotPermitted(f"the approval is not {approver.client}'s signature over {what}") from cause


def _key(credential: Credential) -> bytes:
    return Certificate.from_der(credential.der).subject_public_key_info
