"""Scenarios of the fault table: other fleets, the gateway, and what many devices share (SPEC H3, H4, H5)."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

from birthmark import errors
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.clients import Role
from birthmark.floor.fleet import FirstContact, FleetAuthority, FleetPolicy, FleetStatus
from birthmark.floor.proposals import Deed
from birthmark.floor.realm import Environment
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.services.acts import recognise
from birthmark.services.ceremonies import require_own
from birthmark.services.enrolments import Granted
from birthmark.services.field_devices import hold_device, resume_device
from birthmark.services.fleet import Fleet
from birthmark.services.foreign_devices import ForeignDevices, Listed
from birthmark.services.foreign_lists import take_crl
from birthmark.services.foreign_status import Answers, Lists
from birthmark.services.gateway import Gateway, require_proxy
from birthmark.services.gateway_tokens import Tokens, TokenTerms
from birthmark.services.issue import IssueRequest
from birthmark.services.own_devices import OwnDevices
from birthmark.services.proposals import Proposals
from birthmark.services.shared import Sharing, share
from birthmark.services.visits import Visit
from tests.faults.places import ORGANIZATION, Place
from tests.faults.scenario import Prepared, Scenario, bela, folder_of, spki
from tests.support.foreign import ForeignPKI, Issuer
from tests.support.realm import Line, hierarchy, proof, workpiece
from tests.support.recalls import sign

__all__ = ["FLEET"]

NAME, HOME, AWAY = "fjord", "192.0.2.1", "198.51.100.7"
POLICY = FleetPolicy(first_contact=FirstContact.REGISTER)
CLOSED = FleetPolicy(first_contact=FirstContact.REFUSE)
TOKENS = TokenTerms(keys=(KeyLabel("tokens"),), audience="depot", life=timedelta(minutes=5))
IMAGE, HERE = "image-7", "10.4.7.7"


# --- other fleets


def _fjord(line: Line) -> Issuer:
    return ForeignPKI(folder=folder_of(line) / "foreign").root()


def _challenged(line: Line) -> tuple[Issuer, bytes]:
    """Put an authority on record; return it, and what shows that its owner has the key."""
    root, fleet = _fjord(line), _fleet(line)
    found = line.service.carry(fleet.challenge(line.operator.caller, NAME, root.der, POLICY))
    return root, root.verification(found.nonce)


def _fleet(line: Line) -> Fleet:
    return Fleet(line.realm, SystemEntropy())


def _registered(line: Line) -> Issuer:
    root, verification = _challenged(line)
    line.service.carry(_fleet(line).register(line.operator.caller, NAME, verification))
    return root


def _listed(line: Line) -> Issuer:
    root = _registered(line)
    line.service.carry(take_crl(line.operator.caller, NAME, root.list()))
    return root


def _newer_list(line: Line) -> Prepared:
    root = _listed(line)
    root.certify("bad")
    root.revoke("bad")
    return None, NAME, root.list()


def _proposed_fleet(line: Line) -> Prepared:
    _, verification = _challenged(line)
    terms = {"verification": verification.hex(), "policy": line.the(FleetAuthority, NAME).policy}
    return _proposed(line, Deed.REGISTER_FLEET, NAME, terms)


def _proposed(line: Line, deed: Deed, subject: str, terms: dict[str, str]) -> Prepared:
    """Propose something; return what the second person signs."""
    proposals = Proposals(line.realm, line.service.authorise, SystemEntropy())
    motion = proposals.draft(line.operator.caller, deed, subject, terms, "because")
    found = line.service.carry(
        proposals.propose(line.operator.caller, motion, sign(line.operator, motion.encode()))
    )
    second = bela(line)
    return second.caller, found.id, sign(second, found.document)


# --- the gateway


def _made(line: Line) -> bytes:
    """Bring a device through the line; return its certificate (DER)."""
    device = workpiece("D1")
    issued = line.issue(device)
    line.prove(proof(issued, device.key))
    return issued.certificate


def _visit(
    line: Line, certificate: bytes, *, place: str = HOME, connected_at: datetime | None = None
) -> Visit:
    return Visit(
        certificate=certificate,
        path=(hierarchy().issuing, hierarchy().root),
        place=place,
        connected_at=connected_at or line.clock.now(),
    )


def _met(line: Line) -> bytes:
    """Have the device come in for the first time; return its certificate (DER)."""
    certificate = _made(line)
    foreign = ForeignDevices(line.clock, SystemEntropy(), Listed(lists=Lists(), answers=Answers()))
    gateway = Gateway(line.clock, OwnDevices(), foreign, line.service.confirmations, {})
    line.service.carry(gateway.meet(_visit(line, certificate)))
    return certificate


def _elsewhere(line: Line) -> Prepared:
    certificate = _met(line)
    line.clock.turn(hours=1)
    return _visit(line, certificate, place=AWAY)


def _at_two_places(line: Line) -> Prepared:
    before = line.clock.now() - timedelta(minutes=1)
    return _visit(line, _met(line), place=AWAY, connected_at=before)


def _not_released(line: Line) -> Prepared:
    return _visit(line, line.issue(workpiece("D1")).certificate)


def _not_proved(line: Line) -> Prepared:
    """Have the device come with a certificate of an operational run, for the first time."""
    line.open_operational("L1")
    device = workpiece("D1")
    identity = line.device(_made(line), device.key)
    request = IssueRequest(hardware_id="", csr=device.csr, key="e")
    granted = line.service.carry(line.service.enrolments.enrol(identity.caller, "L1", request))
    assert isinstance(granted, Granted)
    return _visit(line, granted.certificate)


def _from_fjord(line: Line) -> Prepared:
    root = _listed(line)
    return replace(_visit(line, root.certify("T-1")), path=(root.der,))


def _for_a_proxy(line: Line) -> Prepared:
    with suppress(errors.IllegalTransition):  # the keys are those of the whole run of tests
        line.keys.generate(TOKENS.keys[0], KeyAlgorithm.EC_P256)
    proxy = line.enrol(Role.PROXY, "edge-1")
    return proxy.caller, replace(_visit(line, _made(line)), actor=proxy.id)


def _ask_for_a_proxy(place: Place, prepared: Prepared) -> object:
    caller, visit = prepared
    tokens = Tokens(place.service.store.realm, place.keys, SystemEntropy(), TOKENS)
    place.carry(require_proxy(caller, place.clock.now()))
    welcome = place.carry(place.gateway.meet(visit))
    assert place.carry(tokens.give(welcome)).reveal().count(b".") == 2
    return welcome


def _held_in_the_field(line: Line) -> Prepared:
    prepared = _in_the_field(line)
    line.service.carry(hold_device(*prepared))
    return prepared


def _in_the_field(line: Line) -> Prepared:
    _met(line)
    return line.operator.caller, "serial:D1", "seen"


# --- what many devices share


def _sharing(line: Line) -> Sharing:
    return Sharing(
        name=IMAGE,
        run="R1",
        quantity=3,
        networks="10.4.0.0/16",
        not_after=line.clock.now() + timedelta(hours=8),
        authority="issuing-1",
        organization=ORGANIZATION,
        subject_public_key_info=spki(),
    )


def _shared(line: Line) -> Prepared:
    """Return a certificate that many devices share, and what one of them asks."""
    service = line.service
    made = service.carry(share(service.authorise, line.realm, line.operator.caller, _sharing(line)))
    request = IssueRequest(hardware_id="", csr=workpiece("D1").csr, key="e")
    return made.certificate.der, request


def _ask_shared(place: Place, prepared: Prepared) -> object:
    certificate, request = prepared
    caller = replace(place.carry(recognise(certificate)), plane="device", address=HERE)
    return place.carry(place.service.enrolments.enrol(caller, None, request))


def _proposed_sharing(line: Line) -> Prepared:
    licence = line.licence("R1", opened_by=line.operator.id)
    line.service.carry(line.service.opening.open(line.operator.caller, licence, line.sign(licence)))
    sharing, second = _sharing(line), line.enrol(Role.OFFICER, "dora")
    line.service.carry(line.service.opening.approve(second.caller, "R1", sign(second, licence.encode())))
    return _proposed(line, Deed.SHARE_CREDENTIAL, sharing.client, sharing.terms)


FLEET: Mapping[str, Scenario] = {
    "challenge a fleet authority": Scenario(
        covers=("fleet.Fleet.challenge",),
        prepare=lambda line: (line.operator.caller, NAME, _fjord(line).der, POLICY),
        request=lambda place, prepared: place.carry(place.fleet.challenge(*prepared)),
    ),
    "register a fleet authority": Scenario(
        covers=("fleet.Fleet.register",),
        prepare=lambda line: (line.operator.caller, NAME, _challenged(line)[1]),
        request=lambda place, prepared: place.carry(place.fleet.register(*prepared)),
    ),
    "approve a fleet authority": Scenario(
        covers=("proposals.Proposals.approve",),
        prepare=_proposed_fleet,
        request=lambda place, prepared: place.carry(place.proposals.approve(*prepared)),
        environment=Environment.PRODUCTION,
    ),
    "change what is agreed for a fleet": Scenario(
        covers=("fleet.Fleet.change",),
        prepare=lambda line: (_registered(line), line.operator.caller)[1],
        request=lambda place, caller: place.carry(place.fleet.change(caller, NAME, CLOSED, "agreed anew")),
    ),
    "suspend a fleet authority": Scenario(
        covers=("fleet.Fleet.move",),
        prepare=lambda line: (_registered(line), line.operator.caller)[1],
        request=lambda place, caller: place.carry(
            place.fleet.move(caller, NAME, FleetStatus.SUSPENDED, "doubt")
        ),
    ),
    "bring a foreign list": Scenario(
        covers=("foreign_lists.take_crl",),
        prepare=lambda line: (line.operator.caller, NAME, _registered(line).list()),
        request=lambda place, prepared: place.carry(take_crl(*prepared)),
    ),
    "fetch a newer foreign list": Scenario(
        covers=("foreign_lists.take_crl",),
        prepare=_newer_list,
        request=lambda place, prepared: place.carry(take_crl(*prepared)),
    ),
    "come to the gateway": Scenario(
        covers=("gateway.Gateway.meet", "own_devices.OwnDevices.find"),
        prepare=lambda line: _visit(line, _made(line)),
        request=lambda place, visit: place.carry(place.gateway.meet(visit)),
    ),
    "come from elsewhere": Scenario(
        covers=("gateway.Gateway.meet",),
        prepare=_elsewhere,
        request=lambda place, visit: place.carry(place.gateway.meet(visit)),
    ),
    "come from two places at once": Scenario(
        covers=("gateway.Gateway.meet",),
        prepare=_at_two_places,
        request=lambda place, visit: place.carry(place.gateway.meet(visit)),
    ),
    "come before it is released": Scenario(
        covers=("gateway.Gateway.meet",),
        prepare=_not_released,
        request=lambda place, visit: place.carry(place.gateway.meet(visit)),
    ),
    "come with a certificate that waits for its proof": Scenario(
        covers=("gateway.Gateway.meet", "confirmations.ConfirmEnrolments.proved_by_use"),
        prepare=_not_proved,
        request=lambda place, visit: place.carry(place.gateway.meet(visit)),
    ),
    "come from another fleet": Scenario(
        covers=(
            "gateway.Gateway.meet",
            "foreign_devices.ForeignDevices.find",
            "foreign_status.lists_of",
        ),
        prepare=_from_fjord,
        request=lambda place, visit: place.carry(place.gateway.meet(visit)),
    ),
    "come by a proxy": Scenario(
        covers=("gateway.require_proxy", "gateway.Gateway.meet", "gateway_tokens.Tokens.give"),
        prepare=_for_a_proxy,
        request=_ask_for_a_proxy,
    ),
    "hold in the field": Scenario(
        covers=("field_devices.hold_device",),
        prepare=_in_the_field,
        request=lambda place, prepared: place.carry(hold_device(*prepared)),
    ),
    "resume in the field": Scenario(
        covers=("field_devices.resume_device",),
        prepare=_held_in_the_field,
        request=lambda place, prepared: place.carry(resume_device(*prepared)),
    ),
    "share a credential": Scenario(
        covers=("shared.share",),
        prepare=lambda line: (line.operator.caller, _sharing(line)),
        request=lambda place, prepared: place.carry(
            share(place.authorise, place.service.store.realm, *prepared)
        ),
    ),
    "approve a shared credential": Scenario(
        covers=("proposals.Proposals.approve", "authorise.Authorise.certify"),
        prepare=_proposed_sharing,
        request=lambda place, prepared: place.carry(place.proposals.approve(*prepared)),
        environment=Environment.PRODUCTION,
    ),
    "enrol by what is shared": Scenario(
        covers=("enrolments.EnrolDevices.enrol",), prepare=_shared, request=_ask_shared
    ),
    "bring a ceremony of this realm": Scenario(
        covers=("ceremonies.require_own",),
        prepare=lambda line: (line.operator.caller, line.realm, hierarchy().progress.ceremony),
        request=lambda place, prepared: place.carry(require_own(*prepared)),
    ),
    "bring a ceremony of another realm": Scenario(
        covers=("ceremonies.require_own",),
        prepare=lambda line: (
            line.operator.caller,
            line.realm,
            replace(hierarchy().progress.ceremony, realm="another"),
        ),
        request=lambda place, prepared: place.carry(require_own(*prepared)),
    ),
}
"""By what is asked."""
