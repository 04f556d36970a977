"""A delivered key is of the first algorithm that its profile allows (SPEC B7, C5)."""

import itertools
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_der_private_key

from birthmark.pki.algorithms import PrivateKey, recognise, signature_by
from birthmark.pki.certificates import Certificate, fingerprint
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.possession import proof_message
from birthmark.pki.profiles import Catalogue
from birthmark.services.check import check
from birthmark.services.issue import Issued
from birthmark.services.prove import ProveRequest
from tests.support.realm import Line, workpiece

_numbers = itertools.count(1)


def own_profile(directory: Path, algorithms: list[str]) -> Catalogue:
    directory.mkdir()
    text = Path("src/birthmark/pki/profiles/vehicle.toml").read_text().replace('"vehicle"', '"own"')
    listed = ", ".join(f'"{name}"' for name in algorithms)
    text = text.replace('["ec-p256", "ec-p384", "ed25519"]', f"[{listed}]").replace("1024", "2048")
    (directory / "own.toml").write_text(text)
    return Catalogue.read(directory)


def opened(issued: Issued) -> PrivateKey:
    assert issued.private_key is not None
    key = load_der_private_key(issued.private_key.reveal(), None)
    assert isinstance(
        key,
        ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey,
    )
    return key


def proved(issued: Issued, key: PrivateKey) -> ProveRequest:
    digest = fingerprint(issued.certificate)
    message = proof_message(attempt=issued.attempt, certificate_sha256=digest, challenge=issued.challenge)
    return ProveRequest(
        attempt=issued.attempt,
        certificate_sha256=digest,
        signature=signature_by(key, message),
        key=f"delivered-{next(_numbers)}",
    )


@pytest.mark.parametrize("algorithm", [one for one in KeyAlgorithm if one is not KeyAlgorithm.RSA_4096])
def test_a_key_of_every_algorithm_is_delivered_and_proves_its_certificate(
    algorithm: KeyAlgorithm, small_line: Line, tmp_path: Path
) -> None:
    line, catalogue = (
        small_line,
        own_profile(tmp_path / "profiles", list(dict.fromkeys((str(algorithm), "ec-p256")))),
    )
    service = line.another_service(catalogue=catalogue)
    licence = line.licence("R2", profile="own", profile_sha256=catalogue.load("own").sha256)
    service.carry(service.opening.open(line.operator.caller, licence, line.sign(licence)))
    device = workpiece("D1", delivered=True)
    issued = line.issue(device, run="R2", service=service)
    key = opened(issued)
    assert x509.load_der_x509_certificate(issued.certificate).public_key() == key.public_key()
    assert recognise(Certificate.from_der(issued.certificate).subject_public_key_info) is algorithm
    assert line.prove(proved(issued, key), service=service).device == "serial:D1"
    assert check(service.store, service.store.log, line.realm).findings == []
