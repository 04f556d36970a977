"""``openpgp:pcsc:0?beside=DIR&pin=FILE&admin-pin=FILE``: an OpenPGP card as device element.

The signature key is the device's; it is generated on the card (EC, SEC 1 curves) and signs digests.  The
certificate is the cardholder certificate (DO 7F21, the occurrence that a card offers first).  Private DO 0102
keeps the SHA-256 of the release token behind a few letters; chain and token are beside the card (``beside``).

Every change needs PW3, every signature PW1.  Neither is ever tried when one of its tries is gone already, and
no PIN that a card has refused is sent again: a script must not be able to block a card.

What it protects: the key never leaves the card.  The card itself does not forbid whoever knows PW3 to make
another key, even when the device is released; this element does, by what it finds in DO 0102.

Source: Functional Specification of the OpenPGP application on ISO Smart Card Operating Systems, version 3.4
(sections 4.4, 7.2), cited from memory; held against ``smartcard-app-openpgp``, which others wrote.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from birthmark.edge.station.elements import algorithm_of, allow, opened_channel
from birthmark.edge.station.elements.beside import Beside, refuse_delivered, refuse_released, token_mark
from birthmark.edge.station.elements.pins import read_pin
from birthmark.edge.station.elements.requests import (
    certification_request,
    common_name,
    digest,
    ecdsa_sig_value,
    public_key_info,
)
from birthmark.element import tlv
from birthmark.element.apdu import OK, CardChannel, CommandAPDU, Guarded, ResponseAPDU, chained, relay
from birthmark.errors import (
    IllegalTransition,
    IntegrityFailure,
    MalformedRequest,
    NotFound,
    NotPermitted,
    PolicyRefused,
    TooLarge,
    Unavailable,
)
from birthmark.pki import der
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes

__all__ = ["OpenPGPElement", "element"]

_AID = bytes.fromhex("d27600012401")
_PW1_SIGN, _PW3 = 0x81, 0x83
_TRIES = 3
"""What a card's counters stand at when no wrong PIN was entered since the last right one."""
_SIGNATURE_KEY = bytes.fromhex("b600")
"""Control reference template of the signature key."""
_ECDSA = 0x13
"""Algorithm id in algorithm attributes (C1), before the curve's OID."""
_CURVES = {KeyAlgorithm.EC_P256: "1.2.840.10045.3.1.7", KeyAlgorithm.EC_P384: "1.3.132.0.34"}
_DO_APPLICATION, _DO_DISCRETIONARY, _DO_CAPABILITIES, _DO_ATTRIBUTES = 0x6E, 0x73, 0xC0, 0xC1
_DO_PIN_STATUS, _DO_KEY_INFORMATION, _DO_AID, _DO_KDF = 0xC4, 0xDE, 0x4F, 0xF9
_DO_CERTIFICATE, _DO_HISTORICAL, _DO_MARK = 0x7F21, 0x5F52, 0x0102
_PRIVATE_DOS, _CHANGEABLE_ATTRIBUTES = 0x08, 0x04
"""Bits of the first octet of the extended capabilities (C0)."""
_GENERATED = b"\x01"
"""Status of a key in DO DE: 0 for none, 1 for generated on the card, 2 for imported."""
_MARK = b"birthmark/released/v1\n"
_NO_DATA = frozenset({0x6A88, 0x6A83, 0x6A82})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Card:
    """What a card says of itself."""

    serial_number: str
    certificate_size: int
    attributes: bytes
    capabilities: int
    extended: bool
    """It takes commands with extended lengths."""
    key_information: bytes


