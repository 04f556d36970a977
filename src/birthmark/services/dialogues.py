"""Dialogues with secure elements that are under way in this process (SPEC D2, D5).

A dialogue is a generator that lives here, next to the token; the station gets the commands and sends the
responses.  What a dialogue that broke off must know is in the journal, which is committed before the commands
that make it true go out.  A process that does not know a dialogue, because it was killed or another one began
it, says so: the station begins anew, and the element is asked where it stands.

A step that is sent again with the same responses gets the same answer, as long as its dialogue lives.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from string import Formatter

from birthmark import errors
from birthmark.element.apdu import Batch
from birthmark.element.diversification import ContextSource, Derivation, context_of
from birthmark.element.injection import Evidence, Injection, KeySetState, Order, Step, inject
from birthmark.element.keyset import StaticKeys
from birthmark.element.profiles import ContentKind, DerivedKeys, ElementProfile, FixedKeys
from birthmark.element.scp03 import KDD_OCTETS
from birthmark.floor.elements import ElementJournal, fresh
from birthmark.floor.key_assets import KeyAsset, KeyStatus
from birthmark.floor.runs import RunLicence
from birthmark.floor.samples import VARIABLE as HARDWARE_ID
from birthmark.pki.keys import KeyLabel
from birthmark.ports import Entropy, Facts, KeyStore, Look, UseCase
from birthmark.services.runs import RunContext

__all__ = [
    "BEGIN",
    "Commands",
    "Dialogues",
    "Finished",
    "Moved",
    "Responses",
    "check_objects",
    "element_of",
    "journal_of",
    "labels_of",
    "object_variables",
    "rehearse",
    "require_assets",
]

REMEMBERED_DIALOGUES = 4096
"""Dialogues that are under way at once in one process; the oldest is forgotten, and begun anew."""
BEGIN = 0
"""The step that begins a dialogue; it carries no responses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Responses:
    """What an element answered to one step, as the station says."""

    step: int
    responses: tuple[bytes, ...] = field(repr=False)

    def digest(self) -> str:
        """Return what tells these responses from others."""
        return sha256(repr((self.step, self.responses)).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """What to send to the element next."""

    attempt: str
    step: int
    batch: Batch = field(repr=False)
    last: bool
    """The responses to these come with the proof."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The gate has been passed."""

    evidence: Evidence
    state: KeySetState


Outcome = Commands | Finished | errors.ProofFailed | errors.Interrupted


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What a step came to, and what must be durable before anybody hears of it."""

    outcome: Outcome
    before: ElementJournal | None
    """The journal that was gone on from; None if the dialogue is not known."""
    after: ElementJournal | None

    def journal(self, facts: Facts, device: str, attempt: str, profile: ElementProfile) -> ElementJournal:
        """Return what the journal becomes, if nobody else spoke to the element meanwhile.

        Raises:
            errors.Interrupted: somebody did.
        """
        row = journal_of(facts, device, attempt, profile)
        if self.after is None:
            return row
        if row not in (self.before, self.after):
            raise errors.Interrupted(f"another dialogue with the element of {device} went on: begin anew")
        return self.after


@dataclass(slots=True)
class _Live:
    """One dialogue under way."""

    before: ElementJournal
    """The journal as committed before the last step, and as it is, or is to be, committed with it."""
    journal: ElementJournal
    dialogue: Injection = field(repr=False)
    sent: Commands
    answered: str = ""
    """Digest of the responses that led to ``outcome``."""
    outcome: Outcome | None = None


class Dialogues:
    """The dialogues of this process, by attempt.  For one thread: that of whoever thinks."""

    def __init__(self, keys: KeyStore, entropy: Entropy) -> None:
        """Speak with keys of this store."""
        self._keys = keys
        self._entropy = entropy
        self._live: dict[str, _Live] = {}
        # Step numbers begin anywhere and go on when a dialogue is begun anew: what was on its way to the one
        # before, or to another process, is not taken for an answer, and a lie, in this one.
        self._steps: dict[str, int] = {}
        self._decided: set[str] = set()

    def require_decided(self, profile: ElementProfile) -> UseCase[None]:
        """Refuse keys that are not those that were decided on; asked once a process, and then remembered.

        Raises:
            errors.Refusal: as ``require_assets`` does.
        """
        labels = labels_of(profile)
        if not self._decided.issuperset(labels):
            require_assets(self._keys, (yield Look({KeyAsset: labels})), labels)
            self._decided.update(labels)

    def begin(
        self,
        context: RunContext,
        profile: ElementProfile,
        journal: ElementJournal,
        certificates: Sequence[bytes],
    ) -> Commands:
        """Begin a dialogue, or begin it anew, and return its first commands; nothing is journaled by them.

        Args:
            context: of the run.
            profile: of the element.
            journal: as committed.
            certificates: of the device (DER), in the order of the run's profiles.
        """
        device = journal.device
        dialogue = inject(
            Order(
                profile=profile,
                state=journal.state,
                initial_keys=partial(key_set, self._keys, profile.initial, device),
                final_keys=partial(key_set, self._keys, profile.final, device),
                contents=_contents(context, profile, device, certificates),
                token=self._entropy.token,
            )
        )
        step = next(dialogue)
        if len(self._live) >= REMEMBERED_DIALOGUES:
            del self._live[next(iter(self._live))]
        if len(self._steps) >= REMEMBERED_DIALOGUES and journal.attempt not in self._steps:
            del self._steps[next(iter(self._steps))]
        sent = self._commands(journal.attempt, step)
        self._live[journal.attempt] = _Live(before=journal, journal=journal, dialogue=dialogue, sent=sent)
        return sent

    def advance(self, attempt: str, answer: Responses) -> Moved:
        """Take a dialogue one step on.

        Raises:
            errors.IllegalTransition: the step is not the one that is waited for.
            errors.PolicyRefused: the key set cannot be carried, or an object is too large; the dialogue is
                over.
        """
        live = self._live.get(attempt)
        if live is None:
            unknown = errors.Interrupted("the dialogue with the element is not known here: begin it anew")
            return Moved(outcome=unknown, before=None, after=None)
        digest = answer.digest()
        if live.outcome is None or live.answered != digest:
            over = live.outcome is not None and not isinstance(live.outcome, Commands)
            if answer.step != live.sent.step or over:
                raise errors.IllegalTransition(
                    f"the dialogue of attempt {attempt} is not at step {answer.step}: begin it anew"
                )
            live.before = live.journal
            try:
                live.outcome = self._send(live, answer.responses)
            except errors.Refusal:
                self.forget(attempt)
                raise
            live.answered = digest
            if isinstance(live.outcome, Commands):
                live.sent = live.outcome
        return Moved(outcome=live.outcome, before=live.before, after=live.journal)

    def forget(self, attempt: str) -> None:
        """The dialogue is over."""
        self._live.pop(attempt, None)

    def _send(self, live: _Live, responses: tuple[bytes, ...]) -> Outcome:
        try:
            step: Step = live.dialogue.send(responses)
        except StopIteration as done:
            evidence, state = done.value
            live.journal = live.journal.at(state)
            return Finished(evidence=evidence, state=state)
        except errors.Interrupted as unknown:
            if unknown.accepted:
                live.journal = replace(live.journal, failures=0)
            return unknown
        except errors.ProofFailed as refusal:
            return refusal
        except errors.Unavailable as gone:
            # The generator is spent: what the token would have said is asked for in a dialogue begun anew.
            return errors.Interrupted(f"the dialogue broke off: {gone}")
        live.journal = live.journal.at(step.state)
        return self._commands(live.sent.attempt, step)

    def _commands(self, attempt: str, step: Step) -> Commands:
        before = self._steps.get(attempt) or int.from_bytes(self._entropy.token(3), "big")
        number = self._steps[attempt] = before + 1
        return Commands(attempt=attempt, step=number, batch=step.batch, last=step.last)


def key_set(keys: KeyStore, source: DerivedKeys | FixedKeys, device: str, kdd: bytes) -> StaticKeys:
    """Return the key set of one element.

    Args:
        keys: the store with the keys it comes from.
        source: of the set.
        device: id of the device.
        kdd: key diversification data, 10 octets.

    Raises:
        errors.NotFound: there is no such key.
        errors.PolicyRefused: it is not for this (rule ``key-route``).
    """
    if isinstance(source, FixedKeys):
        enc, mac, dek = (KeyLabel(label) for label in source.labels)
        return keys.fixed_keys((enc, mac, dek))
    context = kdd if source.context is ContextSource.KDD else context_of(source.scheme, device)
    return keys.derived_keys(KeyLabel(source.master), Derivation(scheme=source.scheme, context=context))


def labels_of(profile: ElementProfile) -> tuple[str, ...]:
    """Return the labels of the keys that a profile's key sets come from."""
    initial = profile.initial
    first = initial.labels if isinstance(initial, FixedKeys) else (initial.master,)
    return (*first, profile.final.master)


def require_assets(keys: KeyStore, facts: Facts, labels: Iterable[str]) -> None:
    """Compare keys in the store with what is on record of them: a label alone does not make a key ours.

    Args:
        keys: the store.
        facts: with the key assets of these labels.
        labels: of the keys.

    Raises:
        errors.NotFound: there is no such key.
        errors.PolicyRefused: it is on no record, or was destroyed (rule ``key-asset``).
        errors.IntegrityFailure: it is another key than the one on record.
    """
    for label in labels:
        found, asset = keys.attributes(KeyLabel(label)), facts.get(KeyAsset, label)
        if asset is None or asset.status is not KeyStatus.ACTIVE:
            raise errors.PolicyRefused(
                "key-asset",
                f"key {label!r} is not on record as in use: it is made or taken in by a ceremony, or see"
                " 'birthmark keys master' and 'birthmark keys adopt'",
            )
        if (found.fingerprint, str(found.kind)) != (asset.fingerprint, asset.kind):
            raise errors.IntegrityFailure(
                f"key {label!r} in the store is another one than on record: see 'birthmark keys check'"
            )


def rehearse(keys: KeyStore, profile: ElementProfile, device: str) -> str:
    """Make and wrap a key set as for an element whose key diversification data are zeros; return its route.

    Raises:
        errors.Refusal: as the key store does.
        errors.PolicyRefused: the final keys are not as long as the profile says (rule ``element``).
    """
    nobody = bytes(KDD_OCTETS)
    initial, final = (key_set(keys, source, device, nobody) for source in (profile.initial, profile.final))
    if final.size != profile.key_size:
        raise errors.PolicyRefused(
            "element", f"element {profile.name} takes keys of {profile.key_size} octets, not {final.size}"
        )
    initial.wrap(final)
    return str(final.route)


def object_variables(profile: ElementProfile) -> frozenset[str]:
    """Return the names in braces in the objects of a profile, the hardware id's apart."""
    texts = [stored.argument for stored in profile.objects if stored.kind is ContentKind.TEXT]
    names = {name for text in texts for _, name, _, _ in Formatter().parse(text) if name is not None}
    return frozenset(names - {HARDWARE_ID})


def check_objects(profile: ElementProfile, licence: RunLicence) -> None:
    """Refuse a licence whose certificates are not those that go into the element.

    Raises:
        errors.PolicyRefused: rule ``element-object``.
    """
    issued = [name for name, _ in licence.profiles]
    for stored in profile.objects:
        name = stored.argument
        if stored.kind is ContentKind.CERTIFICATE and name and name not in issued:
            raise errors.PolicyRefused(
                "element-object", f"run {licence.id} issues no certificate of profile {name}"
            )


def _contents(
    context: RunContext, profile: ElementProfile, device: str, certificates: Sequence[bytes]
) -> Mapping[int, bytes]:
    """Return what is stored under each tag; that it can be filled in was seen when the run was opened."""
    licence = context.licence
    values = {**licence.variables, HARDWARE_ID: device.partition(":")[2]}
    by_profile = dict(zip((name for name, _ in licence.profiles), certificates, strict=True))
    contents = {}
    for stored in profile.objects:
        match stored.kind:
            case ContentKind.TEXT:
                contents[stored.tag] = stored.argument.format_map(values).encode()
            case ContentKind.CHAIN:
                contents[stored.tag] = b"".join(context.chain)
            case ContentKind.CERTIFICATE:
                name = stored.argument
                contents[stored.tag] = by_profile[name] if name else certificates[0]
    return contents


def element_of(context: RunContext) -> ElementProfile | None:
    """Return the profile of the secure element that gets a key set under a run; None for none.

    Raises:
        errors.Refusal: as ``RunContext.element`` does.
    """
    return context.element if isinstance(context.element, ElementProfile) else None


def journal_of(facts: Facts, device: str, attempt: str, profile: ElementProfile) -> ElementJournal:
    """Return the journal of a device's element, as an attempt finds it.

    Raises:
        errors.IllegalTransition: the device was begun with another element or master key.
    """
    row = facts.get(ElementJournal, device)
    if row is None:
        return fresh(device, attempt, element=profile.name, master=profile.final.master)
    if (row.element, row.master) != (profile.name, profile.final.master):
        raise errors.IllegalTransition(
            f"the element of {device} was begun as {row.element} under {row.master}: it cannot change to"
            f" {profile.name} under {profile.final.master}"
        )
    return row.under(attempt, failed_authentications=profile.failed_authentications)
