"""A line whose devices have TPMs: real ones (swtpm), as their makers deliver them.

Every TPM of the tests has a maker of its own; the line's profile says which of them are accepted.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark import errors
from birthmark.edge.station import Answered, Asked, DeviceSlot, Endorsed
from birthmark.edge.station.elements.tpm import IAK, IAK_CERTIFICATE, IDEVID, IDEVID_CERTIFICATE, TPMElement
from birthmark.edge.station.elements.tpm import element as open_element
from birthmark.element.catalogue import ElementCatalogue
from birthmark.element.profiles import TPMProfile
from birthmark.pki.certificates import fingerprint
from birthmark.pki.possession import proof_message
from birthmark.secret import SecretBytes
from birthmark.services.attest import Attesting, AttestRequest
from birthmark.services.attestations import Attested
from birthmark.services.issue import Issued, IssueRequest
from birthmark.services.prove import ProveRequest
from tests.support.programs import need_extra
from tests.support.realm import START, Line, Service, open_service
from tests.support.swtpm import SoftwareTPM

__all__ = [
    "PROFILES",
    "TPMLine",
    "authority_of",
    "device_of",
    "make_tpm_line",
    "profile_text",
    "tpm_profile",
    "wipe",
]

PROFILES = ("tpm-idevid", "tpm-iak")
NAME = "tpms"
_numbers = itertools.count(1)


def authority_of(tpm: SoftwareTPM) -> bytes:
    """Return the certificate (DER) of who certified a TPM's endorsement keys."""
    return x509.load_pem_x509_certificate(tpm.authority.read_bytes()).public_bytes(Encoding.DER)


def tpm_profile(*tpms: SoftwareTPM) -> TPMProfile:
    """Return a profile that accepts these TPMs' makers."""
    anchors = tuple(map(authority_of, tpms))
    return TPMProfile(name=NAME, sha256=sha256(b"".join(anchors)).hexdigest(), anchors=anchors)


def profile_text(*tpms: SoftwareTPM) -> str:
    """Return the same as the file of an installation."""
    anchors = "".join(tpm.authority.read_text(encoding="ascii") for tpm in tpms)
    return f'name = "{NAME}"\nkind = "tpm"\nanchors = """\n{anchors}"""\n'


def wipe(tpm: SoftwareTPM) -> None:
    """Take the identity out of a TPM, as its owner can."""
    need_extra("tpm2_pytss", "tpm")
    from tpm2_pytss.constants import ESYS_TR  # noqa: PLC0415  # an extra
    from tpm2_pytss.ESAPI import ESAPI  # noqa: PLC0415  # an extra
    from tpm2_pytss.TSS2_Exception import TSS2_Exception  # noqa: PLC0415  # an extra

    with ESAPI(tpm.tcti) as esys:
        for handle in (IDEVID, IAK):
            with suppress(TSS2_Exception):  # it is not there
                esys.evict_control(ESYS_TR.OWNER, esys.tr_from_tpmpublic(handle), handle)
        for index in (IDEVID_CERTIFICATE, IAK_CERTIFICATE):
            with suppress(TSS2_Exception):
                esys.nv_undefine_space(esys.tr_from_tpmpublic(index), ESYS_TR.OWNER)


@contextmanager
def device_of(tpm: SoftwareTPM, folder: Path, **options: str) -> Iterator[TPMElement]:
    """Open a device with this TPM, its directory in a folder of the test."""
    need_extra("tpm2_pytss", "tpm")
    element = open_element(tpm.tcti, {"beside": str(folder / "beside"), **options})
    try:
        yield element
    finally:
        element.close()


