"""A service that dies while it answers was not heard; the half of an answer is none (SPEC C4)."""

from collections.abc import Callable

import pytest

from birthmark.edge.station import Enclave, Station
from tests.edge.station.service import RUN, Handler, Service


def cut_after(octets: int) -> Callable[[Handler], bool]:
    """Return a mishap: so much of a longer body arrives, then the connection ends."""

    def mishap(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"device": "' + b"x" * (octets - 12) if octets else b"")
        handler.hang_up()
        return True

    return mishap


@pytest.mark.parametrize("octets", [0, 500])
@pytest.mark.parametrize("path", ["/v1/me", "/issue", "/v1/prove"])
def test_half_an_answer_is_asked_for_again(
    service: Service, station: Station, device: Enclave, path: str, octets: int
) -> None:
    service.mishaps.append((path, cut_after(octets)))
    assert station.provision(RUN, "1M8GDM9AXKP042788", device).token
    assert service.mishaps == []
