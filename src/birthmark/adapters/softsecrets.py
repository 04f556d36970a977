"""Secret keys in files and in process memory: the part of the software store that is no key pair.

One file a key, ``LABEL.secret``: PEM of salt (16 octets), nonce (12) and the key under AES-256-GCM, keyed by
scrypt over the store's passphrase; its kind is encrypted with it and its label is authenticated, so that no
file passes for another.  The format is ours alone, for nobody else has to read it: a secret key leaves only
wrapped or encrypted to a transport key, and those forms are the standards'.

Outside the algorithms a key's value is ``SecretBytes``.  What is wrapped here (RFC 5649) opens in a token and
the other way round.  Left to ``softkeys``: files, names.
"""

import secrets
from contextlib import suppress
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap_with_padding,
    aes_key_wrap_with_padding,
)

from birthmark import errors
from birthmark.element.keyset import CHECKED_BLOCK, aes_cmac
from birthmark.pki.attributes import CHECK_VALUE_OCTETS, SecretKind
from birthmark.pki.certificates import from_pem, to_pem
from birthmark.pki.der import SEQUENCE, only
from birthmark.pki.keys import KeyLabel
from birthmark.pki.library import UNREADABLE
from birthmark.secret import SecretBytes

__all__ = [
    "COST",
    "TRANSPORT_BITS",
    "Cost",
    "check_value",
    "open_secret",
    "open_share",
    "recipient_key",
    "seal_secret",
    "share_with",
    "unwrapped",
    "wrapped_under",
]

TRANSPORT_BITS = 3072
_PEM_LABEL = "BIRTHMARK SECRET KEY"
_SALT, _NONCE = 16, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one guess at a passphrase costs: the parameters of scrypt (RFC 7914 section 2)."""

    n: int
    r: int
    p: int


COST = Cost(n=1 << 14, r=8, p=5)
"""Of every file of the software store; why N is not larger, ``softkeys`` says."""
_SHA1_IS_ALL_TOKENS_HAVE = hashes.SHA1()  # noqa: S303  # in OAEP, which needs no collision resistance
_OAEP = padding.OAEP(
    mgf=padding.MGF1(_SHA1_IS_ALL_TOKENS_HAVE), algorithm=_SHA1_IS_ALL_TOKENS_HAVE, label=None
)


def check_value(kind: SecretKind, key: SecretBytes) -> str:
    """Return the check value of a secret key, as ``pki.attributes`` defines it."""
    if kind is SecretKind.KEK:
        made = wrapped_under(key, SecretBytes(bytes(16)))
    elif "encrypt" in kind.uses:
        encryptor = Cipher(algorithms.AES(key.view()), modes.CBC(bytes(16))).encryptor()
        made = encryptor.update(CHECKED_BLOCK) + encryptor.finalize()
    else:
        made = aes_cmac(key, bytes(16))
    return made[:CHECK_VALUE_OCTETS].hex()


def wrapped_under(kek: SecretBytes, plain: SecretBytes) -> bytes:
    """Return a key's octets wrapped under a key-encryption key (RFC 5649)."""
    return aes_key_wrap_with_padding(kek.view(), plain.view())


def seal_secret(label: KeyLabel, kind: SecretKind, key: SecretBytes, passphrase: SecretBytes) -> bytes:
    """Return the contents of the key's file."""
    salt, nonce = secrets.token_bytes(_SALT), secrets.token_bytes(_NONCE)
    plain = kind.encode("ascii") + b"\0" + key.reveal()
    sealed = _cipher(salt, passphrase).encrypt(nonce, plain, label.encode("ascii"))
    return to_pem(salt + nonce + sealed, _PEM_LABEL).encode("ascii")


def open_secret(label: KeyLabel, content: bytes, passphrase: SecretBytes) -> tuple[SecretKind, SecretBytes]:
    """Return the kind and the value of a key from its file.

    Raises:
        errors.NotPermitted: the passphrase does not open it, or the file is damaged or another key's.
    """
    try:
        (sealed,) = from_pem(content.decode("ascii"), _PEM_LABEL)
        salt, nonce = sealed[:_SALT], sealed[_SALT : _SALT + _NONCE]
        plain = _cipher(salt, passphrase).decrypt(nonce, sealed[_SALT + _NONCE :], label.encode("ascii"))
        kind, _, key = plain.partition(b"\0")
        return SecretKind(kind.decode("ascii")), SecretBytes(key)
    except (InvalidTag, ValueError, errors.MalformedRequest) as failure:
        raise errors.NotPermitted(
            f"the passphrase does not open secret key {label!r}, or its file is damaged"
        ) from failure


def recipient_key(subject_public_key_info: bytes) -> rsa.RSAPublicKey:
    """Return a transport key from its SubjectPublicKeyInfo (DER).

    Raises:
        errors.MalformedRequest: it is no RSA key of ``TRANSPORT_BITS`` with the exponent 65537.
    """
    try:
        key = serialization.load_der_public_key(subject_public_key_info)
    except UNREADABLE as failure:
        raise errors.MalformedRequest("the transport key is no SubjectPublicKeyInfo") from failure
    if (
        not isinstance(key, rsa.RSAPublicKey)
        or key.key_size != TRANSPORT_BITS
        or key.public_numbers().e != 65537
    ):
        raise errors.MalformedRequest(f"a transport key is an RSA key of {TRANSPORT_BITS} bits")
    return key


def share_with(recipient: bytes, key: SecretBytes) -> bytes:
    """Encrypt a secret key to a transport key (RSAES-OAEP)."""
    return recipient_key(recipient).encrypt(key.reveal(), _OAEP)


def open_share(transport: rsa.RSAPrivateKey, kind: SecretKind, share: bytes) -> SecretBytes:
    """Return the secret key in a share.

    Raises:
        errors.MalformedRequest: it was not encrypted to this key, or holds no key of this length.
    """
    try:
        key = SecretBytes(transport.decrypt(share, _OAEP))
    except ValueError as failure:
        raise errors.MalformedRequest("the share was not encrypted to this transport key") from failure
    if len(key) != kind.size:
        raise errors.MalformedRequest(f"the share holds no key of {kind.size} octets, as {kind} is")
    return key


def unwrapped(kek: SecretBytes, wrapped: bytes, kek_label: KeyLabel) -> SecretBytes:
    """Return the PKCS#8 in a wrapped key.

    Raises:
        errors.MalformedRequest: it was not wrapped under this key.
    """
    try:
        plain = aes_key_unwrap_with_padding(kek.view(), wrapped)
    except InvalidUnwrap as failure:
        raise errors.MalformedRequest(
            f"the wrapped key does not open under {kek_label!r}: another key wrapped it, or it is damaged"
        ) from failure
    # SoftHSM 2.6 pads to whole blocks of 8 octets before it wraps, and RFC 5649 then keeps the padding.
    for padded in range(8):
        if plain.endswith(bytes(padded)):
            found = plain[: len(plain) - padded]
            with suppress(errors.MalformedRequest):
                only(found, SEQUENCE)
                return SecretBytes(found)
    raise errors.MalformedRequest("what was wrapped is no private key")


def _cipher(salt: bytes, passphrase: SecretBytes) -> AESGCM:
    return AESGCM(Scrypt(salt=salt, length=32, n=COST.n, r=COST.r, p=COST.p).derive(passphrase.view()))
