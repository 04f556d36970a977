"""A station that dies at any operation on files, and goes on (SPEC C4)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import birthmark
from birthmark.edge.station.folder import Folder
from tests.edge.station.service import NAME, RUN, Service


@pytest.mark.parametrize("further", [(), ("tpm-iak",)], ids=["one certificate", "two"])
@pytest.mark.parametrize("origin", ["born", "delivered"])
def test_a_station_may_die_at_every_step_and_the_device_gets_one_identity(
    service: Service, home: Path, tmp_path: Path, origin: str, further: tuple[str, ...]
) -> None:
    """Each death is followed by one more call in a new process, which must finish what the first began."""
    service.further = further
    (tmp_path / "devices").mkdir()
    root = Path(__file__).parents[3]
    ran = subprocess.run(
        [sys.executable, "-m", "tests.edge.station.crashing", home, tmp_path / "devices", RUN, NAME, origin],
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
    assert len(results) > 30, "it died often enough to mean something"
    assert results[-1]["first"] == 0
    for number, result in enumerate(results, 1):
        assert result["complaints"] == [], f"after dying before operation {number}"
        assert result["again"] == 0, f"after dying before operation {number}: {ran.stderr}"
        device = service.devices[result["device"]]
        assert (device.state, device.number) == ("released", 1)
        assert len(device.further) == len(further)
        if origin == "born":
            assert service.issued[result["device"]] == 1, "one certificate, ever"
    assert len({device.sha256 for device in service.devices.values()}) == len(results)


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
