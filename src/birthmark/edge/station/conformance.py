"""Hold a device element to its contract (``birthmark.edge.station.element``), before a line relies on it.

For whoever writes an element: say how a device of yours is put on the bench (``Bench``), and run ``CHECKS``:

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_the_element_keeps_its_contract(check, tmp_path):
        check(MyBench(tmp_path))

Each check takes a new bench with a new device, returns if the element does what the contract says, and
raises ``NotConforming`` with a sentence if it does not.  Nothing of a service is needed: certificates are
issued here by an authority that is thrown away.

What they cannot see: that a key cannot be had from the device by other means, and whether what an element
calls a power cut is one.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol, runtime_checkable

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import NameOID

from birthmark.edge.station.element import DeviceElement
from birthmark.errors import IllegalTransition, Refusal
from birthmark.pki.algorithms import verify
from birthmark.pki.csr import vet
from birthmark.pki.keys import KeyAlgorithm

__all__ = ["CHECKS", "Bench", "CutBench", "NotConforming", "hold"]

HARDWARE_ID = "BENCH-0001"
TOKEN = "c2sp.org/tlog-proof@v1\nindex 7\n\na token of the bench, as long as it takes\n"  # noqa: S105 -- public
_NOT_BEFORE = datetime(2026, 1, 1, tzinfo=UTC)
_MOST_CUTS = 2000


class NotConforming(AssertionError):
    """The element does not keep its contract; the message says how."""


class Bench(Protocol):
    """One device of the kind that is checked, without an identity."""

    def open(self) -> DeviceElement:
        """Return an element for the device, opened anew: all the device says after ``power_cut``."""
        ...

    def power_cut(self, element: DeviceElement) -> None:
        """Take the power from the device, and forget the element: nothing volatile survives."""
        ...

    def replace_certificate(self, certificate: bytes) -> None:
        """Put another certificate (DER) where the device keeps it, past every element, which is not told."""
        ...


@runtime_checkable
class CutBench(Protocol):
    """What a bench offers besides if it can cut the power in the middle of something."""

    def open_until(self, moment: int) -> DeviceElement:
        """Return an element whose device loses its power at a moment, counted from 1, and says so no more.

        What is asked of the element from then on raises ``errors.Unavailable``.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Issued:
    certificate: bytes
    chain: tuple[bytes, ...]
    spki: bytes


def a_request_carries_the_devices_key_and_name(bench: Bench) -> None:
    """PKCS#10 signed with its own key, of an algorithm a profile can have; the subject is CN=hardware id."""
    element = bench.open()
    request = element.certification_request(HARDWARE_ID)
    if request is None:
        return
    try:
        vetted = vet(request, allowed=tuple(KeyAlgorithm))
    except Refusal as wrong:
        raise NotConforming(f"the service would refuse the request: {wrong}") from wrong
    if vetted.subject_common_name != HARDWARE_ID:
        raise NotConforming(f"the request is for {vetted.subject_common_name!r}, not {HARDWARE_ID!r}")


def an_empty_device_reads_nothing_back(bench: Bench) -> None:
    """Without a certificate ``read_back`` refuses: an element has nothing to make one up from."""
    element = bench.open()
    with suppress(Refusal):
        found = element.read_back()
        raise NotConforming(f"the device has no certificate, and reads {len(found)} octets back")


def what_is_installed_is_read_back_and_its_key_signs(bench: Bench) -> None:
    """The installed certificate comes back octet for octet, and what is signed verifies with its key."""
    element = bench.open()
    issued = _issue(element)
    _install(element, issued)
    _expect(element, issued)


def installed_is_durable(bench: Bench) -> None:
    """A power cut right after ``install`` loses neither certificate nor key."""
    element = bench.open()
    issued = _issue(element)
    _install(element, issued)
    bench.power_cut(element)
    _expect(bench.open(), issued)


