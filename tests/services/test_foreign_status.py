"""What a foreign certificate is worth: what is not known to be good is refused, if that is required."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.fleet import FleetAuthority, FleetPolicy, FleetStatus, RevocationRule
from birthmark.pki.crl_index import CRLIndex
from birthmark.services.foreign_status import (
    Answers,
    Link,
    Lists,
    fleet_of,
    judge,
    links_of,
    lists_of,
    questions,
    take_answer,
)
from birthmark.services.visits import Reason
from tests.services.test_fleet import Harbour
from tests.support.foreign import ForeignPKI, Issuer
from tests.support.realm import Line, tamper

POLICY = FleetPolicy()
ASKING = FleetPolicy(ocsp_url="http://ocsp.example/")


class Port:
    """A realm that has registered the root of a fleet, with an authority between it and its devices."""

    def __init__(self, line: Line, tmp_path: Path) -> None:
        self.harbour = Harbour(line, ForeignPKI(folder=tmp_path / "foreign"))
        self.root = self.harbour.pki.root()
        self.sub = self.root.below("sub")
        self.authority = self.harbour.accepted(self.root)
        self.line, self.lists, self.answers = line, Lists(), Answers()

    @property
    def now(self) -> datetime:
        return self.line.clock.at

    def links(self, *chain: bytes) -> tuple[Link, ...]:
        return links_of(self.authority, chain, self.now)

    def listed(self, links: Sequence[Link]) -> dict[str, CRLIndex]:
        return self.line.service.carry(lists_of(self.lists, links))

    def judge(self, *chain: bytes, policy: FleetPolicy = POLICY) -> None:
        links = self.links(*chain)
        judge(policy, links, self.listed(links), self.answers, self.now)

    def refused(self, *chain: bytes, policy: FleetPolicy = POLICY) -> str:
        with pytest.raises(errors.PolicyRefused) as refused:
            self.judge(*chain, policy=policy)
        return refused.value.rule

    def ask(self, issuer: Issuer, *chain: bytes) -> None:
        """Ask OpenSSL's responder whatever has to be asked."""
        links = self.links(*chain)
        for one in questions(ASKING, links, self.listed(links), self.answers, self.now, SystemEntropy()):
            take_answer(self.answers, one, issuer.answer(one.request, at=self.now), self.now)


@pytest.fixture
def port(bare_line: Line, tmp_path: Path) -> Port:
    return Port(bare_line, tmp_path)


@pytest.fixture
def small_port(small_line: Line, tmp_path: Path) -> Port:
    return Port(small_line, tmp_path)


def test_without_a_fresh_crl_nobody_is_good_and_with_one_who_is_not_on_it(port: Port) -> None:
    good, bad = port.root.certify("good"), port.root.certify("bad")
    assert port.refused(good) == Reason.STATUS_UNKNOWN
    port.root.revoke("bad")
    port.harbour.take(port.root.list())
    port.judge(good)
    assert port.refused(bad) == Reason.FOREIGN_REVOKED
    port.line.clock.turn(days=7, hours=1)
    assert port.refused(good) == Reason.STATUS_UNKNOWN, "the list has ended"
    assert port.refused(bad) == Reason.FOREIGN_REVOKED, "what was revoked stays so"
    port.judge(good, policy=FleetPolicy(revocation=RevocationRule.NONE))


def test_a_newer_crl_counts_at_once(port: Port) -> None:
    device = port.root.certify("d1")
    port.harbour.take(port.root.list())
    port.judge(device)
    port.root.revoke("d1")
    port.harbour.take(port.root.list())
    assert port.refused(device) == Reason.FOREIGN_REVOKED


def test_every_certificate_between_needs_a_proof_of_its_own(port: Port) -> None:
    device = port.sub.certify("far")
    chain = (device, port.sub.der)
    assert port.refused(*chain) == Reason.STATUS_UNKNOWN
    port.harbour.take(port.root.list())
    assert port.refused(*chain) == Reason.STATUS_UNKNOWN, "the root says nothing of the device"
    port.harbour.take(port.sub.list(), issuer=port.sub.der)
    port.judge(*chain)
    port.judge(*chain, port.root.der)
    port.root.revoke("sub")
    port.harbour.take(port.root.list())
    assert port.refused(*chain) == Reason.FOREIGN_REVOKED, "the authority between is revoked"


def test_the_crl_of_an_authority_below_says_nothing_of_another_ones_devices(port: Port) -> None:
    other = port.root.below("other")
    device = other.certify("d1")
    port.harbour.take(port.root.list())
    port.harbour.take(port.sub.list(), issuer=port.sub.der)
    assert port.refused(device, other.der) == Reason.STATUS_UNKNOWN


def test_a_crl_of_devices_only_says_nothing_of_authorities(small_port: Port) -> None:
    port = small_port
    port.root.crl = "issuingDistributionPoint=critical,@idp\n[idp]\nonlyuser=TRUE"
    port.harbour.take(port.root.list())
    port.harbour.take(port.sub.list(), issuer=port.sub.der)
    port.judge(port.root.certify("near"))
    assert port.refused(port.sub.certify("far"), port.sub.der) == Reason.STATUS_UNKNOWN


