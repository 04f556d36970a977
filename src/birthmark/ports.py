"""The page to read first: all that the use cases need from outside.

Everything below this file in the import order (``floor``, ``pki``, ``ledger``) computes over values.  What
touches a token, a database, a clock or a source of randomness implements one of these protocols.  Only keys
come from no port of randomness: a key store makes its own, and OpenSSL those that are given to others.

How a use case meets the store: it thinks (vets, builds, lints, signs), hands over an ``Act``, and gets back
what was committed.  The store collects the acts that are waiting, takes the log's head, lets each act decide
against the facts as they are at that moment, appends the leaves of all of them, signs one checkpoint, commits
once, and only then answers.

Longer than other modules may be, because it is one page on purpose: most of it is what each method promises.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, Protocol, TypeVar

from birthmark import errors
from birthmark.element.diversification import Derivation
from birthmark.element.keyset import StaticKeys
from birthmark.pki.articles import Finding
from birthmark.pki.attributes import KeyAttributes, SecretKind, SecretMade
from birthmark.pki.crl_reading import Buffer
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.secret import SecretBytes

__all__ = [
    "BACKWARD_TOLERANCE",
    "Act",
    "Clock",
    "Committed",
    "Decision",
    "Draft",
    "Entropy",
    "Facts",
    "Health",
    "Inspector",
    "KeyStore",
    "Log",
    "LogEntry",
    "Look",
    "Observer",
    "Octets",
    "ProofOf",
    "Publication",
    "Reads",
    "Scan",
    "SignedAnswer",
    "SignedAnswers",
    "Store",
    "Unobserved",
    "UseCase",
    "carry",
]

V = TypeVar("V")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Reads = Mapping[type, Sequence[str]]
"""Which values somebody wants to see: the keys by type of value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether something we depend on works, as it was last seen: for screens, which do not wait."""

    up: bool
    """It did what it was last asked."""
    reason: str
    """Why it is not up; or what is lost though it is, as of a pair that is one; empty if all is well."""
    since: datetime
    """When it became so, in UTC."""
    active: str = ""
    """What does the work: the token's label, ``software``; empty where there is but one."""


class Observer(Protocol):
    """Hears what goes on, for the people who watch the service; nothing is decided by it.

    Its methods return at once, raise nothing, and may be called from any thread.
    """

    def span(self, name: str) -> AbstractContextManager[object]:
        """Return what surrounds one stretch of work: ``think``, ``train``, ``token``."""
        ...

    def refused(self, code: str) -> None:
        """Hear of a refusal that somebody was told."""
        ...

    def waiting(self, acts: int) -> None:
        """Hear that so many more acts wait for a train; fewer, if negative."""
        ...

    def committed(self, acts: int, kinds: Sequence[str], seconds: float) -> None:
        """Hear of a train that is durable: its acts, the kinds of its log entries, how long it took."""
        ...

    def not_committed(self, acts: int) -> None:
        """Hear of a train that failed as a whole."""
        ...

    def key_used(self, seconds: float, *, failed: bool) -> None:
        """Hear of one use of the key store."""
        ...


class Unobserved:
    """Nobody watches."""

    __slots__ = ()

    def span(self, _name: str) -> AbstractContextManager[object]:
        """See ``Observer.span``."""
        return nullcontext()

    def refused(self, code: str) -> None:
        """See ``Observer.refused``."""

    def waiting(self, acts: int) -> None:
        """See ``Observer.waiting``."""

    def committed(self, acts: int, kinds: Sequence[str], seconds: float) -> None:
        """See ``Observer.committed``."""

    def not_committed(self, acts: int) -> None:
        """See ``Observer.not_committed``."""

    def key_used(self, seconds: float, *, failed: bool) -> None:
        """See ``Observer.key_used``."""


