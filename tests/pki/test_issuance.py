"""Templates, serial numbers, validity (SPEC C8, F5, G1)."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import example, given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der, issuance, lint, profiles
from birthmark.pki.certificates import TBSCertificate
from birthmark.pki.constraints import parse_constraint
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.pki.profiles import Profile
from tests.pki.sample import FOUNDED, NOW, VARIABLES, private_key, realm, serial, spki
from tests.support.chains import LOCATIONS, variables_of

P256 = KeyAlgorithm.EC_P256


def everything(name: str) -> Profile:
    """A packaged profile with every extension that may be added to it."""

    def template(text: str) -> profiles.TextTemplate:
        return profiles.TextTemplate(text, ((text, None),), frozenset())

    return replace(
        profiles.load(name),
        basic_constraints=profiles.BasicConstraints(ca=False, path_len_constraint=None),
        certificate_policies=(template("2.23.133.11.1.1"), template("1.3.6.1.4.1.32473.9")),
        crl_distribution_point=template("http://pki.example/crl/1.crl"),
        ocsp_responder=template("http://pki.example/ocsp"),
        ca_issuers=template("http://pki.example/ca/1.cer"),
        subject_key_identifier=True,
        max_der_size=4096,
    )


PROFILES = {name: profiles.load(name) for name in profiles.names() if not profiles.load(name).is_ca} | {
    f"{name}, everything": everything(name) for name in ("idevid", "server")
}
QUICK = [
    kind
    for kind in KeyAlgorithm
    if kind not in {KeyAlgorithm.RSA_2048, KeyAlgorithm.RSA_3072, KeyAlgorithm.RSA_4096}
]

dates = st.one_of(
    st.sampled_from(
        [
            datetime(1950, 1, 1, tzinfo=UTC),
            datetime(2049, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
            datetime(2050, 1, 1, tzinfo=UTC),
            datetime(9998, 11, 30, 12, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC),
        ]
    ),
    st.datetimes(datetime(1950, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC)),  # noqa: DTZ001  # made aware by the strategy
)
ids = {
    "wisun": st.text("0123456789ABCDEF", min_size=16, max_size=16),
    "dlms": st.text("0123456789ABCDEF", min_size=16, max_size=16),
    "iso15118": st.text("ABCDEFGHJKLMNPRSTUVWXYZ0123456789", min_size=17, max_size=18),
}
vins = st.text("ABCDEFGHJKLMNPRSTUVWXYZ0123456789", min_size=17, max_size=17)


def names_and_ids(name: str) -> st.SearchStrategy[tuple[str, str]]:
    return st.tuples(st.just(name), ids.get(name.partition("-")[0], vins))


@given(
    name_and_id=st.sampled_from(sorted(PROFILES)).flatmap(names_and_ids),
    issuer=st.sampled_from([*QUICK, KeyAlgorithm.RSA_3072]),
    subject=st.sampled_from(KeyAlgorithm),
    number=st.one_of(
        st.integers(1, (1 << 159) - 1), st.sampled_from([1, 127, 128, 1 << 158, (1 << 159) - 1])
    ),
    not_before=dates,
    locations=st.sets(st.sampled_from(sorted(LOCATIONS))),
    organization=st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=64),
    known=st.sets(st.sampled_from(sorted(VARIABLES))),
)
def test_a_filled_template_is_what_the_builder_builds_octet_for_octet(
    *,
    name_and_id: tuple[str, str],
    issuer: KeyAlgorithm,
    subject: KeyAlgorithm,
    number: int,
    not_before: datetime,
    locations: set[str],
    organization: str,
    known: set[str],
) -> None:
    """Whatever of the variables was known when the template was compiled; or both refuse the time."""
    name, hardware_id = name_and_id
    values = variables_of(name) | {"hardware_id": hardware_id, "organization": organization}
    values |= {location: LOCATIONS[location] for location in locations}
    known = known | (PROFILES[name].early_variables & values.keys())
    authority = realm(issuer).issuing
    template = issuance.compile_template(PROFILES[name], authority, {key: values[key] for key in known})
    filled = octets_or_rule(
        lambda: template.fill(
            serial_number=number,
            subject_public_key_info=spki(subject, "device"),
            not_before=not_before,
            variables={key: value for key, value in values.items() if key not in known},
        )
    )
    built = octets_or_rule(
        lambda: issuance.build_reference(
            PROFILES[name],
            authority,
            serial_number=number,
            subject_public_key_info=spki(subject, "device"),
            not_before=not_before,
            variables=values,
        )
    )
    assert filled == built
    assert isinstance(built, bytes) or not_before.year >= 9998


def octets_or_rule(build: Callable[[], TBSCertificate]) -> bytes | str:
    try:
        return build().der
    except PolicyRefused as refusal:
        return refusal.rule


@given(st.binary(min_size=20, max_size=40))
@example(bytes(20))
@example(b"\xff" * 20)
def test_a_serial_number_is_positive_and_has_twenty_octets(entropy: bytes) -> None:
    """RFC 5280 section 4.1.2.2."""
    number = issuance.serial_number(entropy)
    octets = number.to_bytes(20, "big")
    assert octets[0] & 0xC0 == 0x40
    assert octets[1:] == entropy[1:20]
    assert octets[0] & 0x3F == entropy[0] & 0x3F


def test_a_serial_number_from_too_little_entropy_is_our_fault() -> None:
    with pytest.raises(ValueError, match="19"):
        issuance.serial_number(bytes(19))


def fill(name: str, **changes: object) -> TBSCertificate:
    arguments: dict[str, object] = {
        "serial_number": serial("x"),
        "subject_public_key_info": spki(P256, "device"),
        "not_before": NOW,
        "variables": {},
    }
    template = issuance.compile_template(profiles.load(name), realm(P256).issuing, VARIABLES)
    return template.fill(**(arguments | changes))  # type: ignore[arg-type]  # arguments in a mapping have one type


def test_times_are_cut_to_seconds_and_turned_to_utc() -> None:
    there = datetime(2026, 11, 22, 14, 30, 15, 500_000, tzinfo=timezone(timedelta(hours=2)))
    seen = lint.read(fill("station", not_before=there).der)
    assert seen.not_before == datetime(2026, 11, 22, 12, 30, 15, tzinfo=UTC)


def test_a_station_may_get_hours() -> None:
    """SPEC C2: valid for hours or days."""
    tbs = fill("station", not_after=NOW + timedelta(hours=8))
    lint.permit(tbs)
    assert lint.read(tbs.der).not_after == (NOW + timedelta(hours=8)).replace(microsecond=0)


def test_a_station_may_not_get_more_than_its_profile() -> None:
    with pytest.raises(PolicyRefused) as refusal:
        lint.permit(fill("station", not_after=NOW + timedelta(days=31)))
    assert refusal.value.rule == "validity_is_the_profiles"


def test_a_vehicle_under_an_authority_that_ends_gets_an_earlier_end() -> None:
    """RFC 5280 section 6.1.3: nothing outlives its issuer, so that such an authority needs the choice."""
    end = datetime(2040, 1, 1, tzinfo=UTC)
    template = issuance.compile_template(profiles.load("vehicle"), realm(P256, end).issuing, VARIABLES)

    def filled(not_after: datetime | None) -> TBSCertificate:
        return template.fill(
            serial_number=serial("x"),
            subject_public_key_info=spki(P256, "device"),
            not_before=NOW,
            not_after=not_after,
            variables={},
        )

    with pytest.raises(PolicyRefused, match="never outlives its issuer; give an earlier end") as refusal:
        lint.permit(filled(None))
    assert refusal.value.rule == "validity_lies_within_the_issuers"
    assert lint.read(lint.permit(filled(end)).tbs.der).not_after == end


def test_a_profile_without_the_choice_gives_no_earlier_end() -> None:
    profile = replace(profiles.load("vehicle"), shorter_validity=False)
    for end, rule in (
        (NOW + timedelta(days=3650), "validity_is_the_profiles"),
        (None, "validity_lies_within_the_issuers"),
    ):
        authority = realm(P256, None if end else datetime(2040, 1, 1, tzinfo=UTC)).issuing
        tbs = issuance.compile_template(profile, authority, VARIABLES).fill(
            serial_number=serial("x"),
            subject_public_key_info=spki(P256, "device"),
            not_before=NOW,
            not_after=end,
            variables={},
        )
        with pytest.raises(PolicyRefused) as refusal:
            lint.permit(tbs)
        assert refusal.value.rule == rule


def test_locations_are_left_out_where_there_is_no_public_place() -> None:
    """SPEC G1: the same profile serves a realm with and one without."""
    found = {
        name: set(lint.read(fill_with("vehicle", VARIABLES | changes).der).extensions)
        for name, changes in {
            "none": {},
            "empty": dict.fromkeys(LOCATIONS, ""),
            "crl": {"crl_url": LOCATIONS["crl_url"]},
            "all": LOCATIONS,
        }.items()
    }
    crl, access = der.oid("2.5.29.31"), der.oid("1.3.6.1.5.5.7.1.1")
    assert found["none"] == found["empty"] == found["all"] - {crl, access}
    assert found["crl"] == found["none"] | {crl}


def test_a_location_that_comes_with_a_device_comes_too_late() -> None:
    """What is in a run's certificates is decided when the run is opened, not device by device."""
    template = issuance.compile_template(profiles.load("vehicle"), realm(P256).issuing, VARIABLES)
    with pytest.raises(MalformedRequest, match="too late for crl_url"):
        template.fill(
            serial_number=serial("x"),
            subject_public_key_info=spki(P256, "device"),
            not_before=NOW,
            variables={"crl_url": LOCATIONS["crl_url"]},
        )


