# ruff: noqa: ARG001 -- every rule has the same two parameters, whether it needs both or not
"""Our rules for every certificate, on the octets that will be signed.

``permit`` reads a TBSCertificate's DER, not the values it was made from, and asks every rule; only then is
there an ``IssuancePermit``, and only with that can anything be signed.  A rule is a function from the reading
to a complaint or None, and its docstring is its citation.  What a rule expects it takes from the profile and
the issuer with encoders of this module, so that a fault in issuance does not vouch for itself.

These are the rules that every certificate meets before it is signed.  A general-purpose linter (pkilint)
judges certificates of every profile in the tests; the service does not run it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der
from birthmark.pki.algorithms import ALGORITHMS, key_identifier, recognise
from birthmark.pki.certificates import TBSCertificate
from birthmark.pki.names import ATTRIBUTES
from birthmark.pki.profiles import Extension, KeyUsage, Profile

__all__ = ["RULES", "IssuancePermit", "Reading", "Rule", "permit", "read"]


class Reading(NamedTuple):
    """A TBSCertificate as its octets say (RFC 5280 section 4.1)."""

    octets: bytes
    version: bytes
    serial_number: bytes
    """Contents of the INTEGER."""
    signature_algorithm: bytes
    issuer: bytes
    not_before: datetime
    not_after: datetime
    times: tuple[tuple[int, bytes], ...]
    """Tag and contents of notBefore and notAfter."""
    subject: bytes
    subject_public_key_info: bytes
    extensions: dict[bytes, bytes]
    """Contents of extnValue by extnID (DER), in order."""
    criticality: tuple[bool, ...]


def read(octets: bytes) -> Reading:
    """Read a TBSCertificate (DER), version 3 with extensions and without unique identifiers.

    Raises:
        MalformedRequest: the octets are something else.
    """
    _, _, content, end = der.only(octets, der.SEQUENCE)
    fields = der.children(octets, content, end)
    if [found[0] for found in fields] != _FIELDS:
        raise MalformedRequest(
            "not version, serial number, algorithm, issuer, validity, subject, key, extensions"
        )
    version, serial, algorithm, issuer, validity, subject, key, wrapped = fields
    times = [(tag, octets[start:stop]) for tag, _, start, stop in der.children(octets, *validity[2:])]
    if len(times) != 2:
        raise MalformedRequest("validity is not two times")
    _, _, content, end = der.only(octets, der.SEQUENCE, *wrapped[2:])
    extensions: dict[bytes, bytes] = {}
    criticality: list[bool] = []
    for tag, _, start, stop in der.children(octets, content, end):
        parts = der.children(octets, start, stop)
        tags = [part[0] for part in parts]
        if tag != der.SEQUENCE or tags not in (_PLAIN_EXTENSION, _MARKED_EXTENSION):
            raise MalformedRequest("an extension is not identifier, criticality and value")
        critical = tags == _MARKED_EXTENSION
        if critical and octets[parts[1][2] : parts[1][3]] != b"\xff":
            raise MalformedRequest("criticality is not TRUE: FALSE is left out (X.690 section 11.5)")
        identifier = octets[parts[0][1] : parts[0][3]]
        if identifier in extensions:
            raise MalformedRequest("an extension occurs twice")
        extensions[identifier] = octets[parts[-1][2] : parts[-1][3]]
        criticality.append(critical)
    return Reading(
        octets,
        octets[version[1] : version[3]],
        octets[serial[2] : serial[3]],
        octets[algorithm[1] : algorithm[3]],
        octets[issuer[1] : issuer[3]],
        _moment(*times[0]),
        _moment(*times[1]),
        tuple(times),
        octets[subject[1] : subject[3]],
        octets[key[1] : key[3]],
        extensions,
        tuple(criticality),
    )


_FIELDS = [0xA0, der.INTEGER, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE, der.SEQUENCE, 0xA3]
_PLAIN_EXTENSION = [der.OID, der.OCTET_STRING]
_MARKED_EXTENSION = [der.OID, der.BOOLEAN, der.OCTET_STRING]


@lru_cache(maxsize=64)  # most certificates of a minute share theirs
def _moment(tag: int, contents: bytes) -> datetime:
    digits = contents[:-1]
    if not digits.isdigit() or contents[-1:] != b"Z" or (tag, len(contents)) not in {(0x17, 13), (0x18, 15)}:
        raise MalformedRequest(f"{contents!r} is no time with seconds and Z")
    if tag == der.UTC_TIME:
        digits = (b"20" if digits < b"5" else b"19") + digits
    try:
        return datetime(
            int(digits[0:4]), int(digits[4:6]), int(digits[6:8]), int(digits[8:10]), int(digits[10:12]),
            int(digits[12:14]), tzinfo=UTC,
        )  # fmt: skip
    except ValueError as error:
        raise MalformedRequest(f"{contents!r} is no time: {error}") from error


# --- what a profile lets us expect ---


class _ExpectedAttribute(NamedTuple):
    """One attribute of the subject: type (DER), string tag, fewest and most characters."""

    oid: bytes
    tag: int
    shortest: int
    longest: int
    optional: bool


class _Expected(NamedTuple):
    """The octets that every certificate of a profile shares."""

    extensions: tuple[bytes, ...]
    """extnIDs (DER), in order."""
    criticality: tuple[bool, ...]
    values: dict[bytes, bytes]
    """extnValue contents by extnID (DER), for the extensions that are the same in every certificate."""
    subject: tuple[_ExpectedAttribute, ...]


@lru_cache(maxsize=64)
def _expected(profile: Profile) -> _Expected:
    values = {Extension.KEY_USAGE: _key_usage(profile.key_usage)}
    if profile.extended_key_usage:
        purposes = [der.oid(text) for text in profile.extended_key_usage]
        values[Extension.EXTENDED_KEY_USAGE] = der.encode(der.SEQUENCE, *purposes)
    if profile.certificate_policies:
        policies = [der.encode(der.SEQUENCE, der.oid(text.source)) for text in profile.certificate_policies]
        values[Extension.CERTIFICATE_POLICIES] = der.encode(der.SEQUENCE, *policies)
    if (constraints := profile.basic_constraints) is not None:
        ca = b"\x01\x01\xff" if constraints.ca else b""
        path_len = constraints.path_len_constraint
        limit = b"" if path_len is None else der.integer(path_len)
        values[Extension.BASIC_CONSTRAINTS] = der.encode(der.SEQUENCE, ca, limit)
    kinds = [(ATTRIBUTES[part.attribute], part.optional) for part in profile.subject]
    return _Expected(
        extensions=tuple(der.oid(extension) for extension in profile.extensions),
        criticality=tuple(profile.critical(extension) for extension in profile.extensions),
        values={der.oid(extension): value for extension, value in values.items()},
        subject=tuple(
            _ExpectedAttribute(kind.oid, kind.tag, kind.shortest, kind.longest, optional)
            for kind, optional in kinds
        ),
    )


def _key_usage(usages: tuple[KeyUsage, ...]) -> bytes:
    """KeyUsage ::= BIT STRING, trailing zero bits removed (X.690 section 11.2.2)."""
    bits = sum(0x80 >> number for number, usage in enumerate(KeyUsage) if usage in usages)
    unused = (bits & -bits).bit_length() - 1
    return der.encode(der.BIT_STRING, bytes((unused, bits)))


# --- the rules ---

Rule = Callable[[Reading, TBSCertificate], str | None]

_VERSION_3 = bytes.fromhex("a003020102")
_FIRST_GENERALIZED_TIME = 2050
_END_OF_TIME = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_SECOND = timedelta(seconds=1)
_SUBJECT_ALTERNATIVE_NAME = der.oid(Extension.SUBJECT_ALTERNATIVE_NAME)
_CRL_DISTRIBUTION_POINTS = der.oid(Extension.CRL_DISTRIBUTION_POINTS)
_AUTHORITY_INFORMATION_ACCESS = der.oid(Extension.AUTHORITY_INFORMATION_ACCESS)
_SUBJECT_KEY_IDENTIFIER = der.oid(Extension.SUBJECT_KEY_IDENTIFIER)
_AUTHORITY_KEY_IDENTIFIER = der.oid(Extension.AUTHORITY_KEY_IDENTIFIER)
_HARDWARE_MODULE_NAME = der.oid("1.3.6.1.5.5.7.8.4")
_HTTP = (b"http://", b"https://")
_OCSP, _CA_ISSUERS = der.oid("1.3.6.1.5.5.7.48.1"), der.oid("1.3.6.1.5.5.7.48.2")


def version_is_3(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.1.2.1: when extensions are used, version must be 3 (value is 2)."""
    return None if seen.version == _VERSION_3 else f"version is {seen.version.hex()}"


