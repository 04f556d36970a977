"""What is under way for one device, written down before anything is asked.

A station may lose its power between any two steps.  ``Pending`` holds what it takes to go on as if nothing
had happened: the idempotency keys, the request numbers, and everything random that was part of a request
(the certification request, the signature, what a secure element answered last), because the same key with
another request is refused.  It holds no secret.

Phases: ``asking`` (the identity is asked for), ``installed`` (the device has it), ``proving`` (the proof is
sent; the outcome is unknown until it is answered), ``released``.  A device whose secure element gets a key
set stays ``installed`` until all of that is carried: after a break the dialogue is begun anew, as only the
service and the element know how far they came.  What the element answered to the last batch is part of the
proof, and written down with it.

A ``Journal`` keeps it.  A device element that can keep it itself is one (see ``Enclave``); for any other the
station's directory does, or, for a station without a directory, its memory.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from hashlib import sha256
from typing import Protocol, runtime_checkable

from birthmark.edge.station.folder import Folder
from birthmark.errors import IntegrityFailure

__all__ = [
    "ElementPending",
    "FolderJournal",
    "FurtherPending",
    "Journal",
    "MemoryJournal",
    "Pending",
    "Phase",
]


class Phase(StrEnum):
    """How far a device has come, as far as this side knows."""

    ASKING = "asking"
    INSTALLED = "installed"
    PROVING = "proving"
    RELEASED = "released"


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherPending:
    """What is under way for one of a device's further certificates."""

    profile: str
    csr: str | None = field(default=None, repr=False)
    """Certification request (PEM), exactly as sent; None for a delivered key."""
    certificate_sha256: str | None = None
    """Of the certificate that was installed (DER), hex."""
    signature: str | None = field(default=None, repr=False)
    """The proof exactly as sent (hex); from ``proving`` on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementPending:
    """What is under way for a device's secure element."""

    step: int = 0
    """Number of the last batch; from ``proving`` on."""
    responses: tuple[str, ...] = field(default=(), repr=False)
    """What the element answered to it, exactly as sent with the proof (hex); from ``proving`` on."""

    def __post_init__(self) -> None:
        """Refuse what is something else: it is read from a file.

        Raises:
            TypeError: it is of another type.
            ValueError: a response is not hexadecimal.
        """
        object.__setattr__(self, "responses", tuple(self.responses))
        if type(self.step) is not int:
            raise TypeError("a step is a number")
        for response in self.responses:
            bytes.fromhex(response)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """One device's transaction, seen from the station."""

    station: str
    """Name of the station that asked last: idempotency keys and request numbers are its own."""
    hardware_id: str
    run: str
    delivered: bool
    """True if the service makes the key."""
    issue_key: str
    """Idempotency key of the issue request."""
    issue_seq: int
    """Request number of the issue request."""
    phase: Phase = Phase.ASKING
    csr: str | None = field(default=None, repr=False)
    """Certification request (PEM), exactly as sent; None for a delivered key."""
    device: str | None = None
    """Kind and hardware id as the service spells them; from ``installed`` on."""
    attempt: str | None = None
    challenge: str | None = None
    """Hex."""
    certificate_sha256: str | None = None
    """Of the certificate that was installed (DER), hex."""
    prove_key: str | None = None
    prove_seq: int | None = None
    signature: str | None = field(default=None, repr=False)
    """The proof exactly as sent (hex); from ``proving`` on."""
    further: tuple[FurtherPending, ...] = ()
    """For the run's further certificates, in their order."""
    attested: str | None = field(default=None, repr=False)
    """What the device's TPM answered (JSON), exactly as sent with the issue request; None for no TPM."""
    element: ElementPending | None = None
    """For the device's secure element, if the run puts a key set into it; from ``installed`` on."""
    envelope: bool = False
    """True if the delivered keys come in envelopes."""

    def encode(self) -> bytes:
        """Return it as JSON, one line; nothing of further certificates or an element where there are none."""
        value = asdict(self)
        if not self.further:
            del value["further"]
        for name in ("attested", "element"):
            if value[name] is None:
                del value[name]
        if not self.envelope:
            del value["envelope"]
        return json.dumps(value, sort_keys=True).encode() + b"\n"

    @classmethod
    def decode(cls, octets: bytes) -> "Pending":
        """Read it back.

        Raises:
            IntegrityFailure: it is not what ``encode`` writes.
        """
        try:
            value = json.loads(octets)
            value["phase"] = Phase(value["phase"])
            further = tuple(FurtherPending(**one) for one in value.pop("further", ()))
            element = value.pop("element", None)
            if element is not None:
                element = ElementPending(**element)
            pending = cls(**value, further=further, element=element)
            if not all(isinstance(one.profile, str) for one in further):
                raise TypeError("a profile has no name")
        except (ValueError, TypeError, KeyError, AttributeError) as wrong:
            raise IntegrityFailure("what is written down as under way cannot be read") from wrong
        parts: tuple[Pending | FurtherPending, ...] = (pending, *further)
        for part in parts:
            for item in fields(part):
                if item.name not in {"further", "element"} and not isinstance(
                    getattr(part, item.name), str | int | None
                ):
                    raise IntegrityFailure(f"what is written down as under way has a strange {item.name}")
        if pending.phase is not Phase.ASKING and None in (
            pending.device,
            pending.attempt,
            pending.challenge,
            pending.certificate_sha256,
            *(one.certificate_sha256 for one in further),
        ):
            raise IntegrityFailure(f"what is written down as {pending.phase} names no attempt")
        shown = pending.phase in {Phase.PROVING, Phase.RELEASED}
        if pending.element is not None and shown != (pending.element.step > 0):
            raise IntegrityFailure(f"what is written down as {pending.phase} has a strange element")
        return pending


@runtime_checkable
class Journal(Protocol):
    """Where a device's ``Pending`` is kept.  Each call is durable when it returns."""

    def pending(self) -> Pending | None:
        """Return what was remembered last."""

    def remember(self, pending: Pending) -> None:
        """Keep it in place of what was remembered before."""

    def forget(self) -> None:
        """Nothing is under way any more."""


class FolderJournal:
    """Keeps it in a station's directory: one file for each device that is under way, none for the others."""

    def __init__(self, folder: Folder, hardware_id: str) -> None:
        self._folder = folder
        self._name = f"pending-{sha256(hardware_id.encode()).hexdigest()[:32]}.json"

    def pending(self) -> Pending | None:
        """Return what was remembered last; a released device is not remembered."""
        content = self._folder.read(self._name)
        return None if content is None else Pending.decode(content)

    def remember(self, pending: Pending) -> None:
        """Keep it until the device is released."""
        if pending.phase is Phase.RELEASED:
            self._folder.remove(self._name)
        else:
            self._folder.write(self._name, pending.encode(), mode=0o600)

    def forget(self) -> None:
        """Remove the file."""
        self._folder.remove(self._name)


class MemoryJournal:
    """Keeps it as long as the process lives: for a station without a directory."""

    def __init__(self) -> None:
        self._pending: Pending | None = None

    def pending(self) -> Pending | None:
        """Return what was remembered last."""
        return self._pending

    def remember(self, pending: Pending) -> None:
        """Keep it."""
        self._pending = pending

    def forget(self) -> None:
        """Drop it."""
        self._pending = None