def test_a_product_uri_is_written_where_there_is_one() -> None:
    """OPC 10000-21: the ProductInstanceUri beside the hardware's name."""
    parsed = x509.SubjectAlternativeName
    with_uri = fill_with("idevid", VARIABLES)
    without = fill_with("idevid", {name: text for name, text in VARIABLES.items() if name != "product_uri"})
    uri = b"https://products.example/line-1/" + VARIABLES["hardware_id"].encode()
    assert parsed.oid.dotted_string == "2.5.29.17"
    assert uri in lint.read(lint.permit(with_uri).tbs.der).extensions[der.oid("2.5.29.17")]
    assert b"https" not in lint.permit(without).tbs.der


def fill_with(name: str, variables: dict[str, str]) -> TBSCertificate:
    return issuance.compile_template(profiles.load(name), realm(P256).issuing, variables).fill(
        serial_number=serial("x"), subject_public_key_info=spki(P256, "device"), not_before=NOW, variables={}
    )


def test_constraints_are_checked_when_compiling_and_when_filling() -> None:
    """SPEC G2: the licence's and the profile's, whichever way a value comes."""
    arc = parse_constraint({"rule": "maker", "variable": "hardware_type", "under-arc": "1.3.6.1.4.1.32473"})
    wmi = parse_constraint({"rule": "wmi", "variable": "hardware_id", "wmi": ["1M8", "WVW"]})
    profile, authority = profiles.load("idevid"), realm(P256).issuing
    arguments = {
        "serial_number": serial("x"),
        "subject_public_key_info": spki(P256, "device"),
        "not_before": NOW,
    }
    constants = {name: text for name, text in VARIABLES.items() if name != "hardware_id"}
    good = {"hardware_id": VARIABLES["hardware_id"]}
    template = issuance.compile_template(profile, authority, constants, [arc, wmi])
    lint.permit(template.fill(variables=good, **arguments))  # type: ignore[arg-type]  # arguments in a mapping have one type
    foreign = constants | {"hardware_type": "1.3.6.1.4.1.32474.1"}
    refusals: list[tuple[str, Callable[[], object]]] = [
        ("maker", lambda: issuance.compile_template(profile, authority, foreign, [arc, wmi])),
        (
            "wmi",
            lambda: template.fill(variables={"hardware_id": "YV1" + "0" * 14}, **arguments),  # type: ignore[arg-type]  # arguments in a mapping have one type
        ),
        (
            "wmi",
            lambda: issuance.build_reference(
                profile,
                authority,
                variables=constants | {"hardware_id": "YV1"},
                constraints=[wmi],
                **arguments,  # type: ignore[arg-type]  # arguments in a mapping have one type
            ),
        ),
    ]
    for rule, attempt in refusals:
        with pytest.raises(PolicyRefused) as refusal:
            attempt()
        assert refusal.value.rule == rule


