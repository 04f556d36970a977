"""Whatever is refused is on record, once, and leaves no key, no signature and no row behind (SPEC E5, K1)."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark import errors
from birthmark.adapters.system import SystemEntropy
from birthmark.floor.authorities import Authority, AuthorityStatus
from birthmark.floor.clients import Client as ClientRow
from birthmark.floor.clients import Credential, Role
from birthmark.floor.key_assets import KeyAsset, KeyPurpose
from birthmark.floor.recalls import Recall, SelectionKind
from birthmark.floor.runs import Run
from birthmark.floor.shipments import Shipped
from birthmark.pki.attributes import SecretKind
from birthmark.pki.keys import KeyAlgorithm, KeyLabel
from birthmark.pki.profiles import Catalogue
from birthmark.ports import UseCase
from birthmark.services.acts import Caller
from birthmark.services.authorise import Authorise, Enrolment
from birthmark.services.ceremonies import commit, succeed
from birthmark.services.ceremony_steps import Progress
from birthmark.services.custody import KeyCustody
from birthmark.services.responders import Responders
from birthmark.services.shipments import record_shipment
from tests.services.ceremonies import more
from tests.support.ceremonies import Person, sealed
from tests.support.keystores import KEK, TRANSPORT, Sites, sites
from tests.support.realm import Line, hierarchy, make_line
from tests.support.recalls import People, people, sign

CA = KeyLabel("ca")
ROWS = (Authority, ClientRow, Credential, KeyAsset, Recall, Run, Shipped)
NONE = "0" * 10


class Signing:
    """The keys of a line, counting what they sign but checkpoints."""

    def __init__(self, line: Line) -> None:
        self._keys = line.keys
        self.signed: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._keys, name)

    def sign(self, label: KeyLabel, message: bytes) -> bytes:
        """Sign, and remember with what."""
        self.signed.append(label)
        return self._keys.sign(label, message)


@dataclass(slots=True, kw_only=True)
class Plant:
    """A line, two stores of keys, and one of each use case."""

    line: Line
    place: Sites
    people: People
    share: bytes
    check_value: str
    backup: bytes
    trucks: Progress
    """A ceremony that was carried out, and not committed."""
    keys: Signing = field(init=False)
    custody: KeyCustody = field(init=False)
    responders: Responders = field(init=False)
    authorise: Authorise = field(init=False)

    def __post_init__(self) -> None:
        line, entropy = self.line, SystemEntropy()
        self.keys = Signing(line)
        self.custody = KeyCustody(line.realm, line.clock, entropy)
        catalogue = Catalogue.read()
        self.responders = Responders(self.keys, line.clock, entropy, catalogue, "Acme Motors", "TEST")
        self.authorise = Authorise(line.realm, self.keys, line.clock, entropy, catalogue)

    @property
    def station(self) -> Caller:
        """Who may do none of it."""
        return self.line.station.caller

    @property
    def anna(self) -> Caller:
        """Who may."""
        return self.line.operator.caller

    def enrolment(self, **fields: Any) -> Enrolment:
        """Return an enrolment of a station."""
        values: dict[str, Any] = {
            "role": Role.STATION,
            "name": "ST09",
            "subject_public_key_info": spki(),
            "authority": "issuing-1",
            "variables": {"organization": "Acme Motors", "station": "ST09", "site": "Graz", "line": "L1"},
        }
        return Enrolment(**values | fields)


def spki() -> bytes:
    made = ec.generate_private_key(ec.SECP256R1()).public_key()
    return made.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """One for all: nothing that is refused changes it."""
    directory = tmp_path_factory.mktemp("refusals")
    line = make_line(directory, f"sqlite:///{directory / 'line.sqlite'}")
    line.open_run()
    line.make("A1")
    with sites("software", directory / "stores") as place:
        taker = place.mirror.generate_transport(TRANSPORT)
        custody = KeyCustody(line.realm, line.clock, SystemEntropy())
        anna, carry = line.operator.caller, line.service.carry
        made = carry(
            custody.generate(
                anna,
                place.here,
                "floor",
                KEK,
                KeyPurpose.KEK,
                lambda: place.here.generate_secret(KEK, SecretKind.KEK, recipients=[taker]),
            )
        )
        place.here.generate(CA, KeyAlgorithm.EC_P256, exportable=True)
        carry(custody.adopt(anna, place.here, "floor", CA, KeyPurpose.ISSUING_CA, "ca"))
        content = carry(custody.back_up(anna, place.here, "floor", CA, KEK))
        made_people = people(line)
        yield Plant(
            line=line,
            place=place,
            people=made_people,
            share=made.shares[0],
            check_value=made.check_value,
            backup=content,
            trucks=more(line)[1],
        )
    line.close()


def custody_by(who: str) -> Mapping[str, Callable[[Plant], UseCase[Any]]]:
    """Return each use case of custody as it would succeed, but for who asks."""

    def by(plant: Plant) -> Caller:
        return plant.station if who == "station" else plant.anna

    return {
        "adopt": lambda p: p.custody.adopt(
            by(p), p.place.mirror, "mirror", TRANSPORT, KeyPurpose.TRANSPORT, "x"
        ),
        "generate": lambda p: p.custody.generate(
            by(p),
            p.place.here,
            "floor",
            KeyLabel("new"),
            KeyPurpose.TRANSPORT,
            lambda: p.place.here.generate_transport(KeyLabel("new")),
        ),
        "accept": lambda p: p.custody.accept(
            by(p), p.place.mirror, "mirror", KEK, p.share, TRANSPORT, p.check_value
        ),
        "back up": lambda p: p.custody.back_up(by(p), p.place.here, "floor", CA, KEK),
        "restore": lambda p: p.custody.restore(by(p), p.place.mirror, "mirror", p.backup),
    }


def proposal(plant: Plant, **fields: Any) -> UseCase[Any]:
    order = plant.people.order(SelectionKind.DEVICE, "serial:A1", **fields)
    return plant.people.recalls.propose(plant.anna, order, sign(plant.line.operator, order.encode()))


def opening(plant: Plant, by: str = "operator", **fields: Any) -> UseCase[Any]:
    who = plant.line.operator if by == "operator" else plant.line.station
    licence = plant.line.licence("R7", **{"opened_by": who.id} | fields)
    return plant.line.service.opening.open(who.caller, licence, plant.line.sign(licence, who))


def performing(plant: Plant, caller: Caller, *, forged: bool = False) -> UseCase[Any]:
    person = hierarchy().custodian
    record = sealed(plant.trucks, [person], plant.line.clock)
    if forged:
        record = replace(record, signatures=((person.id, Person(person.id).sign(record.message)),))
    return commit(caller, plant.trucks, record, "software")


REFUSED: Mapping[str, tuple[Callable[[Plant], UseCase[Any]], type[errors.Refusal]]] = {
    **{
        f"custody: a station: {name}": (ask, errors.NotPermitted)
        for name, ask in custody_by("station").items()
    },
    "custody: adopt what is not there": (
        lambda p: p.custody.adopt(p.anna, p.place.here, "floor", KeyLabel("no"), KeyPurpose.LOG, "log"),
        errors.NotFound,
    ),
    "custody: adopt what is on record": (
        lambda p: p.custody.adopt(p.anna, p.place.here, "floor", CA, KeyPurpose.ISSUING_CA, "ca"),
        errors.IllegalTransition,
    ),
    "custody: adopt under another purpose": (
        lambda p: p.custody.adopt(p.anna, p.place.mirror, "mirror", TRANSPORT, KeyPurpose.LOG, "log"),
        errors.PolicyRefused,
    ),
    "custody: generate what is on record": (
        lambda p: p.custody.generate(
            p.anna,
            p.place.mirror,
            "mirror",
            CA,
            KeyPurpose.TRANSPORT,
            lambda: p.place.mirror.generate_transport(CA),
        ),
        errors.IllegalTransition,
    ),
    "custody: accept another than is on record": (
        lambda p: p.custody.accept(p.anna, p.place.mirror, "mirror", KEK, p.share, TRANSPORT, NONE),
        errors.IllegalTransition,
    ),
    "custody: accept a share for nobody": (
        lambda p: p.custody.accept(
            p.anna, p.place.mirror, "mirror", KEK, bytes(384), TRANSPORT, p.check_value
        ),
        errors.MalformedRequest,
    ),
    "custody: back up what is not on record": (
        lambda p: p.custody.back_up(p.anna, p.place.here, "floor", KeyLabel("no"), KEK),
        errors.NotFound,
    ),
    "custody: back up under no KEK": (
        lambda p: p.custody.back_up(p.anna, p.place.here, "floor", CA, CA),
        errors.Refusal,
    ),
    "custody: restore what is no backup": (
        lambda p: p.custody.restore(p.anna, p.place.mirror, "mirror", b"{}"),
        errors.MalformedRequest,
    ),
    "custody: restore another realm's": (
        lambda p: p.custody.restore(
            p.anna, p.place.mirror, "mirror", p.backup.replace(b'"realm":"acme"', b'"realm":"acne"')
        ),
        errors.PolicyRefused,
    ),
    "custody: restore another environment's": (
        lambda p: p.custody.restore(
            p.anna,
            p.place.mirror,
            "mirror",
            p.backup.replace(b'"environment":"test"', b'"environment":"production"'),
        ),
        errors.PolicyRefused,
    ),
    "responders: a station": (
        lambda p: p.responders.enrol(p.station, "r1", "issuing-1", spki()),
        errors.NotPermitted,
    ),
    "responders: an impossible name": (
        lambda p: p.responders.enrol(p.anna, "a/b" * 30, "issuing-1", spki()),
        errors.MalformedRequest,
    ),
    "responders: no such authority": (
        lambda p: p.responders.enrol(p.anna, "r1", "issuing-9", spki()),
        errors.NotFound,
    ),
    "responders: no key": (
        lambda p: p.responders.enrol(p.anna, "r1", "issuing-1", b"no key"),
        errors.Refusal,
    ),
    "authorise: a station": (lambda p: p.authorise.enrol(p.station, p.enrolment()), errors.NotPermitted),
    "authorise: no such authority": (
        lambda p: p.authorise.enrol(p.anna, p.enrolment(authority="issuing-9")),
        errors.NotFound,
    ),
    "authorise: a name that is taken": (
        lambda p: p.authorise.enrol(p.anna, p.enrolment(name="ST01")),
        errors.IllegalTransition,
    ),
    "authorise: nobody to renew": (
        lambda p: p.authorise.enrol(p.anna, p.enrolment(renew=True)),
        errors.NotFound,
    ),
    "authorise: no key": (
        lambda p: p.authorise.enrol(p.anna, p.enrolment(subject_public_key_info=b"no key")),
        errors.Refusal,
    ),
    "authorise: revoke nobody": (
        lambda p: p.authorise.revoke(p.anna, "station:ST77", "lost"),
        errors.NotFound,
    ),
    "authorise: a station revokes": (
        lambda p: p.authorise.revoke(p.station, "operator:bela", "lost"),
        errors.NotPermitted,
    ),
    "authorise: a station suspends": (
        lambda p: p.authorise.change(p.station, "issuing-1", AuthorityStatus.SUSPENDED, "why"),
        errors.NotPermitted,
    ),
    "authorise: one person revokes an authority": (
        lambda p: p.authorise.change(p.anna, "issuing-1", AuthorityStatus.REVOKED, "why"),
        errors.NotPermitted,
    ),
    "recall: somebody else's order": (
        lambda p: proposal(p, by=p.people.bela),
        errors.NotPermitted,
    ),
    "recall: what does not exist": (
        lambda p: proposal(
            p,
            selection=replace(p.people.order(SelectionKind.DEVICE, "serial:A1").selection, value="serial:A9"),
        ),
        errors.NotFound,
    ),
    "recall: approve none": (lambda p: p.people.recalls.approve(p.anna, "rc-0", b"x"), errors.NotFound),
    "recall: resume none": (lambda p: p.people.recalls.resume(p.anna, "rc-0"), errors.NotFound),
    "recall: withdraw none": (lambda p: p.people.recalls.withdraw(p.anna, "rc-0", "why"), errors.NotFound),
    "opening: a station": (lambda p: opening(p, "station"), errors.NotPermitted),
    "opening: another's licence": (
        lambda p: opening(p, opened_by="operator:bela"),
        errors.NotPermitted,
    ),
    "opening: no such authority": (lambda p: opening(p, authority="issuing-9"), errors.NotFound),
    "opening: a window that is over": (
        lambda p: opening(p, not_after=p.line.clock.now() - timedelta(minutes=30)),
        errors.PolicyRefused,
    ),
    "opening: approve none": (
        lambda p: p.line.service.opening.approve(p.anna, "R9", b"x"),
        errors.NotFound,
    ),
    "runs: a station closes": (
        lambda p: p.line.service.runs.close(p.station, "R1", "why"),
        errors.NotPermitted,
    ),
    "shipments: a station": (lambda p: record_shipment(p.station, "C1", ["serial:A1"]), errors.NotPermitted),
    "shipments: nobody's device": (
        lambda p: record_shipment(p.anna, "C1", ["serial:A1", "serial:A9"]),
        errors.NotFound,
    ),
    "shipments: no name": (lambda p: record_shipment(p.anna, "", ["serial:A1"]), errors.MalformedRequest),
    "ceremonies: a station attends": (
        lambda p: succeed(p.station, hierarchy().progress.ceremony, ["carla"]),
        errors.NotPermitted,
    ),
    "ceremonies: a station commits": (lambda p: performing(p, p.station), errors.NotPermitted),
    "ceremonies: nobody signed": (lambda p: performing(p, p.anna, forged=True), errors.ProofFailed),
    "ceremonies: another file of this id": (
        lambda p: succeed(p.anna, replace(hierarchy().progress.ceremony, sha256="0" * 64), ["carla"]),
        errors.IllegalTransition,
    ),
}


def rows(plant: Plant) -> dict[str, list[object]]:
    return {kind.__name__: list(plant.line.service.store.scan(kind)) for kind in ROWS}


def labels(plant: Plant) -> tuple[tuple[str, ...], ...]:
    return (plant.line.keys.labels(), plant.place.here.labels(), plant.place.mirror.labels())


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_leaves_one_entry_and_nothing_else(plant: Plant, case: str) -> None:
    ask, kind = REFUSED[case]
    use_case = ask(plant)
    start, kept, held = plant.line.size(), rows(plant), labels(plant)
    plant.keys.signed.clear()
    with pytest.raises(kind) as refused:
        plant.line.service.carry(use_case)
    (entry,) = plant.line.entries(start)
    assert (entry["kind"], entry["code"]) == ("refused", refused.value.code)
    assert entry["actor"] in {plant.anna.client.id, plant.station.client.id}
    assert labels(plant) == held
    assert rows(plant) == kept
    assert plant.keys.signed == []
