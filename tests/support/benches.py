"""Devices of each kind on the bench of ``birthmark.edge.station.conformance``."""

from pathlib import Path

from birthmark.edge.station.elements.atecc import ATECCElement
from birthmark.edge.station.enclave import Enclave
from birthmark.pki.certificates import to_pem
from tests.support.atecc_chip import Memory, SimulatedBus

__all__ = ["ATECCBench", "EnclaveBench"]


class EnclaveBench:
    """A directory."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "device"

    def open(self) -> Enclave:
        return Enclave(str(self._path))

    def power_cut(self, element: object) -> None:
        assert isinstance(element, Enclave)
        element.close()

    def replace_certificate(self, certificate: bytes) -> None:
        file = self._path / "device.crt"
        file.unlink(missing_ok=True)
        file.write_text(to_pem(certificate), encoding="ascii")


class ATECCBench:
    """A simulated chip, with a directory beside it."""

    def __init__(self, folder: Path) -> None:
        self.memory = Memory()
        self.beside = folder / "beside"

    def open(self) -> ATECCElement:
        return ATECCElement(SimulatedBus(self.memory), str(self.beside))

    def open_until(self, moment: int) -> ATECCElement:
        return ATECCElement(SimulatedBus(self.memory, cut_at=moment), str(self.beside))

    def power_cut(self, element: object) -> None:
        assert isinstance(element, ATECCElement)
        element.close()

    def replace_certificate(self, certificate: bytes) -> None:
        octets = b"BM" + len(certificate).to_bytes(2, "big") + certificate
        for slot in range(8, 16):
            size = len(self.memory.slots[slot])
            self.memory.slots[slot][: len(octets[:size])] = octets[:size]
            octets = octets[size:]
