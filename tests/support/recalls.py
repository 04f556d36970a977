"""Recalls in a line of a test: two people, what they sign, and a fleet of any size.

``load_fleet`` is how fifty thousand released devices come about in seconds.  Provisioning them one by one
would be ten minutes of key generation, which is not what is asked about.  Every row and every log entry is
what issuing and releasing make, and they go through the store's own acts, so that the tree, the counters and
``birthmark check`` agree on them; every certificate is signed by the line's authority over its own serial
number.  Only the devices are not there: one key serves all devices of a fleet, so no ``KeyUse`` is written
after the first, and the proof of possession is not made.  A fleet is for recalls, not for checks of proofs.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark import errors
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.authorities import Authority
from birthmark.floor.clients import Role
from birthmark.floor.devices import (
    Attempt,
    Device,
    DeviceCertificate,
    DeviceState,
    IdentityRecord,
    KeyOrigin,
    KeyUse,
)
from birthmark.floor.recalls import Recall, RecallAction, RecallOrder, Selection, SelectionKind
from birthmark.floor.runs import Run
from birthmark.pki import der
from birthmark.pki.certificates import TBSCertificate, fingerprint, serial_hex
from birthmark.pki.possession import proof_message
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import Decision, Facts
from birthmark.services.acts import recognise
from birthmark.services.authorise import Enrolment
from birthmark.services.blastradius import Preview, Told
from birthmark.services.ceremonies import establish as ceremony
from birthmark.services.recall import Recalls
from birthmark.services.runs import RunContext
from tests.support.acts import act, put
from tests.support.realm import Client, Line, Service

__all__ = ["People", "enrol_with_key", "establish", "load_fleet", "people"]

ACT = 250
"""Devices in one act of the loader."""


@dataclass(slots=True, kw_only=True)
class People:
    """Those who recall in a line: anna proposes, bela approves, carl watches."""

    line: Line
    anna: Client
    bela: Client
    carl: Client
    recalls: Recalls = field(init=False)

    def __post_init__(self) -> None:
        store = self.line.service.store
        self.recalls = Recalls(store.realm, self.line.clock, SystemEntropy(), store.log)

    def preview(
        self, kind: SelectionKind, value: str, action: RecallAction = RecallAction.REVOKE, **window: Any
    ) -> Preview:
        """Count what a recall would do."""
        chosen = Selection(kind=kind, value=value, **window)
        return self.line.service.carry(self.recalls.preview(chosen, action))

    def order(
        self,
        kind: SelectionKind,
        value: str,
        action: RecallAction = RecallAction.REVOKE,
        *,
        reason: ReasonCode | None = None,
        by: Client | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        **fields: Any,
    ) -> RecallOrder:
        """Write an order as the command does."""
        natural = {
            RecallAction.REVOKE: ReasonCode.KEY_COMPROMISE,
            RecallAction.SUSPEND: ReasonCode.CERTIFICATE_HOLD,
            RecallAction.REINSTATE: ReasonCode.REMOVE_FROM_CRL,
        }[action]
        seen = self.preview(kind, value, action, since=since, until=until)
        order = self.recalls.draft((by or self.anna).caller, seen, reason or natural, "keys left the plant")
        return replace(order, **fields)

    def propose(
        self, order: RecallOrder, *, by: Client | None = None, signer: Client | None = None
    ) -> Recall:
        """Propose an order."""
        who = by or self.anna
        signature = sign((signer or who), order.encode())
        return self.line.service.carry(self.recalls.propose(who.caller, order, signature))

    def approve(
        self,
        recall: Recall,
        *,
        by: Client | None = None,
        signature: bytes | None = None,
        service: Service | None = None,
        told: Told = lambda _done, _total: None,
    ) -> Recall:
        """Approve a recall and carry it out."""
        who = by or self.bela
        signature = sign(who, recall.document) if signature is None else signature
        at = service or self.line.service
        return at.carry(self.recalls.approve(who.caller, recall.id, signature, told))

    def recall(self, kind: SelectionKind, value: str, *args: Any, **fields: Any) -> Recall:
        """Propose and approve."""
        return self.approve(self.propose(self.order(kind, value, *args, **fields)))


def people(line: Line) -> People:
    """Enrol two more operators."""
    return People(
        line=line,
        anna=line.operator,
        bela=line.enrol(Role.OFFICER, "bela"),
        carl=line.enrol(Role.OFFICER, "carl"),
    )


def enrol_with_key(line: Line, name: str, key: ec.EllipticCurvePrivateKey) -> Client:
    """Enrol an operator with a key that somebody brings along."""
    enrolment = Enrolment(
        role=Role.OFFICER,
        name=name,
        subject_public_key_info=key.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        ),
        authority="issuing-1",
        variables={"organization": "Acme Motors", "operator": name},
    )
    enrolled = line.service.carry(line.service.authorise.enrol(None, enrolment))
    return Client(key=key, caller=line.service.carry(recognise(enrolled.certificate.der)))


def establish(line: Line, authority: Authority) -> None:
    """Put an authority on record as a ceremony does, without its ceremony."""
    made = act(lambda facts, at: Decision(None, [("authority-established", ceremony(facts, authority, at))]))
    (committed,) = line.service.store.submit([made]).result()
    assert committed.answer is None, committed.answer


def sign(client: Client, message: bytes) -> bytes:
    """Sign with a client's key."""
    return client.key.sign(message, ec.ECDSA(hashes.SHA256()))


# --- fleets


