"""A small log as its pieces, for tests: every kind of entry a bundle's checks look at."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from birthmark.ledger import bundle, entry, merkle
from birthmark.ledger.checkpoint import Checkpoint, VerifierKey, sign_note

ORIGIN = "factory.example/log/acme-test"
START = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
KEY = Ed25519PrivateKey.from_private_bytes(sha256(b"the log key of the tests").digest())
PUBLIC = KEY.public_key().public_bytes_raw()
VKEY = VerifierKey(ORIGIN, PUBLIC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A log as somebody would export it."""

    entries: tuple[bytes, ...]
    records: tuple[tuple[int, Mapping[str, object]], ...]

    def root(self, size: int) -> bytes:
        tree = merkle.Frontier()
        for data in self.entries[:size]:
            tree.append(merkle.leaf_hash(data))
        return tree.root()

    def checkpoint(self, size: int | None = None) -> str:
        size = len(self.entries) if size is None else size
        return signed(Checkpoint(ORIGIN, size, self.root(size)))

    def export(self, earlier: Sequence[int] = ()) -> bytes:
        out = io.BytesIO()
        bundle.write_bundle(
            out,
            vkey=VKEY,
            checkpoint=self.checkpoint(),
            entries=self.entries,
            records=self.records,
            earlier=[self.checkpoint(size) for size in earlier],
        )
        return out.getvalue()


def signed(checkpoint: Checkpoint) -> str:
    return sign_note(checkpoint.body(), ORIGIN, PUBLIC, KEY.sign)


def released(number: int) -> dict[str, object]:
    return {
        "hardware_id": f"SN{number:08d}",
        "serial": f"{number:040x}",
        "station": "ST01",
        "note": "Prüfling ✓",
    }


def entry_fields(number: int, **changes: object) -> dict[str, object]:
    """Fields of entry *number*: every third releases a device, two stations take turns."""
    fields: dict[str, object] = {
        "v": 1,
        "kind": "device-released" if number % 3 == 2 else "device-admitted",
        "at": entry.time_text(START + timedelta(milliseconds=250 * number)),
        "realm": "acme",
        "environment": "test",
        "actor": f"station:ST{number % 2:02d}",
        "seq": number // 2 + 1,
    }
    if number % 3 == 2:
        fields["record"] = released(number)
    return fields | changes


def sample(size: int, changes: Mapping[int, Mapping[str, object]] | None = None) -> Sample:
    """A log of *size* entries; *changes* are fields to set in some of them before they are logged."""
    fields = [entry_fields(number, **(changes or {}).get(number, {})) for number in range(size)]
    return Sample(
        entries=tuple(entry.encode(item) for item in fields),
        records=tuple((leaf, record) for leaf, item in enumerate(fields) for record in _record(item)),
    )


def _record(fields: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    record = fields.get("record")
    if fields["kind"] == "device-released" and isinstance(record, dict):
        yield record