@pytest.mark.parametrize("name", ["station", "vehicle"])
def test_a_time_without_an_encoding_is_refused(name: str) -> None:
    with pytest.raises(PolicyRefused):
        fill(name, not_before=datetime(1949, 12, 31, tzinfo=UTC))


def test_a_validity_beyond_the_year_9999_is_refused() -> None:
    with pytest.raises(PolicyRefused):
        fill("station", not_before=datetime(9999, 12, 30, tzinfo=UTC))


def test_a_missing_variable_is_named() -> None:
    template = issuance.compile_template(profiles.load("vehicle"), realm(P256).issuing, {})
    with pytest.raises(MalformedRequest, match="no value for hardware_id"):
        template.fill(
            serial_number=serial("x"),
            subject_public_key_info=spki(P256, "device"),
            not_before=NOW,
            variables={"organization": "Example Motors"},
        )


def test_what_was_compiled_cannot_be_changed_when_filling() -> None:
    """SPEC C3: the run's licence decides the organization, not the request."""
    tbs = fill("vehicle", variables={"organization": "Mallory Motors", "hardware_id": "1" * 17})
    assert tbs.der == fill("vehicle").der


def test_an_optional_attribute_without_value_is_left_out() -> None:
    variables = VARIABLES | {"organizational_unit": ""}
    del variables["organization"]
    template = issuance.compile_template(profiles.load("idevid"), realm(P256).issuing, variables)
    tbs = template.fill(
        serial_number=serial("x"), subject_public_key_info=spki(P256, "device"), not_before=NOW, variables={}
    )
    lint.permit(tbs)
    assert b"Line 1" not in lint.read(tbs.der).subject


