"""The rules that standards bring along, each broken in a chain of that standard (SPEC G1)."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509

from birthmark.errors import PolicyRefused
from birthmark.pki import der, issuance, lint, profiles
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.certificates import TBSCertificate
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyAlgorithm
from tests.pki.parts import P256, Parts, attribute, broken, refused_by
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

SAN, SKI = "2.5.29.17", "2.5.29.14"


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
