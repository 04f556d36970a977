"""One process of the service over a prepared record, every port of it stepped; and what a record comes to."""

import dataclasses
import functools
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.adapters.sql.rows import MAPPINGS
from birthmark.adapters.system import SystemEntropy
from birthmark.element.catalogue import ElementCatalogue
from birthmark.floor.limits import Bucket, Rate
from birthmark.ledger.entry import decode
from birthmark.pki.profiles import Catalogue
from birthmark.ports import KeyStore, Store, UseCase, carry
from birthmark.services.authorise import Authorise
from birthmark.services.cmp_transactions import CMPTransactions
from birthmark.services.custody import KeyCustody
from birthmark.services.fleet import Fleet
from birthmark.services.foreign_devices import ForeignDevices, Listed
from birthmark.services.foreign_status import Answers, Lists
from birthmark.services.gateway import Gateway
from birthmark.services.invitations import Invitations
from birthmark.services.own_devices import OwnDevices
from birthmark.services.proposals import Proposals
from birthmark.services.recall import Recalls
from birthmark.services.renewals import Renewals
from birthmark.services.responders import Responders
from tests.faults.ports import Steps, stepped_database, stepped_keys, stepped_store
from tests.support.elements import catalogue_of, element_profile
from tests.support.postgresql import LocalPostgreSQL
from tests.support.realm import PASSPHRASE, Hands, Line, Service, hierarchy, libpq, open_service

__all__ = [
    "CONFIRM_WITHIN",
    "FOLDERS",
    "RATES",
    "Ground",
    "Place",
    "Summary",
    "catalogue",
    "here_and_mirror",
    "place",
    "summary",
]

T = TypeVar("T")
FOLDERS: dict[str, Path] = {}
"""Where a line's key stores lie, by the URL of its database."""
_numbers = itertools.count(1)
ORGANIZATION = "Acme Motors"
CONFIRM_WITHIN = timedelta(minutes=5)
"""How long a CMP client has to confirm."""
RATES = (Rate(per_minute=600, burst=600), Rate(per_minute=600, burst=600))


@functools.cache
def catalogue() -> Catalogue:
    """Return the packaged profiles, read once."""
    return Catalogue.read()


@functools.cache
def elements() -> ElementCatalogue:
    """Return the catalogue with the one profile of the element scenarios."""
    return catalogue_of(element_profile())


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What one process holds; its clock stands."""

    folder: Path
    steps: Steps
    service: Service
    store: Store
    keys: KeyStore
    here: KeyStore
    mirror: KeyStore
    clock: Hands
    listed: Listed = field(default_factory=lambda: Listed(lists=Lists(), answers=Answers()))
    """What it has read of other fleets' revocations."""

    def carry(self, use_case: UseCase[T]) -> T:
        """Carry a use case over the stepped store."""
        return carry(self.store, use_case)

    @property
    def authorise(self) -> Authorise:
        """See the use cases of that name."""
        return self.service.authorise

    @property
    def custody(self) -> KeyCustody:
        """See the use cases of that name."""
        return KeyCustody(self.service.store.realm, self.clock, SystemEntropy())

    @property
    def recalls(self) -> Recalls:
        """See the use cases of that name."""
        store = self.service.store
        return Recalls(store.realm, self.clock, SystemEntropy(), store.log)

    @property
    def proposals(self) -> Proposals:
        """See the use cases of that name."""
        return Proposals(self.service.store.realm, self.authorise, SystemEntropy())

    @property
    def invitations(self) -> Invitations:
        """See the use cases of that name."""
        return Invitations(self.authorise, self.clock, SystemEntropy(), catalogue(), ORGANIZATION, RATES)

    @property
    def renewals(self) -> Renewals:
        """See the use cases of that name."""
        return Renewals(self.authorise, self.clock, catalogue(), ORGANIZATION)

    @property
    def responders(self) -> Responders:
        """See the use cases of that name."""
        return Responders(self.keys, self.clock, SystemEntropy(), catalogue(), ORGANIZATION, "TEST")

    @property
    def transactions(self) -> CMPTransactions:
        """See the use cases of that name."""
        service = self.service
        return CMPTransactions(service.enrolments, service.confirmations, self.clock, CONFIRM_WITHIN)

    @property
    def fleet(self) -> Fleet:
        """See the use cases of that name."""
        return Fleet(self.service.store.realm, SystemEntropy())

    @property
    def gateway(self) -> Gateway:
        """See the use case of that name."""
        foreign = ForeignDevices(self.clock, SystemEntropy(), self.listed)
        return Gateway(self.clock, OwnDevices(), foreign, self.service.confirmations, {})


