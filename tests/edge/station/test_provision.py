"""The whole story of a device, and everything that can come between (SPEC C4 to C7, C10)."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark import errors
from birthmark.edge.station import Enclave, Release, Station
from birthmark.ledger import proof
from birthmark.pki.certificates import fingerprint
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes
from tests.edge.station import service as misbehaviour
from tests.edge.station.authorities import Extensions, authority, certify, name, pem_key
from tests.edge.station.service import RUN, Problem, Server, Service, enrol

VIN = "1M8GDM9AXKP042788"
OTHER = "1M8GDM9AXKP042789"


def check_released(service: Service, device: Enclave, release: Release) -> None:
    """The device holds what the log says it holds."""
    assert service.devices[f"vin:{VIN}"].state == "released"
    token = device.token()
    assert token == release.token
    entry: dict[str, Any] = proof.verify(token, service.vkey)
    assert entry["record"]["certificate_sha256"] == device.fingerprint() == release.certificate_sha256
    assert entry["record"]["attempt"] == release.attempt
    certified = x509.load_der_x509_certificate(device.read_back()).public_key()
    assert isinstance(certified, ec.EllipticCurvePublicKey)


@pytest.mark.parametrize("delivered", [False, True])
def test_a_device_goes_from_nothing_to_a_release_token(
    service: Service, station: Station, device: Enclave, *, delivered: bool
) -> None:
    """SPEC C5, C6, C7."""
    release = station.provision(RUN, VIN, device, delivered=delivered)
    check_released(service, device, release)
    assert release.device == f"vin:{VIN}"
    assert device.chain() == (service.authority.der,)
    assert [path for _, path, _, _ in service.requests] == [
        f"/v1/runs/{RUN}",
        "/v1/me",
        f"/v1/runs/{RUN}/issue",
        "/v1/prove",
    ]


@pytest.mark.parametrize("algorithm", list(KeyAlgorithm))
def test_every_kind_of_key_can_be_born_in_the_device(
    service: Service, station: Station, tmp_path: Path, algorithm: KeyAlgorithm
) -> None:
    with Enclave(str(tmp_path / "other"), algorithm=algorithm) as device:
        station.provision(RUN, VIN, device)
        spki = x509.load_der_x509_certificate(device.read_back()).public_key()
        assert service.devices[f"vin:{VIN}"].state == "released"
        assert isinstance(spki, ec.EllipticCurvePublicKey) is algorithm.startswith("ec-")


@pytest.mark.parametrize("delivered", [False, True])
@pytest.mark.parametrize("step", ["issue", "prove"])
@pytest.mark.parametrize(
    "mishap",
    [
        misbehaviour.lose_the_answer,
        misbehaviour.lose_the_request,
        misbehaviour.busy(503),
        misbehaviour.busy(502),
        misbehaviour.busy(504),
    ],
    ids=["answer-lost", "request-lost", "503", "502", "504"],
)
def test_what_goes_wrong_once_is_asked_again_and_gives_one_identity(
    service: Service,
    station: Station,
    device: Enclave,
    step: str,
    mishap: misbehaviour.Mishap,
    *,
    delivered: bool,
) -> None:
    """SPEC C4: a retry after a lost answer gets the same result."""
    service.mishaps.append((step, mishap))
    release = station.provision(RUN, VIN, device, delivered=delivered)
    check_released(service, device, release)
    lost_key = delivered and step == "issue" and mishap is misbehaviour.lose_the_answer
    assert service.issued[f"vin:{VIN}"] == (2 if lost_key else 1)
    assert service.devices[f"vin:{VIN}"].number == 1
    asked = [index for index, request in enumerate(service.requests) if step in request[1]]
    assert len({service.bodies[index] for index in asked}) == 1, "the same request, byte for byte"
    assert len({service.requests[index][2] for index in asked}) == 1, "a retry keeps its number"


@pytest.mark.parametrize("delivered", [False, True])
@pytest.mark.parametrize("step", ["issue", "prove"])
def test_a_station_that_gave_up_goes_on_where_it_was(
    service: Service,
    connect: Callable[..., Station],
    device: Enclave,
    step: str,
    *,
    delivered: bool,
) -> None:
    impatient = connect(patience_seconds=0.0)
    # A kept connection that breaks is replaced once without waiting, so the first station asks twice.
    service.mishaps += [(step, misbehaviour.lose_the_answer), *[(step, misbehaviour.busy())] * 2]
    with pytest.raises(errors.Unavailable, match="gave up"):
        impatient.provision(RUN, VIN, device, delivered=delivered)
    with pytest.raises(errors.Unavailable, match="503"):
        connect(patience_seconds=0.0).provision(RUN, VIN, device, delivered=delivered)
    release = connect().provision(RUN, VIN, device, delivered=delivered)
    check_released(service, device, release)
    assert service.devices[f"vin:{VIN}"].number == 1
    numbers = {int(seq) for _, path, seq, _ in service.requests if seq is not None}
    assert numbers == {1, 2}, "no gap, although the station changed twice"


def test_a_released_device_gives_the_same_release_again(
    service: Service, station: Station, device: Enclave
) -> None:
    first = station.provision(RUN, VIN, device)
    again = station.provision(RUN, VIN, device)
    check_released(service, device, again)
    assert (again.attempt, again.leaf) == (first.attempt, first.leaf)
    assert service.issued[f"vin:{VIN}"] == 1


def test_a_device_whose_key_does_not_match_is_held_and_can_be_reworked(
    service: Service, station: Station, device: Enclave, tmp_path: Path
) -> None:
    """SPEC C4, C6: what is in the files counts, not what was sent."""
    other = Enclave(str(tmp_path / "other"))
    other.certification_request(OTHER)
    swapped = (tmp_path / "other" / "device.key").read_bytes()
    install = device.install

    def sabotage(**what: Any) -> None:
        install(**what)
        (tmp_path / "device" / "device.key").unlink()
        (tmp_path / "device" / "device.key").write_bytes(swapped)

    device.install = sabotage  # type: ignore[method-assign]  # the test is the saboteur
    with pytest.raises(errors.ProofFailed, match="is held"):
        station.provision(RUN, VIN, device)
    assert service.devices[f"vin:{VIN}"].state == "held"
    assert device.token() is None
    del device.install
    with pytest.raises(errors.IllegalTransition):
        station.provision(RUN, VIN, device)
    assert station.rework(f"vin:{VIN}", "key store replaced").state == "admitted"
    check_released(service, device, station.provision(RUN, VIN, device))
    assert service.devices[f"vin:{VIN}"].number == 2


def test_a_definitive_refusal_frees_the_device_for_a_new_request(
    service: Service, station: Station, device: Enclave
) -> None:
    with pytest.raises(errors.PolicyRefused) as refused:
        station.provision(RUN, "XXX" + VIN[3:], device)
    assert refused.value.rule == "wmi"
    assert device.pending() is None
    check_released(service, device, station.provision(RUN, VIN, device))
    keys = [json.loads(body)["idempotency_key"] for body in service.bodies if body]
    assert len(set(keys)) == len(keys)


def test_a_refused_proof_is_sent_as_a_new_request_and_keeps_the_identity(
    service: Service, station: Station, device: Enclave
) -> None:
    def refuse(path: str) -> None:
        if "prove" in path:
            raise Problem(403, "not-permitted", "mk is no live operator of this realm")

    service.refuse = refuse
    with pytest.raises(errors.NotPermitted):
        station.provision(RUN, VIN, device)
    service.refuse = lambda _: None
    check_released(service, device, station.provision(RUN, VIN, device))
    assert service.issued[f"vin:{VIN}"] == 1


def test_a_release_that_another_station_got_is_found_by_asking(
    service: Service, station: Station, device: Enclave
) -> None:
    """The idempotency keys are of no use there; the service still knows what became of the attempt."""
    service.mishaps.append(("prove", misbehaviour.lose_the_answer))
    service.mishaps.append(("prove", misbehaviour.answers(500, "text/html", b"")))
    with pytest.raises(errors.IntegrityFailure):
        station.provision(RUN, VIN, device)
    service.answers.clear()
    check_released(service, device, station.provision(RUN, VIN, device))
    assert service.requests[-1][1] == f"/v1/devices/vin:{VIN}/token"


def test_a_proof_that_another_station_could_not_send_is_sent_under_our_own_number(
    service: Service, server: Server, connect: Callable[..., Station], device: Enclave, tmp_path: Path
) -> None:
    """A number of another station's would leave a gap in ours (SPEC E5): ST01 was revoked in between."""

    def refuse(path: str) -> None:
        if "prove" in path:
            raise Problem(403, "unauthenticated", "station:ST01 was revoked")

    service.last_seq = 400
    service.refuse = refuse
    with pytest.raises(errors.Unauthenticated):
        connect().provision(RUN, VIN, device)
    home = enrol(tmp_path / "second", service, server.url)
    (home / "station.toml").write_text((home / "station.toml").read_text().replace("ST01", "ST02"))
    service.refuse, service.last_seq = lambda _: None, 7
    before = device.pending()
    assert before is not None
    check_released(service, device, connect(home).provision(RUN, VIN, device))
    proofs = [(seq, json.loads(body)) for (_, path, seq, _), body in
              zip(service.requests, service.bodies, strict=True) if "prove" in path]  # fmt: skip
    assert [seq for seq, _ in proofs] == [str(before.prove_seq), "8"]
    assert proofs[0][1]["signature"] == proofs[1][1]["signature"]
    assert proofs[0][1]["idempotency_key"] != proofs[1][1]["idempotency_key"]


