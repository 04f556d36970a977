"""Messages of the Certificate Management Protocol, as values and as octets (RFC 9810 section 5.1).

``decode`` is total: any octets become a ``PKIMessage`` or a refusal.  It reads the header and says which kind
of body there is; what is in the body is for the reader of that kind (``cmp_requests``, ``crmf``,
``csr``).  The octets that protection covers are kept as they came.  ``encode_header`` and ``assemble`` write.

A message that was decoded is not believed: that is ``cmp_checks``, which calls ``cmp_protection``.  Which
transaction it belongs to, and what is done about it, is left to the use cases.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from birthmark.errors import MalformedRequest, TooLarge
from birthmark.pki import cmp_der, der
from birthmark.pki.revocation import encode_generalized_time, read_generalized_time

__all__ = [
    "CERT_PROFILE",
    "CONFIRM_WAIT_TIME",
    "FROM_CLIENTS",
    "IMPLICIT_CONFIRM",
    "MAX_EXTRA_CERTS",
    "MAX_MESSAGE_SIZE",
    "BodyKind",
    "InfoTypeAndValue",
    "PKIHeader",
    "PKIMessage",
    "answer_to",
    "assemble",
    "confirm_wait_time",
    "decode",
    "directory_name",
    "encode_header",
    "encode_info",
    "implicit_confirm",
    "protected_part",
    "read_directory_name",
    "read_info",
]

MAX_MESSAGE_SIZE = 65_536
"""Octets of a message; our own limit."""
MAX_EXTRA_CERTS = 16
"""Certificates that come with a message; our own limit."""
_MAX_INFOS = 32
_LONGEST_IDENTIFIER = 128
"""Octets of a key identifier, a transactionID or a nonce; our own limit."""

IMPLICIT_CONFIRM = der.oid("1.3.6.1.5.5.7.4.13")
"""id-it-implicitConfirm (DER; RFC 9810 section 5.1.1.1)."""
CONFIRM_WAIT_TIME = der.oid("1.3.6.1.5.5.7.4.14")
"""id-it-confirmWaitTime (DER; section 5.1.1.2)."""
CERT_PROFILE = der.oid("1.3.6.1.5.5.7.4.21")
"""id-it-certProfile (DER; section 5.1.1.4)."""

_NAMES = (
    *("ir", "ip", "cr", "cp", "p10cr", "popdecc", "popdecr", "kur", "kup", "krr", "krp", "rr", "rp"),
    *("ccr", "ccp", "ckuann", "cann", "rann", "crlann", "pkiconf", "nested", "genm", "genp", "error"),
    *("certConf", "pollReq", "pollRep"),
)
"""The kinds of PKIBody by the number of their tags (RFC 9810 section 5.1.2)."""
_DIRECTORY_NAME = 0xA4
_MESSAGE_TIME, _PROTECTION_ALG, _SENDER_KID, _RECIP_KID = 0xA0, 0xA1, 0xA2, 0xA3
_TRANSACTION_ID, _SENDER_NONCE, _RECIP_NONCE, _FREE_TEXT, _GENERAL_INFO = 0xA4, 0xA5, 0xA6, 0xA7, 0xA8
_PROTECTION, _EXTRA_CERTS = 0xA0, 0xA1


class BodyKind(StrEnum):
    """The kinds of body that we read or write, as RFC 9810 section 5.1.2 names them."""

    IR = "ir"
    IP = "ip"
    CR = "cr"
    CP = "cp"
    P10CR = "p10cr"
    KUR = "kur"
    KUP = "kup"
    RR = "rr"
    RP = "rp"
    PKICONF = "pkiconf"
    NESTED = "nested"
    GENM = "genm"
    GENP = "genp"
    ERROR = "error"
    CERT_CONF = "certConf"
    POLL_REQ = "pollReq"
    POLL_REP = "pollRep"

    @property
    def tag(self) -> int:
        """The octet of its tag in PKIBody."""
        return 0xA0 | _NAMES.index(self)


FROM_CLIENTS = frozenset(
    (
        *(BodyKind.IR, BodyKind.CR, BodyKind.P10CR, BodyKind.KUR, BodyKind.RR, BodyKind.NESTED),
        *(BodyKind.GENM, BodyKind.ERROR, BodyKind.CERT_CONF, BodyKind.POLL_REQ),
    )
)
"""What a client may send to a CA or an RA."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InfoTypeAndValue:
    """One piece of general information (RFC 9810 section 5.3.19)."""

    info_type: bytes
    """OBJECT IDENTIFIER (DER)."""
    value: bytes | None
    """DER; None where it is absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PKIHeader:
    """The header of a message (RFC 9810 section 5.1.1)."""

    pvno: int
    sender: bytes
    """GeneralName (DER)."""
    recipient: bytes
    """GeneralName (DER)."""
    message_time: datetime | None = None
    protection_alg: bytes | None = None
    """AlgorithmIdentifier (DER)."""
    sender_kid: bytes | None = None
    recip_kid: bytes | None = None
    transaction_id: bytes | None = None
    sender_nonce: bytes | None = None
    recip_nonce: bytes | None = None
    free_text: tuple[str, ...] = ()
    general_info: tuple[InfoTypeAndValue, ...] = ()

    @property
    def cert_profile(self) -> tuple[str, ...]:
        """The names of profiles that it asks for, one for each request (RFC 9810 section 5.1.1.4)."""
        values = (info.value or b"" for info in self.general_info if info.info_type == CERT_PROFILE)
        return tuple(name for value in values for name in _profiles(value))

    @property
    def implicit_confirm(self) -> bool:
        """Whether it asks for implicit confirmation, or grants it."""
        return any(info.info_type == IMPLICIT_CONFIRM for info in self.general_info)


@dataclass(frozen=True, slots=True, kw_only=True)
class PKIMessage:
    """One message that can be read; whether it can be believed is another question."""

    octets: bytes = field(repr=False)
    """DER, as it came."""
    header: PKIHeader
    kind: BodyKind
    body: bytes = field(repr=False)
    """What the body's tag holds: DER of the type that ``kind`` has, such as CertReqMessages."""
    protected_part: bytes = field(repr=False)
    """ProtectedPart (DER; RFC 9810 section 5.1.3): what the protection is over, with the octets that came."""
    protection: bytes | None = field(repr=False)
    """The signature or the MAC."""
    extra_certs: tuple[bytes, ...] = field(repr=False)
    """DER, each; not looked into."""


