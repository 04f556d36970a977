"""Delta CRLs as they are published, and what relying parties make of them (SPEC F2; RFC 5280, 5.2.4)."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from birthmark.floor.devices import DeviceCertificate
from birthmark.pki import crl
from birthmark.pki.revocation import ReasonCode
from birthmark.services import published_crls
from birthmark.services.publish import Publish
from tests.services.test_publish import PKI, listed, made, mark, number, publisher
from tests.support.checkers.java import java
from tests.support.checkers.openssl import crl_verdict
from tests.support.checkers.pyhanko import Pyhanko, pyhanko
from tests.support.checkers.values import Chain, Status
from tests.support.realm import Line, hierarchy

FULL, DELTA = "crl/issuing-1.crl", "crl/issuing-1.delta.crl"


@pytest.fixture(scope="module")
def hanko() -> Iterator[Pyhanko]:
    with pyhanko() as running:
        yield running


def with_deltas(line: Line, www: Path, **terms: Any) -> Publish:
    return publisher(line, www, delta=timedelta(hours=4), **terms)


def base_of(www: Path) -> int | None:
    return crl.read_crl((www / DELTA).read_bytes()).scope.base


def chain_of(certificate: DeviceCertificate) -> Chain:
    return Chain(leaf=certificate.der, between=(hierarchy().issuing,), root=hierarchy().root)


def test_a_revocation_is_in_the_delta_at_once_and_the_full_crl_stays(line: Line, tmp_path: Path) -> None:
    www = tmp_path / "www"
    publish = with_deltas(line, www)
    first, second = made(line, "A1"), made(line, "A2")
    mark(line, first, ReasonCode.SUPERSEDED)
    assert [one.path for one in publish.cycle().built] == [FULL, DELTA]
    full = (www / FULL).read_bytes()
    freshest = x509.load_der_x509_crl(full).extensions.get_extension_for_class(x509.FreshestCRL)
    assert not freshest.critical
    assert freshest.value[0].full_name is not None
    assert freshest.value[0].full_name[0].value == PKI.crl("issuing-1", "delta")
    assert base_of(www) == number(www, FULL) < number(www, DELTA)

    line.clock.turn(minutes=1)
    assert publish.cycle().built == ()
    mark(line, second, ReasonCode.KEY_COMPROMISE)
    assert [one.path for one in publish.cycle().built] == [DELTA]
    assert (www / FULL).read_bytes() == full
    assert int(second.serial, 16) in listed(www, DELTA)
    indicator = x509.load_der_x509_crl((www / DELTA).read_bytes()).extensions.get_extension_for_class(
        x509.DeltaCRLIndicator
    )
    assert (indicator.critical, indicator.value.crl_number) == (True, number(www, FULL))
    # Another process goes on from what is published.
    line.clock.turn(hours=2)
    assert [one.path for one in with_deltas(line, www).cycle().built] == [DELTA]
    assert base_of(www) == number(www, FULL)


def test_relying_parties_learn_from_the_delta_what_was_revoked_and_reinstated_since_the_base(
    line: Line, tmp_path: Path, hanko: Pyhanko
) -> None:
    www = tmp_path / "www"
    publish = with_deltas(line, www)
    revoked, held, released, good = (made(line, f"A{index}") for index in range(4))
    for certificate in (held, released):
        mark(line, certificate, ReasonCode.CERTIFICATE_HOLD)
    line.clock.turn(seconds=1)
    publish.cycle()
    line.clock.turn(minutes=5)
    mark(line, revoked, ReasonCode.KEY_COMPROMISE)
    mark(line, released, ReasonCode.REMOVE_FROM_CRL)
    line.clock.turn(minutes=1)
    publish.cycle()
    lists = [(www / name).read_bytes() for name in (FULL, DELTA)]
    at = line.clock.at + timedelta(minutes=1)
    for certificate, without, status in (
        (revoked, Status.GOOD, Status.REVOKED),
        (held, Status.REVOKED, Status.REVOKED),
        (released, Status.REVOKED, Status.GOOD),
        (good, Status.GOOD, Status.GOOD),
    ):
        chain = chain_of(certificate)
        assert crl_verdict(chain, lists, tmp_path, at=at, deltas=True).status is status
        assert hanko.crl_verdict(chain, lists, at=at).status is status
        assert crl_verdict(chain, lists, tmp_path, at=at).status is without  # who does not ask for deltas


def test_whoever_still_has_the_full_crl_before_this_one_can_use_the_delta(
    line: Line, tmp_path: Path, hanko: Pyhanko
) -> None:
    www = tmp_path / "www"
    publish = with_deltas(line, www)
    one, released = made(line, "A1"), made(line, "A2")
    mark(line, released, ReasonCode.CERTIFICATE_HOLD)
    line.clock.turn(seconds=1)
    publish.cycle()
    old = (www / FULL).read_bytes()
    line.clock.turn(hours=11)
    mark(line, one, ReasonCode.KEY_COMPROMISE)
    mark(line, released, ReasonCode.REMOVE_FROM_CRL)
    line.clock.turn(hours=1)
    made(line, "A3")
    assert [built.path for built in publish.cycle().built] == [FULL, DELTA]
    new, delta = (www / FULL).read_bytes(), (www / DELTA).read_bytes()
    assert base_of(www) == crl.read_crl(old).number
    at = line.clock.at + timedelta(minutes=1)
    for full in (old, new):
        for certificate, status in ((one, Status.REVOKED), (released, Status.GOOD)):
            assert hanko.crl_verdict(chain_of(certificate), [full, delta], at=at).status is status
            seen = crl_verdict(chain_of(certificate), [full, delta], tmp_path, at=at, deltas=True)
            assert seen.status is status
    line.clock.turn(minutes=1)
    mark(line, made(line, "A4"), ReasonCode.SUPERSEDED)
    publish.cycle()
    assert base_of(www) == crl.read_crl(old).number
    line.clock.turn(hours=12)
    publish.cycle()
    assert base_of(www) == crl.read_crl(new).number
    assert set(listed(www, DELTA)) & {int(one.serial, 16), int(released.serial, 16)} == set()


def test_the_jdk_passes_deltas_over(line: Line, tmp_path: Path) -> None:
    """That is why docs/publication.md warns: if a newer JDK reads them, this fails and the warning can go."""
    www = tmp_path / "www"
    publish = with_deltas(line, www)
    certificate = made(line, "A1")
    publish.cycle()
    line.clock.turn(minutes=1)
    mark(line, certificate, ReasonCode.KEY_COMPROMISE)
    line.clock.turn(minutes=1)
    publish.cycle()
    at = line.clock.at + timedelta(minutes=1)
    with java() as jdk:
        lists = [(www / name).read_bytes() for name in (FULL, DELTA)]
        assert jdk.crl_verdict(chain_of(certificate), lists, at=at).status is Status.GOOD
        line.clock.turn(hours=12)
        publish.cycle()
        lists, at = [(www / FULL).read_bytes()], line.clock.at + timedelta(minutes=1)
        assert jdk.crl_verdict(chain_of(certificate), lists, at=at).status is Status.REVOKED


def test_deltas_can_be_turned_on_and_off(line: Line, tmp_path: Path) -> None:
    """The full CRL says so at once, and then has everything."""
    www = tmp_path / "www"
    publisher(line, www).cycle()
    line.clock.turn(minutes=1)
    assert [one.path for one in with_deltas(line, www).cycle().built] == [FULL, DELTA]
    assert with_deltas(line, www).cycle().built == ()
    line.clock.turn(minutes=1)
    certificate = made(line, "A1")
    mark(line, certificate, ReasonCode.SUPERSEDED)
    with_deltas(line, www).cycle()
    line.clock.turn(minutes=1)
    assert [one.path for one in publisher(line, www).cycle().built] == [FULL]
    assert int(certificate.serial, 16) in listed(www, FULL)
    assert crl.read_crl((www / FULL).read_bytes()).scope.freshest_crl is None
    assert [one["path"] for one in json.loads((www / "index.json").read_text())["crls"]] == [FULL]
    assert publisher(line, www).cycle().built == ()


def test_a_delta_that_is_not_replaced_or_lacks_a_revocation_is_an_alarm(line: Line, tmp_path: Path) -> None:
    www = tmp_path / "www"
    publish = with_deltas(line, www)
    publish.cycle()
    line.clock.turn(hours=2, minutes=59)
    assert publish.check().alarms == ()
    line.clock.turn(minutes=1)
    assert [(alarm.kind, alarm.partition) for alarm in publish.check().alarms] == [("crl-late", "delta")]
    assert publish.cycle().alarms == ()
    mark(line, made(line, "A1"), ReasonCode.SUPERSEDED)
    line.clock.turn(minutes=16)
    (alarm,) = publish.check().alarms
    assert (alarm.kind, alarm.partition, alarm.number) == ("crl-behind", "delta", number(www, DELTA))
    line.clock.turn(hours=-1)
    (failed,) = publish.cycle().alarms
    assert (failed.kind, failed.partition) == ("crl-failed", "delta")
    assert "gone back" in failed.detail


def test_a_delta_has_every_change_once(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published_crls, "_TOGETHER", 7)
    www = tmp_path / "www"
    publish = with_deltas(line, www)
    publish.cycle()
    certificates = [made(line, f"A{index}") for index in range(40)]
    line.clock.turn(minutes=1)
    for certificate in certificates:
        mark(line, certificate, ReasonCode.CERTIFICATE_HOLD)
    for certificate in certificates[::2]:
        mark(line, certificate, ReasonCode.KEY_COMPROMISE)
    line.clock.turn(minutes=1)
    publish.cycle()
    delta = x509.load_der_x509_crl((www / DELTA).read_bytes())
    assert sorted(one.serial_number for one in delta) == sorted(int(one.serial, 16) for one in certificates)
