"""Who answers OCSP on the public plane: from the record with the responder's key, or from files (SPEC F3).

Whoever asks gives a callback and gets its answer on the event loop's thread: at once where answers were
signed beforehand, and after the look-up and the signature, on a thread of their own, where they are live.
``response_headers`` says how long an answer may be kept (RFC 5019 section 6).
"""

import asyncio
import hashlib
import logging
import queue
import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Protocol

from birthmark import errors
from birthmark.edge.application import PublicApplication, SignedAnswersOf, SignedAnswersOfOne
from birthmark.pki import ocsp
from birthmark.pki.certificates import Certificate
from birthmark.pki.keys import KeyLabel
from birthmark.pki.ocsp import IssuerID, OCSPRequest, ResponseStatus, error_response
from birthmark.services.status import Answered, Delegation, Delegations, delegate

__all__ = [
    "MALFORMED",
    "NOT_KEPT",
    "Answering",
    "Headers",
    "LiveAnswers",
    "SignedAnswersFound",
    "entity_tag",
    "response_headers",
]

log = logging.getLogger(__name__)

Headers = list[tuple[bytes, bytes]]
Done = Callable[[Answered], None]

_LOOK_SECONDS = 5.0
"""How often the directory is looked at for certificates and answers that are new."""
_BATCH = 64
_LATELY = 10_000
"""How many answers are kept in memory: a dozen megabytes."""
_TYPE = (b"content-type", b"application/ocsp-response")
NOT_KEPT: Headers = [_TYPE, (b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]

MALFORMED = Answered(octets=error_response(ResponseStatus.MALFORMED_REQUEST))


class Answering(Protocol):
    """Answers requests about certificates; asked on the event loop's thread."""

    def ask(self, octets: bytes, done: Done) -> None:
        """Have ``done`` called with the answer to a request (DER), on the event loop's thread, now or later.

        What is no request is answered so.
        """
        ...

    def close(self) -> None:
        """Let go of what was opened."""
        ...


def entity_tag(found: Answered) -> str:
    """Return the entity tag of an answer."""
    return f'"{hashlib.sha256(found.octets).hexdigest()[:32]}"'


def response_headers(found: Answered, now: datetime, *, posted: bool) -> Headers:
    """Return type and caching of an answer; without an entity tag it must not be kept."""
    if posted or found.this_update is None or found.next_update is None or found.nonce:
        return NOT_KEPT
    left = int((found.next_update - now).total_seconds())
    return [
        _TYPE,
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", f"public, max-age={max(0, left)}, no-transform, must-revalidate".encode()),
        (b"last-modified", format_datetime(found.this_update, usegmt=True).encode()),
        (b"expires", format_datetime(found.next_update, usegmt=True).encode()),
        (b"etag", entity_tag(found).encode()),
    ]


class LiveAnswers:
    """Answers from the record, on one thread: all that wait are looked up together and signed in turn."""

    def __init__(self, application: PublicApplication) -> None:
        """Answer with the responder's key.

        Raises:
            ValueError: the application has no record or no key.
        """
        if application.answer is None or application.keys is None:
            raise ValueError("live answers need a record and a key")
        self._answer = application.answer
        self._keys = application.keys
        self._directory = application.directory
        self._label = KeyLabel(application.settings.public_plane.responder)
        self._delegations = Delegations()
        self._known: dict[str, Delegation] = {}
        self._seen: dict[Path, tuple[int, int]] = {}
        self._next_look = 0.0
        self._waiting: queue.SimpleQueue[tuple[OCSPRequest, Done, asyncio.AbstractEventLoop] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name="ocsp", daemon=True)
        self._thread.start()

    def ask(self, octets: bytes, done: Done) -> None:
        """See ``Answering.ask``."""
        try:
            request = ocsp.decode_request(octets)
        except errors.MalformedRequest:
            done(MALFORMED)
            return
        self._waiting.put((request, done, asyncio.get_running_loop()))

    def close(self) -> None:
        """See ``Answering.close``."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < _BATCH and not self._waiting.empty():
                following = self._waiting.get()
                if following is None:
                    self._waiting.put(None)
                    break
                batch.append(following)
            loop = first[2]
            try:
                if loop.time() >= self._next_look:
                    self._next_look = loop.time() + _LOOK_SECONDS
                    self._look()
                answers = self._answer(self._delegations, [request for request, _, _ in batch])
            except Exception:
                log.exception("answers could not be made")
                later = Answered(octets=error_response(ResponseStatus.TRY_LATER))
                answers = [later] * len(batch)
            loop.call_soon_threadsafe(_tell, [done for _, done, _ in batch], answers)

    def _look(self) -> None:
        """Read the certificates again if any changed; what cannot be read stays as it was until it can."""
        try:
            responders = sorted(self._directory.glob(f"responders/{self._label}/*.cer"))
            seen = _versions([*responders, *sorted(self._directory.glob("ca/*.cer"))])
            if seen == self._seen:
                return
            self._known, readable = self._read(responders)
        except (OSError, errors.Refusal) as failed:
            log.error("the responder's certificates cannot be read: %s", failed)  # noqa: TRY400  # told, not traced
            return
        self._delegations = Delegations(self._known.values())
        self._seen = seen if readable else {}

    def _read(self, files: list[Path]) -> tuple[dict[str, Delegation], bool]:
        """Return the delegations by authority, and whether every file there is could be read."""
        public, readable = self._keys.public_key(self._label), True
        found: dict[str, Delegation] = {}
        for file in files:
            authority = file.stem
            try:
                responder = file.read_bytes()
                certificate = (self._directory / "ca" / file.name).read_bytes()
                if Certificate.from_der(responder).subject_public_key_info != public:
                    raise errors.IntegrityFailure("it is of another key")
                found[authority] = delegate(authority, certificate, responder, self._label)
            except (FileNotFoundError, errors.Refusal) as wrong:
                log.error("no answers for %s: %s: %s", authority, file.name, wrong)  # noqa: TRY400  # told
            except OSError as failed:
                log.error("%s: %s cannot be read: %s", authority, file.name, failed)  # noqa: TRY400  # told
                readable = False
                if authority in self._known:
                    found[authority] = self._known[authority]
        return found, readable


def _versions(files: list[Path]) -> dict[Path, tuple[int, int]]:
    """Return what tells one version of a file from the next; those that go meanwhile are left out."""
    seen = {}
    for file in files:
        seen[file] = (0, 0)
        try:
            stat = file.stat()
            seen[file] = (stat.st_ino, stat.st_mtime_ns)
        except FileNotFoundError:
            del seen[file]
        except OSError:  # told by who reads it
            pass
    return seen


def _tell(asked: list[Done], answers: list[Answered]) -> None:
    for done, answer in zip(asked, answers, strict=True):
        done(answer)


class SignedAnswersFound:
    """Answers that were signed beforehand (RFC 5019): no key, no record, one certificate a request.

    Those that were asked for lately are kept in memory, until the directory is looked at again.
    """

    def __init__(self, application: PublicApplication, answers: SignedAnswersOf) -> None:
        """Answer from what ``answers`` opens."""
        self._directory = application.directory
        self._open = answers
        self._clock = application.clock
        self._authorities: dict[IssuerID, str] = {}
        self._files: dict[str, SignedAnswersOfOne] = {}
        self._lately: dict[bytes, Answered] = {}
        self._seen: dict[Path, tuple[int, int]] = {}
        self._unread: set[str] = set()
        """Authorities of which something cannot be read at the moment."""
        self._next_look = 0.0

    def ask(self, octets: bytes, done: Done) -> None:
        """See ``Answering.ask``."""
        now = asyncio.get_running_loop().time()
        try:
            if now >= self._next_look:
                self._next_look = now + _LOOK_SECONDS
                self._lately.clear()
                self._look()
            found = self._lately.get(octets)
            if found is None or found.next_update is None or found.next_update <= self._clock.now():
                found = self._find(ocsp.decode_request(octets))
                if found.next_update is not None:
                    if len(self._lately) >= _LATELY:
                        del self._lately[next(iter(self._lately))]  # the oldest
                    self._lately[octets] = found
        except errors.MalformedRequest:
            found = MALFORMED
        except (OSError, errors.Refusal) as failed:
            log.error("signed answers cannot be read: %s", failed)  # noqa: TRY400  # told, not traced
            found = Answered(octets=error_response(ResponseStatus.TRY_LATER))
        done(found)

    def close(self) -> None:
        """See ``Answering.close``."""
        for signed in self._files.values():
            signed.close()

    def _find(self, request: OCSPRequest) -> Answered:
        (cert_id, *others) = request.cert_ids
        authority = self._authorities.get(cert_id.issuer)
        found = None
        if authority is not None and not others and cert_id.serial_number > 0:
            found = self._files[authority].find(cert_id.issuer[0], cert_id.serial_number)
        if found is None:
            unread = bool(self._unread) if authority is None else authority in self._unread
            status = ResponseStatus.TRY_LATER if unread else ResponseStatus.UNAUTHORIZED
            return Answered(octets=error_response(status))
        if found.next_update <= self._clock.now():
            log.error("the signed answers of %s have ended", authority)
            return Answered(octets=error_response(ResponseStatus.TRY_LATER))
        return Answered(octets=found.octets, this_update=found.this_update, next_update=found.next_update)

    def _look(self) -> None:
        """Look for what is new; what cannot be read stays as it was until it can."""
        seen = _versions(sorted(self._directory.glob("ca/*.cer")))
        unread: set[str] = set()
        if seen != self._seen:
            self._authorities, unread = self._read(seen)
            self._seen = {} if unread else seen
        for authority, signed in self._files.items():
            try:
                signed.refresh()
            except errors.Refusal as failed:
                log.error("signed answers of %s cannot be read: %s", authority, failed)  # noqa: TRY400  # told
                unread.add(authority)
        self._unread = unread

    def _read(self, files: Iterable[Path]) -> tuple[dict[IssuerID, str], set[str]]:
        """Return what requests may call the authorities, and those whose file cannot be read."""
        authorities: dict[IssuerID, str] = {}
        unread = set()
        for file in files:
            authority = file.stem
            try:
                certificate = Certificate.from_der(file.read_bytes())
                for issuer in ocsp.issuer_ids(certificate.subject_name, certificate.subject_public_key_info):
                    authorities[issuer] = authority
            except errors.Refusal as wrong:
                log.error("no answers for %s: %s: %s", authority, file.name, wrong)  # noqa: TRY400  # told
                continue
            except OSError as failed:
                log.error("%s: %s cannot be read: %s", authority, file.name, failed)  # noqa: TRY400  # told
                unread.add(authority)
                authorities |= {key: name for key, name in self._authorities.items() if name == authority}
                continue
            if authority not in self._files:
                self._files[authority] = self._open(authority)
        return authorities, unread
