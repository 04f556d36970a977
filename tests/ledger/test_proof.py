from base64 import b64encode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark import errors
from birthmark.ledger import entry, merkle, proof
from birthmark.ledger.checkpoint import Checkpoint, sign_note
from birthmark.ledger.merkle import Edge, Frontier, Growth
from birthmark.ledger.proof import TlogProof
from tests.ledger.sample import KEY, ORIGIN, PUBLIC, VKEY, entry_fields, sample, signed

LOG = sample(70)


def tokens(start: int, end: int) -> list[TlogProof]:
    """Tokens of a train: one checkpoint for all."""
    frontier = Frontier()
    for data in LOG.entries[:start]:
        frontier.append(merkle.leaf_hash(data))
    growth = Growth(frontier.edge)
    for data in LOG.entries[start:end]:
        growth.append(merkle.leaf_hash(data))
    note = signed(Checkpoint(ORIGIN, growth.size, growth.root()))
    return [TlogProof(i, LOG.entries[i], growth.inclusion_proof(i), note) for i in range(start, end)]


TOKEN = tokens(37, 69)[3]
TEXT = TOKEN.encode()
ROOT = LOG.root(69)


def test_every_token_of_a_train_proves_its_entry() -> None:
    """C7."""
    for token in tokens(37, 69):
        text = token.encode()
        assert proof.decode(text) == token
        assert proof.verify(text, VKEY) == entry.decode(LOG.entries[token.index])


def test_a_token_is_spelled_as_the_standard_says() -> None:
    """C2SP tlog-proof, Format."""
    head, _, note = TEXT.partition("\n\n")
    lines = head.split("\n")
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert lines[1] == f"extra {b64encode(LOG.entries[40]).decode()}"
    assert lines[2] == "index 40"
    assert lines[3:] == [b64encode(node).decode() for node in TOKEN.path]
    assert note == LOG.checkpoint(69)


def test_the_first_entry_of_all_needs_no_hashes() -> None:
    growth = Growth(Edge.empty())
    growth.append(merkle.leaf_hash(LOG.entries[0]))
    text = TlogProof(0, LOG.entries[0], growth.inclusion_proof(0), LOG.checkpoint(1)).encode()
    assert "\nindex 0\n\nfactory.example" in text
    assert proof.verify(text, VKEY) == entry.decode(LOG.entries[0])


def test_a_token_for_another_entry_index_path_or_checkpoint_is_refused() -> None:
    other = tokens(37, 68)[3]
    for wrong in (
        TlogProof(41, TOKEN.entry, TOKEN.path, TOKEN.checkpoint_note),
        TlogProof(40, LOG.entries[41], TOKEN.path, TOKEN.checkpoint_note),
        TlogProof(40, TOKEN.entry, TOKEN.path[:-1], TOKEN.checkpoint_note),
        TlogProof(40, TOKEN.entry, TOKEN.path, other.checkpoint_note),
        TlogProof(40, TOKEN.entry, other.path, TOKEN.checkpoint_note),
    ):
        with pytest.raises(errors.IntegrityFailure):
            proof.verify(wrong.encode(), VKEY)


def test_a_token_of_a_log_of_the_same_name_and_another_key_is_refused() -> None:
    forged = sign_note(Checkpoint(ORIGIN, 69, LOG.root(69)).body(), ORIGIN, PUBLIC[::-1], KEY.sign)
    with pytest.raises(errors.IntegrityFailure):
        proof.verify(TlogProof(40, TOKEN.entry, TOKEN.path, forged).encode(), VKEY)


def test_what_is_in_the_tree_and_is_no_entry_is_no_token() -> None:
    data = entry.canonical(entry_fields(0) | {"kind": "Not A Kind"})
    root = merkle.leaf_hash(data)
    with pytest.raises(errors.MalformedRequest):
        proof.verify(TlogProof(0, data, (), signed(Checkpoint(ORIGIN, 1, root))).encode(), VKEY)


@given(st.data())
@settings(max_examples=100)
def test_a_token_changed_anywhere_is_refused(data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(TEXT)))
    changed = TEXT[:at] + data.draw(st.text(max_size=3)) + TEXT[at + data.draw(st.integers(0, 3)) :]
    if changed == TEXT:
        return
    with pytest.raises((errors.MalformedRequest, errors.IntegrityFailure)):
        proof.verify(changed, VKEY)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "c2sp.org/tlog-proof@v1\n",
        TEXT.replace("@v1", "@v2"),
        TEXT.replace("\n", "\r\n"),
        TEXT.replace("index 40", "index 040"),
        TEXT.replace("index 40", "index -1"),
        TEXT.replace("index 40", f"index {1 << 63}"),
        TEXT.replace("extra ", "extra  "),
        "\n".join(line for line in TEXT.split("\n") if not line.startswith("extra ")),
        TEXT.replace("index 40\n", "index 40\n" + (b64encode(bytes(32)).decode() + "\n") * 60),
        TEXT.replace("index 40\n", f"index 40\n{b64encode(bytes(31)).decode()}\n"),
        TEXT.replace("extra ", "extra " + "A" * 100_000),
        "x" * 1_000_000,
    ],
)
def test_a_text_that_is_no_token_is_malformed(text: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        proof.decode(text)


def test_a_token_has_no_negative_index_odd_hashes_or_huge_entry() -> None:
    for index, data, path in (
        (-1, b"", ()),
        (0, b"x" * 65_536, ()),
        (0, b"", (bytes(31),)),
        (0, b"", (ROOT,) * 64),
    ):
        with pytest.raises(errors.MalformedRequest):
            TlogProof(index, data, path, "")
