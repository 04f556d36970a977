"""A channel to a virtual element in this process, and what can go wrong on it, in order and as data.

Faults are counted in commands as they go over the channel, GET RESPONSE and the parts of a chain included.
How an element lies about its keys is another matter: ``card_keys.Dishonesty``.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from birthmark import errors
from birthmark.element.card import VirtualElement
from birthmark.element.scp03 import is_protected

__all__ = ["ElementChannel", "Fault", "FaultKind"]


class FaultKind(StrEnum):
    """What happens at a command."""

    TEAR_BEFORE = "tear-before"
    """The power goes before the command is carried out; it is back after a reset."""
    TEAR_AFTER = "tear-after"
    """The command is carried out, then the power goes, and the answer with it; it is back after a reset."""
    ANSWER_LOST = "answer-lost"
    """The command is carried out and the answer lost; the element goes on as if it had been heard."""
    WRONG_ANSWER = "wrong-answer"
    """The last octet of the data of a success is changed: of its R-MAC, where there is one."""
    DEAD = "dead"
    """The command is not carried out, and neither is any other ever again."""
    DEAD_AFTER = "dead-after"
    """The command is carried out; no answer comes to it or to any other ever again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault."""

    kind: FaultKind
    at: int = 1
    """At which command it happens, from 1: counted over the life of the channel."""
    ins: int | None = None
    """Count only commands with this instruction octet."""

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """Read ``KIND:N`` or ``KIND:N:INS`` (INS in hex), e.g. ``tear-after:5`` or ``dead-after:1:D8``.

        Raises:
            MalformedRequest: it is something else.
        """
        kind, _, rest = text.partition(":")
        at, _, ins = rest.partition(":")
        try:
            fault = cls(kind=FaultKind(kind), at=int(at), ins=int(ins, 16) if ins else None)
        except ValueError as cause:
            raise errors.MalformedRequest(
                f"a fault is written KIND:N or KIND:N:INS, KIND one of {', '.join(FaultKind)}; not {text!r}"
            ) from cause
        if fault.at < 1:
            raise errors.MalformedRequest(f"commands are counted from 1, not from {fault.at}")
        return fault


class ElementChannel:
    """A ``CardChannel`` to a virtual element."""

    def __init__(self, element: VirtualElement, faults: Iterable[Fault] = ()) -> None:
        """Connect to an element, which is to have these faults."""
        self.element = element
        self.faults = list(faults)
        """Those still to come; one that has happened is taken out."""
        self.commands = 0
        """Commands that were sent so far, those included that were not carried out."""
        self._of_ins: dict[int, int] = {}
        self._powered = True
        self.dead = False
        """It will never answer again."""

    def transmit(self, command: bytes) -> bytes:
        """Send one command and return the response.

        Raises:
            Unavailable: a fault happened, or the element has no power since one did.
        """
        if self.dead or not self._powered:
            raise errors.Unavailable("the virtual element does not answer")
        self.commands += 1
        ins = command[1] if len(command) > 1 else -1
        self._of_ins[ins] = self._of_ins.get(ins, 0) + 1
        fault = self._due(ins)
        if fault is None:
            return self.element.process(command)
        if fault.kind not in (FaultKind.TEAR_BEFORE, FaultKind.DEAD):
            response = self.element.process(command)
            if fault.kind is FaultKind.WRONG_ANSWER:
                return _changed(response)
        if fault.kind in (FaultKind.TEAR_BEFORE, FaultKind.TEAR_AFTER):
            self.element.reset()
            self._powered = False
        self.dead = fault.kind in (FaultKind.DEAD, FaultKind.DEAD_AFTER)
        raise errors.Unavailable(
            f"the virtual element does not answer: {fault.kind} at command {self.commands}"
        )

    def reset(self) -> None:
        """Power the element off and on.

        Raises:
            Unavailable: it is dead.
        """
        if self.dead:
            raise errors.Unavailable("the virtual element does not answer any more")
        self.element.reset()
        self._powered = True

    def _due(self, ins: int) -> Fault | None:
        for fault in self.faults:
            count = self.commands if fault.ins is None else self._of_ins.get(fault.ins, 0)
            if count == fault.at and fault.ins in (None, ins):
                self.faults.remove(fault)
                return fault
        return None


def _changed(response: bytes) -> bytes:
    if len(response) < 3 or not is_protected(int.from_bytes(response[-2:], "big")):
        return response
    return response[:-3] + bytes((response[-3] ^ 0x01,)) + response[-2:]
