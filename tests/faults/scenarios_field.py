"""Scenarios of the fault table: devices that ask for certificates themselves (SPEC H1, H2)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark.adapters.system import SystemEntropy
from birthmark.floor.clients import Capability
from birthmark.floor.devices import DeviceCertificate
from birthmark.floor.enrolments import CMPTransaction, waiting_id
from birthmark.pki import der
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.certificates import Certificate, fingerprint
from birthmark.pki.cmp import BodyKind
from birthmark.pki.cmp_requests import CertStatus, certificate_hash
from birthmark.pki.crmf import CertTemplate, encode_template
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.revocation import ReasonCode
from birthmark.ports import UseCase
from birthmark.secret import SecretBytes
from birthmark.services.acts import Caller
from birthmark.services.approvals import Approvals
from birthmark.services.cmp_transactions import CMPTransactions
from birthmark.services.codes import Guest, give_code
from birthmark.services.enrolments import Granted, Waiting
from birthmark.services.issue import IssueRequest
from birthmark.services.prove import ProveRequest
from birthmark.services.recognition import recognise_device, require_live
from tests.faults.places import CONFIRM_WITHIN, Place
from tests.faults.scenario import Prepared, Scenario, one
from tests.support.realm import Client, Line, proof, successor, workpiece

__all__ = ["FIELD"]

DEVICE, LOCAL, LOOKED_AT = "serial:D1", "L1", "L2"
"""A device; runs for where it works, without and with a person who looks at each request."""
TRANSACTION, AGAIN, NONCE = bytes(16), bytes([1] * 16), bytes(range(16))
P256 = ALGORITHMS[KeyAlgorithm.EC_P256]


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _request(key: ec.EllipticCurvePrivateKey | None = None, name: str = "D1") -> IssueRequest:
    return IssueRequest(hardware_id="", csr=workpiece(name, key=key).csr, key="e")


def _released(line: Line) -> Client:
    """Make the device; return it as it shows its identity."""
    device = workpiece("D1")
    issued = line.issue(device)
    line.prove(proof(issued, device.key))
    return line.device(issued.certificate, device.key)


def _enrolled(line: Line, by: Client, key: str, *, renewal: bool = False) -> Client:
    """Have an operational certificate issued; return the device as it shows that."""
    made = _new_key()
    csr = successor(by.caller.credential.der, made).csr if renewal else workpiece("D1", key=made).csr
    request = IssueRequest(hardware_id="", csr=csr, key=key)
    granted = line.service.carry(line.service.enrolments.enrol(by.caller, LOCAL, request, renewal=renewal))
    assert isinstance(granted, Granted)
    return line.device(granted.certificate, made)


def _used(line: Line, device: Client) -> None:
    assert line.service.carry(line.service.confirmations.proved_by_use(device.caller))


def _attempt(line: Line, device: Client) -> str:
    """Return the attempt of the certificate that a device shows."""
    shown = line.the(DeviceCertificate, device.caller.credential.serial)
    return shown.attempt


# --- by EST


def _code(line: Line, run: str = "R1") -> tuple[str, SecretBytes]:
    guest = Guest(name="dock-1", device=DEVICE, run=run)
    service = line.service
    given = give_code(service.codes, service.runs, SystemEntropy(), line.operator.caller, guest)
    return guest.name, service.carry(given)[0]


def _coded(line: Line) -> Prepared:
    return (*_code(line), _request())


def _ask_by_code(place: Place, prepared: Prepared) -> object:
    name, code, request = prepared
    caller = place.carry(place.service.codes.recognise(name, code))
    return place.carry(place.service.enrolments.enrol(caller, None, request))


def _works(line: Line) -> Prepared:
    line.open_operational(LOCAL)
    return _released(line).caller.credential.der, LOCAL, _request(), False


def _to_renew(line: Line) -> Prepared:
    line.open_operational(LOCAL)
    holder = _enrolled(line, _released(line), "first")
    _used(line, holder)
    certificate = holder.caller.credential.der
    request = IssueRequest(hardware_id="", csr=successor(certificate).csr, key="e")
    return certificate, None, request, True


def _given_up(line: Line) -> Prepared:
    line.open_operational(LOCAL)
    holder = _released(line)
    _enrolled(line, holder, "lost on the way")
    return holder.caller.credential.der, LOCAL, _request(), False


def _looked_at(line: Line) -> Prepared:
    line.open_operational(LOOKED_AT, approval=True)
    return _released(line).caller.credential.der, LOOKED_AT, _request(), False


def _ask_enrol(place: Place, prepared: Prepared) -> object:
    certificate, label, request, renewal = prepared
    caller = place.carry(recognise_device(certificate))
    return place.carry(place.service.enrolments.enrol(caller, label, request, renewal=renewal))


def _waits(line: Line) -> Prepared:
    prepared = _looked_at(line)
    certificate, label, request, _ = prepared
    caller = line.service.carry(recognise_device(certificate))
    assert isinstance(line.service.carry(line.service.enrolments.enrol(caller, label, request)), Waiting)
    return line.operator.caller, waiting_id(caller.client.id, request.key), prepared


def _settled(line: Line, *, approved: bool) -> Prepared:
    caller, name, prepared = _waits(line)
    line.service.carry(Approvals().settle(caller, name, approved=approved, reason="seen"))
    return prepared


def _settling(*, approved: bool) -> Callable[[Place, Prepared], object]:
    return lambda place, prepared: place.carry(
        Approvals().settle(*prepared[:2], approved=approved, reason="seen")
    )


def _at_the_gate(line: Line) -> Prepared:
    """A device that fetched its identity with a code, and signs its challenge itself."""
    name, code = _code(line)
    key, service = _new_key(), line.service
    caller = service.carry(service.codes.recognise(name, code))
    granted = service.carry(service.enrolments.enrol(caller, None, _request(key)))
    assert isinstance(granted, Granted)
    device = line.device(granted.certificate, key)
    asked = service.carry(service.confirmations.challenge(device.caller))
    assert asked is not None
    attempt, message = asked
    return granted.certificate, ProveRequest(
        attempt=attempt,
        certificate_sha256=fingerprint(granted.certificate),
        signature=key.sign(message, ec.ECDSA(hashes.SHA256())),
        key="p",
    )


def _ask_gate(place: Place, prepared: Prepared) -> object:
    certificate, request = prepared
    caller = place.carry(recognise_device(certificate))
    place.carry(require_live(caller, Capability.PROVE, place.clock.now()))
    asked = place.carry(place.service.confirmations.challenge(caller))
    assert asked is not None
    return one(place.carry(place.service.prove(caller, [replace(request, attempt=asked[0])])))


def _renewed(line: Line) -> Prepared:
    line.open_operational(LOCAL)
    holder = _enrolled(line, _released(line), "first")
    _used(line, holder)
    return _enrolled(line, holder, "second", renewal=True).caller.credential.der


def _ask_use(place: Place, certificate: Prepared) -> object:
    caller = place.carry(recognise_device(certificate))
    return place.carry(place.service.confirmations.proved_by_use(caller))


def _not_taken_at_the_line(line: Line) -> Prepared:
    device = workpiece("D1")
    return line.station.id, line.issue(device).attempt, "not taken"


def _not_taken_where_it_works(line: Line) -> Prepared:
    line.open_operational(LOCAL)
    device = _enrolled(line, _released(line), "first")
    return device.id, _attempt(line, device), "not taken"


def _given_back(line: Line) -> Prepared:
    line.open_operational(LOCAL)
    device = _enrolled(line, _released(line), "first")
    _used(line, device)
    certificate = Certificate.from_der(device.caller.credential.der)
    because = ReasonCode.CESSATION_OF_OPERATION
    return device.caller, certificate.issuer_name, certificate.serial_hex, because


# --- by CMP


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A message that begins a transaction."""

    caller: Caller
    label: str
    kind: BodyKind
    body: bytes