def here_and_mirror(folder: Path) -> tuple[SoftwareKeyStore, SoftwareKeyStore]:
    """Open the two key stores that lie beside a record."""
    return (
        SoftwareKeyStore.open(folder / "here", PASSPHRASE),
        SoftwareKeyStore.open(folder / "mirror", PASSPHRASE),
    )


@contextmanager
def place(folder: Path, url: str, at: datetime, steps: Steps) -> Iterator[Place]:
    """Start a process on a record; on leaving, everything of it is closed as the kernel closes it."""
    clock, keys = Hands(at), stepped_keys(hierarchy().keys, "keys", steps)
    service = open_service(
        url, keys, clock, stepped_database(steps), catalogue=catalogue(), elements=elements()
    )
    here, mirror = here_and_mirror(folder)
    try:
        yield Place(
            folder=folder,
            steps=steps,
            service=service,
            store=stepped_store(service.store, steps),
            keys=keys,
            here=stepped_keys(here, "here", steps),
            mirror=stepped_keys(mirror, "mirror", steps),
            clock=clock,
        )
    finally:
        service.store.close()
        here.close()
        mirror.close()


class Ground:
    """Where records lie: each in a folder with its key stores, its database in it, or on a server."""

    def __init__(self, cluster: LocalPostgreSQL | None = None) -> None:
        """Use SQLite, or databases of a cluster."""
        self._cluster = cluster
        self._databases: dict[Path, str] = {}

    def new(self, folder: Path) -> str:
        """Return the URL of an empty database for a folder."""
        if self._cluster is None:
            return f"sqlite:///{folder / 'line.sqlite'}"
        self._databases[folder] = name = f"faults_{next(_numbers)}"
        return self._cluster.create_database(name)

    def url(self, folder: Path) -> str:
        """Return the URL of a folder's database."""
        if self._cluster is None:
            return f"sqlite:///{folder / 'line.sqlite'}"
        return libpq(self._cluster.url(self._databases[folder]))

    def copy(self, source: Path, target: Path) -> None:
        """Copy a record that nobody has open."""
        shutil.copytree(source, target)
        if self._cluster is not None:
            self._databases[target] = name = f"faults_{next(_numbers)}"
            with self._cluster.connect() as connection:
                connection.execute(f"CREATE DATABASE {name} TEMPLATE {self._databases[source]}".encode())

    def drop(self, folder: Path) -> None:
        """Remove a record."""
        shutil.rmtree(folder)
        if self._cluster is not None:
            self._cluster.drop_database(self._databases.pop(folder))

    def line(self, line: Line, source: Path, target: Path) -> Line:
        """Open a line again on a copy of its record."""
        self.copy(source, target)
        url, clock = self.url(target), Hands(line.clock.at)
        service = open_service(url, line.keys, clock, catalogue=catalogue(), elements=elements())
        again = Line(url=url, keys=line.keys, clock=clock, service=service)
        again.operator, again.station = line.operator, line.station
        FOLDERS[url] = target
        return again


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a record comes to, without what is random in it: rows by kind with their states and numbers."""

    rows: dict[str, Counter[tuple[object, ...]]]
    leaves: Counter[tuple[str, int]]
    """Indices of log entries that rows name, with the kind of the row."""
    kinds: tuple[str, ...]
    """Of the log's entries, in their order."""


def summary(service: Service) -> Summary:
    """Sum up a record."""
    rows: dict[str, Counter[tuple[object, ...]]] = {}
    leaves: Counter[tuple[str, int]] = Counter()
    for kind in MAPPINGS:
        if not dataclasses.is_dataclass(kind) or kind is Bucket:  # how full a bucket is, is a matter of when
            continue
        names = [one.name for one in dataclasses.fields(kind)]
        placed = [name for name in names if name.endswith("_leaf")]
        values = list(service.store.scan(kind))
        rows[kind.__name__] = Counter(
            tuple(
                v
                for v in (getattr(value, name) for name in names if name not in placed)
                if isinstance(v, (StrEnum, int))
            )
            for value in values
        )
        found = (getattr(value, name) for value in values for name in placed)
        leaves.update((kind.__name__, leaf) for leaf in found if leaf is not None)
    kinds = tuple(str(decode(item.entry)["kind"]) for item in service.store.log.entries())
    return Summary(rows=rows, leaves=leaves, kinds=kinds)
