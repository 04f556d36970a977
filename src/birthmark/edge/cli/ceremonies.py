"""``birthmark ceremony``: how keys and authorities come to be (SPEC A3).

The file is reviewed, rehearsed, and performed by custodians; what is left is a signed record whose hash is in
the log.  What needs a key elsewhere goes out as a request and comes back as an answer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.cli import printing
from birthmark.edge.cli.ceremony_conduct import (
    Papers,
    asked,
    conduct,
    handed_over,
    known_here,
    lines_here,
    offline_stores,
    rehearsed,
    sealed,
    service_name,
)
from birthmark.edge.cli.ceremony_drafts import template
from birthmark.edge.cli.ceremony_folder import (
    CeremonyFolder,
    Request,
    answer_text,
    read_ceremony,
    read_request,
)
from birthmark.edge.cli.ceremony_options import (
    WAITING,
    BroughtCertificate,
    CeremonyFile,
    Custodians,
    OfficerPin,
    OutFolder,
    OwnProfiles,
    Reviewed,
    Stores,
    papers_of,
)
from birthmark.edge.cli.credentials import write_new_file
from birthmark.edge.cli.key_folders import CUSTODIAN_LABEL, make_custodian, make_key_folder
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, SettingsPath
from birthmark.edge.cli.session import Operator, Session, session_of
from birthmark.edge.cli.settings_text import KeyPlace
from birthmark.floor.ceremonies import SERVICE, Ceremony, CeremonyRecord
from birthmark.floor.clients import check_name
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.pki import profiles
from birthmark.pki.certificates import to_pem
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.profiles import Catalogue
from birthmark.ports import carry
from birthmark.services import ceremony_file
from birthmark.services.ceremonies import Bench, Waiting, commit, require_own, succeed
from birthmark.services.ceremony_judgement import require_realm
from birthmark.services.ceremony_pages import rows_of
from birthmark.services.ceremony_record import Record, Verified, pages, replay
from birthmark.services.ceremony_record import verify as verify_record
from birthmark.services.ceremony_steps import Known, Loader, Progress

__all__ = ["ceremonies"]

ceremonies = typer.Typer(
    name="ceremony",
    no_args_is_help=True,
    help="Ceremonies: keys and authorities come to be in no other way.",
)
ceremonies.command()(template)


# --- before it is performed ---------------------------------------------------------------------------------


def _rehearsed(session: Session, ceremony: Ceremony, settings: Path) -> Progress:
    factory = session.factory()
    if not settings.exists():
        return rehearsed(factory, ceremony, Known(), profiles.load, {})
    with session.application(settings) as application:
        require_realm(application.realm, ceremony)
        known, lines = known_here(application), lines_here(application, ceremony)
        return rehearsed(factory, ceremony, known, application.catalogue.load, lines)


def _head(ceremony: Ceremony) -> dict[str, object]:
    return {
        "ceremony": ceremony.id,
        "realm": f"{ceremony.realm} ({ceremony.environment})",
        "purpose": ceremony.purpose,
        "custodians": f"{ceremony.required} of {', '.join(one.id for one in ceremony.custodians)}",
        "steps": len(ceremony.steps),
        "sha256": ceremony.sha256,
    }


@ceremonies.command()
def validate(
    context: typer.Context,
    file: CeremonyFile,
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """See whether a file can be performed, as far as that is known without any key, and print its SHA-256.

    Every certificate is built and linted and every licence held against the one above.  With settings, the
    authorities that the realm has are known; without, the file must make all that it names.
    """
    ceremony = read_ceremony(file)
    _rehearsed(session_of(context), ceremony, settings)
    shown = _head(ceremony)
    printing.line(printing.json_text(shown)) if as_json else printing.fields(shown)


@ceremonies.command()
def rehearse(
    context: typer.Context,
    file: CeremonyFile,
    *,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Do all of it on throwaway keys and print what will be; realm and key stores stay as they are.

    Serial numbers, fingerprints and times are those of the rehearsal.
    """
    ceremony = read_ceremony(file)
    progress = _rehearsed(session_of(context), ceremony, settings)
    if as_json:
        steps = [{"step": title, "comes_to": dict(rows)} for title, rows in rows_of(progress)]
        printing.line(printing.json_text(_head(ceremony) | {"steps": steps}))
        return
    printing.fields(_head(ceremony))
    for title, rows in rows_of(progress):
        printing.line()
        printing.line(title)
        printing.fields({f"  {name}": value for name, value in rows})