def _message(line: Line, device: Client, *, label: str = LOCAL, name: str = "D1") -> _Asked:
    body = workpiece(name).csr
    assert body is not None
    return _Asked(caller=device.caller, label=label, kind=BodyKind.P10CR, body=body)


def _works_by_cmp(line: Line) -> _Asked:
    line.open_operational(LOCAL)
    return _message(line, _released(line))


def _new_by_cmp(line: Line) -> _Asked:
    """A device with a one-time code, whose identity this is going to be."""
    name, code = _code(line)
    caller = line.service.carry(line.service.codes.recognise(name, code))
    body = workpiece("D1").csr
    assert body is not None
    return _Asked(caller=caller, label="R1", kind=BodyKind.P10CR, body=body)


def _another_by_cmp(line: Line) -> _Asked:
    line.open_operational(LOCAL)
    return _message(line, _released(line), name="D2")


def _looked_at_by_cmp(line: Line) -> _Asked:
    line.open_operational(LOOKED_AT, approval=True)
    return _message(line, _released(line), label=LOOKED_AT)


def _update(line: Line) -> _Asked:
    """A kur (RFC 9483 section 4.1.3): CertReqMessages whose new key signs its own request (RFC 4211)."""
    line.open_operational(LOCAL)
    holder = _enrolled(line, _released(line), "first")
    _used(line, holder)
    key, old = _new_key(), Certificate.from_der(holder.caller.credential.der)
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    template = encode_template(CertTemplate(subject=old.subject_name, public_key=public))
    request = der.encode(der.SEQUENCE, b"\x02\x01\x00", template)
    signature = der.encode(der.BIT_STRING, b"\0", key.sign(request, ec.ECDSA(hashes.SHA256())))
    popo = der.encode(0xA1, P256.signature_algorithm, signature)
    body = der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, request, popo))
    return _Asked(caller=holder.caller, label=LOCAL, kind=BodyKind.KUR, body=body)


