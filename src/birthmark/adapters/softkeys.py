"""A key store in a directory, for the quick start and for tests; it calls itself "development".

One file a key, ``LABEL.p8``, mode 0400 in a directory of mode 0700: an EncryptedPrivateKeyInfo (RFC 5958
section 3) in PEM, PBES2 (RFC 8018) with scrypt N=2^14, r=8, p=5 (RFC 7914 section 7) and AES-256-CBC.  The
library's own ``BestAvailableEncryption`` is not used: it means PBKDF2 with 2048 rounds, in cryptography 50.
One guess costs 16 MiB and, on one core of 2020, about 0.16 s; so does the first use of each key in a process.
N is not larger because OpenSSL gives scrypt no more than 32 MiB unasked, and ``openssl pkey -in LABEL.p8``
shall open the file: the way out of this store is the standard's.

A line before the PEM, ``exportable``, says that ``wrap`` may give the key away: a rehearsal of what a token
enforces, for whoever has the passphrase has the key.  Transport keys are ``LABEL.transport`` in the same
form; secret keys are ``LABEL.secret`` (``softsecrets``).

Rules kept here: a key is durable before its label is known, and no file is ever overwritten; a key whose file
is gone is used no more, though it is in memory, until the file is back.  Left to others: every protection of
a key in use.  An open key lies in process memory; that is what "development" says.
"""

import os
import secrets
import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import padding, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from birthmark import errors
from birthmark.adapters import softsecrets
from birthmark.adapters.custody import read_private_file
from birthmark.adapters.keyroutes import require_fixed_set, require_master, require_single_blocks
from birthmark.element.diversification import Derivation
from birthmark.element.keyset import SoftwareKeys
from birthmark.pki.algorithms import PrivateKey as _PrivateKey
from birthmark.pki.algorithms import maker, recognise, signature_by
from birthmark.pki.attributes import KeyAttributes, KeyClass, SecretKind, SecretMade, TransportKind
from birthmark.pki.certificates import to_pem
from birthmark.pki.der import OCTET_STRING, SEQUENCE, encode, integer, oid
from birthmark.pki.keys import KeyAlgorithm, KeyLabel, check_label
from birthmark.ports import Health
from birthmark.secret import SecretBytes

__all__ = ["SoftwareKeyStore"]

_SUFFIX = ".p8"
_TRANSPORT_SUFFIX = ".transport"
_SECRET_SUFFIX = ".secret"  # noqa: S105  # how the file is called
_SUFFIXES = (_SUFFIX, _TRANSPORT_SUFFIX, _SECRET_SUFFIX)
_EXPORTABLE = b"exportable\n"
_KEY_FILE_LIMIT = 4096

_PBES2 = oid("1.2.840.113549.1.5.13")  # RFC 8018 appendix A.4
_SCRYPT = oid("1.3.6.1.4.1.11591.4.11")  # RFC 7914 section 7
_AES256_CBC = oid("2.16.840.1.101.3.4.1.42")  # RFC 8018 appendix C


