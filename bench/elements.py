"""What it costs to put a key set into a secure element and have it proved (SPEC D1 to D4).

One injection with its gate is the product's own dialogue, from the first command to the evidence: nothing is
left out but the network and the database; ``whole_line`` has the database, too.  Two shares are told apart:
the service's (everything the dialogue computes, key store included) and the wire's (the element, its reader
and what lies between).  The element is the virtual one, so the wire's share says what carrying costs, not
what a chip does.
"""

import importlib.util
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key

from bench.installation import installation
from bench.measure import percentile
from birthmark import app, errors
from birthmark.adapters.pkcs11 import PKCS11KeyStore
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.edge.application import Application
from birthmark.element.apdu import CardChannel, relay
from birthmark.element.card import VirtualElement
from birthmark.element.card_faults import ElementChannel
from birthmark.element.card_state import Traits, fresh
from birthmark.element.catalogue import load
from birthmark.element.diversification import Derivation, Scheme
from birthmark.element.injection import Evidence, KeySetPhase, KeySetState, Order, inject
from birthmark.element.keyset import SoftwareKeys
from birthmark.element.profiles import DerivedKeys, ElementProfile, StoredObject
from birthmark.pki.attributes import SecretKind
from birthmark.pki.certificates import fingerprint, from_pem
from birthmark.pki.keys import KeyLabel
from birthmark.pki.possession import proof_message
from birthmark.ports import KeyStore, carry
from birthmark.secret import SecretBytes
from birthmark.services.acts import Caller, recognise
from birthmark.services.dialogues import Commands, Responses, key_set
from birthmark.services.injection import InjectRequest
from birthmark.services.issue import Issued, IssueRequest
from birthmark.services.prove import ProveRequest, Released
from birthmark.settings import load as load_settings
from tools import pcsc
from tools.programs import find

__all__ = ["Figures", "Line", "measure", "text", "whole_line"]

