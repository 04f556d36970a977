"""Targets of ``element``, and of what reads chips' answers: APDUs, SCP03, TPM structures, cards, tokens."""

import functools
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark import errors
from birthmark.adapters.ecpoint import public_part, rsa_public_part, signature_value
from birthmark.edge.station.elements.atecc_commands import crc16, decode_answer
from birthmark.edge.station.elements.openpgp import OpenPGPElement
from birthmark.edge.station.elements.tpm import template
from birthmark.element import catalogue, profiles, tlv
from birthmark.element.apdu import Batch, CardChannel, CommandAPDU, ResponseAPDU, relay
from birthmark.element.card import VirtualElement
from birthmark.element.card_data import parse_stored
from birthmark.element.card_faults import Fault
from birthmark.element.card_keys import Dishonesty
from birthmark.element.card_state import StatusError, decode_state, encode_state
from birthmark.element.keyset import KeyBlockForm, KeyEntry, decode_put_key, decrypt_key, encode_put_key
from birthmark.element.profiles import TPMProfile
from birthmark.element.scp03 import (
    Challenge,
    SecureChannel,
    SecurityLevel,
    establish,
    initialize_update,
    initialize_update_response,
    read_challenge,
)
from birthmark.element.tpm import (
    Attest,
    Public,
    Signature,
    check_certified,
    check_iak,
    check_idevid,
)
from birthmark.element.tpm_credential import make_credential
from birthmark.element.tpm_endorsement import check_endorsement
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes
from tests.element.hosts import element_of, get_data, numbered, set_of
from tests.element.vectors import recorded_sessions
from tests.fuzz.mutators import Shape
from tests.fuzz.target import Target, halves, joined, pieces, read_whole, text
from tests.pki.sample import private_key, spki
from tests.support.injecting import Bench, Numbers, profile_of

P256 = KeyAlgorithm.EC_P256
NOW = datetime(2026, 11, 22, tzinfo=UTC)

# --- TPM 2.0


def public_of(algorithm: KeyAlgorithm, *, restricted: bool) -> bytes:
    """TPMT_PUBLIC of a key that a TPM made from our template."""
    if algorithm is P256:
        found = spki(algorithm, "tpm")[-64:]
        point = b"\0\x20" + found[:32] + b"\0\x20" + found[32:]
        return template(algorithm, restricted=restricted)[:-4] + point
    key = private_key(algorithm, "tpm")
    assert isinstance(key, rsa.RSAPrivateKey)
    modulus = key.public_key().public_numbers().n.to_bytes(256, "big")
    return template(algorithm, restricted=restricted)[:-2] + b"\x01\0" + modulus


ATTEST = b"\xffTCG\x80\x17" + b"\0\x01s\0\x01n" + bytes(25) + b"\0\x01o\0\x01q"
ECDSA, RSASSA = b"\0\x18\0\x0b\0\x01r\0\x01s", b"\0\x14\0\x0b\0\x01r"


def _public(data: bytes) -> None:
    """A key that a TPM shows, used for everything a key is used for."""
    found = Public.decode(data)
    _ = (found.name, found.subject_public_key_info)
    for check in (check_iak, check_idevid):
        check(found)


def _public_seeds() -> Iterator[bytes]:
    # Neither check lets a key of the other kind pass: the seeds are read, and that is what counts.
    for algorithm in (P256, KeyAlgorithm.RSA_2048):
        yield public_of(algorithm, restricted=True)
        yield public_of(algorithm, restricted=False)


def _certified(data: bytes) -> None:
    """An attestation as it comes from a station: none of it is believed."""
    iak, certified, attest, signature = pieces(data, 4)
    read = Attest.decode(attest)
    check_certified(
        iak=Public.decode(iak),
        certified=Public.decode(certified),
        attest=read,
        signature=Signature.decode(signature),
        nonce=read.extra_data,
    )


def _certified_seeds() -> Iterator[bytes]:
    for algorithm, signature in ((P256, ECDSA), (KeyAlgorithm.RSA_2048, RSASSA)):
        iak, identity = (public_of(algorithm, restricted=one) for one in (True, False))
        name = Public.decode(identity).name
        attest = (
            b"\xffTCG\x80\x17\0\x01s\0\x01n" + bytes(25) + len(name).to_bytes(2, "big") + name + b"\0\x01q"
        )
        yield joined(iak, identity, attest, signature)


