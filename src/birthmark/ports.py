"""The page to read first: all that the use cases need from outside.

Everything above this file in the import order computes over values; everything that touches a token, a
database, a clock or a source of randomness implements one of these protocols.
"""

from datetime import datetime
from typing import Protocol

from birthmark.pki.keys import KeyAlgorithm, KeyLabel

__all__ = ["Clock", "Entropy", "KeyStore"]


class KeyStore(Protocol):
    """Private keys that sign where they live (a PKCS#11 token, or an encrypted software store).

    Safe to call from any thread.  Every method raises ``errors.Unavailable`` while the store cannot be
    reached (the caller may try again) and ``errors.NotFound`` for a label it does not hold.
    """

    @property
    def development(self) -> bool:
        """True for a store that keeps keys in process memory; shown wherever the store is shown."""
        ...

    def generate(self, label: KeyLabel, algorithm: KeyAlgorithm) -> bytes:
        """Generate a key pair in the store, durable on return, and return its SubjectPublicKeyInfo (DER).

        Raises:
            errors.IllegalTransition: the label is taken.
        """
        ...

    def public_key(self, label: KeyLabel) -> bytes:
        """Return the SubjectPublicKeyInfo of a key (DER)."""
        ...

    def sign(self, label: KeyLabel, message: bytes) -> bytes:
        """Sign a message with the algorithm of the key.

        ECDSA hashes with SHA-256 on P-256 and SHA-384 on P-384 and answers a DER Ecdsa-Sig-Value (RFC 3279
        section 2.2.3); Ed25519 answers 64 octets (RFC 8032).
        """
        ...

    def labels(self) -> tuple[KeyLabel, ...]:
        """Return the labels of all private keys in the store, sorted."""
        ...


class Clock(Protocol):
    """The time of day."""

    def now(self) -> datetime:
        """Return the time, aware, in UTC."""
        ...


class Entropy(Protocol):
    """Randomness for serial numbers, challenges and keys."""

    def token(self, size: int) -> bytes:
        """Return ``size`` octets from the operating system's generator."""
        ...
