"""The endorsement key's certificate: is this key in a TPM of a maker we accept?

A path is sought from the certificate to one of the profile's anchors, at one moment, by the verifier of
``cryptography`` (RFC 5280 section 6) under a policy for these certificates: the subject is often empty and
the TPM is named by a critical directoryName (TCG EK Credential Profile 2.5 section 3.2), no host name occurs,
and most never expire.  Extensions that are critical and unknown refuse the path.

Left to others: whether a maker has revoked it.  Makers publish that in ways of their own, and the line does
not ask them: an authority that is no longer trusted leaves the profile.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
    VerificationError,
)

from birthmark.element.profiles import TPMProfile
from birthmark.element.tpm_credential import EndorsementKey, check_endorsement_key
from birthmark.errors import MalformedRequest, PolicyRefused

__all__ = ["Endorsement", "check_endorsement"]

EK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.1")
"""tcg-kp-EKCertificate: extended key usage of endorsement keys' certificates."""
LONGEST = 4096
"""Octets of a certificate that is read at all."""
MOST = 4
"""Certificates of authorities that a station may send along."""
DEPTH = 4
"""Authorities between an anchor and the certificate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endorsement:
    """An endorsement key that a maker we accept has certified."""

    certificate: bytes = field(repr=False)
    """DER."""
    key: EndorsementKey = field(repr=False)

    @property
    def certificate_sha256(self) -> str:
        """Return the fingerprint of the certificate (hex)."""
        return sha256(self.certificate).hexdigest()

    @property
    def spki_sha256(self) -> str:
        """Return the hash of the key's SubjectPublicKeyInfo (hex): which TPM this is."""
        spki = self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return sha256(spki).hexdigest()


def check_endorsement(
    profile: TPMProfile, certificate: bytes, chain: Sequence[bytes], at: datetime
) -> Endorsement:
    """Return the endorsement key of a certificate, if one of the profile's makers certified it.

    Args:
        profile: with the anchors, and authorities below them.
        certificate: DER.
        chain: authorities (DER) that the station has found with it, in any order; believed for nothing.
        at: when it has to be valid.

    Raises:
        MalformedRequest: one of them is no certificate.
        PolicyRefused: there is no such path, or it is no endorsement key's (rule ``ek-certificate``).
    """
    if len(chain) > MOST:
        raise MalformedRequest(f"at most {MOST} authorities go with an endorsement key's certificate")
    leaf = _loaded(certificate)
    between = [_loaded(der) for der in (*profile.intermediates, *chain)]
    anchors = [_loaded(der) for der in profile.anchors]
    verifier = (
        PolicyBuilder()
        .store(Store(anchors))
        .time(at)
        .max_chain_depth(DEPTH)
        .extension_policies(ca_policy=_authority_policy(), ee_policy=_endorsement_policy())
        .build_client_verifier()
    )
    try:
        verifier.verify(leaf, between)
    except (VerificationError, ValueError) as wrong:
        raise PolicyRefused(
            "ek-certificate",
            f"the endorsement key's certificate has no path to an anchor of profile {profile.name}: {wrong}"[
                :400
            ],
        ) from wrong
    return Endorsement(certificate=certificate, key=_key(leaf))


def _loaded(der: bytes) -> x509.Certificate:
    if len(der) > LONGEST:
        raise MalformedRequest(f"a certificate of {len(der)} octets is too long, {LONGEST} are the most")
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion) as wrong:
        raise MalformedRequest(f"not a certificate (der): {wrong}") from wrong


def _key(leaf: x509.Certificate) -> EndorsementKey:
    try:
        found = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm) as wrong:
        raise PolicyRefused("ek-certificate", f"the endorsement key cannot be read: {wrong}") from wrong
    key = check_endorsement_key(found)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    if not (usage.key_encipherment if isinstance(key, rsa.RSAPublicKey) else usage.key_agreement):
        raise PolicyRefused("ek-certificate", "the key usage is not that of an endorsement key")
    return key


def _endorsement_policy() -> ExtensionPolicy:
    """TCG EK Credential Profile 2.5 section 3.2: keyUsage and extendedKeyUsage are there, and it is no CA."""
    return (
        ExtensionPolicy.permit_all()
        .require_present(x509.KeyUsage, Criticality.AGNOSTIC, None)
        .require_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _is_endorsement)
        .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_no_authority)
        .may_be_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    )


def _authority_policy() -> ExtensionPolicy:
    """RFC 5280 section 6.1.4 (k), (n): a CA, that may sign certificates."""
    return (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_authority)
        .require_present(x509.KeyUsage, Criticality.AGNOSTIC, _signs_certificates)
    )


def _is_endorsement(_policy: Policy, _certificate: x509.Certificate, found: x509.ExtendedKeyUsage) -> None:
    if EK_CERTIFICATE not in found:
        raise ValueError("the extended key usage is not that of an endorsement key")


def _is_no_authority(
    _policy: Policy, _certificate: x509.Certificate, found: x509.BasicConstraints | None
) -> None:
    if found is not None and found.ca:
        raise ValueError("the certificate is an authority's")


def _is_authority(_policy: Policy, _certificate: x509.Certificate, found: x509.BasicConstraints) -> None:
    if not found.ca:
        raise ValueError("a certificate of the path is no authority's")


def _signs_certificates(_policy: Policy, _certificate: x509.Certificate, found: x509.KeyUsage) -> None:
    if not found.key_cert_sign:
        raise ValueError("an authority of the path may not sign certificates")
