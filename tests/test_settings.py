"""The settings file: what cannot be meant is refused at start, and no secret stands in it (SPEC B7, K5)."""

import traceback
from pathlib import Path

import pytest

from birthmark import errors
from birthmark.settings import load

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
