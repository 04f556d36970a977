"""Hold everything that is stored against everything else that is stored.

Nothing here trusts a counter, a column or a cache: the tree is computed again from the entries, every
signature is verified again, and each fact must have its entry and each entry its fact.  What does not agree
is a *finding*; what an auditor should ask about (a gap in a station's request numbers) is a *note*.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from birthmark import errors
from birthmark.floor.authorities import Authority
from birthmark.floor.clients import Client, Credential
from birthmark.floor.devices import Attempt, Device, DeviceCertificate, DeviceState, IdentityRecord, KeyUse
from birthmark.floor.realm import Realm
from birthmark.floor.runs import AllowedDevice, Run, allow_list_of
from birthmark.ledger.checkpoint import VerifierKey, open_note
from birthmark.ledger.entry import decode
from birthmark.ledger.merkle import Frontier, leaf_hash, node_hash
from birthmark.pki.certificates import Certificate, fingerprint
from birthmark.pki.possession import proof_message, verify_proof
from birthmark.ports import Facts, Log, LogEntry, Look, Store, UseCase, carry
from birthmark.services.runs import Runs

__all__ = ["Progress", "Report", "check"]

Progress = Callable[[str, int], None]
"""Told the stage and how many items of it are done."""
FINDINGS_SHOWN = 1000
_BLOCK = 7
"""Hashes are compared 2**7 at a time: one read for a block."""
PROGRESS_EVERY = 1000
_LEAVES = {
    "device-issued": DeviceState.ISSUED,
    "device-reissued": DeviceState.ISSUED,
    "device-released": DeviceState.RELEASED,
    "device-held": DeviceState.HELD,
    "device-reworked": DeviceState.ADMITTED,
    "device-scrapped": DeviceState.SCRAPPED,
}
"""The state each kind of entry leaves its device in."""


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


@dataclass(slots=True)
class _Said:
    """What the log says happened, collected while its tree is computed."""

    issued: dict[str, str] = field(default_factory=dict)
    """Certificate serial to fingerprint."""
    superseded: set[str] = field(default_factory=set)
    released: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Leaf to record."""
    state: dict[str, str] = field(default_factory=dict)
    """Device to the state its last entry left it in."""
    credentials: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Credential serial to fingerprint and client."""
    clients: dict[str, tuple[str, str, str | None, str | None]] = field(default_factory=dict)
    """Client to site, line, hardware id and run."""
    revoked_clients: set[str] = field(default_factory=set)
    authorities: dict[str, str] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    numbers: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))


def check(
    store: Store,
    log: Log,
    realm: Realm,
    *,
    progress: Progress | None = None,
    received_checkpoints: Iterable[str] = (),
) -> Report:
    """Check every invariant of a realm that is not being written to while it is read.

    Args:
        store: the record.
        log: its log.
        realm: whose both are.
        progress: told how far it is.
        received_checkpoints: notes that clients, witnesses or printed reports hold; each must be a prefix of
            the log.
    """
    report, told = Report(), progress or (lambda _stage, _done: None)
    said = _check_log(report, log, realm, received_checkpoints, told)
    _check_hierarchy(report, store, said)
    certificates = _check_certificates(report, store, said, told)
    _check_devices(report, store, said, certificates, told)
    _check_records(report, store, said, told)
    _check_runs(report, store, realm, said)
    return report


# --- the log
# ---------------------------------------------------------------------------------------------------------


def _check_log(report: Report, log: Log, realm: Realm, received: Iterable[str], told: Progress) -> _Said:
    """Compute the tree again; every checkpoint ever signed or received must be one of its prefixes."""
    said, expected = _Said(), _checkpoint_roots(report, log, realm, received)
    tree, last = Frontier(), ""
    hashes: list[bytes] = []
    for item in log.entries():
        if item.index != tree.size:
            report.find(f"the log has no entry {tree.size}")
            break
        hashes.append(leaf_hash(item.entry))
        tree.append(hashes[-1])
        if len(hashes) == 1 << _BLOCK:
            _check_node(report, log, _BLOCK, item.index >> _BLOCK, _fold(hashes))
            hashes.clear()
        roots = expected.pop(tree.size, None)
        if roots is not None and roots != {tree.root()}:
            report.find(f"a checkpoint of size {tree.size} contradicts the log")
        last = _check_entry(report, said, realm, item, last)
        if tree.size % PROGRESS_EVERY == 0:
            told("log", tree.size)
    for index, digest in enumerate(hashes, tree.size - len(hashes)):
        _check_node(report, log, 0, index, digest)
    for size in sorted(expected):
        report.find(f"a checkpoint speaks of {size} entries, the log has {tree.size}")
    report.counts["entries"] = tree.size
    for actor, numbers in said.numbers.items():
        missing = max(numbers) - len(numbers)
        if missing:
            first = next(number for number in count(1) if number not in numbers)
            report.notes.append(
                f"{actor}: {missing} request numbers are not in the log, the first is {first}"
            )
    return said


def _check_node(report: Report, log: Log, level: int, index: int, digest: bytes) -> None:
    """Hold what the log keeps for its proofs against what its entries come to."""
    if log.node(level, index) != digest:
        first, last = index << level, ((index + 1) << level) - 1
        which = f"entry {first}" if first == last else f"entries {first} to {last}"
        report.find(f"the stored hash of {which} is another")


def _fold(hashes: Sequence[bytes]) -> bytes:
    level = list(hashes)
    while len(level) > 1:
        level = [node_hash(*pair) for pair in zip(level[::2], level[1::2], strict=True)]
    return level[0]


def _checkpoint_roots(
    report: Report, log: Log, realm: Realm, received: Iterable[str]
) -> dict[int, set[bytes]]:
    """Return the roots that checkpoints claim, by tree size."""
    key = VerifierKey.parse(realm.vkey)
    roots: dict[int, set[bytes]] = defaultdict(set)
    for source, notes in (("stored", (note for _, note in log.checkpoints())), ("received", received)):
        for note in notes:
            try:
                checkpoint = open_note(note, key)
            except errors.Refusal as refusal:
                report.find(f"a {source} checkpoint does not verify: {refusal}")
                continue
            roots[checkpoint.size].add(checkpoint.root)
            report.counts[f"checkpoints {source}"] += 1
    return roots


def _check_entry(report: Report, said: _Said, realm: Realm, item: LogEntry, last: str) -> str:
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
    if "seq" in entry:
        said.numbers[str(entry["actor"])].add(int(str(entry["seq"])))
    _take_device(said, item.index, entry)
    _take_realm(said, entry)
    return at


def _take_device(said: _Said, index: int, entry: Mapping[str, Any]) -> None:
    """Remember what an entry says of a device."""
    kind = entry["kind"]
    if kind in _LEAVES:
        said.state[entry["device"]] = _LEAVES[kind]
    if kind in ("device-issued", "device-reissued"):
        said.issued[entry["certificate"]] = entry["certificate_sha256"]
    elif kind == "device-released":
        said.released[index] = entry["record"]
    if kind == "device-reissued":
        said.superseded.add(entry["superseded"])
    elif kind in ("device-reworked", "device-scrapped") and "revoked" in entry:
        said.superseded.add(entry["revoked"])


def _take_realm(said: _Said, entry: Mapping[str, Any]) -> None:
    """Remember what an entry says of the realm's own parts."""
    kind = entry["kind"]
    if kind in ("client-enrolled", "client-renewed"):
        said.credentials[entry["certificate"]] = (entry["certificate_sha256"], entry["client"])
        if kind == "client-enrolled":
            said.clients[entry["client"]] = (entry["site"], entry["line"], entry["hardware_id"], entry["run"])
    elif kind == "client-revoked":
        said.revoked_clients.add(entry["client"])
    elif kind == "authority-established":
        said.authorities[entry["authority"]] = entry["certificate_sha256"]
    elif kind == "run-opened":
        said.runs[entry["run"]] = entry["licence"]
    elif kind == "run-closed":
        said.closed.add(entry["run"])


