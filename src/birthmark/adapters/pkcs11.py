"""The key store in a PKCS#11 token (SPEC B1, B3): keys are made there, sign there and never leave.

Rules kept here: a private key is made with CKA_TOKEN, CKA_PRIVATE, CKA_SENSITIVE, not CKA_EXTRACTABLE (or,
exportable, with CKA_WRAP_WITH_TRUSTED), no use but CKA_SIGN, and where the token can, for good
(CKA_MODIFIABLE, CKA_COPYABLE); it is destroyed again if the token made it otherwise; a key is found by
CKA_LABEL, which no two may share, and is tried against its public half before its first use; ECDSA and
RSA sign a digest of ours (CKM_ECDSA, CKM_RSA_PKCS), because many tokens know no hashing variant.

A session that is lost (the token restarted, the network went) is opened anew, and what was asked is done once
more; ``errors.Unavailable`` is said only when that fails, too, and for a second after that without asking the
token.  A refused PIN is never sent twice, because tokens lock after a few: the store must be opened again.

Threads are ``tokenworker``'s; a store must be opened in the process that uses it, after every fork.  Left to
others: keys that sign (``tokensigning``), secret keys and keys that travel (``tokenkeys``), what is made with
secret keys (``tokenkeysets``), reading the PIN (``custody``), PINs that a token wants for each use
(CKA_ALWAYS_AUTHENTICATE).
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self, TypeVar

from pkcs11 import Attribute, KeyType, Mechanism, Object, ObjectClass, Session
from pkcs11 import exceptions as foreign
from pkcs11.exceptions import PKCS11Error

from birthmark import errors
from birthmark.adapters import tokenkeys
from birthmark.adapters.ecpoint import PublicPart
from birthmark.adapters.softsecrets import recipient_key
from birthmark.adapters.tokenattributes import attributes_of, secret_complaints, transport_public
from birthmark.adapters.tokenkeysets import MECHANISMS_OF_SECRETS, KeySets
from birthmark.adapters.tokensigning import (
    KEPT_CLASSES,
    MECHANISMS,
    TokenKey,
    custody_complaints,
    destroyed_on_failure,
    find_token,
    generate_pair,
    kept,
    labelled,
    matched,
    require_alive,
    sign_with,
    to_be_signed,
)
from birthmark.adapters.tokenworker import TokenWorker
from birthmark.element.diversification import Derivation
from birthmark.element.keyset import StaticKeys
from birthmark.pki.algorithms import recognise
from birthmark.pki.attributes import KeyAttributes, SecretKind, SecretMade, TransportKind
from birthmark.pki.keys import KeyAlgorithm, KeyLabel, check_label
from birthmark.secret import SecretBytes

__all__ = ["PKCS11KeyStore", "custody_complaints"]

T = TypeVar("T")

_PIN_REFUSED = (
    foreign.PinExpired,
    foreign.PinIncorrect,
    foreign.PinInvalid,
    foreign.PinLenRange,
    foreign.PinLocked,
    foreign.UserPinNotInitialized,
)
_TOKEN_DECLINES = (
    foreign.AttributeReadOnly,
    foreign.AttributeTypeInvalid,
    foreign.AttributeValueInvalid,
    foreign.DataInvalid,
    foreign.DataLenRange,
    foreign.DomainParamsInvalid,
    foreign.FunctionNotSupported,
    foreign.FunctionRejected,
    foreign.KeySizeRange,
    foreign.KeyTypeInconsistent,
    foreign.MechanismInvalid,
    foreign.MechanismParamInvalid,
    foreign.TemplateIncomplete,
    foreign.TemplateInconsistent,
    foreign.TokenWriteProtected,
)
"""The token is well and says no; every other error is taken for a lost session."""


class PKCS11KeyStore:
    """Private keys in one PKCS#11 token.  Safe to call from any thread of the process that opened it."""

    def __init__(
        self,
        worker: TokenWorker,
        token_label: str,
        pin: SecretBytes,
        *,
        timeout_seconds: float,
        reopen_after_seconds: float,
    ) -> None:
        self._worker = worker
        self._token_label = token_label
        self._pin = pin
        self._timeout_seconds = timeout_seconds
        self._reopen_after_seconds = reopen_after_seconds
        self._closed = False
        # Written by the worker, read by every thread; a label never changes its key while we live.
        self._public: dict[KeyLabel, PublicPart] = {}
        # All below is touched by the worker alone.
        self._session: Session | None = None
        self._generation = -1
        self._keys: dict[KeyLabel, TokenKey] = {}
        self._down_until = 0.0
        self._down_because = ""
        self._pin_refused = ""
        self._key_sets = KeySets(
            self._ask, lambda session, label: self._one(session, label, ObjectClass.SECRET_KEY)
        )

    @classmethod
    def open(
        cls,
        module_path: Path,
        token_label: str,
        pin: SecretBytes,
        *,
        timeout_seconds: float = 10.0,
        reopen_after_seconds: float = 1.0,
    ) -> "PKCS11KeyStore":
        """Load the module, log in to the token with this CKA_LABEL, and return the store.

        Args:
            module_path: the PKCS#11 module, a shared library.
            token_label: label of the token, at most 32 octets in UTF-8.
            pin: PIN of the normal user, in UTF-8.
            timeout_seconds: how long a caller waits for the token before it is told that it hangs.
            reopen_after_seconds: how long a token that could not be reached is left alone.

        Raises:
            errors.NotFound: there is no such module.
            errors.MalformedRequest: the PIN is not UTF-8.
            errors.NotPermitted: the token refuses the PIN.
            errors.Unavailable: the module cannot be loaded, or the token is not there.
            errors.IntegrityFailure: two tokens carry this label.
            RuntimeError: this process has that token open already.
        """
        if not module_path.is_file():
            raise errors.NotFound(f"there is no PKCS#11 module {module_path}")
        _require_text(pin, token_label)
        worker = TokenWorker.engage(module_path, token_label)
        store = cls(
            worker,
            token_label,
            pin,
            timeout_seconds=timeout_seconds,
            reopen_after_seconds=reopen_after_seconds,
        )
        try:
            store._ask(lambda _session: None)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Log out and let go of the token; the store answers no more.  Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        # A worker that hangs, or is our parent's, has nobody to log out for.
        with suppress(TimeoutError, RuntimeError):
            self._worker.run(self._drop_session, self._timeout_seconds)
        self._worker.release(self._token_label, self._timeout_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"PKCS11KeyStore(token {self._token_label!r})"

    @property
    def development(self) -> bool:
        """False: the keys are in the token."""
        return False

    def generate(self, label: KeyLabel, algorithm: KeyAlgorithm, *, exportable: bool = False) -> bytes:
        """Generate a key pair in the token and return its SubjectPublicKeyInfo (DER).

        Never tried twice: where the token fails half way, ``errors.Unavailable`` leaves open whether there is
        a key now; ``public_key`` tells.

        Raises:
            errors.MalformedRequest: the label is not one.
            errors.IllegalTransition: the label is taken.
            errors.PolicyRefused: the token has not the mechanism (rule ``token-mechanism``), or declines.
            errors.IntegrityFailure: the token made the key with other attributes; it is destroyed again.
        """
        check_label(label)
        self._ask(lambda session: self._require_free(session, label))
        return self._ask(
            lambda session: self._generate(session, label, algorithm, exportable=exportable), repeat=False
        )

    def public_key(self, label: KeyLabel) -> bytes:
        """Return the SubjectPublicKeyInfo of a key (DER).

        Asks the token once for each key; what is known is answered while the token is down.
        """
        return self._public_part(label).subject_public_key_info

    def sign(self, label: KeyLabel, message: bytes) -> bytes:
        """Sign as ``ports.KeyStore`` has it."""
        algorithm = self._public_part(label).algorithm
        # Here, not in the worker: a long CRL must not keep the token from the others.
        signed = to_be_signed(algorithm, message)
        return self._ask(lambda session: sign_with(self._key(session, label), signed))

    def labels(self) -> tuple[KeyLabel, ...]:
        """Return the labels of all private and secret keys in the token, sorted.

        Keys of others, whose labels do not follow our syntax, are not listed.
        """

        def list_labels(session: Session) -> tuple[KeyLabel, ...]:
            require_alive(session)
            found = set()
            for key in kept(session):
                with suppress(errors.MalformedRequest):
                    found.add(check_label(key[Attribute.LABEL]))
            return tuple(sorted(found))

        return self._ask(list_labels)

    # --- secret keys, and keys that travel

    def generate_secret(
        self,
        label: KeyLabel,
        kind: SecretKind,
        *,
        recipients: Sequence[bytes] = (),
        officer: SecretBytes | None = None,
    ) -> SecretMade:
        """See ``ports.KeyStore``; never tried twice."""
        check_label(label)
        if kind is not SecretKind.KEK:
            if recipients:
                raise errors.MalformedRequest("only a key-encryption key is shared")
            return self._ask(lambda session: self._generate_secret(session, label, kind), repeat=False)
        if officer is None:
            raise errors.PolicyRefused(
                "token-trust", "only the token's security officer makes a trusted KEK: its PIN is needed"
            )
        _require_text(officer, self._token_label)
        for recipient in recipients:
            recipient_key(recipient)
        return self._ask(lambda session: self._make_kek(session, label, recipients, officer), repeat=False)

    def generate_transport(self, label: KeyLabel) -> bytes:
        """See ``ports.KeyStore``; never tried twice."""
        check_label(label)

        def generate(session: Session) -> bytes:
            self._require_free(session, label)
            self._require_offered(
                session,
                TransportKind.RSA_3072,
                Mechanism.RSA_PKCS_KEY_PAIR_GEN,
                tokenkeys.MODE_OF_TRANSPORT,
            )
            public, _private = tokenkeys.generate_transport(session, label)
            return transport_public(public)

        return self._ask(generate, repeat=False)

    def accept_secret(self, label: KeyLabel, kind: SecretKind, share: bytes, transport: KeyLabel) -> str:
        """See ``ports.KeyStore``; never tried twice."""
        check_label(label)
        check_label(transport)
        return self._ask(
            lambda session: self._accept_secret(session, label, kind, share, transport), repeat=False
        )

    def derived_keys(self, master: KeyLabel, derivation: Derivation) -> StaticKeys:
        """See ``ports.KeyStore``."""
        check_label(master)
        return self._key_sets.derived(master, derivation)

    def fixed_keys(self, labels: tuple[KeyLabel, KeyLabel, KeyLabel]) -> StaticKeys:
        """See ``ports.KeyStore``."""
        for label in labels:
            check_label(label)
        return self._key_sets.fixed(labels)

    def wrap(self, label: KeyLabel, kek: KeyLabel) -> bytes:
        """See ``ports.KeyStore``."""
        check_label(label)
        check_label(kek)
        return self._ask(
            lambda session: tokenkeys.wrap_private(
                self._one(session, label, ObjectClass.PRIVATE_KEY),
                self._one(session, kek, ObjectClass.SECRET_KEY),
                label,
            )
        )

    def unwrap(self, label: KeyLabel, subject_public_key_info: bytes, wrapped: bytes, kek: KeyLabel) -> None:
        """See ``ports.KeyStore``; never tried twice."""
        check_label(label)
        check_label(kek)
        algorithm = recognise(subject_public_key_info)
        if algorithm is None:
            raise errors.MalformedRequest("the public key is of no algorithm of ours")
        self._ask(
            lambda session: self._unwrap(session, label, algorithm, subject_public_key_info, wrapped, kek),
            repeat=False,
        )

    def attributes(self, label: KeyLabel) -> KeyAttributes:
        """Ask the token; what is known by heart is not looked at."""
        check_label(label)
        return self._ask(lambda session: attributes_of(session, self._one(session, label, *KEPT_CLASSES)))

    def inventory(self) -> tuple[KeyAttributes, ...]:
        """See ``ports.KeyStore``."""

        def read(session: Session) -> tuple[KeyAttributes, ...]:
            require_alive(session)
            found = [attributes_of(session, key) for key in kept(session)]
            return tuple(sorted(found, key=lambda key: (key.label, key.key_class, key.fingerprint)))

        return self._ask(read)

    # --- in the caller's thread

    def _public_part(self, label: KeyLabel) -> PublicPart:
        self._require_open()
        known = self._public.get(label)
        if known is not None:
            return known
        check_label(label)
        return self._ask(lambda session: self._key(session, label).public)

    def _ask(self, operation: Callable[[Session], T], *, repeat: bool = True) -> T:
        self._require_open()
        try:
            return self._worker.run(lambda: self._attempt(operation, repeat=repeat), self._timeout_seconds)
        except TimeoutError as hangs:
            raise errors.Unavailable(
                f"token {self._token_label!r} did not answer within {self._timeout_seconds:g} s"
            ) from hangs

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError(f"the key store on token {self._token_label!r} is closed")

    # --- in the worker's thread

    def _attempt(self, operation: Callable[[Session], T], *, repeat: bool) -> T:
        try:
            return operation(self._connected())
        except _TOKEN_DECLINES as declined:
            raise errors.PolicyRefused(
                "token", f"token {self._token_label!r} declines: {_reason(declined)}"
            ) from declined
        except PKCS11Error as lost:
            self._drop_session()
            if repeat:
                return self._attempt(operation, repeat=False)
            raise self._down(lost) from lost

    def _connected(self) -> Session:
        """Return a session that is logged in; open one if need be."""
        if self._session is not None and self._generation == self._worker.generation:
            return self._session
        if self._pin_refused:
            raise errors.NotPermitted(self._pin_refused)
        if time.monotonic() < self._down_until:
            raise errors.Unavailable(self._down_because)
        self._keys.clear()
        self._session = None
        if self._generation == self._worker.generation:
            # We have tried this generation: only a fresh one sees a token that came back.
            self._worker.reset()
        self._generation = self._worker.generation
        try:
            slots = self._worker.library().get_slots(token_present=True)
            token = find_token(slots, self._token_label)
            self._generation = self._worker.generation
            self._session = token.open(rw=True, user_pin=self._pin.reveal().decode())
        except _PIN_REFUSED as refused:
            self._pin_refused = (
                f"token {self._token_label!r} refuses the PIN ({_reason(refused)}); it is not tried again"
            )
            raise errors.NotPermitted(self._pin_refused) from refused
        except PKCS11Error as failure:
            raise self._down(failure) from failure
        return self._session

    def _down(self, failure: PKCS11Error) -> errors.Unavailable:
        self._down_until = time.monotonic() + self._reopen_after_seconds
        self._down_because = f"token {self._token_label!r} cannot be reached: {_reason(failure)}"
        return errors.Unavailable(self._down_because)

    def _drop_session(self) -> None:
        session, self._session = self._session, None
        self._keys.clear()
        if session is not None and self._generation == self._worker.generation:
            # One that cannot be closed is lost anyway: the library is finalised before the next is opened.
            with suppress(PKCS11Error):
                session.close()

    def _key(self, session: Session, label: KeyLabel) -> TokenKey:
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

    def _require_free(self, session: Session, label: KeyLabel) -> None:
        if labelled(session, label, ObjectClass.PUBLIC_KEY, *KEPT_CLASSES):
            raise errors.IllegalTransition(f"there is a key {label!r} in token {self._token_label!r} already")
        require_alive(session)

    def _generate(
        self, session: Session, label: KeyLabel, algorithm: KeyAlgorithm, *, exportable: bool
    ) -> bytes:
        """Generate in five steps, and destroy what was made if it is not what was asked for.

        1. The label is free, and the token has the mechanisms.
        2. Generate.
        3. The attributes are those we asked for.
        4. The private key signs and the public key verifies it.
        5. No other process has taken the label meanwhile: PKCS#11 itself lets two keys share one.
        """
        self._require_free(session, label)
        _, generation, signing = MECHANISMS[algorithm]
        self._require_offered(session, algorithm, generation, signing)
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

    def _require_offered(
        self,
        session: Session,
        kind: KeyAlgorithm | SecretKind | TransportKind,
        *mechanisms: Mechanism,
    ) -> None:
        offered = session.token.slot.get_mechanisms()
        for mechanism in mechanisms:
            if mechanism not in offered:
                raise errors.PolicyRefused(
                    "token-mechanism",
                    f"token {self._token_label!r} has no CKM_{mechanism.name}, which {kind} needs",
                )

    def _one(self, session: Session, label: KeyLabel, *classes: ObjectClass) -> Object:
        found = labelled(session, label, *classes)
        if not found:
            require_alive(session)
            raise errors.NotFound(f"there is no key {label!r} in token {self._token_label!r}")
        if len(found) > 1:
            raise errors.IntegrityFailure(
                f"token {self._token_label!r} has {len(found)} keys labelled {label!r}: keep one"
            )
        return found[0]

    def _generate_secret(self, session: Session, label: KeyLabel, kind: SecretKind) -> SecretMade:
        self._require_free(session, label)
        self._require_offered(session, kind, Mechanism.AES_KEY_GEN, *MECHANISMS_OF_SECRETS[kind])
        key = tokenkeys.generate_secret(session, label, kind)
        return SecretMade(check_value=self._approved(session, key, label, kind, local=True), shares=())

    def _accept_secret(
        self, session: Session, label: KeyLabel, kind: SecretKind, share: bytes, transport: KeyLabel
    ) -> str:
        self._require_free(session, label)
        taker = self._one(session, transport, ObjectClass.PRIVATE_KEY)
        needed = (tokenkeys.MODE_OF_TRANSPORT, *tokenkeys.SCALE, *MECHANISMS_OF_SECRETS[kind])
        self._require_offered(session, kind, *needed)
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

    def _make_kek(
        self, session: Session, label: KeyLabel, recipients: Sequence[bytes], officer: SecretBytes
    ) -> SecretMade:
        self._require_free(session, label)
        self._require_offered(session, SecretKind.KEK, Mechanism.AES_KEY_GEN, Mechanism.AES_KEY_WRAP_PAD)
        token = session.token
        self._drop_session()  # a token has one user at a time
        trusted = tokenkeys.make_trusted_kek(token, self._pin, officer, label, recipients)
        self._session = trusted.session
        kek = self._one(self._session, label, ObjectClass.SECRET_KEY)
        with destroyed_on_failure(kek):
            made = attributes_of(self._session, kek)
            self._refuse_if(label, secret_complaints(made, SecretKind.KEK))
        return SecretMade(check_value=made.fingerprint, shares=trusted.shares)

    def _unwrap(  # all that must be known of the key
        self,
        session: Session,
        label: KeyLabel,
        algorithm: KeyAlgorithm,
        subject_public_key_info: bytes,
        wrapped: bytes,
        kek: KeyLabel,
    ) -> None:
        self._require_free(session, label)
        opener = self._one(session, kek, ObjectClass.SECRET_KEY)
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


def _require_text(pin: SecretBytes, token_label: str) -> None:
    try:
        pin.reveal().decode()
    except UnicodeDecodeError:
        # Without its cause, which carries the PIN.
        raise errors.MalformedRequest(f"the PIN of token {token_label!r} is not UTF-8") from None


@contextmanager
def _still_there(session: Session) -> Iterator[None]:
    """Blame a token that is gone before what it was given: SoftHSM has one error for both."""
    try:
        yield
    except errors.MalformedRequest:
        require_alive(session)
        raise


def _reason(failure: PKCS11Error) -> str:
    """Say in words which error it was: "token not present", and what the library adds, if anything."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(failure).__name__).lower()
    return str(failure) or words
