"""A device's directory (SPEC D6): what others can see, what OpenSSL makes of it, what never changes again."""

import os
import subprocess
from pathlib import Path
from stat import S_IMODE

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from birthmark import errors
from birthmark.edge.station import Enclave, Pending, Phase
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes
from tests.edge.station.authorities import authority, certify, name
from tests.support.programs import need

CSR_OF = "1M8GDM9AXKP042788"


def _pkcs8(key: ec.EllipticCurvePrivateKey) -> SecretBytes:
    return SecretBytes(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


def _pending(phase: Phase) -> Pending:
    return Pending(
        station="ST01",
        hardware_id=CSR_OF,
        run="r",
        delivered=False,
        issue_key="k",
        issue_seq=1,
        phase=phase,
        device=f"vin:{CSR_OF}",
        attempt="0" * 32,
        challenge="00" * 32,
        certificate_sha256="0" * 64,
    )


def test_the_files_have_the_modes_they_should_under_any_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with Enclave(str(tmp_path / "d")) as device:
            device.certification_request(CSR_OF)
            device.remember(_pending(Phase.ASKING))
    finally:
        os.umask(before)
    assert S_IMODE((tmp_path / "d").stat().st_mode) == 0o700
    assert S_IMODE((tmp_path / "d" / "device.key").stat().st_mode) == 0o400
    assert S_IMODE((tmp_path / "d" / "pending.json").stat().st_mode) == 0o600
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["device.key", "pending.json"]


@pytest.mark.parametrize(
    ("algorithm", "kind"), [("ec-p256", "prime256v1"), ("ec-p384", "secp384r1"), ("ed25519", "ED25519")]
)
def test_openssl_accepts_the_request_the_key_and_the_signature(
    tmp_path: Path, algorithm: KeyAlgorithm, kind: str
) -> None:
    openssl = need("openssl")
    with Enclave(str(tmp_path / "d"), algorithm=KeyAlgorithm(algorithm)) as device:
        (tmp_path / "csr").write_bytes(device.certification_request(CSR_OF))
        (tmp_path / "message").write_bytes(b"message")
        (tmp_path / "signature").write_bytes(device.sign(b"message"))
    shown = subprocess.run(
        [openssl, "req", "-in", tmp_path / "csr", "-verify", "-noout", "-text", "-subject"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "verify OK" in shown.stderr + shown.stdout
    assert f"CN = {CSR_OF}" in shown.stdout
    assert kind.lower() in shown.stdout.lower()
    subprocess.run(
        [openssl, "pkey", "-in", tmp_path / "d" / "device.key", "-pubout", "-out", tmp_path / "pub"],
        check=True,
    )
    verify = (
        ["pkeyutl", "-verify", "-rawin", "-in", tmp_path / "message"]
        if algorithm == "ed25519"
        else [
            "pkeyutl",
            "-verify",
            "-rawin",
            "-digest",
            "sha256" if algorithm == "ec-p256" else "sha384",
            "-in",
            tmp_path / "message",
        ]
    )
    checked = subprocess.run(
        [openssl, *verify, "-pubin", "-inkey", tmp_path / "pub", "-sigfile", tmp_path / "signature"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "Verified Successfully" in checked.stdout


def test_what_was_installed_is_read_back_from_the_files(tmp_path: Path) -> None:
    above = authority("CA")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = certify(name(CSR_OF), key.public_key(), above).public_bytes(Encoding.DER)
    with Enclave(str(tmp_path / "d")) as device:
        device.install(certificate=certificate, chain=[above.der], private_key=_pkcs8(key))
        assert device.read_back() == certificate
        assert device.chain() == (above.der,)
        key.public_key().verify(device.sign(b"m"), b"m", ec.ECDSA(hashes.SHA256()))
        other = certify(name("other"), key.public_key(), above)
        (tmp_path / "d" / "device.crt").unlink()
        (tmp_path / "d" / "device.crt").write_bytes(other.public_bytes(Encoding.PEM))
        assert device.read_back() == other.public_bytes(Encoding.DER)
    parsed = x509.load_pem_x509_certificate((tmp_path / "d" / "device.crt").read_bytes())
    assert parsed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "other"


def test_nothing_changes_any_more_once_the_device_is_released(tmp_path: Path) -> None:
    """SPEC C9: no second identity."""
    with Enclave(str(tmp_path / "d")) as device:
        device.certification_request(CSR_OF)
        before = (tmp_path / "d" / "device.key").read_bytes()
        device.released("token")
        key = ec.generate_private_key(ec.SECP256R1())
        with pytest.raises(errors.IllegalTransition, match="released"):
            device.certification_request(CSR_OF)
        with pytest.raises(errors.IllegalTransition, match="released"):
            device.install(certificate=b"", chain=[], private_key=_pkcs8(key))
        assert (tmp_path / "d" / "device.key").read_bytes() == before
        assert device.token() == "token"


@pytest.mark.parametrize("phase", list(Phase))
def test_no_key_is_made_over_one_that_is_under_way(tmp_path: Path, phase: Phase) -> None:
    """While a proof is unanswered the device may be released: nobody knows."""
    with Enclave(str(tmp_path / "d")) as device:
        device.certification_request(CSR_OF)
        device.remember(_pending(phase))
        assert device.pending() == _pending(phase)
        with pytest.raises(errors.IllegalTransition):
            device.certification_request(CSR_OF)
        if phase in (Phase.PROVING, Phase.RELEASED):
            with pytest.raises(errors.IllegalTransition, match="may be released"):
                device.install(certificate=b"", chain=[], private_key=None)


def test_a_directory_belongs_to_one_at_a_time(tmp_path: Path) -> None:
    first = Enclave(str(tmp_path / "d"))
    with pytest.raises(errors.Unavailable, match="in use"):
        Enclave(str(tmp_path / "d"))
    first.close()
    Enclave(str(tmp_path / "d")).close()


def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(0o750)
    with pytest.raises(errors.NotPermitted, match="0750"):
        Enclave(str(tmp_path / "d"))


def test_what_is_missing_or_broken_is_said_without_showing_it(tmp_path: Path) -> None:
    secret, label = "c2VjcmV0IHNlY3JldCBzZWNyZXQ=", "PRIVATE KEY"
    with Enclave(str(tmp_path / "d")) as device:
        with pytest.raises(errors.NotFound, match=r"no device\.key"):
            device.sign(b"m")
        with pytest.raises(errors.NotFound, match=r"no device\.crt"):
            device.read_back()
        (tmp_path / "d" / "device.key").write_text(
            f"-----BEGIN {label}-----\n{secret}\n-----END {label}-----\n"
        )
        with pytest.raises(errors.IntegrityFailure) as broken:
            device.sign(b"m")
        error: BaseException | None = broken.value
        while error is not None:
            assert secret not in str(error)
            assert b"secret" not in repr(vars(error)).encode()
            error = error.__cause__ or error.__context__
        (tmp_path / "d" / "pending.json").write_text('{"phase": "asking"}')
        with pytest.raises(errors.IntegrityFailure, match="under way"):
            device.pending()


def test_a_key_of_a_kind_that_devices_do_not_have_is_not_stored(tmp_path: Path) -> None:
    with Enclave(str(tmp_path / "d")) as device:
        wrong = _pkcs8(ec.generate_private_key(ec.SECP256K1()))
        with pytest.raises(errors.IntegrityFailure, match="one of our algorithms"):
            device.install(certificate=b"", chain=[], private_key=wrong)
        assert list((tmp_path / "d").iterdir()) == []
