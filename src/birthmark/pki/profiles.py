"""Certificate profiles: what one kind of certificate contains, one TOML file each.

A profile says everything about a certificate but who signs it, whose key it holds, and the values of a few
named variables.  They are packaged, in ``profiles/``, and loaded by name only: what names a profile (a run's
licence) can never name a file.  The reader is total: a file is a valid profile or one ``MalformedRequest``
that names file and key; an unknown key is an error, not a default.

What may be written is what can be issued and linted: the extensions of ``Extension``, in that order.  Values
come from records through the variables, never from a request.  The linter waivers carry their reasons, so
that an auditor reads in one place what was waived and why.
"""

import re
import string
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from importlib.resources import files
from typing import Any, NoReturn, TypeVar

from birthmark.errors import MalformedRequest, NotFound
from birthmark.pki import der
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.names import Attribute

__all__ = [
    "VARIABLES",
    "BasicConstraints",
    "Extension",
    "KeyUsage",
    "Profile",
    "SubjectAlternativeName",
    "SubjectAttribute",
    "TextTemplate",
    "Waiver",
    "load",
    "names",
    "parse",
]

VARIABLES: Mapping[str, str] = {
    "authority": "name of the authority the certificate is for (CA profiles)",
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
    "realm": "name of the realm",
    "run": "production run",
    "station": "station name",
}
"""Every variable a profile may name."""

_DIRECTORY = files("birthmark.pki") / "profiles"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_DURATION = re.compile(r"P(?=.)(?:(\d{1,5})D)?(?:T(?=.)(?:(\d{1,4})H)?(?:(\d{1,4})M)?)?")
_NO_EXPIRY = "no-well-defined-expiry"


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
    KEY_USAGE = "2.5.29.15"
    EXTENDED_KEY_USAGE = "2.5.29.37"
    SUBJECT_ALTERNATIVE_NAME = "2.5.29.17"
    CERTIFICATE_POLICIES = "2.5.29.32"
    CRL_DISTRIBUTION_POINTS = "2.5.29.31"
    AUTHORITY_INFORMATION_ACCESS = "1.3.6.1.5.5.7.1.1"
    SUBJECT_KEY_IDENTIFIER = "2.5.29.14"
    AUTHORITY_KEY_IDENTIFIER = "2.5.29.35"


_EXTENDED_KEY_USAGES = {
    "server-auth": "1.3.6.1.5.5.7.3.1",
    "client-auth": "1.3.6.1.5.5.7.3.2",
    "code-signing": "1.3.6.1.5.5.7.3.3",
    "ocsp-signing": "1.3.6.1.5.5.7.3.9",
}


