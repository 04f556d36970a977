"""``file:DIR``: a directory as device; see ``birthmark.edge.station.enclave``."""

from collections.abc import Mapping

from birthmark.edge.station.elements import algorithm_of, allow
from birthmark.edge.station.enclave import Enclave
from birthmark.errors import MalformedRequest

__all__ = ["element"]


def element(place: str, options: Mapping[str, str]) -> Enclave:
    """Open the directory ``place``; the option ``algorithm`` is that of the keys made in it.

    Raises:
        MalformedRequest: no directory is named, or the algorithm is none of ours.
        Refusal: whatever ``Enclave`` has against it.
    """
    allow(options, "algorithm")
    if not place:
        raise MalformedRequest("file: names no directory: write file:/path/of/the/device")
    return Enclave(place, algorithm=algorithm_of(options))
