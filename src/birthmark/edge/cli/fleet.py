"""``birthmark fleet``: whose devices the gateway accepts besides our own, and which it has met (SPEC H5).

Names of authorities have no colon and ids of devices have one, so that ``resume`` knows which is meant.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.cli import printing
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, Reason, SettingsPath
from birthmark.edge.cli.proposals import put
from birthmark.edge.cli.session import Operator, session_of
from birthmark.edge.cli.spreadsheets import column
from birthmark.floor.clients import Capability, takes_two
from birthmark.floor.fleet import (
    CHALLENGE_LIFE,
    DeviceNaming,
    FieldDevice,
    FieldStatus,
    FirstContact,
    FleetAuthority,
    FleetPolicy,
    FleetStatus,
    ForeignCRL,
    RevocationRule,
)
from birthmark.floor.naming import require_name
from birthmark.floor.proposals import Deed
from birthmark.pki.certificates import Certificate
from birthmark.pki.crl_index import LARGEST_CRL, crl_der
from birthmark.pki.ownership import certificate_der
from birthmark.pki.paths import LARGEST
from birthmark.ports import UseCase, carry
from birthmark.services.acts import Caller
from birthmark.services.field_devices import hold_device, resume_device
from birthmark.services.foreign_lists import take_crl

__all__ = ["fleet"]

fleet = typer.Typer(
    name="fleet",
    no_args_is_help=True,
    help="Other fleets: their authorities, their revocations, and devices in the field.",
)
_RECIPE = """the owner of the key certifies a throwaway key under that name, within {hours} hours:
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout throwaway.key \\
    -subj "/CN={nonce}" -out throwaway.csr
  openssl x509 -req -in throwaway.csr -CA {certificate} -CAkey THEIR.key -CAcreateserial \\
    -sha256 -days 2 -out verification.pem
then: birthmark fleet register {name} --verification verification.pem"""

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the fleet authority.")]
Naming = Annotated[
    DeviceNaming | None, typer.Option("--naming", help="What in a certificate is the device's id.")
]
Pattern = Annotated[str | None, typer.Option("--pattern", help="What the whole id must match.")]
First = Annotated[
    FirstContact | None, typer.Option("--first-contact", help="What the first contact of a device does.")
]
Listed = Annotated[
    Path | None,
    typer.Option("--allow-list", metavar="FILE", help="CSV of the ids that a first contact registers."),
]
Revocation = Annotated[
    RevocationRule | None,
    typer.Option("--revocation", help="Whether a fresh CRL or OCSP answer must say that a device is good."),
]
CrlUrl = Annotated[
    str | None, typer.Option("--crl-url", help="Where its CRL is fetched, http://; '' for by hand.")
]
OcspUrl = Annotated[
    str | None, typer.Option("--ocsp-url", help="Where it answers about a device, http://; '' for nowhere.")
]


def _octets(path: Path, limit: int) -> bytes:
    """Read a file that is not longer than what is read in it may be.

    Raises:
        errors.NotFound: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as cause:
        raise errors.NotFound(f"{path} cannot be read: {cause.strerror}") from cause


def _certificate(path: Path) -> bytes:
    return certificate_der(_octets(path, 4 * LARGEST))


