"""Release tokens: the log's own proof of one entry, as a text anyone can check offline (C2SP tlog-proof).

The text holds the entry (on the ``extra`` line), its index, the inclusion proof and the signed checkpoint.
One checkpoint signature serves every token of a train; a PLC, an MES or an auditor checks it with the log's
public key and nothing else.  The standard says that ``extra`` is not authenticated by itself; here it is,
because the leaf hash is computed from it and from nothing else.
"""

from base64 import b64encode
from binascii import b2a_base64
from dataclasses import dataclass

from birthmark import errors
from birthmark.ledger import entry as entries
from birthmark.ledger import merkle
from birthmark.ledger.checkpoint import (
    NOTE_LIMIT,
    SIZE_LIMIT,
    VerifierKey,
    decode_base64,
    decode_decimal,
    open_note,
)

__all__ = ["HEADER", "MEDIA_EXTENSION", "PATH_LIMIT", "TlogProof", "decode", "verify"]

HEADER = "c2sp.org/tlog-proof@v1"
"""First line of every proof."""

MEDIA_EXTENSION = ".tlog-proof"
"""File name extension the standard asks for."""

PATH_LIMIT = 63
"""Most hashes in an inclusion proof; trees are smaller than 2**63."""

# Header, extra line, index line, 63 hashes, blank line, note; with room to spare.
_TEXT_LIMIT = 100_000 + NOTE_LIMIT


@dataclass(frozen=True, slots=True)
class TlogProof:
    """That ``entry`` is at ``index`` in the log.

    ``entry`` is the canonical JSON as the log keeps it, ``path`` the inclusion proof from the leaf's sibling
    up (32 octets each), ``checkpoint_note`` the signed checkpoint as text.  Nothing is checked by making one:
    see ``verify``.
    """

    index: int
    entry: bytes
    path: tuple[bytes, ...]
    checkpoint_note: str

    def __post_init__(self) -> None:
        if not 0 <= self.index < SIZE_LIMIT:
            raise errors.MalformedRequest(f"a proof cannot have the index {self.index}")
        if len(self.path) > PATH_LIMIT or any(len(node) != merkle.HASH_SIZE for node in self.path):
            raise errors.MalformedRequest(f"a proof has at most {PATH_LIMIT} hashes of 32 octets")
        if len(self.entry) > entries.ENTRY_LIMIT:
            raise errors.MalformedRequest(f"an entry of {len(self.entry)} octets is too large")

    def encode(self) -> str:
        """Return the ``.tlog-proof`` text."""
        extra = b64encode(self.entry).decode()
        path = b"".join(map(b2a_base64, self.path)).decode()  # ends every hash with a newline
        return f"{HEADER}\nextra {extra}\nindex {self.index}\n{path}\n{self.checkpoint_note}"


def decode(text: str) -> TlogProof:
    """Read a ``.tlog-proof`` text without believing it.

    Raises:
        errors.MalformedRequest: it is none, or carries no entry on its ``extra`` line.
    """
    if len(text) > _TEXT_LIMIT:
        raise errors.MalformedRequest(f"a proof is not longer than {_TEXT_LIMIT} characters")
    head, blank, note = text.partition("\n\n")
    lines = head.split("\n")
    if not blank or len(lines) < 3 or lines[0] != HEADER:
        raise errors.MalformedRequest(f"a proof begins with {HEADER}, an entry and an index")
    if not lines[1].startswith("extra ") or not lines[2].startswith("index "):
        raise errors.MalformedRequest("a proof of ours has an extra line, then an index line")
    if len(lines) > 3 + PATH_LIMIT:
        raise errors.MalformedRequest(f"a proof has at most {PATH_LIMIT} hashes")
    return TlogProof(
        decode_decimal(lines[2].removeprefix("index ")),
        decode_base64(lines[1].removeprefix("extra ")),
        tuple(decode_base64(line) for line in lines[3:]),
        note,
    )


def verify(text: str, vkey: VerifierKey) -> dict[str, object]:
    """Check a proof offline (C2SP tlog-proof, "Verifying a tlog proof") and return the entry it proves.

    1. Compute the leaf hash: of the octets on the ``extra`` line.
    2. The checkpoint's origin is the log that *vkey* names, and *vkey* signed it.
    3. Cosignatures: our policy asks for none; lines of other keys are ignored.
    4. The inclusion proof leads from the leaf hash to the root in the checkpoint.
    5. Ours: the entry is an entry.

    Raises:
        errors.MalformedRequest: the text is no proof, or the entry is no entry.
        errors.IntegrityFailure: it does not prove its entry under this key.
    """
    proof = decode(text)
    leaf = merkle.leaf_hash(proof.entry)
    checkpoint = open_note(proof.checkpoint_note, vkey)
    merkle.verify_inclusion(leaf, proof.index, proof.path, checkpoint.size, checkpoint.root)
    return entries.decode(proof.entry)
