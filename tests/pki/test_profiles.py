"""Certificate profiles (SPEC G1)."""

from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest, NotFound
from birthmark.pki import profiles
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.profiles import Extension

GOOD = """
name = "x"
title = "Example"
kind = "device"
subject-key-algorithms = ["ec-p256"]
validity = "P1DT2H3M"
key-usage = ["digital-signature"]
subject-key-identifier = true
authority-key-identifier = true
max-der-size = 1024
[[subject]]
attribute = "CN"
value = "{hardware_id} of {realm}"
"""


def changed(old: str, new: str) -> bytes:
    assert old in GOOD
    return GOOD.replace(old, new).encode()


def test_the_packaged_profiles_are_these() -> None:
    assert profiles.names() == (
        "bootstrap", "idevid", "issuing", "operator", "root", "server", "station", "vehicle",
    )  # fmt: skip


@pytest.mark.parametrize("name", profiles.names())
def test_a_packaged_profile_loads_and_explains_itself(name: str) -> None:
    profile = profiles.load(name)
    assert profile.name == name
    for waiver in profile.waivers:
        assert waiver.linter == "pkilint"
        assert len(waiver.reason) > 20


def test_authorities_allow_one_level_below_the_root_and_none_below_that() -> None:
    root, issuing = profiles.load("root").basic_constraints, profiles.load("issuing").basic_constraints
    assert root == profiles.BasicConstraints(ca=True, path_len_constraint=1)
    assert issuing == profiles.BasicConstraints(ca=True, path_len_constraint=0)
    assert not any(profiles.load(name).is_ca for name in profiles.names() if name not in {"root", "issuing"})


def test_never_ending_devices_have_never_ending_authorities() -> None:
    """profiles/root.toml: a certificate never outlives its issuer."""
    for name in ("root", "issuing", "idevid", "vehicle"):
        assert profiles.load(name).validity is None


def test_a_file_says_what_a_certificate_contains() -> None:
    profile = profiles.parse(GOOD.encode(), "x.toml")
    assert profile.validity == timedelta(days=1, hours=2, minutes=3)
    assert profile.subject_key_algorithms == (KeyAlgorithm.EC_P256,)
    assert profile.subject[0].value.render({"hardware_id": "1", "realm": "Lab"}) == "1 of Lab"
    assert profile.variables == {"hardware_id", "realm"}
    assert profile.extensions == (
        Extension.KEY_USAGE,
        Extension.SUBJECT_KEY_IDENTIFIER,
        Extension.AUTHORITY_KEY_IDENTIFIER,
    )


def test_variables_are_found_wherever_a_profile_names_them() -> None:
    assert {"hardware_id", "hardware_type"} <= profiles.load("idevid").variables
    assert {"dns_names", "ip_addresses"} <= profiles.load("server").variables
    urls = changed("= 1024", '= 1024\ncrl-distribution-point = "{crl_url}"\nocsp-responder = "{ocsp_url}"')
    assert profiles.parse(urls, "x.toml").variables == {"hardware_id", "realm", "crl_url", "ocsp_url"}


@pytest.mark.parametrize(
    "name", ["nothing", "", "../root", "../profiles/root", "root.toml", "Root", "a" * 999]
)
def test_only_packaged_profiles_are_loaded_and_only_by_name(name: str, tmp_path: Path) -> None:
    """A licence names a profile: what it names must never be a file of its author's."""
    (tmp_path / "x.toml").write_text(GOOD)
    for spelling in (name, str(tmp_path / "x.toml"), str(tmp_path / "x")):
        with pytest.raises(NotFound, match="there is no profile"):
            profiles.load(spelling)


