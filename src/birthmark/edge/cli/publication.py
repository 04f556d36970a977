"""``birthmark publish`` and ``birthmark responder``: what relying parties get, and who answers them.

``publish`` looks once, or again and again (``--watch``), and makes anew what changed or is due; its exit code
and its log lines are what monitoring looks at.  ``responder`` gives a key the right to answer for an
authority; the key may be on another host, whose public half then comes as a file.
"""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from birthmark import errors
from birthmark.edge.application import Application, Factory
from birthmark.edge.cli import printing
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsDirectory, AsJson, Reason, SettingsPath
from birthmark.edge.cli.session import opened, session_of
from birthmark.floor.authorities import Authority
from birthmark.floor.clients import Role, check_name
from birthmark.floor.locations import responder_folder, responder_path
from birthmark.pki.certificates import one_from_pem, to_pem
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.ports import KeyStore, Publication, carry
from birthmark.services.publish import Publish, Report
from birthmark.services.responders import AnswerSelection, SignedBeforehand, sign_answers
from birthmark.settings import Settings, load

__all__ = ["publish", "responders"]

log = logging.getLogger(__name__)

DEFAULT_RESPONDER = "ocsp"
ENDING = frozenset({signal.SIGTERM, signal.SIGINT})


def publish(
    context: typer.Context,
    *,
    watch: Annotated[
        bool, typer.Option("--watch", help="Go on until SIGTERM, as often as the settings say.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Publish nothing; exit 1 if anything is late, missing or behind.")
    ] = False,
    crl: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A CRL (DER) that an offline authority signed; may be repeated."),
    ] = None,
    ocsp: Annotated[
        bool, typer.Option("--ocsp", help="Sign OCSP answers beforehand, now, for what the next options say.")
    ] = False,
    authority: Annotated[
        list[str] | None, typer.Option(help="With --ocsp: of these authorities. [all that delegate]")
    ] = None,
    run: Annotated[list[str] | None, typer.Option(help="With --ocsp: of these runs only.")] = None,
    batch: Annotated[list[str] | None, typer.Option(help="With --ocsp: of these batches only.")] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Publish CRLs, certificates and log tiles: what changed or is due; exit 1 if there is an alarm."""
    if watch and (check or crl):
        raise errors.MalformedRequest("--watch goes with neither --check nor --crl")
    if ocsp and (watch or check):
        # What is watched is signed as the settings say; to check is to change nothing.
        raise errors.MalformedRequest("--ocsp goes with neither --watch nor --check")
    if (authority or run or batch) and not ocsp:
        raise errors.MalformedRequest("--authority, --run and --batch say of what --ocsp signs answers")
    loaded = load(settings)
    if watch or check:
        _log_as_json()
    if watch:
        # Before any thread is started: one that does not block them would end the process in their stead.
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    with session_of(context).application(settings) as application:
        publisher, publication = _publisher(application)
        for file in crl or ():
            taken = publisher.take_in(_read(file))
            printing.line(
                f"published {taken.path}, number {taken.number}, until {printing.shown(taken.next_update)}"
            )
        if watch:
            _watch(session_of(context).factory(), loaded, application)
            return
        report = publisher.check() if check else publisher.cycle()
        if not check:
            application.responders.renew(application.store, publication)
        signed: list[SignedBeforehand] = []
        if ocsp:
            chosen = (frozenset(run or ()), frozenset(batch or ()))
            signed = _sign(session_of(context).factory(), loaded, application, authority, *chosen)
    _print(report, signed, as_json=as_json)
    raise typer.Exit(1 if report.alarms else 0)


def _log_as_json() -> None:
    from birthmark.edge.http.servicelog import configure_log  # noqa: PLC0415  # only who goes on for ever needs it

    configure_log()


def _publisher(application: Application) -> tuple[Publish, Publication]:
    if application.publish is None or application.publication is None:
        raise errors.NotFound("the settings have no [publication]: this host publishes nothing")
    return application.publish, application.publication


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as cause:
        raise errors.NotFound(f"{file} cannot be read: {cause.strerror}") from cause


def _print(report: Report, signed: list[SignedBeforehand], *, as_json: bool) -> None:
    if as_json:
        shown = {
            "crls": [
                {"path": one.path, "number": one.number, "octets": one.octets, "until": one.next_update}
                for one in report.built
            ],
            "certificates": report.certificates,
            "log_size": report.log_size,
            "answers": [
                {"authority": one.authority, "answers": one.answers, "until": one.until} for one in signed
            ],
            "alarms": [
                {
                    "alarm": one.kind,
                    "authority": one.authority,
                    "partition": one.partition,
                    "what": one.detail,
                }
                for one in report.alarms
            ],
        }
        printing.line(printing.json_text(shown))
        return
    for one in report.built:
        printing.line(f"published {one.path}, {one.octets} octets, until {printing.shown(one.next_update)}")
    for answers in signed:
        printing.line(
            f"signed {answers.answers} answers for {answers.authority}, until {printing.shown(answers.until)}"
        )
    for alarm in report.alarms:
        printing.line(f"{alarm.kind}: {printing.shown(alarm.detail)}")
    if not report.alarms:
        printing.line("ok")


# --- watching


def _watch(factory: Factory, settings: Settings, application: Application) -> None:
    """Publish until told to stop; what fails now is tried again at the next look."""
    publisher, publication = _publisher(application)
    terms = settings.publication
    signed_at: datetime | None = None
    while True:
        try:
            report = publisher.cycle()
            application.responders.renew(application.store, publication)
            now = application.clock.now()
            due = signed_at is None or now - signed_at >= timedelta(hours=terms.ocsp_refresh_hours)
            if terms.ocsp and (due or report.built):
                _sign(factory, settings, application, None, frozenset(), frozenset())
                signed_at = now
        except errors.IntegrityFailure:
            raise
        except errors.Refusal as failed:
            log.error("publishing failed: %s", failed)  # noqa: TRY400  # a refusal is told, not traced
        if signal.sigtimedwait(ENDING, terms.watch_seconds) is not None:
            return


def _sign(
    factory: Factory,
    settings: Settings,
    application: Application,
    authorities: list[str] | None,
    runs: frozenset[str],
    batches: frozenset[str],
) -> list[SignedBeforehand]:
    """Sign answers beforehand; without names, for every authority that has delegated to the responder."""
    _, publication = _publisher(application)
    terms, name = settings.publication, _responder(settings)
    if authorities is None:
        authorities = []
        for authority in application.store.scan(Authority):
            with publication.read(responder_path(name, authority.id)) as octets:
                if octets is not None:
                    authorities.append(authority.id)
    with _responder_keys(factory, settings, application) as keys:
        return [
            sign_answers(
                application.store,
                publication,
                keys.sign,
                application.clock,
                AnswerSelection(authority=authority, runs=runs, batches=batches),
                responder=name,
                validity=timedelta(hours=terms.ocsp_hours),
                algorithms=terms.ocsp_hashes,
            )
            for authority in authorities
        ]


@contextmanager
def _responder_keys(factory: Factory, settings: Settings, application: Application) -> Iterator[KeyStore]:
    """Open the store of the responder's key, if it is not the one that is open."""
    own = settings.responder_key_store
    context = nullcontext(application.keys) if own == settings.key_store_table else opened(factory, own)
    with context as keys:
        yield keys


