"""For tests of CMP: certificates that last, messages of our own making, OpenSSL's client."""

import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed448, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from birthmark.pki import cmp_protection as protection
from birthmark.pki import der
from birthmark.pki.algorithms import PrivateKey, key_identifier
from birthmark.pki.certificates import to_pem
from birthmark.pki.cmp import (
    BodyKind,
    PKIHeader,
    PKIMessage,
    assemble,
    decode,
    directory_name,
    encode_header,
    protected_part,
)
from birthmark.pki.keys import KeyAlgorithm
from birthmark.secret import SecretBytes
from tests.pki.sample import NOW, private_key, signed_by, spki
from tests.support.programs import need

P256 = KeyAlgorithm.EC_P256
SECRET = SecretBytes(b"correct horse battery staple")
REFERENCE = b"device-0001"
PBM = protection.MACAlgorithm(
    kind=protection.ProtectionKind.PBM,
    salt=b"0123456789abcdef",
    iterations=500,
    hashed=der.oid("2.16.840.1.101.3.4.2.1"),
    mac=der.oid("1.2.840.113549.2.9"),
    key_size=None,
)
PBMAC1 = protection.MACAlgorithm(
    kind=protection.ProtectionKind.PBMAC1,
    salt=b"0123456789abcdef",
    iterations=1000,
    hashed=der.oid("1.2.840.113549.2.9"),
    mac=der.oid("1.2.840.113549.2.10"),
    key_size=32,
)
SINCE, UNTIL = datetime(2020, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)


def name(common_name: str) -> x509.Name:
    """A name with nothing but a common name."""
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])


def certificate(
    common_name: str,
    algorithm: KeyAlgorithm = P256,
    *,
    issuer: str = "ca",
    usage: bool | None = True,
    identified: bool = True,
) -> bytes:
    """A certificate (DER) of the key with this name; ``usage`` False for one that must not sign messages."""
    return _certificate(common_name, algorithm, issuer=issuer, usage=usage, identified=identified)


@cache
def _certificate(
    common_name: str, algorithm: KeyAlgorithm, *, issuer: str, usage: bool | None, identified: bool
) -> bytes:
    is_ca = common_name == issuer
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(common_name))
        .issuer_name(name(issuer))
        .public_key(private_key(algorithm, common_name).public_key())
        .serial_number(int.from_bytes(sha256(f"{common_name} {usage}".encode()).digest()[:8]))
        .not_valid_before(SINCE)
        .not_valid_after(UNTIL)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
    )
    if identified:
        digest = key_identifier(spki(algorithm, common_name))
        builder = builder.add_extension(x509.SubjectKeyIdentifier(digest), critical=False)
    if usage is not None:
        builder = builder.add_extension(_usage(signs=usage, certifies=is_ca), critical=True)
    key = private_key(P256 if issuer == "ca" else algorithm, issuer)
    edwards = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    return builder.sign(key, None if edwards else hashes.SHA256()).public_bytes(Encoding.DER)


def _usage(*, signs: bool, certifies: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=not signs,
        key_cert_sign=certifies,
        crl_sign=certifies,
        encipher_only=False,
        decipher_only=False,
    )


def signer(
    common_name: str = "device", algorithm: KeyAlgorithm = P256, *, certificate_der: bytes | None = None
) -> protection.SignatureProtector:
    """Who signs messages with the key of this name."""
    return protection.SignatureProtector(
        algorithm=algorithm,
        key_identifier=key_identifier(spki(algorithm, common_name)),
        sign=lambda message: signed_by(private_key(algorithm, common_name), message),
        certificates=(certificate_der or certificate(common_name, algorithm),),
    )


def under_secret(algorithm: protection.MACAlgorithm = PBM) -> protection.MACProtector:
    """Whose messages are under the secret."""
    return protection.MACProtector(algorithm=algorithm, reference=REFERENCE, secret=SECRET)


