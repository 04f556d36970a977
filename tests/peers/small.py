"""A small PKI made by ``cryptography``'s builders, with no code of Birthmark's in it but the clock.

It is what the relying parties are tried on before they judge ours: a root, an issuing authority, devices that
are well, stolen, suspended; their CRLs in two shards, whole, and with a delta; OCSP responses.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from birthmark.adapters.system import SystemClock
from tests.support.checkers.values import Chain

__all__ = ["AT", "HELD", "SHARDS", "STOLEN", "WELL", "Entity", "Small", "small"]

AT = SystemClock().now().replace(minute=0, second=0, microsecond=0)
"""Of today: some of the relying parties cannot be told another time."""
DAY = timedelta(days=1)
WELL, STOLEN, HELD = (1 << 100) + 1, (1 << 100) + 2, (1 << 100) + 3
SHARDS = ("http://pki.example/crl/0.crl", "http://pki.example/crl/1.crl")
REVOKED = {STOLEN: x509.ReasonFlags.key_compromise, HELD: x509.ReasonFlags.certificate_hold}


@dataclass(frozen=True, kw_only=True)
class Entity:
    """A key and its certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


def key_usage(**bits: bool) -> x509.KeyUsage:
    """A keyUsage with only these bits."""
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: bits.get(name, False) for name in names})


CA_USE, LEAF_USE = key_usage(key_cert_sign=True, crl_sign=True), key_usage(digital_signature=True)


def issued(
    name: x509.Name,
    by: Entity | None,
    *,
    constraints: x509.BasicConstraints,
    usage: x509.KeyUsage,
    serial: int | None = None,
    days: int = 3650,
    curve: ec.EllipticCurve | None = None,
    digest: hashes.SHA256 | hashes.SHA512 | None = None,
    more: tuple[x509.ExtensionType, ...] = (),
) -> Entity:
    """A new key and a certificate for it, of ``by`` or self-signed."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    issuer = by.certificate.subject if by else name
    signer = by.key if by else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(AT - 100 * DAY)
        .not_valid_after(AT + days * DAY)
        .add_extension(constraints, critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    for extension in more:
        builder = builder.add_extension(extension, critical=False)
    return Entity(key=key, certificate=builder.sign(signer, digest or hashes.SHA256()))


def named(common_name: str, **more: str) -> x509.Name:
    """A subject of a common name and attributes by their object identifiers' names in NameOID."""
    attributes = [x509.NameAttribute(getattr(NameOID, name), value) for name, value in more.items()]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def authority(
    common_name: str,
    by: Entity | None = None,
    *,
    path_length: int | None,
    curve: ec.EllipticCurve | None = None,
) -> Entity:
    """A certification authority."""
    constraints = x509.BasicConstraints(ca=True, path_length=path_length)
    return issued(named(common_name), by, constraints=constraints, usage=CA_USE, curve=curve)


def _point(url: str) -> x509.DistributionPoint:
    return x509.DistributionPoint([x509.UniformResourceIdentifier(url)], None, None, None)


def _scope(shard: int) -> x509.IssuingDistributionPoint:
    return x509.IssuingDistributionPoint(
        full_name=[x509.UniformResourceIdentifier(SHARDS[shard])],
        relative_name=None,
        only_contains_user_certs=True,
        only_contains_ca_certs=False,
        only_some_reasons=None,
        indirect_crl=False,
        only_contains_attribute_certs=False,
    )


