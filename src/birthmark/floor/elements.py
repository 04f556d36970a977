"""Secure elements on the line: how far each has come, and whose it is (SPEC D1, D5).

``ElementJournal`` is the journal: what is written here before a command goes out is what a dialogue that
broke off is taken up with.  It is the element's, not the attempt's: a reworked device has the same chip.
"""

from dataclasses import dataclass, replace

from birthmark.element.injection import KeySetPhase, KeySetState

__all__ = ["ElementJournal", "ElementUse", "element_use", "fresh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementJournal:
    """The secure element of one device, as far as we know."""

    device: str
    attempt: str
    """The attempt under which it was last spoken to."""
    element: str
    """Name of its profile."""
    master: str
    """Label of the master key of its final set: which version of it the device was made with."""
    phase: KeySetPhase
    kdd: bytes
    """Key diversification data as first seen, 10 octets; empty before."""
    initial_counter: int
    """Greatest sequence counter seen of the initial set; -1 for none."""
    final_counter: int
    failures: int
    """EXTERNAL AUTHENTICATEs sent since the last that is known to have been accepted."""
    tries: int
    """Dialogues of this attempt that broke off."""
    reason: str | None
    """Why the last one did."""

    @property
    def state(self) -> KeySetState:
        """Return what a dialogue is begun with."""
        return KeySetState(
            phase=self.phase,
            key_diversification_data=self.kdd,
            initial_counter=self.initial_counter,
            final_counter=self.final_counter,
            failures=self.failures,
        )

    def said(self) -> dict[str, object]:
        """Return the journal as it stands in log entries, under ``journal``; the device's id apart."""
        return {
            "attempt": self.attempt,
            "element": self.element,
            "master": self.master,
            "phase": str(self.phase),
            "key_diversification_data": self.kdd.hex(),
            "initial_counter": self.initial_counter,
            "final_counter": self.final_counter,
            "failures": self.failures,
            "tries": self.tries,
            "reason": self.reason,
        }

    def at(self, state: KeySetState) -> "ElementJournal":
        """Return the row with another state."""
        return replace(
            self,
            phase=state.phase,
            kdd=state.key_diversification_data,
            initial_counter=state.initial_counter,
            final_counter=state.final_counter,
            failures=state.failures,
        )

    def under(self, attempt: str, *, failed_authentications: int) -> "ElementJournal":
        """Return the row as an attempt finds it: a new one has all its tries.

        There is a new one only after a rework.  Where the limit of authentications of unknown outcome (the
        profile's ``failed_authentications``) is reached, whoever decided on that risks one more: most of them
        were accepted or never arrived, and without it the device could only be scrapped.
        """
        if attempt == self.attempt:
            return self
        failures = min(self.failures, failed_authentications - 1)
        return replace(self, attempt=attempt, failures=failures, tries=0, reason=None)


def fresh(device: str, attempt: str, *, element: str, master: str) -> ElementJournal:
    """Return the row of an element nobody has spoken to."""
    return ElementJournal(
        device=device,
        attempt=attempt,
        element=element,
        master=master,
        phase=KeySetPhase.ABSENT,
        kdd=b"",
        initial_counter=-1,
        final_counter=-1,
        failures=0,
        tries=0,
        reason=None,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementUse:
    """Which device an element is in: no two devices have the same key set (SPEC C8)."""

    id: str
    """As ``element_use`` or ``attestations.endorsement_use`` has it."""
    device: str


def element_use(master: str, key_diversification_data: str) -> str:
    """Return the id of an element: label of the master key and its data (hex), joined by ``/``."""
    return f"{master}/{key_diversification_data}"