class KeyStore(Protocol):
    """Keys that are used where they live (a PKCS#11 token, or an encrypted software store).

    Safe to call from any thread.  Every method raises ``errors.Unavailable`` while the store cannot be
    reached (the caller may try again) and ``errors.NotFound`` for a label it does not hold.
    """

    @property
    def development(self) -> bool:
        """True for a store that keeps keys in process memory; shown wherever the store is shown."""
        ...

    def health(self) -> Health:
        """Return whether the store answered last; it is not asked.

        One that is up and has a reason serves, and somebody should see to it.
        """
        ...

    def generate(self, label: KeyLabel, algorithm: KeyAlgorithm, *, exportable: bool = False) -> bytes:
        """Generate a key pair in the store, durable on return, and return its SubjectPublicKeyInfo (DER).

        Args:
            label: not taken by any key of the store.
            algorithm: of the key.
            exportable: the key may leave the store wrapped under a trusted key-encryption key (``wrap``), and
                in no other way; a key is born with this or never has it.

        Raises:
            errors.IllegalTransition: the label is taken.
        """
        ...

    def generate_secret(
        self,
        label: KeyLabel,
        kind: SecretKind,
        *,
        recipients: Sequence[bytes] = (),
        officer: SecretBytes | None = None,
    ) -> SecretMade:
        """Generate a secret key in the store, durable on return; its value is in clear nowhere else.

        Args:
            label: not taken by any key of the store.
            kind: what it is for.
            recipients: SubjectPublicKeyInfo (DER) of other stores' transport keys, whose fingerprints the
                custodians have compared; each gets the key encrypted to it.  For a KEK only: afterwards
                it never leaves the store again.
            officer: PIN of the token's security officer, without which no token trusts a KEK.  Not kept.

        Raises:
            errors.IllegalTransition: the label is taken.
            errors.PolicyRefused: the token cannot do it (rules ``token``, ``token-mechanism``), or a KEK is
                wanted without the security officer (``token-trust``).
            errors.NotPermitted: the officer's PIN is refused; it is not tried again.
        """
        ...

    def generate_transport(self, label: KeyLabel) -> bytes:
        """Generate a key pair to which others encrypt secret keys; return its SubjectPublicKeyInfo (DER).

        Raises:
            errors.IllegalTransition: the label is taken.
        """
        ...

    def accept_secret(self, label: KeyLabel, kind: SecretKind, share: bytes, transport: KeyLabel) -> str:
        """Take in a secret key that was encrypted to a transport key of this store; return its check value.

        It may do what its kind says, and leaves the store no more.  A KEK opens wrapped keys; the token does
        not trust it to wrap any.

        Args:
            label: not taken by any key of the store.
            kind: what it is to be.
            share: the key's octets, nothing else, under RSAES-OAEP (``TransportKind``).
            transport: label of the transport key.

        Raises:
            errors.IllegalTransition: the label is taken.
            errors.MalformedRequest: the share is not for this transport key, or is no key of this length.
        """
        ...

    def derived_keys(self, master: KeyLabel, derivation: Derivation) -> StaticKeys:
        """Return the key set of one element, whose keys are as long as the master key.

        Asks about the master key once and is cheap from then on; the work is done by the methods of what it
        returns, which may be called from any thread and raise like those of the store.  Under a master key of
        a ``diversify-`` kind the keys come to be in the token and are wrapped there (``KeyRoute.IN_TOKEN``);
        under one of a ``master-`` kind they are in this process for the length of a call
        (``KeyRoute.SERVICE``), as all keys of a software store are.

        A set takes in sets of its own store only.

        Raises:
            errors.PolicyRefused: rule ``key-route``: the key is none that others are derived from, or it
                derives in the token and the scheme's messages are not of one block each.
            errors.MalformedRequest: the context is not one for the scheme.
        """
        ...

    def fixed_keys(self, labels: tuple[KeyLabel, KeyLabel, KeyLabel]) -> StaticKeys:
        """Return the key set of these three keys, which a delivery of elements shares; as ``derived_keys``.

        Its keys are not wrapped under another set's: it is there to be replaced.

        Args:
            labels: of K-ENC and K-MAC (kind ``master-aes-…``) and of K-DEK (``dek-aes-…``), of one length.

        Raises:
            errors.PolicyRefused: rule ``key-route``: they are of other kinds, or not of one length.
        """
        ...

    def wrap(self, label: KeyLabel, kek: KeyLabel) -> bytes:
        """Return a private key's PKCS#8 encrypted under a KEK (AES key wrap with padding, RFC 5649).

        Raises:
            errors.PolicyRefused: the key was not generated exportable (rule ``key-not-exportable``), could
                leave under any key (``key-unguarded``), the KEK is none or not trusted (``kek``), or the
                token cannot wrap keys of this algorithm (``token``).
        """
        ...

    def unwrap(self, label: KeyLabel, subject_public_key_info: bytes, wrapped: bytes, kek: KeyLabel) -> None:
        """Take a wrapped private key in, for good, if it is the one of this public key; it may only sign.

        It cannot leave this store again.  The public key (DER) is an argument because PKCS#11 does not give
        it back; the key has signed, and the signature was verified with it, before this returns.

        Raises:
            errors.IllegalTransition: the label is taken.
            errors.MalformedRequest: the wrapped key does not open under this KEK, or is of another algorithm.
            errors.IntegrityFailure: it is not the key of this public key; nothing was kept.
        """
        ...

    def attributes(self, label: KeyLabel) -> KeyAttributes:
        """Ask the store what a key may do, now: nothing that was known before is believed."""
        ...

    def inventory(self) -> tuple[KeyAttributes, ...]:
        """Ask the store about every private and secret key in it, also others' and two with one label.

        Sorted by label.
        """
        ...

    def public_key(self, label: KeyLabel) -> bytes:
        """Return the SubjectPublicKeyInfo of a key (DER), also of a transport key."""
        ...

    def sign(self, label: KeyLabel, message: bytes) -> bytes:
        """Sign a message with the algorithm of the key.

        ECDSA hashes with SHA-256 on P-256, SHA-384 on P-384 and SHA-512 on P-521 and answers a DER
        Ecdsa-Sig-Value (RFC 3279 section 2.2.3); Ed25519 answers 64 octets and Ed448 114 (RFC 8032); RSA is
        RSASSA-PKCS1-v1_5 with SHA-256 (RFC 8017) and answers as many octets as the modulus has.
        """
        ...

    def labels(self) -> tuple[KeyLabel, ...]:
        """Return the labels of all private and secret keys in the store that follow our syntax, sorted."""
        ...

    def close(self) -> None:
        """Let go of the store; it answers no more.  Closing twice does nothing."""
        ...


