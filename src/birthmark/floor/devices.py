"""A device on the line: its states, its attempts, its certificates and the record it leaves with.

The states and the permitted moves are one table, ``TRANSITIONS``; ``move`` is the only function that reads
it. The only way into RELEASED is from PROVED, and the only way into PROVED is a verified proof.  Nothing is
deleted: a device's history is its list of attempts.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from birthmark import errors
from birthmark.ledger.entry import time_text

__all__ = [
    "TRANSITIONS",
    "Attempt",
    "Device",
    "DeviceCertificate",
    "DeviceEvent",
    "DeviceState",
    "IdentityRecord",
    "KeyOrigin",
    "KeyUse",
    "move",
]


class DeviceState(StrEnum):
    """Where a device stands on the line."""

    ADMITTED = "admitted"
    """Counted against its run's quantity; no credential yet, or reworked and waiting for a new one."""
    ISSUED = "issued"
    """Holds a certificate that nobody has proved yet."""
    PROVED = "proved"
    """Has shown that it holds its key; passed through inside one commit on the way to RELEASED."""
    RELEASED = "released"
    HELD = "held"
    SCRAPPED = "scrapped"


class DeviceEvent(StrEnum):
    """What can happen to a device."""

    ISSUE = "issue"
    PROVE = "prove"
    RELEASE = "release"
    HOLD = "hold"
    REWORK = "rework"
    SCRAP = "scrap"


TRANSITIONS: Mapping[DeviceState, Mapping[DeviceEvent, DeviceState]] = {
    DeviceState.ADMITTED: {DeviceEvent.ISSUE: DeviceState.ISSUED, DeviceEvent.HOLD: DeviceState.HELD},
    DeviceState.ISSUED: {DeviceEvent.PROVE: DeviceState.PROVED, DeviceEvent.HOLD: DeviceState.HELD},
    DeviceState.PROVED: {DeviceEvent.RELEASE: DeviceState.RELEASED, DeviceEvent.HOLD: DeviceState.HELD},
    DeviceState.HELD: {DeviceEvent.REWORK: DeviceState.ADMITTED, DeviceEvent.SCRAP: DeviceState.SCRAPPED},
    DeviceState.RELEASED: {},
    DeviceState.SCRAPPED: {},
}

_ADVICE: Mapping[DeviceState, str] = {
    DeviceState.ADMITTED: "it waits for a credential",
    DeviceState.ISSUED: "prove it, or hold it and rework it",
    DeviceState.PROVED: "its release is under way",
    DeviceState.RELEASED: "it has its identity",
    DeviceState.HELD: "rework it or scrap it",
    DeviceState.SCRAPPED: "it never gets another identity",
}


def move(device: str, state: DeviceState, event: DeviceEvent) -> DeviceState:
    """Return the state after an event.

    Raises:
        errors.IllegalTransition: the event is not allowed in this state.
    """
    following = TRANSITIONS[state].get(event)
    if following is None:
        raise errors.IllegalTransition(f"cannot {event} {device}: it is {state}; {_ADVICE[state]}")
    return following


class KeyOrigin(StrEnum):
    """How the device came by its key (SPEC C5)."""

    BORN = "born"
    """Made in the device, which sent a certification request."""
    DELIVERED = "delivered"
    """Made by the service, sent once inside TLS, kept nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One physical device, named by its hardware id."""

    id: str
    """Kind and hardware id, e.g. ``vin:1M8GDM9AXKP042788``."""
    state: DeviceState
    run: str
    attempt: str
    """Id of the attempt that counts."""
    attempts: int
    """How many attempts were made, this one included."""
    reason: str | None
    """Why it is held or scrapped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try at giving a device its identity: a certificate, a challenge and what became of it."""

    id: str
    device: str
    number: int
    """1 for the first attempt at this device."""
    run: str
    client: str
    """Who asked, e.g. ``station:ST01``."""
    operator: str | None
    origin: KeyOrigin
    state: DeviceState
    challenge: bytes
    """32 random octets."""
    certificate: str
    """Serial number of the certificate to prove (hex)."""
    issued_at: datetime
    issue_leaf: int
    proof: bytes | None
    """The signature that proved possession (DER Ecdsa-Sig-Value, or 64 octets for Ed25519).

    At an operational run ``handshake``, ``confirmation`` or ``request``, in ASCII: what was signed is in no
    record.
    """
    released_at: datetime | None
    release_leaf: int | None
    further: str = ""
    """Serial numbers of the further certificates to prove (hex), separated by spaces (SPEC C5)."""

    @property
    def certificates(self) -> tuple[str, ...]:
        """Return the serial numbers of all certificates to prove."""
        return (self.certificate, *self.further.split())


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceCertificate:
    """A certificate issued to a device."""

    serial: str
    """Serial number, lower-case hex."""
    authority: str
    device: str
    attempt: str
    der: bytes
    sha256: str
    """Fingerprint of the DER encoding (hex)."""
    run: str
    partition: str
    """Partition of the authority's CRL that tells whether it is revoked (``floor.revocations``)."""
    client: str
    """Who asked for it, e.g. ``station:ST01``."""
    issued_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUse:
    """Which device a public key belongs to: no two devices share one (SPEC C8)."""

    spki_sha256: str
    """SHA-256 of the SubjectPublicKeyInfo (hex)."""
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityRecord:
    """What is known for ever about a released device's identity (SPEC E1)."""

    leaf: int
    """Index of the log entry that says the same."""
    device: str
    attempt: str
    attempt_number: int
    run: str
    batch: str
    product: str
    profile: str
    authority: str
    certificate: str
    """Serial number (hex)."""
    certificate_sha256: str
    spki_sha256: str
    origin: KeyOrigin
    site: str
    line: str
    client: str
    operator: str | None
    issued_at: datetime
    issue_leaf: int
    released_at: datetime
    challenge: bytes
    proof: bytes
    further: str = ""
    """What else the record says, canonical JSON; empty for nothing.

    ``further`` is a list of profile, certificate, certificate_sha256, spki_sha256 and proof for each further
    certificate, ``key_set`` what was proved of its secure element (``services.injection``), ``tpm`` what was
    attested (``floor.attestations``).
    """

    def document(self) -> dict[str, object]:
        """Return the record as it stands in the log entry of the release (its own index apart)."""
        further: dict[str, object] = json.loads(self.further or "{}")
        return further | {
            "device": self.device,
            "attempt": self.attempt,
            "attempt_number": self.attempt_number,
            "run": self.run,
            "batch": self.batch,
            "product": self.product,
            "profile": self.profile,
            "authority": self.authority,
            "certificate": self.certificate,
            "certificate_sha256": self.certificate_sha256,
            "spki_sha256": self.spki_sha256,
            "origin": str(self.origin),
            "site": self.site,
            "line": self.line,
            "client": self.client,
            "operator": self.operator,
            "issued_at": time_text(self.issued_at),
            "issue_leaf": self.issue_leaf,
            "released_at": time_text(self.released_at),
            "challenge": self.challenge.hex(),
            "proof": self.proof.hex(),
        }