def test_who_may_not_ask_what_became_of_a_device_forgets_nothing(
    service: Service, station: Station, device: Enclave
) -> None:
    """A bootstrap credential may not read: the refusal is shown as it is, and a key that may count stays."""

    def refuse(path: str) -> None:
        if "prove" in path:
            raise Problem(409, "illegal-transition", "it is released")
        if "devices" in path:
            raise Problem(403, "not-permitted", "a bootstrap client may not read")

    service.refuse = refuse
    with pytest.raises(errors.IllegalTransition, match="it is released"):
        station.provision(RUN, VIN, device)
    before = device.pending()
    assert before is not None
    with pytest.raises(errors.IllegalTransition, match="finish what is under way"):
        device.install(certificate=b"", chain=[], private_key=None)
    service.refuse = lambda _: None
    check_released(service, device, station.provision(RUN, VIN, device))


@pytest.mark.parametrize("status", [500, 403])
def test_an_unknown_outcome_leaves_everything_as_it_is(
    service: Service, station: Station, device: Enclave, status: int
) -> None:
    code = "internal" if status == 500 else "unauthenticated"
    body = json.dumps(Problem(status, code, "see the log").body).encode()
    service.mishaps.append(("issue", misbehaviour.answers(status, "application/problem+json", body)))
    with pytest.raises(errors.Refusal) as refused:
        station.provision(RUN, VIN, device)
    assert code in (refused.value.code, str(refused.value).split(":")[0])
    before = device.pending()
    assert before is not None
    check_released(service, device, station.provision(RUN, VIN, device))
    assert json.loads(service.bodies[-2])["idempotency_key"] == before.issue_key