MAKER, OURS, TRANSPORT = KeyLabel("maker"), KeyLabel("ours"), KeyLabel("transport")
CERTIFICATE = bytes(range(256)) * 2
"""As long as a device's certificate; what is in it makes no difference to an element."""
WARM_UP = 5
"""Injections that are not counted."""
_SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One line: a key store, a way to the element, a size of keys."""

    keys: str
    wire: str
    size: int
    """Octets of each key."""
    injections: int
    service: list[float]
    """Milliseconds of each injection."""
    carried: list[float]
    commands: int
    """Commands of one injection."""

    @property
    def total(self) -> list[float]:
        """Milliseconds of each injection, both shares."""
        return [one + other for one, other in zip(self.service, self.carried, strict=True)]

    @property
    def per_core(self) -> float:
        """Injections a second that one core of the service does."""
        return 1000 * len(self.service) / sum(self.service)

    def document(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        shares = {"service": self.service, "wire": self.carried, "total": self.total}
        return {
            "keys": self.keys,
            "wire": self.wire,
            "key_octets": self.size,
            "injections": self.injections,
            "commands": self.commands,
            "per_second_and_core": self.per_core,
            **{f"{name}_p50_ms": statistics.median(times) for name, times in shares.items()},
            **{f"{name}_p99_ms": percentile(times, 99) for name, times in shares.items()},
        }


@contextmanager
def _software(folder: Path) -> Iterator[KeyStore]:
    keys = SoftwareKeyStore.open(folder / "keys", SecretBytes(b"opens nothing but a benchmark"))
    yield keys
    keys.close()


@contextmanager
def _softhsm(folder: Path) -> Iterator[KeyStore]:
    """Make a token that is gone with the folder."""
    (folder / "tokens").mkdir()
    configuration = folder / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {folder / 'tokens'}\nobjectstore.backend = file\nlog.level = ERROR\n"
    )
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    try:
        made = [
            "softhsm2-util",
            "--init-token",
            "--free",
            "--label",
            "bench",
            "--so-pin",
            "1234",
            "--pin",
            "1234",
        ]
        subprocess.run(made, check=True, capture_output=True)
        keys = PKCS11KeyStore.open(_SOFTHSM, "bench", SecretBytes(b"1234"))
        try:
            yield keys
        finally:
            keys.close()
    finally:
        if before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = before


def _masters(keys: KeyStore, size: int, theirs: KeyLabel, ours: KeyLabel) -> SecretBytes:
    """Make our master key in the store and bring a maker's into it; return the maker's."""
    maker = SecretBytes(os.urandom(size))
    public = load_der_public_key(keys.generate_transport(TRANSPORT))
    assert isinstance(public, rsa.RSAPublicKey)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303  # the form every token has
    kind = SecretKind(f"diversify-aes-{size * 8}")
    keys.accept_secret(theirs, kind, public.encrypt(maker.reveal(), oaep), TRANSPORT)
    keys.generate_secret(ours, kind)
    return maker


def _profile(size: int) -> ElementProfile:
    profile = load("scp03-generic")
    assert isinstance(profile, ElementProfile)
    assert isinstance(profile.initial, DerivedKeys)
    return replace(
        profile,
        key_size=size,
        initial=replace(profile.initial, master=MAKER),
        final=replace(profile.final, master=OURS),
        objects=(StoredObject(tag=0x7F21, content="certificate"),),
    )


def _element(maker: SecretBytes, kdd: bytes) -> VirtualElement:
    initial = SoftwareKeys.derived(maker, Derivation(scheme=Scheme.KDF3, context=kdd))
    return VirtualElement(
        fresh(initial, key_diversification_data=kdd, kvn=0x30, traits=Traits(i=0x70)), entropy=os.urandom
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timed:
    """One injection."""

    evidence: Evidence
    service: float
    """Milliseconds."""
    wire: float
    commands: int


def _injection(keys: KeyStore, profile: ElementProfile, card: CardChannel) -> _Timed:
    """Carry one out, and tell the two shares apart."""
    order = Order(
        profile=profile,
        state=KeySetState(
            phase=KeySetPhase.ABSENT,
            key_diversification_data=b"",
            initial_counter=-1,
            final_counter=-1,
            failures=0,
        ),
        initial_keys=lambda kdd: key_set(keys, profile.initial, "bench", kdd),
        final_keys=lambda kdd: key_set(keys, profile.final, "bench", kdd),
        contents={0x7F21: CERTIFICATE},
        token=os.urandom,
    )
    clock = time.perf_counter
    service = carried = 0.0
    commands = 0
    dialogue = inject(order)
    begun = clock()
    step = next(dialogue)
    while True:
        service += clock() - begun
        commands += len(step.batch)
        begun = clock()
        responses = relay(card, step.batch)
        carried += clock() - begun
        begun = clock()
        try:
            step = dialogue.send(responses)
        except StopIteration as done:
            service += clock() - begun
            evidence, _ = done.value
            return _Timed(evidence=evidence, service=service * 1000, wire=carried * 1000, commands=commands)


Insert = Callable[[VirtualElement], CardChannel]


@contextmanager
def _in_process() -> Iterator[Insert]:
    yield ElementChannel


class _Slot:
    """What is in the reader now."""

    dead = False

    def __init__(self) -> None:
        self.element: VirtualElement | None = None

    def transmit(self, command: bytes) -> bytes:
        """Have the element carry a command out."""
        if self.element is None:
            raise errors.Unavailable("the reader is empty")
        return self.element.process(command)

    def reset(self) -> None:
        """Power it off and on."""
        if self.element is not None:
            self.element.reset()


@contextmanager
def _through_pcscd() -> Iterator[Insert]:
    """Put each element into the one reader of a pcscd of our own, and speak to it over PC/SC."""
    from birthmark.edge.station.elements.pcsc import PCSCChannel  # noqa: PLC0415  # loads pyscard
    from birthmark.edge.station.elements.virtual import on_vpcd  # noqa: PLC0415  # goes with it

    with pcsc.running([_free_port()]) as daemon, ExitStack() as stack:
        slot, (reader, *_) = _Slot(), daemon.readers
        stack.enter_context(on_vpcd(slot, "127.0.0.1", reader.port))
        channel = PCSCChannel(reader.name)
        stack.callback(channel.close)

        def insert(element: VirtualElement) -> CardChannel:
            slot.element = element
            channel.reset()
            return channel

        yield insert


def _free_port() -> int:
    """Return a port that is free, and the one after it."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            with suppress(OSError):
                second.bind(("127.0.0.1", port + 1))
                return port


def measure(injections: int, sizes: tuple[int, ...] = (16, 32)) -> list[Figures]:
    """Measure every combination that this machine has."""
    stores: dict[str, Callable[[Path], AbstractContextManager[KeyStore]]] = {"software": _software}
    if find("softhsm2-util") is not None and _SOFTHSM.exists():
        stores["SoftHSM2"] = _softhsm
    ways: dict[str, Callable[[], AbstractContextManager[Insert]]] = {"in process": _in_process}
    if (missing := _no_pcscd()) is None:
        ways["pcscd"] = _through_pcscd
    else:
        print(f"secure elements are not measured through pcscd: {missing}", file=sys.stderr)
    done = []
    for way, opened_way in ways.items():
        with opened_way() as insert:
            for name, opened in stores.items():
                for size in sizes:
                    timed = _in_store(opened, size, insert, injections)
                    done.append(
                        Figures(
                            keys=name,
                            wire=way,
                            size=size,
                            injections=injections,
                            service=[one.service for one in timed],
                            carried=[one.wire for one in timed],
                            commands=timed[-1].commands,
                        )
                    )
    return done


def _in_store(
    opened: Callable[[Path], AbstractContextManager[KeyStore]], size: int, insert: Insert, injections: int
) -> list[_Timed]:
    with tempfile.TemporaryDirectory(prefix="birthmark-bench-") as folder, opened(Path(folder)) as keys:
        maker = _masters(keys, size, MAKER, OURS)
        return _sitting(keys, _profile(size), maker, insert, injections)


def _no_pcscd() -> str | None:
    try:
        found = importlib.util.find_spec("smartcard.scard")
    except ImportError:
        found = None
    return pcsc.wanting() if found is not None else "pyscard is not installed"


