"""The key store in files: what is on the disk, and whom it refuses (SPEC B2)."""

import base64
import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap_with_padding
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from birthmark import errors
from birthmark.adapters import softsecrets
from birthmark.adapters.custody import SECRET_FILE_LIMIT, read_passphrase_file
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.pki.attributes import SecretKind
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.secret import SecretBytes
from tests.support import guessing
from tests.support.programs import need

LABEL = KeyLabel("log")
PASSPHRASE = SecretBytes(b"correct horse battery staple")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "keys"


@pytest.fixture
def store(directory: Path) -> SoftwareKeyStore:
    return SoftwareKeyStore.open(directory, PASSPHRASE)


def put(directory: Path, content: bytes, mode: int = 0o400) -> Path:
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / f"{LABEL}.p8"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_a_key_is_one_file_that_only_its_owner_may_read(store: SoftwareKeyStore, directory: Path) -> None:
    store.generate(LABEL, KeyAlgorithm.EC_P256)
    assert [path.name for path in directory.iterdir()] == ["log.p8"]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE((directory / "log.p8").stat().st_mode) == 0o400


@pytest.mark.parametrize("algorithm", KeyAlgorithm)
def test_openssl_opens_the_file_with_the_passphrase(
    store: SoftwareKeyStore, directory: Path, tmp_path: Path, algorithm: KeyAlgorithm
) -> None:
    """B2: the way out of this store is a standard's, RFC 5958 and RFC 7914."""
    spki = store.generate(LABEL, algorithm)
    passphrase = tmp_path / "passphrase"
    passphrase.write_bytes(PASSPHRASE.reveal())
    command = [need("openssl"), "pkey", "-in", str(directory / "log.p8"), "-passin", f"file:{passphrase}"]
    done = subprocess.run([*command, "-pubout", "-outform", "DER"], capture_output=True, check=True)
    assert done.stdout == spki


def test_guessing_the_passphrase_costs_scrypt(
    store: SoftwareKeyStore, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B2: N=2^14, r=8, p=5, a fresh salt each; OpenSSL's eyes, not ours."""
    monkeypatch.setattr(softsecrets, "COST", guessing.REAL)
    described = []
    for label in ("a", "b"):
        store.generate(KeyLabel(label), KeyAlgorithm.ED25519)
        command = [need("openssl"), "asn1parse", "-in", str(directory / f"{label}.p8")]
        described.append(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    lines = [line.split() for line in described[0].splitlines()]
    assert [line[-1] for line in lines if "OBJECT" in line] == [":PBES2", ":scrypt", ":aes-256-cbc"]
    assert [line[-1] for line in lines if "INTEGER" in line] == [":4000", ":08", ":05", ":20"]
    secrets = [
        {line.rsplit(":", 1)[1] for line in text.splitlines() if "OCTET STRING" in line} for text in described
    ]
    assert len(secrets[0]) == 3
    assert not secrets[0] & secrets[1]


def test_a_wrong_passphrase_is_refused_at_the_start(store: SoftwareKeyStore, directory: Path) -> None:
    """B2: so that no store ever holds keys under two passphrases."""
    store.generate(LABEL, KeyAlgorithm.ED25519)
    with pytest.raises(errors.NotPermitted, match="the passphrase does not open") as refusal:
        SoftwareKeyStore.open(directory, SecretBytes(b"wrong horse"))
    assert "horse" not in str(refusal.value) + repr(refusal.value.__cause__)


def test_an_empty_passphrase_is_refused(directory: Path) -> None:
    with pytest.raises(errors.MalformedRequest):
        SoftwareKeyStore.open(directory, SecretBytes(b""))
    assert not directory.exists()


def test_a_directory_open_to_others_is_refused_with_the_cure(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o750)
    with pytest.raises(errors.NotPermitted, match=r"mode 0750.*chmod 700"):
        SoftwareKeyStore.open(directory, PASSPHRASE)


def test_a_directory_that_cannot_be_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match="No such file"):
        SoftwareKeyStore.open(tmp_path / "missing" / "keys", PASSPHRASE)
    (tmp_path / "file").touch()
    with pytest.raises(errors.Unavailable, match="File exists"):
        SoftwareKeyStore.open(tmp_path / "file", PASSPHRASE)


@pytest.mark.parametrize("mode", [0o440, 0o404, 0o420, 0o401])
def test_a_key_file_open_to_others_is_refused_with_the_cure(
    store: SoftwareKeyStore, directory: Path, mode: int
) -> None:
    store.generate(LABEL, KeyAlgorithm.ED25519)
    (directory / "log.p8").chmod(mode)
    with pytest.raises(errors.NotPermitted, match="chmod go="):
        SoftwareKeyStore.open(directory, PASSPHRASE)


def test_a_key_file_that_is_a_link_is_refused(store: SoftwareKeyStore, directory: Path) -> None:
    store.generate(LABEL, KeyAlgorithm.ED25519)
    (directory / "log.p8").rename(directory / "elsewhere")
    (directory / "log.p8").symlink_to("elsewhere")
    with pytest.raises(errors.NotPermitted, match="symbolic link"):
        SoftwareKeyStore.open(directory, PASSPHRASE)


def test_a_key_that_is_not_encrypted_is_refused(directory: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    put(directory, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(errors.IntegrityFailure, match="not encrypted"):
        SoftwareKeyStore.open(directory, PASSPHRASE)


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP256K1()), rsa.generate_private_key(65537, 2056)],
    ids=["secp256k1", "RSA-2056"],
)
def test_a_key_of_another_type_is_refused(
    directory: Path, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
) -> None:
    scheme = BestAvailableEncryption(PASSPHRASE.reveal())
    put(directory, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, scheme))
    with pytest.raises(errors.IntegrityFailure, match="not one of ours"):
        SoftwareKeyStore.open(directory, PASSPHRASE)


