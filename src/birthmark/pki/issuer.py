"""Who signs: the key and the certificate of an authority, as issuance and lint need them.

An ``Issuer`` is made from the authority's certificate, which is checked once to be that of a certification
authority with the key algorithm it is said to have; whether the authority may issue now (quota, end date,
suspension) is the use cases' business.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der
from birthmark.pki.algorithms import recognise
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.pki.library import UNREADABLE
from birthmark.pki.nameconstraints import NameLimits, read_limits

__all__ = ["Issuer"]

_X = TypeVar("_X", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Issuer:
    """An authority, as the one who signs."""

    key_label: KeyLabel
    key_algorithm: KeyAlgorithm
    subject: bytes = field(repr=False)
    """Name (DER) that its certificates carry as issuer."""
    key_identifier: bytes
    """What its certificates carry as authorityKeyIdentifier."""
    subject_public_key_info: bytes = field(repr=False)
    """Its own key (DER)."""
    not_before: datetime
    not_after: datetime
    path_len_constraint: int | None
    """How many authorities may follow below it; None for any number."""
    certificate: bytes | None = field(repr=False)
    """Its own certificate (DER); None for a root whose own certificate is being made."""
    name_limits: tuple[NameLimits, ...] = ()
    """The name constraints in its own certificate and in those above it."""
    profile: str | None = None
    """Name of the profile its own certificate was made with, where that is known."""

    @classmethod
    def from_certificate(
        cls,
        key_label: KeyLabel,
        certificate_der: bytes,
        *,
        above: Sequence[bytes] = (),
        profile: str | None = None,
    ) -> Self:
        """Return the authority this certificate (DER) is of.

        Args:
            key_label: its key in the key store.
            certificate_der: its certificate.
            above: the certificates (DER) of the authorities above it, nearest first.  Their path lengths and
                name constraints then count, too; that they are above it is not verified here.
            profile: name of the profile that certificate was made with.

        Raises:
            MalformedRequest: not a certificate, or it lacks subjectKeyIdentifier (RFC 5280 section 4.2.1.2),
                or its key is in none of our encodings, or its name constraints cannot be read.
            PolicyRefused: it does not certify a certification authority (sections 4.2.1.3 and 4.2.1.9), or an
                authority above lets none follow ("path-length").
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
        except UNREADABLE as error:
            raise MalformedRequest(f"not an x.509 certificate: {error}") from error
        algorithm = recognise(spki)
        if algorithm is None:
            raise MalformedRequest("the authority's key is in none of our encodings")
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
            subject_public_key_info=spki,
            not_before=not_before,
            not_after=not_after,
            path_len_constraint=_remaining(constraints.path_length, above),
            certificate=certificate_der,
            name_limits=_limits((certificate_der, *above)),
            profile=profile,
        )


def _remaining(own: int | None, above: Sequence[bytes]) -> int | None:
    """Return how many authorities may follow (RFC 5280 section 6.1.4 (l) and (m))."""
    limits = [] if own is None else [own]
    for steps, certificate in enumerate(above, 1):
        constraint = _extension(certificate, x509.BasicConstraints)
        if constraint is not None and constraint.path_length is not None:
            limits.append(constraint.path_length - steps)
    remaining = min(limits, default=None)
    if remaining is not None and remaining < 0:
        raise PolicyRefused("path-length", "an authority above lets no authority follow here")
    return remaining


def _limits(certificates: Sequence[bytes]) -> tuple[NameLimits, ...]:
    found = (_extension(certificate, x509.NameConstraints) for certificate in certificates)
    return tuple(read_limits(value.public_bytes()) for value in found if value is not None)


def _extension(certificate: bytes, kind: type[_X]) -> _X | None:
    try:
        return x509.load_der_x509_certificate(certificate).extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except UNREADABLE as error:
        raise MalformedRequest(f"not the x.509 certificate of an authority: {error}") from error