# --- answers that must not be believed


def _forged_certificate(service: Service, kind: str) -> Callable[[str, dict[str, Any]], dict[str, Any]]:
    def forge(path: str, body: dict[str, Any]) -> dict[str, Any]:
        if not path.endswith("/issue"):
            return body
        certificate = x509.load_pem_x509_certificate(body["certificate"].encode())
        subject, key, above = certificate.subject, certificate.public_key(), service.authority
        chain = body["chain"]
        extensions: Extensions = ()
        match kind:
            case "another-key":
                key = ec.generate_private_key(ec.SECP256R1()).public_key()
            case "another-name":
                subject = name(OTHER)
            case "another-issuer":
                above = authority("Factory CA", service.root)
            case "another-root":
                above = authority("Factory CA", authority("Root"))
                chain = [above.pem]
            case "an-authority":
                extensions = [(x509.BasicConstraints(ca=True, path_length=None), True)]
            case "issuer-no-authority":
                above = authority("Factory CA", service.root, ca=False)
                chain = [above.pem]
            case "chain-too-long":
                above = authority("Below", service.authority)
                chain = [above.pem, service.authority.pem]
            case "no-chain":
                chain = []
            case "another-device":
                return body | {"device": f"vin:{OTHER}"}
        forged = certify(subject, key, above, extensions).public_bytes(Encoding.PEM).decode()
        return body | {"certificate": forged, "chain": chain}

    return forge


