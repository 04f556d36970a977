"""The station directory: written whole, read strictly (SPEC C2)."""

import os
import shutil
from pathlib import Path
from stat import S_IMODE

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark import errors
from birthmark.edge.station import Station, read_station_directory, write_station_directory
from birthmark.pki.certificates import from_pem
from birthmark.secret import SecretBytes
from tests.edge.station.authorities import certify, name, pem_key
from tests.edge.station.service import NAME, Server, Service, enrol


def test_the_directory_has_the_files_and_modes_it_should(home: Path) -> None:
    modes = {path.name: S_IMODE(path.stat().st_mode) for path in home.iterdir()}
    assert modes == {"root.crt": 0o644, "station.crt": 0o644, "station.key": 0o400, "station.toml": 0o644}
    assert S_IMODE(home.stat().st_mode) == 0o700


def test_an_encrypted_key_is_opened_with_the_passphrase_in_its_file(
    service: Service, server: Server, tmp_path: Path
) -> None:
    home = enrol(tmp_path / "s", service, server.url, passphrase=b"correct horse", vkey=True)
    assert b"ENCRYPTED" in (home / "station.key").read_bytes()
    with Station(home, server_name=NAME) as station:
        assert station.me().client == "station:ST01"
    (tmp_path / "passphrase").write_bytes(b"battery staple")
    with pytest.raises(errors.MalformedRequest, match="another passphrase") as refused:
        read_station_directory(home)
    assert "staple" not in str(refused.value)
    (tmp_path / "passphrase").unlink()
    with pytest.raises(errors.NotFound, match="passphrase file"):
        read_station_directory(home)


@pytest.mark.parametrize("line_end", [b"", b"\n", b"\r\n"])
def test_a_passphrase_is_its_file_without_one_line_end(
    service: Service, tmp_path: Path, line_end: bytes
) -> None:
    home = enrol(tmp_path / "s", service, "https://h", passphrase=b"correct horse")
    (tmp_path / "passphrase").write_bytes(b"correct horse" + line_end)
    assert read_station_directory(home).passphrase == SecretBytes(b"correct horse")


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n"])
def test_an_empty_passphrase_file_is_refused(service: Service, tmp_path: Path, content: bytes) -> None:
    home = enrol(tmp_path / "s", service, "https://h", passphrase=b"correct horse")
    (tmp_path / "passphrase").write_bytes(content)
    with pytest.raises(errors.MalformedRequest, match="holds no passphrase"):
        read_station_directory(home)


def test_a_passphrase_that_others_may_touch_is_refused(service: Service, tmp_path: Path) -> None:
    home = enrol(tmp_path / "s", service, "https://h", passphrase=b"correct horse")
    path = tmp_path / "passphrase"
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(errors.NotPermitted, match=f"passphrase has the mode {mode:04o}") as refused:
            read_station_directory(home)
        assert "horse" not in str(refused.value)
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(errors.NotPermitted, match="not a regular file"):
        read_station_directory(home)
    path.unlink()
    path.touch(mode=0o600)
    path.write_bytes(b"x" * (1 << 21))
    with pytest.raises(errors.IntegrityFailure, match="larger than"):
        read_station_directory(home)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
@pytest.mark.parametrize("which", ["passphrase", "s/station.key"])
def test_a_secret_of_another_user_is_refused(service: Service, tmp_path: Path, which: str) -> None:
    home = enrol(tmp_path / "s", service, "https://h", passphrase=b"correct horse")
    os.chown(tmp_path / which, 12345, 12345)
    with pytest.raises(errors.NotPermitted, match="belongs to user 12345"):
        read_station_directory(home)


@pytest.mark.parametrize("missing", ["station.crt", "station.key", "root.crt", "station.toml"])
def test_a_missing_file_is_named(home: Path, missing: str) -> None:
    (home / missing).unlink()
    with pytest.raises(errors.Refusal, match=missing):
        read_station_directory(home)


def test_a_key_that_others_may_read_is_refused(home: Path) -> None:
    (home / "station.key").chmod(0o440)
    with pytest.raises(errors.NotPermitted, match="0440"):
        read_station_directory(home)