# --- reading ---


def decode(octets: bytes, limit: int = MAX_MESSAGE_SIZE) -> PKIMessage:
    """Return the message that these octets (DER) are.

    Args:
        octets: PKIMessage.
        limit: most octets looked at.

    Raises:
        TooLarge: more than ``limit`` octets.
        MalformedRequest: not exactly one PKIMessage, or one with a body of a kind that we do not have.
    """
    if len(octets) > limit:
        raise TooLarge(f"the message has {len(octets)} octets, the limit is {limit}")
    outer = der.children(octets, *der.only(octets, der.SEQUENCE)[2:])
    if len(outer) < 2:
        raise MalformedRequest("a message is a header and a body")
    header, body, *rest = outer
    optional = cmp_der.tagged(rest, (_PROTECTION, _EXTRA_CERTS), "message")
    protection: bytes | None = None
    extra_certs: tuple[bytes, ...] = ()
    if (found := optional.get(_PROTECTION)) is not None:
        protection = cmp_der.bits(octets, cmp_der.explicit(octets, found, "protection"), "protection")
    if (found := optional.get(_EXTRA_CERTS)) is not None:
        extra_certs = _extra_certs(octets, cmp_der.explicit(octets, found, "extraCerts"))
    kind = _kind(body[0])
    return PKIMessage(
        octets=octets,
        header=_header(octets, header),
        kind=kind,
        body=cmp_der.whole(octets, cmp_der.explicit(octets, body, kind)),
        protected_part=der.encode(der.SEQUENCE, octets[header[1] : body[3]]),
        protection=protection,
        extra_certs=extra_certs,
    )


def _kind(tag: int) -> BodyKind:
    number = tag - 0xA0
    if not 0 <= number < len(_NAMES):
        raise MalformedRequest(f"tag {tag:02x} is no kind of message")
    try:
        return BodyKind(_NAMES[number])
    except ValueError:
        raise MalformedRequest(f"messages of the kind {_NAMES[number]} are not supported") from None


def _extra_certs(octets: bytes, element: der.Element) -> tuple[bytes, ...]:
    found = cmp_der.sequence_of(octets, element, "extraCerts", MAX_EXTRA_CERTS)
    if any(one[0] != der.SEQUENCE for one in found):
        raise MalformedRequest("extraCerts: not certificates")
    return tuple(cmp_der.whole(octets, one) for one in found)


