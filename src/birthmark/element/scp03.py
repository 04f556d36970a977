"""Secure Channel Protocol 03: GlobalPlatform Card Specification v2.3, Amendment D v1.2.

The channel is a value.  ``wrap`` returns the protected command and the channel after it, and that channel
``unwrap``s the response; so commands can be prepared before the responses to earlier ones are there.  The
element's side is the same value: ``accept`` and ``protect``.

Rules kept here: a cryptogram or MAC is compared in constant time and a wrong one ends the session; a success
or warning without the R-MAC that was agreed on is refused, also one without data; padding is 80 00… and
nothing else; the mode (S8, S16) is what the caller says and what the length of the answer confirms, never
guessed.  Status words other than 9000, 62xx and 63xx come without protection, so anybody on the wire can make
one: they mean "unknown outcome".

Section numbers in docstrings are those of Amendment D.
"""

import hmac
from dataclasses import dataclass, field, replace
from enum import IntEnum

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from birthmark import errors
from birthmark.element.apdu import OK, CommandAPDU, ResponseAPDU
from birthmark.element.diversification import KeyRole
from birthmark.element.keyset import StaticKeys, aes_cmac
from birthmark.secret import SecretBytes

__all__ = [
    "PROVABLE",
    "Challenge",
    "Mode",
    "Parameter",
    "SecureChannel",
    "SecurityLevel",
    "Session",
    "derivation_data",
    "derive",
    "establish",
    "initialize_update",
    "initialize_update_response",
    "is_protected",
    "pseudo_random_challenge",
    "read_challenge",
]

BLOCK = 16
KDD_OCTETS = 10
_SCP03 = 0x03


class Mode(IntEnum):
    """Octets of a challenge, a cryptogram and a MAC (section 5.1)."""

    S8 = 8
    S16 = 16


class SecurityLevel(IntEnum):
    """What protects commands and responses: P1 of EXTERNAL AUTHENTICATE (section 7.1.2.1), all there are."""

    NONE = 0x00
    C_MAC = 0x01
    C_MAC_C_DECRYPTION = 0x03
    C_MAC_R_MAC = 0x11
    C_MAC_C_DECRYPTION_R_MAC = 0x13
    FULL = 0x33
    """Commands and responses encrypted and MACed."""


class Parameter(IntEnum):
    """Bits of the parameter ``i`` (section 5.1)."""

    S16 = 0x01
    PSEUDO_RANDOM = 0x10
    R_MAC = 0x20
    R_ENCRYPTION = 0x40


PROVABLE = Parameter.R_MAC | Parameter.R_ENCRYPTION
"""An element without these bits proves nothing: nobody knows that its answers are its own."""


class _Constant(IntEnum):
    """Data derivation constants (table 4-1)."""

    CARD_CRYPTOGRAM = 0x00
    HOST_CRYPTOGRAM = 0x01
    CARD_CHALLENGE = 0x02
    S_ENC = 0x04
    S_MAC = 0x06
    S_RMAC = 0x07


