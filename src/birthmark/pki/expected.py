"""What a profile lets lint expect: octets, tags and bounds, by encoders that issuance does not use.

A fault in issuance must not vouch for itself, so nothing here comes from there.  Everything is computed once
for each profile.
"""

from functools import lru_cache
from typing import NamedTuple

from birthmark.pki import der
from birthmark.pki.names import ATTRIBUTES
from birthmark.pki.profilelanguage import Extension, KeyUsage, Profile, SubjectAlternativeName

__all__ = ["Expected", "ExpectedAttribute", "ExpectedName", "access_methods", "expected_of"]

_HARDWARE_MODULE_NAME = der.oid("1.3.6.1.5.5.7.8.4")
_PERMANENT_IDENTIFIER = der.oid("1.3.6.1.5.5.7.8.3")
_OCSP, _CA_ISSUERS = der.oid("1.3.6.1.5.5.7.48.1"), der.oid("1.3.6.1.5.5.7.48.2")


class ExpectedAttribute(NamedTuple):
    """One attribute of the subject."""

    oid: bytes
    tag: int
    shortest: int
    longest: int
    alphabet: frozenset[str] | None
    optional: bool
    as_issuer: bool


class ExpectedName(NamedTuple):
    """One form of subjectAltName."""

    tag: int
    kind: bytes
    """Type of an otherName (DER), else empty."""
    inside: tuple[list[int], ...]
    """Tags inside of an otherName's SEQUENCE: one of these."""
    fewest: int
    most: int


class Expected(NamedTuple):
    """The octets that every certificate of a profile shares."""

    criticality: dict[tuple[bytes, ...], tuple[bool, ...]]
    """What is critical, by the extnIDs (DER), in order, of each choice of extensions that may be left out."""
    values: tuple[tuple[bytes, bytes], ...]
    """extnID (DER) and extnValue contents of the extensions that are the same in every certificate."""
    subject: tuple[ExpectedAttribute, ...]
    names: tuple[ExpectedName, ...]


@lru_cache(maxsize=256)
def expected_of(profile: Profile) -> Expected:
    """Return what every certificate of a profile must look like."""
    values = {Extension.KEY_USAGE: _key_usage(profile.key_usage)}
    if profile.extended_key_usage:
        purposes = [der.oid(text) for text in profile.extended_key_usage]
        values[Extension.EXTENDED_KEY_USAGE] = der.encode(der.SEQUENCE, *purposes)
    if profile.certificate_policies and not any(text.variables for text in profile.certificate_policies):
        policies = [der.encode(der.SEQUENCE, der.oid(text.source)) for text in profile.certificate_policies]
        values[Extension.CERTIFICATE_POLICIES] = der.encode(der.SEQUENCE, *policies)
    if (constraints := profile.basic_constraints) is not None and constraints.path_len is None:
        ca = b"\x01\x01\xff" if constraints.ca else b""
        path_len = constraints.path_len_constraint
        limit = b"" if path_len is None else der.integer(path_len)
        values[Extension.BASIC_CONSTRAINTS] = der.encode(der.SEQUENCE, ca, limit)
    if profile.ocsp_no_check:
        values[Extension.OCSP_NO_CHECK] = b"\x05\x00"
    variants = [
        tuple(extension for extension in profile.extensions if extension not in lacking)
        for lacking in _subsets(
            [extension for extension in profile.extensions if profile.may_lack(extension)]
        )
    ]
    kinds = [(ATTRIBUTES[part.attribute], part) for part in profile.subject]
    return Expected(
        criticality={
            tuple(der.oid(extension) for extension in variant): tuple(map(profile.critical, variant))
            for variant in variants
        },
        values=tuple((der.oid(extension), value) for extension, value in values.items()),
        subject=tuple(
            ExpectedAttribute(
                kind.oid, kind.tag, kind.shortest, kind.longest, kind.alphabet, part.optional, part.as_issuer
            )
            for kind, part in kinds
        ),
        names=_expected_names(profile.subject_alternative_name),
    )


def _subsets(items: list[Extension]) -> list[frozenset[Extension]]:
    found: list[frozenset[Extension]] = [frozenset()]
    for item in items:
        found += [subset | {item} for subset in found]
    return found


def _expected_names(alternative: SubjectAlternativeName | None) -> tuple[ExpectedName, ...]:
    """Return the forms in the order in which they are written."""
    if alternative is None:
        return ()
    many, found = 1 << 16, []
    if alternative.hardware_type is not None:
        inside = ([der.OID, der.OCTET_STRING],)
        found.append(ExpectedName(0xA0, _HARDWARE_MODULE_NAME, inside, 1, 1))
    if alternative.permanent_identifier is not None:
        fewest = 0 if "permanent-identifier" in alternative.optional else 1
        bare, assigned = [der.UTF8_STRING], [der.UTF8_STRING, der.OID]
        choices = (bare,) if alternative.assigner is None else (bare, assigned)
        found.append(ExpectedName(0xA0, _PERMANENT_IDENTIFIER, choices, fewest, 1))
    if alternative.dns_names is not None:
        found.append(ExpectedName(0x82, b"", (), 0, many))
    if alternative.uris is not None:
        found.append(ExpectedName(0x86, b"", (), 0 if "uris" in alternative.optional else 1, many))
    if alternative.ip_addresses is not None:
        found.append(ExpectedName(0x87, b"", (), 0, many))
    return tuple(found)


def _key_usage(usages: tuple[KeyUsage, ...]) -> bytes:
    """KeyUsage ::= BIT STRING, trailing zero bits removed (X.690 section 11.2.2)."""
    bits = sum(0x80 >> number for number, usage in enumerate(KeyUsage) if usage in usages)
    unused = (bits & -bits).bit_length() - 1
    return der.encode(der.BIT_STRING, bytes((unused, bits)))


@lru_cache(maxsize=256)
def access_methods(profile: Profile) -> list[list[bytes]]:
    """Return what the access methods may be, in order."""
    choices: list[list[bytes]] = [[]]
    for method, key, template in (
        (_OCSP, "ocsp-responder", profile.ocsp_responder),
        (_CA_ISSUERS, "ca-issuers", profile.ca_issuers),
    ):
        if template is not None:
            there = [[*choice, method] for choice in choices]
            choices = choices + there if key in profile.optional else there
    return [choice for choice in choices if choice]