class OpenPGPElement:
    """A ``DeviceElement`` in an OpenPGP card, version 3 or later.  Not for several threads at once."""

    def __init__(
        self,
        channel: CardChannel,
        *,
        pin: SecretBytes,
        admin_pin: SecretBytes,
        beside: str | None,
        algorithm: KeyAlgorithm = KeyAlgorithm.EC_P256,
    ) -> None:
        """Select the card's application, and take the directory beside it.

        Args:
            channel: to the card; who opened it closes it, if not by ``when_closed``.
            pin: PW1.
            admin_pin: PW3.
            beside: directory of what the card has no room for.
            algorithm: of the key, one of P-256 and P-384.

        Raises:
            NotFound: it is no OpenPGP card.
            PolicyRefused: it lacks what is needed here (rule ``element``).
            Unavailable: it is gone, or somebody else has the directory.
            NotPermitted: the directory belongs to another card.
        """
        if algorithm not in _CURVES:
            raise MalformedRequest(f"algorithm is one of {', '.join(_CURVES)}")
        self.when_closed: Callable[[], None] | None = None
        """Called last by ``close``, to close the channel."""
        self._channel = channel
        self._algorithm = algorithm
        self._pins = {_PW1_SIGN: pin, _PW3: admin_pin}
        self._refused: set[int] = set()
        self._extended = False
        if self._transmit(CommandAPDU(0, 0xA4, 4, 0, _AID, 256)).sw != OK:
            raise NotFound("the card in the reader has no openpgp application")
        card = self._card()
        if not card.capabilities & _PRIVATE_DOS:
            raise PolicyRefused("element", "the card has no private data objects, which keep the release")
        self._extended = card.extended
        self.serial_number = card.serial_number
        self._beside = Beside(beside, f"openpgp {self.serial_number}")

    def __repr__(self) -> str:
        return f"OpenPGPElement({self.serial_number!r})"

    def close(self) -> None:
        """Take the card's power, so that no PIN stays verified, and give the directory back."""
        with suppress(Unavailable):
            self._channel.reset()
        self._beside.close()
        if self.when_closed is not None:
            self.when_closed()

    def certification_request(self, hardware_id: str) -> bytes:
        """Generate a key on the card and return a request (PKCS#10, DER).

        Raises:
            IllegalTransition: the device is released.
            MalformedRequest: the hardware id cannot be a common name.
            NotPermitted: a PIN is refused, or has a try less already.
            PolicyRefused: the card cannot have such a key (rule ``element``).
            IntegrityFailure: its signature does not verify with the key it showed.
        """
        subject = common_name(hardware_id)
        self._refuse_released()
        self._verify(_PW3)
        self._put(_DO_CERTIFICATE, b"")  # the key it belonged to goes now
        self._choose_algorithm()
        said = self._done("generate key", CommandAPDU(0, 0x47, 0x80, 0, _SIGNATURE_KEY, 256)).data
        point = next((one.value for one in _children(said, 0x7F49) if one.tag == 0x86), b"")
        spki = public_key_info(self._algorithm, point)
        # Pairs of a key's number and its status, the signature key's first; cards count from 0 or from 1.
        status = self._card().key_information[1:2]
        if status not in (b"", _GENERATED):
            raise IntegrityFailure("the card says that its signature key was not generated on it")
        return certification_request(subject, spki, self.sign)

    def install(self, *, certificate: bytes, chain: Sequence[bytes], private_key: SecretBytes | None) -> None:
        """Store the chain beside the card and the certificate on it.

        Raises:
            IllegalTransition: the device is released.
            PolicyRefused: the key is a delivered one (rule ``key-origin``).
            TooLarge: the certificate has more octets than the card takes.
            NotPermitted: the PIN is refused, or has a try less already.
        """
        refuse_delivered(private_key)
        self._refuse_released()
        room = self._card().certificate_size
        if len(certificate) > room:
            raise TooLarge(f"the certificate has {len(certificate)} octets, the card has room for {room}")
        self._beside.keep_chain(chain)
        self._verify(_PW3)
        self._put(_DO_CERTIFICATE, certificate)

    def read_back(self) -> bytes:
        """Return the certificate (DER) as it is on the card.

        Raises:
            NotFound: there is none.
            IntegrityFailure: the card holds something else.
        """
        certificate = self._get(_DO_CERTIFICATE)
        if not certificate:
            raise NotFound(f"there is no certificate on the card {self.serial_number}")
        try:
            der.only(certificate, der.SEQUENCE)
        except MalformedRequest as wrong:
            raise IntegrityFailure(f"the card {self.serial_number} holds no whole certificate") from wrong
        return certificate

    def sign(self, message: bytes) -> bytes:
        """Sign with the card's signature key (PSO: COMPUTE DIGITAL SIGNATURE): DER Ecdsa-Sig-Value.

        Raises:
            NotPermitted: the PIN is refused, or has a try less already.
        """
        self._verify(_PW1_SIGN)
        command = CommandAPDU(0, 0x2A, 0x9E, 0x9A, digest(self._algorithm, message), 256)
        return ecdsa_sig_value(self._algorithm, self._done("sign", command).data)

    def released(self, token: str) -> None:
        """Store the token beside the card and its hash on it.

        Raises:
            IllegalTransition: the device was released with another token.
            NotPermitted: the PIN is refused, or has a try less already.
        """
        mark = token_mark(token)
        known = self._mark()
        if known not in (None, mark):
            raise IllegalTransition(f"the card {self.serial_number} was released with another token")
        self._beside.keep_token(token)
        if known is None:
            self._verify(_PW3)
            self._put(_DO_MARK, _MARK + mark)

    # --- what the card holds ---------------------------------------------------------------------------

    def _card(self) -> _Card:
        """Read application related data (DO 6E)."""
        objects = {one.tag: one.value for one in _children(self._get(_DO_APPLICATION), _DO_APPLICATION)}
        objects |= {one.tag: one.value for one in _decoded(objects.get(_DO_DISCRETIONARY, b""))}
        aid, capabilities = objects.get(_DO_AID, b""), objects.get(_DO_CAPABILITIES, b"")
        if len(aid) != 16 or len(capabilities) != 10 or aid[6] < 3:
            raise PolicyRefused("element", "the card is no openpgp card of version 3 or later")
        return _Card(
            serial_number=aid[8:14].hex(),
            certificate_size=int.from_bytes(capabilities[4:6], "big"),
            attributes=objects.get(_DO_ATTRIBUTES, b""),
            capabilities=capabilities[0],
            extended=_takes_extended(objects.get(_DO_HISTORICAL, b"")),
            key_information=objects.get(_DO_KEY_INFORMATION, b""),
        )

    def _choose_algorithm(self) -> None:
        """Set the algorithm attributes of the signature key, if they are others: that takes its key away."""
        wanted = bytes((_ECDSA,)) + der.oid(_CURVES[self._algorithm])[2:]
        card = self._card()
        # A trailing FF asks for the public key with an import (section 4.4.3.10): the same algorithm.
        if card.attributes.removesuffix(b"\xff") == wanted:
            return
        if not card.capabilities & _CHANGEABLE_ATTRIBUTES:
            raise PolicyRefused("element", "the card's key algorithm cannot be changed, and is another")
        self._put(_DO_ATTRIBUTES, wanted)

    def _mark(self) -> bytes | None:
        """Return the hash of the token that the card was released with, or None."""
        octets = self._get(_DO_MARK)
        return octets.removeprefix(_MARK) if octets.startswith(_MARK) else None

    def _refuse_released(self) -> None:
        refuse_released(self._mark(), f"the card {self.serial_number}")

    def _get(self, tag: int) -> bytes:
        """Return a data object's value; nothing if there is none."""
        response = self._transmit(CommandAPDU(0, 0xCA, tag >> 8, tag & 0xFF, le=256))
        if response.sw in _NO_DATA:
            return b""
        if response.sw != OK:
            raise PolicyRefused("element", f"the card does not tell data object {tag:X}: {response.sw:04X}")
        return response.data

    def _put(self, tag: int, value: bytes) -> None:
        self._done(f"store data object {tag:X}", CommandAPDU(0, 0xDA, tag >> 8, tag & 0xFF, value))

    # --- PINs and commands -----------------------------------------------------------------------------

    def _verify(self, reference: int) -> None:
        """Give the card a PIN, unless that could take its last tries."""
        name = "PW1" if reference == _PW1_SIGN else "PW3"
        if reference in self._refused:
            raise NotPermitted(f"the card has refused {name}: it is not sent again")
        status = self._get(_DO_PIN_STATUS)
        left = status[4 if reference == _PW1_SIGN else 6] if len(status) == 7 else 0
        if left < _TRIES:
            raise NotPermitted(
                f"{name} of the card {self.serial_number} has {left} tries left: enter it by hand first"
            )
        if self._get(_DO_KDF) not in (b"", b"\x81\x01\x00"):
            raise PolicyRefused("element", "the card wants its PINs hashed (KDF): switch that off first")
        pin = self._pins[reference].reveal()
        response = self._transmit(CommandAPDU(0, 0x20, 0, reference, pin))
        if response.sw != OK:
            self._refused.add(reference)
            raise NotPermitted(f"the card refuses {name}: {response.sw:04X}; it is not sent again")

    def _done(self, name: str, command: CommandAPDU) -> ResponseAPDU:
        response = self._transmit(command)
        if response.sw != OK:
            raise PolicyRefused("element", f"the card does not {name}: {response.sw:04X}")
        return response

    def _transmit(self, command: CommandAPDU) -> ResponseAPDU:
        """Send a command, in pieces if it is too long for the card, and return its response."""
        pieces = (command,) if self._extended else chained(command)
        responses = relay(self._channel, [Guarded(command=piece.encode()) for piece in pieces])
        if not responses or (len(responses) < len(pieces) and responses[-1][-2:] == b"\x90\x00"):
            raise Unavailable("the card is gone")
        return ResponseAPDU.decode(responses[-1])


