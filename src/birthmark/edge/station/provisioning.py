"""One device's way through the line, as a sequence of steps that can stop and go on anywhere.

``Work`` knows what to ask next and what to make of the answer, and writes down each step before it is
taken; who asks (one device a request, or a gang) is the client's business.

    begin     what is under way is picked up; else the device makes its keys, and the intent is written down
    accept    the certificates are checked (``receiving``) and installed
    carry     if keys go into its secure element: the service and the element talk (``injecting``)
    prepare   the device reads its certificates back and signs; the proofs are written down
    finish    the token is checked and stored

A run may give each device several certificates; each step takes them together, so that a device has all of
them or is under way.  What comes first in every list is the first one's, the others follow in the order of
the run's profiles.

What a refusal means for what is written down, so that the same call is always the right thing to do next:

- the outcome is unknown (unavailable, unauthenticated, a fault of the service): everything stays;
- the dialogue with the secure element broke off (interrupted): it is begun anew, within the same call;
- the proof may not be sent by us now (not-permitted and the like): the identity stays, the next proof is a
  new request;
- anything else: closed, and the next call is a new attempt.  Before that, if the device was proved already
  as far as the service is concerned, its token is fetched: the service is asked, a guess is never made.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from birthmark import errors
from birthmark.edge.station.answers import DeviceStatus, ElementStep, Issued, Proved, Release
from birthmark.edge.station.attesting import Asked, Attestable, Endorsed, written
from birthmark.edge.station.bodies import InjectItem, IssueItem, ProofItem
from birthmark.edge.station.checks import Further, VerifiedToken
from birthmark.edge.station.element import (
    DeviceElement,
    DeviceSlot,
    HasSecureElement,
    SeveralSlots,
)
from birthmark.edge.station.injecting import Carried, Dialogue
from birthmark.edge.station.pending import ElementPending, FurtherPending, Journal, Pending, Phase
from birthmark.edge.station.receiving import received
from birthmark.element.apdu import CardChannel
from birthmark.pki.certificates import fingerprint, to_pem
from birthmark.pki.possession import proof_message
from birthmark.secret import SecretBytes

__all__ = ["Service", "Wanted", "Work"]

_UNKNOWN_OUTCOME = (
    errors.Unavailable,
    errors.RateLimited,
    errors.Unauthenticated,
    errors.IntegrityFailure,
    errors.Fault,
    errors.Interrupted,
)
_ASK_ANOTHER_WAY = (errors.NotPermitted, errors.MalformedRequest, errors.TooLarge, errors.PolicyRefused)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a run wants of its devices."""

    further: tuple[str, ...] = ()
    """Profiles of further certificates, in their order."""
    element: bool = False
    """True if each device has an element that the run knows of.  Whether something is carried to it is for
    the service to say: an element that makes its own keys (a TPM) is asked otherwise."""


class Service(Protocol):
    """What the steps ask the station for."""

    def attest(self, run: str, hardware_id: str, endorsed: Endorsed) -> Asked:
        """Ask what a device's TPM has to answer."""

    def device(self, device: str) -> DeviceStatus:
        """Return where a device stands."""

    def token(self, device: str) -> str:
        """Return a released device's token."""

    def verified(
        self,
        token: str,
        *,
        device: str,
        attempt: str,
        certificate_sha256: str,
        further: Further = (),
        key_set: bool = False,
        growth: Mapping[int, Sequence[bytes]] | None = None,
    ) -> VerifiedToken:
        """Check a release token."""


