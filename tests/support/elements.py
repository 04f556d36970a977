"""A line whose devices have secure elements: profile, master keys, elements as their maker delivers them.

The maker's master key and ours come into the key store as they do in a factory, encrypted to a transport key;
so a test knows both, and can open a session with any element to see what is in it.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from birthmark import errors
from birthmark.adapters.system import SystemEntropy
from birthmark.element.apdu import CardChannel, relay
from birthmark.element.card_keys import HONEST, Dishonesty
from birthmark.element.catalogue import ElementCatalogue
from birthmark.element.profiles import ElementProfile, StoredObject
from birthmark.floor.key_assets import KeyPurpose
from birthmark.pki.attributes import SecretKind
from birthmark.pki.keys import KeyLabel
from birthmark.ports import KeyStore
from birthmark.services.custody import KeyCustody
from birthmark.services.dialogues import BEGIN, Commands, Responses
from birthmark.services.injection import InjectRequest
from birthmark.services.issue import Issued
from birthmark.services.prove import ProveRequest, Released
from tests.support.injecting import Bench, master, profile_of
from tests.support.realm import Client, Line, Service, Workpiece, make_line, open_service, proof

__all__ = ["ElementLine", "chip", "element_profile", "give_masters", "make_element_line", "put_on_record"]

T = TypeVar("T")
TRANSPORT = KeyLabel("from-the-makers")
Carrier = Callable[[CardChannel, Commands], Sequence[bytes]]
"""What a station does with a step, whose number is that in its dialogue, from 1."""


def element_profile(**fields: object) -> ElementProfile:
    """Return the profile of the line's elements: certificate, authorities and configuration go into them."""
    profile = profile_of(tags=(), **fields)  # type: ignore[arg-type]  # what a test names
    return replace(
        profile,
        name="chip",
        sha256=sha256(b"chip").hexdigest(),
        objects=(
            StoredObject(tag=0x7F21, content="certificate"),
            StoredObject(tag=0x53, content="chain"),
            StoredObject(tag=0xDF20, content="text:https://enrol.example/{hardware_id}?o={organization}"),
        ),
    )


def give_masters(keys: KeyStore, size: int = 16, kind: str = "diversify") -> None:
    """Have a key store take the two master keys in, as from their makers; once."""
    if "ours" in keys.labels():
        return
    public = load_der_public_key(keys.generate_transport(TRANSPORT))
    assert isinstance(public, rsa.RSAPublicKey)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)  # noqa: S303  # the one form that every token has
    for name in ("maker", "ours"):
        share = public.encrypt(master(name, size).reveal(), oaep)
        keys.accept_secret(KeyLabel(name), SecretKind(f"{kind}-aes-{size * 8}"), share, TRANSPORT)


def put_on_record(line: Line, *labels: str) -> None:
    """Decide on keys that are in the store."""
    custody = KeyCustody(line.realm, line.clock, SystemEntropy())
    for label in labels:
        adopted = custody.adopt(
            line.operator.caller,
            line.keys,
            "software",
            KeyLabel(label),
            KeyPurpose.MASTER_DIVERSIFICATION,
            "provisioning",
        )
        line.service.carry(adopted)


def chip(profile: ElementProfile, number: int, *, dishonesty: Dishonesty = HONEST) -> Bench:
    """Return an element as its maker delivers it, in a bench that can look into it."""
    kdd = sha256(number.to_bytes(4, "big")).digest()[:10]
    return Bench(profile=profile, kdd=kdd, dishonesty=dishonesty)


@dataclass(slots=True, kw_only=True)
class ElementLine:
    """A line, and what its stations do."""

    line: Line
    profile: ElementProfile
    service: Service
    asked: int = 0
    """Requests so far."""

    def another(self) -> Service:
        """Return what another process would hold, or this one after a restart."""
        service = open_service(
            self.line.url, self.line.keys, self.line.clock, elements=catalogue_of(self.profile)
        )
        self.line.services.append(service)
        return service

    def issue(self, device: Workpiece, *, key: str | None = None, by: Client | None = None) -> Issued:
        """Ask for a certificate."""
        self.asked += 1
        return self.line.issue(device, key=key, by=by, service=self.service)

    def inject(
        self, attempt: str, step: int, responses: Sequence[bytes] = (), *, by: Client | None = None
    ) -> Commands:
        """Carry a dialogue on, or raise the refusal."""
        self.asked += 1
        request = InjectRequest(attempt=attempt, element=Responses(step=step, responses=tuple(responses)))
        caller = (by or self.line.station).caller
        (result,) = self.service.carry(self.service.inject(caller, [request]))
        if isinstance(result, errors.Refusal):
            raise result
        return result

    def prove(
        self, request: ProveRequest, step: int, responses: Sequence[bytes], *, by: Client | None = None
    ) -> Released:
        """Prove, with the element's last responses."""
        self.asked += 1
        element = Responses(step=step, responses=tuple(responses))
        return self.line.prove(replace(request, element=element), by=by, service=self.service)

    def attempt(
        self, device: Workpiece, issued: Issued, card: CardChannel, *, carrier: Carrier | None = None
    ) -> Released:
        """Carry one dialogue from where ``issued`` or the service begins it to the release."""
        with suppress(errors.Unavailable):  # a dead one answers nothing, which the service is told
            card.reset()
        commands = issued.element or self.inject(issued.attempt, BEGIN)
        number = 0
        while True:
            number += 1
            responses = (
                relay(card, commands.batch)
                if carrier is None
                else carrier(card, replace(commands, step=number))
            )
            if commands.last:
                return self.prove(proof(issued, device.key), commands.step, responses)
            commands = self.inject(issued.attempt, commands.step, responses)

    def provision(self, device: Workpiece, card: CardChannel, *, carrier: Carrier | None = None) -> Released:
        """Do what a station does: begin anew as long as the service says so."""
        issued = self.issue(device)
        while True:
            try:
                return self.attempt(device, issued, card, carrier=carrier)
            except errors.Interrupted:
                issued = replace(issued, element=None)


def catalogue_of(profile: ElementProfile) -> ElementCatalogue:
    """Return a catalogue with one profile."""
    return ElementCatalogue(profiles={profile.name: profile})


def make_element_line(
    tmp_path: Path, database_url: str, *, profile: ElementProfile | None = None
) -> ElementLine:
    """Make a line with an open run for devices that have this element."""
    profile = profile or element_profile()
    line = make_line(tmp_path, database_url)
    give_masters(line.keys, profile.key_size)
    put_on_record(line, "maker", "ours")
    service = open_service(line.url, line.keys, line.clock, elements=catalogue_of(profile))
    line.services.append(service)
    made = ElementLine(line=line, profile=profile, service=service)
    licence = line.licence("R1", element=profile.name, element_sha256=profile.sha256)
    service.carry(service.opening.open(line.operator.caller, licence, line.sign(licence)))
    return made
