"""One session with one token: opened, lost, opened anew (SPEC B3).

Rules kept here: a session that is lost (the token restarted, the network went) is opened anew and what was
asked is done once more; when that fails, too, the token's breaker (``doctor``) opens.  The token is found by
its label each time, whatever slot it is in.  A refused PIN is never sent twice, because tokens lock after a
few: the store must be opened again.

Every method but ``ask``, ``health`` and ``close`` is for jobs of the worker (``tokenworker``), whose thread
alone touches the session.  Left to others: keys, and what is known of them (``pkcs11``).
"""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from pkcs11 import Session
from pkcs11 import exceptions as foreign
from pkcs11.exceptions import PKCS11Error

from birthmark import errors
from birthmark.adapters.doctor import Breaker
from birthmark.adapters.tokensigning import find_token
from birthmark.adapters.tokenworker import TokenWorker
from birthmark.ports import Health
from birthmark.secret import SecretBytes

__all__ = ["TokenSession", "require_text"]

T = TypeVar("T")

_PIN_REFUSED = (
    foreign.PinExpired,
    foreign.PinIncorrect,
    foreign.PinInvalid,
    foreign.PinLenRange,
    foreign.PinLocked,
    foreign.UserPinNotInitialized,
)
_TOKEN_DECLINES = (
    foreign.AttributeReadOnly,
    foreign.AttributeTypeInvalid,
    foreign.AttributeValueInvalid,
    foreign.DataInvalid,
    foreign.DataLenRange,
    foreign.DomainParamsInvalid,
    foreign.FunctionNotSupported,
    foreign.FunctionRejected,
    foreign.KeySizeRange,
    foreign.KeyTypeInconsistent,
    foreign.MechanismInvalid,
    foreign.MechanismParamInvalid,
    foreign.TemplateIncomplete,
    foreign.TemplateInconsistent,
    foreign.TokenWriteProtected,
)
"""The token is well and says no; every other error is taken for a lost session."""


