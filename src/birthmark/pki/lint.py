# ruff: noqa: ARG001 -- every rule has the same two parameters, whether it needs both or not
"""Our rules for every certificate, on the octets that will be signed.

``permit`` reads a TBSCertificate's DER, not the values it was made from, and asks every rule; only then is
there an ``IssuancePermit``, and only with that can anything be signed.  A rule is a function from the reading
to a complaint or None, and its docstring is its citation.  What a rule expects it takes from the profile and
the issuer with encoders of ``expected``, so that a fault in issuance does not vouch for itself.

These are the rules that every certificate meets before it is signed.  A general-purpose linter (pkilint)
judges certificates of every profile in the tests; the service does not run it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der
from birthmark.pki.algorithms import ALGORITHMS, key_identifier, recognise
from birthmark.pki.certificates import TBSCertificate
from birthmark.pki.expected import ExpectedName, access_methods, expected_of
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.nameconstraints import FORM_TAGS, complaint, read_limits
from birthmark.pki.profilelanguage import Extension, Subtree
from birthmark.pki.reading import Reading, read

__all__ = ["RULES", "IssuancePermit", "Reading", "Rule", "permit", "read"]


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
_BASIC_CONSTRAINTS = der.oid(Extension.BASIC_CONSTRAINTS)
_NAME_CONSTRAINTS = der.oid(Extension.NAME_CONSTRAINTS)
_CERTIFICATE_POLICIES = der.oid(Extension.CERTIFICATE_POLICIES)
_HTTP = (b"http://", b"https://")


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
    if (tbs.issuer.certificate is None) != tbs.profile.self_signed:
        return f"profile {tbs.profile.name} is {'' if tbs.profile.self_signed else 'not '}for roots"
    if tbs.profile.self_signed:
        return None if seen.issuer == seen.subject else "a root's issuer is not its subject"
    return "subject and issuer are the same" if seen.issuer == seen.subject else None


def issuer_is_one_the_profile_names(seen: Reading, tbs: TBSCertificate) -> str | None:
    """SPEC G1: a standard's chain is made of that standard's authorities, as the profile lists them.

    An issuer of which nobody says what profile its certificate was made with is none of them.
    """
    listed = tbs.profile.issued_by
    if not listed or tbs.issuer.profile in listed:
        return None
    return f"the issuer's own profile is {tbs.issuer.profile or 'unknown'}, not {' or '.join(listed)}"


def issuers_key_is_allowed(seen: Reading, tbs: TBSCertificate) -> str | None:
    """SPEC G1, A6: some standards say which algorithms sign, or that none weaker than the subject's does."""
    profile, issuer = tbs.profile, tbs.issuer.key_algorithm
    if profile.issuer_key_algorithms and issuer not in profile.issuer_key_algorithms:
        return f"the issuer's key is {issuer}; allowed are {', '.join(profile.issuer_key_algorithms)}"
    if profile.issuer_at_least_as_strong:
        subject = recognise(seen.subject_public_key_info)
        if subject is not None and ALGORITHMS[issuer].strength < ALGORITHMS[subject].strength:
            return f"the issuer's key, {issuer}, is weaker than the subject's, {subject}"
    return None


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
        remedy = (
            "give an earlier end" if tbs.profile.shorter_validity else "its profile allows no earlier end"
        )
        return (
            f"notAfter {seen.not_after:%Y-%m-%d} is after the issuer's {tbs.issuer.not_after:%Y-%m-%d}: "
            f"a certificate never outlives its issuer; {remedy}"
        )
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
    expected = iter(expected_of(tbs.profile).subject)
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
        text = octets[value_start:value_stop].decode("utf-8", "replace")
        if string_tag != part.tag or not part.shortest <= len(text) <= part.longest:
            return f"subject: {kind.hex()} has tag {string_tag:02x} and {len(text)} characters"
        if part.alphabet is not None and not part.alphabet.issuperset(text):
            return f"subject: {kind.hex()} has characters that it may not have"
    if not all(part.optional for part in expected):
        return "subject lacks an attribute of the profile"
    return None


def subject_agrees_with_the_issuers(seen: Reading, tbs: TBSCertificate) -> str | None:
    """SPEC G1: where a profile says as-issuer, the attribute is the issuer's, if the issuer has it.

    Matter core specification section 6.2.3.1: the VID of DAC, PAI and PAA, and the PID of DAC and PAI, agree.
    """
    for part in expected_of(tbs.profile).subject:
        if part.as_issuer:
            above = _values_of(tbs.issuer.subject, part.oid)
            if above and _values_of(seen.subject, part.oid) != above:
                return f"subject: {part.oid.hex()} is not the issuer's"
    return None


