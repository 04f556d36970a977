"""What the command line says when it refuses: one exit code a meaning, one line of text, and what to do next.

The codes are those of sysexits.h where it has a word for it (65 EX_DATAERR, 70 EX_SOFTWARE, 75 EX_TEMPFAIL:
try again, 76 EX_PROTOCOL, 77 EX_NOPERM); 1 is every other refusal, 2 a command that was spelled wrongly.
"""

import hashlib
import os
import sys
import time
import traceback
from collections.abc import Mapping

from birthmark import errors

__all__ = [
    "EXIT_CODES",
    "INTERNAL",
    "INTERRUPTED",
    "USAGE",
    "complain",
    "complain_of",
    "exit_code",
    "report_fault",
]

INTERNAL = 70
"""EX_SOFTWARE: a fault of ours."""
USAGE = 2
"""A command or option that does not exist, or lacks a value."""
INTERRUPTED = 130
"""Somebody pressed Ctrl-C: 128 and the number of SIGINT."""

EXIT_CODES: Mapping[type[errors.Refusal], int] = {
    errors.Refusal: 1,
    errors.MalformedRequest: 65,
    errors.TooLarge: 1,
    errors.Unauthenticated: 77,
    errors.NotPermitted: 77,
    errors.NotFound: 66,
    errors.IllegalTransition: 1,
    errors.KeyReused: 1,
    errors.QuotaExhausted: 1,
    errors.ProofFailed: 76,
    errors.Interrupted: 75,
    errors.RateLimited: 75,
    errors.PolicyRefused: 1,
    errors.Unavailable: 75,
    errors.IntegrityFailure: 70,
    errors.Fault: INTERNAL,
}
"""The exit code of every refusal; a test proves that none is missing."""

_ADVICE: Mapping[type[errors.Refusal], str] = {
    errors.Unavailable: "the same command may be given again",
    errors.IntegrityFailure: "stop the line and run 'birthmark check'",
    errors.Unauthenticated: "see 'birthmark operator list', and choose a credential with --as DIR",
}


def exit_code(refusal: errors.Refusal) -> int:
    """Return the exit code of a refusal: of its class, or of the class it is a kind of."""
    return next(EXIT_CODES[kind] for kind in type(refusal).__mro__ if kind in EXIT_CODES)


def complain(what: str, advice: str = "") -> None:
    """Say on standard error what is wrong, in one line, and in a second what to do about it."""
    sys.stderr.write(f"birthmark: {_one_line(what)}\n")
    if advice:
        sys.stderr.write(f"  {_one_line(advice)}\n")
    sys.stderr.flush()


def complain_of(refusal: errors.Refusal) -> int:
    """Say why something was refused and return the exit code."""
    rule = f" (rule {refusal.rule})" if isinstance(refusal, errors.PolicyRefused) else ""
    complain(f"{refusal}{rule}", _ADVICE.get(type(refusal), ""))
    return exit_code(refusal)


def report_fault(fault: Exception, *, debug: bool) -> int:
    """Say that a fault of ours ended the command, its detail only with ``debug``; return the exit code."""
    trace = "".join(traceback.format_exception(fault))
    # The id only has to tell two reports apart; it needs no random source, which may be what failed.
    instance = hashlib.sha256(f"{os.getpid()}/{time.monotonic_ns()}/{trace}".encode()).hexdigest()[:12]
    if debug:
        sys.stderr.write(trace)
    advice = "" if debug else "give the same command with 'birthmark --debug …' to see where"
    complain(f"internal fault, instance {instance}", advice)
    return INTERNAL


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
