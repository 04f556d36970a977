"""CRLs of fleet authorities, and of authorities below them: taken in, never back (SPEC H5).

Somebody brings one, or the gateway's watcher fetches it.  It is read and verified before the act
(``pki.crl_index``); the act holds its time against the clock and its number against the last one's, so that
no old list, fetched from whoever answers in the issuer's place, takes a revocation back.  Octets and row
change together, and the entry has the octets' hash.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from hashlib import sha256
from typing import TypeVar

from birthmark import errors
from birthmark.floor.clients import Capability
from birthmark.floor.fleet import FleetAuthority, FleetStatus, ForeignCRL, ForeignCRLOctets, check_url
from birthmark.ledger.entry import time_text
from birthmark.pki.certificates import fingerprint
from birthmark.pki.crl_index import CRLIndex, index_crl
from birthmark.pki.paths import verify_authority
from birthmark.ports import Act, Committed, Decision, Facts, Look, Reads, UseCase
from birthmark.services.acts import (
    Caller,
    admitted,
    decided,
    live_client,
    outcomes,
    record_refusal,
    recorded,
    refuse,
)
from birthmark.services.fleet import registered
from birthmark.services.foreign_status import crl_of

__all__ = ["WATCHER", "ListTaken", "take_crl"]

T = TypeVar("T")
WATCHER = "realm:fleet-watcher"
"""The actor of what is fetched without anybody asking."""
REQUEST = "take-crl"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListTaken:
    """A foreign CRL on record."""

    crl: ForeignCRL
    new: bool
    """False if it was on record already."""


def take_crl(
    caller: Caller | None,
    name: str,
    octets: bytes,
    *,
    issuer: bytes | None = None,
    between: Sequence[bytes] = (),
    url: str = "",
) -> UseCase[ListTaken]:
    """Take a CRL of a fleet authority in, or one of an authority below it, in place of the last.

    Args:
        caller: who brings it; None for the watcher.
        name: of the fleet authority.
        octets: the CRL (DER).
        issuer: certificate (DER) of the authority below whose CRL it is; None for the fleet authority's.
        between: certificates (DER) between that one and the fleet authority, the lowest first.
        url: where the next one of an authority below is fetched; empty for by hand.

    Raises:
        errors.NotPermitted: the caller may not.
        errors.NotFound: there is no such authority.
        errors.IllegalTransition: it is not registered, or retired.
        errors.MalformedRequest: it is no CRL or no certificate.
        errors.TooLarge: it is too large.
        errors.PolicyRefused: it cannot be relied on (rule ``foreign-crl``), has ended or is not of this
            time (``crl-window``), goes back behind the last one (``crl-number``), or the authority below
            is none (``foreign-path``).
    """
    said = {"fleet_authority": name[:64], "sha256": sha256(octets).hexdigest()}
    work = _read_list(name, octets, issuer, url)
    if caller is None:
        crl, index = yield from _recorded(said, work)
    else:
        yield from admitted(caller, REQUEST, said, partial(_judge, caller))
        crl, index = yield from recorded(caller, REQUEST, said, work)
    decide = partial(_take, caller, name, crl, index, octets, (issuer, between, url))
    reads: Reads = {FleetAuthority: (name,), ForeignCRL: (crl,)}
    if caller is not None:
        return (yield from decided(caller, REQUEST, said, decide, reads))
    committed: list[Committed[ListTaken]] = yield [
        Act(actor=WATCHER, decide=decide, refuse=refuse(None, REQUEST, said), reads=reads)
    ]
    return outcomes(committed)[0]


def _recorded(said: Mapping[str, str], work: UseCase[T]) -> UseCase[T]:
    """Do what comes before the watcher's act, and put its refusal on record."""
    try:
        return (yield from work)
    except errors.Refusal as refusal:
        yield from record_refusal(WATCHER, REQUEST, said, refusal)
        refusal.recorded = True
        raise


def _read_list(name: str, octets: bytes, issuer: bytes | None, url: str) -> UseCase[tuple[str, CRLIndex]]:
    """Return the id of a CRL and what it says: seconds of work for a long one, and so before the act."""
    if issuer is None and url:
        raise errors.MalformedRequest("where a fleet authority's own CRL is fetched says its policy")
    if url:
        check_url(url)
    facts: Facts = yield Look({FleetAuthority: (name,)})
    authority = registered(facts, name)
    signer = authority.der if issuer is None else issuer
    return crl_of(authority, signer), index_crl(octets, signer)


def _judge(caller: Caller, facts: Facts, at: datetime) -> None:
    live_client(facts, caller, Capability.CHANGE_FLEET, at)


def _take(
    caller: Caller | None,
    name: str,
    crl: str,
    index: CRLIndex,
    octets: bytes,
    source: tuple[bytes | None, Sequence[bytes], str],
    facts: Facts,
    at: datetime,
) -> Decision[ListTaken]:
    if caller is not None:
        _judge(caller, facts, at)
    issuer, between, url = source
    authority, before = registered(facts, name), facts.get(ForeignCRL, crl)
    if authority.status is FleetStatus.RETIRED:
        raise errors.IllegalTransition(f"fleet authority {name} is retired")
    if before is None and issuer is not None:
        verify_authority(issuer, between, authority.der, at)
    row = ForeignCRL(
        id=crl,
        issuer=None if issuer == authority.der else issuer,
        url=url,
        number=f"{index.number:x}",
        sha256=index.sha256,
        entries=index.entries,
        this_update=index.this_update,
        next_update=index.next_update,
    )
    if before == row:
        return Decision(ListTaken(crl=before, new=False))
    _require_newer(before, index, at)
    facts.put(row)
    facts.put(ForeignCRLOctets(id=crl, sha256=index.sha256, der=octets))
    entry = {
        "fleet_authority": name,
        "crl": crl,
        "issuer_sha256": None if row.issuer is None else fingerprint(row.issuer),
        "url": url,
        "number": row.number,
        "this_update": time_text(row.this_update),
        "next_update": time_text(row.next_update),
        "sha256": row.sha256,
        "count": row.entries,
    }
    return Decision(ListTaken(crl=row, new=True), [("foreign-crl-taken", entry)])


def _require_newer(before: ForeignCRL | None, index: CRLIndex, at: datetime) -> None:
    """Refuse a CRL that has ended, is from the future, or would take back what was revoked since."""
    if not index.is_fresh(at):
        raise errors.PolicyRefused(
            "crl-window",
            f"the CRL is of {time_text(index.this_update)} until {time_text(index.next_update)},"
            f" and now it is {time_text(at)}",
        )
    if before is None or before.sha256 == index.sha256:
        return
    known = int(before.number, 16)
    if index.number <= known or index.this_update < before.this_update:
        raise errors.PolicyRefused(
            "crl-number",
            f"the CRL has number {index.number} of {time_text(index.this_update)}; on record is {known} of"
            f" {time_text(before.this_update)}: numbers grow (RFC 5280 section 5.2.3)",
        )
