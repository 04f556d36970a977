"""What a log says of fleet authorities and their CRLs; see ``testimony``."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from birthmark import errors
from birthmark.floor.fleet import CHALLENGE_LIFE, FLEET_MOVES, FleetStatus
from birthmark.ledger.entry import parse_time
from birthmark.services.entry_fields import Entry, known, number_of, text_of, text_or_none

__all__ = ["FLEET_ENTRIES", "FleetAuthoritySaid", "FleetSaid", "ForeignCRLSaid"]

_MOVES = {move.entry: (move.before, status) for status, move in FLEET_MOVES.items()}
FLEET_ENTRIES = frozenset(
    {"fleet-challenged", "fleet-registered", "fleet-changed", "foreign-crl-taken"} | _MOVES.keys()
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetAuthoritySaid:
    """A fleet authority, after the last entry about it; certificates as fingerprints."""

    sha256: str
    policy: str
    nonce: str
    asked_at: str
    status: FleetStatus
    verification_sha256: str | None = None
    shown_at: str | None = None
    """When its owner showed the key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignCRLSaid:
    """The last CRL of an issuer that was taken in; times as entries spell them."""

    issuer_sha256: str | None
    url: str
    number: str
    this_update: str
    next_update: str
    sha256: str
    count: int


@dataclass(slots=True)
class FleetSaid:
    """All that the entries taken so far come to."""

    authorities: dict[str, FleetAuthoritySaid] = field(default_factory=dict)
    lists: dict[str, ForeignCRLSaid] = field(default_factory=dict)
    """By ``floor.fleet.crl_id``."""

    def take(self, entry: Entry) -> None:
        """Take in an entry of one of ``FLEET_ENTRIES``.

        Raises:
            errors.MalformedRequest: as ``testimony.Said.take``.
        """
        kind, name = entry["kind"], text_of(entry, "fleet_authority")
        if kind == "fleet-challenged":
            self._challenge(name, entry)
            return
        found = known(self.authorities, "fleet authority", name)
        if kind == "fleet-registered":
            self.authorities[name] = _registered(found, entry)
        elif kind == "foreign-crl-taken":
            self._take_list(name, found, entry)
        elif kind == "fleet-changed":
            _require(found, {FleetStatus.ACTIVE, FleetStatus.SUSPENDED}, kind)
            self.authorities[name] = replace(found, policy=text_of(entry, "policy"))
        else:
            before, status = _MOVES[kind]
            _require(found, before, kind)
            self.authorities[name] = replace(found, status=status)

    def _challenge(self, name: str, entry: Entry) -> None:
        digest, before = text_of(entry, "certificate_sha256"), self.authorities.get(name)
        if before is not None:
            _require(before, {FleetStatus.CHALLENGED, FleetStatus.RETIRED}, "fleet-challenged")
            if before.sha256 != digest:
                raise errors.MalformedRequest(f"fleet authority {name[:64]} had another certificate before")
        self.authorities[name] = FleetAuthoritySaid(
            sha256=digest,
            policy=text_of(entry, "policy"),
            nonce=text_of(entry, "nonce"),
            asked_at=entry["at"],
            status=FleetStatus.CHALLENGED,
        )

    def _take_list(self, name: str, authority: FleetAuthoritySaid, entry: Entry) -> None:
        _require(authority, {FleetStatus.ACTIVE, FleetStatus.SUSPENDED}, entry["kind"])
        crl = text_of(entry, "crl")
        said = ForeignCRLSaid(
            issuer_sha256=text_or_none(entry, "issuer_sha256"),
            url=text_of(entry, "url"),
            number=text_of(entry, "number"),
            this_update=text_of(entry, "this_update"),
            next_update=text_of(entry, "next_update"),
            sha256=text_of(entry, "sha256"),
            count=number_of(entry, "count"),
        )
        before = self.lists.get(crl)
        again = before is not None and before.sha256 == said.sha256
        try:
            grown = before is None or again or int(said.number, 16) > int(before.number, 16)
        except ValueError as cause:
            raise errors.MalformedRequest("the number of a CRL is no hexadecimal number") from cause
        if not grown or crl.partition("/")[0] != name:
            raise errors.MalformedRequest(f"CRL {crl[:140]} goes back behind the last, or is another's")
        self.lists[crl] = said


def _registered(found: FleetAuthoritySaid, entry: Entry) -> FleetAuthoritySaid:
    _require(found, {FleetStatus.CHALLENGED}, "fleet-registered")
    shown_at = text_of(entry, "shown_at")
    told = tuple(text_of(entry, name) for name in ("certificate_sha256", "policy", "nonce"))
    ended = parse_time(shown_at) >= parse_time(found.asked_at) + CHALLENGE_LIFE
    if told != (found.sha256, found.policy, found.nonce) or ended or shown_at < found.asked_at:
        raise errors.MalformedRequest("it is not what was challenged, or the nonce had ended")
    return replace(
        found,
        status=FleetStatus.ACTIVE,
        verification_sha256=text_of(entry, "verification_sha256"),
        shown_at=shown_at,
    )


def _require(found: FleetAuthoritySaid, statuses: Collection[FleetStatus], kind: str) -> None:
    if found.status not in statuses:
        raise errors.MalformedRequest(f"{kind} of a fleet authority that is {found.status}")
