"""``birthmark shared``: credentials baked into an image, until each device has its own (SPEC H4).

In a test realm one officer makes one.  In production it takes two: the first makes the key and proposes its
limits, the second approves, and then the archive can be had; until then the key lies beside its place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from birthmark import errors
from birthmark.edge.addresses import device_plane_url, known_as, plane_url, public_host
from birthmark.edge.application import Application
from birthmark.edge.cli import credentials, printing, shared_files
from birthmark.edge.cli.clients import client_of, revoke_command
from birthmark.edge.cli.hierarchy import certifier
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, SettingsPath
from birthmark.edge.cli.proposals import put
from birthmark.edge.cli.session import session_of
from birthmark.edge.roots import service_root
from birthmark.floor.clients import Capability, Client, Credential, Role, takes_two
from birthmark.floor.devices import Attempt
from birthmark.floor.proposals import Deed
from birthmark.floor.shared import SharedCredential, networks_text
from birthmark.pki.certificates import Certificate, to_pem
from birthmark.ports import carry
from birthmark.secret import SecretBytes
from birthmark.services.runs import authority_chain
from birthmark.services.shared import Sharing, share

__all__ = ["shareds"]

shareds = typer.Typer(
    name="shared",
    no_args_is_help=True,
    help="Credentials that many devices share until each has its own: limited, counted, revocable.",
)
_MOST_HOURS = 8760
Name = Annotated[str, typer.Argument(metavar="NAME", help="1 to 64 of A-Z a-z 0-9 . _ -")]
Archive = Annotated[
    Path,
    typer.Option("--out", metavar="FILE.zip", help="The archive to write; it must not exist."),
]
Url = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Where devices find the device plane. [as the settings have it]"),
]
GatewayUrl = Annotated[
    str | None,
    typer.Option(
        "--gateway-url", metavar="URL", help="Where they report to afterwards. [as the settings have it]"
    ),
]
FirstBoot = Annotated[
    Path | None,
    typer.Option(
        "--first-boot", metavar="FILE", help="A script to put in as first-boot.sh, e.g. deploy/first-boot.sh."
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    """What goes into the archive besides the credential."""

    url: str
    gateway: str | None
    first_boot: bytes


@shareds.command()
def make(
    context: typer.Context,
    name: Name,
    *,
    run: Annotated[str, typer.Option(metavar="RUN", help="The run that its devices are admitted to.")],
    quantity: Annotated[int, typer.Option(metavar="N", min=1, help="The most devices, for ever.")],
    hours: Annotated[int, typer.Option(metavar="H", min=1, max=_MOST_HOURS, help="How long it is good.")],
    out: Archive,
    network: Annotated[
        list[str] | None,
        typer.Option(metavar="CIDR", help="It is good from here only; may be given again. [everywhere]"),
    ] = None,
    url: Url = None,
    gateway_url: GatewayUrl = None,
    first_boot: FirstBoot = None,
    authority: Annotated[
        str | None, typer.Option(metavar="ID", help="Who certifies it. [the only one that may]")
    ] = None,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", help="Why; goes into the log where it is proposed.")
    ] = "for an image",
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Make a credential for an image, and the archive that goes into it; in production, propose it.

    Its devices must ask for a certificate of their own under the run, from the networks, before it ends.
    'exposure open shared:NAME' narrows the time further; 'shared revoke' shuts it at once.
    """
    shared_files.require_room(out)
    with session_of(context).acting(settings, as_directory) as (application, someone):
        image = _image(application, url, gateway_url, first_boot)
        key = credentials.fresh_key()
        end = application.clock.now() + timedelta(hours=hours)
        sharing = Sharing(
            name=name,
            run=run,
            quantity=quantity,
            networks=networks_text(network or ()),
            not_after=end.replace(microsecond=0),
            authority=authority or certifier(application, Role.SHARED),
            organization=application.settings.realm.organization,
            subject_public_key_info=credentials.public_der(key),
        )
        if takes_two(Capability.SHARE_CREDENTIAL, application.realm.environment):
            put(application, someone, Deed.SHARE_CREDENTIAL, sharing.client, sharing.terms, reason)
            waiting = shared_files.waiting_key(out)
            credentials.write_new_file(waiting, credentials.private_pem(key), credentials.PRIVATE_MODE)
            printing.line(f"its key waits in {waiting}; after the approval:")
            printing.line(f"  birthmark shared fetch {name} --out {out}")
            return
        making = share(application.authorise, application.realm, someone.caller, sharing)
        enrolled = carry(application.store, making)
        chain = (enrolled.certificate.der, *enrolled.chain)
        _write(application, out, enrolled.client, chain, key, image)
    _say_written(enrolled.client, enrolled.certificate.not_after, out)


