"""Hold everything that is stored against everything else that is stored.

Nothing here trusts a counter, a column or a cache: the tree and its tiles are computed again from the
entries, every signature is verified again, and each fact must have its entry and each entry its fact, field
by field.  What does not agree is a *finding*; what an auditor should ask about (a gap in a station's request
numbers) is a *note*.

No entry speaks of these, so a change to them alone is not found: the challenge of an attempt before its
release, the answers kept under idempotency keys, an authority's key label, the lines of a list of hardware
ids that no run names and no finished import left, a client's last request number when it is too high, and
the hashes of the log's edge beside its head (what is signed over changed ones contradicts the log).  Somebody
who also holds the log's key can write another history: what contradicts that are the checkpoints of others.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from itertools import count
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from birthmark import errors
from birthmark.floor.authorities import Authority
from birthmark.floor.ceremonies import CeremonyRecord
from birthmark.floor.clients import Client, ClientStatus, Credential
from birthmark.floor.devices import Attempt, Device, DeviceCertificate, DeviceState, IdentityRecord, KeyUse
from birthmark.floor.key_assets import KeyAsset
from birthmark.floor.realm import Realm
from birthmark.floor.recalls import Recall
from birthmark.floor.revocations import Revocation
from birthmark.floor.runs import AllowedDevice, AllowList, Run, allow_list_of
from birthmark.floor.shipments import Shipped
from birthmark.ledger.checkpoint import VerifierKey, open_note
from birthmark.ledger.entry import decode, time_text
from birthmark.ledger.merkle import Frontier, complete_root, leaf_hash, node_hash
from birthmark.pki import profiles
from birthmark.pki.certificates import Certificate, fingerprint
from birthmark.pki.possession import proof_message, verify_proof
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Log, LogEntry, Store
from birthmark.services.ceremony_steps import Loader
from birthmark.services.check_ceremonies import check_ceremonies, check_made_keys
from birthmark.services.check_recalls import (
    EARLIER,
    Recalled,
    check_recalls,
    check_shipments,
    crl_entry_of,
)
from birthmark.services.revocations import line_of
from birthmark.services.runs import licence_of, signers
from birthmark.services.testimony import RunSaid, Said

__all__ = ["Progress", "Report", "check"]

V = TypeVar("V")
Progress = Callable[[str, int], None]
"""Told the stage and how many items of it are done."""
FINDINGS_SHOWN = 1000
_BLOCK = 7
"""Leaf hashes are compared 2**7 at a time: one read for a block, and half of one tile."""
_TILE = 8
"""A tile covers 2**8 nodes (C2SP tlog-tiles)."""
PROGRESS_EVERY = 1000
_UNREADABLE = (ValueError, TypeError, OverflowError)
"""What a row that is none of ours comes to when it is read: a status there is not, a year 99999."""


@dataclass(slots=True)
class Report:
    """What the check saw."""

    findings: list[str] = field(default_factory=list)
    """What contradicts itself."""
    notes: list[str] = field(default_factory=list)
    """What somebody should ask about."""
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        """True if nothing contradicts itself."""
        return not self.findings

    def find(self, finding: str) -> None:
        """Add a finding; beyond a thousand they are only counted."""
        self.counts["findings"] += 1
        if len(self.findings) < FINDINGS_SHOWN:
            self.findings.append(finding)

    def compare(self, what: str, **values: tuple[object, object]) -> None:
        """Find each value, by its name, that is stored otherwise than the log says: (stored, said)."""
        for name, (stored, said) in values.items():
            if stored != said:
                self.find(f"{what}: its {name} is {str(stored)[:100]}, the log says {str(said)[:100]}")


def check(
    store: Store,
    log: Log,
    realm: Realm,
    *,
    progress: Progress | None = None,
    received_checkpoints: Iterable[str] = (),
    load: Loader = profiles.load,
) -> Report:
    """Check every invariant of a realm that is not being written to while it is read.

    Args:
        store: the record.
        log: its log.
        realm: whose both are.
        progress: told how far it is.
        received_checkpoints: notes that clients, witnesses or printed reports hold; each must be a prefix of
            the log.
        load: finds profiles, to judge ceremonies again.
    """
    report, told = Report(), progress or (lambda _stage, _done: None)
    said = _check_log(report, log, realm, received_checkpoints, told)
    _check_hierarchy(report, store, said)
    check_ceremonies(report.find, _scan(report, store, CeremonyRecord), said.ceremonies, load)
    check_made_keys(report.find, _scan(report, store, KeyAsset), said.made_keys)
    certificates = _check_certificates(report, store, said, told)
    _check_devices(report, store, said, certificates, told)
    _check_records(report, store, said, told)
    _check_runs(report, store, realm, said)
    check_recalls(
        report.find, realm, _scan(report, store, Recall), partial(_get, store, Credential), said.recalls
    )
    check_shipments(report.find, _scan(report, store, Shipped), said.shipped)
    return report


def _scan(report: Report, store: Store, kind: type[V]) -> Iterator[V]:
    """Iterate over all values of a kind, as far as they can be read."""
    values = store.scan(kind)
    while True:
        try:
            value = next(values)
        except StopIteration:
            return
        except _UNREADABLE as cause:
            report.find(f"a stored {kind.__name__} cannot be read, nor what comes after it: {cause}")
            return
        yield value


def _get(store: Store, kind: type[V], key: str) -> V | None:
    """Return a value; None for one that cannot be read, which ``_scan`` has told."""
    try:
        return store.look({kind: (key,)}).get(kind, key)
    except _UNREADABLE:
        return None


def _time(at: datetime | None) -> str | None:
    return None if at is None else time_text(at)


# --- the log
# ---------------------------------------------------------------------------------------------------------


def _check_log(report: Report, log: Log, realm: Realm, received: Iterable[str], told: Progress) -> Said:
    """Compute the tree again; every checkpoint ever signed or received must be one of its prefixes."""
    said, (expected, covered) = Said(), _checkpoint_roots(report, log, realm, received)
    tree, nodes, last = Frontier(), _Nodes(report, log), ""
    for item in log.entries():
        if item.index != tree.size:
            report.find(f"the log has no entry {tree.size}")
            break
        digest = leaf_hash(item.entry)
        tree.append(digest)
        nodes.append(item.index, digest)
        roots = expected.pop(tree.size, None)
        if roots is not None and roots != {tree.root()}:
            report.find(f"a checkpoint of size {tree.size} contradicts the log")
        last = _check_entry(report, said, realm, item, last)
        if tree.size % PROGRESS_EVERY == 0:
            told("log", tree.size)
    nodes.finish(tree.size)
    for size in sorted(expected):
        report.find(f"a checkpoint speaks of {size} entries, the log has {tree.size}")
    if covered < tree.size:
        report.find(f"no checkpoint that is stored covers the entries from {covered} to {tree.size - 1}")
    if log.size() != tree.size:
        report.find(f"the log's head speaks of {log.size()} entries, the log has {tree.size}")
    report.counts["entries"] = tree.size
    for actor, numbers in said.numbers.items():
        missing = max(numbers) - len(numbers)
        if missing:
            first = next(number for number in count(1) if number not in numbers)
            report.notes.append(
                f"{actor}: {missing} request numbers are not in the log, the first is {first}"
            )
    return said


class _Nodes:
    """Holds what the log keeps for its proofs, leaf hashes and roots of tiles, against what entries make."""

    def __init__(self, report: Report, log: Log) -> None:
        self._report = report
        self._log = log
        self._leaves: list[bytes] = []
        self._halves: list[bytes] = []
        self._tiles: list[list[bytes]] = []
        """Roots of full tiles by level, as long as the tile above them is not full."""

    def append(self, index: int, digest: bytes) -> None:
        """Take the next leaf, and compare what it completes."""
        self._leaves.append(digest)
        if len(self._leaves) < 1 << _BLOCK:
            return
        self._halves.append(complete_root(self._leaves))
        self._leaves.clear()
        self._compare(_BLOCK, index >> _BLOCK, self._halves[-1])
        if len(self._halves) < 2:
            return
        root, level = node_hash(*self._halves), 0
        self._halves.clear()
        while True:
            height = _TILE * (level + 1)
            self._compare(height, index >> height, root)
            if level == len(self._tiles):
                self._tiles.append([])
            self._tiles[level].append(root)
            if len(self._tiles[level]) < 1 << _TILE:
                return
            root = complete_root(self._tiles[level])
            self._tiles[level].clear()
            level += 1

    def finish(self, size: int) -> None:
        """Compare the leaves that complete nothing yet; the log has ``size`` of them."""
        for index, digest in enumerate(self._leaves, size - len(self._leaves)):
            self._compare(0, index, digest)

    def _compare(self, level: int, index: int, digest: bytes) -> None:
        try:
            stored = self._log.node(level, index)
        except errors.IntegrityFailure as cause:
            self._report.find(str(cause))
            return
        if stored != digest:
            first, last = index << level, ((index + 1) << level) - 1
            which = f"entry {first}" if first == last else f"entries {first} to {last}"
            what = "hash" if level < _TILE else "tile"
            self._report.find(f"the stored {what} of {which} is another")


def _checkpoint_roots(
    report: Report, log: Log, realm: Realm, received: Iterable[str]
) -> tuple[dict[int, set[bytes]], int]:
    """Return the roots that checkpoints claim, by tree size, and the size of the largest one stored."""
    key = VerifierKey.parse(realm.vkey)
    roots: dict[int, set[bytes]] = defaultdict(set)
    covered = 0
    for source, notes in (("stored", log.checkpoints()), ("received", ((None, note) for note in received))):
        for size, note in notes:
            try:
                checkpoint = open_note(note, key)
            except errors.Refusal as refusal:
                report.find(f"a {source} checkpoint does not verify: {refusal}")
                continue
            roots[checkpoint.size].add(checkpoint.root)
            report.counts[f"checkpoints {source}"] += 1
            if size is not None:
                covered = max(covered, checkpoint.size)
                if size != checkpoint.size:
                    report.find(f"the stored checkpoint of size {size} speaks of {checkpoint.size} entries")
    return roots, covered


def _check_entry(report: Report, said: Said, realm: Realm, item: LogEntry, last: str) -> str:
    """Check one entry by itself, remember what it says, and return its time."""
    try:
        entry = decode(item.entry)
    except errors.Refusal as refusal:
        report.find(f"entry {item.index} is not one of ours: {refusal}")
        return last
    at = str(entry["at"])
    if (entry["realm"], entry["environment"]) != (realm.name, realm.environment):
        report.find(f"entry {item.index} belongs to {entry['realm']} ({entry['environment']})")
    if at < last:
        report.find(f"entry {item.index} is dated before the one before it")
    report.counts[f"entries {entry['kind']}"] += 1
    try:
        said.take(item.index, entry)
    except errors.MalformedRequest as refusal:
        report.find(f"entry {item.index} is no {entry['kind']}: {refusal}")
    return at


# --- authorities, clients, certificates
# ------------------------------------------------------------------------------


def _check_hierarchy(report: Report, store: Store, said: Said) -> None:
    authorities = {authority.id: authority for authority in _scan(report, store, Authority)}
    for authority in authorities.values():
        report.counts["authorities"] += 1
        _check_authority(report, authority, said)
        issuer = authorities.get(authority.issuer)
        if issuer is None or not _issued_by(authority.der, issuer.der):
            report.find(f"the certificate of authority {authority.id} is not signed by {authority.issuer}")
    for name in said.authorities:
        report.find(f"the log says authority {name} was established; it is gone")
    clients = {client.id: client for client in _scan(report, store, Client)}
    for credential in _scan(report, store, Credential):
        report.counts["credentials"] += 1
        _check_credential(report, credential, said)
        if credential.client not in clients:
            report.find(
                f"credential {credential.serial} belongs to {credential.client}, which does not exist"
            )
        issuer = authorities.get(credential.authority)
        if issuer is None or not _issued_by(credential.der, issuer.der):
            report.find(f"credential {credential.serial} is not signed by {credential.authority}")
    for serial in said.credentials:
        report.find(f"the log says credential {serial} was issued; it is gone")
    _check_clients(report, clients.values(), said)


def _check_authority(report: Report, authority: Authority, said: Said) -> None:
    established = said.authorities.pop(authority.id, None)
    if established is None or established.sha256 != fingerprint(authority.der):
        report.find(f"authority {authority.id} is not the one the log says was established")
    if established is not None:
        report.compare(
            f"authority {authority.id}",
            kind=(authority.kind, established.kind),
            issuer=(authority.issuer, established.issuer),
            owner=(authority.owner, established.owner),
            scope=(authority.scope, established.scope),
            custody=(authority.custody, established.custody),
            profile=(authority.profile, established.profile),
            profiles=(authority.profiles, established.profiles),
            constraints=(authority.constraints, established.constraints),
            ceremony=(authority.ceremony, established.ceremony),
            quota=(authority.quota, established.quota),
            end=(time_text(authority.ends_at), established.ends_at),
            status=(authority.status, said.authority_status.get(authority.id)),
            successor=(authority.successor, said.successors.get(authority.id)),
        )


def _check_credential(report: Report, credential: Credential, said: Said) -> None:
    issued = said.credentials.pop(credential.serial, None)
    if issued is None or issued.sha256 != fingerprint(credential.der):
        report.find(f"credential {credential.serial} of {credential.client} has no entry in the log")
        return
    if issued.client != credential.client:
        report.find(
            f"credential {credential.serial} belongs to {credential.client}, the log says it is"
            f" {issued.client}'s"
        )
    report.compare(
        f"credential {credential.serial} of {issued.client}",
        authority=(credential.authority, issued.authority),
        profile=(credential.profile, issued.client.partition(":")[0]),
        end=(credential.not_after, Certificate.from_der(credential.der).not_after),
        status=(credential.status, ClientStatus.ACTIVE),  # the log revokes clients, not credentials
    )


def _check_clients(report: Report, clients: Iterable[Client], said: Said) -> None:
    for client in clients:
        enrolled = said.clients.pop(client.id, None)
        if enrolled != (client.site, client.line, client.hardware_id, client.run) or (
            client.role != client.id.partition(":")[0]
        ):
            report.find(f"{client.id} is not the client that was enrolled")
        if (client.status == "revoked") != (client.id in said.revoked_clients):
            report.find(f"{client.id} is {client.status}, the log says otherwise")
        highest = max(said.numbers.get(client.id, ()), default=0)
        if client.last_seq < highest:
            report.find(f"{client.id} is at request {client.last_seq}, the log at its request {highest}")
    for name in said.clients:
        report.find(f"the log says {name} was enrolled; it is gone")


def _issued_by(certificate: bytes, issuer: bytes) -> bool:
    try:
        x509.load_der_x509_certificate(certificate).verify_directly_issued_by(
            x509.load_der_x509_certificate(issuer)
        )
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_certificates(report: Report, store: Store, said: Said, told: Progress) -> dict[str, set[str]]:
    """Check each device certificate; return the live certificates of each device that has any."""
    authorities = {authority.id: authority for authority in _scan(report, store, Authority)}
    revoked = _check_revocations(report, store, said)
    recalled = Recalled(said)
    live: dict[str, set[str]] = defaultdict(set)
    issued: Counter[str] = Counter()
    for number, certificate in enumerate(_scan(report, store, DeviceCertificate), 1):
        issued[certificate.authority] += 1
        _check_certificate(report, certificate, said)
        authority = authorities.get(certificate.authority)
        if authority is None or not _issued_by(certificate.der, authority.der):
            report.find(f"certificate {certificate.serial} is not signed by {certificate.authority}")
        reason = revoked.pop(line_of(certificate).id, None)
        for recall in recalled.missing(certificate, reason):
            report.find(f"recall {recall} is done; it left out certificate {certificate.serial}")
        if reason is None:
            live[certificate.device].add(certificate.serial)
        if number % PROGRESS_EVERY == 0:
            told("certificates", number)
    report.counts["certificates"] = issued.total()
    for serial in said.certificates:
        report.find(f"the log says certificate {serial} was issued; it is gone")
    for name, authority in authorities.items():
        if authority.issued != issued[name]:
            report.find(f"authority {name} counts {authority.issued} certificates, {issued[name]} are there")
    return live


def _check_certificate(report: Report, certificate: DeviceCertificate, said: Said) -> None:
    if certificate.sha256 != fingerprint(certificate.der):
        report.find(f"certificate {certificate.serial} is not the one its fingerprint names")
    issued = said.certificates.pop(certificate.serial, None)
    if issued is None or issued.sha256 != certificate.sha256:
        report.find(f"certificate {certificate.serial} of {certificate.device} has no entry in the log")
    if issued is not None:
        report.compare(
            f"certificate {certificate.serial}",
            device=(certificate.device, issued.device),
            attempt=(certificate.attempt, issued.attempt),
            authority=(certificate.authority, issued.authority),
            partition=(certificate.partition, issued.partition),
            run=(certificate.run, issued.run),
            client=(certificate.client, issued.client),
            time=(time_text(certificate.issued_at), issued.issued_at),
        )


def _check_revocations(report: Report, store: Store, said: Said) -> dict[str, ReasonCode]:
    """Check each line of a CRL; return the reason of each certificate that is not good now, by line."""
    revoked: dict[str, ReasonCode] = {}
    for revocation in _scan(report, store, Revocation):
        report.counts["revocations"] += 1
        serial = revocation.id.rpartition("/")[2]
        was = said.revoked.pop(serial, None)
        now = (str(revocation.reason), _time(revocation.revoked_at))
        if was is None or now != (was.reason, was.at):
            report.find(f"certificate {serial}: revoked or not, why or when, the log says otherwise")
        if was is not None and revocation.cause not in (was.cause, EARLIER):
            report.find(f"certificate {serial}: {revocation.cause} revoked it, the log says {was.cause}")
        if revocation.entry != crl_entry_of(revocation, None if was is None else was.invalidity_date):
            report.find(f"the CRL entry of certificate {serial} is not what its reason and time come to")
        if revocation.status is not None:
            revoked[revocation.id] = revocation.status
    for serial in said.revoked:
        report.find(f"certificate {serial}: the log says it was revoked; its CRL does not")
    return revoked


# --- devices, records, runs
# ------------------------------------------------------------------------------------------


def _check_devices(
    report: Report, store: Store, said: Said, live: Mapping[str, set[str]], told: Progress
) -> None:
    attempts: dict[str, Attempt] = {attempt.id: attempt for attempt in _scan(report, store, Attempt)}
    of_device: Counter[str] = Counter(attempt.device for attempt in attempts.values())
    records = {record.attempt: record for record in _scan(report, store, IdentityRecord)}
    for number, device in enumerate(_scan(report, store, Device), 1):
        report.counts[f"devices {device.state}"] += 1
        _check_device(report, device, said)
        attempt = attempts.get(device.attempt)
        if attempt is None or attempt.device != device.id:
            report.find(f"{device.id} has no attempt {device.attempt}")
            continue
        if of_device[device.id] != device.attempts:
            report.find(f"{device.id} counts {device.attempts} attempts, {of_device[device.id]} are there")
        released = device.state is DeviceState.RELEASED
        good, wanted = live.get(device.id, set()), set(attempt.certificates)
        if good - wanted:
            report.find(f"{device.id} has two live certificates")
        if released and wanted - good - said.recalled:
            report.find(f"{device.id} is released and its certificate is not live")
        if released and (attempt.state is not DeviceState.RELEASED or attempt.id not in records):
            report.find(f"{device.id} is released without proof or record")
        if device.state in (DeviceState.SCRAPPED, DeviceState.ADMITTED) and device.id in live:
            report.find(f"{device.id} is {device.state} and has a live certificate")
        if number % PROGRESS_EVERY == 0:
            told("devices", number)
    for name in said.devices:
        report.find(f"the log speaks of {name}; there is no such device")
    _check_attempts(report, attempts, records, said)


def _check_attempts(
    report: Report, attempts: Mapping[str, Attempt], records: Mapping[str, IdentityRecord], said: Said
) -> None:
    for name, record in records.items():
        attempt = attempts.get(name)
        if attempt is None or attempt.release_leaf != record.leaf or attempt.proof != record.proof:
            report.find(f"record {record.leaf} of {record.device} has no released attempt")
    for attempt in attempts.values():
        _check_attempt(report, attempt, said)
    for name, gone in said.attempts.items():
        report.find(f"the log says attempt {name} at {gone.device} was begun; it is gone")


def _check_device(report: Report, device: Device, said: Said) -> None:
    was = said.devices.pop(device.id, None)
    if was is None or was.state != device.state:
        report.find(f"{device.id} is {device.state}, the log says otherwise")
    if was is not None:
        report.compare(
            device.id,
            run=(device.run, was.run),
            attempt=(device.attempt, was.attempt),
            attempts=(device.attempts, was.attempts),
            reason=(device.reason, was.reason),
        )


def _check_attempt(report: Report, attempt: Attempt, said: Said) -> None:
    was = said.attempts.pop(attempt.id, None)
    if was is None:
        report.find(f"attempt {attempt.id} at {attempt.device} has no entry in the log")
        return
    record = was.record
    # Until it is released no entry knows a challenge: it must stay unknown to everybody else.
    challenge = attempt.challenge.hex()
    report.compare(
        f"attempt {attempt.id} at {was.device}",
        device=(attempt.device, was.device),
        number=(attempt.number, was.number),
        run=(attempt.run, was.run),
        client=(attempt.client, was.client),
        operator=(attempt.operator, was.operator),
        origin=(attempt.origin, was.origin),
        state=(attempt.state, was.state),
        certificate=(attempt.certificate, was.certificate),
        further=(attempt.further, was.further),
        time=(time_text(attempt.issued_at), was.issued_at),
        entry=(attempt.issue_leaf, was.issue_leaf),
        challenge=(challenge, record.get("challenge") if record else challenge),
        proof=(None if attempt.proof is None else attempt.proof.hex(), record.get("proof")),
        release=(attempt.release_leaf, was.release_leaf),
        release_time=(_time(attempt.released_at), record.get("released_at")),
    )


def _document(record: IdentityRecord) -> Mapping[str, object]:
    try:
        return record.document()
    except (ValueError, TypeError):
        return {}


def _further(record: IdentityRecord) -> list[tuple[str, str, bytes]]:
    """Return serial number, fingerprint and proof of each further credential; nothing of what is not one."""
    try:
        listed = json.loads(record.further)["further"] if record.further else []
        return [
            (one["certificate"], one["certificate_sha256"], bytes.fromhex(one["proof"])) for one in listed
        ]
    except (ValueError, KeyError, TypeError):
        return []  # another than the log says, which is told where the two are compared


def _check_proof(
    report: Report, store: Store, record: IdentityRecord, serial: str, digest: str, signature: bytes
) -> None:
    certificate = _get(store, DeviceCertificate, serial)
    if certificate is None or certificate.sha256 != digest:
        report.find(f"record {record.leaf} names certificate {serial}, which is another or gone")
        return
    message = proof_message(attempt=record.attempt, certificate_sha256=digest, challenge=record.challenge)
    try:
        verify_proof(Certificate.from_der(certificate.der).subject_public_key_info, signature, message)
    except errors.Refusal as refusal:
        report.find(f"the proof of {record.device} does not verify: {refusal}")


def _check_records(report: Report, store: Store, said: Said, told: Progress) -> None:
    """Each record stands in the log, and its proof verifies under its certificate's key."""
    for number, record in enumerate(_scan(report, store, IdentityRecord), 1):
        if said.released.pop(record.leaf, None) != _document(record):
            report.find(f"record {record.leaf} of {record.device} is not what the log says was released")
        first = (record.certificate, record.certificate_sha256, record.proof)
        for serial, digest, signature in (first, *_further(record)):
            _check_proof(report, store, record, serial, digest, signature)
        if number % PROGRESS_EVERY == 0:
            told("records", number)
        report.counts["records"] = number
    for leaf, record_said in said.released.items():
        report.find(f"entry {leaf} says {record_said.get('device')} was released; there is no such record")
    for use in _scan(report, store, KeyUse):
        owner = said.keys.pop(use.spki_sha256, None)
        if owner != use.device:
            report.find(f"the key of {owner} is not kept as its own, but as {use.device}'s")
    for owner in said.keys.values():
        report.find(f"the key of {owner} is not kept as its own: it is gone")


