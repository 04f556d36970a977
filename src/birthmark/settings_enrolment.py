"""The settings of the enrolment plane: where stations come in with a code (SPEC C2)."""

from pydantic import Field

from birthmark.floor.limits import Rate
from birthmark.settings_table import Table

__all__ = ["EnrolmentPlane"]


class EnrolmentPlane(Table):
    """The listener for stations that were invited: TLS 1.3 with the same server certificate and no client's.

    It is closed as long as no code is good (SPEC C2).
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8444, ge=0, le=65535)
    per_minute: int = Field(default=60, ge=1, le=600)
    """How many codes may be tried a minute on average, right or wrong."""
    burst: int = Field(default=60, ge=1, le=6000)
    address_per_minute: int = Field(default=6, ge=1, le=600)
    """The same for one IPv4 address, or one IPv6 network of 64 bits."""
    address_burst: int = Field(default=12, ge=1, le=6000)
    request_seconds: int = Field(default=10, ge=1)
    """How long a request may take to arrive."""
    answer_seconds: int = Field(default=30, ge=1)
    """How long an answer may wait for the station to take it."""
    handshake_seconds: int = Field(default=10, ge=1, le=60)
    max_connections: int = Field(default=64, ge=1, le=10_000)
    max_connections_per_address: int = Field(default=16, ge=1)

    @property
    def keep_alive_seconds(self) -> int:
        """How long a connection is kept on which nothing is asked."""
        return self.request_seconds

    @property
    def max_handshakes(self) -> int:
        """Not finished at a time: as many as connections."""
        return self.max_connections

    @property
    def max_connections_per_client(self) -> int:
        """With one certificate: nobody shows any."""
        return 0

    @property
    def rates(self) -> tuple[Rate, Rate]:
        """How fast codes may be tried: altogether, and from one address."""
        return (
            Rate(per_minute=self.per_minute, burst=self.burst),
            Rate(per_minute=self.address_per_minute, burst=self.address_burst),
        )
