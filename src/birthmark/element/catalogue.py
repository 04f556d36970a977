"""Read element profiles, one TOML file each.

What a profile says is in ``profiles``.  The packaged ones are in ``packaged/``; an ``ElementCatalogue`` may
hold those of one more directory, read once, which cannot take a packaged one's name.  What names a profile (a
run's licence) can never name a file.

The reader is total: a file is a profile or one ``MalformedRequest`` that names file and key; an unknown key
is an error, and so is what no element could be: see ``_contradictions``.
"""

import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from birthmark.element.diversification import KEY_SIZES, ContextSource, Scheme
from birthmark.element.keyset import KeyBlockForm
from birthmark.element.profiles import (
    AnyElementProfile,
    ContentKind,
    DerivedKeys,
    ElementKind,
    ElementProfile,
    FixedKeys,
    Replacement,
    StoredObject,
    TPMProfile,
)
from birthmark.element.scp03 import PROVABLE, Mode, Parameter
from birthmark.errors import MalformedRequest, NotFound
from birthmark.tomltable import SUFFIX, TomlTable, document_of, files_of

__all__ = ["LONGEST_FILE", "ElementCatalogue", "load", "names", "parse"]

LONGEST_FILE = 262_144
"""Octets of a profile: a TPM's may list the authorities of many makers."""

_DIRECTORY = files("birthmark.element") / "packaged"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")
_LABEL = re.compile(r"[a-z0-9.-]{1,64}")
_AID = re.compile(r"([0-9A-Fa-f]{2}){5,16}")
_VARIABLE = re.compile(r"[a-z][a-z0-9_]{0,62}")
_MODES = {"s8": Mode.S8, "s16": Mode.S16}
_KNOWN_BITS = Parameter.S16 | Parameter.PSEUDO_RANDOM | PROVABLE
_KEY_INFORMATION = 0xE0
_PEM_BEGINS = "-----BEGIN "
_PEM_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
_MOST_OBJECTS = 32
_MOST_CERTIFICATES = 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ElementCatalogue:
    """The element profiles of an installation: the packaged ones, and those of one directory."""

    profiles: Mapping[str, AnyElementProfile]
    """By name, sorted by name."""

    @classmethod
    def read(cls, directory: Path | None = None) -> Self:
        """Read the packaged profiles and every ``*.toml`` of a directory.

        Raises:
            MalformedRequest: a file is no valid profile, or has the name of a packaged one.
            Unavailable: the directory, or a file in it, cannot be read.
        """
        found = {name: load(name) for name in names()}
        for file_name, octets in files_of(directory, "element profile", LONGEST_FILE).items():
            profile = parse(octets, file_name)
            if profile.name in found:
                raise MalformedRequest(
                    f"element profile {file_name}: name: {profile.name!r} is a packaged profile"
                )
            found[profile.name] = profile
        return cls(profiles=MappingProxyType(dict(sorted(found.items()))))

    def names(self) -> tuple[str, ...]:
        """Return the names of all profiles, sorted."""
        return tuple(self.profiles)

    def load(self, name: str) -> AnyElementProfile:
        """Return a profile.

        Raises:
            NotFound: there is no such profile.
        """
        found = self.profiles.get(name)
        if found is None:
            _there_is_none(name, self.names())
        return found


def _there_is_none(name: str, known: tuple[str, ...]) -> NoReturn:
    raise NotFound(f"there is no element profile {name[:64]!r}; there are {', '.join(known)}")


@cache
def names() -> tuple[str, ...]:
    """Return the names of the packaged profiles, sorted."""
    found = (entry.name for entry in _DIRECTORY.iterdir())
    return tuple(sorted(name.removesuffix(SUFFIX) for name in found if name.endswith(SUFFIX)))


def load(name: str) -> AnyElementProfile:
    """Return a packaged profile, always the same value.

    Raises:
        NotFound: there is no such profile.
    """
    if name not in names():
        _there_is_none(name, names())
    return _packaged(name)


@cache
def _packaged(name: str) -> AnyElementProfile:
    return parse((_DIRECTORY / f"{name}{SUFFIX}").read_bytes(), f"{name}{SUFFIX}")


def parse(octets: bytes, file_name: str) -> AnyElementProfile:
    """Return the profile a TOML file (UTF-8) holds; its ``name`` must be the file's name without ``.toml``.

    Raises:
        MalformedRequest: the file is no valid profile; the message names file and key.
    """
    where = f"element profile {file_name}: "
    table = TomlTable(document_of(octets, where), where)
    name, digest = table.take("name", str), sha256(octets).hexdigest()
    if name != file_name.removesuffix(SUFFIX) or not _NAME.fullmatch(name):
        table.refuse("name", f"{name!r} must be the file's name: a-z, 0-9 and -, at most 64")
    if table.enum(ElementKind, "kind", table.take("kind", str)) is ElementKind.TPM:
        return _tpm(table, name, digest)
    return _scp03(table, name, digest)


# --- secure elements with SCP03 ----------------------------------------------------------------------------


