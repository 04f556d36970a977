"""Devices that hold their key in a chip, through the real line: from nothing to release, lied about, cut off.

Chips: a simulated ATECC, an OpenPGP card of others, a SoftHSM token.  The service is the program that is
shipped, the station its client; what each element promises by itself is for
``tests/edge/station/test_conformance.py``.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path

import pytest
from cryptography import x509

from birthmark import errors
from birthmark.edge.station import DeviceElement, Release, Station
from birthmark.pki.certificates import fingerprint
from birthmark.secret import SecretBytes
from tests.support.benches import ATECCBench, OpenPGPBench, PKCS11Bench
from tests.support.server import RUN, RealmDirectory, Server, birthmark, copy_realm

OnChip = ATECCBench | OpenPGPBench | PKCS11Bench
BENCHES: dict[str, Callable[[Path], OnChip]] = {
    "atecc": ATECCBench,
    "openpgp": OpenPGPBench,
    "pkcs11": PKCS11Bench,
}


def on_the_bench(made: OnChip) -> AbstractContextManager[OnChip]:
    """A bench, entered if it has to be."""
    return nullcontext(made) if isinstance(made, ATECCBench) else made


@pytest.fixture(scope="module")
def realm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealmDirectory]:
    made = copy_realm(tmp_path_factory.mktemp("elements") / "realm")
    with Server(realm=made):
        yield made


@pytest.fixture
def station(realm: RealmDirectory) -> Iterator[Station]:
    with Station(realm.station()) as client:
        yield client


@pytest.fixture(params=list(BENCHES))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def bench(kind: str, tmp_path: Path) -> Iterator[OnChip]:
    with on_the_bench(BENCHES[kind](tmp_path)) as made:
        yield made


class Between:
    """An element, and what somebody does to its device between installing and proving."""

    def __init__(self, element: DeviceElement, deed: Callable[[bytes], None]) -> None:
        self._element = element
        self._deed = deed
        self.certification_request = element.certification_request
        self.read_back = element.read_back
        self.sign = element.sign
        self.released = element.released

    def install(self, *, certificate: bytes, chain: Sequence[bytes], private_key: SecretBytes | None) -> None:
        self._element.install(certificate=certificate, chain=chain, private_key=private_key)
        self._deed(certificate)


def another_certificate(certificate: bytes) -> bytes:
    """The same, with one bit of its signature turned over."""
    return certificate[:-1] + bytes((certificate[-1] ^ 1,))


def test_from_nothing_to_its_release(station: Station, bench: OnChip, kind: str) -> None:
    device = bench.open()
    release = station.provision(RUN, f"FIRST-{kind}".upper(), device)
    certificate = device.read_back()
    assert fingerprint(certificate) == release.certificate_sha256
    assert station.device(release.device).state == "released"
    bench.power_cut(device)
    device = bench.open()
    assert device.read_back() == certificate
    with pytest.raises(errors.IllegalTransition, match="is released: its identity stays"):
        station.provision(RUN, f"FIRST-{kind}".upper(), device)
    with pytest.raises(errors.IllegalTransition, match="is released: its identity stays"):
        station.provision(RUN, f"SECOND-{kind}".upper(), device)
    assert device.read_back() == certificate
    device.close()


def test_a_device_that_signs_with_another_key_is_held(station: Station, bench: OnChip, kind: str) -> None:
    name = f"SWAPPED-{kind}".upper()
    device = bench.open()
    with pytest.raises(errors.ProofFailed, match="does not verify with the certified key"):
        station.provision(RUN, name, Between(device, lambda _: bench.replace_key()))
    assert station.device(f"serial:{name}").state == "held"
    # Not released: the chip says so itself.
    assert device.certification_request(name)
    device.close()


def test_a_certificate_that_was_altered_after_its_installation_holds_the_device(
    station: Station, bench: OnChip, kind: str
) -> None:
    name = f"ALTERED-{kind}".upper()
    device = bench.open()

    def alter(certificate: bytes) -> None:
        bench.replace_certificate(another_certificate(certificate))

    with pytest.raises(errors.ProofFailed):
        station.provision(RUN, name, Between(device, alter))
    assert station.device(f"serial:{name}").state == "held"
    assert device.certification_request(name)
    device.close()


def test_a_device_that_loses_its_power_again_and_again_gets_one_identity(
    realm: RealmDirectory, bench: OnChip, kind: str
) -> None:
    name, cuts, moment, stride, release = f"CUT-{kind}".upper(), 0, 1, 3, None
    while release is None:
        # A station of its own each time: what is under way is in its directory, nowhere else.
        with Station(realm.station("ST02")) as station:
            try:
                device = bench.open_until(moment)
            except errors.Refusal:
                moment += stride
                continue
            try:
                release = station.provision(RUN, name, device)
            except errors.Unavailable:
                cuts += 1
            bench.power_cut(device)
        moment += stride
        assert moment < 3000
    assert cuts > 5
    device = bench.open()
    assert fingerprint(device.read_back()) == release.certificate_sha256
    serial = x509.load_der_x509_certificate(device.read_back()).serial_number
    device.close()
    mine = [entry for entry in realm.entries() if entry.get("device") == f"serial:{name}"]
    assert [entry["kind"] for entry in mine].count("device-issued") == 1
    assert [entry["kind"] for entry in mine].count("device-released") == 1
    assert serial > 0


def test_a_gang_of_all_kinds_with_a_liar_among_them(station: Station, tmp_path: Path) -> None:
    with ExitStack() as stack:
        benches: list[OnChip] = []
        for kind, make in BENCHES.items():
            (tmp_path / kind).mkdir(mode=0o700)
            benches.append(stack.enter_context(on_the_bench(make(tmp_path / kind))))
        (tmp_path / "liar").mkdir(mode=0o700)
        liar = ATECCBench(tmp_path / "liar")
        opened = [bench.open() for bench in benches]
        elements: list[DeviceElement] = [*opened, Between(liar.open(), lambda _: liar.replace_key())]
        gang = [(f"GANG-{number}", element, False) for number, element in enumerate(elements)]
        *released, refused = station.provision_gang(RUN, gang)
        assert isinstance(refused, errors.ProofFailed), repr(refused)
        for number, (element, release) in enumerate(zip(opened, released, strict=True)):
            assert isinstance(release, Release), repr(release)
            assert release.hardware_id == f"GANG-{number}"
            assert fingerprint(element.read_back()) == release.certificate_sha256
            element.close()


def test_the_command_line_takes_a_token_and_a_card_by_their_urls(
    realm: RealmDirectory, tmp_path: Path
) -> None:
    (tmp_path / "token").mkdir(mode=0o700)
    (tmp_path / "card").mkdir(mode=0o700)
    with PKCS11Bench(tmp_path / "token") as token, OpenPGPBench(tmp_path / "card") as card:
        pins = {}
        for number, pin in (("pw1", "123456"), ("pw3", "12345678")):
            pins[number] = tmp_path / number
            pins[number].touch(mode=0o600)
            pins[number].write_text(pin, encoding="ascii")
        urls = {
            "BYURL-1": f"pkcs11:{token.hsm.module}?token=device&pin={token.hsm.pin_file}",
            "BYURL-2": f"openpgp:tcp:127.0.0.1:{card.card.port}?pin={pins['pw1']}&admin-pin={pins['pw3']}"
            f"&beside={tmp_path / 'beside'}",
        }
        for name, url in urls.items():
            station = str(realm.station("ST03"))
            arguments = ["--station", station, "--run", RUN, "--hardware-id", name, "--element", url]
            done = birthmark("provision", *arguments)
            assert "released" in done.stdout
            again = birthmark("provision", *arguments, check=False)
            assert again.returncode == 1
            assert "is released: its identity stays" in again.stderr
            assert "12345678" not in done.stdout + done.stderr + again.stderr
