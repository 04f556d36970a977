"""The installation in a Debian root where nothing is installed yet."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.programs import missing, need

ROOT = Path(__file__).parents[2]


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_minimal_debian_is_enough_to_install_and_run() -> None:
    need("debootstrap")
    need("unshare", "util-linux")
    if os.geteuid() != 0:
        missing("making a root directory needs root")
    done = subprocess.run(
        [str(ROOT / "scripts/clean-root-check")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "clean-root-check: the installation holds" in done.stdout
