"""Element profiles: what a type of secure element is like, and what is to be in it when it leaves.

A profile is one TOML file.  A run's licence names it and pins its hash, as it does with certificate profiles.
Labels of keys are those of the key store; no key and no PIN stands in a profile.  ``catalogue`` reads the
files.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from birthmark.element.diversification import ContextSource, Scheme
from birthmark.element.keyset import KeyBlockForm
from birthmark.element.scp03 import Mode

__all__ = [
    "AnyElementProfile",
    "ContentKind",
    "DerivedKeys",
    "ElementKind",
    "ElementProfile",
    "FixedKeys",
    "Replacement",
    "StoredObject",
    "TPMProfile",
]


class ElementKind(StrEnum):
    """What a profile is of."""

    SCP03 = "scp03"
    """A secure element that gets a key set and data objects: ``ElementProfile``."""
    TPM = "tpm"
    """A TPM 2.0, which keeps the keys its maker put in: ``TPMProfile``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedKeys:
    """A key set that follows from a master key of ours or of the element's maker."""

    kvn: int
    """Key version number the set has in the element, 01 to 7F."""
    master: str
    """Label of the master key."""
    scheme: Scheme
    context: ContextSource

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the labels of all keys it takes, as ``FixedKeys`` has them."""
        return (self.master,)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedKeys:
    """A key set that all elements of a delivery share, as they come from their maker."""

    kvn: int
    """Key version number to ask for, 00 to 7F; 00 is the element's default set, which it may report as FF."""
    labels: tuple[str, str, str]
    """Labels of K-ENC, K-MAC and K-DEK."""


class Replacement(StrEnum):
    """How the final key set comes in."""

    ADD = "add"
    """Beside the initial one, which is deleted once the new one is proved."""
    REPLACE = "replace"
    """In place of the initial one, for elements that take no second set."""


class ContentKind(StrEnum):
    """What a data object holds; before the colon in ``StoredObject.content``."""

    CERTIFICATE = "certificate"
    CHAIN = "chain"
    TEXT = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """A data object that is written by STORE DATA and read back by GET DATA."""

    tag: int
    """BER-TLV tag, one or two octets, e.g. 7F21."""
    content: str
    """What is stored.

    ``certificate`` (the first one), ``chain`` (the authorities above, DER, joined), ``certificate:PROFILE``
    (a further one), or ``text:…`` with ``{hardware_id}`` and the run's variables in braces.
    """

    @property
    def kind(self) -> ContentKind:
        """What it holds."""
        return ContentKind(self.content.partition(":")[0])

    @property
    def argument(self) -> str:
        """The profile of a further certificate, or a text with its braces; empty for what needs neither."""
        return self.content.partition(":")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementProfile:
    """A secure element with SCP03."""

    name: str
    sha256: str
    """Hash of the file (hex)."""
    aid: bytes
    """AID of the security domain, 5 to 16 octets: selected first, and part of pseudo-random challenges."""
    mode: Mode
    parameters: frozenset[int]
    """Values of ``i`` that such an element may report; all others are refused."""
    key_size: int
    """Octets of each key of the final set: 16, 24 or 32."""
    initial: DerivedKeys | FixedKeys
    final: DerivedKeys
    replacement: Replacement = Replacement.ADD
    key_blocks: KeyBlockForm = KeyBlockForm.WITH_LENGTH
    probe_kvn: int = 0x3F
    """Key version number that is free for the probe key, and free again afterwards."""
    other_key_sets: frozenset[int] = frozenset()
    """Key version numbers that the element lists besides, and that are none of our business: keys of other
    protocols, or for other uses.  Any other one holds the device."""
    probe_check_value: bool = False
    """Send the probe key's check value, for elements that load no key without one."""
    bare_key_information: bool = False
    """The key information template comes without its tag E0."""
    counts_empty_commands: bool = True
    """False for elements whose encryption counter stands still at commands without data."""
    extended_length: bool = False
    """The element takes extended lengths; else long commands are chained."""
    failed_authentications: int = 3
    """How many failed authentications in a row the element may see: fewer than it takes to lock."""
    tries: int = 5
    """How many dialogues may break off before the device is held."""
    objects: tuple[StoredObject, ...] = field(default=())

    @property
    def kind(self) -> ElementKind:
        """What this profile is of."""
        return ElementKind.SCP03


@dataclass(frozen=True, slots=True, kw_only=True)
class TPMProfile:
    """A TPM 2.0 whose endorsement key is certified by its maker."""

    name: str
    sha256: str
    """Hash of the file (hex)."""
    anchors: tuple[bytes, ...] = field(repr=False)
    """Certificates (DER) of the makers' authorities that are accepted as trust anchors."""
    intermediates: tuple[bytes, ...] = field(default=(), repr=False)
    """Certificates (DER) of authorities below them, for paths."""

    @property
    def kind(self) -> ElementKind:
        """What this profile is of."""
        return ElementKind.TPM


AnyElementProfile: TypeAlias = ElementProfile | TPMProfile