def _header(octets: bytes, element: der.Element) -> PKIHeader:
    found = cmp_der.fields(octets, element, "header")
    if len(found) < 3:
        raise MalformedRequest("a header begins with pvno, sender and recipient")
    pvno, sender, recipient, *rest = found
    allowed = range(_MESSAGE_TIME, _GENERAL_INFO + 1)
    optional = {
        tag: cmp_der.explicit(octets, one, f"header field {tag - 0xA0}")
        for tag, one in cmp_der.tagged(rest, allowed, "header").items()
    }

    def identifier(tag: int) -> bytes | None:
        one = optional.get(tag)
        if one is None:
            return None
        return cmp_der.octet_string(octets, one, f"header field {tag - 0xA0}", _LONGEST_IDENTIFIER)

    time, algorithm = optional.get(_MESSAGE_TIME), optional.get(_PROTECTION_ALG)
    text, general = optional.get(_FREE_TEXT), optional.get(_GENERAL_INFO)
    infos = () if general is None else _infos(octets, general)
    _check_known(infos)
    return PKIHeader(
        pvno=cmp_der.number(octets, pvno, "pvno"),
        sender=_general_name(octets, sender, "sender"),
        recipient=_general_name(octets, recipient, "recipient"),
        message_time=None if time is None else _time(octets, time, "messageTime"),
        protection_alg=None if algorithm is None else cmp_der.algorithm(octets, algorithm, "protectionAlg"),
        sender_kid=identifier(_SENDER_KID),
        recip_kid=identifier(_RECIP_KID),
        transaction_id=identifier(_TRANSACTION_ID),
        sender_nonce=identifier(_SENDER_NONCE),
        recip_nonce=identifier(_RECIP_NONCE),
        free_text=() if text is None else cmp_der.texts(octets, text, "freeText"),
        general_info=infos,
    )


def _general_name(octets: bytes, element: der.Element, what: str) -> bytes:
    """Return a GeneralName; of names, only that of a directory is looked into (RFC 5280 section 4.2.1.6)."""
    tag = element[0]
    if not (0x80 <= tag <= 0x88 or tag in {0xA0, 0xA3, _DIRECTORY_NAME, 0xA5}):
        raise MalformedRequest(f"{what}: tag {tag:02x} is no general name")
    if tag == _DIRECTORY_NAME:
        cmp_der.explicit(octets, element, what, der.SEQUENCE)
    return cmp_der.whole(octets, element)


def _time(octets: bytes, element: der.Element, what: str) -> datetime:
    if element[0] != der.GENERALIZED_TIME:
        raise MalformedRequest(f"{what}: not a GeneralizedTime")
    return read_generalized_time(cmp_der.contents(octets, element))


def _infos(octets: bytes, element: der.Element) -> tuple[InfoTypeAndValue, ...]:
    found = cmp_der.sequence_of(octets, element, "general information", _MAX_INFOS, fewest=0)
    return tuple(_info(octets, one) for one in found)


def _info(octets: bytes, element: der.Element) -> InfoTypeAndValue:
    identifier, value = cmp_der.identifier_and_value(octets, element, "general information")
    return InfoTypeAndValue(
        info_type=identifier, value=None if value is None else cmp_der.whole(octets, value)
    )


def _check_known(infos: Sequence[InfoTypeAndValue]) -> None:
    """Look at the values in a header that we act upon."""
    seen = set()
    for info in infos:
        if info.info_type not in {IMPLICIT_CONFIRM, CONFIRM_WAIT_TIME, CERT_PROFILE}:
            continue
        if info.info_type in seen:
            raise MalformedRequest("generalInfo: the same information twice")
        seen.add(info.info_type)
        value = info.value or b""
        if info.info_type == IMPLICIT_CONFIRM and value != cmp_der.NULL:
            raise MalformedRequest("generalInfo: implicitConfirm is not NULL")
        if info.info_type == CONFIRM_WAIT_TIME:
            _time(value, der.only(value, der.GENERALIZED_TIME), "confirmWaitTime")
        if info.info_type == CERT_PROFILE:
            _profiles(value)


def _profiles(value: bytes) -> tuple[str, ...]:
    return cmp_der.texts(value, der.only(value, der.SEQUENCE), "certProfile")


def read_info(body: bytes) -> tuple[InfoTypeAndValue, ...]:
    """Return what a genm asks or a genp says (GenMsgContent, DER; RFC 9810 section 5.3.19); perhaps nothing.

    Raises:
        MalformedRequest: the octets are something else.
    """
    return _infos(body, der.only(body, der.SEQUENCE))


def read_directory_name(general_name: bytes) -> bytes | None:
    """Return the Name (DER) in a GeneralName (DER), or None if it is one of another form.

    Raises:
        MalformedRequest: the octets are no element.
    """
    found = der.children(general_name)
    if len(found) != 1:
        raise MalformedRequest("not exactly one general name")
    if found[0][0] != _DIRECTORY_NAME:
        return None
    return cmp_der.whole(general_name, cmp_der.explicit(general_name, found[0], "directoryName"))


