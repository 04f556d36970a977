"""The commands of Microchip's ATECC508A and ATECC608 (CryptoAuthentication) that an identity needs.

A command is a packet: count, opcode, param1, param2 (little-endian), data, CRC; the answer is count, data,
CRC, where one octet of data is a status.  The chip sleeps until it is woken, answers to nothing while it
works, and falls asleep by itself about a second after it was woken: so every command here is a waking, a
packet, an answer and an idling, and what it keeps in between (TempKey) survives idling.

Whatever carries the octets is a ``Bus``.  Spelling and numbers are those of the data sheets, known to us
through the MIT-licensed driver ``adafruit-circuitpython-atecc``, which the tests hold against the same
simulated chip; what is known from memory alone is marked so.
"""

from dataclasses import dataclass
from typing import Protocol

from birthmark.errors import MalformedRequest, PolicyRefused, Unavailable

__all__ = [
    "BLOCK",
    "CONFIG",
    "DATA",
    "WORD",
    "Bus",
    "Chip",
    "Command",
    "crc16",
    "decode_answer",
    "encode_command",
]

_RESET, _IDLE, _COMMAND = b"\x00", b"\x02", b"\x03"
"""Word addresses."""
_AWAKE = b"\x11"
_MOST = 155
"""The largest packet: 151 octets of ATECC508A's largest command, and some."""

CONFIG, DATA = 0, 2
"""Zones, as Read and Write number them."""
WORD, BLOCK = 4, 32
"""Octets of one Read or Write."""

_STATUS = {
    0x01: "miscompare",
    0x03: "parse error",
    0x05: "ecc fault",
    0x07: "self test error",
    0x08: "health test error",
    0x0F: "execution error",
    0x11: "it has just been woken",
    0xEE: "the watchdog is about to expire",
    0xFF: "crc or communications error",
}
_PASSING = frozenset({0x05, 0x11, 0xEE, 0xFF})
"""What goes away when the command is sent again; it was not carried out."""
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Command:
    """An opcode and its times."""

    name: str
    opcode: int
    seconds: float
    """The longest it takes (data sheet, table of execution times; ATECC608 at its slowest clock)."""


INFO = Command("info", 0x30, 0.005)
READ = Command("read", 0x02, 0.005)
WRITE = Command("write", 0x12, 0.045)
LOCK = Command("lock", 0x17, 0.035)
NONCE = Command("nonce", 0x16, 0.030)
GEN_KEY = Command("genkey", 0x40, 0.653)
SIGN = Command("sign", 0x41, 0.665)


class Bus(Protocol):
    """The wires to one chip, held by nobody else as long as it is open.

    Every method raises ``errors.Unavailable`` if the bus itself is gone.
    """

    def wake(self) -> None:
        """Hold SDA low for 60 µs or more, and wait 1.5 ms (ATECC608: tWLO, tWHI)."""
        ...

    def write(self, octets: bytes) -> bool:
        """Write to the chip's address; False if it does not acknowledge."""
        ...

    def read(self, size: int) -> bytes | None:
        """Read from the chip's address; None if it does not acknowledge, since it works or sleeps."""
        ...

    def pause(self, seconds: float) -> None:
        """Wait."""
        ...


def crc16(octets: bytes) -> bytes:
    """Return the CRC of a packet: polynomial 8005, bits of each octet from the lowest; little-endian."""
    crc = 0
    for octet in octets:
        for bit in range(8):
            divide = (octet >> bit & 1) != crc >> 15
            crc = (crc << 1 & 0xFFFF) ^ (0x8005 if divide else 0)
    return crc.to_bytes(2, "little")


def encode_command(opcode: int, param1: int, param2: int, data: bytes = b"") -> bytes:
    """Return a command's packet, from the count to the CRC."""
    body = bytes((len(data) + 7, opcode, param1)) + param2.to_bytes(2, "little") + data
    return body + crc16(body)


def decode_answer(octets: bytes) -> bytes:
    """Return the data of an answer; what was read behind it is passed over.

    Raises:
        MalformedRequest: count or CRC are wrong.
    """
    count = octets[0] if octets else 0
    if not 4 <= count <= min(len(octets), _MOST):
        raise MalformedRequest(f"the chip's answer says it has {count} octets of {len(octets)}")
    if crc16(octets[: count - 2]) != octets[count - 2 : count]:
        raise MalformedRequest("the chip's answer has a wrong crc")
    return octets[1 : count - 2]


