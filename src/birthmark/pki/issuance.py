"""From a profile, an authority and a public key to a certificate.

Two ways to the same octets.  ``compile_template`` encodes once all that a profile, an authority and a run
have in common; ``Template.fill`` then adds serial number, validity, subject, alternative name, key and key
identifier: the way of the line.  ``build_reference`` and ``build_root`` go through
``x509.CertificateBuilder`` with a throwaway key: the way of ceremonies, and what the template is tested
against octet for octet.

Nothing here decides whether a certificate may exist: ``lint.permit`` reads the octets made here, and
``sign_certificate`` takes its permit only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.oid import AuthorityInformationAccessOID

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der, names
from birthmark.pki.algorithms import ALGORITHMS, key_identifier, recognise, throwaway_key
from birthmark.pki.alternativenames import alternative_name_der, alternative_name_x509
from birthmark.pki.certificates import TBSCertificate, assemble
from birthmark.pki.constraints import Constraint
from birthmark.pki.constraints import check as check_constraints
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyLabel
from birthmark.pki.lint import IssuancePermit
from birthmark.pki.nameconstraints import name_constraints_x509
from birthmark.pki.profilelanguage import (
    BasicConstraints,
    Extension,
    KeyUsage,
    Profile,
    SubjectAlternativeName,
    SubjectAttribute,
    TextTemplate,
)

__all__ = [
    "NO_WELL_DEFINED_EXPIRY",
    "Issuer",
    "Template",
    "build_reference",
    "build_root",
    "compile_template",
    "constant_extension",
    "serial_number",
    "sign_certificate",
]

NO_WELL_DEFINED_EXPIRY = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""RFC 5280 section 4.1.2.5."""

_VERSION_3 = bytes.fromhex("a003020102")
_FIRST_UTC_TIME = 1950
_FIRST_GENERALIZED_TIME = 2050
_OF_KEYS = (Extension.SUBJECT_KEY_IDENTIFIER, Extension.AUTHORITY_KEY_IDENTIFIER)


def serial_number(entropy: bytes) -> int:
    """Return a serial number from at least 20 random octets: 20 octets, positive, 158 bits of it random.

    The two top bits are fixed to 01, so that the sign never costs a random bit and every serial number has
    the same length (RFC 5280 section 4.1.2.2: positive, at most 20 octets).
    """
    if len(entropy) < 20:
        raise ValueError(f"a serial number takes 20 octets of entropy, not {len(entropy)}")
    return int.from_bytes(bytes((0x40 | entropy[0] & 0x3F,)) + entropy[1:20], "big")


def sign_certificate(permit: IssuancePermit, sign: Callable[[KeyLabel, bytes], bytes]) -> bytes:
    """Return the certificate (DER): exactly the octets that were permitted, signed with the issuer's key.

    Args:
        permit: from ``lint.permit``.
        sign: ``KeyStore.sign``; what it raises passes through.
    """
    tbs = permit.tbs
    algorithm = ALGORITHMS[tbs.issuer.key_algorithm].signature_algorithm
    return assemble(tbs.der, algorithm, sign(tbs.issuer_key, tbs.der))


# --- validity and subject: the same for both ways ---


def _validity(
    profile: Profile, not_before: datetime, not_after: datetime | None
) -> tuple[datetime, datetime]:
    """Return notBefore and notAfter, cut to seconds; both ends are included (RFC 5280 section 4.1.2.5)."""
    start = not_before.astimezone(UTC).replace(microsecond=0)
    if not_after is not None:
        return start, not_after.astimezone(UTC).replace(microsecond=0)
    if profile.validity is None:
        return start, NO_WELL_DEFINED_EXPIRY
    try:
        return start, start + profile.validity - timedelta(seconds=1)
    except OverflowError as error:
        raise PolicyRefused("validity", f"{start.isoformat()} leaves no room for the profile") from error


def _time(moment: datetime) -> bytes:
    year = moment.year
    rest = moment.month, moment.day, moment.hour, moment.minute, moment.second
    if year < _FIRST_UTC_TIME:
        raise PolicyRefused("validity", f"{moment.isoformat()} is before 1950 and has no encoding")
    if year < _FIRST_GENERALIZED_TIME:
        return b"\x17\x0d%02d%02d%02d%02d%02d%02dZ" % (year % 100, *rest)
    return b"\x18\x0f%04d%02d%02d%02d%02d%02dZ" % (year, *rest)


def _present(attribute: SubjectAttribute, variables: Mapping[str, str]) -> bool:
    return not attribute.optional or all(variables.get(name) for name in attribute.value.variables)


def _subject(profile: Profile, variables: Mapping[str, str]) -> names.Name:
    return tuple(
        (attribute.attribute, attribute.value.render(variables))
        for attribute in profile.subject
        if _present(attribute, variables)
    )


