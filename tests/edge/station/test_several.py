"""Devices that get several certificates, seen from the station: slots, journal, token (SPEC C5, C7, C10)."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from stat import S_IMODE
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
)

from birthmark import errors
from birthmark.edge.station import DeviceSlot, Enclave, Pending, Phase, Release, Station
from birthmark.edge.station.pending import FurtherPending
from birthmark.edge.station.slots import FolderSlot
from birthmark.ledger import proof
from birthmark.pki.certificates import fingerprint
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes
from tests.edge.station import service as misbehaviour
from tests.edge.station.authorities import authority, certify, name, pem_key
from tests.edge.station.service import RUN, Service

VIN = "1M8GDM9AXKP042788"
FURTHER = ("dlms-agreement-1", "dlms-tls-1")


@pytest.fixture(autouse=True)
def three(service: Service) -> None:
    """Each device gets three certificates."""
    service.further = FURTHER


def check_released(service: Service, device: Enclave, release: Release, vin: str = VIN) -> None:
    """The device holds what the log says it holds, each key the one that is certified."""
    assert service.devices[f"vin:{vin}"].state == "released"
    assert device.token() == release.token
    entry: dict[str, Any] = proof.verify(release.token, service.vkey)
    slots = [device.slot(profile) for profile in FURTHER]
    places: list[Enclave | FolderSlot] = [device, *slots]
    assert entry["record"]["certificate_sha256"] == device.fingerprint() == release.certificate_sha256
    told = [(profile, slot.fingerprint()) for profile, slot in zip(FURTHER, slots, strict=True)]
    assert [(one["profile"], one["certificate_sha256"]) for one in entry["record"]["further"]] == told
    assert list(release.further) == told
    for slot in places:
        certified = x509.load_der_x509_certificate(slot.read_back()).public_key()
        assert isinstance(certified, ec.EllipticCurvePublicKey)
        certified.verify(slot.sign(b"message"), b"message", ec.ECDSA(hashes.SHA256()))
        assert slot.chain() == (service.authority.der,)


@pytest.mark.parametrize("delivered", [False, True])
def test_a_device_gets_three_certificates_and_one_token(
    service: Service, station: Station, device: Enclave, tmp_path: Path, *, delivered: bool
) -> None:
    release = station.provision(RUN, VIN, device, delivered=delivered)
    check_released(service, device, release)
    home = tmp_path / "device"
    assert sorted(path.name for path in home.iterdir()) == [
        "chain.dlms-agreement-1.pem",
        "chain.dlms-tls-1.pem",
        "chain.pem",
        "device.crt",
        "device.dlms-agreement-1.crt",
        "device.dlms-agreement-1.key",
        "device.dlms-tls-1.crt",
        "device.dlms-tls-1.key",
        "device.key",
        "pending.json",
        "release.tlog-proof",
    ]
    assert {S_IMODE(path.stat().st_mode) for path in home.glob("*.key")} == {0o400}
    assert len({path.read_bytes() for path in home.glob("*.key")}) == 3
    body = service.bodies[-2]
    assert len(json.loads(body).get("further_csrs", [])) == (0 if delivered else 2)
    again = station.provision(RUN, VIN, device, delivered=delivered)
    assert (again.attempt, again.leaf, again.further) == (release.attempt, release.leaf, release.further)
    assert service.issued[f"vin:{VIN}"] == 1


@pytest.mark.parametrize("delivered", [False, True])
@pytest.mark.parametrize("step", ["issue", "prove"])
@pytest.mark.parametrize("mishap", [misbehaviour.lose_the_answer, misbehaviour.lose_the_request])
def test_what_goes_wrong_once_is_asked_again_with_the_same_octets(
    service: Service,
    station: Station,
    device: Enclave,
    step: str,
    mishap: misbehaviour.Mishap,
    *,
    delivered: bool,
) -> None:
    """SPEC C4."""
    service.mishaps.append((step, mishap))
    check_released(service, device, station.provision(RUN, VIN, device, delivered=delivered))
    lost_keys = delivered and step == "issue" and mishap is misbehaviour.lose_the_answer
    assert service.issued[f"vin:{VIN}"] == (2 if lost_keys else 1)
    asked = [index for index, request in enumerate(service.requests) if step in request[1]]
    assert len({service.bodies[index] for index in asked}) == 1


@pytest.mark.parametrize("delivered", [False, True])
@pytest.mark.parametrize("step", ["issue", "prove"])
def test_a_station_that_gave_up_goes_on_without_asking_about_the_run_again(
    service: Service, connect: Callable[..., Station], device: Enclave, step: str, *, delivered: bool
) -> None:
    """What is under way says which certificates are."""
    service.mishaps += [(step, misbehaviour.lose_the_answer), (step, misbehaviour.busy())]
    with pytest.raises(errors.Unavailable):
        connect(patience_seconds=0.0).provision(RUN, VIN, device, delivered=delivered)
    asked = sum(path == f"/v1/runs/{RUN}" for _, path, _, _ in service.requests)
    check_released(service, device, connect().provision(RUN, VIN, device, delivered=delivered))
    assert sum(path == f"/v1/runs/{RUN}" for _, path, _, _ in service.requests) == asked == 1
    assert service.devices[f"vin:{VIN}"].number == 1


@pytest.mark.parametrize("at", range(3))
def test_one_key_of_three_that_does_not_match_holds_the_device(
    service: Service, station: Station, device: Enclave, tmp_path: Path, at: int
) -> None:
    """SPEC C6: what is in the files counts."""
    file = ("device.key", "device.dlms-agreement-1.key", "device.dlms-tls-1.key")[at]
    other = Enclave(str(tmp_path / "other"))
    other.certification_request(VIN)
    swapped = (tmp_path / "other" / "device.key").read_bytes()
    remember = device.remember

    def sabotage(pending: Pending) -> None:
        remember(pending)
        if pending.phase is Phase.INSTALLED:
            (tmp_path / "device" / file).unlink()
            (tmp_path / "device" / file).write_bytes(swapped)

    device.remember = sabotage  # type: ignore[method-assign]  # the test is the saboteur
    with pytest.raises(errors.ProofFailed, match="is held"):
        station.provision(RUN, VIN, device)
    assert service.devices[f"vin:{VIN}"].state == "held"
    assert device.token() is None
    del device.remember
    station.rework(f"vin:{VIN}", "key store replaced")
    check_released(service, device, station.provision(RUN, VIN, device))
    assert service.devices[f"vin:{VIN}"].number == 2


Parts = list[dict[str, Any]]


def _certificate(
    service: Service,
    part: dict[str, Any],
    *,
    subject: x509.Name | None = None,
    above: Any = None,
    key: Any = None,
) -> dict[str, Any]:
    loaded = x509.load_pem_x509_certificate(part["certificate"].encode())
    forged = certify(subject or loaded.subject, key or loaded.public_key(), above or service.authority)
    return part | {"certificate": forged.public_bytes(Encoding.PEM).decode()}


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


FORGERIES: dict[str, tuple[Callable[[Service, Parts], Parts], str]] = {
    "one missing": (lambda _, p: p[:1], "was to get further certificates"),
    "in another order": (lambda _, p: p[::-1], "was to get further certificates"),
    "of another profile": (
        lambda _, p: [p[0], p[1] | {"profile": "dlms-tls-2"}],
        "was to get further certificates",
    ),
    "none": (lambda _, p: p[:0], "was to get further certificates"),
    "one too many": (lambda _, p: [*p, p[1]], "was to get further certificates"),
    "each other's certificate": (
        lambda _, p: [
            p[0] | {"certificate": p[1]["certificate"]},
            p[1] | {"certificate": p[0]["certificate"]},
        ],
        "another key",
    ),
    "a key unasked": (
        lambda _, p: [p[0], p[1] | {"private_key": pem_key(_new_key()).decode()}],
        "a key unasked",
    ),
    "another key": (
        lambda s, p: [p[0], _certificate(s, p[1], key=_new_key().public_key())],
        "another key",
    ),
    "another name": (
        lambda s, p: [p[0], _certificate(s, p[1], subject=name("1M8GDM9AXKP042789"))],
        "does not name",
    ),
    "another issuer": (
        lambda s, p: [p[0], _certificate(s, p[1], above=authority("Factory CA", s.root))],
        "does not lead",
    ),
}


@pytest.mark.parametrize("kind", FORGERIES)
def test_when_a_further_certificate_is_wrong_nothing_is_installed(
    service: Service, station: Station, device: Enclave, kind: str
) -> None:
    forge, complaint = FORGERIES[kind]
    service.forge = lambda path, body: (
        body | {"further": forge(service, body["further"])} if path.endswith("/issue") else body
    )
    with pytest.raises(errors.IntegrityFailure, match=complaint):
        station.provision(RUN, VIN, device)
    with pytest.raises(errors.NotFound):
        device.read_back()
    for profile in FURTHER:
        with pytest.raises(errors.NotFound):
            device.slot(profile).read_back()
    service.forge = lambda _, body: body
    check_released(service, device, station.provision(RUN, VIN, device))


def test_one_delivered_key_for_two_certificates_is_not_installed(
    service: Service, station: Station, device: Enclave
) -> None:
    """SPEC C8."""

    def forge(path: str, body: dict[str, Any]) -> dict[str, Any]:
        if not path.endswith("/issue"):
            return body
        first, second = body["further"]
        return body | {"further": [first, first | {"profile": second["profile"]}]}

    service.forge = forge
    with pytest.raises(errors.IntegrityFailure, match="one key for two certificates"):
        station.provision(RUN, VIN, device, delivered=True)
    with pytest.raises(errors.NotFound):
        device.read_back()


@pytest.mark.parametrize(
    "further",
    [
        pytest.param(lambda told: told[:1], id="one missing"),
        pytest.param(lambda told: told[::-1], id="in another order"),
        pytest.param(lambda told: [*told, told[0]], id="one too many"),
        pytest.param(lambda told: [told[0], told[1] | {"certificate_sha256": "0" * 64}], id="another"),
        pytest.param(lambda told: [told[0], told[1] | {"profile": "other"}], id="another profile"),
        pytest.param(lambda _: [], id="none"),
        pytest.param(lambda _: {}, id="no list"),
        pytest.param(lambda _: ["dlms-tls-1", 1], id="no objects"),
    ],
)
def test_a_token_that_names_other_further_certificates_releases_nothing(
    service: Service, station: Station, device: Enclave, further: Callable[[Any], Any]
) -> None:
    """SPEC C7."""
    log = service.log

    def log_wrongly(kind: str, **fields: Any) -> int:
        if "record" in fields:
            fields["record"] = fields["record"] | {"further": further(fields["record"]["further"])}
        return log(kind, **fields)

    service.log = log_wrongly  # type: ignore[method-assign]  # the test is the saboteur
    with pytest.raises(errors.IntegrityFailure, match="names other further certificates"):
        station.provision(RUN, VIN, device)
    assert device.token() is None


def test_a_token_with_a_certificate_too_many_does_not_release_a_device_with_one(
    service: Service, station: Station, device: Enclave
) -> None:
    service.further = ()
    log = service.log
    told = {"further": [{"profile": "dlms-tls-1", "certificate_sha256": "0" * 64}]}

    def log_wrongly(kind: str, **fields: Any) -> int:
        if "record" in fields:
            fields["record"] = fields["record"] | told
        return log(kind, **fields)

    service.log = log_wrongly  # type: ignore[method-assign]  # the test is the saboteur
    with pytest.raises(errors.IntegrityFailure, match="names other further certificates"):
        station.provision(RUN, VIN, device)


# --- other people's elements


class Single:
    """Somebody's five methods: a place for one key."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate, self.token, self.asked = b"", "", 0

    def certification_request(self, hardware_id: str) -> bytes | None:
        self.asked += 1
        builder = x509.CertificateSigningRequestBuilder().subject_name(name(hardware_id))
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)

    def install(self, *, certificate: bytes, chain: Any, private_key: SecretBytes | None) -> None:
        self.certificate = certificate
        if private_key is not None:
            key = load_der_private_key(private_key.reveal(), None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            self.key = key

    def read_back(self) -> bytes:
        return self.certificate

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message, ec.ECDSA(hashes.SHA256()))

    def released(self, token: str) -> None:
        self.token = token


