"""What a log says of secure elements and TPMs: how far each has come, whose it is, what was attested.

``ElementsSaid`` takes the entries in their order; what it holds in the end is how the tables of journals, of
elements' uses and of attestations must look.  The rules it keeps: a journal never changes its element, its
master key or the key diversification data it has seen; no two devices have one element; a device of a run
whose licence names an element is released with a confirmed key set of that profile, or with the TPM that its
certificates were issued for, and no other device with either.  A part of ``testimony``, which knows the other
kinds of entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from birthmark import errors
from birthmark.element.diversification import ContextSource
from birthmark.element.injection import KeySetPhase
from birthmark.floor.attestations import endorsement_use
from birthmark.floor.elements import element_use
from birthmark.floor.runs import RunLicence
from birthmark.services.entry_fields import (
    Entry,
    known,
    number_of,
    object_of,
    text_of,
    text_or_none,
)

__all__ = ["ELEMENT_ENTRIES", "AttestationSaid", "ElementsSaid", "EquipmentSaid"]

ELEMENT_ENTRIES = frozenset({"element-step", "element-interrupted", "attestation-begun"})
_KEPT = ("element", "master")
"""What never changes in the journal of a device's element."""
_TPM = ("ek_certificate_sha256", "ek_spki_sha256", "iak_name", "idevid_name")
_KDD = "key_diversification_data"


