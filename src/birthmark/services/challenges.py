"""What proofs are checked against, remembered between issuing and proving.

The memory spares the usual proof a look at the record.  It is bounded, and never believed: the commit
compares what was remembered with what is on record, and a process that was overtaken by another looks
again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from birthmark import errors
from birthmark.floor.devices import Attempt, DeviceCertificate
from birthmark.pki.certificates import Certificate
from birthmark.ports import Facts, Look, UseCase

__all__ = ["Challenged", "Challenges", "Provable"]

REMEMBERED_ATTEMPTS = 16384


@dataclass(frozen=True, slots=True)
class Provable:
    """A certificate whose key the device must show."""

    serial: str
    sha256: str
    spki: bytes = field(repr=False)

    @classmethod
    def of(cls, certificate: Certificate) -> Self:
        """Return what must be shown for a certificate."""
        return cls(certificate.serial_hex, certificate.fingerprint, certificate.subject_public_key_info)


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenged:
    """What a proof is checked against."""

    device: str
    run: str
    challenge: bytes = field(repr=False)
    provable: tuple[Provable, ...]
    """The device's certificates, in the order of the run's profiles; at least one."""

    @property
    def serials(self) -> tuple[str, ...]:
        """Return the serial numbers of the certificates."""
        return tuple(one.serial for one in self.provable)


class Challenges:
    """The challenges of recent attempts, by attempt."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._known: dict[str, Challenged] = {}

    def remember(self, attempt: str, challenged: Challenged) -> None:
        """Keep what an attempt's proof is checked against, and forget the oldest if there are too many."""
        if len(self._known) >= REMEMBERED_ATTEMPTS:
            del self._known[next(iter(self._known))]
        self._known[attempt] = challenged

    def forget(self, attempt: str) -> None:
        """Look the attempt up next time."""
        self._known.pop(attempt, None)

    def recall(self, attempts: Sequence[str]) -> UseCase[dict[str, Challenged]]:
        """Return what these attempts' proofs are checked against, looked up where it is not remembered."""
        known = {key: self._known[key] for key in attempts if key in self._known}
        missing = [attempt for attempt in dict.fromkeys(attempts) if attempt not in known]
        if not missing:
            return known
        facts: Facts = yield Look({Attempt: missing})
        found = [attempt for attempt in (facts.get(Attempt, key) for key in missing) if attempt is not None]
        facts = yield Look({DeviceCertificate: [one for attempt in found for one in attempt.certificates]})
        for attempt in found:
            provable = []
            for serial in attempt.certificates:
                stored = facts.get(DeviceCertificate, serial)
                if stored is None:
                    raise errors.IntegrityFailure(f"certificate {serial} of attempt {attempt.id} is gone")
                provable.append(Provable.of(Certificate.from_der(stored.der)))
            known[attempt.id] = Challenged(
                device=attempt.device,
                run=attempt.run,
                challenge=attempt.challenge,
                provable=tuple(provable),
            )
            self.remember(attempt.id, known[attempt.id])
        return known