def read_back_asks_the_device(bench: Bench) -> None:
    """What is in the device is told, not what was installed a moment ago (SPEC C6)."""
    element = bench.open()
    issued = _issue(element)
    _install(element, issued)
    other = _certificate(issued.spki, 2)
    bench.replace_certificate(other.certificate)
    read = element.read_back()
    if read == issued.certificate:
        raise NotConforming("the device holds another certificate, and the element tells what it was given")
    if read != other.certificate:
        raise NotConforming("the element reads neither what was installed nor what the device holds")


def a_certificate_may_be_installed_again(bench: Bench) -> None:
    """``install`` may come again with the same certificate, a longer and a shorter one."""
    element = bench.open()
    issued = _issue(element)
    for number, padding in ((1, 0), (1, 0), (2, 40), (3, 0)):
        again = _certificate(issued.spki, number, padding)
        _install(element, again)
        _expect(element, again)


def an_attempt_after_an_attempt_that_was_given_up_succeeds(bench: Bench) -> None:
    """Until it is released, a device can be asked for another request, and certified for that."""
    element = bench.open()
    first = _issue(element)
    _install(element, first)
    second = _certificate(_spki_of(element.certification_request(HARDWARE_ID)), 2)
    _install(element, second)
    _expect(element, second)


def a_released_device_keeps_its_identity(bench: Bench) -> None:
    """After ``released`` no other key, no other certificate: ``IllegalTransition``, and nothing changes."""
    element = bench.open()
    issued = _issue(element)
    _install(element, issued)
    element.released(TOKEN)
    _refuses_everything(element, issued)


def released_is_durable(bench: Bench) -> None:
    """A power cut right after ``released`` does not undo it; the same token may be stored again."""
    element = bench.open()
    issued = _issue(element)
    _install(element, issued)
    element.released(TOKEN)
    bench.power_cut(element)
    element = bench.open()
    element.released(TOKEN)
    _refuses_everything(element, issued)


def a_power_cut_in_install_leaves_a_whole_certificate_or_none(bench: Bench) -> None:
    """Whenever the power goes, ``read_back`` tells the old, the new, or refuses; ``install`` mends it."""
    if not isinstance(bench, CutBench):
        return
    element = bench.open()
    old = _issue(element)
    _install(element, old)
    bench.power_cut(element)
    new = _certificate(old.spki, 2, 40)
    for moment in range(1, _MOST_CUTS):
        element = bench.open_until(_first_moment(bench) + moment)
        try:
            _install(element, new)
        except Refusal:
            done = False
        else:
            done = True
        bench.power_cut(element)
        element = bench.open()
        if done:
            _expect(element, new)
            return
        with suppress(Refusal):
            if element.read_back() not in (old.certificate, new.certificate):
                raise NotConforming(f"cut at moment {moment}, the device reads half a certificate back")
        _install(element, old)
        _expect(element, old)
        bench.power_cut(element)
    raise NotConforming(f"install does not end within {_MOST_CUTS} moments")


def a_power_cut_in_released_is_mended_by_the_same_token(bench: Bench) -> None:
    """Whenever the power goes, ``released`` with the same token ends with a device that is released."""
    if not isinstance(bench, CutBench):
        return
    element = bench.open()
    issued = _issue(element)
    _install(element, issued)
    bench.power_cut(element)
    for moment in range(1, _MOST_CUTS):
        element = bench.open_until(_first_moment(bench) + moment)
        try:
            element.released(TOKEN)
        except Refusal:
            done = False
        else:
            done = True
        bench.power_cut(element)
        element = bench.open()
        _expect(element, issued)
        if done:
            _refuses_everything(element, issued)
            return
        bench.power_cut(element)
    raise NotConforming(f"released does not end within {_MOST_CUTS} moments")


