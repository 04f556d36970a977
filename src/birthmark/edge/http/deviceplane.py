"""Who asks on the device plane, and the gate: what EST and CMP, its endpoints, are built over (SPEC H1, H2).

A client certificate is asked for and not demanded: a device without one has a one-time code.  Who asks is
found from the record, as everywhere: a client's certificate, a device's own, or a name and a code.

``GET /v1/proof`` hands over the octets that a device on the line has to sign with its new key, over a
connection made with its new certificate; ``POST /v1/proof`` takes the signature and answers the release
token.  For a certificate of an operational run the connection itself is the proof.
"""

import base64
import binascii
from dataclasses import replace
from hashlib import sha256

from fastapi import Request, Response

from birthmark import errors
from birthmark.edge.application import Application
from birthmark.edge.http.border import Border
from birthmark.edge.http.contexts import Admits
from birthmark.edge.http.metrics import CLIENT_KEY
from birthmark.edge.http.peer import SCOPE_KEY
from birthmark.edge.http.places import place_of
from birthmark.edge.http.refusals import Asker, Refusals
from birthmark.floor.clients import Capability, Role
from birthmark.floor.exposure import Plane
from birthmark.floor.limits import Rate
from birthmark.pki.certificates import fingerprint
from birthmark.secret import SecretBytes
from birthmark.services.acts import ANONYMOUS, Caller
from birthmark.services.prove import ProveRequest, Released
from birthmark.services.recognition import recognise_device, require_live, to_enrol

__all__ = ["DevicePlaneApp"]

_OCTETS = "application/octet-stream"
_MANY = frozenset({Role.STATION, Role.SHARED})
"""Roles that bring in many devices."""


class DevicePlaneApp:
    """Who asks, and the proof; EST and CMP are endpoints over it."""

    def __init__(self, application: Application, admits: Admits) -> None:
        """Serve this application's realm to whom ``admits`` welcomes."""
        self.application = application
        self._admits = admits
        self.border = Border(application)
        self.refused = Refusals(
            application,
            self.border,
            asker=self._asker,
            is_unwelcome=self._is_unwelcome,
            rate=self._refused_rate,
        )

    async def caller(self, request: Request) -> Caller | None:
        """Return who asks by certificate or one-time code; None for somebody who shows neither.

        Raises:
            errors.Unauthenticated: it shows something that is nobody's.
            errors.MalformedRequest: its Authorization field is not Basic (RFC 7617).
        """
        peer: bytes = request.scope.get(SCOPE_KEY, b"")
        if peer:
            return self.known(request, await self.border.carry(recognise_device(peer)))
        shown = request.headers.get("authorization")
        if shown is None:
            return None
        name, code = _basic(shown)
        return self.known(request, await self.border.carry(self.application.codes.recognise(name, code)))

    async def holder(self, request: Request) -> Caller | None:
        """Return who asks, as ``caller`` does; a device's handshake proves a certificate that waits for that.

        Raises:
            errors.Unauthenticated: as ``caller``; or its certificate is revoked.
            errors.MalformedRequest: as ``caller``.
        """
        caller = await self.caller(request)
        if caller is not None:
            await self.border.carry(self.application.confirmations.proved_by_use(caller))
        return caller

    def known(self, request: Request, caller: Caller) -> Caller:
        """Return a recognised caller as one of this plane."""
        request.scope[CLIENT_KEY] = caller.client.id
        return replace(
            caller,
            plane=Plane.DEVICE,
            rate=self._rate(caller.client.role),
            address=request.client.host if request.client else "",
        )

    def _rate(self, role: str) -> Rate:
        table = self.application.settings.device_plane
        return table.shared_rate if role in _MANY else table.client_rate

    def _refused_rate(self, actor: str) -> Rate:
        if actor == ANONYMOUS:
            return self.application.settings.station_plane.stranger_rate
        return self._rate(actor.partition(":")[0])

    async def require_live(self, caller: Caller, capability: Capability) -> None:
        """Refuse whoever may not do something now, where nothing is committed."""
        await self.border.carry(require_live(caller, capability, self.application.clock.now()))

    async def require_known(self, caller: Caller) -> None:
        """Refuse whoever can enrol for nothing."""
        await self.require_live(caller, to_enrol(caller))

    async def challenge(self, request: Request) -> Response:
        """Hand over what the device has to sign; for an operational certificate nothing is left to prove."""
        caller = await self._device(request)
        asked = await self.border.carry(self.application.confirmations.challenge(caller))
        if asked is None:
            return Response(status_code=204)
        attempt, message = asked
        return Response(message, media_type=_OCTETS, headers={"birthmark-attempt": attempt})

    async def prove(self, request: Request) -> Response:
        """Take a device's signature, and release it or hold it."""
        caller, signature = await self._device(request), await request.body()
        asked = await self.border.carry(self.application.confirmations.challenge(caller))
        if asked is None:
            raise errors.IllegalTransition("the connection was the proof: nothing is left to sign")
        proof = ProveRequest(
            attempt=asked[0],
            certificate_sha256=fingerprint(caller.credential.der),
            signature=signature,
            key=f"proof-{sha256(signature).hexdigest()[:32]}",
        )
        (result,) = await self.border.carry(self.application.prove(caller, [proof]))
        if not isinstance(result, Released):
            result.recorded = True
            raise result
        return Response(result.token, media_type="text/plain; charset=utf-8")

    async def _device(self, request: Request) -> Caller:
        caller = await self.holder(request)
        if caller is None or caller.client.role is not Role.DEVICE:
            raise errors.Unauthenticated("a device proves over a connection made with its new certificate")
        return caller

    async def _asker(self, request: Request) -> Asker:
        actor: str = request.scope.get(CLIENT_KEY) or ANONYMOUS
        place = place_of(request.client.host if request.client else "")
        return Asker(actor=actor, said={"address": place})

    def _is_unwelcome(self, request: Request, error: Exception) -> bool:
        peer: bytes = request.scope.get(SCOPE_KEY, b"")
        return isinstance(error, errors.Unauthenticated) or self._admits(peer or None) is not None


def _basic(shown: str) -> tuple[str, SecretBytes]:
    """Return the name and the code of an Authorization field (RFC 7617)."""
    scheme, _, credentials = shown.partition(" ")
    if scheme.lower() != "basic":
        raise errors.MalformedRequest("one-time codes are shown by Basic authentication (RFC 7617)")
    try:
        name, colon, code = base64.b64decode(credentials.strip(), validate=True).partition(b":")
        text = name.decode("ascii")
    except (binascii.Error, ValueError):
        raise errors.MalformedRequest("the Authorization field is not base64 of name:code") from None
    if not colon or len(name) > 64 or len(code) > 64:
        raise errors.MalformedRequest("the Authorization field is not base64 of name:code")
    return text, SecretBytes(code)
