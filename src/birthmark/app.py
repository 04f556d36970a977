"""The composition root: builds everything from the settings, once, as one frozen value for the edges.

The edges see this module as an ``edge.application.Factory``.
"""

from contextlib import ExitStack
from datetime import timedelta
from functools import partial

from birthmark import errors
from birthmark.adapters import system
from birthmark.adapters.custody import read_passphrase_file
from birthmark.adapters.inspection import PkilintInspector
from birthmark.adapters.observed import ObservedKeyStore
from birthmark.adapters.publication import PublicationDirectory, PublishedAnswers
from birthmark.adapters.sql.database import Database
from birthmark.adapters.sql.engines import open_database
from birthmark.adapters.sql.store import SQLStore, read_realm
from birthmark.edge.application import Application, PublicApplication
from birthmark.element.catalogue import ElementCatalogue
from birthmark.floor.realm import Realm
from birthmark.pki.keys import KeyLabel
from birthmark.pki.profiles import Catalogue
from birthmark.ports import Clock, Entropy, KeyStore, Observer, Publication, Unobserved
from birthmark.secret import SecretBytes
from birthmark.services.attest import AttestDevices
from birthmark.services.authorise import Authorise
from birthmark.services.challenges import Challenges
from birthmark.services.dialogues import Dialogues
from birthmark.services.injection import InjectDevices
from birthmark.services.invitations import Invitations
from birthmark.services.issue import IssueDevices
from birthmark.services.opening import OpenRuns
from birthmark.services.prove import ProveDevices
from birthmark.services.publish import PublicationTerms, Publish
from birthmark.services.recall import Recalls
from birthmark.services.renewals import Renewals
from birthmark.services.responders import Responders
from birthmark.services.runs import Runs
from birthmark.services.status import AnswerStatus
from birthmark.settings import DatabaseSettings, EnrolmentPlane, KeyStoreSettings, Settings, SoftwareKeys

__all__ = [
    "build",
    "build_public",
    "clock",
    "create_realm",
    "entropy",
    "inspector",
    "migrate",
    "open_key_store",
    "read_secret",
]

clock = system.SystemClock
entropy = system.SystemEntropy
inspector = PkilintInspector
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


def _open_database(settings: DatabaseSettings) -> Database:
    return open_database(settings.url, _password(settings), standbys=settings.synchronous_standbys)


def migrate(settings: DatabaseSettings) -> None:
    """Bring the database to the newest schema; make the file if it is SQLite's."""
    from birthmark.adapters.sql import migrate as sql_migrate  # half a second, for a command that is rare

    sql_migrate.migrate(settings.url, _password(settings))


def create_realm(settings: DatabaseSettings, realm: Realm) -> None:
    """Write the realm and an empty log into a migrated database."""
    from birthmark.adapters.sql import migrate as sql_migrate  # half a second, for a command that is rare

    sql_migrate.create_realm(settings.url, realm, _password(settings))


def build(
    settings: Settings,
    *,
    clock: Clock | None = None,
    entropy: Entropy | None = None,
    observer: Observer | None = None,
) -> Application:
    """Build the application.

    Raises:
        errors.IntegrityFailure: the database belongs to another realm than the settings.
        errors.Refusal: something the settings name cannot be opened.  What was opened before is let go.
    """
    clock, entropy = clock or system.SystemClock(), entropy or system.SystemEntropy()
    # What is let go goes in the order opposite to its opening: the store before the keys, because the last
    # train's checkpoint wants the log's key.
    with ExitStack() as opened:
        database = _open_database(settings.database)
        with ExitStack() as until_the_store_has_it:
            until_the_store_has_it.callback(database.close)
            realm = _realm(settings, database)
            keys = open_key_store(settings.key_store)
            opened.callback(keys.close)
            if observer is not None:
                keys = ObservedKeyStore(keys, observer)
            log_key = KeyLabel(settings.log.key)
            store = SQLStore(database, clock, lambda body: keys.sign(log_key, body), observer)
            until_the_store_has_it.pop_all()
        opened.callback(store.close)
        catalogue, inspector = Catalogue.read(settings.profiles_directory), PkilintInspector()
        elements = ElementCatalogue.read(settings.elements_directory)
        rate = None if settings.station_table is None else settings.station_table.run_rate
        runs, challenges = Runs(realm, catalogue, elements, rate), Challenges()
        dialogues = Dialogues(keys, entropy)
        authorise = Authorise(realm, keys, clock, entropy, catalogue)
        return Application(
            settings=settings,
            realm=realm,
            store=store,
            log=store.log,
            keys=keys,
            clock=clock,
            entropy=entropy,
            catalogue=catalogue,
            inspector=inspector,
            runs=runs,
            opening=OpenRuns(runs, inspector, keys),
            attest=AttestDevices(runs, clock, entropy),
            issue=IssueDevices(runs, challenges, dialogues, keys, clock, entropy),
            inject=InjectDevices(runs, challenges, dialogues),
            prove=ProveDevices(runs, challenges, dialogues),
            publish=_publish(settings, realm, store, keys, clock),
            publication=_publication(settings),
            responders=Responders(
                keys, clock, entropy, catalogue, settings.realm.organization, realm.environment.mark
            ),
            authorise=authorise,
            invitations=_invitations(settings, authorise, clock, entropy, catalogue),
            renewals=Renewals(authorise, clock, catalogue, settings.realm.organization),
            recalls=Recalls(realm, clock, entropy, store.log),
            close=opened.pop_all().close,
            observer=observer or Unobserved(),
        )


