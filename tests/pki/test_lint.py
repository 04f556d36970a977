"""Each rule refuses a certificate that is broken in exactly its way (SPEC F5)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der, issuance, lint, profiles
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.certificates import TBSCertificate
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.lint import IssuancePermit
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
from tests.support.chains import LOCATIONS, chain_of, variables_of

P256 = KeyAlgorithm.EC_P256


def filled(name: str, *, key: bytes | None = None) -> TBSCertificate:
    """A good certificate to break."""
    template = issuance.compile_template(profiles.load(name), realm(P256).issuing, VARIABLES)
    return template.fill(
        serial_number=serial(name),
        subject_public_key_info=key or spki(P256, "device"),
        not_before=NOW,
        variables={},
    )


@dataclass
class Parts:
    """A TBSCertificate taken apart, to be put together otherwise."""

    version: bytes
    serial_number: bytes
    signature: bytes
    issuer: bytes
    not_before: bytes
    not_after: bytes
    subject: list[bytes]
    key: bytes
    extensions: list[tuple[str, bool, bytes]]

    @classmethod
    def of(cls, tbs: TBSCertificate) -> "Parts":
        octets = tbs.der
        _, _, start, stop = der.only(octets, der.SEQUENCE)
        fields = der.children(octets, start, stop)
        whole = [octets[field[1] : field[3]] for field in fields]
        times = [octets[time[1] : time[3]] for time in der.children(octets, *fields[4][2:])]
        names = [octets[name[1] : name[3]] for name in der.children(octets, *fields[5][2:])]
        # The library reads the extensions: what it says is the ground on which we break them.
        signature = signed_by(private_key(P256, ISSUING_KEY), octets)
        parsed = x509.load_der_x509_certificate(
            der.encode(der.SEQUENCE, octets, whole[2], der.encode(der.BIT_STRING, b"\0" + signature))
        )
        extensions = [
            (found.oid.dotted_string, found.critical, found.value.public_bytes())
            for found in parsed.extensions
        ]
        return cls(
            whole[0], whole[1], whole[2], whole[3], times[0], times[1], names, whole[6], extensions
        )  # fmt: skip

    def assemble(self) -> bytes:
        extensions = [
            der.encode(
                der.SEQUENCE,
                der.oid(identifier),
                b"\x01\x01\xff" if critical else b"",
                der.encode(der.OCTET_STRING, value),
            )
            for identifier, critical, value in self.extensions
        ]
        return der.encode(
            der.SEQUENCE,
            self.version,
            self.serial_number,
            self.signature,
            self.issuer,
            der.encode(der.SEQUENCE, self.not_before, self.not_after),
            der.encode(der.SEQUENCE, *self.subject),
            self.key,
            der.encode(0xA3, der.encode(der.SEQUENCE, *extensions)),
        )

    def extension(self, wanted: str, value: bytes) -> None:
        self.extensions = [
            (identifier, critical, value if identifier == wanted else old)
            for identifier, critical, old in self.extensions
        ]


def broken(tbs: TBSCertificate, change: Callable[[Parts], object]) -> TBSCertificate:
    parts = Parts.of(tbs)
    assert parts.assemble() == tbs.der, "taken apart and put together it is the same"
    change(parts)
    return replace(tbs, der=parts.assemble())


def refused_by(tbs: TBSCertificate) -> str:
    with pytest.raises(PolicyRefused) as refusal:
        lint.permit(tbs)
    return refusal.value.rule


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


def set_to(field: str, value: bytes) -> Callable[[Parts], object]:
    return lambda parts: setattr(parts, field, value)


def set_extension(identifier: str, value: str) -> Callable[[Parts], object]:
    return lambda parts: parts.extension(identifier, bytes.fromhex(value))


def time(tag: int, text: str) -> bytes:
    return der.encode(tag, text.encode())


def attribute(dotted: str, tag: int, text: str) -> bytes:
    pair = der.encode(der.SEQUENCE, der.oid(dotted), der.encode(tag, text.encode()))
    return der.encode(der.SET, pair)


CN, O, OU, SERIAL_NUMBER = "2.5.4.3", "2.5.4.10", "2.5.4.11", "2.5.4.5"  # noqa: E741
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


def broken_of(name: str, change: Callable[[Parts], object], **variables: str) -> str:
    """The rule that refuses a certificate of a standard's chain, broken in one way."""
    return refused_by(broken(of_chain(name, **variables), change))