@dataclass(frozen=True, slots=True)
class TextTemplate:
    """Text with named variables: ``"{realm} Root CA"``."""

    source: str
    parts: tuple[tuple[str, str | None], ...]
    """Pairs of literal text and the variable that follows it (None after the last)."""
    variables: frozenset[str]

    def render(self, values: Mapping[str, str]) -> str:
        """Return the text with every variable filled in.

        Raises:
            MalformedRequest: a variable has no value.
        """
        try:
            return "".join([text + (values[name] if name else "") for text, name in self.parts])
        except KeyError as error:
            raise MalformedRequest(f"no value for {error.args[0]} in {self.source!r}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectAttribute:
    """One attribute of the subject."""

    attribute: Attribute
    value: TextTemplate
    optional: bool
    """Left out when one of its variables has no value or an empty one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BasicConstraints:
    """RFC 5280 section 4.2.1.9; always written critical."""

    ca: bool
    path_len_constraint: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectAlternativeName:
    """RFC 5280 section 4.2.1.6: either host names, or one hardwareModuleName."""

    critical: bool
    dns_names: TextTemplate | None
    ip_addresses: TextTemplate | None
    hardware_type: TextTemplate | None
    """hwType of RFC 4108 section 5: dotted decimals."""
    hardware_serial: TextTemplate | None
    """hwSerialNum of RFC 4108 section 5: the text's ASCII octets."""

    def templates(self) -> tuple[TextTemplate, ...]:
        """Return the templates that are there."""
        every = (self.dns_names, self.ip_addresses, self.hardware_type, self.hardware_serial)
        return tuple(template for template in every if template is not None)


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
    subject: tuple[SubjectAttribute, ...]
    subject_key_algorithms: tuple[KeyAlgorithm, ...]
    validity: timedelta | None
    """Longest validity; None is no well-defined expiry: 99991231235959Z (RFC 5280 section 4.1.2.5)."""
    shorter_validity: bool
    """Whether a certificate may expire earlier than ``validity`` says."""
    basic_constraints: BasicConstraints | None
    key_usage: tuple[KeyUsage, ...]
    extended_key_usage: tuple[str, ...]
    """Object identifiers in dotted decimals; empty for none."""
    subject_alternative_name: SubjectAlternativeName | None
    certificate_policies: tuple[str, ...]
    crl_distribution_point: TextTemplate | None
    ocsp_responder: TextTemplate | None
    ca_issuers: TextTemplate | None
    subject_key_identifier: bool
    authority_key_identifier: bool
    max_der_size: int
    """Most octets of the signed certificate."""
    waivers: tuple[Waiver, ...]

    @property
    def is_ca(self) -> bool:
        """Whether it certifies certification authorities."""
        return self.basic_constraints is not None and self.basic_constraints.ca

    @property
    def extensions(self) -> tuple[Extension, ...]:
        """Return the extensions of every certificate of this profile, in order."""
        present = {
            Extension.BASIC_CONSTRAINTS: self.basic_constraints is not None,
            Extension.KEY_USAGE: True,
            Extension.EXTENDED_KEY_USAGE: bool(self.extended_key_usage),
            Extension.SUBJECT_ALTERNATIVE_NAME: self.subject_alternative_name is not None,
            Extension.CERTIFICATE_POLICIES: bool(self.certificate_policies),
            Extension.CRL_DISTRIBUTION_POINTS: self.crl_distribution_point is not None,
            Extension.AUTHORITY_INFORMATION_ACCESS: bool(self.ocsp_responder or self.ca_issuers),
            Extension.SUBJECT_KEY_IDENTIFIER: self.subject_key_identifier,
            Extension.AUTHORITY_KEY_IDENTIFIER: self.authority_key_identifier,
        }
        return tuple(extension for extension in Extension if present[extension])

    @property
    def variables(self) -> frozenset[str]:
        """Return the variables it names anywhere."""
        alternative = self.subject_alternative_name
        texts = (self.crl_distribution_point, self.ocsp_responder, self.ca_issuers)
        templates = [attribute.value for attribute in self.subject]
        templates += [text for text in texts if text is not None]
        templates += [] if alternative is None else alternative.templates()
        return frozenset(name for template in templates for name in template.variables)

    @property
    def required_variables(self) -> frozenset[str]:
        """Return the variables without which nothing can be issued: all but those of optional attributes."""
        optional = {name for item in self.subject if item.optional for name in item.value.variables}
        required = {name for item in self.subject if not item.optional for name in item.value.variables}
        return frozenset((self.variables - optional) | required)

    def critical(self, extension: Extension) -> bool:
        """Return whether this profile writes an extension critical."""
        if extension is Extension.SUBJECT_ALTERNATIVE_NAME:
            return self.subject_alternative_name is not None and self.subject_alternative_name.critical
        return extension in {Extension.BASIC_CONSTRAINTS, Extension.KEY_USAGE}

    def waived(self, linter: str) -> frozenset[str]:
        """Return the findings of a linter that this profile accepts."""
        return frozenset(waiver.finding for waiver in self.waivers if waiver.linter == linter)


def names() -> tuple[str, ...]:
    """Return the names of the packaged profiles, sorted."""
    found = (entry.name for entry in _DIRECTORY.iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))


def load(name: str) -> Profile:
    """Return a packaged profile.

    Raises:
        NotFound: there is no such profile.
    """
    if name not in names():
        raise NotFound(f"there is no profile {name[:64]!r}; there are {', '.join(names())}")
    return parse((_DIRECTORY / f"{name}.toml").read_bytes(), f"{name}.toml")