class Multiple(Single):
    """The sixth: a place for each further one."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: dict[str, Single] = {}

    def slot(self, profile: str) -> DeviceSlot:
        return self.slots.setdefault(profile, Single())


@pytest.mark.parametrize("delivered", [False, True])
def test_an_element_with_five_methods_is_told_that_the_run_wants_more(
    service: Service, station: Station, *, delivered: bool
) -> None:
    element = Single()
    with pytest.raises(
        errors.MalformedRequest,
        match="run run-1 gives each device 3 certificates, this device takes one: its element has no slot for"
        " dlms-agreement-1, dlms-tls-1",
    ):
        station.provision(RUN, VIN, element, delivered=delivered)
    assert element.asked == 0
    assert service.devices == {}
    service.further = ()
    with pytest.raises(errors.MalformedRequest):
        station.provision(RUN, VIN, element, delivered=delivered)  # a licence never changes: asked once
    assert sum(path == f"/v1/runs/{RUN}" for _, path, _, _ in service.requests) == 1


@pytest.mark.parametrize("delivered", [False, True])
def test_an_element_with_five_methods_goes_on_working_where_one_is_wanted(
    service: Service, station: Station, *, delivered: bool
) -> None:
    service.further = ()
    element = Single()
    release = station.provision(RUN, VIN, element, delivered=delivered)
    assert (element.token, release.further) == (release.token, ())


@pytest.mark.parametrize("delivered", [False, True])
def test_an_element_with_slots_remembers_nothing_and_is_finished_all_the_same(
    service: Service, connect: Callable[..., Station], home: Path, *, delivered: bool
) -> None:
    element = Multiple()
    service.mishaps += [("prove", misbehaviour.lose_the_answer), ("prove", misbehaviour.busy())]
    with pytest.raises(errors.Unavailable):
        connect(patience_seconds=0.0).provision(RUN, VIN, element, delivered=delivered)
    assert len(list(home.glob("pending-*.json"))) == 1
    release = connect().provision(RUN, VIN, element, delivered=delivered)
    assert element.token == release.token
    assert tuple(element.slots) == FURTHER
    assert [digest for _, digest in release.further] == [
        fingerprint(slot.certificate) for slot in element.slots.values()
    ]
    assert list(home.glob("pending-*.json")) == []


def test_a_slot_that_makes_no_key_stops_the_device_before_anything_is_asked(
    service: Service, station: Station
) -> None:
    element = Multiple()
    element.slots["dlms-tls-1"] = slot = Single()
    slot.certification_request = lambda hardware_id: None  # type: ignore[method-assign]  # the test is the saboteur
    with pytest.raises(errors.MalformedRequest, match="makes no key"):
        station.provision(RUN, VIN, element)
    assert service.devices == {}


# --- who does not know what the run gives


def test_a_service_of_the_time_before_gives_one_certificate(
    service: Service, station: Station, device: Enclave
) -> None:
    service.further, service.tells_further = (), False
    assert station.run(RUN).further_profiles == ()
    assert station.provision(RUN, VIN, device).further == ()


def _may_not_read(path: str) -> None:
    if path == f"/v1/runs/{RUN}":
        raise misbehaviour.Problem(403, "not-permitted", "a bootstrap client may not read")


def test_who_may_not_ask_says_which_further_certificates_there_are(
    service: Service, station: Station, device: Enclave
) -> None:
    """A bootstrap credential may not read."""
    service.refuse = _may_not_read
    with pytest.raises(errors.MalformedRequest, match="wants 2 further requests"):
        station.provision(RUN, VIN, device)
    assert device.pending() is None
    check_released(service, device, station.provision(RUN, VIN, device, further=FURTHER))


def test_who_may_not_ask_goes_on_with_one_certificate_where_there_is_one(
    service: Service, station: Station, device: Enclave
) -> None:
    service.refuse, service.further = _may_not_read, ()
    station.provision(RUN, VIN, device)
    assert service.devices[f"vin:{VIN}"].state == "released"


def test_a_service_that_names_a_profile_like_a_path_makes_no_file(
    service: Service, station: Station, device: Enclave, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    for profile in ("../../etc/x", "a/b", "", "A", "a" * 65, ".", "x\n", "x\0"):
        with pytest.raises(errors.MalformedRequest, match="is not the name of a profile"):
            station.provision(RUN, VIN, device, further=[profile])
    assert sorted(tmp_path.rglob("*")) == before


# --- gangs


def test_a_gang_of_devices_with_three_certificates_is_made_in_few_requests(
    service: Service, station: Station, tmp_path: Path
) -> None:
    vins = [f"1M8GDM9AXKP04{number:04d}" for number in range(4)]
    gang = [(vin, Enclave(str(tmp_path / f"g{number}")), number % 2 == 1) for number, vin in enumerate(vins)]
    results = station.provision_gang(RUN, gang)
    for (vin, enclave, _), release in zip(gang, results, strict=True):
        assert isinstance(release, Release)
        check_released(service, enclave, release, vin)
    assert [path for _, path, _, _ in service.requests] == [
        f"/v1/runs/{RUN}",
        "/v1/me",
        f"/v1/runs/{RUN}/gang-issue",
        "/v1/gang-prove",
    ]


def test_a_gang_waits_once_for_a_service_that_is_away(
    service: Service, connect: Callable[..., Station], tmp_path: Path
) -> None:
    service.mishaps += [(f"/v1/runs/{RUN}", misbehaviour.busy())] * 2
    gang = [(f"1M8GDM9AXKP04{n:04d}", Enclave(str(tmp_path / f"g{n}")), False) for n in range(3)]
    results = connect(patience_seconds=0.0).provision_gang(RUN, gang)
    assert [type(result) for result in results] == [errors.Unavailable] * 3
    assert len(service.requests) == 1


def test_of_a_gang_those_without_places_fail_alone(
    service: Service, station: Station, tmp_path: Path
) -> None:
    with Enclave(str(tmp_path / "g")) as enclave:
        results = station.provision_gang(
            RUN, [("1M8GDM9AXKP040001", enclave, False), ("1M8GDM9AXKP040002", Single(), False)]
        )
    assert [type(result) for result in results] == [Release, errors.MalformedRequest]


# --- the enclave and the journal


def test_further_keys_may_be_of_another_kind(service: Service, station: Station, tmp_path: Path) -> None:
    service.further = ("tpm-iak",)
    with Enclave(str(tmp_path / "d"), further_algorithms={"tpm-iak": KeyAlgorithm.EC_P384}) as device:
        station.provision(RUN, VIN, device)
        keys = [
            x509.load_der_x509_certificate(slot.read_back()).public_key()
            for slot in (device, device.slot("tpm-iak"))
        ]
    assert [key.curve.name for key in keys if isinstance(key, ec.EllipticCurvePublicKey)] == [
        "secp256r1",
        "secp384r1",
    ]
    assert keys[0].public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != b""


@pytest.mark.parametrize("phase", [Phase.PROVING, Phase.RELEASED])
def test_what_may_be_released_changes_in_no_slot(tmp_path: Path, phase: Phase) -> None:
    with Enclave(str(tmp_path / "d")) as device:
        device.remember(_pending(phase))
        for slot in (device, device.slot("dlms-tls-1")):
            with pytest.raises(errors.IllegalTransition, match="may be released already"):
                slot.install(certificate=b"", chain=[], private_key=None)
            with pytest.raises(errors.IllegalTransition):
                slot.certification_request(VIN)
        device.forget()
        device.released("token")
        with pytest.raises(errors.IllegalTransition, match="is released"):
            device.slot("dlms-tls-1").install(certificate=b"", chain=[], private_key=None)


def _pending(phase: Phase) -> Pending:
    return Pending(
        station="ST01",
        hardware_id=VIN,
        run="r",
        delivered=False,
        issue_key="k",
        issue_seq=1,
        phase=phase,
        device=f"vin:{VIN}",
        attempt="0" * 32,
        challenge="00" * 32,
        certificate_sha256="0" * 64,
        further=(FurtherPending(profile="dlms-tls-1", csr="x", certificate_sha256="1" * 64, signature="00"),),
    )


def test_what_is_under_way_is_read_back_with_and_without_further_certificates() -> None:
    pending = _pending(Phase.PROVING)
    assert Pending.decode(pending.encode()) == pending
    single = replace(pending, further=())
    assert b"further" not in single.encode(), "a kit of the time before reads it, too"
    assert Pending.decode(single.encode()) == single


_BEFORE = (
    b'{"attempt": "00000000000000000000000000000000", "certificate_sha256": "'
    + b"0" * 64
    + b'", "challenge":'
    b' "00", "csr": null, "delivered": false, "device": "vin:1M8GDM9AXKP042788", "hardware_id":'
    b' "1M8GDM9AXKP042788", "issue_key": "k", "issue_seq": 1, "phase": "installed", "prove_key": null,'
    b' "prove_seq": null, "run": "r", "signature": null, "station": "ST01"}\n'
)
"""As the first release of the kit wrote it."""


def test_what_an_earlier_kit_wrote_down_is_read() -> None:
    read = Pending.decode(_BEFORE)
    assert (read.phase, read.further) == (Phase.INSTALLED, ())
    assert read.encode() == _BEFORE


@pytest.mark.parametrize(
    "further",
    [
        "x",
        {"a": 1},
        None,
        [1],
        [{}],
        [{"profile": None}],
        [{"profile": 1, "certificate_sha256": "0"}],
        [{"profile": "p", "csr": []}],
        [{"profile": "p", "strange": 1}],
        [{"profile": "p"}],  # installed, and nobody knows what
    ],
)
def test_what_nobody_wrote_down_like_this_is_refused(further: object) -> None:
    bent = json.dumps(json.loads(_BEFORE) | {"further": further}).encode()
    with pytest.raises(errors.IntegrityFailure, match="written down"):
        Pending.decode(bent)
