"""A station that does as it likes between the service and a secure element: bare requests, no station kit."""

from collections.abc import Callable, Sequence
from typing import Any

from birthmark.element.apdu import Batch, CardChannel, Guarded, relay
from birthmark.element.commands import delete_key_set
from birthmark.element.scp03 import initialize_update
from tests.support.devices import asked, signed
from tests.support.server import Answer, Http, tls_context
from tests.system.element_line import CHIPS, Chip, Line

__all__ = ["DEEDS", "GATE", "Deed", "Dialogue", "batch_of", "hexed"]

Deed = Callable[[CardChannel, int, Batch], list[bytes]]
"""What the station makes of a step: it has the element, the number of the step and the batch."""
GATE = 3
"""The last step, also where it comes sooner because the element has the final set already."""


class Dialogue:
    """One device at this station, as far as the station chooses."""

    def __init__(self, line: Line, chip: Chip) -> None:
        """Ask for the device's certificate."""
        self.chip = chip
        self.client = Http(line.server.address, tls_context(line.realm.station("ST02")))
        line.stack.callback(self.client.connection.close)
        self.key, body = asked(chip.name)
        answer = self.client.post(f"/v1/runs/{CHIPS}/issue", body)
        assert answer.status == 200, answer.body
        self.issued = answer.json
        self.attempt: str = self.issued["attempt"]

    def inject(self, step: int, responses: Sequence[bytes] = ()) -> Answer:
        """Send a step's responses; 0 begins anew."""
        element = {"step": step, "responses": hexed(responses)}
        return self.client.post("/v1/inject", {"attempt": self.attempt, "element": element})

    def prove(self, step: int, responses: Sequence[bytes]) -> Answer:
        """Send the device's proof, which is right, and the responses to the last step."""
        element = {"step": step, "responses": hexed(responses)}
        return self.client.post("/v1/prove", {**signed(self.issued, self.key), "element": element})

    def carry(self, deed: Deed, *, dialogues: int = 8) -> Answer:
        """Carry it to its end, which is a release or a refusal; begin anew as long as the service says so."""
        element: dict[str, Any] = self.issued["element"]
        number = 0
        while True:
            number += 1
            step = GATE if element["last"] else number
            responses = deed(self.chip.channel, step, batch_of(element))
            if element["last"]:
                answer = self.prove(element["step"], responses)
            else:
                answer = self.inject(element["step"], responses)
            if answer.status != 200 and answer.json["code"] == "interrupted":
                dialogues -= 1
                assert dialogues, "the service counts the dialogues that break off"
                self.chip.channel.reset()
                answer, number = self.inject(0), 0
            elif answer.status != 200 or element["last"]:
                return answer
            if answer.status != 200:
                return answer
            element = answer.json["element"]


def hexed(responses: Sequence[bytes]) -> list[str]:
    """Return octets as they go into JSON."""
    return [response.hex() for response in responses]


def batch_of(element: dict[str, Any]) -> Batch:
    """Return what the service wants to be carried."""
    return tuple(
        Guarded(
            command=bytes.fromhex(item["command"]),
            status_words=tuple(int(word, 16) for word in item["status_words"]),
            response_sha256=item["response_sha256"],
        )
        for item in element["commands"]
    )


def changed(card: CardChannel, step: int, batch: Batch) -> list[bytes]:
    """One bit of an answer of the gate is turned over."""
    responses = relay(card, batch)
    if step == GATE:
        responses[1] = bytes((responses[1][0] ^ 1,)) + responses[1][1:]
    return responses


def dropped(card: CardChannel, step: int, batch: Batch) -> list[bytes]:
    """The last answer is kept back: the element refuses the initial set, and nobody hears."""
    responses = relay(card, batch)
    return responses[:-1] if step == GATE else responses


def left_out(card: CardChannel, step: int, batch: Batch) -> list[bytes]:
    """The element never gets the last commands, DELETE among them, and nothing is said of it."""
    return relay(card, batch[:3] if step == GATE else batch)


def reordered(card: CardChannel, step: int, batch: Batch) -> list[bytes]:
    """Two answers change places."""
    responses = relay(card, batch)
    if step == GATE:
        responses[1], responses[2] = responses[2], responses[1]
    return responses


def exchanged(card: CardChannel, step: int, batch: Batch) -> list[bytes]:
    """Two commands change places."""
    return relay(card, (batch[0], batch[2], batch[1], *batch[3:]) if step == GATE else batch)


def repeated(card: CardChannel, step: int, batch: Batch) -> list[bytes]:
    """The element gets a command twice; the second answer is not sent on."""
    if step != GATE:
        return relay(card, batch)
    before = relay(card, batch[:2])
    relay(card, batch[1:2])
    return [*before, *relay(card, batch[2:])]


def session_of_its_own(card: CardChannel, step: int, batch: Batch) -> list[bytes]:
    """The station's own INITIALIZE UPDATE comes in between."""
    if step != GATE:
        return relay(card, batch)
    before = relay(card, batch[:2])
    card.transmit(initialize_update(0x30, bytes(8)).encode())
    return [*before, *relay(card, batch[2:])]


def deletion_of_its_own(card: CardChannel, step: int, batch: Batch) -> list[bytes]:
    """The station deletes the final set in between, or tries to."""
    if step != GATE:
        return relay(card, batch)
    before = relay(card, batch[:2])
    card.transmit(delete_key_set(0x30).encode())
    return [*before, *relay(card, batch[2:])]


def nothing_but_ok(_card: CardChannel, _step: int, batch: Batch) -> list[bytes]:
    """The element is never asked."""
    return [b"\x90\x00" for _ in batch]


DEEDS: tuple[Deed, ...] = (
    changed,
    dropped,
    left_out,
    reordered,
    exchanged,
    repeated,
    session_of_its_own,
    deletion_of_its_own,
    nothing_but_ok,
)
