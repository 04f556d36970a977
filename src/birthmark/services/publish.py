"""Publish what relying parties need: CRLs, authorities' certificates, the log (SPEC F2, F4).

One ``cycle`` looks at what has changed since the last one and makes anew only what changed or is due, so that
one more revocation in a batch costs the batch's own CRL, and the full one, but no other.  What the last cycle
saw stands in ``index.json``, which is published itself: there is no other state.

A CRL is never in memory: its entries go from the record into a draft, are linted there and signed, and the
signed list replaces the published one wholly.  Its number is its thisUpdate; a clock that has gone back makes
no smaller number but an alarm.  Every CRL that will soon end, is missing or lacks a revocation on record is
an alarm, raised long before nextUpdate: told to the operators' log and, once for each CRL, to the audit log.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509

from birthmark import errors
from birthmark.floor.answers import Answer
from birthmark.floor.authorities import Authority, AuthorityStatus, Custody
from birthmark.floor.locations import INDEX_PATH, Locations, certificate_path, crl_path
from birthmark.floor.realm import Realm
from birthmark.floor.revocations import AUTHORITIES, CLIENTS, UNPARTITIONED, Revocation, revocation_key
from birthmark.floor.runs import Run, RunLicence
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.ledger.entry import decode, parse_time, time_text
from birthmark.pki import crl
from birthmark.pki.certificates import Certificate
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyLabel
from birthmark.ports import Act, Clock, Decision, Facts, KeyStore, Log, Publication, Store, UseCase, carry
from birthmark.services.acts import outcomes, refuse
from birthmark.services.publication_index import EPOCH, Index, Published
from birthmark.services.published_log import publish_log

__all__ = ["Alarm", "PublicationTerms", "Publish", "Report"]

log = logging.getLogger(__name__)

PUBLICATION = "realm:publication"
"""The actor of what the publisher does by itself."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something that people must see to before relying parties notice."""

    kind: str
    """``crl-late``, ``crl-missing``, ``crl-failed`` or ``crl-behind``."""
    authority: str
    partition: str
    number: int
    """Of the CRL that is published; 0 if none is."""
    detail: str


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
        self._partitions: dict[str, tuple[str, str]] = {}
        """Authority and partition of each run seen; a licence never changes."""

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
            authorities = list(self._store.scan(Authority))
            certificates = self._publish_certificates(authorities)
            changed = self._changed(before, size)
            crls, built, failures = self._publish_crls(authorities, before, changed)
            log_size = publish_log(
                self._store.checkpoint() if size else "",
                self._log,
                self._publication,
                VerifierKey.parse(self._realm.vkey),
                before.log_size,
                entries=self._terms.log_entries,
            )
            after = Index(size=size, at=at, log_size=log_size, crls=crls)
            if after != before:
                self._publication.publish(INDEX_PATH, (after.encode(self._realm, self._clock.now()),))
        alarms = [*failures, *self._alarms(authorities, after)]
        self._tell(alarms)
        return Report(built=tuple(built), certificates=certificates, log_size=log_size, alarms=tuple(alarms))

    def make(self, authority: str, partition: str) -> Published:
        """Make one CRL now, whether it is due or not, and publish it.

        Raises:
            errors.NotFound: there is no such authority.
            errors.PolicyRefused: a rule of the lint refuses it, or its number would not grow.
            errors.Unavailable: record, key store or directory does not answer.
        """
        with self._publication.lock():
            found = self._store.look({Authority: (authority,)}).get(Authority, authority)
            if found is None:
                raise errors.NotFound(f"there is no authority {authority[:100]}")
            before = self._index()
            made = self._build(_issuer(found), authority, partition)
            crls = before.crls | {(authority, partition): made}
            document = replace(before, crls=crls).encode(self._realm, self._clock.now())
            self._publication.publish(INDEX_PATH, (document,))
        return made

    def check(self) -> Report:
        """Look at what is published, change nothing there, and tell every alarm.

        Raises:
            errors.Unavailable: the record or the directory does not answer.
            errors.IntegrityFailure: the record is older than what is published.
        """
        index = self._index()
        alarms = self._alarms(list(self._store.scan(Authority)), index)
        self._tell(alarms)
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
            before, now = self._index(), self._clock.now()
            authority, summary = self._signer_of(octets)
            if summary.scope != crl.CRLScope():
                raise errors.PolicyRefused("crl-full", "it is a delta or does not cover everything")
            if not summary.this_update - _AHEAD <= now < summary.next_update:
                raise errors.PolicyRefused(
                    "crl-current",
                    f"it is for {time_text(summary.this_update)} to {time_text(summary.next_update)}",
                )
            self._require_growth(crl_path(authority.id), summary.number)
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
            published = _published(authority.id, UNPARTITIONED, summary, octets)
            crls = before.crls | {(authority.id, UNPARTITIONED): published}
            self._publication.publish(INDEX_PATH, (replace(before, crls=crls).encode(self._realm, now),))
        return published

    def _signer_of(self, octets: bytes) -> tuple[Authority, crl.CRLSummary]:
        named = crl.read_crl(octets).issuer
        for authority in self._store.scan(Authority):
            if authority.custody is Custody.OFFLINE:
                issuer = _issuer(authority)
                if issuer.subject == named:
                    return authority, crl.verify_crl(octets, issuer)
        raise errors.IntegrityFailure("no offline authority of this realm issues this CRL")

    # --- what is there, and what changed

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
        """Return the CRLs that we sign, partitions first: they are what most relying parties wait for."""
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
        return expected + [(authority, UNPARTITIONED) for authority in signing.values()]

    # --- CRLs

    def _publish_crls(
        self, authorities: Iterable[Authority], before: Index, changed: set[tuple[str, str]]
    ) -> tuple[dict[tuple[str, str], Published], list[Published], list[Alarm]]:
        crls, built, failures = dict(before.crls), [], []
        issuers: dict[str, Issuer] = {}
        for authority, partition in self._expected(authorities):
            found = crls.get((authority.id, partition))
            if found is not None and not self._is_due(found, changed):
                continue
            try:
                issuer = issuers.setdefault(authority.id, _issuer(authority))
                crls[authority.id, partition] = self._build(issuer, authority.id, partition)
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

    def _is_due(self, found: Published, changed: set[tuple[str, str]]) -> bool:
        if found.stale or found.this_update + self._terms.crl_refresh <= self._clock.now():
            return True
        if found.partition == UNPARTITIONED:
            return any(authority == found.authority for authority, _ in changed)
        return (found.authority, found.partition) in changed

    def _build(self, issuer: Issuer, authority: str, partition: str) -> Published:
        """Make one CRL and publish it; see the module's text.

        Raises:
            errors.PolicyRefused: a rule of the lint refuses it, or its number would not grow.
            errors.Unavailable: record, key store or directory does not answer.
        """
        path = crl_path(authority, partition)
        this_update = self._clock.now()  # before the snapshot, so that nothing in it is younger
        full = partition == UNPARTITIONED
        scope = crl.CRLScope()
        if not full:
            point = self._terms.locations.crl(authority, partition)
            scope = crl.CRLScope(covers=crl.Covers.USERS, distribution_point=point)
        terms = crl.CRLTerms(
            issuer=issuer,
            scope=scope,
            number=crl.crl_number(this_update),
            this_update=this_update,
            next_update=this_update + self._terms.crl_validity,
        )
        self._require_growth(path, terms.number)
        prefix = f"{authority}/" if full else revocation_key(authority, partition, "")
        with self._publication.draft() as entries, self._publication.draft() as draft:
            size = 0
            with self._store.octets(Revocation, "entry", prefix=prefix) as found:
                for piece in found.pieces():
                    entries.write(piece)
                    size += len(piece)
            around = crl.frame(terms, size)
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

    def _require_growth(self, path: str, number: int) -> None:
        """Refuse a number that is not above the published one: relying parties keep the highest they saw."""
        with self._publication.read(path) as octets:
            published = -1 if octets is None else crl.read_crl(octets).number
        if number <= published:
            raise errors.PolicyRefused(
                "crl-number-grows",
                f"{path} is published with number {published}, the new one would have {number}: the clock"
                " has gone back, or the list is an old one",
            )

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
            if authority.custody is Custody.OFFLINE:
                margin = self._terms.offline_alarm
            found = self._on_disk(index, authority.id, partition)
            kind, number, detail = "", 0, ""
            if found is None:
                kind, detail = "crl-missing", f"{crl_path(authority.id, partition)} is not published"
            elif found.next_update - margin <= now:
                kind, number = "crl-late", found.number
                detail = f"{found.path} ends at {time_text(found.next_update)} and was not replaced"
            if kind:
                alarms.append(
                    Alarm(
                        kind=kind, authority=authority.id, partition=partition, number=number, detail=detail
                    )
                )
        return alarms + self._behind(index, offline, now)

    def _on_disk(self, index: Index, authority: str, partition: str) -> Published | None:
        """Return what the index says of a CRL, if the file is there and is that one."""
        found = index.crls.get((authority, partition))
        try:
            with self._publication.read(crl_path(authority, partition)) as octets:
                if found is None or octets is None or len(octets) != found.octets:
                    return None
                return found if crl.read_crl(octets).number == found.number else None
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

    def _behind(self, index: Index, offline: list[Authority], now: datetime) -> list[Alarm]:
        """Return the CRLs that lack a revocation that has been on record for too long."""
        oldest: dict[tuple[str, str], datetime] = {}
        here = {one.id for one in offline}
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
                if (at > index.at or shared) and authority not in here:
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

    def _tell(self, alarms: Iterable[Alarm]) -> None:
        for alarm in alarms:
            said = {"authority": alarm.authority, "partition": alarm.partition, "number": alarm.number}
            log.error("%s: %s", alarm.kind, alarm.detail, extra=said)
            try:
                carry(self._store, record_alarm(alarm))
            except errors.Refusal as unrecorded:
                log.error("the alarm could not be put on record: %s", unrecorded)  # noqa: TRY400  # told, not traced