def _listed(path: Path, policy: FleetPolicy) -> list[str]:
    """Return the ids in a file, each as its certificate has to say it.

    Raises:
        errors.NotFound: it cannot be read.
        errors.MalformedRequest: it is no CSV file in UTF-8, or holds nothing.
        errors.PolicyRefused: an id is none under the policy.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            found = [require_name(policy, cell.strip()) for _, cell in column(file, "device")]
    except OSError as cause:
        raise errors.NotFound(f"{path} cannot be read: {cause.strerror}") from cause
    except ValueError as cause:
        raise errors.MalformedRequest(f"{path} is no CSV file in UTF-8: {cause}") from cause
    if not found:
        raise errors.MalformedRequest(f"{path} holds no id of a device")
    return found


def _policy(
    before: FleetPolicy,
    naming: DeviceNaming | None,
    pattern: str | None,
    first_contact: FirstContact | None,
    revocation: RevocationRule | None,
    crl_url: str | None,
    ocsp_url: str | None,
) -> FleetPolicy:
    """Return a policy with what was said replaced; a list is put in later."""
    first = first_contact or before.first_contact
    rule = revocation or before.revocation
    kept = rule is RevocationRule.REQUIRED
    listed = before.allow_list if first is FirstContact.LISTED else ""
    return FleetPolicy(
        naming=naming or before.naming,
        pattern=before.pattern if pattern is None else pattern,
        first_contact=first if listed or first is not FirstContact.LISTED else FirstContact.REFUSE,
        allow_list=listed,
        revocation=rule,
        crl_url=crl_url if crl_url is not None else before.crl_url if kept else "",
        ocsp_url=ocsp_url if ocsp_url is not None else before.ocsp_url if kept else "",
    )


def _with_list(
    application: Application,
    operator: Operator,
    policy: FleetPolicy,
    first_contact: FirstContact | None,
    path: Path | None,
) -> FleetPolicy:
    """Take a list in, if there is one, and have the policy name it."""
    if path is None:
        if first_contact is FirstContact.LISTED and not policy.allow_list:
            raise errors.MalformedRequest("say which devices: --allow-list FILE")
        return policy
    if first_contact not in (None, FirstContact.LISTED):
        raise errors.MalformedRequest("a list goes with --first-contact listed")
    names = _listed(path, policy)
    taken = carry(application.store, application.runs.import_list(operator.caller, names))
    return replace(policy, first_contact=FirstContact.LISTED, allow_list=taken.sha256)


def document(authority: FleetAuthority) -> dict[str, object]:
    """Return a fleet authority as it is shown."""
    certificate, policy = Certificate.from_der(authority.der), FleetPolicy.decode(authority.policy)
    waiting = not authority.is_registered
    return {
        "name": authority.id,
        "status": str(authority.status),
        "subject": certificate.subject,
        "certificate_sha256": certificate.fingerprint,
        "not_after": certificate.not_after,
        "nonce": authority.nonce if waiting else None,
        "nonce_ends_at": authority.asked_at + CHALLENGE_LIFE if waiting else None,
        "naming": str(policy.naming),
        "pattern": policy.pattern,
        "first_contact": str(policy.first_contact),
        "allow_list": policy.allow_list or None,
        "revocation": str(policy.revocation),
        "crl_url": policy.crl_url or None,
        "ocsp_url": policy.ocsp_url or None,
    }


def _crl(row: ForeignCRL) -> dict[str, object]:
    return {
        "id": row.id,
        "number": str(int(row.number, 16)),
        "entries": row.entries,
        "this_update": row.this_update,
        "next_update": row.next_update,
        "url": row.url or None,
        "sha256": row.sha256,
    }


def _get(application: Application, name: str) -> FleetAuthority:
    found = application.store.look({FleetAuthority: (name,)}).get(FleetAuthority, name)
    if found is None:
        raise errors.NotFound(f"there is no fleet authority {name[:64]}")
    return found


@fleet.command()
def challenge(
    context: typer.Context,
    name: Name,
    *,
    certificate: Annotated[
        Path, typer.Option("--certificate", metavar="FILE", help="The authority's certificate, PEM or DER.")
    ],
    naming: Naming = None,
    pattern: Pattern = None,
    first_contact: First = None,
    allow_list: Listed = None,
    revocation: Revocation = None,
    crl_url: CrlUrl = None,
    ocsp_url: OcspUrl = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Bring another fleet's authority, and print a nonce for its owner to show that they hold its key.

    Without options devices are named by their common name, their first contact is refused, and a fresh CRL
    or OCSP answer is required.
    """
    with session_of(context).acting(settings, as_directory) as (application, operator):
        said = _policy(FleetPolicy(), naming, pattern, first_contact, revocation, crl_url, ocsp_url)
        policy = _with_list(application, operator, said, first_contact, allow_list)
        use_case = application.fleet.challenge(operator.caller, name, _certificate(certificate), policy)
        challenged = carry(application.store, use_case)
    if as_json:
        printing.line(printing.json_text(document(challenged)))
        return
    printing.fields({key: value for key, value in document(challenged).items() if value is not None})
    hours = int(CHALLENGE_LIFE.total_seconds() // 3600)
    recipe = _RECIPE.format(hours=hours, nonce=challenged.nonce, certificate=certificate, name=name)
    printing.line(recipe)


@fleet.command()
def register(
    context: typer.Context,
    name: Name,
    *,
    verification: Annotated[
        Path, typer.Option("--verification", metavar="FILE", help="The verification certificate, PEM or DER.")
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why, for whoever approves.")] = "the key was shown",
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Accept an authority whose owner has certified the nonce; in production, propose it."""
    with session_of(context).acting(settings, as_directory) as (application, operator):
        shown = _certificate(verification)
        if takes_two(Capability.CHANGE_FLEET, application.realm.environment):
            policy = _get(application, name).policy
            terms = {"verification": shown.hex(), "policy": policy}
            put(application, operator, Deed.REGISTER_FLEET, name, terms, reason)
            return
        use_case = application.fleet.register(operator.caller, name, shown)
        registered = carry(application.store, use_case)
    printing.line(f"fleet authority {registered.id} is {registered.status}")


@fleet.command()
def change(
    context: typer.Context,
    name: Name,
    *,
    reason: Reason,
    naming: Naming = None,
    pattern: Pattern = None,
    first_contact: First = None,
    allow_list: Listed = None,
    revocation: Revocation = None,
    crl_url: CrlUrl = None,
    ocsp_url: OcspUrl = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Change what is agreed for an authority's devices; in production, propose it."""
    with session_of(context).acting(settings, as_directory) as (application, operator):
        found = application.store.look({FleetAuthority: (name,)}).get(FleetAuthority, name)
        before = FleetPolicy() if found is None else FleetPolicy.decode(found.policy)
        said = _policy(before, naming, pattern, first_contact, revocation, crl_url, ocsp_url)
        policy = _with_list(application, operator, said, first_contact, allow_list)
        if takes_two(Capability.CHANGE_FLEET, application.realm.environment):
            put(application, operator, Deed.CHANGE_FLEET, name, {"policy": policy.encode()}, reason)
            return
        use_case = application.fleet.change(operator.caller, name, policy, reason)
        changed = carry(application.store, use_case)
    printing.line(f"the policy of fleet authority {changed.id} has changed")


def _move(
    context: typer.Context,
    name: str,
    status: FleetStatus,
    reason: str,
    settings: Path,
    as_directory: Path | None,
) -> None:
    with session_of(context).acting(settings, as_directory) as (application, operator):
        two = takes_two(Capability.CHANGE_FLEET, application.realm.environment)
        if two and status is not FleetStatus.SUSPENDED:
            put(application, operator, Deed.CHANGE_FLEET, name, {"status": str(status)}, reason)
            return
        use_case = application.fleet.move(operator.caller, name, status, reason)
        moved = carry(application.store, use_case)
    printing.line(f"fleet authority {moved.id} is {moved.status}")


@fleet.command()
def suspend(
    context: typer.Context,
    name: Name,
    *,
    reason: Reason,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Turn away the devices of an authority from now on; one person may, also in production."""
    _move(context, name, FleetStatus.SUSPENDED, reason, settings, as_directory)


@fleet.command()
def retire(
    context: typer.Context,
    name: Name,
    *,
    reason: Reason,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Turn away the devices of an authority until its owner shows the key anew; in production, propose it."""
    _move(context, name, FleetStatus.RETIRED, reason, settings, as_directory)


@fleet.command()
def resume(
    context: typer.Context,
    subject: Annotated[
        str, typer.Argument(metavar="NAME|DEVICE", help="A fleet authority, or a device's id.")
    ],
    *,
    reason: Reason,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Accept a suspended authority again (in production, propose it), or a device held in the field."""
    if ":" in subject:
        _meet(context, subject, reason, resume_device, settings, as_directory)
        return
    _move(context, subject, FleetStatus.ACTIVE, reason, settings, as_directory)


@fleet.command()
def hold(
    context: typer.Context,
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="Its id, as 'fleet devices' shows it.")],
    *,
    reason: Reason,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Turn a device in the field away, whatever its certificate, until it is resumed."""
    _meet(context, device, reason, hold_device, settings, as_directory)


def _meet(
    context: typer.Context,
    device: str,
    reason: str,
    act: Callable[[Caller, str, str], UseCase[FieldDevice]],
    settings: Path,
    as_directory: Path | None,
) -> None:
    with session_of(context).acting(settings, as_directory) as (application, operator):
        found = carry(application.store, act(operator.caller, device, reason))
    printing.line(f"{printing.shown(found.id)} is {found.status}")


@fleet.command("list")
def list_authorities(
    context: typer.Context, *, settings: SettingsPath = DEFAULT_SETTINGS, as_json: AsJson = False
) -> None:
    """List the authorities of other fleets, and what is agreed for their devices."""
    with session_of(context).application(settings) as application:
        found = [document(one) for one in application.store.scan(FleetAuthority)]
    if as_json:
        printing.line(printing.json_text(found))
        return
    keys = ("name", "status", "naming", "first_contact", "revocation", "not_after", "subject")
    printing.columns(keys, ([row[key] for key in keys] for row in found))


@fleet.command()
def show(
    context: typer.Context,
    name: Name,
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Show one authority: its certificate, its policy, and the CRLs on record."""
    with session_of(context).application(settings) as application:
        shown = document(_get(application, name))
        lists = [_crl(row) for row in application.store.scan(ForeignCRL) if row.authority == name]
    if as_json:
        printing.line(printing.json_text(shown | {"crls": lists}))
        return
    printing.fields(shown)
    keys = ("id", "number", "entries", "this_update", "next_update", "url")
    printing.columns(keys, ([row[key] for key in keys] for row in lists), empty="no CRL is on record")


@fleet.command()
def crl(
    context: typer.Context,
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The CRL, PEM or DER.")],
    *,
    issuer: Annotated[
        Path | None,
        typer.Option("--issuer", metavar="FILE", help="Certificate of an authority below, whose CRL it is."),
    ] = None,
    between: Annotated[
        list[Path] | None,
        typer.Option("--between", metavar="FILE", help="Certificates above that one, the lowest first."),
    ] = None,
    url: Annotated[
        str, typer.Option("--url", help="Where the next one of that authority is fetched, http://.")
    ] = "",
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Take in a CRL of a fleet authority, or of one below it, by hand."""
    with session_of(context).acting(settings, as_directory) as (application, operator):
        use_case = take_crl(
            operator.caller,
            name,
            crl_der(_octets(file, 2 * LARGEST_CRL)),
            issuer=None if issuer is None else _certificate(issuer),
            between=[_certificate(one) for one in between or ()],
            url=url,
        )
        taken = carry(application.store, use_case)
    printing.fields(_crl(taken.crl) | {"new": taken.new})


@fleet.command()
def devices(
    context: typer.Context,
    *,
    status: Annotated[FieldStatus | None, typer.Option(help="Only these.")] = None,
    authority: Annotated[
        str | None, typer.Option(help="Only those of this fleet authority; '' for our own.")
    ] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """List the devices that the gateway has met: where they were last, and which are held."""
    where = {} if status is None else {"status": str(status)}
    where |= {} if authority is None else {"authority": authority}
    with session_of(context).application(settings) as application:
        found = [_device(one) for one in application.store.scan(FieldDevice, where=where)]
    if as_json:
        printing.line(printing.json_text(found))
        return
    keys = ("device", "authority", "status", "place", "moved_at", "first_seen_at", "reason")
    printing.columns(keys, ([row[key] for key in keys] for row in found))


def _device(device: FieldDevice) -> dict[str, object]:
    return {
        "device": device.id,
        "authority": device.authority or None,
        "status": str(device.status),
        "reason": device.reason,
        "place": device.place,
        "moved_at": device.moved_at,
        "certificate_sha256": device.certificate,
        "first_seen_at": device.first_seen_at,
        "first_seen_leaf": device.first_seen_leaf,
    }
