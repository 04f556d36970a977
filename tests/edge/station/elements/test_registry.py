"""Elements by URL: what is a URL, who answers for a scheme, and what happens to what was opened."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.edge.station import Enclave
from birthmark.edge.station.elements import CHANNELS, ELEMENTS, allow, opened, opened_channel, schemes, split

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install packages as pip leaves them: a module, and metadata beside it."""

    def install(name: str, entry_points: str, source: str = "") -> None:
        folder = tmp_path / name
        metadata = folder / f"{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (folder / f"{name}.py").write_text(dedent(source), encoding="utf-8")
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", "utf-8")
        (metadata / "entry_points.txt").write_text(dedent(entry_points), encoding="utf-8")
        monkeypatch.syspath_prepend(str(folder))
        installed.append(name)

    installed: list[str] = []
    yield install
    for name in installed:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("file:/mnt/ecu", ("file", "/mnt/ecu", {})),
        ("pcsc:0", ("pcsc", "0", {})),
        ("openpgp:pcsc:Some%20Reader%3F 00?beside=/d", ("openpgp", "pcsc:Some Reader? 00", {"beside": "/d"})),
        ("atecc:/dev/i2c-1?beside=/a+b%26c", ("atecc", "/dev/i2c-1", {"beside": "/a+b&c"})),
        ("acme+can:", ("acme+can", "", {})),
        ("acme:x?empty=", ("acme", "x", {"empty": ""})),
    ],
)  # fmt: skip
def test_a_url_is_scheme_place_and_options(url: str, parts: tuple[str, str, dict[str, str]]) -> None:
    assert split(url) == parts


@pytest.mark.parametrize(
    "url", ["", "file", "/mnt/ecu", "FILE:/x", ":x", "acme:x?flag", "acme:x?a=1&a=2", "acme:%ff"]
)
def test_anything_else_is_malformed(url: str) -> None:
    with pytest.raises(errors.MalformedRequest):
        split(url)


@given(st.text(max_size=60))
@example("a:?%")
@example("a:b?=")
@example("a:b?&&c=\x00")
def test_any_text_is_a_url_or_malformed(text: str) -> None:
    try:
        scheme, _, options = split(text)
    except errors.MalformedRequest:
        return
    assert text.startswith(f"{scheme}:")
    assert all(isinstance(value, str) for value in options.values())


def test_unknown_options_are_refused_by_name() -> None:
    allow({"a": "1"}, "a", "b")
    with pytest.raises(errors.MalformedRequest, match="no option 'c'; it has a, b"):
        allow({"c": "1"}, "a", "b")
    with pytest.raises(errors.MalformedRequest, match="no option 'c'; it has none"):
        allow({"c": "1"})


def test_ours_are_registered_as_anybodys_are() -> None:
    assert set(schemes()) >= {"atecc", "file", "openpgp", "pcsc", "pkcs11", "tcp", "tpm"}
    assert set(schemes(CHANNELS)) >= {"pcsc", "tcp"}
    assert all(owner.startswith("birthmark ") for name, owner in schemes(ELEMENTS).items() if name == "file")


def test_a_directory_is_opened_and_given_back(tmp_path: Path) -> None:
    url = f"file:{tmp_path}/device?algorithm=ec-p384"
    with opened(url) as device:
        assert isinstance(device, Enclave)
        with pytest.raises(errors.Unavailable), opened(url):
            pass
    with opened(url):
        pass


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("file:", "names no directory"),
        ("file:/x?algorithm=rot13", "algorithm is one of"),
        ("file:/x?mode=1", "no option 'mode'"),
    ],
)
def test_a_directory_that_is_not_named_well_is_malformed(url: str, complaint: str) -> None:
    with pytest.raises(errors.MalformedRequest, match=complaint), opened(url):
        pass


def test_a_scheme_that_nobody_answers_for_is_told_with_those_that_are() -> None:
    with (
        pytest.raises(errors.NotFound, match=r"no element answers for 'acme' here; installed are: .*file"),
        opened("acme:x"),
    ):
        pass
    with (
        pytest.raises(errors.NotFound, match=r"no channel answers for 'acme' here; installed are: .*pcsc"),
        opened_channel("acme:x"),
    ):
        pass


def test_another_package_answers_for_its_scheme_once_it_is_installed(install: Install) -> None:
    source = """
        closed = []
        class Element:
            def __init__(self, place, options): self.place, self.options = place, options
            def close(self): closed.append(self.place)
    """
    install("acme_birthmark", "[birthmark.elements]\nacme = acme_birthmark:Element\n", source)
    assert schemes()["acme"] == "acme_birthmark 1.0"
    with opened("acme:here?a=b") as device:
        assert (getattr(device, "place", None), getattr(device, "options", None)) == ("here", {"a": "b"})
        assert sys.modules["acme_birthmark"].closed == []
    assert sys.modules["acme_birthmark"].closed == ["here"]
    with pytest.raises(errors.ProofFailed), opened("acme:there"):
        raise errors.ProofFailed("of what is done with it")
    assert sys.modules["acme_birthmark"].closed == ["here", "there"]


def test_two_packages_for_one_scheme_are_not_chosen_between(install: Install) -> None:
    for name in ("first_acme", "second_acme"):
        install(name, f"[birthmark.elements]\nacme = {name}:Element\n")
    with (
        pytest.raises(errors.NotFound, match=r"first_acme 1\.0 and second_acme 1\.0 both answer for 'acme'"),
        opened("acme:x"),
    ):
        pass


@pytest.mark.parametrize("source", ["import no_such_module_anywhere", "Elements = 1"])
def test_a_package_that_cannot_be_loaded_is_named(install: Install, source: str) -> None:
    install("broken_acme", "[birthmark.elements]\nacme = broken_acme:Element\n", source)
    with (
        pytest.raises(errors.NotFound, match=r"the element 'acme' of broken_acme 1\.0 cannot be loaded"),
        opened("acme:x"),
    ):
        pass
