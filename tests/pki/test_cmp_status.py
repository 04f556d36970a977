"""Every refusal has its word in CMP, and PKIStatusInfo is what pyasn1 reads and writes."""

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyasn1.codec.der.decoder import decode  # type: ignore[import-untyped]  # it has no types
from pyasn1.codec.der.encoder import encode  # type: ignore[import-untyped]  # nor has it
from pyasn1_alt_modules import rfc9810  # type: ignore[import-untyped]  # nor has it

from birthmark import errors
from birthmark.pki import cmp_status, der
from birthmark.pki.cmp_status import (
    FAILURES,
    FAILURES_OF_RULES,
    PKIFailureInfo,
    PKIStatus,
    PKIStatusInfo,
    encode_status,
    failure_of,
    read_status,
    rejection,
)

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.Refusal)]


def read(octets: bytes) -> PKIStatusInfo:
    return read_status(octets, der.only(octets, octets[0]))


def test_every_class_of_refusal_has_a_failure() -> None:
    assert set(FAILURES) == set(KINDS) - {errors.Refusal}
    assert set(map(type, FAILURES.values())) == {PKIFailureInfo}


@pytest.mark.parametrize(
    ("refusal", "failure"),
    [
        (errors.MalformedRequest("no"), PKIFailureInfo.BAD_DATA_FORMAT),
        (errors.NotPermitted("no"), PKIFailureInfo.NOT_AUTHORIZED),
        (errors.NotFound("no"), PKIFailureInfo.BAD_CERT_ID),
        (errors.Unavailable("no"), PKIFailureInfo.SYSTEM_UNAVAIL),
        (errors.PolicyRefused("known-key", "no"), PKIFailureInfo.BAD_CERT_TEMPLATE),
        (errors.PolicyRefused("proof-of-possession", "no"), PKIFailureInfo.BAD_POP),
        (errors.PolicyRefused("message-time", "no"), PKIFailureInfo.BAD_TIME),
        (errors.Refusal("no"), PKIFailureInfo.SYSTEM_FAILURE),
        (RuntimeError("no"), PKIFailureInfo.SYSTEM_FAILURE),
    ],
)
def test_a_refusal_is_said(refusal: Exception, failure: PKIFailureInfo) -> None:
    assert failure_of(refusal) is failure
    assert rejection(refusal).fail_info is failure
    assert rejection(refusal).status is PKIStatus.REJECTION


def test_a_fault_of_ours_shows_nothing() -> None:
    assert rejection(RuntimeError("the pin is 1234")).text == ("see the service's own log",)
    assert rejection(errors.NotFound("no run 7")).text == ("no run 7",)


def test_the_bits_are_those_of_the_standard() -> None:
    named = rfc9810.PKIFailureInfo.namedValues
    ours = {one.name: one.bit_length() - 1 for one in PKIFailureInfo}
    theirs = {spelled.upper(): number for spelled, number in named.items()}
    assert {str(spelled).replace("_", ""): number for spelled, number in ours.items()} == theirs
    assert [int(one) for one in PKIStatus] == sorted(rfc9810.PKIStatus.namedValues.values())


def test_every_rule_is_one_bit() -> None:
    assert {one.bit_count() for one in (*FAILURES.values(), *FAILURES_OF_RULES.values())} == {1}


@given(
    st.builds(
        PKIStatusInfo,
        status=st.sampled_from(PKIStatus),
        text=st.lists(st.text(max_size=9).filter(lambda text: text.isprintable()), max_size=3).map(tuple),
        fail_info=st.integers(0, (1 << 27) - 1).map(PKIFailureInfo),
    )
)
def test_what_we_write_is_read_by_us_and_by_pyasn1(info: PKIStatusInfo) -> None:
    octets = encode_status(info)
    assert read(octets) == info
    theirs, rest = decode(octets, asn1Spec=rfc9810.PKIStatusInfo())
    assert rest == b""
    assert encode(theirs) == octets
    assert int(theirs["status"]) == info.status
    assert tuple(str(one) for one in theirs["statusString"]) == info.text
    bits = theirs["failInfo"] if theirs["failInfo"].isValue else ()
    assert sum(bit << place for place, bit in enumerate(bits)) == info.fail_info


def test_a_text_that_has_no_encoding_is_told_all_the_same() -> None:
    info = rejection(errors.NotFound("no run \udcff"))
    assert read(encode_status(info)).text == ("no run ?",)


@pytest.mark.parametrize(
    "octets",
    [
        "3000",  # nothing
        "3003020107",  # a status that there is not
        "30030201ff",
        "3103020100",  # another type
        "300702010003020601 ",  # unused bits that are set, or zeros at the end
        "300702010003020780"[:-2] + "00",
        "30070201000302017f",
        "3006020100030107",  # no octets, but unused bits
        "300702010003020840",  # more than seven of them
        "3005020100 0300",  # no octet that counts them
        "300a0201000305 0400000010",  # bit 27
        "300b0201000306 000000000001",  # more than there can be
        "3005020100 3000",  # an empty text
        "3007020100 30020500",  # one that is none
        "3008020100 30030c01ff",  # one that is not utf-8
    ],
)
def test_what_is_no_status_is_refused(octets: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        read(bytes.fromhex(octets))


def test_no_failure_at_all_is_an_empty_bit_string() -> None:
    assert read(bytes.fromhex("3006020100030100")) == cmp_status.ACCEPTED