def derivation_data(constant: int, context: bytes, bits: int) -> tuple[bytes, ...]:
    """Return the messages whose AES-CMACs are the derived data (section 4.1.5; NIST SP 800-108).

    Args:
        constant: data derivation constant.
        context: what is derived from.
        bits: length of the derived data.
    """
    label = bytes(11) + bytes((constant, 0)) + bits.to_bytes(2, "big")
    return tuple(label + bytes((n,)) + context for n in range(1, 2 + (bits - 1) // 128))


def derive(key: SecretBytes, constant: int, context: bytes, bits: int) -> bytes:
    """Return derived data under a key in this process (section 4.1.5)."""
    macs = [aes_cmac(key, message) for message in derivation_data(constant, context, bits)]
    return b"".join(macs)[: bits // 8]


def pseudo_random_challenge(keys: StaticKeys, mode: Mode, sequence_counter: bytes, aid: bytes) -> bytes:
    """Return the card challenge of an element with ``i`` bit 10 (section 6.2.2.1).

    Args:
        keys: the static set; K-ENC is used.
        mode: of the session.
        sequence_counter: 3 octets.
        aid: of the security domain that is selected, whole.
    """
    messages = derivation_data(_Constant.CARD_CHALLENGE, sequence_counter + aid, mode * 8)
    return b"".join(keys.cmac([(KeyRole.ENC, message) for message in messages]))[:mode]


def initialize_update(kvn: int, host_challenge: bytes) -> CommandAPDU:
    """Return INITIALIZE UPDATE (section 7.1.1): a session with this key version is wanted."""
    return CommandAPDU(0x80, 0x50, kvn, 0x00, host_challenge, 0x100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """What an element answers to INITIALIZE UPDATE (section 7.1.1.6)."""

    key_diversification_data: bytes
    """10 octets."""
    kvn: int
    i: int
    """The parameter that says what the element can: see ``Parameter``."""
    card_challenge: bytes
    card_cryptogram: bytes
    sequence_counter: bytes | None
    """3 octets; None from an element whose challenge is random."""

    @property
    def mode(self) -> Mode:
        """Return the mode, by the length of the challenge."""
        return Mode(len(self.card_challenge))


def read_challenge(data: bytes) -> Challenge:
    """Read the data of the response to INITIALIZE UPDATE; the length says the mode.

    Raises:
        MalformedRequest: it is of none of the four lengths, of another protocol, or contradicts its ``i``.
    """
    mode = {29: Mode.S8, 32: Mode.S8, 45: Mode.S16, 48: Mode.S16}.get(len(data))
    if mode is None:
        raise errors.MalformedRequest(f"INITIALIZE UPDATE was answered with {len(data)} octets")
    kvn, protocol, i = data[KDD_OCTETS : KDD_OCTETS + 3]
    if protocol != _SCP03:
        raise errors.MalformedRequest(f"the element speaks secure channel protocol {protocol:02X}, not 03")
    at = KDD_OCTETS + 3
    counter = data[at + 2 * mode :]
    if bool(counter) != bool(i & Parameter.PSEUDO_RANDOM):
        raise errors.MalformedRequest(f"the element says i={i:02X} and sends {len(counter)} counter octets")
    return Challenge(
        key_diversification_data=data[:KDD_OCTETS],
        kvn=kvn,
        i=i,
        card_challenge=data[at : at + mode],
        card_cryptogram=data[at + mode : at + 2 * mode],
        sequence_counter=counter or None,
    )


def initialize_update_response(challenge: Challenge) -> bytes:
    """Return the data of the response to INITIALIZE UPDATE: the element's side."""
    return (
        challenge.key_diversification_data
        + bytes((challenge.kvn, _SCP03, challenge.i))
        + challenge.card_challenge
        + challenge.card_cryptogram
        + (challenge.sequence_counter or b"")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Session keys and cryptograms of one pair of challenges; nobody is authenticated yet."""

    mode: Mode
    s_enc: SecretBytes
    s_mac: SecretBytes
    s_rmac: SecretBytes
    card_cryptogram: bytes = field(repr=False)
    host_cryptogram: bytes = field(repr=False)
    card_challenge: bytes | None = field(default=None, repr=False)
    """What the card challenge has to be, where it follows from a sequence counter."""

    def verify_card(self, challenge: Challenge) -> None:
        """Check that the element that sent this challenge holds the K-MAC of the set.

        Raises:
            ProofFailed: its cryptogram, or its pseudo-random challenge, is not the one of this key set.
        """
        if not hmac.compare_digest(challenge.card_cryptogram, self.card_cryptogram):
            raise errors.ProofFailed(f"the card cryptogram is not that of key set {challenge.kvn:02X}")
        if self.card_challenge is not None and not hmac.compare_digest(
            challenge.card_challenge, self.card_challenge
        ):
            raise errors.ProofFailed("the card challenge does not follow from the sequence counter")

    def external_authenticate(self, level: SecurityLevel) -> "tuple[CommandAPDU, SecureChannel]":
        """Return EXTERNAL AUTHENTICATE (section 7.1.2) and the channel that it opens."""
        return self._opening(level, extended=False)

    def _opening(self, level: SecurityLevel, *, extended: bool) -> "tuple[CommandAPDU, SecureChannel]":
        bare = CommandAPDU(0x84, 0x82, level, 0x00, self.host_cryptogram, extended=extended)
        opening = SecureChannel(session=self, level=SecurityLevel.C_MAC, counter=0)
        mac = opening.command_mac(bare)
        return (
            replace(bare, data=bare.data + mac[: self.mode]),
            SecureChannel(session=self, level=level, counter=0, mac_chaining_value=mac),
        )

    def accept_host(self, command: CommandAPDU) -> "SecureChannel":
        """Check EXTERNAL AUTHENTICATE and return the channel that it opens: the element's side.

        There are hosts that give it, as all commands, extended lengths: its C-MAC is over Lc as it came.

        Raises:
            ProofFailed: the host cryptogram or the C-MAC is wrong.
            MalformedRequest: it is no EXTERNAL AUTHENTICATE, or asks for a security level that there is not.
        """
        if (command.cla, command.ins, command.p2) != (0x84, 0x82, 0) or command.p1 not in list(SecurityLevel):
            raise errors.MalformedRequest("no EXTERNAL AUTHENTICATE with a security level of SCP03")
        expected, channel = self._opening(SecurityLevel(command.p1), extended=command.is_extended)
        if not hmac.compare_digest(expected.data, command.data):
            raise errors.ProofFailed("the host cryptogram or its C-MAC is wrong")
        return channel


def establish(
    keys: StaticKeys, mode: Mode, host_challenge: bytes, challenge: Challenge, aid: bytes | None
) -> Session:
    """Derive what both sides of a session have in common (section 6.2.2); verify nothing.

    Args:
        keys: the static set.
        mode: of the session; both challenges have that many octets.
        host_challenge: ours.
        challenge: of the element; the cryptogram in it is not looked at.
        aid: of the selected security domain, to recompute a pseudo-random challenge; None where the element's
            own side asks, or the challenge is random.

    Raises:
        MalformedRequest: a challenge is not as long as the mode says.
    """
    if len(host_challenge) != mode or len(challenge.card_challenge) != mode:
        raise errors.MalformedRequest(f"the challenges of mode {mode.name} have {int(mode)} octets each")
    context = host_challenge + challenge.card_challenge
    bits = keys.size * 8
    parts: list[tuple[KeyRole, tuple[bytes, ...]]] = [
        (KeyRole.ENC, derivation_data(_Constant.S_ENC, context, bits)),
        (KeyRole.MAC, derivation_data(_Constant.S_MAC, context, bits)),
        (KeyRole.MAC, derivation_data(_Constant.S_RMAC, context, bits)),
    ]
    if challenge.sequence_counter is not None and aid is not None:
        follows = challenge.sequence_counter + aid
        parts.append((KeyRole.ENC, derivation_data(_Constant.CARD_CHALLENGE, follows, mode * 8)))
    macs = iter(keys.cmac([(role, message) for role, messages in parts for message in messages]))
    derived = [b"".join(next(macs) for _ in messages) for _, messages in parts]
    s_enc, s_mac, s_rmac = (SecretBytes(value[: keys.size]) for value in derived[:3])
    return Session(
        mode=mode,
        s_enc=s_enc,
        s_mac=s_mac,
        s_rmac=s_rmac,
        card_cryptogram=derive(s_mac, _Constant.CARD_CRYPTOGRAM, context, mode * 8),
        host_cryptogram=derive(s_mac, _Constant.HOST_CRYPTOGRAM, context, mode * 8),
        card_challenge=derived[3][:mode] if len(derived) > 3 else None,
    )


def is_protected(sw: int) -> bool:
    """Return whether a response with this status word is protected (section 6.2.5): success or warning."""
    return sw == OK or sw >> 8 in (0x62, 0x63)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureChannel:
    """An open channel, before or after one command."""

    session: Session
    level: SecurityLevel
    counter: int
    """Commands so far."""
    mac_chaining_value: bytes = field(default=bytes(BLOCK), repr=False)
    counts_empty_commands: bool = True
    """False for elements that, against section 6.2.6, do not count commands without data."""

    # --- the host's side -----------------------------------------------------------------------------------

    def wrap(self, command: CommandAPDU) -> "tuple[CommandAPDU, SecureChannel]":
        """Protect a command (sections 6.2.4 and 6.2.6); the channel returned reads its response.

        Le becomes as great as it can, unless responses come as they are: a protected one is longer.

        Raises:
            MalformedRequest: its class is neither 00 nor 80: it is of another logical channel than the basic
                one, part of a chain (chaining comes after protection), or protected already.
        """
        if command.cla not in (0x00, 0x80):
            raise errors.MalformedRequest(f"a command of class {command.cla:02X} is not protected here")
        if self.level is SecurityLevel.NONE:
            return command, self
        following = self._next(command)
        data = command.data
        if self.level & 0x02 and data:
            data = _encrypted(self.session, following.command_icv, data)
        le = max(command.le, 0x100) if command.le is not None and self.level & 0x10 else command.le
        bare = replace(command, cla=command.cla | 0x04, data=data, le=le)
        mac = following.command_mac(bare)
        wrapped = replace(bare, data=data + mac[: self.session.mode])
        return wrapped, replace(following, mac_chaining_value=mac)

    def unwrap(self, response: ResponseAPDU) -> ResponseAPDU:
        """Check and decrypt the response to the command that made this channel (sections 6.2.5 and 6.2.7).

        An error status word comes back as it is: it is protected by nothing.

        Raises:
            ProofFailed: it is not authentic; the session is over.
        """
        if not is_protected(response.sw):
            return replace(response, data=b"")
        data = response.data
        if self.level & 0x10:
            data, mac = data[: -self.session.mode], data[-self.session.mode :]
            if not hmac.compare_digest(mac, self._response_mac(data, response.sw)):
                raise errors.ProofFailed("a response of the element is not authentic")
        if self.level & 0x20 and data:
            data = _decrypted(self.session, self.response_icv, data)
        return ResponseAPDU(response.sw, data)

    # --- the element's side --------------------------------------------------------------------------------

    def accept(self, wrapped: CommandAPDU) -> "tuple[CommandAPDU, SecureChannel]":
        """Check and decrypt a command; the channel returned protects the response.

        Raises:
            ProofFailed: it is not authentic; the session is over.
        """
        if self.level is SecurityLevel.NONE:
            return wrapped, self
        size = self.session.mode
        if not wrapped.cla & 0x04 or len(wrapped.data) < size:
            raise errors.ProofFailed("the command has no C-MAC")
        data, mac = wrapped.data[:-size], wrapped.data[-size:]
        following = self._next(replace(wrapped, data=data))
        # Lc is MACed as it is on the wire: its form is that of the whole command.
        bare = replace(wrapped, data=data, extended=wrapped.is_extended)
        expected = following.command_mac(bare)
        if not hmac.compare_digest(mac, expected[:size]):
            raise errors.ProofFailed("the C-MAC is wrong")
        if self.level & 0x02 and data:
            data = _decrypted(self.session, following.command_icv, data)
        plain = replace(wrapped, cla=wrapped.cla & ~0x04, data=data)
        return plain, replace(following, mac_chaining_value=expected)

    def protect(self, response: ResponseAPDU) -> ResponseAPDU:
        """Protect the response to the command that made this channel; the host foretells one by it."""
        if not is_protected(response.sw):
            return replace(response, data=b"")
        data = response.data
        if self.level & 0x20 and data:
            data = _encrypted(self.session, self.response_icv, data)
        if self.level & 0x10:
            data += self._response_mac(data, response.sw)
        return ResponseAPDU(response.sw, data)

    # --- pieces --------------------------------------------------------------------------------------------

    def command_mac(self, bare: CommandAPDU) -> bytes:
        """Return the whole C-MAC (16 octets) of a command without it (section 6.2.4).

        Lc counts the MAC, in the form it has on the wire.
        """
        lc = bare.length_field(len(bare.data) + self.session.mode)
        return aes_cmac(self.session.s_mac, self.mac_chaining_value + bare.header + lc + bare.data)

    def _response_mac(self, data: bytes, sw: int) -> bytes:
        message = self.mac_chaining_value + data + sw.to_bytes(2, "big")
        return aes_cmac(self.session.s_rmac, message)[: self.session.mode]

    def _next(self, command: CommandAPDU) -> "SecureChannel":
        counts = self.counts_empty_commands or bool(command.data)
        return replace(self, counter=self.counter + 1) if counts else self

    @property
    def command_icv(self) -> bytes:
        """The number of the command, which its encryption begins with (section 6.2.6)."""
        return self.counter.to_bytes(BLOCK, "big")

    @property
    def response_icv(self) -> bytes:
        """The same number, marked (section 6.2.7)."""
        return b"\x80" + self.counter.to_bytes(BLOCK - 1, "big")


def _cbc(session: Session, number: bytes) -> "Cipher[modes.CBC]":
    algorithm = algorithms.AES(session.s_enc.view())
    icv = Cipher(algorithm, modes.ECB()).encryptor().update(number)  # noqa: S305  # section 6.2.6: one block
    return Cipher(algorithm, modes.CBC(icv))


def _encrypted(session: Session, number: bytes, data: bytes) -> bytes:
    return _cbc(session, number).encryptor().update(_pad(data))


def _decrypted(session: Session, number: bytes, data: bytes) -> bytes:
    if len(data) % BLOCK:
        raise errors.ProofFailed("an encrypted field is no whole number of blocks")
    return _unpad(_cbc(session, number).decryptor().update(data))


def _pad(data: bytes) -> bytes:
    return data + b"\x80" + bytes(-(len(data) + 1) % BLOCK)


def _unpad(padded: bytes) -> bytes:
    stripped = padded.rstrip(b"\0")
    if not stripped.endswith(b"\x80"):  # more zeros than needed are seen from real elements
        raise errors.ProofFailed("an encrypted field is not padded as it has to be")
    return stripped[:-1]
