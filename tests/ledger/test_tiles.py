import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark import errors
from birthmark.ledger import tiles
from birthmark.ledger.tiles import TileName


@pytest.mark.parametrize(
    ("path", "level", "index", "width"),
    [
        ("tile/0/x001/x234/067", 0, 1234067, 256),  # the example of the standard
        ("tile/entries/x001/x234/067", None, 1234067, 256),
        ("tile/0/x001/x234/067.p/1", 0, 1234067, 1),
        ("tile/63/000", 63, 0, 256),
        ("tile/1/999.p/255", 1, 999, 255),
        ("tile/entries/x001/000.p/17", None, 1000, 17),
    ],
)
def test_tiles_are_named_as_in_the_standard(path: str, level: int | None, index: int, width: int) -> None:
    """C2SP tlog-tiles, Merkle Tree."""
    made = tiles.entries_path(index, width) if level is None else tiles.tile_path(level, index, width)
    assert made == path
    assert tiles.parse_path(path) == TileName(level=level, index=index, width=width)


@given(st.none() | st.integers(0, 63), st.integers(0, (1 << 63) - 1), st.integers(1, 256))
def test_every_name_reads_back(level: int | None, index: int, width: int) -> None:
    path = tiles.entries_path(index, width) if level is None else tiles.tile_path(level, index, width)
    assert tiles.parse_path(path) == TileName(level=level, index=index, width=width)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "tile/0/1",
        "tile/00/001",
        "tile/64/001",
        "tile/x/001",
        "tile/0/x000/001",
        "tile/0/001/002",
        "tile/0/x001",
        "tile/0/001.p/0",
        "tile/0/001.p/256",
        "tile/0/001.p/01",
        "tile/0/001.p/",
        "tile/0/001/",
        "/tile/0/001",
        "tile/0/٠٠١",
        "tile/0/001\n",
        "tile/0/" + "x999/" * 6 + "999",
        "tile/0/../001",
    ],
)
def test_other_spellings_name_nothing(path: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        tiles.parse_path(path)


@given(st.text() | st.from_regex(r"tile/[0-9a-z]{1,3}/[x0-9/.p]{1,20}", fullmatch=True))
@settings(max_examples=100)
def test_whatever_parses_is_spelled_that_way(path: str) -> None:
    try:
        name = tiles.parse_path(path)
    except errors.MalformedRequest:
        return
    if name.level is None:
        assert tiles.entries_path(name.index, name.width) == path
    else:
        assert tiles.tile_path(name.level, name.index, name.width) == path


def test_entries_stand_behind_their_length() -> None:
    assert tiles.encode_bundle([b"ab", b"", b"x" * 65_535]) == b"\x00\x02ab\x00\x00\xff\xff" + b"x" * 65_535
    with pytest.raises(errors.TooLarge):
        tiles.encode_bundle([b"x" * 65_536])


@pytest.mark.parametrize(
    ("level", "n", "width"), [(-1, 0, 1), (64, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257)]
)
def test_a_tile_that_cannot_be_has_no_name(level: int, n: int, width: int) -> None:
    with pytest.raises(ValueError, match="there"):
        tiles.tile_path(level, n, width)