# --- authorities, clients, certificates
# ------------------------------------------------------------------------------


def _check_hierarchy(report: Report, store: Store, said: _Said) -> None:
    authorities = {authority.id: authority for authority in store.scan(Authority)}
    for authority in authorities.values():
        report.counts["authorities"] += 1
        if said.authorities.pop(authority.id, None) != fingerprint(authority.der):
            report.find(f"authority {authority.id} is not the one the log says was established")
        issuer = authorities.get(authority.issuer)
        if issuer is None or not _issued_by(authority.der, issuer.der):
            report.find(f"the certificate of authority {authority.id} is not signed by {authority.issuer}")
    for name in said.authorities:
        report.find(f"the log says authority {name} was established; it is gone")
    clients = {client.id: client for client in store.scan(Client)}
    for credential in store.scan(Credential):
        report.counts["credentials"] += 1
        sha256, owner = said.credentials.pop(credential.serial, ("", credential.client))
        if sha256 != fingerprint(credential.der):
            report.find(f"credential {credential.serial} of {credential.client} has no entry in the log")
        if owner != credential.client:
            report.find(
                f"credential {credential.serial} belongs to {credential.client}, the log says it is {owner}'s"
            )
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


def _check_clients(report: Report, clients: Iterable[Client], said: _Said) -> None:
    for client in clients:
        enrolled = said.clients.pop(client.id, None)
        if enrolled != (client.site, client.line, client.hardware_id, client.run) or (
            client.role != client.id.partition(":")[0]
        ):
            report.find(f"{client.id} is not the client that was enrolled")
        if (client.status == "revoked") != (client.id in said.revoked_clients):
            report.find(f"{client.id} is {client.status}, the log says otherwise")


