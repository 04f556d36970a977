"""``birthmark history``: all that the log says of one subject, and where it stood at any instant (SPEC E6).

On a live realm or, with ``--bundle``, on an exported log with nothing but its public key.
"""

import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer

from birthmark import errors
from birthmark.edge.cli import printing
from birthmark.edge.cli.inputs import device_id, moment
from birthmark.edge.cli.options import DEFAULT_SETTINGS, AsJson, SettingsPath
from birthmark.edge.cli.session import session_of
from birthmark.ledger.bundle import Bundle
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.ledger.proof import MEDIA_EXTENSION
from birthmark.services.chronicle_states import CertificateState
from birthmark.services.entry_fields import Entry
from birthmark.services.investigate import History, Subject, SubjectKind, history, subject_of
from birthmark.services.investigate_record import certificates_of, compare
from birthmark.services.log_reading import LogCopy, log_of, log_of_bundle

__all__ = ["BundleFile", "VkeyFile", "opened_bundle", "show_history"]

BundleFile = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="FILE", help="Read this exported log instead; needs --vkey."),
]
VkeyFile = Annotated[
    Path | None,
    typer.Option("--vkey", metavar="FILE", help="With --bundle: the log's key, from somebody you trust."),
]
_COMMON = frozenset({"v", "at", "realm", "environment", "actor", "seq", "operator", "kind"})
_LONGEST = 60
_TRIES = 3


@contextmanager
def opened_bundle(path: Path, vkey: Path | None) -> Iterator[LogCopy]:
    """Open an exported log.

    Raises:
        errors.NotFound: a file cannot be read.
        errors.MalformedRequest: it is no bundle, or no key came with it.
    """
    if vkey is None:
        raise errors.MalformedRequest(
            "say with --vkey by which key the log is signed: not its own copy of it"
        )
    try:
        key = VerifierKey.parse(vkey.read_text(encoding="utf-8"))
        with path.open("rb") as file, Bundle(file) as bundle:
            yield log_of_bundle(bundle, key)
    except UnicodeDecodeError as cause:
        raise errors.MalformedRequest(f"{vkey} is not text in UTF-8") from cause
    except OSError as cause:
        raise errors.NotFound(f"{cause.filename} cannot be read: {cause.strerror}") from cause


def show_history(
    context: typer.Context,
    subject: Annotated[
        str,
        typer.Argument(
            metavar="SUBJECT",
            help="vin:…, station:ST01, operator:anna, authority:ID, run:ID, key:LABEL, or a serial number.",
        ),
    ],
    *,
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="The state at that instant. [the newest]")
    ] = None,
    proofs: Annotated[
        Path | None,
        typer.Option(
            "--proofs", metavar="DIR", help="Write the proof of each entry into this new directory, too."
        ),
    ] = None,
    certificates: Annotated[
        list[Path] | None,
        typer.Option(
            "--certificate",
            metavar="FILE",
            help="With --bundle: a certificate, to know when it ends; may be given again.",
        ),
    ] = None,
    bundle: BundleFile = None,
    vkey: VkeyFile = None,
    settings: SettingsPath = DEFAULT_SETTINGS,
    as_json: AsJson = False,
) -> None:
    """Tell all that the log says of a subject, and where it stood at an instant.

    The whole log is read and its root computed again, so that nothing is changed and nothing left out. Where
    the record contradicts the log, that is told, and the exit code is 1.
    """
    asked = _subject(subject)
    instant = None if at is None else moment(at)
    contradictions: tuple[str, ...] = ()
    if proofs is not None and proofs.exists():
        raise errors.IllegalTransition(f"{proofs} exists already")
    if bundle is not None:
        held = _certificates(certificates or [])
        with opened_bundle(bundle, vkey) as copy, printing.progress("reading") as advance:
            found = history(
                copy, asked, at=instant, certificates=lambda one: held.get(one.sha256 or ""), told=advance
            )
    else:
        if vkey is not None or certificates:
            raise errors.MalformedRequest("--vkey and --certificate go with --bundle")
        found, contradictions = _live(context, settings, asked, instant)
    wrong = (*found.contradictions, *contradictions)
    if proofs is not None:
        _write_proofs(proofs, found)
    if as_json:
        printing.line(printing.json_text(_document(found, wrong)))
    else:
        _print(found, wrong)
    raise typer.Exit(1 if wrong else 0)


