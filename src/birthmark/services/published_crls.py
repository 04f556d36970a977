"""Make a CRL of the record, and publish it (SPEC F2, F5): full ones, those of partitions, and deltas.

A CRL is never in memory: its entries go from the record into a draft, are linted there and signed, and the
signed list replaces the published one wholly.  Its number is its thisUpdate, and has to be above that of the
list it replaces, since relying parties keep the highest they saw: above the file's, and above the one the
index remembers should that file be gone or damaged.

A delta (RFC 5280 section 5.2.4) has what changed since its base, a full CRL: each line as it stands now, and
removeFromCRL for a suspension that was lifted, whether or not the base had it.  What is "since" is told by
the record's own time, not by that of the list.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice

from birthmark import errors
from birthmark.floor.locations import DELTA, Locations, crl_path
from birthmark.floor.revocations import UNPARTITIONED, Revocation, revocation_key
from birthmark.pki import crl
from birthmark.pki.issuer import Issuer
from birthmark.pki.revocation import ReasonCode, revoked_entry
from birthmark.ports import Clock, Draft, KeyStore, Publication, Store
from birthmark.services.publication_index import Published

__all__ = ["CRLMaker", "published", "require_growth"]

log = logging.getLogger(__name__)

_TOGETHER = 500
"""How many lines of a delta are looked up at once."""


class CRLMaker:
    """Makes and publishes one CRL at a time."""

    def __init__(
        self, *, store: Store, keys: KeyStore, clock: Clock, publication: Publication, locations: Locations
    ) -> None:
        """Sign with the authorities' keys in ``keys``."""
        self._store = store
        self._keys = keys
        self._clock = clock
        self._publication = publication
        self._locations = locations

    def whole(
        self,
        issuer: Issuer,
        authority: str,
        partition: str,
        validity: timedelta,
        *,
        deltas: bool,
        last: Published | None = None,
    ) -> Published:
        """Publish the full CRL of an authority, or that of a partition.

        Args:
            issuer: the authority.
            authority: its id.
            partition: ``UNPARTITIONED`` for the full one.
            validity: from thisUpdate to nextUpdate.
            deltas: the full one is to name its delta (freshestCRL, RFC 5280 section 5.2.6).
            last: the one that the index knows.

        Raises:
            errors.PolicyRefused: a rule of the lint refuses it, or its number would not grow.
            errors.Unavailable: record, key store or directory does not answer.
        """
        this_update = self._clock.now()  # before the snapshot, so that nothing in it is younger
        full = partition == UNPARTITIONED
        scope = crl.CRLScope(freshest_crl=self._locations.crl(authority, DELTA) if deltas and full else None)
        if not full:
            point = self._locations.crl(authority, partition)
            scope = crl.CRLScope(covers=crl.Covers.USERS, distribution_point=point)
        terms = _terms(issuer, scope, crl.crl_number(this_update), this_update, validity)
        path = crl_path(authority, partition)
        require_growth(self._publication, path, terms.number, issuer, last)
        prefix = f"{authority}/" if full else revocation_key(authority, partition, "")
        with self._publication.draft() as entries:
            size = 0
            with self._store.octets(Revocation, "entry", prefix=prefix) as found:
                as_of = found.as_of
                for piece in found.pieces():
                    entries.write(piece)
                    size += len(piece)
            made = self._sign(terms, entries, size, authority, partition)
        return replace(made, as_of=as_of)

    def delta(
        self,
        issuer: Issuer,
        authority: str,
        validity: timedelta,
        *,
        full: Published,
        base: Published,
        last: Published | None = None,
    ) -> Published:
        """Publish the delta to an authority's full CRL.

        Args:
            issuer: the authority.
            authority: its id.
            validity: from thisUpdate to nextUpdate.
            full: the full CRL that is published.
            base: that one or an older one: whoever has it, or one in between, can use the delta.
            last: the delta that the index knows.

        Raises:
            errors.PolicyRefused: a rule of the lint refuses it, or its number would not grow.
            errors.Unavailable: record, key store or directory does not answer.
        """
        this_update = self._clock.now()
        number = crl.crl_number(this_update)
        # It says more than the full one, if both were made in the same microsecond.
        number += number == full.number
        terms = _terms(issuer, crl.CRLScope(base=base.number), number, this_update, validity)
        path = crl_path(authority, DELTA)
        require_growth(self._publication, crl_path(authority), number, issuer, full)
        require_growth(self._publication, path, number, issuer, last)
        with self._publication.draft() as entries:
            size = 0
            for entry in self._changes(authority, base.as_of):
                entries.write(entry)
                size += len(entry)
            made = self._sign(terms, entries, size, authority, DELTA)
        return replace(made, as_of=base.as_of, base=base.number)

    def _changes(self, authority: str, start: datetime) -> Iterator[bytes]:
        """Iterate over what changed since, as lines of a delta."""
        keys = self._changed(authority, start)
        while some := list(islice(keys, _TOGETHER)):
            facts = self._store.look({Revocation: some})
            for revocation in (facts.get(Revocation, key) for key in some):
                if revocation is None:
                    raise errors.IntegrityFailure(f"a revocation of {authority} has gone from the record")
                if revocation.status is None:
                    serial = int(revocation.id.rpartition("/")[2], 16)
                    yield revoked_entry(serial, revocation.revoked_at, ReasonCode.REMOVE_FROM_CRL)
                else:
                    yield revocation.entry

    def _changed(self, authority: str, start: datetime) -> Iterator[str]:
        """Iterate over what changed since, each once, though one that changes meanwhile is found again."""
        seen, prefix = set(), f"{authority}/"
        for key, _ in self._store.since(Revocation, "revoked_at", start):
            if key.startswith(prefix) and key not in seen:
                seen.add(key)
                yield key

    def _sign(
        self, terms: crl.CRLTerms, entries: Draft, size: int, authority: str, partition: str
    ) -> Published:
        path = crl_path(authority, partition)
        around = crl.frame(terms, size)
        with self._publication.draft() as draft:
            draft.write(around.prefix)
            with entries.octets() as listed:
                draft.write(listed)
            draft.write(around.suffix)
            with draft.octets() as tbs:
                header, trailer = crl.sign_crl(crl.permit(tbs, terms), self._keys.sign)
                counted = _Counted((header, tbs, trailer))
                self._publication.publish(path, counted)
        log.info("crl published", extra={"path": path, "number": terms.number, "octets": counted.octets})
        return Published(
            authority=authority,
            partition=partition,
            number=terms.number,
            this_update=terms.this_update.replace(microsecond=0),
            next_update=terms.next_update.replace(microsecond=0),
            octets=counted.octets,
            sha256=counted.sha256.hexdigest(),
        )