@pytest.mark.parametrize(
    ("octets", "complaint"),
    [
        (changed('name = "x"', 'name = "y"'), "profile x.toml: name: 'y' must be the file's name"),
        (changed('name = "x"', ""), "profile x.toml: name: missing"),
        (changed("Example", " "), "title: must not be empty"),
        (changed("max-der-size = 1024", "max-der-size = true"), "max-der-size: must be an integer"),
        (changed("max-der-size = 1024", "max-der-size = 100"), "max-der-size: 100 is not between"),
        (changed("= 1024", '= 1024\nextension = "x"'), "profile x.toml: extension: unknown key"),
        (changed('"CN"', '"CN"\nrequired = true'), r"subject\[0\].required: unknown key"),
        (changed('"CN"', '"commonName"'), r"subject\[0\].attribute: 'commonName' is none of"),
        (changed('value = "{hardware_id} of {realm}"', ""), r"subject\[0\].value: missing"),
        (changed("{realm}", "{vin}"), r"subject\[0\].value: .*\{vin\} is none of the variables"),
        (changed("{realm}", "{realm!r}"), "is none of the variables"),
        (changed("{realm}", "{realm:>5}"), "is none of the variables"),
        (changed("{realm}", "{realm.x}"), "is none of the variables"),
        (changed("{realm}", "{}"), "is none of the variables"),
        (changed("{realm}", "{realm"), "value: "),
        (changed("ec-p256", "rsa-1024"), "subject-key-algorithms: 'rsa-1024' is none of"),
        (changed('["ec-p256"]', "[]"), "subject-key-algorithms: must name at least one"),
        (changed('["ec-p256"]', '["ec-p256", "ec-p256"]'), "subject-key-algorithms: names one twice"),
        (changed('["ec-p256"]', '"ec-p256"'), "subject-key-algorithms: must be a list of texts"),
        (changed("P1DT2H3M", "10 years"), "validity: '10 years' is neither"),
        (changed("P1DT2H3M", "P"), "validity: 'P' is neither"),
        (changed("P1DT2H3M", "P1DT"), "validity: 'P1DT' is neither"),
        (changed("P1DT2H3M", "P0D"), "validity: 'P0D' is no time at all"),
        (changed('["digital-signature"]', '["key-cert-sign"]'), "key-usage: key-cert-sign and ca = true"),
        (GOOD.encode() + b"[basic-constraints]\nca = true\n", "key-usage: key-cert-sign and ca = true"),
        (
            GOOD.encode() + b"[basic-constraints]\nca = false\npath-len-constraint = 1\n",
            "path-len-constraint: 1",
        ),
        (GOOD.encode() + b"[basic-constraints]\n", "basic-constraints.ca: missing"),
        (
            changed("max-der-size", 'extended-key-usage = ["x"]\nmax-der-size'),
            "extended-key-usage: 'x' is not an",
        ),
        (changed('"CN"', '"CN"\noptional = true'), "subject: may be empty only beside"),
        (
            changed("= 1024", '= 1024\nsubject-alternative-name = "x"'),
            "subject-alternative-name: must be a table",
        ),
        (
            GOOD.encode() + b'[subject-alternative-name]\ncritical = true\nhardware-type = "1.2.3"\n',
            "subject-alternative-name.hardware-type: give both",
        ),
        (
            GOOD.encode() + b'[[waivers]]\nlinter = "pkilint"\nfinding = "x"\nreason = " "\n',
            r"waivers\[0\].reason: a waiver needs its reason",
        ),
        (b"\xff", "not a toml file"),
        (b"name = ", "not a toml file"),
    ],
)
def test_a_mistake_is_told_with_file_and_key(octets: bytes, complaint: str) -> None:
    with pytest.raises(MalformedRequest, match=complaint) as refusal:
        profiles.parse(octets, "x.toml")
    assert str(refusal.value).startswith("profile x.toml: ")


@given(st.one_of(st.binary(max_size=200), st.integers(0, len(GOOD)).map(lambda end: GOOD[:end].encode())))
def test_any_octets_are_a_profile_or_malformed(octets: bytes) -> None:
    try:
        profiles.parse(octets, "x.toml")
    except MalformedRequest:
        return


@given(st.data())
def test_any_value_of_any_key_is_a_profile_or_malformed(data: st.DataObject) -> None:
    lines = GOOD.splitlines()
    place = data.draw(st.integers(0, len(lines) - 1))
    values = ["1", "-1", "true", '""', '"{"', "[]", "[1]", "{}", "[{}]", "1979-05-27", "nan", '"x"', '["x"]']
    lines[place] = lines[place].partition("=")[0] + "= " + data.draw(st.sampled_from(values))
    try:
        profiles.parse("\n".join(lines).encode(), "x.toml")
    except MalformedRequest:
        return