def _check_runs(report: Report, store: Store, realm: Realm, said: Said) -> None:
    states: dict[str, Counter[DeviceState]] = defaultdict(Counter)
    for device in _scan(report, store, Device):
        states[device.run][device.state] += 1
    lists = _check_lists(report, store, said)
    for run in _scan(report, store, Run):
        report.counts["runs"] += 1
        was = said.runs.pop(run.id, None)
        if was is None or replace(was, status=run.status) != _said_of(run):
            report.find(f"run {run.id} is not the one the log says was opened")
        if was is not None and was.status != run.status:
            report.find(f"run {run.id} is {run.status}, the log says otherwise")
        counted = states.pop(run.id, Counter())
        try:
            signed = [_get(store, Credential, serial) for serial in signers(run)]
            licence = licence_of(realm, run, signed[0], signed[1] if len(signed) > 1 else None)
        except errors.Refusal as refusal:
            report.find(str(refusal))
            continue
        _check_counters(report, run, counted)
        if counted.total() > licence.quantity:
            report.find(
                f"run {run.id} admitted {counted.total()} devices, its licence is for {licence.quantity}"
            )
        if licence.allow_list is not None and lists.get(licence.allow_list.sha256) != licence.allow_list:
            report.find(f"the hardware-id list of run {run.id} is not the one that was signed")
    for name in said.runs:
        report.find(f"the log says run {name} was opened; it is gone")
    for name in states:
        report.find(f"there are devices of run {name}, which does not exist")


