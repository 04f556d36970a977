"""Publish what relying parties need: CRLs, authorities' certificates, the log (SPEC F2, F4).

One ``cycle`` looks at what has changed since the last one and makes anew only what changed or is due, so that
one more revocation in a batch costs the batch's own CRL, and the full one, but no other.  What the last cycle
saw stands in ``index.json``, which is published itself: there is no other state.

With deltas, what changed is in the delta at once, and in the full CRL when that is due.  A clock that has
gone back makes no CRL but an alarm.  A file that is gone, or is not the one the index names, is made anew.
Every CRL that will soon end, is missing or lacks a revocation on record is an alarm, raised long before
nextUpdate: told to the operators' log and, by a cycle and once for each CRL, to the audit log.  How one list
is made is the business of ``published_crls``.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509

from birthmark import errors
from birthmark.floor.authorities import Authority, AuthorityStatus, Custody
from birthmark.floor.locations import DELTA, INDEX_PATH, Locations, certificate_path, crl_path
from birthmark.floor.realm import Realm
from birthmark.floor.revocations import AUTHORITIES, CLIENTS, UNPARTITIONED, Revocation, revocation_key
from birthmark.floor.runs import Run, RunLicence
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.ledger.entry import decode, parse_time, time_text
from birthmark.pki import crl
from birthmark.pki.certificates import Certificate
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyLabel
from birthmark.ports import Clock, KeyStore, Log, Publication, Store, carry
from birthmark.services.publication_alarms import Alarm, missing, record_alarm
from birthmark.services.publication_index import EPOCH, Index, Published
from birthmark.services.publication_record import record_published
from birthmark.services.published_crls import CRLMaker, published, require_growth
from birthmark.services.published_log import publish_log

__all__ = ["PublicationTerms", "Publish", "Report"]

log = logging.getLogger(__name__)

CRLs = Mapping[tuple[str, str], Published]
"""By authority and partition."""
_AHEAD = timedelta(minutes=5)
"""How far the thisUpdate of a CRL that was made elsewhere may lie ahead of our clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicationTerms:
    """What is published, and when."""

    locations: Locations
    crl_validity: timedelta
    """From thisUpdate to nextUpdate."""
    crl_refresh: timedelta
    """After so long a CRL is made anew though nothing changed."""
    crl_alarm: timedelta
    """So long before nextUpdate a CRL that was not replaced is an alarm."""
    offline_alarm: timedelta
    """The same for authorities whose keys are offline."""
    behind: timedelta
    """A revocation that is not published after so long is an alarm."""
    partitions: bool
    log_entries: bool
    """Publish what the log's entries say, and not their hashes alone."""
    delta: timedelta | None = None
    """From thisUpdate to nextUpdate of a delta; None to make none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a cycle came to."""

    built: tuple[Published, ...] = ()
    certificates: int = 0
    """How many authorities' certificates were published anew."""
    log_size: int = 0
    """Size of the published log."""
    alarms: tuple[Alarm, ...] = ()


