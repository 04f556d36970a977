"""The device plane without sockets and TLS, and a CMP client that can say what OpenSSL's cannot.

The client writes its messages with ``birthmark.pki`` and reads the answers with pyasn1's RFC 4210.  What an
answer says is held to its protection first: nothing unsigned is read.
"""

import asyncio
import itertools
import json
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pyasn1.codec.der.decoder import decode as decode_asn1  # type: ignore[import-untyped]  # it has no types
from pyasn1.codec.der.encoder import encode as encode_asn1  # type: ignore[import-untyped]  # likewise
from pyasn1_alt_modules import rfc4210  # type: ignore[import-untyped]  # likewise

from birthmark import app as composition
from birthmark.adapters.sql.database import Database
from birthmark.edge.application import Application
from birthmark.edge.http.contexts import everybody
from birthmark.edge.http.device import create_device_app
from birthmark.edge.http.identity import ServerIdentity
from birthmark.floor.clients import Role
from birthmark.pki import cmp, cmp_checks, cmp_requests, der
from birthmark.pki.algorithms import ALGORITHMS, key_identifier
from birthmark.pki.certificates import Certificate
from birthmark.pki.cmp import BodyKind, InfoTypeAndValue, PKIHeader
from birthmark.pki.cmp_protection import MACAlgorithm, MACProtector, SignatureProtector, protect
from birthmark.pki.crmf import CertTemplate, encode_template
from birthmark.pki.keys import KeyAlgorithm
from birthmark.ports import KeyStore
from birthmark.services.check import check
from birthmark.services.cmp_transactions import CMPTransactions
from birthmark.services.codes import Guest, give_code
from birthmark.settings import Settings
from tests.fuzz.plane_targets import Answered, answer_of
from tests.pki.cmp_parts import PBM
from tests.support.realm import PASSPHRASE, Client, Line, hierarchy, proof, workpiece

__all__ = [
    "CMPPlane",
    "Heard",
    "Party",
    "client_of",
    "cmp_plane",
    "new_key",
    "nobody",
    "old_certificate",
    "pkcs10",
    "request",
]

P256 = KeyAlgorithm.EC_P256
CONFIRM_SECONDS = 600
LIMITLESS = 1_000_000_000
"""How many refusals of strangers a minute are put on record."""
_numbers = itertools.count(1)


