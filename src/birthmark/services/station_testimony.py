"""What a log says of invitations and exposures; see ``testimony``."""

from dataclasses import dataclass, field, replace

from birthmark import errors
from birthmark.services.entry_fields import Entry, known, number_of, text_of, text_or_none

__all__ = ["STATION_ENTRIES", "InvitationSaid", "StationsSaid"]

STATION_ENTRIES = frozenset({"station-invited", "invitation-redeemed", "exposure-set", "exposure-cleared"})


@dataclass(frozen=True, slots=True, kw_only=True)
class InvitationSaid:
    """An invitation, after the last entry about it; the time as entries spell it."""

    client: str
    site: str
    line: str
    runs: str
    authority: str
    invited_by: str
    hours: int
    expires_at: str
    certificate: str | None = None


@dataclass(slots=True)
class StationsSaid:
    """All that the entries taken so far come to."""

    invitations: dict[str, InvitationSaid] = field(default_factory=dict)
    exposures: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """Exposure to when it opens and closes, as entries spell times."""

    def take(self, entry: Entry) -> None:
        """Take in an entry of one of ``STATION_ENTRIES``.

        Raises:
            errors.MalformedRequest: as ``testimony.Said.take``.
        """
        kind = entry["kind"]
        if kind == "station-invited":
            self.invitations[text_of(entry, "invitation")] = InvitationSaid(
                client=text_of(entry, "client"),
                site=text_of(entry, "site"),
                line=text_of(entry, "line"),
                runs=text_of(entry, "runs"),
                authority=text_of(entry, "authority"),
                invited_by=entry["actor"],
                hours=number_of(entry, "hours"),
                expires_at=text_of(entry, "expires_at"),
            )
        elif kind == "invitation-redeemed":
            name, client = text_of(entry, "invitation"), text_of(entry, "client")
            invited = known(self.invitations, "invitation", name)
            if (
                invited.certificate is not None
                or client != invited.client
                or entry["at"] >= invited.expires_at
            ):
                raise errors.MalformedRequest("the invitation was used, had ended, or is another station's")
            self.invitations[name] = replace(invited, certificate=text_of(entry, "certificate"))
        else:
            until = text_or_none(entry, "until")
            self.exposures[text_of(entry, "exposure")] = (text_of(entry, "from"), until)
