"""The Merkle tree of RFC 6962 section 2.1 (the same in RFC 9162 section 2.1), over SHA-256.

A log never needs its whole tree to grow: the *right edge*, the roots of the complete subtrees its leaves fall
into, is enough.  ``Edge`` is that as a value, stored beside the log's size.  ``Growth`` adds a train of
leaves to an edge and proves each of them against the tree at the train's end, from the old edge and the new
leaves alone.  ``Frontier`` only follows the root, in constant memory; the verifier uses it.

For proofs about older leaves a caller gives ``node(level, index)``: the root of the complete subtree over the
leaves from ``index * 2**level`` up to, not including, ``(index + 1) * 2**level``.  Where that is kept is no
concern of this module.  Hashes are 32 bytes throughout; sizes and indices count leaves.

Checks raise ``errors.IntegrityFailure``.  An index outside the tree given to a function that *makes* a proof
is a mistake of the caller: ``ValueError``.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from birthmark import errors

__all__ = [
    "EMPTY_ROOT",
    "HASH_SIZE",
    "Edge",
    "Frontier",
    "Growth",
    "Node",
    "Position",
    "complete_root",
    "consistency_path",
    "consistency_proof",
    "inclusion_path",
    "inclusion_proof",
    "leaf_hash",
    "node_hash",
    "verify_consistency",
    "verify_inclusion",
]

HASH_SIZE = 32
"""Octets of a SHA-256 hash."""

EMPTY_ROOT = sha256(b"").digest()
"""Root of a tree without leaves (RFC 6962 section 2.1)."""

Position = tuple[int, int]
"""A complete subtree: its level (0 for a leaf) and its index on that level."""

Node = Callable[[int, int], bytes]
"""Root of the complete subtree at (level, index), 32 bytes."""

_SHARED_LEVELS = 6


def leaf_hash(entry: bytes) -> bytes:
    """Hash a log entry: SHA-256(0x00 || entry) (RFC 6962 section 2.1)."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees into their parent: SHA-256(0x01 || left || right) (RFC 6962 section 2.1)."""
    return sha256(b"\x01" + left + right).digest()


def complete_root(nodes: Sequence[bytes]) -> bytes:
    """Return the root of a complete subtree from the nodes of one of its levels, 2**n of them.

    Raises:
        ValueError: their number is no power of two.
    """
    if not nodes or len(nodes) & (len(nodes) - 1):
        raise ValueError(f"a complete subtree has 2**n nodes on a level, not {len(nodes)}")
    level = list(nodes)
    while len(level) > 1:
        level = [node_hash(level[at], level[at + 1]) for at in range(0, len(level), 2)]
    return level[0]


def _fold(nodes: Sequence[bytes]) -> bytes:
    """Join adjacent complete subtrees, largest first, into the root over all of them."""
    root = nodes[-1]
    for left in reversed(nodes[:-1]):
        root = node_hash(left, root)
    return root


@dataclass(frozen=True, slots=True)
class Edge:
    """The right edge of a tree: the roots of the complete subtrees of ``size`` leaves, largest first.

    There is one node for each bit set in ``size``; ``errors.IntegrityFailure`` if that does not hold.
    """

    size: int
    nodes: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if self.size < 0 or len(self.nodes) != self.size.bit_count():
            raise errors.IntegrityFailure(f"{len(self.nodes)} nodes are not the edge of {self.size} leaves")
        if any(len(node) != HASH_SIZE for node in self.nodes):
            raise errors.IntegrityFailure(f"a node on the edge of {self.size} leaves is not 32 bytes long")

    @classmethod
    def empty(cls) -> "Edge":
        """Return the edge of a tree without leaves."""
        return cls(0, ())

    @classmethod
    def from_bytes(cls, size: int, data: bytes) -> "Edge":
        """Read what ``to_bytes`` wrote; ``errors.IntegrityFailure`` if it is no edge of *size* leaves."""
        if len(data) % HASH_SIZE:
            raise errors.IntegrityFailure(f"an edge of {len(data)} bytes does not divide into hashes")
        return cls(size, tuple(data[at : at + HASH_SIZE] for at in range(0, len(data), HASH_SIZE)))

    def to_bytes(self) -> bytes:
        """Return the nodes one after another, largest subtree first, 32 bytes each."""
        return b"".join(self.nodes)

    def root(self) -> bytes:
        """Return the root of the whole tree."""
        return _fold(self.nodes) if self.nodes else EMPTY_ROOT