@functools.cache
def _maker() -> tuple[TPMProfile, bytes]:
    """A maker of TPMs, and a certificate of one's endorsement key."""
    authority, name = (
        private_key(P256, "maker"),
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "maker")]),
    )
    kinds = [*x509.KeyUsage.__init__.__annotations__]
    usage = [name for name in kinds if name != "return"]

    def made(subject: x509.Name, key: KeyAlgorithm, whose: str, *, ca: bool) -> bytes:
        allowed = {one: one in (("key_cert_sign", "crl_sign") if ca else ("key_agreement",)) for one in usage}
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(private_key(key, whose).public_key())
            .serial_number(4711)
            .not_valid_before(NOW - timedelta(days=1))
            .not_valid_after(NOW + timedelta(days=1))
            .add_extension(x509.KeyUsage(**allowed), critical=True)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
        )
        if not ca:
            purpose = x509.ObjectIdentifier("2.23.133.8.1")
            arcs = enumerate(("id:00001014", "swtpm", "id:1"), start=1)
            maker = [
                x509.NameAttribute(x509.ObjectIdentifier(f"2.23.133.2.{arc}"), value) for arc, value in arcs
            ]
            alternative = x509.SubjectAlternativeName([x509.DirectoryName(x509.Name(maker))])
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            builder = builder.add_extension(alternative, critical=True)
        return builder.sign(authority, hashes.SHA256()).public_bytes(Encoding.DER)

    anchor = made(name, P256, "maker", ca=True)
    return TPMProfile(name="maker", sha256="", anchors=(anchor,)), made(x509.Name([]), P256, "tpm", ca=False)


def _endorsement(data: bytes) -> None:
    certificate, *chain = pieces(data, 2)
    found = check_endorsement(_maker()[0], certificate, [one for one in chain if one], NOW)
    make_credential(found.key, b"name", SecretBytes(bytes(32)), Numbers())


def _endorsement_seeds() -> Iterator[bytes]:
    profile, certificate = _maker()
    yield joined(certificate, b"")
    yield joined(certificate, profile.anchors[0])


# --- GlobalPlatform


def _responses_of(bench: Bench) -> list[bytes]:
    found: list[bytes] = []

    def listening(channel: CardChannel, batch: Batch) -> list[bytes]:
        responses = relay(channel, batch)
        found.extend(responses)
        return responses

    bench.run(by=listening)
    return found


INJECTED = {
    0: profile_of(i=0x70, tags=(0x53,)),
    1: profile_of(i=0x61, key_size=32, tags=(0x53,)),
    2: profile_of(i=0x70, tags=(), replacement=profiles.Replacement.REPLACE, initial_kvn=0x31),
    3: profile_of(i=0x60, initial_kvn=0, tags=()),
}


def _injection(data: bytes) -> None:
    """An injection of which the station changes any responses in any way.

    What is released holds the final set all the same.
    """
    chosen, changes = halves(data, len(INJECTED))
    bench = Bench(INJECTED[chosen])
    pending = {one[0]: one[1:] for one in read_whole(changes) if one}
    count = 0

    def changing(channel: CardChannel, batch: Batch) -> list[bytes]:
        nonlocal count
        responses = []
        for response in relay(channel, batch):
            said = pending.get(count)
            count += 1
            responses.append(response if said is None else _changed(response, said))
        return responses

    bench.run(by=changing)
    assert bench.holds_only_the_final_set(), "an element was released that does not hold the final set"


def _changed(response: bytes, how: bytes) -> bytes:
    """Replace a response by what is given, or (first octet 0) flip bits of it at a place."""
    if len(how) >= 3 and how[0] == 0 and response:
        at = how[1] % len(response)
        return response[:at] + bytes((response[at] ^ how[2],)) + response[at + 1 :]
    return how


def _injection_seeds() -> Iterator[bytes]:
    for chosen, profile in INJECTED.items():
        yield bytes((chosen,))
        yield bytes((chosen, 4, 1, 0, 10, 0))  # a change that changes nothing
        for number, response in enumerate(_responses_of(Bench(profile))[:3]):
            yield bytes((chosen, len(response) + 1, number)) + response


def _challenge(data: bytes) -> None:
    found = read_challenge(data)
    establish(set_of(0x40), found.mode, bytes(found.mode), found, b"\xa0")


def _challenge_seeds() -> Iterator[bytes]:
    yield from (
        initialize_update_response(
            Challenge(
                key_diversification_data=bytes(10),
                kvn=0x30,
                i=0x70 if counter else 0x60,
                card_challenge=bytes(8),
                card_cryptogram=bytes(8),
                sequence_counter=counter,
            )
        )
        for counter in (b"\0\0\x01", None)
    )


@functools.cache
def _channel() -> tuple[SecureChannel, list[bytes]]:
    """A channel that waits for a response, and those that there were in recorded sessions."""
    recorded = recorded_sessions()[0]
    session = recorded.establish()
    _, channel = session.external_authenticate(SecurityLevel.FULL)
    said = [
        exchange.response.encode()
        for one in recorded_sessions()
        for exchange in one.exchanges
        if exchange.response is not None
    ]
    return channel, said


