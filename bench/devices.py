"""Devices for the load generator: key pairs and certification requests made before any clock starts.

A device owns a P-256 key and a PKCS#10 request that names its VIN, as a vehicle's control unit would.  A key
is good for one device of a realm; each installation is a realm of its own, so the pool serves all of them.
"""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

__all__ = ["Device", "Pool"]

_SHA256: Final = hashes.SHA256()


@dataclass(frozen=True, slots=True)
class Device:
    """One device that has made its key."""

    hardware_id: str
    """A VIN (ISO 3779)."""
    key: ec.EllipticCurvePrivateKey = field(repr=False)
    csr: bytes = field(repr=False)
    """PKCS#10, DER."""

    @property
    def order(self) -> str:
        """The body of its issue request (JSON)."""
        csr = b64encode(self.csr).decode()
        return (
            f'{{"hardware_id":"{self.hardware_id}","idempotency_key":"i-{self.hardware_id}","csr":"{csr}"}}'
        )


class Pool:
    """Devices, made on first need and handed out in order; ``rewind`` for the next realm."""

    def __init__(self) -> None:
        self._made: list[Device] = []
        self._taken = 0

    def grow(self, count: int) -> None:
        """Have at least ``count`` devices."""
        while len(self._made) < count:
            self._made.append(_make(len(self._made)))

    def take(self, count: int) -> Sequence[Device]:
        """Return ``count`` devices that this realm has not seen."""
        self.grow(self._taken + count)
        self._taken += count
        return self._made[self._taken - count : self._taken]

    def rewind(self) -> None:
        """Begin again: a new realm knows none of them."""
        self._taken = 0


def _make(number: int) -> Device:
    vin = f"1M8GDM9A{number:09d}"
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, vin)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, _SHA256)
    return Device(vin, key, request.public_bytes(Encoding.DER))
