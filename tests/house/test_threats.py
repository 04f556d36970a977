"""The threat model names tests; they exist, and each attacker has both kinds of row."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/THREATS.md").read_text(encoding="utf-8")


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", TEXT)
    assert len(named) > 30
    for file, function in named:
        path = ROOT / file
        assert path.is_file(), file
        functions = {
            node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)
        }
        assert not function or function in functions, (file, function)


def test_each_attacker_can_something_and_cannot_something() -> None:
    sections = re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
    for section in sections[:-1]:
        assert "\n| can |" in section, section[:40]
        assert "\n| cannot |" in section, section[:40]
