"""``birthmark authority``: the certification authorities of the realm (SPEC A1, A5)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.cli import printing
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, Reason, SettingsPath
from birthmark.edge.cli.proposals import put
from birthmark.edge.cli.session import session_of
from birthmark.floor.authorities import ANY, Authority, AuthorityKind, AuthorityStatus, Custody
from birthmark.floor.clients import Capability, takes_two
from birthmark.floor.proposals import Deed
from birthmark.pki.certificates import Certificate
from birthmark.ports import carry

__all__ = ["authorities"]

authorities = typer.Typer(
    name="authority", no_args_is_help=True, help="Certification authorities: who signs, for what, until when."
)


def document(authority: Authority) -> dict[str, object]:
    """Return an authority as it is shown."""
    certificate = Certificate.from_der(authority.der)
    return {
        "id": authority.id,
        "kind": str(authority.kind),
        "status": str(authority.status),
        "issuer": authority.issuer,
        "subject": certificate.subject,
        "certificate": certificate.serial_hex,
        "certificate_sha256": certificate.fingerprint,
        "owner": authority.owner,
        "scope": authority.scope,
        "profile": authority.profile or None,
        "profiles": authority.profiles,
        "constraints": authority.constraints,
        "quota": authority.quota,
        "issued": authority.issued,
        "ends_at": authority.ends_at,
        "custody": str(authority.custody),
        "key_label": authority.key_label or None,
        "successor": authority.successor,
        "ceremony": authority.ceremony or None,
    }


@authorities.command("list")
def list_authorities(
    context: typer.Context, *, settings: SettingsPath = DEFAULT_SETTINGS, as_json: AsJson = False
) -> None:
    """List the authorities, what each may issue and how much of it is used."""
    with session_of(context).application(settings) as application:
        found = [document(authority) for authority in application.store.scan(Authority)]
        development = application.keys.development
    if as_json:
        printing.line(printing.json_text(found))
        return
    keys = ("id", "kind", "status", "scope", "issued", "quota", "ends_at", "subject")
    printing.columns(keys, ([row[key] for key in keys] for row in found))
    if development:
        printing.line("keys: development (software)")


@authorities.command()
def show(
    context: typer.Context,
    authority: Annotated[str, typer.Argument(metavar="ID")],
    *,
    pem: Annotated[bool, typer.Option("--pem", help="Print its certificate instead.")] = False,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Show one authority: its licence, its certificate, and where its key is."""
    with session_of(context).application(settings) as application:
        found = get(application, authority)
        shown = document(found)
        if found.key_label:
            shown["key_store"] = "development (software)" if application.keys.development else "token"
    if pem:
        printing.line(Certificate.from_der(found.der).pem.rstrip("\n"))
    elif as_json:
        printing.line(printing.json_text(shown))
    else:
        printing.fields(shown)


@authorities.command()
def tree(
    context: typer.Context, *, settings: SettingsPath = DEFAULT_SETTINGS, as_json: AsJson = False
) -> None:
    """Draw the hierarchy: who certifies whom, and what each may issue."""
    with session_of(context).application(settings) as application:
        found = list(application.store.scan(Authority))
    below: dict[str, list[Authority]] = {}
    for authority in found:
        below.setdefault("" if authority.issuer == authority.id else authority.issuer, []).append(authority)
    if as_json:
        printing.line(printing.json_text([_branch(root, below) for root in below.get("", [])]))
        return
    for root in below.get("", []):
        _draw(root, below, "", "")


def _branch(authority: Authority, below: Mapping[str, Sequence[Authority]]) -> dict[str, object]:
    children = [_branch(child, below) for child in below.get(authority.id, [])]
    return document(authority) | {"below": children}


def _draw(authority: Authority, below: Mapping[str, Sequence[Authority]], head: str, indent: str) -> None:
    parts = [f"{authority.id}", str(authority.kind), str(authority.status)]
    parts += [f"key {authority.custody}"] if authority.custody is not Custody.SERVICE else []
    parts += [f"for {authority.scope}"] if authority.scope != ANY else []
    parts += [f"profiles {authority.profiles}"] if authority.profiles != ANY else []
    parts += [f"{authority.issued} of {authority.quota}"] if authority.quota is not None else []
    parts += [f"until {authority.ends_at:%Y-%m-%d}"] if authority.kind is AuthorityKind.ISSUING else []
    parts += [f"then {authority.successor}"] if authority.successor is not None else []
    printing.line(printing.shown(f"{head}{', '.join(parts)}"))
    children = below.get(authority.id, [])
    for child in children:
        last = child is children[-1]
        _draw(child, below, f"{indent}{'└─ ' if last else '├─ '}", f"{indent}{'   ' if last else '│  '}")


def get(application: Application, authority: str) -> Authority:
    """Return an authority.

    Raises:
        errors.NotFound: there is none of this id.
    """
    found = application.store.look({Authority: (authority,)}).get(Authority, authority)
    if found is None:
        raise errors.NotFound(f"there is no authority {authority}")
    return found


def _change(
    context: typer.Context,
    authority: str,
    status: AuthorityStatus,
    reason: str,
    settings: Path,
    as_directory: Path | None,
) -> None:
    with session_of(context).acting(settings, as_directory) as (application, operator):
        if takes_two(Capability.CHANGE_AUTHORITY, application.realm.environment):
            put(application, operator, Deed.CHANGE_AUTHORITY, authority, {"status": str(status)}, reason)
            return
        change = application.authorise.change(operator.caller, authority, status, reason)
        changed = carry(application.store, change)
    printing.line(f"authority {changed.id} is {changed.status}")


@authorities.command()
def suspend(
    context: typer.Context,
    authority: Annotated[str, typer.Argument(metavar="ID")],
    *,
    reason: Reason,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Stop an authority from issuing until it is resumed; in production, propose it."""
    _change(context, authority, AuthorityStatus.SUSPENDED, reason, settings, as_directory)


@authorities.command()
def resume(
    context: typer.Context,
    authority: Annotated[str, typer.Argument(metavar="ID")],
    *,
    reason: Reason,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Let a suspended authority issue again; in production, propose it."""
    _change(context, authority, AuthorityStatus.ACTIVE, reason, settings, as_directory)


@authorities.command()
def retire(
    context: typer.Context,
    authority: Annotated[str, typer.Argument(metavar="ID")],
    *,
    reason: Reason,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Stop an authority from issuing for good; in production, propose it. What it issued stays good."""
    _change(context, authority, AuthorityStatus.RETIRED, reason, settings, as_directory)
