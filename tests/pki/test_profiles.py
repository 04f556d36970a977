"""Certificate profiles (SPEC G1)."""

import hashlib
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest, NotFound, Unavailable
from birthmark.pki import profiles
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.profiles import Catalogue, Extension, KeyUsage, ProfileKind

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
    """SPEC G1 names the standards; the rest is our own."""
    assert profiles.names() == (
        "3gpp-vendor",
        "bootstrap",
        "dlms-agreement-1", "dlms-agreement-2", "dlms-ca", "dlms-root",
        "dlms-signature-1", "dlms-signature-2",
        "dlms-tls-1", "dlms-tls-2",
        "firmware-signing",
        "idevid", "iec62443", "intermediate",
        "iso15118-2-oem-prov", "iso15118-2-oem-root", "iso15118-2-oem-sub-ca-1", "iso15118-2-oem-sub-ca-2",
        "iso15118-20-oem-prov", "iso15118-20-oem-prov-ed448", "iso15118-20-oem-root",
        "iso15118-20-oem-sub-ca-1", "iso15118-20-oem-sub-ca-2",
        "issuing",
        "ldevid",
        "matter-dac", "matter-paa", "matter-pai",
        "ocsp-responder", "operator",
        "proxy",
        "root",
        "server", "shared", "station",
        "tpm-iak", "tpm-idevid",
        "vehicle",
        "wisun-device", "wisun-mca", "wisun-mica", "wisun-root",
    )  # fmt: skip


@pytest.mark.parametrize("name", profiles.names())
def test_a_packaged_profile_loads_and_explains_itself(name: str) -> None:
    profile = profiles.load(name)
    assert profile.name == name
    for waiver in profile.waivers:
        assert waiver.linter == "pkilint"
        assert len(waiver.reason) > 20


def test_each_tier_of_authorities_allows_one_less_below_it() -> None:
    """RFC 5280 section 4.2.1.9, A.2, A.3 and A.4 of the standards: pathLen as each of them has it."""
    limits = {
        name: constraints.path_len_constraint
        for name in profiles.names()
        if (constraints := profiles.load(name).basic_constraints) is not None and constraints.ca
    }
    assert limits == {
        "root": 1, "intermediate": 1, "issuing": 0,
        "matter-paa": 1, "matter-pai": 0,
        "iso15118-2-oem-root": 2, "iso15118-2-oem-sub-ca-1": 1, "iso15118-2-oem-sub-ca-2": 0,
        "iso15118-20-oem-root": 2, "iso15118-20-oem-sub-ca-1": 1, "iso15118-20-oem-sub-ca-2": 0,
        "wisun-root": 2, "wisun-mca": 1, "wisun-mica": 0,
        "dlms-root": 1, "dlms-ca": 0,
    }  # fmt: skip
    assert {name for name in profiles.names() if profiles.load(name).self_signed} == {
        "root", "matter-paa", "iso15118-2-oem-root", "iso15118-20-oem-root", "wisun-root", "dlms-root",
    }  # fmt: skip


def test_what_a_standard_forbids_is_in_none_of_its_profiles() -> None:
    """Wi-SUN has no revocation at all; Matter has nothing that it does not name, and 600 octets."""
    for name in (name for name in profiles.names() if name.startswith("wisun")):
        profile = profiles.load(name)
        assert not {Extension.CRL_DISTRIBUTION_POINTS, Extension.AUTHORITY_INFORMATION_ACCESS} & set(
            profile.extensions
        )
        assert KeyUsage.CRL_SIGN not in profile.key_usage
        assert profile.subject_key_algorithms == (KeyAlgorithm.EC_P256,)
        assert (profile.validity, profile.shorter_validity) == (None, False)
    for name in (name for name in profiles.names() if name.startswith("matter")):
        assert profiles.load(name).max_der_size == 600
        assert set(profiles.load(name).extensions) <= {
            Extension.BASIC_CONSTRAINTS,
            Extension.KEY_USAGE,
            Extension.SUBJECT_KEY_IDENTIFIER,
            Extension.AUTHORITY_KEY_IDENTIFIER,
        }


