"""An ATECC608 as its host sees it: a bus address that sleeps, wakes, works, answers and forgets.

Two hosts are held against it: ours, and ``adafruit-circuitpython-atecc``, which others wrote for the real
chip.  It keeps the data sheet's rules about zones, locks and slot configurations as far as the two use them,
and refuses the rest (parse error).  What is non-volatile is one value, ``Memory``: a power cut is a new
``ATECCChip`` on the same memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature

from birthmark.errors import Unavailable

__all__ = ["ATECCChip", "Memory", "SimulatedBus", "crc"]

OK, PARSE, EXECUTION, CRC = b"\x00", b"\x03", b"\x0f", b"\xff"
AWAKE = b"\x11"
SIZES = [36] * 8 + [416] + [72] * 7


def crc(octets: bytes) -> bytes:
    """CRC-16 as Microchip's application note on it has it, written apart from the product's."""
    register = 0
    for octet in octets:
        for shift in range(8):
            data_bit = octet >> shift & 1
            crc_bit = register >> 15 & 1
            register = register << 1 & 0xFFFF
            if data_bit != crc_bit:
                register ^= 0x8005
    return bytes((register & 0xFF, register >> 8))


def _delivered() -> bytearray:
    """A configuration zone as the maker delivers it: nothing locked, slots of no use to us."""
    zone = bytearray(128)
    zone[:16] = bytes.fromhex("0123a1b200006002c3d4e5f6ee01c100")
    zone[16:20] = bytes.fromhex("c0000000")
    zone[20:52] = bytes.fromhex("8f20") * 16
    zone[52:68] = bytes.fromhex("ffffffff00000000") * 2
    zone[86:92] = bytes.fromhex("5555ffff0000")
    zone[96:128] = bytes.fromhex("3c00") * 16
    return zone


@dataclass(slots=True)
class Memory:
    """What survives a power cut."""

    configuration: bytearray = field(default_factory=_delivered)
    slots: list[bytearray] = field(default_factory=lambda: [bytearray(b"\xff" * size) for size in SIZES])
    keys: dict[int, ec.EllipticCurvePrivateKey] = field(default_factory=dict)

    @property
    def configuration_locked(self) -> bool:
        return self.configuration[87] != 0x55

    @property
    def data_locked(self) -> bool:
        return self.configuration[86] != 0x55

    def slot_config(self, slot: int) -> int:
        return int.from_bytes(self.configuration[20 + 2 * slot : 22 + 2 * slot], "little")

    def key_config(self, slot: int) -> int:
        return int.from_bytes(self.configuration[96 + 2 * slot : 98 + 2 * slot], "little")

    def slot_locked(self, slot: int) -> bool:
        return not int.from_bytes(self.configuration[88:90], "little") >> slot & 1


class ATECCChip:
    """One chip with its power on."""

    def __init__(self, memory: Memory, address: int = 0x60) -> None:
        self.memory = memory
        self.address = address
        self.executed: list[int] = []
        """Opcodes, in order."""
        self._awake = False
        self._busy = 0
        self._out = b""
        self._at = 0
        self._temp_key: bytes | None = None
        self._sha: Any = None

    # --- the bus ---------------------------------------------------------------------------------------

    def wake(self) -> None:
        """SDA was held low."""
        if not self._awake:
            self._awake = True
            self._say(AWAKE)

    def write(self, octets: bytes) -> bool:
        """Something was written to the chip's address; False if it does not acknowledge."""
        if not self._awake or not octets:
            return False
        if octets[0] == 0:
            self._at = 0
        elif octets[0] == 1:
            self._awake, self._temp_key, self._sha = False, None, None
        elif octets[0] == 2:
            self._awake = False
        elif octets[0] == 3:
            self._say(self._packet(octets[1:]))
            self._busy = 2  # two readings come too early
        return True

    def read(self, size: int) -> bytes | None:
        """The chip's address is read; None if it does not acknowledge."""
        if not self._awake:
            return None
        if self._busy:
            self._busy -= 1
            return None
        octets = self._out[self._at : self._at + size]
        self._at += size
        return octets.ljust(size, b"\xff")

    def _say(self, data: bytes) -> None:
        body = bytes((len(data) + 3,)) + data
        self._out, self._at = body + crc(body), 0

    # --- commands --------------------------------------------------------------------------------------

    def _packet(self, packet: bytes) -> bytes:
        if len(packet) < 7 or packet[0] != len(packet) or crc(packet[:-2]) != packet[-2:]:
            return CRC
        opcode, mode = packet[1], packet[2]
        param2, data = int.from_bytes(packet[3:5], "little"), packet[5:-2]
        handlers: dict[int, Callable[[int, int, bytes], bytes]] = {
            0x30: self._info,
            0x02: self._read,
            0x12: self._write,
            0x17: self._lock,
            0x16: self._nonce,
            0x40: self._gen_key,
            0x41: self._sign,
            0x47: self._hash,
        }
        handler = handlers.get(opcode)
        if handler is None:
            return PARSE
        self.executed.append(opcode)
        return handler(mode, param2, data)

    def _info(self, mode: int, _param2: int, _data: bytes) -> bytes:
        return bytes(self.memory.configuration[4:8]) if mode == 0 else PARSE

    def _read(self, mode: int, address: int, _data: bytes) -> bytes:
        size = 32 if mode & 0x80 else 4
        place = self._place(mode & 3, address, size)
        if place is None:
            return PARSE
        zone, at, slot = place
        if slot is not None and (not self.memory.data_locked or self.memory.slot_config(slot) & 0x80):
            return EXECUTION
        return bytes(zone[at : at + size])

    def _write(self, mode: int, address: int, data: bytes) -> bytes:
        size = 32 if mode & 0x80 else 4
        place = self._place(mode & 3, address, size)
        if place is None or len(data) != size:
            return PARSE
        zone, at, slot = place
        if slot is None:
            if self.memory.configuration_locked or at < 16 or at <= 84 < at + size:
                return EXECUTION
        elif not self._may_write(slot, size):
            return EXECUTION
        zone[at : at + size] = data
        return OK

    def _may_write(self, slot: int, size: int) -> bool:
        if not self.memory.configuration_locked or self.memory.slot_locked(slot):
            return False
        if not self.memory.data_locked:
            return size == 32
        return self.memory.slot_config(slot) >> 12 == 0 and not self.memory.key_config(slot) & 1

    def _place(self, zone: int, address: int, size: int) -> tuple[bytearray, int, int | None] | None:
        """Return zone, offset and slot of an address, or None where there is nothing."""
        offset = (address & 7) * 4
        if zone == 0:
            at, slot, octets = (address >> 3 & 3) * 32 + offset, None, self.memory.configuration
        elif zone == 2:
            slot = address >> 3 & 0x0F
            at, octets = (address >> 8) * 32 + offset, self.memory.slots[slot]
        else:
            return None
        if (size == 32 and offset) or at + size > len(octets):
            return None
        return octets, at, slot

    def _lock(self, mode: int, summary: int, _data: bytes) -> bytes:
        memory, zone = self.memory, mode & 3
        if zone == 2:
            slot = mode >> 2 & 0x0F
            lockable = memory.key_config(slot) & 0x20
            if not (memory.data_locked and lockable) or memory.slot_locked(slot):
                return EXECUTION
            locked = int.from_bytes(memory.configuration[88:90], "little") & ~(1 << slot)
            memory.configuration[88:90] = locked.to_bytes(2, "little")
            return OK
        if zone == 0:
            wrong = crc(bytes(memory.configuration)) != summary.to_bytes(2, "little")
            if memory.configuration_locked or (not mode & 0x80 and wrong):
                return EXECUTION
            memory.configuration[87] = 0
            return OK
        if zone == 1 and mode & 0x80 and memory.configuration_locked and not memory.data_locked:
            memory.configuration[86] = 0
            return OK
        return EXECUTION

    def _nonce(self, mode: int, _param2: int, data: bytes) -> bytes:
        if mode != 3 or len(data) != 32:
            return PARSE
        self._temp_key = data
        return OK

    def _gen_key(self, mode: int, slot: int, _data: bytes) -> bytes:
        memory = self.memory
        if slot > 15 or mode not in (0, 4):
            return PARSE
        key_config = memory.key_config(slot)
        if not (memory.configuration_locked and key_config & 1 and key_config >> 2 & 7 == 4):
            return EXECUTION
        if mode == 4:
            if not memory.slot_config(slot) >> 12 & 2 or memory.slot_locked(slot):
                return EXECUTION
            memory.keys[slot] = ec.generate_private_key(ec.SECP256R1())
        elif not key_config & 2 or slot not in memory.keys:
            return EXECUTION
        numbers = memory.keys[slot].public_key().public_numbers()
        return numbers.x.to_bytes(32, "big") + numbers.y.to_bytes(32, "big")

    def _sign(self, mode: int, slot: int, _data: bytes) -> bytes:
        if mode != 0x80 or slot > 15:
            return PARSE
        digest, self._temp_key = self._temp_key, None
        key = self.memory.keys.get(slot)
        if digest is None or key is None or not self.memory.slot_config(slot) & 1:
            return EXECUTION
        r, s = decode_dss_signature(key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256()))))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def _hash(self, mode: int, size: int, data: bytes) -> bytes:
        if mode == 0:
            self._sha = sha256()
        elif self._sha is None:
            return EXECUTION
        elif mode == 1 and len(data) == 64:
            self._sha.update(data)
        elif mode == 2 and len(data) == size < 64:
            self._sha.update(data)
            done, self._sha = self._sha.digest(), None
            assert isinstance(done, bytes)
            return done
        else:
            return PARSE
        return OK


