"""Each rule refuses a certificate that is broken in exactly its way (SPEC F5)."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der, issuance, lint, profiles
from birthmark.pki.certificates import TBSCertificate
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.lint import IssuancePermit
from tests.pki.parts import P256, Parts, attribute, broken, refused_by, set_extension, set_to, time
from tests.pki.sample import (
    ISSUING_KEY,
    NOW,
    ROOT_KEY,
    VARIABLES,
    private_key,
    realm,
    serial,
    signed_by,
    spki,
)


def filled(name: str, *, key: bytes | None = None) -> TBSCertificate:
    """A good certificate to break."""
    template = issuance.compile_template(profiles.load(name), realm(P256).issuing, VARIABLES)
    return template.fill(
        serial_number=serial(name),
        subject_public_key_info=key or spki(P256, "device"),
        not_before=NOW,
        variables={},
    )


SERIALS = {
    "negative": "ff" * 20,
    "zero": "00",
    "21 octets": "01" * 21,
    "a zero octet too many": "00" + "01" * 15,
    "63 bits": "7fffffffffffffff",
}


@pytest.mark.parametrize("contents", SERIALS.values(), ids=SERIALS)
def test_a_serial_number_that_does_not_fit_is_refused(contents: str) -> None:
    def change(parts: Parts) -> None:
        parts.serial_number = der.encode(der.INTEGER, bytes.fromhex(contents))

    assert refused_by(broken(filled("vehicle"), change)) == "serial_number_fits"


CN, O, OU, SERIAL_NUMBER = "2.5.4.3", "2.5.4.10", "2.5.4.11", "2.5.4.5"  # noqa: E741  # RFC 5280's own name
KEY_USAGE, EKU, SAN, SKI, AKI = "2.5.29.15", "2.5.29.37", "2.5.29.17", "2.5.29.14", "2.5.29.35"


def end_a_second_early(parts: Parts) -> None:
    parts.not_after = time(0x17, "261122123014Z")


BROKEN: list[tuple[str, str, Callable[[Parts], object]]] = [
    ("version_is_3", "vehicle", set_to("version", bytes.fromhex("a003020101"))),
    ("serial_number_is_the_recorded_one", "vehicle", set_to("serial_number", der.integer(serial("another")))),
    (
        "signature_algorithm_is_the_issuers",
        "vehicle",
        set_to("signature", bytes.fromhex("300a06082a8648ce3d040303")),
    ),
    ("issuer_is_the_authoritys_subject", "vehicle", set_to("issuer", bytes.fromhex("3000"))),
    ("times_are_encoded_by_year", "vehicle", set_to("not_before", time(0x18, "20261122123015Z"))),
    ("validity_is_ordered", "station", end_a_second_early),
    ("validity_lies_within_the_issuers", "vehicle", set_to("not_before", time(0x17, "700101000000Z"))),
    ("validity_lies_within_the_issuers", "vehicle", set_to("not_before", time(0x17, "251231235959Z"))),
    ("validity_is_the_profiles", "station", set_to("not_after", time(0x17, "261222123015Z"))),
    ("subject_is_the_profiles", "vehicle", lambda parts: parts.subject.reverse()),
    ("subject_is_the_profiles", "vehicle", lambda parts: parts.subject.pop()),
    ("subject_is_the_profiles", "vehicle", lambda parts: parts.subject.append(attribute(OU, 0x0C, "x"))),
    (
        "subject_is_the_profiles",
        "vehicle",
        lambda parts: parts.subject.__setitem__(1, attribute(CN, 0x0C, "x" * 65)),
    ),
    (
        "subject_is_the_profiles",
        "idevid",
        lambda parts: parts.subject.__setitem__(2, attribute(SERIAL_NUMBER, 0x0C, "1")),
    ),
    ("empty_subject_has_a_critical_alternative", "idevid", lambda parts: parts.subject.clear()),
    ("key_algorithm_is_allowed", "idevid", set_to("key", spki(KeyAlgorithm.ED25519, "device"))),
    (
        "key_algorithm_is_allowed",
        "idevid",
        set_to("key", spki(P256, "device").replace(bytes.fromhex("03420004"), bytes.fromhex("03420002"))),
    ),
    ("subject_key_is_not_the_issuers", "idevid", set_to("key", spki(P256, ISSUING_KEY))),
    ("extensions_are_the_profiles", "vehicle", lambda parts: parts.extensions.pop()),
    ("extensions_are_the_profiles", "vehicle", lambda parts: parts.extensions.reverse()),
    (
        "extensions_are_the_profiles",
        "vehicle",
        lambda parts: parts.extensions.append(("2.5.29.19", True, bytes.fromhex("3000"))),
    ),
    (
        "criticality_is_the_profiles",
        "vehicle",
        lambda parts: parts.extensions.__setitem__(0, (KEY_USAGE, False, bytes.fromhex("03020780"))),
    ),
    ("constant_extensions_are_the_profiles", "vehicle", set_extension(KEY_USAGE, "03020186")),
    ("constant_extensions_are_the_profiles", "vehicle", set_extension(EKU, "300a06082b06010505070301")),
    ("authority_key_identifier_is_the_issuers", "vehicle", set_extension(AKI, "30168014" + "00" * 20)),
    ("subject_key_identifier_is_of_the_key", "vehicle", set_extension(SKI, "0414" + "00" * 20)),
    ("alternative_name_has_the_profiles_form", "idevid", set_extension(SAN, "30038201" + "61")),
    (
        "alternative_name_has_the_profiles_form",
        "idevid",
        set_extension(SAN, "300ca00a06032a0304a003" + "020101"),
    ),
    (
        "alternative_name_has_the_profiles_form",
        "idevid",
        set_extension(SAN, "3011a00f06082b06010505070804a003020101"),
    ),
    ("alternative_name_has_the_profiles_form", "server", set_extension(SAN, "3000")),
    ("alternative_name_has_the_profiles_form", "server", set_extension(SAN, "30038101" + "61")),
]


@pytest.mark.parametrize(("rule", "profile", "change"), BROKEN)
def test_a_certificate_broken_in_one_way_is_refused_by_the_rule_for_it(
    rule: str, profile: str, change: Callable[[Parts], object]
) -> None:
    assert refused_by(broken(filled(profile), change)) == rule


def test_a_recorded_serial_number_that_is_not_the_certificates_is_refused() -> None:
    assert refused_by(replace(filled("vehicle"), serial_number=7)) == "serial_number_is_the_recorded_one"


def test_a_certificate_that_outlives_its_issuer_is_refused() -> None:
    """An IDevID without end needs authorities without end (profiles/root.toml)."""
    mortal = realm(P256, datetime(2040, 1, 1, tzinfo=UTC))
    template = issuance.compile_template(profiles.load("idevid"), mortal.issuing, VARIABLES)
    tbs = template.fill(
        serial_number=serial("x"),
        subject_public_key_info=spki(P256, "device"),
        not_before=NOW,
        variables={},
    )
    assert refused_by(tbs) == "validity_lies_within_the_issuers"


def authority(issuer_constraint: int | None, constraint: int | None) -> TBSCertificate:
    """A subordinate authority with one pathLen, under an issuer with another."""
    profile = profiles.load("issuing")
    profile = replace(
        profile, basic_constraints=profiles.BasicConstraints(ca=True, path_len_constraint=constraint)
    )
    return issuance.build_reference(
        profile,
        replace(realm(P256).root, path_len_constraint=issuer_constraint),
        serial_number=serial("sub"),
        subject_public_key_info=spki(P256, "sub"),
        not_before=NOW,
        variables=VARIABLES,
    )


@pytest.mark.parametrize(("issuer", "subject"), [(0, 0), (1, 1), (1, None), (0, 1)])
def test_a_path_length_beyond_the_issuers_is_refused(issuer: int, subject: int | None) -> None:
    assert refused_by(authority(issuer, subject)) == "path_length_is_within_the_issuers"


@pytest.mark.parametrize(("issuer", "subject"), [(1, 0), (2, 1), (None, 0), (None, None)])
def test_a_path_length_within_the_issuers_is_permitted(issuer: int | None, subject: int | None) -> None:
    lint.permit(authority(issuer, subject))


def test_a_path_length_other_than_the_profiles_is_refused() -> None:
    tbs = authority(1, 0)

    def change(parts: Parts) -> None:
        parts.extension("2.5.29.19", bytes.fromhex("30030101ff"))

    assert refused_by(broken(tbs, change)) == "constant_extensions_are_the_profiles"


def test_an_authority_named_as_its_issuer_is_refused() -> None:
    tbs = authority(1, 0)
    _, _, start, stop = der.only(tbs.issuer.subject, der.SEQUENCE)

    def change(parts: Parts) -> None:
        parts.subject = [tbs.issuer.subject[start:stop]]

    assert refused_by(broken(tbs, change)) == "only_a_root_names_itself"


def test_a_root_whose_issuer_is_another_is_refused() -> None:
    tbs = filled("vehicle")
    assert (
        refused_by(replace(tbs, issuer=replace(tbs.issuer, certificate=None))) == "only_a_root_names_itself"
    )


def test_a_root_with_a_key_that_is_not_its_issuers_is_refused() -> None:
    tbs = issuance.build_root(
        profiles.load("root"),
        key_label=ROOT_KEY,
        serial_number=serial("root"),
        subject_public_key_info=spki(P256, ROOT_KEY),
        not_before=NOW,
        variables=VARIABLES,
    )
    lint.permit(tbs)
    other = replace(tbs, issuer=replace(tbs.issuer, subject_public_key_info=spki(P256, "another")))
    assert refused_by(other) == "subject_key_is_not_the_issuers"


def test_a_certificate_larger_than_its_profile_allows_is_refused() -> None:
    tbs = filled("vehicle")
    longest = len(tbs.der) + 4 + 12 + 3 + 72
    lint.permit(replace(tbs, profile=replace(tbs.profile, max_der_size=longest)))
    small = replace(tbs, profile=replace(tbs.profile, max_der_size=longest - 1))
    assert refused_by(small) == "size_is_within_the_profiles"


def located(crl: str, ocsp: str, issuers: str) -> TBSCertificate:
    """A certificate that names locations, the last step by hand because issuance would refuse bad ones."""
    base = profiles.load("vehicle")

    def template(text: str) -> profiles.TextTemplate:
        return profiles.TextTemplate(text, ((text, None),), frozenset())

    profile = replace(
        base,
        crl_distribution_point=template("http://a.example/crl"),
        ocsp_responder=template("http://a.example/ocsp"),
        ca_issuers=template("http://a.example/ca"),
    )
    tbs = issuance.compile_template(profile, realm(P256).issuing, VARIABLES).fill(
        serial_number=serial("x"), subject_public_key_info=spki(P256, "device"), not_before=NOW, variables={}
    )
    lint.permit(tbs)
    octets = tbs.der
    for good, bad in (
        ("http://a.example/crl", crl),
        ("http://a.example/ocsp", ocsp),
        ("http://a.example/ca", issuers),
    ):
        assert len(good) == len(bad)
        octets = octets.replace(good.encode(), bad.encode())
    return replace(tbs, der=octets)


@pytest.mark.parametrize(
    "locations",
    [
        ("file://a.example/crl", "http://a.example/ocsp", "http://a.example/ca"),
        ("http://a.example/crl", "ldap://a.example/ocsp", "http://a.example/ca"),
        ("http://a.example/crl", "http://a.example/ocsp", "HTTP//:a.example/ca"),
    ],
)
def test_a_location_that_is_not_http_is_refused(locations: tuple[str, str, str]) -> None:
    assert refused_by(located(*locations)) == "locations_are_http"


def test_every_rule_has_a_certificate_that_breaks_it() -> None:
    elsewhere = {
        "serial_number_fits",
        "only_a_root_names_itself",
        "issuer_is_one_the_profile_names",
        "issuers_key_is_allowed",
        "subject_agrees_with_the_issuers",
        "policies_are_the_profiles",
        "basic_constraints_are_the_profiles",
        "path_length_is_within_the_issuers",
        "name_constraints_have_the_profiles_form",
        "names_are_within_the_issuers_constraints",
        "locations_are_http",
        "size_is_within_the_profiles",
    }
    assert {rule.__name__ for rule in lint.RULES} == {rule for rule, _, _ in BROKEN} | elsewhere


def test_every_rule_cites_its_source() -> None:
    for rule in lint.RULES:
        assert rule.__doc__
        assert "RFC" in rule.__doc__ or "SPEC" in rule.__doc__ or "root" in rule.__doc__


BADLY_FORMED: dict[str, Callable[[Parts], object]] = {
    "a month 13": set_to("not_before", time(0x17, "261322123015Z")),
    "a time without seconds": set_to("not_before", time(0x17, "2611221230Z")),
    "a time with an offset": set_to("not_before", time(0x17, "261122123015+0100")),
    "one time": set_to("not_before", b""),
    "version 1": set_to("version", b""),
    "an extension twice": lambda parts: parts.extensions.append(parts.extensions[0]),
    "unique identifiers": lambda parts: set_to("key", parts.key + bytes.fromhex("81020000"))(parts),
}


@pytest.mark.parametrize("change", BADLY_FORMED.values(), ids=BADLY_FORMED)
def test_what_is_no_version_3_certificate_of_rfc_5280_is_refused(change: Callable[[Parts], object]) -> None:
    assert refused_by(broken(filled("vehicle"), change)) == "well_formed"


@pytest.mark.parametrize(
    "extension", ["30030603551d0f", "3009010100060255010400", "300a06025501010100040102"]
)
def test_an_extension_that_is_none_is_refused(extension: str) -> None:
    """The last one says critical FALSE, which DER leaves out (X.690 section 11.5)."""
    tbs = filled("vehicle")
    octets = tbs.der
    _, _, start, stop = der.only(octets, der.SEQUENCE)
    *fields, _ = der.children(octets, start, stop)
    wrapped = der.encode(0xA3, der.encode(der.SEQUENCE, bytes.fromhex(extension)))
    changed = der.encode(der.SEQUENCE, *(octets[field[1] : field[3]] for field in fields), wrapped)
    assert refused_by(replace(tbs, der=changed)) == "well_formed"


def test_a_beginning_that_leaves_no_room_for_the_validity_is_refused() -> None:
    def change(parts: Parts) -> None:
        parts.not_before = time(0x18, "99991230000000Z")
        parts.not_after = time(0x18, "99991231235959Z")

    assert refused_by(broken(filled("station"), change)) == "validity_is_the_profiles"


def test_a_subject_with_two_values_in_one_set_is_refused() -> None:
    """One encoding for one name; multi-valued sets are none of ours."""

    def change(parts: Parts) -> None:
        contents = [name[2:] for name in parts.subject]
        parts.subject = [der.encode(der.SET, *contents)]

    assert refused_by(broken(filled("vehicle"), change)) == "subject_is_the_profiles"

    def untyped(parts: Parts) -> None:
        parts.subject = [der.encode(der.SET, der.encode(der.SEQUENCE, der.oid(CN)))]

    assert refused_by(broken(filled("vehicle"), untyped)) == "subject_is_the_profiles"


def test_an_access_method_other_than_ocsp_and_issuers_is_refused() -> None:
    places = ("http://a.example/crl", "http://a.example/ocsp", "http://a.example/ca")
    tbs = located(*places)
    lint.permit(tbs)
    ocsp, timestamping = der.oid("1.3.6.1.5.5.7.48.1"), der.oid("1.3.6.1.5.5.7.48.3")
    assert refused_by(replace(tbs, der=tbs.der.replace(ocsp, timestamping))) == "locations_are_http"


@given(st.binary(max_size=300))
def test_any_octets_are_refused_and_nothing_else_happens(octets: bytes) -> None:
    with pytest.raises(MalformedRequest):
        lint.read(octets)
    assert refused_by(replace(filled("vehicle"), der=octets)) == "well_formed"


@given(st.data())
def test_a_flipped_bit_goes_unseen_only_where_any_value_is_good(data: st.DataObject) -> None:
    """Namely in the subject's text, the key, the hardware's names, and notBefore after the issuer's."""
    tbs = filled("idevid")
    tbs = replace(tbs, profile=replace(tbs.profile, shorter_validity=False))
    position = data.draw(st.integers(0, len(tbs.der) - 1))
    flipped = bytearray(tbs.der)
    flipped[position] ^= 1 << data.draw(st.integers(0, 7))
    try:
        lint.permit(replace(tbs, der=bytes(flipped)))
    except PolicyRefused:
        return
    before, after = lint.read(tbs.der), lint.read(bytes(flipped))
    free = {"octets", "subject", "subject_public_key_info", "extensions", "not_before", "times"}
    assert all(getattr(before, name) == getattr(after, name) for name in before._fields if name not in free)
    changed = {name for name, value in before.extensions.items() if after.extensions[name] != value}
    assert changed <= {der.oid(SAN)}


def test_a_permit_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError):
        IssuancePermit(filled("vehicle"), object())


def test_what_was_permitted_is_what_is_signed() -> None:
    """The key store gets exactly the octets the rules saw."""
    tbs, seen = filled("vehicle"), []

    def sign(label: str, message: bytes) -> bytes:
        seen.append((label, message))
        return signed_by(private_key(P256, label), message)

    certificate = issuance.sign_certificate(lint.permit(tbs), sign)
    assert seen == [(ISSUING_KEY, tbs.der)]
    parsed = x509.load_der_x509_certificate(certificate)
    assert parsed.tbs_certificate_bytes == tbs.der
    parsed.verify_directly_issued_by(x509.load_der_x509_certificate(realm(P256).issuing_der))


def test_the_validity_of_a_clock_at_1970_is_refused() -> None:
    template = issuance.compile_template(profiles.load("station"), realm(P256).issuing, VARIABLES)
    tbs = template.fill(
        serial_number=serial("x"),
        subject_public_key_info=spki(P256, "device"),
        not_before=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(hours=1),
        variables={},
    )
    assert refused_by(tbs) == "validity_lies_within_the_issuers"
