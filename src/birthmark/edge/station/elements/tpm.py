"""``tpm:TCTI?beside=DIR``: a TPM 2.0 as device element, e.g. ``tpm:device:/dev/tpmrm0?beside=/mnt/identity``.

Where everything is (handles as TCG's registry of reserved handles has them, the second of each pair ours):

    81020000, 81020001      identity key and attestation key, primary keys of the endorsement hierarchy
    01C90000, 01C90001      their certificates (DER)
    beside the TPM          the chain and the token (``beside``)

Primary keys follow from the TPM's seed and their template: made again they are the same, and clearing the TPM
does not change them.  The attestation key is restricted: it signs what the TPM says of itself, and of what
comes from outside only what the TPM has hashed.  Both are used without a password, by whoever can reach the
TPM: what is guarded is that they do not leave it.

``released`` locks the certificates against writing, for good.  Whoever has the owner's authorisation can
still remove them, and the keys: a TPM has no way to keep something from its owner.

Wants ``tpm2-pytss`` (the extra ``tpm``).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from birthmark.edge.station.attesting import Answered, Asked, Endorsed
from birthmark.edge.station.elements import allow
from birthmark.edge.station.elements.beside import Beside, refuse_delivered
from birthmark.edge.station.elements.requests import certification_request, common_name
from birthmark.element.tpm import Algorithm, Attributes, Curve, Public, Signature
from birthmark.errors import IllegalTransition, IntegrityFailure, MalformedRequest, NotFound
from birthmark.pki import der
from birthmark.pki.certificates import fingerprint
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes

if TYPE_CHECKING:
    from birthmark.edge.station.elements.tpm_commands import Chip

__all__ = ["TPMElement", "TPMSlot", "element", "template"]

IDEVID, IAK = 0x81020000, 0x81020001
IDEVID_CERTIFICATE, IAK_CERTIFICATE = 0x01C90000, 0x01C90001
IAK_PROFILE = "tpm-iak"

_USER_WITH_AUTH = 1 << 6
_OURS = (
    Attributes.FIXED_TPM | Attributes.FIXED_PARENT | Attributes.SENSITIVE_DATA_ORIGIN | Attributes.SIGN
) | _USER_WITH_AUTH
_PARAMETERS: Mapping[KeyAlgorithm, tuple[Algorithm, Algorithm, bytes]] = {
    KeyAlgorithm.EC_P256: (Algorithm.ECC, Algorithm.SHA256, Curve.NIST_P256.to_bytes(2, "big")),
    KeyAlgorithm.EC_P384: (Algorithm.ECC, Algorithm.SHA384, Curve.NIST_P384.to_bytes(2, "big")),
    KeyAlgorithm.RSA_2048: (Algorithm.RSA, Algorithm.SHA256, (2048).to_bytes(2, "big")),
}
"""Type, hash, and curve or bits by algorithm."""


def template(algorithm: KeyAlgorithm, *, restricted: bool) -> bytes:
    """Return the template (TPMT_PUBLIC) of a signing key that stays in its TPM.

    Raises:
        MalformedRequest: TPMs have no such keys.
    """
    if algorithm not in _PARAMETERS:
        raise MalformedRequest(f"a tpm's keys are {', '.join(_PARAMETERS)}, not {algorithm}")
    kind, digest, size = _PARAMETERS[algorithm]
    attributes = _OURS | Attributes.RESTRICTED if restricted else _OURS
    rsa = kind is Algorithm.RSA
    scheme = Algorithm.RSASSA if rsa else Algorithm.ECDSA
    null = Algorithm.NULL.to_bytes(2, "big")
    return b"".join(
        (
            kind.to_bytes(2, "big"),
            digest.to_bytes(2, "big"),  # nameAlg
            attributes.to_bytes(4, "big"),
            bytes(2),  # authPolicy
            null,  # symmetric
            scheme.to_bytes(2, "big") + digest.to_bytes(2, "big"),
            size,
            bytes(4) if rsa else null,  # exponent (the default one), or kdf
            bytes(2) if rsa else bytes(4),  # unique
        )
    )


class _Device(Protocol):
    """What a slot asks of its device."""

    @property
    def chip(self) -> "Chip": ...

    @property
    def beside(self) -> Beside: ...

    def refuse_released(self) -> None: ...


class TPMSlot:
    """A ``DeviceSlot`` in a TPM: a persistent key, and an NV index for its certificate."""

    def __init__(
        self, device: _Device, algorithm: KeyAlgorithm, *, handle: int, index: int, restricted: bool
    ) -> None:
        """Keep a key of this algorithm under ``handle``, and its certificate in ``index``."""
        self._device = device
        self._template = template(algorithm, restricted=restricted)
        self.handle = handle
        self.index = index

    def public(self) -> Public:
        """Return the key's public area; the key is made if it is not there, or another.

        Raises:
            IllegalTransition: it would have to be made, and the device is released.
        """
        found = self._device.chip.public(self.handle)
        if found is not None and self._is_ours(public := Public.decode(found)):
            return public
        self._device.refuse_released()
        return Public.decode(self._device.chip.make(self.handle, self._template))

    def _is_ours(self, public: Public) -> bool:
        """Return whether a key was made from our template, which ends where the key itself begins."""
        size = 2 if int.from_bytes(self._template[:2], "big") == Algorithm.RSA else 4
        return public.octets.startswith(self._template[:-size])

    def certification_request(self, hardware_id: str) -> bytes:
        """Make the key and return a request (PKCS#10, DER) for CN=hardware_id, signed in the TPM.

        Raises:
            IllegalTransition: the device is released.
            MalformedRequest: the hardware id cannot be a common name.
        """
        subject = common_name(hardware_id)
        self._device.refuse_released()
        return certification_request(subject, self.public().subject_public_key_info, self.sign)

    def install(self, *, certificate: bytes, chain: Sequence[bytes], private_key: SecretBytes | None) -> None:
        """Store the chain beside the TPM and the certificate in it.

        Raises:
            IllegalTransition: the device is released.
            PolicyRefused: the key is a delivered one (rule ``key-origin``).
            TooLarge: the TPM has no room for the certificate.
        """
        refuse_delivered(private_key)
        self._device.refuse_released()
        self._device.beside.keep_chain(chain)
        self._device.chip.write(self.index, certificate)

    def read_back(self) -> bytes:
        """Return the certificate (DER) as the TPM has it.

        Raises:
            NotFound: there is none.
        """
        found = self._device.chip.read(self.index)
        if found is None:
            raise NotFound(f"the tpm has no certificate in {self.index:08x}")
        return found

    def sign(self, message: bytes) -> bytes:
        """Sign with the key in the TPM: as ``pki.possession`` checks it.

        Raises:
            NotFound: there is no key.
        """
        algorithm = int.from_bytes(self._template[2:4], "big")
        return Signature.decode(self._device.chip.sign(self.handle, algorithm, message)).octets


class TPMElement:
    """A ``DeviceElement`` with ``SeveralSlots``, and ``Attestable``, in a TPM 2.0.

    Not for several threads at once.
    """

    def __init__(
        self,
        chip: "Chip",
        beside: str | None,
        *,
        algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256,
        iak_profile: str = IAK_PROFILE,
        endorsement: KeyAlgorithm | None = None,
    ) -> None:
        """Look at the TPM, and take the directory beside it.

        Args:
            chip: closed with the element.
            beside: directory of what the TPM has no room for.
            algorithm: of both keys.
            iak_profile: of the certificate for the attestation key.
            endorsement: algorithm of the endorsement key that counts, where the TPM has several; None for the
                strongest that is certified.

        Raises:
            NotFound: the TPM has no endorsement key's certificate.
            NotPermitted: the directory belongs to another TPM.
            Refusal: the TPM or the directory cannot be used.
        """
        self.chip = chip
        try:
            self._first = TPMSlot(self, algorithm, handle=IDEVID, index=IDEVID_CERTIFICATE, restricted=False)
            self._second = TPMSlot(self, algorithm, handle=IAK, index=IAK_CERTIFICATE, restricted=True)
            self._kind, filled = chip.endorsement_certificate(endorsement)
            self._certificate = _trimmed(filled)
            self.beside = Beside(beside, f"tpm {fingerprint(self._certificate)}")
        except BaseException:
            chip.close()
            raise
        self._iak_profile = iak_profile

    def __repr__(self) -> str:
        return f"TPMElement({self._kind!r})"

    def close(self) -> None:
        """Give TPM and directory back."""
        self.beside.close()
        self.chip.close()

    # --- the device ------------------------------------------------------------------------------------

    def certification_request(self, hardware_id: str) -> bytes:
        """Make the identity key and return a request for it; see ``TPMSlot``."""
        return self._first.certification_request(hardware_id)

    def install(self, *, certificate: bytes, chain: Sequence[bytes], private_key: SecretBytes | None) -> None:
        """Store the identity key's certificate; see ``TPMSlot``."""
        self._first.install(certificate=certificate, chain=chain, private_key=private_key)

    def read_back(self) -> bytes:
        """Return the identity key's certificate (DER) as the TPM has it; see ``TPMSlot``."""
        return self._first.read_back()

    def sign(self, message: bytes) -> bytes:
        """Sign with the identity key; see ``TPMSlot``."""
        return self._first.sign(message)

    def slot(self, profile: str) -> TPMSlot:
        """Return the place of the attestation key's certificate.

        Raises:
            MalformedRequest: the profile is not that of attestation keys.
        """
        if profile != self._iak_profile:
            raise MalformedRequest(
                f"this tpm has a place for a further certificate of profile {self._iak_profile}, none of"
                f" {profile[:64]!r}: say iak=PROFILE if that is for the attestation key"
            )
        return self._second

    def released(self, token: str) -> None:
        """Store the release token beside the TPM, and lock the certificates in it."""
        self.beside.keep_token(token)
        for slot in (self._second, self._first):  # the first one last: its lock is what says released
            self.chip.lock(slot.index)

    def refuse_released(self) -> None:
        """Refuse to change a released device.

        Raises:
            IllegalTransition: it is released.
        """
        if self.chip.locked(self._first.index):
            raise IllegalTransition("the device of this tpm is released: its identity stays")

    # --- what it is ------------------------------------------------------------------------------------

    def endorsed(self) -> Endorsed:
        """Return the endorsement key's certificate and the public areas of both keys."""
        return Endorsed(
            ek_certificate=self._certificate,
            iak=self._second.public().octets,
            idevid=self._first.public().octets,
        )

    def attested(self, asked: Asked) -> Answered:
        """Open the credential, and certify the identity key with the attestation key.

        Raises:
            ProofFailed: the credential is not for this TPM and its attestation key.
        """
        secret = self.chip.activate(self._kind, IAK, asked.id_object, asked.encrypted_secret)
        info, signature = self.chip.certify(IDEVID, IAK, asked.nonce)
        return Answered(secret=secret, certify_info=info, certify_signature=signature)


def _trimmed(filled: bytes) -> bytes:
    """Return a certificate without what fills the rest of its NV index.

    Raises:
        IntegrityFailure: there is none.
    """
    if len(filled) > 4 and filled[0] == der.SEQUENCE and filled[1] == 0x82:
        size = 4 + int.from_bytes(filled[2:4], "big")
        if size <= len(filled):
            return filled[:size]
    raise IntegrityFailure("what the tpm has as its endorsement key's certificate is none")


def _algorithm(name: str) -> KeyAlgorithm:
    if name not in list(_PARAMETERS):
        raise MalformedRequest(f"a tpm's keys are {', '.join(_PARAMETERS)}, not {name[:64]!r}")
    return KeyAlgorithm(name)


def element(place: str, options: Mapping[str, str]) -> TPMElement:
    """Open the TPM behind the TCTI ``place``.

    Options: ``beside``, a directory; ``algorithm`` of the keys, ``ec-p256``, ``ec-p384`` or ``rsa-2048``;
    ``iak``, the profile of the attestation key's certificate; ``ek``, the algorithm of the endorsement key
    that counts, where the TPM has several.

    Raises:
        MalformedRequest: no TCTI is named, or an option is none of ours.
        NotFound: tpm2-pytss is not installed.
        Refusal: whatever ``TPMElement`` has against it.
    """
    allow(options, "beside", "algorithm", "iak", "ek")
    if not place:
        raise MalformedRequest("tpm: names no tpm: write tpm:device:/dev/tpmrm0, or another tcti")
    algorithm = _algorithm(options.get("algorithm", KeyAlgorithm.EC_P256))
    endorsement = _algorithm(options["ek"]) if "ek" in options else None
    try:
        from birthmark.edge.station.elements.tpm_commands import Chip  # noqa: PLC0415  # an extra
    except ImportError as wrong:
        raise NotFound(
            f"a tpm is reached with tpm2-pytss, which is not installed (birthmark[tpm]): {wrong}"
        ) from wrong
    return TPMElement(
        Chip(place),
        options.get("beside"),
        algorithm=algorithm,
        iak_profile=options.get("iak", IAK_PROFILE),
        endorsement=endorsement,
    )
