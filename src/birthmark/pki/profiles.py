"""Certificate profiles: what one kind of certificate contains, one TOML file each.

What a profile can say is in ``profilelanguage``.  They are packaged, in ``profiles/``, and loaded by name
only: what names a profile (a run's licence) can never name a file.  A ``Catalogue`` may hold those of one
more directory, read once; they cannot take a packaged one's name.

The reader is total: a file is a valid profile or one ``MalformedRequest`` that names file and key; an unknown
key is an error, not a default.  The linter waivers and the constraints carry their reasons and their negative
examples, so that an auditor reads in one place what was waived and what is refused.
"""

import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from birthmark.errors import MalformedRequest, NotFound
from birthmark.pki import der
from birthmark.pki.constraints import Constraint, parse_constraint
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.names import Attribute
from birthmark.pki.profilelanguage import (
    VARIABLES,
    BasicConstraints,
    Extension,
    KeyUsage,
    NameConstraints,
    NameForm,
    Profile,
    ProfileKind,
    SerialEncoding,
    SubjectAlternativeName,
    SubjectAttribute,
    Subtree,
    TextTemplate,
    Waiver,
)
from birthmark.tomltable import SUFFIX, TomlTable, document_of, files_of

__all__ = [
    "VARIABLES",
    "BasicConstraints",
    "Catalogue",
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
    "load",
    "names",
    "parse",
]

_DIRECTORY = files("birthmark.pki") / "profiles"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_DURATION = re.compile(r"P(?=.)(?:(\d{1,5})D)?(?:T(?=.)(?:(\d{1,4})H)?(?:(\d{1,4})M)?)?")
_NO_EXPIRY = "no-well-defined-expiry"
_LONGEST_FILE = 65_536

_EXTENDED_KEY_USAGES = {
    "server-auth": "1.3.6.1.5.5.7.3.1",
    "client-auth": "1.3.6.1.5.5.7.3.2",
    "code-signing": "1.3.6.1.5.5.7.3.3",
    "ocsp-signing": "1.3.6.1.5.5.7.3.9",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Catalogue:
    """The profiles of an installation: the packaged ones, and those of one directory.  It never changes."""

    profiles: Mapping[str, Profile]
    """By name, sorted by name."""

    @classmethod
    def read(cls, directory: Path | None = None) -> Self:
        """Read the packaged profiles and every ``*.toml`` of a directory.

        Raises:
            MalformedRequest: a file is no valid profile, or has the name of a packaged one.
            Unavailable: the directory, or a file in it, cannot be read.
        """
        found = {name: load(name) for name in names()}
        for file_name, octets in files_of(directory, "profile", _LONGEST_FILE).items():
            profile = parse(octets, file_name)
            if profile.name in found:
                raise MalformedRequest(f"profile {file_name}: name: {profile.name!r} is a packaged profile")
            found[profile.name] = profile
        for profile in found.values():
            for issuer in profile.issued_by:
                if issuer not in found or not found[issuer].is_ca:
                    raise MalformedRequest(
                        f"profile {profile.name}{SUFFIX}: issued-by: there is no authority's {issuer!r}"
                    )
        return cls(profiles=MappingProxyType(dict(sorted(found.items()))))

    def names(self) -> tuple[str, ...]:
        """Return the names of all profiles, sorted."""
        return tuple(self.profiles)

    def load(self, name: str) -> Profile:
        """Return a profile.

        Raises:
            NotFound: there is no such profile.
        """
        found = self.profiles.get(name)
        if found is None:
            raise NotFound(f"there is no profile {name[:64]!r}; there are {', '.join(self.profiles)}")
        return found


@cache
def names() -> tuple[str, ...]:
    """Return the names of the packaged profiles, sorted."""
    found = (entry.name for entry in _DIRECTORY.iterdir())
    return tuple(sorted(name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX)))


def load(name: str) -> Profile:
    """Return a packaged profile, always the same value.

    Raises:
        NotFound: there is no such profile.
    """
    if name not in names():
        raise NotFound(f"there is no profile {name[:64]!r}; there are {', '.join(names())}")
    return _packaged(name)


