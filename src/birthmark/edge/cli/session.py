"""One run of the command: the application its settings build, and the operator who acts.

The application is built as late as can be, so that what needs no database (help, offline verification) loads
no driver for one.  Whoever acts is recognised exactly as a client of the service is, by a certificate on
record, and must hold its private key: the certificate alone is no secret.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from birthmark import errors

if TYPE_CHECKING:  # what needs no realm (help, offline verification) starts without all this
    from birthmark.edge.application import Application, Factory
    from birthmark.edge.cli import credentials
    from birthmark.ports import KeyStore
    from birthmark.services.acts import Caller
    from birthmark.settings import KeyStoreSettings, Settings

__all__ = ["Operator", "Session", "built", "only_operator", "opened", "session_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """The person who acts."""

    caller: "Caller"
    credential: "credentials.Credential"

    def sign(self, message: bytes) -> bytes:
        """Sign with the operator's own key."""
        return self.credential.sign(message)


@dataclass(slots=True, kw_only=True)
class Session:
    """One run of the command."""

    loader: "Callable[[], Factory]"
    """Imports what builds applications, when first needed."""
    debug: bool = False

    def factory(self) -> "Factory":
        """Return what builds applications."""
        return self.loader()

    @contextmanager
    def application(self, settings: Path) -> "Iterator[Application]":
        """Build the application of a settings file, and close it."""
        from birthmark.settings import load  # noqa: PLC0415  # see above

        with built(self.factory(), load(settings)) as application:
            yield application

    @contextmanager
    def acting(self, settings: Path, as_directory: Path | None) -> "Iterator[tuple[Application, Operator]]":
        """Build the application and recognise who acts.

        Raises:
            errors.Unauthenticated: nobody of this realm, or without the private key.
        """
        directory = as_directory or only_operator(settings)
        with self.application(settings) as application:
            yield application, self._recognise(application, directory)

    def _recognise(self, application: "Application", directory: Path) -> Operator:
        from birthmark.edge.cli import credentials  # noqa: PLC0415  # see above
        from birthmark.pki.possession import verify_proof  # noqa: PLC0415  # likewise
        from birthmark.ports import carry  # noqa: PLC0415  # likewise
        from birthmark.services.acts import recognise  # noqa: PLC0415  # likewise

        credential = credentials.read(directory)
        caller = carry(application.store, recognise(credential.certificate.der))
        if credential.certificate.not_after <= application.clock.now():
            raise errors.Unauthenticated(
                f"the certificate of {caller.client.id} ended {credential.certificate.not_after:%Y-%m-%d}"
            )
        challenge = b"birthmark/operator/v1\n" + application.entropy.token(32).hex().encode() + b"\n"
        try:
            spki = credential.certificate.subject_public_key_info
            verify_proof(spki, credential.sign(challenge), challenge)
        except errors.ProofFailed as cause:
            raise errors.Unauthenticated(
                f"the private key in {directory} is not the certificate's"
            ) from cause
        return Operator(caller=caller, credential=credential)


@contextmanager
def built(factory: "Factory", settings: "Settings") -> "Iterator[Application]":
    """Build an application, and let go of all that it opened."""
    application = factory.build(settings)
    try:
        yield application
    finally:
        application.close()


@contextmanager
def opened(factory: "Factory", settings: "KeyStoreSettings") -> "Iterator[KeyStore]":
    """Open a key store, and let go of it."""
    keys = factory.open_key_store(settings)
    try:
        yield keys
    finally:
        keys.close()


def only_operator(settings: Path) -> Path:
    """Return the only operator's directory beside the settings.

    Raises:
        errors.Unauthenticated: there is none, or more than one.
    """
    place = settings.resolve().parent / "operators"
    try:
        found = sorted(entry.path for entry in os.scandir(place) if entry.is_dir())
    except OSError:
        found = []
    if len(found) == 1:
        return Path(found[0])
    if not found:
        raise errors.Unauthenticated(f"say who acts: there is no operator's credential in {place}")
    names = ", ".join(Path(path).name for path in found)
    raise errors.Unauthenticated(f"say who acts: {place} holds credentials of {names}")


def session_of(context: typer.Context) -> Session:
    """Return the run a command belongs to."""
    session = context.find_root().obj
    if not isinstance(session, Session):
        raise TypeError("a command runs under main.run")
    return session
