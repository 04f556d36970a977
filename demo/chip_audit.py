"""What the record says of key sets afterwards, held against what the elements hold."""

from hashlib import sha256
from pathlib import Path
from typing import Any

from birthmark.edge.station.elements import opened_channel
from birthmark.element import tlv
from birthmark.element.apdu import CardChannel
from birthmark.ledger import proof
from birthmark.ledger.checkpoint import VerifierKey
from birthmark.pki.certificates import fingerprint, from_pem
from demo.audit import TOKEN, Audit
from demo.chip_trials import opens
from demo.makers import CERTIFICATE_TAG, FINAL_KVN, INITIAL_KVN, OURS
from demo.readers import Readers, inserted
from demo.realm import Workshop

_NOT_THERE = 0x6A88
_MORE = 0x61
_IN_KEY_SET = (
    *("card_cryptogram", "host_cryptogram", "key_diversification_data", "kvn", "master", "profile_sha256"),
    *("refusal", "refused_kvn", "route", "scheme", "transcript_sha256"),
)
_TOLD = {'  "device"', '    "released_at"', *(f'      "{name}"' for name in _IN_KEY_SET)}
"""Beginnings of the lines of an entry that are shown."""


class ChipAudit:
    """The key sets of one workshop's released vehicles."""

    def __init__(self, workshop: Workshop, where: Readers, audit: Audit, *, token: bool) -> None:
        """Read the release tokens.

        Args:
            workshop: whose vehicles.
            where: the readers; empty.
            audit: keeps what does not hold.
            token: the master keys are in a token.
        """
        self._workshop = workshop
        self._where = where
        self._audit = audit
        self._route = "in-token" if token else "service"
        vkey = VerifierKey.parse((workshop.realm / "log.vkey").read_text())
        self._key_sets = {place: _key_set(place, vkey) for place in audit.vehicles}

    def record(self, vin: str) -> None:
        """Show one vehicle's key set from its release token alone, and hold all of them against the order."""
        screen = self._workshop.screen
        self._workshop.birthmark("device", "show", f"vin:{vin}", answer=lambda lines: lines[:2])
        self._workshop.birthmark(
            *("log", "verify-proof", f"../vehicles/{vin}/{TOKEN}", "--vkey", "log.vkey"), answer=_told
        )
        screen.say(
            "(refused_kvn and refusal are the proof of what is not there: the maker's key set is gone.)"
        )
        found = list(self._key_sets.values())
        whole = [
            key_set
            for key_set in found
            if (key_set["master"], key_set["scheme"], key_set["route"]) == (OURS, "kdf3", self._route)
            and (key_set["kvn"], key_set["key_sets"]) == (FINAL_KVN, [FINAL_KVN])
            and (key_set["refused_kvn"], int(key_set["refusal"], 16)) == (INITIAL_KVN, _NOT_THERE)
        ]
        self._audit.claim(
            f"{len(whole)} of {len(found)} release tokens say: key set {FINAL_KVN:02X} of {OURS}, kdf3, route"
            f" {self._route}; no other set; {INITIAL_KVN:02X} refused with {_NOT_THERE:04X}",
            holds=bool(found) and len(whole) == len(found),
        )
        different = {key_set["key_diversification_data"] for key_set in found}
        self._audit.claim(
            f"{len(different)} of {len(found)} elements are different ones",
            holds=len(different) == len(found),
        )
        stored = [
            place
            for place, key_set in self._key_sets.items()
            if {"tag": f"{CERTIFICATE_TAG:x}", "sha256": _fingerprint(place)} in key_set["objects"]
        ]
        self._audit.claim(
            f"{len(stored)} of {len(found)} elements gave the vehicle's certificate back",
            holds=len(stored) == len(found),
        )

    def elements(self, released: dict[str, Any]) -> None:
        """Ask elements themselves, as anybody can who has a reader and knows no key.

        Args:
            released: what the station told of the vehicle in the first tray that was released first.
        """
        place = int(released["kdd"], 16) - 1
        with (
            inserted(self._workshop, self._where, "tray-1", at=0, count=place + 1, kdd=1),
            opened_channel(self._where.url(place)) as card,
        ):
            initial = opens(card)
            certificate = _certificate(card)
        own = _fingerprint(self._workshop.vehicles / released["vin"])
        self._audit.claim(
            f"the element of {released['vin']}, asked by raw APDUs: its maker's key set is refused"
            f" ({initial:04X}), its certificate is the vehicle's",
            holds=initial == _NOT_THERE and sha256(certificate).hexdigest() == own,
        )


def _key_set(place: Path, vkey: VerifierKey) -> dict[str, Any]:
    entry = proof.verify((place / TOKEN).read_text(), vkey)
    record: Any = entry["record"]
    key_set: dict[str, Any] = record["key_set"]
    return key_set


def _fingerprint(place: Path) -> str:
    (certificate,) = from_pem((place / "device.crt").read_text())
    return fingerprint(certificate)


def _certificate(card: CardChannel) -> bytes:
    """Read the certificate by GET DATA (GlobalPlatform Card Specification v2.3 section 11.3)."""
    answer = card.transmit(bytes((0x80, 0xCA, CERTIFICATE_TAG >> 8, CERTIFICATE_TAG & 0xFF, 0x00)))
    octets = answer[:-2]
    while answer[-2] == _MORE:
        answer = card.transmit(bytes((0x00, 0xC0, 0x00, 0x00, answer[-1])))
        octets += answer[:-2]
    return tlv.decode_one(octets, CERTIFICATE_TAG)


def _told(lines: list[str]) -> list[str]:
    """Choose the lines of an entry that are about the key set."""
    return [line for line in lines if line.partition(":")[0] in _TOLD]