def element(place: str, options: Mapping[str, str]) -> OpenPGPElement:
    """Open the card in the channel ``place`` (``pcsc:0``, ``tcp:HOST:PORT``, a third party's).

    Options are ``pin`` and ``admin-pin`` (files with PW1 and PW3), ``beside`` and ``algorithm``.

    Raises:
        Refusal: whatever channel and card have against it.
    """
    allow(options, "pin", "admin-pin", "beside", "algorithm")
    pin = read_pin(options.get("pin"), "pin")
    admin_pin = read_pin(options.get("admin-pin"), "admin-pin")
    algorithm = algorithm_of(options, _CURVES)
    with ExitStack() as stack:
        made = OpenPGPElement(
            stack.enter_context(opened_channel(place)),
            pin=pin,
            admin_pin=admin_pin,
            beside=options.get("beside"),
            algorithm=algorithm,
        )
        made.when_closed = stack.pop_all().close
    return made


def _takes_extended(historical: bytes) -> bool:
    """Return what the card capabilities in historical bytes say (ISO/IEC 7816-4 sections 8.1.1, 12.1.1).

    Category 00: data objects in COMPACT-TLV, then three octets of status; the third octet of object 7 has
    the bit.
    """
    at, end = 1, len(historical) - 3
    while historical[:1] == b"\0" and at < end:
        tag, size = historical[at] >> 4, historical[at] & 0x0F
        value = historical[at + 1 : at + 1 + size]
        if tag == 7:
            return len(value) == 3 and bool(value[2] & 0x40)
        at += 1 + size
    return False


def _children(octets: bytes, tag: int) -> tuple[tlv.TLV, ...]:
    """Return what stands in a template; cards tell it with its tag or without."""
    objects = _decoded(octets)
    if len(objects) == 1 and objects[0].tag == tag:
        return _decoded(objects[0].value)
    return objects


def _decoded(octets: bytes) -> tuple[tlv.TLV, ...]:
    try:
        return tlv.decode(octets)
    except MalformedRequest as wrong:
        raise IntegrityFailure(f"the card's data objects cannot be read: {wrong}") from wrong
