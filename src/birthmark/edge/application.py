"""What the edges are given: the built application, and the few things that exist before one can be built.

``app`` builds them; the edges only know these shapes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from birthmark.floor.realm import Realm
from birthmark.ports import Clock, Entropy, KeyStore, Log, Store
from birthmark.secret import SecretBytes
from birthmark.services.authorise import Authorise
from birthmark.services.issue import IssueDevices
from birthmark.services.prove import ProveDevices
from birthmark.services.runs import Runs
from birthmark.settings import DatabaseSettings, KeyStoreSettings, Settings

__all__ = ["Application", "Factory"]


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
    runs: Runs
    issue: IssueDevices
    prove: ProveDevices
    authorise: Authorise
    close: Callable[[], None]
    """Finish what is under way, then let go of the database and the keys.  Closing twice does nothing."""


class Factory(Protocol):
    """Builds applications, and realms to build them for; ``birthmark.app`` is one."""

    def build(self, settings: Settings) -> Application:
        """Build the application of these settings."""
        ...

    def clock(self) -> Clock:
        """Return the system's clock."""
        ...

    def entropy(self) -> Entropy:
        """Return the system's source of randomness."""
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
