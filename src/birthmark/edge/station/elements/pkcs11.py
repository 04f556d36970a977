"""``pkcs11:/usr/lib/softhsm/libsofthsm2.so?token=LABEL&pin=FILE``: a PKCS#11 token as device element.

The key pair is generated on the token: private, sensitive, not extractable, never anything else, and only for
signing (P-256 or P-384).  The certificate, the authorities above it and the release token are objects on it,
too, so nothing is kept beside it.  What is on the token is found by its label, every time.

A new certificate is created before the old one is destroyed; with both on it after a power cut, the token is
refused until ``install`` has come again.  The token itself forbids nobody who knows its PIN to destroy an
object; that a released device keeps its identity is this element's doing, by the release token it finds.

One token is one device.  A PKCS#11 library is not to be called by two threads at once (python-pkcs11 asks it
for no locking), so every call here is made under one lock.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pkcs11
from cryptography import x509
from pkcs11 import Attribute, CertificateType, KeyType, Mechanism, MechanismFlag, ObjectClass, TokenFlag
from pkcs11 import exceptions as token_errors
from pkcs11.util.ec import encode_named_curve_parameters

from birthmark.edge.station.elements import algorithm_of, allow
from birthmark.edge.station.elements.beside import refuse_delivered, refuse_released
from birthmark.edge.station.elements.pins import read_pin
from birthmark.edge.station.elements.requests import (
    certification_request,
    common_name,
    digest,
    ecdsa_sig_value,
    public_key_info,
)
from birthmark.errors import (
    IllegalTransition,
    IntegrityFailure,
    MalformedRequest,
    NotFound,
    NotPermitted,
    PolicyRefused,
    Unavailable,
)
from birthmark.pki import der
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes

__all__ = ["PKCS11Element", "element"]

_KEY, _CERTIFICATE, _AUTHORITY = "birthmark device key", "birthmark device", "birthmark authority"
_TOKEN = "birthmark release token"  # noqa: S105 -- an object's label
_APPLICATION = "birthmark"
_ID = b"birthmark"
"""CKA_ID of key and certificate: those who look for pairs find one."""
_CURVES = {KeyAlgorithm.EC_P256: "secp256r1", KeyAlgorithm.EC_P384: "secp384r1"}
_PRIVATE_KEY: Mapping[Attribute, Any] = {
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.SIGN: True,
    Attribute.DECRYPT: False,
    Attribute.UNWRAP: False,
    Attribute.DERIVE: False,
}
_BORN_HERE = {
    Attribute.SENSITIVE: True,
    Attribute.ALWAYS_SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.NEVER_EXTRACTABLE: True,
    Attribute.LOCAL: True,
}
"""What a token says of a key that was made on it and can never have left it."""

_PIN_REFUSED = (
    token_errors.PinExpired,
    token_errors.PinIncorrect,
    token_errors.PinInvalid,
    token_errors.PinLenRange,
    token_errors.PinLocked,
    token_errors.UserPinNotInitialized,
)

_lock = threading.RLock()
_open_tokens: set[tuple[str, bytes]] = set()


class PKCS11Element:
    """A ``DeviceElement`` in a PKCS#11 token."""

    def __init__(
        self, module: str, label: str, pin: SecretBytes, algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256
    ) -> None:
        """Find the token and log in as its user.

        Args:
            module: path of the PKCS#11 library.
            label: of the token.
            pin: of its user; given once, and not at all if a wrong one was given before.
            algorithm: of the key, one of P-256 and P-384.

        Raises:
            NotFound: there is no such library or token.
            NotPermitted: the PIN is refused, or a try of it is gone already.
            MalformedRequest: the PIN is no text, or the algorithm is none of these.
            Unavailable: this process has the token open.
        """
        if algorithm not in _CURVES:
            raise MalformedRequest(f"algorithm is one of {', '.join(_CURVES)}")
        self._algorithm = algorithm
        self._label = label
        user_pin = _text(pin, label)
        with _calls(label):
            token = _find(module, label)
            self._taken = (str(Path(module).resolve()), bytes(token.serial))
            if self._taken in _open_tokens:
                raise Unavailable(f"the token {label!r} is open in this process already")
            if token.flags & (TokenFlag.USER_PIN_COUNT_LOW | TokenFlag.USER_PIN_FINAL_TRY):
                raise NotPermitted(
                    f"a wrong PIN was given to the token {label!r}: enter the right one by hand"
                )
            self._session: Any = token.open(rw=True, user_pin=user_pin)
            _open_tokens.add(self._taken)
        self.serial_number = self._taken[1].hex()

    def __repr__(self) -> str:
        return f"PKCS11Element({self._label!r})"

    def close(self) -> None:
        """Log out."""
        with suppress(Unavailable), _calls(self._label):
            _open_tokens.discard(self._taken)
            self._session.close()

    def certification_request(self, hardware_id: str) -> bytes:
        """Generate a key pair on the token and return a request (PKCS#10, DER).

        Raises:
            IllegalTransition: the device is released.
            MalformedRequest: the hardware id cannot be a common name.
            PolicyRefused: the token cannot generate such keys (rule ``element``).
            IntegrityFailure: the key could leave the token, or does not verify.
        """
        subject = common_name(hardware_id)
        with _calls(self._label):
            self._refuse_released()
            self._destroy(_CERTIFICATE, _AUTHORITY, _KEY)
            spki = self._generate()
        return certification_request(subject, spki, self.sign)

    def install(self, *, certificate: bytes, chain: Sequence[bytes], private_key: SecretBytes | None) -> None:
        """Store the chain, then the certificate.

        Raises:
            IllegalTransition: the device is released.
            PolicyRefused: the key is a delivered one (rule ``key-origin``).
            MalformedRequest: it is no certificate.
        """
        refuse_delivered(private_key)
        _subject(certificate)  # refuses what is none before anything changes
        with _calls(self._label):
            self._refuse_released()
            self._destroy(_AUTHORITY)
            for one in chain:
                self._store_certificate(one, _AUTHORITY, b"")
            before = self._objects(_CERTIFICATE)
            self._store_certificate(certificate, _CERTIFICATE, _ID)
            for old in before:
                old.destroy()

    def read_back(self) -> bytes:
        """Return the certificate (DER) as it is on the token.

        Raises:
            NotFound: there is none.
            IntegrityFailure: there are two, or it is something else.
        """
        with _calls(self._label):
            found = self._objects(_CERTIFICATE)
            octets = [bytes(one[Attribute.VALUE]) for one in found]
        if not octets:
            raise NotFound(f"there is no certificate on the token {self._label!r}")
        if len(octets) > 1:
            raise IntegrityFailure(
                f"the token {self._label!r} holds {len(octets)} certificates of the device"
            )
        try:
            der.only(octets[0], der.SEQUENCE)
        except MalformedRequest as wrong:
            raise IntegrityFailure(f"the token {self._label!r} holds no whole certificate") from wrong
        return octets[0]

    def sign(self, message: bytes) -> bytes:
        """Sign with the key on the token (CKM_ECDSA over the digest): DER Ecdsa-Sig-Value.

        Raises:
            NotFound: there is no key.
        """
        octets = digest(self._algorithm, message)
        with _calls(self._label):
            keys = self._objects(_KEY, ObjectClass.PRIVATE_KEY)
            if len(keys) != 1:
                raise NotFound(f"the token {self._label!r} holds {len(keys)} device keys")
            signature = bytes(keys[0].sign(octets, mechanism=Mechanism.ECDSA))
        return ecdsa_sig_value(self._algorithm, signature)

    def released(self, token: str) -> None:
        """Store the release token.

        Raises:
            IllegalTransition: the device was released with another token.
        """
        with _calls(self._label):
            known = self._token()
            if known not in (None, token):
                raise IllegalTransition(f"the token {self._label!r} was released with another token")
            if known is None:
                self._session.create_object(
                    {
                        Attribute.CLASS: ObjectClass.DATA,
                        Attribute.TOKEN: True,
                        Attribute.PRIVATE: False,
                        Attribute.MODIFIABLE: False,
                        Attribute.LABEL: _TOKEN,
                        Attribute.APPLICATION: _APPLICATION,
                        Attribute.VALUE: token.encode(),
                    }
                )

    def token(self) -> str | None:
        """Return the release token, or None as long as the device is not released."""
        with _calls(self._label):
            return self._token()

    # --- the token: only below ``_calls`` ----------------------------------------------------------------

    def _token(self) -> str | None:
        found = self._objects(_TOKEN, ObjectClass.DATA)
        return bytes(found[0][Attribute.VALUE]).decode() if found else None

    def _refuse_released(self) -> None:
        refuse_released(None if self._token() is None else b"", f"the token {self._label!r}")

    def _objects(self, label: str, kind: ObjectClass | None = None) -> list[Any]:
        wanted = {Attribute.LABEL: label}
        # The whole list: an unfinished search would go on when it is freed, outside of the lock.
        found = list(self._session.get_objects(wanted))
        return [one for one in found if kind is None or one[Attribute.CLASS] is kind]

    def _destroy(self, *labels: str) -> None:
        for label in labels:
            for one in self._objects(label):
                one.destroy()

    def _generate(self) -> bytes:
        """Generate the key pair and return its SubjectPublicKeyInfo (DER)."""
        curve = encode_named_curve_parameters(_CURVES[self._algorithm])
        parameters = self._session.create_domain_parameters(
            KeyType.EC, {Attribute.EC_PARAMS: curve}, local=True
        )
        try:
            public, private = parameters.generate_keypair(
                store=True,
                label=_KEY,
                id=_ID,
                capabilities=MechanismFlag.SIGN | MechanismFlag.VERIFY,
                private_template=dict(_PRIVATE_KEY),
            )
        except (token_errors.MechanismInvalid, token_errors.AttributeValueInvalid) as wrong:
            raise PolicyRefused("element", f"the token makes no {self._algorithm} keys") from wrong
        strange = [name.name for name, value in _BORN_HERE.items() if private[name] is not value]
        if strange:
            self._destroy(_KEY)
            raise IntegrityFailure(f"the token's new key could leave it: {', '.join(strange)} is wrong")
        point = bytes(public[Attribute.EC_POINT])
        if len(point) != ALGORITHMS[self._algorithm].key_size:
            # The DER of an OCTET STRING, as it should be (PKCS#11 v2.40 mechanisms, section 2.3.3).
            try:
                _, _, begin, end = der.only(point, der.OCTET_STRING)
            except MalformedRequest as wrong:
                raise IntegrityFailure(f"the token tells no public point: {point.hex()}") from wrong
            point = point[begin:end]
        return public_key_info(self._algorithm, point)

    def _store_certificate(self, certificate: bytes, label: str, identifier: bytes) -> None:
        # No CKA_CERTIFICATE_CATEGORY: python-pkcs11 0.10 cannot write it, and corrupts memory when asked to.
        self._session.create_object(
            {
                Attribute.CLASS: ObjectClass.CERTIFICATE,
                Attribute.CERTIFICATE_TYPE: CertificateType.X_509,
                Attribute.TOKEN: True,
                Attribute.PRIVATE: False,
                Attribute.LABEL: label,
                Attribute.ID: identifier,
                Attribute.SUBJECT: _subject(certificate),
                Attribute.VALUE: certificate,
            }
        )


