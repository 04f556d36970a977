"""What a key in a PKCS#11 token may do, and which key it is: asked of the token, key by key.

Everything here runs in the worker of ``tokenworker``.  A use the token does not know is one the key does not
have; a protection it does not know is missing.  Which key it is shows by what it does, never by an attribute:
a private key signs something its public key verifies, a secret key computes its check value.
"""

from hashlib import sha256

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from pkcs11 import (
    Attribute,
    DeriveMixin,
    EncryptMixin,
    KeyType,
    Mechanism,
    Object,
    ObjectClass,
    Session,
    SignMixin,
    WrapMixin,
)
from pkcs11 import exceptions as foreign

from birthmark import errors
from birthmark.adapters.softsecrets import recipient_key
from birthmark.adapters.tokenderiving import BLOCK, cmac_of_zeros, encrypted
from birthmark.adapters.tokensigning import labelled, matched
from birthmark.element.keyset import CHECKED_BLOCK
from birthmark.pki.attributes import CHECK_VALUE_OCTETS, KeyAttributes, KeyClass, SecretKind, TransportKind
from birthmark.pki.keys import KeyAlgorithm, KeyLabel

__all__ = [
    "attributes_of",
    "check_value",
    "declared_id",
    "flag",
    "kind_of_secret",
    "read_attributes",
    "secret_complaints",
    "transport_attributes",
    "transport_public",
]

_KEY_CLASSES = {ObjectClass.PRIVATE_KEY: KeyClass.PRIVATE, ObjectClass.SECRET_KEY: KeyClass.SECRET}


def read_attributes(
    key: Object,
    kind: KeyAlgorithm | SecretKind | TransportKind | None,
    fingerprint: str,
) -> KeyAttributes:
    """Ask the token for all that ``KeyAttributes`` names."""
    return KeyAttributes(
        label=str(key[Attribute.LABEL]),
        key_class=_KEY_CLASSES[key[Attribute.CLASS]],
        kind=kind,
        fingerprint=fingerprint,
        development=False,
        token=flag(key, Attribute.TOKEN),
        private=flag(key, Attribute.PRIVATE),
        sensitive=flag(key, Attribute.SENSITIVE),
        always_sensitive=flag(key, Attribute.ALWAYS_SENSITIVE),
        extractable=flag(key, Attribute.EXTRACTABLE, unknown=True),
        never_extractable=flag(key, Attribute.NEVER_EXTRACTABLE),
        local=flag(key, Attribute.LOCAL),
        sign=flag(key, Attribute.SIGN),
        derive=flag(key, Attribute.DERIVE),
        wrap=flag(key, Attribute.WRAP),
        unwrap=flag(key, Attribute.UNWRAP),
        encrypt=flag(key, Attribute.ENCRYPT),
        decrypt=flag(key, Attribute.DECRYPT),
        wrap_with_trusted=flag(key, Attribute.WRAP_WITH_TRUSTED),
        trusted=flag(key, Attribute.TRUSTED),
        modifiable=flag(key, Attribute.MODIFIABLE, unknown=True),
        copyable=flag(key, Attribute.COPYABLE, unknown=True),
        destroyable=flag(key, Attribute.DESTROYABLE, unknown=True),
    )


def flag(key: Object, attribute: Attribute, *, unknown: bool = False) -> bool:
    """Return a boolean attribute, or ``unknown`` where the token does not know it for this key."""
    try:
        return bool(key[attribute])
    except foreign.AttributeTypeInvalid:
        return unknown


def transport_attributes(key: Object, public: Object) -> KeyAttributes:
    """Ask the token for a private key that does not sign; one of a kind that is not ours is ``None``."""
    try:
        subject_public_key_info = transport_public(public)
        recipient_key(subject_public_key_info)
    except (errors.MalformedRequest, foreign.AttributeTypeInvalid, ValueError):
        return read_attributes(key, None, "")
    return read_attributes(key, TransportKind.RSA_3072, sha256(subject_public_key_info).hexdigest())


