"""The Matter SDK (connectedhomeip) as the one that admits a device to a home.

It runs the functions of the commissioner's attestation verifier that look at certificates (Matter core
specification section 6.2.3.1).  What needs the device at hand, such as its signature over the attestation
nonce, is not asked.
"""

from dataclasses import dataclass
from enum import IntEnum

from tests.support.checkers.running import ask_peer
from tests.support.checkers.values import Chain, Status, Verdict

__all__ = ["Kind", "Numbers", "chain_verdict", "format_verdict", "numbers_of"]


class Kind(IntEnum):
    """AttestationCertType of the SDK."""

    PAA = 0
    PAI = 1
    DAC = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Vendor and product id as the SDK reads them from a subject; None where it names none."""

    vendor: int | None
    product: int | None


def format_verdict(certificate: bytes, kind: Kind) -> Verdict:
    """Return what VerifyAttestationCertificateFormat says of a certificate (DER)."""
    answer = ask_peer("chip", {"function": "format", "certificates": [certificate.hex()], "type": int(kind)})
    return _verdict(answer["code"] == 0, f"error 0x{answer['code']:02x}")


def chain_verdict(chain: Chain) -> Verdict:
    """Return what ValidateCertificateChain says of a PAA, a PAI and a DAC.

    It takes the DAC's notBefore for the time.
    """
    (intermediate,) = chain.between
    certificates = [octets.hex() for octets in (chain.root, intermediate, chain.leaf)]
    answer = ask_peer("chip", {"function": "chain", "certificates": certificates})
    said = f"error 0x{answer['code']:02x}, result {answer['result']}"
    return _verdict(answer["code"] == 0 and answer["result"] == 0, said)


def numbers_of(certificate: bytes) -> Numbers:
    """Return the vendor and product id that ExtractVIDPIDFromX509Cert reads; the test fails if it refuses."""
    answer = ask_peer("chip", {"function": "numbers", "certificates": [certificate.hex()]})
    assert answer["code"] == 0, f"the SDK reads no ids: error 0x{answer['code']:02x}"
    return Numbers(vendor=answer["vendor"], product=answer["product"])


def _verdict(accepted: bool, said: str) -> Verdict:  # noqa: FBT001 - the answer, handed on
    return Verdict(status=Status.GOOD if accepted else Status.REFUSED, said=said)
