"""Keys of one device from a master key: which AES-CMACs to compute, and what to make of them.

Nothing here touches a key: a token computes the CMACs under a master key that never leaves it, or encrypts
the blocks that ``single_blocks`` gives, where the derived key is to stay in the token as well.

- ``kdf3``: the derivation of GlobalPlatformPro's ``kdf3``, an instance of NIST SP 800-108 (2022) section 4.1:
  counter mode, 8-bit counter in front.  Input: counter(1) ‖ 00 00 00 ‖ role(1) ‖ 00 ‖ context(10).
- ``an10922``: NXP AN10922 for AES.  Input: constant(1) ‖ role(1) ‖ context(15 to 30).  The application note
  does not separate keys by purpose, so the role stands in front; and it extends inputs of one block to two,
  which a plain CMAC does not, so shorter contexts are refused: with 16 to 31 octets both are the same.
- ``sp800-108``: the same section, fixed input as section 4 has it: counter(1) ‖ label ‖ 00 ‖ context ‖ L(2),
  label ``SCP03 K-ENC``, ``SCP03 K-MAC``, ``SCP03 K-DEK``, L in bits; contexts of 1 to 64 octets.

A context is the element's key diversification data, or made of the device's hardware id by ``context_of``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from hashlib import sha256

from birthmark import errors

__all__ = [
    "KEY_SIZES",
    "ContextSource",
    "Derivation",
    "KeyRole",
    "Scheme",
    "an10922_key",
    "an10922_messages",
    "check_derivation",
    "cmac_messages",
    "context_of",
    "derived_key",
    "single_blocks",
]

KEY_SIZES = (16, 24, 32)
BLOCK = 16


class KeyRole(IntEnum):
    """The keys of a set, by their key identifier (GlobalPlatform Card Specification v2.3 section 11.8)."""

    ENC = 1
    MAC = 2
    DEK = 3


class Scheme(StrEnum):
    """How a device's keys follow from a master key."""

    KDF3 = "kdf3"
    AN10922 = "an10922"
    SP800_108 = "sp800-108"


class ContextSource(StrEnum):
    """What tells one device from another."""

    KDD = "kdd"
    """The key diversification data (10 octets) that the element gives in INITIALIZE UPDATE."""
    HARDWARE_ID = "hardware-id"
    """The device id, e.g. ``eid:…``; hashed to what the scheme takes: see ``context_of``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Derivation:
    """A scheme and the context of one device."""

    scheme: Scheme
    context: bytes


def context_of(scheme: Scheme, device: str) -> bytes:
    """Return the context of a device id: the first 10 (kdf3), 16 (an10922) or 32 octets of its SHA-256."""
    size = {Scheme.KDF3: 10, Scheme.AN10922: 16, Scheme.SP800_108: 32}[scheme]
    return sha256(device.encode()).digest()[:size]


def check_derivation(derivation: Derivation) -> None:
    """Refuse a context that the scheme cannot take.

    Raises:
        MalformedRequest: it is too short or too long.
    """
    least, most = {Scheme.KDF3: (10, 10), Scheme.AN10922: (15, 30), Scheme.SP800_108: (1, 64)}[
        derivation.scheme
    ]
    if not least <= len(derivation.context) <= most:
        raise errors.MalformedRequest(
            f"{derivation.scheme} takes a context of {least} to {most} octets, not {len(derivation.context)}"
        )


def an10922_messages(size: int, diversification_input: bytes) -> tuple[bytes, ...]:
    """Return what to CMAC for AN10922 with this diversification input M (16 to 31 octets).

    Raises:
        MalformedRequest: M is of another size.
    """
    if not 16 <= len(diversification_input) <= 31:
        raise errors.MalformedRequest("an10922 takes a diversification input of 16 to 31 octets")
    constants = {16: b"\x01", 24: b"\x11\x12", 32: b"\x41\x42"}[size]
    return tuple(bytes((constant,)) + diversification_input for constant in constants)


def an10922_key(size: int, macs: Sequence[bytes]) -> bytes:
    """Return the key that the CMACs of ``an10922_messages`` make."""
    if size != 24:
        return b"".join(macs)
    first, second = macs
    middle = bytes(one ^ other for one, other in zip(first[8:], second[:8], strict=True))
    return first[:8] + middle + second[8:]


def cmac_messages(derivation: Derivation, role: KeyRole, size: int) -> tuple[bytes, ...]:
    """Return the messages whose AES-CMACs under the master key make a key of ``size`` octets.

    Raises:
        MalformedRequest: see ``check_derivation``.
    """
    check_derivation(derivation)
    context = derivation.context
    if derivation.scheme is Scheme.AN10922:
        return an10922_messages(size, bytes((role,)) + context)
    counters = range(1, 2 + (size - 1) // BLOCK)
    if derivation.scheme is Scheme.KDF3:
        return tuple(bytes((n, 0, 0, 0, role, 0)) + context for n in counters)
    fixed = f"SCP03 K-{role.name}".encode() + b"\0" + context + (size * 8).to_bytes(2, "big")
    return tuple(bytes((n,)) + fixed for n in counters)


def derived_key(derivation: Derivation, size: int, macs: Sequence[bytes]) -> bytes:
    """Return the key that the CMACs of ``cmac_messages`` make: a secret."""
    if derivation.scheme is Scheme.AN10922:
        return an10922_key(size, macs)
    return b"".join(macs)[:size]


def single_blocks(derivation: Derivation, role: KeyRole, size: int, subkey: bytes) -> bytes | None:
    """Return the blocks whose AES-ECB encryption under the master key is the derived key.

    For a message of one whole block, CMAC(m) = AES(m xor K1) (NIST SP 800-38B section 6.2), so a token can
    make the derived key an object of its own by CKM_AES_ECB_ENCRYPT_DATA (PKCS#11 v2.40 section 2.15).

    Args:
        derivation: of the device.
        role: of the key.
        size: of the key in octets.
        subkey: K1 of the master key, 16 octets: a secret.

    Returns:
        16 octets for each block of the key; None if the scheme's messages are not of one block each.
    """
    messages = cmac_messages(derivation, role, size)
    if derivation.scheme is Scheme.AN10922 or any(len(message) != BLOCK for message in messages):
        return None
    return b"".join(
        bytes(one ^ other for one, other in zip(message, subkey, strict=True)) for message in messages
    )
