"""A TBSCertificate taken apart, to be broken in one way and put together again."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from cryptography import x509

from birthmark.errors import PolicyRefused
from birthmark.pki import der, lint
from birthmark.pki.certificates import TBSCertificate
from birthmark.pki.keys import KeyAlgorithm
from tests.pki.sample import ISSUING_KEY, private_key, signed_by

P256 = KeyAlgorithm.EC_P256


@dataclass
class Parts:
    """A TBSCertificate taken apart, to be put together otherwise."""

    version: bytes
    serial_number: bytes
    signature: bytes
    issuer: bytes
    not_before: bytes
    not_after: bytes
    subject: list[bytes]
    key: bytes
    extensions: list[tuple[str, bool, bytes]]

    @classmethod
    def of(cls, tbs: TBSCertificate) -> "Parts":
        octets = tbs.der
        _, _, start, stop = der.only(octets, der.SEQUENCE)
        fields = der.children(octets, start, stop)
        whole = [octets[field[1] : field[3]] for field in fields]
        times = [octets[time[1] : time[3]] for time in der.children(octets, *fields[4][2:])]
        names = [octets[name[1] : name[3]] for name in der.children(octets, *fields[5][2:])]
        # The library reads the extensions: what it says is the ground on which we break them.
        signature = signed_by(private_key(P256, ISSUING_KEY), octets)
        parsed = x509.load_der_x509_certificate(
            der.encode(der.SEQUENCE, octets, whole[2], der.encode(der.BIT_STRING, b"\0" + signature))
        )
        extensions = [
            (found.oid.dotted_string, found.critical, found.value.public_bytes())
            for found in parsed.extensions
        ]
        return cls(
            whole[0], whole[1], whole[2], whole[3], times[0], times[1], names, whole[6], extensions
        )  # fmt: skip

    def assemble(self) -> bytes:
        extensions = [
            der.encode(
                der.SEQUENCE,
                der.oid(identifier),
                b"\x01\x01\xff" if critical else b"",
                der.encode(der.OCTET_STRING, value),
            )
            for identifier, critical, value in self.extensions
        ]
        return der.encode(
            der.SEQUENCE,
            self.version,
            self.serial_number,
            self.signature,
            self.issuer,
            der.encode(der.SEQUENCE, self.not_before, self.not_after),
            der.encode(der.SEQUENCE, *self.subject),
            self.key,
            der.encode(0xA3, der.encode(der.SEQUENCE, *extensions)),
        )

    def extension(self, wanted: str, value: bytes) -> None:
        self.extensions = [
            (identifier, critical, value if identifier == wanted else old)
            for identifier, critical, old in self.extensions
        ]


def broken(tbs: TBSCertificate, change: Callable[[Parts], object]) -> TBSCertificate:
    parts = Parts.of(tbs)
    assert parts.assemble() == tbs.der, "taken apart and put together it is the same"
    change(parts)
    return replace(tbs, der=parts.assemble())


def refused_by(tbs: TBSCertificate) -> str:
    with pytest.raises(PolicyRefused) as refusal:
        lint.permit(tbs)
    return refusal.value.rule


def set_to(field: str, value: bytes) -> Callable[[Parts], object]:
    return lambda parts: setattr(parts, field, value)


def set_extension(identifier: str, value: str) -> Callable[[Parts], object]:
    return lambda parts: parts.extension(identifier, bytes.fromhex(value))


def time(tag: int, text: str) -> bytes:
    return der.encode(tag, text.encode())


def attribute(dotted: str, tag: int, text: str) -> bytes:
    pair = der.encode(der.SEQUENCE, der.oid(dotted), der.encode(tag, text.encode()))
    return der.encode(der.SET, pair)
