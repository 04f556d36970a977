"""Checkpoints: the log's signed statement of its size and root (C2SP tlog-checkpoint over C2SP signed-note).

A checkpoint is a note whose text is three lines: origin, size, root; the signature lines follow a blank line.
Signatures here are Ed25519 by the log itself (type 0x01).  Lines of keys we were not given, a witness's say,
are kept in the text and ignored, as the standard demands.  The log's key is named like its origin, and a
checkpoint is accepted only under the key of its own origin, so that one key cannot speak for two logs.

Stricter than some readers: base64 has one spelling, so that no bit of a note can change unseen.
"""

import re
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from birthmark import errors

__all__ = [
    "NOTE_LIMIT",
    "SIGNATURE_LIMIT",
    "SIZE_LIMIT",
    "Checkpoint",
    "VerifierKey",
    "decode_base64",
    "decode_decimal",
    "open_note",
    "sign_note",
    "vkey",
]

NOTE_LIMIT = 262_144
"""Largest note we read, in octets; sixteen post-quantum signatures take less than half of it."""

SIGNATURE_LIMIT = 100
"""Most signature lines we read in a note; the standard asks for at least 16."""

SIZE_LIMIT = 1 << 63
"""Tree sizes are smaller than this: other implementations keep them in a signed 64-bit number."""

_ED25519 = b"\x01"
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
_SIGNATURE_LINE = "— "


def decode_base64(text: str) -> bytes:
    """Decode standard base64 (RFC 4648 section 4) in its one canonical spelling.

    Raises:
        errors.MalformedRequest: it is not that.
    """
    try:
        data = a2b_base64(text.encode("ascii"), strict_mode=True)
    except (Base64Error, UnicodeEncodeError) as wrong:
        raise errors.MalformedRequest("not base64") from wrong
    if b64encode(data).decode() != text:  # bits beyond the last octet
        raise errors.MalformedRequest("not base64 in its canonical spelling")
    return data


def decode_decimal(text: str) -> int:
    """Decode a number below 2**63 without leading zeros.

    Raises:
        errors.MalformedRequest: it is not that.
    """
    if _DECIMAL.fullmatch(text) is None or (value := int(text)) >= SIZE_LIMIT:
        raise errors.MalformedRequest("not a decimal number below 2**63 without leading zeros")
    return value


def _is_key_name(name: str) -> bool:
    """Signed note: "Key names MUST be non-empty and MUST NOT contain any Unicode spaces or plus"."""
    return (
        name != ""
        and "+" not in name
        and not any(letter.isspace() for letter in name)
        and _CONTROL.search(name) is None
        and _is_utf8(name)
    )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@lru_cache(maxsize=64)
def _key_id(name: str, public_raw: bytes) -> bytes:
    """Signed note, Ed25519 signatures: SHA-256(key name || 0x0A || 0x01 || public key)[:4]."""
    return sha256(name.encode() + b"\n" + _ED25519 + public_raw).digest()[:4]


