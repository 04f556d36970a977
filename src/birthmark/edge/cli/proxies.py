"""``birthmark proxy``: who ends the TLS of devices in the gateway's place, and asks it about each of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.cli import credentials, printing
from birthmark.edge.cli.clients import (
    AuthorityOption,
    UntilOption,
    Wanted,
    enrolment_of,
    list_command,
    requested_key,
    revoke_command,
)
from birthmark.edge.cli.credentials import DIRECTORY_MODE, PRIVATE_MODE, write_new_file
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, Csr, Out, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.edge.roots import service_root
from birthmark.floor.clients import Role
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


def _command(*, renew: bool) -> Callable[..., None]:
    def command(
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
        wanted = Wanted(
            role=Role.PROXY,
            name=name,
            variables={"proxy": name},
            out=out,
            csr=csr,
            authority=authority,
            until=until,
            renew=renew,
        )
        printing.fields(_let_in(context, wanted, settings, as_directory))

    return command


for _name, _renew, _help in (
    ("enrol", False, "Let a proxy ask about devices: certify its key, write key, certificate and root."),
    ("renew", True, "Give a proxy another key and certificate; the ones it has stay good until they end."),
):
    proxies.command(_name, help=_help)(_command(renew=_renew))

proxies.command("list", help="List the proxies and until when their certificates are good.")(
    list_command(Role.PROXY)
)
proxies.command("revoke", help="Shut a proxy out, from this moment on and for good.")(
    revoke_command(Role.PROXY)
)
