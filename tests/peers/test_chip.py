"""The Matter SDK's verifier accepts certificates as its specification has them, and no others."""

from dataclasses import dataclass
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tests.peers.small import CA_USE, LEAF_USE, Entity, issued, key_usage
from tests.support.checkers import chip
from tests.support.checkers.chip import Kind, Numbers
from tests.support.checkers.values import Chain, Status

VENDOR, PRODUCT = (
    x509.ObjectIdentifier("1.3.6.1.4.1.37244.2.1"),
    x509.ObjectIdentifier("1.3.6.1.4.1.37244.2.2"),
)


def named(common_name: str, vendor: str | None = None, product: str | None = None) -> x509.Name:
    """A subject of Matter's."""
    attributes = [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)]
    attributes += [x509.NameAttribute(VENDOR, vendor)] if vendor else []
    attributes += [x509.NameAttribute(PRODUCT, product)] if product else []
    return x509.Name(attributes)


@dataclass(frozen=True, kw_only=True)
class Matter:
    """A product attestation authority, an intermediate and a device."""

    paa: Entity
    pai: Entity
    dac: Entity

    @property
    def chain(self) -> Chain:
        return Chain(root=self.paa.der, between=(self.pai.der,), leaf=self.dac.der)


@cache
def matter(**changes: x509.KeyUsage | ec.EllipticCurve) -> Matter:
    """A right hierarchy, with changes to the device's certificate."""
    paa = issued(
        named("Peer PAA"), None, constraints=x509.BasicConstraints(ca=True, path_length=1), usage=CA_USE
    )
    pai = issued(
        named("Peer PAI", "FFF1"),
        paa,
        constraints=x509.BasicConstraints(ca=True, path_length=0),
        usage=CA_USE,
    )
    usage, curve = changes.get("usage", LEAF_USE), changes.get("curve")
    assert isinstance(usage, x509.KeyUsage)
    assert curve is None or isinstance(curve, ec.EllipticCurve)
    constraints = x509.BasicConstraints(ca=False, path_length=None)
    name = named("Peer DAC", "FFF1", "8001")
    return Matter(paa=paa, pai=pai, dac=issued(name, pai, constraints=constraints, usage=usage, curve=curve))


def test_a_right_hierarchy_is_accepted_and_read() -> None:
    right = matter()
    for entity, kind in ((right.paa, Kind.PAA), (right.pai, Kind.PAI), (right.dac, Kind.DAC)):
        verdict = chip.format_verdict(entity.der, kind)
        assert verdict.good, f"{kind.name}: {verdict.said}"
    assert chip.chain_verdict(right.chain).good
    assert chip.numbers_of(right.dac.der) == Numbers(vendor=0xFFF1, product=0x8001)
    assert chip.numbers_of(right.pai.der) == Numbers(vendor=0xFFF1, product=None)
    assert chip.numbers_of(right.paa.der) == Numbers(vendor=None, product=None)


@pytest.mark.parametrize(("given", "taken_for"), [(a, b) for a in Kind for b in Kind if a is not b])
def test_a_certificate_of_one_kind_is_not_taken_for_another(given: Kind, taken_for: Kind) -> None:
    entity = {Kind.PAA: matter().paa, Kind.PAI: matter().pai, Kind.DAC: matter().dac}[given]
    assert chip.format_verdict(entity.der, taken_for).status is Status.REFUSED


@pytest.mark.parametrize(
    "wrong",
    [
        {"usage": key_usage(digital_signature=True, key_agreement=True)},
        {"usage": key_usage(key_agreement=True)},
        {"curve": ec.SECP384R1()},
    ],
    ids=["another key usage beside", "another key usage", "another curve"],
)
def test_a_device_certificate_of_another_form_is_refused(wrong: dict[str, x509.KeyUsage]) -> None:
    verdict = chip.format_verdict(matter(**wrong).dac.der, Kind.DAC)
    assert verdict.status is Status.REFUSED
    assert verdict.said == "error 0xac"


def test_a_hierarchy_of_another_root_is_refused() -> None:
    mine, other = matter(), matter(usage=key_usage(key_agreement=True))
    assert chip.chain_verdict(
        Chain(root=other.paa.der, between=(mine.pai.der,), leaf=mine.dac.der)
    ).status is (Status.REFUSED)
    assert chip.chain_verdict(
        Chain(root=mine.paa.der, between=(other.pai.der,), leaf=mine.dac.der)
    ).status is (Status.REFUSED)