def parse(octets: bytes, file_name: str) -> Profile:
    """Return the profile a TOML file (UTF-8) holds; its ``name`` must be the file's name without ``.toml``.

    Raises:
        MalformedRequest: the file is no valid profile; the message names file and key.
    """
    try:
        document = tomllib.loads(octets.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise MalformedRequest(f"profile {file_name}: not a toml file: {error}") from error
    table = _Table(document, f"profile {file_name}: ")
    validity = table.take("validity", str)
    profile = Profile(
        name=table.take("name", str),
        title=table.take("title", str),
        subject=tuple(_subject_attribute(entry) for entry in table.tables("subject")),
        subject_key_algorithms=tuple(
            table.enum(KeyAlgorithm, "subject-key-algorithms", text)
            for text in table.texts("subject-key-algorithms")
        ),
        validity=None if validity == _NO_EXPIRY else _duration(validity, table),
        shorter_validity=table.take("shorter-validity", bool, default=False),
        basic_constraints=_basic_constraints(table.table("basic-constraints")),
        key_usage=tuple(table.enum(KeyUsage, "key-usage", text) for text in table.texts("key-usage")),
        extended_key_usage=tuple(
            table.oid("extended-key-usage", _EXTENDED_KEY_USAGES.get(text, text))
            for text in table.texts("extended-key-usage")
        ),
        subject_alternative_name=_alternative_name(table.table("subject-alternative-name")),
        certificate_policies=tuple(
            table.oid("certificate-policies", text) for text in table.texts("certificate-policies")
        ),
        crl_distribution_point=table.template("crl-distribution-point"),
        ocsp_responder=table.template("ocsp-responder"),
        ca_issuers=table.template("ca-issuers"),
        subject_key_identifier=table.take("subject-key-identifier", bool),
        authority_key_identifier=table.take("authority-key-identifier", bool),
        max_der_size=table.take("max-der-size", int),
        waivers=tuple(_waiver(entry) for entry in table.tables("waivers")),
    )
    table.finish()
    for key, complaint in _contradictions(profile, file_name.removesuffix(".toml")):
        table.refuse(key, complaint)
    return profile


def _contradictions(profile: Profile, stem: str) -> Iterator[tuple[str, str]]:
    """Yield (key, complaint) for what is well-formed and still no profile."""
    if profile.name != stem or not _NAME.fullmatch(profile.name):
        yield "name", f"{profile.name!r} must be the file's name: a-z, 0-9 and -, at most 64"
    if not profile.title.strip():
        yield "title", "must not be empty"
    for key, values in (
        ("subject-key-algorithms", profile.subject_key_algorithms),
        ("key-usage", profile.key_usage),
    ):
        if not values:
            yield key, "must name at least one"
    for key, listed in (
        ("subject-key-algorithms", profile.subject_key_algorithms),
        ("key-usage", profile.key_usage),
        ("extended-key-usage", profile.extended_key_usage),
        ("certificate-policies", profile.certificate_policies),
    ):
        if len(set(listed)) != len(listed):
            yield key, "names one twice"
    if profile.is_ca != (KeyUsage.KEY_CERT_SIGN in profile.key_usage):
        yield "key-usage", "key-cert-sign and ca = true go together (RFC 5280 section 4.2.1.9)"
    if profile.is_ca and not profile.subject_key_identifier:
        yield "subject-key-identifier", "a ca must have one (RFC 5280 section 4.2.1.2)"
    if all(attribute.optional for attribute in profile.subject) and (
        profile.is_ca or not profile.critical(Extension.SUBJECT_ALTERNATIVE_NAME)
    ):
        yield (
            "subject",
            "may be empty only beside a critical subject-alternative-name (RFC 5280 section 4.1.2.6)",
        )
    if not 256 <= profile.max_der_size <= 65_535:
        yield "max-der-size", f"{profile.max_der_size} is not between 256 and 65535"


_T = TypeVar("_T", str, bool, int)
_E = TypeVar("_E", bound=StrEnum)


class _Table:
    """A TOML table that is emptied key by key; what is left over at the end is refused."""

    __slots__ = ("_rest", "_where")

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self._rest = dict(content)
        self._where = where

    def refuse(self, key: str, complaint: str) -> NoReturn:
        raise MalformedRequest(f"{self._where}{key}: {complaint}")

    def finish(self) -> None:
        for key in self._rest:
            self.refuse(key, "unknown key")

    def take(self, key: str, kind: type[_T], *, default: _T | None = None) -> _T:
        value = self._rest.pop(key, default)
        if type(value) is not kind:  # exactly: true is no integer
            complaint = "missing" if value is None else f"must be {_SPOKEN[kind]}"
            raise MalformedRequest(f"{self._where}{key}: {complaint}")
        return value

    def texts(self, key: str) -> list[str]:
        value = self._rest.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.refuse(key, "must be a list of texts")
        return list(value)

    def tables(self, key: str) -> list["_Table"]:
        value = self._rest.pop(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.refuse(key, "must be a list of tables")
        return [_Table(item, f"{self._where}{key}[{index}].") for index, item in enumerate(value)]

    def table(self, key: str) -> "_Table | None":
        value = self._rest.pop(key, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.refuse(key, "must be a table")
        return _Table(value, f"{self._where}{key}.")

    def enum(self, kind: type[_E], key: str, text: str) -> _E:
        try:
            return kind(text)
        except ValueError as error:
            known = ", ".join(kind)
            raise MalformedRequest(f"{self._where}{key}: {text!r} is none of {known}") from error

    def oid(self, key: str, text: str) -> str:
        try:
            der.oid(text)
        except MalformedRequest as error:
            raise MalformedRequest(f"{self._where}{key}: {error}") from error
        return text

    def template(self, key: str) -> TextTemplate | None:
        if key not in self._rest:
            return None
        source = self.take(key, str)
        try:
            pieces = list(string.Formatter().parse(source))
        except ValueError as error:
            raise MalformedRequest(f"{self._where}{key}: {source!r}: {error}") from error
        for _, variable, specification, conversion in pieces:
            if variable is not None and (variable not in VARIABLES or specification or conversion):
                known = ", ".join(VARIABLES)
                self.refuse(key, f"{source!r}: {{{variable}}} is none of the variables {known}")
        if not source:
            self.refuse(key, "must not be empty")
        return TextTemplate(
            source,
            tuple((literal, variable) for literal, variable, _, _ in pieces),
            frozenset(variable for _, variable, _, _ in pieces if variable is not None),
        )


_SPOKEN: Mapping[type, str] = {str: "a text", bool: "true or false", int: "an integer"}


def _duration(text: str, table: _Table) -> timedelta:
    """Read days, hours and minutes of an ISO 8601 duration: P397D, PT12H."""
    found = _DURATION.fullmatch(text)
    if found is None:
        table.refuse("validity", f"{text!r} is neither {_NO_EXPIRY} nor a duration like P397D or PT12H")
    days, hours, minutes = (int(part or 0) for part in found.groups())
    duration = timedelta(days=days, hours=hours, minutes=minutes)
    if not duration:
        table.refuse("validity", f"{text!r} is no time at all")
    return duration


def _subject_attribute(table: _Table) -> SubjectAttribute:
    attribute = table.enum(Attribute, "attribute", table.take("attribute", str))
    value = table.template("value")
    optional = table.take("optional", bool, default=False)
    table.finish()
    if value is None:
        table.refuse("value", "missing")
    return SubjectAttribute(attribute=attribute, value=value, optional=optional)


def _basic_constraints(table: _Table | None) -> BasicConstraints | None:
    if table is None:
        return None
    ca = table.take("ca", bool)
    path_len = table.take("path-len-constraint", int, default=-1)
    table.finish()
    if path_len < -1 or path_len > 16 or (path_len >= 0 and not ca):
        table.refuse("path-len-constraint", f"{path_len} must be 0 to 16, and only on a ca")
    return BasicConstraints(ca=ca, path_len_constraint=None if path_len < 0 else path_len)


def _alternative_name(table: _Table | None) -> SubjectAlternativeName | None:
    if table is None:
        return None
    name = SubjectAlternativeName(
        critical=table.take("critical", bool),
        dns_names=table.template("dns-names"),
        ip_addresses=table.template("ip-addresses"),
        hardware_type=table.template("hardware-type"),
        hardware_serial=table.template("hardware-serial"),
    )
    table.finish()
    hardware = {name.hardware_type is not None, name.hardware_serial is not None}
    hosts = name.dns_names is not None or name.ip_addresses is not None
    if len(hardware) == 2 or hardware == {hosts}:
        table.refuse("dns-names", "give host names, or both of hardware-type and hardware-serial")
    return name


def _waiver(table: _Table) -> Waiver:
    waiver = Waiver(
        linter=table.take("linter", str),
        finding=table.take("finding", str),
        reason=table.take("reason", str),
    )
    table.finish()
    if not waiver.reason.strip():
        table.refuse("reason", "a waiver needs its reason")
    return waiver
