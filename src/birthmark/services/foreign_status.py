"""Whether other people's certificates are good: paths, CRLs and OCSP answers of fleet authorities (SPEC H3).

A device's path is one link for each certificate that somebody issued: the device's, and those of authorities
between it and the fleet authority.  Under ``required`` every link needs a fresh proof that it is good, a CRL
of its very issuer or an OCSP answer about it; one that says "revoked" decides, and without any the device is
refused: what is not known is not good.

A CRL is kept for each issuer (``floor.fleet.crl_id``).  ``Lists`` and ``Answers`` are what one process has
read of them; the record is where CRLs come from, and ``adapters.foreign`` where answers do.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from itertools import pairwise
from threading import Lock

from birthmark import errors
from birthmark.floor.fleet import (
    FleetAuthority,
    FleetPolicy,
    ForeignCRL,
    ForeignCRLOctets,
    RevocationRule,
    crl_id,
)
from birthmark.pki.certificates import Certificate
from birthmark.pki.crl_index import CRLIndex, index_crl
from birthmark.pki.crl_reading import Covers
from birthmark.pki.ocsp_client import OCSPAnswer, question, read_answer
from birthmark.pki.paths import purposes, verify_path
from birthmark.pki.revocation import CertStatus, ReasonCode
from birthmark.ports import Entropy, Facts, Look, UseCase
from birthmark.services.visits import Reason

__all__ = [
    "Answers",
    "Link",
    "Lists",
    "Question",
    "crl_of",
    "fleet_of",
    "judge",
    "links_of",
    "lists_of",
    "questions",
    "take_answer",
]

NONCE_OCTETS = 32
_MOST_ANSWERS = 100_000
_MOST_LISTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One certificate of a path, and who issued it (DER)."""

    certificate: bytes
    issuer: bytes
    crl: str
    """Id of the CRL that speaks of it."""
    authority: bool
    """It is an authority's, not the device's."""

    @property
    def id(self) -> str:
        """Under which an answer about it is kept: its fingerprint and its issuer's."""
        return sha256(sha256(self.certificate).digest() + sha256(self.issuer).digest()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is to be asked of an OCSP responder."""

    url: str
    request: bytes
    """OCSPRequest (DER)."""
    link: Link
    nonce: bytes


def fleet_of(chain: Sequence[bytes], authorities: Sequence[FleetAuthority]) -> FleetAuthority | None:
    """Return the fleet authority a chain leads to, whatever its status; None for none.

    The lowest wins: an authority that is suspended stays so, though one above it is registered as well.

    Args:
        chain: certificates (DER), the device's first, as TLS verified them.
        authorities: those registered.
    """
    registered = {one.der: one for one in authorities}
    return next((registered[octets] for octets in chain[1:] if octets in registered), None)


def links_of(authority: FleetAuthority, chain: Sequence[bytes], at: datetime) -> tuple[Link, ...]:
    """Return the links of a device's path to a fleet authority, verified.

    Args:
        authority: that it is said to lead to.
        chain: certificates (DER), the device's first; the authority's own may be among them or not.
        at: now.

    Raises:
        errors.MalformedRequest: a certificate cannot be read, or there is none.
        errors.PolicyRefused: the path does not hold (rule ``foreign-path``), or the device shows the
            certificate its authority was registered with (rule ``foreign-path``).
    """
    if not chain:
        raise errors.MalformedRequest("a chain begins with a device's certificate")
    if chain[0] == authority.verification:
        raise errors.PolicyRefused(
            "foreign-path", "this certificate showed who owns the authority; it is no device's"
        )
    path = verify_path(chain[0], chain[1:], authority.der, at)
    return tuple(
        Link(
            certificate=certificate,
            issuer=issuer,
            crl=crl_of(authority, issuer),
            authority=place > 0,
        )
        for place, (certificate, issuer) in enumerate(pairwise(path))
    )


def crl_of(authority: FleetAuthority, issuer: bytes) -> str:
    """Return the id of the CRL of whoever issued a certificate under a fleet authority.

    Raises:
        errors.MalformedRequest: the issuer's certificate (DER) cannot be read.
    """
    if issuer == authority.der:
        return crl_id(authority.id)
    read = purposes(issuer).certificate
    name_and_key = read.subject_name + read.subject_public_key_info
    return crl_id(authority.id, sha256(name_and_key).hexdigest())


class Lists:
    """The CRLs that one process has read, each as it was when it was read; safe from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._read: OrderedDict[str, CRLIndex] = OrderedDict()

    def find(self, row: ForeignCRL) -> CRLIndex | None:
        """Return what was read of this very CRL; None if it is newer than what was."""
        with self._lock:
            found = self._read.get(row.id)
            return found if found is not None and found.sha256 == row.sha256 else None

    def read(self, row: ForeignCRL, octets: ForeignCRLOctets | None, issuer: bytes) -> CRLIndex:
        """Read one from the record and keep it.

        Raises:
            errors.IntegrityFailure: the record holds another than was verified.
        """
        if octets is None or octets.sha256 != row.sha256:
            raise errors.IntegrityFailure(f"the CRL {row.id} is not beside its row")
        try:
            index = index_crl(octets.der, issuer)
        except (errors.MalformedRequest, errors.PolicyRefused, errors.TooLarge) as cause:
            raise errors.IntegrityFailure(f"the CRL {row.id} is not the one that was verified") from cause
        if (index.sha256, index.next_update) != (row.sha256, row.next_update):
            raise errors.IntegrityFailure(f"the CRL {row.id} is not the one that was verified")
        with self._lock:
            self._read[row.id] = index
            self._read.move_to_end(row.id)
            while len(self._read) > _MOST_LISTS:
                self._read.popitem(last=False)
        return index


def lists_of(lists: Lists, links: Sequence[Link]) -> UseCase[dict[str, CRLIndex]]:
    """Return the CRLs that speak of some links, by id, as the record has them now.

    Cheap while nothing changes; one of a million entries takes some seconds when it is new, so that
    ``adapters.foreign`` reads it beforehand.

    Raises:
        errors.IntegrityFailure: a CRL on record is not the one that was verified.
    """
    ids = sorted({one.crl for one in links})
    facts: Facts = yield Look({ForeignCRL: ids})
    found: dict[str, CRLIndex] = {}
    for link in links:
        row = facts.get(ForeignCRL, link.crl)
        if row is None or link.crl in found:
            continue
        index = lists.find(row)
        if index is None:
            # Both in one look, so that they are of one moment.
            both: Facts = yield Look({ForeignCRL: (row.id,), ForeignCRLOctets: (row.id,)})
            row = both.get(ForeignCRL, row.id) or row
            index = lists.read(row, both.get(ForeignCRLOctets, row.id), link.issuer)
        found[link.crl] = index
    return found


class Answers:
    """The OCSP answers that one process was given, verified, until they end; safe from any thread."""

    def __init__(self, most: int = _MOST_ANSWERS) -> None:
        """Keep so many; the oldest go first."""
        self._lock = Lock()
        self._most = most
        self._kept: OrderedDict[str, OCSPAnswer] = OrderedDict()

    def find(self, link: Link, at: datetime) -> OCSPAnswer | None:
        """Return the answer about a link that is good at this time; None for none."""
        with self._lock:
            found = self._kept.get(link.id)
            return found if found is not None and found.is_fresh(at) else None

    def keep(self, link: Link, answer: OCSPAnswer) -> None:
        """Keep an answer in place of an earlier one, unless that one is newer."""
        with self._lock:
            before = self._kept.pop(link.id, None)
            newer = before is not None and before.this_update > answer.this_update
            self._kept[link.id] = before if before is not None and newer else answer
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)


