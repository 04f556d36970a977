"""The composition root: builds everything from the settings, once, as one frozen value for the edges.

The edges see this module as an ``edge.application.Factory``.
"""

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path

from birthmark import errors
from birthmark.adapters import foreign, system
from birthmark.adapters.clocks import WatchedClock
from birthmark.adapters.custody import read_passphrase_file
from birthmark.adapters.doctor import Doctor
from birthmark.adapters.failover import FailoverKeyStore, Member
from birthmark.adapters.inspection import PkilintInspector
from birthmark.adapters.observed import ObservedKeyStore
from birthmark.adapters.publication import PublicationDirectory, PublishedAnswers
from birthmark.adapters.sql.database import Database
from birthmark.adapters.sql.engines import open_database
from birthmark.adapters.sql.realm import read_realm
from birthmark.adapters.sql.schema import require_schema
from birthmark.adapters.sql.servertime import agreement
from birthmark.adapters.sql.store import SQLStore
from birthmark.edge.application import Application, PublicApplication
from birthmark.element.catalogue import ElementCatalogue
from birthmark.floor.key_assets import KeyAsset
from birthmark.floor.realm import Realm
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.pki.profiles import Catalogue
from birthmark.ports import Clock, Entropy, KeyStore, Observer, Publication, Store, Unobserved
from birthmark.secret import SecretBytes
from birthmark.services.approvals import Approvals
from birthmark.services.attest import AttestDevices
from birthmark.services.authorise import Authorise
from birthmark.services.backup import CopyReader, DatabaseCopies, Engine
from birthmark.services.certifying import Certifier
from birthmark.services.challenges import Challenges
from birthmark.services.cmp_transactions import CMPTransactions
from birthmark.services.confirmations import ConfirmEnrolments
from birthmark.services.dialogues import Dialogues
from birthmark.services.enrolments import EnrolDevices
from birthmark.services.fleet import Fleet
from birthmark.services.injection import InjectDevices
from birthmark.services.invitations import Invitations
from birthmark.services.issue import IssueDevices
from birthmark.services.opening import OpenRuns
from birthmark.services.proposals import Proposals
from birthmark.services.prove import ProveDevices
from birthmark.services.publish import PublicationTerms, Publish
from birthmark.services.recall import Recalls
from birthmark.services.recognition import Codes
from birthmark.services.renewals import Renewals
from birthmark.services.responders import Responders
from birthmark.services.runs import Runs
from birthmark.services.status import AnswerStatus
from birthmark.settings import (
    DatabaseSettings,
    EnrolmentPlane,
    KeyStoreSettings,
    Settings,
    SoftwareKeys,
    StandbyToken,
    TokenKeys,
)
from birthmark.settings_device import DevicePlane

__all__ = [
    "build",
    "build_public",
    "clock",
    "copies",
    "create_realm",
    "entropy",
    "inspector",
    "migrate",
    "open_key_store",
    "read_copy",
    "read_secret",
]

log = logging.getLogger(__name__)

LOST_TOKEN = 75
"""Exit code of a process whose token never came back: EX_TEMPFAIL of sysexits.h, it may be started again."""

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
    return _open(settings)


def _open(settings: KeyStoreSettings, *, patient: bool = False) -> Member:
    if isinstance(settings, SoftwareKeys):
        from birthmark.adapters.softkeys import SoftwareKeyStore

        return SoftwareKeyStore.open(settings.directory, read_passphrase_file(settings.passphrase_file))
    return _open_token(settings, settings.answer_seconds, patient=patient)


def _open_token(token: TokenKeys | StandbyToken, answer_seconds: float, *, patient: bool) -> Member:
    from birthmark.adapters.pkcs11 import PKCS11KeyStore

    pin = read_passphrase_file(token.pin_file)
    return PKCS11KeyStore.open(
        token.module, token.token, pin, timeout_seconds=answer_seconds, patient=patient
    )


class _ServiceKeys:
    """The key store of a realm: what the settings name, held to what is on record."""

    def __init__(self, settings: KeyStoreSettings, recorded: Callable[[KeyLabel], str | None]) -> None:
        """Open it, also while a token cannot be reached.

        Args:
            settings: name the store.
            recorded: returns what a key is known by on record.
        """
        self._settings = settings
        self._doctor: Doctor | None = None
        with ExitStack() as opened:
            primary = _open(settings, patient=True)
            opened.callback(primary.close)
            name = settings.token if isinstance(settings, TokenKeys) else "software"
            self.members: dict[str, KeyStore] = {name: primary}
            standby, checks = None, 1
            if isinstance(settings, TokenKeys) and settings.standby is not None:
                standby = _open_token(settings.standby, settings.answer_seconds, patient=True)
                checks = settings.return_checks
                called = settings.standby.token
                self.members[called if called != name else f"{name} (standby)"] = standby
            opened.pop_all()
        self.keys = FailoverKeyStore(primary, standby, recorded=recorded, return_after=checks)

    def watch(self) -> None:
        """Examine the stores until ``close``."""
        if self._doctor is None and isinstance(self._settings, TokenKeys):
            self._doctor = Doctor(
                self.keys,
                every_seconds=self._settings.check_seconds,
                give_up_seconds=self._settings.give_up_seconds,
                give_up=_give_up,
            )

    def close(self) -> None:
        """Let go of the stores.  Closing twice does nothing."""
        if self._doctor is not None:
            self._doctor.dismiss()
        self.keys.close()


def _give_up(reason: str) -> None:
    # Not sys.exit: to end in order is to finalise the library, which would hang as well.
    log.critical("%s", reason)
    logging.shutdown()
    os._exit(LOST_TOKEN)


