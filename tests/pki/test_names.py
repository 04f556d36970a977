"""Distinguished names (RFC 5280 section 4.1.2.4)."""

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest
from birthmark.pki import der, names
from birthmark.pki.names import ATTRIBUTES, Attribute

OIDS = {
    Attribute.C: NameOID.COUNTRY_NAME,
    Attribute.ST: NameOID.STATE_OR_PROVINCE_NAME,
    Attribute.L: NameOID.LOCALITY_NAME,
    Attribute.O: NameOID.ORGANIZATION_NAME,
    Attribute.OU: NameOID.ORGANIZATIONAL_UNIT_NAME,
    Attribute.DC: NameOID.DOMAIN_COMPONENT,
    Attribute.CN: NameOID.COMMON_NAME,
    Attribute.SERIAL_NUMBER: NameOID.SERIAL_NUMBER,
    Attribute.MATTER_VID: x509.ObjectIdentifier("1.3.6.1.4.1.37244.2.1"),
    Attribute.MATTER_PID: x509.ObjectIdentifier("1.3.6.1.4.1.37244.2.2"),
}
PRINTABLE = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789 '()+,-./:=?"


def value_of(attribute: Attribute) -> st.SearchStrategy[str]:
    kind = ATTRIBUTES[attribute]
    if kind.longest == 4:
        alphabet: st.SearchStrategy[str] = st.sampled_from("0123456789ABCDEF")
    elif kind.tag == der.PRINTABLE_STRING:
        alphabet = st.sampled_from(PRINTABLE)
    elif kind.tag == der.IA5_STRING:
        alphabet = st.characters(min_codepoint=0x20, max_codepoint=0x7E)
    else:
        alphabet = st.characters(exclude_categories=["C", "Z"]) | st.just(" ")
    return st.text(alphabet, min_size=kind.shortest, max_size=kind.longest)


attributes = st.sampled_from(Attribute).flatmap(lambda kind: st.tuples(st.just(kind), value_of(kind)))
some_names = st.lists(attributes, max_size=5).map(tuple)


def by_the_library(name: names.Name) -> x509.Name:
    return x509.Name([x509.NameAttribute(OIDS[attribute], value) for attribute, value in name])


@given(some_names)
def test_a_name_is_encoded_octet_for_octet_as_the_library_does(name: names.Name) -> None:
    assert names.encode(name) == by_the_library(name).public_bytes()


@given(some_names)
def test_values_are_found_again(name: names.Name) -> None:
    for attribute in Attribute:
        values = tuple(value for kind, value in name if kind is attribute)
        assert names.attribute_values(names.encode(name), attribute) == values


@pytest.mark.parametrize(
    ("attribute", "value", "complaint"),
    [
        (Attribute.CN, "", "must have 1 to 64 characters, has 0"),
        (Attribute.CN, "x" * 65, "must have 1 to 64 characters, has 65"),
        (Attribute.C, "SWE", "must have 2 characters, has 3"),
        (Attribute.C, "é1", "'é' is not allowed there"),
        (Attribute.SERIAL_NUMBER, "a_b", "'_' is not allowed there"),
        (Attribute.DC, "é", "'é' is not allowed there"),
        (Attribute.CN, "a\0b", r"'\x00' is not allowed there"),
        (Attribute.CN, "a\ud800", "is not allowed there"),
        (Attribute.O, "a\u202eb", "is not allowed there"),
        (Attribute.MATTER_VID, "fff1", "'f' is not allowed there"),
        (Attribute.MATTER_VID, "FFF", "must have 4 characters, has 3"),
        (Attribute.MATTER_PID, "0x80", "'x' is not allowed there"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(attribute: Attribute, value: str, complaint: str) -> None:
    with pytest.raises(MalformedRequest) as refusal:
        names.encode(((attribute, value),))
    assert complaint in str(refusal.value)


@given(
    st.one_of(st.binary(max_size=100), some_names.map(names.encode)),
    st.binary(max_size=3),
    st.integers(0, 60),
)
def test_any_octets_are_a_name_or_malformed(octets: bytes, patch: bytes, place: int) -> None:
    changed = octets[:place] + patch + octets[place + len(patch) :]
    try:
        names.attribute_values(changed, Attribute.CN)
    except MalformedRequest:
        return


@pytest.mark.parametrize("octets", ["30023000", "3004310230003100", "300731053003060103", "30053103300131"])
def test_what_is_shaped_otherwise_is_malformed(octets: str) -> None:
    with pytest.raises(MalformedRequest):
        names.attribute_values(bytes.fromhex(octets), Attribute.CN)


def test_other_peoples_string_types_are_read() -> None:
    def name(tag: int, octets: bytes) -> bytes:
        pair = der.encode(der.SEQUENCE, der.oid("2.5.4.3"), der.encode(tag, octets))
        return der.encode(der.SEQUENCE, der.encode(der.SET, pair))

    assert names.attribute_values(name(0x14, b"\xe5"), Attribute.CN) == ("å",)
    assert names.attribute_values(name(0x1E, b"\x00\xe5"), Attribute.CN) == ("å",)
    for tag, octets in ((0x0C, b"\xff"), (0x13, b"\xff"), (0x02, b"\x01")):
        with pytest.raises(MalformedRequest):
            names.attribute_values(name(tag, octets), Attribute.CN)


def test_every_attribute_has_the_librarys_identifier_and_the_one_we_encode() -> None:
    """RFC 4519; Matter 1.x section 6.1.1."""
    known = {
        Attribute.C: NameOID.COUNTRY_NAME,
        Attribute.ST: NameOID.STATE_OR_PROVINCE_NAME,
        Attribute.L: NameOID.LOCALITY_NAME,
        Attribute.O: NameOID.ORGANIZATION_NAME,
        Attribute.OU: NameOID.ORGANIZATIONAL_UNIT_NAME,
        Attribute.DC: NameOID.DOMAIN_COMPONENT,
        Attribute.CN: NameOID.COMMON_NAME,
        Attribute.SERIAL_NUMBER: NameOID.SERIAL_NUMBER,
        Attribute.MATTER_VID: x509.ObjectIdentifier("1.3.6.1.4.1.37244.2.1"),
        Attribute.MATTER_PID: x509.ObjectIdentifier("1.3.6.1.4.1.37244.2.2"),
    }
    assert dict(names.OIDS) == known
    assert all(ATTRIBUTES[one].oid == der.oid(known[one].dotted_string) for one in Attribute)