def of_chain(name: str, **variables: str) -> TBSCertificate:
    """What is signed in the chain of a profile, to be broken."""
    chain = chain_of(name, variables=variables)
    octets = x509.load_der_x509_certificate(chain.leaf_der).tbs_certificate_bytes
    number = x509.load_der_x509_certificate(chain.leaf_der).serial_number
    tbs = TBSCertificate(
        der=octets, serial_number=number, profile=profiles.load(name), issuer=chain.issuers[0]
    )
    lint.permit(tbs)
    return tbs


def test_an_issuer_that_the_profile_does_not_name_is_refused() -> None:
    """A DAC comes from a PAI; an issuer of which nobody knows the profile is none."""
    tbs = of_chain("matter-dac")
    for profile, said in (("issuing", "is issuing, not matter-pai"), (None, "is unknown, not matter-pai")):
        other = replace(tbs, issuer=replace(tbs.issuer, profile=profile))
        with pytest.raises(PolicyRefused, match=said) as refusal:
            lint.permit(other)
        assert refusal.value.rule == "issuer_is_one_the_profile_names"


def test_an_issuers_key_that_the_profile_does_not_allow_is_refused() -> None:
    """Wi-SUN: P-256 at every tier; DLMS: a P-384 key only under a P-384 authority."""
    for name, algorithm in (
        ("wisun-device", KeyAlgorithm.EC_P384),
        ("matter-dac", KeyAlgorithm.EC_P384),
        ("iso15118-2-oem-prov", KeyAlgorithm.EC_P521),
        ("dlms-signature-2", KeyAlgorithm.EC_P256),
    ):
        tbs = of_chain(name)
        issuer = replace(tbs.issuer, key_algorithm=algorithm)
        signed = ALGORITHMS[tbs.issuer.key_algorithm].signature_algorithm
        octets = Parts.of(tbs)
        octets.signature = ALGORITHMS[algorithm].signature_algorithm
        assert octets.signature != signed
        assert refused_by(replace(tbs, issuer=issuer, der=octets.assemble())) == "issuers_key_is_allowed"


def test_an_issuer_weaker_than_its_subject_is_refused() -> None:
    root = chain_of("dlms-root", algorithm=P256)
    issuer = Issuer.from_certificate(ROOT_KEY, root.leaf_der, profile="dlms-root")
    tbs = issuance.build_reference(
        profiles.load("dlms-ca"),
        issuer,
        serial_number=serial("x"),
        subject_public_key_info=spki(KeyAlgorithm.EC_P384, "sub"),
        not_before=NOW,
        variables=variables_of("dlms-ca"),
    )
    with pytest.raises(PolicyRefused, match=r"ec-p256, is weaker than the subject's, ec-p384") as refusal:
        lint.permit(tbs)
    assert refusal.value.rule == "issuers_key_is_allowed"


VID, PID = "1.3.6.1.4.1.37244.2.1", "1.3.6.1.4.1.37244.2.2"


@pytest.mark.parametrize(
    ("name", "place", "dotted", "text"),
    [
        ("matter-dac", 1, VID, "FFF2"),
        ("matter-dac", 2, PID, "80A2"),
        ("matter-pai", 2, VID, "FFF2"),
    ],
)
def test_a_matter_id_other_than_the_issuers_is_refused(name: str, place: int, dotted: str, text: str) -> None:
    def change(parts: Parts) -> None:
        parts.subject[place] = attribute(dotted, 0x0C, text)

    assert broken_of(name, change) == "subject_agrees_with_the_issuers"


def test_a_matter_id_that_the_issuer_leaves_open_is_permitted() -> None:
    """A PAA for many vendors has no VID, a PAI for many products no PID."""
    of_chain("matter-pai", vendor_id="FFF1")
    paa = Issuer.from_certificate(
        ROOT_KEY, chain_of("matter-paa", variables={"vendor_id": ""}).leaf_der, profile="matter-paa"
    )
    tbs = issuance.build_reference(
        profiles.load("matter-pai"),
        paa,
        serial_number=serial("x"),
        subject_public_key_info=spki(P256, "pai"),
        not_before=NOW,
        variables=variables_of("matter-pai") | {"vendor_id": "FFF4"},
    )
    lint.permit(tbs)


def test_a_matter_id_in_small_letters_is_refused() -> None:
    def change(parts: Parts) -> None:
        parts.subject[1] = attribute(VID, 0x0C, "fff1")

    assert broken_of("matter-dac", change) == "subject_is_the_profiles"


POLICY, ANOTHER = "06092b06010401fd590201", "06092b06010401fd590202"


