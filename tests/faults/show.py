"""Print the steps of every scenario as they are now.

``python -m tests.faults.show | diff tests/faults/steps.toml -`` shows which step came or went; somebody looks
at it, and then what is printed becomes ``steps.toml``.
"""

import json
import sys
import tempfile
from pathlib import Path

from birthmark.floor.realm import Environment
from tests.faults.places import Ground
from tests.faults.scenario import base_line
from tests.faults.scenarios import SCENARIOS
from tests.faults.table import ready
from tests.support.realm import make_line


def main() -> None:
    """Print."""
    out = sys.stdout
    out.write(
        "# The steps of each scenario, undisturbed, and what it answers the first and the second time.\n"
    )
    with tempfile.TemporaryDirectory() as made:
        ground, bases = Ground(), {}
        for environment in (Environment.TEST, Environment.PRODUCTION):
            folder = Path(made) / str(environment)
            folder.mkdir()
            line = make_line(folder, ground.new(folder), environment=environment)
            base_line(line)
            line.close()
            bases[environment] = (line, folder)
        for number, (name, scenario) in enumerate(SCENARIOS.items()):
            found = ready(scenario, ground, *bases[scenario.environment], Path(made) / f"s{number}")
            steps = ",\n".join(f"  {json.dumps(step)}" for step in found.steps)
            out.write(f'\n["{name}"]\nfirst = "{found.first.said}"\nagain = "{found.again.said}"\n')
            out.write(f"steps = [\n{steps},\n]\n")


if __name__ == "__main__":
    main()
