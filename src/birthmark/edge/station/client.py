"""A station's side of the station plane: one object for test-fixture software (SPEC C12).

``Station`` has a method for each thing the service can be asked, and two that tell a whole story:
``provision`` takes one device from nothing to its release token, ``provision_gang`` many at once.  Both can
be called again after any failure, a power cut of the station included, and go on where they were.

Any thread may use a station; each has its own connection.  What is verified before anything is believed:
the service's certificate and name, the certificates it issues, the release tokens, that the log does not
change its key, and that it only grows.  What is not: the time.

A station renews its own certificate when two thirds of its life are over (``renewal``).
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Self, TypeVar

from birthmark import errors
from birthmark.edge.station.answers import (
    DeviceStatus,
    ElementStep,
    Issued,
    Me,
    Proved,
    Release,
    RunStatus,
    proofs_of,
    take,
)
from birthmark.edge.station.attesting import Asked, Endorsed, attest_body
from birthmark.edge.station.bodies import (
    InjectItem,
    IssueItem,
    ProofItem,
    inject_body,
    issue_body,
    proof_body,
    read_results,
    segment,
    since,
)
from birthmark.edge.station.checks import Further, VerifiedToken, verify_token
from birthmark.edge.station.credentials import Credentials, read_station_directory
from birthmark.edge.station.element import DeviceElement
from birthmark.edge.station.folder import Folder
from birthmark.edge.station.gangs import Gang, Requests, patiently
from birthmark.edge.station.injecting import Carried
from birthmark.edge.station.pending import FolderJournal, Journal, MemoryJournal, Phase
from birthmark.edge.station.provisioning import Wanted, Work
from birthmark.edge.station.records import StationRecords
from birthmark.edge.station.renewal import Renewal, due_at
from birthmark.edge.station.transport import Entropy, OnWait, Transport, decode_object
from birthmark.ledger.checkpoint import Checkpoint, VerifierKey

__all__ = ["Station"]

_RENEWING = 5.0
"""Seconds that a request of a renewal is repeated: the line goes on with the old certificate."""
_T = TypeVar("_T")
_Item = TypeVar("_Item")

# A station is a program of its own, outside the composition root: nobody hands it an Entropy port.
_urandom: Entropy = os.urandom  # noqa: TID251  # a fixture has no Entropy port


class Station:
    """A client of the station plane.  Close it, or use it in a ``with`` statement."""

    def __init__(
        self,
        station: str | os.PathLike[str] | Credentials,
        url: str | None = None,
        *,
        operator: str | None = None,
        server_name: str | None = None,
        timeout_seconds: float = 15.0,
        patience_seconds: float = 120.0,
        first_pause_seconds: float = 0.2,
        on_wait: OnWait | None = None,
        keep_checkpoints: bool = False,
        entropy: Entropy = _urandom,
    ) -> None:
        """Load the credentials; nothing is connected yet.

        Args:
            station: a station directory (see ``credentials``), or credentials in memory: then request
                numbers, the log's key and what is under way are remembered only as long as this object
                lives.
            url: of the service, in place of the one in the credentials.
            operator: who stands at the station; recorded with every request.
            server_name: the service's name in its certificate, where it is not the host in the URL.
            timeout_seconds: longest silence of the service before a request is repeated.
            patience_seconds: how long a request is repeated before it is given up.
            first_pause_seconds: before the first repetition; doubles, up to 15 s, with jitter.
            on_wait: called before each pause with the reason and its length in seconds, so that a screen
                can say why the line waits.
            keep_checkpoints: append every distinct checkpoint to ``checkpoints`` in the station directory.
            entropy: random octets for idempotency keys and jitter.

        Raises:
            errors.NotFound: a file of the directory is missing.
            errors.NotPermitted: others may read the key.
            errors.MalformedRequest: the credentials cannot be used.
            errors.IntegrityFailure: what the station remembers contradicts itself.
        """
        self._folder: Folder | None = None
        if isinstance(station, Credentials):
            credentials = station
        else:
            credentials = read_station_directory(station)
            self._folder = Folder(station)
        if operator is not None and not (operator.isascii() and operator.isprintable() and operator.strip()):
            raise errors.MalformedRequest(f"the operator {operator!r} is not a name in visible ascii")
        self._name = credentials.name
        self._url = url or credentials.url
        self._anchors = credentials.device_anchors()
        self._open_envelope = credentials.open_envelope
        self._operator = operator
        self._entropy = entropy
        self._records = StationRecords(self._folder, keep_checkpoints=keep_checkpoints)
        self._me: Me | None = None
        self._journals: dict[str, Journal] = {}
        self._wanted: dict[str, Wanted] = {}
        self._connecting = partial(
            Transport,
            self._url,
            server_name=server_name,
            timeout_seconds=timeout_seconds,
            patience_seconds=patience_seconds,
            first_pause_seconds=first_pause_seconds,
            on_wait=on_wait,
            entropy=entropy,
        )
        self._transport = self._connecting(context=credentials.tls_context())
        self._renewal = Renewal(
            credentials,
            None if self._folder is None else self._folder.path,
            ask=self._ask_renewal,
            new_seq=self._next_seq,
            attempt=self._try,
            use=lambda fresh: self._transport.use(fresh.tls_context()),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Station({self._name!r}, {self._url!r})"

    def close(self) -> None:
        """Close the connections.  A request that waits is given up."""
        self._transport.close()
        # The folder stays open for whoever is just writing to it; it goes with the object.

    # --- reading ---------------------------------------------------------------------------------------

    def me(self) -> Me:
        """Ask who we are.

        Raises:
            errors.IntegrityFailure: the log's key is another than the one pinned.
        """
        me = Me.read(self._get("/v1/me"))
        self._records.pin(me.vkey)
        self._me = me
        return me

    def run(self, run: str) -> RunStatus:
        """Ask for a run's status and counters."""
        return RunStatus.read(self._get(f"/v1/runs/{segment(run)}"))

    def device(self, device: str) -> DeviceStatus:
        """Ask where a device stands; ``device`` is kind and hardware id, e.g. ``vin:1M8GDM9AXKP042788``."""
        return DeviceStatus.read(self._get(f"/v1/devices/{segment(device)}"))

    def token(self, device: str) -> str:
        """Ask for a released device's token (C2SP ``.tlog-proof``); it is not verified here."""
        content_type, answer = self._transport.request(
            "GET", f"/v1/devices/{segment(device)}/token", self._headers()
        )
        try:
            text = answer.decode()
        except UnicodeDecodeError:
            text = ""
        if content_type != "text/plain" or not text:
            raise errors.IntegrityFailure("the service's answer is no release token")
        return text

    def checkpoint(self) -> Checkpoint:
        """Ask for the log's newest checkpoint and verify it.

        Raises:
            errors.IntegrityFailure: the pinned key did not sign it, or the log went back.
        """
        self.vkey()
        newest = self._records.newest
        return self._prove_growth([] if newest is None else [newest])

    def renew(self) -> datetime:
        """Renew our own certificate now, and return when the new one ends.

        Raises:
            errors.Refusal: it was not renewed; everything is as it was.
        """
        self._renewal.renew()
        at, third = due_at(self._renewal.credentials)
        return at + third

    def vkey(self) -> VerifierKey:
        """Return the log's key: the one pinned, or on first contact the one the service names."""
        known = self._records.vkey
        return self._records.pin(self._known_me().vkey) if known is None else known

    # --- single requests -------------------------------------------------------------------------------

    def issue(
        self,
        run: str,
        hardware_id: str,
        csr: str | None = None,
        *,
        further_csrs: Sequence[str] = (),
        key: str | None = None,
    ) -> Issued:
        """Ask for one identity.  Nothing of the answer is verified: see ``provision`` for the whole story.

        Args:
            run: id of the run.
            hardware_id: as scanned.
            csr: PKCS#10 (PEM or base64 DER) of a key born in the device; None to have the key delivered.
            further_csrs: the same for the run's further profiles, in their order.
            key: idempotency key; give one to be able to ask again for the same.
        """
        item = IssueItem(
            hardware_id=hardware_id, csr=csr, further_csrs=tuple(further_csrs), key=key or self._new_key()
        )
        return self._issue(run, item, self._next_seq())

    def gang_issue(self, run: str, items: Sequence[IssueItem]) -> list[Issued | errors.Refusal]:
        """Ask for many identities; the results are in the order of the items."""
        return self._in_gangs(items, lambda gang: self._gang_issue(run, gang, self._next_seq()))

    def attest(self, run: str, hardware_id: str, endorsed: Endorsed) -> Asked:
        """Ask what a device's TPM has to answer for its certificates to be issued."""
        # No number: an answer that is lost is asked for again, and would leave a gap (SPEC E5).
        return Asked.read(
            self._post(f"/v1/runs/{segment(run)}/attest", attest_body(hardware_id, endorsed), None)
        )

    def inject(self, attempt: str, carried: Carried) -> ElementStep:
        """Tell what a secure element answered, and ask for the next batch; ``Carried()`` begins anew."""
        return self._inject(InjectItem(attempt=attempt, carried=carried))

    def gang_inject(self, items: Sequence[InjectItem]) -> list[ElementStep | errors.Refusal]:
        """Do that for many secure elements; the results are in the order of the items."""
        return self._in_gangs(items, self._gang_inject)

    def prove(
        self,
        attempt: str,
        certificate_sha256: str,
        signature: bytes,
        *,
        further: Sequence[tuple[str, bytes]] = (),
        element: Carried | None = None,
        key: str | None = None,
    ) -> Proved:
        """Send one proof.  The token in the answer is not verified: see ``provision``.

        Args:
            attempt: id of the attempt.
            certificate_sha256: of the certificate (DER) as read back from the device, hex.
            signature: the device's, over ``birthmark.pki.possession.proof_message``.
            further: fingerprint and signature for each further certificate, in their order.
            element: what the secure element answered to the last batch, if the run puts keys into it.
            key: idempotency key; give one to be able to ask again for the same.
        """
        item = ProofItem(
            attempt=attempt,
            certificate_sha256=certificate_sha256,
            signature=signature,
            key=key or self._new_key(),
            further=tuple(further),
            element=element,
        )
        return self._prove(item, self._next_seq())

    def gang_prove(self, items: Sequence[ProofItem]) -> list[Proved | errors.Refusal]:
        """Send many proofs; the results are in the order of the items."""
        return self._in_gangs(items, lambda gang: self._gang_prove(gang, self._next_seq()))

    def hold(self, device: str, reason: str, *, key: str | None = None) -> DeviceStatus:
        """Take a device off the line until somebody decides."""
        return self._dispose(device, "hold", reason, key)

    def rework(self, device: str, reason: str, *, key: str | None = None) -> DeviceStatus:
        """Let a held device try again; the certificate of the failed attempt is revoked."""
        return self._dispose(device, "rework", reason, key)

    def scrap(self, device: str, reason: str, *, key: str | None = None) -> DeviceStatus:
        """Give a held device up for ever."""
        return self._dispose(device, "scrap", reason, key)

    # --- the whole story -------------------------------------------------------------------------------

    def provision(
        self,
        run: str,
        hardware_id: str,
        element: DeviceElement,
        *,
        delivered: bool = False,
        envelope: bool = False,
        further: Sequence[str] | None = None,
    ) -> Release:
        """Take one device from nothing to its release token, or from wherever it was.

        A device that is released already answers with the same release, where its element remembers.

        Args:
            run: id of the run.
            hardware_id: as scanned.
            element: the device.  If the run gives each device several certificates, it has to be a
                ``SeveralSlots`` too; if it puts keys into its secure element, a ``HasSecureElement``; if
                it wants its TPM attested, an ``Attestable``.
            delivered: True to have the service make the keys.
            envelope: True to have the keys it makes in envelopes to the key of this station's certificate, so
                that nobody between the service and this object sees them; for a bootstrap credential.
            further: profiles of the run's further certificates, in their order; None to ask the service.  Of
                use only where an older service does not tell a bootstrap credential.

        Raises:
            errors.MalformedRequest: the device cannot make a key, has no place for all certificates, or has
                no secure element where the run puts keys into it.
            errors.ProofFailed: the device did not prove that it holds its keys; the service holds it.
            errors.Unavailable: the service was away longer than our patience, or the secure element or its
                reader is gone: call again.
            errors.Interrupted: the secure element keeps breaking off: look at its contacts, and call again.
            errors.IntegrityFailure: the service's answer is not to be believed: stop the line.
            errors.Refusal: the service refused; a later call is a new attempt.
        """
        work = self._work(run, hardware_id, element)
        work.begin(
            delivered=delivered,
            envelope=envelope,
            wanted=partial(self._wanted_by, run, further),
            new_seq=self._next_seq,
        )
        if work.pending.phase is Phase.ASKING:
            try:
                issued = self._issue(run, work.request(), work.pending.issue_seq)
            except errors.Refusal as refused:
                work.issue_refused(refused)
                raise
            work.accept(issued)
        release: Release | None = None
        while release is None:
            self._carry(work)
            work.prepare(new_seq=self._next_seq)
            try:
                proved = self._prove(work.proof(), work.pending.prove_seq)
            except errors.Refusal as refused:
                release = work.prove_refused(refused)
            else:
                release = work.finish(proved)
        return release

    def provision_gang(
        self,
        run: str,
        devices: Sequence[tuple[str, DeviceElement, bool]],
        *,
        envelope: bool = False,
        further: Sequence[str] | None = None,
    ) -> list[Release | errors.Refusal]:
        """Provision many devices with gang requests; each succeeds or fails alone.

        Args:
            run: id of the run.
            devices: hardware id, element, and True to have the keys delivered.
            envelope: as for ``provision``.
            further: as for ``provision``.

        Returns:
            A release or a refusal for each, in order.  Whatever a refusal stands for, the call can be made
            again.
        """
        gang = Gang(
            Requests(
                new_seq=self._next_seq,
                most=lambda: self._known_me().max_gang,
                issue=partial(self._gang_issue, run),
                inject=self._gang_inject,
                prove=self._gang_prove,
            )
        )
        return gang.provision(
            [self._work(run, hardware_id, element) for hardware_id, element, _ in devices],
            delivered=[delivered for _, _, delivered in devices],
            envelope=envelope,
            wanted=partial(self._wanted_by, run, further),
        )

    def abandon(self, hardware_id: str, element: DeviceElement) -> None:
        """Forget what is under way for a device, so that the next ``provision`` is a new attempt.

        For a device that broke between two steps.  Hold it and rework it first, or the service will refuse
        the new attempt.
        """
        self._journal(hardware_id, element).forget()

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
        """Check a release token against the pinned key, and take notice of its checkpoint.

        If ``growth`` does not prove that the log grew from the newest one known, the service is asked to.

        Raises:
            errors.IntegrityFailure: it is not this device's token, or the log did not only grow.
        """
        verified = verify_token(
            token,
            self.vkey(),
            device=device,
            attempt=attempt,
            certificate_sha256=certificate_sha256,
            further=further,
            key_set=key_set,
        )
        shown = self._records.open(verified.checkpoint_note)
        unproved = self._records.unproved(shown)
        if not unproved or self._records.grown(verified.checkpoint_note, growth or {}):
            return verified
        if self._prove_growth(unproved) != shown:
            self._records.keep(verified.checkpoint_note)
        return verified

    # --- the log, and our own certificate ----------------------------------------------------------------

    def _prove_growth(self, known: Sequence[Checkpoint]) -> Checkpoint:
        """Have the service prove that its log only grew since these checkpoints; return its newest one."""
        answer = self._get(f"/v1/checkpoint{since(*known)}")
        return self._records.prove(known, take(answer, "checkpoint", str), proofs_of(answer))

    def _ask_renewal(self, csr: str, seq: int) -> Mapping[str, Any]:
        return self._post("/v1/me/certificate", {"csr": csr}, seq, patience_seconds=_RENEWING)

    def _try(self, fresh: Credentials) -> None:
        """Have the service recognise us by other credentials."""
        transport = self._connecting(context=fresh.tls_context())
        try:
            _, answer = transport.request("GET", "/v1/me", self._headers(), patience_seconds=_RENEWING)
        finally:
            transport.close()
        if Me.read(decode_object(answer)).client != self._known_me().client:
            raise errors.IntegrityFailure("the service takes us for somebody else by our new certificate")

    # --- pieces ----------------------------------------------------------------------------------------

    def _work(self, run: str, hardware_id: str, element: DeviceElement) -> Work:
        return Work(
            station=self._name,
            run=run,
            hardware_id=hardware_id,
            element=element,
            journal=self._journal(hardware_id, element),
            service=self,
            anchors=self._anchors,
            new_key=self._new_key,
            open_envelope=self._open_envelope,
        )

    def _carry(self, work: Work) -> None:
        """Stand between the service and a device's secure element until the proof is what comes next."""
        while (item := work.carry()) is not None:
            try:
                step = self._inject(item)
            except errors.Refusal as refused:
                work.inject_refused(refused)
            else:
                work.take(step)

    def _wanted_by(self, run: str, further: Sequence[str] | None) -> Wanted:
        """Return what a run wants of its devices; asked once, since a licence never changes."""
        known = self._wanted.get(run)
        if known is None:
            try:
                status = self.run(run)
                known = Wanted(further=status.further_profiles, element=status.element is not None)
            except errors.NotPermitted:
                # A bootstrap credential for something else, or of an older service's: it refuses the request.
                known = Wanted()
            self._wanted[run] = known
        return known if further is None else replace(known, further=tuple(further))

    def _journal(self, hardware_id: str, element: DeviceElement) -> Journal:
        if isinstance(element, Journal):
            return element
        if self._folder is not None:
            return FolderJournal(self._folder, hardware_id)
        return self._journals.setdefault(hardware_id, MemoryJournal())

    def _issue(self, run: str, item: IssueItem, seq: int) -> Issued:
        return Issued.read(self._post(f"/v1/runs/{segment(run)}/issue", issue_body(item), seq))

    def _prove(self, item: ProofItem, seq: int | None) -> Proved:
        return Proved.read(self._post(f"/v1/prove{since(self._records.newest)}", proof_body(item), seq))

    def _inject(self, item: InjectItem) -> ElementStep:
        # No number.  A dialogue that broke off with the station would leave gaps in its numbers (SPEC E5),
        # unless each were written down before it is used; what a dialogue comes to has the proof's number.
        return ElementStep.of(self._post("/v1/inject", inject_body(item), None))

    def _gang_issue(self, run: str, items: Sequence[IssueItem], seq: int) -> list[Issued | errors.Refusal]:
        def ask(some: Sequence[IssueItem]) -> list[Issued | errors.Refusal]:
            body = {"devices": [issue_body(item) for item in some]}
            answer = self._post(f"/v1/runs/{segment(run)}/gang-issue", body, seq)
            return read_results(answer, len(some), Issued.read)

        return patiently(self._transport, items, ask)

    def _gang_inject(self, items: Sequence[InjectItem]) -> list[ElementStep | errors.Refusal]:
        def ask(some: Sequence[InjectItem]) -> list[ElementStep | errors.Refusal]:
            answer = self._post("/v1/gang-inject", {"dialogues": [inject_body(item) for item in some]}, None)
            return read_results(answer, len(some), ElementStep.of)

        return patiently(self._transport, items, ask)

    def _gang_prove(self, items: Sequence[ProofItem], seq: int | None) -> list[Proved | errors.Refusal]:
        def ask(some: Sequence[ProofItem]) -> list[Proved | errors.Refusal]:
            body = {"proofs": [proof_body(item) for item in some]}
            answer = self._post(f"/v1/gang-prove{since(self._records.newest)}", body, seq)
            return read_results(answer, len(some), Proved.read)

        return patiently(self._transport, items, ask)

    def _dispose(self, device: str, act: str, reason: str, key: str | None) -> DeviceStatus:
        body = {"reason": reason, "idempotency_key": key or self._new_key()}
        return DeviceStatus.read(self._post(f"/v1/devices/{segment(device)}/{act}", body, self._next_seq()))

    def _in_gangs(
        self, items: Sequence[_Item], ask: Callable[[Sequence[_Item]], list[_T | errors.Refusal]]
    ) -> list[_T | errors.Refusal]:
        size = self._known_me().max_gang
        results: list[_T | errors.Refusal] = []
        for start in range(0, len(items), size):
            results += ask(items[start : start + size])
        return results

    def _known_me(self) -> Me:
        me = self._me or self.me()
        remembered = self._records.unproved()
        if remembered:  # from before: nothing is asked of a service that forgot what it told us
            self._prove_growth(remembered)
        return me

    def _next_seq(self) -> int:
        return self._records.next_seq(self._known_me().last_seq)

    def _new_key(self) -> str:
        return self._entropy(16).hex()

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "application/json"}
        if self._operator is not None:
            headers["Birthmark-Operator"] = self._operator
        return headers

    def _get(self, path: str) -> dict[str, Any]:
        self._renewal.look()
        # Reading leaves no entry in the log, so it takes no number: it would look like a gap.
        _, answer = self._transport.request("GET", path, self._headers())
        return decode_object(answer)

    def _post(
        self, path: str, body: Mapping[str, Any], seq: int | None, *, patience_seconds: float | None = None
    ) -> dict[str, Any]:
        self._renewal.look()
        headers = self._headers() | {"Content-Type": "application/json"}
        if seq is not None:
            headers["Birthmark-Seq"] = str(seq)
        octets = json.dumps(body).encode()
        _, answer = self._transport.request("POST", path, headers, octets, patience_seconds=patience_seconds)
        return decode_object(answer)
