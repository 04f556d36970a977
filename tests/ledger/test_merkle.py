import json
from base64 import b64decode
from functools import cache
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark import errors
from birthmark.ledger import merkle
from birthmark.ledger.merkle import EMPTY_ROOT, Edge, Frontier, Growth

VECTORS = Path(__file__).parents[1] / "vectors" / "rfc6962"
TREE = json.loads((VECTORS / "tree.json").read_text())
ENTRIES = [bytes.fromhex(text) for text in TREE["leaves"]]
ROOTS = [bytes.fromhex(text) for text in TREE["roots"]]

LARGEST = 132
LEAVES = [merkle.leaf_hash(b"%d" % number) for number in range(LARGEST)]


def vectors(name: str) -> list[Any]:
    lines = (VECTORS / name).read_text().splitlines()
    return [pytest.param(case, id=case["file"]) for case in map(json.loads, lines)]


def root_of(text: str) -> bytes:
    """Some published cases have a text of 12 octets where a root does not matter; we insist on 32."""
    root = b64decode(text)
    return sha256(root).digest() if root.startswith(b"don't care") else root


@cache
def naive(start: int, end: int) -> bytes:
    """MTH of RFC 6962 section 2.1, as it is written there."""
    if start == end:
        return EMPTY_ROOT
    if end - start == 1:
        return LEAVES[start]
    k = 1
    while 2 * k < end - start:
        k *= 2
    return merkle.node_hash(naive(start, start + k), naive(start + k, end))


def naive_path(m: int, start: int, end: int) -> list[bytes]:
    """PATH of RFC 6962 section 2.1.1, as it is written there."""
    if end - start == 1:
        return []
    k = 1
    while 2 * k < end - start:
        k *= 2
    if m < k:
        return [*naive_path(m, start, start + k), naive(start + k, end)]
    return [*naive_path(m - k, start + k, end), naive(start, start + k)]