def serial_number_fits(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.1.2.2: positive, at most 20 octets; ours has at least 64 bits."""
    octets = seen.serial_number
    if not 8 <= len(octets) <= 20:
        return f"serialNumber has {len(octets)} octets, not 8 to 20"
    if octets[0] & 0x80:
        return "serialNumber is negative"
    if octets[0] == 0 and not octets[1] & 0x80:
        return "serialNumber is not in the shortest form"
    if int.from_bytes(octets, "big").bit_length() < 64:
        return "serialNumber has fewer than 64 bits"
    return None


def serial_number_is_the_recorded_one(seen: Reading, tbs: TBSCertificate) -> str | None:
    """SPEC E1: the record of a certificate is found by its serial number."""
    return (
        None if int.from_bytes(seen.serial_number, "big") == tbs.serial_number else "serialNumber is another"
    )


def signature_algorithm_is_the_issuers(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.1.2.3: signature must be the algorithm of the signature that follows."""
    expected = ALGORITHMS[tbs.issuer.key_algorithm].signature_algorithm
    return None if seen.signature_algorithm == expected else f"signature is not {tbs.issuer.key_algorithm}'s"


def issuer_is_the_authoritys_subject(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 6.1.3 (a)(4): a path needs the issuer's name, and we want it octet for octet."""
    return (
        None if seen.issuer == tbs.issuer.subject else "issuer is not the subject of the issuer's certificate"
    )


def only_a_root_names_itself(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 3.2: self-issued is a root, or a change of key that we do not issue."""
    if tbs.issuer.certificate is None:
        return (
            None
            if seen.issuer == seen.subject and tbs.profile.is_ca
            else "a root's issuer is not its subject"
        )
    return "subject and issuer are the same" if seen.issuer == seen.subject else None


def times_are_encoded_by_year(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.1.2.5: through 2049 as UTCTime, from 2050 as GeneralizedTime."""
    for (tag, contents), moment in zip(seen.times, (seen.not_before, seen.not_after), strict=True):
        if (tag == der.GENERALIZED_TIME) != (moment.year >= _FIRST_GENERALIZED_TIME):
            return f"{contents.decode('ascii')} has tag {tag:02x}"
    return None


def validity_is_ordered(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.1.2.5: notBefore is when validity begins, notAfter when it ends."""
    return None if seen.not_before <= seen.not_after else "notBefore is after notAfter"


def validity_lies_within_the_issuers(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 6.1.3 (a)(2): a path is valid while each of its certificates is.

    So a certificate never outlives its issuer, nor is it older: a clock that stands at 1970 is found here.
    """
    if seen.not_before < tbs.issuer.not_before:
        return f"notBefore {seen.not_before:%Y-%m-%d} is before the issuer's {tbs.issuer.not_before:%Y-%m-%d}"
    if seen.not_after > tbs.issuer.not_after:
        return f"notAfter {seen.not_after:%Y-%m-%d} is after the issuer's {tbs.issuer.not_after:%Y-%m-%d}"
    return None


def validity_is_the_profiles(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.1.2.5: both ends count; 99991231235959Z is no well-defined expiry (SPEC G1)."""
    validity = tbs.profile.validity
    if validity is None:
        latest = _END_OF_TIME
    elif _END_OF_TIME - seen.not_before < validity - _SECOND:
        return "notBefore leaves no room for the profile's validity"
    else:
        latest = seen.not_before + validity - _SECOND
    if seen.not_after == latest or (tbs.profile.shorter_validity and seen.not_after < latest):
        return None
    return f"notAfter is {seen.not_after.isoformat()}, the profile says {latest.isoformat()}"


def subject_is_the_profiles(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 appendix A.1: string types and upper bounds; SPEC C8: the profile's attributes, in order."""
    expected = iter(_expected(tbs.profile).subject)
    octets = seen.subject
    _, _, content, end = der.only(octets, der.SEQUENCE)
    for set_tag, _, start, stop in der.children(octets, content, end):
        pair = der.only(octets, der.SEQUENCE, start, stop)
        parts = der.children(octets, *pair[2:])
        if set_tag != der.SET or len(parts) != 2:
            return "subject is not sets of one type and one value"
        (_, kind_start, _, kind_stop), (string_tag, _, value_start, value_stop) = parts
        kind = octets[kind_start:kind_stop]
        for part in expected:
            if part.oid == kind:
                break
            if not part.optional:
                return f"subject has {kind.hex()} where the profile has {part.oid.hex()}"
        else:
            return f"subject has {kind.hex()} more than the profile"
        length = len(octets[value_start:value_stop].decode("utf-8", "replace"))
        if string_tag != part.tag or not part.shortest <= length <= part.longest:
            return f"subject: {kind.hex()} has tag {string_tag:02x} and {length} characters"
    if not all(part.optional for part in expected):
        return "subject lacks an attribute of the profile"
    return None


def empty_subject_has_a_critical_alternative(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.1.2.6: if the subject is empty, subjectAltName must be critical."""
    if seen.subject != b"\x30\x00":
        return None
    critical = dict(zip(seen.extensions, seen.criticality, strict=True))
    return None if critical.get(_SUBJECT_ALTERNATIVE_NAME) else "nothing names the subject"


def key_algorithm_is_allowed(seen: Reading, tbs: TBSCertificate) -> str | None:
    """SPEC A6, G1: the profile says which keys it certifies, in one encoding each (RFC 5480 section 2)."""
    algorithm = recognise(seen.subject_public_key_info)
    return None if algorithm in tbs.profile.subject_key_algorithms else f"{algorithm or 'this kind of'} key"


def subject_key_is_not_the_issuers(seen: Reading, tbs: TBSCertificate) -> str | None:
    """Only a root certifies its own key: anything else would give an authority's power away."""
    itself = key_identifier(seen.subject_public_key_info) == tbs.issuer.key_identifier
    is_root = tbs.issuer.certificate is None
    return None if itself == is_root else "the subject's key is the issuer's, or a root's is not its own"


def extensions_are_the_profiles(seen: Reading, tbs: TBSCertificate) -> str | None:
    """SPEC G1: these extensions and no others, in this order (RFC 5280 section 4.2: none twice)."""
    return None if tuple(seen.extensions) == _expected(tbs.profile).extensions else "extensions are others"


def criticality_is_the_profiles(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.2.1 says what is critical; the profile decides where that is left open."""
    return None if seen.criticality == _expected(tbs.profile).criticality else "criticality is another"


def constant_extensions_are_the_profiles(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 sections 4.2.1.3, .4, .9 and .12: usages, policies and constraints are the profile's."""
    for identifier, value in _expected(tbs.profile).values.items():
        if seen.extensions[identifier] != value:
            found = seen.extensions[identifier].hex()
            return f"extension {identifier.hex()} is {found}, not {value.hex()}"
    return None


def path_length_is_within_the_issuers(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.2.1.9: pathLen counts the authorities that may follow."""
    constraints, limit = tbs.profile.basic_constraints, tbs.issuer.path_len_constraint
    if constraints is None or not constraints.ca or limit is None:
        return None
    if constraints.path_len_constraint is None or constraints.path_len_constraint >= limit:
        return f"the issuer's pathLen is {limit}"
    return None


def authority_key_identifier_is_the_issuers(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.2.1.1: keyIdentifier alone, equal to the issuer's subjectKeyIdentifier."""
    value = seen.extensions.get(_AUTHORITY_KEY_IDENTIFIER)
    expected = der.encode(der.SEQUENCE, der.encode(0x80, tbs.issuer.key_identifier))
    return None if value is None or value == expected else "authorityKeyIdentifier is not the issuer's"


def subject_key_identifier_is_of_the_key(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.2.1.2, method 1: SHA-1 of the subject's public key."""
    value = seen.extensions.get(_SUBJECT_KEY_IDENTIFIER)
    if value is None or value == der.encode(der.OCTET_STRING, key_identifier(seen.subject_public_key_info)):
        return None
    return "subjectKeyIdentifier is not the key's"


def alternative_name_has_the_profiles_form(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.2.1.6: host names only, or (RFC 4108 section 5) exactly one hardwareModuleName."""
    alternative = tbs.profile.subject_alternative_name
    value = seen.extensions.get(_SUBJECT_ALTERNATIVE_NAME)
    if alternative is None or value is None:
        return None
    _, _, start, stop = der.only(value, der.SEQUENCE)
    if alternative.hardware_type is None:
        tags = {name[0] for name in der.children(value, start, stop)}
        return None if tags and tags <= {0x82, 0x87} else "subjectAltName is not host names alone"
    _, _, start, stop = der.only(value, 0xA0, start, stop)
    if not value.startswith(_HARDWARE_MODULE_NAME, start):
        return "subjectAltName is no hardwareModuleName"
    _, _, start, stop = der.only(value, 0xA0, start + len(_HARDWARE_MODULE_NAME), stop)
    _, _, start, stop = der.only(value, der.SEQUENCE, start, stop)
    kinds = [part[0] for part in der.children(value, start, stop)]
    return None if kinds == [der.OID, der.OCTET_STRING] else "subjectAltName is no hardwareModuleName"


def locations_are_http(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 sections 4.2.1.13 and 4.2.2.1: where to fetch is an http URI, so that it can be fetched."""
    value = seen.extensions.get(_CRL_DISTRIBUTION_POINTS)
    if value is not None:
        start, stop = 0, len(value)
        for tag in (der.SEQUENCE, der.SEQUENCE, 0xA0, 0xA0, 0x86):
            _, _, start, stop = der.only(value, tag, start, stop)
        if not value.startswith(_HTTP, start):
            return "the CRL location is not http"
    value = seen.extensions.get(_AUTHORITY_INFORMATION_ACCESS)
    if value is not None:
        _, _, start, stop = der.only(value, der.SEQUENCE)
        for _, _, access_start, access_stop in der.children(value, start, stop):
            parts = der.children(value, access_start, access_stop)
            if [part[0] for part in parts] != [der.OID, 0x86] or not value.startswith(_HTTP, parts[1][2]):
                return "an access location is not http"
            if value[parts[0][1] : parts[0][3]] not in {_OCSP, _CA_ISSUERS}:
                return "an access method is neither ocsp nor caIssuers"
    return None


def size_is_within_the_profiles(seen: Reading, tbs: TBSCertificate) -> str | None:
    """SPEC G1: devices have room for so much; counted with the longest signature and its wrapping."""
    row = ALGORITHMS[tbs.issuer.key_algorithm]
    size = 4 + len(seen.octets) + len(row.signature_algorithm) + 3 + row.signature_size
    limit = tbs.profile.max_der_size
    return None if size <= limit else f"the certificate may have {size} octets, the profile allows {limit}"


RULES: tuple[Rule, ...] = (
    version_is_3,
    serial_number_fits,
    serial_number_is_the_recorded_one,
    signature_algorithm_is_the_issuers,
    issuer_is_the_authoritys_subject,
    only_a_root_names_itself,
    times_are_encoded_by_year,
    validity_is_ordered,
    validity_lies_within_the_issuers,
    validity_is_the_profiles,
    empty_subject_has_a_critical_alternative,
    subject_is_the_profiles,
    key_algorithm_is_allowed,
    subject_key_is_not_the_issuers,
    extensions_are_the_profiles,
    criticality_is_the_profiles,
    constant_extensions_are_the_profiles,
    path_length_is_within_the_issuers,
    authority_key_identifier_is_the_issuers,
    subject_key_identifier_is_of_the_key,
    alternative_name_has_the_profiles_form,
    locations_are_http,
    size_is_within_the_profiles,
)
"""In the order in which they are asked; later ones may rely on what earlier ones made sure of."""


_BY_PERMIT = object()


@dataclass(frozen=True, slots=True)
class IssuancePermit:
    """What ``permit`` gives, and nothing else can make: these octets passed every rule."""

    tbs: TBSCertificate
    _granted: object = field(repr=False, compare=False)

    def __post_init__(self) -> None:
        if self._granted is not _BY_PERMIT:
            raise TypeError("an IssuancePermit comes from lint.permit")


def permit(tbs: TBSCertificate) -> IssuancePermit:
    """Return the permit to sign exactly these octets.

    Raises:
        PolicyRefused: a rule refuses; ``rule`` is the rule's name, or "well_formed" for octets that are no
            TBSCertificate.
    """
    try:
        seen = read(tbs.der)
    except MalformedRequest as error:
        raise PolicyRefused("well_formed", str(error)) from error
    for rule in RULES:
        try:
            complaint = rule(seen, tbs)
        except MalformedRequest as error:
            complaint = str(error)
        if complaint is not None:
            raise PolicyRefused(rule.__name__, complaint)
    return IssuancePermit(tbs, _BY_PERMIT)