@pytest.mark.parametrize(
    ("kind", "complaint"),
    [
        ("another-key", "another key"),
        ("another-name", "does not name"),
        ("another-issuer", "does not lead"),
        ("another-root", "does not lead"),
        ("an-authority", "authority"),
        ("issuer-no-authority", "not that of an authority"),
        ("chain-too-long", "longer than"),
        ("no-chain", "does not lead"),
        ("another-device", "answered for"),
    ],
)
def test_a_wrong_certificate_is_not_installed(
    service: Service, station: Station, device: Enclave, kind: str, complaint: str
) -> None:
    service.forge = _forged_certificate(service, kind)
    with pytest.raises(errors.IntegrityFailure, match=complaint):
        station.provision(RUN, VIN, device)
    with pytest.raises(errors.NotFound):
        device.read_back()
    service.forge = lambda _, body: body
    check_released(service, device, station.provision(RUN, VIN, device))


def test_a_delivered_key_that_is_not_the_certified_one_is_not_installed(
    service: Service, station: Station, device: Enclave, tmp_path: Path
) -> None:
    other = pem_key(ec.generate_private_key(ec.SECP256R1())).decode()
    service.forge = lambda path, body: body | ({"private_key": other} if "issue" in path else {})
    with pytest.raises(errors.IntegrityFailure, match="another key") as refused:
        station.provision(RUN, VIN, device, delivered=True)
    assert other.split("\n")[1] not in repr(refused.value) + str(refused.value.__cause__)
    with pytest.raises(errors.IntegrityFailure, match="unasked"):
        station.provision(RUN, OTHER, Enclave(str(tmp_path / "second")))


def test_the_token_of_another_device_releases_nothing(
    service: Service, station: Station, device: Enclave, tmp_path: Path
) -> None:
    with Enclave(str(tmp_path / "first")) as first:
        other = station.provision(RUN, OTHER, first)
    service.forge = lambda path, body: body | ({"token": other.token} if path == "/v1/prove" else {})
    with pytest.raises(errors.IntegrityFailure, match="another device"):
        station.provision(RUN, VIN, device)
    assert device.token() is None
    service.forge = lambda _, body: body
    check_released(service, device, station.provision(RUN, VIN, device))


def test_a_token_that_another_key_signed_releases_nothing(
    service: Service, station: Station, device: Enclave
) -> None:
    station.me()
    honest, service.log_key = service.log_key, Ed25519PrivateKey.generate()
    with pytest.raises(errors.IntegrityFailure):
        station.provision(RUN, VIN, device)
    assert device.token() is None
    service.log_key = honest


def test_a_token_with_another_certificate_or_attempt_releases_nothing(
    service: Service, station: Station, device: Enclave
) -> None:
    log = service.log
    changed = {"certificate_sha256": "0" * 64}

    def log_wrongly(kind: str, **fields: Any) -> int:
        if "record" in fields:
            fields["record"] = fields["record"] | changed
        return log(kind, **fields)

    service.log = log_wrongly  # type: ignore[method-assign]  # the test is the saboteur
    with pytest.raises(errors.IntegrityFailure, match="another certificate_sha256"):
        station.provision(RUN, VIN, device)
    assert device.token() is None


# --- whose device, whose journal


def test_a_device_under_way_is_not_taken_for_another(
    service: Service, station: Station, connect: Callable[..., Station], device: Enclave
) -> None:
    service.mishaps.append(("issue", misbehaviour.answers(500, "text/html", b"")))
    with pytest.raises(errors.IntegrityFailure):
        station.provision(RUN, VIN, device)
    with pytest.raises(errors.IllegalTransition, match="is under way as"):
        station.provision(RUN, OTHER, device)
    with pytest.raises(errors.IllegalTransition, match="in run"):
        station.provision("run-2", VIN, device)
    with pytest.raises(errors.IllegalTransition, match="born key"):
        station.provision(RUN, VIN, device, delivered=True)
    station.abandon(VIN, device)
    station.provision(RUN, OTHER, device)


