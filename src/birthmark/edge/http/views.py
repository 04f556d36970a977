"""What the station plane shows of the record: runs and devices, as they stand now."""

from dataclasses import asdict

from birthmark import errors
from birthmark.edge.http import models
from birthmark.floor.clients import Client
from birthmark.floor.devices import Attempt, Device, DeviceCertificate
from birthmark.floor.elements import ElementJournal
from birthmark.floor.revocations import Revocation
from birthmark.floor.runs import AllowedDevice, Run, RunLicence
from birthmark.ledger.entry import time_text
from birthmark.ports import Facts, Look, UseCase
from birthmark.services.element_status import element_status
from birthmark.services.revocations import line_of, status
from birthmark.services.runs import Runs, check_sees

__all__ = ["device_view", "run_view"]


def run_view(client: Client, run: str) -> UseCase[models.RunStatusView]:
    """Show a run and its counters.

    Raises:
        errors.NotFound: there is no such run.
        errors.NotPermitted: the client is a bootstrap credential for something else.
    """
    facts: Facts = yield Look({Run: (run,)})
    row = facts.get(Run, run)
    if row is None:
        raise errors.NotFound(f"there is no run {run}")
    licence = RunLicence.decode(row.document)
    if licence.allow_list is not None and client.hardware_id is not None:
        facts = yield Look({AllowedDevice: (AllowedDevice.key(licence.allow_list, client.hardware_id),)})
    check_sees(facts, client, licence)
    return models.RunStatusView(
        run=row.id,
        product=licence.product,
        batch=licence.batch,
        profile=licence.profile,
        status=row.status,
        quantity=row.quantity,
        admitted=row.admitted,
        released=row.released,
        held=row.held,
        scrapped=row.scrapped,
        not_before=time_text(licence.not_before),
        not_after=time_text(licence.not_after),
        hardware_id_kind=licence.hardware_id.kind,
        origins=[str(origin) for origin in licence.origins],
        further_profiles=list(licence.further_profiles),
        element=licence.element or None,
        firmware=licence.firmware or None,
        purpose=str(licence.purpose),
        looked_at=licence.approval,
    )


def device_view(runs: Runs, device: str) -> UseCase[models.DeviceStatus]:
    """Show where a device stands, with the certificates of the attempt that counts and its element.

    Raises:
        errors.NotFound: there is no such device.
    """
    facts: Facts = yield Look({Device: (device,)})
    row = facts.get(Device, device)
    if row is None:
        raise errors.NotFound(f"there is no device {device}")
    facts = yield Look({Attempt: (row.attempt,)})
    attempt = facts.get(Attempt, row.attempt)
    if attempt is None:
        raise errors.IntegrityFailure(f"device {device} has no attempt")
    facts = yield Look({Run: (attempt.run,), DeviceCertificate: attempt.certificates})
    run = facts.get(Run, attempt.run)
    if run is None:
        raise errors.IntegrityFailure(f"there is no run {attempt.run} of device {device}")
    held = []
    for serial in attempt.certificates:
        certificate = facts.get(DeviceCertificate, serial)
        if certificate is None:
            raise errors.IntegrityFailure(f"certificate {serial} of device {device} is gone")
        held.append(certificate)
    lines = [line_of(certificate) for certificate in held]
    facts = yield Look({Revocation: [line.id for line in lines], ElementJournal: (row.id,)})
    reasons = [status(facts, line) for line in lines]
    revoked = [None if reason is None else str(reason) for reason in reasons]
    licence = RunLicence.decode(run.document)
    element = element_status(runs, licence, facts.get(ElementJournal, row.id))
    return models.DeviceStatus(
        device=row.id,
        state=row.state,
        run=row.run,
        attempt=row.attempt,
        attempts=row.attempts,
        reason=row.reason,
        certificate=attempt.certificate,
        certificate_sha256=held[0].sha256,
        revoked=revoked[0],
        further=[
            models.FurtherStatus(
                profile=profile,
                certificate=certificate.serial,
                certificate_sha256=certificate.sha256,
                revoked=why,
            )
            for profile, certificate, why in zip(licence.further_profiles, held[1:], revoked[1:], strict=True)
        ],
        release_leaf=attempt.release_leaf,
        element=None if element is None else models.ElementStatus(**asdict(element)),
    )
