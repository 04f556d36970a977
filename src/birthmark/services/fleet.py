"""Fleet authorities: whose devices the gateway accepts besides this realm's own (SPEC H5).

An authority is registered in two steps.  ``challenge`` puts its certificate and a nonce on record;
``register`` takes the certificate with which its owner shows to hold the key (``pki.ownership``).
In production two people do the second step, and whatever lets more in afterwards: a change of the policy, an
end of a suspension.  To suspend takes one: what stops is never kept waiting.

A key is one authority's, for good, and none that this realm uses itself or certified for a device.  What is
marked as a test realm's does not come into production.

Left to others: its CRLs (``foreign_lists``), what a foreign certificate is worth (``foreign_status``), and
who is let in (``gateway``).
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from hashlib import sha256

from birthmark import errors
from birthmark.floor.authorities import Authority
from birthmark.floor.clients import Capability, check_name, takes_two
from birthmark.floor.devices import KeyUse
from birthmark.floor.fleet import (
    CHALLENGE_LIFE,
    FLEET_MOVES,
    NONCE_OCTETS,
    FleetAuthority,
    FleetPolicy,
    FleetStatus,
    owner_id,
)
from birthmark.floor.key_assets import KeyAsset
from birthmark.floor.realm import Environment, Realm
from birthmark.ledger.entry import time_text
from birthmark.pki.certificates import Certificate, fingerprint
from birthmark.pki.names import Comparable, comparable
from birthmark.pki.ownership import is_marked, verify_ownership, vet_authority
from birthmark.ports import Decision, Entropy, Facts, Scan, UseCase
from birthmark.services.acts import Caller, decided, live_client

__all__ = ["Fleet", "put_policy", "put_registered", "put_status", "registered", "require_registrable"]

_TEST = Environment.TEST.mark


# --- what the commit of a deed does, whoever may


def put_registered(
    facts: Facts, name: str, verification: bytes, policy: str, shown_at: datetime, at: datetime
) -> Decision[FleetAuthority]:
    """Register an authority whose owner has shown the key; whether anybody may is judged before.

    Args:
        facts: as the commit sees them.
        name: of the authority.
        verification: the verification certificate (DER).
        policy: that whoever registers agrees to (``FleetPolicy``, encoded).
        shown_at: when the verification certificate was shown: the nonce must have been good then.
        at: now.

    Raises:
        errors.NotFound: there is no such challenge.
        errors.IllegalTransition: it was answered or has ended, the policy changed meanwhile, or the key is
            another's.
        errors.ProofFailed: the certificate does not show that the key is held.
        errors.MalformedRequest: it is none.
        errors.PolicyRefused: the authority does not come into question any more.
    """
    found = require_registrable(facts, name, verification, policy, shown_at)
    certificate = vet_authority(found.der, at)
    key = _claim(facts, certificate, found.id)
    if facts.get(KeyUse, key.spki_sha256) is None:  # one that was retired has kept its key
        facts.put(key)
    registered = replace(found, status=FleetStatus.ACTIVE, verification=verification)
    facts.put(registered)
    entry = {
        "fleet_authority": found.id,
        "certificate_sha256": certificate.fingerprint,
        "spki_sha256": key.spki_sha256,
        "nonce": found.nonce,
        "verification_sha256": fingerprint(verification),
        "shown_at": time_text(shown_at),
        "policy": found.policy,
    }
    return Decision(registered, [("fleet-registered", entry)])


def require_registrable(
    facts: Facts, name: str, verification: bytes, policy: str, shown_at: datetime
) -> FleetAuthority:
    """Return an authority whose challenge this answers; raises as ``put_registered``."""
    found = facts.get(FleetAuthority, name)
    if found is None:
        raise errors.NotFound(f"there is no fleet authority {name[:64]}: give it a challenge first")
    if found.is_registered:
        raise errors.IllegalTransition(f"fleet authority {name} is {found.status}, not challenged")
    if found.policy != policy:
        raise errors.IllegalTransition(f"the policy of fleet authority {name} changed meanwhile")
    if shown_at >= found.asked_at + CHALLENGE_LIFE:
        raise errors.IllegalTransition(
            f"the nonce of {name} ended at {time_text(found.asked_at + CHALLENGE_LIFE)}: challenge it anew"
        )
    verify_ownership(found.der, verification, found.nonce, shown_at)
    return found


def put_policy(facts: Facts, name: str, policy: FleetPolicy, reason: str) -> Decision[FleetAuthority]:
    """Change what is agreed for an authority; whether anybody may is judged before.

    Raises:
        errors.NotFound: there is no such authority.
        errors.IllegalTransition: it is not registered, or retired, or that is agreed already.
    """
    found = registered(facts, name)
    if found.status is FleetStatus.RETIRED:
        raise errors.IllegalTransition(f"fleet authority {name} is retired")
    if found.policy == policy.encode():
        raise errors.IllegalTransition(f"that is the policy of {name} already")
    changed = replace(found, policy=policy.encode())
    facts.put(changed)
    entry = {"fleet_authority": name, "policy": changed.policy, "reason": reason}
    return Decision(changed, [("fleet-changed", entry)])


def put_status(facts: Facts, name: str, status: FleetStatus, reason: str) -> Decision[FleetAuthority]:
    """Suspend, resume or retire an authority; whether anybody may is judged before.

    Raises:
        errors.NotFound: there is no such authority.
        errors.IllegalTransition: it is not in a status from which it comes to that one.
        errors.MalformedRequest: nothing comes to that status.
    """
    if (move := FLEET_MOVES.get(status)) is None:
        raise errors.MalformedRequest(f"an authority is suspended, resumed or retired, not {status}")
    found = registered(facts, name)
    if found.status not in move.before:
        raise errors.IllegalTransition(f"fleet authority {name} is {found.status}")
    changed = replace(found, status=status)
    facts.put(changed)
    return Decision(changed, [(move.entry, {"fleet_authority": name, "reason": reason})])


def registered(facts: Facts, name: str) -> FleetAuthority:
    """Return an authority whose owner has shown the key, whatever its status since.

    Raises:
        errors.NotFound: there is no such authority.
        errors.IllegalTransition: the key was not shown yet.
    """
    found = facts.get(FleetAuthority, name)
    if found is None:
        raise errors.NotFound(f"there is no fleet authority {name[:64]}")
    if not found.is_registered:
        raise errors.IllegalTransition(f"fleet authority {name} is not registered: its key was not shown yet")
    return found


def _claim(facts: Facts, certificate: Certificate, name: str) -> KeyUse:
    """Return the use of an authority's key; refuse one that is somebody else's."""
    digest = sha256(certificate.subject_public_key_info).hexdigest()
    used = facts.get(KeyUse, digest)
    if used is not None and used.device != owner_id(name):
        raise errors.IllegalTransition(f"the key of {certificate.subject} is {used.device}'s already")
    return KeyUse(spki_sha256=digest, device=owner_id(name))


class Fleet:
    """The use cases over fleet authorities, their CRLs, and devices in the field."""

    def __init__(self, realm: Realm, entropy: Entropy) -> None:
        """Keep the fleet of a realm."""
        self._realm = realm
        self._entropy = entropy

    def challenge(
        self, caller: Caller, name: str, certificate: bytes, policy: FleetPolicy
    ) -> UseCase[FleetAuthority]:
        """Put an authority and a fresh nonce on record, for its owner to show the key.

        One that waits for its owner, or is retired, is challenged anew, with the same certificate.

        Args:
            caller: who brings it.
            name: by which it is known here.
            certificate: DER.
            policy: what is agreed for its devices.

        Raises:
            errors.NotPermitted: the caller may not.
            errors.MalformedRequest: it is no certificate, or no name.
            errors.IllegalTransition: the name is taken, or the key is somebody's already, or the subject is
                that of another that is registered.
            errors.PolicyRefused: it does not come into question: see ``pki.ownership.vet_authority``; it is
                this realm's own (rule ``own-key``), has the name of one (``own-name``), or is a test realm's
                (rule ``wrong-realm``).
        """
        nonce = self._entropy.token(NONCE_OCTETS).hex()
        own = yield from _own_keys()
        taken = yield from _taken_names()
        said = {"fleet_authority": name[:64], "certificate_sha256": fingerprint(certificate)}

        def decide(facts: Facts, at: datetime) -> Decision[FleetAuthority]:
            live_client(facts, caller, Capability.CHANGE_FLEET, at)
            check_name("fleet authority", name)
            found = self._vet(certificate, own, at)
            _claim(facts, found, name)
            _require_name(found, name, taken)
            before = facts.get(FleetAuthority, name)
            if before is not None and before.is_watched:
                raise errors.IllegalTransition(f"fleet authority {name} is {before.status} already")
            if before is not None and before.der != certificate:
                raise errors.IllegalTransition(f"{name} stands for another certificate: choose another name")
            challenged = FleetAuthority(
                id=name,
                der=certificate,
                policy=policy.encode(),
                status=FleetStatus.CHALLENGED,
                nonce=nonce,
                asked_at=at,
            )
            facts.put(challenged)
            entry = {
                **said,
                "nonce": nonce,
                "policy": challenged.policy,
                "ends_at": time_text(at + CHALLENGE_LIFE),
            }
            return Decision(challenged, [("fleet-challenged", entry)])

        return (yield from decided(caller, "challenge-fleet", said, decide, {FleetAuthority: (name[:64],)}))

    def _vet(self, certificate: bytes, own: frozenset[str], at: datetime) -> Certificate:
        found = vet_authority(certificate, at)
        if sha256(found.subject_public_key_info).hexdigest() in own:
            raise errors.PolicyRefused(
                "own-key", f"the key of {found.subject} is this realm's own: its devices come in without"
            )
        if self._realm.environment is Environment.PRODUCTION and is_marked(found, _TEST):
            raise errors.PolicyRefused(
                "wrong-realm",
                f"{found.subject} is marked as a test realm's: it does not come into production",
            )
        return found

    def register(self, caller: Caller, name: str, verification: bytes) -> UseCase[FleetAuthority]:
        """Register an authority whose owner shows the key, where one person may; else see ``proposals``.

        Raises:
            errors.NotPermitted: the caller may not, or it takes two people.
            errors.Refusal: as ``put_registered``, and what was taken since the challenge.
        """
        taken = yield from _taken_names()

        def decide(facts: Facts, at: datetime) -> Decision[FleetAuthority]:
            live_client(facts, caller, Capability.CHANGE_FLEET, at)
            self._require_one(name)
            found = facts.get(FleetAuthority, name)
            policy = "" if found is None else found.policy
            decision = put_registered(facts, name, verification, policy, at, at)
            _require_name(Certificate.from_der(decision.answer.der), name, taken)
            return decision

        return (yield from _decided(caller, "register-fleet", name, decide))

    def change(self, caller: Caller, name: str, policy: FleetPolicy, reason: str) -> UseCase[FleetAuthority]:
        """Change what is agreed for an authority, where one person may.

        Raises:
            errors.NotPermitted: the caller may not, or it takes two people.
            errors.Refusal: as ``put_policy``.
        """

        def decide(facts: Facts, at: datetime) -> Decision[FleetAuthority]:
            live_client(facts, caller, Capability.CHANGE_FLEET, at)
            self._require_one(name)
            return put_policy(facts, name, policy, reason)

        return (yield from _decided(caller, "change-fleet", name, decide))

    def move(self, caller: Caller, name: str, status: FleetStatus, reason: str) -> UseCase[FleetAuthority]:
        """Suspend an authority; or resume or retire it, where one person may.

        Raises:
            errors.NotPermitted: the caller may not, or it takes two people.
            errors.Refusal: as ``put_status``.
        """

        def decide(facts: Facts, at: datetime) -> Decision[FleetAuthority]:
            live_client(facts, caller, Capability.CHANGE_FLEET, at)
            if status is not FleetStatus.SUSPENDED:
                self._require_one(name)
            return put_status(facts, name, status, reason)

        return (yield from _decided(caller, "change-fleet", name, decide))

    def _require_one(self, name: str) -> None:
        if takes_two(Capability.CHANGE_FLEET, self._realm.environment):
            raise errors.NotPermitted(
                f"fleet authority {name[:64]} is changed by two people: propose it, another approves"
            )


def _own_keys() -> UseCase[frozenset[str]]:
    """Return the hashes of the keys that this realm certifies with or keeps."""
    authorities: list[Authority] = yield Scan(kind=Authority, where={})
    assets: list[KeyAsset] = yield Scan(kind=KeyAsset, where={})
    certified = (Certificate.from_der(one.der).subject_public_key_info for one in authorities)
    return frozenset({sha256(key).hexdigest() for key in certified} | {one.fingerprint for one in assets})


def _taken_names() -> UseCase[Mapping[Comparable, str]]:
    """Return the subjects that are taken, and by which fleet authority; "" for this realm's own."""
    authorities: list[Authority] = yield Scan(kind=Authority, where={})
    fleets: list[FleetAuthority] = yield Scan(kind=FleetAuthority, where={})
    taken = {_subject(one.der): one.id for one in fleets if one.is_watched}
    return taken | {_subject(one.der): "" for one in authorities}


def _require_name(certificate: Certificate, name: str, taken: Mapping[Comparable, str]) -> None:
    """Refuse a subject that is taken: in a handshake an issuer is found by its name alone."""
    holder = taken.get(comparable(certificate.subject_name), name)
    if not holder:
        raise errors.PolicyRefused(
            "own-name", f"{certificate.subject} is the name of an authority of this realm, with another key"
        )
    if holder != name:
        raise errors.IllegalTransition(
            f"{certificate.subject} is the name of fleet authority {holder}, too, with another key: retire"
            " that one, or have this one's owner give it a name of its own"
        )


def _subject(der: bytes) -> Comparable:
    return comparable(Certificate.from_der(der).subject_name)


def _decided(
    caller: Caller, request: str, name: str, decide: Callable[[Facts, datetime], Decision[FleetAuthority]]
) -> UseCase[FleetAuthority]:
    said = {"fleet_authority": name[:64]}
    return (yield from decided(caller, request, said, decide, {FleetAuthority: (name,)}))
