"""The settings file: what cannot be meant is refused at start, and no secret stands in it (SPEC B7, K5)."""

import traceback
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.settings import Settings, TokenKeys, load

_FILE = """\
[realm]
name = "nord"
environment = "test"
organization = "Acme"
[database]
url = "{url}"
[key-store]
kind = "software"
directory = "keys"
passphrase-file = "keystore.passphrase"
[station-plane]
certificate-file = "server.crt"
key-file = "server.key"
key-passphrase-file = "server.passphrase"
client-ca-file = "root.crt"
"""


def written(folder: Path, url: str) -> Path:
    path = folder / "birthmark.toml"
    path.write_text(_FILE.format(url=url))
    return path


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:horse@h/db",
        "postgresql://u:@h/db",
        "postgresql://u@h/db?password=horse",
        "postgresql://u@h/db?sslmode=require&sslpassword=horse",
        "postgresql://u@h/db?%70assword=horse",
    ],
)
def test_a_database_url_with_a_password_is_refused_and_not_repeated(tmp_path: Path, url: str) -> None:
    with pytest.raises(errors.MalformedRequest, match="into a password-file") as refused:
        load(written(tmp_path, url))
    assert "database.url" in str(refused.value)
    assert "horse" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize(
    "url", ["mysql://u@h/db", "birthmark.db", "postgres://u@h/db", "postgresql://[::1/db"]
)
def test_a_database_url_of_another_kind_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(errors.MalformedRequest, match=r"database\.url: (a|the) database url"):
        load(written(tmp_path, url))


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        (
            "postgresql://u@h:5432/db?application_name=password",
            "postgresql://u@h:5432/db?application_name=password",
        ),
        ("sqlite:////var/lib/b.db", "sqlite:////var/lib/b.db"),
        ("sqlite:///b.db", "sqlite:///{folder}/b.db"),
    ],
)
def test_a_database_url_without_a_password_is_taken(tmp_path: Path, url: str, meant: str) -> None:
    assert load(written(tmp_path, url)).database.url == meant.format(folder=tmp_path.resolve())


def test_an_unknown_key_is_refused_without_its_value(tmp_path: Path) -> None:
    path = written(tmp_path, "sqlite:///b.db")
    path.write_text(path.read_text().replace("[key-store]", 'password = "horse"\n[key-store]'))
    with pytest.raises(errors.MalformedRequest, match=r"database\.password") as refused:
        load(path)
    assert "horse" not in "".join(traceback.format_exception(refused.value))


_PUBLIC = """\
[realm]
name = "nord"
environment = "test"
organization = "Acme"
[public-plane]
directory = "www"
"""


def _loaded(folder: Path, text: str) -> Settings:
    path = folder / "birthmark.toml"
    path.write_text(text)
    return load(path)


def test_a_public_hosts_settings_have_no_key_of_an_authority(tmp_path: Path) -> None:
    """SPEC F4: what needs one says that it is not there."""
    settings = _loaded(tmp_path, _PUBLIC)
    assert settings.public_directory == tmp_path.resolve() / "www"
    for table in ("key_store", "database", "station_plane", "publication"):
        with pytest.raises(errors.NotFound, match=rf"no \[{table.replace('_', '-')}\]"):
            getattr(settings, table)


@pytest.mark.parametrize(
    ("addition", "said"),
    [
        ('ocsp = "live"\n', "key-store of the responder's own"),
        ('ocsp = "live"\nkey-store = {kind="software",directory="k",passphrase-file="p"}\n', r"\[database\]"),
        ("ocsp = 1\n", "ocsp"),
        ("certificate-file = 'x'\n", "certificate-file"),
    ],
)
def test_a_public_plane_that_could_not_answer_is_refused(tmp_path: Path, addition: str, said: str) -> None:
    """SPEC F3, F4, P18."""
    with pytest.raises(errors.MalformedRequest, match=said):
        _loaded(tmp_path, _PUBLIC + addition)


def test_the_public_plane_does_not_open_the_store_of_the_authorities_keys(tmp_path: Path) -> None:
    """SPEC F4."""
    keys = 'kind="software"\ndirectory="keys"\npassphrase-file="p"\n'
    text = _PUBLIC + f'[database]\nurl="sqlite:///b.db"\n[key-store]\n{keys}[public-plane.key-store]\n{keys}'
    with pytest.raises(errors.MalformedRequest, match="that of the authorities' keys"):
        _loaded(tmp_path, text)


_PUBLICATION = """\
[publication]
url = "http://pki.example.com"
directory = "www"
"""


@pytest.mark.parametrize(
    ("addition", "said"),
    [
        ("crl-hours = 24\n", "would raise the alarm"),
        ("ocsp-refresh-hours = 72\n", "would end before they are refreshed"),
        ("ocsp-hashes = ['md5']\n", "ocsp-hashes"),
    ],
)
def test_times_of_publication_that_do_not_fit_are_refused(tmp_path: Path, addition: str, said: str) -> None:
    """SPEC F2."""
    assert _loaded(tmp_path, _PUBLIC + _PUBLICATION).publication.locations.ocsp.endswith("/ocsp")
    with pytest.raises(errors.MalformedRequest, match=said):
        _loaded(tmp_path, _PUBLIC + _PUBLICATION + addition)


def test_locations_that_certificates_cannot_name_are_refused(tmp_path: Path) -> None:
    """SPEC F4: once issued, a certificate names them for life."""
    with pytest.raises(errors.MalformedRequest, match="a location begins like"):
        _loaded(tmp_path, _PUBLIC + _PUBLICATION.replace("http:", "https:"))


_TOKEN = """\
kind = "pkcs11"
module = "token.so"
token = "floor"
pin-file = "pin"
"""


def _with_token(folder: Path, addition: str) -> Settings:
    path = written(folder, "sqlite:///birthmark.db")
    before, _, after = path.read_text().partition("[key-store]\n")
    path.write_text(
        f"{before}[key-store]\n{_TOKEN}{addition}[station-plane]{after.partition('[station-plane]')[2]}"
    )
    return load(path)


def test_a_standby_is_a_second_token_beside_the_settings(tmp_path: Path) -> None:
    """SPEC B3."""
    standby = '[key-store.standby]\nmodule = "other.so"\ntoken = "floor"\npin-file = "pin-2"\n'
    found = _with_token(tmp_path, standby).key_store
    assert isinstance(found, TokenKeys)
    assert found.standby is not None
    assert (found.standby.module, found.standby.pin_file) == (tmp_path / "other.so", tmp_path / "pin-2")


@pytest.mark.parametrize(
    ("addition", "said"),
    [
        ('[key-store.standby]\nmodule = "token.so"\ntoken = "floor"\npin-file = "pin"\n', "the token itself"),
        ("answer-seconds = 60\n", "give-up-seconds must be longer"),
        ("check-seconds = 0\n", "check-seconds"),
        ("return-checks = 0\n", "return-checks"),
    ],
)
def test_settings_of_a_token_that_cannot_be_meant_are_refused(
    tmp_path: Path, addition: str, said: str
) -> None:
    with pytest.raises(errors.MalformedRequest, match=said):
        _with_token(tmp_path, addition)
