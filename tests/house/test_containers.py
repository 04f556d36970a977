"""The image, the compose file and the unit keep their promises: no root, no writable root, no secret inside.

No container engine takes part: these are the files as written.  The installation they share with every other
way to install is tried for real in test_clean_root.
"""

import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.programs import need

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = re.split(r"(?m)^FROM ", DOCKERFILE)[1:]
UNIT = (ROOT / "deploy/systemd/birthmark.service").read_text()


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return loaded


SERVICES: dict[str, Any] = compose()["services"]


def test_the_image_is_installed_by_the_script_everybody_uses() -> None:
    assert re.search(r"^RUN .*scripts/install --runtime --fixed$", STAGES[0], re.MULTILINE)
    for stage in STAGES:
        assert re.search(r"\bpip3? install\b", stage) is None
    for source in re.findall(r"^COPY (?!--)(\S+)", DOCKERFILE, re.MULTILINE):
        assert (ROOT / source).exists(), source


def test_the_final_stage_has_no_compiler_and_does_not_run_as_root() -> None:
    final = STAGES[-1]
    assert final.startswith("debian:12-slim\n")
    installed = re.findall(r"apt-get install[^&]*?recommends ([^&\\]+)", final)
    assert [words.split() for words in installed] == [["python3"]]
    assert re.search(r"^USER (\d+):(\d+)$", final, re.MULTILINE)
    assert "HEALTHCHECK" in final
    assert 'CMD ["serve", "--settings", "/data/realm/birthmark.toml"]' in final


def test_nothing_but_what_the_image_is_made_of_reaches_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    admitted = {rule[1:] for rule in rules if rule.startswith("!")}
    copied = set(re.findall(r"^COPY (?!--)(\S+)", DOCKERFILE, re.MULTILINE))
    assert all(any(path == rule or path.startswith(f"{rule}/") for rule in admitted) for path in copied)
    assert not any("secret" in rule for rule in admitted)


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_runs_without_privileges_on_a_read_only_root(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert service["ulimits"]["core"] == 0


def test_compose_runs_the_image_as_the_user_the_image_was_made_for() -> None:
    user = re.search(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)
    assert user is not None
    assert SERVICES["birthmark"]["user"] == user[1]


def test_secrets_are_files_and_appear_nowhere_else() -> None:
    declared = compose()["secrets"]
    assert all(secret.keys() == {"file"} for secret in declared.values())
    for name, service in SERVICES.items():
        assert set(service["secrets"]) <= declared.keys()
        for key, value in service.get("environment", {}).items():
            assert "PASSWORD" not in key or value.startswith("/run/secrets/"), (name, key)


def test_the_database_of_the_node_is_durable() -> None:
    command = SERVICES["postgres"]["command"]
    assert {"fsync=on", "synchronous_commit=on", "full_page_writes=on"} <= set(command)


def test_make_secrets_writes_what_compose_hands_in_and_never_overwrites(tmp_path: Path) -> None:
    script = tmp_path / "make-secrets"
    script.write_bytes((ROOT / "deploy/compose/make-secrets").read_bytes())
    script.chmod(0o755)

    def written() -> dict[str, str]:
        subprocess.run([str(script)], check=True)
        return {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}

    first = written()
    assert {Path(secret["file"]).name for secret in compose()["secrets"].values()} == first.keys()
    assert len({first["database-password"], first["key-store-passphrase"]}) == 2
    assert all(
        len(bytes.fromhex(first[name])) == 32 for name in ("database-password", "key-store-passphrase")
    )
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert written() == first


def test_git_does_not_take_the_secrets(tmp_path: Path) -> None:
    paths = ["deploy/compose/secrets/database-password"]
    for rules in (".gitignore", "deploy/compose/.gitignore"):
        (tmp_path / rules).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / rules).write_bytes((ROOT / rules).read_bytes())
    git = [need("git"), "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    done = subprocess.run([*git, "check-ignore", *paths], capture_output=True, text=True, check=False)
    assert done.stdout.split() == paths


@pytest.mark.parametrize(
    "line",
    [
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "ProtectHome=yes",
        "PrivateTmp=yes",
        "CapabilityBoundingSet=",
        "LimitCORE=0",
        "User=birthmark",
        "StateDirectoryMode=0700",
    ],
)
def test_the_unit_is_hardened(line: str) -> None:
    assert line in UNIT.splitlines()


def test_the_unit_takes_no_secret_from_the_environment_or_the_command_line() -> None:
    assert "Environment" not in UNIT
    (command,) = re.findall(r"^ExecStart=(.*)$", UNIT, re.MULTILINE)
    assert "pass" not in command
