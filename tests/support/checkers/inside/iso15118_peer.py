"""verify_certs of EcoG's iso15118, as its charging station calls it; runs with .tools/peers/iso15118.

It has an error path that only writes to the log and goes on, so that a key of a kind it does not know would
pass.  What it logs as an error counts as a refusal here.
"""

import importlib
import json
import logging
import sys
from typing import Any


class _Complaints(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def refusal(security: Any, question: dict[str, Any]) -> str | None:
    """Return what it has against a chain, or None."""
    complaints = _Complaints()
    logging.getLogger().addHandler(complaints)
    try:
        security.verify_certs(
            bytes.fromhex(question["leaf"]),
            [bytes.fromhex(text) for text in question["between"]],
            bytes.fromhex(question["root"]),
        )
    except Exception as error:  # noqa: BLE001 - whatever it raises is its answer
        return f"{type(error).__name__}: {error}"
    finally:
        logging.getLogger().removeHandler(complaints)
    return "; ".join(complaints.texts) or None


def main() -> None:
    """Answer each line with a line, in JSON."""
    # It logs to standard output, where the answers belong.
    answers, sys.stdout = sys.stdout, sys.stderr
    # By name: our own type checker does not see this environment.
    security = importlib.import_module("iso15118.shared.security")
    for line in sys.stdin:
        answers.write(json.dumps({"refusal": refusal(security, json.loads(line))}) + "\n")


if __name__ == "__main__":
    main()