def header(
    *,
    pvno: int = 2,
    sender: str = "device",
    message_time: datetime | None = NOW,
    transaction_id: bytes | None = b"t" * 16,
    sender_nonce: bytes | None = b"n" * 16,
    recip_nonce: bytes | None = None,
) -> PKIHeader:
    """The header of a first message, unless told otherwise."""
    return PKIHeader(
        pvno=pvno,
        sender=directory_name(name(sender).public_bytes()),
        recipient=directory_name(name("ca").public_bytes()),
        message_time=message_time,
        transaction_id=transaction_id,
        sender_nonce=sender_nonce,
        recip_nonce=recip_nonce,
    )


def message(
    of: PKIHeader | None = None,
    by: protection.SignatureProtector | protection.MACProtector | None = None,
    *,
    kind: BodyKind = BodyKind.GENM,
    body: bytes = b"\x30\x00",
) -> PKIMessage:
    """A message of our own, read back."""
    return decode(protection.protect(of or header(), kind, body, by or signer()))


def pem(octets: bytes) -> bytes:
    """A certificate (DER) in PEM."""
    return to_pem(octets).encode("ascii")


class Client:
    """OpenSSL's CMP client, in a folder with keys and certificates."""

    def __init__(self, folder: Path) -> None:
        """Write the keys and certificates."""
        self.folder = folder
        for common_name, algorithm in (("ca", P256), ("device", P256), ("new", P256), *OTHERS):
            self._write(f"{common_name}.key", private_key(algorithm, common_name))
            octets = certificate(common_name, algorithm)
            (folder / f"{common_name}.pem").write_bytes(pem(octets))
        csr = x509.CertificateSigningRequestBuilder().subject_name(name("new"))
        signed = csr.sign(private_key(P256, "new"), hashes.SHA256())
        (folder / "new.csr").write_bytes(signed.public_bytes(Encoding.PEM))

    def _write(self, file: str, key: PrivateKey) -> None:
        octets = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.folder / file).write_bytes(octets)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it; what it says is in ``stderr``."""
        command = [need("openssl"), "cmp", "-config", "", "-batch", "-verbosity", "6", *arguments]
        return subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=60
        )

    def asks(self, *arguments: str, certificate: str = "new.pem") -> list[bytes]:
        """Return the messages it sends in one transaction with its own mock server."""
        files = [self.folder / f"sent-{number}.der" for number in range(4)]
        for file in files:
            file.unlink(missing_ok=True)
        mock = (
            *("-use_mock_srv", "-accept_raverified", "-accept_unprotected", "-rsp_cert", certificate),
            *(MOCK_SECRET if "-secret" in arguments else MOCK_SIGNED),
        )
        sent = ",".join(file.name for file in files)
        done = self.run(*mock, "-certout", "got.pem", "-reqout", sent, *arguments)
        # What it is answered does not matter: the mock server refuses some of what we refuse, too.
        assert files[0].exists(), done.stderr + done.stdout
        return [file.read_bytes() for file in files if file.exists()]


OTHERS = (
    ("rsa", KeyAlgorithm.RSA_2048),
    ("p384", KeyAlgorithm.EC_P384),
    ("ed25519", KeyAlgorithm.ED25519),
    ("ed448", KeyAlgorithm.ED448),
)
IN_SECRET: Sequence[str] = (
    *("-ref", REFERENCE.decode(), "-secret", f"pass:{SECRET.reveal().decode()}", "-recipient", "/CN=ca"),
)
SIGNED: Sequence[str] = ("-cert", "device.pem", "-key", "device.key", "-trusted", "ca.pem")
MOCK_SECRET: Sequence[str] = ("-srv_ref", "ca", "-srv_secret", f"pass:{SECRET.reveal().decode()}")
MOCK_SIGNED: Sequence[str] = ("-srv_cert", "ca.pem", "-srv_key", "ca.key", "-srv_trusted", "ca.pem")


def unprotected(header: PKIHeader, kind: BodyKind, body: bytes) -> bytes:
    """Return a message (DER) without protection."""
    return assemble(protected_part(encode_header(header), kind, body), None)
