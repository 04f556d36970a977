"""Hold everything that is stored against everything else that is stored.

Nothing here trusts a counter, a column or a cache: the tree and its tiles are computed again from the
entries, every signature is verified again, and each fact must have its entry and each entry its fact, field
by field.  What does not agree is a *finding*; what an auditor should ask about (a gap in a station's request
numbers) is a *note*.

No entry speaks of these, so a change to them alone is not found: the challenge of an attempt before its
release, the answers kept under idempotency keys, the buckets of rates, an authority's key label, the lines of
a list of hardware ids that no run names and no finished import left, where a device in the field is and which
certificate it showed last, a client's last request number when it is too high, and the hashes of the log's
edge beside its head (what is signed over changed ones contradicts the log). Somebody who also holds the log's
key can write another history: what contradicts that are the checkpoints of others.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

from birthmark import errors
from birthmark.floor.ceremonies import CeremonyRecord
from birthmark.floor.clients import Credential
from birthmark.floor.devices import Attempt, Device, DeviceCertificate, DeviceState, IdentityRecord, KeyUse
from birthmark.floor.key_assets import KeyAsset
from birthmark.floor.proposals import Proposal
from birthmark.floor.realm import Realm
from birthmark.floor.recalls import Recall
from birthmark.floor.runs import AllowedDevice, AllowList, Run, allow_list_of
from birthmark.floor.shipments import Shipped
from birthmark.ledger.entry import time_text
from birthmark.pki import profiles
from birthmark.pki.certificates import Certificate
from birthmark.pki.possession import proof_message, verify_proof
from birthmark.ports import Log, Store
from birthmark.services.ceremony_steps import Loader
from birthmark.services.check_ceremonies import check_ceremonies
from birthmark.services.check_certificates import check_certificates, check_hierarchy
from birthmark.services.check_elements import check_elements
from birthmark.services.check_enrolments import Local, check_enrolments
from birthmark.services.check_fleet import check_fleet
from birthmark.services.check_gateway import check_gateway
from birthmark.services.check_keys import check_keys
from birthmark.services.check_log import check_log
from birthmark.services.check_proposals import check_proposals
from birthmark.services.check_recalls import check_incidents, check_recalls, check_shipments
from birthmark.services.check_report import PROGRESS_EVERY, Progress, Report, get, scan, time_or_none
from birthmark.services.check_stations import check_stations
from birthmark.services.runs import licence_of, signers
from birthmark.services.testimony import RunSaid, Said

__all__ = ["Progress", "Report", "check"]


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
    said = check_log(report, log, realm, received_checkpoints, told)
    check_hierarchy(report, store, said)
    check_ceremonies(report.find, scan(report, store, CeremonyRecord), said.ceremonies, load)
    check_keys(report, scan(report, store, KeyAsset), said.assets.by_label)
    certificates = check_certificates(report, store, said, told)
    local = Local(report, store)
    _check_devices(report, store, said, certificates, local, told)
    _check_records(report, store, said, told)
    check_elements(report, store, said.elements, told)
    check_stations(report, store, said.stations)
    check_fleet(report, store, said.fleet)
    check_gateway(report, store, said.gateway)
    check_enrolments(report, store, said.enrolments, local)
    _check_runs(report, store, realm, said, local)
    check_recalls(
        report.find, realm, scan(report, store, Recall), partial(get, store, Credential), said.recalls
    )
    check_incidents(report.find, log, said.recalls)
    check_proposals(
        report.find, realm, scan(report, store, Proposal), partial(get, store, Credential), said.proposals
    )
    check_shipments(report.find, scan(report, store, Shipped), said.shipped)
    return report


def _check_devices(
    report: Report,
    store: Store,
    said: Said,
    live: Mapping[str, set[str]],
    local: Local,
    told: Progress,
) -> None:
    attempts: dict[str, Attempt] = {attempt.id: attempt for attempt in scan(report, store, Attempt)}
    of_device: Counter[str] = Counter(
        attempt.device for attempt in attempts.values() if attempt.run not in local.runs
    )
    local.count(attempts)
    records = {record.attempt: record for record in scan(report, store, IdentityRecord)}
    for number, device in enumerate(scan(report, store, Device), 1):
        report.counts[f"devices {device.state}"] += 1
        _check_device(report, device, said)
        attempt = attempts.get(device.attempt)
        if attempt is None or attempt.device != device.id:
            report.find(f"{device.id} has no attempt {device.attempt}")
            continue
        if of_device[device.id] != device.attempts:
            report.find(f"{device.id} counts {device.attempts} attempts, {of_device[device.id]} are there")
        released = device.state is DeviceState.RELEASED
        good = live.get(device.id, set()) - local.certificates[device.id]
        wanted = set(attempt.certificates)
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
        release_time=(time_or_none(attempt.released_at), record.get("released_at")),
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
    certificate = get(store, DeviceCertificate, serial)
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
    for number, record in enumerate(scan(report, store, IdentityRecord), 1):
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
    for use in scan(report, store, KeyUse):
        owner = said.keys.pop(use.spki_sha256, None)
        if owner != use.device:
            report.find(f"the key of {owner} is not kept as its own, but as {use.device}'s")
    for owner in said.keys.values():
        report.find(f"the key of {owner} is not kept as its own: it is gone")


def _check_runs(report: Report, store: Store, realm: Realm, said: Said, local: Local) -> None:
    states: dict[str, Counter[DeviceState]] = defaultdict(Counter, local.counted)
    for device in scan(report, store, Device):
        states[device.run][device.state] += 1
    lists = _check_lists(report, store, said)
    for run in scan(report, store, Run):
        report.counts["runs"] += 1
        was = said.runs.pop(run.id, None)
        if was is None or replace(was, status=run.status) != _said_of(run):
            report.find(f"run {run.id} is not the one the log says was opened")
        if was is not None and was.status != run.status:
            report.find(f"run {run.id} is {run.status}, the log says otherwise")
        counted = states.pop(run.id, Counter())
        try:
            signed = [get(store, Credential, serial) for serial in signers(run)]
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
    for line in scan(report, store, AllowedDevice):
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
