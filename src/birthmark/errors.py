"""Everything Birthmark refuses on purpose.

One class a meaning, each with a stable ``code`` and ``retryable``.  The edges render them: HTTP as RFC 9457
problems, the command line as exit codes; each edge has one table, and a test proves that the table covers
every class here.  Any other exception is a fault of ours and is shown as "internal" without detail.

Messages are lower case, say what is wrong and with which value, and never contain a secret.
"""

from typing import ClassVar

__all__ = [
    "Fault",
    "IllegalTransition",
    "IntegrityFailure",
    "Interrupted",
    "KeyReused",
    "MalformedRequest",
    "NotFound",
    "NotPermitted",
    "PolicyRefused",
    "ProofFailed",
    "QuotaExhausted",
    "RateLimited",
    "Refusal",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
]


class Refusal(Exception):
    """Something we decline to do, with a reason that may be shown to whoever asked."""

    code: ClassVar[str] = "refused"
    retryable: ClassVar[bool] = False
    recorded: bool = False
    """True once this very refusal stands in the log."""


class MalformedRequest(Refusal):
    """The request cannot be understood; sending it again unchanged will not help."""

    code = "malformed-request"


class TooLarge(Refusal):
    """The request is larger than the limit it names."""

    code = "too-large"


class Unauthenticated(Refusal):
    """The client showed no certificate that this realm issued to a live client."""

    code = "unauthenticated"


class NotPermitted(Refusal):
    """The client is known and may not do this."""

    code = "not-permitted"


class NotFound(Refusal):
    """The thing named does not exist here."""

    code = "not-found"


class IllegalTransition(Refusal):
    """The device, run or authority is in a state from which this move is not allowed."""

    code = "illegal-transition"


class KeyReused(Refusal):
    """An idempotency key came back with a different request."""

    code = "idempotency-key-reused"


class QuotaExhausted(Refusal):
    """The run or authority has issued all it is licensed to issue."""

    code = "quota-exhausted"


class ProofFailed(Refusal):
    """The device did not prove that it holds its key: hold it."""

    code = "proof-failed"


class Interrupted(Refusal):
    """A dialogue with a secure element broke off and its outcome is unknown: begin it anew."""

    code = "interrupted"

    def __init__(self, message: str, *, accepted: bool = False) -> None:
        super().__init__(message)
        self.accepted = accepted
        """The element had accepted our authentication, and shown it, before it broke off."""


class PolicyRefused(Refusal):
    """A rule of the profile, run or authority forbids it.  ``rule`` names the rule."""

    code = "policy-refused"

    def __init__(self, rule: str, complaint: str) -> None:
        super().__init__(complaint)
        self.rule = rule


class Unavailable(Refusal):
    """Something we need is down; the line holds and the same request may be sent again."""

    code = "unavailable"
    retryable = True


class RateLimited(Refusal):
    """The client or the run goes faster than it may; the same request may be sent again a little later."""

    code = "rate-limited"
    retryable = True

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which it is worth trying again."""


class Fault(Refusal):
    """A fault of ours: neither request nor record is to blame; the service's own log has the details."""

    code = "internal"


class IntegrityFailure(Refusal):
    """What is stored contradicts itself: stop the line and look."""

    code = "integrity-failure"
