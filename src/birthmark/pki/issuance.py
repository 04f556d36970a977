"""From a profile, an authority and a public key to a certificate.

Two ways to the same octets.  ``compile_template`` encodes once all that a profile, an authority and a run
have in common; ``Template.fill`` then adds serial number, validity, subject, alternative name, key and key
identifier: the way of the line.  ``build_reference`` and ``build_root`` go through
``x509.CertificateBuilder`` with a throwaway key: the way of ceremonies, and what the template is tested
against octet for octet.

Nothing here decides whether a certificate may exist: ``lint.permit`` reads the octets made here, and
``sign_certificate`` takes its permit only.
"""

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_der_public_key
from cryptography.x509.oid import AuthorityInformationAccessOID

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der, names
from birthmark.pki.algorithms import ALGORITHMS, key_identifier, recognise, throwaway_key
from birthmark.pki.certificates import TBSCertificate, assemble
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyLabel
from birthmark.pki.lint import IssuancePermit
from birthmark.pki.profiles import (
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
    "serial_number",
    "sign_certificate",
]

NO_WELL_DEFINED_EXPIRY = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""RFC 5280 section 4.1.2.5."""

_VERSION_3 = bytes.fromhex("a003020102")
_HARDWARE_MODULE_NAME = "1.3.6.1.5.5.7.8.4"
_FIRST_UTC_TIME = 1950
_FIRST_GENERALIZED_TIME = 2050


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
    extensions: tuple[bytes | Extension, ...] = field(repr=False)
    """Extensions: encoded where constant; neighbours joined."""

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
            MalformedRequest: a variable is missing or does not fit its field, or the key is in none of our
                encodings.
            PolicyRefused: the times have no encoding.
        """
        start, end = _validity(self.profile, not_before, not_after)
        values = {**variables, **self.constants}
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
            return _extension_der(self.profile, extension, der.encode(der.OCTET_STRING, key_identifier(spki)))
        alternative = self.profile.subject_alternative_name
        if alternative is None:
            raise RuntimeError(f"{extension} is constant and was not compiled")
        return _extension_der(self.profile, extension, _alternative_name_der(alternative, values))


def compile_template(profile: Profile, issuer: Issuer, variables: Mapping[str, str]) -> Template:
    """Encode all of a certificate that does not change from device to device.

    Args:
        profile: of an end entity; certification authorities are made by ``build_reference``.
        issuer: who will sign.
        variables: the values that are the same for all; what is missing must come with ``Template.fill``.

    Raises:
        MalformedRequest: a value does not fit its field, or one that must be known beforehand is missing
            (CRL, OCSP and issuer locations).
    """
    if profile.is_ca:
        raise ValueError(f"profile {profile.name} is for authorities: use build_reference")
    subject = tuple(
        _relative_name(attribute, variables) if attribute.value.variables <= variables.keys() else attribute
        for attribute in profile.subject
    )
    extensions: list[bytes | Extension] = []
    for extension in profile.extensions:
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
        extensions=tuple(extensions),
    )


def _relative_name(attribute: SubjectAttribute, variables: Mapping[str, str]) -> bytes:
    if not _present(attribute, variables):
        return b""
    return names.encode_attribute(attribute.attribute, attribute.value.render(variables))


def _constant_extension(
    profile: Profile, issuer: Issuer, extension: Extension, variables: Mapping[str, str]
) -> bytes | Extension:
    if extension is Extension.SUBJECT_KEY_IDENTIFIER:
        return extension
    alternative = profile.subject_alternative_name
    if extension is Extension.SUBJECT_ALTERNATIVE_NAME and alternative is not None:
        needed = frozenset[str]().union(*(template.variables for template in alternative.templates()))
        if not needed <= variables.keys():
            return extension
        return _extension_der(profile, extension, _alternative_name_der(alternative, variables))
    if extension is Extension.AUTHORITY_KEY_IDENTIFIER:
        value = der.encode(der.SEQUENCE, der.encode(0x80, issuer.key_identifier))
        return _extension_der(profile, extension, value)
    return _extension_der(profile, extension, _plain_extension(profile, extension, variables).public_bytes())