# --- the way of the line: a template ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A certificate with holes, for one profile, one authority and the variables known beforehand."""

    profile: Profile
    issuer: Issuer
    constants: Mapping[str, str] = field(repr=False)
    """The variables that were given to ``compile_template``."""
    authority: bytes = field(repr=False)
    """Signature algorithm and issuer."""
    subject: tuple[bytes | SubjectAttribute, ...] = field(repr=False)
    """Relative distinguished names: encoded where constant."""
    alternative: SubjectAlternativeName | None = field(repr=False)
    """The names of every device, less those that are optional and that none will have."""
    extensions: tuple[bytes | Extension, ...] = field(repr=False)
    """Extensions: encoded where constant; neighbours joined."""
    late: tuple[Constraint, ...]
    """Constraints on the variables that come with each device."""
    decided: frozenset[str]
    """Variables that ``compile_template`` was not given, and whose extensions are left out for that."""

    def fill(
        self,
        *,
        serial_number: int,
        subject_public_key_info: bytes,
        not_before: datetime,
        variables: Mapping[str, str],
        not_after: datetime | None = None,
    ) -> TBSCertificate:
        """Return a certificate to be linted and signed.

        Args:
            serial_number: from ``serial_number``.
            subject_public_key_info: the subject's key (DER).
            not_before: aware; cut to seconds.
            variables: those of the profile that were not given to ``compile_template``; they may not change
                one that was.
            not_after: an earlier end than the profile's, where the profile allows it.

        Raises:
            MalformedRequest: a variable is missing, comes too late or does not fit its field, or the key is
                in none of our encodings.
            PolicyRefused: the times have no encoding, or a variable breaks a constraint (``rule`` names it).
        """
        start, end = _validity(self.profile, not_before, not_after)
        values = {**variables, **self.constants}
        if not self.decided.isdisjoint(variables):
            raise MalformedRequest(f"too late for {', '.join(sorted(self.decided & variables.keys()))}")
        if self.late:
            check_constraints(self.late, values)
        subject = b"".join(
            [part if isinstance(part, bytes) else _relative_name(part, values) for part in self.subject]
        )
        extensions = b"".join(
            [
                part if isinstance(part, bytes) else self._extension(part, values, subject_public_key_info)
                for part in self.extensions
            ]
        )
        octets = der.encode(
            der.SEQUENCE,
            _VERSION_3,
            der.integer(serial_number),
            self.authority,
            der.encode(der.SEQUENCE, _time(start), _time(end)),
            der.encode(der.SEQUENCE, subject),
            subject_public_key_info,
            der.encode(0xA3, der.encode(der.SEQUENCE, extensions)),
        )
        return TBSCertificate(
            der=octets, serial_number=serial_number, profile=self.profile, issuer=self.issuer
        )

    def _extension(self, extension: Extension, values: Mapping[str, str], spki: bytes) -> bytes:
        if extension is Extension.SUBJECT_KEY_IDENTIFIER:
            identifier = key_identifier(spki, self.profile.subject_key_identifier_method)
            return _extension_der(self.profile, extension, der.encode(der.OCTET_STRING, identifier))
        if self.alternative is None:
            raise RuntimeError(f"{extension} is constant and was not compiled")
        return _extension_der(self.profile, extension, alternative_name_der(self.alternative, values))


def compile_template(
    profile: Profile,
    issuer: Issuer,
    variables: Mapping[str, str],
    constraints: Sequence[Constraint] = (),
) -> Template:
    """Encode all of a certificate that does not change from device to device.

    Args:
        profile: of an end entity; certification authorities are made by ``build_reference``.
        issuer: who will sign.
        variables: the values that are the same for all; what is missing must come with ``Template.fill``, or
            is left out for good (locations and policies that the profile marks optional).
        constraints: of the authority's licence, beside the profile's own.

    Raises:
        MalformedRequest: a value does not fit its field, or one that must be known beforehand is missing
            (CRL, OCSP and issuer locations, policies).
        PolicyRefused: a value breaks a constraint (``rule`` names it).
    """
    if profile.is_ca:
        raise ValueError(f"profile {profile.name} is for authorities: use build_reference")
    every = (*profile.constraints, *constraints)
    check_constraints(every, variables)
    subject = tuple(
        _relative_name(attribute, variables) if attribute.value.variables <= variables.keys() else attribute
        for attribute in profile.subject
    )
    alternative = profile.subject_alternative_name
    alternative = None if alternative is None else alternative.narrowed(variables)
    extensions: list[bytes | Extension] = []
    for extension in profile.extensions_for(variables):
        part = _constant_extension(profile, issuer, extension, variables)
        if isinstance(part, bytes) and extensions and isinstance(extensions[-1], bytes):
            extensions[-1] += part
        else:
            extensions.append(part)
    return Template(
        profile=profile,
        issuer=issuer,
        constants=dict(variables),
        authority=ALGORITHMS[issuer.key_algorithm].signature_algorithm + issuer.subject,
        subject=subject,
        alternative=alternative,
        extensions=tuple(extensions),
        late=tuple(constraint for constraint in every if constraint.variable not in variables),
        decided=profile.early_variables - variables.keys(),
    )