def _issued_by(certificate: bytes, issuer: bytes) -> bool:
    try:
        x509.load_der_x509_certificate(certificate).verify_directly_issued_by(
            x509.load_der_x509_certificate(issuer)
        )
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_certificates(report: Report, store: Store, said: _Said, told: Progress) -> dict[str, str]:
    """Check each device certificate; return the live certificate of each device that has one."""
    authorities = {authority.id: authority for authority in store.scan(Authority)}
    live: dict[str, str] = {}
    issued: Counter[str] = Counter()
    for number, certificate in enumerate(store.scan(DeviceCertificate), 1):
        issued[certificate.authority] += 1
        if certificate.sha256 != fingerprint(certificate.der):
            report.find(f"certificate {certificate.serial} is not the one its fingerprint names")
        if said.issued.pop(certificate.serial, None) != certificate.sha256:
            report.find(f"certificate {certificate.serial} of {certificate.device} has no entry in the log")
        authority = authorities.get(certificate.authority)
        if authority is None or not _issued_by(certificate.der, authority.der):
            report.find(f"certificate {certificate.serial} is not signed by {certificate.authority}")
        if (certificate.revoked is not None) != (certificate.serial in said.superseded):
            report.find(f"certificate {certificate.serial}: revoked or not, the log says otherwise")
        if certificate.revoked is None:
            if certificate.device in live:
                report.find(f"{certificate.device} has two live certificates")
            live[certificate.device] = certificate.serial
        if number % PROGRESS_EVERY == 0:
            told("certificates", number)
    report.counts["certificates"] = issued.total()
    for serial in said.issued:
        report.find(f"the log says certificate {serial} was issued; it is gone")
    for name, authority in authorities.items():
        if authority.issued != issued[name]:
            report.find(f"authority {name} counts {authority.issued} certificates, {issued[name]} are there")
    return live


# --- devices, records, runs
# ------------------------------------------------------------------------------------------


def _check_devices(
    report: Report, store: Store, said: _Said, live: Mapping[str, str], told: Progress
) -> None:
    attempts: dict[str, Attempt] = {attempt.id: attempt for attempt in store.scan(Attempt)}
    of_device: Counter[str] = Counter(attempt.device for attempt in attempts.values())
    records = {record.attempt: record for record in store.scan(IdentityRecord)}
    for number, device in enumerate(store.scan(Device), 1):
        report.counts[f"devices {device.state}"] += 1
        if said.state.pop(device.id, None) != device.state:
            report.find(f"{device.id} is {device.state}, the log says otherwise")
        attempt = attempts.get(device.attempt)
        if attempt is None or attempt.device != device.id:
            report.find(f"{device.id} has no attempt {device.attempt}")
            continue
        if of_device[device.id] != device.attempts:
            report.find(f"{device.id} counts {device.attempts} attempts, {of_device[device.id]} are there")
        released = device.state is DeviceState.RELEASED
        if released and live.get(device.id) != attempt.certificate:
            report.find(f"{device.id} is released and its certificate is not live")
        if released and (attempt.state is not DeviceState.RELEASED or attempt.id not in records):
            report.find(f"{device.id} is released without proof or record")
        if device.state in (DeviceState.SCRAPPED, DeviceState.ADMITTED) and device.id in live:
            report.find(f"{device.id} is {device.state} and has a live certificate")
        if number % PROGRESS_EVERY == 0:
            told("devices", number)
    for name in said.state:
        report.find(f"the log speaks of {name}; there is no such device")
    for attempt_id, record in records.items():
        attempt = attempts.get(attempt_id)
        if attempt is None or attempt.release_leaf != record.leaf or attempt.proof != record.proof:
            report.find(f"record {record.leaf} of {record.device} has no released attempt")


