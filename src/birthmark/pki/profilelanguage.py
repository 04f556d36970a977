"""What a certificate profile can say, as values.

A ``Profile`` says everything about a certificate but who signs it, whose key it holds, and the values of a
few named variables.  What may be said is what can be issued and linted: the extensions of ``Extension``, in
that order, and the forms of subjectAltName that are fields of ``SubjectAlternativeName``.  Values come from
records through the variables, never from a request.

``profiles`` reads these values from files; ``issuance`` writes certificates by them; ``lint`` judges the
octets by them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

from birthmark.errors import MalformedRequest
from birthmark.pki.constraints import Constraint
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.names import Attribute

__all__ = [
    "DEVICE_VARIABLES",
    "VARIABLES",
    "BasicConstraints",
    "Extension",
    "KeyUsage",
    "NameConstraints",
    "NameForm",
    "Profile",
    "ProfileKind",
    "SerialEncoding",
    "SubjectAlternativeName",
    "SubjectAttribute",
    "Subtree",
    "TextTemplate",
    "Waiver",
]

VARIABLES: Mapping[str, str] = {
    "authority": "name of the authority the certificate is for (CA profiles)",
    "certificate_policy": "object identifier of the policy the certificate is issued under",
    "country": "ISO 3166 country code of the organization",
    "crl_url": "where this certificate's CRL will be found",
    "dns_names": "DNS names of a server, separated by spaces",
    "environment_mark": "' TEST' in a test realm, empty in production",
    "hardware_id": "the device's normalised hardware id",
    "hardware_type": "object identifier of the kind of hardware, under the maker's arc (RFC 4108 hwType)",
    "host": "name of a server",
    "ip_addresses": "IP addresses of a server, separated by spaces",
    "issuer_url": "where the issuer's certificate will be found",
    "ocsp_url": "where this certificate's status will be answered",
    "operator": "operator id",
    "organization": "legal name of the organization",
    "organizational_unit": "unit of the organization: product line, batch or site",
    "path_len": "how many authorities may follow below this one",
    "permitted_dns_names": "DNS names below which an authority may certify, separated by spaces",
    "product_id": "Matter product id: four capital hex digits",
    "product_uri": "beginning of the ProductInstanceUri (OPC 10000-21); the hardware id follows",
    "proxy": "name of a proxy in front of the gateway",
    "realm": "name of the realm",
    "responder": "name of an OCSP responder",
    "run": "production run",
    "signer": "name of a signer of software",
    "shared": "name of a credential that many devices share",
    "station": "station name",
    "vendor_id": "Matter vendor id: four capital hex digits",
}
"""Every variable a profile may name."""


DEVICE_VARIABLES = frozenset({"hardware_id"})
"""The variables that come with each device; all others are the same for a whole run."""


class ProfileKind(StrEnum):
    """What a profile's certificates are for."""

    DEVICE = "device"
    """Made on the line, one a device."""
    AUTHORITY = "authority"
    """A certification authority."""
    CLIENT = "client"
    """A party to the service itself: server, station, operator, bootstrap."""
    RESPONDER = "responder"
    """Answers for the status of certificates (RFC 6960)."""
    SIGNER = "signer"
    """Signs software."""


class KeyUsage(StrEnum):
    """Bits of keyUsage (RFC 5280 section 4.2.1.3), in the order of their bit numbers."""

    DIGITAL_SIGNATURE = "digital-signature"
    CONTENT_COMMITMENT = "content-commitment"
    KEY_ENCIPHERMENT = "key-encipherment"
    DATA_ENCIPHERMENT = "data-encipherment"
    KEY_AGREEMENT = "key-agreement"
    KEY_CERT_SIGN = "key-cert-sign"
    CRL_SIGN = "crl-sign"


class Extension(StrEnum):
    """The extensions we issue, in the order in which we write them; the value is the object identifier."""

    BASIC_CONSTRAINTS = "2.5.29.19"
    NAME_CONSTRAINTS = "2.5.29.30"
    KEY_USAGE = "2.5.29.15"
    EXTENDED_KEY_USAGE = "2.5.29.37"
    SUBJECT_ALTERNATIVE_NAME = "2.5.29.17"
    CERTIFICATE_POLICIES = "2.5.29.32"
    CRL_DISTRIBUTION_POINTS = "2.5.29.31"
    AUTHORITY_INFORMATION_ACCESS = "1.3.6.1.5.5.7.1.1"
    OCSP_NO_CHECK = "1.3.6.1.5.5.7.48.1.5"
    SUBJECT_KEY_IDENTIFIER = "2.5.29.14"
    AUTHORITY_KEY_IDENTIFIER = "2.5.29.35"


