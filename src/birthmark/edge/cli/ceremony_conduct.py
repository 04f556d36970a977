"""How the command line conducts a ceremony: people first, then keys, each event written down as it happens.

Used by ``birthmark ceremony`` and by ``birthmark init``, which conducts one and has no way of its own.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from birthmark import errors
from birthmark.edge.application import Application, Factory
from birthmark.edge.cli.ceremony_folder import Answer, CeremonyFolder, Request, context_of, read_answer
from birthmark.edge.cli.key_folders import Attendant, attendant, open_key_folder
from birthmark.edge.cli.session import opened
from birthmark.floor.authorities import Authority, Custody
from birthmark.floor.ceremonies import SERVICE, Ceremony, ImportAuthority, SignCRL
from birthmark.floor.key_assets import KeyAsset
from birthmark.floor.revocations import Revocation
from birthmark.pki.algorithms import recognise
from birthmark.pki.certificates import Certificate
from birthmark.pki.keys import KeyLabel
from birthmark.ports import Clock, KeyStore
from birthmark.secret import SecretBytes
from birthmark.services.ceremonies import (
    Bench,
    Waiting,
    attend,
    carry_out,
    hand_over,
    known_of,
    resume,
)
from birthmark.services.ceremony_events import Event
from birthmark.services.ceremony_handover import require_answer
from birthmark.services.ceremony_record import Record, body_of
from birthmark.services.ceremony_steps import Known, Loader, Progress
from birthmark.settings import Settings, SoftwareKeys

__all__ = [
    "Papers",
    "asked",
    "conduct",
    "handed_over",
    "known_here",
    "lines_here",
    "offline_stores",
    "rehearsed",
    "sealed",
    "service_name",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Papers:
    """What people bring to a ceremony."""

    ceremony: Ceremony
    custodians: Sequence[Path]
    """Their credentials."""
    reviewed: Sequence[str]
    """SHA-256 of the file they reviewed: each their own, or one that all of them give."""
    stores: Mapping[str, Path] = field(default_factory=dict)
    """Key folders of the offline stores that are there."""
    certificate: Path | None = None
    officer: SecretBytes | None = field(default=None, repr=False)

    def attendants(self, factory: Factory) -> list[Attendant]:
        """Return who is there; the same person twice is one.

        Raises:
            errors.NotPermitted: a credential is of nobody the file names, or another file was reviewed.
            errors.MalformedRequest: nobody says what was reviewed.
        """
        if not self.reviewed:
            raise errors.MalformedRequest("say with --reviewed which file was reviewed: its SHA-256")
        wrong = [text for text in self.reviewed if text != self.ceremony.sha256]
        if wrong:
            raise errors.NotPermitted(
                f"the file is not the one that was reviewed: its SHA-256 is {self.ceremony.sha256},"
                f" not {wrong[0][:80]}"
            )
        found = [attendant(factory, self.ceremony, folder) for folder in self.custodians]
        return list({one.id: one for one in found}.values())

    def answer(self) -> Answer:
        """Return what was brought from elsewhere."""
        return Answer() if self.certificate is None else read_answer(self.certificate, self.ceremony)


def service_name(settings: Settings) -> str:
    """Return how the service's own key store is called in the table of keys."""
    store = settings.key_store
    return "software" if isinstance(store, SoftwareKeys) else store.token


def known_here(application: Application) -> Known:
    """Return what the realm has."""
    return known_of(
        list(application.store.scan(Authority)),
        list(application.store.scan(KeyAsset)),
        service_name(application.settings),
        [application.settings.log.key],
    )


def lines_here(application: Application, ceremony: Ceremony) -> dict[str, bytes]:
    """Return the CRL entries of the authorities whose lists the ceremony signs."""
    found: dict[str, bytes] = {}
    for step in ceremony.steps:
        if isinstance(step, SignCRL):
            with application.store.octets(Revocation, "entry", prefix=f"{step.authority}/") as octets:
                found[step.authority] = b"".join(octets.pieces())
    return found


@contextmanager
def offline_stores(factory: Factory, folders: Mapping[str, Path]) -> Iterator[dict[str, KeyStore]]:
    """Open the offline stores that are there, and let go of them."""
    with ExitStack() as until:
        yield {name: until.enter_context(open_key_folder(factory, path)) for name, path in folders.items()}


def conduct(
    folder: CeremonyFolder,
    progress: Progress,
    present: tuple[Sequence[Attendant], str],
    bench: Bench,
    *,
    before: Sequence[Event] = (),
    answer: Sequence[Event] = (),
) -> Waiting | None:
    """Let people attend, go on where the folder's journal ends, and return what is waited for.

    Args:
        folder: where every event is written down.
        progress: the ceremony, nothing of it done.
        present: who is there, and where.
        bench: what is at hand.
        before: events of elsewhere, which the journal follows.
        answer: events that somebody brought back; its signatures are looked at before anything else in it.
    """
    people, place = present
    ceremony = progress.ceremony
    session = attend(
        ceremony, [(one.id, ceremony.sha256, one.sign) for one in people], bench.clock, bench.entropy, place
    )
    written = folder.events()
    if any(event not in written for event in answer):
        earlier = [event for event in [*before, *written] if event not in answer]
        require_answer(ceremony, [event for event in earlier if event["event"] == "step"], answer)
    resume(progress, [*before, *written])
    new = [event for event in answer if event not in written]
    resume(progress, [*new, session])
    folder.append([*new, session])
    steps = carry_out(progress, bench)
    while True:
        try:
            event = next(steps)
        except StopIteration as done:
            waiting: Waiting | None = done.value
            return waiting
        folder.append([event])


