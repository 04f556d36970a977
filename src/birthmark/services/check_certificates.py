"""Hold authorities, clients, certificates and their revocations against the log; a part of ``check``."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256

from birthmark.floor.authorities import Authority
from birthmark.floor.clients import Client, ClientStatus, Credential
from birthmark.floor.devices import DeviceCertificate
from birthmark.floor.revocations import Revocation
from birthmark.ledger.entry import time_text
from birthmark.pki.certificates import Certificate, fingerprint, issued_by
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Store
from birthmark.services.check_recalls import EARLIER, Recalled, crl_entry_of
from birthmark.services.check_report import PROGRESS_EVERY, Progress, Report, scan, time_or_none
from birthmark.services.recognition import is_code
from birthmark.services.revocations import line_of
from birthmark.services.testimony import ClientSaid, Said

__all__ = ["check_certificates", "check_hierarchy"]


def check_hierarchy(report: Report, store: Store, said: Said) -> None:
    """Check every authority, credential and client; each certificate is signed by who is said to have."""
    authorities = {authority.id: authority for authority in scan(report, store, Authority)}
    for authority in authorities.values():
        report.counts["authorities"] += 1
        _check_authority(report, authority, said)
        issuer = authorities.get(authority.issuer)
        if issuer is None or not issued_by(authority.der, issuer.der):
            report.find(f"the certificate of authority {authority.id} is not signed by {authority.issuer}")
    for name in said.authorities:
        report.find(f"the log says authority {name} was established; it is gone")
    clients = {client.id: client for client in scan(report, store, Client)}
    for credential in scan(report, store, Credential):
        report.counts["credentials"] += 1
        _check_credential(report, credential, said)
        if credential.client not in clients:
            report.find(
                f"credential {credential.serial} belongs to {credential.client}, which does not exist"
            )
        issuer = authorities.get(credential.authority)
        if is_code(credential):
            continue
        if issuer is None or not issued_by(credential.der, issuer.der):
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
    certified = None if is_code(credential) else Certificate.from_der(credential.der)
    ends = "" if certified is None else time_text(certified.not_after)
    key = "" if certified is None else sha256(certified.subject_public_key_info).hexdigest()
    report.compare(
        f"credential {credential.serial} of {issued.client}",
        authority=(credential.authority, issued.authority),
        profile=(credential.profile, issued.client.partition(":")[0]),
        end=(time_text(credential.not_after), issued.until or ends),
        certified_end=(ends or issued.until, issued.until or ends),
        key=(key, issued.spki_sha256 or key),
        status=(credential.status, ClientStatus.ACTIVE),  # the log revokes clients, not credentials
    )


def _check_clients(report: Report, clients: Iterable[Client], said: Said) -> None:
    for client in clients:
        enrolled = said.clients.pop(client.id, None)
        row = ClientSaid(
            role=client.role,
            site=client.site,
            line=client.line,
            hardware_id=client.hardware_id,
            run=client.run,
            runs=client.runs,
        )
        if enrolled is None or replace(enrolled, role=row.role) != row:
            report.find(f"{client.id} is not the client that was enrolled")
        elif enrolled.role != row.role:
            report.find(f"{client.id} is {row.role}, the log says {enrolled.role}")
        if (client.status == "revoked") != (client.id in said.revoked_clients):
            report.find(f"{client.id} is {client.status}, the log says otherwise")
        highest = max(said.numbers.get(client.id, ()), default=0)
        if client.last_seq < highest:
            report.find(f"{client.id} is at request {client.last_seq}, the log at its request {highest}")
    for name in said.clients:
        report.find(f"the log says {name} was enrolled; it is gone")


def check_certificates(report: Report, store: Store, said: Said, told: Progress) -> dict[str, set[str]]:
    """Check each device certificate; return the live certificates of each device that has any."""
    authorities = {authority.id: authority for authority in scan(report, store, Authority)}
    revoked = _check_revocations(report, store, said)
    recalled = Recalled(said)
    live: dict[str, set[str]] = defaultdict(set)
    issued: Counter[str] = Counter()
    for number, certificate in enumerate(scan(report, store, DeviceCertificate), 1):
        issued[certificate.authority] += 1
        _check_certificate(report, certificate, said)
        authority = authorities.get(certificate.authority)
        if authority is None or not issued_by(certificate.der, authority.der):
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
    for revocation in scan(report, store, Revocation):
        report.counts["revocations"] += 1
        serial = revocation.id.rpartition("/")[2]
        was = said.revoked.pop(serial, None)
        now = (str(revocation.reason), time_or_none(revocation.revoked_at))
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
