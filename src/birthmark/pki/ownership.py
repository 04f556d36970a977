"""Who brings an authority shows to hold its key: a certificate over our nonce (SPEC H5).

The owner has the authority certify a throwaway key under the nonce as common name: the *verification
certificate*, as public clouds ask for it.  Nothing else can be asked of an authority whose key does one thing
only: sign certificates.

``vet_authority`` says which authorities come into question at all.
"""

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.x509.oid import NameOID

from birthmark.errors import MalformedRequest, PolicyRefused, ProofFailed
from birthmark.pki.algorithms import BROKEN_HASHES
from birthmark.pki.certificates import Certificate, from_pem, issued_by
from birthmark.pki.csr import vet_key
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.library import UNREADABLE
from birthmark.pki.paths import LARGEST, purposes, require_authority

__all__ = ["SKEW", "certificate_der", "is_marked", "verify_ownership", "vet_authority"]

SKEW = timedelta(minutes=5)
"""How far the clock of whoever certifies may be ahead of ours."""


def certificate_der(octets: bytes) -> bytes:
    """Return the one certificate (DER) in a file, which may be PEM; whether it is one is not looked at.

    Raises:
        MalformedRequest: it is PEM with not exactly one certificate, or too long.
    """
    if len(octets) > 4 * LARGEST:
        raise MalformedRequest(f"one certificate has at most {LARGEST} octets")
    if b"-----BEGIN " not in octets:
        return octets
    found = from_pem(octets.decode("latin-1"))
    if len(found) != 1:
        raise MalformedRequest(f"pem: {len(found)} certificates where one belongs")
    return found[0]


def vet_authority(octets: bytes, at: datetime) -> Certificate:
    """Return the certificate of an authority (DER) that may be registered.

    Raises:
        MalformedRequest: it is no certificate.
        PolicyRefused: it is no authority's, not valid now, signed with a broken hash or has a critical
            extension we do not understand (rule ``foreign-path``); its key is of a kind we do not accept
            (``key-algorithm``), known to everybody (``known-key``) or weak (``weak-key``); or it calls itself
            its issuer and is not (``self-signature``).
    """
    found = purposes(octets)
    require_authority(found, 0, at)
    certificate = found.certificate
    vet_key(certificate.subject_public_key_info, allowed=list(KeyAlgorithm))
    if certificate.subject_name == certificate.issuer_name and not issued_by(octets, octets):
        raise PolicyRefused(
            "self-signature", "the certificate names itself as its issuer and is not signed so"
        )
    return certificate


def verify_ownership(authority: bytes, verification: bytes, nonce: str, at: datetime) -> None:
    """Check that whoever holds an authority's key has certified our nonce.

    Args:
        authority: its certificate (DER).
        verification: the verification certificate (DER), of any version.
        nonce: the only common name of it.
        at: when it was shown.

    Raises:
        MalformedRequest: the verification certificate is none.
        ProofFailed: the authority did not sign it, it is about another nonce, was not valid then, is signed
            with a broken hash, or is itself an authority's.
    """
    if len(verification) > LARGEST:
        raise MalformedRequest(f"a certificate has at most {LARGEST} octets, not {len(verification)}")
    try:
        parsed = x509.load_der_x509_certificate(verification)
        names = [str(one.value) for one in parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        not_before, not_after = parsed.not_valid_before_utc, parsed.not_valid_after_utc
        digest = parsed.signature_hash_algorithm
        basic = [one.value for one in parsed.extensions if isinstance(one.value, x509.BasicConstraints)]
    except UNREADABLE as cause:
        raise MalformedRequest(f"the verification certificate cannot be read: {cause}") from cause
    if names != [nonce]:
        raise ProofFailed(
            f"the verification certificate's common name is {names!r:.200}, not the nonce {nonce}"
        )
    if not issued_by(verification, authority):
        raise ProofFailed("the verification certificate is not signed by the authority's key, in its name")
    if not not_before - SKEW <= at <= not_after:
        raise ProofFailed("the verification certificate is not valid at this time")
    if digest is not None and digest.name in BROKEN_HASHES:
        raise ProofFailed(f"the verification certificate is signed with {digest.name}")
    if any(one.ca for one in basic):
        raise ProofFailed("the verification certificate is an authority's: let it be a throwaway key's")


def is_marked(certificate: Certificate, mark: str) -> bool:
    """Return whether a name of a certificate, its own or its issuer's, ends with a mark such as `` TEST``.

    Case and spaces beside it do not matter.

    Raises:
        MalformedRequest: a name cannot be read.
    """
    try:
        parsed = x509.load_der_x509_certificate(certificate.der)
        values = [one.value for name in (parsed.subject, parsed.issuer) for one in name]
    except UNREADABLE as cause:
        raise MalformedRequest(f"not a certificate that can be read: {cause}") from cause
    wanted = mark.split()
    return any(
        isinstance(value, str) and value.casefold().split()[-1:] == [one.casefold() for one in wanted]
        for value in values
    )