@pytest.mark.parametrize(
    ("name", "variables", "complaint"),
    [
        ("vehicle", {"hardware_id": "x" * 65}, "1 to 64"),
        ("vehicle", {"hardware_id": "a\nb"}, "not allowed"),
        ("idevid", {"hardware_id": "under_score"}, "'_' is not allowed"),
        ("idevid", {"hardware_type": "1.3.x"}, "object identifier"),
        ("idevid", {"product_uri": "no uri"}, "no absolute uri"),
        ("idevid", {"product_uri": "//host/"}, "no absolute uri"),
        ("server", {"dns_names": "a..b"}, "no dns name"),
        ("server", {"dns_names": "-a.example"}, "no dns name"),
        ("server", {"ip_addresses": "192.0.2.256"}, "192.0.2.256"),
        ("server", {"dns_names": "", "ip_addresses": ""}, "needs a dns name"),
    ],
)
def test_a_value_that_does_not_fit_its_field_is_refused_by_both_ways(
    name: str, variables: dict[str, str], complaint: str
) -> None:
    profile, authority, values = profiles.load(name), realm(P256).issuing, VARIABLES | variables
    arguments = {
        "serial_number": serial("x"),
        "subject_public_key_info": spki(P256, "device"),
        "not_before": NOW,
    }
    with pytest.raises(MalformedRequest, match=complaint):
        issuance.compile_template(profile, authority, values)
    early = {key: values[key] for key in profile.early_variables & values.keys()}
    with pytest.raises(MalformedRequest, match=complaint):
        issuance.compile_template(profile, authority, early).fill(**arguments, variables=values)  # type: ignore[arg-type]  # arguments in a mapping have one type
    with pytest.raises(MalformedRequest, match=complaint):
        issuance.build_reference(profile, authority, **arguments, variables=values)  # type: ignore[arg-type]  # arguments in a mapping have one type


@pytest.mark.parametrize("octets", [b"", b"\x30\x00", bytes(91)])
def test_a_key_in_no_known_encoding_is_refused(octets: bytes) -> None:
    with pytest.raises(MalformedRequest):
        fill("vehicle", subject_public_key_info=octets)
    with pytest.raises(PolicyRefused):
        lint.permit(fill("idevid", subject_public_key_info=octets))


def test_authorities_are_not_made_from_templates() -> None:
    with pytest.raises(ValueError, match="build_reference"):
        issuance.compile_template(profiles.load("issuing"), realm(P256).root, VARIABLES)


def test_a_root_may_end_and_its_authorities_end_with_it() -> None:
    end = datetime(2051, 1, 1, tzinfo=UTC)
    mortal = realm(P256, end)
    assert (mortal.root.not_before, mortal.root.not_after) == (FOUNDED, end)
    assert mortal.issuing.not_after == end


def test_an_issuer_is_an_authority() -> None:
    leaf = realm(P256).issue(profiles.load("vehicle"), spki(P256, "device"))
    with pytest.raises(MalformedRequest, match="not the certificate of an authority"):
        issuance.Issuer.from_certificate(realm(P256).issuing.key_label, leaf)


def test_an_issuer_must_be_allowed_to_certify() -> None:
    profile = replace(
        profiles.load("vehicle"),
        basic_constraints=profiles.BasicConstraints(ca=False, path_len_constraint=None),
    )
    leaf = realm(P256).issue(profile, spki(P256, "device"))
    with pytest.raises(PolicyRefused, match="does not let it certify"):
        issuance.Issuer.from_certificate(realm(P256).issuing.key_label, leaf)


