"""The part of the settings that is about the gateway; see ``settings``."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from birthmark import errors
from birthmark.floor.limits import Rate
from birthmark.pki.keys import check_label
from birthmark.settings_table import Table

__all__ = ["GatewayPlane"]


class GatewayPlane(Table):
    """The listener that devices report to, and proxies ask about them: mutual TLS 1.3 (SPEC H3)."""

    host: str = "127.0.0.1"
    port: int = Field(default=8446, ge=0, le=65535)
    certificate_file: Path
    """The gateway's certificate and the authorities above it (PEM); devices pin its key."""
    key_file: Path
    key_passphrase_file: Path
    next_certificate_file: Path | None = None
    """The certificate that comes after it (PEM): as soon as it is there, its pin is told."""
    next_key_file: Path | None = None
    """Its key, under the same passphrase; ``birthmark gateway`` makes both, and puts them in their place."""
    other_realms: tuple[Path, ...] = ()
    """Roots (PEM) of realms whose devices are told from strangers, and refused by name (SPEC H6)."""
    token_keys: tuple[str, ...] = ()
    """Labels of the keys of tokens in the service's key store: the first signs; none: no tokens."""
    token_seconds: int = Field(default=300, ge=10, le=3600)
    audience: str | None = Field(default=None, min_length=1, max_length=200)
    """For whom tokens are; the realm's name where it is left out."""
    ask_again_seconds: int = Field(default=3600, ge=1)
    """After so long a device is to report again."""
    processes: int = Field(default=1, ge=1, le=64)
    refusals_per_minute: int = Field(default=60, ge=1)
    """How many refusals of devices are put on record a minute on average; the others are counted."""
    refusals_burst: int = Field(default=600, ge=1)
    proxy_per_minute: int = Field(default=6000, ge=1)
    """The same of those that a proxy asks about."""
    proxy_burst: int = Field(default=3000, ge=1)
    request_seconds: int = Field(default=10, ge=1)
    """How long a request may take to arrive."""
    answer_seconds: int = Field(default=30, ge=1)
    """How long an answer may wait for the device to take it."""
    keep_alive_seconds: int = Field(default=75, ge=1)
    """How long a connection is kept on which nothing is asked."""
    handshake_seconds: int = Field(default=10, ge=1, le=60)
    max_connections: int = Field(default=4000, ge=1, le=100_000)
    """Of one process, as the next three."""
    max_connections_per_address: int = Field(default=2000, ge=1)
    """From one IPv4 address, or one IPv6 network of 64 bits."""
    max_connections_per_client: int = Field(default=100, ge=1)
    """With one certificate."""
    max_handshakes: int = Field(default=500, ge=1)
    """Not finished at a time; who comes then takes the place of the oldest."""

    @model_validator(mode="after")
    def _checked(self) -> Self:
        if (self.next_certificate_file is None) != (self.next_key_file is None):
            raise ValueError("next-certificate-file and next-key-file go together")
        for label in self.token_keys:
            try:
                check_label(label)
            except errors.MalformedRequest as wrong:
                raise ValueError(f"token-keys: {wrong}") from wrong
        return self

    @property
    def refusal_rate(self) -> Rate:
        """How fast refusals of devices are put on record."""
        return Rate(per_minute=self.refusals_per_minute, burst=self.refusals_burst)

    @property
    def proxy_rate(self) -> Rate:
        """How fast refusals of devices that a proxy asks about are."""
        return Rate(per_minute=self.proxy_per_minute, burst=self.proxy_burst)
