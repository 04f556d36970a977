"""Carrying: the station's part in putting a key set into a secure element.

The service and the element talk with each other; the station stands in between and understands nothing.  The
service sends commands in batches, and with each command what has to come back for the next one to be sent
(``birthmark.element.apdu.relay``).  What comes back goes to the service as it is.  Keys pass by encrypted for
the element; nothing here could read them.

``Dialogue`` lives as long as a call.  It is begun anew, after the element lost its power, whenever the
service says that it broke off (``Interrupted``), and after the station itself broke off: how far an element
has come is known to the service and the element alone, so nothing of a dialogue is written down here but the
responses that go with a proof (``pending``).  The service counts how often a device is begun anew, and holds
it in the end; the bounds here keep a service that does not count from wearing an element out.

Neither commands nor responses are in a ``repr``, a message or a log.
"""

from dataclasses import dataclass, field

from birthmark import errors
from birthmark.edge.station.answers import ElementStep
from birthmark.element.apdu import CardChannel, relay

__all__ = ["Carried", "Dialogue"]

_MOST_STEPS = 16
"""Batches of one dialogue; an honest one has three or four."""
_MOST_DIALOGUES = 32
"""Of one device in one call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """What an element said to one batch."""

    step: int = 0
    """Number of the batch; 0 to begin anew."""
    responses: tuple[bytes, ...] = field(default=(), repr=False)
    """As many as there were."""


class Dialogue:
    """What the service and one secure element say to each other."""

    def __init__(self, card: CardChannel, begun: ElementStep | None = None) -> None:
        """Stand between the service and ``card``.

        Args:
            card: the element.
            begun: the service's first batch; None to ask for one.
        """
        self._card = card
        self._next = begun
        self._steps = 0
        self._begun = 1

    @property
    def ends(self) -> bool:
        """Return whether the batch that is next is the last one: its responses go with the proof."""
        return self._next is not None and self._next.last

    def carry(self) -> Carried:
        """Carry the next batch to the element, or power it off and on to begin anew.

        Raises:
            Unavailable: the element, or its reader, is gone.
            MalformedRequest: the reader cannot carry such commands.
        """
        if self._next is None:
            self._card.reset()
            return Carried()
        return Carried(step=self._next.step, responses=tuple(relay(self._card, self._next.batch)))

    def take(self, step: ElementStep) -> None:
        """Take the next batch.

        Raises:
            IntegrityFailure: the service does not come to an end.
        """
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise errors.IntegrityFailure(
                f"the service wants more than {_MOST_STEPS} steps for one secure element"
            )
        self._next = step

    def begin_anew(self, why: errors.Refusal) -> None:
        """Have the dialogue begun anew by the next ``carry``.

        Raises:
            Refusal: it was begun too often in this call; ``why``.
        """
        self._next, self._steps = None, 0
        self._begun += 1
        if self._begun > _MOST_DIALOGUES:
            raise why