def _begun(
    transactions: CMPTransactions,
    asked: _Asked,
    transaction: bytes = TRANSACTION,
    *,
    implicit: bool = False,
) -> UseCase[CMPTransaction]:
    request = (0, asked.body)
    return transactions.begin(
        asked.caller, asked.label, asked.kind, transaction, request, NONCE, implicit=implicit
    )


def _ask_cmp(place: Place, asked: Prepared) -> object:
    """Go through a whole transaction."""
    transactions = place.transactions
    place.carry(transactions.run_of(asked.caller, asked.label, None))
    row = place.carry(_begun(transactions, asked))
    answer = place.carry(transactions.enrol(asked.caller, row, row.nonce, counted=True))
    if isinstance(answer, Waiting):
        return answer
    row = place.carry(transactions.find(asked.caller, TRANSACTION))
    place.carry(transactions.settle(asked.caller, row, [_taken(row, answer)], pvno=2))
    return answer


def _taken(row: CMPTransaction, granted: Granted) -> CertStatus:
    taken = certificate_hash(granted.certificate)
    return CertStatus(cert_hash=taken, cert_req_id=row.request_id, status=None)


def _ask_cmp_unconfirmed(place: Place, asked: Prepared) -> object:
    """Have it as a client does that confirms nothing (implicitConfirm)."""
    transactions = place.transactions
    row = place.carry(_begun(transactions, asked, implicit=True))
    answer = place.carry(transactions.enrol(asked.caller, row, row.nonce, counted=True))
    place.carry(transactions.close(row))
    return answer


def _transactions(line: Line) -> CMPTransactions:
    service = line.service
    return CMPTransactions(service.enrolments, service.confirmations, line.clock, CONFIRM_WITHIN)


def _issued_by_cmp(line: Line, asked: _Asked) -> CMPTransaction:
    """Leave a transaction where the client has to confirm."""
    transactions = _transactions(line)
    row = line.service.carry(_begun(transactions, asked))
    line.service.carry(transactions.enrol(asked.caller, row, NONCE))
    return line.the(CMPTransaction, row.id)


def _approved_by_cmp(line: Line) -> Prepared:
    asked = _looked_at_by_cmp(line)
    row = _issued_by_cmp(line, asked)
    name = waiting_id(asked.caller.client.id, row.key)
    line.service.carry(Approvals().settle(line.operator.caller, name, approved=True, reason="seen"))
    return asked