def judge(
    policy: FleetPolicy,
    links: Sequence[Link],
    lists: Mapping[str, CRLIndex],
    answers: Answers,
    at: datetime,
) -> None:
    """Refuse a path of which a certificate is revoked, or not known to be good.

    Args:
        policy: of the fleet authority.
        links: from ``links_of``.
        lists: from ``lists_of``.
        answers: that were given so far.
        at: now.

    Raises:
        errors.PolicyRefused: one is revoked (rule ``foreign-revoked``), or nothing fresh says that it is good
            (rule ``foreign-status-unknown``).
    """
    if policy.revocation is RevocationRule.NONE:
        return
    missing: list[str] = []
    for link in links:
        listed, answer = lists.get(link.crl), answers.find(link, at)
        name = Certificate.from_der(link.certificate).subject
        reason = _revoked(link, listed, answer)
        if reason is not None:
            raise errors.PolicyRefused(
                str(Reason.FOREIGN_REVOKED), f"the certificate of {name} is revoked: {reason}"
            )
        answered = answer is not None and answer.status is CertStatus.GOOD
        if not answered and not _speaks_of(link, listed, at):
            missing.append(f"nothing fresh says that the certificate of {name} is good: {_why(listed, at)}")
    if missing:
        raise errors.PolicyRefused(str(Reason.STATUS_UNKNOWN), missing[0])