def _values_of(name: bytes, kind: bytes) -> list[bytes]:
    """Return the values (DER) of one attribute in a Name."""
    found = []
    _, _, start, stop = der.only(name, der.SEQUENCE)
    for _, _, set_start, set_stop in der.children(name, start, stop):
        for _, _, content, end in der.children(name, set_start, set_stop):
            if name.startswith(kind, content):
                found.append(name[content + len(kind) : end])
    return found


def names_are_within_the_issuers_constraints(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.2.1.10 and 6.1.3 (b) and (c): of the issuer, and of every authority above it."""
    if not tbs.issuer.name_limits:
        return None
    return complaint(tbs.issuer.name_limits, seen.subject, seen.extensions.get(_SUBJECT_ALTERNATIVE_NAME))


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
    itself = seen.subject_public_key_info == tbs.issuer.subject_public_key_info
    is_root = tbs.issuer.certificate is None
    return None if itself == is_root else "the subject's key is the issuer's, or a root's is not its own"


def extensions_are_the_profiles(seen: Reading, tbs: TBSCertificate) -> str | None:
    """SPEC G1: these extensions, less optional ones, in this order (RFC 5280 section 4.2: none twice)."""
    return None if tuple(seen.extensions) in expected_of(tbs.profile).criticality else "extensions are others"


def criticality_is_the_profiles(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.2.1 says what is critical; the profile decides where that is left open."""
    expected = expected_of(tbs.profile).criticality[tuple(seen.extensions)]
    return None if seen.criticality == expected else "criticality is another"


def constant_extensions_are_the_profiles(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 sections 4.2.1.3, .4, .9 and .12, RFC 6960 section 4.2.2.2.1: they are the profile's."""
    for identifier, value in expected_of(tbs.profile).values:
        found = seen.extensions.get(identifier, value)
        if found != value:
            return f"extension {identifier.hex()} is {found.hex()}, not {value.hex()}"
    return None


def policies_are_the_profiles(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.2.1.4: as many policies as the profile has, without qualifiers, and none twice."""
    value = seen.extensions.get(_CERTIFICATE_POLICIES)
    if value is None:
        return None
    _, _, start, stop = der.only(value, der.SEQUENCE)
    found = [value[content:end] for _, _, content, end in der.children(value, start, stop)]
    listed = tbs.profile.certificate_policies
    if len(found) != len(listed) or len(set(found)) != len(found):
        return f"there are {len(found)} policies, the profile has {len(listed)}"
    for policy, template in zip(found, listed, strict=True):
        _, _, start, stop = der.only(policy, der.OID)
        if start == stop:
            return "a policy is no object identifier"
        if not template.variables and policy != der.oid(template.source):
            return f"policy {policy.hex()} is not the profile's"
    return None


def basic_constraints_are_the_profiles(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.2.1.9: where the profile leaves it open, pathLen is 0 to 16."""
    constraints = tbs.profile.basic_constraints
    if constraints is None or constraints.path_len is None:
        return None  # constant_extensions_are_the_profiles has compared it
    limit = _path_length(seen)
    return None if limit is not None and limit <= 16 else f"pathLen is {limit}, not 0 to 16"


def name_constraints_have_the_profiles_form(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.2.1.10: subtrees of the profile's forms and no others, in its order."""
    constraints, value = tbs.profile.name_constraints, seen.extensions.get(_NAME_CONSTRAINTS)
    if constraints is None or value is None:
        return None
    limits = read_limits(value)
    for found, expected in (
        (limits.permitted, constraints.permitted),
        (limits.excluded, constraints.excluded),
    ):
        if list(dict.fromkeys(tag for tag, _ in found)) != _forms(expected):
            return "name constraints are of other forms than the profile's"
    return None


def _forms(trees: tuple[Subtree, ...]) -> list[int]:
    return list(dict.fromkeys(FORM_TAGS[tree.form] for tree in trees))


def _path_length(seen: Reading) -> int | None:
    """Return pathLen of an authority's basicConstraints; a ca = false is refused as malformed here."""
    value = seen.extensions[_BASIC_CONSTRAINTS]
    _, _, start, stop = der.only(value, der.SEQUENCE)
    parts = der.children(value, start, stop)
    if [part[0] for part in parts] not in ([der.BOOLEAN], [der.BOOLEAN, der.INTEGER]):
        raise MalformedRequest("basicConstraints are not an authority's")
    if value[parts[0][2] : parts[0][3]] != b"\xff":
        raise MalformedRequest("cA is not TRUE")
    if len(parts) == 1:
        return None
    octets = value[parts[1][2] : parts[1][3]]
    if len(octets) != 1 or octets[0] & 0x80:
        raise MalformedRequest(f"pathLen is {octets.hex()}")
    return octets[0]


def path_length_is_within_the_issuers(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.2.1.9: pathLen counts the authorities that may follow."""
    limit = tbs.issuer.path_len_constraint
    if limit is None or not tbs.profile.is_ca:
        return None
    own = _path_length(seen)
    if own is not None and own < limit:
        return None
    return (
        f"the issuer's pathLen is {limit}, and this certificate's must be less: a root that is to have an"
        ' intermediate below it needs path_len: "2" in its subject'
    )


def authority_key_identifier_is_the_issuers(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.2.1.1: keyIdentifier alone, equal to the issuer's subjectKeyIdentifier."""
    value = seen.extensions.get(_AUTHORITY_KEY_IDENTIFIER)
    expected = der.encode(der.SEQUENCE, der.encode(0x80, tbs.issuer.key_identifier))
    return None if value is None or value == expected else "authorityKeyIdentifier is not the issuer's"


def subject_key_identifier_is_of_the_key(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.2.1.2: of the subject's public key, by the profile's method."""
    value = seen.extensions.get(_SUBJECT_KEY_IDENTIFIER)
    if value is None:
        return None
    expected = key_identifier(seen.subject_public_key_info, tbs.profile.subject_key_identifier_method)
    if value == der.encode(der.OCTET_STRING, expected):
        return None
    return "subjectKeyIdentifier is not the key's"


def alternative_name_has_the_profiles_form(seen: Reading, tbs: TBSCertificate) -> str | None:
    """RFC 5280 section 4.2.1.6, RFC 4108 section 5, RFC 4043: the profile's forms, in its order."""
    value = seen.extensions.get(_SUBJECT_ALTERNATIVE_NAME)
    if value is None:
        return None
    _, _, start, stop = der.only(value, der.SEQUENCE)
    found = der.children(value, start, stop)
    position = 0
    for form in expected_of(tbs.profile).names:
        count = 0
        while position < len(found) and count < form.most and _is_of(form, value, found[position]):
            position += 1
            count += 1
        if count < form.fewest:
            return "subjectAltName lacks a name of the profile's"
    return (
        None if position == len(found) > 0 else "subjectAltName has none, or other names than the profile's"
    )


def _is_of(form: ExpectedName, value: bytes, name: der.Element) -> bool:
    tag, _, start, stop = name
    if tag != form.tag or start == stop:
        return False
    if not form.kind:
        return tag == 0x87 or value[start:stop].isascii()
    if not value.startswith(form.kind, start):
        return False
    _, _, start, stop = der.only(value, 0xA0, start + len(form.kind), stop)
    _, _, start, stop = der.only(value, der.SEQUENCE, start, stop)
    return [part[0] for part in der.children(value, start, stop)] in form.inside


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
        methods = []
        for _, _, access_start, access_stop in der.children(value, start, stop):
            parts = der.children(value, access_start, access_stop)
            if [part[0] for part in parts] != [der.OID, 0x86] or not value.startswith(_HTTP, parts[1][2]):
                return "an access location is not http"
            methods.append(value[parts[0][1] : parts[0][3]])
        if methods not in access_methods(tbs.profile):
            return "the access methods are not the profile's ocsp and caIssuers"
    return None


def size_is_within_the_profiles(seen: Reading, tbs: TBSCertificate) -> str | None:
    """SPEC G1: devices have room for so much; counted with the longest signature and its wrapping."""
    size = len(seen.octets) + _WRAPPING[tbs.issuer.key_algorithm]
    limit = tbs.profile.max_der_size
    return None if size <= limit else f"the certificate may have {size} octets, the profile allows {limit}"


_WRAPPING: dict[KeyAlgorithm, int] = {
    algorithm: 4
    + len(row.signature_algorithm)
    + len(der.encode(der.BIT_STRING, bytes(1 + row.signature_size)))
    for algorithm, row in ALGORITHMS.items()
}
"""What comes around a TBSCertificate of 256 octets or more: SEQUENCE, algorithm, longest signature."""


RULES: tuple[Rule, ...] = (
    version_is_3,
    serial_number_fits,
    serial_number_is_the_recorded_one,
    signature_algorithm_is_the_issuers,
    issuer_is_the_authoritys_subject,
    only_a_root_names_itself,
    issuer_is_one_the_profile_names,
    issuers_key_is_allowed,
    times_are_encoded_by_year,
    validity_is_ordered,
    validity_lies_within_the_issuers,
    validity_is_the_profiles,
    empty_subject_has_a_critical_alternative,
    subject_is_the_profiles,
    subject_agrees_with_the_issuers,
    key_algorithm_is_allowed,
    subject_key_is_not_the_issuers,
    extensions_are_the_profiles,
    criticality_is_the_profiles,
    constant_extensions_are_the_profiles,
    policies_are_the_profiles,
    basic_constraints_are_the_profiles,
    path_length_is_within_the_issuers,
    name_constraints_have_the_profiles_form,
    authority_key_identifier_is_the_issuers,
    subject_key_identifier_is_of_the_key,
    alternative_name_has_the_profiles_form,
    names_are_within_the_issuers_constraints,
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
