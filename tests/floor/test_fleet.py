"""Fleet policies say only what can be meant, and a certificate names one device or none (SPEC H5)."""

from collections.abc import Sequence
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest, NotPermitted, PolicyRefused
from birthmark.floor.fleet import (
    DeviceNaming,
    FirstContact,
    FleetAuthority,
    FleetPolicy,
    FleetStatus,
    ForeignCRL,
    RevocationRule,
    check_url,
    crl_id,
    field_id,
    require_accepting,
)
from birthmark.floor.naming import device_name
from tests.support.realm import START

KEY = ec.generate_private_key(ec.SECP256R1())
HARDWARE_MODULE = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4")


def certificate(*subject: tuple[x509.ObjectIdentifier, str], names: Sequence[x509.GeneralName] = ()) -> bytes:
    """A certificate of a device (DER)."""
    name = x509.Name([x509.NameAttribute(kind, value) for kind, value in subject])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(START)
        .not_valid_after(START + timedelta(days=1))
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def module(serial: bytes) -> x509.OtherName:
    """A hardwareModuleName of type 1.2.3."""
    inner = b"\x06\x02\x2a\x03" + b"\x04" + bytes((len(serial),)) + serial
    return x509.OtherName(HARDWARE_MODULE, b"\x30" + bytes((len(inner),)) + inner)


def named(naming: DeviceNaming, octets: bytes, pattern: str = "[A-Za-z0-9._:/-]{1,64}") -> str:
    return device_name(FleetPolicy(naming=naming, pattern=pattern), octets)


def test_each_part_of_a_certificate_can_be_the_devices_id() -> None:
    octets = certificate(
        (NameOID.COMMON_NAME, "C1"),
        (NameOID.SERIAL_NUMBER, "S1"),
        names=[
            x509.DNSName("D1.Fjord.example"),
            x509.UniformResourceIdentifier("urn:d:1"),
            module(b"H1"),
        ],
    )
    assert [named(naming, octets) for naming in DeviceNaming] == [
        *("C1", "S1", "d1.fjord.example", "urn:d:1", "H1")
    ]


@pytest.mark.parametrize("naming", DeviceNaming)
def test_two_names_or_none_name_no_device(naming: DeviceNaming) -> None:
    twice = certificate(
        *((NameOID.COMMON_NAME, name) for name in ("C1", "C2")),
        *((NameOID.SERIAL_NUMBER, name) for name in ("S1", "S2")),
        names=[
            *(x509.DNSName(name) for name in ("a.example", "b.example")),
            *(x509.UniformResourceIdentifier(name) for name in ("urn:1", "urn:2")),
            *(module(name) for name in (b"1", b"2")),
        ],
    )
    with pytest.raises(PolicyRefused, match="has 2 names"):
        named(naming, twice)
    with pytest.raises(PolicyRefused, match="has 0 names"):
        named(naming, certificate((NameOID.ORGANIZATION_NAME, "Fjord")))


@pytest.mark.parametrize(
    "name",
    ["D 1", " D1", "D1\n", "D1\r\nX-Device: D2", "D\x001", "Dé", "D\u202e1", "D\t1"],
)
def test_a_name_that_cannot_stand_in_a_header_is_none(name: str) -> None:
    with pytest.raises(PolicyRefused) as refused:
        named(DeviceNaming.COMMON_NAME, certificate((NameOID.COMMON_NAME, name)), "[A-Z0-9]+")
    assert refused.value.rule == "device-name"


def test_the_pattern_matches_the_whole_name() -> None:
    octets = certificate((NameOID.COMMON_NAME, "AB12"))
    assert named(DeviceNaming.COMMON_NAME, octets, r"AB\d{2}") == "AB12"
    for pattern in (r"AB\d", r"B\d{2}"):
        with pytest.raises(PolicyRefused, match="does not match"):
            named(DeviceNaming.COMMON_NAME, octets, pattern)


def test_a_binary_serial_number_of_a_module_is_no_name() -> None:
    octets = certificate(names=[module(b"\x00\x01\xff")])
    with pytest.raises(PolicyRefused, match="visible ascii"):
        named(DeviceNaming.HARDWARE_MODULE, octets)


@given(st.binary(max_size=200), st.sampled_from(list(DeviceNaming)))
def test_any_octets_are_a_name_or_a_refusal(octets: bytes, naming: DeviceNaming) -> None:
    with pytest.raises((MalformedRequest, PolicyRefused)):
        named(naming, octets)


# --- policies


@given(
    st.builds(
        FleetPolicy,
        naming=st.sampled_from(list(DeviceNaming)),
        pattern=st.sampled_from(["[A-Z]{1,8}", r"D\d+"]),
        first_contact=st.sampled_from([FirstContact.REGISTER, FirstContact.REFUSE]),
        crl_url=st.sampled_from(["", "http://crl.example:8080/a?b=c"]),
        ocsp_url=st.sampled_from(["", "http://ocsp.example/"]),
    )
)
def test_a_policy_is_read_as_it_was_written(policy: FleetPolicy) -> None:
    assert FleetPolicy.decode(policy.encode()) == policy


@given(st.text(max_size=200))
def test_what_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(MalformedRequest):
        FleetPolicy.decode(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"pattern": "(a+)+"},
        {"pattern": "["},
        {"pattern": ""},
        {"first_contact": FirstContact.LISTED},
        {"allow_list": "00"},
        {"crl_url": "https://crl.example/"},
        {"ocsp_url": "http://"},
        {"revocation": RevocationRule.NONE, "crl_url": "http://crl.example/"},
    ],
)
def test_a_policy_that_cannot_be_meant_is_none(fields: dict[str, str]) -> None:
    with pytest.raises(MalformedRequest):
        FleetPolicy(**fields)  # type: ignore[arg-type]  # that is what is asked


@pytest.mark.parametrize(
    "url",
    [
        *("", "crl.example", "http:///x", "http://h\n/", "http://h/ x", "http://u@h/", "http://h/#x"),
        *("http://h:0/", "http://h:99999/", "http://[::1/", "http://é.example/", "http://" + "h" * 600),
    ],
)
def test_what_is_no_place_to_fetch_from_is_refused(url: str) -> None:
    with pytest.raises(MalformedRequest):
        check_url(url)


def test_ids_of_other_fleets_are_nobody_elses() -> None:
    assert field_id("fjord", "serial:D1") == "fleet:fjord/serial:D1"
    row = ForeignCRL(
        id=crl_id("fjord", "ab"),
        issuer=None,
        url="",
        number="1",
        sha256="",
        entries=0,
        this_update=START,
        next_update=START,
    )
    assert (row.id, row.authority) == ("fjord/ab", "fjord")


@pytest.mark.parametrize("status", FleetStatus)
def test_only_an_active_authoritys_devices_are_accepted(status: FleetStatus) -> None:
    authority = FleetAuthority(
        id="fjord", der=b"", policy="", status=status, nonce="", asked_at=START, verification=b""
    )
    if status is FleetStatus.ACTIVE:
        require_accepting(authority)
        return
    with pytest.raises(NotPermitted, match="fleet authority fjord is"):
        require_accepting(authority)