def _sitting(
    keys: KeyStore, profile: ElementProfile, maker: SecretBytes, insert: Insert, injections: int
) -> list[_Timed]:
    done = []
    for number in range(injections + WARM_UP):
        card = insert(_element(maker, number.to_bytes(10, "big")))
        done.append(_injection(keys, profile, card))
        assert done[-1].evidence.put_key_answered
    return done[WARM_UP:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """Whole devices on one core: certificate, key set, gate and release, each step durable."""

    devices: int
    seconds: float
    wire_seconds: float
    """Of it the elements' own."""

    def document(self) -> dict[str, Any]:
        """Return it for the JSON file."""
        return {
            "devices": self.devices,
            "devices_per_second": self.devices / self.seconds,
            "devices_per_second_without_the_elements": self.devices / (self.seconds - self.wire_seconds),
        }


def whole_line(devices: int) -> Line:
    """Make devices one after the other: the use cases on SQLite, no network between."""
    with installation("sqlite") as site:
        os.chdir(site.folder)
        application = app.build(load_settings(site.settings))
        try:
            profile = load("scp03-generic")
            assert isinstance(profile, ElementProfile)
            assert isinstance(profile.initial, DerivedKeys)
            labels = (KeyLabel(profile.initial.master), KeyLabel(profile.final.master))
            maker = _masters(application.keys, profile.key_size, *labels)
            for label in labels:
                site.command(
                    "keys", "adopt", label, "--purpose", "master-diversification", "--users", "bench"
                )
            site.command(
                *("run", "open", "ELEMENTS", "--product", "vehicle", "--quantity", "100000"),
                *("--hardware-id-kind", "serial", "--station", "ST01", "--element", profile.name),
            )
            certificate = (site.folder / "stations" / "ST01" / "station.crt").read_text()
            caller = carry(application.store, recognise(from_pem(certificate)[0]))
            _device(application, caller, maker, "WARM-UP")
            began, wire = time.perf_counter(), 0.0
            for number in range(devices):
                wire += _device(application, caller, maker, f"D{number}")
            seconds = time.perf_counter() - began
        finally:
            application.close()
            os.chdir("/")
    return Line(devices=devices, seconds=seconds, wire_seconds=wire)


def _device(application: Application, caller: Caller, maker: SecretBytes, name: str) -> float:
    """Make one device; return the seconds its element and its own signature took."""
    began = time.perf_counter()
    key = ec.generate_private_key(ec.SECP256R1())
    named = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    request = x509.CertificateSigningRequestBuilder().subject_name(named).sign(key, hashes.SHA256())
    card = ElementChannel(_element(maker, name.encode().ljust(10)[:10]))
    wire = time.perf_counter() - began
    asked = IssueRequest(hardware_id=name, csr=request.public_bytes(Encoding.DER), key=f"issue-{name}")
    (issued,) = carry(application.store, application.issue(caller, "ELEMENTS", [asked]))
    assert isinstance(issued, Issued), issued
    commands = issued.element
    assert commands is not None
    while True:
        began = time.perf_counter()
        said = Responses(step=commands.step, responses=tuple(relay(card, commands.batch)))
        wire += time.perf_counter() - began
        if commands.last:
            break
        step = InjectRequest(attempt=issued.attempt, element=said)
        (following,) = carry(application.store, application.inject(caller, [step]))
        assert isinstance(following, Commands), following
        commands = following
    began = time.perf_counter()
    read_back = fingerprint(issued.certificate)
    message = proof_message(attempt=issued.attempt, certificate_sha256=read_back, challenge=issued.challenge)
    signature = key.sign(message, ec.ECDSA(hashes.SHA256()))
    wire += time.perf_counter() - began
    proof = ProveRequest(
        attempt=issued.attempt,
        certificate_sha256=read_back,
        signature=signature,
        element=said,
        key=f"prove-{name}",
    )
    (released,) = carry(application.store, application.prove(caller, [proof]))
    assert isinstance(released, Released), released
    return wire


def text(figures: list[Figures], line: Line) -> str:
    """Return the table."""
    head = (
        f"{'keys':9} {'way':10} {'AES':>4} {'APDUs':>5} {'service ms':>15} {'wire ms':>15} {'both ms':>15}"
        f" {'/s a core':>10}\n{'':31} {'p50    p99':>15} {'p50    p99':>15} {'p50    p99':>15}"
    )
    lines = []
    for one in figures:
        found = one.document()
        shares = " ".join(
            f"{found[f'{share}_p50_ms']:8.2f}{found[f'{share}_p99_ms']:7.2f}"
            for share in ("service", "wire", "total")
        )
        lines.append(
            f"{one.keys:9} {one.wire:10} {one.size * 8:4} {one.commands:5} {shares} {one.per_core:10.0f}"
        )
    whole = line.document()
    lines.append(
        f"\nwhole devices (certificate, key set, gate, release; SQLite, software keys, one at a time):"
        f" {whole['devices_per_second']:.0f}/s, {whole['devices_per_second_without_the_elements']:.0f}/s"
        " without what the elements themselves take"
    )
    return "\n".join([head, *lines])
