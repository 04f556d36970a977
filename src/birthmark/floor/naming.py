"""How a device of another fleet is named by its certificate (SPEC H5).

``device_name`` is pure and total: any octets are a name that the policy allows, or a refusal.  Nothing is
repaired: where a certificate says two names, or one with characters that cannot stand in a header, a path and
a log, it names no device.  What is proved by the certificate is not asked here (``pki.paths``).
"""

import re

from cryptography import x509
from cryptography.x509.oid import NameOID

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.floor.fleet import DeviceNaming, FleetPolicy
from birthmark.pki import der
from birthmark.pki.library import UNREADABLE
from birthmark.pki.paths import LARGEST

__all__ = ["LONGEST_NAME", "RULE", "device_name", "require_name"]

LONGEST_NAME = 128
RULE = "device-name"
_VISIBLE = re.compile(rf"[!-~]{{1,{LONGEST_NAME}}}")
_HARDWARE_MODULE = x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4")
"""id-on-hardwareModuleName (RFC 4108 section 5)."""


def require_name(policy: FleetPolicy, name: str) -> str:
    """Return a name if the policy allows it.

    Raises:
        PolicyRefused: it is not 1 to 128 visible ASCII characters, or does not match (rule ``device-name``).
    """
    if not _VISIBLE.fullmatch(name):
        raise PolicyRefused(
            RULE, f"a device is named by 1 to {LONGEST_NAME} visible ascii characters, not {name[:80]!r}"
        )
    if not re.fullmatch(policy.pattern, name):
        raise PolicyRefused(RULE, f"{name} does not match {policy.pattern}")
    return name


def device_name(policy: FleetPolicy, certificate: bytes) -> str:
    """Return the id that a device's certificate (DER) gives it under a policy.

    A dNSName is spelled in small letters: case does not tell hosts apart (RFC 4343).

    Raises:
        MalformedRequest: it is no certificate.
        PolicyRefused: it does not say exactly one such name, or one that the policy does not allow (rule
            ``device-name``).
    """
    if len(certificate) > LARGEST:
        raise MalformedRequest(f"a certificate has at most {LARGEST} octets, not {len(certificate)}")
    try:
        found = _names(policy.naming, x509.load_der_x509_certificate(certificate))
    except UNREADABLE as cause:
        raise MalformedRequest(f"not a certificate that can be read: {cause}") from cause
    if len(found) != 1:
        raise PolicyRefused(RULE, f"the certificate has {len(found)} names of kind {policy.naming}, not one")
    return require_name(policy, found[0])


def _names(naming: DeviceNaming, certificate: x509.Certificate) -> list[str]:
    match naming:
        case DeviceNaming.COMMON_NAME:
            return _attributes(certificate, NameOID.COMMON_NAME)
        case DeviceNaming.SERIAL_NUMBER:
            return _attributes(certificate, NameOID.SERIAL_NUMBER)
    alternative = next(
        (one.value for one in certificate.extensions if isinstance(one.value, x509.SubjectAlternativeName)),
        None,
    )
    if alternative is None:
        return []
    match naming:
        case DeviceNaming.DNS_NAME:
            return [name.lower() for name in alternative.get_values_for_type(x509.DNSName)]
        case DeviceNaming.URI:
            return list(alternative.get_values_for_type(x509.UniformResourceIdentifier))
        case DeviceNaming.HARDWARE_MODULE:
            others = alternative.get_values_for_type(x509.OtherName)
            return [name for one in others if one.type_id == _HARDWARE_MODULE for name in _module(one.value)]


def _attributes(certificate: x509.Certificate, kind: x509.ObjectIdentifier) -> list[str]:
    return [
        value if isinstance(value := one.value, str) else value.decode("latin-1")
        for one in certificate.subject.get_attributes_for_oid(kind)
    ]


def _module(value: bytes) -> list[str]:
    """Return hwSerialNum of a HardwareModuleName: SEQUENCE { hwType OID, hwSerialNum OCTET STRING }.

    Nothing where it is none of those.
    """
    try:
        parts = der.children(value, *der.only(value, der.SEQUENCE)[2:])
    except MalformedRequest:
        return []
    if [part[0] for part in parts] != [der.OID, der.OCTET_STRING]:
        return []
    return [value[parts[1][2] : parts[1][3]].decode("latin-1")]
