"""The key store in a PKCS#11 token (SPEC B1, B3): keys are made there, sign there and never leave.

Rules kept here: a private key is made with CKA_TOKEN, CKA_PRIVATE, CKA_SENSITIVE, not CKA_EXTRACTABLE (or,
exportable, with CKA_WRAP_WITH_TRUSTED), no use but CKA_SIGN, and where the token can, for good
(CKA_MODIFIABLE, CKA_COPYABLE); it is destroyed again if the token made it otherwise; a key is found by
CKA_LABEL, which no two may share, and is tried against its public half before its first use; ECDSA and
RSA sign a digest of ours (CKM_ECDSA, CKM_RSA_PKCS), because many tokens know no hashing variant.

Here is the caller's side.  In the thread of the library (``tokenworker``) are the session (``tokensession``:
a token that comes and goes, a PIN that is refused) and the keys as it sees them (``tokenkeyring``).  A store
must be opened in the process that uses it, after every fork.  Left to others: keys that sign
(``tokensigning``), secret keys and keys that travel (``tokenkeys``), what is made with secret keys
(``tokenkeysets``), reading the PIN (``custody``), PINs that a token wants for each use
(CKA_ALWAYS_AUTHENTICATE).
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from pkcs11 import Attribute, Mechanism, ObjectClass, Session

from birthmark import errors
from birthmark.adapters import tokenkeys
from birthmark.adapters.ecpoint import PublicPart
from birthmark.adapters.softsecrets import recipient_key
from birthmark.adapters.tokenattributes import attributes_of, transport_public
from birthmark.adapters.tokenkeyring import TokenKeyring
from birthmark.adapters.tokenkeysets import KeySets
from birthmark.adapters.tokensession import TokenSession, require_text
from birthmark.adapters.tokensigning import (
    KEPT_CLASSES,
    custody_complaints,
    kept,
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
from birthmark.ports import Health
from birthmark.secret import SecretBytes

__all__ = ["PKCS11KeyStore", "custody_complaints"]


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
        self._token_label = token_label
        self._ring = TokenKeyring(token_label)
        self._session = TokenSession(
            worker,
            token_label,
            pin,
            timeout_seconds=timeout_seconds,
            first_wait_seconds=reopen_after_seconds,
            forget=self._ring.forget,
        )
        self._ask = self._session.ask
        self._key_sets = KeySets(
            self._ask, lambda session, label: self._ring.one(session, label, ObjectClass.SECRET_KEY)
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
        patient: bool = False,
    ) -> "PKCS11KeyStore":
        """Load the module, log in to the token with this CKA_LABEL, and return the store.

        Args:
            module_path: the PKCS#11 module, a shared library.
            token_label: label of the token, at most 32 octets in UTF-8.
            pin: PIN of the normal user, in UTF-8.
            timeout_seconds: how long a caller waits for the token before it is told that it hangs.
            reopen_after_seconds: how long a token that could not be reached is left alone, at first.
            patient: return the store also while the token cannot be reached; whatever it is asked says so.

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
        require_text(pin, token_label)
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
        except errors.Unavailable:
            if not patient:
                store.close()
                raise
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Log out and let go of the token; the store answers no more.  Closing twice does nothing."""
        self._session.close()

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
        self._ask(lambda session: self._ring.require_free(session, label))
        return self._ask(
            lambda session: self._ring.generate(session, label, algorithm, exportable=exportable),
            repeat=False,
        )

    def public_key(self, label: KeyLabel) -> bytes:
        """Return the SubjectPublicKeyInfo of a key (DER).

        Asks the token once for each key; what is known is answered while the token is down.
        """
        self._session.require_open()
        known = self._ring.known(label)
        if known is not None:
            return known.subject_public_key_info
        check_label(label)
        return self._ask(lambda session: self._ring.public_key(session, label))

    def sign(self, label: KeyLabel, message: bytes) -> bytes:
        """Sign as ``ports.KeyStore`` has it."""
        algorithm = self._public_part(label).algorithm
        # Here, not in the worker: a long CRL must not keep the token from the others.
        signed = to_be_signed(algorithm, message)
        return self._ask(lambda session: sign_with(self._ring.key(session, label), signed))

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
            return self._ask(lambda session: self._ring.generate_secret(session, label, kind), repeat=False)
        if officer is None:
            raise errors.PolicyRefused(
                "token-trust", "only the token's security officer makes a trusted KEK: its PIN is needed"
            )
        require_text(officer, self._token_label)
        for recipient in recipients:
            recipient_key(recipient)
        return self._ask(
            lambda session: self._ring.make_kek(self._session, session, label, recipients, officer),
            repeat=False,
        )

    def generate_transport(self, label: KeyLabel) -> bytes:
        """See ``ports.KeyStore``; never tried twice."""
        check_label(label)

        def generate(session: Session) -> bytes:
            self._ring.require_free(session, label)
            self._ring.require_offered(
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
            lambda session: self._ring.accept_secret(session, label, kind, share, transport), repeat=False
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
                self._ring.one(session, label, ObjectClass.PRIVATE_KEY),
                self._ring.one(session, kek, ObjectClass.SECRET_KEY),
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
            lambda session: self._ring.unwrap(
                session, label, algorithm, subject_public_key_info, wrapped, kek
            ),
            repeat=False,
        )

    def attributes(self, label: KeyLabel) -> KeyAttributes:
        """Ask the token; what is known by heart is not looked at."""
        check_label(label)
        return self._ask(
            lambda session: attributes_of(session, self._ring.one(session, label, *KEPT_CLASSES))
        )

    def inventory(self) -> tuple[KeyAttributes, ...]:
        """See ``ports.KeyStore``."""

        def read(session: Session) -> tuple[KeyAttributes, ...]:
            require_alive(session)
            found = [attributes_of(session, key) for key in kept(session)]
            return tuple(sorted(found, key=lambda key: (key.label, key.key_class, key.fingerprint)))

        return self._ask(read)

    # --- health

    def health(self) -> Health:
        """See ``ports.KeyStore``."""
        return self._session.health()

    def examine(self) -> None:
        """See ``Patient``: every key that was used is looked for by its label, and signs again."""

        def look(session: Session) -> None:
            self._ring.examine(session)
            self._key_sets.examine(session)

        self._session.examine(look)

    def stuck_seconds(self) -> float:
        """See ``Patient``."""
        return self._session.stuck_seconds()

    # --- in the caller's thread

    def _public_part(self, label: KeyLabel) -> PublicPart:
        self._session.require_open()
        known = self._ring.known(label)
        if known is not None:
            return known
        check_label(label)
        return self._ask(lambda session: self._ring.key(session, label).public)
