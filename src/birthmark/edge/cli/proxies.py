"""``birthmark proxy``: who ends the TLS of devices in the gateway's place, and asks it about each of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.cli import credentials, printing
from birthmark.edge.cli.clients import AuthorityOption, UntilOption, Wanted, enrolment_of, requested_key
from birthmark.edge.cli.credentials import DIRECTORY_MODE, PRIVATE_MODE, write_new_file
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, Csr, Out, Reason, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.edge.roots import service_root
from birthmark.floor.clients import Client, Credential, Role, client_id
from birthmark.pki.certificates import to_pem
from birthmark.ports import carry

__all__ = ["proxies"]

proxies = typer.Typer(
    name="proxy",
    no_args_is_help=True,
    help="Proxies that end the TLS of devices and ask the gateway about each certificate.",
)
Name = Annotated[str, typer.Argument(metavar="NAME", help="1 to 64 of A-Z a-z 0-9 . _ -")]


def _let_in(
    context: typer.Context, wanted: Wanted, settings: Path, as_directory: Path | None
) -> Mapping[str, object]:
    """Certify a proxy's key, and write it, the certificate and the root: PEM files, as proxies read them."""
    if wanted.out.exists() and any(wanted.out.iterdir()):
        raise errors.IllegalTransition(f"{wanted.out} is not empty")
    with session_of(context).acting(settings, as_directory) as (application, operator):
        key: credentials.PrivateKey | None = None
        if wanted.csr is None:
            key = credentials.fresh_key()
            spki = credentials.public_der(key)
        else:
            spki = requested_key(wanted.csr, wanted.role)
        enrolment = enrolment_of(application, wanted, spki)
        enrolled = carry(application.store, application.authorise.enrol(operator.caller, enrolment))
        root = service_root(application).der
    wanted.out.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    if key is not None:
        write_new_file(wanted.out / "proxy.key", credentials.private_pem(key), PRIVATE_MODE)
    write_new_file(
        wanted.out / "proxy.crt", "".join([enrolled.certificate.pem, *map(to_pem, enrolled.chain)])
    )
    write_new_file(wanted.out / "root.crt", to_pem(root))
    return {
        "client": enrolled.client.id,
        "certificate": enrolled.certificate.serial_hex,
        "until": enrolled.certificate.not_after,
        "directory": wanted.out,
    }


@proxies.command("enrol")
def enrol_proxy(
    context: typer.Context,
    name: Name,
    *,
    out: Out,
    csr: Csr = None,
    authority: AuthorityOption = None,
    until: UntilOption = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Let a proxy ask about devices: certify its key, put it on record, write key, certificate and root."""
    wanted = Wanted(
        role=Role.PROXY,
        name=name,
        variables={"proxy": name},
        out=out,
        csr=csr,
        authority=authority,
        until=until,
    )
    printing.fields(_let_in(context, wanted, settings, as_directory))


@proxies.command("renew")
def renew_proxy(
    context: typer.Context,
    name: Name,
    *,
    out: Out,
    csr: Csr = None,
    authority: AuthorityOption = None,
    until: UntilOption = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Give a proxy another key and certificate; the ones it has stay good until they end."""
    wanted = Wanted(
        role=Role.PROXY,
        name=name,
        variables={"proxy": name},
        out=out,
        csr=csr,
        authority=authority,
        until=until,
        renew=True,
    )
    printing.fields(_let_in(context, wanted, settings, as_directory))


@proxies.command("revoke")
def revoke_proxy(
    context: typer.Context,
    name: Name,
    *,
    reason: Reason,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Shut a proxy out, from this moment on and for good."""
    with session_of(context).acting(settings, as_directory) as (application, operator):
        revoking = application.authorise.revoke(operator.caller, client_id(Role.PROXY, name), reason)
        revoked = carry(application.store, revoking)
    printing.line(f"{revoked.id} is {revoked.status}; its name is not given out again")


@proxies.command("list")
def list_proxies(
    context: typer.Context, *, settings: SettingsPath = DEFAULT_SETTINGS, as_json: AsJson = False
) -> None:
    """List the proxies and until when their certificates are good."""
    with session_of(context).application(settings) as application:
        held = sorted(application.store.scan(Credential), key=lambda one: one.not_after)
        ends = {one.client: one.not_after for one in held}
        rows = [
            {"name": one.name, "status": str(one.status), "until": ends.get(one.id)}
            for one in application.store.scan(Client, after=f"{Role.PROXY}:")
            if one.role is Role.PROXY
        ]
    if as_json:
        printing.line(printing.json_text(rows))
        return
    heads = ("name", "status", "until")
    printing.columns(heads, ([row[head] for head in heads] for row in rows))
