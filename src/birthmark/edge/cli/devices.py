"""``birthmark device``: where a device stands, its papers, and what becomes of it."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.cli import printing
from birthmark.edge.cli.inputs import device_id
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, Reason, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.floor.devices import Attempt, Device, DeviceCertificate, DeviceEvent, DeviceState
from birthmark.floor.elements import ElementJournal
from birthmark.floor.revocations import Revocation
from birthmark.floor.runs import Run, RunLicence
from birthmark.ledger.entry import decode
from birthmark.pki.certificates import to_pem
from birthmark.ports import carry
from birthmark.services.disposition import dispose
from birthmark.services.element_status import element_status
from birthmark.services.revocations import line_of, status
from birthmark.services.runs import authority_chain

__all__ = ["devices"]

devices = typer.Typer(
    name="device",
    no_args_is_help=True,
    help="Devices: where each stands, its papers, hold, rework and scrap.",
)
DeviceArgument = Annotated[str, typer.Argument(metavar="KIND:ID", help="E.g. vin:1M8GDM9AXKP042788.")]

_NOT_PRINTED = ("journal", "objects")
_HEX = ("i", "key_sets", "kvn", "refused_kvn")


def _find(application: Application, text: str) -> Device:
    device = device_id(text)
    found = application.store.look({Device: (device,)}).get(Device, device)
    if found is None:
        raise errors.NotFound(f"there is no device {device}")
    return found


def _attempts(application: Application, device: Device) -> list[Attempt]:
    """Return all attempts in order; only if there were several are all attempts looked through."""
    latest = application.store.look({Attempt: (device.attempt,)}).get(Attempt, device.attempt)
    if latest is None:
        raise errors.IntegrityFailure(f"attempt {device.attempt} of device {device.id} is gone")
    if device.attempts == 1:
        return [latest]
    found = [attempt for attempt in application.store.scan(Attempt) if attempt.device == device.id]
    return sorted(found, key=lambda attempt: attempt.number)


def _certificates(application: Application, attempt: Attempt) -> dict[str, DeviceCertificate]:
    """Return the attempt's certificates by their profiles, the run's first profile first."""
    facts = application.store.look({Run: (attempt.run,), DeviceCertificate: attempt.certificates})
    run = facts.get(Run, attempt.run)
    if run is None:
        raise errors.IntegrityFailure(f"run {attempt.run} of attempt {attempt.id} is gone")
    found = {}
    profiles = (name for name, _ in RunLicence.decode(run.document).profiles)
    for profile, serial in zip(profiles, attempt.certificates, strict=True):
        certificate = facts.get(DeviceCertificate, serial)
        if certificate is None:
            raise errors.IntegrityFailure(f"certificate {serial} of attempt {attempt.id} is gone")
        found[profile] = certificate
    return found


def _shown(application: Application, profile: str, certificate: DeviceCertificate) -> dict[str, object]:
    line = line_of(certificate)
    revoked = status(application.store.look({Revocation: (line.id,)}), line)
    return {
        "profile": profile,
        "certificate": certificate.serial,
        "certificate_sha256": certificate.sha256,
        "revoked": None if revoked is None else str(revoked),
    }


def _element(application: Application, device: Device) -> dict[str, Any] | None:
    """Return what is known of the device's secure element; None if nobody has spoken to one."""
    facts = application.store.look({Run: (device.run,), ElementJournal: (device.id,)})
    run = facts.get(Run, device.run)
    if run is None:
        raise errors.IntegrityFailure(f"run {device.run} of device {device.id} is gone")
    licence = RunLicence.decode(run.document)
    found = element_status(application.runs, licence, facts.get(ElementJournal, device.id))
    return None if found is None else asdict(found)


def _evidence(application: Application, attempt: Attempt) -> dict[str, Any]:
    """Return what the log says was proved of the element or TPM of a released device; empty for neither."""
    if attempt.release_leaf is None:
        return {}
    (item,) = application.log.entries(attempt.release_leaf, attempt.release_leaf + 1)
    record: Any = decode(item.entry).get("record")
    return {name: record[name] for name in ("key_set", "tpm") if name in record}


