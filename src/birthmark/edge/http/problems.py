"""Refusals as RFC 9457 problems: one table, and nothing of a fault of ours shown."""

from collections.abc import Mapping

from birthmark import errors
from birthmark.edge.http.models import Problem

__all__ = ["HTTP_STATUS", "MEDIA_TYPE", "RETRY_AFTER_SECONDS", "problem"]

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 1

HTTP_STATUS: Mapping[type[errors.Refusal], int] = {
    errors.MalformedRequest: 400,
    errors.Unauthenticated: 403,
    errors.NotPermitted: 403,
    errors.NotFound: 404,
    errors.IllegalTransition: 409,
    errors.KeyReused: 409,
    errors.QuotaExhausted: 409,
    errors.ProofFailed: 409,
    errors.Interrupted: 409,
    errors.TooLarge: 413,
    errors.RateLimited: 429,
    errors.PolicyRefused: 422,
    errors.Unavailable: 503,
    errors.IntegrityFailure: 500,
    errors.Fault: 500,
}


def problem(error: BaseException, instance: str, *, status: int | None = None) -> Problem:
    """Return the problem that tells the client what happened.

    Args:
        error: a ``Refusal`` is told in full; anything else is "internal", without detail.
        instance: names this occurrence.
        status: for errors of HTTP itself (405, 415), which have no class of their own.
    """
    if not isinstance(error, errors.Refusal):
        code, detail, retryable, number = (
            "internal",
            "a fault in the service; its log has it under this instance",
            False,
            500,
        )
    else:
        code, detail, retryable = error.code, str(error), error.retryable
        number = next(HTTP_STATUS[kind] for kind in type(error).__mro__ if kind in HTTP_STATUS)
    return Problem(
        type=f"urn:birthmark:problem:{code}",
        title=code.replace("-", " "),
        status=status or number,
        detail=detail,
        instance=f"urn:birthmark:instance:{instance}",
        code=code,
        retryable=retryable,
        rule=error.rule if isinstance(error, errors.PolicyRefused) else None,
    )