def _scp03(table: TomlTable, name: str, digest: str) -> ElementProfile:
    profile = ElementProfile(
        name=name,
        sha256=digest,
        aid=_aid(table),
        mode=_mode(table),
        parameters=_parameters(table),
        key_size=table.take("key-size", int),
        initial=_initial(table),
        final=_final(table),
        replacement=table.enum(
            Replacement, "replacement", table.take("replacement", str, default=Replacement.ADD.value)
        ),
        key_blocks=table.enum(
            KeyBlockForm, "key-blocks", table.take("key-blocks", str, default=KeyBlockForm.WITH_LENGTH.value)
        ),
        probe_kvn=table.take("probe-kvn", int, default=0x3F),
        other_key_sets=frozenset(table.integers("other-key-sets")),
        probe_check_value=table.take("probe-check-value", bool, default=False),
        bare_key_information=table.take("bare-key-information", bool, default=False),
        counts_empty_commands=table.take("counts-empty-commands", bool, default=True),
        extended_length=table.take("extended-length", bool, default=False),
        failed_authentications=table.take("failed-authentications", int, default=3),
        tries=table.take("tries", int, default=5),
        objects=tuple(_object(entry) for entry in table.tables("objects")),
    )
    table.finish()
    for key, complaint in _contradictions(profile):
        table.refuse(key, complaint)
    return profile


def _aid(table: TomlTable) -> bytes:
    text = table.take("aid", str)
    if not _AID.fullmatch(text):
        table.refuse("aid", f"{text!r} is not 5 to 16 octets in hexadecimal (ISO/IEC 7816-4 section 8.2.1.2)")
    return bytes.fromhex(text)


def _mode(table: TomlTable) -> Mode:
    text = table.take("mode", str)
    if text not in _MODES:
        table.refuse("mode", f"{text!r} is none of {', '.join(_MODES)}")
    return _MODES[text]


def _parameters(table: TomlTable) -> frozenset[int]:
    values = table.integers("parameters")
    if not values or len(set(values)) != len(values):
        table.refuse("parameters", "must name at least one, and none twice")
    return frozenset(values)


def _initial(table: TomlTable) -> DerivedKeys | FixedKeys:
    found = table.table("initial")
    if found is None:
        table.refuse("initial", "missing")
    if "keys" not in found:
        return _derived(found)
    kvn, labels = found.take("kvn", int), [_label(found, "keys", text) for text in found.texts("keys")]
    found.finish()
    if len(labels) != 3:
        found.refuse("keys", "are the labels of K-ENC, K-MAC and K-DEK")
    enc, mac, dek = labels
    if dek in (enc, mac):
        found.refuse("keys", f"{dek}: a key that wraps others computes no CMAC: K-DEK has a label of its own")
    return FixedKeys(kvn=kvn, labels=(enc, mac, dek))


def _final(table: TomlTable) -> DerivedKeys:
    found = table.table("final")
    if found is None:
        table.refuse("final", "missing")
    return _derived(found)


def _derived(table: TomlTable) -> DerivedKeys:
    keys = DerivedKeys(
        kvn=table.take("kvn", int),
        master=_label(table, "master", table.take("master", str)),
        scheme=table.enum(Scheme, "scheme", table.take("scheme", str)),
        context=table.enum(ContextSource, "context", table.take("context", str)),
    )
    table.finish()
    if keys.scheme is Scheme.AN10922 and keys.context is ContextSource.KDD:
        table.refuse("context", "an10922 takes at least 15 octets and kdd has 10: use hardware-id")
    return keys


def _label(table: TomlTable, key: str, text: str) -> str:
    if not _LABEL.fullmatch(text):
        table.refuse(key, f"{text[:80]!r} is no label of a key: 1 to 64 of a-z 0-9 - .")
    return text


def _object(table: TomlTable) -> StoredObject:
    found = StoredObject(tag=table.take("tag", int), content=table.take("content", str))
    table.finish()
    if not _is_tag(found.tag):
        table.refuse("tag", f"{found.tag:02X} is no BER-TLV tag of one or two octets")
    if found.tag == _KEY_INFORMATION:
        table.refuse("tag", "E0 is the element's key information (Card Specification v2.3 section 11.3.3.1)")
    complaint = _wrong_content(found.content)
    if complaint is not None:
        table.refuse("content", complaint)
    return found


def _is_tag(tag: int) -> bool:
    """Return whether a number is a tag field (ISO/IEC 7816-4 section 5.2.2.1)."""
    first, second = divmod(tag, 0x100)
    if first == 0:
        return tag > 0 and tag & 0x1F != 0x1F
    return first <= 0xFF and first & 0x1F == 0x1F and 0x1F <= second <= 0x7F


def _wrong_content(content: str) -> str | None:
    """Return what is wrong with what an object shall hold; None for nothing."""
    kind, colon, argument = content.partition(":")
    if kind == ContentKind.TEXT and colon:
        return _wrong_text(argument)
    if content in (ContentKind.CERTIFICATE, ContentKind.CHAIN):
        return None
    if kind == ContentKind.CERTIFICATE and _NAME.fullmatch(argument):
        return None
    return f"{content!r} is neither certificate, chain, certificate:PROFILE nor text:…"