def require_growth(
    publication: Publication, path: str, number: int, issuer: Issuer, last: Published | None
) -> None:
    """Refuse a number that is not above the published one: relying parties keep the highest they saw.

    A file that is no CRL, or has a number that its issuer never signed, is damaged: nobody keeps that number,
    and ``last`` says what the number was.

    Args:
        publication: where it is published.
        path: of the published CRL.
        number: of the new one.
        issuer: who signs both.
        last: what the index says of the published one.

    Raises:
        errors.PolicyRefused: it is not (rule ``crl-number-grows``).
        errors.Unavailable: the directory does not answer.
    """
    known = -1 if last is None else last.number
    with publication.read(path) as octets:
        highest = known if octets is None else max(known, _number(path, octets, issuer, (known, number)))
    if number <= highest:
        raise errors.PolicyRefused(
            "crl-number-grows",
            f"{path} is published with number {highest}, the new one would have {number}: the clock"
            " has gone back, or the list is an old one",
        )


def _number(path: str, octets: crl.Buffer, issuer: Issuer, between: tuple[int, int]) -> int:
    """Return the number of a published CRL, -1 if it is damaged.

    Its signature is looked at only where it matters, since the whole list has to be in memory for that: when
    the number is above what the index knows and stands in the way of the new one.
    """
    known, new = between
    try:
        number = crl.read_crl(octets).number
        if number > known and number >= new:
            crl.verify_crl(bytes(octets), issuer)
    except (errors.MalformedRequest, errors.IntegrityFailure) as damaged:
        log.warning("%s is damaged and is replaced: %s", path, damaged)
        return -1
    return number


def published(authority: str, partition: str, summary: crl.CRLSummary, octets: bytes) -> Published:
    """Return what the index says of a CRL that was made elsewhere."""
    return Published(
        authority=authority,
        partition=partition,
        number=summary.number,
        this_update=summary.this_update,
        next_update=summary.next_update,
        octets=len(octets),
        sha256=hashlib.sha256(octets).hexdigest(),
    )


def _terms(
    issuer: Issuer, scope: crl.CRLScope, number: int, this_update: datetime, validity: timedelta
) -> crl.CRLTerms:
    return crl.CRLTerms(
        issuer=issuer,
        scope=scope,
        number=number,
        this_update=this_update,
        next_update=this_update + validity,
    )


class _Counted:
    """Pieces, counted and hashed as they go by."""

    def __init__(self, pieces: Iterable[crl.Buffer]) -> None:
        self._pieces = pieces
        self.octets = 0
        self.sha256 = hashlib.sha256()

    def __iter__(self) -> Iterator[crl.Buffer]:
        for piece in self._pieces:
            self.octets += len(piece)
            self.sha256.update(piece)
            yield piece
