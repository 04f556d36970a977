"""What the edges are given: the built application, and the few things that exist before one can be built.

``app`` builds them; the edges only know these shapes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from birthmark.floor.realm import Realm
from birthmark.pki.ocsp import OCSPRequest
from birthmark.pki.profiles import Catalogue
from birthmark.ports import (
    Clock,
    Entropy,
    Inspector,
    KeyStore,
    Log,
    Observer,
    Publication,
    SignedAnswer,
    Store,
    Unobserved,
)
from birthmark.secret import SecretBytes
from birthmark.services.approvals import Approvals
from birthmark.services.attest import AttestDevices
from birthmark.services.authorise import Authorise
from birthmark.services.backup import CopyReader, DatabaseCopies, Engine
from birthmark.services.cmp_transactions import CMPTransactions
from birthmark.services.confirmations import ConfirmEnrolments
from birthmark.services.enrolments import EnrolDevices
from birthmark.services.fleet import Fleet
from birthmark.services.foreign_status import Lists, Question
from birthmark.services.injection import InjectDevices
from birthmark.services.invitations import Invitations
from birthmark.services.issue import IssueDevices
from birthmark.services.opening import OpenRuns
from birthmark.services.proposals import Proposals
from birthmark.services.prove import ProveDevices
from birthmark.services.publish import Publish
from birthmark.services.recall import Recalls
from birthmark.services.recognition import Codes
from birthmark.services.renewals import Renewals
from birthmark.services.responders import Responders
from birthmark.services.runs import Runs
from birthmark.services.status import Answered, Delegations
from birthmark.settings import DatabaseSettings, KeyStoreSettings, Settings

__all__ = [
    "Application",
    "Factory",
    "FleetWatcher",
    "PublicApplication",
    "SignedAnswersOf",
    "SignedAnswersOfOne",
]


class FleetWatcher(Protocol):
    """What runs beside the gateway for other fleets' CRLs."""

    def start(self) -> None:
        """Begin, on a thread of its own."""
        ...

    def close(self) -> None:
        """End.  Closing twice does nothing."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """Everything a plane or a command needs."""

    settings: Settings
    realm: Realm
    store: Store
    log: Log
    keys: KeyStore
    clock: Clock
    entropy: Entropy
    catalogue: Catalogue
    inspector: Inspector
    runs: Runs
    opening: OpenRuns
    attest: AttestDevices
    issue: IssueDevices
    inject: InjectDevices
    prove: ProveDevices
    enrolments: EnrolDevices
    confirmations: ConfirmEnrolments
    approvals: Approvals
    codes: Codes
    cmp: CMPTransactions
    authorise: Authorise
    proposals: Proposals
    fleet: Fleet
    invitations: Invitations
    renewals: Renewals
    recalls: Recalls
    publish: Publish | None
    """None where nothing is published."""
    publication: Publication | None
    responders: Responders
    key_stores: Mapping[str, KeyStore]
    """The stores behind ``keys``, by what they are called on record; the first is where keys are made."""
    watch_keys: Callable[[], None]
    """Examine the key stores every few seconds until ``close``: for what runs for long.

    If a token never comes back from a call, the process ends (exit code 75), to be started again.
    """
    ask_responder: Callable[[Question], bytes]
    """Asks an OCSP responder of another fleet, blocking, and returns what it answers (DER), unverified."""
    watch_fleets: Callable[[Lists], FleetWatcher]
    """Makes what keeps other fleets' CRLs fresh, and has them read into these lists."""
    close: Callable[[], None]
    """Finish what is under way, then let go of the database and the keys.  Closing twice does nothing."""
    observer: Observer = field(default_factory=Unobserved)


class SignedAnswersOfOne(Protocol):
    """An authority's OCSP answers that were signed beforehand; for one thread."""

    def refresh(self) -> None:
        """Look whether there are newer ones."""
        ...

    def find(self, algorithm: str, serial_number: int) -> SignedAnswer | None:
        """Return the answer about a certificate, if there is one."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


SignedAnswersOf = Callable[[str], SignedAnswersOfOne]
"""Opens the signed answers of an authority."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicApplication:
    """Everything the public plane needs: no key of an authority, and nothing it could write with."""

    settings: Settings
    directory: Path
    """What is served."""
    clock: Clock
    keys: KeyStore | None
    """Holds the responder's key; None unless answers are live."""
    answer: Callable[[Delegations, Sequence[OCSPRequest]], list[Answered]] | None
    """Answers from the record, on one thread; None unless answers are live."""
    answers: SignedAnswersOf | None
    """None unless answers are signed beforehand."""
    close: Callable[[], None]


class Factory(Protocol):
    """Builds applications, and realms to build them for; ``birthmark.app`` is one."""

    def build(self, settings: Settings, *, observer: Observer | None = None) -> Application:
        """Build the application of these settings, and let the observer hear of its work."""
        ...

    def build_public(self, settings: Settings) -> PublicApplication:
        """Build what the public plane of these settings needs; it opens no store of authorities' keys."""
        ...

    def clock(self) -> Clock:
        """Return the system's clock."""
        ...

    def entropy(self) -> Entropy:
        """Return the system's source of randomness."""
        ...

    def inspector(self) -> Inspector:
        """Return the linter of first articles."""
        ...

    def open_key_store(self, settings: KeyStoreSettings) -> KeyStore:
        """Open a key store; a software store is made if its directory does not exist."""
        ...

    def read_secret(self, path: Path) -> SecretBytes:
        """Read a passphrase file that only its owner may read."""
        ...

    def migrate(self, settings: DatabaseSettings) -> None:
        """Bring the database to the newest schema; make the file if it is SQLite's."""
        ...

    def create_realm(self, settings: DatabaseSettings, realm: Realm) -> None:
        """Write the realm and an empty log into a migrated database."""
        ...

    def copies(self, settings: DatabaseSettings) -> DatabaseCopies:
        """Return what copies the database as a whole, and puts a copy back."""
        ...

    def read_copy(self, engine: Engine, path: Path) -> CopyReader:
        """Return what reads a copy of a database."""
        ...