BACKWARD_TOLERANCE = timedelta(seconds=5)
"""How far the clock may fall behind the log's last entry (an NTP step) before the line is held."""


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


class Inspector(Protocol):
    """A linter of certificates that is not ours: it reads and decides nothing.

    Which of its findings a certificate may have is said by the waivers of its profile.
    """

    @property
    def name(self) -> str:
        """Its name, as waivers spell it."""
        ...

    @property
    def version(self) -> str:
        """Its version, for the record."""
        ...

    def inspect(self, certificate: bytes, issuer: bytes | None) -> tuple[Finding, ...]:
        """Return what it finds in a certificate (DER), and between it and its issuer's; notices too.

        The signature is not looked at: what is inspected may be signed by nobody.

        Args:
            certificate: DER.
            issuer: DER; None for a certificate that is its own issuer's.

        Raises:
            errors.MalformedRequest: it is nothing that the linter can read.
        """
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

    def moved_at(self) -> datetime:
        """Return the time of the last commit: the last entry's, or later if nothing was entered."""
        ...

    def strays(self) -> list[str]:
        """Return what is kept as the log's and lies beyond its size, in words; the first few of each kind."""
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

    def hashes(self, level: int, start: int, end: int) -> list[bytes]:
        """Return the nodes [start, end) of level 8·``level``: the contents of tiles (C2SP tlog-tiles)."""
        ...


class Octets(Protocol):
    """One field of many values, joined, as of one moment; never in memory as a whole."""

    @property
    def size(self) -> int:
        """How many octets there are; counted when it is asked for."""
        ...

    @property
    def as_of(self) -> datetime:
        """Time of the last commit that is in it."""
        ...

    def pieces(self) -> Iterator[bytes]:
        """Iterate over the octets, in pieces of some hundred kilobytes."""
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

    def scan(
        self,
        kind: type[V],
        *,
        where: Mapping[str, str] | None = None,
        after: str = "",
        limit: int | None = None,
    ) -> Iterator[V]:
        """Iterate over the values of a kind in the order of their keys.

        Args:
            kind: type of value.
            where: only values with these fields.  ``DeviceCertificate.run`` and ``CMPTransaction.attempt``
                have an index; any other field is looked at value by value.
            after: only keys above this one.
            limit: at most so many.
        """
        ...

    def since(self, kind: type, field: str, start: datetime) -> Iterator[tuple[str, datetime]]:
        """Iterate over the keys of values whose time is not before ``start``, with that time, in its order.

        ``Revocation.revoked_at`` has an index; no other field is asked about.
        """
        ...

    def octets(self, kind: type, field: str, *, prefix: str) -> AbstractContextManager["Octets"]:
        """Return one field of all values whose key begins with a prefix, joined in the order of the keys.

        The context holds one snapshot of the database: what is read in it is of one moment.
        """
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

    def health(self) -> Health:
        """Return what became of the last train; the database is not asked."""
        ...

    def probe(self) -> datetime:
        """Commit a train that changes nothing, and return the time of the log's last entry.

        Locks the head, holds it against what this process saw, writes, and waits until that is durable.

        Raises:
            errors.Unavailable: the database cannot be written to now, or the trains do not run.
            errors.IntegrityFailure: it is not the one this process saw, or lacks tables or rights.
        """
        ...


