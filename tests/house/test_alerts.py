"""The alert rules: promtool takes them, each speaks when it should and only then, people know what to do."""

import re
import subprocess
from pathlib import Path

import yaml

from tests.support.programs import need
from tests.system.alerts import CASES, RULES, rule_tests, rules

ROOT = Path(__file__).parents[2]


def promtool(*words: str | Path) -> str:
    done = subprocess.run(
        [need("promtool", "prometheus"), *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_the_rules_and_the_example_of_a_scrape() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", RULES)
    assert "is valid" in promtool("check", "config", RULES.parent / "scrape.yml")


def test_each_alert_speaks_when_it_should_and_is_silent_when_not(tmp_path: Path) -> None:
    assert [case.alert for case in CASES] == list(rules())
    tests = tmp_path / "tests.yml"
    tests.write_text(yaml.safe_dump(rule_tests(CASES)), encoding="utf-8")
    assert "SUCCESS" in promtool("test", "rules", tests)


def test_each_alert_has_a_section_that_says_what_it_means_and_what_to_do() -> None:
    page = (ROOT / "docs/alerts.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"(?ms)^### (\w+)\n(.*?)(?=^##|\Z)", page))
    assert list(sections) == list(rules())
    for name, text in sections.items():
        assert re.search(r"(?m)^Means: \S", text), name
        assert re.search(r"(?m)^Do: \S", text), name
        assert rules()[name]["annotations"]["runbook"] == f"docs/alerts.md#{name.lower()}"
