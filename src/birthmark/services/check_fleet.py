"""Hold fleet authorities and foreign CRLs against the log, and their proofs against themselves.

A part of ``check``: the proof that an owner holds the key is verified again, and each CRL is read again.
"""

from hashlib import sha256

from birthmark import errors
from birthmark.floor.fleet import FleetAuthority, ForeignCRL, ForeignCRLOctets
from birthmark.ledger.entry import parse_time, time_text
from birthmark.pki.certificates import fingerprint
from birthmark.pki.crl_index import index_crl
from birthmark.pki.ownership import verify_ownership
from birthmark.ports import Store
from birthmark.services.check_report import Report, get, scan
from birthmark.services.fleet_testimony import FleetAuthoritySaid, FleetSaid, ForeignCRLSaid

__all__ = ["check_fleet"]


def check_fleet(report: Report, store: Store, said: FleetSaid) -> None:
    """Each fleet authority and each CRL is what the last entry about it says, and is proved."""
    left = dict(said.authorities)
    for authority in scan(report, store, FleetAuthority):
        report.counts["fleet authorities"] += 1
        was = left.pop(authority.id, None)
        if was is None or _said_of(authority, was.shown_at) != was:
            report.find(f"fleet authority {authority.id} is not what the log says of it")
        else:
            _check_proof(report, authority, was)
    for name in left:
        report.find(f"the log speaks of fleet authority {name}; it is gone")
    lists = dict(said.lists)
    for row in scan(report, store, ForeignCRL):
        report.counts["foreign CRLs"] += 1
        if lists.pop(row.id, None) != _said_of_list(row):
            report.find(f"the CRL {row.id} is not what the log says was taken in")
        _check_list(report, store, row)
    for name in lists:
        report.find(f"the log says a CRL {name} was taken in; it is gone")
    for octets in scan(report, store, ForeignCRLOctets):
        if octets.id not in said.lists:
            report.find(f"there are octets of a CRL {octets.id}, which was never taken in")


def _said_of(authority: FleetAuthority, shown_at: str | None) -> FleetAuthoritySaid:
    shown = authority.verification
    return FleetAuthoritySaid(
        sha256=fingerprint(authority.der),
        policy=authority.policy,
        nonce=authority.nonce,
        asked_at=time_text(authority.asked_at),
        status=authority.status,
        verification_sha256=None if shown is None else fingerprint(shown),
        shown_at=shown_at if authority.is_registered else None,
    )


def _check_proof(report: Report, authority: FleetAuthority, was: FleetAuthoritySaid) -> None:
    if authority.verification is None or was.shown_at is None:
        return  # challenged: nothing was shown yet
    try:
        verify_ownership(authority.der, authority.verification, authority.nonce, parse_time(was.shown_at))
    except errors.Refusal as refusal:
        report.find(f"nobody has shown the key of fleet authority {authority.id}: {refusal}")


def _said_of_list(row: ForeignCRL) -> ForeignCRLSaid:
    return ForeignCRLSaid(
        issuer_sha256=None if row.issuer is None else fingerprint(row.issuer),
        url=row.url,
        number=row.number,
        this_update=time_text(row.this_update),
        next_update=time_text(row.next_update),
        sha256=row.sha256,
        count=row.entries,
    )


def _check_list(report: Report, store: Store, row: ForeignCRL) -> None:
    octets, authority = get(store, ForeignCRLOctets, row.id), get(store, FleetAuthority, row.authority)
    if octets is None or authority is None:
        report.find(f"the CRL {row.id} has no octets, or no fleet authority")
        return
    if (octets.sha256, sha256(octets.der).hexdigest()) != (row.sha256, row.sha256):
        report.find(f"the octets of the CRL {row.id} are others than were taken in")
        return
    try:
        read = index_crl(octets.der, authority.der if row.issuer is None else row.issuer)
    except errors.Refusal as refusal:
        report.find(f"the CRL {row.id} is none: {refusal}")
        return
    report.compare(
        f"the CRL {row.id}",
        number=(row.number, f"{read.number:x}"),
        this_update=(row.this_update, read.this_update),
        next_update=(row.next_update, read.next_update),
        entries=(row.entries, read.entries),
    )
