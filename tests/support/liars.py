"""An element that lies as well as can be done without some of the keys it was given.

Up to PUT KEY it is honest: it has the initial set.  Of the final set it has only some keys, and it knows
everything else: what the host will ask, which answers are wanted, and how its answers are protected.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from birthmark.element import tlv
from birthmark.element.apdu import CommandAPDU, ResponseAPDU
from birthmark.element.card import VirtualElement
from birthmark.element.diversification import KeyRole
from birthmark.element.keyset import KeyEntry, SoftwareKeys, check_value, decode_put_key, decrypt_key
from birthmark.element.profiles import ElementProfile
from birthmark.element.scp03 import (
    Challenge,
    Parameter,
    SecureChannel,
    SecurityLevel,
    establish,
    initialize_update_response,
    pseudo_random_challenge,
)
from birthmark.secret import SecretBytes

__all__ = ["Liar"]

OK, NOT_THERE = 0x9000, 0x6A88


@dataclass(slots=True)
class Liar:
    """A ``CardChannel`` to a lying element."""

    honest: VirtualElement
    profile: ElementProfile
    final: SoftwareKeys
    lacks: frozenset[KeyRole]
    contents: Mapping[int, bytes]
    counts: bool = True
    """Its sequence counter advances."""
    keeps_initial: bool = False
    """It answers for the initial set to the end."""
    loaded: bool = False
    channel: SecureChannel | None = None
    begun: SecureChannel | None = None
    counter: int = 0
    deleted: list[int] = field(default_factory=list)
    """Key version numbers that it was told to delete."""

    def __post_init__(self) -> None:
        """Forget the keys it lacks."""
        wrong = {role: SecretBytes(bytes(len(self.final.enc))) for role in self.lacks}
        enc, mac, dek = (wrong.get(role, self.final.key(role)) for role in KeyRole)
        self.final = SoftwareKeys(enc=enc, mac=mac, dek=dek)

    def reset(self) -> None:
        """Power off and on."""
        self.honest.reset()
        self.channel = self.begun = None

    def transmit(self, command: bytes) -> bytes:
        """Answer."""
        apdu = CommandAPDU.decode(command)
        if apdu.ins == 0x50:
            self.channel = None
            if self.loaded and apdu.p1 == self.profile.final.kvn:
                return self._greet(apdu).encode()
            if self.loaded and not self.keeps_initial:
                return ResponseAPDU(NOT_THERE).encode()
        if apdu.ins == 0x82 and self.begun is not None:
            self.channel, self.begun = self.begun, None
            return ResponseAPDU(OK).encode()
        if self.channel is not None:
            return self._lie(apdu, self.channel).encode()
        answer = self.honest.process(command)
        self.loaded = self.loaded or (apdu.ins == 0xD8 and answer[-2:] == b"\x90\x00")
        return answer

    def _greet(self, apdu: CommandAPDU) -> ResponseAPDU:
        (i,) = self.profile.parameters
        self.counter += 1 if self.counts or not self.counter else 0
        counter = self.counter.to_bytes(3, "big") if i & Parameter.PSEUDO_RANDOM else None
        aid, mode = self.profile.aid, self.profile.mode
        challenge = Challenge(
            key_diversification_data=self.honest.state.key_diversification_data,
            kvn=apdu.p1,
            i=i,
            card_challenge=(
                bytes(range(mode))
                if counter is None
                else pseudo_random_challenge(self.final, mode, counter, aid)
            ),
            card_cryptogram=bytes(mode),
            sequence_counter=counter,
        )
        session = establish(self.final, mode, apdu.data, challenge, None)
        _, self.begun = session.external_authenticate(SecurityLevel.FULL)
        said = replace(challenge, card_cryptogram=session.card_cryptogram)
        return ResponseAPDU(OK, initialize_update_response(said))

    def _lie(self, apdu: CommandAPDU, channel: SecureChannel) -> ResponseAPDU:
        """Answer under the final set, with every MAC as right as the keys allow."""
        size = self.profile.mode
        following = replace(channel, counter=channel.counter + 1)
        bare = replace(apdu, data=apdu.data[:-size], extended=apdu.is_extended)
        following = replace(following, mac_chaining_value=following.command_mac(bare))
        plain, _ = (apdu, None) if self.lacks & {KeyRole.ENC, KeyRole.MAC} else channel.accept(apdu)
        self.channel = following
        return following.protect(ResponseAPDU(OK, self.wanted(plain)))

    def wanted(self, plain: CommandAPDU) -> bytes:
        """Return the best answer there is."""
        if plain.ins == 0xD8:
            return bytes((self.profile.probe_kvn,)) + self._probe_check_value(plain)
        if plain.ins == 0xF2:
            return tlv.encode(0xE3, tlv.encode(0x4F, self.profile.aid))
        if plain.ins == 0xE4:
            self.deleted.append(plain.data[-1])
            return b"\0"
        if plain.ins == 0xCA and (tag := plain.p1 << 8 | plain.p2) == tlv.KEY_INFORMATION_TEMPLATE:
            kvn, size = self.profile.final.kvn, self.profile.key_size
            return tlv.encode_key_information(
                KeyEntry(kvn=kvn, kid=role, key_type=0x88, size=size) for role in KeyRole
            )
        return tlv.encode(tag, self.contents[tag]) if plain.ins == 0xCA else b""

    def _probe_check_value(self, plain: CommandAPDU) -> bytes:
        if self.lacks & {KeyRole.ENC, KeyRole.MAC}:
            return bytes(3)  # it cannot read the command
        _, (key,) = decode_put_key(plain.data)
        return check_value(decrypt_key(self.final.dek, key.ciphertext, key.size))