@cache
def _packaged(name: str) -> Profile:
    return parse((_DIRECTORY / f"{name}{SUFFIX}").read_bytes(), f"{name}{SUFFIX}")


def parse(octets: bytes, file_name: str) -> Profile:
    """Return the profile a TOML file (UTF-8) holds; its ``name`` must be the file's name without ``.toml``.

    Raises:
        MalformedRequest: the file is no valid profile; the message names file and key.
    """
    where = f"profile {file_name}: "
    table = _Table(document_of(octets, where), where)
    validity = table.take("validity", str)
    profile = Profile(
        name=table.take("name", str),
        title=table.take("title", str),
        kind=table.enum(ProfileKind, "kind", table.take("kind", str)),
        issued_by=tuple(table.texts("issued-by")),
        self_signed=table.take("self-signed", bool, default=False),
        subject=tuple(_subject_attribute(entry) for entry in table.tables("subject")),
        subject_key_algorithms=_algorithms(table, "subject-key-algorithms"),
        issuer_key_algorithms=_algorithms(table, "issuer-key-algorithms"),
        issuer_at_least_as_strong=table.take("issuer-at-least-as-strong", bool, default=False),
        validity=None if validity == _NO_EXPIRY else _duration(validity, table),
        shorter_validity=table.take("shorter-validity", bool, default=False),
        basic_constraints=_basic_constraints(table.table("basic-constraints")),
        name_constraints=_name_constraints(table.table("name-constraints")),
        key_usage=tuple(table.enum(KeyUsage, "key-usage", text) for text in table.texts("key-usage")),
        extended_key_usage=tuple(
            table.oid("extended-key-usage", _EXTENDED_KEY_USAGES.get(text, text))
            for text in table.texts("extended-key-usage")
        ),
        extended_key_usage_critical=table.take("extended-key-usage-critical", bool, default=False),
        subject_alternative_name=_alternative_name(table.table("subject-alternative-name")),
        certificate_policies=tuple(_policy(table, text) for text in table.texts("certificate-policies")),
        crl_distribution_point=table.template("crl-distribution-point"),
        ocsp_responder=table.template("ocsp-responder"),
        ca_issuers=table.template("ca-issuers"),
        ocsp_no_check=table.take("ocsp-no-check", bool, default=False),
        subject_key_identifier=table.take("subject-key-identifier", bool),
        subject_key_identifier_method=table.take("subject-key-identifier-method", int, default=1),
        authority_key_identifier=table.take("authority-key-identifier", bool),
        optional=frozenset(table.texts("optional")),
        max_der_size=table.take("max-der-size", int),
        constraints=tuple(
            table.constraint("constraints", entry) for entry in table.plain_tables("constraints")
        ),
        waivers=tuple(_waiver(entry) for entry in table.tables("waivers")),
        sha256=sha256(octets).hexdigest(),
    )
    table.finish()
    for key, complaint in _contradictions(profile, file_name.removesuffix(SUFFIX)):
        table.refuse(key, complaint)
    return profile


OCSP_SIGNING = "1.3.6.1.5.5.7.3.9"
ANY_EXTENDED_KEY_USAGE = "2.5.29.37.0"


def _contradictions(profile: Profile, stem: str) -> Iterator[tuple[str, str]]:
    """Yield (key, complaint) for what is well-formed and still no profile."""
    if profile.name != stem or not _NAME.fullmatch(profile.name):
        yield "name", f"{profile.name!r} must be the file's name: a-z, 0-9 and -, at most 64"
    if not profile.title.strip():
        yield "title", "must not be empty"
    yield from _wrong_lists(profile)
    yield from _wrong_for_its_kind(profile)
    if all(attribute.optional for attribute in profile.subject) and (
        profile.is_ca or not profile.critical(Extension.SUBJECT_ALTERNATIVE_NAME)
    ):
        yield (
            "subject",
            "may be empty only beside a critical subject-alternative-name (RFC 5280 section 4.1.2.6)",
        )
    if profile.extended_key_usage_critical and not profile.extended_key_usage:
        yield "extended-key-usage-critical", "there is no extended-key-usage"
    if not 256 <= profile.max_der_size <= 65_535:
        yield "max-der-size", f"{profile.max_der_size} is not between 256 and 65535"
    yield from _wrong_references(profile)


