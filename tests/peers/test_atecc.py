"""Two hosts, one simulated chip: ours, and the driver that Adafruit wrote for the real one."""

import base64
import json
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography import x509

from birthmark.edge.station.conformance import what_is_installed_is_read_back_and_its_key_signs
from birthmark.edge.station.elements.atecc import configured
from birthmark.edge.station.elements.atecc_commands import Chip
from birthmark.edge.station.elements.requests import ecdsa_sig_value, public_key_info, verified
from birthmark.pki.algorithms import verify
from birthmark.pki.csr import vet
from birthmark.pki.keys import KeyAlgorithm
from tests.support.atecc_chip import ATECCChip, Memory, SimulatedBus
from tests.support.benches import ATECCBench
from tests.support.checkers.running import peer_command

P256 = KeyAlgorithm.EC_P256


def adafruit(memory: Memory, **order: Any) -> dict[str, Any]:
    """Have the driver carry out an order on a chip with this memory."""
    chip = ATECCChip(memory)
    with subprocess.Popen(
        peer_command("atecc"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(order) + "\n")
        stdin.flush()
        for line in stdout:
            question = json.loads(line)
            if "result" in question:
                result: dict[str, Any] = question["result"]
                return result
            stdin.write(json.dumps(on_the_bus(chip, question)) + "\n")
            stdin.flush()
    raise AssertionError("the driver ended without a result; what it complained of is in the test's output")


def on_the_bus(chip: ATECCChip, question: dict[str, Any]) -> str | None:
    """Return what the driver reads, an empty text for what was written, or None without acknowledge."""
    if question["address"] == 0:
        chip.wake()
        return None
    if question["address"] != chip.address:
        return None
    if "write" in question:
        return "" if chip.write(bytes.fromhex(question["write"])) else None
    octets = chip.read(question["read"])
    return None if octets is None else octets.hex()


def test_their_driver_finds_the_chip_and_reads_its_serial_number() -> None:
    assert adafruit(Memory()) == {"serial": "0123A1B2C3D4E5F6EE", "locked": False}


def test_their_driver_configures_the_chip_as_ours_would_and_asks_for_a_certificate() -> None:
    memory = Memory()
    wanted = configured(bytes(memory.configuration))
    result = adafruit(memory, configuration=wanted.hex(), csr=True)
    assert "refusal" not in result, result
    request = base64.b64decode(result["csr"])
    vetted = vet(request, allowed=(P256,))
    assert vetted.subject_common_name == "0123A1B2C3D4E5F6EE"
    assert memory.configuration_locked
    assert memory.data_locked
    # What ours reads of the same chip is the same key.
    ours = Chip(SimulatedBus(memory))
    assert public_key_info(P256, ours.public_key(0)) == vetted.subject_public_key_info
    assert ours.configuration()[20:52] == wanted[20:52]


def test_their_driver_finds_our_key_and_our_certificate(tmp_path: Path) -> None:
    bench = ATECCBench(tmp_path)
    what_is_installed_is_read_back_and_its_key_signs(bench)
    slot = bytes(bench.memory.slots[8])
    result = adafruit(bench.memory, csr=False, read=8 << 3)
    assert result["locked"] is True
    assert bytes.fromhex(result["read"]) == slot[:32]
    size = int.from_bytes(slot[2:4], "big")
    octets = b"".join(map(bytes, bench.memory.slots[8:]))[4 : 4 + size]
    certified = x509.load_der_x509_certificate(octets).public_key()
    assert x509.load_der_x509_csr(base64.b64decode(result["csr"])).public_key() == certified


def test_their_driver_cannot_make_another_key_in_a_released_chip(tmp_path: Path) -> None:
    bench = ATECCBench(tmp_path)
    what_is_installed_is_read_back_and_its_key_signs(bench)
    key = bench.memory.keys[0]
    assert "point" in adafruit(bench.memory, generate=True)
    assert bench.memory.keys[0] is not key
    key = bench.memory.keys[0]
    element = bench.open()
    element.released("a token")
    element.close()
    assert adafruit(bench.memory, generate=True) == {"refusal": "RuntimeError: CRC Mismatch"}
    assert bench.memory.keys[0] is key
    message = b"still the same"
    element = bench.open()
    verify(
        public_key_info(P256, Chip(SimulatedBus(bench.memory)).public_key(0)), element.sign(message), message
    )
    element.close()


def test_a_signature_of_their_driver_is_one_of_ours(tmp_path: Path) -> None:
    bench = ATECCBench(tmp_path)
    what_is_installed_is_read_back_and_its_key_signs(bench)
    message = b"signed through the other host"
    result = adafruit(bench.memory, sign=sha256(message).hexdigest())
    spki = public_key_info(P256, Chip(SimulatedBus(bench.memory)).public_key(0))
    verified(spki, ecdsa_sig_value(P256, bytes.fromhex(result["signature"])), message)
