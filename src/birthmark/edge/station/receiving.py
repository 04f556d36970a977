"""What a service issued, judged before any of it is installed: it is what was asked for, and nothing else.

Every certificate is for its key and leads to our trust anchors, every key came the way it was asked for, and
no two certificates are for one key.  Installing it, and writing down that it was, is ``provisioning``'s.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from birthmark import errors
from birthmark.edge.station.answers import Issued, IssuedCertificate
from birthmark.edge.station.checks import spki_of_key, spki_of_request, verify_certificate
from birthmark.edge.station.pending import FurtherPending, Pending
from birthmark.pki.certificates import Certificate
from birthmark.secret import SecretBytes

__all__ = ["Received", "received"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """One certificate to be installed."""

    certificate: Certificate
    private_key: SecretBytes | None
    """PKCS#8; None for a key that was born in the device."""


def received(
    issued: Issued,
    asked: Pending,
    *,
    anchors: Sequence[bytes],
    open_envelope: Callable[[bytes], SecretBytes],
) -> list[Received]:
    """Return what was issued: the first certificate first, the others in the order of the run's profiles.

    Args:
        issued: the service's answer.
        asked: what was asked for.
        anchors: roots that certificates of devices may lead to (DER).
        open_envelope: opens an envelope with the key of our credential.

    Raises:
        errors.IntegrityFailure: it is not what was asked for.
    """
    wanted, sent = [one.profile for one in asked.further], [one.profile for one in issued.further]
    if sent != wanted:
        raise errors.IntegrityFailure(
            f"{issued.device} was to get further certificates of {wanted}, the service sent {sent}"
        )
    requests: tuple[Pending | FurtherPending, ...] = (asked, *asked.further)
    certified: tuple[Issued | IssuedCertificate, ...] = (issued, *issued.further)
    keys = [_delivered_key(issued, one, asked, open_envelope) for one in certified]
    found = [
        Received(
            certificate=_verified_certificate(issued, one.certificate, key, request.csr, asked, anchors),
            private_key=key,
        )
        for one, key, request in zip(certified, keys, requests, strict=True)
    ]
    if len({one.certificate.subject_public_key_info for one in found}) != len(found):
        raise errors.IntegrityFailure(f"the service sent {issued.device} one key for two certificates")
    return found


def _delivered_key(
    issued: Issued,
    one: Issued | IssuedCertificate,
    asked: Pending,
    open_envelope: Callable[[bytes], SecretBytes],
) -> SecretBytes | None:
    """Return a delivered key, out of its envelope; None for one that was born in the device.

    Raises:
        errors.IntegrityFailure: it came in the clear although an envelope was asked for, or the other way
            round: somebody may have read it.
    """
    if (one.envelope is not None) != asked.envelope or (asked.envelope and one.private_key is not None):
        raise errors.IntegrityFailure(
            f"the service sent {issued.device} a key in an envelope unasked, or one in the clear instead"
        )
    return one.private_key if one.envelope is None else open_envelope(one.envelope)


def _verified_certificate(
    issued: Issued,
    certificate: bytes,
    private_key: SecretBytes | None,
    csr: str | None,
    asked: Pending,
    anchors: Sequence[bytes],
) -> Certificate:
    if asked.delivered != (private_key is not None):
        raise errors.IntegrityFailure(f"the service sent {issued.device} a key unasked, or none")
    return verify_certificate(
        certificate,
        issued.chain,
        anchors=anchors,
        device=issued.device,
        hardware_id=asked.hardware_id,
        public_key=spki_of_request(csr) if csr else spki_of_key(private_key),
    )
