"""The subjectAltName of a certificate (RFC 5280 section 4.2.1.6), in our octets and by the library.

The names come in one order: hardwareModuleName (RFC 4108 section 5), permanentIdentifier (RFC 4043), DNS
names, URIs, IP addresses.  What a name may look like is checked here, for both ways; that the octets are
those a profile asks for is ``lint``'s to say.
"""

import ipaddress
import re
from collections.abc import Mapping
from typing import NamedTuple

from cryptography import x509

from birthmark.errors import MalformedRequest
from birthmark.pki import der
from birthmark.pki.profilelanguage import SerialEncoding, SubjectAlternativeName, TextTemplate

__all__ = [
    "HARDWARE_MODULE_NAME",
    "PERMANENT_IDENTIFIER",
    "Address",
    "alternative_name_der",
    "alternative_name_x509",
    "is_dns_name",
    "is_uri",
]

HARDWARE_MODULE_NAME = "1.3.6.1.5.5.7.8.4"
"""RFC 4108 section 5."""
PERMANENT_IDENTIFIER = "1.3.6.1.5.5.7.8.3"
"""RFC 4043."""

_TYPES = {kind: der.oid(kind) for kind in (HARDWARE_MODULE_NAME, PERMANENT_IDENTIFIER)}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!#$%&'()*+,./0-9:;=?@A-Z\[\]_a-z~-]+")
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})+")
_LONGEST_URI = 2048


class _Hosts(NamedTuple):
    dns_names: list[str]
    uris: list[str]
    addresses: list[Address]


def alternative_name_der(alternative: SubjectAlternativeName, variables: Mapping[str, str]) -> bytes:
    """Return GeneralNames (DER).

    Raises:
        MalformedRequest: a variable is missing or does not fit, or there is no name at all.
    """
    others = _others(alternative, variables)
    found = [der.encode(0xA0, _TYPES[kind], der.encode(0xA0, value)) for kind, value in others]
    if alternative.has_hosts:
        hosts = _hosts(alternative, variables)
        found += [der.encode(0x82, name.encode("ascii")) for name in hosts.dns_names]
        found += [der.encode(0x86, uri.encode("ascii")) for uri in hosts.uris]
        found += [der.encode(0x87, address.packed) for address in hosts.addresses]
    if not found:
        raise MalformedRequest("a server certificate needs a dns name or an ip address")
    return der.encode(der.SEQUENCE, *found)


def alternative_name_x509(
    alternative: SubjectAlternativeName, variables: Mapping[str, str]
) -> x509.SubjectAlternativeName:
    """Return the same as the library's value; errors likewise."""
    others, hosts = _others(alternative, variables), _hosts(alternative, variables)
    names = [
        *(x509.OtherName(x509.ObjectIdentifier(kind), value) for kind, value in others),
        *(x509.DNSName(name) for name in hosts.dns_names),
        *(x509.UniformResourceIdentifier(uri) for uri in hosts.uris),
        *(x509.IPAddress(address) for address in hosts.addresses),
    ]
    if not names:
        raise MalformedRequest("a server certificate needs a dns name or an ip address")
    return x509.SubjectAlternativeName(names)


def is_dns_name(name: str) -> bool:
    """Return whether a text is a DNS name (RFC 1034 section 3.5)."""
    return len(name) <= 253 and all(_is_label(label) for label in name.split("."))


def is_uri(text: str) -> bool:
    """Return whether a text is an absolute URI of the characters of RFC 3986."""
    return len(text) <= _LONGEST_URI and _URI.fullmatch(text) is not None


def _others(alternative: SubjectAlternativeName, variables: Mapping[str, str]) -> list[tuple[str, bytes]]:
    """Return type and value (DER) of each otherName."""
    others: list[tuple[str, bytes]] = []
    if alternative.hardware_type is not None:
        others.append((HARDWARE_MODULE_NAME, _hardware_module_name(alternative, variables)))
    permanent = alternative.permanent_identifier
    if permanent is not None and _wanted(alternative, "permanent-identifier", permanent, variables):
        value = _permanent_identifier(permanent.render(variables), alternative.assigner, variables)
        others.append((PERMANENT_IDENTIFIER, value))
    return others


def _wanted(
    alternative: SubjectAlternativeName,
    key: str,
    template: TextTemplate,
    variables: Mapping[str, str],
) -> bool:
    return key not in alternative.optional or template.has_values(variables)


def _hardware_module_name(alternative: SubjectAlternativeName, variables: Mapping[str, str]) -> bytes:
    """HardwareModuleName ::= SEQUENCE { hwType OBJECT IDENTIFIER, hwSerialNum OCTET STRING } (RFC 4108)."""
    if alternative.hardware_type is None or alternative.hardware_serial is None:
        raise RuntimeError("there is no hardwareModuleName")
    text = alternative.hardware_serial.render(variables)
    if alternative.serial_encoding is SerialEncoding.HEX:
        if _HEX.fullmatch(text) is None:
            raise MalformedRequest(f"hardware serial {text!r} is not pairs of hex digits")
        octets = bytes.fromhex(text)
    elif text and text.isascii():
        octets = text.encode("ascii")
    else:
        raise MalformedRequest(f"hardware serial {text!r} is empty or not ascii")
    kind = der.oid(alternative.hardware_type.render(variables))
    return der.encode(der.SEQUENCE, kind, der.encode(der.OCTET_STRING, octets))


def _permanent_identifier(text: str, assigner: TextTemplate | None, variables: Mapping[str, str]) -> bytes:
    """PermanentIdentifier ::= SEQUENCE { UTF8String, OBJECT IDENTIFIER OPTIONAL } (RFC 4043)."""
    if not text or not text.isprintable():
        raise MalformedRequest(f"permanent identifier {text!r} is empty or cannot be printed")
    issued_by = b""
    if assigner is not None and assigner.has_values(variables):
        issued_by = der.oid(assigner.render(variables))
    return der.encode(der.SEQUENCE, der.encode(der.UTF8_STRING, text.encode()), issued_by)


def _hosts(alternative: SubjectAlternativeName, variables: Mapping[str, str]) -> _Hosts:
    dns_names = alternative.dns_names.render(variables).split() if alternative.dns_names else []
    texts = alternative.ip_addresses.render(variables).split() if alternative.ip_addresses else []
    uris: list[str] = []
    if alternative.uris is not None and _wanted(alternative, "uris", alternative.uris, variables):
        uris = alternative.uris.render(variables).split()
    for name in dns_names:
        if not is_dns_name(name):
            raise MalformedRequest(f"{name!r} is no dns name (RFC 1034 section 3.5)")
    for uri in uris:
        if not is_uri(uri):
            raise MalformedRequest(f"{uri!r} is no absolute uri (RFC 3986 section 4.3)")
    try:
        addresses: list[Address] = [ipaddress.ip_address(text) for text in texts]
    except ValueError as error:
        raise MalformedRequest(str(error)) from error
    return _Hosts(dns_names, uris, addresses)


def _is_label(label: str) -> bool:
    return (
        1 <= len(label) <= 63
        and label.isascii()
        and label.replace("-", "a").isalnum()
        and not label.startswith("-")
        and not label.endswith("-")
    )