def record_alarm(alarm: Alarm) -> UseCase[bool]:
    """Put an alarm into the audit log, once for each CRL; return whether it was the first time."""
    key = f"{PUBLICATION}/{alarm.kind}/{alarm.authority}/{alarm.partition}/{alarm.number}"
    entry = {
        "authority": alarm.authority,
        "partition": alarm.partition,
        "crl_number": str(alarm.number),
        "detail": alarm.detail,
    }

    def decide(facts: Facts, at: datetime) -> Decision[bool]:
        if facts.get(Answer, key) is not None:
            return Decision(answer=False)
        facts.put(
            Answer(
                id=key,
                request_sha256=hashlib.sha256(key.encode()).hexdigest(),
                attempt=None,
                refusal=None,
                detail=None,
                at=at,
            )
        )
        return Decision(True, [(alarm.kind, entry)])

    committed = yield [
        Act(
            actor=PUBLICATION,
            decide=decide,
            refuse=refuse(None, alarm.kind, entry),
            reads={Answer: (key,)},
        )
    ]
    first: bool = outcomes(committed)[0]
    return first


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


def _issuer(authority: Authority) -> Issuer:
    return Issuer.from_certificate(KeyLabel(authority.key_label), authority.der)


def _published(authority: str, partition: str, summary: crl.CRLSummary, octets: bytes) -> Published:
    return Published(
        authority=authority,
        partition=partition,
        number=summary.number,
        this_update=summary.this_update,
        next_update=summary.next_update,
        octets=len(octets),
        sha256=hashlib.sha256(octets).hexdigest(),
    )


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