class Publish:
    """The use cases of the publisher."""

    def __init__(
        self,
        *,
        realm: Realm,
        store: Store,
        log: Log,
        keys: KeyStore,
        clock: Clock,
        publication: Publication,
        terms: PublicationTerms,
    ) -> None:
        """Publish what this record says, with the authorities' keys in ``keys``."""
        self._realm = realm
        self._store = store
        self._log = log
        self._keys = keys
        self._clock = clock
        self._publication = publication
        self._terms = terms
        self._maker = CRLMaker(
            store=store, keys=keys, clock=clock, publication=publication, locations=terms.locations
        )
        self._partitions: dict[str, tuple[str, str]] = {}
        """Authority and partition of each run seen; a licence never changes."""
        self._hashed: set[str] = set()
        """SHA-256 of each CRL whose file was read wholly, once; later, size and number are looked at."""
        self._looked = False
        """Whether every tile was looked for."""

    # --- the cycle

    def cycle(self) -> Report:
        """Make anew what changed or is due, and tell every alarm.

        Raises:
            errors.Unavailable: the record or the directory does not answer, or somebody else is publishing.
            errors.IntegrityFailure: the record is older than what is published: it was put back.
        """
        with self._publication.lock():
            before = self._index()
            size, at = self._head()
            if size < before.size:
                raise errors.IntegrityFailure(
                    f"the log has {size} entries; what is published was made of {before.size}: the record was"
                    " put back"
                )
            authorities, unfit = self._authorities()
            certificates = self._publish_certificates(authorities)
            changed = self._changed(before, size)
            crls, built, failures = self._publish_crls(authorities, before, changed)
            own = self._record(built, size)
            if own.start == size and len(own):
                # Nothing else was committed meanwhile, so what was looked at goes up to our own entries.
                size, at = own.stop, self._time(own.stop - 1)
            log_size = publish_log(
                self._store.checkpoint() if size else "",
                self._log,
                self._publication,
                VerifierKey.parse(self._realm.vkey),
                before.log_size,
                entries=self._terms.log_entries,
                whole=not self._looked,
            )
            self._looked = True
            after = Index(size=size, at=at, log_size=log_size, crls=crls)
            if after != before:
                self._publication.publish(INDEX_PATH, (after.encode(self._realm, self._clock.now()),))
        alarms = [*unfit, *failures, *self._alarms(authorities, after)]
        self._tell(alarms)
        return Report(built=tuple(built), certificates=certificates, log_size=log_size, alarms=tuple(alarms))

    def make(self, authority: str, partition: str) -> Published:
        """Make one CRL now, whether it is due or not, and publish it.

        Raises:
            errors.NotFound: it is none of the CRLs that are signed here.
            errors.PolicyRefused: a rule of the lint refuses it, or its number would not grow.
            errors.Unavailable: record, key store or directory does not answer.
        """
        with self._publication.lock():
            expected = self._expected(self._authorities()[0])
            found = next((one for one, of in expected if (one.id, of) == (authority, partition)), None)
            if found is None:
                raise errors.NotFound(f"no crl {partition[:100]} of {authority[:100]} is signed here")
            before, size = self._index(), self._log.size()
            made = self._make(_issuer(found), authority, partition, before.crls, before.crls)
            self._record([made], size)
            crls = before.crls | {(authority, partition): made}
            document = replace(before, crls=crls).encode(self._realm, self._clock.now())
            self._publication.publish(INDEX_PATH, (document,))
        return made

    def check(self) -> Report:
        """Look at what is published and tell every alarm; change nothing, neither there nor on record.

        Whoever monitors may do so elsewhere, by another clock, and an entry of the log dates all later ones:
        only a cycle puts alarms on record.

        Raises:
            errors.Unavailable: the record or the directory does not answer.
            errors.IntegrityFailure: the record is older than what is published.
        """
        index = self._index()
        authorities, unfit = self._authorities()
        alarms = [*unfit, *self._alarms(authorities, index)]
        self._tell(alarms, record=False)
        return Report(log_size=index.log_size, alarms=tuple(alarms))

    def take_in(self, octets: bytes) -> Published:
        """Publish a CRL (DER) that an offline authority signed in a ceremony.

        Raises:
            errors.MalformedRequest: it is no CRL.
            errors.IntegrityFailure: no offline authority on record signed it.
            errors.PolicyRefused: it is not newer than the published one (rule ``crl-number-grows``), not
                current (``crl-current``), not of everything (``crl-full``) or lacks a revocation that is on
                record (``crl-complete``).
        """
        with self._publication.lock():
            before, now, size = self._index(), self._clock.now(), self._log.size()
            authority, summary = self._signer_of(octets)
            if summary.scope != crl.CRLScope():
                raise errors.PolicyRefused("crl-full", "it is a delta or does not cover everything")
            if not summary.this_update - _AHEAD <= now < summary.next_update:
                raise errors.PolicyRefused(
                    "crl-current",
                    f"it is for {time_text(summary.this_update)} to {time_text(summary.next_update)}",
                )
            last = before.crls.get((authority.id, UNPARTITIONED))
            if last is not None and last.sha256 == hashlib.sha256(octets).hexdigest():
                last = None  # the very same one, taken in again if its file is gone
            path = crl_path(authority.id)
            require_growth(self._publication, path, summary.number, _issuer(authority), last)
            listed = x509.load_der_x509_crl(octets)
            for revocation in self._revocations(authority.id):
                serial = int(revocation.id.rpartition("/")[2], 16)
                if (
                    revocation.status is not None
                    and listed.get_revoked_certificate_by_serial_number(serial) is None
                ):
                    raise errors.PolicyRefused(
                        "crl-complete", f"certificate {serial:x} is revoked and not on it"
                    )
            self._publication.publish(crl_path(authority.id), (octets,))
            taken = published(authority.id, UNPARTITIONED, summary, octets)
            self._record([taken], size)
            crls = before.crls | {(authority.id, UNPARTITIONED): taken}
            self._publication.publish(INDEX_PATH, (replace(before, crls=crls).encode(self._realm, now),))
        return taken

    def _signer_of(self, octets: bytes) -> tuple[Authority, crl.CRLSummary]:
        named = crl.read_crl(octets).issuer
        for authority in self._authorities()[0]:
            if authority.custody is Custody.OFFLINE:
                issuer = _issuer(authority)
                if issuer.subject == named:
                    return authority, crl.verify_crl(octets, issuer)
        raise errors.IntegrityFailure("no offline authority of this realm issues this CRL")

    # --- what is there, and what changed

    def _authorities(self) -> tuple[list[Authority], list[Alarm]]:
        """Return the authorities, and alarms for those of which nothing can be published.

        They do not stop what is published of the others.
        """
        fit, unfit = [], []
        for authority in self._store.scan(Authority):
            try:
                crl_path(authority.id)
                Certificate.from_der(authority.der)
                fit.append(authority)
            except errors.MalformedRequest as wrong:
                unfit.append(
                    Alarm(
                        kind="crl-failed",
                        authority=authority.id,
                        partition=UNPARTITIONED,
                        number=0,
                        detail=str(wrong),
                    )
                )
        return fit, unfit

    def _index(self) -> Index:
        with self._publication.read(INDEX_PATH) as octets:
            return Index() if octets is None else Index.decode(bytes(octets))

    def _head(self) -> tuple[int, datetime]:
        size = self._log.size()
        return size, self._time(size - 1) if size else EPOCH

    def _time(self, index: int) -> datetime:
        (entry,) = self._log.entries(index, index + 1)
        return parse_time(str(decode(entry.entry)["at"]))

    def _changed(self, before: Index, size: int) -> set[tuple[str, str]]:
        """Return authority and partition of everything revoked or reinstated since the last cycle.

        Trains have times that never fall, and two may share a millisecond: only then is that one looked at
        again.
        """
        if size == before.size:
            return set()
        shared = before.size > 0 and self._time(before.size) == before.at
        changed = set()
        for key, at in self._store.since(Revocation, "revoked_at", before.at):
            if at > before.at or shared:
                authority, partition, _ = key.split("/")
                changed.add((authority, partition))
        return changed

    def _revocations(self, authority: str) -> Iterator[Revocation]:
        prefix = revocation_key(authority, "", "").removesuffix("/")
        for revocation in self._store.scan(Revocation, after=prefix):
            if not revocation.id.startswith(prefix):
                return
            yield revocation

    def _expected(self, authorities: Iterable[Authority]) -> list[tuple[Authority, str]]:
        """Return the CRLs that we sign, partitions first: they are what most relying parties wait for.

        A delta comes after the full CRL, which it may need.
        """
        now = self._clock.now()
        signing = {
            authority.id: authority
            for authority in authorities
            if authority.custody is Custody.SERVICE
            and authority.status is not AuthorityStatus.REVOKED
            and Certificate.from_der(authority.der).not_after > now
        }
        expected = []
        if self._terms.partitions:
            for run in self._store.scan(Run):
                if run.id not in self._partitions:
                    licence = RunLicence.decode(run.document)
                    self._partitions[run.id] = (licence.authority, licence.partition)
            expected = [
                (signing[authority], partition)
                for authority, partition in sorted(set(self._partitions.values()))
                if partition != UNPARTITIONED and authority in signing
            ]
        full = (UNPARTITIONED,) if self._terms.delta is None else (UNPARTITIONED, DELTA)
        return expected + [(authority, partition) for authority in signing.values() for partition in full]

    # --- CRLs

    def _publish_crls(
        self, authorities: Iterable[Authority], before: Index, changed: set[tuple[str, str]]
    ) -> tuple[dict[tuple[str, str], Published], list[Published], list[Alarm]]:
        crls, built, failures = dict(before.crls), [], []
        if self._terms.delta is None:
            crls = {key: one for key, one in crls.items() if one.partition != DELTA}
        issuers: dict[str, Issuer] = {}
        for authority, partition in self._expected(authorities):
            found = crls.get((authority.id, partition))
            if (
                found is not None
                and not self._is_due(found, before.crls, crls, changed)
                and self._on_disk(found) is not None
            ):
                continue
            try:
                issuer = issuers.setdefault(authority.id, _issuer(authority))
                crls[authority.id, partition] = self._make(issuer, authority.id, partition, before.crls, crls)
                built.append(crls[authority.id, partition])
            except errors.Refusal as refusal:
                number = 0 if found is None else found.number
                if found is not None:
                    crls[authority.id, partition] = replace(found, stale=True)
                failures.append(
                    Alarm(
                        kind="crl-failed",
                        authority=authority.id,
                        partition=partition,
                        number=number,
                        detail=str(refusal),
                    )
                )
        return crls, built, failures

    def _is_due(self, found: Published, before: CRLs, now: CRLs, changed: set[tuple[str, str]]) -> bool:
        clock, terms, authority = self._clock.now(), self._terms, found.authority
        touched = any(name == authority for name, _ in changed)
        if found.partition == DELTA and terms.delta is not None:
            full = (authority, UNPARTITIONED)
            late = found.this_update + terms.delta / 2 <= clock
            return found.stale or touched or late or now.get(full) != before.get(full)
        if found.stale or found.this_update + terms.crl_refresh <= clock:
            return True
        if found.partition == UNPARTITIONED:
            # It tells of its delta, and lacks what the delta has.
            with_delta = (authority, DELTA) in before
            return touched if terms.delta is None and not with_delta else with_delta != bool(terms.delta)
        return (authority, found.partition) in changed

    def _make(self, issuer: Issuer, authority: str, partition: str, before: CRLs, now: CRLs) -> Published:
        """Make a CRL and publish it.

        The base of a delta is the full CRL before the one that is published, as long as relying parties may
        still have that: whoever has either can use it.

        Raises:
            errors.PolicyRefused: a rule of the lint refuses it, or its number would not grow.
            errors.Unavailable: record, key store or directory does not answer.
        """
        terms, deltas = self._terms, self._terms.delta is not None
        last = before.get((authority, partition))
        if partition != DELTA or terms.delta is None:
            return self._maker.whole(
                issuer, authority, partition, terms.crl_validity, deltas=deltas, last=last
            )
        full, older = now.get((authority, UNPARTITIONED)), before.get((authority, UNPARTITIONED))
        if full is None:
            raise errors.NotFound(f"there is no full CRL of {authority} for a delta to add to")
        base = full
        if older is not None and older.number != full.number and older.next_update > self._clock.now():
            base = older
        elif last is not None and last.base is not None and older == full:
            base = replace(full, number=last.base, as_of=last.as_of)
        return self._maker.delta(issuer, authority, terms.delta, full=full, base=base, last=last)

    # --- certificates

    def _publish_certificates(self, authorities: Iterable[Authority]) -> int:
        count = 0
        for authority in authorities:
            path = certificate_path(authority.id)
            with self._publication.read(path) as octets:
                known = octets is not None and bytes(octets) == authority.der
            if not known:
                self._publication.publish(path, (authority.der,))
                count += 1
        return count

    # --- alarms

    def _alarms(self, authorities: Iterable[Authority], index: Index) -> list[Alarm]:
        now, alarms = self._clock.now(), []
        authorities = list(authorities)
        offline = self._offline(authorities, now)
        signed_here = [(authority, partition) for authority, partition in self._expected(authorities)]
        for authority, partition in [*signed_here, *((one, UNPARTITIONED) for one in offline)]:
            margin = self._terms.crl_alarm
            if partition == DELTA and self._terms.delta is not None:
                margin = self._terms.delta / 4
            if authority.custody is Custody.OFFLINE:
                margin = self._terms.offline_alarm
            known = index.crls.get((authority.id, partition))
            found = None if known is None else self._on_disk(known)
            kind, number, detail = "", 0, ""
            if found is None:
                kind, detail = "crl-missing", missing(authority, partition, known)
            elif found.next_update - margin <= now:
                kind, number = "crl-late", found.number
                detail = f"{found.path} ends at {time_text(found.next_update)} and was not replaced"
            if kind:
                alarms.append(
                    Alarm(
                        kind=kind, authority=authority.id, partition=partition, number=number, detail=detail
                    )
                )
        return alarms + self._behind(index, authorities, offline, now)

    def _on_disk(self, known: Published) -> Published | None:
        """Return what the index says of a CRL, if the file is there and is that one."""
        try:
            with self._publication.read(known.path) as octets:
                if octets is None or len(octets) != known.octets:
                    return None
                if known.sha256 not in self._hashed:
                    if hashlib.sha256(octets).hexdigest() != known.sha256:
                        return None
                    self._hashed.add(known.sha256)
                return known if crl.read_crl(octets).number == known.number else None
        except errors.Refusal:
            return None  # it cannot be read: nor can others

    def _offline(self, authorities: list[Authority], now: datetime) -> list[Authority]:
        """Return the offline authorities whose CRL somebody will look for."""
        named = {location for authority in authorities for location in _distribution_points(authority.der)}
        return [
            one
            for one in authorities
            if one.custody is Custody.OFFLINE
            and one.status is not AuthorityStatus.REVOKED
            and Certificate.from_der(one.der).not_after > now
            and (self._terms.locations.crl(one.id) in named or any(self._revocations(one.id)))
        ]

    def _behind(
        self, index: Index, authorities: list[Authority], offline: list[Authority], now: datetime
    ) -> list[Alarm]:
        """Return the CRLs that lack a revocation that has been on record for too long."""
        oldest: dict[tuple[str, str], datetime] = {}
        online = {one.id for one in authorities} - {one.id for one in offline}
        size, _ = self._head()
        if size < index.size:
            raise errors.IntegrityFailure(
                f"the log has {size} entries; what is published was made of {index.size}: the record was put"
                " back"
            )
        if size > index.size:
            shared = index.size > 0 and self._time(index.size) == index.at
            for key, at in self._store.since(Revocation, "revoked_at", index.at):
                authority, partition, _ = key.split("/")
                if (at > index.at or shared) and authority in online:
                    oldest.setdefault((authority, partition), at)
        for one in offline:
            found = index.crls.get((one.id, UNPARTITIONED))
            for revocation in self._revocations(one.id):
                if found is not None and revocation.revoked_at >= found.this_update + timedelta(seconds=1):
                    oldest.setdefault((one.id, UNPARTITIONED), revocation.revoked_at)
        alarms = []
        for (authority, partition), at in oldest.items():
            if at + self._terms.behind <= now:
                listed = UNPARTITIONED if partition in {CLIENTS, AUTHORITIES} else partition
                if listed == UNPARTITIONED and (authority, DELTA) in index.crls:
                    listed = DELTA
                found = index.crls.get((authority, listed))
                alarms.append(
                    Alarm(
                        kind="crl-behind",
                        authority=authority,
                        partition=listed,
                        number=0 if found is None else found.number,
                        detail=f"{crl_path(authority, listed)} lacks what was revoked at {time_text(at)}",
                    )
                )
        return alarms

    def _record(self, built: Sequence[Published], size: int) -> range:
        """Put on record what was published, and return the indices of the entries.

        What cannot be recorded is published all the same, and told.
        """
        if not built:
            return range(0)
        try:
            return carry(self._store, record_published(built, size))
        except errors.Refusal as unrecorded:
            log.error("what was published could not be put on record: %s", unrecorded)  # noqa: TRY400  # told, not traced
            return range(0)

    def _tell(self, alarms: Iterable[Alarm], *, record: bool = True) -> None:
        for alarm in alarms:
            said = {"authority": alarm.authority, "partition": alarm.partition, "number": alarm.number}
            log.error("%s: %s", alarm.kind, alarm.detail, extra=said)
            if not record:
                continue
            try:
                carry(self._store, record_alarm(alarm))
            except errors.Refusal as unrecorded:
                log.error("the alarm could not be put on record: %s", unrecorded)  # noqa: TRY400  # told, not traced


def _issuer(authority: Authority) -> Issuer:
    return Issuer.from_certificate(KeyLabel(authority.key_label), authority.der)


def _distribution_points(certificate: bytes) -> Iterator[str]:
    """Return where a certificate says that its CRL is."""
    extensions = x509.load_der_x509_certificate(certificate).extensions
    try:
        points = extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except x509.ExtensionNotFound:
        return
    for point in points:
        for name in point.full_name or ():
            if isinstance(name, x509.UniformResourceIdentifier):
                yield name.value