@pytest.mark.parametrize(
    "value",
    [
        "3000",
        f"301a300b{POLICY}300b{ANOTHER}",
        "3004300206 00",
        f"300f300d{POLICY}3000",
        "30073005040300 0000",
    ],
)
def test_policies_other_than_the_profiles_are_refused(value: str) -> None:
    """None, one more, one that is empty, one with qualifiers, one that is no object identifier."""

    def change(parts: Parts) -> None:
        parts.extension("2.5.29.32", bytes.fromhex(value))

    assert broken_of("dlms-signature-1", change) == "policies_are_the_profiles"


@pytest.mark.parametrize("value", ["30060101ff020111", "30030101ff", "3000", "30060101ff0201ff"])
def test_a_path_length_that_a_profile_leaves_open_is_still_one(value: str) -> None:
    """More than 16, none at all, no authority's, negative."""

    def change(parts: Parts) -> None:
        parts.extension("2.5.29.19", bytes.fromhex(value))

    tbs = of_chain("intermediate")
    tbs = replace(tbs, issuer=replace(tbs.issuer, path_len_constraint=None))
    assert refused_by(broken(tbs, change)) == "basic_constraints_are_the_profiles"


def test_an_authority_beyond_any_above_it_is_not_an_issuer() -> None:
    """RFC 5280 section 6.1.4 (m): the least of all path lengths above counts, and each step costs one."""
    chain = chain_of("iso15118-2-oem-sub-ca-2")
    below = Issuer.from_certificate(
        ROOT_KEY, chain.intermediates[0], above=[chain.root_der], profile="iso15118-2-oem-sub-ca-1"
    )
    assert below.path_len_constraint == 1
    with pytest.raises(PolicyRefused, match="lets no authority follow") as refusal:
        Issuer.from_certificate(ROOT_KEY, chain.intermediates[0], above=[chain.leaf_der])
    assert refusal.value.rule == "path-length"


CONSTRAINED = {"permitted_dns_names": "factory.example example.org"}


@pytest.mark.parametrize(
    "value",
    ["3000", "3012a110300e820c6578616d706c652e74657374", "300ea00c300a8708c0000200ffffff00"],
)
def test_name_constraints_of_another_form_than_the_profiles_are_refused(value: str) -> None:
    """None, an exclusion, addresses: the profile permits DNS names."""

    def change(parts: Parts) -> None:
        parts.extension("2.5.29.30", bytes.fromhex(value))

    assert broken_of("intermediate", change, **CONSTRAINED) == "name_constraints_have_the_profiles_form"


def server_below(issuer: Issuer, **variables: str) -> TBSCertificate:
    return issuance.compile_template(profiles.load("server"), issuer, VARIABLES | variables).fill(
        serial_number=serial("x"), subject_public_key_info=spki(P256, "server"), not_before=NOW, variables={}
    )


def test_a_name_outside_of_the_issuers_constraints_is_refused() -> None:
    """RFC 5280 section 4.2.1.10, also two authorities further down."""
    chain = chain_of("intermediate", variables=CONSTRAINED)
    confined = Issuer.from_certificate(ROOT_KEY, chain.leaf_der, above=[chain.root_der])
    tbs = issuance.build_reference(
        profiles.load("issuing"),
        confined,
        serial_number=serial("below"),
        subject_public_key_info=spki(P256, "below"),
        not_before=NOW,
        variables=VARIABLES,
    )
    signed = issuance.sign_certificate(
        lint.permit(tbs), lambda _, message: signed_by(private_key(P256, "chain-intermediate"), message)
    )
    below = Issuer.from_certificate(ISSUING_KEY, signed, above=[chain.leaf_der, chain.root_der])
    for issuer in (confined, below):
        lint.permit(server_below(issuer, dns_names="line-1.FACTORY.example example.org"))
        outside = server_below(issuer, dns_names="factory.example elsewhere.example")
        assert refused_by(outside) == "names_are_within_the_issuers_constraints"


@pytest.mark.parametrize(
    "value",
    [
        "3000",  # nothing
        "30038201" + "61",  # a host alone
        "300d86" + "0b" + "68747470733a2f2f612f62",  # an uri alone
    ],
)
def test_names_other_than_the_profiles_are_refused(value: str) -> None:
    """Wi-SUN: exactly one hardwareModuleName, and nothing beside it."""

    def change(parts: Parts) -> None:
        parts.extension(SAN, bytes.fromhex(value))

    assert broken_of("wisun-device", change) == "alternative_name_has_the_profiles_form"


