"""Ceremonies in this process: custodians with their own keys, and the whole procedure on open key stores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark.adapters.system import SystemEntropy
from birthmark.floor.ceremonies import Ceremony, Custodian
from birthmark.pki import profiles
from birthmark.ports import Clock, KeyStore
from birthmark.services.ceremonies import Bench, Waiting, attend, carry_out
from birthmark.services.ceremony_record import Record, body_of
from birthmark.services.ceremony_steps import Known, Loader, Progress

__all__ = ["Person", "carried_out", "sealed"]


@dataclass(frozen=True, slots=True)
class Person:
    """A custodian, who has a key."""

    id: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    @property
    def custodian(self) -> Custodian:
        """Return what a file says about the person."""
        spki = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return Custodian(id=self.id, role="custodian", subject_public_key_info=spki)

    def sign(self, message: bytes) -> bytes:
        """Sign with the own key."""
        return self.key.sign(message, ec.ECDSA(hashes.SHA256()))


def carried_out(
    ceremony: Ceremony,
    people: Sequence[Person],
    stores: Mapping[str, KeyStore],
    clock: Clock,
    *,
    known: Known | None = None,
    load: Loader = profiles.load,
    **bench: object,
) -> Progress:
    """Let people attend and do every step; the test fails if something is missing."""
    progress = Progress(ceremony, known or Known(), load)
    entropy = SystemEntropy()
    present = [(person.id, ceremony.sha256, person.sign) for person in people]
    progress.take(attend(ceremony, present, clock, entropy, "online"))
    steps = carry_out(progress, Bench(stores=stores, clock=clock, entropy=entropy, **bench))  # type: ignore[arg-type]  # arguments in a mapping have one type
    while True:
        try:
            next(steps)
        except StopIteration as done:
            waiting: Waiting | None = done.value
            assert waiting is None, waiting
            return progress


def sealed(progress: Progress, people: Sequence[Person], clock: Clock) -> Record:
    """Return the record, signed."""
    body = body_of(progress, clock.now(), {"service": "development"})
    unsigned = Record(body=body, signatures=())
    signatures = tuple((person.id, person.sign(unsigned.message)) for person in people)
    return Record(body=body, signatures=signatures)
