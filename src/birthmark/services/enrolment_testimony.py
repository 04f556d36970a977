"""What a log says of operational certificates, and of requests that wait for a person; see ``testimony``."""

from dataclasses import dataclass, field, replace

from birthmark import errors
from birthmark.floor.enrolments import WaitingStatus, local_identity_id
from birthmark.services.entry_fields import Entry, known, number_of, text_of

__all__ = ["ENROLMENT_ENTRIES", "EnrolmentsSaid", "LocalSaid", "SharedSaid", "WaitingSaid"]

ENROLMENT_ENTRIES = frozenset(
    {
        "local-issued",
        "local-proved",
        "local-rejected",
        "local-revoked",
        "enrolment-waiting",
        "enrolment-approved",
        "enrolment-refused",
    }
)
_SETTLED = {
    "enrolment-approved": WaitingStatus.APPROVED,
    "enrolment-refused": WaitingStatus.REFUSED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalSaid:
    """What a device has from an operational run, after the last entry about it."""

    attempt: str
    attempts: int
    certificate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitingSaid:
    """A request that a person looks at, after the last entry about it."""

    device: str
    run: str
    client: str
    request_sha256: str
    csr_sha256: str
    asked_at: str
    status: str = str(WaitingStatus.WAITING)
    decided_by: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSaid:
    """What a shared credential may do."""

    quantity: int
    networks: str


@dataclass(slots=True)
class EnrolmentsSaid:
    """All that the entries taken so far come to."""

    local: dict[str, LocalSaid] = field(default_factory=dict)
    """By device and run."""
    waiting: dict[str, WaitingSaid] = field(default_factory=dict)

    shared: dict[str, SharedSaid] = field(default_factory=dict)
    """By client."""

    def take_shared(self, entry: Entry) -> None:
        """Take in the entry that let a shared credential in.

        Raises:
            errors.MalformedRequest: it says no limits.
        """
        self.shared[text_of(entry, "client")] = SharedSaid(
            quantity=number_of(entry, "quantity"), networks=text_of(entry, "networks")
        )

    def take(self, entry: Entry) -> str:
        """Take in an entry of one of ``ENROLMENT_ENTRIES``.

        Returns:
            The id of the attempt before, where there is a new one; else empty.

        Raises:
            errors.MalformedRequest: as ``testimony.Said.take``.
        """
        kind = entry["kind"]
        if kind.startswith("local-"):
            return self._take_local(entry)
        if kind == "enrolment-waiting":
            self.waiting[text_of(entry, "enrolment")] = WaitingSaid(
                device=text_of(entry, "device"),
                run=text_of(entry, "run"),
                client=entry["actor"],
                request_sha256=text_of(entry, "request_sha256"),
                csr_sha256=text_of(entry, "csr_sha256"),
                asked_at=entry["at"],
            )
        else:
            name = text_of(entry, "enrolment")
            found = known(self.waiting, "enrolment", name)
            if found.decided_by is not None:
                raise errors.MalformedRequest("the enrolment was settled before")
            self.waiting[name] = replace(
                found,
                status=str(_SETTLED[kind]),
                decided_by=entry["actor"],
                reason=text_of(entry, "reason"),
            )
        return ""

    def _take_local(self, entry: Entry) -> str:
        kind, attempt = entry["kind"], text_of(entry, "attempt")
        name = local_identity_id(text_of(entry, "device"), text_of(entry, "run"))
        if kind == "local-issued":
            before = self.local.get(name, LocalSaid(attempt="", attempts=0))
            number = number_of(entry, "attempt_number")
            if number != before.attempts + 1:
                raise errors.MalformedRequest("the attempts of a device at a run are numbered one by one")
            self.local[name] = replace(before, attempt=attempt, attempts=number)
            return before.attempt
        said = known(self.local, "operational certificate", name)
        if kind == "local-revoked":
            return ""
        if said.attempt != attempt:
            raise errors.MalformedRequest("the attempt was over")
        if kind == "local-proved":
            self.local[name] = replace(said, certificate=text_of(entry, "certificate"))
        return ""