@shareds.command()
def fetch(
    context: typer.Context,
    name: Name,
    *,
    out: Archive,
    url: Url = None,
    gateway_url: GatewayUrl = None,
    first_boot: FirstBoot = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
) -> None:
    """Write the archive of a credential that two people made; the key that waited beside it goes into it."""
    key = shared_files.read_waiting_key(out)
    with session_of(context).application(settings) as application:
        client = client_of(application, f"{Role.SHARED}:{name}")
        image = _image(application, url, gateway_url, first_boot)
        held = _credential(application, client)
        certificate = Certificate.from_der(held.der)
        if certificate.subject_public_key_info != credentials.public_der(key):
            raise errors.MalformedRequest(
                f"the key in {shared_files.waiting_key(out)} is not that of {client.id}"
            )
        chain = carry(application.store, authority_chain(held.authority))
        _write(application, out, client, (held.der, *(one.der for one in chain[:-1])), key, image)
    shared_files.waiting_key(out).unlink()
    _say_written(client, held.not_after, out)


def _image(
    application: Application, url: str | None, gateway_url: str | None, first_boot: Path | None
) -> _Image:
    """Return what goes into the archive, judged before anything is certified."""
    settings = application.settings
    if url is None and settings.device_table is None:
        raise errors.MalformedRequest("the settings have no [device-plane]: say with --url where devices ask")
    try:
        script = b"" if first_boot is None else first_boot.read_bytes()
    except OSError as cause:
        raise errors.NotFound(f"{first_boot} cannot be read: {cause.strerror}") from cause
    table = settings.gateway_table
    if gateway_url is None and table is not None:
        gateway_url = plane_url(public_host(table.host, *known_as(table.certificate_file)), table.port)
    asked = url or device_plane_url(settings)
    for place in (asked, gateway_url):
        if place is not None and not place.startswith("https://"):
            raise errors.MalformedRequest(f"devices ask over https://, not at {place[:100]!r}")
    return _Image(url=asked.rstrip("/"), gateway=gateway_url, first_boot=script)


def _write(
    application: Application,
    out: Path,
    client: Client,
    chain: tuple[bytes, ...],
    key: credentials.PrivateKey,
    image: _Image,
) -> None:
    gateway: Mapping[str, object] = {
        "realm": application.realm.name,
        "environment": str(application.realm.environment),
        "credential": client.id,
        "run": client.run,
        "device_plane": image.url,
        "est": f"{image.url}/.well-known/est/{client.run}",
        "gateway": image.gateway,
    }
    with (
        SecretBytes(credentials.private_pem(key).encode("ascii")) as secret,
        shared_files.packed(
            gateway,
            to_pem(service_root(application).der),
            "".join(map(to_pem, chain)),
            secret,
            image.first_boot,
        ) as archive,
    ):
        shared_files.write_archive(out, archive)


def _say_written(client: Client, until: datetime, out: Path) -> None:
    printing.fields({"client": client.id, "run": client.run, "until": until, "archive": out})
    printing.line(f"whoever has {out} can bring devices in: keep it as a secret until it is in the image")


def _credential(application: Application, client: Client) -> Credential:
    held = list(application.store.scan(Credential, where={"client": client.id}))
    if not held:
        raise errors.IntegrityFailure(f"the certificate of {client.id} is gone")
    return max(held, key=lambda one: one.not_after)


def _document(client: Client, shared: SharedCredential, credential: Credential) -> dict[str, Any]:
    return {
        "name": client.name,
        "status": str(client.status),
        "run": client.run,
        "quantity": shared.quantity,
        "used": shared.used,
        "left": shared.quantity - shared.used,
        "waiting": shared.waiting,
        "networks": shared.networks.split(),
        "until": credential.not_after,
        "certificate": credential.serial,
        "authority": credential.authority,
    }


@shareds.command("list")
def list_shared(
    context: typer.Context, *, settings: SettingsPath = DEFAULT_SETTINGS, as_json: AsJson = False
) -> None:
    """List the shared credentials, and how many devices each has brought in."""
    with session_of(context).application(settings) as application:
        found = [
            _document(client, one, _credential(application, client))
            for one in application.store.scan(SharedCredential)
            for client in (client_of(application, one.id),)
        ]
    if as_json:
        printing.line(printing.json_text(found))
        return
    heads = ("name", "status", "run", "used", "left", "waiting", "networks", "until")
    rows = ({**row, "networks": " ".join(row["networks"]) or None} for row in found)
    printing.columns(heads, ([row[head] for head in heads] for row in rows))


@shareds.command("show")
def show_shared(
    context: typer.Context, name: Name, *, settings: SettingsPath = DEFAULT_SETTINGS, as_json: AsJson = False
) -> None:
    """Show a shared credential, its limits, and the devices that it has brought in."""
    with session_of(context).application(settings) as application:
        client = client_of(application, f"{Role.SHARED}:{name}")
        shared = application.store.look({SharedCredential: (client.id,)}).get(SharedCredential, client.id)
        if shared is None:
            raise errors.IntegrityFailure(f"the limits of {client.id} are gone")
        shown = _document(client, shared, _credential(application, client))
        asked = application.store.scan(Attempt, where={"client": client.id})
        devices = sorted({one.device for one in asked if one.number == 1})
    if as_json:
        printing.line(printing.json_text({**shown, "devices": devices}))
        return
    printing.fields({**shown, "networks": " ".join(shown["networks"]) or None})
    printing.line()
    printing.columns(("device",), ([device] for device in devices))


shareds.command("revoke", help="Shut a shared credential out, from this moment on and for good.")(
    revoke_command(str(Role.SHARED))
)
