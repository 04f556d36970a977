"""A SoftHSM2 token of a test's own: its own configuration, its own directory, nothing shared.

SoftHSM reads SOFTHSM2_CONF whenever a process initialises it, so the variable is set while the token is in
use and put back afterwards; programs started meanwhile inherit it.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pkcs11

from birthmark.secret import SecretBytes
from tests.support.programs import missing, need

__all__ = ["SoftHSM", "softhsm_token"]

_MODULES = (
    Path("/usr/lib/softhsm/libsofthsm2.so"),
    Path("/usr/lib64/pkcs11/libsofthsm2.so"),
    Path("/usr/local/lib/softhsm/libsofthsm2.so"),
    Path("/opt/homebrew/lib/softhsm/libsofthsm2.so"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftHSM:
    """One initialised token."""

    module: Path
    configuration: Path
    tokens: Path
    """Where SoftHSM keeps its tokens; moved away, the token is gone."""
    label: str
    pin: SecretBytes
    pin_file: Path
    so_pin: str

    @contextmanager
    def session(self) -> Iterator[pkcs11.Session]:
        """Log in past our key store, which must be closed: to make and to see what it would not."""
        library = pkcs11.lib(str(self.module.resolve()))
        try:
            yield library.get_token(token_label=self.label).open(rw=True, user_pin=self.pin.reveal().decode())
        finally:
            library.finalize()

    @contextmanager
    def gone(self) -> Iterator[None]:
        """Take the token away, and put it back."""
        away = self.tokens.with_suffix(".away")
        self.tokens.rename(away)
        try:
            yield
        finally:
            away.rename(self.tokens)

    def initialise(self, label: str) -> None:
        """Make a token, with the same PINs."""
        # Arguments are seen by every user of the machine; these PINs open nothing but a test.
        pins = ["--so-pin", self.so_pin, "--pin", self.pin.reveal().decode()]
        subprocess.run(
            [need("softhsm2-util", "softhsm2"), "--init-token", "--free", "--label", label, *pins],
            check=True,
            capture_output=True,
        )


@contextmanager
def softhsm_token(
    directory: Path, *, label: str = "floor", mechanisms: str = "ALL", copy_of: Path | None = None
) -> Iterator[SoftHSM]:
    """Make a token below an existing directory; skip the test where SoftHSM is not installed.

    Args:
        directory: where its configuration, objects and PIN file go.
        label: of the token.
        mechanisms: SoftHSM's ``slots.mechanisms``: ``ALL``, or those to offer, with commas.
        copy_of: the ``tokens`` of another one, with all that is in them; nobody may be using them.
    """
    need("softhsm2-util", "softhsm2")
    module = next((path for path in _MODULES if path.exists()), None)
    if module is None:
        missing("SoftHSM's PKCS#11 module is not installed (Debian package softhsm2)")
    tokens = directory / "tokens"
    if copy_of is None:
        tokens.mkdir()
    else:
        shutil.copytree(copy_of, tokens)
    configuration = directory / "softhsm2.conf"
    configuration.write_text(
        f"directories.tokendir = {tokens}\n"
        "objectstore.backend = file\n"
        "log.level = ERROR\n"
        f"slots.mechanisms = {mechanisms}\n"
    )
    pin = SecretBytes(b"pin-never-to-be-seen-4711")
    pin_file = directory / "pin"
    pin_file.touch(mode=0o600)
    pin_file.write_bytes(pin.reveal() + b"\n")
    token = SoftHSM(
        module=module,
        configuration=configuration,
        tokens=tokens,
        label=label,
        pin=pin,
        pin_file=pin_file,
        so_pin="so-pin-of-a-test",
    )
    before = os.environ.get("SOFTHSM2_CONF")
    os.environ["SOFTHSM2_CONF"] = str(configuration)
    try:
        if copy_of is None:
            token.initialise(label)
        yield token
    finally:
        if before is None:
            del os.environ["SOFTHSM2_CONF"]
        else:
            os.environ["SOFTHSM2_CONF"] = before