@pytest.mark.parametrize("damage", ["emptied", "cut", "flipped", "too long"])
def test_a_damaged_file_is_refused_and_never_used(directory: Path, damage: str) -> None:
    SoftwareKeyStore.open(directory, PASSPHRASE).generate(LABEL, KeyAlgorithm.EC_P256)
    path = directory / "log.p8"
    lines = path.read_bytes().split(b"\n")
    body = base64.b64decode(b"".join(lines[1:-2]))
    match damage:
        case "emptied":
            content = b""
        case "cut":
            content = b"\n".join(lines[:3])
        case "flipped":
            flipped = base64.b64encode(body[:-40] + bytes([body[-40] ^ 1]) + body[-39:])
            content = b"\n".join([lines[0], flipped, *lines[-2:]])
        case _:
            content = path.read_bytes() + b"#" * 5000
    path.unlink()
    put(directory, content)
    with pytest.raises((errors.NotPermitted, errors.TooLarge), match=r"log\.p8"):
        SoftwareKeyStore.open(directory, PASSPHRASE)


def test_a_file_under_the_label_is_never_overwritten(store: SoftwareKeyStore, directory: Path) -> None:
    """Whatever it is: also one that no process of ours made, or a link to nowhere."""
    path = put(directory, b"not ours")
    with pytest.raises(errors.IllegalTransition):
        store.generate(LABEL, KeyAlgorithm.ED25519)
    assert path.read_bytes() == b"not ours"
    path.unlink()
    path.symlink_to("nowhere")
    with pytest.raises(errors.IllegalTransition):
        store.generate(LABEL, KeyAlgorithm.ED25519)
    assert path.is_symlink()
    assert [path.name for path in directory.iterdir()] == ["log.p8"]


def test_what_a_crash_left_half_written_is_no_key(store: SoftwareKeyStore, directory: Path) -> None:
    (directory / ".0011223344556677.unfinished").write_bytes(b"-----BEGIN")
    (directory / "README").write_text("not a key")
    (directory / "Not-A-Label.p8").write_text("not a key")
    assert store.labels() == ()
    store.generate(LABEL, KeyAlgorithm.ED25519)
    assert SoftwareKeyStore.open(directory, PASSPHRASE).labels() == (LABEL,)


def test_a_store_sees_the_keys_another_process_made(store: SoftwareKeyStore, directory: Path) -> None:
    spki = SoftwareKeyStore.open(directory, PASSPHRASE).generate(LABEL, KeyAlgorithm.ED25519)
    assert store.labels() == (LABEL,)
    assert store.public_key(LABEL) == spki


@pytest.mark.parametrize(
    ("content", "passphrase"),
    [
        (b"secret", b"secret"),
        (b"secret\n", b"secret"),
        (b"secret\r\n", b"secret"),
        (b"a b\n\n", b"a b\n"),
        (b" \n", b" "),
    ],
)
def test_a_passphrase_is_its_file_without_one_line_end(
    tmp_path: Path, content: bytes, passphrase: bytes
) -> None:
    path = tmp_path / "passphrase"
    path.touch(mode=0o600)
    path.write_bytes(content)
    assert read_passphrase_file(path) == SecretBytes(passphrase)


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n"])
def test_an_empty_passphrase_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "passphrase"
    path.touch(mode=0o600)
    path.write_bytes(content)
    with pytest.raises(errors.MalformedRequest, match="holds no passphrase"):
        read_passphrase_file(path)


