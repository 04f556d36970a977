"""The composition root: builds everything from the settings, once, as one frozen value for the edges.

The edges see this module as an ``edge.application.Factory``.
"""

from contextlib import ExitStack

from birthmark import errors
from birthmark.adapters import system
from birthmark.adapters.custody import read_passphrase_file
from birthmark.adapters.sql import migrate as sql_migrate
from birthmark.adapters.sql.databases import Database, open_database
from birthmark.adapters.sql.store import SQLStore, read_realm
from birthmark.edge.application import Application
from birthmark.floor.realm import Realm
from birthmark.pki.keys import KeyLabel
from birthmark.ports import Clock, Entropy, KeyStore
from birthmark.secret import SecretBytes
from birthmark.services.authorise import Authorise
from birthmark.services.challenges import Challenges
from birthmark.services.issue import IssueDevices
from birthmark.services.prove import ProveDevices
from birthmark.services.runs import Runs
from birthmark.settings import DatabaseSettings, KeyStoreSettings, Settings, SoftwareKeys

__all__ = [
    "build",
    "clock",
    "create_realm",
    "entropy",
    "migrate",
    "open_key_store",
    "read_secret",
]

clock = system.SystemClock
entropy = system.SystemEntropy
read_secret = read_passphrase_file


def open_key_store(settings: KeyStoreSettings) -> KeyStore:
    """Open the key store the settings name.

    Raises:
        errors.NotPermitted: the passphrase or PIN is wrong, or its file can be read by others.
        errors.Unavailable: the token does not answer.
    """
    if isinstance(settings, SoftwareKeys):
        from birthmark.adapters.softkeys import SoftwareKeyStore

        return SoftwareKeyStore.open(settings.directory, read_passphrase_file(settings.passphrase_file))
    from birthmark.adapters.pkcs11 import PKCS11KeyStore

    return PKCS11KeyStore.open(settings.module, settings.token, read_passphrase_file(settings.pin_file))


def _password(settings: DatabaseSettings) -> SecretBytes | None:
    return None if settings.password_file is None else read_passphrase_file(settings.password_file)


def migrate(settings: DatabaseSettings) -> None:
    """Bring the database to the newest schema; make the file if it is SQLite's."""
    sql_migrate.migrate(settings.url, _password(settings))


def create_realm(settings: DatabaseSettings, realm: Realm) -> None:
    """Write the realm and an empty log into a migrated database."""
    sql_migrate.create_realm(settings.url, realm, _password(settings))


def build(settings: Settings, *, clock: Clock | None = None, entropy: Entropy | None = None) -> Application:
    """Build the application.

    Raises:
        errors.IntegrityFailure: the database belongs to another realm than the settings.
        errors.Refusal: something the settings name cannot be opened.  What was opened before is let go.
    """
    clock, entropy = clock or system.SystemClock(), entropy or system.SystemEntropy()
    # What is let go goes in the order opposite to its opening: the store before the keys, because the last
    # train's checkpoint wants the log's key.
    with ExitStack() as opened:
        database = open_database(settings.database.url, _password(settings.database))
        with ExitStack() as until_the_store_has_it:
            until_the_store_has_it.callback(database.close)
            realm = _realm(settings, database)
            keys = open_key_store(settings.key_store)
            opened.callback(keys.close)
            log_key = KeyLabel(settings.log.key)
            store = SQLStore(database, clock, lambda body: keys.sign(log_key, body))
            until_the_store_has_it.pop_all()
        opened.callback(store.close)
        runs, challenges = Runs(realm), Challenges()
        return Application(
            settings=settings,
            realm=realm,
            store=store,
            log=store.log,
            keys=keys,
            clock=clock,
            entropy=entropy,
            runs=runs,
            issue=IssueDevices(runs, challenges, keys, clock, entropy),
            prove=ProveDevices(runs, challenges),
            authorise=Authorise(realm, keys, clock, entropy),
            close=opened.pop_all().close,
        )


def _realm(settings: Settings, database: Database) -> Realm:
    realm = read_realm(database)
    if (realm.name, realm.environment) != (settings.realm.name, settings.realm.environment):
        raise errors.IntegrityFailure(
            f"the settings are for realm {settings.realm.name} ({settings.realm.environment}),"
            f" the database belongs to {realm.name} ({realm.environment})"
        )
    return realm