def _unwrap(data: bytes) -> None:
    """What an element answers within a session: nearly all fails at its R-MAC, and all else at its level."""
    _channel()[0].unwrap(ResponseAPDU.decode(data))


def _card(data: bytes) -> None:
    """An element of ours that is sent anything."""
    element = element_of()
    for command in read_whole(data):
        answer = element.process(command)
        assert len(answer) >= 2


def _card_seeds() -> Iterator[bytes]:
    select = CommandAPDU(0, 0xA4, 4, 0, bytes.fromhex("a000000151000000"), 256)
    update = initialize_update(0x30, bytes(8))
    for commands in ([select, get_data(0xE0)], [update], [select, get_data(0x66), get_data(0x9F7F)]):
        yield b"".join(bytes((len(one.encode()),)) + one.encode() for one in commands)


def _put_key(data: bytes) -> None:
    _, keys = decode_put_key(data)
    for key in keys:
        decrypt_key(SecretBytes(bytes(16)), key.ciphertext, key.size)


def _put_key_seeds() -> Iterator[bytes]:
    for form in KeyBlockForm:
        yield encode_put_key(0x31, set_of(1).wrap(set_of(7)), form)


def _objects(data: bytes) -> None:
    for found in tlv.decode(data):
        if found.tag >> 8 & 0x20 or (found.tag < 0x100 and found.tag & 0x20):
            found.children()
    tlv.decode_one(data, 0x6E)


def _stored(data: bytes) -> None:
    structure, rest = halves(data, 4)
    try:
        parse_stored(rest, structure << 3)
    except StatusError:
        raise errors.MalformedRequest("the element refuses it") from None


def _key_information(data: bytes) -> object:
    bare, rest = halves(data, 2)
    return tlv.read_key_information(rest, bare=bool(bare))


def _key_information_seeds() -> Iterator[bytes]:
    entries = [KeyEntry(kvn=0x30, kid=kid, key_type=0x88, size=16) for kid in (1, 2, 3)]
    yield b"\0" + tlv.encode_key_information(entries)
    yield b"\x01" + tlv.encode_key_information(entries, bare=True)


def _virtual_state(data: bytes) -> None:
    state = decode_state(SecretBytes(data))
    element = VirtualElement(state, entropy=numbered())
    element.process(get_data(0xE0).encode())
    element.process(initialize_update(0x30, bytes(8)).encode())


ELEMENT_PROFILES = sorted(Path(catalogue.__file__).parent.glob("packaged/*.toml"))


def _profile_seeds() -> Iterator[bytes]:
    for file in ELEMENT_PROFILES:
        yield file.read_bytes().replace(f'"{file.stem}"'.encode(), b'"own"', 1)


# --- chips of others


class _Saying:
    """A channel to a card that says what it is told to, and then nothing more."""

    def __init__(self, responses: Sequence[bytes]) -> None:
        self._left = list(responses)

    def transmit(self, command: bytes) -> bytes:
        """Return the next."""
        if not self._left:
            raise errors.Unavailable("the card is gone")
        return self._left.pop(0)

    def reset(self) -> None:
        """Nothing changes."""


@functools.cache
def _beside() -> str:
    return tempfile.mkdtemp(prefix="birthmark-fuzz-")


PIN = SecretBytes(b"123456")
_APPLICATION = tlv.encode(
    0x6E,
    tlv.encode(0x4F, bytes.fromhex("d2760001240103040006123456780000"))
    + tlv.encode(0x5F52, bytes.fromhex("0073000040059000"))
    + tlv.encode(
        0x73,
        tlv.encode(0xC0, bytes.fromhex("7d000bfe080000ff0000"))
        + tlv.encode(0xC1, bytes.fromhex("132a8648ce3d030107")),
    ),
)


def _openpgp(data: bytes) -> None:
    """A card that answers everything that is asked of it as the input says."""
    card = OpenPGPElement(_Saying(read_whole(data, 2)), pin=PIN, admin_pin=PIN, beside=_beside())
    try:
        with_refusals = (
            card.read_back,
            lambda: card.certification_request("D1"),
            lambda: card.sign(b"message"),
            lambda: card.install(certificate=b"0\x01\0", chain=(), private_key=None),
        )
        for use in with_refusals:
            try:
                use()
            except errors.Refusal:
                continue
    finally:
        card.close()


def _openpgp_seeds() -> Iterator[bytes]:
    said = [b"\x90\x00", _APPLICATION + b"\x90\x00"]
    point = tlv.encode(0x7F49, tlv.encode(0x86, spki(P256, "card")[-65:])) + b"\x90\x00"
    status = bytes.fromhex("00202020030003") + b"\x90\x00"
    more = [b"\x6a\x88", b"\x30\x00\x90\x00", b"\x6a\x88", status, b"\x90\x00", point]
    for found in (said, [*said, *more], [*said, *more, *more]):
        yield b"".join(len(one).to_bytes(2, "big") + one for one in found)