def _check_records(report: Report, store: Store, said: _Said, told: Progress) -> None:
    """Each record stands in the log, and its proof verifies under its certificate's key."""
    for number, record in enumerate(store.scan(IdentityRecord), 1):
        if said.released.pop(record.leaf, None) != record.document():
            report.find(f"record {record.leaf} of {record.device} is not what the log says was released")
        facts = carry(store, _with_key(record))
        certificate, use = (
            facts.get(DeviceCertificate, record.certificate),
            facts.get(KeyUse, record.spki_sha256),
        )
        if certificate is None or certificate.sha256 != record.certificate_sha256:
            report.find(
                f"record {record.leaf} names certificate {record.certificate}, which is another or gone"
            )
            continue
        if use is None or use.device != record.device:
            report.find(f"the key of {record.device} is not kept as its own")
        message = proof_message(
            attempt=record.attempt, certificate_sha256=record.certificate_sha256, challenge=record.challenge
        )
        try:
            verify_proof(Certificate.from_der(certificate.der).subject_public_key_info, record.proof, message)
        except errors.Refusal as refusal:
            report.find(f"the proof of {record.device} does not verify: {refusal}")
        if number % PROGRESS_EVERY == 0:
            told("records", number)
        report.counts["records"] = number
    for leaf, record_said in said.released.items():
        report.find(f"entry {leaf} says {record_said.get('device')} was released; there is no such record")


def _with_key(record: IdentityRecord) -> UseCase[Facts]:
    facts: Facts = yield Look({DeviceCertificate: (record.certificate,), KeyUse: (record.spki_sha256,)})
    return facts


def _check_runs(report: Report, store: Store, realm: Realm, said: _Said) -> None:
    states: dict[str, Counter[DeviceState]] = defaultdict(Counter)
    for device in store.scan(Device):
        states[device.run][device.state] += 1
    lists: dict[str, list[str]] = defaultdict(list)
    for line in store.scan(AllowedDevice):
        name, _, device_id = line.id.partition("/")
        lists[name].append(device_id)
    runs = Runs(realm)
    for run in store.scan(Run):
        report.counts["runs"] += 1
        if said.runs.pop(run.id, None) != run.document.decode(errors="replace"):
            report.find(f"run {run.id} is not the one the log says was opened")
        if (run.status == "closed") != (run.id in said.closed):
            report.find(f"run {run.id} is {run.status}, the log says otherwise")
        try:
            licence = runs.verify(run, carry(store, _signer(run)))
        except errors.Refusal as refusal:
            report.find(str(refusal))
            continue
        counted = states.pop(run.id, Counter())
        claimed = (run.admitted, run.released, run.held, run.scrapped)
        actual = (
            counted.total(),
            counted[DeviceState.RELEASED],
            counted[DeviceState.HELD],
            counted[DeviceState.SCRAPPED],
        )
        if claimed != actual:
            report.find(
                f"run {run.id} counts {claimed}, {actual} are there (admitted, released, held, scrapped)"
            )
        if counted.total() > licence.quantity:
            report.find(
                f"run {run.id} admitted {counted.total()} devices, its licence is for {licence.quantity}"
            )
        if (
            licence.allow_list is not None
            and allow_list_of(lists[licence.allow_list.sha256]) != licence.allow_list
        ):
            report.find(f"the hardware-id list of run {run.id} is not the one that was signed")
    for name in said.runs:
        report.find(f"the log says run {name} was opened; it is gone")
    for name in states:
        report.find(f"there are devices of run {name}, which does not exist")


def _signer(run: Run) -> UseCase[Credential | None]:
    facts: Facts = yield Look({Credential: (run.signer,)})
    return facts.get(Credential, run.signer)
