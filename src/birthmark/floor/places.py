"""Addresses as they come with a connection, or as a proxy tells them."""

from ipaddress import IPv4Address, IPv6Address, ip_address

__all__ = ["address_of"]


def address_of(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address; None for what is none.

    Args:
        text: IPv4 or IPv6, perhaps with a zone (RFC 4007), which is passed over.  An IPv4 address in IPv6's
            spelling (RFC 4291 section 2.5.5.2) is that IPv4 address.
    """
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (isinstance(found, IPv6Address) and found.ipv4_mapped) or found
