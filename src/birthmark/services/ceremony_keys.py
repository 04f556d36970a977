"""Keys of a ceremony: what was made or taken in, held against what its file orders."""

from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from birthmark.floor.ceremonies import SERVICE, AcceptKey, KeyStep
from birthmark.floor.key_assets import KeyAsset, KeySeverity, KeyStatus, compare, policy_for
from birthmark.pki.algorithms import recognise
from birthmark.pki.attributes import KeyAttributes
from birthmark.pki.keys import KeyAlgorithm

__all__ = ["KeyMade"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyMade:
    """A key that the ceremony made or took in."""

    step: KeyStep
    public: bytes
    """SubjectPublicKeyInfo (DER); empty for a secret key."""
    attributes: KeyAttributes
    shares: tuple[bytes, ...]
    at: datetime

    def asset(self, ceremony: str, service: str, *, rehearsal: bool = False) -> KeyAsset:
        """Return it as the table of keys has it.

        Args:
            ceremony: its id.
            service: how the service's own store is called.
            rehearsal: a key that would be taken in was generated in its place.
        """
        step = self.step
        accepted = isinstance(step, AcceptKey)
        return KeyAsset(
            label=step.label,
            store=service if step.store == SERVICE else f"offline {step.store}",
            purpose=step.purpose,
            kind=str(step.kind),
            policy=policy_for(
                step.purpose,
                exportable=not isinstance(step, AcceptKey) and step.exportable,
                accepted=accepted and not rehearsal,
            ),
            users=step.users,
            fingerprint=self.attributes.fingerprint,
            ceremony=ceremony,
            status=KeyStatus.ACTIVE,
            created_at=self.at,
            backed_up_at=None,
            backup_sha256=None,
        )

    def findings(self, ceremony: str, *, rehearsal: bool) -> list[str]:
        """Say in which way it is not as the file orders it; nothing is good."""
        step, live = self.step, self.attributes
        asset = self.asset(ceremony, SERVICE, rehearsal=rehearsal)
        found = [
            finding.detail
            for finding in compare([asset], [live], asset.store)
            if finding.severity is KeySeverity.ERROR
        ]
        if isinstance(step, AcceptKey):
            if self.public or self.shares:
                found.append("it came in, and neither a public key nor a share follows from that")
            if live.fingerprint != step.check_value and not rehearsal:
                found.append(
                    f"its check value is {live.fingerprint}, not {step.check_value}: destroy it in its store"
                )
        elif isinstance(step.kind, KeyAlgorithm):
            public = sha256(self.public).hexdigest()
            if recognise(self.public) is not step.kind or public != live.fingerprint:
                found.append(f"its public key is no {step.kind} key, or another")
        elif len(self.shares) != len(step.recipients):
            found.append(f"{len(self.shares)} shares for {len(step.recipients)} recipients")
        return found