class SoftwareKeyStore:
    """Private keys in encrypted files, used in process memory.  Safe to call from any thread.

    Several processes may share a directory: each sees the others' new keys.
    """

    __slots__ = (
        "_closed",
        "_directory",
        "_keys",
        "_loading",
        "_missed",
        "_passphrase",
        "_public",
        "_secrets",
        "_state",
    )

    def __init__(self, directory: Path, passphrase: SecretBytes) -> None:
        self._directory = directory
        self._passphrase = passphrase
        self._keys: dict[KeyLabel, _PrivateKey] = {}
        self._public: dict[KeyLabel, bytes] = {}
        self._secrets: dict[KeyLabel, tuple[SecretKind, SecretBytes]] = {}
        self._missed: set[KeyLabel] = set()
        """Keys whose file was gone when it was looked for: it is read anew when it is back."""
        self._loading = threading.Lock()
        self._closed = False
        self._state = ("", datetime.now(UTC))
        """What is wrong, if anything, and since when it is so."""

    @classmethod
    def open(cls, directory: Path, passphrase: SecretBytes) -> "SoftwareKeyStore":
        """Open the store in a directory, which is made (mode 0700) if its parent exists and it does not.

        Where there are keys, one of them is opened at once, so that a wrong passphrase is an error at start
        and no second passphrase ever comes into one store; the others are opened when first used.

        Raises:
            errors.MalformedRequest: the passphrase is empty.
            errors.NotPermitted: the passphrase is wrong, or the directory is open to group or others.
            errors.IntegrityFailure: a key file is not one of ours.
            errors.Unavailable: the directory cannot be made or read.
        """
        if not len(passphrase):
            raise errors.MalformedRequest("an empty passphrase protects nothing")
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            status = directory.stat()
        except OSError as failure:
            raise errors.Unavailable(f"key directory {directory}: {failure.strerror}") from failure
        if status.st_mode & 0o077:
            raise errors.NotPermitted(
                f"key directory {directory} is open to group or others "
                f"(mode {status.st_mode & 0o7777:04o}): run chmod 700 {directory}"
            )
        store = cls(directory, passphrase)
        for label in store.labels()[:1]:
            if store._path(label, _SUFFIX).exists():
                store.public_key(label)  # stays open: it is the one that is used next, as a rule
            else:
                store.attributes(label)
        return store

    def close(self) -> None:
        """Let go of the open keys and the passphrase; the store answers no more.  Closing twice does nothing.

        Python overwrites no memory: what was held is out of reach, and goes when its memory is used again.
        """
        with self._loading:
            self._closed = True
            self._keys.clear()
            self._public.clear()
            self._secrets.clear()
            self._passphrase = SecretBytes(b"")

    def __repr__(self) -> str:
        return f"SoftwareKeyStore({str(self._directory)!r}, development)"

    @property
    def development(self) -> bool:
        """True: the keys are in process memory."""
        return True

    def generate(self, label: KeyLabel, algorithm: KeyAlgorithm, *, exportable: bool = False) -> bytes:
        """Generate a key pair, durable on return, and return its SubjectPublicKeyInfo (DER).

        Raises:
            errors.MalformedRequest: the label is not one.
            errors.IllegalTransition: the label is taken.
            errors.Unavailable: the file cannot be written.
        """
        passphrase = self._require_open()
        check_label(label)
        key = maker(algorithm)()
        self._require_free(label)  # spares the 0.16 s; _keep is what decides
        self._keep(label, _SUFFIX, (_EXPORTABLE if exportable else b"") + _encrypted_pem(key, passphrase))
        with self._loading:
            if not self._closed:
                self._remember(label, key)
        return _public_der(key)

    def public_key(self, label: KeyLabel) -> bytes:
        """Return the SubjectPublicKeyInfo of a key (DER).

        Raises:
            errors.NotFound: there is no such key.
            errors.NotPermitted: the passphrase does not open it, or its file is open to others.
        """
        known = self._public.get(label)
        if known is not None:
            return known
        if self._is_there(check_label(label), _TRANSPORT_SUFFIX):
            return _public_der(self._transport(label))
        return _public_der(self._open_key(label))

    def sign(self, label: KeyLabel, message: bytes) -> bytes:
        """Sign as ``ports.KeyStore`` has it.

        Raises:
            errors.NotFound: there is no such key.
            errors.NotPermitted: the passphrase does not open it, or its file is open to others.
            errors.IntegrityFailure: the file holds another key than before.
        """
        key = self._keys.get(label)
        if key is None or not self._is_as_before(label, _SUFFIX):
            key = self._open_key(label)
        return signature_by(key, message)

    def labels(self) -> tuple[KeyLabel, ...]:
        """Return the labels of all keys, sorted; files that are not ours are not listed."""
        self._require_open()
        try:
            names = [path.name for path in self._directory.iterdir()]
        except OSError as failure:
            raise errors.Unavailable(f"key directory {self._directory}: {failure.strerror}") from failure
        found = []
        for name in names:
            for suffix in _SUFFIXES:
                if name.endswith(suffix):
                    with suppress(errors.MalformedRequest):
                        found.append(check_label(name.removesuffix(suffix)))
        return tuple(sorted(found))

    # --- secret keys, and keys that travel

    def generate_secret(
        self,
        label: KeyLabel,
        kind: SecretKind,
        *,
        recipients: Sequence[bytes] = (),
        officer: SecretBytes | None = None,
    ) -> SecretMade:
        """See ``ports.KeyStore``; a directory has no security officer, and trusts every KEK."""
        del officer
        if recipients and kind is not SecretKind.KEK:
            raise errors.MalformedRequest("only a key-encryption key is shared")
        self._require_free(label)
        key = SecretBytes(secrets.token_bytes(kind.size))
        shares = tuple(softsecrets.share_with(recipient, key) for recipient in recipients)
        self._keep_secret(label, kind, key)
        return SecretMade(check_value=softsecrets.check_value(kind, key), shares=shares)

    def generate_transport(self, label: KeyLabel) -> bytes:
        """See ``ports.KeyStore``."""
        passphrase = self._require_open()
        self._require_free(label)
        key = rsa.generate_private_key(65537, softsecrets.TRANSPORT_BITS)
        self._keep(label, _TRANSPORT_SUFFIX, _encrypted_pem(key, passphrase))
        return _public_der(key)

    def accept_secret(self, label: KeyLabel, kind: SecretKind, share: bytes, transport: KeyLabel) -> str:
        """See ``ports.KeyStore``."""
        self._require_free(label)
        key = softsecrets.open_share(self._transport(transport), kind, share)
        self._keep_secret(label, kind, key)
        return softsecrets.check_value(kind, key)

    def derived_keys(self, master: KeyLabel, derivation: Derivation) -> SoftwareKeys:
        """See ``ports.KeyStore``: the same rules as in a token, though the keys are in this process."""
        kind, key = self._secret(master)
        require_master(master, kind)
        if "derive" in kind.uses:
            require_single_blocks(master, derivation, kind.size)
        return SoftwareKeys.derived(key, derivation)

    def fixed_keys(self, labels: tuple[KeyLabel, KeyLabel, KeyLabel]) -> SoftwareKeys:
        """See ``ports.KeyStore``."""
        (enc_kind, enc), (mac_kind, mac), (dek_kind, dek) = (self._secret(label) for label in labels)
        require_fixed_set(labels, (enc_kind, mac_kind, dek_kind))
        return SoftwareKeys(enc=enc, mac=mac, dek=dek)

    def wrap(self, label: KeyLabel, kek: KeyLabel) -> bytes:
        """See ``ports.KeyStore``."""
        key = self._open_key(label)
        if not self._content(label, _SUFFIX).startswith(_EXPORTABLE):
            raise errors.PolicyRefused("key-not-exportable", f"key {label!r} was made never to leave")
        return softsecrets.wrapped_under(self._kek(kek), _pkcs8(key))

    def unwrap(self, label: KeyLabel, subject_public_key_info: bytes, wrapped: bytes, kek: KeyLabel) -> None:
        """See ``ports.KeyStore``."""
        passphrase = self._require_open()
        self._require_free(label)
        algorithm = recognise(subject_public_key_info)
        if algorithm is None:
            raise errors.MalformedRequest("the public key is of no algorithm of ours")
        plain = softsecrets.unwrapped(self._kek(kek), wrapped, kek)
        try:
            key = serialization.load_der_private_key(plain.view(), None)
        except (ValueError, UnsupportedAlgorithm) as failure:
            raise errors.MalformedRequest("the wrapped key is no PKCS#8 private key") from failure
        found = _public_der(key)
        if recognise(found) is not algorithm:
            raise errors.MalformedRequest(f"the wrapped key is no {algorithm} key")
        if found != subject_public_key_info:
            raise errors.IntegrityFailure(f"the wrapped key is not the one of the public key of {label!r}")
        self._keep(label, _SUFFIX, _encrypted_pem(key, passphrase))
        self._open_key(label)

    def attributes(self, label: KeyLabel) -> KeyAttributes:
        """Read the key's file, and say what a file is: open to whoever has the passphrase."""
        check_label(label)
        passphrase = self._require_open()
        kind: KeyAlgorithm | SecretKind | TransportKind | None
        with suppress(errors.NotFound):
            kind, key = softsecrets.open_secret(label, self._content(label, _SECRET_SUFFIX), passphrase)
            return _file_attributes(
                label, KeyClass.SECRET, kind, softsecrets.check_value(kind, key), kind.uses, exportable=False
            )
        with suppress(errors.NotFound):
            spki = _public_der(self._transport(label))
            kind, fingerprint = TransportKind.RSA_3072, sha256(spki).hexdigest()
            return _file_attributes(
                label, KeyClass.PRIVATE, kind, fingerprint, frozenset({"unwrap"}), exportable=False
            )
        content = self._content(label, _SUFFIX)
        spki = _public_der(_decrypt(self._path(label, _SUFFIX), content, passphrase))
        return _file_attributes(
            label,
            KeyClass.PRIVATE,
            recognise(spki),
            sha256(spki).hexdigest(),
            frozenset({"sign"}),
            exportable=content.startswith(_EXPORTABLE),
        )

    def inventory(self) -> tuple[KeyAttributes, ...]:
        """See ``ports.KeyStore``."""
        return tuple(self.attributes(label) for label in self.labels())

    # --- health

    def health(self) -> Health:
        """See ``ports.KeyStore``: looks for the files of the keys that are open."""
        known = [(label, _SUFFIX) for label in tuple(self._keys)]
        known += [(label, _SECRET_SUFFIX) for label in tuple(self._secrets)]
        gone = [
            label
            for label, suffix in known
            if not self._is_as_before(label, suffix) and not self._is_there(label, suffix)
        ]
        reason = f"key {gone[0]!r} is no longer in {self._directory}" if gone else ""
        if reason != self._state[0]:
            self._state = (reason, datetime.now(UTC))
        return Health(up=not reason, reason=reason, since=self._state[1], active="software")

    def examine(self) -> None:
        """See ``Patient``: a file is looked for whenever its key is used; there is nothing else to ask."""

    def stuck_seconds(self) -> float:
        """See ``Patient``: a directory does not hang, or all does."""
        return 0.0

    def _path(self, label: KeyLabel, suffix: str) -> Path:
        return self._directory / f"{label}{suffix}"

    def _is_as_before(self, label: KeyLabel, suffix: str) -> bool:
        """Return whether the file of a key was never missed."""
        if not self._is_there(label, suffix):
            self._missed.add(label)
        return label not in self._missed

    def _is_there(self, label: KeyLabel, suffix: str) -> bool:
        return os.path.lexists(f"{self._directory}/{label}{suffix}")

    def _require_free(self, label: KeyLabel) -> None:
        self._require_open()
        check_label(label)
        for suffix in _SUFFIXES:
            path = self._path(label, suffix)
            if path.is_symlink() or path.exists():
                raise errors.IllegalTransition(f"there is a key {label!r} already")

    def _keep(self, label: KeyLabel, suffix: str, content: bytes) -> None:
        try:
            _write_new(self._path(label, suffix), content)
        except FileExistsError as taken:
            raise errors.IllegalTransition(f"there is a key {label!r} already") from taken
        except OSError as failure:
            raise errors.Unavailable(f"key {label!r} cannot be written: {failure.strerror}") from failure

    def _keep_secret(self, label: KeyLabel, kind: SecretKind, key: SecretBytes) -> None:
        self._keep(label, _SECRET_SUFFIX, softsecrets.seal_secret(label, kind, key, self._require_open()))

    def _content(self, label: KeyLabel, suffix: str) -> bytes:
        self._require_open()
        check_label(label)
        try:
            return read_private_file(self._path(label, suffix), _KEY_FILE_LIMIT, follow_links=False)
        except errors.NotFound as missing:
            raise errors.NotFound(f"there is no key {label!r}") from missing

    def _kek(self, label: KeyLabel) -> SecretBytes:
        kind, key = self._secret(label)
        if kind is not SecretKind.KEK:
            raise errors.PolicyRefused("kek", f"{label!r} is no key-encryption key")
        return key

    def _secret(self, label: KeyLabel) -> tuple[SecretKind, SecretBytes]:
        self._require_open()
        if (
            self._is_as_before(check_label(label), _SECRET_SUFFIX)
            and (known := self._secrets.get(label)) is not None
        ):
            return known
        with self._loading:
            passphrase = self._require_open()
            if label not in self._secrets or not self._is_as_before(label, _SECRET_SUFFIX):
                content = self._content(label, _SECRET_SUFFIX)
                found = softsecrets.open_secret(label, content, passphrase)
                if self._secrets.setdefault(label, found) != found:
                    raise errors.IntegrityFailure(f"key {label!r} is another one than before")
                self._missed.discard(label)
            return self._secrets[label]

    def _transport(self, label: KeyLabel) -> rsa.RSAPrivateKey:
        content = self._content(label, _TRANSPORT_SUFFIX)
        try:
            key = serialization.load_pem_private_key(content, self._require_open().reveal())
        except (TypeError, ValueError) as failure:
            raise errors.NotPermitted(
                f"the passphrase does not open transport key {label!r}, or the file is damaged"
            ) from failure
        if not isinstance(key, rsa.RSAPrivateKey):
            raise errors.IntegrityFailure(f"{label!r} is no transport key")
        return key

    def _open_key(self, label: KeyLabel) -> _PrivateKey:
        check_label(label)
        with self._loading:  # one scrypt for a key, however many ask for it at once
            self._require_open()
            if label not in self._keys or not self._is_as_before(label, _SUFFIX):
                content = self._content(label, _SUFFIX)
                self._remember(label, _decrypt(self._path(label, _SUFFIX), content, self._passphrase))
            return self._keys[label]

    def _remember(self, label: KeyLabel, key: _PrivateKey) -> None:
        # sign() and public_key() look here without the lock.
        public = _public_der(key)
        if self._public.setdefault(label, public) != public:
            raise errors.IntegrityFailure(f"key {label!r} in {self._directory} is another one than before")
        self._missed.discard(label)
        self._keys[label] = key

    def _require_open(self) -> SecretBytes:
        """Return the passphrase, unless the store is closed: to ask it then is a fault of ours."""
        passphrase = self._passphrase
        if self._closed:
            raise RuntimeError(f"the key store in {self._directory} is closed")
        return passphrase