class _Press:
    """Makes certificates of one run: one is filled in by the book, the others differ in two places."""

    def __init__(self, line: Line, context: RunContext) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.spki = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self._line = line
        self._serial = int.from_bytes(b"\x5a" * 20, "big")
        self._tbs: TBSCertificate = context.template.fill(
            serial_number=self._serial,
            subject_public_key_info=self.spki,
            not_before=line.clock.now(),
            variables={"hardware_id": "F" + "0" * 11},
        )
        self._algorithm = ec.ECDSA(hashes.SHA256())
        assert self._tbs.der.count(b"F" + b"0" * 11) == 1, "the hardware id stands elsewhere, too"

    def press(self, hardware_id: str, serial: int) -> bytes:
        """Return a certificate (DER), signed by the authority's key."""
        mark = self._serial.to_bytes(20, "big")
        tbs = self._tbs.der.replace(mark, serial.to_bytes(20, "big"), 1)
        tbs = tbs.replace(b"F" + b"0" * 11, hardware_id.encode(), 1)
        signature = self._line.keys.sign(self._tbs.issuer.key_label, tbs)
        algorithm = der.encode(der.SEQUENCE, der.oid("1.2.840.10045.4.3.2"))  # ecdsa-with-SHA256, RFC 5758
        return der.encode(der.SEQUENCE, tbs, algorithm, der.encode(0x03, b"\0", signature))

    def prove(self, attempt: str, sha256: str, challenge: bytes) -> bytes:
        """Return a device's proof."""
        message = proof_message(attempt=attempt, certificate_sha256=sha256, challenge=challenge)
        return self.key.sign(message, self._algorithm)


def load_fleet(line: Line, run: str, count: int, *, first: int = 0) -> list[str]:
    """Put released devices of an open run on record; return their ids, ``serial:F…``."""
    context = line.service.carry(line.service.runs.context(run))
    press = _Press(line, context)
    names = [f"F{number:011}" for number in range(first, first + count)]
    for start in range(0, count, ACT):
        chunk = names[start : start + ACT]
        made = list(_made(line, press, chunk))
        (committed,) = line.service.store.submit([act(_decider(line, context, press, made))]).result()
        assert not isinstance(committed.answer, errors.Refusal), committed.answer
    use = KeyUse(spki_sha256=hashlib.sha256(press.spki).hexdigest(), device=f"serial:{names[-1]}")
    line.service.store.submit([put(use)]).result()
    return [f"serial:{name}" for name in names]


def _made(line: Line, press: _Press, names: Sequence[str]) -> Iterator[tuple[str, bytes, int, bytes]]:
    entropy = SystemEntropy()
    for name in names:
        serial = int.from_bytes(b"\x5a" + entropy.token(19), "big")
        yield name, press.press(name, serial), serial, entropy.token(32)


def _decider(
    line: Line, context: RunContext, press: _Press, made: Sequence[tuple[str, bytes, int, bytes]]
) -> Any:
    licence, spki_sha256 = context.licence, hashlib.sha256(press.spki).hexdigest()

    def decide(facts: Facts, at: datetime) -> Decision[int]:
        entries: list[tuple[str, dict[str, Any]]] = []
        for name, certificate, number, challenge in made:
            device, serial, sha256 = f"serial:{name}", serial_hex(number), fingerprint(certificate)
            leaf, attempt = facts.next_leaf + len(entries), challenge[:16].hex()
            proof = press.prove(attempt, sha256, challenge)
            record = IdentityRecord(
                leaf=leaf + 1, device=device, attempt=attempt, attempt_number=1, run=licence.id,
                batch=licence.batch, product=licence.product, profile=licence.profile,
                authority=licence.authority, certificate=serial, certificate_sha256=sha256,
                spki_sha256=spki_sha256, origin=KeyOrigin.BORN, site="Graz", line="L1",
                client="station:ST01", operator=None, issued_at=at, issue_leaf=leaf, released_at=at,
                challenge=challenge, proof=proof,
            )  # fmt: skip
            facts.put(record)
            facts.put(
                Device(id=device, state=DeviceState.RELEASED, run=licence.id, attempt=attempt, attempts=1,
                       reason=None)
            )  # fmt: skip
            facts.put(
                Attempt(
                    id=attempt,
                    device=device,
                    number=1,
                    run=licence.id,
                    client="station:ST01",
                    operator=None,
                    origin=KeyOrigin.BORN,
                    state=DeviceState.RELEASED,
                    challenge=challenge,
                    certificate=serial,
                    issued_at=at,
                    issue_leaf=leaf,
                    proof=proof,
                    released_at=at,
                    release_leaf=leaf + 1,
                )
            )
            facts.put(
                DeviceCertificate(
                    serial=serial,
                    authority=licence.authority,
                    device=device,
                    attempt=attempt,
                    der=certificate,
                    sha256=sha256,
                    run=licence.id,
                    partition=licence.partition,
                    client="station:ST01",
                    issued_at=at,
                )
            )
            issued = {
                "device": device, "attempt": attempt, "attempt_number": 1, "run": licence.id,
                "batch": licence.batch, "product": licence.product, "profile": licence.profile,
                "authority": licence.authority, "partition": licence.partition, "certificate": serial,
                "certificate_sha256": sha256, "spki_sha256": spki_sha256, "origin": "born",
                "key_store": "development",
            }  # fmt: skip
            entries.append(("device-issued", issued))
            entries.append(("device-released", {"device": device, "record": record.document()}))
        run, authority = facts.get(Run, licence.id), facts.get(Authority, licence.authority)
        assert run is not None
        assert authority is not None
        more = len(made)
        facts.put(replace(run, admitted=run.admitted + more, released=run.released + more))
        facts.put(replace(authority, issued=authority.issued + more))
        return Decision(more, entries)

    return decide
