"""The part of the settings that is about devices that enrol; see ``settings``."""

from pydantic import Field

from birthmark.floor.limits import Rate
from birthmark.settings_table import Table

__all__ = ["DevicePlane"]


class DevicePlane(Table):
    """The listener for devices that enrol by EST and CMP, and prove what they got (SPEC H1, H2).

    TLS 1.2 and 1.3 with the station plane's server certificate; a client certificate is asked for, and who
    has none needs a one-time code.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8445, ge=0, le=65535)
    default_run: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")
    """For devices with an identity that name no run: an operational one."""
    processes: int = Field(default=1, ge=1, le=64)
    max_body_bytes: int = Field(default=65_536, ge=4096, le=65_536)
    client_per_minute: int = Field(default=60, ge=1)
    """How many acts a device may make a minute on average."""
    client_burst: int = Field(default=60, ge=1)
    shared_per_minute: int = Field(default=6000, ge=1)
    """How many acts by one credential that many share, or by one station that speaks for devices."""
    shared_burst: int = Field(default=3000, ge=1)
    retry_seconds: int = Field(default=30, ge=1, le=86_400)
    """After how long it is worth asking again about what waits for a person."""
    confirm_seconds: int = Field(default=600, ge=1, le=86_400)
    """How long a CMP client may take to confirm a certificate; one that is not confirmed is revoked."""
    request_seconds: int = Field(default=10, ge=1)
    """How long a request may take to arrive."""
    answer_seconds: int = Field(default=30, ge=1)
    """How long an answer may wait for the device to take it."""
    keep_alive_seconds: int = Field(default=30, ge=1)
    """How long a connection is kept on which nothing is asked."""
    handshake_seconds: int = Field(default=10, ge=1, le=60)
    max_connections: int = Field(default=1000, ge=1, le=100_000)
    """Of one process, as the next three."""
    max_connections_per_address: int = Field(default=500, ge=1)
    """From one IPv4 address, or one IPv6 network of 64 bits."""
    max_connections_per_client: int = Field(default=100, ge=1)
    """With one certificate."""
    max_handshakes: int = Field(default=200, ge=1)
    """Not finished at a time; who comes then takes the place of the oldest."""

    @property
    def client_rate(self) -> Rate:
        """How fast each device may go."""
        return Rate(per_minute=self.client_per_minute, burst=self.client_burst)

    @property
    def shared_rate(self) -> Rate:
        """How fast those who bring in many may go."""
        return Rate(per_minute=self.shared_per_minute, burst=self.shared_burst)
