"""A log is read whole and verified, or nothing of it is believed (SPEC E6)."""

import json
from collections.abc import Iterable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.ledger import proof
from birthmark.ledger.checkpoint import Checkpoint, VerifierKey, sign_note, vkey
from birthmark.ledger.entry import canonical, encode
from birthmark.ledger.merkle import Frontier, leaf_hash
from birthmark.services.log_reading import LogCopy, skim, walk

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
ORIGIN = "acme/log"
VKEY = VerifierKey.parse(vkey(ORIGIN, PUBLIC))


def entry(number: int) -> bytes:
    return encode(
        {
            "v": 1,
            "kind": "noted",
            "at": "2026-11-22T10:00:00.000Z",
            "realm": "acme",
            "environment": "test",
            "actor": "station:ST01",
            "number": number,
        }
    )


def copy_of(entries: list[bytes]) -> LogCopy:
    """Return a log that signs for these entries."""
    tree = Frontier()
    for one in entries:
        tree.append(leaf_hash(one))
    body = Checkpoint(ORIGIN, len(entries), tree.root()).body()
    note = sign_note(body, ORIGIN, PUBLIC, KEY.sign)

    def first(size: int) -> Iterable[bytes]:
        return entries[:size]

    return LogCopy(vkey=VKEY, note=note, entries=first)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 511, 512, 513, 700, 1024, 1300])
def test_every_kept_entry_has_a_proof_that_the_offline_verifier_takes(size: int) -> None:
    entries = [entry(number) for number in range(size)]
    kept = {0, size - 1, size // 2, size // 3, min(size - 1, 256)}
    found = walk(copy_of(entries), lambda index, _raw: index in kept)
    for index in kept:
        assert proof.verify(found.proof(index, entries[index]), VKEY)["number"] == index


@given(st.integers(min_value=1, max_value=1100), st.data())
def test_a_change_of_any_entry_is_noticed(size: int, data: st.DataObject) -> None:
    entries = [entry(number) for number in range(size)]
    copy = copy_of(entries)
    at = data.draw(st.integers(min_value=0, max_value=size - 1))
    how = data.draw(st.sampled_from(["change", "drop", "add", "swap"]))
    others = list(entries)
    if how == "change":
        others[at] = entry(size + 1)
    elif how == "drop":
        del others[at]
    elif how == "add":
        others.insert(at, entry(size + 1))
    else:
        others[at], others[0] = others[0], others[at]
    if others[:size] == entries:
        return
    with pytest.raises(errors.IntegrityFailure, match="do not lead to its checkpoint"):
        walk(replace(copy, entries=lambda wanted: others[:wanted]), lambda _index, _raw: True)


def test_a_checkpoint_that_another_key_signed_is_not_believed() -> None:
    other = Ed25519PrivateKey.from_private_bytes(bytes(32))
    public = other.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    stranger = VerifierKey.parse(vkey(ORIGIN, public))
    with pytest.raises(errors.IntegrityFailure):
        walk(replace(copy_of([entry(0)]), vkey=stranger), lambda _index, _raw: False)


@given(st.one_of(st.binary(max_size=80), st.builds(canonical, st.just({"kind": 1, "at": "x"}))))
def test_what_is_no_entry_is_malformed_and_nothing_else(octets: bytes) -> None:
    try:
        found = skim(octets)
    except errors.MalformedRequest:
        return
    assert isinstance(json.loads(octets), dict)
    assert all(isinstance(found[name], str) for name in ("kind", "at", "actor"))


def test_it_is_told_how_far_the_reading_is() -> None:
    told: list[tuple[int, int]] = []
    walk(copy_of([entry(0)]), lambda _index, _raw: False, lambda *far: told.append(far))
    assert told == [(1, 1)]
