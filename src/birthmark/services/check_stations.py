"""Hold invitations and exposures against the log; a part of ``check``."""

from birthmark.floor.exposure import Exposure
from birthmark.floor.invitations import Invitation
from birthmark.ledger.entry import time_text
from birthmark.ports import Store
from birthmark.services.check_report import Report, scan, time_or_none
from birthmark.services.station_testimony import InvitationSaid, StationsSaid

__all__ = ["check_stations"]


def check_stations(report: Report, store: Store, said: StationsSaid) -> None:
    """Each invitation and each exposure is what the last entry about it says."""
    invited = dict(said.invitations)
    for invitation in scan(report, store, Invitation):
        report.counts["invitations"] += 1
        if invited.pop(invitation.id, None) != _said_of(invitation):
            report.find(
                f"the invitation {invitation.id[:16]} of {invitation.client} is not what the log says of it"
            )
    for name in invited:
        report.find(f"the log says an invitation {name[:16]} was given; it is gone")
    exposed = dict(said.exposures)
    for exposure in scan(report, store, Exposure):
        report.counts["exposures"] += 1
        times = (time_or_none(exposure.opens_at), time_or_none(exposure.closes_at))
        if exposed.pop(exposure.id, None) != times:
            report.find(f"{exposure.id} is open or closed at other times than the log says")
    for name in exposed:
        report.find(f"the log says when {name} is open; that is gone")


def _said_of(invitation: Invitation) -> InvitationSaid:
    return InvitationSaid(
        client=invitation.client,
        site=invitation.site,
        line=invitation.line,
        runs=invitation.runs,
        authority=invitation.authority,
        invited_by=invitation.invited_by,
        hours=invitation.hours,
        expires_at=time_text(invitation.expires_at),
        certificate=invitation.certificate,
    )