@dataclass(frozen=True, slots=True)
class TextTemplate:
    """Text with named variables: ``"{realm} Root CA"``."""

    source: str
    parts: tuple[tuple[str, str | None], ...]
    """Pairs of literal text and the variable that follows it (None after the last)."""
    variables: frozenset[str]

    @classmethod
    def constant(cls, text: str) -> "TextTemplate":
        """Return the template that always renders to this text."""
        return cls(text, ((text, None),), frozenset())

    def render(self, values: Mapping[str, str]) -> str:
        """Return the text with every variable filled in.

        Raises:
            MalformedRequest: a variable has no value.
        """
        try:
            return "".join([text + (values[name] if name else "") for text, name in self.parts])
        except KeyError as error:
            raise MalformedRequest(f"no value for {error.args[0]} in {self.source!r}") from error

    def has_values(self, values: Mapping[str, str]) -> bool:
        """Return whether every variable has a value that is not empty."""
        return all(values.get(name) for name in self.variables)


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectAttribute:
    """One attribute of the subject."""

    attribute: Attribute
    value: TextTemplate
    optional: bool
    """Left out when one of its variables has no value or an empty one."""
    as_issuer: bool = False
    """Must be the issuer's own, where the issuer's subject has this attribute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BasicConstraints:
    """RFC 5280 section 4.2.1.9; always written critical."""

    ca: bool
    path_len_constraint: int | None
    """None for no limit, or where ``path_len`` decides."""
    path_len: TextTemplate | None = None
    """Where it has a value, that is the limit instead."""


class NameForm(StrEnum):
    """Forms of name that name constraints speak of (RFC 5280 section 4.2.1.10); the values are our words."""

    DNS = "dns"
    IP = "ip"
    URI = "uri"
    DIRECTORY = "directory"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subtree:
    """Names of one form that are permitted or excluded."""

    form: NameForm
    value: TextTemplate | None
    """DNS names, address ranges or URI hosts, separated by spaces; None for directory names."""
    name: tuple[SubjectAttribute, ...]
    """How the permitted or excluded directory names begin."""

    def templates(self) -> tuple[TextTemplate, ...]:
        """Return the templates that are there."""
        return (self.value,) if self.value is not None else tuple(part.value for part in self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class NameConstraints:
    """RFC 5280 section 4.2.1.10; always written critical."""

    permitted: tuple[Subtree, ...]
    excluded: tuple[Subtree, ...]


class SerialEncoding(StrEnum):
    """How the text of a hardware serial becomes the octets of hwSerialNum (RFC 4108 section 5)."""

    ASCII = "ascii"
    """Its ASCII octets."""
    HEX = "hex"
    """The octets whose hex digits it is: an EUI-64 as eight octets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectAlternativeName:
    """RFC 5280 section 4.2.1.6; the names are written in the order of these fields."""

    critical: bool
    hardware_type: TextTemplate | None
    """hwType of a hardwareModuleName (RFC 4108 section 5): dotted decimals."""
    hardware_serial: TextTemplate | None
    """hwSerialNum of the same."""
    dns_names: TextTemplate | None
    ip_addresses: TextTemplate | None
    serial_encoding: SerialEncoding = SerialEncoding.ASCII
    permanent_identifier: TextTemplate | None = None
    """identifierValue of a permanentIdentifier (RFC 4043)."""
    assigner: TextTemplate | None = None
    """assigner of the same: dotted decimals; left out where it has no value."""
    uris: TextTemplate | None = None
    """Uniform resource identifiers, separated by spaces."""
    optional: frozenset[str] = frozenset()
    """Those of ``uris`` and ``permanent-identifier`` that are left out when a variable has no value."""

    @property
    def has_hosts(self) -> bool:
        """Whether it has names other than those of hardware."""
        return self.dns_names is not None or self.uris is not None or self.ip_addresses is not None

    def templates(self) -> tuple[TextTemplate, ...]:
        """Return the templates that are there."""
        every = (
            self.hardware_type,
            self.hardware_serial,
            self.permanent_identifier,
            self.assigner,
            self.dns_names,
            self.uris,
            self.ip_addresses,
        )
        return tuple(template for template in every if template is not None)

    def narrowed(self, values: Mapping[str, str]) -> "SubjectAlternativeName":
        """Return it without the optional names that no device of a run with these values will have."""

        def lost(key: str, template: TextTemplate | None) -> bool:
            if template is None or key not in self.optional:
                return False
            return not all(values.get(name) for name in template.variables - DEVICE_VARIABLES)

        without_uris = lost("uris", self.uris)
        without_permanent = lost("permanent-identifier", self.permanent_identifier)
        if not without_uris and not without_permanent:
            return self
        return replace(
            self,
            uris=None if without_uris else self.uris,
            permanent_identifier=None if without_permanent else self.permanent_identifier,
            assigner=None if without_permanent else self.assigner,
        )

    def optional_templates(self) -> tuple[TextTemplate, ...]:
        """Return the templates that may stay without a value."""
        found = [self.assigner]
        found += [self.permanent_identifier] if "permanent-identifier" in self.optional else []
        found += [self.uris] if "uris" in self.optional else []
        return tuple(template for template in found if template is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiver:
    """A finding of a linter that this profile accepts, and why."""

    linter: str
    finding: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Profile:
    """One kind of certificate.

    Compared by identity, so that what is compiled from a profile can be kept by it.
    """

    name: str
    title: str
    kind: ProfileKind
    issued_by: tuple[str, ...]
    """Profiles that the issuer's own certificate may have been made with; empty for any."""
    self_signed: bool
    """Whether it is a root's: its own name and key are its issuer's."""
    subject: tuple[SubjectAttribute, ...]
    subject_key_algorithms: tuple[KeyAlgorithm, ...]
    issuer_key_algorithms: tuple[KeyAlgorithm, ...]
    """Algorithms that may sign it; empty for any."""
    issuer_at_least_as_strong: bool
    """Whether the issuer's key must have the subject key's bits of security, or more."""
    validity: timedelta | None
    """Longest validity; None is no well-defined expiry: 99991231235959Z (RFC 5280 section 4.1.2.5)."""
    shorter_validity: bool
    """Whether a certificate may expire earlier than ``validity`` says."""
    basic_constraints: BasicConstraints | None
    name_constraints: NameConstraints | None
    key_usage: tuple[KeyUsage, ...]
    extended_key_usage: tuple[str, ...]
    """Object identifiers in dotted decimals; empty for none."""
    extended_key_usage_critical: bool
    subject_alternative_name: SubjectAlternativeName | None
    certificate_policies: tuple[TextTemplate, ...]
    """Object identifiers in dotted decimals."""
    crl_distribution_point: TextTemplate | None
    ocsp_responder: TextTemplate | None
    ca_issuers: TextTemplate | None
    ocsp_no_check: bool
    """Whether clients need not ask for its own status (RFC 6960 section 4.2.2.2.1)."""
    subject_key_identifier: bool
    subject_key_identifier_method: int
    """1 or 2 (RFC 5280 section 4.2.1.2): 20 octets of SHA-1, or 8."""
    authority_key_identifier: bool
    optional: frozenset[str]
    """Keys of what is left out when one of its variables has no value or an empty one.

    Any of crl-distribution-point, ocsp-responder, ca-issuers, certificate-policies and name-constraints.
    """
    max_der_size: int
    """Most octets of the signed certificate."""
    constraints: tuple[Constraint, ...]
    """What the standard asks of the variables."""
    waivers: tuple[Waiver, ...]
    sha256: str
    """Of the file, in lower-case hex; empty for a profile that is in none."""

    @property
    def is_ca(self) -> bool:
        """Whether it certifies certification authorities."""
        return self.basic_constraints is not None and self.basic_constraints.ca

    @property
    def extensions(self) -> tuple[Extension, ...]:
        """Return the extensions that certificates of this profile may have, in order."""
        present = {
            Extension.BASIC_CONSTRAINTS: self.basic_constraints is not None,
            Extension.NAME_CONSTRAINTS: self.name_constraints is not None,
            Extension.KEY_USAGE: True,
            Extension.EXTENDED_KEY_USAGE: bool(self.extended_key_usage),
            Extension.SUBJECT_ALTERNATIVE_NAME: self.subject_alternative_name is not None,
            Extension.CERTIFICATE_POLICIES: bool(self.certificate_policies),
            Extension.CRL_DISTRIBUTION_POINTS: self.crl_distribution_point is not None,
            Extension.AUTHORITY_INFORMATION_ACCESS: bool(self.ocsp_responder or self.ca_issuers),
            Extension.OCSP_NO_CHECK: self.ocsp_no_check,
            Extension.SUBJECT_KEY_IDENTIFIER: self.subject_key_identifier,
            Extension.AUTHORITY_KEY_IDENTIFIER: self.authority_key_identifier,
        }
        return tuple(extension for extension in Extension if present[extension])

    def may_lack(self, extension: Extension) -> bool:
        """Return whether a certificate of this profile may be without this extension."""
        match extension:
            case Extension.NAME_CONSTRAINTS:
                return "name-constraints" in self.optional
            case Extension.CERTIFICATE_POLICIES:
                return "certificate-policies" in self.optional
            case Extension.CRL_DISTRIBUTION_POINTS:
                return "crl-distribution-point" in self.optional
            case Extension.AUTHORITY_INFORMATION_ACCESS:
                there = [("ocsp-responder", self.ocsp_responder), ("ca-issuers", self.ca_issuers)]
                return all(key in self.optional for key, template in there if template is not None)
            case _:
                return False

    def extensions_for(self, values: Mapping[str, str]) -> tuple[Extension, ...]:
        """Return the extensions of a certificate with these values, the optional only with theirs."""
        return tuple(
            extension
            for extension in self.extensions
            if not self.may_lack(extension)
            or any(
                all(template.has_values(values) for template in templates)
                for part, templates in self._parts()
                if part is extension
            )
        )

    def wants(self, key: str, template: TextTemplate | None, values: Mapping[str, str]) -> bool:
        """Return whether what an optional key describes is in a certificate with these values."""
        return template is not None and (key not in self.optional or template.has_values(values))

    @property
    def variables(self) -> frozenset[str]:
        """Return the variables it names anywhere."""
        return frozenset(name for template in self._templates() for name in template.variables)

    @property
    def required_variables(self) -> frozenset[str]:
        """Return the variables without which nothing can be issued."""
        return frozenset(name for template in self._required_templates() for name in template.variables)

    @property
    def early_variables(self) -> frozenset[str]:
        """Return the variables that decide what all certificates have: to be known before the line starts.

        What is optional and needs one of them is left out of every certificate when it is not known by then.
        """
        parts = [template for _, templates in self._parts() for template in templates]
        if self.subject_alternative_name is not None:
            parts += self.subject_alternative_name.optional_templates()
        early = frozenset(name for template in parts for name in template.variables)
        return (
            early
            - DEVICE_VARIABLES
            - frozenset(name for attribute in self.subject for name in attribute.value.variables)
        )

    def _parts(self) -> Iterator[tuple[Extension, tuple[TextTemplate, ...]]]:
        """Yield what is the same for all devices, by the extension it is written into."""
        if self.basic_constraints is not None and self.basic_constraints.path_len is not None:
            yield Extension.BASIC_CONSTRAINTS, (self.basic_constraints.path_len,)
        if self.name_constraints is not None:
            trees = self.name_constraints.permitted + self.name_constraints.excluded
            yield Extension.NAME_CONSTRAINTS, tuple(text for tree in trees for text in tree.templates())
        if self.certificate_policies:
            yield Extension.CERTIFICATE_POLICIES, self.certificate_policies
        if self.crl_distribution_point is not None:
            yield Extension.CRL_DISTRIBUTION_POINTS, (self.crl_distribution_point,)
        for access in (self.ocsp_responder, self.ca_issuers):
            if access is not None:
                yield Extension.AUTHORITY_INFORMATION_ACCESS, (access,)

    def _templates(self) -> Iterator[TextTemplate]:
        yield from (attribute.value for attribute in self.subject)
        if self.subject_alternative_name is not None:
            yield from self.subject_alternative_name.templates()
        yield from (template for _, templates in self._parts() for template in templates)

    def _required_templates(self) -> Iterator[TextTemplate]:
        yield from (attribute.value for attribute in self.subject if not attribute.optional)
        if self.subject_alternative_name is not None:
            spared = self.subject_alternative_name.optional_templates()
            yield from (text for text in self.subject_alternative_name.templates() if text not in spared)
        locations = {
            "crl-distribution-point": self.crl_distribution_point,
            "ocsp-responder": self.ocsp_responder,
            "ca-issuers": self.ca_issuers,
        }
        yield from (text for key, text in locations.items() if text is not None and key not in self.optional)
        if "certificate-policies" not in self.optional:
            yield from self.certificate_policies
        if self.name_constraints is not None and "name-constraints" not in self.optional:
            trees = self.name_constraints.permitted + self.name_constraints.excluded
            yield from (text for tree in trees for text in tree.templates())

    def critical(self, extension: Extension) -> bool:
        """Return whether this profile writes an extension critical."""
        match extension:
            case Extension.SUBJECT_ALTERNATIVE_NAME:
                return self.subject_alternative_name is not None and self.subject_alternative_name.critical
            case Extension.EXTENDED_KEY_USAGE:
                return self.extended_key_usage_critical
            case _:
                return extension in _ALWAYS_CRITICAL


_ALWAYS_CRITICAL = frozenset({Extension.BASIC_CONSTRAINTS, Extension.NAME_CONSTRAINTS, Extension.KEY_USAGE})
