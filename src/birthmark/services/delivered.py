"""Keys that are made for devices, and go to them in the clear or in an envelope (SPEC B7).

A key is made when its request has been vetted, and is in the clear no longer than it has to be: one that goes
in an envelope does not leave ``deliver``.  ``docs/secrets-in-memory.md`` has how long keys stay in memory.
"""

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from birthmark import errors
from birthmark.floor.clients import Credential
from birthmark.pki.algorithms import PrivateKey, maker, throwaway_key
from birthmark.pki.envelope import NONCE_SIZE, Recipient, Sealer, recipient_of, seal
from birthmark.pki.keys import KeyAlgorithm
from birthmark.ports import Entropy
from birthmark.secret import SecretBytes

__all__ = ["Delivered", "deliver", "recipient_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """A key that was made for a device."""

    spki: bytes = field(repr=False)
    """SubjectPublicKeyInfo (DER)."""
    private_key: SecretBytes | None
    """PKCS#8 (DER); None if it is in the envelope."""
    envelope: bytes | None = field(repr=False)
    """CMS (DER), as the sealer makes it; None if the key is in the clear."""


def recipient_for(credential: Credential, *, born: bool) -> Recipient:
    """Return to whom keys are enveloped: to the key of the certificate that the client shows.

    The commit sees to it that the certificate is still good, as for everything that is asked with it.

    Raises:
        errors.MalformedRequest: the key is born in the device, and nothing is delivered.
        errors.PolicyRefused: the certificate is not for that (rule ``envelope-recipient``).
    """
    if born:
        raise errors.MalformedRequest("a key that is born in the device is not delivered, in no envelope")
    return recipient_of(credential.der)


def deliver(
    algorithm: KeyAlgorithm, recipient: Recipient | None, entropy: Entropy, sealer: Sealer | None = None
) -> Delivered:
    """Make a key, and put it into an envelope if somebody is to open it: by sealer, else by ``seal``."""
    made = maker(algorithm)()
    spki = made.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    private_key = _pkcs8(made)
    # What the library freed on the way holds half of the key: it gets that again for a key that is no secret.
    _pkcs8(throwaway_key(algorithm))
    if recipient is None:
        return Delivered(spki=spki, private_key=private_key, envelope=None)
    with private_key:
        if sealer is None:
            envelope = seal(private_key, recipient, entropy.token(NONCE_SIZE))
        else:
            envelope = sealer(private_key, recipient, entropy.token)
    return Delivered(spki=spki, private_key=None, envelope=envelope)


def _pkcs8(key: PrivateKey) -> SecretBytes:
    return SecretBytes.taking(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
