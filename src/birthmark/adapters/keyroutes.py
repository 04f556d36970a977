"""Which keys make a key set, and in which way: the rules that every key store keeps alike (``key-route``).

A master key that only derives makes the keys in its token, block by block; one that only computes AES-CMAC
makes them in the service's memory.  Which of the two a realm uses is decided when the key is made: never
here, and never silently.
"""

from birthmark import errors
from birthmark.element.diversification import Derivation, KeyRole, single_blocks
from birthmark.pki.attributes import SecretKind
from birthmark.pki.keys import KeyLabel

__all__ = ["require_fixed_set", "require_master", "require_single_blocks"]

RULE = "key-route"


def require_master(label: KeyLabel, kind: SecretKind | None) -> SecretKind:
    """Return the kind of a key that others are derived from.

    Raises:
        errors.PolicyRefused: it is none.
    """
    if kind is None or not kind.uses <= {"sign", "derive"}:
        raise errors.PolicyRefused(
            RULE,
            f"{label!r} is no master key: keys are derived from kinds diversify-aes-… and master-aes-…",
        )
    return kind


def require_single_blocks(label: KeyLabel, derivation: Derivation, size: int) -> None:
    """Refuse a scheme that needs more than block encryption.

    Raises:
        errors.PolicyRefused: the messages of the scheme are not of one block each.
        errors.MalformedRequest: the context is not one for the scheme.
    """
    if single_blocks(derivation, KeyRole.ENC, size, bytes(16)) is None:
        raise errors.PolicyRefused(
            RULE,
            f"{derivation.scheme} cannot be derived in the token, where {label!r} stays: "
            "use kdf3, or a master key of a kind master-aes-…",
        )


def require_fixed_set(
    labels: tuple[KeyLabel, KeyLabel, KeyLabel],
    kinds: tuple[SecretKind | None, SecretKind | None, SecretKind | None],
) -> int:
    """Return the octets of each key of a set that stands in the store.

    Raises:
        errors.PolicyRefused: the kinds are not those of a set, or not of one length.
    """
    wanted = (frozenset({"sign"}), frozenset({"sign"}), SecretKind.DEK_AES_128.uses)
    for label, kind, uses, role in zip(labels, kinds, wanted, KeyRole, strict=True):
        if kind is None or kind.uses != uses:
            needed = "dek-aes-…" if role is KeyRole.DEK else "master-aes-…"
            raise errors.PolicyRefused(RULE, f"{label!r} cannot be K-{role.name}: that is of a kind {needed}")
    sizes = {kind.size for kind in kinds if kind is not None}
    if len(sizes) != 1:
        raise errors.PolicyRefused(RULE, f"the keys {', '.join(labels)} are not of one length")
    return sizes.pop()
