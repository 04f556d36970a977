"""``birthmark keys``: the realm's keys, held against the token; backed up and brought back (SPEC B4, B5).

A command works on the key store of the settings, or, with ``keys --token`` or ``keys --directory``, on
another one: the mirror's, or the root's on the day of a ceremony.  PINs and passphrases are given as files.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, NamedTuple, TypeVar

import typer

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.cli import printing
from birthmark.edge.cli.credentials import write_new_file
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, SettingsPath
from birthmark.edge.cli.session import Operator, opened, session_of
from birthmark.floor.key_assets import KeyAsset, KeyFinding, KeyPurpose, KeySeverity
from birthmark.floor.key_backups import BACKUP_LIMIT
from birthmark.pki.attributes import SecretKind
from birthmark.pki.certificates import one_from_pem, to_pem
from birthmark.pki.keys import KeyLabel
from birthmark.ports import KeyStore, carry
from birthmark.services.custody import KeyCustody, check_keys
from birthmark.settings import KeyStoreSettings, SoftwareKeys, StandbyToken, TokenKeys

__all__ = ["keys"]

T = TypeVar("T")

keys = typer.Typer(name="keys", no_args_is_help=True)

Label = Annotated[str, typer.Argument(metavar="LABEL")]
KekLabel = Annotated[str, typer.Option("--kek", metavar="LABEL", help="The key-encryption key.")]
Token = Annotated[
    str | None, typer.Option("--token", metavar="LABEL", help="Another token. [that of the settings]")
]
Module = Annotated[
    Path | None,
    typer.Option("--module", metavar="FILE", help="Its PKCS#11 module. [that of the settings]"),
]
PinFile = Annotated[
    Path | None, typer.Option("--pin-file", metavar="FILE", help="Its PIN. [that of the settings]")
]
Directory = Annotated[
    Path | None, typer.Option("--directory", metavar="DIR", help="Another store: encrypted key files.")
]
PassphraseFile = Annotated[
    Path | None, typer.Option("--passphrase-file", metavar="FILE", help="Passphrase of these key files.")
]
StoreName = Annotated[
    str | None,
    typer.Option("--store", metavar="NAME", help="Its name on record. [the token's label, or software]"),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """The options of the group: which key store the command works on."""

    token: str | None
    module: Path | None
    pin_file: Path | None
    directory: Path | None
    passphrase_file: Path | None
    name: str | None


class _Place(NamedTuple):
    """A key store and what it is called on record."""

    name: str
    keys: KeyStore


_CHOSEN = "birthmark.keys.store"


@keys.callback()
def choose(  # the options of one store
    context: typer.Context,
    *,
    token: Token = None,
    module: Module = None,
    pin_file: PinFile = None,
    directory: Directory = None,
    passphrase_file: PassphraseFile = None,
    store: StoreName = None,
) -> None:
    """Keys: which there must be, whether the store holds them so, and their wrapped backups."""
    context.meta[_CHOSEN] = _Chosen(
        token=token,
        module=module,
        pin_file=pin_file,
        directory=directory,
        passphrase_file=passphrase_file,
        name=store,
    )


@contextmanager
def _place(context: typer.Context, application: Application) -> Iterator[_Place]:
    chosen: _Chosen = context.meta[_CHOSEN]
    mine = application.settings.key_store
    other = _settings(chosen, mine)
    name = chosen.name or (other.token if isinstance(other, TokenKeys) else "software")
    if other == mine or (
        isinstance(other, TokenKeys)
        and isinstance(mine, TokenKeys)
        and (other.module, other.token) == (mine.module, mine.token)
    ):
        # A process opens a token once: what the application has open is not opened again.
        yield _Place(name, application.keys)
    elif (
        isinstance(other, TokenKeys)
        and (standby := _standby(mine)) is not None
        and (other.module, other.token) == (standby.module, standby.token)
    ):
        yield _Place(name, tuple(application.key_stores.values())[1])
    else:
        with opened(session_of(context).factory(), other) as found:
            yield _Place(name, found)


def _settings(chosen: _Chosen, mine: KeyStoreSettings) -> KeyStoreSettings:
    if chosen.token is not None and chosen.directory is not None:
        raise errors.MalformedRequest("--token and --directory are two stores: name one")
    if chosen.directory is not None:
        if chosen.passphrase_file is None:
            raise errors.MalformedRequest("--directory needs --passphrase-file")
        if not chosen.directory.is_dir():
            raise errors.NotFound(f"there is no key store {chosen.directory}")
        return SoftwareKeys(
            kind="software", directory=chosen.directory, passphrase_file=chosen.passphrase_file
        )
    if chosen.token is None:
        return mine
    module, pin_file = chosen.module, chosen.pin_file
    if isinstance(mine, TokenKeys):
        standby = _standby(mine)
        near = standby if standby is not None and chosen.token == standby.token != mine.token else mine
        module, pin_file = module or near.module, pin_file or near.pin_file
    if module is None or pin_file is None:
        raise errors.MalformedRequest("--token needs --module and --pin-file")
    return TokenKeys(kind="pkcs11", module=module, token=chosen.token, pin_file=pin_file)


def _standby(settings: KeyStoreSettings) -> StandbyToken | None:
    return settings.standby if isinstance(settings, TokenKeys) else None


def _document(asset: KeyAsset) -> dict[str, object]:
    return {
        "label": asset.label,
        "store": asset.store,
        "purpose": str(asset.purpose),
        "kind": asset.kind,
        "policy": str(asset.policy),
        "users": asset.users,
        "fingerprint": asset.fingerprint,
        "ceremony": asset.ceremony,
        "status": str(asset.status),
        "created_at": asset.created_at,
        "backed_up_at": asset.backed_up_at,
        "backup_sha256": asset.backup_sha256,
    }


@keys.command("list")
def list_keys(
    context: typer.Context, *, settings: SettingsPath = DEFAULT_SETTINGS, as_json: AsJson = False
) -> None:
    """List the keys that are on record, whatever store they are in."""
    with session_of(context).application(settings) as application:
        found = [_document(asset) for asset in application.store.scan(KeyAsset)]
    if as_json:
        printing.line(printing.json_text(found))
        return
    heads = ("label", "purpose", "kind", "policy", "store", "status", "users", "backed_up_at")
    printing.columns(heads, ([row[head] for head in heads] for row in found))


class _Checked(NamedTuple):
    """What came of holding one store against the table."""

    store: str
    assets: int
    findings: tuple[KeyFinding, ...]

    @property
    def ok(self) -> bool:
        return not any(finding.severity is KeySeverity.ERROR for finding in self.findings)


def _checked(application: Application, place: _Place) -> _Checked:
    called = place.name.removesuffix(" (standby)")  # a token that was cloned has the label of the first
    findings = check_keys(application.store, place.keys, called)
    counted = sum(called in asset.stores for asset in application.store.scan(KeyAsset))
    return _Checked(place.name, counted, findings)


def _checked_document(found: _Checked) -> dict[str, object]:
    findings = [_finding(each) for each in found.findings]
    return {"store": found.store, "assets": found.assets, "findings": findings}


def _print_checked(found: _Checked) -> None:
    for finding in found.findings:
        about = f"{printing.shown(finding.label)}: " if finding.label else ""
        printing.line(f"{finding.severity}: {about}{printing.shown(finding.detail)} [{finding.rule}]")
    verdict = "ok" if found.ok else "NOT OK"
    printing.line(f"{found.assets} keys on record in {found.store}: {verdict}")


@keys.command()
def check(
    context: typer.Context,
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Hold the keys on record against the live store; exit 1 if a key is not what was decided.

    Of a token with a standby, both are looked at, one after the other.
    """
    with session_of(context).application(settings) as application:
        with _place(context, application) as place:
            checked = [_checked(application, place)]
        if place.keys is application.keys:
            further = list(application.key_stores.items())[1:]
            checked += [_checked(application, _Place(*each)) for each in further]
    wrong = not all(found.ok for found in checked)
    if as_json:
        pair = {"standby": _checked_document(checked[1])} if checked[1:] else {}
        printing.line(printing.json_text({"ok": not wrong, **_checked_document(checked[0]), **pair}))
    else:
        for found in checked:
            _print_checked(found)
    raise typer.Exit(1 if wrong else 0)