@dataclass(frozen=True, slots=True, kw_only=True)
class EquipmentSaid:
    """The secure element that each device of a run has, as the run was opened with."""

    element: str
    """Name of its profile."""
    sha256: str
    """Hash of the profile's file (hex)."""
    master: str | None
    """Label of the master key of its final set; None for a TPM."""
    scheme: str | None

    def key_set(self) -> Mapping[str, object]:
        """Return what the records of the run's devices have to say of their key sets."""
        return {
            "profile": self.element,
            "profile_sha256": self.sha256,
            "master": self.master,
            "scheme": self.scheme,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AttestationSaid:
    """An attestation, after the last entry about it; octets in hex, times as entries spell them."""

    device: str
    run: str
    client: str
    tpm: Mapping[str, str]
    """As ``Attestation.said`` has it, before it is used."""
    nonce: str
    secret_sha256: str
    expires_at: str
    certify_sha256: str | None = None
    """None until it is used."""

    def said(self) -> dict[str, str]:
        """Return what later entries say of it."""
        certified = {} if self.certify_sha256 is None else {"certify_sha256": self.certify_sha256}
        return {**self.tpm, **certified}


@dataclass(slots=True)
class ElementsSaid:
    """All elements that entries speak of."""

    runs: dict[str, EquipmentSaid] = field(default_factory=dict)
    """Only the runs whose licences name an element."""
    journals: dict[str, Mapping[str, object]] = field(default_factory=dict)
    """By device; as ``ElementJournal.said`` has it."""
    uses: dict[str, str] = field(default_factory=dict)
    """``ElementUse`` to device."""
    attestations: dict[str, AttestationSaid] = field(default_factory=dict)

    def take(self, entry: Entry) -> None:
        """Take an entry of one of ``ELEMENT_ENTRIES``.

        Raises:
            errors.MalformedRequest: a field is missing, or it contradicts what was said before.
        """
        if entry["kind"] == "attestation-begun":
            self._take_attestation(entry)
            return
        device = text_of(entry, "device")
        journal = self._take_journal(device, text_of(entry, "attempt"), entry)
        if entry["kind"] == "element-step":
            self._take_use(device, journal, text_of(entry, "context"))

    def take_opened(self, run: str, licence: RunLicence, entry: Entry) -> None:
        """Take that a run was opened, whose devices may have elements.

        Raises:
            errors.MalformedRequest: it is opened with another element than its licence names.
        """
        pinned = (entry.get("element", ""), entry.get("element_sha256", ""))
        if pinned != (licence.element, licence.element_sha256):
            raise errors.MalformedRequest(f"run {run[:64]} is opened with another element than its licence's")
        if licence.element:
            derived = "master" in entry
            self.runs[run] = EquipmentSaid(
                element=licence.element,
                sha256=licence.element_sha256,
                master=text_of(entry, "master") if derived else None,
                scheme=text_of(entry, "scheme") if derived else None,
            )

    def take_issued(self, entry: Entry, run: str, device: str, attempt: str) -> None:
        """Take that certificates were issued, for the keys of a TPM if the run's devices have one.

        Raises:
            errors.MalformedRequest: the TPM's keys were not attested for this attempt, or it is another
                device's.
        """
        if not self._has_tpm(run, entry):
            return
        asked = known(self.attestations, "attestation", attempt)
        said = object_of(entry, "tpm")
        certified = text_of(said, "certify_sha256")
        if (asked.device, asked.run) != (device, run) or asked.certify_sha256 is not None:
            raise errors.MalformedRequest(
                f"attestation {attempt[:32]} is of another device or run, or was used"
            )
        used = replace(asked, certify_sha256=certified)
        if said != used.said():
            raise errors.MalformedRequest(f"its tpm is not the one of attestation {attempt[:32]}")
        self.attestations[attempt] = used
        self._take_owner(endorsement_use(used.tpm["ek_spki_sha256"]), device)

    def take_held(self, entry: Entry) -> None:
        """Take that a device was held, perhaps because of its element.

        Raises:
            errors.MalformedRequest: its journal contradicts what was said before.
        """
        if "journal" in entry:
            self._take_journal(text_of(entry, "device"), text_of(entry, "attempt"), entry)

    def take_released(self, record: Entry, run: str, device: str, attempt: str) -> None:
        """Take that a device was released, with what its record says of its element.

        Raises:
            errors.MalformedRequest: the record lacks what the run asks for, or says something else.
        """
        if self._has_tpm(run, record):
            asked = known(self.attestations, "attestation", attempt)
            if object_of(record, "tpm") != asked.said():
                raise errors.MalformedRequest(
                    "its record names another tpm than its certificates were issued for"
                )
        equipment = self.runs.get(run)
        wanted = equipment is not None and equipment.master is not None
        if wanted != ("key_set" in record):
            raise errors.MalformedRequest(_asked("its record", run, "a key set", wanted=wanted))
        if equipment is None or not wanted:
            return
        said = object_of(record, "key_set")
        for name, pinned in equipment.key_set().items():
            if said.get(name) != pinned:
                raise errors.MalformedRequest(f"the {name} of its key set is not the one of run {run[:64]}")
        journal = self._take_journal(device, attempt, said)
        if (journal["phase"], journal[_KDD]) != (str(KeySetPhase.CONFIRMED), said.get(_KDD)):
            raise errors.MalformedRequest("the key set of its record is not confirmed, or another element's")
        self._take_use(device, journal, text_of(said, "context"))

    def _has_tpm(self, run: str, said: Entry) -> bool:
        """Return whether a run's devices have TPMs, and an entry or a record says of one."""
        equipment = self.runs.get(run)
        wanted = equipment is not None and equipment.master is None
        if wanted != ("tpm" in said):
            raise errors.MalformedRequest(_asked("it", run, "a tpm", wanted=wanted))
        return wanted

    def _take_journal(self, device: str, attempt: str, said: Entry) -> Mapping[str, object]:
        given = object_of(said, "journal")
        journal: dict[str, object] = {
            **{name: text_of(given, name) for name in ("attempt", *_KEPT, "phase", _KDD)},
            **{
                name: number_of(given, name)
                for name in ("initial_counter", "final_counter", "failures", "tries")
            },
            "reason": text_or_none(given, "reason"),
        }
        if journal["attempt"] != attempt:
            raise errors.MalformedRequest("its journal is of another attempt")
        was = self.journals.get(device)
        if was is not None:
            changed = [name for name in _KEPT if was[name] != journal[name]]
            changed += [_KDD] if was[_KDD] not in ("", journal[_KDD]) else []
            if changed:
                raise errors.MalformedRequest(f"the {changed[0]} of {device[:100]}'s element changes")
        self.journals[device] = journal
        return journal

    def _take_use(self, device: str, journal: Mapping[str, object], context: str) -> None:
        """Only where keys follow from the element's own data can it be told from others."""
        if context == ContextSource.KDD and journal[_KDD]:
            self._take_owner(element_use(str(journal["master"]), str(journal[_KDD])), device)

    def _take_owner(self, use: str, device: str) -> None:
        owner = self.uses.setdefault(use, device)
        if owner != device:
            raise errors.MalformedRequest(f"element {use[:100]} is {owner}'s already")

    def _take_attestation(self, entry: Entry) -> None:
        name, tpm = text_of(entry, "attestation"), object_of(entry, "tpm")
        if name in self.attestations:
            raise errors.MalformedRequest(f"attestation {name[:32]} is begun twice")
        self.attestations[name] = AttestationSaid(
            device=text_of(entry, "device"),
            run=text_of(entry, "run"),
            client=entry["actor"],
            tpm={part: text_of(tpm, part) for part in _TPM},
            nonce=text_of(entry, "nonce"),
            secret_sha256=text_of(entry, "secret_sha256"),
            expires_at=text_of(entry, "expires_at"),
        )


def _asked(what: str, run: str, thing: str, *, wanted: bool) -> str:
    if wanted:
        return f"{what} does not speak of {thing}, and the licence of run {run[:64]} asks for one"
    return f"{what} speaks of {thing}, and the licence of run {run[:64]} asks for none"
