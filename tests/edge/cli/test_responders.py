"""Who answers OCSP for an authority, as people say it (SPEC F3)."""

from pathlib import Path

from tests.edge.cli.ceremonies import custodians
from tests.edge.cli.command import Place


def test_a_file_with_two_keys_names_no_responder(realm: Place, tmp_path: Path) -> None:
    custodians(tmp_path)
    keys = tmp_path / "keys.pem"
    keys.write_text("".join((tmp_path / name / f"{name}.pem").read_text() for name in ("carla", "dora")))
    said = realm("responder", "enrol", "--authority", "issuing-1", "--name", "ocsp", "--key", keys)
    assert said.code == 65
    assert "2 blocks PUBLIC KEY where one belongs" in said.err
