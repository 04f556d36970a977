"""Devices of each kind on the bench of ``birthmark.edge.station.conformance``."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from unittest import mock

import pkcs11
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from pkcs11.exceptions import DeviceRemoved, PKCS11Error
from pkcs11.util.ec import encode_named_curve_parameters

from birthmark.edge.station.elements.atecc import ATECCElement
from birthmark.edge.station.elements.openpgp import OpenPGPElement
from birthmark.edge.station.elements.pkcs11 import PKCS11Element
from birthmark.edge.station.elements.tcp import TCPChannel
from birthmark.edge.station.elements.tpm import IDEVID_CERTIFICATE, TPMElement
from birthmark.edge.station.enclave import Enclave
from birthmark.element.apdu import CardChannel
from birthmark.errors import Unavailable
from birthmark.pki.certificates import to_pem
from birthmark.secret import SecretBytes
from tests.support.atecc_chip import Memory, SimulatedBus
from tests.support.checkers.running import peer_command
from tests.support.programs import need, need_extra
from tests.support.softhsm import SoftHSM, softhsm_token
from tests.support.swtpm import SoftwareTPM, software_tpm

__all__ = [
    "ATECCBench",
    "CutChannel",
    "EnclaveBench",
    "OpenPGPBench",
    "OpenPGPCard",
    "PKCS11Bench",
    "TPMBench",
]

PW1, PW3 = SecretBytes(b"123456"), SecretBytes(b"12345678")
"""What an OpenPGP card is delivered with."""


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

    def replace_key(self) -> None:
        """Put another private key where the device keeps it, past every element."""
        self.memory.keys[0] = ec.generate_private_key(ec.SECP256R1())


# --- an OpenPGP card of others ------------------------------------------------------------------------------


class OpenPGPCard:
    """The program that is the card; what it keeps is in a directory, and survives being killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._folder.mkdir()
        self._process: subprocess.Popen[str] | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def start(self) -> None:
        self._process = subprocess.Popen(
            [*peer_command("openpgp"), str(self._folder)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """Take its power."""
        if self._process is not None:
            assert self._process.stdout is not None
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            self._process = None

    def channel(self) -> TCPChannel:
        return TCPChannel("127.0.0.1", self.port)


class CutChannel:
    """A channel whose card loses its power: each command is two moments, before and after it."""

    def __init__(self, channel: CardChannel, moment: int) -> None:
        self._channel = channel
        self._moment = moment
        self._passed = 0

    def transmit(self, command: bytes) -> bytes:
        self._pass()
        response = self._channel.transmit(command)
        self._pass()
        return response

    def reset(self) -> None:
        raise Unavailable("the card has no power")

    def _pass(self) -> None:
        self._passed += 1
        if self._passed >= self._moment:
            raise Unavailable("the card has no power")


class OpenPGPBench:
    """A card of others, with a directory beside it.  Whoever makes one enters it."""

    def __init__(self, folder: Path) -> None:
        self.card = OpenPGPCard(folder / "card")
        self.beside = folder / "beside"
        self._channels: list[TCPChannel] = []
        self._kills = 3

    def __enter__(self) -> Self:
        self.card.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._hang_up()
        self.card.kill()

    def open(self) -> OpenPGPElement:
        return self._element(self._channel())

    def open_until(self, moment: int) -> OpenPGPElement:
        return self._element(CutChannel(self._channel(), moment))

    def power_cut(self, element: object) -> None:
        """Kill the card; after some times only take its power in its own words, which is quicker."""
        assert isinstance(element, OpenPGPElement)
        element.close()
        self._hang_up()
        if self._kills:
            self._kills -= 1
            self.card.kill()
            self.card.start()

    def replace_certificate(self, certificate: bytes) -> None:
        # Through the card's own door, as gpg --card-edit would: the element is not told.
        channel = self._channels[-1]
        assert channel.transmit(b"\x00\x20\x00\x83\x08" + PW3.reveal()) == b"\x90\x00"
        command = b"\x00\xda\x7f\x21\x00" + len(certificate).to_bytes(2, "big") + certificate
        assert channel.transmit(command) == b"\x90\x00"

    def replace_key(self) -> None:
        """Have the card make another key, past every element."""
        channel = self._channels[-1]
        assert channel.transmit(b"\x00\x20\x00\x83\x08" + PW3.reveal()) == b"\x90\x00"
        assert channel.transmit(bytes.fromhex("0047800002b60000")).endswith(b"\x90\x00")

    def _channel(self) -> TCPChannel:
        self._hang_up()
        self._channels.append(self.card.channel())
        return self._channels[-1]

    def _hang_up(self) -> None:
        while self._channels:
            self._channels.pop().close()

    def _element(self, channel: CardChannel) -> OpenPGPElement:
        return OpenPGPElement(channel, pin=PW1, admin_pin=PW3, beside=str(self.beside))


# --- a PKCS#11 token ----------------------------------------------------------------------------------------


class Cut:
    """Something of python-pkcs11 whose token is pulled out: each call is two moments, before and after it."""

    def __init__(self, inner: Any, moments: list[int]) -> None:
        self._inner = inner
        self._moments = moments

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value):
            return value

        def call(*arguments: Any, **named: Any) -> Any:
            self._pass()
            result = value(*arguments, **named)
            if name in {"get_objects", "get_slots"}:
                result = list(result)
            self._pass()
            return self._wrapped(result)

        return call

    def __getitem__(self, key: Any) -> Any:
        return self._inner[key]

    def _wrapped(self, result: Any) -> Any:
        if isinstance(result, list | tuple):
            return type(result)(self._wrapped(one) for one in result)
        return result if isinstance(result, bytes | None) else Cut(result, self._moments)

    def _pass(self) -> None:
        self._moments[0] -= 1
        if self._moments[0] <= 0:
            raise DeviceRemoved


class PKCS11Bench:
    """A SoftHSM token.  Whoever makes one enters it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self.hsm: SoftHSM

    def __enter__(self) -> Self:
        self.hsm = self._stack.enter_context(softhsm_token(self._folder, label="device"))
        self._stack.callback(self._finalize)
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def open(self) -> PKCS11Element:
        return PKCS11Element(str(self.hsm.module), self.hsm.label, self.hsm.pin)

    def open_until(self, moment: int) -> PKCS11Element:
        self._finalize()
        cut = Cut(pkcs11.lib(str(self.hsm.module.resolve())), [moment])
        with mock.patch.object(pkcs11, "lib", return_value=cut):
            return self.open()

    def power_cut(self, element: object) -> None:
        """End all that the library remembers in this process; the token is files."""
        assert isinstance(element, PKCS11Element)
        element.close()
        self._finalize()

    def replace_certificate(self, certificate: bytes) -> None:
        """Do it in another session, which PKCS#11 lets share the login of its process."""
        with self._another_session() as session:
            for old in list(session.get_objects({pkcs11.Attribute.LABEL: "birthmark device"})):
                old.destroy()
            subject = x509.load_der_x509_certificate(certificate).subject
            session.create_object(
                {
                    pkcs11.Attribute.CLASS: pkcs11.ObjectClass.CERTIFICATE,
                    pkcs11.Attribute.CERTIFICATE_TYPE: pkcs11.CertificateType.X_509,
                    pkcs11.Attribute.TOKEN: True,
                    pkcs11.Attribute.LABEL: "birthmark device",
                    pkcs11.Attribute.SUBJECT: subject.public_bytes(),
                    pkcs11.Attribute.VALUE: certificate,
                }
            )

    def replace_key(self) -> None:
        """Put another key pair where the device's was, in another session."""
        label = "birthmark device key"
        with self._another_session() as session:
            for old in list(session.get_objects({pkcs11.Attribute.LABEL: label})):
                old.destroy()
            curve = encode_named_curve_parameters("secp256r1")
            parameters = session.create_domain_parameters(
                pkcs11.KeyType.EC, {pkcs11.Attribute.EC_PARAMS: curve}, local=True
            )
            parameters.generate_keypair(store=True, label=label)

    @contextmanager
    def _another_session(self) -> Iterator[pkcs11.Session]:
        library = pkcs11.lib(str(self.hsm.module.resolve()))
        session = library.get_token(token_label=self.hsm.label).open(rw=True)
        try:
            yield session
        finally:
            session.close()

    def _finalize(self) -> None:
        with suppress(PKCS11Error):
            pkcs11.lib(str(self.hsm.module.resolve())).finalize()


# --- a TPM --------------------------------------------------------------------------------------------------


class TPMBench:
    """A swtpm, with a directory beside it.  Whoever makes one enters it."""

    def __init__(self, folder: Path) -> None:
        self.beside = folder / "beside"
        self._stack = ExitStack()
        self.tpm: SoftwareTPM

    def __enter__(self) -> Self:
        need_extra("tpm2_pytss", "tpm")
        self.tpm = self._stack.enter_context(software_tpm())
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def open(self) -> TPMElement:
        return TPMElement(self._chip(), str(self.beside))

    def power_cut(self, element: object) -> None:
        """Power the TPM off and on (CMD_INIT of its control channel), as a board does that comes up again."""
        assert isinstance(element, TPMElement)
        element.close()
        found = re.search(r"port=(\d+)", self.tpm.tcti)
        assert found is not None
        control = f"127.0.0.1:{int(found[1]) + 1}"
        self._run(need("swtpm_ioctl", "swtpm-tools"), "--tcp", control, "-i")
        self._run(need("tpm2_startup", "tpm2-tools"), "-T", self.tpm.tcti, "-c")

    def replace_certificate(self, certificate: bytes) -> None:
        """Write it into the NV index; the element's own connection is open meanwhile and is not told."""
        chip = self._chip()
        try:
            chip.write(IDEVID_CERTIFICATE, certificate)
        finally:
            chip.close()

    def _chip(self) -> Any:
        from birthmark.edge.station.elements.tpm_commands import Chip  # noqa: PLC0415  # an extra

        return Chip(self.tpm.tcti)

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, timeout=30)
