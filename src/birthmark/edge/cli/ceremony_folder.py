"""A ceremony's folder: the events as they happen, and what is left at the end; and what travels between.

    journal.jsonl          one event a line, each on stable storage before the next thing happens
    ceremony.yaml          the file, as it was performed
    record.json            the signed record
    record.txt, .html      the same for people
    record.tlog-proof      that the log has the record's hash
    log.vkey               of the log; an auditor brings it from elsewhere
    certificates/NAME.crt  crls/NAME.crl  shares/NAME-N.bin

A *request* and an *answer* are text files: a certification request or certificate that any tool reads, and
below it the events, for our own machine without a network.
"""

import os
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from birthmark import errors
from birthmark.edge.cli.credentials import DIRECTORY_MODE
from birthmark.edge.station.folder import Folder, flush_directory
from birthmark.floor.ceremonies import Ceremony
from birthmark.ledger.entry import canonical, parse
from birthmark.pki.certificates import from_pem, one_from_pem, to_pem
from birthmark.services.ceremonies import Waiting
from birthmark.services.ceremony_events import Event
from birthmark.services.ceremony_file import FILE_LIMIT
from birthmark.services.ceremony_file import parse as parse_ceremony
from birthmark.services.ceremony_handover import context_sha256, require_request
from birthmark.services.ceremony_record import Record, known_document, known_from, pages
from birthmark.services.ceremony_steps import Known, Progress

__all__ = [
    "Answer",
    "CeremonyFolder",
    "Request",
    "answer_text",
    "context_of",
    "read_answer",
    "read_ceremony",
    "read_request",
]

_JOURNAL = "journal.jsonl"
_REQUEST = "BIRTHMARK CEREMONY REQUEST"
_ANSWER = "BIRTHMARK CEREMONY ANSWER"
_LONGEST = 4_194_304


def read_ceremony(path: Path) -> Ceremony:
    """Read a ceremony's file.

    Raises:
        errors.NotFound: there is none.
        errors.Refusal: as ``ceremony_file.parse``.
    """
    try:
        with path.open("rb") as file:
            return parse_ceremony(file.read(FILE_LIMIT + 1))
    except OSError as cause:
        raise errors.NotFound(f"the ceremony's file {path} cannot be read: {cause.strerror}") from cause


class CeremonyFolder:
    """The folder of one ceremony; nobody else has it meanwhile."""

    def __init__(self, path: Path, ceremony: Ceremony) -> None:
        """Open the folder, or make it.

        Raises:
            errors.NotFound: there is no directory to make it in.
            errors.IllegalTransition: it is the folder of another file.
            errors.Unavailable: somebody else is at it.
        """
        if not path.absolute().parent.is_dir():
            raise errors.NotFound(f"there is no directory {path.absolute().parent} to make {path.name} in")
        path.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        self.path = path
        self._ceremony = ceremony
        self._folder = Folder(path)
        self._folder.lock()
        there = self._folder.read("ceremony.yaml")
        if there is None:
            self._folder.write("ceremony.yaml", ceremony.file, mode=0o644)
        elif there != ceremony.file:
            self.close()
            raise errors.IllegalTransition(f"{path} belongs to another file: {path / 'ceremony.yaml'}")

    def close(self) -> None:
        """Let go of it."""
        self._folder.close()

    def events(self) -> list[Event]:
        """Return the events that were written down; a last line that was torn off happened to nobody."""
        content = self._folder.read(_JOURNAL) or b""
        return [parse(line) for line in content.split(b"\n")[:-1]]

    def append(self, events: Sequence[Event]) -> None:
        """Write events down, durable on return."""
        whole = self._whole()
        with (self.path / _JOURNAL).open("ab", buffering=0) as file:
            file.truncate(whole)
            file.write(b"".join(canonical(event) + b"\n" for event in events))
            os.fsync(file.fileno())
        flush_directory(self.path)

    def _whole(self) -> int:
        content = self._folder.read(_JOURNAL) or b""
        return content.rfind(b"\n") + 1

    def record(self) -> Record | None:
        """Return the signed record, if it was written."""
        content = self._folder.read("record.json")
        return None if content is None else Record.decode(content)

    def write_record(self, record: Record) -> None:
        """Write the signed record, durable on return."""
        self._folder.write("record.json", record.encode(), mode=0o644)

    def finish(self, progress: Progress, record: Record, proof: str, vkey: str) -> None:
        """Write all that is left of a ceremony; doing it again changes nothing."""
        text, html = pages(progress, record)
        self.write_record(record)
        for name, content in (
            ("record.txt", text),
            ("record.html", html),
            ("record.tlog-proof", proof),
            ("log.vkey", f"{vkey}\n"),
        ):
            self._folder.write(name, content.encode(), mode=0o644)
        shares = {
            f"{made.step.label}-{number}.bin": share
            for made in progress.keys.values()
            for number, share in enumerate(made.shares, 1)
        }
        self._below(
            "certificates", {f"{n}.crt": to_pem(d).encode() for n, d in progress.certificates.items()}
        )
        self._below("crls", {f"{name}.crl": octets for name, octets in progress.crls.items()})
        self._below("shares", shares)

    def _below(self, name: str, files: Mapping[str, bytes]) -> None:
        if not files:
            return
        (self.path / name).mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        below = Folder(self.path / name)
        for file_name, content in files.items():
            below.write(file_name, content, mode=0o644)
        below.close()

    def write_text(self, name: str, text: str) -> Path:
        """Write a file that travels, and return where it is."""
        self._folder.write(name, text.encode(), mode=0o644)
        return self.path / name