class Frontier:
    """A tree that only follows its root: leaves in, root out, memory for one hash a level."""

    __slots__ = ("_nodes", "_size")

    def __init__(self, edge: Edge | None = None) -> None:
        self._size = 0 if edge is None else edge.size
        self._nodes = [] if edge is None else list(edge.nodes)

    @property
    def size(self) -> int:
        """Number of leaves."""
        return self._size

    @property
    def edge(self) -> Edge:
        """The right edge as a value."""
        return Edge(self._size, tuple(self._nodes))

    def append(self, leaf: bytes) -> None:
        """Add a leaf hash."""
        nodes = self._nodes
        size = self._size
        # Each trailing one bit of the old size is a complete subtree that the new leaf completes into a
        # larger.
        while size & 1:
            leaf = sha256(b"\x01" + nodes.pop() + leaf).digest()
            size >>= 1
        nodes.append(leaf)
        self._size += 1

    def root(self) -> bytes:
        """Return the root over all leaves so far."""
        return _fold(self._nodes) if self._nodes else EMPTY_ROOT


class Growth:
    """A train of leaves on its way into the tree.

    Rows of complete subtrees are kept for each level, beginning with the old edge's node where there is one.
    That is all a new leaf's proof needs: its left siblings are new or on the old edge, its right ones are
    new.
    """

    __slots__ = ("_bases", "_first", "_ragged", "_root", "_rows", "_shared", "_size")

    def __init__(self, edge: Edge) -> None:
        self._first = self._size = edge.size
        self._rows: list[list[bytes]] = []
        self._bases: list[int] = []  # index of the first node of each row
        self._shared: dict[int, tuple[bytes, ...]] = {}
        self._ragged: list[bytes | None] = []
        self._root: bytes | None = None
        remaining = list(edge.nodes)
        for level in range(edge.size.bit_length()):
            index = edge.size >> level
            self._rows.append([remaining.pop()] if index & 1 else [])
            self._bases.append(index - 1 if index & 1 else index)

    @property
    def size(self) -> int:
        """Number of leaves by now."""
        return self._size

    @property
    def edge(self) -> Edge:
        """The right edge by now."""
        size, rows = self._size, self._rows
        levels = range(size.bit_length() - 1, -1, -1)
        return Edge(size, tuple(rows[level][-1] for level in levels if size >> level & 1))

    def append(self, leaf: bytes) -> int:
        """Add a leaf hash and return its index in the log."""
        index = position = self._size
        rows = self._rows
        level = 0
        while True:
            if level == len(rows):
                rows.append([])
                self._bases.append(0)
            row = rows[level]
            row.append(leaf)
            if not position & 1:
                break
            leaf = sha256(b"\x01" + row[-2] + leaf).digest()
            position >>= 1
            level += 1
        self._size = index + 1
        if self._root is not None:
            self._root = None
            self._shared.clear()
        return index

    def root(self) -> bytes:
        """Return the root of the tree by now."""
        return self._close() if self._root is None else self._root

    def inclusion_proof(self, index: int) -> tuple[bytes, ...]:
        """Prove a leaf of this growth in the tree as it is now (RFC 6962 section 2.1.1), leaf to root.

        Raises:
            ValueError: the leaf at *index* was not appended in this growth.
        """
        if not self._first <= index < self._size:
            raise ValueError(f"leaf {index} is not among the new leaves {self._first} to {self._size - 1}")
        if self._root is None:
            self._close()
        # Neighbours share the upper part of their proofs.
        group = index >> _SHARED_LEVELS
        upper = self._shared.get(group)
        if upper is None:
            upper = self._shared[group] = self._siblings(index, _SHARED_LEVELS, len(self._ragged))
        return self._siblings(index, 0, min(_SHARED_LEVELS, len(self._ragged))) + upper

    def _close(self) -> bytes:
        """Fold the right side: for each level, the root of the leaves past its last complete subtree."""
        size, rows = self._size, self._rows
        ragged: list[bytes | None] = []
        root: bytes | None = None
        for level in range(size.bit_length()):
            ragged.append(root)
            if size >> level & 1:
                node = rows[level][-1]
                root = node if root is None else sha256(b"\x01" + node + root).digest()
        self._ragged = ragged
        self._root = EMPTY_ROOT if root is None else root
        return self._root

    def _siblings(self, index: int, bottom: int, top: int) -> tuple[bytes, ...]:
        size, rows, bases, ragged = self._size, self._rows, self._bases, self._ragged
        path = []
        for level in range(bottom, top):
            sibling = index >> level ^ 1
            complete = size >> level
            if sibling < complete:
                path.append(rows[level][sibling - bases[level]])
            elif sibling == complete and (rest := ragged[level]) is not None:
                path.append(rest)
        return tuple(path)


