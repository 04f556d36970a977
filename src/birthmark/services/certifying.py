"""Make a device's certificate from a template, and keep it: what the line and enrolment share (SPEC C5, C8).

The names in a certification request decide nothing; they are compared with the device it is for.  What is
made here is signed, and nobody has seen it: it leaves the process only once ``keep`` is committed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256

from birthmark import errors
from birthmark.floor.authorities import count_issuance
from birthmark.floor.devices import DeviceCertificate, KeyUse
from birthmark.floor.hardware_ids import HardwareId
from birthmark.pki import crmf as crmf_requests
from birthmark.pki.certificates import fingerprint, serial_hex
from birthmark.pki.csr import VettedRequest, vet
from birthmark.pki.envelope import Recipient, Sealer
from birthmark.pki.issuance import Template, serial_number, sign_certificate
from birthmark.pki.keys import KeyLabel
from birthmark.pki.lint import permit
from birthmark.ports import Clock, Entropy, Facts, KeyStore
from birthmark.secret import SecretBytes
from birthmark.services import attestations
from birthmark.services.delivered import Delivered, deliver
from birthmark.services.runs import RunContext

__all__ = ["Certified", "Certifier", "keep", "vet_request"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """A signed certificate that nobody has seen yet."""

    profile: str
    certificate: bytes = field(repr=False)
    serial: str
    sha256: str
    spki: bytes = field(repr=False)
    spki_sha256: str
    private_key: SecretBytes | None
    envelope: bytes | None = field(repr=False)

    def said(self) -> dict[str, str]:
        """Return what the log says of it."""
        return {
            "profile": self.profile,
            "certificate": self.serial,
            "certificate_sha256": self.sha256,
            "spki_sha256": self.spki_sha256,
        }


class Certifier:
    """Builds, lints and signs."""

    def __init__(self, keys: KeyStore, clock: Clock, entropy: Entropy) -> None:
        """Sign with the authorities' keys in ``keys``."""
        self._keys = keys
        self._clock = clock
        self._entropy = entropy

    @property
    def key_store(self) -> str:
        """What the log says of where the authorities' keys are."""
        return "development" if self._keys.development else "token"

    def certify(
        self,
        template: Template,
        csr: bytes | None,
        hardware_id: HardwareId,
        *,
        wanted: bytes | None = None,
        recipient: Recipient | None = None,
        sealer: Sealer | None = None,
        crmf: bool = False,
    ) -> Certified:
        """Certify a key for a device: that of a request, or one that is made now.

        Args:
            template: compiled from authority, profile and run.
            csr: PKCS #10 (DER or PEM), or CertReqMessages (RFC 4211, DER); None to have a key made.
            hardware_id: of the device.
            wanted: the only key (SubjectPublicKeyInfo, DER) it may be; None for any.
            recipient: to whom a key that is made is enveloped; None to have it in the clear.
            sealer: makes the envelope; None for ``pki.envelope.seal``.
            crmf: the request is CertReqMessages.

        Raises:
            errors.MalformedRequest: the request is none.
            errors.PolicyRefused: its key is none the profile allows, or it names another device (rule
                ``csr-names-the-device``), or the certificate would break its profile.
            errors.Unavailable: the authority's key cannot sign now.
        """
        delivered: Delivered | None = None
        # First: OpenSSL draws from the same source, and while that fails its tests no key is made.
        serial = serial_number(self._entropy.token(20))
        if csr is None:
            algorithm = template.profile.subject_key_algorithms[0]
            delivered = deliver(algorithm, recipient, self._entropy, sealer)
            spki = delivered.spki
        else:
            spki = _vetted(template, csr, hardware_id, crmf=crmf)
        attestations.require_key(wanted, spki)
        tbs = template.fill(
            serial_number=serial,
            subject_public_key_info=spki,
            not_before=self._clock.now(),
            variables={"hardware_id": hardware_id.text},
        )
        certificate = sign_certificate(permit(tbs), self._sign)
        return Certified(
            profile=template.profile.name,
            certificate=certificate,
            serial=serial_hex(tbs.serial_number),
            sha256=fingerprint(certificate),
            spki=spki,
            spki_sha256=sha256(spki).hexdigest(),
            private_key=None if delivered is None else delivered.private_key,
            envelope=None if delivered is None else delivered.envelope,
        )

    def _sign(self, label: KeyLabel, message: bytes) -> bytes:
        try:
            return self._keys.sign(label, message)
        except errors.Refusal as cause:
            # Whatever is wrong with the authority's key, the device is not to blame, and may be sent again.
            raise errors.Unavailable(f"the key {label} cannot sign: {cause}") from cause


def vet_request(template: Template, csr: bytes, *, crmf: bool) -> VettedRequest:
    """Return the key and the names of a request in either form; see ``csr.vet`` and ``crmf.vet``."""
    allowed = template.profile.subject_key_algorithms
    if crmf:
        return crmf_requests.vet(crmf_requests.decode(csr), allowed=allowed)
    return vet(csr, allowed=allowed)


def _vetted(template: Template, csr: bytes, hardware_id: HardwareId, *, crmf: bool) -> bytes:
    vetted = vet_request(template, csr, crmf=crmf)
    for name in (vetted.subject_common_name, vetted.subject_serial_number):
        if name is not None and name.upper() != hardware_id.text.upper():
            raise errors.PolicyRefused(
                "csr-names-the-device",
                f"the certification request names {name}, not {hardware_id.text}",
            )
    return vetted.subject_public_key_info


def keep(
    facts: Facts,
    context: RunContext,
    client: str,
    device: str,
    attempt: str,
    made: Sequence[Certified],
    at: datetime,
) -> None:
    """Count and keep a device's certificates, and take their keys for the device.

    Raises:
        errors.IllegalTransition: the authority, or one above it, does not issue.
        errors.QuotaExhausted: the authority has issued all it may.
        errors.PolicyRefused: a key is another device's (rule ``key-is-unique``).
    """
    authority = context.issuing(facts)
    for one in made:
        authority = count_issuance(authority, at)
        used = facts.get(KeyUse, one.spki_sha256)
        if used is None:
            facts.put(KeyUse(spki_sha256=one.spki_sha256, device=device))
        elif used.device != device:
            raise errors.PolicyRefused("key-is-unique", f"this public key already belongs to {used.device}")
        facts.put(
            DeviceCertificate(
                serial=one.serial,
                authority=authority.id,
                device=device,
                attempt=attempt,
                der=one.certificate,
                sha256=one.sha256,
                run=context.licence.id,
                partition=context.licence.partition,
                client=client,
                issued_at=at,
            )
        )
    facts.put(authority)
