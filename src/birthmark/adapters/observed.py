"""A key store whose operations are timed, for those who watch the service; it does nothing else.

Observed is what the line waits for: signatures, and what is made with the keys of elements.  Ceremonies and
custody pass through unobserved.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from birthmark import errors
from birthmark.element.diversification import Derivation, KeyRole
from birthmark.element.keyset import KeyRoute, StaticKeys, WrappedKey
from birthmark.pki.attributes import KeyAttributes, SecretKind, SecretMade
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.ports import Health, KeyStore, Observer
from birthmark.secret import SecretBytes

__all__ = ["ObservedKeyStore"]

T = TypeVar("T")

_MISSING = (errors.Unavailable, errors.NotFound, errors.IntegrityFailure, errors.NotPermitted)
"""What the store says when it, or the key, is not there; every other refusal is an answer."""


def _timed(observer: Observer, operation: Callable[[], T]) -> T:
    begun, failed = time.perf_counter(), False
    try:
        with observer.span("token"):
            return operation()
    except _MISSING:
        failed = True
        raise
    finally:
        observer.key_used(time.perf_counter() - begun, failed=failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ObservedKeys:
    """A key set, timed; see ``element.keyset.StaticKeys``."""

    keys: StaticKeys
    observer: Observer

    @property
    def size(self) -> int:
        return self.keys.size

    @property
    def route(self) -> KeyRoute:
        return self.keys.route

    def cmac(self, requests: Sequence[tuple[KeyRole, bytes]]) -> list[bytes]:
        return _timed(self.observer, lambda: self.keys.cmac(requests))

    def wrap(self, keys: StaticKeys) -> tuple[WrappedKey, ...]:
        # A set takes in sets of its own store only, so it is shown the store's own.
        own = keys.keys if isinstance(keys, _ObservedKeys) else keys
        return _timed(self.observer, lambda: self.keys.wrap(own))

    def wrap_value(self, key: SecretBytes) -> WrappedKey:
        return _timed(self.observer, lambda: self.keys.wrap_value(key))


class ObservedKeyStore:
    """See ``ports.KeyStore``."""

    def __init__(self, keys: KeyStore, observer: Observer) -> None:
        """Tell the observer of this store's work."""
        self._keys = keys
        self._observer = observer

    @property
    def development(self) -> bool:
        """See ``KeyStore.development``."""
        return self._keys.development

    def health(self) -> Health:
        """See ``KeyStore.health``."""
        return self._keys.health()

    def sign(self, label: KeyLabel, message: bytes) -> bytes:
        """See ``KeyStore.sign``."""
        return _timed(self._observer, lambda: self._keys.sign(label, message))

    def derived_keys(self, master: KeyLabel, derivation: Derivation) -> StaticKeys:
        """See ``KeyStore.derived_keys``."""
        return _ObservedKeys(keys=self._keys.derived_keys(master, derivation), observer=self._observer)

    def fixed_keys(self, labels: tuple[KeyLabel, KeyLabel, KeyLabel]) -> StaticKeys:
        """See ``KeyStore.fixed_keys``."""
        return _ObservedKeys(keys=self._keys.fixed_keys(labels), observer=self._observer)

    # --- not observed

    def generate(self, label: KeyLabel, algorithm: KeyAlgorithm, *, exportable: bool = False) -> bytes:
        """See ``KeyStore.generate``."""
        return self._keys.generate(label, algorithm, exportable=exportable)

    def generate_secret(
        self,
        label: KeyLabel,
        kind: SecretKind,
        *,
        recipients: Sequence[bytes] = (),
        officer: SecretBytes | None = None,
    ) -> SecretMade:
        """See ``KeyStore.generate_secret``."""
        return self._keys.generate_secret(label, kind, recipients=recipients, officer=officer)

    def generate_transport(self, label: KeyLabel) -> bytes:
        """See ``KeyStore.generate_transport``."""
        return self._keys.generate_transport(label)

    def accept_secret(self, label: KeyLabel, kind: SecretKind, share: bytes, transport: KeyLabel) -> str:
        """See ``KeyStore.accept_secret``."""
        return self._keys.accept_secret(label, kind, share, transport)

    def wrap(self, label: KeyLabel, kek: KeyLabel) -> bytes:
        """See ``KeyStore.wrap``."""
        return self._keys.wrap(label, kek)

    def unwrap(self, label: KeyLabel, subject_public_key_info: bytes, wrapped: bytes, kek: KeyLabel) -> None:
        """See ``KeyStore.unwrap``."""
        self._keys.unwrap(label, subject_public_key_info, wrapped, kek)

    def attributes(self, label: KeyLabel) -> KeyAttributes:
        """See ``KeyStore.attributes``."""
        return self._keys.attributes(label)

    def inventory(self) -> tuple[KeyAttributes, ...]:
        """See ``KeyStore.inventory``."""
        return self._keys.inventory()

    def public_key(self, label: KeyLabel) -> bytes:
        """See ``KeyStore.public_key``."""
        return self._keys.public_key(label)

    def labels(self) -> tuple[KeyLabel, ...]:
        """See ``KeyStore.labels``."""
        return self._keys.labels()

    def close(self) -> None:
        """See ``KeyStore.close``."""
        self._keys.close()