class Module:
    """An element of somebody else: holds its key in memory and remembers nothing."""

    def __init__(self, *, makes_keys: bool = True) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.makes_keys = makes_keys
        self.certificate = b""
        self.token = ""

    def certification_request(self, hardware_id: str) -> bytes | None:
        if not self.makes_keys:
            return None
        builder = x509.CertificateSigningRequestBuilder().subject_name(name(hardware_id))
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.DER)

    def install(self, *, certificate: bytes, chain: Any, private_key: SecretBytes | None) -> None:
        self.certificate = certificate

    def read_back(self) -> bytes:
        return self.certificate

    def sign(self, message: bytes) -> bytes:
        return self.key.sign(message, ec.ECDSA(hashes.SHA256()))

    def released(self, token: str) -> None:
        self.token = token


def test_the_station_remembers_for_an_element_that_cannot(
    service: Service, connect: Callable[..., Station], home: Path
) -> None:
    module = Module()
    service.mishaps += [("prove", misbehaviour.lose_the_answer), ("prove", misbehaviour.busy())]
    with pytest.raises(errors.Unavailable):
        connect(patience_seconds=0.0).provision(RUN, VIN, module)
    assert len(list(home.glob("pending-*.json"))) == 1
    release = connect().provision(RUN, VIN, module)
    assert module.token == release.token
    assert fingerprint(module.certificate) == release.certificate_sha256
    assert service.issued[f"vin:{VIN}"] == 1
    assert list(home.glob("pending-*.json")) == []


def test_a_device_that_makes_no_key_is_told_to_have_it_delivered(station: Station) -> None:
    with pytest.raises(errors.MalformedRequest, match="delivered"):
        station.provision(RUN, VIN, Module(makes_keys=False))


# --- gangs


def _gang(tmp_path: Path, count: int) -> list[tuple[str, Enclave, bool]]:
    return [
        (f"1M8GDM9AXKP04{number:04d}", Enclave(str(tmp_path / f"g{number}")), number % 2 == 1)
        for number in range(count)
    ]


@pytest.mark.parametrize(
    ("step", "mishap"),
    [
        ("me", misbehaviour.busy()),
        ("gang-issue", misbehaviour.lose_the_answer),
        ("gang-prove", misbehaviour.lose_the_answer),
        ("gang-prove", misbehaviour.busy()),
    ],
)
def test_a_gang_is_provisioned_in_requests_of_the_size_the_service_takes(
    service: Service, station: Station, tmp_path: Path, step: str, mishap: misbehaviour.Mishap
) -> None:
    """SPEC C10."""
    service.mishaps.append((step, mishap))
    gang = _gang(tmp_path, 6)
    results = station.provision_gang(RUN, gang)
    assert all(isinstance(result, Release) for result in results)
    assert [result.hardware_id for result in results if isinstance(result, Release)] == [g[0] for g in gang]
    for (_, enclave, _), result in zip(gang, results, strict=True):
        assert isinstance(result, Release)
        assert enclave.token() == result.token
    numbers = [int(seq) for _, _, seq, _ in service.requests if seq is not None]
    assert sorted(set(numbers)) == [1, 2, 3, 4]


def test_each_of_a_gang_fails_alone(service: Service, station: Station, tmp_path: Path) -> None:
    gang = _gang(tmp_path, 4)
    gang[1] = ("XXX" + VIN[3:], gang[1][1], gang[1][2])
    gang[2] = ("short", gang[2][1], gang[2][2])
    results = station.provision_gang(RUN, gang)
    assert [type(result) for result in results] == [
        Release,
        errors.PolicyRefused,
        errors.MalformedRequest,
        Release,
    ]


def test_a_gang_that_lost_its_service_is_finished_by_the_next_call(
    service: Service, connect: Callable[..., Station], tmp_path: Path
) -> None:
    gang = _gang(tmp_path, 4)
    service.mishaps += [("gang-prove", misbehaviour.lose_the_answer), ("gang-prove", misbehaviour.busy())]
    impatient = connect(patience_seconds=0.0)
    assert [type(result) for result in impatient.provision_gang(RUN, gang)] == [errors.Unavailable] * 4
    results = connect().provision_gang(RUN, gang)
    assert all(isinstance(result, Release) for result in results)
    assert set(service.issued.values()) == {1}
    assert {int(seq) for _, _, seq, _ in service.requests if seq is not None} == {1, 2}