def element(place: str, options: Mapping[str, str]) -> PKCS11Element:
    """Open the token ``token`` of the library ``place``; further options are ``pin`` (a file), ``algorithm``.

    Raises:
        Refusal: whatever library and token have against it.
    """
    allow(options, "token", "pin", "algorithm")
    label = options.get("token")
    if not place or not label:
        raise MalformedRequest("write pkcs11:/path/of/library.so?token=LABEL&pin=FILE")
    algorithm = algorithm_of(options, _CURVES)
    return PKCS11Element(place, label, read_pin(options.get("pin"), "pin"), algorithm)


def _text(pin: SecretBytes, label: str) -> str:
    try:
        return pin.reveal().decode()
    except UnicodeDecodeError:
        # Without its cause, which carries the PIN.
        raise MalformedRequest(f"the PIN for the token {label!r} is not UTF-8") from None


def _subject(certificate: bytes) -> bytes:
    try:
        return x509.load_der_x509_certificate(certificate).subject.public_bytes()
    except ValueError as wrong:
        raise MalformedRequest("what is to be installed is no certificate") from wrong


def _find(module: str, label: str) -> Any:
    """Return the token of this label."""
    if not Path(module).exists():
        raise NotFound(f"there is no pkcs#11 library {module}")
    try:
        library = pkcs11.lib(str(Path(module).resolve()))
    except (RuntimeError, OSError) as wrong:
        raise NotFound(f"{module} is no pkcs#11 library") from wrong
    found = [slot.get_token() for slot in library.get_slots(token_present=True)]
    tokens = [token for token in found if token.label == label]
    if len(tokens) != 1:
        raise NotFound(f"{module} has {len(tokens)} tokens labelled {label!r}")
    return tokens[0]


@contextmanager
def _calls(label: str) -> Iterator[None]:
    """Call the library, alone, and translate what it complains of."""
    with _lock:
        try:
            yield
        except _PIN_REFUSED as wrong:
            raise NotPermitted(f"the token {label!r} refuses the PIN; it is not given again") from wrong
        except token_errors.UserAlreadyLoggedIn as wrong:
            raise Unavailable(f"the token {label!r} is open in this process already") from wrong
        except token_errors.PKCS11Error as wrong:
            raise Unavailable(f"the token {label!r} fails: {type(wrong).__name__}") from wrong