class TokenSession:
    """The session of one key store.

    Args:
        worker: the thread of the token's library; released by ``close``.
        token_label: CKA_LABEL of the token.
        pin: of its normal user.
        timeout_seconds: how long a caller waits for the token before it is told that it hangs.
        first_wait_seconds: see ``Breaker``.
        forget: called in the worker when the handles of a session are void.
    """

    def __init__(
        self,
        worker: TokenWorker,
        token_label: str,
        pin: SecretBytes,
        *,
        timeout_seconds: float,
        first_wait_seconds: float,
        forget: Callable[[], None],
    ) -> None:
        self.pin = pin
        self._worker = worker
        self._token_label = token_label
        self._timeout_seconds = timeout_seconds
        self._forget = forget
        self._breaker = Breaker(f"token {token_label!r}", first_wait_seconds=first_wait_seconds)
        self._closed = False
        self._wrong: tuple[str, datetime] | None = None
        """What is wrong with a token that answers, and since when."""
        # All below is touched by the worker alone.
        self._session: Session | None = None
        self._generation = -1
        self._pin_refused = ""

    def ask(self, operation: Callable[[Session], T], *, repeat: bool = True) -> T:
        """Have the worker do a job in the session, and once more if the session is lost and it may be.

        Raises:
            errors.Unavailable: the token cannot be reached, hangs, or could not be reached a moment ago.
            errors.NotPermitted: it refuses the PIN, now or before.
            errors.PolicyRefused: it declines.
        """
        self.require_open()
        trying = self._breaker.admit()
        try:
            done = self._worker.run(
                lambda: self._attempt(operation, repeat=repeat, trying=trying), self._timeout_seconds
            )
        except TimeoutError as hangs:
            reason = f"token {self._token_label!r} did not answer within {self._timeout_seconds:g} s"
            if trying or self._worker.busy_seconds() > self._timeout_seconds / 2:
                raise self._breaker.failed(reason, trying=trying) from hangs
            # It works, but not as fast as it is asked.
            raise errors.Unavailable(f"{reason}: it has too much to do") from hangs
        except errors.Unavailable as down:
            # Told to the breaker by the worker, unless something else is not there.
            if trying:
                self._breaker.failed(str(down), trying=trying)
            raise
        except BaseException:
            self._breaker.answered(trying=trying)
            raise
        self._breaker.answered(trying=trying)
        return done

    def require_open(self) -> None:
        """Raise ``RuntimeError`` if the store is closed: to ask it then is a fault of ours."""
        if self._closed:
            raise RuntimeError(f"the key store on token {self._token_label!r} is closed")

    def examine(self, operation: Callable[[Session], None]) -> None:
        """Do a job that finds out whether all is well; ``health`` says what it raised until it does not.

        Raises:
            errors.Refusal: as ``operation``.
        """
        try:
            self.ask(operation)
        except errors.Unavailable:
            raise
        except errors.Refusal as wrong:
            known = self._wrong
            since = known[1] if known is not None and known[0] == str(wrong) else datetime.now(UTC)
            self._wrong = (str(wrong), since)
            raise
        self._wrong = None

    def health(self) -> Health:
        """See ``ports.KeyStore.health``."""
        health = self._breaker.health()
        wrong = (self._pin_refused, health.since) if self._pin_refused else self._wrong
        if not health.up or wrong is None:
            return health
        return replace(health, up=False, reason=wrong[0], since=wrong[1])

    def stuck_seconds(self) -> float:
        """Return for how long the library has not come back from a call."""
        return self._worker.busy_seconds()

    def close(self) -> None:
        """Log out and let go of the worker.  Closing twice does nothing."""
        if self._closed:
            return
        self._closed = True
        # A worker that hangs, or is our parent's, has nobody to log out for.
        with suppress(TimeoutError, RuntimeError):
            self._worker.run(self.drop, self._timeout_seconds)
        self._worker.release(self._token_label, self._timeout_seconds)

    # --- in the worker's thread

    def drop(self) -> None:
        """Let go of the session; the next job opens another."""
        session, self._session = self._session, None
        self._forget()
        if session is not None and self._generation == self._worker.generation:
            # One that cannot be closed is lost anyway: the library is finalised before the next is opened.
            with suppress(PKCS11Error):
                session.close()

    def take(self, session: Session) -> None:
        """Go on with a session that a job has opened, after ``drop``."""
        self._session = session

    def _attempt(self, operation: Callable[[Session], T], *, repeat: bool, trying: bool) -> T:
        try:
            return operation(self._connected(trying=trying))
        except _TOKEN_DECLINES as declined:
            raise errors.PolicyRefused(
                "token", f"token {self._token_label!r} declines: {_reason(declined)}"
            ) from declined
        except PKCS11Error as lost:
            self.drop()
            if repeat:
                return self._attempt(operation, repeat=False, trying=trying)
            raise self._down(lost, trying=trying) from lost

    def _connected(self, *, trying: bool) -> Session:
        """Return a session that is logged in; open one if need be."""
        if self._session is not None and self._generation == self._worker.generation:
            return self._session
        if self._pin_refused:
            raise errors.NotPermitted(self._pin_refused)
        # Jobs that were waiting when the token went do not try it one after the other.
        self._breaker.require(trying=trying)
        self._forget()
        self._session = None
        if self._generation == self._worker.generation:
            # We have tried this generation: only a fresh one sees a token that came back.
            self._worker.reset()
        self._generation = self._worker.generation
        try:
            slots = self._worker.library().get_slots(token_present=True)
            token = find_token(slots, self._token_label)
            self._generation = self._worker.generation
            self._session = token.open(rw=True, user_pin=self.pin.reveal().decode())
        except _PIN_REFUSED as refused:
            self._pin_refused = (
                f"token {self._token_label!r} refuses the PIN ({_reason(refused)}); it is not tried again"
            )
            raise errors.NotPermitted(self._pin_refused) from refused
        except PKCS11Error as failure:
            raise self._down(failure, trying=trying) from failure
        return self._session

    def _down(self, failure: PKCS11Error, *, trying: bool) -> errors.Unavailable:
        reason = f"token {self._token_label!r} cannot be reached: {_reason(failure)}"
        # Who tries tells the breaker itself, once.
        return errors.Unavailable(reason) if trying else self._breaker.failed(reason, trying=False)


def require_text(pin: SecretBytes, token_label: str) -> None:
    """Refuse a PIN that is no text.

    Raises:
        errors.MalformedRequest: it is not UTF-8; without its cause, which carries the PIN.
    """
    try:
        pin.reveal().decode()
    except UnicodeDecodeError:
        raise errors.MalformedRequest(f"the PIN of token {token_label!r} is not UTF-8") from None


def _reason(failure: PKCS11Error) -> str:
    """Say in words which error it was: "token not present", and what the library adds, if anything."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(failure).__name__).lower()
    return str(failure) or words
