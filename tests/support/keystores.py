"""Key stores to try custody on: software stores, and tokens of one SoftHSM."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from birthmark.adapters.pkcs11 import PKCS11KeyStore
from birthmark.adapters.softkeys import SoftwareKeyStore
from birthmark.pki.attributes import SecretKind, SecretMade
from birthmark.pki.keys import KeyLabel
from birthmark.ports import KeyStore
from birthmark.secret import SecretBytes
from tests.support.softhsm import SoftHSM, softhsm_token

__all__ = ["KEK", "TRANSPORT", "Sites", "share_kek", "sites"]

KEK = KeyLabel("kek")
TRANSPORT = KeyLabel("transport")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sites:
    """The place where keys are made, and its mirror."""

    here: KeyStore
    mirror: KeyStore
    officer: SecretBytes | None
    token: SoftHSM | None
    """None for software stores."""


@contextmanager
def sites(kind: str, directory: Path, *, copy_of: Path | None = None) -> Iterator[Sites]:
    """Open two stores: ``software``, ``token``, or ``token-to-software`` and ``software-to-token``.

    Args:
        kind: which.
        directory: where they are made.
        copy_of: the directory of two of the same kind, closed, to begin with what is in them.
    """
    directory.mkdir(exist_ok=True)
    with ExitStack() as stack:
        token = None
        if "token" in kind:
            made = None if copy_of is None else copy_of / "tokens"
            token = stack.enter_context(softhsm_token(directory, copy_of=made))
            if made is None:
                token.initialise("mirror")
        officer = None if token is None else SecretBytes(token.so_pin.encode())

        def store(name: str, *, in_token: bool) -> KeyStore:
            if not in_token or token is None:
                if copy_of is not None:
                    shutil.copytree(copy_of / name, directory / name)
                return SoftwareKeyStore.open(directory / name, SecretBytes(b"passphrase"))
            label = token.label if name == "here" else "mirror"
            return stack.enter_context(PKCS11KeyStore.open(token.module, label, token.pin))

        yield Sites(
            here=store("here", in_token=kind.startswith("token")),
            mirror=store("mirror", in_token=kind.endswith("token")),
            officer=officer,
            token=token,
        )


def share_kek(place: Sites) -> SecretMade:
    """Make a KEK here and take it in at the mirror."""
    spki = place.mirror.generate_transport(TRANSPORT)
    made = place.here.generate_secret(KEK, SecretKind.KEK, recipients=[spki], officer=place.officer)
    assert place.mirror.accept_secret(KEK, SecretKind.KEK, made.shares[0], TRANSPORT) == made.check_value
    return made
