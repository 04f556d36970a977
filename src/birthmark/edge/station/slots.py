"""One key and its certificate in a device's directory.

``FolderSlot`` keeps them in three files, each of which changes whole or not at all.  Whether they may change
at all is for the device to say, which has several of them and one release token.
"""

import re
from collections.abc import Callable, Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
)
from cryptography.x509.oid import NameOID

from birthmark.edge.station.folder import Folder
from birthmark.errors import IntegrityFailure, MalformedRequest, NotFound
from birthmark.pki.algorithms import ALGORITHMS, maker, recognise, signature_by
from birthmark.pki.algorithms import PrivateKey as _Key
from birthmark.pki.certificates import fingerprint, from_pem, to_pem
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.library import UNREADABLE
from birthmark.secret import SecretBytes

__all__ = ["FolderSlot"]

_PROFILE = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
"""What a profile may be called: the service's word becomes part of a file name."""


class FolderSlot:
    """A ``DeviceSlot`` in a directory."""

    def __init__(
        self,
        folder: Folder,
        *,
        profile: str | None,
        algorithm: KeyAlgorithm,
        require_idle: Callable[[], None],
        require_open: Callable[[], None],
    ) -> None:
        """Keep a key in ``folder``.

        Args:
            folder: of the device.
            profile: of a further certificate, whose files have it in their names; None for the first.
            algorithm: of the keys that are made here.
            require_idle: raises if something is under way, or final.
            require_open: raises if the identity is final, or may be.

        Raises:
            MalformedRequest: no profile is called that.
        """
        if profile is not None and _PROFILE.fullmatch(profile) is None:
            raise MalformedRequest(f"{profile[:100]!r} is not the name of a profile")
        mark = "" if profile is None else f".{profile}"
        self._folder = folder
        self._key, self._certificate, self._chain = (
            f"device{mark}.key",
            f"device{mark}.crt",
            f"chain{mark}.pem",
        )
        self._algorithm = algorithm
        self._require_idle = require_idle
        self._require_open = require_open

    def __repr__(self) -> str:
        return f"FolderSlot({str(self._folder.path / self._certificate)!r})"

    def certification_request(self, hardware_id: str) -> bytes:
        """Make a key and return a request (PKCS#10, PEM) for CN=hardware_id.

        Raises:
            IllegalTransition: the device has its identity, or something is under way already.
            MalformedRequest: the hardware id cannot be a common name (1 to 64 characters).
        """
        self._require_idle()
        try:
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hardware_id)])
        except ValueError as wrong:
            raise MalformedRequest(f"{hardware_id[:100]!r} cannot be a common name: {wrong}") from wrong
        key = maker(self._algorithm)()
        self._store_key(SecretBytes(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())))
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        hashed = ALGORITHMS[self._algorithm].hash_algorithm
        signed = builder.sign(key, hashed)  # type: ignore[arg-type]  # no hash for Ed25519: the stub knows not
        return signed.public_bytes(Encoding.PEM)

    def install(self, *, certificate: bytes, chain: Sequence[bytes], private_key: SecretBytes | None) -> None:
        """Store a delivered key, then the chain, then the certificate.

        A crash between them leaves a key without its certificate, never the other way round for good: the
        transaction goes on with another ``install``.

        Raises:
            IllegalTransition: the device has its identity, or may have it.
        """
        self._require_open()
        if private_key is not None:
            self._store_key(private_key)
        self._folder.write(self._chain, "".join(to_pem(item) for item in chain).encode(), mode=0o444)
        self._folder.write(self._certificate, to_pem(certificate).encode(), mode=0o444)

    def read_back(self) -> bytes:
        """Return the certificate (DER) as it is in the file.

        Raises:
            NotFound: there is none.
            IntegrityFailure: the file holds something else.
        """
        blocks = self._pem(self._certificate, "CERTIFICATE")
        if len(blocks) != 1:
            raise IntegrityFailure(
                f"{self._folder.path / self._certificate} holds {len(blocks)} certificates"
            )
        return blocks[0]

    def chain(self) -> tuple[bytes, ...]:
        """Return the authorities above the certificate (DER), the issuer first.

        Raises:
            NotFound: there are none.
        """
        return self._pem(self._chain, "CERTIFICATE")

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

    def _store_key(self, key: SecretBytes) -> None:
        _check_kind(key)
        self._folder.write(self._key, to_pem(key.reveal(), "PRIVATE KEY").encode(), mode=0o400)

    def _load_key(self) -> _Key:
        return _check_kind(SecretBytes(self._pem(self._key, "PRIVATE KEY")[0]))

    def _pem(self, name: str, label: str) -> tuple[bytes, ...]:
        content = self._folder.read(name)
        if content is None:
            raise NotFound(f"there is no {name} in {self._folder.path}")
        try:
            return from_pem(content.decode("ascii"), label)
        except (UnicodeDecodeError, MalformedRequest):
            complaint = f"{self._folder.path / name} holds no {label.lower()} in pem"
        raise IntegrityFailure(complaint)  # outside of except: the cause would carry the file's content along


def _check_kind(key: SecretBytes) -> _Key:
    """Return the key behind PKCS#8 octets if it is of a kind that devices have."""
    try:
        loaded = load_der_private_key(key.view(), password=None)
    except UNREADABLE:
        loaded = None
    if isinstance(loaded, _Key):
        public = loaded.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if recognise(public) is not None:
            return loaded
    raise IntegrityFailure("a device's key is pkcs#8 of one of our algorithms")
