"""Hold secure elements and TPMs on record against what the log says of them; a part of ``check``.

That each device was released with the element its run asks for is held against the licences while the log is
read (``element_testimony``).  Here each row must be what the last entry says, field by field; and what an
attestation key certified is verified again, with the keys of the certificates that were issued upon it.
"""

from hashlib import sha256

from birthmark import errors
from birthmark.element.tpm import Attest, Public, Signature, check_certified
from birthmark.floor.attestations import Attestation
from birthmark.floor.devices import Attempt, DeviceCertificate
from birthmark.floor.elements import ElementJournal, ElementUse
from birthmark.ledger.entry import time_text
from birthmark.pki.certificates import Certificate
from birthmark.ports import Store
from birthmark.services.attestations import keys_in
from birthmark.services.check_report import PROGRESS_EVERY, Progress, Report, get, scan
from birthmark.services.element_testimony import AttestationSaid, ElementsSaid

__all__ = ["check_elements"]


def check_elements(report: Report, store: Store, said: ElementsSaid, told: Progress) -> None:
    """Check that the journals, uses and attestations on record are those of the log."""
    for number, row in enumerate(scan(report, store, ElementJournal), 1):
        report.counts[f"elements {row.phase}"] += 1
        _check_journal(report, row, said)
        if number % PROGRESS_EVERY == 0:
            told("elements", number)
    for device in said.journals:
        report.find(f"the log speaks of the element of {device}; it has no journal")
    for use in scan(report, store, ElementUse):
        owner = said.uses.pop(use.id, None)
        if owner != use.device:
            report.find(f"element {use.id} is kept as {use.device}'s, the log says {owner}'s")
    for element, owner in said.uses.items():
        report.find(f"element {element} is not kept as {owner}'s: it is gone")
    for number, attestation in enumerate(scan(report, store, Attestation), 1):
        report.counts["attestations"] = number
        _check_attestation(report, store, attestation, said.attestations.pop(attestation.id, None))
        if number % PROGRESS_EVERY == 0:
            told("attestations", number)
    for name, gone in said.attestations.items():
        report.find(f"the log says attestation {name} of {gone.device} was begun; it is gone")


def _check_journal(report: Report, row: ElementJournal, said: ElementsSaid) -> None:
    was = said.journals.pop(row.device, None)
    if was is None:
        report.find(f"the journal of {row.device}'s element has no entry in the log")
        return
    stored = row.said()
    report.compare(f"the element of {row.device}", **{name: (stored[name], was[name]) for name in was})


def _check_attestation(report: Report, store: Store, row: Attestation, was: AttestationSaid | None) -> None:
    what = f"attestation {row.id} of {row.device}"
    if was is None:
        report.find(f"{what} has no entry in the log")
        return
    try:
        names = {
            name: Public.decode(key).name.hex() for name, key in (("iak", row.iak), ("idevid", row.idevid))
        }
    except errors.MalformedRequest as refusal:
        report.find(f"{what}: its keys cannot be read: {refusal}")
        return
    certified = None if row.certify_info is None else sha256(row.certify_info).hexdigest()
    report.compare(
        what,
        device=(row.device, was.device),
        run=(row.run, was.run),
        client=(row.client, was.client),
        ek_certificate=(sha256(row.ek_certificate).hexdigest(), was.tpm["ek_certificate_sha256"]),
        ek=(row.ek_spki_sha256, was.tpm["ek_spki_sha256"]),
        iak=(names["iak"], was.tpm["iak_name"]),
        idevid=(names["idevid"], was.tpm["idevid_name"]),
        nonce=(row.nonce.hex(), was.nonce),
        secret=(row.secret_sha256, was.secret_sha256),
        end=(time_text(row.expires_at), was.expires_at),
        certification=(certified, was.certify_sha256),
    )
    if row.certify_info is not None:
        _verify(report, store, what, row, row.certify_info)


def _verify(report: Report, store: Store, what: str, row: Attestation, certify_info: bytes) -> None:
    """Verify an attestation that was used, as it was when its certificates were issued."""
    attempt = get(store, Attempt, row.id)
    if attempt is None:
        report.find(f"{what} was used by no attempt")
        return
    certificates = [get(store, DeviceCertificate, serial) for serial in attempt.certificates]
    try:
        check_certified(
            iak=Public.decode(row.iak),
            certified=Public.decode(row.idevid),
            attest=Attest.decode(certify_info),
            signature=Signature.decode(row.certify_signature or b""),
            nonce=row.nonce,
        )
        keys = [
            None if one is None else Certificate.from_der(one.der).subject_public_key_info
            for one in certificates
        ]
        attested = keys_in(row, len(keys))
    except errors.Refusal as refusal:
        report.find(f"{what} does not verify: {refusal}")
        return
    if tuple(keys) != attested:
        report.find(f"{what}: the certificates of its attempt are for other keys, or gone")
