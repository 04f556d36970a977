"""A device's own storage as a directory, for devices that run Linux and have no secure element (SPEC D6).

    device.key              PKCS#8 PEM, mode 0400
    device.crt              the certificate, PEM
    chain.pem               the authorities above it, PEM, the root not included
    release.tlog-proof      the release token; once it is there, nothing above changes any more
    pending.json            what is under way (no secret)

The directory has mode 0700 and belongs to one ``Enclave`` at a time.  Every file changes whole or not at
all, and a key is never replaced once its device is released, or may be: while a proof is unanswered nobody
knows.

What it protects against: other users of the device, and power cuts.  Not against root, nor against whoever
takes the disk out; that is what secure elements are for.
"""

from collections.abc import Sequence
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)
from cryptography.x509.oid import NameOID

from birthmark.edge.station.folder import Folder
from birthmark.edge.station.pending import Pending, Phase
from birthmark.errors import IllegalTransition, IntegrityFailure, MalformedRequest, NotFound
from birthmark.pki.algorithms import ALGORITHMS, recognise, signature_by
from birthmark.pki.algorithms import PrivateKey as _Key
from birthmark.pki.certificates import fingerprint, from_pem, to_pem
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes

__all__ = ["Enclave"]

_KEY = "device.key"
_CERTIFICATE = "device.crt"
_CHAIN = "chain.pem"
_TOKEN = "release.tlog-proof"  # noqa: S105 -- a file name
_PENDING = "pending.json"


