"""Key folders: a key store that is carried about, and says itself how it is opened.

    key-store.toml   [key-store] as in the settings; for a custodian's credential also the label of the key
    keys/            of a software store
    passphrase       of a software store, if it was generated

An offline root and a custodian's credential are such folders; an operator's credential directory will do for
a custodian, too.  Paths are relative to the folder, so that it can be moved.
"""

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from birthmark import errors
from birthmark.edge.application import Factory
from birthmark.edge.cli import credentials
from birthmark.edge.cli.credentials import DIRECTORY_MODE, PRIVATE_MODE, write_new_file
from birthmark.edge.cli.session import opened
from birthmark.edge.cli.settings_text import KeyPlace, key_store_text
from birthmark.floor.ceremonies import Ceremony
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.ports import KeyStore
from birthmark.services.ceremonies import CustodianSign
from birthmark.settings import KeyStoreSettings, SoftwareKeys

__all__ = [
    "CUSTODIAN_LABEL",
    "SETTINGS",
    "Attendant",
    "attendant",
    "make_custodian",
    "make_key_folder",
    "open_key_folder",
]

SETTINGS = "key-store.toml"
CUSTODIAN_LABEL = KeyLabel("custodian")
PASSPHRASE_OCTETS = 32


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, hide_input_in_errors=True)

    label: str | None = None
    key_store: KeyStoreSettings = Field(alias="key-store")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attendant:
    """A custodian who is present with a credential."""

    id: str
    sign: CustodianSign
    """Opens the credential, signs, and closes it again."""


def _read(folder: Path) -> _File:
    path = folder / SETTINGS
    try:
        found = _File.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as cause:
        raise errors.NotFound(f"{folder} is no key folder: {SETTINGS}: {cause.strerror}") from cause
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, ValidationError) as cause:
        said = (
            str(cause).splitlines()[0] if not isinstance(cause, ValidationError) else "unknown or wrong keys"
        )
        raise errors.MalformedRequest(f"{path}: {said}") from cause
    base, store = folder.resolve(), found.key_store
    anchored = {
        name: base / value
        for name in type(store).model_fields
        if isinstance(value := getattr(store, name), Path)
    }
    return found.model_copy(update={"key_store": store.model_copy(update=anchored)})


@contextmanager
def open_key_folder(factory: Factory, folder: Path) -> Iterator[KeyStore]:
    """Open the key store of a folder, and let go of it.

    Raises:
        errors.NotFound: there is no such folder, or the store it speaks of is gone.
        errors.Refusal: as the key store.
    """
    settings = _read(folder).key_store
    if isinstance(settings, SoftwareKeys) and not settings.directory.is_dir():
        # Opening a software store makes its directory, which would hide that the wrong folder was named.
        raise errors.NotFound(f"there is no key store {settings.directory}")
    with opened(factory, settings) as keys:
        yield keys


def make_key_folder(factory: Factory, folder: Path, place: KeyPlace, *, label: str | None = None) -> None:
    """Make a folder for a key store; of a software store also the store.

    Raises:
        errors.IllegalTransition: there is something in it already.
    """
    credentials.require_room(folder)
    folder.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    if place.token is None and place.passphrase_file is None:
        passphrase = factory.entropy().token(PASSPHRASE_OCTETS).hex()
        write_new_file(folder / "passphrase", f"{passphrase}\n", PRIVATE_MODE)
    head = "" if label is None else f'label = "{label}"\n\n'
    write_new_file(folder / SETTINGS, f"{head}[key-store]\n{key_store_text(place, 'passphrase')}")
    with opened(factory, _read(folder).key_store):
        pass


def make_custodian(
    factory: Factory, folder: Path, place: KeyPlace, algorithm: KeyAlgorithm, label: str
) -> bytes:
    """Make a custodian's credential, and return the public key (SubjectPublicKeyInfo, DER)."""
    make_key_folder(factory, folder, place, label=label)
    with open_key_folder(factory, folder) as keys:
        return keys.generate(KeyLabel(label), algorithm)


def attendant(factory: Factory, ceremony: Ceremony, folder: Path) -> Attendant:
    """Return who a credential is of; the file says so, by the key.

    Raises:
        errors.NotPermitted: the key is none of the file's custodians'.
    """
    if (folder / SETTINGS).exists():
        label = KeyLabel(_read(folder).label or CUSTODIAN_LABEL)
        with open_key_folder(factory, folder) as keys:
            spki = keys.public_key(label)

        def sign(message: bytes) -> bytes:
            with open_key_folder(factory, folder) as keys:
                return keys.sign(label, message)

    else:
        credential = credentials.read(folder)
        spki, sign = credential.certificate.subject_public_key_info, credential.sign
    for person in ceremony.custodians:
        if person.subject_public_key_info == spki:
            return Attendant(id=person.id, sign=sign)
    raise errors.NotPermitted(f"the key in {folder} is of no custodian of ceremony {ceremony.id}")
