"""Keys of a PKCS#11 token that sign: how they are found, made, tried and used.

Everything here runs in the worker of ``tokenworker``, but for ``to_be_signed``, and gets the session it uses.

Rules kept here: a private key can do nothing but sign, and ``custody_complaints`` says where one is not so; a
key whose two halves were not seen to belong together is not used; what a token says about an algorithm is
``ecpoint``'s to read.  Left to ``pkcs11``: sessions, names, and what is known by heart.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from pkcs11 import (
    Attribute,
    KeyType,
    Mechanism,
    MechanismFlag,
    Object,
    ObjectClass,
    Session,
    SignMixin,
    Slot,
    Token,
)
from pkcs11 import exceptions as foreign
from pkcs11.exceptions import PKCS11Error

from birthmark import errors
from birthmark.adapters.ecpoint import (
    CURVE_NAMES,
    RSA_BITS,
    PublicPart,
    public_part,
    rsa_public_part,
    signature_value,
)
from birthmark.pki.algorithms import ALGORITHMS, verify
from birthmark.pki.keys import KeyAlgorithm, KeyLabel

__all__ = [
    "FIXED",
    "KEPT_CLASSES",
    "MECHANISMS",
    "TokenKey",
    "custody_complaints",
    "destroyed_on_failure",
    "find_token",
    "generate_pair",
    "kept",
    "labelled",
    "matched",
    "require_alive",
    "sign_with",
    "to_be_signed",
]

FIXED: Mapping[Attribute, bool] = {Attribute.MODIFIABLE: False, Attribute.COPYABLE: False}
"""Nobody, not even its user, gives the key another use later.  Tokens differ in whether they know these."""

_KEY_TRIAL = b"birthmark: does this private key belong to this public key?"

_SIGN_ONLY: tuple[tuple[Attribute, bool], ...] = (
    (Attribute.TOKEN, True),
    (Attribute.PRIVATE, True),
    (Attribute.SENSITIVE, True),
    (Attribute.ALWAYS_SENSITIVE, True),
    (Attribute.EXTRACTABLE, False),
    (Attribute.NEVER_EXTRACTABLE, True),
    (Attribute.LOCAL, True),
    (Attribute.SIGN, True),
    (Attribute.DECRYPT, False),
    (Attribute.UNWRAP, False),
    (Attribute.DERIVE, False),
)
"""PKCS#11 v2.40 section 4.9: a private key made in the token that can do nothing but sign.

