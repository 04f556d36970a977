"""Keys that a PKCS#11 token derives from a master key of its own, and that live for one job.

Everything here runs in the worker of ``tokenworker``.  The mechanism is CKM_AES_ECB_ENCRYPT_DATA (PKCS#11
v2.40 section 2.15): the derived key is the encryption of blocks under the master key.  Since the AES-CMAC of
a message m of one block is the encryption of m xor K1 (NIST SP 800-38B section 6.2), the token makes a key
that is defined by CMACs, and K1 is all that has to be known outside for it.

Rules kept here: a derived key is an object of the session, sensitive, with the one use the job has for it,
and is destroyed before the job ends, whatever happens in it.  It can leave the token only where it is going
to be wrapped.  What is read from the token is K1, and the octets a check value is made of.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pkcs11 import Attribute, DeriveMixin, EncryptMixin, KeyType, Mechanism, MechanismFlag, Object
from pkcs11 import exceptions as foreign

from birthmark import errors
from birthmark.secret import SecretBytes

__all__ = ["BLOCK", "cmac_of_zeros", "derived", "encrypted", "subkey"]

BLOCK = 16
_REDUCTION = 0x87
"""R_128 of NIST SP 800-38B section 5.3."""


@contextmanager
def derived(
    master: DeriveMixin, blocks: bytes, size: int, use: MechanismFlag, *, extractable: bool = False
) -> Iterator[Object]:
    """Derive a key and destroy it again.

    Args:
        master: the key that may derive.
        blocks: what is encrypted; at least as many octets as the key.
        size: octets of the key.
        use: what it may do.
        extractable: it may leave the token, wrapped.
    """
    key = master.derive_key(
        KeyType.AES,
        size * 8,
        store=False,
        capabilities=use,
        mechanism=Mechanism.AES_ECB_ENCRYPT_DATA,
        mechanism_param=blocks,
        template={
            Attribute.PRIVATE: True,
            Attribute.SENSITIVE: True,
            Attribute.EXTRACTABLE: extractable,
        },
    )
    try:
        yield key
    finally:
        key.destroy()


def subkey(master: DeriveMixin) -> SecretBytes:
    """Return K1, the first subkey of CMAC under the master key (NIST SP 800-38B section 6.1): a secret.

    Raises:
        errors.PolicyRefused: the token derives no key that can be read (rule ``key-route``).
    """
    doubled = int.from_bytes(_shown(master, bytes(BLOCK)), "big") << 1
    overflow = doubled >> (8 * BLOCK)
    return SecretBytes(((doubled ^ (overflow * _REDUCTION)) & ((1 << 8 * BLOCK) - 1)).to_bytes(BLOCK, "big"))


def cmac_of_zeros(master: DeriveMixin) -> bytes:
    """Return the AES-CMAC of one block of zeros under the master key: its check value begins it.

    Raises:
        errors.PolicyRefused: as ``subkey``.
    """
    return _shown(master, subkey(master).reveal())


def _shown(master: DeriveMixin, block: bytes) -> bytes:
    key = master.derive_key(
        KeyType.AES,
        BLOCK * 8,
        store=False,
        capabilities=MechanismFlag(0),
        mechanism=Mechanism.AES_ECB_ENCRYPT_DATA,
        mechanism_param=block,
        template={Attribute.PRIVATE: True, Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True},
    )
    try:
        return bytes(key[Attribute.VALUE])
    except foreign.AttributeSensitive as hidden:
        raise errors.PolicyRefused(
            "key-route",
            "the token shows no subkey of a key that derives: use a master key of a kind master-aes-…",
        ) from hidden
    finally:
        key.destroy()


def encrypted(key: Object, plain: bytes, mechanism: Mechanism, iv: bytes | None = None) -> bytes:
    """Return octets encrypted under a key of the token.

    Raises:
        errors.IntegrityFailure: the key may not encrypt.
    """
    made = (
        key.encrypt(plain, mechanism=mechanism, mechanism_param=iv) if isinstance(key, EncryptMixin) else None
    )
    if not isinstance(made, bytes):
        raise errors.IntegrityFailure("the token gave a key other uses than asked: it may not encrypt")
    return made