def _extension_der(profile: Profile, extension: Extension, value: bytes) -> bytes:
    critical = b"\x01\x01\xff" if profile.critical(extension) else b""
    return der.encode(der.SEQUENCE, der.oid(extension), critical, der.encode(der.OCTET_STRING, value))


def _alternative_name_der(alternative: SubjectAlternativeName, variables: Mapping[str, str]) -> bytes:
    if alternative.hardware_type is not None and alternative.hardware_serial is not None:
        name = _hardware_module_name(alternative.hardware_type, alternative.hardware_serial, variables)
        other = der.encode(0xA0, der.oid(_HARDWARE_MODULE_NAME), der.encode(0xA0, name))
        return der.encode(der.SEQUENCE, other)
    dns_names, addresses = _hosts(alternative, variables)
    return der.encode(
        der.SEQUENCE,
        *(der.encode(0x82, name.encode("ascii")) for name in dns_names),
        *(der.encode(0x87, address.packed) for address in addresses),
    )


def _hardware_module_name(kind: TextTemplate, serial: TextTemplate, variables: Mapping[str, str]) -> bytes:
    """HardwareModuleName ::= SEQUENCE { hwType OBJECT IDENTIFIER, hwSerialNum OCTET STRING } (RFC 4108)."""
    text = serial.render(variables)
    if not text or not text.isascii():
        raise MalformedRequest(f"hardware serial {text!r} is empty or not ascii")
    return der.encode(
        der.SEQUENCE, der.oid(kind.render(variables)), der.encode(der.OCTET_STRING, text.encode("ascii"))
    )


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _hosts(
    alternative: SubjectAlternativeName, variables: Mapping[str, str]
) -> tuple[list[str], list[_Address]]:
    dns_names = alternative.dns_names.render(variables).split() if alternative.dns_names else []
    texts = alternative.ip_addresses.render(variables).split() if alternative.ip_addresses else []
    for name in dns_names:
        labels = name.split(".")
        if len(name) > 253 or not all(_is_label(label) for label in labels):
            raise MalformedRequest(f"{name!r} is no dns name (RFC 1034 section 3.5)")
    try:
        addresses = [ipaddress.ip_address(text) for text in texts]
    except ValueError as error:
        raise MalformedRequest(str(error)) from error
    if not dns_names and not addresses:
        raise MalformedRequest("a server certificate needs a dns name or an ip address")
    return dns_names, addresses


def _is_label(label: str) -> bool:
    return (
        1 <= len(label) <= 63
        and label.isascii()
        and label.replace("-", "a").isalnum()
        and not label.startswith("-")
        and not label.endswith("-")
    )


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
) -> TBSCertificate:
    """Return what ``compile_template`` and ``fill`` return, built by ``x509.CertificateBuilder``.

    For authorities, and as the second opinion on templates.  Arguments and errors as there.
    """
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
    for extension in profile.extensions:
        value = _x509_extension(profile, issuer, extension, variables, subject_public_key_info)
        builder = builder.add_extension(value, critical=profile.critical(extension))
    hash_algorithm = ALGORITHMS[issuer.key_algorithm].hash_algorithm
    # The signature is thrown away: what counts are the octets the library would have signed.
    built = builder.sign(throwaway_key(issuer.key_algorithm), hash_algorithm)  # type: ignore[arg-type]
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
) -> TBSCertificate:
    """Return the self-signed certificate of a new root: its own name, key and validity are its issuer's.

    Raises:
        MalformedRequest: as ``build_reference``.
    """
    algorithm = recognise(subject_public_key_info)
    if algorithm is None:
        raise MalformedRequest("a root's key is P-256, P-384 or Ed25519")
    start, end = _validity(profile, not_before, not_after)
    itself = Issuer(
        key_label=key_label,
        key_algorithm=algorithm,
        subject=names.encode(_subject(profile, variables)),
        key_identifier=key_identifier(subject_public_key_info),
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
    )