def _wrong_for_its_kind(profile: Profile) -> Iterator[tuple[str, str]]:
    """Yield what an authority must have, or only an authority can have."""
    if profile.is_ca != (KeyUsage.KEY_CERT_SIGN in profile.key_usage):
        yield "key-usage", "key-cert-sign and ca = true go together (RFC 5280 section 4.2.1.9)"
    if profile.is_ca != (profile.kind is ProfileKind.AUTHORITY):
        yield "kind", "authority and ca = true go together"
    if profile.is_ca and not profile.subject_key_identifier:
        yield "subject-key-identifier", "a ca must have one (RFC 5280 section 4.2.1.2)"
    if profile.subject_key_identifier_method not in {1, 2}:
        yield "subject-key-identifier-method", "is 1 or 2 (RFC 5280 section 4.2.1.2)"
    if profile.name_constraints is not None and not profile.is_ca:
        yield "name-constraints", "belong into the certificate of a ca (RFC 5280 section 4.2.1.10)"
    if profile.kind is not ProfileKind.RESPONDER and (
        OCSP_SIGNING in profile.extended_key_usage or profile.ocsp_no_check
    ):
        # Whoever has it answers for the whole authority (RFC 6960 section 4.2.2.2).
        yield "extended-key-usage", "ocsp-signing and no check are for a responder's certificate"
    if ANY_EXTENDED_KEY_USAGE in profile.extended_key_usage:
        yield "extended-key-usage", "any usage is a responder's, too (RFC 5280 section 4.2.1.12)"
    if profile.self_signed and not profile.is_ca:
        yield "self-signed", "is for the root of authorities"
    if not profile.authority_key_identifier and not profile.self_signed:
        yield (
            "authority-key-identifier",
            "may be left out only where self-signed = true (RFC 5280 section 4.2.1.1)",
        )


def _wrong_lists(profile: Profile) -> Iterator[tuple[str, str]]:
    for key, values in (
        ("subject-key-algorithms", profile.subject_key_algorithms),
        ("key-usage", profile.key_usage),
    ):
        if not values:
            yield key, "must name at least one"
    for key, listed in (
        ("subject-key-algorithms", profile.subject_key_algorithms),
        ("issuer-key-algorithms", profile.issuer_key_algorithms),
        ("issued-by", profile.issued_by),
        ("key-usage", profile.key_usage),
        ("extended-key-usage", profile.extended_key_usage),
        ("certificate-policies", tuple(policy.source for policy in profile.certificate_policies)),
        ("constraints", tuple(constraint.rule for constraint in profile.constraints)),
    ):
        if len(set(listed)) != len(listed):
            yield key, "names one twice"


def _wrong_references(profile: Profile) -> Iterator[tuple[str, str]]:
    """Yield what names something that is not there."""
    there = {
        "crl-distribution-point": profile.crl_distribution_point,
        "ocsp-responder": profile.ocsp_responder,
        "ca-issuers": profile.ca_issuers,
        "certificate-policies": profile.certificate_policies or None,
        "name-constraints": profile.name_constraints,
    }
    for key in sorted(profile.optional):
        if there.get(key) is None:
            yield "optional", f"{key!r} is not in this profile, or can not be optional"
    for constraint in profile.constraints:
        if constraint.variable not in profile.variables:
            yield "constraints", f"{constraint.rule}: the profile does not use {constraint.variable}"