def _recorded(
    realm: Realm, log_key: KeyLabel, store: Callable[[], Store]
) -> Callable[[KeyLabel], str | None]:
    """Return what says what a key is known by; of the log's key without a look, which a commit may need."""

    def recorded(label: KeyLabel) -> str | None:
        if label == log_key:
            public = VerifierKey.parse(realm.vkey).public
            return sha256(ALGORITHMS[KeyAlgorithm.ED25519].spki_prefix + public).hexdigest()
        asset = store().look({KeyAsset: (label,)}).get(KeyAsset, label)
        return None if asset is None else asset.fingerprint

    return recorded


def _password(settings: DatabaseSettings) -> SecretBytes | None:
    return None if settings.password_file is None else read_passphrase_file(settings.password_file)


def _open_database(settings: DatabaseSettings) -> Database:
    return open_database(settings.url, _password(settings), standbys=settings.synchronous_standbys)


def _agreed(settings: Settings, database: Database, clock: Clock) -> Callable[[], None]:
    """Return what holds this machine's clock against that of the database's server."""
    if isinstance(clock, WatchedClock) and settings.database.url.startswith("postgresql:"):
        return agreement(database, clock, timedelta(seconds=settings.clock.jump_seconds))
    return lambda: None


def migrate(settings: DatabaseSettings) -> None:
    """Bring the database to the newest schema; make the file if it is SQLite's."""
    from birthmark.adapters.sql import migrate as sql_migrate  # half a second, for a command that is rare

    sql_migrate.migrate(settings.url, _password(settings))


def create_realm(settings: DatabaseSettings, realm: Realm) -> None:
    """Write the realm and an empty log into a migrated database."""
    from birthmark.adapters.sql import migrate as sql_migrate  # half a second, for a command that is rare

    sql_migrate.create_realm(settings.url, realm, _password(settings))


def copies(settings: DatabaseSettings) -> DatabaseCopies:
    """Return what copies the database as a whole, and puts a copy back."""
    from birthmark.adapters.sql.copies import copies_of  # as above

    return copies_of(settings.url, _password(settings))


def read_copy(engine: Engine, path: Path) -> CopyReader:
    """Return what reads a copy of a database."""
    from birthmark.adapters.sql import copies as sql_copies  # as above

    return sql_copies.read_copy(engine, path)


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
    clock = clock or WatchedClock(settings.clock.jump_seconds)
    entropy = entropy or system.SystemEntropy()
    # What is let go goes in the order opposite to its opening: the store before the keys, because the last
    # train's checkpoint wants the log's key.
    with ExitStack() as opened:
        database = _open_database(settings.database)
        with ExitStack() as until_the_store_has_it:
            until_the_store_has_it.callback(database.close)
            realm = _realm(settings, database)
            log_key = KeyLabel(settings.log.key)
            service = _ServiceKeys(settings.key_store, _recorded(realm, log_key, lambda: store))
            opened.callback(service.close)
            keys: KeyStore = service.keys
            if observer is not None:
                keys = ObservedKeyStore(keys, observer)
            agreed = _agreed(settings, database, clock)
            store = SQLStore(database, clock, lambda body: keys.sign(log_key, body), observer, agreed)
            until_the_store_has_it.pop_all()
        opened.callback(store.close)
        catalogue, inspector = Catalogue.read(settings.profiles_directory), PkilintInspector()
        elements = ElementCatalogue.read(settings.elements_directory)
        rate = None if settings.station_table is None else settings.station_table.run_rate
        runs, challenges = Runs(realm, catalogue, elements, rate), Challenges()
        dialogues = Dialogues(keys, entropy)
        certifier = Certifier(keys, clock, entropy)
        issue = IssueDevices(runs, challenges, dialogues, certifier, entropy)
        device = settings.device_table or DevicePlane()
        enrolments = EnrolDevices(runs, issue, certifier, entropy, device.default_run, device.retry_seconds)
        confirmations = ConfirmEnrolments(runs)
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
            issue=issue,
            enrolments=enrolments,
            confirmations=confirmations,
            cmp=CMPTransactions(enrolments, confirmations, clock, timedelta(seconds=device.confirm_seconds)),
            approvals=Approvals(),
            codes=Codes(keys, log_key),
            inject=InjectDevices(runs, challenges, dialogues),
            prove=ProveDevices(runs, challenges, dialogues),
            publish=_publish(settings, realm, store, keys, clock),
            publication=_publication(settings),
            responders=Responders(
                keys, clock, entropy, catalogue, settings.realm.organization, realm.environment.mark
            ),
            authorise=authorise,
            proposals=Proposals(realm, authorise, entropy),
            fleet=Fleet(realm, entropy),
            invitations=_invitations(settings, authorise, clock, entropy, catalogue),
            renewals=Renewals(authorise, clock, catalogue, settings.realm.organization),
            recalls=Recalls(realm, clock, entropy, store.log),
            key_stores=service.members,
            watch_keys=service.watch,
            ask_responder=foreign.Responders().ask,
            watch_fleets=partial(foreign.ForeignWatcher, store, clock),
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
    require_schema(database.query, settings.database.url)
    realm = read_realm(database)
    if (realm.name, realm.environment) != (settings.realm.name, settings.realm.environment):
        raise errors.IntegrityFailure(
            f"the settings are for realm {settings.realm.name} ({settings.realm.environment}),"
            f" the database belongs to {realm.name} ({realm.environment})"
        )
    return realm