@lru_cache(maxsize=64)
def _public_key(public_raw: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(public_raw)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a log: that the log ``origin`` has ``size`` entries under ``root``.

    ``extensions`` are further lines of the note text.  We write none: nobody can audit them.  They are kept
    so that a note that has some is read for what it says.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lines = (self.origin, *self.extensions)
        if any(line == "" or "\n" in line or _CONTROL.search(line) for line in lines):
            raise errors.MalformedRequest("a line of a checkpoint is empty or has control characters")
        if not 0 <= self.size < SIZE_LIMIT:
            raise errors.MalformedRequest(f"a checkpoint cannot have the size {self.size}")
        if len(self.root) != 32:
            raise errors.MalformedRequest("the root hash of a checkpoint has 32 octets")

    @classmethod
    def from_body(cls, body: str) -> "Checkpoint":
        """Read a note text.

        Raises:
            errors.MalformedRequest: it is not a checkpoint.
        """
        lines = body.split("\n")
        if len(lines) < 4 or lines[-1] != "":
            raise errors.MalformedRequest("a checkpoint is three lines or more, each ended by a newline")
        origin, size, root = lines[:3]
        return cls(origin, decode_decimal(size), decode_base64(root), tuple(lines[3:-1]))

    def body(self) -> bytes:
        """Return the note text: what the log signs, the final newline included."""
        lines = (self.origin, str(self.size), b64encode(self.root).decode(), *self.extensions, "")
        return "\n".join(lines).encode()


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """The public key of a log and its name: all that an auditor needs to bring.

    ``public`` is the Ed25519 public key, 32 octets (RFC 8032 section 5.1.5).
    """

    name: str
    public: bytes

    def __post_init__(self) -> None:
        if not _is_key_name(self.name):
            raise errors.MalformedRequest(
                "a key name is not empty and has no spaces, no plus, no control characters"
            )
        if len(self.public) != 32:
            raise errors.MalformedRequest("an Ed25519 public key has 32 octets")

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """Read ``name+hex(key id)+base64(0x01 || public key)``; one newline at the end is allowed.

        Raises:
            errors.MalformedRequest: it is not that, or the key id is another key's.
        """
        parts = text.removesuffix("\n").split("+", 2)  # base64 may have a plus of its own
        if len(parts) != 3:
            raise errors.MalformedRequest("a verifier key has three parts, joined by plus")
        name, key_id, material = parts[0], parts[1], decode_base64(parts[2])
        if material[:1] != _ED25519:
            raise errors.MalformedRequest("the verifier key is not of the type Ed25519")
        key = cls(name, material[1:])
        if key.key_id.hex() != key_id:
            raise errors.MalformedRequest("the key id in the verifier key does not belong to the key")
        return key

    @property
    def key_id(self) -> bytes:
        """The first four octets of SHA-256(name || 0x0A || 0x01 || public key)."""
        return _key_id(self.name, self.public)

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{b64encode(_ED25519 + self.public).decode()}"

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check an Ed25519 signature (RFC 8032).

        Raises:
            errors.IntegrityFailure: it is not this key's signature over the message.
        """
        try:
            _public_key(self.public).verify(signature, message)
        except (InvalidSignature, ValueError) as wrong:
            raise errors.IntegrityFailure(f"the signature of {self.name} is not valid") from wrong


def vkey(origin: str, public_raw: bytes) -> str:
    """Spell the verifier key of a log from its Ed25519 public key (32 octets).

    Raises:
        errors.MalformedRequest: the origin cannot name a key, or the key has another length.
    """
    return str(VerifierKey(origin, public_raw))


def sign_note(body: bytes, key_name: str, public_raw: bytes, sign: Callable[[bytes], bytes]) -> str:
    """Make a note with one Ed25519 signature.

    Args:
        body: the note text, ended by a newline, as ``Checkpoint.body`` gives it.
        key_name: the log's key name; its origin.
        public_raw: the public key, 32 octets.
        sign: answers the 64 octets of the signature over its argument.

    Raises:
        errors.MalformedRequest: the text cannot be a note.
        errors.IntegrityFailure: *sign* answered something that is no Ed25519 signature.
    """
    text = body.decode()
    if not text.endswith("\n") or _CONTROL.search(text) is not None:
        raise errors.MalformedRequest("a note text ends in a newline and has no other control characters")
    signature = sign(body)
    if len(signature) != 64:
        raise errors.IntegrityFailure(f"an Ed25519 signature has 64 octets, not {len(signature)}")
    line = b64encode(_key_id(key_name, public_raw) + signature).decode()
    return f"{text}\n{_SIGNATURE_LINE}{key_name} {line}\n"


def open_note(text: str, vkey: VerifierKey) -> Checkpoint:
    """Read a checkpoint and check the log's signature on it.

    1. The note is well formed: UTF-8, no control characters, signature lines after the last blank line.
    2. Each line under the name and id of *vkey* is a valid signature over the text; there is one at least.
    3. The text is a checkpoint of the log the key is named for.

    Raises:
        errors.MalformedRequest: the text is no signed checkpoint.
        errors.IntegrityFailure: it is one, and not of this log.
    """
    # 1.
    body, signatures = _split_note(text)
    # 2.  "If a signature from a known key fails to verify, clients SHOULD reject the whole note."
    signed = False
    for name, signature in signatures:
        if name == vkey.name and signature[:4] == vkey.key_id:
            vkey.verify(body.encode(), signature[4:])
            signed = True
    if not signed:
        raise errors.IntegrityFailure(f"the note carries no signature of {vkey.name} under the given key")
    # 3.
    checkpoint = Checkpoint.from_body(body)
    if checkpoint.origin != vkey.name:
        raise errors.IntegrityFailure("the checkpoint is of another log than the key it is signed with")
    return checkpoint


def _split_note(text: str) -> tuple[str, list[tuple[str, bytes]]]:
    """Return the note text and, for each signature line, the key name and key id || signature."""
    if len(text) > NOTE_LIMIT:
        raise errors.MalformedRequest(f"a note is not longer than {NOTE_LIMIT} octets")
    if not _is_utf8(text) or _CONTROL.search(text) is not None:
        raise errors.MalformedRequest("a note is UTF-8 without control characters other than newline")
    body, blank, tail = text.rpartition("\n\n")
    lines = tail.split("\n")
    if not blank or len(lines) < 2 or lines.pop() != "":
        raise errors.MalformedRequest(
            "a note is a text, a blank line and signature lines, each ended by a newline"
        )
    if len(lines) > SIGNATURE_LIMIT:
        raise errors.MalformedRequest(f"a note has at most {SIGNATURE_LIMIT} signatures")
    return body + "\n", [_signature_line(line) for line in lines]


def _signature_line(line: str) -> tuple[str, bytes]:
    name, _, encoded = line.removeprefix(_SIGNATURE_LINE).partition(" ")
    if not line.startswith(_SIGNATURE_LINE) or not _is_key_name(name):
        raise errors.MalformedRequest("a signature line is a dash, a key name and base64")
    signature = decode_base64(encoded)
    if len(signature) < 5:
        raise errors.MalformedRequest("a signature line holds a key id of four octets and a signature")
    return name, signature
