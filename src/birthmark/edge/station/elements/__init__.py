"""Device elements and card channels by name: what ``--element`` looks up.

An element is named by a URL, ``scheme:place`` or ``scheme:place?option=value&option=value``; ``%`` escapes
what would mean something else.  Secrets have no place in it: options name files.

Who knows a scheme is found in the metadata of what is installed (entry points): a package that declares

    [project.entry-points."birthmark.elements"]
    acme = "acme_birthmark:element"

answers for ``acme:…`` from the moment it is installed, without a change here.  Ours are declared in the same
way.  The entry point is a ``ElementFactory``.  Readers that carry command APDUs have a group of their own,
``birthmark.channels``, so that an element that speaks APDUs works over any of them.

``docs/elements.md`` is the page for who writes one; ``birthmark.edge.station.conformance`` holds it to the
contract.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol
from urllib.parse import parse_qsl, unquote

from birthmark.edge.station.element import DeviceElement
from birthmark.element.apdu import CardChannel
from birthmark.errors import MalformedRequest, NotFound
from birthmark.pki.keys import KeyAlgorithm

__all__ = [
    "CHANNELS",
    "ELEMENTS",
    "ChannelFactory",
    "ElementFactory",
    "algorithm_of",
    "allow",
    "opened",
    "opened_channel",
    "schemes",
    "split",
]

ELEMENTS = "birthmark.elements"
"""Group of entry points that are each an ``ElementFactory``; the name is the scheme."""
CHANNELS = "birthmark.channels"
"""Group of entry points that are each a ``ChannelFactory``."""

_URL = re.compile(r"([a-z][a-z0-9+.-]*):([^?]*)(?:\?(.*))?", re.DOTALL)


class ElementFactory(Protocol):
    """Makes a device element from what stands behind its scheme."""

    def __call__(self, place: str, options: Mapping[str, str]) -> DeviceElement:
        """Open the element.  If it holds something, it has a ``close`` that gives it back.

        Args:
            place: what stood between the scheme and the question mark; may be empty.
            options: by name; ``allow`` refuses those that the element does not know.

        Raises:
            Refusal: it cannot be opened; the message says what to do.
        """
        ...


class ChannelFactory(Protocol):
    """Makes a card channel from what stands behind its scheme."""

    def __call__(self, place: str, options: Mapping[str, str]) -> CardChannel:
        """Open the channel, as an ``ElementFactory`` opens an element."""
        ...


def allow(options: Mapping[str, str], *names: str) -> None:
    """Refuse options that are not among these.

    Raises:
        MalformedRequest: there is one.
    """
    if strange := sorted(set(options) - set(names)):
        known = f"it has {', '.join(names)}" if names else "it has none"
        raise MalformedRequest(f"the element has no option {strange[0][:100]!r}; {known}")


def algorithm_of(options: Mapping[str, str], known: Iterable[KeyAlgorithm] = KeyAlgorithm) -> KeyAlgorithm:
    """Return what the option ``algorithm`` says of the keys that are made; EC P-256 where it is left out.

    Raises:
        MalformedRequest: it is none of those that are known.
    """
    names = list(known)
    if (name := options.get("algorithm", KeyAlgorithm.EC_P256)) not in names:
        raise MalformedRequest(f"algorithm is one of {', '.join(names)}")
    return KeyAlgorithm(name)


def split(url: str) -> tuple[str, str, dict[str, str]]:
    """Return scheme, place and options of an element's or a channel's URL.

    Raises:
        MalformedRequest: it is none, or has an option twice.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise MalformedRequest(f"{url[:200]!r} names no element: write scheme:place, e.g. file:/mnt/device")
    try:
        pairs = parse_qsl((found[3] or "").replace("+", "%2B"), True, True, errors="strict")
        place = unquote(found[2], errors="strict")
    except ValueError as wrong:
        raise MalformedRequest(f"{url[:200]!r}: its options are not name=value, joined with &") from wrong
    options = dict(pairs)
    if len(options) != len(pairs):
        raise MalformedRequest(f"{url[:200]!r} has an option twice")
    return found[1], place, options


def schemes(group: str = ELEMENTS) -> dict[str, str]:
    """Return the schemes that are known here, each with the package that answers for it."""
    return {
        point.name: _owner(point) for point in sorted(entry_points(group=group), key=lambda one: one.name)
    }


@contextmanager
def opened(url: str) -> Iterator[DeviceElement]:
    """Open the element that a URL names, and close it afterwards.

    Raises:
        MalformedRequest: the URL is none, or has options that the element does not know.
        NotFound: nothing that is installed knows the scheme, or it cannot be loaded.
        Refusal: whatever the element has against it.
    """
    element: DeviceElement = _made(ELEMENTS, url)
    try:
        yield element
    finally:
        _close(element)


@contextmanager
def opened_channel(url: str) -> Iterator[CardChannel]:
    """Open the card channel that a URL names, and close it afterwards; refusals are those of ``opened``."""
    channel: CardChannel = _made(CHANNELS, url)
    try:
        yield channel
    finally:
        _close(channel)


def _made(group: str, url: str) -> Any:
    scheme, place, options = split(url)
    return _factory(group, scheme)(place, options)


def _factory(group: str, scheme: str) -> Any:
    kind = group.removeprefix("birthmark.").removesuffix("s")
    points = {point.value: point for point in entry_points(group=group, name=scheme)}
    if not points:
        known = ", ".join(schemes(group)) or "none"
        raise NotFound(f"no {kind} answers for {scheme!r} here; installed are: {known}")
    if len(points) > 1:
        owners = " and ".join(sorted(_owner(point) for point in points.values()))
        raise NotFound(f"{owners} both answer for {scheme!r}: uninstall one of them")
    (point,) = points.values()
    try:
        return point.load()
    except (ImportError, AttributeError) as wrong:
        raise NotFound(f"the {kind} {scheme!r} of {_owner(point)} cannot be loaded: {wrong}") from wrong


def _owner(point: EntryPoint) -> str:
    return "an unknown package" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _close(what: object) -> None:
    close = getattr(what, "close", None)
    if close is not None:
        close()