def _said_of(run: Run) -> RunSaid:
    """Return what the log must say of a run."""
    return RunSaid(
        licence=run.document.decode(errors="replace"),
        signature=run.signature.hex(),
        signer=run.signer,
        approver=run.approver,
        approval=None if run.approval is None else run.approval.hex(),
        opening=run.opening,
        status=run.status,
    )


def _check_lists(report: Report, store: Store, said: Said) -> dict[str, AllowList]:
    """Check each list whose import was finished; return what every list comes to, by the name it has."""
    devices: dict[str, list[str]] = defaultdict(list)
    for line in _scan(report, store, AllowedDevice):
        name, _, device = line.id.partition("/")
        devices[name].append(device)
    lists = {name: allow_list_of(listed) for name, listed in devices.items()}
    for name, size in said.lists.items():
        if size and lists.get(name) != AllowList(count=size, sha256=name):
            report.find(f"the hardware-id list {name} is not the one that was imported")
    return lists


def _check_counters(report: Report, run: Run, counted: Counter[DeviceState]) -> None:
    claimed = (run.admitted, run.released, run.held, run.scrapped)
    actual = (
        counted.total(),
        counted[DeviceState.RELEASED],
        counted[DeviceState.HELD],
        counted[DeviceState.SCRAPPED],
    )
    if claimed != actual:
        report.find(f"run {run.id} counts {claimed}, {actual} are there (admitted, released, held, scrapped)")
