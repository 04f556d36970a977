"""``birthmark station``, ``operator`` and ``bootstrap``: who may connect (SPEC C1, C2).

Three groups of one shape: let in, list, show, renew, shut out.  How people are let in is in ``people``.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.addresses import station_plane_url
from birthmark.edge.application import Application
from birthmark.edge.cli import credentials, printing
from birthmark.edge.cli.hierarchy import certifier
from birthmark.edge.cli.inputs import device_id, moment
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, Csr, Out, Reason, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.edge.roots import device_roots, service_root
from birthmark.floor.clients import PERSON, Client, Credential, Role, client_id
from birthmark.ledger.entry import decode
from birthmark.pki import profiles
from birthmark.pki.certificates import fingerprint, to_pem
from birthmark.pki.csr import vet
from birthmark.ports import Log, carry
from birthmark.services.authorise import Enrolment

__all__ = [
    "AuthorityOption",
    "UntilOption",
    "Wanted",
    "bootstraps",
    "client_of",
    "end_of",
    "enrol",
    "enrolment_of",
    "list_command",
    "operators",
    "requested_key",
    "revoke_command",
    "service_of",
    "stations",
]

stations = typer.Typer(
    name="station", no_args_is_help=True, help="Stations on the line: let in, renew, shut out."
)
operators = typer.Typer(
    name="operator", no_args_is_help=True, help="The people who open runs and decide over devices."
)
bootstraps = typer.Typer(
    name="bootstrap",
    no_args_is_help=True,
    help="Bootstrap credentials: hardware that comes with one fetches its own identity.",
)

AuthorityOption = Annotated[
    str | None, typer.Option("--authority", metavar="ID", help="Who certifies it. [the only one that may]")
]
UntilOption = Annotated[
    str | None, typer.Option("--until", metavar="TIME", help="An earlier end than the profile's.")
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A credential somebody wants."""

    role: Role
    name: str
    variables: Mapping[str, str]
    out: Path
    csr: Path | None = None
    authority: str | None = None
    until: str | None = None
    site: str = ""
    line: str = ""
    hardware_id: str | None = None
    run: str | None = None
    renew: bool = False


def enrolment_of(application: Application, wanted: Wanted, spki: bytes) -> Enrolment:
    """Return the enrolment of somebody with this key; whoever is renewed stays what they are."""
    known = client_of(application, client_id(wanted.role, wanted.name)) if wanted.renew else None
    return Enrolment(
        role=known.role if known else wanted.role,
        name=wanted.name,
        subject_public_key_info=spki,
        authority=wanted.authority or certifier(application, wanted.role),
        variables={"organization": application.settings.realm.organization, **wanted.variables},
        site=known.site if known else wanted.site,
        line=known.line if known else wanted.line,
        hardware_id=known.hardware_id if known else wanted.hardware_id,
        run=known.run if known else wanted.run,
        not_after=end_of(wanted.until),
        renew=wanted.renew,
    )


def enrol(context: typer.Context, settings: Path, as_directory: Path | None, wanted: Wanted) -> None:
    """Let somebody in, where one person may, and write the credential directory."""
    credentials.require_room(wanted.out, renew=wanted.renew)
    with session_of(context).acting(settings, as_directory) as (application, operator):
        key: credentials.PrivateKey | None = None
        if wanted.csr is None:
            key = credentials.fresh_key()
            spki = credentials.public_der(key)
        else:
            spki = requested_key(wanted.csr, wanted.role)
        service, enrolment = service_of(application), enrolment_of(application, wanted, spki)
        enrolled = carry(application.store, application.authorise.enrol(operator.caller, enrolment))
        credentials.write(wanted.out, wanted.name, enrolled, key, service)
    printing.fields(
        {
            "client": enrolled.client.id,
            "certificate": enrolled.certificate.serial_hex,
            "until": enrolled.certificate.not_after,
            "directory": wanted.out,
        }
    )
    if key is None:
        printing.line(f"put the private key at {wanted.out / 'station.key'}, mode 0400")


