"""A device's own storage as a directory, for devices that run Linux and have no secure element (SPEC D6).

    device.key              PKCS#8 PEM, mode 0400
    device.crt              the certificate, PEM
    chain.pem               the authorities above it, PEM, the root not included
    release.tlog-proof      the release token; once it is there, nothing else changes any more
    pending.json            what is under way (no secret)

A further certificate has the same three files with the name of its profile in theirs, e.g.
``device.dlms-tls-1.key``, ``device.dlms-tls-1.crt`` and ``chain.dlms-tls-1.pem``.

The directory has mode 0700 and belongs to one ``Enclave`` at a time.  Every file changes whole or not at
all, and a key is never replaced once its device is released, or may be: while a proof is unanswered nobody
knows.

What it protects against: other users of the device, and power cuts.  Not against root, nor against whoever
takes the disk out; that is what secure elements are for.
"""

from collections.abc import Mapping, Sequence
from typing import Self

from birthmark.edge.station.folder import Folder
from birthmark.edge.station.pending import Pending, Phase
from birthmark.edge.station.slots import FolderSlot
from birthmark.element.apdu import CardChannel
from birthmark.errors import IllegalTransition, MalformedRequest
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes

__all__ = ["Enclave"]

_TOKEN = "release.tlog-proof"  # noqa: S105 -- a file name
_PENDING = "pending.json"


class Enclave:
    """A ``DeviceElement`` with ``SeveralSlots`` and a ``Journal``, in a directory.

    The secure element of the device it stands for may be behind a channel of its own (``HasSecureElement``).

    Not for several threads at once.
    """

    def __init__(
        self,
        directory: str,
        *,
        algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256,
        further_algorithms: Mapping[str, KeyAlgorithm] | None = None,
        card: CardChannel | None = None,
    ) -> None:
        """Take a directory, after making it where it is missing; ``close`` gives it back.

        Args:
            directory: path; its parent exists.
            algorithm: of the keys that are made here.
            further_algorithms: of keys for further certificates, by profile, where it is another.
            card: channel to the device's secure element, if it has one; whoever opened it closes it.

        Raises:
            NotPermitted: others than its owner may enter the directory.
            Unavailable: another ``Enclave``, here or in another process, has it.
        """
        self._folder = Folder(directory, create=True)
        self._folder.lock()
        self._algorithm = algorithm
        self._further_algorithms = dict(further_algorithms or {})
        self._first = self._slot(None)
        self._card = card

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
        """Make a key and return a request (PKCS#10, PEM) for CN=hardware_id; see ``FolderSlot``."""
        return self._first.certification_request(hardware_id)

    def install(self, *, certificate: bytes, chain: Sequence[bytes], private_key: SecretBytes | None) -> None:
        """Store a delivered key, then the chain, then the certificate; see ``FolderSlot``."""
        self._first.install(certificate=certificate, chain=chain, private_key=private_key)

    def read_back(self) -> bytes:
        """Return the certificate (DER) as it is in the file; see ``FolderSlot``."""
        return self._first.read_back()

    def chain(self) -> tuple[bytes, ...]:
        """Return the authorities above the certificate (DER), the issuer first; see ``FolderSlot``."""
        return self._first.chain()

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of the certificate in the file; see ``FolderSlot``."""
        return self._first.fingerprint()

    def sign(self, message: bytes) -> bytes:
        """Sign with the key that is in the file; see ``FolderSlot``."""
        return self._first.sign(message)

    def slot(self, profile: str) -> FolderSlot:
        """Return the place of a further certificate.

        Raises:
            MalformedRequest: no profile is called that.
        """
        return self._slot(profile)

    def released(self, token: str) -> None:
        """Store the release token; from now on the identity never changes."""
        self._folder.write(_TOKEN, token.encode(), mode=0o444)

    def token(self) -> str | None:
        """Return the release token, or None as long as the device is not released."""
        content = self._folder.read(_TOKEN)
        return None if content is None else content.decode()

    def card(self) -> CardChannel:
        """Return the channel to the device's secure element.

        Raises:
            MalformedRequest: the device has none.
        """
        if self._card is None:
            raise MalformedRequest(
                f"the device in {self._folder.path} has no secure element: name its reader when you open it"
            )
        return self._card

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

    # --- what may change -------------------------------------------------------------------------------

    def _slot(self, profile: str | None) -> FolderSlot:
        algorithm = self._algorithm if profile is None else self._further_algorithms.get(profile)
        return FolderSlot(
            self._folder,
            profile=profile,
            algorithm=algorithm or self._algorithm,
            require_idle=self._refuse_when_busy,
            require_open=self._refuse_when_final,
        )

    def _refuse_when_busy(self) -> None:
        self._refuse_when_final()
        if self._folder.exists(_PENDING):
            raise IllegalTransition(f"the device in {self._folder.path} has something under way: finish it")

    def _refuse_when_final(self) -> None:
        if self._folder.exists(_TOKEN):
            raise IllegalTransition(f"the device in {self._folder.path} is released: its identity stays")
        pending = self.pending()
        if pending is not None and pending.phase in (Phase.PROVING, Phase.RELEASED):
            raise IllegalTransition(
                f"the device in {self._folder.path} may be released already: finish what is under way"
            )