@pytest.mark.parametrize("name", profiles.names())
def test_a_device_has_no_variable_of_its_own_but_its_id(name: str) -> None:
    """SPEC C8: all else is the run's, and stands in its licence."""
    profile = profiles.load(name)
    own = profile.variables & {"hardware_id"}
    assert own == ({"hardware_id"} if profile.kind is ProfileKind.DEVICE or name == "bootstrap" else set())
    assert profile.early_variables.isdisjoint({"hardware_id"})
    assert profile.required_variables <= profile.variables


@pytest.mark.parametrize("name", profiles.names())
def test_whoever_issues_a_profile_can(name: str) -> None:
    """Every profile that names its issuers names authorities whose keys and path lengths let them."""
    profile, catalogue = profiles.load(name), Catalogue.read()
    for above in map(catalogue.load, profile.issued_by):
        assert above.is_ca
        allowed = set(profile.issuer_key_algorithms) or set(KeyAlgorithm)
        assert allowed & set(above.subject_key_algorithms)
        if profile.is_ca:
            assert limit(above) > limit(profile)


def limit(profile: profiles.Profile) -> int:
    assert profile.basic_constraints is not None
    assert profile.basic_constraints.path_len_constraint is not None
    return profile.basic_constraints.path_len_constraint


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
        (changed('kind = "device"', 'kind = "toaster"'), "kind: 'toaster' is none of"),
        (changed('kind = "device"', ""), "kind: missing"),
        (changed('kind = "device"', 'kind = "authority"'), "kind: authority and ca = true go together"),
        (changed('kind = "device"', 'kind = "device"\nself-signed = true'), "self-signed: is for the root"),
        (
            changed("authority-key-identifier = true", "authority-key-identifier = false"),
            "may be left out only",
        ),
        # Such a device could answer for every other one of its authority.
        (changed("= 1024", '= 1024\nextended-key-usage = ["client-auth", "ocsp-signing"]'), "a responder's"),
        (changed("= 1024", "= 1024\nocsp-no-check = true"), "a responder's"),
        (
            changed("= 1024", '= 1024\nextended-key-usage = ["2.5.29.37.0"]'),
            "any usage is a responder's, too",
        ),
        (changed("= 1024", '= 1024\noptional = ["ocsp-responder"]'), "optional: 'ocsp-responder' is not in"),
        (changed("= 1024", '= 1024\noptional = ["key-usage"]'), "optional: 'key-usage' is not in"),
        (changed("= 1024", "= 1024\nextended-key-usage-critical = true"), "there is no extended-key-usage"),
        (changed("= 1024", "= 1024\nsubject-key-identifier-method = 3"), "is 1 or 2"),
        (
            changed("= 1024", '= 1024\ncertificate-policies = ["{realm}", "1.2.x"]'),
            "'1.2.x' is not an object",
        ),
        (changed("= 1024", '= 1024\ncertificate-policies = ["1.2.3", "1.2.3"]'), "names one twice"),
        (changed("= 1024", '= 1024\nissuer-key-algorithms = ["dsa"]'), "'dsa' is none of"),
        (
            GOOD.encode() + b'[[name-constraints.permitted]]\nform = "dns"\nvalue = "a.example"\n',
            "name-constraints: belong into the certificate of a ca",
        ),
        (GOOD.encode() + b"[name-constraints]\n", "permit or exclude something"),
        (
            GOOD.encode() + b'[[name-constraints.excluded]]\nform = "directory"\nvalue = "x"\n',
            "a directory has name",
        ),
        (
            GOOD.encode()
            + b'[[name-constraints.excluded]]\nform = "directory"\n[[name-constraints.excluded.name]]\n'
            + b'attribute = "O"\nvalue = "x"\noptional = true\n',
            "neither optional nor as-issuer",
        ),
        (
            GOOD.encode()
            + b'[[constraints]]\nrule = "x"\nvariable = "realm"\npattern = "(a+)+"\nrejects = "b"\n',
            "constraints: constraint x: pattern: .* only characters",
        ),
        (
            GOOD.encode() + b'[[constraints]]\nrule = "x"\nvariable = "country"\nequals = "SE"\n',
            "constraints: x: the profile does not use country",
        ),
        (
            GOOD.encode() + b'[subject-alternative-name]\ncritical = true\nassigner = "1.2.3"\n',
            "there is no permanent-identifier",
        ),
        (
            GOOD.encode() + b'[subject-alternative-name]\ncritical = true\noptional = ["uris"]\n',
            "only uris and permanent-identifier",
        ),
        (
            GOOD.encode()
            + b'[subject-alternative-name]\ncritical = true\nuris = "{product_uri}"\noptional = ["uris"]\n',
            "give host names, uris",
        ),
        (
            GOOD.encode() + b'[basic-constraints]\nca = false\npath-len = "{path_len}"\n',
            "path-len: only on a ca",
        ),
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