def _revoked(link: Link, listed: CRLIndex | None, answer: OCSPAnswer | None) -> ReasonCode | None:
    # A list that has ended proves nothing good any more; what it revoked is still revoked, except a hold.
    found = None if listed is None else listed.find(Certificate.from_der(link.certificate).serial_number)
    if answer is not None and answer.status is CertStatus.REVOKED:
        return answer.reason
    later = answer is not None and listed is not None and answer.this_update > listed.this_update
    if found is ReasonCode.CERTIFICATE_HOLD and later:
        return None
    return found


def _speaks_of(link: Link, listed: CRLIndex | None, at: datetime) -> bool:
    """Return whether a list that does not name a certificate says that it is good."""
    covered = listed is not None and (listed.covers is Covers.ALL or not link.authority)
    return listed is not None and covered and listed.is_fresh(at)


def _why(listed: CRLIndex | None, at: datetime) -> str:
    if listed is None:
        return "there is no CRL of its issuer"
    if listed.is_fresh(at):
        return "the CRL of its issuer speaks of devices only"
    return f"the CRL of its issuer was good until {listed.next_update:%Y-%m-%dT%H:%M:%SZ}"


def questions(
    policy: FleetPolicy,
    links: Sequence[Link],
    lists: Mapping[str, CRLIndex],
    answers: Answers,
    at: datetime,
    entropy: Entropy,
) -> list[Question]:
    """Return what has to be asked of the policy's responder before ``judge`` can say that a path is good.

    Nothing, where CRLs or earlier answers say enough, or the policy names no responder.
    """
    if policy.revocation is RevocationRule.NONE or not policy.ocsp_url:
        return []
    asked = []
    for link in links:
        if _speaks_of(link, lists.get(link.crl), at) or answers.find(link, at) is not None:
            continue
        nonce = entropy.token(NONCE_OCTETS)
        request = question(link.certificate, link.issuer, nonce)
        asked.append(Question(url=policy.ocsp_url, request=request, link=link, nonce=nonce))
    return asked


def take_answer(answers: Answers, asked: Question, octets: bytes, at: datetime) -> OCSPAnswer:
    """Verify what a responder answered (DER), and keep it.

    Raises:
        errors.MalformedRequest: it is no OCSP response.
        errors.TooLarge: it is too long for one.
        errors.PolicyRefused: it cannot be relied on (rule ``foreign-ocsp``).
    """
    answer = read_answer(octets, asked.link.certificate, asked.link.issuer, asked.nonce, at)
    answers.keep(asked.link, answer)
    return answer