def handed_over(
    folder: CeremonyFolder, progress: Progress, people: Sequence[Attendant], clock: Clock, context: str
) -> None:
    """Have what leaves this machine signed by everybody there, and write that down."""
    folder.append([hand_over(progress, [(one.id, one.sign) for one in people], clock, context)])


def asked(
    folder: CeremonyFolder,
    progress: Progress,
    people: Sequence[Attendant],
    bench: Bench,
    waiting: Waiting,
) -> Path:
    """Write the request for what is waited for, signed by everybody there, and return where it is."""
    ceremony, known, lines = progress.ceremony, progress.known, bench.lines
    handed_over(folder, progress, people, bench.clock, context_of(ceremony, known, lines))
    request = Request(file_sha256=ceremony.sha256, known=known, events=progress.events, lines=lines)
    return folder.write_text(f"{ceremony.id}.request", request.text(ceremony, waiting))


def sealed(
    folder: CeremonyFolder,
    progress: Progress,
    people: Sequence[Attendant],
    clock: Clock,
    stores: Mapping[str, KeyStore],
) -> Record:
    """Have the record signed by everybody there, and write it down."""
    kinds = {name: "development" if keys.development else "token" for name, keys in stores.items()}
    unsigned = Record(body=body_of(progress, clock.now(), kinds), signatures=())
    signatures = tuple((one.id, one.sign(unsigned.message)) for one in people)
    record = Record(body=unsigned.body, signatures=signatures)
    record.require_signed(progress.ceremony)
    folder.write_record(record)
    return record


# --- rehearsal ----------------------------------------------------------------------------------------------


def rehearsed(
    factory: Factory, ceremony: Ceremony, known: Known, load: Loader, lines: Mapping[str, bytes]
) -> Progress:
    """Do everything on throwaway keys in a store that is gone afterwards, and return what it came to.

    Raises:
        errors.Refusal: it could not be performed; says why.
    """
    with tempfile.TemporaryDirectory(prefix="birthmark-rehearsal-") as name, ExitStack() as until:
        place = Path(name)
        passphrase = place / "passphrase"
        passphrase.touch(mode=0o600)
        passphrase.write_text(factory.entropy().token(32).hex(), encoding="ascii")
        stores: dict[str, KeyStore] = {}
        for store in {SERVICE, *known.stores.values(), *(key.store for key in ceremony.keys.values())}:
            custody = SoftwareKeys(
                kind="software", directory=place / f"keys-{store}", passphrase_file=passphrase
            )
            stores[store] = until.enter_context(opened(factory, custody))
        for authority in known.authorities.values():
            _stand_in(authority, known, stores)
        _stand_in_imported(ceremony, stores[SERVICE])
        progress = Progress(ceremony, known, load, rehearsal=True, lines=lines)
        bench = Bench(
            stores=stores, clock=factory.clock(), entropy=factory.entropy(), lines=lines, rehearsal=True
        )
        some = [(one.id, ceremony.sha256, _nothing) for one in ceremony.custodians[: ceremony.required]]
        progress.take(attend(ceremony, some, bench.clock, bench.entropy, "rehearsal"))
        for _ in carry_out(progress, bench):
            pass
        if progress.current is not None:
            raise errors.IllegalTransition(f"the rehearsal ends before step {progress.number + 1}")
        return progress


def _nothing(_message: bytes) -> bytes:
    return b""


def _stand_in(authority: Authority, known: Known, stores: Mapping[str, KeyStore]) -> None:
    """Give an authority of before a throwaway key of the same algorithm."""
    algorithm = recognise(Certificate.from_der(authority.der).subject_public_key_info)
    foreign = authority.custody is Custody.FOREIGN
    label = KeyLabel(f"stand-in-{authority.id}" if foreign else authority.key_label)
    keys = stores[SERVICE if foreign else known.stores[authority.key_label]]
    if algorithm is not None and label not in keys.labels():
        keys.generate(label, algorithm)


def _stand_in_imported(ceremony: Ceremony, service: KeyStore) -> None:
    """Give the foreign authorities that the file itself imports throwaway keys, too."""
    for step in ceremony.steps:
        if isinstance(step, ImportAuthority):
            algorithm = recognise(Certificate.from_der(step.certificate).subject_public_key_info)
            if algorithm is not None:
                service.generate(KeyLabel(f"stand-in-{step.authority}"), algorithm)
