"""``birthmark authority``: the certification authorities of the realm (SPEC A1, A5)."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.cli import printing
from birthmark.edge.cli.inputs import moment, only_authority
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, Reason, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.floor.authorities import ANY, Authority, AuthorityKind, AuthorityStatus, Custody, Scope
from birthmark.pki.certificates import Certificate
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.ports import KeyStore, carry
from birthmark.services.authorise import make_issuing
from birthmark.settings import SoftwareKeys

__all__ = ["authorities"]

authorities = typer.Typer(
    name="authority", no_args_is_help=True, help="Certification authorities: who signs, for what, until when."
)
ROOT_LABEL = KeyLabel("root")


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
        "quota": authority.quota,
        "issued": authority.issued,
        "ends_at": authority.ends_at,
        "key_label": authority.key_label or None,
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
def create(
    context: typer.Context,
    authority: Annotated[str, typer.Argument(metavar="ID", help="Also the label of its key: a-z 0-9 - .")],
    *,
    root: Annotated[Path, typer.Option(metavar="DIR", help="The root's folder, brought back for this.")],
    root_passphrase_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Passphrase of the root key. [DIR/passphrase]")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Common name. [REALM Issuing CA ID]")] = None,
    owner: Annotated[str | None, typer.Option(help="Who answers for it. [the organization]")] = None,
    scope: Annotated[
        str, typer.Option(metavar="PRODUCT", help="The product it may issue for; * for any.")
    ] = "*",
    quota: Annotated[
        int | None, typer.Option(min=1, help="The most device certificates it may issue. [no limit]")
    ] = None,
    ends: Annotated[str, typer.Option(metavar="DATE", help="Issues nothing from then on, e.g. 2031-01-01.")],
    key_algorithm: Annotated[KeyAlgorithm, typer.Option(help="Of its key.")] = KeyAlgorithm.EC_P256,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Make a further issuing authority: a key in the service's key store, certified by the root.

    This is a ceremony: the root's folder is needed for as long as the command runs, and no longer.
    """
    session = session_of(context)
    with session.acting(settings, as_directory) as (application, operator):
        ends_at = moment(ends)
        if ends_at <= application.clock.now():
            raise errors.MalformedRequest(f"the authority would have ended at {ends}")
        custody = SoftwareKeys(
            kind="software",
            directory=_existing(root / "keys"),
            passphrase_file=root_passphrase_file or root / "passphrase",
        )
        root_authority = only_authority(application, AuthorityKind.ROOT)
        root_keys = session.factory().open_key_store(custody)
        issuer = _root_issuer(root_keys, root_authority)
        if application.store.look({Authority: (authority,)}).get(Authority, authority) is not None:
            raise errors.IllegalTransition(f"there is an authority {authority} already")
        realm = application.realm
        organization = application.settings.realm.organization
        der = make_issuing(
            root_keys,
            issuer,
            application.keys.generate(KeyLabel(authority), key_algorithm),
            application.clock,
            application.entropy,
            {
                "organization": organization,
                "realm": realm.name,
                "environment_mark": realm.environment.mark,
                "authority": name or f"{realm.name} Issuing CA {authority}",
            },
        )
        made = _established(authority, root_authority, der, owner or organization, scope, quota, ends_at)
        shown = document(carry(application.store, application.authorise.establish(operator.caller, made)))
    if as_json:
        printing.line(printing.json_text(shown))
    else:
        printing.fields(shown)
        printing.line(f"put {root} away again")


def _established(
    authority: str, root: Authority, der: bytes, owner: str, scope: str, quota: int | None, ends_at: datetime
) -> Authority:
    return Authority(
        id=authority,
        kind=AuthorityKind.ISSUING,
        issuer=root.id,
        custody=Custody.SERVICE,
        key_label=authority,
        profile="issuing",
        der=der,
        owner=owner,
        scope=str(Scope.parse(scope if scope == ANY or "=" in scope else f"product={scope}")),
        profiles=ANY,
        constraints="[]",
        ceremony="",
        quota=quota,
        ends_at=ends_at,
        status=AuthorityStatus.ACTIVE,
        issued=0,
    )


def _existing(directory: Path) -> Path:
    # Opening a software store makes its directory, which would hide that the wrong folder was named.
    if not directory.is_dir():
        raise errors.NotFound(f"there is no key store {directory}: name the root's folder with --root")
    return directory


def _root_issuer(keys: KeyStore, root: Authority) -> Issuer:
    spki = Certificate.from_der(root.der).subject_public_key_info
    if keys.public_key(ROOT_LABEL) != spki:
        raise errors.NotPermitted("that is the root of another realm: its key is not the one on record here")
    return Issuer.from_certificate(ROOT_LABEL, root.der)


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
    """Stop an authority from issuing until it is resumed; what it issued stays good."""
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
    """Let a suspended authority issue again."""
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
    """Stop an authority from issuing for good; what it issued stays good."""
    _change(context, authority, AuthorityStatus.RETIRED, reason, settings, as_directory)