def _x509_name(name: names.Name) -> x509.Name:
    return x509.Name([x509.NameAttribute(_NAME_OIDS[attribute], value) for attribute, value in name])


_NAME_OIDS = {
    names.Attribute.C: x509.NameOID.COUNTRY_NAME,
    names.Attribute.ST: x509.NameOID.STATE_OR_PROVINCE_NAME,
    names.Attribute.L: x509.NameOID.LOCALITY_NAME,
    names.Attribute.O: x509.NameOID.ORGANIZATION_NAME,
    names.Attribute.OU: x509.NameOID.ORGANIZATIONAL_UNIT_NAME,
    names.Attribute.DC: x509.NameOID.DOMAIN_COMPONENT,
    names.Attribute.CN: x509.NameOID.COMMON_NAME,
    names.Attribute.SERIAL_NUMBER: x509.NameOID.SERIAL_NUMBER,
}


def _x509_extension(
    profile: Profile, issuer: Issuer, extension: Extension, variables: Mapping[str, str], spki: bytes
) -> x509.ExtensionType:
    alternative = profile.subject_alternative_name
    if extension is Extension.SUBJECT_ALTERNATIVE_NAME and alternative is not None:
        return _x509_alternative_name(alternative, variables)
    if extension is Extension.SUBJECT_KEY_IDENTIFIER:
        return x509.SubjectKeyIdentifier(key_identifier(spki))
    if extension is Extension.AUTHORITY_KEY_IDENTIFIER:
        return x509.AuthorityKeyIdentifier(issuer.key_identifier, None, None)
    return _plain_extension(profile, extension, variables)


def _x509_alternative_name(
    alternative: SubjectAlternativeName, variables: Mapping[str, str]
) -> x509.SubjectAlternativeName:
    if alternative.hardware_type is not None and alternative.hardware_serial is not None:
        name = _hardware_module_name(alternative.hardware_type, alternative.hardware_serial, variables)
        kind = x509.ObjectIdentifier(_HARDWARE_MODULE_NAME)
        return x509.SubjectAlternativeName([x509.OtherName(kind, name)])
    dns_names, addresses = _hosts(alternative, variables)
    return x509.SubjectAlternativeName(
        [*(x509.DNSName(name) for name in dns_names), *(x509.IPAddress(address) for address in addresses)]
    )


def _plain_extension(
    profile: Profile, extension: Extension, variables: Mapping[str, str]
) -> x509.ExtensionType:
    """Return an extension that depends on neither key nor device."""
    match extension:
        case Extension.BASIC_CONSTRAINTS if profile.basic_constraints is not None:
            constraints = profile.basic_constraints
            return x509.BasicConstraints(constraints.ca, constraints.path_len_constraint)
        case Extension.KEY_USAGE:
            bits = [usage in profile.key_usage for usage in KeyUsage]
            # As many bits as KeyUsage takes; mypy cannot count them.
            return x509.KeyUsage(*bits, encipher_only=False, decipher_only=False)  # type: ignore[misc]
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
                    for method, template in (
                        (AuthorityInformationAccessOID.OCSP, profile.ocsp_responder),
                        (AuthorityInformationAccessOID.CA_ISSUERS, profile.ca_issuers),
                    )
                    if template is not None
                ]
            )
    raise RuntimeError(f"profile {profile.name} has no {extension.name}")


def _uri(template: TextTemplate, variables: Mapping[str, str]) -> x509.UniformResourceIdentifier:
    text = template.render(variables)
    if not text.startswith(("http://", "https://")) or not text.isascii() or " " in text:
        raise MalformedRequest(f"{text!r} is no http location")
    return x509.UniformResourceIdentifier(text)
