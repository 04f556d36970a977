"""What is told of a device's secure element to the line: how far its key set has come, and what went wrong.

It is the journal as committed (``floor.elements``), with the key version number that the run's profile gives
the set; nothing of it is a proof.  What was proved stands in the record of a released device.
"""

from contextlib import suppress
from dataclasses import dataclass

from birthmark import errors
from birthmark.element.injection import KeySetPhase
from birthmark.element.profiles import ElementProfile
from birthmark.floor.elements import ElementJournal
from birthmark.floor.runs import RunLicence
from birthmark.services.runs import Runs

__all__ = ["ElementStatus", "element_status"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementStatus:
    """The secure element of one device, as far as we know."""

    profile: str
    phase: KeySetPhase
    kvn: int | None
    """Key version number of the final set; None where this process does not know the run's profile."""
    master: str
    """Label of the master key of that set."""
    key_diversification_data: str | None
    """Hex, as first seen: names the chip; None before."""
    attempt: str
    """The attempt under which it was last spoken to."""
    tries: int
    """Dialogues of that attempt that broke off."""
    failures: int
    """Authentications whose outcome is not known, since the last that was accepted."""
    reason: str | None
    """Why the last dialogue broke off, or why the device is held."""


def element_status(runs: Runs, licence: RunLicence, journal: ElementJournal | None) -> ElementStatus | None:
    """Return what is told of the element of a device of a run; None if nobody has spoken to one yet."""
    if journal is None:
        return None
    kvn = None
    with suppress(errors.Refusal):  # the profile has changed, or is not known here: the journal still stands
        profile = runs.pinned_element(licence)
        kvn = profile.final.kvn if isinstance(profile, ElementProfile) else None
    return ElementStatus(
        profile=journal.element,
        phase=journal.phase,
        kvn=kvn,
        master=journal.master,
        key_diversification_data=journal.kdd.hex() or None,
        attempt=journal.attempt,
        tries=journal.tries,
        failures=journal.failures,
        reason=journal.reason,
    )