def _atecc(data: bytes) -> object:
    chosen, packet = halves(data, 2)
    # Every other input gets its CRC made right, so that what lies behind it is read, too.
    if chosen and len(packet) > 3 and 4 <= packet[0] <= len(packet):
        count = packet[0]
        packet = packet[: count - 2] + crc16(packet[: count - 2]) + packet[count:]
    return decode_answer(packet)


def _token_key(data: bytes) -> None:
    first, second, signature = pieces(data, 3)
    kind, first = halves(first, 2)
    part = (rsa_public_part if kind else public_part)(first, second)
    signature_value(part.algorithm, signature)


def _token_key_seeds() -> Iterator[bytes]:
    p256, ed25519 = bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06032b6570")
    key = private_key(KeyAlgorithm.RSA_2048, "token")
    assert isinstance(key, rsa.RSAPrivateKey)
    yield joined(
        b"\x01" + key.public_key().public_numbers().n.to_bytes(256, "big"), b"\x01\0\x01", bytes(256)
    )
    yield joined(b"\0" + p256, b"\x04\x41" + spki(P256, "token")[-65:], b"\1" * 64)
    yield joined(b"\0" + ed25519, b"\x04\x20" + spki(KeyAlgorithm.ED25519, "token")[-32:], bytes(64))


ANY = (errors.Refusal,)

ELEMENT_TARGETS = (
    Target(
        name="tpm-public",
        run=_public,
        seeds=_public_seeds,
        refuses=(errors.MalformedRequest, errors.PolicyRefused),
        refused_seeds=True,
    ),
    Target(
        name="tpm-certify",
        run=_certified,
        seeds=_certified_seeds,
        refuses=(errors.MalformedRequest, errors.PolicyRefused),
        refused_seeds=True,
    ),
    Target(name="tpm-attest", run=Attest.decode, seeds=lambda: [ATTEST]),
    Target(name="tpm-signature", run=Signature.decode, seeds=lambda: [ECDSA, RSASSA]),
    Target(
        name="tpm-endorsement",
        run=_endorsement,
        seeds=_endorsement_seeds,
        refuses=(errors.MalformedRequest, errors.PolicyRefused),
    ),
    Target(
        name="secure-element-responses",
        run=_injection,
        seeds=_injection_seeds,
        refuses=(errors.ProofFailed, errors.Interrupted),
    ),
    Target(name="scp03-challenge", run=_challenge, seeds=_challenge_seeds),
    Target(
        name="scp03-response",
        run=_unwrap,
        seeds=lambda: [*_channel()[1], b"\x6a\x88"],
        refuses=(errors.MalformedRequest, errors.ProofFailed),
        refused_seeds=True,
    ),
    Target(name="command-apdu", run=CommandAPDU.decode, seeds=lambda: [get_data(0xE0).encode()]),
    Target(
        name="response-apdu",
        run=ResponseAPDU.decode,
        seeds=lambda: [b"\x90\x00", b"\x01\x90\x00"],
        longest=70000,
    ),
    Target(name="tlv", run=_objects, seeds=lambda: [b"\x6e\x04\x4f\x02\x01\x02"]),
    Target(name="key-information", run=_key_information, seeds=_key_information_seeds),
    Target(name="put-key", run=_put_key, seeds=_put_key_seeds),
    Target(name="virtual-card", run=_card, seeds=_card_seeds),
    Target(
        name="virtual-card-objects",
        run=_stored,
        seeds=lambda: [b"\x01\0\x71\x02\x02\x03", b"\x02\x53\x01\x00"],
    ),
    Target(
        name="virtual-card-file",
        run=_virtual_state,
        seeds=lambda: [encode_state(element_of().state).reveal()],
        shape=Shape.JSON,
    ),
    Target(name="card-fault", run=text(Fault.parse), seeds=lambda: [b"tear-after:5", b"dead-after:1:D8"]),
    Target(name="card-lie", run=text(Dishonesty.parse), seeds=lambda: [b"echo", b"garble:enc,dek"]),
    Target(
        name="element-profile",
        run=lambda data: catalogue.parse(data, "own.toml"),
        seeds=_profile_seeds,
        longest=16384,
    ),
    Target(name="openpgp-card", run=_openpgp, seeds=_openpgp_seeds, refuses=ANY),
    Target(name="atecc-answer", run=_atecc, seeds=lambda: [b"\x01\x07\0\0\x60\x03\0\0", b"\x01\x04\0\0\0"]),
    Target(
        name="token-public-key", run=_token_key, seeds=_token_key_seeds, refuses=(errors.IntegrityFailure,)
    ),
)