def _finding(finding: KeyFinding) -> dict[str, object]:
    return {
        "label": finding.label,
        "severity": str(finding.severity),
        "rule": finding.rule,
        "detail": finding.detail,
    }


@keys.command()
def adopt(
    context: typer.Context,
    label: Label,
    *,
    purpose: Annotated[KeyPurpose, typer.Option(help="What it is for.")],
    users: Annotated[
        str, typer.Option(metavar="NAMES", help="Services or roles that may use it, with commas.")
    ],
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Put a key that is in the store on record, if it is kept as its purpose wants."""
    with (
        session_of(context).acting(settings, as_directory) as (application, operator),
        _place(context, application) as place,
    ):
        adoption = _custody(application).adopt(
            operator.caller, place.keys, place.name, KeyLabel(label), purpose, users
        )
        asset = carry(application.store, adoption)
    printing.fields({"key": asset.label, "policy": asset.policy, "fingerprint": asset.fingerprint})


@keys.command()
def transport(
    context: typer.Context,
    label: Label,
    out: Annotated[Path, typer.Option(metavar="FILE", help="New file for its public key (PEM).")],
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """In the store that is to receive: make a key that only takes a key-encryption key in.

    Not in production: there a ceremony makes it. Read the fingerprint out where the key-encryption key is
    made, by another way than the file's.
    """
    with (
        session_of(context).acting(settings, as_directory) as (application, operator),
        _place(context, application) as place,
    ):
        spki = _generate(
            application,
            operator,
            place,
            KeyLabel(label),
            KeyPurpose.TRANSPORT,
            lambda: place.keys.generate_transport(KeyLabel(label)),
        )
    write_new_file(out, to_pem(spki, "PUBLIC KEY"))
    printing.fields({"key": label, "fingerprint": sha256(spki).hexdigest(), "public key": out})


@keys.command()
def kek(
    context: typer.Context,
    label: Label,
    *,
    officer_pin_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="PIN of the token's security officer, brought for this."),
    ] = None,
    recipient: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Public key (PEM) of a transport key; its share goes beside it."),
    ] = None,
    fingerprint: Annotated[
        list[str] | None,
        typer.Option(metavar="HEX", help="Of each transport key, as the custodians read it out."),
    ] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Make a key-encryption key that the token trusts, and encrypt it to the stores that will restore.

    Not in production: there a ceremony makes it, with its recipients. Afterwards the key leaves the token no
    more, for no further recipient either.
    """
    files = recipient or []
    recipients = _recipients(files, fingerprint or [])
    officer = (
        None if officer_pin_file is None else session_of(context).factory().read_secret(officer_pin_file)
    )
    with (
        session_of(context).acting(settings, as_directory) as (application, operator),
        _place(context, application) as place,
    ):
        made = _generate(
            application,
            operator,
            place,
            KeyLabel(label),
            KeyPurpose.KEK,
            lambda: place.keys.generate_secret(
                KeyLabel(label), SecretKind.KEK, recipients=recipients, officer=officer
            ),
        )
        shares = [file.with_suffix(".share") for file in files]
        for file, share in zip(shares, made.shares, strict=True):
            write_new_file(file, to_pem(share, "KEY SHARE"))
    printing.fields({"key": label, "check value": made.check_value, "shares": ", ".join(map(str, shares))})


@keys.command()
def master(
    context: typer.Context,
    label: Label,
    *,
    kind: Annotated[SecretKind, typer.Option(help="A kind diversify-aes-… or master-aes-….")],
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Make a master key from which the keys of devices are derived.

    Not in production: there a ceremony makes it. Its label names it for good: the next one has another.
    """
    with (
        session_of(context).acting(settings, as_directory) as (application, operator),
        _place(context, application) as place,
    ):
        made = _generate(
            application,
            operator,
            place,
            KeyLabel(label),
            KeyPurpose.MASTER_DIVERSIFICATION,
            lambda: place.keys.generate_secret(KeyLabel(label), kind),
        )
    printing.fields({"key": label, "kind": kind, "check value": made.check_value})


@keys.command()
def accept(
    context: typer.Context,
    label: Label,
    share: Annotated[Path, typer.Argument(metavar="FILE", help="The share that was made for this store.")],
    *,
    transport_key: Annotated[str, typer.Option("--transport", metavar="LABEL", help="The transport key.")],
    check_value: Annotated[str, typer.Option(metavar="HEX", help="As it was read out where it was made.")],
    kind: Annotated[SecretKind, typer.Option(help="What it is to be.")] = SecretKind.KEK,
    purpose: Annotated[KeyPurpose, typer.Option(help="What it is for.")] = KeyPurpose.KEK,
    users: Annotated[
        str, typer.Option(metavar="NAMES", help="Services or roles that may use it, with commas.")
    ] = "custodians",
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """In the store that is to receive: take a secret key in.

    A key-encryption key, whose share a ceremony leaves in its folder, under shares; or, with --kind and
    --purpose, a key of the maker of secure elements. The latter not in production: there a ceremony does it.
    """
    octets = _read(share)
    if octets.startswith(b"-----BEGIN "):
        octets = one_from_pem(octets.decode("ascii", "replace"), "KEY SHARE")
    with (
        session_of(context).acting(settings, as_directory) as (application, operator),
        _place(context, application) as place,
    ):
        custody = _custody(application)
        acceptance = custody.accept(
            operator.caller,
            place.keys,
            place.name,
            KeyLabel(label),
            octets,
            KeyLabel(transport_key),
            check_value,
            kind=kind,
            purpose=purpose,
            users=users,
        )
        asset = carry(application.store, acceptance)
    printing.fields({"key": asset.label, "check value": asset.fingerprint, "stores": asset.store})


@keys.command()
def backup(
    context: typer.Context,
    label: Label,
    *,
    kek_label: KekLabel,
    out: Annotated[Path, typer.Option(metavar="FILE", help="New file for the backup.")],
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Wrap a key that was made exportable under a key-encryption key, into a file."""
    if out.exists():
        raise errors.IllegalTransition(f"{out} exists already")
    with (
        session_of(context).acting(settings, as_directory) as (application, operator),
        _place(context, application) as place,
    ):
        made = _custody(application).back_up(
            operator.caller, place.keys, place.name, KeyLabel(label), KeyLabel(kek_label)
        )
        content = carry(application.store, made)
    write_new_file(out, content.decode())
    printing.fields({"key": label, "backup": out, "sha256": sha256(content).hexdigest()})


@keys.command()
def restore(
    context: typer.Context,
    backup_file: Annotated[Path, typer.Argument(metavar="FILE", help="From 'birthmark keys backup'.")],
    *,
    kek_label: Annotated[
        str | None,
        typer.Option("--kek", metavar="LABEL", help="The key-encryption key here. [as the file says]"),
    ] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Bring a key back from its backup; says so once the key has signed."""
    content = _read(backup_file)
    with (
        session_of(context).acting(settings, as_directory) as (application, operator),
        _place(context, application) as place,
    ):
        restoration = _custody(application).restore(
            operator.caller,
            place.keys,
            place.name,
            content,
            None if kek_label is None else KeyLabel(kek_label),
        )
        asset = carry(application.store, restoration)
    printing.fields({"key": asset.label, "fingerprint": asset.fingerprint, "stores": asset.store})
    printing.line("the key has signed, and its public key verified it")


def _custody(application: Application) -> KeyCustody:
    return KeyCustody(application.realm, application.clock, application.entropy)


def _generate(
    application: Application,
    operator: Operator,
    place: _Place,
    label: KeyLabel,
    purpose: KeyPurpose,
    make: Callable[[], T],
) -> T:
    making = _custody(application).generate(operator.caller, place.keys, place.name, label, purpose, make)
    return carry(application.store, making)


def _recipients(files: list[Path], fingerprints: list[str]) -> list[bytes]:
    """Read the transport keys, each of which must be one that was read out.

    Raises:
        errors.PolicyRefused: one was not (rule ``transport-fingerprint``).
    """
    found = []
    for file in files:
        spki = one_from_pem(_read(file).decode("ascii", "replace"), "PUBLIC KEY")
        digest = sha256(spki).hexdigest()
        if digest not in {text.strip().lower() for text in fingerprints}:
            raise errors.PolicyRefused(
                "transport-fingerprint", f"{file} has fingerprint {digest}, which nobody read out"
            )
        found.append(spki)
    return found


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(BACKUP_LIMIT + 1)
    except OSError as failure:
        raise errors.NotFound(f"{path} cannot be read: {os.strerror(failure.errno or 0)}") from failure