def test_a_passphrase_file_open_to_others_is_refused_also_behind_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "passphrase", tmp_path / "link"
    path.write_bytes(b"seen by all")
    link.symlink_to(path)
    for mode in (0o644, 0o640, 0o604, 0o620):
        path.chmod(mode)
        for name in (path, link):
            with pytest.raises(errors.NotPermitted, match=f"mode {mode:04o}.*chmod go=") as refusal:
                read_passphrase_file(name)
            assert "seen by all" not in str(refusal.value)
    path.chmod(0o400)
    assert read_passphrase_file(link) == SecretBytes(b"seen by all")


def test_a_passphrase_file_is_a_short_regular_file(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        read_passphrase_file(tmp_path / "missing")
    with pytest.raises(errors.NotPermitted, match="not a regular file"):
        read_passphrase_file(tmp_path)
    os.mkfifo(tmp_path / "fifo", 0o600)
    with pytest.raises(errors.NotPermitted, match="not a regular file"):
        read_passphrase_file(tmp_path / "fifo")
    path = tmp_path / "long"
    path.touch(mode=0o600)
    path.write_bytes(b"x" * (SECRET_FILE_LIMIT + 1))
    with pytest.raises(errors.TooLarge):
        read_passphrase_file(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file to another user needs root")
def test_a_passphrase_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    path.touch(mode=0o600)
    path.write_bytes(b"secret")
    os.chown(path, 12345, 12345)
    with pytest.raises(errors.NotPermitted, match="belongs to user 12345"):
        read_passphrase_file(path)


def test_a_secret_on_a_read_only_mount_is_taken_with_the_mode_it_has(tmp_path: Path) -> None:
    """Container engines hand secrets over as 0444 on a read-only mount."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    mount, umount = need("mount"), need("umount")
    done = subprocess.run([mount, "-t", "tmpfs", "none", str(tmp_path)], check=False, capture_output=True)
    if done.returncode != 0:
        pytest.skip("this user may not mount here a tmpfs")
    try:
        secret = tmp_path / "passphrase"
        secret.write_text("correct horse\n")
        secret.chmod(0o444)
        with pytest.raises(errors.NotPermitted, match="open to group or others"):
            read_passphrase_file(secret)
        subprocess.run([mount, "-o", "remount,ro", str(tmp_path)], check=True)
        assert read_passphrase_file(secret) == SecretBytes(b"correct horse")
    finally:
        subprocess.run([umount, str(tmp_path)], check=True)


@pytest.fixture
def on_root() -> Iterator[Path]:
    """A directory on the root file system, wherever temporary files lie."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        if Path(name).stat().st_dev != Path("/").stat().st_dev:
            pytest.skip("temporary files that outlive a boot are on a file system of their own")
        yield Path(name)


def test_a_read_only_mount_of_the_root_file_system_excuses_nothing(on_root: Path) -> None:
    """What is no mount of its own was not handed over: a root file system may well be read-only."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    mount, umount = need("mount"), need("umount")
    secret = on_root / "passphrase"
    secret.write_text("correct horse\n")
    secret.chmod(0o444)
    done = subprocess.run([mount, "--bind", str(on_root), str(on_root)], check=False, capture_output=True)
    if done.returncode != 0:
        pytest.skip("this user may not mount here")
    try:
        subprocess.run([mount, "-o", "remount,bind,ro", str(on_root)], check=True)
        with pytest.raises(errors.NotPermitted, match="open to group or others"):
            read_passphrase_file(secret)
    finally:
        subprocess.run([umount, str(on_root)], check=True)


def test_no_secret_key_shows_itself_on_its_way() -> None:
    """B2: what is handed from function to function cannot be printed; the value is there all the same."""
    value = bytes(range(32))
    sealed = softsecrets.seal_secret(LABEL, SecretKind.KEK, SecretBytes(value), PASSPHRASE)
    kind, opened = softsecrets.open_secret(LABEL, sealed, PASSPHRASE)
    transport = rsa.generate_private_key(65537, softsecrets.TRANSPORT_BITS)
    public = transport.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    taken = softsecrets.open_share(transport, SecretKind.KEK, softsecrets.share_with(public, opened))
    pkcs8 = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
    )
    wrapped = softsecrets.wrapped_under(taken, SecretBytes(pkcs8))
    assert aes_key_unwrap_with_padding(value, wrapped) == pkcs8
    unwrapped = softsecrets.unwrapped(taken, wrapped, LABEL)
    assert kind is SecretKind.KEK
    assert (opened, taken, unwrapped) == (SecretBytes(value), SecretBytes(value), SecretBytes(pkcs8))
    assert [f"{each!r} {each}" for each in (opened, taken)] == [
        "SecretBytes(<32 bytes>) SecretBytes(<32 bytes>)"
    ] * 2