def naive_subproof(m: int, start: int, end: int, *, b: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962 section 2.1.2, as it is written there."""
    if m == end - start:
        return [] if b else [naive(start, end)]
    k = 1
    while 2 * k < end - start:
        k *= 2
    if m <= k:
        return [*naive_subproof(m, start, start + k, b=b), naive(start + k, end)]
    return [*naive_subproof(m - k, start + k, end, b=False), naive(start, start + k)]


def node(level: int, index: int) -> bytes:
    assert (index + 1) << level <= LARGEST, "only complete subtrees may be asked for"
    return naive(index << level, (index + 1) << level)


def grown(start: int, end: int) -> Growth:
    """A growth from the tree of *start* leaves to that of *end*, knowing no more than the old edge."""
    frontier = Frontier()
    for leaf in LEAVES[:start]:
        frontier.append(leaf)
    growth = Growth(Edge.from_bytes(start, frontier.edge.to_bytes()))
    for number in range(start, end):
        assert growth.append(LEAVES[number]) == number
    return growth


@pytest.mark.parametrize("size", range(9))
def test_the_roots_are_those_of_the_certificate_transparency_reference_tree(size: int) -> None:
    frontier, growth = Frontier(), Growth(Edge.empty())
    for entry in ENTRIES[:size]:
        frontier.append(merkle.leaf_hash(entry))
        growth.append(merkle.leaf_hash(entry))
    assert frontier.root() == growth.root() == frontier.edge.root() == growth.edge.root() == ROOTS[size]


def test_the_subtrees_are_those_of_the_certificate_transparency_reference_tree() -> None:
    rows = [[bytes.fromhex(text) for text in row] for row in TREE["nodes"]]
    assert [merkle.leaf_hash(entry) for entry in ENTRIES] == rows[0]
    for below, row in pairwise(rows):
        assert [merkle.node_hash(*pair) for pair in zip(below[::2], below[1::2], strict=True)] == row


@pytest.mark.parametrize("case", vectors("inclusion.jsonl"))
def test_published_inclusion_proofs_are_judged_as_published(case: dict[str, Any]) -> None:
    def judge() -> None:
        merkle.verify_inclusion(
            b64decode(case["leafHash"] or ""),
            case["leafIdx"],
            [b64decode(text) for text in case["proof"] or []],
            case["treeSize"],
            b64decode(case["root"] or ""),
        )

    if case["wantErr"]:
        with pytest.raises(errors.IntegrityFailure):
            judge()
    else:
        judge()


@pytest.mark.parametrize("case", vectors("consistency.jsonl"))
def test_published_consistency_proofs_are_judged_as_published(case: dict[str, Any]) -> None:
    def judge() -> None:
        merkle.verify_consistency(
            case["size1"],
            case["size2"],
            [b64decode(text) for text in case["proof"] or []],
            root_of(case["root1"]),
            root_of(case["root2"]),
        )

    if case["wantErr"]:
        with pytest.raises(errors.IntegrityFailure):
            judge()
    else:
        judge()


def test_every_leaf_of_every_tree_has_the_proof_of_the_standard_and_it_verifies() -> None:
    """E5: inclusion."""
    for size in range(1, LARGEST + 1):
        root = naive(0, size)
        for index in range(size):
            proof = merkle.inclusion_proof(index, size, node)
            assert list(proof) == naive_path(index, 0, size)
            merkle.verify_inclusion(LEAVES[index], index, proof, size, root)


def test_every_pair_of_trees_has_the_proof_of_the_standard_and_it_verifies() -> None:
    """E5: consistency."""
    for new in range(1, LARGEST + 1):
        for old in range(1, new + 1):
            proof = merkle.consistency_proof(old, new, node)
            assert list(proof) == naive_subproof(old, 0, new, b=True)
            merkle.verify_consistency(old, new, proof, naive(0, old), naive(0, new))


def test_a_proof_for_another_leaf_index_size_or_root_is_refused() -> None:
    for size in range(1, 40):
        for index in range(size):
            proof = merkle.inclusion_proof(index, size, node)
            good = (LEAVES[index], index, proof, size, naive(0, size))
            merkle.verify_inclusion(*good)
            for bad in (
                (LEAVES[index + 1], *good[1:]),
                (good[0], index + 1, *good[2:]),
                (good[0], index - 1, *good[2:]),
                (*good[:2], (*proof, LEAVES[0]), *good[3:]),
                (*good[:2], (LEAVES[0], *proof), *good[3:]),
                (*good[:4], naive(0, size + 1)),
            ):
                with pytest.raises(errors.IntegrityFailure):
                    merkle.verify_inclusion(*bad)
            for at in range(len(proof)):
                for changed in (
                    (*proof[:at], *proof[at + 1 :]),
                    (*proof[:at], LEAVES[131], *proof[at + 1 :]),
                ):
                    with pytest.raises(errors.IntegrityFailure):
                        merkle.verify_inclusion(LEAVES[index], index, changed, size, good[4])


def test_a_proof_between_other_trees_is_refused() -> None:
    other = merkle.leaf_hash(b"another")
    for new in range(1, 33):
        for old in range(1, new + 1):
            proof = merkle.consistency_proof(old, new, node)
            old_root, new_root = naive(0, old), naive(0, new)
            changes = [(old, new, (*proof, other)), (old, new, (other, *proof)), (new + 1, new, proof)]
            for at in range(len(proof)):
                changes.append((old, new, (*proof[:at], *proof[at + 1 :])))
                changes.append((old, new, (*proof[:at], other, *proof[at + 1 :])))
            for bad in changes:
                with pytest.raises(errors.IntegrityFailure):
                    merkle.verify_consistency(*bad, old_root, new_root)
            for roots in ((other, new_root), (old_root, other), (other, other if old != new else new_root)):
                with pytest.raises(errors.IntegrityFailure):
                    merkle.verify_consistency(old, new, proof, *roots)


@pytest.mark.parametrize("leaves", [1, 2, 16])
def test_a_complete_subtree_has_the_root_of_the_definition(leaves: int) -> None:
    for level in range(leaves.bit_length()):
        row = [naive(at, at + (1 << level)) for at in range(0, leaves, 1 << level)]
        assert merkle.complete_root(row) == naive(0, leaves)


@pytest.mark.parametrize("count", [0, 3, 6, 255])
def test_no_other_number_of_nodes_makes_a_complete_subtree(count: int) -> None:
    with pytest.raises(ValueError, match=f"not {count}"):
        merkle.complete_root([bytes(32)] * count)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_train_proves_its_leaves_from_the_old_edge_alone(data: st.DataObject) -> None:
    end = data.draw(st.integers(0, LARGEST))
    start = data.draw(st.integers(0, end))
    growth = grown(start, end)
    assert (growth.size, growth.root()) == (end, naive(0, end))
    assert growth.edge.root() == naive(0, end)
    assert Edge.from_bytes(end, growth.edge.to_bytes()) == growth.edge
    for index in range(start, end):
        assert list(growth.inclusion_proof(index)) == naive_path(index, 0, end)


def test_every_train_from_every_tree_proves_every_leaf() -> None:
    """All shapes up to two hundred pairs, and the shared upper part of proofs beyond 64 leaves."""
    shapes = [(start, end) for end in range(24) for start in range(end)]
    for start, end in [*shapes, (0, 130), (1, 130), (63, 129), (64, 128), (65, 132), (127, 131)]:
        growth = grown(start, end)
        for index in range(start, end):
            assert list(growth.inclusion_proof(index)) == naive_path(index, 0, end)


def test_proofs_asked_for_between_appends_are_against_the_tree_of_that_moment() -> None:
    growth = grown(5, 5)
    for end in range(6, 90):
        growth.append(LEAVES[end - 1])
        assert growth.root() == naive(0, end)
        for index in range(5, end):
            assert list(growth.inclusion_proof(index)) == naive_path(index, 0, end)


@given(st.integers(0, 1 << 62), st.integers(1, 80))
@settings(max_examples=50, deadline=None)
def test_a_train_on_a_tree_of_any_size_proves_its_leaves(size: int, length: int) -> None:
    """No storage is asked, however large the tree: what is proved is checked as a verifier does."""
    growth = Growth(Edge(size, tuple(LEAVES[: size.bit_count()])))
    for leaf in LEAVES[:length]:
        growth.append(leaf)
    frontier = Frontier(growth.edge)
    assert (frontier.size, frontier.root()) == (size + length, growth.root())
    for number in range(length):
        index = size + number
        proof = growth.inclusion_proof(index)
        merkle.verify_inclusion(LEAVES[number], index, proof, growth.size, growth.root())


def test_a_growth_proves_no_leaf_that_is_not_its_own() -> None:
    growth = grown(5, 9)
    for index in (-1, 0, 4, 9):
        with pytest.raises(ValueError, match="not among the new leaves"):
            growth.inclusion_proof(index)


def test_proofs_outside_the_tree_are_a_mistake_of_the_caller() -> None:
    for index, size in ((0, 0), (3, 3), (-1, 3)):
        with pytest.raises(ValueError, match="there is no leaf"):
            merkle.inclusion_path(index, size)
    for old, new in ((0, 3), (4, 3), (-1, 2)):
        with pytest.raises(ValueError, match="no consistency proof"):
            merkle.consistency_path(old, new)


@pytest.mark.parametrize(
    ("size", "data"), [(0, bytes(32)), (3, bytes(32)), (1, b""), (1, bytes(31)), (2, bytes(64)), (-1, b"")]
)
def test_an_edge_that_does_not_fit_its_size_is_an_integrity_failure(size: int, data: bytes) -> None:
    with pytest.raises(errors.IntegrityFailure):
        Edge.from_bytes(size, data)


def test_an_edge_is_made_of_whole_hashes() -> None:
    with pytest.raises(errors.IntegrityFailure):
        Edge(1, (bytes(31),))
