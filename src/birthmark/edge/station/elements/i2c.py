"""An I²C bus of Linux (``/dev/i2c-N``), for ``atecc_commands``.

The chip is woken by a write to address 0: at 100 kHz its eight zero bits hold SDA low for 80 µs, and nobody
acknowledges.  A bus that runs faster does not wake it.
"""

import fcntl
import os
import time
from contextlib import suppress

from birthmark.errors import NotFound, NotPermitted, Unavailable

__all__ = ["LinuxI2C"]

_I2C_SLAVE = 0x0703
"""ioctl(2) request: address of what is read and written next (linux/i2c-dev.h)."""
_NO_ACKNOWLEDGE = {6, 110, 121}
"""ENXIO, ETIMEDOUT, EREMOTEIO: what drivers say when nobody acknowledges (kernel: i2c/fault-codes)."""


class LinuxI2C:
    """A ``Bus`` to one chip."""

    def __init__(self, path: str, address: int) -> None:
        """Open the bus; the chip is not looked for yet.

        Raises:
            NotFound: there is no such bus.
            NotPermitted: it may not be opened.
            Unavailable: it is no I²C bus, or another driver has the chip.
        """
        self._address = address
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as wrong:
            raise NotFound(f"there is no {path}: load i2c-dev, or name another bus") from wrong
        except PermissionError as wrong:
            raise NotPermitted(f"{path} may not be opened: join the group i2c") from wrong
        except OSError as wrong:
            raise Unavailable(f"{path} cannot be opened: {wrong.strerror}") from wrong
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._talk_to(address)
        except OSError as wrong:
            os.close(self._fd)
            raise Unavailable(f"{path} is no i2c bus, or is in use: {wrong.strerror}") from wrong

    def close(self) -> None:
        """Give the bus back."""
        os.close(self._fd)

    def wake(self) -> None:
        """Write a zero octet to address 0, which nobody acknowledges, and wait."""
        try:
            self._talk_to(0)
            with suppress(OSError):
                os.write(self._fd, b"\0")
            self._talk_to(self._address)
        except OSError as wrong:
            raise Unavailable(f"the i2c bus is gone: {wrong.strerror}") from wrong
        time.sleep(0.0015)

    def write(self, octets: bytes) -> bool:
        """Write to the chip's address."""
        try:
            return os.write(self._fd, octets) == len(octets)
        except OSError as wrong:
            if wrong.errno in _NO_ACKNOWLEDGE:
                return False
            raise Unavailable(f"the i2c bus is gone: {wrong.strerror}") from wrong

    def read(self, size: int) -> bytes | None:
        """Read from the chip's address."""
        try:
            return os.read(self._fd, size)
        except OSError as wrong:
            if wrong.errno in _NO_ACKNOWLEDGE:
                return None
            raise Unavailable(f"the i2c bus is gone: {wrong.strerror}") from wrong

    def pause(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def _talk_to(self, address: int) -> None:
        fcntl.ioctl(self._fd, _I2C_SLAVE, address)