def _relative_name(attribute: SubjectAttribute, variables: Mapping[str, str]) -> bytes:
    if not _present(attribute, variables):
        return b""
    return names.encode_attribute(attribute.attribute, attribute.value.render(variables))


def _constant_extension(
    profile: Profile, issuer: Issuer, extension: Extension, variables: Mapping[str, str]
) -> bytes | Extension:
    if extension is Extension.AUTHORITY_KEY_IDENTIFIER:
        value = der.encode(der.SEQUENCE, der.encode(0x80, issuer.key_identifier))
        return _extension_der(profile, extension, value)
    found = constant_extension(profile, extension, variables)
    return extension if found is None else found


def constant_extension(profile: Profile, extension: Extension, variables: Mapping[str, str]) -> bytes | None:
    """Return one Extension (DER; RFC 5280 section 4.1) of all certificates with these variables.

    None where it is another for each of them: it follows from a key, or names what comes with each device.

    Raises:
        MalformedRequest: a value does not fit its field, or one that all have in common is missing.
    """
    if extension in _OF_KEYS:
        return None
    alternative = profile.subject_alternative_name
    if extension is Extension.SUBJECT_ALTERNATIVE_NAME and alternative is not None:
        alternative = alternative.narrowed(variables)
        needed = frozenset[str]().union(*(template.variables for template in alternative.templates()))
        if not needed <= variables.keys():
            return None
        return _extension_der(profile, extension, alternative_name_der(alternative, variables))
    return _extension_der(profile, extension, _plain_extension(profile, extension, variables).public_bytes())


def _extension_der(profile: Profile, extension: Extension, value: bytes) -> bytes:
    critical = b"\x01\x01\xff" if profile.critical(extension) else b""
    return der.encode(der.SEQUENCE, der.oid(extension), critical, der.encode(der.OCTET_STRING, value))


# --- the way of ceremonies: the library's builder ---


def build_reference(
    profile: Profile,
    issuer: Issuer,
    *,
    serial_number: int,
    subject_public_key_info: bytes,
    not_before: datetime,
    variables: Mapping[str, str],
    not_after: datetime | None = None,
    constraints: Sequence[Constraint] = (),
) -> TBSCertificate:
    """Return what ``compile_template`` and ``fill`` return, built by ``x509.CertificateBuilder``.

    For authorities, and as the second opinion on templates.  Arguments and errors as there.
    """
    check_constraints((*profile.constraints, *constraints), variables)
    start, end = _validity(profile, not_before, not_after)
    if start.year < _FIRST_UTC_TIME:
        raise PolicyRefused("validity", f"{start.isoformat()} is before 1950 and has no encoding")
    subject = _subject(profile, variables)
    names.encode(subject)  # the library checks less
    if issuer.certificate is None:
        issuer_name = _x509_name(subject)
    else:
        issuer_name = x509.load_der_x509_certificate(issuer.certificate).subject
    try:
        public_key = load_der_public_key(subject_public_key_info)
        builder = (
            x509.CertificateBuilder()
            .serial_number(serial_number)
            .issuer_name(issuer_name)
            .subject_name(_x509_name(subject))
            .not_valid_before(start)
            .not_valid_after(end)
            .public_key(public_key)  # type: ignore[arg-type]  # the builder refuses what cannot be certified
        )
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise MalformedRequest(f"cannot be certified: {error}") from error
    for extension in profile.extensions_for(variables):
        value = _x509_extension(profile, issuer, extension, variables, subject_public_key_info)
        builder = builder.add_extension(value, critical=profile.critical(extension))
    hash_algorithm = ALGORITHMS[issuer.key_algorithm].hash_algorithm
    # The signature is thrown away: what counts are the octets the library would have signed.
    key = throwaway_key(issuer.key_algorithm)
    built = builder.sign(key, hash_algorithm)  # type: ignore[arg-type]  # no hash for Ed25519: the stub knows not
    return TBSCertificate(
        der=built.tbs_certificate_bytes, serial_number=serial_number, profile=profile, issuer=issuer
    )