CKA_SIGN_RECOVER is not here: no mechanism of ours has it, and tokens differ in whether they know it for EC.
"""

_EXPORTABLE: tuple[tuple[Attribute, bool], ...] = (
    *((attribute, wanted) for attribute, wanted in _SIGN_ONLY if "EXTRACTABLE" not in attribute.name),
    (Attribute.EXTRACTABLE, True),
    (Attribute.WRAP_WITH_TRUSTED, True),
)
"""The same for a key that may leave wrapped under a trusted key."""

KEPT_CLASSES = (ObjectClass.PRIVATE_KEY, ObjectClass.SECRET_KEY)

MECHANISMS = {
    KeyAlgorithm.EC_P256: (KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, Mechanism.ECDSA),
    KeyAlgorithm.EC_P384: (KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, Mechanism.ECDSA),
    KeyAlgorithm.EC_P521: (KeyType.EC, Mechanism.EC_KEY_PAIR_GEN, Mechanism.ECDSA),
    KeyAlgorithm.ED25519: (KeyType.EC_EDWARDS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN, Mechanism.EDDSA),
    KeyAlgorithm.ED448: (KeyType.EC_EDWARDS, Mechanism.EC_EDWARDS_KEY_PAIR_GEN, Mechanism.EDDSA),
    KeyAlgorithm.RSA_2048: (KeyType.RSA, Mechanism.RSA_PKCS_KEY_PAIR_GEN, Mechanism.RSA_PKCS),
    KeyAlgorithm.RSA_3072: (KeyType.RSA, Mechanism.RSA_PKCS_KEY_PAIR_GEN, Mechanism.RSA_PKCS),
    KeyAlgorithm.RSA_4096: (KeyType.RSA, Mechanism.RSA_PKCS_KEY_PAIR_GEN, Mechanism.RSA_PKCS),
}

_SHA256_DIGEST_INFO = bytes.fromhex("3031300d060960864801650304020105000420")
"""DigestInfo (RFC 8017 section 9.2, note 1) up to the digest: what CKM_RSA_PKCS signs."""


class TokenKey(NamedTuple):
    """A key pair whose halves were seen to belong together."""

    public: PublicPart
    private: SignMixin


@contextmanager
def destroyed_on_failure(*made: Object) -> Iterator[None]:
    """Destroy what was made if what follows fails."""
    try:
        yield
    except BaseException:
        for unwanted in made:
            unwanted.destroy()
        raise


def custody_complaints(private: Object, *, exportable: bool = False) -> tuple[str, ...]:
    """Return how a private key differs from one made in its token for signing only; empty is good.

    Args:
        private: the key.
        exportable: it may leave, under a trusted key.

    A use the token does not know is one it does not have; a protection it does not know is missing.

    Raises:
        PKCS11Error: the token cannot be asked.
    """
    complaints = []
    for attribute, wanted in _EXPORTABLE if exportable else _SIGN_ONLY:
        try:
            actual = bool(private[attribute])
        except foreign.AttributeTypeInvalid:
            actual = attribute is Attribute.EXTRACTABLE
        if actual is not wanted:
            complaints.append(f"CKA_{attribute.name} is {str(actual).lower()}")
    return tuple(complaints)


def find_token(slots: Iterable[Slot], label: str) -> Token:
    """Return the token of this label.

    Raises:
        errors.IntegrityFailure: there are several.
        PKCS11Error: there is none.
    """
    found = []
    silent: PKCS11Error | None = None
    for slot in slots:
        try:
            token = slot.get_token()
        except PKCS11Error as failure:
            silent = failure  # may be another's slot: it counts only if ours is not found
            continue
        if token.label == label:
            found.append(token)
    if len(found) > 1:
        raise errors.IntegrityFailure(f"{len(found)} tokens are labelled {label!r}")
    if not found:
        raise silent or foreign.TokenNotPresent
    return found[0]


def require_alive(session: Session) -> None:
    """Raise TokenNotPresent, or what the library has to say, unless the token of this session is there."""
    opened = session.token
    now = opened.slot.get_token()
    if (now.label, now.serial) != (opened.label, opened.serial):
        raise foreign.TokenNotPresent


def _objects(session: Session, template: dict[Attribute, object]) -> list[Object]:
    # A search that cannot begin calls the library once more when it is freed, in python-pkcs11 0.10, and
    # writes that failure to stderr; so a session that is lost is noticed by a call without this habit.
    with suppress(foreign.RandomNoRNG, foreign.FunctionNotSupported):
        session.generate_random(64)
    return list(session.get_objects(template))  # to its end: a search left open blocks the session


def kept(session: Session) -> list[Object]:
    """Return all private and secret keys of the token."""
    return [key for kind in KEPT_CLASSES for key in _objects(session, {Attribute.CLASS: kind})]


def labelled(session: Session, label: KeyLabel, *classes: ObjectClass) -> list[Object]:
    """Return the objects of these classes with this label."""
    return [
        found
        for kind in classes
        for found in _objects(session, {Attribute.CLASS: kind, Attribute.LABEL: label})
    ]


def generate_pair(
    session: Session, label: KeyLabel, algorithm: KeyAlgorithm, *, exportable: bool
) -> tuple[Object, Object]:
    """Generate a key pair that signs, and return its public and its private half.

    Raises:
        PKCS11Error: the token does not.
    """
    key_type, generation, _ = MECHANISMS[algorithm]
    guard = {Attribute.WRAP_WITH_TRUSTED: True} if exportable else {}
    failure: PKCS11Error | None = None
    curves = CURVE_NAMES.get(algorithm, (b"",))
    # A token that does not know the fixing attributes makes the key without them.
    for curve, fixed in ((curve, fixed) for fixed in (FIXED, {}) for curve in curves):
        generate = _generator(session, key_type, algorithm, curve)
        try:
            return generate(
                id=label.encode(),
                label=label,
                store=True,
                capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
                mechanism=generation,
                private_template={
                    Attribute.PRIVATE: True,
                    Attribute.SENSITIVE: True,
                    Attribute.EXTRACTABLE: exportable,
                    **guard,
                    **fixed,
                },
            )
        except PKCS11Error as refused:
            failure = failure or refused  # perhaps it calls the curve otherwise
    if failure is None:
        raise AssertionError(f"{algorithm} has no curve")
    raise failure


def _generator(
    session: Session, key_type: KeyType, algorithm: KeyAlgorithm, curve: bytes
) -> Callable[..., tuple[Object, Object]]:
    if key_type is KeyType.RSA:
        return partial(session.generate_keypair, key_type, RSA_BITS[algorithm])
    parameters = session.create_domain_parameters(key_type, {Attribute.EC_PARAMS: curve}, local=True)
    return parameters.generate_keypair


def matched(label: KeyLabel, public: Object, private: Object) -> TokenKey:
    """Return the key after having it sign, once, something its public half verifies."""
    if not isinstance(private, SignMixin):
        raise errors.IntegrityFailure(f"key {label!r} may not sign: CKA_SIGN is false")
    if public[Attribute.KEY_TYPE] is KeyType.RSA:
        part = rsa_public_part(public[Attribute.MODULUS], public[Attribute.PUBLIC_EXPONENT])
    else:
        part = public_part(public[Attribute.EC_PARAMS], public[Attribute.EC_POINT])
    key = TokenKey(part, private)
    signature = sign_with(key, to_be_signed(part.algorithm, _KEY_TRIAL))
    try:
        verify(part.subject_public_key_info, signature, _KEY_TRIAL)
    except InvalidSignature as mismatch:
        raise errors.IntegrityFailure(
            f"the public and the private key labelled {label!r} are no pair"
        ) from mismatch
    return key


def to_be_signed(algorithm: KeyAlgorithm, message: bytes) -> bytes:
    """Return what CKM_ECDSA signs, a digest, CKM_RSA_PKCS, a DigestInfo, and CKM_EDDSA, the message."""
    hash_algorithm = ALGORITHMS[algorithm].hash_algorithm
    if hash_algorithm is None:
        return message
    digest = hashes.Hash(hash_algorithm)
    digest.update(message)
    return (_SHA256_DIGEST_INFO if algorithm in RSA_BITS else b"") + digest.finalize()


def sign_with(key: TokenKey, prepared: bytes) -> bytes:
    """Sign what ``to_be_signed`` prepared, and return the signature as certificates carry it."""
    algorithm = key.public.algorithm
    _, _, mechanism = MECHANISMS[algorithm]
    return signature_value(algorithm, key.private.sign(prepared, mechanism=mechanism))