@devices.command("list")
def list_devices(
    context: typer.Context,
    *,
    state: Annotated[DeviceState | None, typer.Option(help="Only these.")] = None,
    run: Annotated[str | None, typer.Option(metavar="ID", help="Only those of this run.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="At most so many.")] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """List devices, in the order of their ids."""
    found: list[dict[str, object]] = []
    with session_of(context).application(settings) as application:
        for device in application.store.scan(Device):
            if (state is not None and device.state is not state) or (run is not None and device.run != run):
                continue
            found.append(
                {
                    "id": device.id,
                    "state": str(device.state),
                    "run": device.run,
                    "attempts": device.attempts,
                    "reason": device.reason,
                }
            )
            if len(found) == limit:
                break
    if as_json:
        printing.line(printing.json_text(found))
    else:
        printing.columns(("id", "state", "run", "attempts", "reason"), (list(row.values()) for row in found))


@devices.command()
def show(
    context: typer.Context,
    device: DeviceArgument,
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Show a device and every attempt at giving it its identity."""
    with session_of(context).application(settings) as application:
        found = _find(application, device)
        attempts: list[dict[str, Any]] = []
        for attempt in _attempts(application, found):
            first, *further = (
                _shown(application, profile, certificate)
                for profile, certificate in _certificates(application, attempt).items()
            )
            attempts.append(
                {
                    "number": attempt.number,
                    "attempt": attempt.id,
                    "state": str(attempt.state),
                    "origin": str(attempt.origin),
                    "client": attempt.client,
                    "operator": attempt.operator,
                    **first,
                    "issued_at": attempt.issued_at,
                    "released_at": attempt.released_at,
                    "release_leaf": attempt.release_leaf,
                    "further": further,
                    **_evidence(application, attempt),
                }
            )
        element = _element(application, found)
    shown = {
        "id": found.id,
        "state": str(found.state),
        "run": found.run,
        "attempts": found.attempts,
        "reason": found.reason,
    }
    if as_json:
        printing.line(printing.json_text({**shown, "element": element, "history": attempts}))
        return
    printing.fields(shown)
    printing.line()
    heads = ("number", "state", "origin", "client", "issued_at", "released_at", "certificate", "revoked")
    printing.columns(heads, ([row[head] for head in heads] for row in attempts))
    several = [(row["number"], one) for row in attempts for one in row["further"]]
    if several:
        printing.line()
        shown_of = ("profile", "certificate", "revoked")
        rows = ([number, *(one[head] for head in shown_of)] for number, one in several)
        printing.columns(("number", *shown_of), rows)
    _print_element(element, attempts)


def _print_element(element: Mapping[str, Any] | None, attempts: Iterable[Mapping[str, Any]]) -> None:
    """Print where a device's element stands, and what was proved of it in the attempt that released it."""
    proved = [(name, row[name]) for row in attempts for name in ("key_set", "tpm") if name in row]
    for title, values in (("element", element), *proved):
        if values is None:
            continue
        told = {name: _text(name, value) for name, value in values.items() if name not in _NOT_PRINTED}
        told |= {f"object {one['tag']}": one["sha256"] for one in values.get("objects", ())}
        printing.line()
        printing.fields({f"{title} {name}".replace("_", " "): value for name, value in told.items()})


def _text(name: str, value: object) -> object:
    """Return a value as the elements' own documents write it: numbers of key sets in hex."""
    if isinstance(value, list):
        return " ".join(str(_text(name, one)) for one in value)
    return f"0x{value:02X}" if name in _HEX and isinstance(value, int) else value


@devices.command()
def token(
    context: typer.Context, device: DeviceArgument, *, settings: SettingsPath = DEFAULT_SETTINGS
) -> None:
    """Print the release token (C2SP .tlog-proof): the proof that the device was released, checked offline."""
    with session_of(context).application(settings) as application:
        found = _find(application, device)
        attempt = _attempts(application, found)[-1]
        if attempt.release_leaf is None:
            raise errors.IllegalTransition(f"{found.id} has no release token: it is {found.state}")
        printing.line(application.store.token(attempt.release_leaf).rstrip("\n"))


@devices.command()
def certificate(
    context: typer.Context,
    device: DeviceArgument,
    *,
    chain: Annotated[
        bool, typer.Option("--chain", help="Also the authorities above it, without the root.")
    ] = False,
    profile: Annotated[
        str | None,
        typer.Option(metavar="PROFILE", help="Of a device with several certificates. [the run's first]"),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All certificates of the device, in the run's order.")
    ] = False,
    settings: SettingsPath = DEFAULT_SETTINGS,
) -> None:
    """Print the certificate of the attempt that counts (PEM); whether it is good, 'device show' says."""
    if everything and profile is not None:
        raise errors.MalformedRequest("say which certificate with --profile, or take --all")
    with session_of(context).application(settings) as application:
        held = _certificates(application, _attempts(application, _find(application, device))[-1])
        if profile is not None and profile not in held:
            raise errors.NotFound(f"{device} has no certificate of profile {profile}, but {', '.join(held)}")
        wanted = list(held.values()) if everything else [held[profile or next(iter(held))]]
        above = carry(application.store, authority_chain(wanted[0].authority))[:-1] if chain else []
    ders = [*(one.der for one in wanted), *(authority.der for authority in above)]
    printing.line("".join(map(to_pem, ders)).rstrip("\n"))


def _disposition(event: DeviceEvent) -> Callable[..., None]:
    def command(
        context: typer.Context,
        device: DeviceArgument,
        *,
        reason: Reason,
        settings: SettingsPath = DEFAULT_SETTINGS,
        as_directory: AsDirectory = None,
    ) -> None:
        _dispose(context, device, event, reason, settings, as_directory)

    return command


def _dispose(
    context: typer.Context,
    device: str,
    event: DeviceEvent,
    reason: str,
    settings: Path,
    as_directory: Path | None,
) -> None:
    with session_of(context).acting(settings, as_directory) as (application, operator):
        key = application.entropy.token(16).hex()  # each command is a request of its own
        request = dispose(operator.caller, device_id(device), event, reason=reason, key=key)
        disposed = carry(application.store, request)
    printing.line(f"{disposed.device} is {disposed.state}")


for _event, _help in (
    (DeviceEvent.HOLD, "Hold a device: it goes no further until somebody reworks or scraps it."),
    (DeviceEvent.REWORK, "Let a held device try again; the credential it has is revoked as superseded."),
    (DeviceEvent.SCRAP, "End a held device: it never gets an identity; its credential is revoked."),
):
    devices.command(str(_event), help=_help)(_disposition(_event))
