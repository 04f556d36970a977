"""``birthmark init``: make a realm."""

import getpass
import re
from pathlib import Path
from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.cli import printing
from birthmark.edge.cli.ceremony_folder import read_ceremony
from birthmark.edge.cli.ceremony_options import WAITING, papers_of
from birthmark.edge.cli.making import Made, RealmWaits, make_realm
from birthmark.edge.cli.options import AsJson
from birthmark.edge.cli.session import session_of
from birthmark.edge.cli.settings_text import KeyPlace, Plan
from birthmark.floor.clients import check_name
from birthmark.floor.realm import Environment
from birthmark.pki.keys import KeyAlgorithm

__all__ = ["init"]

_TOKEN = "Keys in a PKCS#11 token"  # noqa: S105  # a heading
_SECRETS = "Secrets (always files, never values)"
_CEREMONY = "A ceremony of custodians"


def init(
    context: typer.Context,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Directory to make; must not exist or be empty.")
    ],
    *,
    realm: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the realm: 1 to 40 of A-Z a-z 0-9 . _ -")
    ],
    organization: Annotated[
        str, typer.Option(metavar="ORG", help="Legal name of the maker; stands in certificates.")
    ],
    environment: Annotated[
        Environment,
        typer.Option(
            help="A test realm's authorities carry TEST in their names; nothing moves to the other kind."
        ),
    ] = Environment.TEST,
    site: Annotated[str, typer.Option(help="Site of the first stations.")] = "main",
    line: Annotated[str, typer.Option(help="Line of the first stations.")] = "line-1",
    host: Annotated[str, typer.Option(help="Address the station plane listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port the station plane listens on.")] = 8443,
    device_port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", min=1, max=65535, help="Serve EST and CMP to devices here, e.g. 8445. [not yet]"
        ),
    ] = None,
    gateway_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port of a gateway for devices in the field. [none]"),
    ] = None,
    dns: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="DNS name of the server; may be given again. [localhost]"),
    ] = None,
    ip: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="IP address of the server; likewise. [127.0.0.1]"),
    ] = None,
    station: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Station to enrol; may be given again. [ST01]")
    ] = None,
    operator: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Id of a first officer; may be given again. Production needs two. [the login name]",
        ),
    ] = None,
    publication_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where CRLs and OCSP will be, e.g. http://pki.example.com: certificates name it for life.",
        ),
    ] = None,
    log_origin: Annotated[
        str | None, typer.Option(metavar="ORIGIN", help="Name of the log (C2SP), for ever. [REALM/SITE/log]")
    ] = None,
    authority: Annotated[
        str, typer.Option(metavar="ID", help="Id of the first issuing authority.")
    ] = "issuing-1",
    database_url: Annotated[
        str,
        typer.Option(
            metavar="URL", help="sqlite:///FILE, or postgresql://USER@HOST:PORT/NAME without a password."
        ),
    ] = "sqlite:///birthmark.db",
    database_password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Password of the database.", rich_help_panel=_SECRETS)
    ] = None,
    token_module: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The token's PKCS#11 library.", rich_help_panel=_TOKEN)
    ] = None,
    token_label: Annotated[
        str, typer.Option(metavar="LABEL", help="The token's label.", rich_help_panel=_TOKEN)
    ] = "",
    token_pin_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The token's user PIN.", rich_help_panel=_TOKEN)
    ] = None,
    key_prefix: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="Goes before the labels 'log' and the authority's, where realms share a token.",
            rich_help_panel=_TOKEN,
        ),
    ] = "",
    root_passphrase_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Passphrase of the root key. [generated, in the root folder]",
            rich_help_panel=_SECRETS,
        ),
    ] = None,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Passphrase of the software key store. [generated: DIR/secrets]",
            rich_help_panel=_SECRETS,
        ),
    ] = None,
    key_algorithm: Annotated[
        KeyAlgorithm, typer.Option(help="Of the root and the issuing authority.")
    ] = KeyAlgorithm.EC_P256,
    development_keys: Annotated[
        bool, typer.Option("--development-keys", help="Keep a production realm's keys in files all the same.")
    ] = False,
    ceremony: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The reviewed file that makes keys and authorities. [a test realm: one of its own]",
            rich_help_panel=_CEREMONY,
        ),
    ] = None,
    custodian: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Credential of a custodian who is there; once for each.",
            rich_help_panel=_CEREMONY,
        ),
    ] = None,
    reviewed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SHA256", help="SHA-256 of the file that was reviewed.", rich_help_panel=_CEREMONY
        ),
    ] = None,
    store: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="Folder of an offline key store; may be given again.",
            rich_help_panel=_CEREMONY,
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The certificate, or the answer, to a request.", rich_help_panel=_CEREMONY
        ),
    ] = None,
    officer_pin_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="PIN of the token's security officer, for key-encryption keys.",
            rich_help_panel=_CEREMONY,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a realm: hierarchy, database, audit log, server, stations and the first operator.

    Keys and authorities come from a ceremony. A test realm writes and performs its own, with the first
    operator as the only custodian; production needs --ceremony. The root's key gets a key store of its own
    under DIR/root, which no service ever opens: move that folder to where it is safe, and bring it back only
    to a further ceremony. Everything is made or nothing is; the first entries of the audit log say what was
    made.
    """
    plan = Plan(
        realm=realm,
        organization=organization,
        environment=environment,
        site=site,
        line=line,
        host=host,
        port=port,
        gateway_port=gateway_port,
        dns_names=tuple(dns if dns is not None else ([] if ip else ["localhost"])),
        ip_addresses=tuple(ip if ip is not None else ([] if dns else ["127.0.0.1"])),
        stations=tuple(station if station is not None else ["ST01"]),
        operators=tuple(operator or [_login_name()]),
        log_origin=log_origin or _origin(realm, site),
        device_port=device_port,
        publication_url=publication_url,
        database_url=database_url,
        database_password_file=database_password_file,
        keys=KeyPlace(
            token=token_module,
            token_label=token_label,
            pin_file=token_pin_file,
            passphrase_file=passphrase_file,
        ),
        root_passphrase_file=root_passphrase_file,
        key_algorithm=key_algorithm,
        authority=authority,
        key_prefix=key_prefix,
        development_keys=development_keys,
    )
    factory = session_of(context).factory()
    papers = None
    if ceremony is not None:
        given = (custodian or [], reviewed or [], store, certificate, officer_pin_file)
        papers = papers_of(factory, read_ceremony(ceremony), given)
    elif custodian or reviewed or store or certificate or officer_pin_file:
        raise errors.MalformedRequest("custodians and stores belong to a ceremony: say which with --ceremony")
    try:
        made = make_realm(factory, plan, directory, papers)
    except RealmWaits as waits:
        printing.line(str(waits))
        printing.line(f"take {waits.request} there, and give the same command with --certificate ANSWER")
        raise typer.Exit(WAITING) from waits
    if as_json:
        printing.line(printing.json_text(_document(made)))
    else:
        _say(made, own_root=papers is None, generated_root=root_passphrase_file is None)


def _login_name() -> str:
    """Return the login name if it can be an operator's id."""
    try:
        name = getpass.getuser()
        check_name("operator", name)
    except (OSError, KeyError, errors.MalformedRequest):  # no such user in the password file: a container
        return "operator"
    # Root is nobody in particular, and an audit log should not read as if it were.
    return name if name != "root" else "operator"