def build_root(
    profile: Profile,
    *,
    key_label: KeyLabel,
    serial_number: int,
    subject_public_key_info: bytes,
    not_before: datetime,
    variables: Mapping[str, str],
    not_after: datetime | None = None,
    constraints: Sequence[Constraint] = (),
) -> TBSCertificate:
    """Return the self-signed certificate of a new root: its own name, key and validity are its issuer's.

    Raises:
        MalformedRequest: as ``build_reference``.
        PolicyRefused: as ``build_reference``.
    """
    check_constraints((*profile.constraints, *constraints), variables)
    algorithm = recognise(subject_public_key_info)
    if algorithm is None:
        raise MalformedRequest("a root's key is in none of our encodings")
    start, end = _validity(profile, not_before, not_after)
    itself = Issuer(
        key_label=key_label,
        key_algorithm=algorithm,
        subject=names.encode(_subject(profile, variables)),
        key_identifier=key_identifier(subject_public_key_info, profile.subject_key_identifier_method),
        subject_public_key_info=subject_public_key_info,
        not_before=start,
        not_after=end,
        path_len_constraint=None,
        certificate=None,
    )
    return build_reference(
        profile,
        itself,
        serial_number=serial_number,
        subject_public_key_info=subject_public_key_info,
        not_before=not_before,
        not_after=not_after,
        variables=variables,
        constraints=constraints,
    )


def _x509_name(name: names.Name) -> x509.Name:
    return x509.Name([x509.NameAttribute(names.OIDS[attribute], value) for attribute, value in name])


def _x509_extension(
    profile: Profile, issuer: Issuer, extension: Extension, variables: Mapping[str, str], spki: bytes
) -> x509.ExtensionType:
    alternative = profile.subject_alternative_name
    if extension is Extension.SUBJECT_ALTERNATIVE_NAME and alternative is not None:
        return alternative_name_x509(alternative, variables)
    if extension is Extension.SUBJECT_KEY_IDENTIFIER:
        return x509.SubjectKeyIdentifier(key_identifier(spki, profile.subject_key_identifier_method))
    if extension is Extension.AUTHORITY_KEY_IDENTIFIER:
        return x509.AuthorityKeyIdentifier(issuer.key_identifier, None, None)
    return _plain_extension(profile, extension, variables)


def _plain_extension(
    profile: Profile, extension: Extension, variables: Mapping[str, str]
) -> x509.ExtensionType:
    """Return an extension that depends on neither key nor device."""
    match extension:
        case Extension.BASIC_CONSTRAINTS if profile.basic_constraints is not None:
            return x509.BasicConstraints(
                profile.basic_constraints.ca, _path_len(profile.basic_constraints, variables)
            )
        case Extension.NAME_CONSTRAINTS if profile.name_constraints is not None:
            return name_constraints_x509(profile.name_constraints, variables)
        case Extension.OCSP_NO_CHECK:
            return x509.OCSPNoCheck()
        case Extension.KEY_USAGE:
            bits = [usage in profile.key_usage for usage in KeyUsage]
            only = {"encipher_only": False, "decipher_only": False}
            return x509.KeyUsage(*bits, **only)
        case Extension.EXTENDED_KEY_USAGE:
            return x509.ExtendedKeyUsage([x509.ObjectIdentifier(text) for text in profile.extended_key_usage])
        case Extension.CERTIFICATE_POLICIES:
            return x509.CertificatePolicies(
                [
                    x509.PolicyInformation(x509.ObjectIdentifier(policy.render(variables)), None)
                    for policy in profile.certificate_policies
                ]
            )
        case Extension.CRL_DISTRIBUTION_POINTS if profile.crl_distribution_point is not None:
            uri = _uri(profile.crl_distribution_point, variables)
            return x509.CRLDistributionPoints([x509.DistributionPoint([uri], None, None, None)])
        case Extension.AUTHORITY_INFORMATION_ACCESS:
            return x509.AuthorityInformationAccess(
                [
                    x509.AccessDescription(method, _uri(template, variables))
                    for method, key, template in (
                        (AuthorityInformationAccessOID.OCSP, "ocsp-responder", profile.ocsp_responder),
                        (AuthorityInformationAccessOID.CA_ISSUERS, "ca-issuers", profile.ca_issuers),
                    )
                    if template is not None and profile.wants(key, template, variables)
                ]
            )
    raise RuntimeError(f"profile {profile.name} has no {extension.name}")


def _path_len(constraints: BasicConstraints, variables: Mapping[str, str]) -> int | None:
    template = constraints.path_len
    if template is None or not template.has_values(variables):
        return constraints.path_len_constraint
    text = template.render(variables)
    if not text.isascii() or not text.isdigit() or int(text) > 16:
        raise MalformedRequest(f"path length {text!r} is not 0 to 16")
    return int(text)


def _uri(template: TextTemplate, variables: Mapping[str, str]) -> x509.UniformResourceIdentifier:
    text = template.render(variables)
    if not text.startswith(("http://", "https://")) or not text.isascii() or " " in text:
        raise MalformedRequest(f"{text!r} is no http location")
    return x509.UniformResourceIdentifier(text)
