"""A host for tests of the virtual element: opens sessions and sends commands."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from birthmark import errors
from birthmark.element.apdu import OK, CardChannel, CommandAPDU, Guarded, ResponseAPDU, relay
from birthmark.element.card import VirtualElement
from birthmark.element.card_faults import ElementChannel
from birthmark.element.card_keys import HONEST, Dishonesty
from birthmark.element.card_state import CardState, Traits, fresh
from birthmark.element.keyset import KeyBlockForm, SoftwareKeys, encode_put_key
from birthmark.element.scp03 import (
    Mode,
    SecureChannel,
    SecurityLevel,
    establish,
    initialize_update,
    read_challenge,
)
from birthmark.secret import SecretBytes

KDD = bytes(range(10))
INITIAL, FINAL, PROBE = 0x30, 0x31, 0x3F


def numbered(begin: int = 0) -> Callable[[int], bytes]:
    """Return a source of octets that never repeats itself."""
    counter = count(begin)
    return lambda size: next(counter).to_bytes(size, "big")


def set_of(first: int, size: int = 16) -> SoftwareKeys:
    """Return a set of three different keys."""
    enc, mac, dek = (SecretBytes(bytes((first + n) % 0x100 for _ in range(size))) for n in range(3))
    return SoftwareKeys(enc=enc, mac=mac, dek=dek)


def element_of(
    traits: Traits | None = None,
    *,
    size: int = 16,
    kvn: int = INITIAL,
    keep: Callable[[CardState], None] | None = None,
    dishonesty: Dishonesty = HONEST,
) -> VirtualElement:
    """Return a new element whose initial set is ``set_of(0x40, size)``."""
    state = fresh(set_of(0x40, size), key_diversification_data=KDD, kvn=kvn, traits=traits)
    return VirtualElement(state, entropy=numbered(), keep=keep, dishonesty=dishonesty)


@dataclass
class Host:
    """Speaks to one element."""

    card: CardChannel
    mode: Mode = Mode.S8
    aid: bytes = Traits().aid
    channel: SecureChannel | None = None
    challenges: Callable[[int], bytes] = field(default_factory=lambda: numbered(1))

    @classmethod
    def of(cls, element: VirtualElement) -> "Host":
        traits = element.state.traits
        return cls(ElementChannel(element), mode=traits.mode, aid=traits.aid)

    def plain(self, command: CommandAPDU) -> ResponseAPDU:
        """Send a command as it is, and fetch all of the response."""
        responses = relay(self.card, (Guarded(command=command.encode()),))
        if not responses:
            raise errors.Unavailable("the element was lost")
        return ResponseAPDU.decode(responses[0])

    def begin(
        self, keys: SoftwareKeys, kvn: int = INITIAL, level: SecurityLevel = SecurityLevel.FULL
    ) -> ResponseAPDU:
        """Open a session as far as the element goes along."""
        self.channel = None
        host_challenge = self.challenges(self.mode)
        response = self.plain(initialize_update(kvn, host_challenge))
        if response.sw != OK:
            return response
        challenge = read_challenge(response.data)
        session = establish(keys, self.mode, host_challenge, challenge, self.aid)
        session.verify_card(challenge)
        authenticate, channel = session.external_authenticate(level)
        response = self.plain(authenticate)
        if response.sw == OK:
            self.channel = channel
        return response

    def send(self, command: CommandAPDU) -> ResponseAPDU:
        """Send a command in the session."""
        assert self.channel is not None
        wrapped, self.channel = self.channel.wrap(command)
        return self.channel.unwrap(self.plain(wrapped))

    def put_key(
        self,
        opener: SoftwareKeys,
        keys: SoftwareKeys,
        kvn: int = FINAL,
        *,
        p1: int = 0,
        form: KeyBlockForm = KeyBlockForm.WITH_LENGTH,
        with_check_values: bool = True,
    ) -> ResponseAPDU:
        """Put a whole set in."""
        data = encode_put_key(kvn, opener.wrap(keys), form, with_check_values=with_check_values)
        return self.send(CommandAPDU(0x80, 0xD8, p1, 0x81, data, 0x100))


def get_data(tag: int) -> CommandAPDU:
    return CommandAPDU(0x80, 0xCA, tag >> 8, tag & 0xFF, le=0x100)


def delete_set(kvn: int) -> CommandAPDU:
    return CommandAPDU(0x80, 0xE4, 0x00, 0x00, bytes((0xD2, 1, kvn)), 0x100)


def store(data: bytes, *, p1: int = 0x90, block: int = 0) -> CommandAPDU:
    return CommandAPDU(0x80, 0xE2, p1, block, data)


GET_STATUS = CommandAPDU(0x80, 0xF2, 0x80, 0x02, b"\x4f\x00", 0x100)