class SimulatedBus:
    """A ``Bus`` with a chip on it, whose power can fail, and whose wires can garble.

    Each command is two moments: 1 before the first command is carried out, 2 after it, before its answer is
    read, and so on.
    """

    def __init__(
        self, memory: Memory, *, cut_at: int | None = None, garble: Callable[[], bool] | None = None
    ) -> None:
        self.chip = ATECCChip(memory)
        self.exchanges = 0
        self._cut_at = cut_at
        self._garble = garble

    def wake(self) -> None:
        self._powered()
        self.chip.wake()

    def write(self, octets: bytes) -> bool:
        self._powered()
        if octets[:1] != b"\x03":
            return self.chip.write(octets)
        self.exchanges += 1
        self._powered()
        taken = self.chip.write(self._on_the_wire(octets))
        self.exchanges += 1
        return taken

    def read(self, size: int) -> bytes | None:
        self._powered()
        octets = self.chip.read(size)
        return octets if octets is None else self._on_the_wire(octets)

    def pause(self, seconds: float) -> None:
        self._powered()

    def _on_the_wire(self, octets: bytes) -> bytes:
        if self._garble is not None and self._garble():
            return octets[:1] + bytes((octets[1] ^ 0x10,)) + octets[2:]
        return octets

    def _powered(self) -> None:
        if self._cut_at is not None and self.exchanges >= self._cut_at:
            raise Unavailable("the chip has no power")