class Work:
    """One device under way."""

    def __init__(
        self,
        *,
        station: str,
        run: str,
        hardware_id: str,
        element: DeviceElement,
        journal: Journal,
        service: Service,
        anchors: Sequence[bytes],
        new_key: Callable[[], str],
        open_envelope: Callable[[bytes], SecretBytes],
    ) -> None:
        """Prepare; nothing is looked at yet."""
        self._open_envelope = open_envelope
        self._station = station
        self._run = run
        self._hardware_id = hardware_id
        self._element = element
        self._journal = journal
        self._service = service
        self._anchors = anchors
        self._new_key = new_key
        self._now: Pending | None = None
        self._dialogue: Dialogue | None = None
        self._carried: Carried | None = None

    @property
    def pending(self) -> Pending:
        """What is under way, after ``begin``."""
        if self._now is None:
            raise RuntimeError("nothing has begun")
        return self._now

    # --- the steps -------------------------------------------------------------------------------------

    def begin(
        self,
        *,
        delivered: bool,
        envelope: bool = False,
        wanted: Callable[[], Wanted],
        new_seq: Callable[[], int],
    ) -> None:
        """Pick up what is under way, or write down the intent to ask for an identity.

        Args:
            delivered: True if the service makes the keys.
            envelope: True to have them in envelopes; what is under way goes on as it was asked for.
            wanted: returns what the run wants of its devices.
            new_seq: takes a request number.

        Raises:
            errors.IllegalTransition: something else is under way in this device, or it has its identity.
            errors.MalformedRequest: the device makes no key of its own and none is to be delivered, or it
                has no place for the run's further certificates, or no secure element.
            errors.Unavailable: its secure element is not there.
        """
        self._now = self._journal.pending()
        if self._now is not None:
            self._check_same(self._now, delivered=delivered)
            return
        demands = wanted()
        profiles = demands.further
        carries = demands.element and isinstance(self._element, HasSecureElement)
        if carries:
            self.card()  # refuses before anything is asked for
        slots = self._slots(profiles)
        csrs = [None if delivered else self._request_of(slot) for slot in slots]
        attests = demands.element and not carries and not delivered
        self._remember(
            Pending(
                station=self._station,
                hardware_id=self._hardware_id,
                run=self._run,
                delivered=delivered,
                envelope=delivered and envelope,
                issue_key=self._new_key(),
                issue_seq=new_seq(),
                csr=csrs[0],
                attested=self._attested() if attests else None,
                further=tuple(
                    FurtherPending(profile=profile, csr=csr)
                    for profile, csr in zip(profiles, csrs[1:], strict=True)
                ),
                element=ElementPending() if carries else None,
            )
        )

    def _attested(self) -> str | None:
        """Return what the device's TPM answers to the service; None for a device without one."""
        if not isinstance(self._element, Attestable):
            return None
        asked = self._service.attest(self._run, self._hardware_id, self._element.endorsed())
        return written(asked, self._element.attested(asked))

    def request(self) -> IssueItem:
        """Return what to ask in the phase ``asking``; the same as often as it is called."""
        now = self.pending
        return IssueItem(
            hardware_id=now.hardware_id,
            key=now.issue_key,
            csr=now.csr,
            further_csrs=tuple(one.csr for one in now.further if one.csr is not None),
            attested=now.attested,
            envelope=now.envelope,
        )

    def accept(self, issued: Issued) -> None:
        """Check what the service issued, and install it.

        Raises:
            errors.IntegrityFailure: it is not what was asked for; nothing was installed.
            errors.MalformedRequest: keys go into a secure element, and the device has none; likewise.
            errors.Unavailable: the secure element is not there; likewise.
        """
        now = self.pending
        slots = self._slots([one.profile for one in now.further])
        found = received(issued, now, anchors=self._anchors, open_envelope=self._open_envelope)
        digests = [one.certificate.fingerprint for one in found]
        # Refuses a strange attempt or challenge before anything is installed.
        _message(issued.attempt, digests[0], issued.challenge)
        carries = issued.element is not None or now.element is not None
        dialogue = Dialogue(self.card(), issued.element) if carries else None
        for slot, one in zip(slots, found, strict=True):
            slot.install(certificate=one.certificate.der, chain=issued.chain, private_key=one.private_key)
        self._remember(
            replace(
                now,
                phase=Phase.INSTALLED,
                attested=None,
                device=issued.device,
                attempt=issued.attempt,
                challenge=issued.challenge.hex(),
                certificate_sha256=digests[0],
                further=tuple(
                    replace(one, certificate_sha256=digest)
                    for one, digest in zip(now.further, digests[1:], strict=True)
                ),
                element=None if dialogue is None else ElementPending(),
            )
        )
        self._dialogue = dialogue

    @property
    def carries(self) -> bool:
        """Return whether there is something to carry to the device's secure element before the proof."""
        now = self.pending
        return now.phase is Phase.INSTALLED and now.element is not None and self._carried is None

    def card(self) -> CardChannel:
        """Return the channel to the device's secure element.

        Raises:
            errors.MalformedRequest: it has none.
            errors.Unavailable: it is not there.
        """
        if not isinstance(self._element, HasSecureElement):
            raise errors.MalformedRequest(
                f"run {self._run} puts keys into each device's secure element: this device has none"
            )
        return self._element.card()

    def carry(self) -> InjectItem | None:
        """Carry the next batch to the secure element.

        Returns:
            What to ask the service next; None if the proof is what comes next.

        Raises:
            errors.Unavailable: the element, or its reader, is gone.
            errors.MalformedRequest: the device has no secure element, or its reader cannot carry this.
        """
        if not self.carries:
            return None
        if self._dialogue is None:
            self._dialogue = Dialogue(self.card())
        ends = self._dialogue.ends
        carried = self._dialogue.carry()
        if ends:
            self._carried = carried
            return None
        return InjectItem(attempt=str(self.pending.attempt), carried=carried)

    def take(self, step: ElementStep) -> None:
        """Take what the service wants to be carried next.

        Raises:
            errors.IntegrityFailure: it is another device's, or the service does not come to an end.
        """
        if step.attempt != self.pending.attempt:
            raise errors.IntegrityFailure(
                f"asked for {self.pending.device}, the service answered for another attempt"
            )
        self._in_dialogue().take(step)

    def inject_refused(self, refusal: errors.Refusal) -> None:
        """Have the dialogue begun anew if it broke off.

        Raises:
            errors.Refusal: ``refusal``, if it is another; what it means is written down.
        """
        if isinstance(refusal, errors.Interrupted) or (
            isinstance(refusal, errors.IllegalTransition) and self._waits(refusal)
        ):
            self._in_dialogue().begin_anew(refusal)
            return
        if not _is_unknown(refusal) and not isinstance(refusal, _ASK_ANOTHER_WAY):
            self._journal.forget()
        raise refusal

    def _in_dialogue(self) -> Dialogue:
        if self._dialogue is None:
            raise RuntimeError("nothing was carried")
        return self._dialogue

    def prepare(self, *, new_seq: Callable[[], int]) -> None:
        """Have the device read its certificates back and sign for each, and write the proofs down.

        What the device says goes to the service unjudged: a wrong proof is on record there, and holds the
        device.
        """
        now = self.pending
        slots = self._slots([one.profile for one in now.further])
        read_back = [fingerprint(slot.read_back()) for slot in slots]
        known = [now.certificate_sha256, *(one.certificate_sha256 for one in now.further)]
        if now.phase is Phase.RELEASED and read_back != known:
            raise errors.IntegrityFailure(f"{now.device} holds another certificate than it was released with")
        if now.phase is not Phase.INSTALLED:
            if now.station != self._station:
                # Another station's proof, sent by us, is a request of ours: under its number our own numbers
                # would have a gap in the log (SPEC E5).
                self._remember(
                    replace(now, station=self._station, prove_key=self._new_key(), prove_seq=new_seq())
                )
            return
        challenge = bytes.fromhex(str(now.challenge))
        signatures = [
            slot.sign(_message(str(now.attempt), digest, challenge)).hex()
            for slot, digest in zip(slots, read_back, strict=True)
        ]
        self._remember(
            replace(
                now,
                station=self._station,
                phase=Phase.PROVING,
                certificate_sha256=read_back[0],
                prove_key=self._new_key(),
                prove_seq=new_seq(),
                signature=signatures[0],
                further=tuple(
                    replace(one, certificate_sha256=digest, signature=signature)
                    for one, digest, signature in zip(now.further, read_back[1:], signatures[1:], strict=True)
                ),
                element=None if now.element is None else self._shown(),
            )
        )

    def _shown(self) -> ElementPending:
        if self._carried is None:
            raise RuntimeError("the secure element was not asked")
        return ElementPending(
            step=self._carried.step, responses=tuple(response.hex() for response in self._carried.responses)
        )

    def proof(self) -> ProofItem:
        """Return what to send in the phase ``proving``; the same as often as it is called.

        In the phase ``released`` too: the same proof gets the same answer, so that a caller who lost the
        release gets it again.
        """
        now = self.pending
        return ProofItem(
            attempt=str(now.attempt),
            certificate_sha256=str(now.certificate_sha256),
            signature=bytes.fromhex(str(now.signature)),
            key=str(now.prove_key),
            further=tuple(
                (str(one.certificate_sha256), bytes.fromhex(str(one.signature))) for one in now.further
            ),
            element=None
            if now.element is None
            else Carried(step=now.element.step, responses=tuple(map(bytes.fromhex, now.element.responses))),
        )

    def finish(self, proved: Proved) -> Release:
        """Check the token and store it.

        Raises:
            errors.IntegrityFailure: it is not this device's; it was not stored.
        """
        now = self.pending
        if (proved.device, proved.attempt) != (now.device, now.attempt):
            raise errors.IntegrityFailure(f"proved {now.device}, the service answered for {proved.device!r}")
        return self._store(proved.token, proved.growth)

    # --- refusals --------------------------------------------------------------------------------------

    def issue_refused(self, refusal: errors.Refusal) -> None:
        """Write down what a refusal to issue means."""
        if not _is_unknown(refusal):
            self._journal.forget()

    def prove_refused(self, refusal: errors.Refusal) -> Release | None:
        """Write down what a refused proof means.

        Returns:
            The release, if there was one after all; None if the dialogue with the secure element has to be
            begun anew.

        Raises:
            errors.Refusal: ``refusal``, in any other case.
        """
        if isinstance(refusal, errors.Interrupted) and self.pending.element is not None:
            self._begin_anew(refusal)
            return None
        if isinstance(refusal, _ASK_ANOTHER_WAY):
            self._prove_anew()
            raise refusal
        if _is_unknown(refusal):
            raise refusal
        if isinstance(refusal, errors.IllegalTransition | errors.KeyReused):
            if self._is_released(refusal):
                return self._store(self._service.token(str(self.pending.device)))
            if self.pending.element is not None and self._waits(refusal):
                self._begin_anew(refusal)
                return None
        self._journal.forget()
        raise refusal

    def _prove_anew(self) -> None:
        """Write down that the next proof is a new request."""
        now = self.pending
        self._carried = None
        self._remember(
            replace(
                now,
                phase=Phase.INSTALLED,
                prove_key=None,
                prove_seq=None,
                signature=None,
                further=tuple(replace(one, signature=None) for one in now.further),
                element=None if now.element is None else ElementPending(),
            )
        )

    def _begin_anew(self, why: errors.Refusal) -> None:
        self._prove_anew()
        if self._dialogue is None:
            self._dialogue = Dialogue(self.card())
        self._dialogue.begin_anew(why)

    def _status(self, refusal: errors.Refusal) -> DeviceStatus:
        try:
            return self._service.device(str(self.pending.device))
        except errors.NotPermitted:
            # A bootstrap credential may not ask: everything stays, until somebody abandons it.
            raise refusal from None

    def _waits(self, refusal: errors.Refusal) -> bool:
        """Return whether the service still waits for this attempt's proof."""
        status = self._status(refusal)
        return status.state == "issued" and status.attempt == self.pending.attempt

    def _is_released(self, refusal: errors.Refusal) -> bool:
        now, status = self.pending, self._status(refusal)
        return status.state == "released" and (status.attempt, status.certificate_sha256) == (
            now.attempt,
            now.certificate_sha256,
        )

    # --- pieces ----------------------------------------------------------------------------------------

    def _slots(self, profiles: Sequence[str]) -> tuple[DeviceSlot, ...]:
        """Return the places of the device's certificates, the first one's first."""
        element = self._element
        if not profiles:
            return (element,)
        if not isinstance(element, SeveralSlots):
            raise errors.MalformedRequest(
                f"run {self._run} gives each device {len(profiles) + 1} certificates, this device takes one:"
                f" its element has no slot for {', '.join(profiles)}"
            )
        return (element, *(element.slot(profile) for profile in profiles))

    def _request_of(self, slot: DeviceSlot) -> str:
        request = slot.certification_request(self._hardware_id)
        if request is None:
            raise errors.MalformedRequest(
                f"the device of {self._hardware_id!r} makes no key: ask for a delivered one"
            )
        return _request_pem(request)

    def _check_same(self, now: Pending, *, delivered: bool) -> None:
        if now.hardware_id != self._hardware_id:
            raise errors.IllegalTransition(
                f"this device is under way as {now.hardware_id!r}, not as {self._hardware_id!r}"
            )
        if now.run != self._run:
            raise errors.IllegalTransition(
                f"{now.hardware_id!r} is under way in run {now.run}, not {self._run}"
            )
        if now.phase is Phase.ASKING and now.station != self._station:
            raise errors.IllegalTransition(
                f"{now.hardware_id!r} was asked for at {now.station}: finish it there, or abandon it"
            )
        if now.delivered != delivered:
            born = "delivered" if now.delivered else "born"
            raise errors.IllegalTransition(f"{now.hardware_id!r} is under way with a {born} key")

    def _verified(self, token: str, growth: Mapping[int, Sequence[bytes]] | None = None) -> Release:
        now = self.pending
        further = tuple((one.profile, str(one.certificate_sha256)) for one in now.further)
        verified = self._service.verified(
            token,
            device=str(now.device),
            attempt=str(now.attempt),
            certificate_sha256=str(now.certificate_sha256),
            further=further,
            key_set=now.element is not None,
            growth=growth,
        )
        key_set = verified.record.get("key_set")
        return Release(
            device=str(now.device),
            hardware_id=now.hardware_id,
            run=now.run,
            attempt=str(now.attempt),
            certificate_sha256=str(now.certificate_sha256),
            leaf=verified.leaf,
            token=token,
            further=further,
            key_set=key_set if isinstance(key_set, dict) else None,
        )

    def _store(self, token: str, growth: Mapping[int, Sequence[bytes]] | None = None) -> Release:
        release = self._verified(token, growth)
        self._element.released(token)
        further = tuple(replace(one, csr=None) for one in self.pending.further)
        self._remember(replace(self.pending, phase=Phase.RELEASED, csr=None, further=further))
        return release

    def _remember(self, pending: Pending) -> None:
        self._journal.remember(pending)
        self._now = pending


def _is_unknown(refusal: errors.Refusal) -> bool:
    # A plain Refusal has a code we do not know, "internal" for one: nobody knows what it left behind.
    return isinstance(refusal, _UNKNOWN_OUTCOME) or type(refusal) is errors.Refusal


def _message(attempt: str, certificate_sha256: str, challenge: bytes) -> bytes:
    return proof_message(attempt=attempt, certificate_sha256=certificate_sha256, challenge=challenge)


def _request_pem(request: bytes) -> str:
    """Return a certification request in PEM, whichever way the device spelled it.

    Raises:
        MalformedRequest: it cannot be read.
    """
    if not request.startswith(b"-----"):
        return to_pem(request, "CERTIFICATE REQUEST")
    try:
        return request.decode("ascii")
    except UnicodeDecodeError as wrong:
        raise errors.MalformedRequest("the device's certification request is not pem") from wrong
