"""``atecc:/dev/i2c-1?address=60&beside=DIR``: an ATECC508A or ATECC608 as device element.

Where everything is:

    slot 0          the private key (P-256), made in the chip, readable by nobody
    slot 7          SHA-256 of the release token, and a mark that says so
    slots 8 to 15   the certificate (DER) behind its length: 916 octets at most
    beside the chip the chain and the token (``beside``)

The first ``certification_request`` configures a new chip and locks configuration and data zone, for ever; a
chip that somebody else has locked has to allow the same.  A certificate is announced by its length, which is
taken away before the octets change and written after them, so that a power cut leaves a whole certificate or
none.  ``released`` locks slots 0 and 7 to 15: from then on the chip itself keeps the identity as it is.
"""

from collections.abc import Mapping, Sequence

from birthmark.edge.station.elements import allow
from birthmark.edge.station.elements.atecc_commands import BLOCK, CONFIG, DATA, WORD, Bus, Chip
from birthmark.edge.station.elements.beside import Beside, refuse_delivered, refuse_released, token_mark
from birthmark.edge.station.elements.i2c import LinuxI2C
from birthmark.edge.station.elements.requests import (
    certification_request,
    common_name,
    digest,
    ecdsa_sig_value,
    public_key_info,
)
from birthmark.errors import (
    IllegalTransition,
    IntegrityFailure,
    MalformedRequest,
    NotFound,
    PolicyRefused,
    TooLarge,
)
from birthmark.pki import der
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes

__all__ = ["ATECCElement", "configured", "element"]

_KEY, _TOKEN, _CERTIFICATE = 0, 7, range(8, 16)
_SLOT_SIZES = {slot: 36 if slot < 8 else 416 if slot == 8 else 72 for slot in range(16)}
_ROOM = sum(_SLOT_SIZES[slot] for slot in _CERTIFICATE) - WORD
_MAGIC = b"BM"
"""Before the length of a certificate, in the first word of slot 8."""
_MARK = b"BMR1"
"""The ninth word of slot 7, behind the hash."""
_NO_CERTIFICATE = bytes(WORD)

_SLOT_CONFIG, _LOCK_BYTES, _SLOT_LOCKED, _KEY_CONFIG = 20, 86, 88, 96
"""Where they lie in the configuration zone."""
_UNLOCKED = 0x55
# SlotConfig and KeyConfig (data sheet, tables of the configuration zone; bits from memory), little-endian.
_KEY_SLOT = (0x2081, 0x0033)
"""Secret; GenKey may write it, nothing else; it signs digests (ReadKey bit 0) and agrees on nothing.  A P-256
private key whose public key may be told; lockable."""
_OPEN_SLOT = (0x0F0F, 0x003C)
"""Anybody reads and writes it in clear, until it is locked."""
_UNUSED_SLOT = (0x8F8F, 0x001C)
"""Secret, never written."""


def _slot(configuration: bytes, slot: int) -> bytes:
    """Return a slot's SlotConfig and KeyConfig."""
    places = (_SLOT_CONFIG + 2 * slot, _KEY_CONFIG + 2 * slot)
    return b"".join(configuration[at : at + 2] for at in places)


def configured(current: bytes) -> bytes:
    """Return a configuration zone (128 octets) with our slots in it; all else is as it was."""
    wanted = bytearray(current)
    for slot in range(16):
        kind = _KEY_SLOT if slot == _KEY else _OPEN_SLOT if slot >= _TOKEN else _UNUSED_SLOT
        for begin, value in zip((_SLOT_CONFIG, _KEY_CONFIG), kind, strict=True):
            wanted[begin + 2 * slot : begin + 2 * slot + 2] = value.to_bytes(2, "little")
    return bytes(wanted)