# --- responders

responders = typer.Typer(name="responder", no_args_is_help=True, help="Who answers OCSP for an authority.")

Name = Annotated[
    str | None, typer.Option("--name", help="Of the responder, and label of its key. [as the settings say]")
]


def _responder(settings: Settings, name: str | None = None) -> str:
    if name is not None:
        return name
    return DEFAULT_RESPONDER if settings.public_table is None else settings.public_table.responder


@responders.command()
def key(context: typer.Context, *, name: Name = None, settings: SettingsPath = DEFAULT_SETTINGS) -> None:
    """Print the responder's public key (PEM), made in its key store if it is not there."""
    loaded = load(settings)
    with opened(session_of(context).factory(), loaded.responder_key_store) as keys:
        printing.line(to_pem(_public_key(keys, _responder(loaded, name)), "PUBLIC KEY").rstrip("\n"))


def _public_key(keys: KeyStore, name: str) -> bytes:
    label = KeyLabel(check_name("responder", name, longest=40))
    return keys.public_key(label) if label in keys.labels() else keys.generate(label, KeyAlgorithm.EC_P256)


@contextmanager
def _told_if_busy(what: str) -> Iterator[None]:
    """What is on record is done: who publishes at this moment, or next, publishes it, too."""
    try:
        yield
    except errors.Unavailable as busy:
        printing.warn(f"{what} will be published by the next 'birthmark publish': {printing.shown(busy)}")


@responders.command()
def enrol(
    context: typer.Context,
    *,
    authority: Annotated[str, typer.Option(help="The authority that it may answer for.")],
    name: Name = None,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Its public key (PEM), from 'responder key' there. [one in the key store here]",
        ),
    ] = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
    as_json: AsJson = False,
) -> None:
    """Let a key answer for an authority, for 30 days; 'publish' renews that and publishes the certificate."""
    loaded = load(settings)
    with session_of(context).acting(settings, as_directory) as (application, operator):
        called = _responder(loaded, name)
        if key is not None:
            spki = one_from_pem(_read(key).decode("ascii", "replace"), "PUBLIC KEY")
        else:
            with _responder_keys(session_of(context).factory(), loaded, application) as keys:
                spki = _public_key(keys, called)
        use_case = application.responders.enrol(operator.caller, called, authority, spki)
        certificate = carry(application.store, use_case)
        if application.publication is not None:
            with _told_if_busy(f"the certificate of {called}"), application.publication.lock():
                application.publication.publish(responder_path(called, authority), (certificate.der,))
    shown = {
        "responder": f"{Role.RESPONDER}:{called}",
        "authority": authority,
        "certificate": certificate.serial_hex,
        "until": certificate.not_after,
    }
    if as_json:
        printing.line(printing.json_text(shown))
    else:
        printing.fields(shown)


@responders.command()
def revoke(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    *,
    reason: Reason,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_directory: AsDirectory = None,
) -> None:
    """Renew a responder's certificates no more: relying parties believe it until the last of them ends."""
    with session_of(context).acting(settings, as_directory) as (application, operator):
        client = f"{Role.RESPONDER}:{name}"
        carry(application.store, application.authorise.revoke(operator.caller, client, reason))
        if application.publication is not None:
            with _told_if_busy(f"that {name} is revoked"), application.publication.lock():
                application.publication.withdraw(responder_folder(name))
    printing.line(f"{client} is revoked")