# --- writing ---


def directory_name(name: bytes) -> bytes:
    """Return a GeneralName (DER) that is a Name (DER)."""
    return der.encode(_DIRECTORY_NAME, name)


def implicit_confirm() -> InfoTypeAndValue:
    """Return what asks for implicit confirmation, or grants it (RFC 9810 section 5.1.1.1)."""
    return InfoTypeAndValue(info_type=IMPLICIT_CONFIRM, value=cmp_der.NULL)


def confirm_wait_time(until: datetime) -> InfoTypeAndValue:
    """Return until when a certificate has to be confirmed (section 5.1.1.2); aware, in seconds."""
    return InfoTypeAndValue(info_type=CONFIRM_WAIT_TIME, value=encode_generalized_time(until))


def encode_info(infos: Sequence[InfoTypeAndValue]) -> bytes:
    """Return GenMsgContent or GenRepContent (DER)."""
    return der.encode(
        der.SEQUENCE, *(der.encode(der.SEQUENCE, info.info_type, info.value or b"") for info in infos)
    )


def answer_to(
    asked: PKIHeader,
    *,
    sender: bytes,
    now: datetime,
    nonce: bytes,
    general_info: Sequence[InfoTypeAndValue] = (),
) -> PKIHeader:
    """Return the header of an answer, without what its protection adds (RFC 9483 section 3.1).

    Args:
        asked: header of the message that is answered.  The answer has its version, or the nearest of ours
            (RFC 9810 section 7), its transactionID, and its senderNonce as recipNonce.
        sender: Name (DER) of who answers.
        now: messageTime, aware.
        nonce: senderNonce: at least 16 random octets.
        general_info: what else to say, such as ``implicit_confirm()``.
    """
    return PKIHeader(
        pvno=min(max(asked.pvno, 2), 3),
        sender=directory_name(sender),
        recipient=asked.sender,
        message_time=now,
        transaction_id=asked.transaction_id,
        sender_nonce=nonce,
        recip_nonce=asked.sender_nonce,
        general_info=tuple(general_info),
    )


def encode_header(header: PKIHeader) -> bytes:
    """Return PKIHeader (DER)."""

    def optional(tag: int, octets: bytes | None) -> bytes:
        return b"" if octets is None else der.encode(tag, der.encode(der.OCTET_STRING, octets))

    time, algorithm = header.message_time, header.protection_alg
    return der.encode(
        der.SEQUENCE,
        cmp_der.signed_integer(header.pvno),
        header.sender,
        header.recipient,
        b"" if time is None else der.encode(_MESSAGE_TIME, encode_generalized_time(time)),
        b"" if algorithm is None else der.encode(_PROTECTION_ALG, algorithm),
        optional(_SENDER_KID, header.sender_kid),
        optional(_RECIP_KID, header.recip_kid),
        optional(_TRANSACTION_ID, header.transaction_id),
        optional(_SENDER_NONCE, header.sender_nonce),
        optional(_RECIP_NONCE, header.recip_nonce),
        der.encode(_FREE_TEXT, cmp_der.text_sequence(*header.free_text)) if header.free_text else b"",
        der.encode(_GENERAL_INFO, encode_info(header.general_info)) if header.general_info else b"",
    )


def protected_part(header: bytes, kind: BodyKind, body: bytes) -> bytes:
    """Return ProtectedPart (DER): what a signature or a MAC of a message is made over.

    Args:
        header: PKIHeader (DER), which names the protection already.
        kind: of the body.
        body: DER of the type that ``kind`` has.
    """
    return der.encode(der.SEQUENCE, header, der.encode(kind.tag, body))


def assemble(part: bytes, protection: bytes | None, extra_certs: Sequence[bytes] = ()) -> bytes:
    """Return PKIMessage (DER).

    Args:
        part: from ``protected_part``.
        protection: the signature or the MAC over it; None for a message without.
        extra_certs: certificates (DER) that go with it, that of the signer first.
    """
    bit_string = b"" if protection is None else der.encode(der.BIT_STRING, b"\0", protection)
    certificates = der.encode(der.SEQUENCE, *extra_certs)
    return der.encode(
        der.SEQUENCE,
        cmp_der.contents(part, der.only(part, der.SEQUENCE)),
        der.encode(_PROTECTION, bit_string) if bit_string else b"",
        der.encode(_EXTRA_CERTS, certificates) if extra_certs else b"",
    )
