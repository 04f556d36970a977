"""PostgreSQL for tests: a private cluster that can be stopped, crashed and started again."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.programs import need
from tools.localpg import LocalPostgreSQL

__all__ = ["LocalPostgreSQL", "start"]


def start(
    settings: Mapping[str, str] | None = None, *, within: Path | None = None, initdb: Sequence[str] = ()
) -> LocalPostgreSQL:
    """Start a cluster; skip the test (fail it in CI) where PostgreSQL's server is not installed."""
    need("initdb", "postgresql")
    need("postgres", "postgresql")
    return LocalPostgreSQL(settings, within=within, initdb=initdb)
