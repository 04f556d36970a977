"""A station that dies at any operation on files, and goes on (SPEC C4)."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import birthmark
from birthmark.edge.station.elements.virtual import Drawer
from birthmark.edge.station.folder import Folder
from tests.edge.station.dialogues import Dialogues
from tests.edge.station.service import NAME, RUN, Service


def died_often(service: Service, home: Path, folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """Let stations die, each followed by one more call in a new process; return what became of each."""
    folder.mkdir()
    root = Path(__file__).parents[3]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.edge.station.crashing", home, folder, RUN, NAME, *arguments],
        env=os.environ
        | {
            "PYTHONPATH": f"{root}{os.pathsep}{Path(birthmark.__file__).parents[1]}",
            "PYTHONWARNINGS": "error",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    results = [json.loads(line) for line in ran.stdout.splitlines()]
    assert results[-1]["first"] == 0
    for number, result in enumerate(results, 1):
        assert result["complaints"] == [], f"after dying before operation {number}"
        assert result["again"] == 0, f"after dying before operation {number}: {ran.stderr}"
        device = service.devices[result["device"]]
        assert (device.state, device.number) == ("released", 1)
    assert len({device.sha256 for device in service.devices.values()}) == len(results)
    return results


@pytest.mark.parametrize("further", [(), ("tpm-iak",)], ids=["one certificate", "two"])
@pytest.mark.parametrize("origin", ["born", "delivered"])
def test_a_station_may_die_at_every_step_and_the_device_gets_one_identity(
    service: Service, home: Path, tmp_path: Path, origin: str, further: tuple[str, ...]
) -> None:
    """Each death is followed by one more call in a new process, which must finish what the first began."""
    service.further = further
    results = died_often(service, home, tmp_path / "devices", origin)
    assert len(results) > 30, "it died often enough to mean something"
    for result in results:
        assert len(service.devices[result["device"]].further) == len(further)
        if origin == "born":
            assert service.issued[result["device"]] == 1, "one certificate, ever"


def test_a_station_may_die_with_a_secure_element_and_the_element_gets_its_keys(
    service: Service, elements: Dialogues, home: Path, tmp_path: Path
) -> None:
    """SPEC D5.  The element is torn with the station: what it had not written down has not happened."""
    results = died_often(service, home, tmp_path / "devices", "born", "1", "element")
    assert len(results) > 60, "it died often enough to mean something"
    begun = 0
    for result, drawer in zip(
        results, sorted(tmp_path.glob("devices/*.element"), key=lambda path: int(path.stem[1:])), strict=True
    ):
        bench = elements.bench(result["device"])
        opened = Drawer(drawer)
        bench.element, _ = opened.element("element", None)
        opened.close()
        assert bench.holds_only_the_final_set()
        assert bench.holds_the_objects()
        begun += elements.begun[result["device"]] > 1
    assert begun > 20, "many of them in the middle of a dialogue"


def test_a_file_is_flushed_before_it_gets_its_name_and_its_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What killing a process cannot show: a power cut loses what was not flushed."""
    folder = Folder(tmp_path / "d", create=True)
    seen: list[str] = []
    flush, rename = os.fsync, os.rename

    def fsync(fd: int) -> None:
        seen.append("flush " + ("directory" if Path(f"/proc/self/fd/{fd}").is_dir() else "file"))
        flush(fd)

    def renamed(old: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        seen.append(f"rename {old} to {new}")
        rename(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", renamed)
    folder.write("name", b"content", mode=0o400)
    assert seen == ["flush file", "rename .name.new to name", "flush directory"]
    folder.close()