def test_an_issuer_with_a_key_we_cannot_use_is_malformed() -> None:
    key = rsa.generate_private_key(65537, 2056)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Theirs")])
    usage = [False] * 5 + [True] + [False] * 3
    theirs = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(FOUNDED)
        .not_valid_after(NOW)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(*usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    octets = theirs.public_bytes(Encoding.DER)
    with pytest.raises(MalformedRequest, match="in none of our encodings"):
        issuance.Issuer.from_certificate(KeyLabel("theirs"), octets)
    unknown = octets.replace(der.oid("1.2.840.113549.1.1.1"), der.oid("1.2.840.113549.1.1.127"))
    with pytest.raises(MalformedRequest, match=r"not an x.509 certificate"):
        issuance.Issuer.from_certificate(KeyLabel("theirs"), unknown)


def test_an_issuers_name_is_taken_as_it_stands_in_its_certificate() -> None:
    """SPEC A4: an authority certified elsewhere may be named by any encoder."""
    key = private_key(P256, "theirs")
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    kind = x509.name._ASN1Type.BMPString  # noqa: SLF001 -- the library's only way to write an odd string type
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Theirs", kind)])
    usage = [False] * 5 + [True] + [False] * 3
    theirs = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(FOUNDED)
        .not_valid_after(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(*usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    issuer = issuance.Issuer.from_certificate(KeyLabel("theirs"), theirs.public_bytes(Encoding.DER))
    assert issuer.subject.hex() == "3017311530130603550403" + "1e0c" + "Theirs".encode("utf-16-be").hex()
    lint.permit(
        issuance.compile_template(profiles.load("vehicle"), issuer, VARIABLES).fill(
            serial_number=serial("x"),
            subject_public_key_info=spki(P256, "device"),
            not_before=NOW,
            variables={},
        )
    )


@pytest.mark.parametrize("text", ["ftp://pki.example/crl", "http://pki.example/a b", "http://é.example"])
def test_a_location_that_cannot_be_fetched_is_refused(text: str) -> None:
    profile = replace(
        profiles.load("vehicle"),
        crl_distribution_point=profiles.TextTemplate("{crl_url}", (("", "crl_url"),), frozenset({"crl_url"})),
    )
    with pytest.raises(MalformedRequest, match="no http location"):
        issuance.compile_template(profile, realm(P256).issuing, VARIABLES | {"crl_url": text})


def test_a_hardware_serial_is_ascii_and_not_empty() -> None:
    for text in ("", "é"):
        template = profiles.TextTemplate(text, ((text, None),), frozenset())
        alternative = profiles.load("idevid").subject_alternative_name
        assert alternative is not None
        profile = replace(
            profiles.load("idevid"), subject_alternative_name=replace(alternative, hardware_serial=template)
        )
        with pytest.raises(MalformedRequest, match="empty or not ascii"):
            issuance.compile_template(profile, realm(P256).issuing, VARIABLES)


@pytest.mark.parametrize("octets", [b"", bytes.fromhex("3003020100"), bytes(91)])
def test_a_root_or_authority_with_no_usable_key_is_refused(octets: bytes) -> None:
    with pytest.raises(MalformedRequest):
        issuance.build_root(
            profiles.load("root"),
            key_label=KeyLabel("root"),
            serial_number=serial("x"),
            subject_public_key_info=octets,
            not_before=NOW,
            variables=VARIABLES,
        )
    with pytest.raises(MalformedRequest):
        issuance.build_reference(
            profiles.load("issuing"),
            realm(P256).root,
            serial_number=serial("x"),
            subject_public_key_info=octets,
            not_before=NOW,
            variables=VARIABLES,
        )


def test_an_issuer_knows_its_certificate() -> None:
    ours = realm(KeyAlgorithm.EC_P384).issuing
    assert ours.certificate is not None
    parsed = x509.load_der_x509_certificate(ours.certificate)
    assert ours.subject == parsed.subject.public_bytes()
    assert ours.key_identifier == x509.SubjectKeyIdentifier.from_public_key(parsed.public_key()).digest
    assert ours.key_algorithm is KeyAlgorithm.EC_P384
    assert ours.path_len_constraint == 0
    assert "3082" not in repr(ours)


@given(st.binary(max_size=200))
def test_an_issuer_from_any_octets_is_malformed(octets: bytes) -> None:
    with pytest.raises(MalformedRequest):
        issuance.Issuer.from_certificate(realm(P256).issuing.key_label, octets)
