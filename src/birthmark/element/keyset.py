"""A key set of a security domain (K-ENC, K-MAC, K-DEK): what it is used for, and how PUT KEY carries one.

``StaticKeys`` is what procedures are given: keys that are used where they are, in a token or, as
``SoftwareKeys``, in this process.  None of its methods returns a key.

Sources: GlobalPlatform Card Specification v2.3 sections 11.8 (PUT KEY) and 11.3.3.1 (key information
template), Amendment D v1.2 section 7.2 (key blocks of AES keys).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC

from birthmark import errors
from birthmark.element.diversification import (
    KEY_SIZES,
    Derivation,
    KeyRole,
    cmac_messages,
    derived_key,
)
from birthmark.secret import SecretBytes

__all__ = [
    "CHECKED_BLOCK",
    "KeyBlockForm",
    "KeyEntry",
    "KeyRoute",
    "LoadedKey",
    "SoftwareKeys",
    "StaticKeys",
    "WrappedKey",
    "aes_cmac",
    "check_value",
    "decode_put_key",
    "decrypt_key",
    "encode_put_key",
]

BLOCK = 16
CHECKED_BLOCK = b"\x01" * BLOCK
"""What a key encrypts for its check value (GlobalPlatform Card Specification v2.3 section B.6)."""
KCV_OCTETS = 3
_AES = 0x88


class KeyRoute(StrEnum):
    """Where the keys of a device are in clear while they are being put into it."""

    IN_TOKEN = "in-token"  # noqa: S105  # a place
    """Derived in the token and wrapped by it: in clear nowhere else."""
    SERVICE = "service"
    """In the memory of the service, for the length of the session."""


class KeyBlockForm(StrEnum):
    """The two encodings of an AES key in PUT KEY that are in use."""

    WITH_LENGTH = "with-length"
    """Amendment D v1.2 section 7.2: the key's length stands in front of its ciphertext."""
    BARE = "bare"
    """The ciphertext alone; AES-192 has no such form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrappedKey:
    """A key as it travels: AES-CBC under the K-DEK of the set that opened the session, initial vector 0."""

    ciphertext: bytes = field(repr=False)
    """16 or 32 octets: the key, padded with zeros to a multiple of 16."""
    check_value: bytes
    """3 octets: the first ones of AES(key, 01…01)."""
    size: int
    """Octets of the key: 16, 24 or 32."""


class StaticKeys(Protocol):
    """One key set.  Methods raise ``errors.Unavailable`` while the token that has it cannot be reached."""

    @property
    def size(self) -> int:
        """Octets of each key: 16, 24 or 32."""
        ...

    @property
    def route(self) -> KeyRoute:
        """Where the keys are in clear while this set is used."""
        ...

    def cmac(self, requests: Sequence[tuple[KeyRole, bytes]]) -> list[bytes]:
        """Return the AES-CMAC (NIST SP 800-38B) of each message under K-ENC or K-MAC."""
        ...

    def wrap(self, keys: "StaticKeys") -> tuple[WrappedKey, ...]:
        """Return K-ENC, K-MAC and K-DEK of another set, encrypted under this set's K-DEK.

        Raises:
            errors.PolicyRefused: the other set is where this one cannot take it from (rule ``key-route``), or
                its keys are longer than the K-DEK (rule ``transport-strength``).
        """
        ...

    def wrap_value(self, key: SecretBytes) -> WrappedKey:
        """Return a key of our own making, encrypted under this set's K-DEK."""
        ...


