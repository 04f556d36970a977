"""Requests for certificates that a person looks at before they are granted (SPEC H1).

What waits is on record with the fingerprint of its request: another request under the same key is another.
The answer to whoever asks again is what became of it.  What waits through a shared credential counts against
its quantity until a person settles it, also if that comes too late to approve it.
"""

from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from typing import Any

from birthmark import errors
from birthmark.floor.clients import Capability, Role
from birthmark.floor.devices import Device
from birthmark.floor.enrolments import WAITING_LIFE, WaitingEnrolment, WaitingStatus, waiting_id
from birthmark.floor.shared import SharedCredential, settled_once, wait_once
from birthmark.ports import Decision, Facts, UseCase
from birthmark.services.acts import Caller, decided, live_client
from birthmark.services.recognition import to_enrol
from birthmark.services.runs import RunContext, check_scope

__all__ = ["Approvals", "require_approved"]


class Approvals:
    """The use cases of what waits."""

    def ask(
        self, caller: Caller, context: RunContext, device: str, key: str, digest: str, csr: bytes | None
    ) -> UseCase[bool]:
        """Return whether a request was approved; put it on record if it is new.

        Raises:
            errors.NotPermitted: it was refused, or waited too long.
            errors.KeyReused: another request waits under this key.
            errors.QuotaExhausted: as many wait through a shared credential as it may bring in.
        """
        name, run = waiting_id(caller.client.id, key), context.licence.id
        said: dict[str, Any] = {"run": run, "device": device}
        csr_sha256 = "" if csr is None else sha256(csr).hexdigest()

        def decide(facts: Facts, at: datetime) -> Decision[bool]:
            client = live_client(facts, caller, to_enrol(caller), at)
            check_scope(facts, client, context, device)
            found = facts.get(WaitingEnrolment, name)
            if found is not None:
                return Decision(_is_approved(found, digest, at))
            if client.role is Role.SHARED:
                shared = _limits(facts, client.id)
                facts.put(wait_once(shared, known=facts.get(Device, device) is not None))
            waiting = WaitingEnrolment(
                id=name,
                device=device,
                run=run,
                client=caller.client.id,
                request_sha256=digest,
                csr_sha256=csr_sha256,
                status=WaitingStatus.WAITING,
                asked_at=at,
            )
            facts.put(waiting)
            entry = {**said, "enrolment": name, "request_sha256": digest, "csr_sha256": csr_sha256}
            return Decision(False, [("enrolment-waiting", entry)])

        reads = {WaitingEnrolment: (name,), Device: (device,)}
        return (yield from decided(caller, "enrol", said, decide, reads))

    def settle(
        self, caller: Caller, enrolment: str, *, approved: bool, reason: str
    ) -> UseCase[WaitingEnrolment]:
        """Let what waits go on, or refuse it; what waited too long is refused only.

        Raises:
            errors.NotFound: nothing of that id waits.
            errors.IllegalTransition: somebody settled it before, or it waited too long to go on.
            errors.NotPermitted: the caller may not.
        """
        verdict = WaitingStatus.APPROVED if approved else WaitingStatus.REFUSED
        client = enrolment.partition("/")[0]
        shared_by = client if client.startswith(f"{Role.SHARED}:") else ""

        def decide(facts: Facts, at: datetime) -> Decision[WaitingEnrolment]:
            live_client(facts, caller, Capability.APPROVE_ENROLMENT, at)
            found = facts.get(WaitingEnrolment, enrolment)
            if found is None:
                raise errors.NotFound(f"no enrolment {enrolment[:100]} waits")
            if found.status is not WaitingStatus.WAITING:
                raise errors.IllegalTransition(
                    f"enrolment {enrolment} is {found.status}, by {found.decided_by}"
                )
            if approved and at >= found.asked_at + WAITING_LIFE:
                raise errors.IllegalTransition(f"enrolment {enrolment} ended: the device asks again, or not")
            if found.client == shared_by:
                facts.put(settled_once(_limits(facts, shared_by)))
            settled = replace(found, status=verdict, decided_by=caller.client.id, reason=reason)
            facts.put(settled)
            entry = {"enrolment": enrolment, "device": found.device, "run": found.run, "reason": reason}
            return Decision(settled, [(f"enrolment-{verdict}", entry)])

        said = {"enrolment": enrolment[:100]}
        reads = {WaitingEnrolment: (enrolment,), SharedCredential: (shared_by,) if shared_by else ()}
        return (yield from decided(caller, "settle-enrolment", said, decide, reads))


def _limits(facts: Facts, client: str) -> SharedCredential:
    found = facts.get(SharedCredential, client)
    if found is None:
        raise errors.IntegrityFailure(f"the limits of {client} are gone")
    return found


def _is_approved(found: WaitingEnrolment, digest: str, at: datetime) -> bool:
    if found.request_sha256 != digest:
        raise errors.KeyReused("another request waits under this key")
    if found.status is WaitingStatus.REFUSED:
        raise errors.NotPermitted(f"{found.decided_by} refused it: {found.reason}")
    if at >= found.asked_at + WAITING_LIFE:
        looked = "approved, and not asked for" if found.status is WaitingStatus.APPROVED else "not looked at"
        raise errors.NotPermitted(f"it was {looked} within {WAITING_LIFE.days} days: ask with a new key")
    return found.status is WaitingStatus.APPROVED


def require_approved(facts: Facts, context: RunContext, caller: Caller, key: str, digest: str) -> None:
    """Refuse what a person has to approve and did not.

    Raises:
        errors.NotPermitted: it was not approved.
    """
    if not context.licence.approval:
        return
    found = facts.get(WaitingEnrolment, waiting_id(caller.client.id, key))
    if found is None or found.status is not WaitingStatus.APPROVED or found.request_sha256 != digest:
        raise errors.NotPermitted(
            f"a person looks at each request of run {context.licence.id}: ask by EST or CMP"
        )
