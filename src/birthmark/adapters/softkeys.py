"""A key store in a directory, for the quick start and for tests; it calls itself "development".

One file a key, ``LABEL.p8``, mode 0400 in a directory of mode 0700: an EncryptedPrivateKeyInfo (RFC 5958
section 3) in PEM, PBES2 (RFC 8018) with scrypt N=2^14, r=8, p=5 (RFC 7914 section 7) and AES-256-CBC.  The
library's own ``BestAvailableEncryption`` is not used: it means PBKDF2 with 2048 rounds, in cryptography 50.
One guess costs 16 MiB and, on one core of 2020, about 0.16 s; so does the first use of each key in a process.
N is not larger because OpenSSL gives scrypt no more than 32 MiB unasked, and ``openssl pkey -in LABEL.p8``
shall open the file: the way out of this store is the standard's.

Rules kept here: a key is durable before its label is known, and no file is ever overwritten.  Left to others:
every protection of a key in use.  An open key lies in process memory; that is what "development" says.
"""

import os
import secrets
import threading
from contextlib import suppress
from pathlib import Path

from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from birthmark import errors
from birthmark.adapters.custody import check_label, read_private_file
from birthmark.pki.certificates import to_pem
from birthmark.pki.der import OCTET_STRING, SEQUENCE, encode, integer, oid
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.secret import SecretBytes

__all__ = ["SoftwareKeyStore"]

_SUFFIX = ".p8"
_KEY_FILE_LIMIT = 4096
_COST_N, _COST_R, _COST_P = 1 << 14, 8, 5

_PBES2 = oid("1.2.840.113549.1.5.13")  # RFC 8018 appendix A.4
_SCRYPT = oid("1.3.6.1.4.1.11591.4.11")  # RFC 7914 section 7
_AES256_CBC = oid("2.16.840.1.101.3.4.1.42")  # RFC 8018 appendix C

_ECDSA = {256: ec.ECDSA(hashes.SHA256()), 384: ec.ECDSA(hashes.SHA384())}
"""Signature scheme by the size of the curve in bits (``KeyAlgorithm``)."""

_PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class SoftwareKeyStore:
    """Private keys in encrypted files, used in process memory.  Safe to call from any thread.

    Several processes may share a directory: each sees the others' new keys.
    """

    __slots__ = ("_closed", "_directory", "_keys", "_loading", "_passphrase", "_public")

    def __init__(self, directory: Path, passphrase: SecretBytes) -> None:
        self._directory = directory
        self._passphrase = passphrase
        self._keys: dict[KeyLabel, _PrivateKey] = {}
        self._public: dict[KeyLabel, bytes] = {}
        self._loading = threading.Lock()
        self._closed = False

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
            store.public_key(label)
        return store

    def close(self) -> None:
        """Let go of the open keys and the passphrase; the store answers no more.  Closing twice does nothing.

        Python overwrites no memory: what was held is out of reach, and goes when its memory is used again.
        """
        with self._loading:
            self._closed = True
            self._keys.clear()
            self._public.clear()
            self._passphrase = SecretBytes(b"")

    def __repr__(self) -> str:
        return f"SoftwareKeyStore({str(self._directory)!r}, development)"

    @property
    def development(self) -> bool:
        """True: the keys are in process memory."""
        return True

    def generate(self, label: KeyLabel, algorithm: KeyAlgorithm) -> bytes:
        """Generate a key pair, durable on return, and return its SubjectPublicKeyInfo (DER).

        Raises:
            errors.MalformedRequest: the label is not one.
            errors.IllegalTransition: the label is taken.
            errors.Unavailable: the file cannot be written.
        """
        passphrase = self._require_open()
        check_label(label)
        key: _PrivateKey
        match algorithm:
            case KeyAlgorithm.EC_P256:
                key = ec.generate_private_key(ec.SECP256R1())
            case KeyAlgorithm.EC_P384:
                key = ec.generate_private_key(ec.SECP384R1())
            case KeyAlgorithm.ED25519:
                key = ed25519.Ed25519PrivateKey.generate()
        path = self._directory / f"{label}{_SUFFIX}"
        if path.is_symlink() or path.exists():  # spares the 0.16 s; _write_new is what decides
            raise errors.IllegalTransition(f"there is a key {label!r} already")
        try:
            _write_new(path, _encrypted_pem(key, passphrase))
        except FileExistsError as taken:
            raise errors.IllegalTransition(f"there is a key {label!r} already") from taken
        except OSError as failure:
            raise errors.Unavailable(f"key {label!r} cannot be written: {failure.strerror}") from failure
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
        return self._public.get(label) or _public_der(self._open_key(label))

    def sign(self, label: KeyLabel, message: bytes) -> bytes:
        """Sign as ``ports.KeyStore`` has it.

        Raises:
            errors.NotFound: there is no such key.
            errors.NotPermitted: the passphrase does not open it, or its file is open to others.
        """
        key = self._keys.get(label) or self._open_key(label)
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key.sign(message)
        return key.sign(message, _ECDSA[key.key_size])

    def labels(self) -> tuple[KeyLabel, ...]:
        """Return the labels of all keys, sorted; files that are not ours are not listed."""
        self._require_open()
        try:
            names = [path.name for path in self._directory.iterdir()]
        except OSError as failure:
            raise errors.Unavailable(f"key directory {self._directory}: {failure.strerror}") from failure
        found = []
        for name in names:
            if not name.endswith(_SUFFIX):
                continue
            with suppress(errors.MalformedRequest):
                found.append(check_label(name.removesuffix(_SUFFIX)))
        return tuple(sorted(found))

    def _open_key(self, label: KeyLabel) -> _PrivateKey:
        check_label(label)
        with self._loading:  # one scrypt for a key, however many ask for it at once
            self._require_open()
            if label not in self._keys:
                path = self._directory / f"{label}{_SUFFIX}"
                try:
                    content = read_private_file(path, _KEY_FILE_LIMIT, follow_links=False)
                except errors.NotFound as missing:
                    raise errors.NotFound(f"there is no key {label!r}") from missing
                self._remember(label, _decrypt(path, content, self._passphrase))
            return self._keys[label]

    def _remember(self, label: KeyLabel, key: _PrivateKey) -> None:
        # sign() and public_key() look here without the lock.
        self._public[label] = _public_der(key)
        self._keys[label] = key

    def _require_open(self) -> SecretBytes:
        """Return the passphrase, unless the store is closed: to ask it then is a fault of ours."""
        passphrase = self._passphrase
        if self._closed:
            raise RuntimeError(f"the key store in {self._directory} is closed")
        return passphrase


def _public_der(key: _PrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _decrypt(path: Path, content: bytes, passphrase: SecretBytes) -> _PrivateKey:
    try:
        key = serialization.load_pem_private_key(content, passphrase.reveal())
    except TypeError as plain:
        raise errors.IntegrityFailure(f"{path} is a private key that is not encrypted") from plain
    except ValueError as failure:
        # CBC has no tag: a wrong passphrase and a damaged file look the same.
        raise errors.NotPermitted(f"the passphrase does not open {path}, or the file is damaged") from failure
    match key:
        case ed25519.Ed25519PrivateKey():
            return key
        case ec.EllipticCurvePrivateKey(curve=ec.SECP256R1() | ec.SECP384R1()):
            return key
        case _:
            raise errors.IntegrityFailure(f"{path} holds a key of a type that is not one of ours")


def _encrypted_pem(key: _PrivateKey, passphrase: SecretBytes) -> bytes:
    """EncryptedPrivateKeyInfo, RFC 5958 section 3, with the scrypt-params of RFC 7914 section 7."""
    plain = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    salt, iv = secrets.token_bytes(16), secrets.token_bytes(16)
    kdf = Scrypt(salt=salt, length=32, n=_COST_N, r=_COST_R, p=_COST_P)
    padder = padding.PKCS7(128).padder()
    padded = padder.update(plain) + padder.finalize()
    encryptor = Cipher(algorithms.AES256(kdf.derive(passphrase.reveal())), modes.CBC(iv)).encryptor()
    encrypted = encryptor.update(padded) + encryptor.finalize()

    scrypt_params = encode(
        SEQUENCE,
        encode(OCTET_STRING, salt),
        *(integer(number) for number in (_COST_N, _COST_R, _COST_P, 32)),
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