def _invitations(
    settings: Settings, authorise: Authorise, clock: Clock, entropy: Entropy, catalogue: Catalogue
) -> Invitations:
    table = settings.enrolment_table or EnrolmentPlane()
    return Invitations(authorise, clock, entropy, catalogue, settings.realm.organization, table.rates)


def _publication(settings: Settings) -> Publication | None:
    table = settings.publication_table
    return None if table is None else PublicationDirectory(table.directory)


def _publish(
    settings: Settings, realm: Realm, store: SQLStore, keys: KeyStore, clock: Clock
) -> Publish | None:
    table, publication = settings.publication_table, _publication(settings)
    if table is None or publication is None:
        return None
    return Publish(
        realm=realm,
        store=store,
        log=store.log,
        keys=keys,
        clock=clock,
        publication=publication,
        terms=PublicationTerms(
            locations=table.locations,
            crl_validity=timedelta(hours=table.crl_hours),
            crl_refresh=timedelta(hours=table.crl_refresh_hours),
            crl_alarm=timedelta(hours=table.crl_alarm_hours),
            offline_alarm=timedelta(hours=table.offline_alarm_hours),
            behind=timedelta(minutes=table.behind_minutes),
            partitions=table.partitions,
            log_entries=table.log_entries,
            delta=None if table.delta_hours is None else timedelta(hours=table.delta_hours),
        ),
    )


def build_public(settings: Settings, *, clock: Clock | None = None) -> PublicApplication:
    """Build what the public plane needs: never the authorities' key store, the log's key or a writer.

    Raises:
        errors.IntegrityFailure: the database belongs to another realm than the settings.
        errors.Refusal: something the settings name cannot be opened.  What was opened before is let go.
    """
    clock, plane, directory = clock or system.SystemClock(), settings.public_plane, settings.public_directory
    keys: KeyStore | None = None
    answer: AnswerStatus | None = None
    with ExitStack() as opened:
        if plane.ocsp == "live" and plane.key_store is not None:
            keys = open_key_store(plane.key_store)
            opened.callback(keys.close)
            database = _open_database(settings.database)
            with ExitStack() as until_the_store_has_it:
                until_the_store_has_it.callback(database.close)
                _realm(settings, database)
                store = SQLStore(database, clock, _sign_nothing)
                until_the_store_has_it.pop_all()
            opened.callback(store.close)
            answer = AnswerStatus(store, keys.sign, clock, timedelta(minutes=plane.ocsp_minutes))
        return PublicApplication(
            settings=settings,
            directory=directory,
            clock=clock,
            keys=keys,
            answer=answer,
            answers=partial(PublishedAnswers, directory) if plane.ocsp == "presigned" else None,
            close=opened.pop_all().close,
        )


def _sign_nothing(_body: bytes) -> bytes:
    raise errors.NotPermitted("the public plane writes nothing: it has no key of the log")


def _realm(settings: Settings, database: Database) -> Realm:
    realm = read_realm(database)
    if (realm.name, realm.environment) != (settings.realm.name, settings.realm.environment):
        raise errors.IntegrityFailure(
            f"the settings are for realm {settings.realm.name} ({settings.realm.environment}),"
            f" the database belongs to {realm.name} ({realm.environment})"
        )
    return realm