def test_a_name_beside_the_hardwares_is_refused() -> None:
    def with_more(more: bytes) -> Callable[[Parts], None]:
        def change(parts: Parts) -> None:
            (value,) = [value for identifier, _, value in parts.extensions if identifier == SAN]
            _, _, start, stop = der.only(value, der.SEQUENCE)
            parts.extension(SAN, der.encode(der.SEQUENCE, value[start:stop], more))

        return change

    hardware = chain_of("wisun-device")
    value = lint.read(x509.load_der_x509_certificate(hardware.leaf_der).tbs_certificate_bytes).extensions[
        der.oid(SAN)
    ]
    _, _, start, stop = der.only(value, der.SEQUENCE)
    for more in (value[start:stop], der.encode(0x82, b"a.example"), der.encode(0x86, b"https://a.example/")):
        assert broken_of("wisun-device", with_more(more)) == "alternative_name_has_the_profiles_form"
    uri = der.encode(0x86, b"https://a.example/2")
    lint.permit(broken(of_chain("idevid"), with_more(uri)))
    assert (
        broken_of("idevid", with_more(der.encode(0x86, b"\xff"))) == "alternative_name_has_the_profiles_form"
    )
    assert broken_of("idevid", with_more(der.encode(0x82, b"a"))) == "alternative_name_has_the_profiles_form"


def test_only_the_optional_extensions_may_be_absent() -> None:
    """SPEC G1: each choice of those the profile marks optional, in order, and nothing else."""
    tbs = of_chain("vehicle", **LOCATIONS)
    optional = {"2.5.29.31", "1.3.6.1.5.5.7.1.1"}
    for absent, _, _ in Parts.of(tbs).extensions:

        def change(parts: Parts, absent: str = absent) -> None:
            parts.extensions = [found for found in parts.extensions if found[0] != absent]

        without = broken(tbs, change)
        if absent in optional:
            lint.permit(without)
        else:
            assert refused_by(without) == "extensions_are_the_profiles"


def test_an_access_method_that_the_profile_has_not_is_refused() -> None:
    access = "1.3.6.1.5.5.7.1.1"
    tbs = of_chain("vehicle", **LOCATIONS)
    with_ocsp_alone = replace(tbs.profile, ca_issuers=None)
    assert refused_by(replace(tbs, profile=with_ocsp_alone)) == "locations_are_http"

    def change(parts: Parts) -> None:
        (value,) = [value for identifier, _, value in parts.extensions if identifier == access]
        _, _, start, stop = der.only(value, der.SEQUENCE)
        first, second = (value[part[1] : part[3]] for part in der.children(value, start, stop))
        parts.extension(access, der.encode(der.SEQUENCE, second, first))

    assert refused_by(broken(tbs, change)) == "locations_are_http"


@pytest.mark.parametrize(("name", "profile"), [("issuing", "root"), ("root", "issuing")])
def test_a_roots_profile_is_for_roots_alone(name: str, profile: str) -> None:
    """A root that another signs lacks what a path needs; an authority that signs itself is none of ours."""
    chain = chain_of(name)
    octets = x509.load_der_x509_certificate(chain.leaf_der).tbs_certificate_bytes
    number = x509.load_der_x509_certificate(chain.leaf_der).serial_number
    issuer = chain.issuers[0] if chain.issuers else replace(realm(P256).root, certificate=None)
    if not chain.issuers:
        issuer = replace(issuer, subject=lint.read(octets).subject)
    tbs = TBSCertificate(der=octets, serial_number=number, profile=profiles.load(profile), issuer=issuer)
    assert refused_by(tbs) == "only_a_root_names_itself"


def test_a_key_identifier_of_method_2_has_eight_octets() -> None:
    """RFC 5280 section 4.2.1.2 (2): 0100 and the least significant 60 bits of the SHA-1 of the key."""
    profile = replace(profiles.load("vehicle"), subject_key_identifier_method=2)
    tbs = issuance.compile_template(profile, realm(P256).issuing, VARIABLES).fill(
        serial_number=serial("x"), subject_public_key_info=spki(P256, "device"), not_before=NOW, variables={}
    )
    lint.permit(tbs)
    public = private_key(P256, "device").public_key()
    digest = x509.SubjectKeyIdentifier.from_public_key(public).digest
    value = lint.read(tbs.der).extensions[der.oid(SKI)]
    assert value.hex() == "04084" + digest.hex()[-15:]
    assert (
        refused_by(replace(tbs, profile=profiles.load("vehicle"))) == "subject_key_identifier_is_of_the_key"
    )


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
