"""A directory as device, with a secure element behind a channel: what ``pcsc:`` and ``tcp:`` open."""

from collections.abc import Callable, Mapping
from typing import Protocol

from birthmark.edge.station.elements import algorithm_of
from birthmark.edge.station.enclave import Enclave
from birthmark.element.apdu import CardChannel
from birthmark.errors import MalformedRequest
from birthmark.pki.keys import KeyAlgorithm

__all__ = ["OPTIONS", "CardedEnclave", "ClosingChannel", "carded", "seconds"]

OPTIONS = ("enclave", "algorithm")
"""What ``carded`` reads."""


class ClosingChannel(CardChannel, Protocol):
    """A channel that somebody has to close."""

    def close(self) -> None:
        """Give the element back, without power."""


class CardedEnclave(Enclave):
    """An ``Enclave`` that closes the channel of its secure element, too."""

    def __init__(self, directory: str, *, algorithm: KeyAlgorithm, channel: ClosingChannel) -> None:
        """Take a directory and a channel; ``close`` gives both back.  Refusals are those of ``Enclave``."""
        super().__init__(directory, algorithm=algorithm, card=channel)
        self._channel = channel

    def close(self) -> None:
        """Give the directory and the channel back."""
        try:
            super().close()
        finally:
            self._channel.close()


def carded(options: Mapping[str, str], channel: Callable[[], ClosingChannel]) -> CardedEnclave:
    """Open the directory that the option ``enclave`` names, with a channel for its secure element.

    Raises:
        MalformedRequest: no directory is named, or ``algorithm`` is none of ours.
        Refusal: whatever ``Enclave`` or the channel has against it.
    """
    directory = options.get("enclave")
    if not directory:
        raise MalformedRequest(
            "a secure element alone keeps no certificate: say where the device does, ?enclave=DIR"
        )
    algorithm = algorithm_of(options)
    opened = channel()
    try:
        return CardedEnclave(directory, algorithm=algorithm, channel=opened)
    except BaseException:
        opened.close()
        raise


def seconds(options: Mapping[str, str], name: str, default: float) -> float:
    """Return an option that is a time.

    Raises:
        MalformedRequest: it is none, or longer than an hour.
    """
    try:
        value = float(options.get(name, default))
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise MalformedRequest(f"{name} is a number of seconds, up to 3600")
    return value