class Draft(Protocol):
    """Octets on their way to be published."""

    def write(self, piece: Buffer) -> None:
        """Append."""
        ...

    def octets(self) -> AbstractContextManager[Buffer]:
        """Return all that was written, read in place; nothing can be appended any more."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedAnswer:
    """An OCSP answer about one certificate, signed before anybody asked."""

    algorithm: str
    """Hash algorithm of the CertID: ``sha1``, ``sha256``."""
    serial_number: int
    octets: bytes
    """OCSPResponse (DER)."""
    this_update: datetime
    next_update: datetime


class SignedAnswers(Protocol):
    """OCSP answers that were signed beforehand, on their way to be published."""

    def put(self, answers: Iterable["SignedAnswer"]) -> None:
        """Add or replace answers."""
        ...


class Publication(Protocol):
    """What everyone may fetch: files by path, each replaced wholly and at once, or not at all.

    One publisher writes at a time: ``publish``, ``withdraw`` and ``answers`` raise ``errors.Fault`` without
    the ``lock``.  Readers need none, and never see half a file.  Every method raises ``errors.Unavailable``
    if the directory cannot be read or written.
    """

    def lock(self) -> AbstractContextManager[None]:
        """Be the one who publishes; what an earlier one left half-done is cleared away.

        Raises:
            errors.Unavailable: another one is at it.
        """
        ...

    def read(self, path: str) -> AbstractContextManager[Buffer | None]:
        """Return what is published under a path, read in place; None if nothing is."""
        ...

    def draft(self) -> AbstractContextManager[Draft]:
        """Return room for octets that nobody sees; it is gone afterwards."""
        ...

    def publish(self, path: str, pieces: Iterable[Buffer]) -> None:
        """Replace what is published under a path; durable on return."""
        ...

    def withdraw(self, folder: str) -> None:
        """Remove everything published under a folder, if there is anything."""
        ...

    def answers(self, authority: str, *, anew: bool) -> AbstractContextManager[SignedAnswers]:
        """Replace an authority's signed answers when the context ends without an exception.

        Args:
            authority: its id.
            anew: begin with none, not with those that are published.
        """
        ...


@dataclass(frozen=True, slots=True)
class Look:
    """A use case wants to see committed values."""

    reads: Reads


@dataclass(frozen=True, slots=True)
class ProofOf:
    """A use case wants the proof of an entry that is already in the log."""

    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A use case wants to see the values of a kind, in the order of their keys; see ``Store.scan``."""

    kind: type
    where: Mapping[str, str]
    after: str = ""
    limit: int | None = None


UseCase = Generator[Look | Scan | ProofOf | Sequence[Act[Any]], Any, T]
"""A use case is a dialogue with the store.

It yields a ``Look`` and is sent ``Facts``, a ``Scan`` and is sent a list of values, a ``ProofOf`` and is sent
the proof's text, or acts and is sent the list of ``Committed``.  So the same code runs under an event loop
and under a command line, and does no I/O itself.
"""


def carry(store: Store, use_case: UseCase[T]) -> T:
    """Carry a use case over a store, blocking, until it returns."""
    answer: Any = None
    try:
        while True:
            step = use_case.send(answer)
            if isinstance(step, Look):
                answer = store.look(step.reads)
            elif isinstance(step, Scan):
                answer = list(store.scan(step.kind, where=step.where, after=step.after, limit=step.limit))
            elif isinstance(step, ProofOf):
                answer = store.token(step.index)
            else:
                answer = store.submit(step).result()
    except StopIteration as done:
        value: T = done.value
        return value
