"""The half of the tests' service that speaks with secure elements: the real ``inject``, over benches.

As the real service it begins a dialogue anew when asked to, answers a repeated step in the same way, counts
what broke off, and holds the device in the end.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from birthmark import errors
from birthmark.element.injection import Evidence, Injection, Step, inject
from tests.support.injecting import Bench, profile_of


def bench_of(device: str) -> Bench:
    """Return a new element, the same for the same device."""
    return Bench(profile_of(tags=(0x53,)), kdd=sha256(device.encode()).digest()[:10])


class Over(Exception):
    """A dialogue that ended."""

    def __init__(self, why: errors.Refusal) -> None:
        super().__init__(str(why))
        self.why = why


@dataclass
class _Live:
    dialogue: Injection
    number: int
    sent: Step
    answered: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, Any] | Evidence | None = None


@dataclass
class Dialogues:
    """All dialogues of one service."""

    make: Callable[[str], Bench] = bench_of
    begins_at_once: bool = True
    """False if the answer to an issue request has no commands yet."""
    tries: int = 6
    """A device is held when so many dialogues broke off."""
    benches: dict[str, Bench] = field(default_factory=dict)
    broken: Counter[str] = field(default_factory=Counter)
    begun: Counter[str] = field(default_factory=Counter)
    _live: dict[str, _Live] = field(default_factory=dict)

    def bench(self, device: str) -> Bench:
        """Return the element of a device."""
        return self.benches.setdefault(device, self.make(device))

    def begin(self, attempt: str, device: str) -> dict[str, Any]:
        """Begin a dialogue, or begin it anew."""
        self.begun[device] += 1
        dialogue = inject(self.bench(device).order())
        live = self._live[attempt] = _Live(dialogue, 1, next(dialogue))
        return _body(live)

    def restart(self) -> None:
        """Forget all that is under way."""
        self._live.clear()

    def advance(self, attempt: str, device: str, answer: dict[str, Any]) -> dict[str, Any] | Evidence:
        """Take a dialogue one step on, and return what to send next, or what was proved.

        Raises:
            Over: it ended otherwise; the device is held unless it was merely interrupted.
        """
        live = self._live.get(attempt)
        if live is None:
            raise Over(errors.Interrupted("the dialogue is not known here: begin it anew"))
        if live.answered != answer:
            if answer["step"] != live.number or isinstance(live.answer, Evidence):
                raise Over(errors.IllegalTransition("the dialogue is not at this step: begin it anew"))
            live.answered, live.answer = answer, self._send(live, attempt, device, answer["responses"])
        assert live.answer is not None
        return live.answer

    def _send(
        self, live: _Live, attempt: str, device: str, responses: list[str]
    ) -> dict[str, Any] | Evidence:
        bench = self.bench(device)
        try:
            live.sent = live.dialogue.send([bytes.fromhex(response) for response in responses])
        except StopIteration as done:
            evidence, bench.state = done.value
            assert isinstance(evidence, Evidence)
            return evidence
        except errors.Refusal as refusal:
            del self._live[attempt]
            self.broken[device] += 1
            if isinstance(refusal, errors.Interrupted) and self.broken[device] >= self.tries:
                raise Over(errors.ProofFailed(f"too often: {refusal}")) from refusal
            raise Over(refusal) from refusal
        bench.state = live.sent.state
        live.number += 1
        return _body(live)


def _body(live: _Live) -> dict[str, Any]:
    return {
        "step": live.number,
        "last": live.sent.last,
        "commands": [
            {
                "command": guarded.command.hex(),
                "status_words": [f"{word:04x}" for word in guarded.status_words],
                "response_sha256": guarded.response_sha256,
            }
            for guarded in live.sent.batch
        ],
    }
