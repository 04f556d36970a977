"""Who the service is when it signs a message itself: its server certificate, and the key of that.

CMP answers and delivered keys are signed with it (RFC 9483 section 3.2, RFC 7030 section 4.4.2): it is the
one certificate with digitalSignature that every client of the plane verifies already.  No authority's key
signs what is no certificate, CRL or OCSP answer.
"""

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from birthmark import errors
from birthmark.pki.algorithms import PrivateKey, recognise, signature_by
from birthmark.pki.certificates import Certificate, from_pem
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.library import UNREADABLE
from birthmark.secret import SecretBytes

__all__ = ["ServerIdentity"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerIdentity:
    """A certificate, those above it, and the key."""

    certificates: tuple[bytes, ...] = field(repr=False)
    """DER; its own first."""
    algorithm: KeyAlgorithm
    key: PrivateKey = field(repr=False)

    @classmethod
    def open(cls, certificate: Path, key: Path, passphrase: SecretBytes) -> "ServerIdentity":
        """Read the files that the listener has, too.

        Raises:
            errors.NotFound: one cannot be read.
            errors.MalformedRequest: one is not what it should be.
        """
        try:
            chain = tuple(from_pem(certificate.read_text(encoding="ascii"), "CERTIFICATE"))
            private = load_pem_private_key(key.read_bytes(), passphrase.reveal())
        except OSError as cause:
            raise errors.NotFound(f"cannot read {cause.filename}: {cause.strerror}") from cause
        except UNREADABLE:
            raise errors.MalformedRequest(f"{certificate}, {key}: no certificate and key") from None
        algorithm = recognise(Certificate.from_der(chain[0]).subject_public_key_info)
        if algorithm is None:
            raise errors.MalformedRequest(f"{certificate}: its key is of no kind we sign with")
        return cls(certificates=chain, algorithm=algorithm, key=private)  # type: ignore[arg-type]  # as recognised

    @property
    def certificate(self) -> Certificate:
        """Return its own certificate."""
        return Certificate.from_der(self.certificates[0])

    def sign(self, message: bytes) -> bytes:
        """Sign as ``ports.KeyStore.sign`` does."""
        return signature_by(self.key, message)