def end_of(until: str | None) -> datetime | None:
    """Return a wanted end as certificates say it."""
    return None if until is None else moment(until).replace(microsecond=0)


def requested_key(csr: Path, role: Role) -> bytes:
    """Return the key of a PKCS #10 request, proved to be its sender's; its names decide nothing."""
    try:
        octets = csr.read_bytes()
    except OSError as cause:
        raise errors.NotFound(f"{csr} cannot be read: {cause.strerror}") from cause
    allowed = profiles.load(role.kind).subject_key_algorithms
    return vet(octets, allowed=allowed).subject_public_key_info


def service_of(application: Application) -> credentials.Service:
    """Return what a credential says about this service."""
    return credentials.Service(
        url=station_plane_url(application.settings),
        root_pem=to_pem(service_root(application).der),
        device_anchors_pem="".join(to_pem(root.der) for root in device_roots(application)),
        vkey=application.realm.vkey,
    )


def client_of(application: Application, client: str) -> Client:
    """Return a client.

    Raises:
        errors.NotFound: there is none of this id.
    """
    found = application.store.look({Client: (client,)}).get(Client, client)
    if found is None:
        raise errors.NotFound(f"there is no client {client}")
    return found


# --- what all three do --------------------------------------------------------------------------------------


def document(client: Client) -> dict[str, object]:
    """Return a client as it is shown, without its credentials."""
    return {
        "name": client.name,
        "role": str(client.role),
        "status": str(client.status),
        "site": client.site,
        "line": client.line,
        "hardware_id": client.hardware_id,
        "run": client.run,
        "runs": client.runs,
        "last_seq": client.last_seq,
    }


def credential_documents(held: list[Credential]) -> list[dict[str, object]]:
    """Return a client's certificates, or its code, as they are shown, the one that ends last at the end."""
    return [
        {
            "certificate": credential.serial,
            "certificate_sha256": fingerprint(credential.der),
            "authority": credential.authority,
            "not_after": credential.not_after,
            "status": str(credential.status),
        }
        for credential in sorted(held, key=lambda one: one.not_after)
    ]


_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "station": ("name", "status", "site", "line", "runs", "last_seq", "until"),
    PERSON: ("name", "role", "status", "until"),
    "bootstrap": ("name", "status", "hardware_id", "run", "until"),
    "proxy": ("name", "status", "until"),
}


def list_command(kind: str) -> Callable[..., None]:
    """Return the command that lists the clients of a kind."""

    def command(
        context: typer.Context, *, settings: SettingsPath = DEFAULT_SETTINGS, as_json: AsJson = False
    ) -> None:
        with session_of(context).application(settings) as application:
            held: dict[str, list[Credential]] = {}
            for credential in application.store.scan(Credential):
                held.setdefault(credential.client, []).append(credential)
            found = [
                (document(client), credential_documents(held.get(client.id, [])))
                for client in application.store.scan(Client, after=f"{kind}:")
                if client.role.kind == kind
            ]
        if as_json:
            printing.line(printing.json_text([{**row, "credentials": those} for row, those in found]))
            return
        rows = [{**row, "until": those[-1]["not_after"] if those else None} for row, those in found]
        printing.columns(_COLUMNS[kind], ([row[key] for key in _COLUMNS[kind]] for row in rows))

    return command


def revoke_command(kind: str) -> Callable[..., None]:
    """Return the command that shuts out a client of a kind."""

    def command(
        context: typer.Context,
        name: Annotated[str, typer.Argument(metavar="NAME")],
        *,
        reason: Reason,
        settings: SettingsPath = DEFAULT_SETTINGS,
        as_directory: AsDirectory = None,
    ) -> None:
        with session_of(context).acting(settings, as_directory) as (application, operator):
            client = f"{kind}:{name}"
            revoked = carry(application.store, application.authorise.revoke(operator.caller, client, reason))
        printing.line(f"{revoked.id} is {revoked.status}; its name is not given out again")

    return command


