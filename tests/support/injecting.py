"""An element to be injected, the order for it, and whoever carries the order out as the service does.

``Bench.run`` is one dialogue, ``Bench.settle`` as many as it takes.  What a step says must be durable is kept
before its batch goes out, and a dialogue begins with what was kept last: as after a restart of the service.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

from birthmark import errors
from birthmark.element.apdu import Batch, CardChannel, CommandAPDU, ResponseAPDU, relay
from birthmark.element.card import VirtualElement
from birthmark.element.card_faults import ElementChannel, Fault
from birthmark.element.card_keys import HONEST, Dishonesty
from birthmark.element.card_state import ISSUER_SECURITY_DOMAIN, Traits, fresh
from birthmark.element.diversification import ContextSource, Derivation, KeyRole, Scheme, context_of
from birthmark.element.injection import Evidence, KeySetPhase, KeySetState, Order, Step, inject
from birthmark.element.keyset import KeyBlockForm, SoftwareKeys
from birthmark.element.profiles import DerivedKeys, ElementProfile, FixedKeys, Replacement, StoredObject
from birthmark.element.scp03 import Mode, SecurityLevel, establish, initialize_update, read_challenge
from birthmark.secret import SecretBytes

__all__ = ["Bench", "Numbers", "Relay", "key_set", "profile_of"]

KDD = bytes.fromhex("A1A10124305851204331")
DEVICE = "eid:89049032123451234512345678901235"
INITIAL_KVN, FINAL_KVN, PROBE_KVN = 0x20, 0x30, 0x3F
FACTORY_KVN = 0xFF
Relay = Callable[[CardChannel, Batch], list[bytes]]


@dataclass(slots=True)
class Numbers:
    """Octets that never repeat, the same in every run."""

    seed: bytes = b"numbers"
    drawn: int = 0

    def __call__(self, size: int) -> bytes:
        """Return so many."""
        self.drawn += 1
        return sha256(self.seed + self.drawn.to_bytes(4, "big")).digest()[:size]


def master(name: str, size: int) -> SecretBytes:
    """Return a master key."""
    return SecretBytes(sha256(name.encode()).digest()[:size])


def key_set(name: str, size: int, scheme: Scheme, context: ContextSource, kdd: bytes) -> SoftwareKeys:
    """Return the set that follows from a master key."""
    octets = kdd if context is ContextSource.KDD else context_of(scheme, DEVICE)
    return SoftwareKeys.derived(master(name, size), Derivation(scheme=scheme, context=octets))


def profile_of(
    *,
    i: int = 0x70,
    key_size: int = 16,
    initial_kvn: int = INITIAL_KVN,
    final_kvn: int = FINAL_KVN,
    scheme: Scheme = Scheme.KDF3,
    context: ContextSource = ContextSource.KDD,
    replacement: Replacement = Replacement.ADD,
    key_blocks: KeyBlockForm = KeyBlockForm.WITH_LENGTH,
    tags: Sequence[int] = (0x7F21, 0x53),
    failed_authentications: int = 3,
    extended_length: bool = False,
) -> ElementProfile:
    """Return a profile; what a test cares about is named."""
    return ElementProfile(
        name="bench",
        sha256="00" * 32,
        aid=ISSUER_SECURITY_DOMAIN,
        mode=Mode.S16 if i & 1 else Mode.S8,
        parameters=frozenset({i}),
        key_size=key_size,
        initial=(
            FixedKeys(kvn=0, labels=("enc", "mac", "dek"))
            if initial_kvn == 0
            else DerivedKeys(kvn=initial_kvn, master="maker", scheme=Scheme.KDF3, context=ContextSource.KDD)
        ),
        final=DerivedKeys(kvn=final_kvn, master="ours", scheme=scheme, context=context),
        replacement=replacement,
        key_blocks=key_blocks,
        probe_kvn=PROBE_KVN,
        failed_authentications=failed_authentications,
        extended_length=extended_length,
        objects=tuple(StoredObject(tag=tag, content="chain") for tag in tags),
    )


@dataclass(slots=True)
class Bench:
    """One element and what is wanted of it."""

    profile: ElementProfile
    traits: Traits | None = None
    kdd: bytes = KDD
    initial_size: int | None = None
    dishonesty: Dishonesty = HONEST
    contents: Mapping[int, bytes] | None = None
    element: VirtualElement = field(init=False)
    state: KeySetState = field(init=False)
    steps: list[Step] = field(init=False, default_factory=list)
    """All there were."""
    sent: list[bytes] = field(init=False, default_factory=list)
    """All commands in batches."""
    token: Numbers = field(init=False, default_factory=Numbers)
    most_failures: int = field(init=False, default=0)
    """Failed authentications in a row that the element has seen, at most."""

    def __post_init__(self) -> None:
        """Make the element."""
        (i,) = self.profile.parameters
        if self.traits is None:
            self.traits = Traits(i=i, extended_length=self.profile.extended_length)
        if self.contents is None:
            self.contents = {
                entry.tag: bytes(n % 251 for n in range(300 * number + 7))
                for number, entry in enumerate(self.profile.objects)
            }
        kvn = self.profile.initial.kvn or FACTORY_KVN
        born = fresh(self.initial(self.kdd), key_diversification_data=self.kdd, kvn=kvn, traits=self.traits)
        self.element = VirtualElement(
            born, entropy=Numbers(b"card"), keep=self._kept, dishonesty=self.dishonesty
        )
        self.state = KeySetState(
            phase=KeySetPhase.ABSENT,
            key_diversification_data=b"",
            initial_counter=-1,
            final_counter=-1,
            failures=0,
        )

    def _kept(self, state: object) -> None:
        failures = getattr(state, "failures", 0)
        self.most_failures = max(self.most_failures, failures)

    def initial(self, kdd: bytes) -> SoftwareKeys:
        """Return the initial set."""
        size = self.initial_size or self.profile.key_size
        return key_set("maker", size, Scheme.KDF3, ContextSource.KDD, kdd)

    def final(self, kdd: bytes) -> SoftwareKeys:
        """Return the final set."""
        wanted = self.profile.final
        return key_set("ours", self.profile.key_size, wanted.scheme, wanted.context, kdd)

    def order(self) -> Order:
        """Return the order as it is now."""
        return Order(
            profile=self.profile,
            state=self.state,
            initial_keys=self.initial,
            final_keys=self.final,
            contents=self.contents or {},
            token=self.token,
        )

    def run(self, channel: CardChannel | None = None, by: Relay = relay) -> Evidence:
        """Carry out one dialogue.

        Raises:
            ProofFailed: the element is to be held.
            Interrupted: the dialogue is to be begun anew.
        """
        channel = channel or ElementChannel(self.element)
        dialogue = inject(self.order())
        try:
            step = next(dialogue)
            while True:
                self.steps.append(step)
                self.state = step.state
                self.sent += [guarded.command for guarded in step.batch]
                step = dialogue.send(by(channel, step.batch))
        except StopIteration as done:
            evidence, self.state = done.value
            assert isinstance(evidence, Evidence)
            return evidence

    def settle(self, faults: Sequence[Fault] = (), *, tries: int = 5, reset: bool = True) -> Evidence:
        """Carry out dialogues until one ends well; after every one that broke off, power goes off and on.

        Raises:
            ProofFailed: the element is to be held.
            Interrupted: the last of the tries broke off, too.
        """
        channel = ElementChannel(self.element, faults)
        for left in reversed(range(tries)):
            try:
                return self.run(channel)
            except errors.Interrupted:
                if not left:
                    raise
                if reset:
                    channel.reset()
        raise AssertionError

    def holds_only_the_final_set(self) -> bool:
        """Ask the element's own state: these three keys under this number, and none besides."""
        state = self.element.state
        final = self.final(self.kdd)
        return [(found.kvn, dict(found.keys)) for found in state.key_sets] == [
            (self.profile.final.kvn, {int(role): final.key(role) for role in KeyRole})
        ]

    def holds_the_objects(self) -> bool:
        """Ask the element's own state whether all objects are in it."""
        return dict(self.element.state.objects) == dict(self.contents or {})

    def opens(self, keys: SoftwareKeys, kvn: int) -> bool:
        """Open a session with a key set, as anybody could who has it, and ask for the key information."""
        if (
            challenge_bytes := self._transmit(initialize_update(kvn, bytes(range(self.profile.mode))))
        ) is None:
            return False
        challenge = read_challenge(challenge_bytes)
        session = establish(
            keys, self.profile.mode, bytes(range(self.profile.mode)), challenge, self.profile.aid
        )
        try:
            session.verify_card(challenge)
        except errors.ProofFailed:
            return False
        command, channel = session.external_authenticate(SecurityLevel.FULL)
        assert self._transmit(command) == b""
        channel = replace(channel, counts_empty_commands=self.profile.counts_empty_commands)
        wrapped, channel = channel.wrap(CommandAPDU(0x80, 0xF2, 0x80, 0x02, b"\x4f\x00", 0x100))
        answer = channel.unwrap(ResponseAPDU.decode(self.element.process(wrapped.encode())))
        return answer.sw == 0x9000 and len(answer.data) > 0

    def _transmit(self, command: CommandAPDU) -> bytes | None:
        response = ResponseAPDU.decode(self.element.process(command.encode()))
        return response.data if response.sw == 0x9000 else None