class _Table(TomlTable):
    """A table that holds what only certificate profiles have."""

    __slots__ = ()

    def oid(self, key: str, text: str) -> str:
        try:
            der.oid(text)
        except MalformedRequest as error:
            raise MalformedRequest(f"{self.where}{key}: {error}") from error
        return text

    def constraint(self, key: str, content: Mapping[str, Any]) -> Constraint:
        try:
            return parse_constraint(content)
        except MalformedRequest as error:
            raise MalformedRequest(f"{self.where}{key}: {error}") from error

    def template(self, key: str) -> TextTemplate | None:
        return self.template_of(key, self.take(key, str)) if key in self else None

    def template_of(self, key: str, source: str) -> TextTemplate:
        try:
            pieces = list(string.Formatter().parse(source))
        except ValueError as error:
            raise MalformedRequest(f"{self.where}{key}: {source!r}: {error}") from error
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
    as_issuer = table.take("as-issuer", bool, default=False)
    table.finish()
    if value is None:
        table.refuse("value", "missing")
    return SubjectAttribute(attribute=attribute, value=value, optional=optional, as_issuer=as_issuer)


def _algorithms(table: _Table, key: str) -> tuple[KeyAlgorithm, ...]:
    return tuple(table.enum(KeyAlgorithm, key, text) for text in table.texts(key))


def _policy(table: _Table, text: str) -> TextTemplate:
    template = table.template_of("certificate-policies", text)
    if not template.variables:
        table.oid("certificate-policies", text)
    return template


def _basic_constraints(table: _Table | None) -> BasicConstraints | None:
    if table is None:
        return None
    ca = table.take("ca", bool)
    limit = table.take("path-len-constraint", int, default=-1)
    path_len = table.template("path-len")
    table.finish()
    if limit < -1 or limit > 16 or (limit >= 0 and not ca):
        table.refuse("path-len-constraint", f"{limit} must be 0 to 16, and only on a ca")
    if path_len is not None and not ca:
        table.refuse("path-len", "only on a ca")
    return BasicConstraints(ca=ca, path_len_constraint=None if limit < 0 else limit, path_len=path_len)


def _name_constraints(table: _Table | None) -> NameConstraints | None:
    if table is None:
        return None
    permitted = tuple(_subtree(entry) for entry in table.tables("permitted"))
    excluded = tuple(_subtree(entry) for entry in table.tables("excluded"))
    table.finish()
    if not permitted and not excluded:
        table.refuse("permitted", "permit or exclude something (RFC 5280 section 4.2.1.10)")
    return NameConstraints(permitted=permitted, excluded=excluded)


def _subtree(table: _Table) -> Subtree:
    form = table.enum(NameForm, "form", table.take("form", str))
    value = table.template("value")
    name = tuple(_subject_attribute(entry) for entry in table.tables("name"))
    table.finish()
    if (value is None) != (form is NameForm.DIRECTORY) or bool(name) != (form is NameForm.DIRECTORY):
        table.refuse("value", "a directory has name, a list of attributes; every other form has value")
    if any(part.optional or part.as_issuer for part in name):
        table.refuse("name", "an attribute here is neither optional nor as-issuer")
    return Subtree(form=form, value=value, name=name)


def _alternative_name(table: _Table | None) -> SubjectAlternativeName | None:
    if table is None:
        return None
    name = SubjectAlternativeName(
        critical=table.take("critical", bool),
        hardware_type=table.template("hardware-type"),
        hardware_serial=table.template("hardware-serial"),
        serial_encoding=table.enum(
            SerialEncoding, "serial-encoding", table.take("serial-encoding", str, default="ascii")
        ),
        permanent_identifier=table.template("permanent-identifier"),
        assigner=table.template("assigner"),
        dns_names=table.template("dns-names"),
        uris=table.template("uris"),
        ip_addresses=table.template("ip-addresses"),
        optional=frozenset(table.texts("optional")),
    )
    table.finish()
    if (name.hardware_type is None) != (name.hardware_serial is None):
        table.refuse("hardware-type", "give both of hardware-type and hardware-serial")
    if name.assigner is not None and name.permanent_identifier is None:
        table.refuse("assigner", "there is no permanent-identifier")
    there = {"uris": name.uris, "permanent-identifier": name.permanent_identifier}
    if any(there.get(key) is None for key in name.optional):
        table.refuse("optional", "only uris and permanent-identifier, and only those that are there")
    if not set(name.templates()) - set(name.optional_templates()):
        table.refuse("dns-names", "give host names, uris, a permanent-identifier or a hardware name")
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
