"""The page to read first: all that the use cases need from outside.

Everything below this file in the import order (``floor``, ``pki``, ``ledger``) computes over values.  What
touches a token, a database, a clock or a source of randomness implements one of these protocols.  Only keys
come from no port of randomness: a key store makes its own, and OpenSSL those that are given to others.

How a use case meets the store: it thinks (vets, builds, lints, signs), hands over an ``Act``, and gets back
what was committed.  The store collects the acts that are waiting, takes the log's head, lets each act decide
against the facts as they are at that moment, appends the leaves of all of them, signs one checkpoint, commits
once, and only then answers.
"""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from birthmark import errors
from birthmark.pki.keys import KeyAlgorithm, KeyLabel

__all__ = [
    "Act",
    "Clock",
    "Committed",
    "Decision",
    "Entropy",
    "Facts",
    "KeyStore",
    "Log",
    "LogEntry",
    "Look",
    "ProofOf",
    "Reads",
    "Store",
    "UseCase",
    "carry",
]

V = TypeVar("V")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Reads = Mapping[type, Sequence[str]]
"""Which values somebody wants to see: the keys by type of value."""


class KeyStore(Protocol):
    """Private keys that sign where they live (a PKCS#11 token, or an encrypted software store).

    Safe to call from any thread.  Every method raises ``errors.Unavailable`` while the store cannot be
    reached (the caller may try again) and ``errors.NotFound`` for a label it does not hold.
    """

    @property
    def development(self) -> bool:
        """True for a store that keeps keys in process memory; shown wherever the store is shown."""
        ...

    def generate(self, label: KeyLabel, algorithm: KeyAlgorithm) -> bytes:
        """Generate a key pair in the store, durable on return, and return its SubjectPublicKeyInfo (DER).

        Raises:
            errors.IllegalTransition: the label is taken.
        """
        ...

    def public_key(self, label: KeyLabel) -> bytes:
        """Return the SubjectPublicKeyInfo of a key (DER)."""
        ...

    def sign(self, label: KeyLabel, message: bytes) -> bytes:
        """Sign a message with the algorithm of the key.

        ECDSA hashes with SHA-256 on P-256 and SHA-384 on P-384 and answers a DER Ecdsa-Sig-Value (RFC 3279
        section 2.2.3); Ed25519 answers 64 octets (RFC 8032).
        """
        ...

    def labels(self) -> tuple[KeyLabel, ...]:
        """Return the labels of all private keys in the store, sorted."""
        ...

    def close(self) -> None:
        """Let go of the store; it answers no more.  Closing twice does nothing."""
        ...


class Clock(Protocol):
    """The time of day."""

    def now(self) -> datetime:
        """Return the time, aware, in UTC."""
        ...


class Entropy(Protocol):
    """Randomness for serial numbers, challenges, identifiers and passphrases; keys are not made of it."""

    def token(self, size: int) -> bytes:
        """Return ``size`` octets from the operating system's generator."""
        ...


class Facts(Protocol):
    """What the store knows, as one act sees it: with all acts before it, and its own changes so far."""

    @property
    def next_leaf(self) -> int:
        """The log index that the act's first entry will have."""
        ...

    def get(self, kind: type[V], key: str) -> V | None:
        """Return the value with this key (its first field), or None."""
        ...

    def put(self, value: object) -> None:
        """Add a value, or replace the one with the same key."""
        ...