def _cover(start: int, end: int) -> tuple[Position, ...]:
    """Return the complete subtrees that make up the leaves from *start* to before *end*, largest first.

    *start* is a multiple of the smallest power of two that is not less than ``end - start``, as in every
    subtree of an RFC 6962 tree.
    """
    positions = []
    length = end - start
    while length:
        level = length.bit_length() - 1
        positions.append((level, start >> level))
        start += 1 << level
        length -= 1 << level
    return tuple(positions)


def inclusion_path(index: int, size: int) -> tuple[tuple[Position, ...], ...]:
    """Return what each hash of an inclusion proof covers, from the leaf's sibling to the root's child.

    Each item names adjacent complete subtrees, largest first; all but the ragged right side are a single one.
    RFC 6962 section 2.1.1: the largest power of two smaller than the size divides the leaves.

    Raises:
        ValueError: there is no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"there is no leaf {index} in a tree of {size}")
    path = []
    start, end = 0, size
    while end - start > 1:
        split = start + (1 << (end - start - 1).bit_length() - 1)
        if index < split:
            path.append(_cover(split, end))
            end = split
        else:
            path.append(_cover(start, split))
            start = split
    return tuple(reversed(path))


def consistency_path(old: int, new: int) -> tuple[tuple[Position, ...], ...]:
    """Return what each hash of a consistency proof covers, in the order of RFC 6962 section 2.1.2.

    Raises:
        ValueError: the old tree is empty or larger than the new one.
    """
    if not 0 < old <= new:
        raise ValueError(f"a tree of {old} leaves has no consistency proof to one of {new}")
    path = []
    start, end = 0, new
    while old != end:
        split = start + (1 << (end - start - 1).bit_length() - 1)
        if old <= split:
            path.append(_cover(split, end))
            end = split
        else:
            path.append(_cover(start, split))
            start = split
    # SUBPROOF(m, D[m], true) is empty: the verifier knows the old root.  With false it is that subtree.
    if start:
        path.append(_cover(start, end))
    return tuple(reversed(path))


def _resolve(path: Iterable[tuple[Position, ...]], node: Node) -> tuple[bytes, ...]:
    return tuple(_fold([node(level, index) for level, index in positions]) for positions in path)


def inclusion_proof(index: int, size: int, node: Node) -> tuple[bytes, ...]:
    """Prove the leaf at *index* in the tree of the first *size* leaves (RFC 6962 section 2.1.1).

    Raises:
        ValueError: there is no such leaf.
    """
    return _resolve(inclusion_path(index, size), node)


def consistency_proof(old: int, new: int, node: Node) -> tuple[bytes, ...]:
    """Prove that the tree of *old* leaves is a prefix of the tree of *new* leaves (RFC 6962 section 2.1.2).

    Raises:
        ValueError: the old tree is empty or larger than the new one.
    """
    return _resolve(consistency_path(old, new), node)


def verify_inclusion(leaf: bytes, index: int, proof: Sequence[bytes], size: int, root: bytes) -> None:
    """Check an inclusion proof by the procedure of RFC 9162 section 2.1.3.2, whose steps are numbered here.

    Args:
        leaf: the leaf hash.
        index: the leaf's index.
        proof: the hashes, leaf to root.
        size: the number of leaves in the tree.
        root: the tree's root hash.

    Raises:
        errors.IntegrityFailure: the proof does not show that leaf at that place in that tree.
    """
    # 1. Compare leaf_index with tree_size.
    if not 0 <= index < size:
        raise errors.IntegrityFailure(f"there is no leaf {index} in a tree of {size}")
    _check_lengths(leaf, root, *proof)
    # 2. and 3. Set fn to leaf_index, sn to tree_size - 1, and r to hash.
    position, last = index, size - 1
    computed = leaf
    # 4. For each value p in the inclusion_path array:
    for sibling in proof:
        # a. If sn is 0, then stop the iteration and fail the proof verification.
        if last == 0:
            raise errors.IntegrityFailure(f"the inclusion proof of leaf {index} is too long")
        # b. If LSB(fn) is set, or if fn is equal to sn, p is on the left; skip levels where the node has no
        #    sibling.  Otherwise p is on the right.
        if position & 1 or position == last:
            computed = node_hash(sibling, computed)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            computed = node_hash(computed, sibling)
        # c. Finally, right-shift both fn and sn one time.
        position >>= 1
        last >>= 1
    # 5. Compare sn to 0.  Compare r against the root_hash.
    if last != 0:
        raise errors.IntegrityFailure(f"the inclusion proof of leaf {index} is too short")
    if computed != root:
        raise errors.IntegrityFailure(f"the inclusion proof of leaf {index} leads to another root")


def verify_consistency(old: int, new: int, proof: Sequence[bytes], old_root: bytes, new_root: bytes) -> None:
    """Check a consistency proof by the procedure of RFC 9162 section 2.1.4.2, whose steps are numbered here.

    Between trees of one size the proof is empty and the roots are equal.  Nothing can be proved from the
    empty tree: a caller that knew no leaf yet has nothing to compare.

    Raises:
        errors.IntegrityFailure: the proof does not show that the old tree is a prefix of the new one.
    """
    if not 0 <= old <= new:
        raise errors.IntegrityFailure(f"a tree of {old} leaves is no prefix of one of {new}")
    _check_lengths(old_root, new_root, *proof)
    if old == new:
        if proof or old_root != new_root or (old == 0 and old_root != EMPTY_ROOT):
            raise errors.IntegrityFailure(f"two trees of {old} leaves are not the same")
        return
    # 1. If consistency_path is an empty array, stop and fail.
    if old == 0 or not proof:
        raise errors.IntegrityFailure(f"nothing shows that {old} leaves are a prefix of {new}")
    # 2. If first is an exact power of 2, then prepend first_hash to the consistency_path array.
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    # 3. and 4. Set fn to first - 1 and sn to second - 1; if LSB(fn) is set, right-shift both until it is not.
    position, last = old - 1, new - 1
    while position & 1:
        position >>= 1
        last >>= 1
    # 5. Set both fr and sr to the first value in the consistency_path array.
    computed_old = computed_new = path[0]
    # 6. For each subsequent value c:
    for sibling in path[1:]:
        # a. If sn is 0, then stop the iteration and fail.
        if last == 0:
            raise errors.IntegrityFailure(f"the consistency proof from {old} to {new} leaves is too long")
        # b. If LSB(fn) is set, or if fn is equal to sn, c is on the left of both.  Otherwise of the new
        #    alone.
        if position & 1 or position == last:
            computed_old = node_hash(sibling, computed_old)
            computed_new = node_hash(sibling, computed_new)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            computed_new = node_hash(computed_new, sibling)
        # c. Finally, right-shift both fn and sn one time.
        position >>= 1
        last >>= 1
    # 7. fr equals first_hash, sr equals second_hash, and sn is 0.
    if (computed_old, computed_new, last) != (old_root, new_root, 0):
        raise errors.IntegrityFailure(
            f"the consistency proof does not show {old} leaves as a prefix of {new}"
        )


def _check_lengths(*hashes: bytes) -> None:
    if any(len(value) != HASH_SIZE for value in hashes):
        raise errors.IntegrityFailure("a hash in the proof is not 32 bytes long")
