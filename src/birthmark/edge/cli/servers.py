"""``birthmark server``: the credential of this service itself."""

from ipaddress import ip_address
from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.addresses import known_as, plane_url, public_host
from birthmark.edge.application import Application
from birthmark.edge.cli import credentials, printing, server_files
from birthmark.edge.cli.clients import AuthorityOption
from birthmark.edge.cli.hierarchy import certifier
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, SettingsPath
from birthmark.edge.cli.session import Operator, session_of
from birthmark.floor.clients import Client, Role
from birthmark.pki.certificates import to_pem
from birthmark.ports import carry
from birthmark.secret import SecretBytes
from birthmark.services.authorise import Enrolled, Enrolment

__all__ = ["addresses", "dns_names", "servers"]

NAME = "server"
"""Of the only server a realm has: processes and machines share its credential."""

servers = typer.Typer(name="server", no_args_is_help=True, help="The credential of this service itself.")


@servers.callback()
def group() -> None:
    """Keep ``renew`` a command of its own although it is the only one."""


@servers.command()
def renew(
    context: typer.Context,
    *,
    dns: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="DNS name of the server; may be given again. [as it has now]"),
    ] = None,
    ip: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="IP address of the server; likewise. [as it has now]"),
    ] = None,
    authority: AuthorityOption = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Give the service another key and certificate, in one step; it takes them up when it is restarted.

    Names that are given, DNS names and addresses together, take the place of all that it has now.  The
    passphrase stays as it is.  Run it as the service's own user: the files are then the service's.
    """
    session = session_of(context)
    with session.acting(settings, as_directory) as (application, operator):
        plane = application.settings.station_plane
        passphrase = session.factory().read_secret(plane.key_passphrase_file)
        before = known_as(plane.certificate_file)
        names = before if dns is None and ip is None else (dns_names(dns or []), addresses(ip or []))
        with server_files.changing(plane) as files:
            enrolled = _renew(application, operator, names, authority, files, passphrase)
    known, lost = (*names[0], *names[1]), {*before[0], *before[1]} - {*names[0], *names[1]}
    shown = {
        "certificate": enrolled.certificate.serial_hex,
        "until": enrolled.certificate.not_after,
        "names": list(known) if as_json else ", ".join(known),
        "url": plane_url(public_host(plane.host, *names), plane.port),
    }
    if as_json:
        printing.line(printing.json_text(shown))
    else:
        printing.fields(shown)
        printing.line("restart the service: until then it shows the certificate it began with")
    if lost:
        printing.warn(
            f"who finds the service as {', '.join(sorted(lost))} will refuse it: change the url there"
        )


def dns_names(texts: list[str]) -> tuple[str, ...]:
    """Return DNS names as they were given, looked at.

    Raises:
        errors.MalformedRequest: one is none.
    """
    for text in texts:
        if not text or not text.isascii() or not text.isprintable() or " " in text:
            raise errors.MalformedRequest(f"{text!r} is no DNS name")
    return tuple(texts)


def addresses(texts: list[str]) -> tuple[str, ...]:
    """Return IP addresses in their one spelling.

    Raises:
        errors.MalformedRequest: one is none.
    """
    try:
        return tuple(str(ip_address(text)) for text in texts)
    except ValueError as cause:
        raise errors.MalformedRequest(f"an IP address is needed: {cause}") from cause


def _renew(
    application: Application,
    operator: Operator,
    names: tuple[tuple[str, ...], tuple[str, ...]],
    authority: str | None,
    files: server_files.ServerFiles,
    passphrase: SecretBytes,
) -> Enrolled:
    client = f"{Role.SERVER}:{NAME}"
    known = application.store.look({Client: (client,)}).get(Client, client)
    if known is None:
        raise errors.NotFound(f"there is no client {client}")
    key = credentials.fresh_key()
    enrolment = Enrolment(
        role=Role.SERVER,
        name=NAME,
        subject_public_key_info=credentials.public_der(key),
        authority=authority or certifier(application, Role.SERVER),
        variables={
            "organization": application.settings.realm.organization,
            "host": public_host(application.settings.station_plane.host, *names),
            "dns_names": " ".join(names[0]),
            "ip_addresses": " ".join(names[1]),
        },
        site=known.site,
        line=known.line,
        renew=True,
    )
    enrolled = carry(application.store, application.authorise.enrol(operator.caller, enrolment))
    pem = "".join([enrolled.certificate.pem, *map(to_pem, enrolled.chain)])
    files.put(pem, credentials.private_pem(key, passphrase))
    return enrolled