def _public_der(key: PrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _file_attributes(  # each says something else
    label: KeyLabel,
    key_class: KeyClass,
    kind: KeyAlgorithm | SecretKind | TransportKind | None,
    fingerprint: str,
    uses: frozenset[str],
    *,
    exportable: bool,
) -> KeyAttributes:
    return KeyAttributes(
        label=label,
        key_class=key_class,
        kind=kind,
        fingerprint=fingerprint,
        development=True,
        token=True,
        private=True,
        sensitive=False,
        always_sensitive=False,
        extractable=True,
        never_extractable=False,
        local=False,  # a file does not say where its key was made
        sign="sign" in uses,
        derive="derive" in uses,
        wrap="wrap" in uses,
        unwrap="unwrap" in uses,
        encrypt="encrypt" in uses,
        decrypt=False,
        wrap_with_trusted=exportable,
        trusted=False,
        modifiable=True,
        copyable=True,
        destroyable=True,
    )


def _decrypt(path: Path, content: bytes, passphrase: SecretBytes) -> _PrivateKey:
    try:
        key = serialization.load_pem_private_key(content, passphrase.reveal())
    except TypeError as plain:
        raise errors.IntegrityFailure(f"{path} is a private key that is not encrypted") from plain
    except ValueError as failure:
        # CBC has no tag: a wrong passphrase and a damaged file look the same.
        raise errors.NotPermitted(f"the passphrase does not open {path}, or the file is damaged") from failure
    if isinstance(key, _PrivateKey) and recognise(_public_der(key)) is not None:
        return key
    raise errors.IntegrityFailure(f"{path} holds a key of a type that is not one of ours")


def _pkcs8(key: PrivateKeyTypes) -> SecretBytes:
    return SecretBytes.taking(
        key.private_bytes(
            serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def _encrypted_pem(key: PrivateKeyTypes, passphrase: SecretBytes) -> bytes:
    """EncryptedPrivateKeyInfo, RFC 5958 section 3, with the scrypt-params of RFC 7914 section 7."""
    salt, iv = secrets.token_bytes(16), secrets.token_bytes(16)
    cost = softsecrets.COST
    kdf = Scrypt(salt=salt, length=32, n=cost.n, r=cost.r, p=cost.p)
    padder = padding.PKCS7(128).padder()
    padded = b"".join((padder.update(_pkcs8(key).view()), padder.finalize()))
    encryptor = Cipher(algorithms.AES256(kdf.derive(passphrase.view())), modes.CBC(iv)).encryptor()
    encrypted = encryptor.update(padded) + encryptor.finalize()

    scrypt_params = encode(
        SEQUENCE,
        encode(OCTET_STRING, salt),
        *(integer(number) for number in (cost.n, cost.r, cost.p, 32)),
    )
    pbes2_params = encode(
        SEQUENCE,
        encode(SEQUENCE, _SCRYPT, scrypt_params),
        encode(SEQUENCE, _AES256_CBC, encode(OCTET_STRING, iv)),
    )
    scheme = encode(SEQUENCE, _PBES2, pbes2_params)
    info = encode(SEQUENCE, scheme, encode(OCTET_STRING, encrypted))
    return to_pem(info, "ENCRYPTED PRIVATE KEY").encode("ascii")


def _write_new(path: Path, content: bytes) -> None:
    """Make a file, whole and durable, or raise FileExistsError and leave what is there untouched.

    The new name is given by link(2), because rename(2) would overwrite.
    """
    # The name ends in no ".p8": what a crash leaves behind is never taken for a key.
    unfinished = path.parent / f".{secrets.token_hex(8)}.unfinished"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(unfinished, path)
    finally:
        unfinished.unlink()
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