class ATECCElement:
    """A ``DeviceElement`` in an ATECC508A or ATECC608.  Not for several threads at once."""

    def __init__(self, bus: Bus, beside: str | None) -> None:
        """Look for the chip, and take the directory beside it.

        Args:
            bus: to the chip; closed with the element, if it can be.
            beside: directory of what the chip has no room for.

        Raises:
            Unavailable: there is no chip, or somebody else has the directory.
            MalformedRequest: it is another chip, or there is no directory.
            NotPermitted: the directory belongs to another chip.
        """
        self._bus = bus
        self._chip = Chip(bus)
        try:
            revision = self._chip.info()
            if revision[2] not in {0x50, 0x60}:
                raise MalformedRequest(f"the chip is no atecc508a or 608: its revision is {revision.hex()}")
            configuration = self._chip.configuration()
            self.serial_number = (configuration[:4] + configuration[8:13]).hex()
            self._beside = Beside(beside, f"atecc {self.serial_number}")
        except BaseException:
            _close(bus)
            raise

    def __repr__(self) -> str:
        return f"ATECCElement({self.serial_number!r})"

    def close(self) -> None:
        """Give chip and directory back."""
        self._beside.close()
        _close(self._bus)

    def certification_request(self, hardware_id: str) -> bytes:
        """Configure the chip if it is new, make a key in it and return a request (PKCS#10, DER).

        Raises:
            IllegalTransition: the device is released.
            MalformedRequest: the hardware id cannot be a common name.
            PolicyRefused: the chip is locked in another configuration (rule ``element``).
            IntegrityFailure: its signature does not verify with the key it showed.
        """
        subject = common_name(hardware_id)
        self._configure()
        self._refuse_released()
        self._write(_CERTIFICATE[0], 0, _NO_CERTIFICATE)  # the key it belonged to goes now
        spki = public_key_info(KeyAlgorithm.EC_P256, self._chip.generate_key(_KEY))
        return certification_request(subject, spki, self.sign)

    def install(self, *, certificate: bytes, chain: Sequence[bytes], private_key: SecretBytes | None) -> None:
        """Store the chain beside the chip and the certificate in it.

        Raises:
            IllegalTransition: the device is released.
            PolicyRefused: the key is a delivered one (rule ``key-origin``).
            TooLarge: the certificate has more than 916 octets.
        """
        refuse_delivered(private_key)
        if len(certificate) > _ROOM:
            raise TooLarge(f"the certificate has {len(certificate)} octets, the chip has room for {_ROOM}")
        self._refuse_released()
        self._beside.keep_chain(chain)
        header = _MAGIC + len(certificate).to_bytes(2, "big")
        self._write(_CERTIFICATE[0], 0, _NO_CERTIFICATE)
        octets = header + certificate
        for slot in _CERTIFICATE:
            size = _SLOT_SIZES[slot]
            image, octets = octets[:size].ljust(size, b"\xff"), octets[size:]
            start = WORD if slot == _CERTIFICATE[0] else 0
            self._write(slot, start, image[start:])
            if not octets:
                break
        self._write(_CERTIFICATE[0], 0, header)

    def read_back(self) -> bytes:
        """Return the certificate (DER) as it is in the slots.

        Raises:
            NotFound: there is none.
            IntegrityFailure: the slots hold something else.
        """
        self._require_open()
        octets = self._read(_CERTIFICATE[0], _SLOT_SIZES[_CERTIFICATE[0]])
        size = int.from_bytes(octets[2:WORD], "big")
        if octets[:2] != _MAGIC or size > _ROOM:
            raise NotFound(f"there is no certificate in the chip {self.serial_number}")
        for slot in _CERTIFICATE[1:]:
            if len(octets) >= WORD + size:
                break
            octets += self._read(slot, _SLOT_SIZES[slot])
        certificate = octets[WORD : WORD + size]
        try:
            der.only(certificate, der.SEQUENCE)
        except MalformedRequest as wrong:
            raise IntegrityFailure(f"the chip {self.serial_number} holds no whole certificate") from wrong
        return certificate

    def sign(self, message: bytes) -> bytes:
        """Sign with the key in slot 0: DER Ecdsa-Sig-Value, P-256 with SHA-256."""
        algorithm = KeyAlgorithm.EC_P256
        return ecdsa_sig_value(algorithm, self._chip.sign(_KEY, digest(algorithm, message)))

    def released(self, token: str) -> None:
        """Store the token beside the chip and its hash in it, then lock what must not change any more.

        Again with the same token it finishes what a power cut has left undone.

        Raises:
            IllegalTransition: the device was released with another token.
        """
        mark = token_mark(token)
        known = self._mark()
        if known not in (None, mark):
            raise IllegalTransition(f"the chip {self.serial_number} was released with another token")
        self._beside.keep_token(token)
        if known is None:
            self._write(_TOKEN, 0, mark)
            self._write(_TOKEN, BLOCK, _MARK)
        configuration = self._chip.configuration()
        unlocked = int.from_bytes(configuration[_SLOT_LOCKED : _SLOT_LOCKED + 2], "little")
        for slot in (*_CERTIFICATE, _KEY, _TOKEN):
            if unlocked >> slot & 1:
                self._chip.lock_slot(slot)

    # --- the chip --------------------------------------------------------------------------------------

    def _configure(self) -> None:
        """Write and lock the configuration of a new chip; refuse one that is locked in another."""
        current = self._chip.configuration()
        wanted = configured(current)
        if current[_LOCK_BYTES + 1] == _UNLOCKED:
            for at in range(0, len(wanted), WORD):
                if wanted[at : at + WORD] != current[at : at + WORD]:
                    self._chip.write(CONFIG, at // WORD, wanted[at : at + WORD])
            self._chip.lock_configuration(wanted)
        elif any(_slot(current, slot) != _slot(wanted, slot) for slot in (_KEY, _TOKEN, *_CERTIFICATE)):
            raise PolicyRefused(
                "element",
                f"the chip {self.serial_number} is locked in another configuration: it needs a key of its own"
                " in slot 0 and room in slots 7 to 15",
            )
        if current[_LOCK_BYTES] == _UNLOCKED:
            self._chip.lock_data()

    def _mark(self) -> bytes | None:
        """Return the hash of the token that the chip was released with, or None."""
        if self._chip.configuration()[_LOCK_BYTES] == _UNLOCKED:
            return None  # nothing of the data zone may be read yet
        octets = self._read(_TOKEN, _SLOT_SIZES[_TOKEN])
        return octets[:BLOCK] if octets[BLOCK:] == _MARK else None

    def _refuse_released(self) -> None:
        refuse_released(self._mark(), f"the chip {self.serial_number}")

    def _require_open(self) -> None:
        if self._chip.configuration()[_LOCK_BYTES] == _UNLOCKED:
            raise NotFound(f"the chip {self.serial_number} is new: there is nothing in it")

    def _read(self, slot: int, size: int) -> bytes:
        return b"".join(self._chip.read(DATA, _address(slot, at), width) for at, width in _pieces(0, size))

    def _write(self, slot: int, start: int, octets: bytes) -> None:
        for at, width in _pieces(start, start + len(octets)):
            self._chip.write(DATA, _address(slot, at), octets[at - start : at - start + width])


def element(place: str, options: Mapping[str, str]) -> ATECCElement:
    """Open the chip on the bus ``place``; options are ``address`` (hex, 7 bits; 60) and ``beside``.

    Raises:
        MalformedRequest: no bus is named, or the address is none.
        Refusal: whatever bus and chip have against it.
    """
    allow(options, "address", "beside")
    try:
        address = int(options.get("address", "60"), 16)
    except ValueError as wrong:
        raise MalformedRequest("address is an i2c address in hex, e.g. 60") from wrong
    if not place or not 0x08 <= address <= 0x77:
        raise MalformedRequest("write atecc:/dev/i2c-N?address=60&beside=DIR; an address is 08 to 77")
    return ATECCElement(LinuxI2C(place, address), options.get("beside"))


def _pieces(start: int, end: int) -> list[tuple[int, int]]:
    """Return offset and width of what is read or written at a time: blocks where they fit, else words."""
    pieces = []
    while start < end:
        width = BLOCK if start % BLOCK == 0 and end - start >= BLOCK else WORD
        pieces.append((start, width))
        start += width
    return pieces


def _address(slot: int, at: int) -> int:
    """Return the address of an octet of a slot: block, slot and word, as Read and Write take it."""
    return (at // BLOCK) << 8 | slot << 3 | at % BLOCK // WORD


def _close(bus: Bus) -> None:
    close = getattr(bus, "close", None)
    if close is not None:
        close()
