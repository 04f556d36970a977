"""Credentials that many devices share until each has its own (SPEC H4).

Such a credential is a client with the role ``shared``: a certificate and its key, baked into an image, good
for one run.  What it may cost if it is stolen is limited by how many devices it brings in, from which
networks, for how long (its certificate, and the window it is open in), and it is shut out like any client.
Where a person looks at each request, what waits through it is limited, too: nobody looks at a flood.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from ipaddress import ip_network

from birthmark import errors
from birthmark.floor.places import address_of

__all__ = ["SharedCredential", "networks_text", "require_network", "settled_once", "use_once", "wait_once"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCredential:
    """What a shared credential may do, and has done."""

    id: str
    """The client's id: ``shared:NAME``."""
    quantity: int
    """The most devices that it brings in, for ever."""
    used: int
    networks: str
    """Where it may be used from: networks in CIDR notation, joined by spaces; empty for everywhere."""
    waiting: int = 0
    """How many of its requests nobody settled yet: see ``floor.enrolments.WaitingEnrolment``."""


def networks_text(networks: Iterable[str]) -> str:
    """Return networks as they are kept, sorted.

    Raises:
        errors.MalformedRequest: one is no network.
    """
    try:
        return " ".join(sorted({str(ip_network(one)) for one in networks}))
    except ValueError as cause:
        raise errors.MalformedRequest(f"a network is like 10.4.0.0/16 or fd00::/8: {cause}") from cause


def require_network(shared: SharedCredential, address: str) -> None:
    """Refuse an address outside of the networks.

    Raises:
        errors.NotPermitted: it is, or it is no address.
    """
    if not shared.networks:
        return
    place = address_of(address)
    if place is None:
        raise errors.NotPermitted(f"{shared.id} is for {shared.networks} only")
    if not any(place in ip_network(one) for one in shared.networks.split()):
        raise errors.NotPermitted(f"{shared.id} is for {shared.networks} only, not for {place}")


def use_once(shared: SharedCredential) -> SharedCredential:
    """Return it with one more device counted.

    Raises:
        errors.QuotaExhausted: it brought in as many as it may.
    """
    if shared.used >= shared.quantity:
        raise errors.QuotaExhausted(f"{shared.id} has brought in all {shared.quantity} devices it may")
    return replace(shared, used=shared.used + 1)


def wait_once(shared: SharedCredential, *, known: bool) -> SharedCredential:
    """Return it with one more request that waits for a person.

    Args:
        shared: as it was.
        known: whether the device is on record, and would not be counted again.

    Raises:
        errors.QuotaExhausted: as many wait as it may bring in.
    """
    most = shared.quantity if known else shared.quantity - shared.used
    if shared.waiting >= most:
        raise errors.QuotaExhausted(
            f"{shared.id} has brought in {shared.used} of {shared.quantity} devices, and {shared.waiting} of"
            " its requests wait: a person has to approve or refuse them first"
        )
    return replace(shared, waiting=shared.waiting + 1)


def settled_once(shared: SharedCredential) -> SharedCredential:
    """Return it with one request fewer that waits for a person."""
    return replace(shared, waiting=shared.waiting - 1)