@dataclass(frozen=True, slots=True)
class Decision(Generic[T]):
    """What an act comes to: its log entries (kind and fields), and the answer for whoever asked.

    An answer that is a ``Refusal`` is committed like any other and raised by the use case afterwards.
    """

    answer: T
    entries: Sequence[tuple[str, Mapping[str, Any]]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Act(Generic[T]):
    """One thing that happens, all or not at all.

    ``decide`` is called inside the commit train, perhaps more than once, with the facts and the time of the
    commit; it must be quick and have no effect but ``facts.put``.  If it raises a ``Refusal``, its changes
    are dropped and ``refuse`` decides instead: that is how a refusal gets into the log and under its
    idempotency key.  A refusal that is ``retryable`` commits nothing.
    """

    actor: str
    """Who acts: a client's id, or ``anonymous``."""
    decide: Callable[[Facts, datetime], Decision[T]]
    refuse: Callable[[Facts, datetime, errors.Refusal], Decision[errors.Refusal]]
    reads: Reads
    """What ``decide`` is going to look at.

    Fetched for the whole train at once.  A hint; the rest is fetched on demand.
    """
    seq: int | None = None
    """The client's own number for the request (SPEC E5)."""
    operator: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LogEntry:
    """One entry of the log."""

    index: int
    entry: bytes


class Committed(Protocol[T_co]):
    """A durable act."""

    @property
    def answer(self) -> T_co | errors.Refusal:
        """What ``decide`` or ``refuse`` answered."""
        ...

    @property
    def leaves(self) -> Sequence[LogEntry]:
        """The act's own log entries."""
        ...

    def token(self, index: int) -> str:
        """Return the proof of one of ``leaves`` under the train's checkpoint (C2SP ``.tlog-proof``)."""
        ...


class Log(Protocol):
    """The log, read; committed entries only."""

    def size(self) -> int:
        """Return the number of entries."""
        ...

    def entries(self, start: int = 0, end: int | None = None) -> Iterator[LogEntry]:
        """Iterate over entries [start, end)."""
        ...

    def checkpoints(self, after: int = -1) -> Iterator[tuple[int, str]]:
        """Iterate over all checkpoints ever signed for sizes above ``after``: (size, signed note)."""
        ...

    def node(self, level: int, index: int) -> bytes:
        """Return the root of the complete subtree of leaves [index·2^level, (index+1)·2^level)."""
        ...


class Store(Protocol):
    """The record: values by key, and the log, which only ever change together.

    Durable means: on stable storage by the database's own strictest setting.  Any number of processes may
    share one store; their trains are ordered by the log's head.
    """

    def submit(self, acts: Sequence[Act[Any]]) -> "Future[list[Committed[Any]]]":
        """Commit acts in this order, each succeeding or failing alone, and resolve once all are durable.

        The future fails with ``errors.Unavailable`` when it is not known whether they were committed: ask
        again with the same idempotency keys.
        """
        ...

    def look(self, reads: Reads) -> Facts:
        """Return committed values; putting into them has no effect."""
        ...

    def scan(self, kind: type[V], *, after: str = "", limit: int | None = None) -> Iterator[V]:
        """Iterate over all values of a kind in the order of their keys."""
        ...

    def token(self, index: int) -> str:
        """Return the proof of a log entry under the first checkpoint that covers it.

        Raises:
            errors.NotFound: the log has no such entry.
        """
        ...

    def checkpoint(self) -> str:
        """Return the newest checkpoint (C2SP signed note)."""
        ...


@dataclass(frozen=True, slots=True)
class Look:
    """A use case wants to see committed values."""

    reads: Reads


@dataclass(frozen=True, slots=True)
class ProofOf:
    """A use case wants the proof of an entry that is already in the log."""

    index: int


UseCase = Generator[Look | ProofOf | Sequence[Act[Any]], Any, T]
"""A use case is a dialogue with the store.

It yields a ``Look`` and is sent ``Facts``, a ``ProofOf`` and is sent the proof's text, or acts and is sent
the list of ``Committed``.  So the same code runs under an event loop and under a command line, and does no
I/O itself.
"""


def carry(store: Store, use_case: UseCase[T]) -> T:
    """Carry a use case over a store, blocking, until it returns."""
    answer: Any = None
    try:
        while True:
            step = use_case.send(answer)
            if isinstance(step, Look):
                answer = store.look(step.reads)
            elif isinstance(step, ProofOf):
                answer = store.token(step.index)
            else:
                answer = store.submit(step).result()
    except StopIteration as done:
        value: T = done.value
        return value