def attributes_of(session: Session, key: Object) -> KeyAttributes:
    """Ask the token for all that is to be known of one of its keys, and have it show which key it is."""
    if key[Attribute.CLASS] is ObjectClass.SECRET_KEY:
        kind = kind_of_secret(key)
        return read_attributes(key, kind, check_value(session, key, kind))
    publics = labelled(session, key[Attribute.LABEL], ObjectClass.PUBLIC_KEY)
    if len(publics) != 1:
        return read_attributes(key, None, "")
    if not isinstance(key, SignMixin):
        return transport_attributes(key, publics[0])
    try:
        part = matched(key[Attribute.LABEL], publics[0], key).public
    except (errors.IntegrityFailure, foreign.AttributeTypeInvalid):
        return read_attributes(key, None, "")
    return read_attributes(key, part.algorithm, sha256(part.subject_public_key_info).hexdigest())


def secret_complaints(made: KeyAttributes, kind: SecretKind, *, local: bool = True) -> tuple[str, ...]:
    """Return how a secret key differs from one for the uses of its kind; empty is good.

    Args:
        made: the key.
        kind: what it should be.
        local: it was made in its token, and did not come in.
    """
    wanted = {"token": True, "private": True, "sensitive": True, "extractable": False}
    wanted |= {"always_sensitive": True, "local": True} if local else {"local": False}
    wanted |= {"trusted": kind is SecretKind.KEK and local}
    complaints = [
        f"CKA_{name.upper()} is {str(not value).lower()}"
        for name, value in wanted.items()
        if getattr(made, name) is not value
    ]
    if made.uses != kind.uses:
        complaints.append(f"it may {', '.join(sorted(made.uses)) or 'nothing'}")
    return tuple(complaints)


def declared_id(label: KeyLabel, kind: SecretKind) -> bytes:
    """Return the CKA_ID of a secret key that comes in: it says the kind, because the token may not."""
    return f"{label}/{kind}".encode("ascii")


def kind_of_secret(key: Object) -> SecretKind | None:
    """Say which of our kinds a secret key is, from its type, its uses and its length.

    SoftHSM answers 0 for the length of a key that was unwrapped; its CKA_ID says it, which was measured.
    """
    if key[Attribute.KEY_TYPE] is not KeyType.AES:
        return None
    wraps, unwraps = flag(key, Attribute.WRAP), flag(key, Attribute.UNWRAP)
    if unwraps or (wraps and not flag(key, Attribute.ENCRYPT)):
        return SecretKind.KEK
    use = "wrap" if wraps else "sign" if flag(key, Attribute.SIGN) else "derive"
    if not flag(key, Attribute[use.upper()]):
        return None
    ours = [kind for kind in SecretKind if use in kind.uses and kind is not SecretKind.KEK]
    size = int(key[Attribute.VALUE_LEN])
    label = key[Attribute.LABEL]
    for kind in ours:
        if kind.size == size or (not size and key[Attribute.ID] == declared_id(label, kind)):
            return kind
    return None


def check_value(session: Session, key: Object, kind: SecretKind | None) -> str:
    """Compute a secret key's check value as ``pki.attributes`` has it; empty if it may not be computed."""
    made = b""
    if kind is SecretKind.KEK:
        if isinstance(key, WrapMixin):
            made = _wrapped_zeros(session, key)
    elif isinstance(key, SignMixin):
        made = bytes(key.sign(bytes(BLOCK), mechanism=Mechanism.AES_CMAC))
    elif isinstance(key, DeriveMixin):
        made = cmac_of_zeros(key)
    elif isinstance(key, EncryptMixin):
        made = encrypted(key, CHECKED_BLOCK, Mechanism.AES_CBC, bytes(BLOCK))
    return made[:CHECK_VALUE_OCTETS].hex() if kind is not None else ""


def _wrapped_zeros(session: Session, kek: WrapMixin) -> bytes:
    zeros = session.create_object(
        {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.AES,
            Attribute.VALUE: bytes(BLOCK),
            Attribute.TOKEN: False,
            Attribute.SENSITIVE: False,
            Attribute.EXTRACTABLE: True,
        }
    )
    try:
        return bytes(kek.wrap_key(zeros, mechanism=Mechanism.AES_KEY_WRAP_PAD))  # type: ignore[arg-type]  # the stub knows no such mechanism
    finally:
        zeros.destroy()


def transport_public(public: Object) -> bytes:
    """Return the SubjectPublicKeyInfo (DER) of a transport key."""
    exponent = int.from_bytes(public[Attribute.PUBLIC_EXPONENT], "big")
    modulus = int.from_bytes(public[Attribute.MODULUS], "big")
    return (
        rsa.RSAPublicNumbers(exponent, modulus)
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