def require_strength(dek_size: int, key_size: int) -> None:
    """Refuse to carry a key under a weaker one.

    Raises:
        PolicyRefused: rule ``transport-strength``.
    """
    if key_size > dek_size:
        raise errors.PolicyRefused(
            "transport-strength", f"a key of {key_size} octets does not travel under one of {dek_size}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftwareKeys:
    """A key set in this process."""

    enc: SecretBytes
    mac: SecretBytes
    dek: SecretBytes

    def __post_init__(self) -> None:
        """Refuse keys that are no set.

        Raises:
            MalformedRequest: they are not of one size, or it is none of AES's.
        """
        sizes = {len(self.enc), len(self.mac), len(self.dek)}
        if len(sizes) != 1 or not sizes <= set(KEY_SIZES):
            raise errors.MalformedRequest("a key set has three keys of 16, 24 or 32 octets each")

    @classmethod
    def derived(cls, master: SecretBytes, derivation: Derivation) -> "SoftwareKeys":
        """Diversify a master key; the set's keys are as long as the master.

        Raises:
            MalformedRequest: the context is not one for the scheme.
        """
        size = len(master)

        def derive(role: KeyRole) -> SecretBytes:
            macs = [aes_cmac(master, message) for message in cmac_messages(derivation, role, size)]
            return SecretBytes(derived_key(derivation, size, macs))

        return cls(enc=derive(KeyRole.ENC), mac=derive(KeyRole.MAC), dek=derive(KeyRole.DEK))

    @property
    def size(self) -> int:
        """Octets of each key."""
        return len(self.enc)

    @property
    def route(self) -> KeyRoute:
        """The keys are here."""
        return KeyRoute.SERVICE

    def key(self, role: KeyRole) -> SecretBytes:
        """Return one of the keys."""
        return {KeyRole.ENC: self.enc, KeyRole.MAC: self.mac, KeyRole.DEK: self.dek}[role]

    def cmac(self, requests: Sequence[tuple[KeyRole, bytes]]) -> list[bytes]:
        """See ``StaticKeys``."""
        return [aes_cmac(self.key(role), message) for role, message in requests]

    def wrap(self, keys: StaticKeys) -> tuple[WrappedKey, ...]:
        """See ``StaticKeys``; takes sets that are in this process, too."""
        if not isinstance(keys, SoftwareKeys):
            raise errors.PolicyRefused("key-route", "keys in a token cannot travel under one outside it")
        return tuple(self.wrap_value(keys.key(role)) for role in KeyRole)

    def wrap_value(self, key: SecretBytes) -> WrappedKey:
        """See ``StaticKeys``."""
        require_strength(self.size, len(key))
        padded = b"".join((key.view(), bytes(-len(key) % BLOCK)))
        encryptor = Cipher(algorithms.AES(self.dek.view()), modes.CBC(bytes(BLOCK))).encryptor()
        return WrappedKey(
            ciphertext=encryptor.update(padded) + encryptor.finalize(),
            check_value=check_value(key),
            size=len(key),
        )


def aes_cmac(key: SecretBytes, message: bytes) -> bytes:
    """Return the AES-CMAC of a message, 16 octets (NIST SP 800-38B)."""
    mac = CMAC(algorithms.AES(key.view()))
    mac.update(message)
    return mac.finalize()


def check_value(key: SecretBytes) -> bytes:
    """Return a key's check value, 3 octets (GlobalPlatform Card Specification v2.3 section B.6)."""
    encryptor = Cipher(algorithms.AES(key.view()), modes.ECB()).encryptor()  # noqa: S305  # the standard's check value: one block
    return (encryptor.update(CHECKED_BLOCK) + encryptor.finalize())[:KCV_OCTETS]


def decrypt_key(dek: SecretBytes, ciphertext: bytes, size: int) -> SecretBytes:
    """Return a key that travelled under a K-DEK: what the element does.

    Raises:
        MalformedRequest: the ciphertext is no multiple of 16 octets, or shorter than the key.
    """
    if len(ciphertext) % BLOCK or len(ciphertext) < size:
        raise errors.MalformedRequest("the encrypted key is no whole number of blocks")
    decryptor = Cipher(algorithms.AES(dek.view()), modes.CBC(bytes(BLOCK))).decryptor()
    return SecretBytes((decryptor.update(ciphertext) + decryptor.finalize())[:size])


def encode_put_key(
    kvn: int, keys: Sequence[WrappedKey], form: KeyBlockForm, *, with_check_values: bool = True
) -> bytes:
    """Return the data field of PUT KEY for AES keys (Card Specification v2.3 section 11.8.2.3).

    Args:
        kvn: key version number that the keys get, 01 to 7F.
        keys: in the order of their key identifiers.
        form: of the key blocks; an AES-192 key always says its length.
        with_check_values: False to keep the check values to ourselves, where they are to be a proof.
    """
    out = bytearray((kvn,))
    for key in keys:
        says_length = form is KeyBlockForm.WITH_LENGTH or key.size % BLOCK != 0
        block = (bytes((key.size,)) if says_length else b"") + key.ciphertext
        kcv = key.check_value if with_check_values else b""
        out += bytes((_AES, len(block))) + block + bytes((len(kcv),)) + kcv
    return bytes(out)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedKey:
    """One key block of PUT KEY, as the element reads it."""

    ciphertext: bytes = field(repr=False)
    size: int
    check_value: bytes | None


def decode_put_key(data: bytes) -> tuple[int, tuple[LoadedKey, ...]]:
    """Read the data field of PUT KEY in either form: the key version number and the keys.

    Raises:
        MalformedRequest: it is none, or not of AES keys.
    """
    if len(data) < 1 or not 1 <= data[0] <= 0x7F:
        raise errors.MalformedRequest("PUT KEY begins with a key version number from 01 to 7F")
    keys, rest = [], data[1:]
    while rest:
        if len(rest) < 2 or rest[0] != _AES or len(rest) < 3 + rest[1]:
            raise errors.MalformedRequest("PUT KEY holds something else than AES key blocks")
        block, rest = rest[2 : 2 + rest[1]], rest[2 + rest[1] :]
        size = len(block)
        if len(block) % BLOCK == 1:
            size, block = block[0], block[1:]
        announced, kcv, rest = rest[0], rest[1 : 1 + rest[0]], rest[1 + rest[0] :]
        if size not in KEY_SIZES or len(block) != size + -size % BLOCK:
            raise errors.MalformedRequest("a key block of PUT KEY contradicts itself")
        if len(kcv) != announced or announced not in (0, KCV_OCTETS):
            raise errors.MalformedRequest("the check value of a key in PUT KEY has 3 octets, or is left out")
        keys.append(LoadedKey(ciphertext=block, size=size, check_value=kcv or None))
    if not keys:
        raise errors.MalformedRequest("PUT KEY holds no key")
    return data[0], tuple(keys)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class KeyEntry:
    """One key as the key information template lists it."""

    kvn: int
    kid: int
    key_type: int
    """88 for AES."""
    size: int
    """Octets."""