# --- a catalogue with an installation's own


def test_a_catalogue_holds_the_packaged_profiles_and_those_of_a_directory(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(GOOD)
    (tmp_path / "README").write_text("not a profile")
    catalogue = Catalogue.read(tmp_path)
    assert catalogue.names() == tuple(sorted((*profiles.names(), "x")))
    assert catalogue.load("x").title == "Example"
    assert catalogue.load("vehicle") is profiles.load("vehicle")
    with pytest.raises(NotFound, match="there is no profile 'y'"):
        catalogue.load("y")
    with pytest.raises(NotFound):
        profiles.load("x")


def test_a_profile_carries_the_hash_of_its_file() -> None:
    """A licence pins what it was signed for, waivers and comments included."""
    octets = GOOD.encode()
    assert profiles.parse(octets, "x.toml").sha256 == hashlib.sha256(octets).hexdigest()
    assert profiles.parse(octets + b"# more\n", "x.toml").sha256 != profiles.parse(octets, "x.toml").sha256


def test_a_catalogue_is_read_once(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(GOOD)
    catalogue = Catalogue.read(tmp_path)
    before = catalogue.load("x")
    (tmp_path / "x.toml").write_text(GOOD.replace("Example", "Another"))
    (tmp_path / "y.toml").write_text(GOOD.replace('"x"', '"y"'))
    assert catalogue.load("x") is before
    assert "y" not in catalogue.names()
    with pytest.raises(TypeError):
        catalogue.profiles["x"] = before  # type: ignore[index]  # what must not be possible


@pytest.mark.parametrize(
    ("file_name", "content", "complaint"),
    [
        (
            "vehicle.toml",
            GOOD.replace('"x"', '"vehicle"'),
            "profile vehicle.toml: name: 'vehicle' is a packaged",
        ),
        ("x.toml", GOOD.replace("Example", " "), "profile x.toml: title: must not be empty"),
        ("y.toml", GOOD, "profile y.toml: name: 'x' must be the file's name"),
        ("X.toml", GOOD.replace('"x"', '"X"'), "must be the file's name"),
        ("x.toml", GOOD + "#" * 70_000, "more than 65536 octets"),
        (
            "x.toml",
            GOOD.replace("P1D", 'P1D"\nissued-by = ["idevid"]\n#"'),
            "issued-by: there is no authority",
        ),
        (
            "x.toml",
            GOOD.replace("P1D", 'P1D"\nissued-by = ["nobody"]\n#"'),
            "issued-by: there is no authority",
        ),
    ],
)
def test_one_bad_file_is_no_catalogue(tmp_path: Path, file_name: str, content: str, complaint: str) -> None:
    (tmp_path / file_name).write_text(content)
    with pytest.raises(MalformedRequest, match=complaint):
        Catalogue.read(tmp_path)


def test_a_directory_that_cannot_be_read_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="nowhere"):
        Catalogue.read(tmp_path / "nowhere")
    (tmp_path / "x.toml").mkdir()
    with pytest.raises(Unavailable, match=r"x\.toml"):
        Catalogue.read(tmp_path)


@given(octets=st.binary(max_size=100))
def test_any_file_is_a_profile_or_malformed(octets: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.toml").write_bytes(octets)
        with pytest.raises(MalformedRequest):
            Catalogue.read(Path(folder))