class Chip:
    """The commands of one chip.  Not for several threads at once.

    Every method raises ``errors.Unavailable`` if the chip does not answer, or not in time, and
    ``errors.PolicyRefused`` (rule ``element``) if it refuses the command.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    def info(self) -> bytes:
        """Return the revision (4 octets): 00 00 50 xx for ATECC508A, 00 00 60 xx for ATECC608."""
        return self._execute(INFO, 0, 0, answer=4)

    def read(self, zone: int, address: int, size: int) -> bytes:
        """Return 4 or 32 octets of a zone."""
        return self._execute(READ, zone | (0x80 if size == BLOCK else 0), address, answer=size)

    def write(self, zone: int, address: int, octets: bytes) -> None:
        """Write 4 or 32 octets; durable on return (EEPROM)."""
        self._status(WRITE, zone | (0x80 if len(octets) == BLOCK else 0), address, octets)

    def configuration(self) -> bytes:
        """Return the configuration zone (128 octets)."""
        return b"".join(self.read(CONFIG, block << 3, BLOCK) for block in range(4))

    def lock_configuration(self, expected: bytes) -> None:
        """Lock the configuration zone for ever, if it holds these 128 octets: the chip compares the CRC."""
        self._status(LOCK, 0x00, int.from_bytes(crc16(expected), "little"))

    def lock_data(self) -> None:
        """Lock data and OTP zones for ever: from now on each slot is what its configuration says."""
        self._status(LOCK, 0x81, 0)

    def lock_slot(self, slot: int) -> None:
        """Lock one slot for ever: neither Write nor GenKey changes it."""
        self._status(LOCK, 0x82 | slot << 2, 0)

    def generate_key(self, slot: int) -> bytes:
        """Make a private key in a slot and return its public point: 64 octets, x and y."""
        return self._execute(GEN_KEY, 0x04, slot, answer=64)

    def public_key(self, slot: int) -> bytes:
        """Return the public point of the private key in a slot: 64 octets, x and y."""
        return self._execute(GEN_KEY, 0x00, slot, answer=64)

    def sign(self, slot: int, digest: bytes) -> bytes:
        """Sign 32 octets, put into TempKey before (Nonce pass-through): 64 octets, r and s."""
        self._status(NONCE, 0x03, 0, digest)
        return self._execute(SIGN, 0x80, slot, answer=64)

    # --- one command -----------------------------------------------------------------------------------

    def _status(self, command: Command, param1: int, param2: int, data: bytes = b"") -> None:
        if (said := self._execute(command, param1, param2, data, answer=1)) != b"\0":
            raise Unavailable(f"the chip answers {command.name} with {said.hex()}, not with a status")

    def _execute(
        self, command: Command, param1: int, param2: int, data: bytes = b"", *, answer: int
    ) -> bytes:
        packet = encode_command(command.opcode, param1, param2, data)
        complaint = "it does not answer"
        for _ in range(_TRIES):
            self._wake()
            if not self._bus.write(_COMMAND + packet):
                complaint = "it does not acknowledge"
                continue
            said = self._answer(command, answer)
            self._bus.write(_IDLE)
            if said is None:
                # Nobody knows whether it was carried out: the caller looks, and does not repeat.
                raise Unavailable(f"the chip's answer to {command.name} was lost")
            if len(said) == answer and (answer != 1 or said[0] not in _STATUS):
                return said
            status = said[0] if len(said) == 1 else -1
            complaint = _STATUS.get(status, f"an answer of {len(said)} octets")
            if status not in _PASSING:
                raise PolicyRefused("element", f"the chip refuses {command.name}: {complaint}")
        raise Unavailable(f"the chip cannot be made to {command.name}: {complaint}")

    def _answer(self, command: Command, size: int) -> bytes | None:
        """Return the data of the answer, or None if none can be read whole."""
        step = command.seconds / 10
        for _ in range(20):
            self._bus.pause(step)
            octets = self._bus.read(size + 3)
            if octets is None:
                continue
            try:
                return decode_answer(octets)
            except MalformedRequest:
                self._bus.write(_RESET)  # the same answer, from its beginning
        return None

    def _wake(self) -> None:
        """Wake the chip; if it is awake already, have it idle first, which keeps TempKey."""
        for _ in range(_TRIES):
            self._bus.wake()
            octets = self._bus.read(4)
            try:
                if octets is not None and decode_answer(octets) == _AWAKE:
                    return
            except MalformedRequest:
                pass
            self._bus.write(_IDLE)
            self._bus.pause(0.002)
        raise Unavailable("there is no chip: nothing answers when it is woken")