def _wrong_text(template: str) -> str | None:
    if not template or not template.isprintable():
        return "a text is not empty and has no control characters"
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        return f"{template!r}: {error}"
    for _, variable, specification, conversion in pieces:
        if variable is not None and (not _VARIABLE.fullmatch(variable) or specification or conversion):
            return f"{template!r}: {{{variable}}} is no variable"
    return None


def _contradictions(profile: ElementProfile) -> Iterator[tuple[str, str]]:
    """Yield (key, complaint) for what is well-formed and still no element that could be injected."""
    if profile.key_size not in KEY_SIZES:
        yield "key-size", f"{profile.key_size} is none of 16, 24, 32"
    if profile.key_size == 24 and profile.key_blocks is KeyBlockForm.BARE:
        yield "key-blocks", "an AES-192 key says its length: with-length (Amendment D section 7.2)"
    for value in sorted(profile.parameters):
        if value & ~_KNOWN_BITS:
            yield "parameters", f"{value:02X} has bits that mean nothing (Amendment D section 5.1)"
        if value & PROVABLE != PROVABLE:
            yield "parameters", f"{value:02X}: the proof needs R-MAC and R-ENCRYPTION (20 and 40)"
        if bool(value & Parameter.S16) != (profile.mode is Mode.S16):
            yield "parameters", f"{value:02X} contradicts mode: the bit 01 says s16"
    yield from _wrong_versions(profile)
    for key, limit, most in (
        ("failed-authentications", profile.failed_authentications, 10),
        ("tries", profile.tries, 20),
    ):
        if not 1 <= limit <= most:
            yield key, f"{limit} is not between 1 and {most}"
    tags = [stored.tag for stored in profile.objects]
    if len(set(tags)) != len(tags):
        yield "objects", "two have one tag"
    if len(tags) > _MOST_OBJECTS:
        yield "objects", f"{len(tags)} are more than {_MOST_OBJECTS}"


def _wrong_versions(profile: ElementProfile) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the key version numbers, and with two sets that are one."""
    initial, final = profile.initial, profile.final
    asked_by_default = isinstance(initial, FixedKeys)
    versions = {"initial.kvn": initial.kvn, "final.kvn": final.kvn, "probe-kvn": profile.probe_kvn}
    for key, kvn in versions.items():
        least = 0 if key == "initial.kvn" and asked_by_default else 1
        if not least <= kvn <= 0x7F:
            yield key, f"{kvn:02X} is not between {least:02X} and 7F"
    if profile.probe_kvn in (initial.kvn, profile.final.kvn):
        yield "probe-kvn", f"{profile.probe_kvn:02X} is that of a key set, and the probe key is deleted"
    for kvn in sorted(profile.other_key_sets):
        if kvn in versions.values() or not 1 <= kvn <= 0x7F:
            yield "other-key-sets", f"{kvn:02X} is a set of this profile, or not between 01 and 7F"
    if profile.replacement is Replacement.ADD and initial.kvn == profile.final.kvn:
        yield "final.kvn", f"{initial.kvn:02X} is the initial set's: one can be replaced there, none added"
    if profile.replacement is Replacement.REPLACE and initial.kvn == 0:
        yield "initial.kvn", "PUT KEY replaces a set by its version number, and 00 is none"
    if final.master in initial.labels:
        yield "final.master", f"{final.master} is a key of the initial set, which others have"


# --- TPMs --------------------------------------------------------------------------------------------------


def _tpm(table: TomlTable, name: str, digest: str) -> TPMProfile:
    profile = TPMProfile(
        name=name,
        sha256=digest,
        anchors=_authorities(table, "anchors", table.take("anchors", str)),
        intermediates=_authorities(table, "intermediates", table.take("intermediates", str, default="")),
    )
    table.finish()
    if not profile.anchors:
        table.refuse("anchors", "holds no certificate: give those of the makers' authorities (PEM)")
    if len(set(profile.anchors + profile.intermediates)) != len(profile.anchors + profile.intermediates):
        table.refuse("intermediates", "a certificate is there twice")
    return profile


def _authorities(table: TomlTable, key: str, text: str) -> tuple[bytes, ...]:
    """Return the certificates (DER) of a PEM text, all of authorities."""
    count = text.count(_PEM_CERTIFICATE)
    if text.count(_PEM_BEGINS) != count or count > _MOST_CERTIFICATES:
        table.refuse(key, f"holds certificates (PEM) and nothing else, at most {_MOST_CERTIFICATES}")
    if count == 0:
        return ()
    try:
        found = x509.load_pem_x509_certificates(text.encode())
    except (ValueError, x509.InvalidVersion) as error:
        raise MalformedRequest(f"{table.where}{key}: not certificates in PEM") from error
    for number, certificate in enumerate(found, start=1):
        if not _is_authority(certificate):
            table.refuse(key, f"certificate {number} is not that of an authority (RFC 5280 section 4.2.1.9)")
    return tuple(certificate.public_bytes(Encoding.DER) for certificate in found)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return False