class Small:
    """The PKI; keys of a test run."""

    def __init__(self) -> None:
        self.root = authority("Small Root", path_length=1)
        self.issuing = authority("Small Issuing", self.root, path_length=0)
        self.stranger = authority("Small Root", path_length=1)
        """Another root of the same name."""
        self.responder = self._signing("Small Responder", ExtendedKeyUsageOID.OCSP_SIGNING)
        self.impostor = self._signing("Small Device 9", ExtendedKeyUsageOID.CLIENT_AUTH)
        """Certified by the same authority, and not to answer for it."""
        self.devices = {serial: self._device(serial) for serial in (WELL, STOLEN, HELD)}

    def _device(self, serial: int) -> Entity:
        # WELL and HELD are odd, STOLEN is even.
        points = x509.CRLDistributionPoints([_point(SHARDS[serial % 2])])
        return self._leaf(f"Small Device {serial}", serial, (points,))

    def _signing(self, name: str, purpose: x509.ObjectIdentifier) -> Entity:
        return self._leaf(name, None, (x509.ExtendedKeyUsage([purpose]), x509.OCSPNoCheck()))

    def _leaf(self, name: str, serial: int | None, more: tuple[x509.ExtensionType, ...]) -> Entity:
        constraints = x509.BasicConstraints(ca=False, path_length=None)
        return issued(
            named(name),
            self.issuing,
            constraints=constraints,
            usage=LEAF_USE,
            serial=serial,
            days=365,
            more=more,
        )

    def naming(self, serial: int, responder: str) -> Chain:
        """The path of a device whose certificate says where to ask (authorityInfoAccess)."""
        where = x509.AccessDescription(
            AuthorityInformationAccessOID.OCSP, x509.UniformResourceIdentifier(responder)
        )
        leaf = self._leaf(f"Small Device {serial}", serial, (x509.AuthorityInformationAccess([where]),))
        return Chain(root=self.root.der, between=(self.issuing.der,), leaf=leaf.der)

    def chain(self, serial: int) -> Chain:
        """The path of a device."""
        return Chain(root=self.root.der, between=(self.issuing.der,), leaf=self.devices[serial].der)

    def under_stranger(self, serial: int) -> Chain:
        """The same with a root of the same name that issued nothing of it."""
        return Chain(root=self.stranger.der, between=(self.issuing.der,), leaf=self.devices[serial].der)

    def forged(self) -> Chain:
        """A path whose leaf has a bit of its signature turned."""
        chain = self.chain(WELL)
        return replace(chain, leaf=chain.leaf[:-1] + bytes([chain.leaf[-1] ^ 1]))

    def by_a_device(self) -> Chain:
        """A path whose leaf was issued by what is no authority."""
        constraints = x509.BasicConstraints(ca=False, path_length=None)
        leaf = issued(named("Child"), self.devices[WELL], constraints=constraints, usage=LEAF_USE, days=300)
        return Chain(root=self.root.der, between=(self.devices[WELL].der, self.issuing.der), leaf=leaf.der)

    def too_long(self) -> Chain:
        """A path with an authority below one that may have none (pathLenConstraint 0)."""
        below = authority("Small Sub", self.issuing, path_length=0)
        constraints = x509.BasicConstraints(ca=False, path_length=None)
        leaf = issued(named("Child"), below, constraints=constraints, usage=LEAF_USE, days=300)
        return Chain(root=self.root.der, between=(below.der, self.issuing.der), leaf=leaf.der)

    def crl(
        self,
        *,
        shard: int | None = None,
        at: datetime = AT,
        revoked: dict[int, x509.ReasonFlags] | None = None,
        by: Entity | None = None,
        delta: bool = False,
        base: int | None = None,
        numbered: bool = True,
    ) -> bytes:
        """A CRL for a day of ``at``: of everything, or of a shard with a critical scope.

        ``delta`` says where one to it is (FreshestCRL); ``base`` makes it one, to the list of this number.
        """
        signer = by or self.issuing
        entries = REVOKED if revoked is None else revoked
        authority_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key.public_key())
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.issuing.certificate.subject)
            .last_update(at - DAY / 2)
            .next_update(at + DAY / 2)
            .add_extension(authority_key, critical=False)
        )
        if numbered:
            builder = builder.add_extension(x509.CRLNumber(7 if base is None else base + 1), critical=False)
        if delta:
            builder = builder.add_extension(x509.FreshestCRL([_point(SHARDS[0] + ".delta")]), critical=False)
        if base is not None:
            builder = builder.add_extension(x509.DeltaCRLIndicator(base), critical=True)
        for serial, reason in entries.items():
            if shard is None or serial % 2 == shard:
                entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(AT - DAY)
                builder = builder.add_revoked_certificate(
                    entry.add_extension(x509.CRLReason(reason), critical=False).build()
                )
        if shard is not None:
            builder = builder.add_extension(_scope(shard), critical=True)
        return builder.sign(signer.key, hashes.SHA256()).public_bytes(Encoding.DER)

    def response(
        self,
        serial: int,
        *,
        unknown: bool = False,
        at: datetime = AT,
        by: Entity | None = None,
        algorithm: hashes.HashAlgorithm | None = None,
        nonce: x509.OCSPNonce | None = None,
    ) -> bytes:
        """An OCSP response for a day of ``at``, of the delegated responder or another."""
        signer = by or self.responder
        reason = REVOKED.get(serial)
        status = ocsp.OCSPCertStatus.REVOKED if reason else ocsp.OCSPCertStatus.GOOD
        if unknown:
            status, reason = ocsp.OCSPCertStatus.UNKNOWN, None
        builder = (
            ocsp.OCSPResponseBuilder()
            .add_response(
                cert=self.devices[serial].certificate,
                issuer=self.issuing.certificate,
                algorithm=algorithm or hashes.SHA1(),  # noqa: S303 - names the issuer, protects nothing
                cert_status=status,
                this_update=at - DAY / 2,
                next_update=at + DAY / 2,
                revocation_time=AT - DAY if reason else None,
                revocation_reason=reason,
            )
            .responder_id(ocsp.OCSPResponderEncoding.HASH, signer.certificate)
            .certificates([signer.certificate])
        )
        if nonce is not None:
            builder = builder.add_extension(nonce, critical=False)
        return builder.sign(signer.key, hashes.SHA256()).public_bytes(Encoding.DER)

    def answer(
        self, request: bytes, *, unknown: bool = False, by: Entity | None = None, at: datetime = AT
    ) -> bytes:
        """What a responder says to a request, with its nonce."""
        asked = ocsp.load_der_ocsp_request(request)
        nonces = [found.value for found in asked.extensions if isinstance(found.value, x509.OCSPNonce)]
        return self.response(
            asked.serial_number,
            unknown=unknown,
            at=at,
            by=by,
            algorithm=asked.hash_algorithm,
            nonce=nonces[0] if nonces else None,
        )


@cache
def small() -> Small:
    """The one of this test run."""
    return Small()