# --- what travels -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A ceremony that waits for a key elsewhere."""

    file_sha256: str
    known: Known
    events: Sequence[Event] = field(repr=False)
    lines: Mapping[str, bytes] = field(repr=False)
    context: str = ""
    """SHA-256 that whoever answers signs, too; of a request that was read."""

    def text(self, ceremony: Ceremony, waiting: Waiting) -> str:
        """Return the file: a certification request for whoever wants one, and all that our machine needs."""
        body = canonical(
            {
                "file_sha256": self.file_sha256,
                "before": known_document(self.known, ceremony),
                "events": [dict(event) for event in self.events],
                "lines": _lines_document(self.lines),
            }
        )
        asked = "" if waiting.request is None else to_pem(waiting.request, "CERTIFICATE REQUEST")
        return f"{asked}{to_pem(body, _REQUEST)}"


def context_of(ceremony: Ceremony, known: Known, lines: Mapping[str, bytes]) -> str:
    """Return the hash of what a request says beside the events."""
    return context_sha256(known_document(known, ceremony), _lines_document(lines))


def _lines_document(lines: Mapping[str, bytes]) -> list[dict[str, str]]:
    return [
        {"authority": name, "entries": b64encode(entries).decode()} for name, entries in sorted(lines.items())
    ]


def read_request(path: Path, ceremony: Ceremony) -> Request:
    """Read a request.

    Raises:
        errors.NotFound: there is no such file.
        errors.NotPermitted: it is about another file than the one at hand.
        errors.ProofFailed: its custodians did not sign what it says was there before.
        errors.MalformedRequest: it is no request.
    """
    body = _body(path, _REQUEST)
    try:
        if body["file_sha256"] != ceremony.sha256:
            raise errors.NotPermitted(f"{path} is about another file than {ceremony.sha256}")
        context = context_sha256(body["before"], body["lines"])
        require_request(body["events"], context)
        return Request(
            context=context,
            file_sha256=ceremony.sha256,
            known=known_from(body["before"]),
            events=list(body["events"]),
            lines={
                str(entry["authority"]): b64decode(entry["entries"], validate=True) for entry in body["lines"]
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError) as wrong:
        raise errors.MalformedRequest(f"{path} is no request of a ceremony: {wrong}") from wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was made elsewhere."""

    certificate: bytes | None = field(default=None, repr=False)
    """Of a foreign authority (DER)."""
    events: Sequence[Event] = field(default=(), repr=False)
    """Of our own machine without a network."""


def answer_text(ceremony: Ceremony, made: Sequence[bytes], events: Sequence[Event]) -> str:
    """Return an answer's file: the certificates for everybody, and below them the events."""
    body = canonical({"file_sha256": ceremony.sha256, "events": [dict(event) for event in events]})
    return "".join(map(to_pem, made)) + to_pem(body, _ANSWER)


def read_answer(path: Path, ceremony: Ceremony) -> Answer:
    """Read a certificate, or an answer of our own machine without a network.

    Raises:
        errors.NotFound: there is no such file.
        errors.NotPermitted: it is about another file than the one at hand.
        errors.IntegrityFailure: its certificates are not those of its events.
        errors.MalformedRequest: it is neither.
    """
    text = _text(path)
    certificates = from_pem(text) if "-----BEGIN CERTIFICATE-----" in text else ()
    if f"-----BEGIN {_ANSWER}-----" not in text:
        if len(certificates) != 1:
            raise errors.MalformedRequest(f"{path}: {len(certificates)} certificates where one belongs")
        return Answer(certificate=certificates[0])
    body = _body(path, _ANSWER)
    try:
        if body["file_sha256"] != ceremony.sha256:
            raise errors.NotPermitted(f"{path} is about another file than {ceremony.sha256}")
        events: list[Event] = [dict(event) for event in body["events"]]
        made = [b64decode(event["certificate"], validate=True) for event in events if "certificate" in event]
    except (KeyError, TypeError, ValueError, AttributeError) as wrong:
        raise errors.MalformedRequest(f"{path} is no answer of a ceremony: {wrong}") from wrong
    if made != list(certificates):
        raise errors.IntegrityFailure(f"{path}: the certificates in it are not those of its events")
    return Answer(events=events)


def _body(path: Path, label: str) -> dict[str, Any]:
    try:
        return parse(one_from_pem(_text(path), label))
    except errors.MalformedRequest as wrong:
        raise errors.MalformedRequest(f"{path}: {wrong}") from wrong


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST + 1)
    except OSError as cause:
        raise errors.NotFound(f"{path} cannot be read: {cause.strerror}") from cause
    if len(content) > _LONGEST:
        raise errors.TooLarge(f"{path} is longer than {_LONGEST} octets")
    try:
        return content.decode("ascii")
    except UnicodeDecodeError as cause:
        raise errors.MalformedRequest(f"{path} is not PEM") from cause