CHECKS: tuple[Callable[[Bench], None], ...] = (
    a_request_carries_the_devices_key_and_name,
    an_empty_device_reads_nothing_back,
    what_is_installed_is_read_back_and_its_key_signs,
    installed_is_durable,
    read_back_asks_the_device,
    a_certificate_may_be_installed_again,
    an_attempt_after_an_attempt_that_was_given_up_succeeds,
    a_released_device_keeps_its_identity,
    released_is_durable,
    a_power_cut_in_install_leaves_a_whole_certificate_or_none,
    a_power_cut_in_released_is_mended_by_the_same_token,
)


def hold(new_bench: Callable[[], Bench]) -> dict[str, str | None]:
    """Run every check, each on a new bench; return what each has to complain of, or None."""
    verdicts: dict[str, str | None] = {}
    for check in CHECKS:
        try:
            check(new_bench())
        except (NotConforming, Refusal) as wrong:
            verdicts[check.__name__] = f"{type(wrong).__name__}: {wrong}"
        else:
            verdicts[check.__name__] = None
    return verdicts


# --- pieces -----------------------------------------------------------------------------------------------


def _first_moment(bench: CutBench) -> int:
    """Return how many moments pass until the element is open."""
    for moment in range(_MOST_CUTS):
        try:
            element = bench.open_until(moment + 1)
        except Refusal:
            continue
        close = getattr(element, "close", None)
        if close is not None:
            close()
        return moment
    raise NotConforming(f"the element does not open within {_MOST_CUTS} moments")


def _issue(element: DeviceElement) -> _Issued:
    return _certificate(_spki_of(element.certification_request(HARDWARE_ID)), 1)


def _spki_of(request: bytes | None) -> bytes:
    if request is None:
        raise NotConforming("the device makes no key: these checks are for elements that do")
    return vet(request, allowed=tuple(KeyAlgorithm)).subject_public_key_info


def _certificate(spki: bytes, number: int, padding: int = 0) -> _Issued:
    """Certify a key, as an authority that exists only here."""
    authority = ec.derive_private_key(number + 1000, ec.SECP256R1())
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Bench CA")])
    name = HARDWARE_ID + "X" * padding

    def made(subject: x509.Name, key: bytes) -> bytes:
        public = load_der_public_key(key)
        builder = (
            x509.CertificateBuilder()
            .issuer_name(issuer)
            .subject_name(subject)
            .public_key(public)  # type: ignore[arg-type]  # one of ours: csr.vet has seen it
            .serial_number(number)
            .not_valid_before(_NOT_BEFORE)
            .not_valid_after(_NOT_BEFORE + timedelta(days=3650))
        )
        return builder.sign(authority, hashes.SHA256()).public_bytes(Encoding.DER)

    own = authority.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return _Issued(certificate=made(subject, spki), chain=(made(issuer, own),), spki=spki)


def _install(element: DeviceElement, issued: _Issued) -> None:
    element.install(certificate=issued.certificate, chain=issued.chain, private_key=None)


def _expect(element: DeviceElement, issued: _Issued) -> None:
    if element.read_back() != issued.certificate:
        raise NotConforming("what is read back is not what was installed")
    for message in (b"one message of the bench", b"another message, " * 20):
        try:
            verify(issued.spki, element.sign(message), message)
        except (InvalidSignature, Refusal) as wrong:
            raise NotConforming("what the device signs does not verify with its certificate's key") from wrong


def _refuses_everything(element: DeviceElement, issued: _Issued) -> None:
    other = _certificate(issued.spki, 2)
    attempts: tuple[tuple[str, Callable[[], object]], ...] = (
        ("makes another key", lambda: element.certification_request(HARDWARE_ID)),
        ("installs another certificate", lambda: _install(element, other)),
        ("installs the same certificate", lambda: _install(element, issued)),
    )
    for deed, attempt in attempts:
        try:
            attempt()
        except IllegalTransition:
            pass
        except Refusal as wrong:
            raise NotConforming(f"released, it {deed}: refuses as {wrong.code}, not as illegal") from wrong
        else:
            raise NotConforming(f"released, the device {deed}")
        _expect(element, issued)
