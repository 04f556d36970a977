"""Who asks, where not only clients do: devices by certificates of their own, and whoever has a one-time code.

A one-time code is a credential of a bootstrap client like a certificate, and ends like one.  Its octets are
derived from a salt on record with the log's key, by a message that no checkpoint can be (a note has no NUL):
so nothing that is kept tells it, and a MAC under it can still be verified after a restart (SPEC H1).
"""

import base64
import hashlib
import hmac
from datetime import datetime

from birthmark import errors
from birthmark.floor.clients import CODE, Capability, Client, ClientStatus, Credential, Role, client_id
from birthmark.floor.devices import Attempt, Device, DeviceCertificate
from birthmark.pki.certificates import Certificate
from birthmark.pki.keys import KeyLabel
from birthmark.ports import Facts, KeyStore, Look, UseCase
from birthmark.secret import SecretBytes
from birthmark.services.acts import Caller, allowed_client, client_reads, recognise, require_now

__all__ = [
    "SALT_OCTETS",
    "Codes",
    "code_serial",
    "enrolment_key",
    "is_code",
    "recognise_device",
    "require_live",
    "to_enrol",
]

SALT_OCTETS = 16
_CODE_KEY = "code"
_DOMAIN = b"birthmark one-time code v1\x00"
_TEXT_OCTETS = 16


def code_serial(name: str) -> str:
    """Return the serial under which the code of a bootstrap client is on record."""
    return f"{CODE}{name}"


def is_code(credential: Credential) -> bool:
    """Return whether a credential is a one-time code; its ``der`` is then the salt."""
    return credential.serial.startswith(CODE)


def enrolment_key(caller: Caller, kind: str, request: bytes) -> str:
    """Return the idempotency key of a request for a certificate that brings none of its own.

    There is one for all that is asked with a code, which is good for one request; otherwise the request says
    it.
    """
    return _CODE_KEY if is_code(caller.credential) else f"{kind}-{hashlib.sha256(request).hexdigest()[:40]}"


class Codes:
    """One-time codes: made, and recognised."""

    def __init__(self, keys: KeyStore, label: KeyLabel) -> None:
        """Derive codes with the log's key, ``label``, which is Ed25519 and so signs the same the same way."""
        self._keys = keys
        self._label = label

    def text(self, name: str, salt: bytes) -> SecretBytes:
        """Return a code: 26 characters of a-z and 2-7 (base32 of 128 bits), as ASCII.

        Raises:
            errors.Unavailable: the key cannot be used now.
        """
        signature = self._keys.sign(self._label, _DOMAIN + name.encode() + b"\x00" + salt)
        digest = hashlib.sha256(signature).digest()[:_TEXT_OCTETS]
        return SecretBytes(base64.b32encode(digest).rstrip(b"=").lower())

    def named(self, name: str) -> UseCase[tuple[Caller, SecretBytes]]:
        """Return whom a name may be, and the code that shows it: for a MAC, which is verified elsewhere.

        Raises:
            errors.Unauthenticated: nobody of this name has a code.
        """
        serial = code_serial(name)[:100]
        facts: Facts = yield Look({Credential: (serial,)})
        credential = facts.get(Credential, serial)
        if credential is None:
            raise errors.Unauthenticated("no such name has a one-time code")
        facts = yield Look({Client: (credential.client,)})
        client = facts.get(Client, credential.client)
        if client is None:
            raise errors.IntegrityFailure(f"{serial} names {credential.client}, which does not exist")
        return Caller(client=client, credential=credential), self.text(name, credential.der)

    def recognise(self, name: str, code: SecretBytes) -> UseCase[Caller]:
        """Return who shows a name and a code.

        Raises:
            errors.Unauthenticated: they do not belong together; which of them is wrong is not told.
        """
        try:
            caller, right = yield from self.named(name)
        except errors.Unauthenticated:
            raise errors.Unauthenticated("no such name and code") from None
        if not hmac.compare_digest(right.reveal(), code.reveal()):
            raise errors.Unauthenticated("no such name and code")
        return caller


def to_enrol(caller: Caller) -> Capability:
    """Return what somebody has to be allowed who asks for certificates: for itself, or for others."""
    return Capability.ENROL_SELF if caller.client.role is Role.DEVICE else Capability.ISSUE


def require_live(caller: Caller, capability: Capability, at: datetime) -> UseCase[None]:
    """Refuse whoever may not do something at this time, where nothing is committed.

    Raises:
        errors.Unauthenticated: it was revoked, or its certificate ended.
        errors.NotPermitted: its role may not, or it or its plane is closed.
    """
    facts: Facts = yield Look(client_reads(caller))
    client = allowed_client(facts, caller, capability)
    if caller.plane is not None:
        require_now(facts, client, caller.credential, caller.plane, at)


def recognise_device(peer: bytes) -> UseCase[Caller]:
    """Find whom a certificate (DER) belongs to: a client, or a device, by one that was issued to it here.

    A device is no row of the table of clients: it is ``device:`` and its id, and works at no site or line but
    those it was made at.  Whether its certificate is still good is judged with each act.

    Raises:
        errors.Unauthenticated: nobody of this realm has this certificate.
    """
    try:
        return (yield from recognise(peer))
    except errors.Unauthenticated as stranger:
        try:
            certificate = Certificate.from_der(peer)
        except errors.MalformedRequest:
            raise stranger from None
    serial = certificate.serial_hex
    facts: Facts = yield Look({DeviceCertificate: (serial,)})
    issued = facts.get(DeviceCertificate, serial)
    if issued is None or issued.der != peer:
        raise errors.Unauthenticated(f"certificate {serial} belongs to nobody of this realm")
    facts = yield Look({Device: (issued.device,)})
    device = facts.get(Device, issued.device)
    facts = yield Look({Attempt: (device.attempt if device else issued.attempt,)})
    attempt = facts.get(Attempt, device.attempt if device else issued.attempt)
    if device is None or attempt is None:
        raise errors.IntegrityFailure(f"certificate {serial} is of {issued.device}, which does not exist")
    facts = yield Look({Client: (attempt.client,)})
    maker = facts.get(Client, attempt.client)
    client = Client(
        id=client_id(Role.DEVICE, device.id),
        role=Role.DEVICE,
        site="" if maker is None else maker.site,
        line="" if maker is None else maker.line,
        hardware_id=device.id,
        run=None,
        status=ClientStatus.ACTIVE,
        last_seq=0,
    )
    credential = Credential(
        serial=serial,
        client=client.id,
        authority=issued.authority,
        profile="",
        der=peer,
        not_after=certificate.not_after,
        status=ClientStatus.ACTIVE,
    )
    return Caller(client=client, credential=credential)
