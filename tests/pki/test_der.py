"""The little of DER we write and read ourselves (ITU-T X.690)."""

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest
from birthmark.pki import der
from birthmark.pki.algorithms import ALGORITHMS, key_identifier, recognise
from birthmark.pki.keys import KeyAlgorithm
from tests.pki.sample import private_key, signed_by, spki


@pytest.mark.parametrize(
    ("dotted", "octets"),
    [
        ("2.5.29.15", "0603551d0f"),
        ("1.2.840.113549", "06062a864886f70d"),  # X.690 and every textbook
        ("2.999.3", "0603883703"),  # X.690 section 8.19.5
        ("0.9.2342.19200300.100.1.25", "060a0992268993f22c640119"),
        ("1.3.6.1.4.1.32473.1", "06092b0601040181fd5901"),
    ],
)
def test_object_identifiers_are_encoded_as_the_standards_print_them(dotted: str, octets: str) -> None:
    assert der.oid(dotted).hex() == octets


@given(st.integers(0, 2), st.integers(0, 39), st.lists(st.integers(0, 1 << 28), max_size=6))
def test_object_identifiers_are_encoded_as_the_library_does(first: int, second: int, rest: list[int]) -> None:
    dotted = ".".join(str(arc) for arc in (first, second, *rest))
    name = x509.RegisteredID(x509.ObjectIdentifier(dotted))
    (_, _, start, stop) = der.only(x509.SubjectAlternativeName([name]).public_bytes(), der.SEQUENCE)
    encoded = x509.SubjectAlternativeName([name]).public_bytes()[start:stop]
    assert der.oid(dotted)[1:] == encoded[1:], "RegisteredID is [8] IMPLICIT"


@pytest.mark.parametrize(
    "text", ["", "1", "3.1", "1.40", "0.40.1", "1.2.", "1..2", "1.02", "1.-2", "1.2.x", "1.²"]
)
def test_what_is_no_object_identifier_is_refused(text: str) -> None:
    with pytest.raises(MalformedRequest):
        der.oid(text)


@pytest.mark.parametrize(
    ("size", "header"),
    [(0, "0400"), (127, "047f"), (128, "048180"), (255, "0481ff"), (256, "04820100"), (65_536, "0483010000")],
)
def test_lengths_are_in_the_shortest_form_both_ways(size: int, header: str) -> None:
    octets = der.encode(der.OCTET_STRING, bytes(size))
    assert octets[: len(header) // 2].hex() == header
    assert der.only(octets, der.OCTET_STRING) == (4, 0, len(header) // 2, len(octets))


@pytest.mark.parametrize(
    "octets",
    ["30", "3001", "3080", "308000", "30810100", "3082000100", "3081", "30850000000001", "1f0100", "0500ff"],
)
def test_what_is_not_der_is_refused(octets: str) -> None:
    with pytest.raises(MalformedRequest):
        der.children(bytes.fromhex(octets))


@given(st.binary(max_size=64))
def test_any_octets_are_elements_that_fill_them_or_refused(octets: bytes) -> None:
    try:
        found = der.children(octets)
    except MalformedRequest:
        return
    assert [start for _, start, _, _ in found] + [len(octets)] == [0] + [stop for *_, stop in found]
    assert octets == b"".join(der.encode(tag, octets[content:stop]) for tag, _, content, stop in found)


@given(st.integers(0, 1 << 160))
def test_integers_are_positive_and_shortest(value: int) -> None:
    octets = der.integer(value)
    _, _, start, stop = der.only(octets, der.INTEGER)
    assert int.from_bytes(octets[start:stop], "big", signed=True) == value
    assert stop - start == value.bit_length() // 8 + 1


@pytest.mark.parametrize("algorithm", KeyAlgorithm)
def test_a_key_is_recognised_by_its_octets_and_nothing_near_is(algorithm: KeyAlgorithm) -> None:
    key = spki(algorithm, "device")
    assert recognise(key) is algorithm
    assert recognise(key[:-1]) is None
    assert recognise(key + b"\0") is None
    assert recognise(b"\x31" + key[1:]) is None


@pytest.mark.parametrize("algorithm", KeyAlgorithm)
def test_the_key_identifier_is_method_1(algorithm: KeyAlgorithm) -> None:
    """RFC 5280 section 4.2.1.2."""
    public = private_key(algorithm, "device").public_key()
    assert (
        key_identifier(spki(algorithm, "device")) == x509.SubjectKeyIdentifier.from_public_key(public).digest
    )


@pytest.mark.parametrize("algorithm", KeyAlgorithm)
@pytest.mark.parametrize("message", [b"", b"a", b"b" * 1000])
def test_no_signature_is_longer_than_the_table_says(algorithm: KeyAlgorithm, message: bytes) -> None:
    signature = signed_by(private_key(algorithm, "device"), message)
    assert len(signature) <= ALGORITHMS[algorithm].signature_size