def test_an_answer_of_a_responder_says_as_much_as_a_crl_until_it_ends(small_port: Port) -> None:
    port = small_port
    good, bad = port.root.certify("good"), port.root.certify("bad")
    port.root.revoke("bad")
    for device in (good, bad):
        port.ask(port.root, device)
    port.judge(good, policy=ASKING)
    assert port.refused(bad, policy=ASKING) == Reason.FOREIGN_REVOKED
    port.line.clock.turn(minutes=61)
    assert port.refused(good, policy=ASKING) == Reason.STATUS_UNKNOWN
    assert port.refused(bad, policy=ASKING) == Reason.STATUS_UNKNOWN, "whoever asks again is told again"


def test_a_responder_that_revoked_since_wins_over_a_crl(small_port: Port) -> None:
    port = small_port
    device = port.root.certify("d1")
    port.ask(port.root, device)
    port.root.revoke("d1")
    port.harbour.take(port.root.list())
    assert port.refused(device, policy=ASKING) == Reason.FOREIGN_REVOKED, "either says so"


def test_only_what_no_crl_says_is_asked_and_only_of_who_was_agreed(small_port: Port) -> None:
    port = small_port
    links = port.links(port.root.certify("d1"))
    entropy = SystemEntropy()
    (asked,) = questions(ASKING, links, {}, port.answers, port.now, entropy)
    assert (asked.url, len(asked.nonce)) == ("http://ocsp.example/", 32)
    assert questions(POLICY, links, {}, port.answers, port.now, entropy) == []
    port.harbour.take(port.root.list())
    assert questions(ASKING, links, port.listed(links), port.answers, port.now, entropy) == []


def test_a_hold_that_a_responder_has_lifted_since_is_over(small_port: Port) -> None:
    port = small_port
    device = port.root.certify("d1")
    fresh = (port.root.folder / "index.txt").read_text()
    port.root.revoke("d1", "certificateHold")
    port.harbour.take(port.root.list())
    assert port.refused(device, policy=ASKING) == Reason.FOREIGN_REVOKED
    (port.root.folder / "index.txt").write_text(fresh)
    port.line.clock.turn(days=8)
    port.ask(port.root, device)
    port.judge(device, policy=ASKING)


def test_what_is_kept_of_answers_has_an_end(small_port: Port) -> None:
    port = small_port
    answers = Answers(most=2)
    links = [port.links(port.root.certify(f"d{number}"))[0] for number in range(3)]
    for link in links:
        (asked,) = questions(ASKING, [link], {}, answers, port.now, SystemEntropy())
        take_answer(answers, asked, port.root.answer(asked.request, at=port.now), port.now)
    assert [answers.find(link, port.now) is not None for link in links] == [False, True, True]


def test_a_crl_on_record_that_was_changed_is_believed_by_nobody(port: Port) -> None:
    device = port.root.certify("d1")
    old, new = port.root.list(), port.root.list()
    port.harbour.take(new)
    tamper(port.line.url, ("UPDATE foreign_crl_octets SET der = %s", (old,)))
    with pytest.raises(errors.IntegrityFailure, match="not the one that was verified"):
        port.judge(device)


def test_the_certificate_that_showed_who_owns_an_authority_is_no_devices(small_port: Port) -> None:
    shown = small_port.authority.verification
    assert shown is not None
    with pytest.raises(errors.PolicyRefused, match="no device's"):
        small_port.links(shown)
    with pytest.raises(errors.MalformedRequest, match="begins with"):
        small_port.links()


def test_the_lowest_registered_authority_of_a_chain_answers_for_it(small_port: Port) -> None:
    port = small_port
    device = port.sub.certify("d1")
    below = FleetAuthority(
        id="below",
        der=port.sub.der,
        policy=POLICY.encode(),
        status=FleetStatus.SUSPENDED,
        nonce="",
        asked_at=port.now,
    )
    chain = (device, port.sub.der, port.root.der)
    assert fleet_of(chain, [port.authority, below]) == below
    assert fleet_of(chain, [port.authority]) == port.authority
    assert fleet_of((device,), [port.authority]) is None
    assert fleet_of(chain, []) is None


def test_a_renewed_certificate_of_an_authority_below_keeps_its_crl(small_port: Port) -> None:
    port = small_port
    device = port.sub.certify("d1")
    port.harbour.take(port.root.list())
    port.harbour.take(port.sub.list(), issuer=port.sub.der)
    renewed = port.root.certify(
        "sub-renewed",
        (port.root.folder / "sub.ext").read_text(),
        subject="/CN=sub",
        days=200,
        key=port.sub.folder / "ca.key",
    )
    port.judge(device, renewed)


def test_an_answer_that_is_older_does_not_replace_a_newer(small_port: Port) -> None:
    port = small_port
    (link,) = port.links(port.root.certify("d1"))
    (asked,) = questions(ASKING, [link], {}, port.answers, port.now, SystemEntropy())
    early = port.root.answer(asked.request, at=port.now)
    port.root.revoke("d1")
    later = port.now + timedelta(minutes=10)
    take_answer(port.answers, asked, port.root.answer(asked.request, at=later), later)
    take_answer(port.answers, asked, early, port.now)
    found = port.answers.find(link, later)
    assert found is not None
    assert found.status == "revoked"