# --- performing ---------------------------------------------------------------------------------------------


@ceremonies.command()
def perform(
    context: typer.Context,
    file: CeremonyFile,
    *,
    custodian: Custodians,
    reviewed: Reviewed,
    store: Stores = None,
    certificate: BroughtCertificate = None,
    officer_pin_file: OfficerPin = None,
    out: OutFolder = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Perform a ceremony: enough custodians, each challenged by itself, then every step of the file.

    Every event is written down before the next thing happens: a ceremony that was interrupted is performed
    again with the same command and goes on.  Where a key is elsewhere, a request is written and the exit code
    is 3; give the same command with --certificate when the answer is there.
    """
    session = session_of(context)
    factory = session.factory()
    ceremony = read_ceremony(file)
    papers = papers_of(factory, ceremony, (custodian, reviewed, store, certificate, officer_pin_file))
    place = out or file.with_suffix(".ceremony")
    with session.acting(settings, as_directory) as (application, operator):
        carry(application.store, require_own(operator.caller, application.realm, ceremony))
        folder = CeremonyFolder(place, ceremony)
        try:
            done = _settled(application, ceremony, folder) or _perform(
                session, application, operator, papers, folder
            )
        finally:
            folder.close()
    if isinstance(done, Waiting):
        printing.line(f"{done.reason}")
        printing.line(
            f"take {place / f'{ceremony.id}.request'} there, and bring the answer with --certificate"
        )
        raise typer.Exit(WAITING)
    _say_done(done, place, as_json=as_json)


def _settled(application: Application, ceremony: Ceremony, folder: CeremonyFolder) -> Record | None:
    """Write what is left of a ceremony that was performed already, if it was."""
    row = application.store.look({CeremonyRecord: (ceremony.id,)}).get(CeremonyRecord, ceremony.id)
    if row is None or row.file_sha256 != ceremony.sha256:
        return None
    record = Record.decode(row.record)
    progress = replay(ceremony, record.body, application.catalogue.load)
    folder.finish(progress, record, application.store.token(row.leaf), application.realm.vkey)
    return record


def _perform(
    session: Session,
    application: Application,
    operator: Operator,
    papers: Papers,
    folder: CeremonyFolder,
) -> Record | Waiting:
    ceremony, factory = papers.ceremony, session.factory()
    people = papers.attendants(factory)
    record = folder.record()
    if record is None:
        carry(application.store, succeed(operator.caller, ceremony, [one.id for one in people]))
        lines = lines_here(application, ceremony)
        known = known_here(application)
        progress = Progress(ceremony, known, application.catalogue.load, lines=lines)
        with offline_stores(factory, papers.stores) as offline:
            stores = {SERVICE: application.keys, **offline}
            answer = papers.answer()
            bench = Bench(
                stores=stores,
                clock=application.clock,
                entropy=application.entropy,
                lines=lines,
                brought=answer.certificate,
                officer=papers.officer,
            )
            waiting = conduct(folder, progress, (people, "online"), bench, answer=answer.events)
            if waiting is not None:
                asked(folder, progress, people, bench, waiting)
                return waiting
            record = sealed(folder, progress, people, application.clock, stores)
    else:
        progress = replay(ceremony, record.body, application.catalogue.load)
    performed = carry(
        application.store,
        commit(operator.caller, progress, record, service_name(application.settings)),
    )
    proof = application.store.token(performed.row.leaf)
    folder.finish(progress, record, proof, application.realm.vkey)
    return record


def _say_done(record: Record, place: Path, *, as_json: bool) -> None:
    shown = {
        "ceremony": record.body["ceremony"],
        "performed_at": record.body["performed_at"],
        "custodians": ", ".join(record.signers),
        "record_sha256": record.sha256,
        "folder": str(place),
    }
    printing.line(printing.json_text(shown)) if as_json else printing.fields(shown)
    if not as_json:
        printing.line(f"print {place / 'record.html'}, and have it signed by hand, too")


@ceremonies.command()
def sign(
    context: typer.Context,
    request: Annotated[Path, typer.Argument(metavar="REQUEST", help="What the other machine wrote.")],
    file: CeremonyFile,
    *,
    custodian: Custodians,
    reviewed: Reviewed,
    store: Stores = None,
    own: OwnProfiles = None,
    out: OutFolder = None,
) -> None:
    """Do what a request asks for, on a machine without the realm: exactly what the file orders.

    Needs the offline key folder and the custodians, and neither settings nor database.  The answer it writes
    is a certificate for everybody and, below it, the events for 'birthmark ceremony perform --certificate'.
    """
    factory = session_of(context).factory()
    ceremony = read_ceremony(file)
    papers = papers_of(factory, ceremony, (custodian, reviewed, store, None, None))
    wanted = read_request(request, ceremony)
    people = papers.attendants(factory)
    load = Catalogue.read(own).load
    progress = Progress(ceremony, wanted.known, load, lines=wanted.lines)
    folder = CeremonyFolder(out or file.with_suffix(f".offline-{len(wanted.events)}"), ceremony)
    try:
        with offline_stores(factory, papers.stores) as stores:
            bench = Bench(stores=stores, clock=factory.clock(), entropy=factory.entropy(), lines=wanted.lines)
            waiting = conduct(folder, progress, (people, "offline"), bench, before=wanted.events)
        events = progress.events[len(wanted.events) :]
        if not any(event["event"] == "step" for event in events):
            raise errors.NotFound(waiting.reason if waiting else "the request asks for nothing")
        handed_over(folder, progress, people, factory.clock(), wanted.context)
        events = progress.events[len(wanted.events) :]
        made = [name for name in progress.certificates if name not in _before(wanted, ceremony, load)]
        answer = folder.write_text(
            f"{ceremony.id}.answer",
            answer_text(ceremony, [progress.certificates[name] for name in made], events),
        )
    finally:
        folder.close()
    printing.line(f"{answer}: {len(events)} events; take it back with --certificate")


def _before(asked: Request, ceremony: Ceremony, load: Loader) -> Mapping[str, bytes]:
    earlier = Progress(ceremony, asked.known, load, lines=asked.lines)
    for event in asked.events:
        earlier.take(event)
    return earlier.certificates


# --- afterwards ---------------------------------------------------------------------------------------------


@ceremonies.command()
def verify(
    place: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder that a ceremony left, or its record.json.")
    ],
    *,
    vkey: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The log's key, from somebody else than the folder. [DIR/log.vkey]"
        ),
    ] = None,
    own: OwnProfiles = None,
    as_json: AsJson = False,
) -> None:
    """Check a ceremony's record offline: custodians, keys, certificates, pages and the log's proof."""
    found = _verified(place if place.is_dir() else place.parent, vkey, Catalogue.read(own).load)
    notes = list(found.notes)
    if vkey is None:
        notes.append("the log's key is the folder's own: compare it with one from elsewhere")
    shown: dict[str, object] = {
        **_head(found.progress.ceremony),
        "performed_at": found.record.body["performed_at"],
        "signed_by": ", ".join(found.record.signers),
        "record_sha256": found.record.sha256,
        "certificates": len(found.progress.certificates),
        "keys": len(found.progress.keys),
    }
    if as_json:
        printing.line(printing.json_text(shown | {"notes": notes}))
        return
    printing.fields(shown)
    for note in notes:
        printing.line(f"note: {note}")
    printing.line("ok")


def _verified(place: Path, vkey: Path | None, load: Loader) -> Verified:
    found = verify_record(
        _octets(place / "ceremony.yaml"),
        _octets(place / "record.json"),
        (_text(place / "record.txt"), _text(place / "record.html")),
        _text(place / "record.tlog-proof"),
        VerifierKey.parse(_text(vkey or place / "log.vkey")),
        load,
    )
    _require_files(place, found.progress)
    return found


def _octets(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as cause:
        raise errors.NotFound(f"{path} cannot be read: {cause.strerror}") from cause


def _text(path: Path) -> str:
    try:
        return _octets(path).decode()
    except UnicodeDecodeError as cause:
        raise errors.MalformedRequest(f"{path} is not utf-8") from cause


def _require_files(place: Path, progress: Progress) -> None:
    """Refuse a folder whose certificates and lists are not the record's."""
    wanted = {f"certificates/{name}.crt": to_pem(der).encode() for name, der in progress.certificates.items()}
    wanted |= {f"crls/{name}.crl": octets for name, octets in progress.crls.items()}
    for name, content in wanted.items():
        if _octets(place / name) != content:
            raise errors.IntegrityFailure(f"{place / name} is not what the record says")


def _rows(application: Application) -> list[CeremonyRecord]:
    return sorted(application.store.scan(CeremonyRecord), key=lambda row: row.leaf)


@ceremonies.command("list")
def list_ceremonies(
    context: typer.Context, *, settings: SettingsPath = DEFAULT_SETTINGS, as_json: AsJson = False
) -> None:
    """List the ceremonies that were performed, the oldest first."""
    with session_of(context).application(settings) as application:
        rows = [
            {
                "id": row.id,
                "performed_at": row.performed_at,
                "custodians": ", ".join(Record.decode(row.record).signers),
                "leaf": row.leaf,
                "purpose": ceremony_file.parse(row.file).purpose,
                "file_sha256": row.file_sha256,
                "record_sha256": row.record_sha256,
            }
            for row in _rows(application)
        ]
    if as_json:
        printing.line(printing.json_text(rows))
        return
    keys = ("id", "performed_at", "custodians", "leaf", "purpose")
    printing.columns(keys, ([row[key] for key in keys] for row in rows))


@ceremonies.command()
def show(
    context: typer.Context,
    ceremony: Annotated[str, typer.Argument(metavar="ID")],
    *,
    file: Annotated[bool, typer.Option("--file", help="Print the reviewed file instead.")] = False,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Show the record of a ceremony, as its custodians signed it."""
    with session_of(context).application(settings) as application:
        row = application.store.look({CeremonyRecord: (ceremony,)}).get(CeremonyRecord, ceremony)
        if row is None:
            raise errors.NotFound(f"there was no ceremony {ceremony[:64]}")
        record = Record.decode(row.record)
        ordered = ceremony_file.parse(row.file)
        progress = replay(ordered, record.body, application.catalogue.load)
    if file:
        printing.line(row.file.decode().rstrip("\n"))
    elif as_json:
        printing.line(printing.json_text(record.body))
    else:
        printing.line(pages(progress, record)[0].rstrip("\n"))


# --- credentials and key folders ----------------------------------------------------------------------------

_Module = Annotated[
    Path | None, typer.Option(metavar="PATH", help="Keep the key in a token: its PKCS#11 library.")
]
_Label = Annotated[str, typer.Option(metavar="LABEL", help="The token's label.")]
_Pin = Annotated[Path | None, typer.Option(metavar="FILE", help="The token's user PIN.")]
_Passphrase = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Passphrase of the key. [generated: DIR/passphrase; keep it elsewhere]"
    ),
]


def _place(module: Path | None, label: str, pin: Path | None, passphrase: Path | None) -> KeyPlace:
    if module is not None and (not label or pin is None or passphrase is not None):
        raise errors.MalformedRequest("a token needs --token-label and --token-pin-file, and no passphrase")
    return KeyPlace(token=module, token_label=label, pin_file=pin, passphrase_file=passphrase)


@ceremonies.command()
def custodian(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Id of the person, as files will name it.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory to make.")],
    *,
    passphrase_file: _Passphrase = None,
    token_module: _Module = None,
    token_label: _Label = "",
    token_pin_file: _Pin = None,
    key_label: Annotated[str, typer.Option(metavar="LABEL", help="The key's label.")] = str(CUSTODIAN_LABEL),
    key_algorithm: Annotated[KeyAlgorithm, typer.Option(help="Of the key.")] = KeyAlgorithm.EC_P256,
) -> None:
    """Make a custodian's credential: a key of the person's own, which attends ceremonies and nothing else.

    Prints the public key, which goes into the files that name the person.
    """
    check_name("custodian", name)
    place = _place(token_module, token_label, token_pin_file, passphrase_file)
    public = make_custodian(session_of(context).factory(), directory, place, key_algorithm, key_label)
    pem = to_pem(public, "PUBLIC KEY")
    write_new_file(directory / f"{name}.pem", pem)
    printing.line(pem.rstrip("\n"))


@ceremonies.command("store")
def make_store(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory to make.")],
    *,
    passphrase_file: _Passphrase = None,
    token_module: _Module = None,
    token_label: _Label = "",
    token_pin_file: _Pin = None,
) -> None:
    """Make the folder of an offline key store, to be brought to ceremonies with --store NAME=DIR."""
    place = _place(token_module, token_label, token_pin_file, passphrase_file)
    make_key_folder(session_of(context).factory(), directory, place)
    printing.line(f"{directory}: bring it to ceremonies, and keep it locked away otherwise")