def number_octets() -> bytes:
    """16 octets that no other call returns: a transactionID, or a nonce."""
    return next(_numbers).to_bytes(16, "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """Somebody who protects messages."""

    by: SignatureProtector | MACProtector
    sender: bytes
    """Name (DER)."""

    def says(
        self,
        kind: BodyKind,
        body: bytes,
        *,
        to: "Heard | None" = None,
        transaction: bytes | None = None,
        nonce: bytes | None = None,
        info: Sequence[InfoTypeAndValue] = (),
        pvno: int = 2,
        at: datetime | None = None,
        sender_nonce: bytes | None = None,
    ) -> bytes:
        """Return a message: the first of a transaction, or what follows an answer."""
        header = PKIHeader(
            pvno=pvno,
            sender=cmp.directory_name(self.sender),
            recipient=cmp.directory_name(b"\x30\x00"),
            message_time=at,
            transaction_id=transaction or (to.transaction if to else number_octets()),
            sender_nonce=sender_nonce or number_octets(),
            recip_nonce=nonce or (to.nonce if to else None),
            general_info=tuple(info),
        )
        return protect(header, kind, body, self.by)

    @property
    def certificate(self) -> bytes:
        """What it shows (DER)."""
        assert isinstance(self.by, SignatureProtector)
        return self.by.certificates[0]

    def confirms(
        self,
        heard: "Heard",
        *,
        certificate: bytes | None = None,
        algorithm: bytes | None = None,
        number: int = 0,
        **more: Any,
    ) -> bytes:
        """Return the certConf of what was heard; of another certificate, if that is given."""
        digest = cmp_requests.certificate_hash(certificate or heard.certificate, algorithm)
        named = b""
        if algorithm is not None:
            named = der.encode(0xA0, der.encode(der.SEQUENCE, algorithm))
        status = der.encode(
            der.SEQUENCE,
            der.encode(der.OCTET_STRING, digest),
            encode_asn1(rfc4210.univ.Integer(number)),
            named,
        )
        return self.says(BodyKind.CERT_CONF, der.encode(der.SEQUENCE, status), to=heard, **more)

    def polls(self, heard: "Heard", *, number: int = 0) -> bytes:
        """Return the pollReq for what was heard."""
        one = der.encode(der.SEQUENCE, der.integer(number))
        return self.says(BodyKind.POLL_REQ, der.encode(der.SEQUENCE, one), to=heard)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """An answer in CMP, as another decoder reads it."""

    octets: bytes = field(repr=False)
    kind: str
    transaction: bytes
    nonce: bytes
    """Its senderNonce."""
    status: int | None
    failure: tuple[str, ...]
    text: str
    certificate: bytes = field(repr=False)
    """DER; empty if there is none."""
    body: Any = field(repr=False)


class CMPPlane:
    """The application, and the line behind it."""

    def __init__(self, line: Line, application: Application, identity: ServerIdentity) -> None:
        """Serve nobody but those who call."""
        self.line = line
        self.application = application
        self._identity = identity
        self._runner = asyncio.Runner()
        self._app = create_device_app(application, everybody, identity)

    def post(
        self,
        octets: bytes,
        path: str = "",
        *,
        media_type: str = "application/pkixcmp",
        method: str = "POST",
        address: str = "127.0.0.1",
    ) -> Answered:
        """Ask by HTTP."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": f"/.well-known/cmp{path}",
            "raw_path": f"/.well-known/cmp{path}".encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "https",
            "server": ("127.0.0.1", 8445),
            "client": (address, 4711),
            "headers": [(b"content-type", media_type.encode())],
        }
        return self.request(scope, octets)

    def request(self, scope: Mapping[str, Any], body: bytes) -> Answered:
        """Ask anything (a scope of ASGI)."""
        return self._runner.run(answer_of(self._app, scope, body))

    def ask(self, octets: bytes, path: str = "", *, by: Party | None = None) -> Heard:
        """Ask in CMP; the answer is under the code of ``by``, or signed by the service, or it is not read."""
        answered = self.post(octets, path)
        assert (answered.status, answered.headers[b"content-type"]) == (200, b"application/pkixcmp"), (
            answered.body
        )
        return self.heard(answered.body, by=by)

    def heard(self, octets: bytes, *, by: Party | None = None) -> Heard:
        """Return what an answer says, if it is protected as it should be."""
        message = cmp.decode(octets, 4_000_000)
        if by is not None and isinstance(by.by, MACProtector) and message.extra_certs[:1] != self._signers:
            cmp_checks.verify_under_secret(message, by.by.secret)
        else:
            assert cmp_checks.verify_signed(message).der == self._identity.certificates[0]
        return heard(octets)

    @property
    def _signers(self) -> tuple[bytes, ...]:
        return self._identity.certificates[:1]

    def problem(self, octets: bytes, path: str = "", **options: Any) -> tuple[int, str, str]:
        """Ask, and return status, code and detail of a refusal by HTTP."""
        answered = self.post(octets, path, **options)
        told = json.loads(answered.body)
        return answered.status, told["code"], told["detail"]

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something on the application's loop."""
        self._runner.run(work)

    def entries(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the log's entries of these kinds."""
        return [dict(one) for one in self.line.entries() if not kinds or one["kind"] in kinds]

    def assert_sound(self) -> None:
        """Hold the record against the log."""
        store = self.line.service.store
        assert check(store, store.log, self.line.realm).findings == []

    # --- who asks

    def device(self, name: str = "D1") -> Party:
        """Make a device on the line, released, and return it as it signs with its identity."""
        device = workpiece(name)
        issued = self.line.issue(device)
        self.line.prove(proof(issued, device.key))
        return client_of(issued.certificate, device.key)

    def code(self, name: str = "dock-1", device: str = "serial:D7", mac: MACAlgorithm = PBM) -> Party:
        """Return somebody with a one-time code."""
        service = self.line.service
        guest = Guest(name=name, device=device, run="R1", life=timedelta(hours=1))
        code, _ = service.carry(
            give_code(service.codes, service.runs, self.application.entropy, self.line.operator.caller, guest)
        )
        return Party(by=MACProtector(algorithm=mac, reference=name.encode(), secret=code), sender=b"\x30\x00")

    @property
    def station(self) -> Party:
        """The station, which is an RA."""
        return party(self.line.station)

    def close(self) -> None:
        """Let go."""
        self._runner.close()


def heard(octets: bytes) -> Heard:
    """Return what an answer says; whether it may be believed is not looked at."""
    message, rest = decode_asn1(octets, asn1Spec=rfc4210.PKIMessage())
    assert not rest
    kind, body = message["body"].getName(), message["body"].getComponent()
    info, certificate = None, b""
    if kind in ("ip", "cp", "kup"):
        (response,) = body["response"]
        info = response["status"]
        pair = response["certifiedKeyPair"]
        if pair.isValue and pair["certOrEncCert"].isValue:
            tagged = encode_asn1(pair["certOrEncCert"]["certificate"])  # in [0]
            certificate = tagged[der.only(tagged, 0xA0)[2] :]
    elif kind == "error":
        info = body["pKIStatusInfo"]
    elif kind == "rp":
        info = body["status"][0]
    failure: tuple[str, ...] = ()
    if info is not None and info["failInfo"].isValue:
        bits = info["failInfo"]
        failure = tuple(name for name, bit in bits.namedValues.items() if bit < len(bits) and bits[bit])
    text = (
        " ".join(map(str, info["statusString"])) if info is not None and info["statusString"].isValue else ""
    )
    header = message["header"]
    return Heard(
        octets=octets,
        kind="genp" if kind == "gen" else kind,  # as that module misspells it
        transaction=bytes(header["transactionID"]),
        nonce=bytes(header["senderNonce"]),
        status=None if info is None else int(info["status"]),
        failure=failure,
        text=text,
        certificate=certificate,
        body=body,
    )


def client_of(certificate: bytes, key: ec.EllipticCurvePrivateKey) -> Party:
    """Return who signs with this key and shows this certificate (DER)."""
    read = Certificate.from_der(certificate)
    return Party(
        by=SignatureProtector(
            algorithm=P256,
            key_identifier=key_identifier(read.subject_public_key_info),
            sign=lambda message: key.sign(message, ec.ECDSA(hashes.SHA256())),
            certificates=(certificate,),
        ),
        sender=read.subject_name,
    )


def party(client: Client) -> Party:
    """Return a client of the line as it signs messages."""
    return client_of(client.caller.credential.der, client.key)


def nobody() -> Party:
    """Return somebody with a certificate of nobody's making."""
    key, named = new_key(), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nobody")])
    made = (
        x509.CertificateBuilder()
        .subject_name(named)
        .issuer_name(named)
        .public_key(key.public_key())
        .serial_number(4711)
        .not_valid_before(datetime(2020, 1, 1))  # noqa: DTZ001  # the builder takes it for UTC
        .not_valid_after(datetime(2090, 1, 1))  # noqa: DTZ001  # likewise
    )
    signed = made.sign(key, hashes.SHA256())
    return client_of(signed.public_bytes(Encoding.DER), key)


# --- requests


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a key."""
    return ec.generate_private_key(ec.SECP256R1())


def subject_of(device: str) -> bytes:
    """Return a Name (DER) with a serialNumber."""
    return x509.Name([x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, device)]).public_bytes()


def request(
    device: str = "D1",
    key: ec.EllipticCurvePrivateKey | None = None,
    *,
    controls: bytes = b"",
    number: int = 0,
) -> bytes:
    """Return CertReqMessages (DER) with one request, whose key has signed it (RFC 4211 section 4.1)."""
    key = key or new_key()
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    template = CertTemplate(subject=subject_of(device), public_key=public)
    inner = der.encode(der.SEQUENCE, der.integer(number), encode_template(template), controls)
    signature = der.encode(der.BIT_STRING, b"\0", key.sign(inner, ec.ECDSA(hashes.SHA256())))
    popo = der.encode(0xA1, ALGORITHMS[P256].signature_algorithm, signature)
    return der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, inner, popo))


def old_certificate(certificate: bytes, *, issuer: bytes | None = None) -> bytes:
    """Return controls (DER) that name the certificate to be replaced (RFC 4211 section 6.5)."""
    read = Certificate.from_der(certificate)
    named = der.encode(
        der.SEQUENCE, cmp.directory_name(issuer or read.issuer_name), der.integer(read.serial_number)
    )
    return der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, der.oid("1.3.6.1.5.5.7.5.1.5"), named))


def pkcs10(device: str = "D1") -> bytes:
    """Return CertificationRequest (DER) with a key of its own."""
    found = workpiece(device).csr
    assert found is not None
    return found


# --- the plane


def _settings(line: Line, place: Path, **table: object) -> Settings:
    passphrase, unused = place / "passphrase", str(place / "unused")
    passphrase.write_bytes(PASSPHRASE.reveal())
    passphrase.chmod(0o600)
    files = dict.fromkeys(("certificate-file", "key-file", "key-passphrase-file", "client-ca-file"), unused)
    document: dict[str, Any] = {
        "realm": {"name": "acme", "environment": "test", "organization": "Acme Motors"},
        "database": {"url": line.url},
        "log": {"key": "log"},
        "key-store": {
            "kind": "software",
            "directory": str(hierarchy().directory),
            "passphrase-file": str(passphrase),
        },
        "station-plane": files | {"stranger-per-minute": LIMITLESS, "stranger-burst": LIMITLESS},
        "device-plane": {"confirm-seconds": CONFIRM_SECONDS, "retry-seconds": 7}
        | {name.replace("_", "-"): value for name, value in table.items()},
    }
    if "publication" in table:
        document["publication"] = document["device-plane"].pop("publication")
    return Settings.model_validate(document)


@contextmanager
def cmp_plane(
    line: Line,
    place: Path,
    *,
    wrap: Any = None,
    keys: KeyStore | None = None,
    **table: object,
) -> Iterator[CMPPlane]:
    """Serve a line's realm.

    Args:
        line: with run R1 open.
        place: for files.
        wrap: what stands before its database (``tests.support.faults``).
        keys: in place of the realm's.
        table: settings of the plane, ``_`` for ``-``; ``publication`` is a table of its own.
    """
    application = composition.build(_settings(line, place, **table), clock=line.clock)
    if wrap is not None or keys is not None:
        service = line.another_service(wrap=wrap or _plain, keys=keys)
        confirm_within = timedelta(seconds=CONFIRM_SECONDS)
        transactions = CMPTransactions(service.enrolments, service.confirmations, line.clock, confirm_within)
        application = replace(
            application,
            store=service.store,
            log=service.store.log,
            keys=keys or line.keys,
            runs=service.runs,
            enrolments=service.enrolments,
            confirmations=service.confirmations,
            codes=service.codes,
            cmp=transactions,
        )
    server = line.enrol(Role.SERVER, "plane")
    chain = (server.caller.credential.der, hierarchy().issuing)
    plane = CMPPlane(line, application, ServerIdentity(certificates=chain, algorithm=P256, key=server.key))
    try:
        yield plane
    finally:
        plane.close()
        application.close()


def _plain(database: Database) -> Database:
    return database
