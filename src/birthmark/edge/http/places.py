"""What is counted as one address: an IPv4 address, or what one customer's hosts have in common of IPv6."""

from ipaddress import IPv6Address, ip_network

from birthmark.floor.places import address_of

__all__ = ["UNKNOWN", "place_of"]

UNKNOWN = "unknown"
_SHARED_V6 = 64
"""Bits of an IPv6 address that one customer's hosts have in common (RFC 6177)."""


def place_of(address: str) -> str:
    """Return what is counted as one address; ``unknown`` for what is none.

    Args:
        address: IPv4 or IPv6, perhaps with a zone (RFC 4007), which is passed over.
    """
    found = address_of(address)
    if found is None:
        return UNKNOWN
    if isinstance(found, IPv6Address):
        return str(ip_network((found, _SHARED_V6), strict=False))
    return str(found)