for _group, _kind in ((stations, "station"), (operators, PERSON), (bootstraps, "bootstrap")):
    _group.command("list", help=f"List the {_kind}s and until when their certificates are good.")(
        list_command(_kind)
    )
    _group.command("revoke", help=f"Shut a {_kind} out, from this moment on and for good.")(
        revoke_command(_kind)
    )


# --- what differs -------------------------------------------------------------------------------------------


@stations.command("enrol")
def enrol_station(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="1 to 64 of A-Z a-z 0-9 . _ -")],
    *,
    site: Annotated[str, typer.Option(help="Where it stands.")],
    line: Annotated[str, typer.Option(help="The line it belongs to.")],
    out: Out,
    csr: Csr = None,
    authority: AuthorityOption = None,
    until: UntilOption = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Let a station in: certify its key, put it on record, write its credential directory."""
    wanted = Wanted(
        role=Role.STATION,
        name=name,
        variables={"station": name},
        out=out,
        csr=csr,
        authority=authority,
        until=until,
        site=site,
        line=line,
    )
    enrol(context, settings, as_directory, wanted)


@stations.command("renew")
def renew_station(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    *,
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", help="The station's directory, changed in one step, or a new one."
        ),
    ],
    csr: Csr = None,
    authority: AuthorityOption = None,
    until: UntilOption = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Give a station another key and certificate; the ones it has stay good until they end."""
    wanted = Wanted(
        role=Role.STATION,
        name=name,
        variables={"station": name},
        out=out,
        csr=csr,
        authority=authority,
        until=until,
        renew=True,
    )
    enrol(context, settings, as_directory, wanted)


def gaps(log: Log, client: str) -> str:
    """Return the request numbers of a client that are not in the log: ``3-4,9``; empty if none is missing.

    A request that was never recorded leaves one, and so does a number that was never sent (SPEC E5).
    """
    mark, seen = json.dumps(client).encode(), {0}
    for item in log.entries():
        if mark in item.entry:
            entry = decode(item.entry)
            number = entry.get("seq")
            if entry["actor"] == client and isinstance(number, int):
                seen.add(number)
    ranges = [(before + 1, after - 1) for before, after in pairwise(sorted(seen)) if after - before > 1]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


@stations.command("show")
def show_station(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Show a station, all its certificates, and which of its request numbers are not in the log."""
    with session_of(context).application(settings) as application:
        client = client_of(application, f"{Role.STATION}:{name}")
        held = [one for one in application.store.scan(Credential) if one.client == client.id]
        missing = gaps(application.log, client.id)
    shown, rows = {**document(client), "gaps": missing}, credential_documents(held)
    if as_json:
        printing.line(printing.json_text({**shown, "credentials": rows}))
        return
    printing.fields(shown)
    printing.line()
    heads = ("certificate", "authority", "not_after", "status")
    printing.columns(heads, ([row[head] for head in heads] for row in rows))


@bootstraps.command("issue")
def issue_bootstrap(
    context: typer.Context,
    *,
    name: Annotated[str, typer.Option(help="What the credential is called: 1 to 64 of A-Z a-z 0-9 . _ -")],
    out: Out,
    hardware_id: Annotated[
        str | None,
        typer.Option(metavar="KIND:ID", help="The one device it may provision, e.g. vin:1M8GDM9AXKP042788."),
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="RUN", help="Or the run whose listed devices it may provision.")
    ] = None,
    csr: Csr = None,
    authority: AuthorityOption = None,
    until: UntilOption = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Issue a credential for hardware that is to fetch its own identity on the line."""
    if (hardware_id is None) == (run is None):
        raise errors.MalformedRequest("a bootstrap credential is for one --hardware-id or for one --run")
    device = None if hardware_id is None else device_id(hardware_id)
    wanted = Wanted(
        role=Role.BOOTSTRAP,
        name=name,
        variables={"run": run or "device", "hardware_id": "" if device is None else device.partition(":")[2]},
        out=out,
        csr=csr,
        authority=authority,
        until=until,
        hardware_id=device,
        run=run,
    )
    enrol(context, settings, as_directory, wanted)