def _ask_poll(place: Place, asked: Prepared) -> object:
    row = place.carry(place.transactions.find(asked.caller, TRANSACTION))
    return place.carry(place.transactions.enrol(asked.caller, row, NONCE))


def _not_taken_by_cmp(line: Line) -> Prepared:
    asked = _works_by_cmp(line)
    _issued_by_cmp(line, asked)
    return asked


def _ask_not_taken(place: Place, asked: Prepared) -> object:
    row = place.carry(place.transactions.find(asked.caller, TRANSACTION))
    return place.carry(place.transactions.settle(asked.caller, row, [], pvno=2))


def _overdue(line: Line) -> None:
    line.clock.turn(seconds=CONFIRM_WITHIN.total_seconds())


def _nobody_confirms(ask: Callable[[Line], _Asked]) -> Callable[[Line], Prepared]:
    def prepare(line: Line) -> Prepared:
        _issued_by_cmp(line, ask(line))
        _overdue(line)

    return prepare


def _interrupted(line: Line) -> Prepared:
    """The process died before anything was issued."""
    asked = _works_by_cmp(line)
    row = line.service.carry(_begun(_transactions(line), asked))
    assert line.the(CMPTransaction, row.id).attempt is None
    _overdue(line)


def _used_unconfirmed(line: Line) -> Prepared:
    """The client uses its certificate, and confirms it nowhere."""
    asked = _works_by_cmp(line)
    row = _issued_by_cmp(line, asked)
    certificate = line.the(DeviceCertificate, row.certificate or "")
    _used(line, line.device(certificate.der, _new_key()))
    _overdue(line)


def _asked_twice(line: Line) -> Prepared:
    """The first answer was lost; the client asked the same in another transaction, and confirmed that."""
    asked = _new_by_cmp(line)
    _issued_by_cmp(line, asked)
    transactions = _transactions(line)
    row = line.service.carry(_begun(transactions, asked, AGAIN))
    answer = line.service.carry(transactions.enrol(asked.caller, row, NONCE))
    assert isinstance(answer, Granted)
    row = line.service.carry(transactions.find(asked.caller, AGAIN))
    line.service.carry(transactions.settle(asked.caller, row, [_taken(row, answer)], pvno=2))
    _overdue(line)


def _ask_expire(place: Place, _prepared: Prepared) -> object:
    """End what nobody confirmed, as every process does when it starts."""
    rows = place.carry(place.transactions.unconfirmed())
    for row in rows:
        place.carry(place.transactions.expire(row.id))
    return None


_CMP = "cmp_transactions.CMPTransactions"
_ENROL = ("enrolments.EnrolDevices.enrol", "enrolments.EnrolDevices.run_of")
_CONFIRM = "confirmations.ConfirmEnrolments"