def _origin(realm: str, site: str) -> str:
    """Return a log origin that C2SP allows (signed-note: no spaces, no plus)."""
    return "/".join(re.sub(r"[\s+]+", "-", part).lower() for part in (realm, site, "log"))


def _document(made: Made) -> dict[str, object]:
    return {
        "directory": str(made.directory.resolve()),
        "settings": str((made.directory / "birthmark.toml").resolve()),
        "realm": made.realm.name,
        "environment": str(made.realm.environment),
        "log_origin": made.realm.origin,
        "log_vkey": made.realm.vkey,
        "root_sha256": made.root_sha256,
        "authority": made.authority,
        "key_store": made.key_store,
        "stations": [str((made.directory / "stations" / name).resolve()) for name in made.stations],
        "operators": [str((made.directory / "operators" / name).resolve()) for name in made.operators],
        "server_not_after": made.server_not_after,
        "checkpoint": made.checkpoint,
        "ceremony": str((made.directory / "ceremony").resolve()),
        "ceremony_sha256": made.ceremony_sha256,
    }


def _say(made: Made, *, own_root: bool, generated_root: bool) -> None:
    place = made.directory
    printing.fields(
        {
            "realm": f"{made.realm.name} ({made.realm.environment})",
            "log": made.realm.vkey,
            "root sha-256": made.root_sha256,
            "authority": made.authority,
            "key store": made.key_store,
            "stations": ", ".join(str(place / "stations" / name) for name in made.stations) or "none",
            "officers": ", ".join(str(place / "operators" / name) for name in made.operators),
            "settings": place / "birthmark.toml",
            "server until": made.server_not_after,
        }
    )
    passphrase = "and its passphrase file apart from it" if generated_root else "its passphrase is with you"
    root = f"Move {place / 'root'} off this machine ({passphrase}); the service never needs it."
    if not own_root:
        root = "Lock the offline key folders away again; the service never needs them."
    station = f" --station {made.stations[0]}" if made.stations else " --bootstrap-only"
    who = f" --as operators/{made.operators[0]}" if len(made.operators) > 1 else ""
    printing.line(
        f"""
Next:
  1. {root}
  2. Keep the log's key ({place / "log.vkey"}) with somebody else than this machine: an auditor brings it.
  3. cd {place}
     birthmark config check
     birthmark run open RUN-1 --product PRODUCT --quantity 10{station} --hardware-id-kind vin --hours 8{who}
     birthmark serve"""
    )
