"""Profiles of an installation's own: every form of name, authorities confined by name (SPEC G1)."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der, issuance, lint, profiles
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from tests.pki.sample import FOUNDED, NOW, VARIABLES, private_key, realm, serial, signed_by, spki
from tests.support.chains import LOCATIONS

P256 = KeyAlgorithm.EC_P256

EVERY_FORM = """
name = "everything"
title = "Every form of name at once"
kind = "device"
subject-key-algorithms = ["ec-p256"]
validity = "P30D"
shorter-validity = true
key-usage = ["digital-signature", "key-agreement"]
extended-key-usage = ["client-auth", "1.3.6.1.4.1.32473.5"]
extended-key-usage-critical = true
certificate-policies = ["{certificate_policy}", "1.3.6.1.4.1.32473.9"]
optional = ["ca-issuers"]
ocsp-responder = "{ocsp_url}"
ca-issuers = "{issuer_url}"
subject-key-identifier = true
subject-key-identifier-method = 2
authority-key-identifier = true
max-der-size = 2048

[[subject]]
attribute = "DC"
value = "example"

[[subject]]
attribute = "CN"
value = "{hardware_id}"

[[subject]]
attribute = "C"
value = "SE"

[[subject]]
attribute = "matterVID"
value = "{vendor_id}"

[subject-alternative-name]
critical = true
hardware-type = "{hardware_type}"
hardware-serial = "{hardware_id}"
serial-encoding = "hex"
permanent-identifier = "{organization}:{hardware_id}"
assigner = "{certificate_policy}"
dns-names = "{dns_names}"
uris = "{product_uri}{hardware_id} urn:example:{hardware_id}"
ip-addresses = "{ip_addresses}"
optional = ["uris", "permanent-identifier"]
"""


@given(
    eui=st.text("0123456789ABCDEF", min_size=16, max_size=16),
    absent=st.sets(st.sampled_from(["product_uri", "organization", "issuer_url"])),
    late=st.sets(st.sampled_from(["dns_names", "ip_addresses", "vendor_id", "hardware_type"])),
)
def test_every_form_of_name_at_once_is_the_builders_too(eui: str, absent: set[str], late: set[str]) -> None:
    """What a profile of an installation's own may say: all the forms, critical, and the optional left out."""
    profile = profiles.parse(EVERY_FORM.encode(), "everything.toml")
    values = VARIABLES | LOCATIONS | {"hardware_id": eui}
    values = {name: text for name, text in values.items() if name not in absent}
    arguments: dict[str, Any] = {
        "serial_number": serial("x"),
        "subject_public_key_info": spki(P256, "device"),
        "not_before": NOW,
    }
    with_device = late | {"hardware_id"}
    template = issuance.compile_template(
        profile, realm(P256).issuing, {name: text for name, text in values.items() if name not in with_device}
    )
    tbs = template.fill(
        variables={name: text for name, text in values.items() if name in with_device}, **arguments
    )
    assert (
        tbs.der == issuance.build_reference(profile, realm(P256).issuing, variables=values, **arguments).der
    )
    lint.permit(tbs)
    names = lint.read(tbs.der).extensions[der.oid("2.5.29.17")]
    assert (f"urn:example:{eui}".encode() in names) is ("product_uri" not in absent)
    assert (f"Example Motors:{eui}".encode() in names) is ("organization" not in absent)
    assert bytes.fromhex(eui) in names


@pytest.mark.parametrize("hardware_id", ["00173B000000000", "0x173B0000000001", "00173B00000000 1"])
def test_a_serial_in_hex_is_pairs_of_digits(hardware_id: str) -> None:
    profile = profiles.parse(EVERY_FORM.encode(), "everything.toml")
    with pytest.raises(MalformedRequest, match="not pairs of hex digits"):
        issuance.compile_template(
            profile,
            realm(P256).issuing,
            VARIABLES | LOCATIONS | {"hardware_id": hardware_id, "vendor_id": "FFF1"},
        )


CONFINED = """
name = "confined"
title = "An authority confined by name"
kind = "authority"
subject-key-algorithms = ["ec-p256"]
validity = "no-well-defined-expiry"
shorter-validity = true
key-usage = ["key-cert-sign"]
subject-key-identifier = true
authority-key-identifier = true
max-der-size = 1024

[basic-constraints]
ca = true
path-len-constraint = 0

[[subject]]
attribute = "CN"
value = "{authority}"

[[name-constraints.permitted]]
form = "directory"
[[name-constraints.permitted.name]]
attribute = "O"
value = "{organization}"

[[name-constraints.excluded]]
form = "uri"
value = ".secret.example"
"""


def test_a_profile_of_an_installations_own_confines_an_authority() -> None:
    """SPEC G1: a supplier's authority certifies devices of one organization and no others."""
    tbs = issuance.build_reference(
        profiles.parse(CONFINED.encode(), "confined.toml"),
        realm(P256).root,
        serial_number=serial("confined"),
        subject_public_key_info=spki(P256, "confined"),
        not_before=FOUNDED,
        variables=VARIABLES,
    )

    def sign(_: KeyLabel, message: bytes) -> bytes:
        return signed_by(private_key(P256, "root"), message)

    confined = issuance.Issuer.from_certificate(
        KeyLabel("confined"), issuance.sign_certificate(lint.permit(tbs), sign), profile="confined"
    )
    for organization, uri, accepted in (
        ("Example Motors", "https://products.example/", True),
        ("example  motors", "https://products.example/", True),
        ("Other Motors", "https://products.example/", False),
        ("Example Motors", "https://a.secret.example/", False),
    ):
        values = VARIABLES | {"organization": organization, "product_uri": uri}
        device = issuance.compile_template(profiles.load("idevid"), confined, values).fill(
            serial_number=serial("x"),
            subject_public_key_info=spki(P256, "device"),
            not_before=NOW,
            variables={},
        )
        if accepted:
            lint.permit(device)
        else:
            with pytest.raises(PolicyRefused) as refusal:
                lint.permit(device)
            assert refusal.value.rule == "names_are_within_the_issuers_constraints"