FIELD: Mapping[str, Scenario] = {
    "give a code": Scenario(
        covers=("codes.give_code",),
        prepare=lambda line: (line.operator.caller, Guest(name="dock-1", device=DEVICE, run="R1")),
        request=lambda place, prepared: place.carry(
            give_code(place.service.codes, place.service.runs, SystemEntropy(), *prepared)
        ),
    ),
    "enrol by a code": Scenario(
        covers=(*_ENROL, "recognition.Codes.recognise", "recognition.Codes.named"),
        prepare=_coded,
        request=_ask_by_code,
    ),
    "prove what was enrolled for": Scenario(
        covers=("recognition.recognise_device", "recognition.require_live", f"{_CONFIRM}.challenge"),
        prepare=_at_the_gate,
        request=_ask_gate,
    ),
    "enrol for where it works": Scenario(
        covers=(*_ENROL, "recognition.recognise_device"), prepare=_works, request=_ask_enrol
    ),
    "enrol again in place of what was lost": Scenario(covers=_ENROL, prepare=_given_up, request=_ask_enrol),
    "renew where it works": Scenario(covers=_ENROL, prepare=_to_renew, request=_ask_enrol),
    "use what was renewed": Scenario(
        covers=(f"{_CONFIRM}.proved_by_use",), prepare=_renewed, request=_ask_use
    ),
    "ask for what a person looks at": Scenario(
        covers=("approvals.Approvals.ask",), prepare=_looked_at, request=_ask_enrol
    ),
    "approve an enrolment": Scenario(
        covers=("approvals.Approvals.settle",), prepare=_waits, request=_settling(approved=True)
    ),
    "refuse an enrolment": Scenario(
        covers=("approvals.Approvals.settle",), prepare=_waits, request=_settling(approved=False)
    ),
    "enrol what was approved": Scenario(
        covers=_ENROL, prepare=lambda line: _settled(line, approved=True), request=_ask_enrol
    ),
    "enrol what was refused": Scenario(
        covers=_ENROL, prepare=lambda line: _settled(line, approved=False), request=_ask_enrol
    ),
    "do not take an identity": Scenario(
        covers=(f"{_CONFIRM}.reject",),
        prepare=_not_taken_at_the_line,
        request=lambda place, prepared: place.carry(place.service.confirmations.reject(*prepared)),
    ),
    "do not take what was enrolled for": Scenario(
        covers=(f"{_CONFIRM}.reject",),
        prepare=_not_taken_where_it_works,
        request=lambda place, prepared: place.carry(place.service.confirmations.reject(*prepared)),
    ),
    "revoke one's own": Scenario(
        covers=(f"{_CONFIRM}.revoke_own",),
        prepare=_given_back,
        request=lambda place, prepared: place.carry(place.service.confirmations.revoke_own(*prepared)),
    ),
    "cmp: the identity": Scenario(covers=(f"{_CMP}.begin",), prepare=_new_by_cmp, request=_ask_cmp),
    "cmp: for where it works": Scenario(
        covers=(
            *(f"{_CMP}.{name}" for name in ("run_of", "begin", "enrol", "find", "settle")),
            f"{_CMP}.certificate",
            f"{_CMP}.confirm",
            f"{_CONFIRM}.confirm",
        ),
        prepare=_works_by_cmp,
        request=_ask_cmp,
    ),
    "cmp: update": Scenario(covers=(f"{_CMP}.enrol",), prepare=_update, request=_ask_cmp),
    "cmp: confirming nothing": Scenario(
        covers=(f"{_CMP}.close",), prepare=_works_by_cmp, request=_ask_cmp_unconfirmed
    ),
    "cmp: refused": Scenario(covers=(f"{_CMP}.enrol",), prepare=_another_by_cmp, request=_ask_cmp),
    "cmp: wait for a person": Scenario(
        covers=("approvals.Approvals.ask",), prepare=_looked_at_by_cmp, request=_ask_cmp
    ),
    "cmp: poll": Scenario(covers=(f"{_CMP}.find",), prepare=_approved_by_cmp, request=_ask_poll),
    "cmp: do not take it": Scenario(
        covers=(f"{_CMP}.settle", f"{_CMP}.reject"), prepare=_not_taken_by_cmp, request=_ask_not_taken
    ),
    "cmp: nobody confirms": Scenario(
        covers=(f"{_CMP}.unconfirmed", f"{_CMP}.expire"),
        prepare=_nobody_confirms(_works_by_cmp),
        request=_ask_expire,
    ),
    "cmp: nobody confirms the identity": Scenario(
        covers=(f"{_CMP}.expire",), prepare=_nobody_confirms(_new_by_cmp), request=_ask_expire
    ),
    "cmp: interrupted, and nobody asks again": Scenario(
        covers=(f"{_CMP}.expire",), prepare=_interrupted, request=_ask_expire
    ),
    "cmp: used, and confirmed nowhere": Scenario(
        covers=(f"{_CMP}.expire",), prepare=_used_unconfirmed, request=_ask_expire
    ),
    "cmp: confirmed in another transaction": Scenario(
        covers=(f"{_CMP}.expire",), prepare=_asked_twice, request=_ask_expire
    ),
}
"""By what is asked."""