class Enclave:
    """A ``DeviceElement`` and ``Journal`` in a directory.  Not for several threads at once."""

    def __init__(self, directory: str, *, algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256) -> None:
        """Take a directory, after making it where it is missing; ``close`` gives it back.

        Args:
            directory: path; its parent exists.
            algorithm: of the keys that are made here.

        Raises:
            NotPermitted: others than its owner may enter the directory.
            Unavailable: another ``Enclave``, here or in another process, has it.
        """
        self._folder = Folder(directory, create=True)
        self._folder.lock()
        self._algorithm = algorithm

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Enclave({str(self._folder.path)!r})"

    def close(self) -> None:
        """Give the directory back."""
        self._folder.close()

    # --- the device ------------------------------------------------------------------------------------

    def certification_request(self, hardware_id: str) -> bytes:
        """Make a key and return a request (PKCS#10, PEM) for CN=hardware_id.

        Raises:
            IllegalTransition: the device has its identity, or something is under way already.
            MalformedRequest: the hardware id cannot be a common name (1 to 64 characters).
        """
        self._refuse_when_final()
        if self._folder.exists(_PENDING):
            raise IllegalTransition(f"the device in {self._folder.path} has something under way: finish it")
        try:
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hardware_id)])
        except ValueError as wrong:
            raise MalformedRequest(f"{hardware_id[:100]!r} cannot be a common name: {wrong}") from wrong
        key = _generate(self._algorithm)
        self._store_key(SecretBytes(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())))
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        # The library's types forget that Ed25519, which hashes for itself, takes None.
        # The stub does not say that Ed25519 goes with no hash.
        signed = builder.sign(key, ALGORITHMS[self._algorithm].hash_algorithm)  # type: ignore[arg-type]
        return signed.public_bytes(Encoding.PEM)

    def install(self, *, certificate: bytes, chain: Sequence[bytes], private_key: SecretBytes | None) -> None:
        """Store a delivered key, then the chain, then the certificate.

        A crash between them leaves a key without its certificate, never the other way round for good: the
        transaction goes on with another ``install``.

        Raises:
            IllegalTransition: the device has its identity, or may have it.
        """
        self._refuse_when_final()
        if private_key is not None:
            self._store_key(private_key)
        self._folder.write(_CHAIN, "".join(to_pem(item) for item in chain).encode(), mode=0o444)
        self._folder.write(_CERTIFICATE, to_pem(certificate).encode(), mode=0o444)

    def read_back(self) -> bytes:
        """Return the certificate (DER) as it is in the file.

        Raises:
            NotFound: there is none.
            IntegrityFailure: the file holds something else.
        """
        blocks = self._pem(_CERTIFICATE, "CERTIFICATE")
        if len(blocks) != 1:
            raise IntegrityFailure(f"{self._folder.path / _CERTIFICATE} holds {len(blocks)} certificates")
        return blocks[0]

    def chain(self) -> tuple[bytes, ...]:
        """Return the authorities above the certificate (DER), the issuer first.

        Raises:
            NotFound: there are none.
        """
        return self._pem(_CHAIN, "CERTIFICATE")

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the certificate in the file.

        Raises:
            NotFound: there is none.
        """
        return fingerprint(self.read_back())

    def sign(self, message: bytes) -> bytes:
        """Sign with the key that is in the file: as ``pki.possession`` checks it.

        Raises:
            NotFound: there is none.
            IntegrityFailure: the file holds something else.
        """
        return signature_by(self._load_key(), message)

    def released(self, token: str) -> None:
        """Store the release token; from now on the identity never changes."""
        self._folder.write(_TOKEN, token.encode(), mode=0o444)

    def token(self) -> str | None:
        """Return the release token, or None as long as the device is not released."""
        content = self._folder.read(_TOKEN)
        return None if content is None else content.decode()

    # --- the journal -----------------------------------------------------------------------------------

    def pending(self) -> Pending | None:
        """Return what is under way."""
        content = self._folder.read(_PENDING)
        return None if content is None else Pending.decode(content)

    def remember(self, pending: Pending) -> None:
        """Keep what is under way."""
        self._folder.write(_PENDING, pending.encode(), mode=0o600)

    def forget(self) -> None:
        """Nothing is under way any more."""
        self._folder.remove(_PENDING)

    # --- files -----------------------------------------------------------------------------------------

    def _refuse_when_final(self) -> None:
        if self._folder.exists(_TOKEN):
            raise IllegalTransition(f"the device in {self._folder.path} is released: its identity stays")
        pending = self.pending()
        if pending is not None and pending.phase in (Phase.PROVING, Phase.RELEASED):
            raise IllegalTransition(
                f"the device in {self._folder.path} may be released already: finish what is under way"
            )

    def _store_key(self, key: SecretBytes) -> None:
        _check_kind(key)
        self._folder.write(_KEY, to_pem(key.reveal(), "PRIVATE KEY").encode(), mode=0o400)

    def _load_key(self) -> _Key:
        return _check_kind(SecretBytes(self._pem(_KEY, "PRIVATE KEY")[0]))

    def _pem(self, name: str, label: str) -> tuple[bytes, ...]:
        content = self._folder.read(name)
        if content is None:
            raise NotFound(f"there is no {name} in {self._folder.path}")
        try:
            return from_pem(content.decode("ascii"), label)
        except (UnicodeDecodeError, MalformedRequest):
            complaint = f"{self._folder.path / name} holds no {label.lower()} in pem"
        raise IntegrityFailure(complaint)  # outside of except: the cause would carry the file's content along


def _generate(algorithm: KeyAlgorithm) -> _Key:
    match algorithm:
        case KeyAlgorithm.EC_P256:
            return ec.generate_private_key(ec.SECP256R1())
        case KeyAlgorithm.EC_P384:
            return ec.generate_private_key(ec.SECP384R1())
        case KeyAlgorithm.EC_P521:
            return ec.generate_private_key(ec.SECP521R1())
        case KeyAlgorithm.ED25519:
            return ed25519.Ed25519PrivateKey.generate()
        case KeyAlgorithm.ED448:
            return ed448.Ed448PrivateKey.generate()
        case KeyAlgorithm.RSA_2048 | KeyAlgorithm.RSA_3072 | KeyAlgorithm.RSA_4096:
            return rsa.generate_private_key(65537, int(algorithm.removeprefix("rsa-")))


def _check_kind(key: SecretBytes) -> _Key:
    """Return the key behind PKCS#8 octets if it is of a kind that devices have."""
    try:
        loaded = load_der_private_key(key.reveal(), password=None)
    except (ValueError, TypeError):
        loaded = None
    if isinstance(loaded, _Key):
        public = loaded.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if recognise(public) is not None:
            return loaded
    raise IntegrityFailure("a device's key is pkcs#8 of one of our algorithms")