@pytest.mark.parametrize(
    ("toml", "complaint"),
    [
        ('name = "a"\n', "url is a text"),
        ('name = 3\nurl = "u"\n', "name is a text"),
        ('name = "a"\nurl = "u"\nurll = "u"\n', "unknown key urll"),
        ("name = \n", "station.toml"),
    ],
)
def test_settings_with_a_typo_are_refused(home: Path, toml: str, complaint: str) -> None:
    (home / "station.toml").write_text(toml)
    with pytest.raises(errors.MalformedRequest, match=complaint):
        read_station_directory(home)


def test_a_name_with_anything_in_it_survives_the_file(home: Path, service: Service, tmp_path: Path) -> None:
    _, certificate, key = _renewed(service)
    write_station_directory(
        tmp_path / "s",
        name='Prüfstand "7"\\ ✓\x7f\x00',
        url="https://h",
        certificate_pem=certificate,
        chain_pem="",
        private_key_pem=key,
        root_pem=service.root.pem,
    )
    assert read_station_directory(tmp_path / "s").name == 'Prüfstand "7"\\ ✓\x7f\x00'


def _renewed(service: Service) -> tuple[bytes, str, SecretBytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = certify(name("ST01"), key.public_key(), service.root)
    return pem_key(key), certificate.public_bytes(Encoding.PEM).decode(), SecretBytes(pem_key(key))


def test_a_certificate_for_another_key_is_not_written(service: Service, tmp_path: Path) -> None:
    _, certificate, _ = _renewed(service)
    _, _, key = _renewed(service)
    with pytest.raises(errors.MalformedRequest, match="another key"):
        write_station_directory(
            tmp_path / "s",
            name="ST01",
            url="https://h",
            certificate_pem=certificate,
            chain_pem="",
            private_key_pem=key,
            root_pem=service.root.pem,
        )
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_something_else_is_left_alone(service: Service, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("x")
    with pytest.raises(errors.NotPermitted, match="something else"):
        enrol(tmp_path / "s", service, "https://h")


class PowerCutError(Exception):
    """The test's."""


def test_a_renewal_may_stop_anywhere_and_leaves_a_pair_that_fits(
    service: Service, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = read_station_directory(home).private_key.reveal()
    new, certificate, key = _renewed(service)
    rename, seen = os.rename, set()
    for allowed in range(8):
        copy = shutil.copytree(home, tmp_path / f"copy{allowed}")
        left = allowed

        def count(old_name: str, new_name: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
            nonlocal left
            if not left:
                raise PowerCutError
            left -= 1
            rename(old_name, new_name, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", count)
            try:
                write_station_directory(
                    copy,
                    name="ST01",
                    url="https://h",
                    certificate_pem=certificate,
                    chain_pem="",
                    private_key_pem=key,
                    root_pem=service.root.pem,
                )
                finished = True
            except PowerCutError:
                finished = False
        found = read_station_directory(copy)
        found.tls_context()
        seen.add(found.private_key.reveal())
        if finished:
            assert found.private_key.reveal() == new
            assert not (copy / "station.key.next").exists()
    assert seen == {old, new}


def test_devices_may_have_other_trust_anchors_than_the_service(
    service: Service, home: Path, tmp_path: Path
) -> None:
    """SPEC C3: without a file of their own, devices are held against the service's anchors."""
    found = read_station_directory(home)
    assert found.device_anchors() == found.anchors()
    _, certificate, key = _renewed(service)
    other = Service().root.pem
    write_station_directory(
        tmp_path / "s",
        name="ST01",
        url="https://h",
        certificate_pem=certificate,
        chain_pem="",
        private_key_pem=key,
        root_pem=service.root.pem,
        device_anchors_pem=other + service.root.pem,
    )
    found = read_station_directory(tmp_path / "s")
    assert found.anchors() == from_pem(service.root.pem)
    assert found.device_anchors() == (*from_pem(other), *from_pem(service.root.pem))
    (tmp_path / "s" / "device-anchors.pem").write_text("nothing\n")
    with pytest.raises(errors.MalformedRequest):
        Station(tmp_path / "s")
