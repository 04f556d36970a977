"""Whether this machine and the database's server agree on the time of day.

An entry that is dated in the future holds the line until that time comes, and cannot be taken back.  A
process that starts has nothing to hold its clock against (``adapters.clocks``) but another machine's: a
PostgreSQL server's.  SQLite is on this machine, and its time is the same.
"""

from collections.abc import Callable
from datetime import timedelta

from birthmark import errors
from birthmark.adapters.sql.database import Database
from birthmark.adapters.sql.rows import moment
from birthmark.ledger.entry import time_text
from birthmark.ports import Clock

__all__ = ["agreement"]

_SERVER_TIME = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"


def agreement(database: Database, clock: Clock, tolerance: timedelta) -> Callable[[], None]:
    """Return what compares the two clocks, and raises ``errors.Unavailable`` if they are farther apart."""

    def require() -> None:
        ((milliseconds,),) = database.query(_SERVER_TIME)
        theirs, ours = moment(milliseconds), clock.now()
        if abs(ours - theirs) > tolerance:
            raise errors.Unavailable(
                f"the clock says {time_text(ours)}, the database server's {time_text(theirs)}: nothing is"
                " dated until they agree; set the one that is wrong"
            )

    return require