@dataclass(slots=True, kw_only=True)
class TPMLine:
    """A line with run R2, each of whose devices has a TPM."""

    line: Line
    service: Service

    def attest(self, hardware_id: str, endorsed: Endorsed, run: str = "R2", **changes: Any) -> Attesting:
        """Begin an attestation, or raise the refusal."""
        request = AttestRequest(
            hardware_id=hardware_id,
            ek_certificate=endorsed.ek_certificate,
            ek_chain=endorsed.ek_chain,
            iak=endorsed.iak,
            idevid=endorsed.idevid,
        )
        (result,) = self.service.carry(
            self.service.attest(self.line.station.caller, run, [replace(request, **changes)])
        )
        if isinstance(result, errors.Refusal):
            raise result
        return result

    def answer(self, element: TPMElement, asking: Attesting) -> Attested:
        """Have a TPM answer."""
        return attested(asking, element.attested(asked(asking)))

    def issue(
        self, hardware_id: str, csrs: Sequence[bytes], answer: Attested | None, run: str = "R2", key: str = ""
    ) -> Issued:
        """Issue to one device, or raise the refusal."""
        request = IssueRequest(
            hardware_id=hardware_id,
            csr=csrs[0],
            further_csrs=tuple(csrs[1:]),
            attested=answer,
            key=key or f"tpm-{next(_numbers)}",
        )
        (result,) = self.service.carry(self.service.issue(self.line.station.caller, run, [request]))
        if isinstance(result, errors.Refusal):
            raise result
        return result

    def issued(self, hardware_id: str, element: TPMElement) -> Issued:
        """Take a device to its certificates, as an honest station does."""
        csrs = csrs_of(element, hardware_id)
        asking = self.attest(hardware_id, element.endorsed())
        return self.issue(hardware_id, csrs, self.answer(element, asking))

    def proof(self, element: TPMElement, issued: Issued) -> ProveRequest:
        """Install the certificates and prove them, as an honest station does."""
        shown = []
        slots: tuple[DeviceSlot, ...] = (element, element.slot(PROFILES[1]))
        for slot, der in zip(slots, issued.certificates, strict=True):
            slot.install(certificate=der, chain=issued.chain, private_key=None)
            read_back = fingerprint(slot.read_back())
            message = proof_message(
                attempt=issued.attempt, certificate_sha256=read_back, challenge=issued.challenge
            )
            shown.append((read_back, slot.sign(message)))
        return ProveRequest(
            attempt=issued.attempt,
            certificate_sha256=shown[0][0],
            signature=shown[0][1],
            key=f"tpm-{next(_numbers)}",
            further=tuple(shown[1:]),
        )


def asked(asking: Attesting) -> Asked:
    """Return what a station makes of an attestation."""
    return Asked(
        attestation=asking.attestation,
        id_object=asking.credential.id_object,
        encrypted_secret=asking.credential.encrypted_secret,
        nonce=asking.nonce,
    )


def attested(asking: Attesting, answered: Answered) -> Attested:
    """Return what a station sends."""
    return Attested(
        attestation=asking.attestation,
        secret=SecretBytes(answered.secret),
        certify_info=answered.certify_info,
        certify_signature=answered.certify_signature,
    )


def csrs_of(element: TPMElement, hardware_id: str) -> list[bytes]:
    """Have a TPM make its keys and ask for their certificates."""
    return [slot.certification_request(hardware_id) for slot in (element, element.slot(PROFILES[1]))]


def make_tpm_line(line: Line, *tpms: SoftwareTPM, **fields: Any) -> TPMLine:
    """Open run R2 of devices with these makers' TPMs.

    The TPMs are as old as the test; the line's clock goes on until they are.
    """
    made = (x509.load_der_x509_certificate(authority_of(tpm)).not_valid_before_utc for tpm in tpms)
    line.clock.at = max(START, *made)
    line.clock.turn(minutes=5)
    profile = tpm_profile(*tpms)
    elements = ElementCatalogue(profiles={NAME: profile})
    service = open_service(line.url, line.keys, line.clock, elements=elements)
    line.services.append(service)
    tpm_line = TPMLine(line=line, service=service)
    open_tpm_run(tpm_line, "R2", **fields)
    return tpm_line


def open_tpm_run(tpm_line: TPMLine, run: str, **fields: Any) -> None:
    """Open a run of devices with a TPM."""
    line, service = tpm_line.line, tpm_line.service
    catalogue = service.runs.catalogue
    licence = line.licence(
        run,
        **{
            "profile": PROFILES[0],
            "further_profiles": PROFILES[1:],
            "further_sha256": (catalogue.load(PROFILES[1]).sha256,),
            "element": NAME,
            "element_sha256": service.runs.elements.load(NAME).sha256,
            "not_before": line.clock.at,
            "not_after": line.clock.at.replace(year=line.clock.at.year + 1),
            **fields,
        },
    )
    service.carry(service.opening.open(line.operator.caller, licence, line.sign(licence)))
