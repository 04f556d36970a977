"""A recall: what one station asked for is revoked by two operators, and everybody who asks learns of it.

Which vehicles have to go is read from the log, not from what the command says; which did go, from what
OpenSSL accepts.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from demo.audit import Audit
from demo.publication import PublicHost
from demo.realm import OPERATOR, WentWrong, Workshop

SECOND = "bela"
_SHOWN = ("certificates", "shipped", "runs", "states", "crls", "proposed", "recall ")
_PROPOSED = re.compile(r"^proposed as (\S+):", re.MULTILINE)

Entry = Mapping[str, Any]


def asked_for_by(station: str, entries: Sequence[Entry], vehicles: Sequence[Path]) -> list[Path]:
    """Return the vehicles whose certificate, the one they hold, a station asked for."""
    last = {entry["device"]: entry["actor"] for entry in entries if entry["kind"] == "device-issued"}
    return [place for place in vehicles if last[f"vin:{place.name}"] == f"station:{station}"]


class Recall:
    """The recall of one station's vehicles."""

    def __init__(self, workshop: Workshop, host: PublicHost, audit: Audit, entries: Sequence[Entry]) -> None:
        """Choose the station that was shut out; if it had made nothing by then, another one."""
        self._workshop, self._host, self._audit = workshop, host, audit
        issuers = [entry["actor"] for entry in entries if entry["kind"] == "device-issued"]
        revoked = [entry["client"] for entry in entries if entry["kind"] == "client-revoked"]
        of = {
            actor.removeprefix("station:"): asked_for_by(
                actor.removeprefix("station:"), entries, audit.vehicles
            )
            for actor in dict.fromkeys([*revoked, *issuers])
            if actor.startswith("station:")
        }
        self.station = next((name for name, vehicles in of.items() if vehicles), "")
        if not self.station or len(of[self.station]) == len(audit.vehicles):
            raise WentWrong("one station made all the vehicles: there is nothing to recall and keep")
        self._gone = of[self.station]
        self._kept = [place for place in audit.vehicles if place not in self._gone]
        self.octets = 0
        """How many octets were published for it."""

    @property
    def count(self) -> int:
        """How many vehicles are recalled."""
        return len(self._gone)

    def before(self) -> None:
        """See that all is well, by OCSP and by the CRL."""
        self._statuses("good", "before the recall")
        refused = self._host.refused(self._audit.vehicles)
        self._audit.claim(
            f"none of {len(self._audit.vehicles)} vehicles is on the CRL that their certificates name",
            holds=not refused,
        )

    def carry_out(self) -> None:
        """Enrol a second operator; one proposes, the other approves."""
        run = self._workshop.birthmark
        run(
            *("operator", "enrol", SECOND, "--role", "officer", "--out", f"operators/{SECOND}"),
            answer=lambda lines: lines[:1],
        )
        proposed = run(
            *("recall", "propose", "--station", self.station, "--reason", "keyCompromise"),
            *("--because", "the fixture was opened on its way", "--as", f"operators/{OPERATOR}"),
            answer=lambda lines: [line for line in lines if line.startswith(_SHOWN)],
        )
        found = _PROPOSED.search(proposed.stdout)
        if found is None:
            raise WentWrong("the recall was not proposed")
        approve = ("recall", "approve", found[1], "--yes", "--as")
        alone = run(*approve, f"operators/{OPERATOR}", expect=None, answer=lambda lines: lines[-1:])
        self._audit.claim(
            f"{OPERATOR} cannot do it alone (exit code {alone.returncode})",
            holds=alone.returncode == 77 and "it takes two" in alone.stderr,
        )
        done = run(*approve, f"operators/{SECOND}", answer=lambda lines: lines[-1:])
        self._audit.claim(
            f"{self.count} certificates are revoked: as many as the log has vehicles with a certificate that"
            f" {self.station} asked for",
            holds=f"recall {found[1]} is done: {self.count} certificates revoked" in done.stdout,
        )

    def after(self) -> None:
        """Publish, and see that just those vehicles are refused."""
        self._statuses("revoked", "at once, before anything is published")
        before = dict(self._host.sizes)
        self.octets = self._host.publish()
        refused = self._host.refused(self._audit.vehicles)
        self._audit.claim(
            f"{len(refused)} of {len(self._audit.vehicles)} vehicles are refused, exactly those that"
            f" {self.station} asked for",
            holds=refused == set(self._gone),
        )
        grown = sum(self._host.sizes.values()) - sum(before.values())
        lines = self.count * len(before)
        self._audit.claim(
            f"{self.octets} octets were published for it, {grown} more than before: {grown / lines:.0f} a"
            f" certificate on each of {len(before)} CRLs; no vehicle had to be touched",
            holds=before.keys() == self._host.sizes.keys() and 50 <= round(grown / lines) <= 60,
        )

    def _statuses(self, gone: str, when: str) -> None:
        if self._host.skipped():
            return
        seen = self._host.statuses([self._gone[0], self._kept[0]])
        self._audit.claim(
            f"OCSP, {when}: a vehicle that {self.station} asked for is {gone}, another one is good",
            holds=seen == [gone, "good"],
        )
