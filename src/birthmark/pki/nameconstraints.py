"""Name constraints (RFC 5280 section 4.2.1.10): what an authority may name, written, read and judged.

Forms judged are dNSName, uniformResourceIdentifier, iPAddress and directoryName.  A constraint of another
form refuses every name of that form, as the section asks of whoever cannot process it.  Directory names
compare without regard to case and runs of spaces (section 7.1), so that no spelling slips past an exclusion.

Authorities are few: nothing here is fast.
"""

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from cryptography import x509

from birthmark.errors import MalformedRequest
from birthmark.pki import der, names
from birthmark.pki.alternativenames import is_dns_name
from birthmark.pki.profilelanguage import NameConstraints, NameForm, Subtree

__all__ = ["FORM_TAGS", "NameLimits", "complaint", "name_constraints_x509", "read_limits"]

FORM_TAGS = {NameForm.DNS: 0x82, NameForm.URI: 0x86, NameForm.IP: 0x87, NameForm.DIRECTORY: 0xA4}
"""Tags of GeneralName."""


class NameLimits(NamedTuple):
    """The name constraints in one authority's certificate: GeneralName tag and contents of each base."""

    permitted: tuple[tuple[int, bytes], ...]
    excluded: tuple[tuple[int, bytes], ...]


# --- writing ---


def name_constraints_x509(constraints: NameConstraints, variables: Mapping[str, str]) -> x509.NameConstraints:
    """Return the library's value.

    Raises:
        MalformedRequest: a variable is missing or does not fit.
    """
    permitted = [name for tree in constraints.permitted for name in _bases(tree, variables)]
    excluded = [name for tree in constraints.excluded for name in _bases(tree, variables)]
    return x509.NameConstraints(permitted or None, excluded or None)


def _bases(tree: Subtree, variables: Mapping[str, str]) -> list[x509.GeneralName]:
    if tree.value is None:
        name = tuple((part.attribute, part.value.render(variables)) for part in tree.name)
        names.encode(name)  # the library checks less
        return [x509.DirectoryName(x509.Name([x509.NameAttribute(names.OIDS[k], text) for k, text in name]))]
    texts = tree.value.render(variables).split()
    if not texts:
        raise MalformedRequest(f"a name constraint on {tree.form} names nothing")
    if tree.form is NameForm.IP:
        try:
            return [x509.IPAddress(ipaddress.ip_network(text)) for text in texts]
        except ValueError as error:
            raise MalformedRequest(f"name constraint: {error}") from error
    for text in texts:
        host = text.removeprefix(".") if tree.form is NameForm.URI else text
        if not is_dns_name(host):
            raise MalformedRequest(f"name constraint: {text!r} is no dns name")
    if tree.form is NameForm.URI:
        return [x509.UniformResourceIdentifier(text) for text in texts]
    return [x509.DNSName(text) for text in texts]


# --- reading ---


def read_limits(value: bytes) -> NameLimits:
    """Read NameConstraints (DER).

    Raises:
        MalformedRequest: it is none, or uses minimum and maximum, which RFC 5280 has no use for.
    """
    _, _, start, stop = der.only(value, der.SEQUENCE)
    trees: dict[int, tuple[tuple[int, bytes], ...]] = {}
    for tag, _, content, end in der.children(value, start, stop):
        if tag not in {0xA0, 0xA1} or tag in trees:
            raise MalformedRequest("name constraints are not permitted and excluded subtrees")
        trees[tag] = tuple(_subtrees(value, content, end))
    if not any(trees.values()):
        raise MalformedRequest("name constraints neither permit nor exclude")
    return NameLimits(trees.get(0xA0, ()), trees.get(0xA1, ()))


def _subtrees(value: bytes, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    for tag, _, content, end in der.children(value, start, stop):
        parts = der.children(value, content, end)
        if tag != der.SEQUENCE or len(parts) != 1:
            raise MalformedRequest("a subtree is not one name alone")
        yield parts[0][0], value[parts[0][2] : parts[0][3]]


# --- judging ---


def complaint(limits: Sequence[NameLimits], subject: bytes, alternative: bytes | None) -> str | None:
    """Return what the constraints of a path have against a certificate's names, or None.

    Args:
        limits: of every authority above.
        subject: Name (DER).
        alternative: GeneralNames (DER), if it has subjectAltName.

    Raises:
        MalformedRequest: the names are none.
    """
    if not limits:
        return None
    found: list[tuple[int, bytes]] = [] if subject == b"\x30\x00" else [(0xA4, subject)]
    if alternative is not None:
        _, _, start, stop = der.only(alternative, der.SEQUENCE)
        found += [
            (tag, alternative[content:end]) for tag, _, content, end in der.children(alternative, start, stop)
        ]
    for limit in limits:
        for tag, name in found:
            said = _against(limit, tag, name)
            if said is not None:
                return said
    return None


def _against(limit: NameLimits, tag: int, name: bytes) -> str | None:
    permitted = [base for form, base in limit.permitted if form == tag]
    excluded = [base for form, base in limit.excluded if form == tag]
    if (permitted or excluded) and tag not in _WITHIN:
        return f"the issuer constrains names of form {tag:02x}, which cannot be judged"
    if (permitted or excluded) and tag == FORM_TAGS[NameForm.URI] and not _host(name):
        return f"the issuer constrains uris by their host, and this one has none: {name.hex()}"
    if permitted and not any(_WITHIN[tag](name, base) for base in permitted):
        return f"a name of form {tag:02x} is outside of what the issuer may name: {name.hex()}"
    if any(_WITHIN[tag](name, base) for base in excluded):
        return f"a name of form {tag:02x} is excluded from what the issuer may name: {name.hex()}"
    return None


def _dns_within(name: bytes, base: bytes) -> bool:
    """RFC 5280 section 4.2.1.10: constructed by adding zero or more labels to the left."""
    host, tree = name.lower(), base.lower()
    if tree.startswith(b"."):  # not in the section, and in the field: hosts below, and not this one
        return host.endswith(tree)
    return not tree or host == tree or host.endswith(b"." + tree)


def _uri_within(name: bytes, base: bytes) -> bool:
    """RFC 5280 section 4.2.1.10: the host; with a period in front all hosts below, else this one."""
    host, tree = _host(name), base.lower()
    return host.endswith(tree) if tree.startswith(b".") else host == tree


def _host(uri: bytes) -> bytes:
    try:
        return (urlsplit(uri.decode("ascii")).hostname or "").encode("ascii")
    except (UnicodeDecodeError, ValueError):
        return b""


def _address_within(name: bytes, base: bytes) -> bool:
    """RFC 5280 section 4.2.1.10: a network and its mask, 8 octets or 32; the other version is outside."""
    if len(base) not in {8, 32}:
        raise MalformedRequest(f"a name constraint on addresses has {len(base)} octets, not 8 or 32")
    size = len(base) // 2
    if len(name) != size:
        return False
    return all(
        octet & mask == net & mask for octet, net, mask in zip(name, base[:size], base[size:], strict=True)
    )


def _directory_within(name: bytes, base: bytes) -> bool:
    """RFC 5280 section 7.1: the base's relative distinguished names are the first of the name."""
    tree, whole = names.comparable(base), names.comparable(name)
    return whole[: len(tree)] == tree


_WITHIN = {0x82: _dns_within, 0x86: _uri_within, 0x87: _address_within, 0xA4: _directory_within}
