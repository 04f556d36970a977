"""What the line needs from a device, whatever holds its key.

A third party that brings another kind of device (a TPM, a PKCS#11 token, an ECU behind a diagnostic bus)
writes one class with the five methods of ``DeviceElement``; ``birthmark.edge.station.enclave.Enclave`` is
the one for a plain directory.  The rules that make the proof mean something:

- ``read_back`` and ``sign`` ask the device, each time.  An element that answers from what it was given a
  moment ago proves nothing (SPEC C6).
- a private key that was made in the device stays there; one that is delivered is stored before ``install``
  returns.
- ``install`` and ``released`` return when what they were given will survive a power cut.
- ``install`` may come again with the same or another certificate until the device is released, never after.

A run may give each device several certificates, each for a key of its own (SPEC C5): a meter has one to sign
with, one to agree on keys and one for TLS.  For such a run the element has a sixth method, ``slot``, and is a
``SeveralSlots`` as well: the element itself is the place of the first, the slots are those of the others, and
all of them are released with one token.

A run may want a key set in the device's secure element, too (SPEC D1).  For such a run the device has a
method ``card`` and is a ``HasSecureElement`` as well: it hands over a channel, the station carries what the
service says to the element and back, and the device is released when its element has proved the keys.  The
station sees no key: they go from the service's token to the element, encrypted for the element.

A device that can also remember what is under way (``birthmark.edge.station.pending.Journal``) lets another
station finish what was begun, once the certificates are installed; for others the station that began has to
finish.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from birthmark.element.apdu import CardChannel
from birthmark.secret import SecretBytes

__all__ = ["DeviceElement", "DeviceSlot", "HasSecureElement", "SeveralSlots"]


class DeviceSlot(Protocol):
    """The place of one key and its certificate in a device.  Refuse with classes of ``birthmark.errors``."""

    def certification_request(self, hardware_id: str) -> bytes | None:
        """Make a key in the device and ask for its certificate.

        Called once an attempt; the answer is remembered and sent again unchanged.

        Returns:
            A PKCS#10 request (DER or PEM) whose subject is CN=hardware_id, or None if the device cannot
            make a key.

        Raises:
            IllegalTransition: the device already has its identity.
        """

    def install(self, *, certificate: bytes, chain: Sequence[bytes], private_key: SecretBytes | None) -> None:
        """Store the certificate, the authorities above it and, if it was delivered, the key.

        Args:
            certificate: DER.
            chain: DER each, the issuer first, the root not included.
            private_key: PKCS#8 (DER) of a delivered key; None if the key was made in the device.

        Raises:
            IllegalTransition: the device already has its identity.
        """

    def read_back(self) -> bytes:
        """Return the certificate (DER) as the device has it stored now."""

    def sign(self, message: bytes) -> bytes:
        """Sign with the key as the device has it stored now.

        Returns:
            DER Ecdsa-Sig-Value (P-256 with SHA-256, P-384 with SHA-384), or 64 octets of Ed25519.
        """


class DeviceElement(DeviceSlot, Protocol):
    """One device, in one fixture, and the place of its first certificate."""

    def released(self, token: str) -> None:
        """Store the release token: from now on the identity never changes."""


@runtime_checkable
class SeveralSlots(Protocol):
    """What a device that can have several certificates offers besides."""

    def slot(self, profile: str) -> DeviceSlot:
        """Return the place of a further certificate; the same place for the same profile, always.

        Args:
            profile: name of the certificate's profile, e.g. ``dlms-agreement-1``, as the run's licence
                has it.

        Raises:
            Refusal: the device has no place for such a key.
        """


@runtime_checkable
class HasSecureElement(Protocol):
    """What a device that has a secure element offers besides."""

    def card(self) -> CardChannel:
        """Return the channel to it: the same one each time, open, and nobody else's until it is released.

        It is asked for when there is something to carry.  Whoever opened the channel closes it afterwards.
        ``birthmark.edge.station.elements`` has channels for readers (PC/SC) and sockets.

        Raises:
            Refusal: the device has no secure element.
            Unavailable: it, or its reader, is not there.
        """