def _live(
    context: typer.Context, settings: Path, asked: Subject, instant: datetime | None
) -> tuple[History, tuple[str, ...]]:
    """Ask a realm's own log; return also where the record contradicts it."""
    with session_of(context).application(settings) as application, printing.progress("reading") as advance:
        if instant is not None and instant > application.clock.now():
            raise errors.MalformedRequest(f"{instant} is in the future")
        tries = 0
        while True:
            tries += 1
            found = history(
                log_of(application.log, application.realm),
                asked,
                at=instant,
                certificates=certificates_of(application.store),
                told=advance,
            )
            wrong = compare(application.store, found.now)
            if not wrong or tries == _TRIES or found.log.note == application.store.checkpoint():
                return found, wrong
            # Something was committed in between: look at both again.


def _subject(text: str) -> Subject:
    found = subject_of(text)
    return Subject(kind=found.kind, name=device_id(text)) if found.kind is SubjectKind.DEVICE else found


def _certificates(paths: Iterable[Path]) -> dict[str, bytes]:
    """Return certificates by their fingerprints."""
    held = {}
    for path in paths:
        try:
            octets = path.read_bytes()
        except OSError as cause:
            raise errors.NotFound(f"{path} cannot be read: {cause.strerror}") from cause
        try:
            text = octets.decode("ascii")
            der = ssl.PEM_cert_to_DER_cert(text) if "-----BEGIN" in text else octets
        except UnicodeDecodeError:
            der = octets
        except ValueError as cause:
            raise errors.MalformedRequest(f"{path} is no certificate in PEM") from cause
        held[sha256(der).hexdigest()] = der
    return held


def _write_proofs(directory: Path, found: History) -> None:
    try:
        directory.mkdir(parents=True)
        for event in found.events:
            path = directory / f"{event.index}{MEDIA_EXTENSION}"
            path.write_text(found.proof(event), encoding="utf-8")
    except OSError as cause:
        raise errors.Unavailable(f"{directory} cannot be written: {cause.strerror}") from cause


def _document(found: History, wrong: Iterable[str]) -> dict[str, Any]:
    return {
        "subject": str(found.subject),
        "kind": str(found.subject.kind),
        "at": found.at,
        "checkpoint": found.log.note,
        "log_size": found.log.checkpoint.size,
        "state": asdict(found.state),
        "entries": [{"index": event.index, "entry": event.read()} for event in found.events],
        "later": found.later,
        "acts": {kind: asdict(acts) for kind, acts in found.acts.items()},
        "contradictions": list(wrong),
    }


def _print(found: History, wrong: Iterable[str]) -> None:
    rows = [_row(event.index, event.read()) for event in found.events]
    printing.columns(("entry", "at", "what", "actor", "said"), rows)
    for kind, acts in found.acts.items():
        printing.line(f"{acts.count} times {kind}, from {acts.first} to {acts.last}")
    if found.later:
        printing.line(f"{found.later} entries are later than that")
    printing.line()
    printing.fields(_state(asdict(found.state)) | {"as of": found.at or "the end of the log"})
    for one in _certificates_in(found):
        printing.line()
        printing.fields(_state(asdict(one)))
    printing.line()
    size = found.log.checkpoint.size
    printing.line(f"read and verified: all {size} entries under the checkpoint over {size}")
    for contradiction in wrong:
        printing.line(f"CONTRADICTION: {printing.shown(contradiction)}")


def _certificates_in(found: History) -> tuple[CertificateState, ...]:
    return getattr(found.state, "certificates", ())


def _row(index: int, entry: Entry) -> tuple[object, ...]:
    operator = f" ({entry['operator']})" if "operator" in entry else ""
    said = [
        f"{name}={value}"
        for name, value in entry.items()
        if name not in _COMMON and isinstance(value, str | int) and len(str(value)) <= _LONGEST
    ]
    return index, entry["at"], entry["kind"], f"{entry['actor']}{operator}", " ".join(said)


def _state(state: Mapping[str, Any]) -> dict[str, object]:
    """Return a state as names and values, authorities as one line each."""
    shown: dict[str, object] = {}
    for name, value in state.items():
        if name == "certificates":
            shown[name] = len(value)
        elif name == "authorities":
            for above in value:
                since = f" since {above['since']}" if above["since"] else ""
                shown[f"under {above['authority']}"] = f"{above['status']}{since}"
        elif isinstance(value, dict):
            shown |= value
        elif value is not None:
            shown[name] = value if isinstance(value, datetime) else str(value)
    return shown
