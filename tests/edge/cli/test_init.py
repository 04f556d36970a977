"""A realm is made whole or not at all (SPEC A1, A2, B1, B2, H6)."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from stat import S_IMODE
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import make_url

from birthmark import app, errors
from birthmark.edge.application import Factory
from birthmark.pki.certificates import from_pem
from birthmark.settings import load
from tests.edge.cli.ceremonies import papers_of
from tests.edge.cli.command import Place, birthmark, done
from tests.support.programs import need
from tests.support.softhsm import SoftHSM, softhsm_token

NAMES = ("--realm", "nord", "--organization", "Nord AG", "--operator", "anna")
SECOND = ("--operator", "bela")

MODES = {
    "": 0o700,
    "birthmark.toml": 0o644,
    "birthmark.db": 0o600,
    "birthmark.db.train": 0o600,
    "root.crt": 0o644,
    "log.vkey": 0o644,
    "server.crt": 0o644,
    "keys": 0o700,
    "keys/issuing-1.p8": 0o400,
    "keys/log.p8": 0o400,
    "root": 0o700,
    "root/root.crt": 0o644,
    "root/passphrase": 0o400,
    "root/keys": 0o700,
    "root/keys/root.p8": 0o400,
    "root/key-store.toml": 0o644,
    "ceremony": 0o700,
    "ceremony/ceremony.yaml": 0o600,
    "ceremony/journal.jsonl": 0o600,
    "ceremony/record.json": 0o600,
    "ceremony/record.txt": 0o600,
    "ceremony/record.html": 0o600,
    "ceremony/record.tlog-proof": 0o600,
    "ceremony/log.vkey": 0o600,
    "ceremony/certificates": 0o700,
    "ceremony/certificates/root.crt": 0o600,
    "ceremony/certificates/issuing-1.crt": 0o600,
    "secrets": 0o700,
    "secrets/keystore.passphrase": 0o400,
    "secrets/server.key": 0o400,
    "secrets/server.passphrase": 0o400,
    "stations": 0o700,
    "stations/ST01": 0o700,
    "stations/ST01/station.key": 0o400,
    "operators": 0o700,
    "operators/anna": 0o700,
    "operators/anna/station.key": 0o400,
}
"""Every file and directory that is made, the public parts of a credential apart."""
CREDENTIAL_FILES = {"station.crt", "station.toml", "root.crt", "device-anchors.pem", "vkey"}


def split_url(url: str, directory: Path) -> list[str]:
    """Return the options for a test database: the password is in a file, never in an argument."""
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        return ["--database-url", f"sqlite:///{address.database}"]
    password_file = directory / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(f"{address.password}\n")
    plain = f"postgresql://{address.username}@{address.host}:{address.port}/{address.database}"
    return ["--database-url", plain, "--database-password-file", str(password_file)]


def test_every_file_has_its_mode_and_nothing_else_is_made(made_realm: Path) -> None:
    found = {"": S_IMODE(made_realm.stat().st_mode)}
    for path in made_realm.rglob("*"):
        if path.name.endswith(("-wal", "-shm")):  # SQLite's own, while somebody has it open
            continue
        name = str(path.relative_to(made_realm))
        if path.name in CREDENTIAL_FILES and path.parent.parent.name in {"stations", "operators"}:
            assert S_IMODE(path.stat().st_mode) & 0o022 == 0
            continue
        found[name] = S_IMODE(path.stat().st_mode)
    assert found == MODES


def test_openssl_builds_the_chains_and_opens_the_server_key(made_realm: Path) -> None:
    openssl = need("openssl")
    for purpose, leaf in (
        ("sslserver", made_realm / "server.crt"),
        ("sslclient", made_realm / "stations/ST01/station.crt"),
        ("sslclient", made_realm / "operators/anna/station.crt"),
    ):
        arguments: list[str | Path] = [
            "-purpose",
            purpose,
            "-CAfile",
            made_realm / "root.crt",
            "-untrusted",
            leaf,
            leaf,
        ]
        subprocess.run([openssl, "verify", "-x509_strict", *arguments], check=True, capture_output=True)
    given: list[str | Path] = [
        "-in",
        made_realm / "secrets/server.key",
        "-passin",
        f"file:{made_realm}/secrets/server.passphrase",
    ]
    key = subprocess.run([openssl, "pkey", *given, "-pubout"], check=True, capture_output=True)
    certificate: list[str | Path] = ["-in", made_realm / "server.crt", "-noout", "-pubkey"]
    assert (
        key.stdout == subprocess.run([openssl, "x509", *certificate], check=True, capture_output=True).stdout
    )


def test_everything_in_a_fresh_realm_agrees(realm: Place, tmp_path: Path) -> None:
    assert realm.done("check", "--json").document["ok"] is True
    verdicts = {row["check"]: row["verdict"] for row in realm.done("config", "check", "--json").document}
    assert verdicts.pop("service user") == ("warning" if os.geteuid() == 0 else "ok")
    assert set(verdicts.values()) == {"ok"}
    assert "authority issuing-1" in verdicts
    bundle = tmp_path / "log.zip"
    realm.done("log", "export", bundle)
    assert done("log", "verify", bundle, "--vkey", realm.vkey, "--json").document["size"] == 6


def test_the_service_does_not_hold_the_roots_key(realm: Place) -> None:
    assert sorted(path.stem for path in (realm.directory / "keys").iterdir()) == ["issuing-1", "log"]


def test_a_realm_goes_on_without_the_roots_folder_and_in_another_place(realm: Place) -> None:
    (realm.directory / "root").rename(realm.directory.parent / "in the safe")
    moved = Place(realm.directory.rename(realm.directory.parent / "elsewhere"))
    moved.done("config", "check")
    assert moved.open_run("R1", "--quantity", 1).code == 0


def test_the_authorities_of_a_test_realm_say_so_and_production_does_not(
    made_realm: Path, tmp_path: Path
) -> None:
    production = tmp_path / "real"
    papers = papers_of(tmp_path)
    made = done("init", production, *NAMES, "--environment", "production", "--development-keys", *papers)
    assert re.search(r"birthmark run open .* --as operators/\w+$", made.out, re.MULTILINE)
    assert "TEST" in subject(made_realm / "root.crt")
    assert "TEST" in Place(made_realm).done("authority", "show", "issuing-1").out
    assert "TEST" not in subject(production / "root.crt")
    assert "TEST" not in Place(production).done("authority", "show", "issuing-1").out
    verdicts = {row["check"]: row for row in Place(production).done("config", "check", "--json").document}
    assert verdicts["key store"]["verdict"] == "warning"
    assert "development" in verdicts["key store"]["text"]


def subject(path: Path) -> str:
    certificate = x509.load_der_x509_certificate(from_pem(path.read_text())[0])
    return certificate.subject.rfc4514_string()


def test_a_production_realm_with_keys_in_files_is_refused_with_the_reason(tmp_path: Path) -> None:
    said = birthmark("init", tmp_path / "real", *NAMES, *SECOND, "--environment", "production")
    assert said.code == 1
    assert "token" in said.err
    assert "--development-keys" in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_production_realm_with_one_officer_is_refused_with_the_reason(tmp_path: Path) -> None:
    """SPEC K1: alone, that one could neither open a run nor let anybody in."""
    options = ("--environment", "production", "--development-keys")
    for again, reason in (((), "2 officers"), (("--operator", "anna"), "named twice")):
        said = birthmark("init", tmp_path / "real", *NAMES, *again, *options)
        assert said.code != 0
        assert reason in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_production_realm_without_a_ceremony_of_two_is_refused_with_the_reason(tmp_path: Path) -> None:
    """SPEC A3: nobody makes the keys of a production realm alone."""
    options = ("--environment", "production", "--development-keys")
    said = birthmark("init", tmp_path / "real", *NAMES, *SECOND, *options)
    assert said.code == 1
    assert "--ceremony" in said.err
    papers = papers_of(tmp_path)
    alone = birthmark("init", tmp_path / "real", *NAMES, *options, *papers[:2], *papers[4:])
    assert alone.code == 77
    assert "needs 2 of its 3 custodians" in alone.err
    other = birthmark("init", tmp_path / "real", *NAMES, "--development-keys", *papers)
    assert other.code == 77
    assert "for realm nord (production)" in other.err
    assert not (tmp_path / "real").exists()


def test_a_software_key_store_is_called_development_wherever_it_shows(realm: Place) -> None:
    assert "development" in realm.done("authority", "list").out
    assert "development" in realm.done("authority", "show", "issuing-1").out
    assert "development" in realm.done("config", "check").out


def test_no_secret_is_printed(tmp_path: Path) -> None:
    directory = tmp_path / "nord"
    said = done("--debug", "init", directory, *NAMES)
    secrets = [*(directory / "secrets").glob("*.passphrase"), directory / "root/passphrase"]
    for path in secrets:
        secret = path.read_text().strip()
        assert len(secret) == 64
        assert secret not in said.out + said.err + (directory / "birthmark.toml").read_text()
    assert len({path.read_text() for path in secrets}) == len(secrets)
    assert "PRIVATE KEY" not in said.out + said.err


def test_given_passphrases_stay_where_they_are(tmp_path: Path) -> None:
    given = []
    for name in ("root.secret", "keys.secret"):
        path = tmp_path / name
        path.touch(mode=0o600)
        path.write_text(f"a passphrase called {name}\n")
        given.append(path)
    options = ("--root-passphrase-file", given[0], "--passphrase-file", given[1])
    place = Place(tmp_path / "nord")
    done("init", place.directory, *NAMES, *options)
    assert not (place.directory / "root/passphrase").exists()
    assert not (place.directory / "secrets/keystore.passphrase").exists()
    place.done("config", "check")


def test_what_is_made_can_be_read_by_programs(tmp_path: Path) -> None:
    directory = tmp_path / "nord"
    said = done("init", directory, *NAMES, "--station", "A", "--station", "B", "--site", "halle 3+", "--json")
    made = said.document
    assert made["log_origin"] == "nord/halle-3-/log"
    assert made["stations"] == [str(directory / "stations/A"), str(directory / "stations/B")]
    assert (directory / "log.vkey").read_text().strip() == made["log_vkey"]
    assert made["checkpoint"].splitlines()[:2] == ["nord/halle-3-/log", "7"]


def test_the_device_plane_is_on_when_a_port_is_given_and_a_comment_otherwise(tmp_path: Path) -> None:
    place, plain = Place(tmp_path / "nord"), Place(tmp_path / "sued")
    done("init", place.directory, *NAMES, "--host", "127.0.0.3", "--ip", "127.0.0.3", "--device-port", 9445)
    done("init", plain.directory, *NAMES)
    table = load(place.settings).device_plane
    assert (table.host, table.port) == ("127.0.0.3", 9445)
    place.done("config", "check")
    settings = load(plain.settings)
    assert (settings.device_table, settings.enrolment_table) == (None, None)
    commented = (
        plain.settings.read_text().replace("# [device", "[device").replace("# [enrolment", "[enrolment")
    )
    plain.settings.write_text(re.sub(r"(?m)^# (host|port) = ", r"\1 = ", commented))
    switched_on = load(plain.settings)
    assert (switched_on.device_plane.port, switched_on.enrolment_plane.port) == (8445, 8444)


# --- refused, and nothing left ----------------------------------------------------------------------------


def test_an_empty_directory_is_taken_and_a_full_one_is_not(tmp_path: Path) -> None:
    directory = tmp_path / "nord"
    directory.mkdir(mode=0o755)
    done("init", directory, *NAMES)
    assert S_IMODE(directory.stat().st_mode) == 0o700
    before = (directory / "root.crt").read_bytes()
    said = birthmark("init", directory, *NAMES)
    assert said.code == 1
    assert "not empty" in said.err
    assert (directory / "root.crt").read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        ("--realm", "two words"),
        ("--organization", "a\nb"),
        ("--station", "a/b"),
        ("--station", ".."),
        ("--station", "A", "--station", "A"),
        ("--operator", "a b"),
        ("--log-origin", "with space"),
        ("--log-origin", "a+b"),
        ("--ip", "localhost"),
        ("--authority", "Upper"),
        ("--port", "8443", "--device-port", "8443"),
        ("--token-module", "/usr/lib/x.so"),
        ("--database-url", "mysql://x/y"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_anything_is_made(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    said = birthmark("init", tmp_path / "nord", *NAMES, *options)
    assert said.code == 65, said
    assert list(tmp_path.iterdir()) == []


def test_a_database_password_in_an_argument_is_refused(tmp_path: Path) -> None:
    said = birthmark("init", tmp_path / "n", *NAMES, "--database-url", "postgresql://b:hunter2@localhost/db")
    assert said.code == 65
    assert "password-file" in said.err
    assert "hunter2" not in said.err


class Failing:
    """The real factory, one of whose methods fails at its nth call: not done, or done and then failed."""

    def __init__(self, method: str, nth: int, *, after: bool) -> None:
        self._left = nth
        self._method = method
        self._after = after

    def __getattr__(self, name: str) -> Any:
        real: Callable[..., Any] = getattr(app, name)
        if name != self._method:
            return real

        def failing(*arguments: Any) -> Any:
            self._left -= 1
            if self._left:
                return real(*arguments)
            if self._after:
                made = real(*arguments)
                if name == "build":
                    made.close()
            raise errors.Unavailable(f"{name} was made to fail")

        return failing


@pytest.mark.parametrize("after", [False, True], ids=["not done", "done and failed"])
@pytest.mark.parametrize(
    ("method", "nth"),
    [
        ("entropy", 1),
        ("open_key_store", 1),
        ("migrate", 1),
        ("open_key_store", 2),
        ("create_realm", 1),
        ("build", 1),
    ],
)
def test_a_broken_init_leaves_nothing(method: str, nth: int, after: bool, tmp_path: Path) -> None:  # noqa: FBT001  # a case, not a switch
    def loader() -> Factory:
        return Failing(method, nth, after=after)

    directory = tmp_path / "nord"
    directory.mkdir()
    said = birthmark("init", directory, *NAMES, loader=loader)
    assert said.code == 75
    assert [path.name for path in tmp_path.iterdir()] == ["nord"]
    assert list(directory.iterdir()) == []
    done("init", directory, *NAMES)


# --- databases and tokens ---------------------------------------------------------------------------------


def test_a_realm_is_made_on_either_database(database_url: str, tmp_path: Path) -> None:
    place = Place(tmp_path / "nord")
    options = split_url(database_url, tmp_path)
    done("init", place.directory, *NAMES, *options)
    place.done("config", "check")
    place.done("check")
    place.done("database", "migrate")
    assert place.open_run("R1", "--quantity", 5).code == 0
    taken = birthmark("init", tmp_path / "again", *NAMES, *options)
    assert taken.code == 1
    assert "already belongs to realm nord" in taken.err
    assert not (tmp_path / "again").exists()


def token_options(token: SoftHSM) -> tuple[object, ...]:
    return ("--token-module", token.module, "--token-label", token.label, "--token-pin-file", token.pin_file)


def test_a_realm_is_made_with_its_keys_in_a_token(tmp_path: Path) -> None:
    with softhsm_token(tmp_path) as token:
        place = Place(tmp_path / "nord")
        options = (
            "--token-module",
            token.module,
            "--token-label",
            token.label,
            "--token-pin-file",
            token.pin_file,
        )
        papers = papers_of(tmp_path, prefix="n.")
        prefix = ("--key-prefix", "n.")
        done("init", place.directory, *NAMES, "--environment", "production", *prefix, *options, *papers)
        assert not (place.directory / "keys").exists()
        assert "development" not in place.done("authority", "list").out
        assert place.done("authority", "show", "issuing-1", "--json").document["key_label"] == "n.issuing-1"
        place.done("config", "check")
        place.done("check")
        done("ceremony", "verify", place.directory / "ceremony", "--vkey", place.vkey)
        again = birthmark("init", tmp_path / "two", *NAMES, *prefix, *options)
        assert again.code == 1
        assert "n.log" in again.err
        assert not (tmp_path / "two").exists()


def test_a_token_without_eddsa_is_refused_with_the_reason(tmp_path: Path) -> None:
    with softhsm_token(tmp_path, mechanisms="-CKM_EC_EDWARDS_KEY_PAIR_GEN,CKM_EDDSA") as token:
        options = (
            "--token-module",
            token.module,
            "--token-label",
            token.label,
            "--token-pin-file",
            token.pin_file,
        )
        said = birthmark("init", tmp_path / "nord", *NAMES, *options)
    assert said.code == 1
    assert "Ed25519" in said.err
    assert not (tmp_path / "nord").exists()
