"""The keys of one token, as the thread sees them that may call its library (``tokenworker``).

Rules kept here: a key is found by CKA_LABEL, which no two may share, and is tried against its public half
before its first use; a label never changes its key while we live, whatever token comes back; a key that the
token made otherwise than asked is destroyed again.

Every method is for jobs of the worker and gets the session it uses, but for ``known``.  Left to others:
sessions (``tokensession``), how keys are made and used (``tokensigning``, ``tokenkeys``), who asks
(``pkcs11``).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pkcs11 import Attribute, KeyType, Mechanism, Object, ObjectClass, Session, SignMixin

from birthmark import errors
from birthmark.adapters import tokenkeys
from birthmark.adapters.ecpoint import PublicPart
from birthmark.adapters.tokenattributes import attributes_of, secret_complaints, transport_public
from birthmark.adapters.tokenkeysets import MECHANISMS_OF_SECRETS
from birthmark.adapters.tokensession import TokenSession
from birthmark.adapters.tokensigning import (
    KEPT_CLASSES,
    MECHANISMS,
    TokenKey,
    custody_complaints,
    destroyed_on_failure,
    generate_pair,
    labelled,
    matched,
    require_alive,
)
from birthmark.pki.attributes import SecretKind, SecretMade, TransportKind
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.secret import SecretBytes

__all__ = ["TokenKeyring"]


class TokenKeyring:
    """What is known of the keys of one token."""

    def __init__(self, token_label: str) -> None:
        self._token_label = token_label
        self._public: dict[KeyLabel, PublicPart] = {}
        self._keys: dict[KeyLabel, TokenKey] = {}

    def known(self, label: KeyLabel) -> PublicPart | None:
        """Return the public half of a key that was used; from any thread, without asking the token."""
        return self._public.get(label)

    def forget(self) -> None:
        """Forget the handles, which are void; which key a label has is remembered."""
        self._keys.clear()

    def examine(self, session: Session) -> None:
        """Look for every key that was used, by its label, and have it sign.

        Raises:
            errors.NotFound: one is there no more.
            errors.IntegrityFailure: one is another one than before.
        """
        require_alive(session)
        for label in tuple(self._public):
            self._keys.pop(label, None)
            self.key(session, label)

    def public_key(self, session: Session, label: KeyLabel) -> bytes:
        """Return the SubjectPublicKeyInfo (DER) of a key that signs, or of a transport key."""
        privates = labelled(session, label, ObjectClass.PRIVATE_KEY)
        if len(privates) == 1 and _unwraps_only(privates[0]):
            return transport_public(self.one(session, label, ObjectClass.PUBLIC_KEY))
        return self.key(session, label).public.subject_public_key_info

    def key(self, session: Session, label: KeyLabel) -> TokenKey:
        """Return the handles of a key, from the token if this session has not seen them."""
        key = self._keys.get(label)
        if key is None:
            key = self._found(session, label)
            before = self._public.setdefault(label, key.public)
            if before != key.public:
                raise errors.IntegrityFailure(
                    f"key {label!r} in token {self._token_label!r} is another one than before"
                )
            self._keys[label] = key
        return key

    def _found(self, session: Session, label: KeyLabel) -> TokenKey:
        privates = labelled(session, label, ObjectClass.PRIVATE_KEY)
        if not privates:
            # SoftHSM, for one, finds nothing in a token that is gone, and does not say that it is.
            require_alive(session)
            raise errors.NotFound(f"there is no key {label!r} in token {self._token_label!r}")
        publics = labelled(session, label, ObjectClass.PUBLIC_KEY)
        if len(privates) > 1 or len(publics) != 1:
            raise errors.IntegrityFailure(
                f"token {self._token_label!r} has {len(privates)} private and {len(publics)} public keys "
                f"labelled {label!r}: keep one of each"
            )
        return matched(label, publics[0], privates[0])

    def require_free(self, session: Session, label: KeyLabel) -> None:
        """Refuse a label that a key has."""
        if labelled(session, label, ObjectClass.PUBLIC_KEY, *KEPT_CLASSES):
            raise errors.IllegalTransition(f"there is a key {label!r} in token {self._token_label!r} already")
        require_alive(session)

    def generate(
        self, session: Session, label: KeyLabel, algorithm: KeyAlgorithm, *, exportable: bool
    ) -> bytes:
        """Generate in five steps, and destroy what was made if it is not what was asked for.

        1. The label is free, and the token has the mechanisms.
        2. Generate.
        3. The attributes are those we asked for.
        4. The private key signs and the public key verifies it.
        5. No other process has taken the label meanwhile: PKCS#11 itself lets two keys share one.
        """
        self.require_free(session, label)
        _, generation, signing = MECHANISMS[algorithm]
        self.require_offered(session, algorithm, generation, signing)
        public, private = generate_pair(session, label, algorithm, exportable=exportable)
        with destroyed_on_failure(private, public):
            self._refuse_if(label, custody_complaints(private, exportable=exportable))
            key = matched(label, public, private)
            if len(labelled(session, label, *KEPT_CLASSES)) != 1:
                raise errors.IllegalTransition(f"key {label!r} was made twice at once; try again")
        self._keys[label] = key
        self._public[label] = key.public
        return key.public.subject_public_key_info

    def _refuse_if(self, label: KeyLabel, complaints: Sequence[str]) -> None:
        if complaints:
            raise errors.IntegrityFailure(
                f"token {self._token_label!r} made key {label!r} otherwise than asked: "
                + ", ".join(complaints)
            )

    def require_offered(
        self,
        session: Session,
        kind: KeyAlgorithm | SecretKind | TransportKind,
        *mechanisms: Mechanism,
    ) -> None:
        """Refuse what the token has not the mechanisms for."""
        offered = session.token.slot.get_mechanisms()
        for mechanism in mechanisms:
            if mechanism not in offered:
                raise errors.PolicyRefused(
                    "token-mechanism",
                    f"token {self._token_label!r} has no CKM_{mechanism.name}, which {kind} needs",
                )

    def one(self, session: Session, label: KeyLabel, *classes: ObjectClass) -> Object:
        """Return the only object of these classes with this label."""
        found = labelled(session, label, *classes)
        if not found:
            require_alive(session)
            raise errors.NotFound(f"there is no key {label!r} in token {self._token_label!r}")
        if len(found) > 1:
            raise errors.IntegrityFailure(
                f"token {self._token_label!r} has {len(found)} keys labelled {label!r}: keep one"
            )
        return found[0]

    def generate_secret(self, session: Session, label: KeyLabel, kind: SecretKind) -> SecretMade:
        """Generate a secret key that is no KEK."""
        self.require_free(session, label)
        self.require_offered(session, kind, Mechanism.AES_KEY_GEN, *MECHANISMS_OF_SECRETS[kind])
        key = tokenkeys.generate_secret(session, label, kind)
        return SecretMade(check_value=self._approved(session, key, label, kind, local=True), shares=())

    def accept_secret(
        self, session: Session, label: KeyLabel, kind: SecretKind, share: bytes, transport: KeyLabel
    ) -> str:
        """Take in a secret key, and return its check value."""
        self.require_free(session, label)
        taker = self.one(session, transport, ObjectClass.PRIVATE_KEY)
        needed = (tokenkeys.MODE_OF_TRANSPORT, *tokenkeys.SCALE, *MECHANISMS_OF_SECRETS[kind])
        self.require_offered(session, kind, *needed)
        with _still_there(session):
            key = tokenkeys.accept_secret(session, taker, label, kind, share)
        return self._approved(session, key, label, kind, local=False)

    def _approved(
        self, session: Session, key: Object, label: KeyLabel, kind: SecretKind, *, local: bool
    ) -> str:
        """Return the check value of a secret key that is new here, or destroy it if it is not as asked."""
        with destroyed_on_failure(key):
            made = attributes_of(session, key)
            self._refuse_if(label, secret_complaints(made, kind, local=local))
            if len(labelled(session, label, *KEPT_CLASSES)) != 1:
                raise errors.IllegalTransition(f"key {label!r} was made twice at once; try again")
        return made.fingerprint

    def make_kek(
        self,
        sessions: TokenSession,
        session: Session,
        label: KeyLabel,
        recipients: Sequence[bytes],
        officer: SecretBytes,
    ) -> SecretMade:
        """Make a KEK as the security officer; the session is another one afterwards."""
        self.require_free(session, label)
        self.require_offered(session, SecretKind.KEK, Mechanism.AES_KEY_GEN, Mechanism.AES_KEY_WRAP_PAD)
        token = session.token
        sessions.drop()  # a token has one user at a time
        trusted = tokenkeys.make_trusted_kek(token, sessions.pin, officer, label, recipients)
        sessions.take(trusted.session)
        kek = self.one(trusted.session, label, ObjectClass.SECRET_KEY)
        with destroyed_on_failure(kek):
            made = attributes_of(trusted.session, kek)
            self._refuse_if(label, secret_complaints(made, SecretKind.KEK))
        return SecretMade(check_value=made.fingerprint, shares=trusted.shares)

    def unwrap(
        self,
        session: Session,
        label: KeyLabel,
        algorithm: KeyAlgorithm,
        subject_public_key_info: bytes,
        wrapped: bytes,
        kek: KeyLabel,
    ) -> None:
        """Take a wrapped private key in, if it is the one of this public key."""
        self.require_free(session, label)
        opener = self.one(session, kek, ObjectClass.SECRET_KEY)
        key_type, _, _ = MECHANISMS[algorithm]
        with _still_there(session):
            private = tokenkeys.unwrap_private(opener, label, key_type, wrapped)
        with destroyed_on_failure(private):
            curve = b"" if key_type is KeyType.RSA else private[Attribute.EC_PARAMS]
            public = session.create_object(tokenkeys.public_template(label, curve, subject_public_key_info))
            with destroyed_on_failure(public):
                key = matched(label, public, private)
                if key.public.subject_public_key_info != subject_public_key_info:
                    raise errors.IntegrityFailure(f"the token shows another public key of {label!r}")
        self._keys[label] = key
        self._public[label] = key.public


@contextmanager
def _still_there(session: Session) -> Iterator[None]:
    """Blame a token that is gone before what it was given: SoftHSM has one error for both."""
    try:
        yield
    except errors.MalformedRequest:
        require_alive(session)
        raise


def _unwraps_only(private: Object) -> bool:
    return private[Attribute.KEY_TYPE] is KeyType.RSA and not isinstance(private, SignMixin)
