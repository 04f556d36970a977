"""Who signs: the key and the certificate of an authority, as issuance and lint need them.

An ``Issuer`` is made from the authority's certificate, which is checked once to be that of a certification
authority with the key algorithm it is said to have; whether the authority may issue now (quota, end date,
suspension) is the use cases' business.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der
from birthmark.pki.algorithms import recognise
from birthmark.pki.keys import KeyAlgorithm, KeyLabel

__all__ = ["Issuer"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Issuer:
    """An authority, as the one who signs."""

    key_label: KeyLabel
    key_algorithm: KeyAlgorithm
    subject: bytes = field(repr=False)
    """Name (DER) that its certificates carry as issuer."""
    key_identifier: bytes
    """What its certificates carry as authorityKeyIdentifier."""
    not_before: datetime
    not_after: datetime
    path_len_constraint: int | None
    certificate: bytes | None = field(repr=False)
    """Its own certificate (DER); None for a root whose own certificate is being made."""

    @classmethod
    def from_certificate(cls, key_label: KeyLabel, certificate_der: bytes) -> Self:
        """Return the authority this certificate (DER) is of.

        Raises:
            MalformedRequest: not a certificate, or it lacks subjectKeyIdentifier (RFC 5280 section 4.2.1.2),
                or its key is in none of our encodings.
            PolicyRefused: it does not certify a certification authority (sections 4.2.1.3 and 4.2.1.9).
        """
        try:
            parsed = x509.load_der_x509_certificate(certificate_der)
            extensions = parsed.extensions
            constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
            usage = extensions.get_extension_for_class(x509.KeyUsage).value
            identifier = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
            spki = parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            tbs = parsed.tbs_certificate_bytes
            not_before, not_after = parsed.not_valid_before_utc, parsed.not_valid_after_utc
        except x509.ExtensionNotFound as error:
            raise MalformedRequest(f"not the certificate of an authority: {error}") from error
        except (
            ValueError,
            TypeError,
            UnsupportedAlgorithm,
            x509.InvalidVersion,
            x509.DuplicateExtension,
        ) as error:
            raise MalformedRequest(f"not an x.509 certificate: {error}") from error
        algorithm = recognise(spki)
        if algorithm is None:
            raise MalformedRequest("the authority's key is neither P-256 nor P-384 nor Ed25519")
        if not constraints.ca or not usage.key_cert_sign:
            raise PolicyRefused("issuer-is-an-authority", "the issuer's certificate does not let it certify")
        # The name as it stands there, whatever encoder wrote it: a path compares octets.
        _, _, content, end = der.only(tbs, der.SEQUENCE)
        _, start, _, stop = der.children(tbs, content, end)[5]
        return cls(
            key_label=key_label,
            key_algorithm=algorithm,
            subject=tbs[start:stop],
            key_identifier=identifier.digest,
            not_before=not_before,
            not_after=not_after,
            path_len_constraint=constraints.path_length,
            certificate=certificate_der,
        )
