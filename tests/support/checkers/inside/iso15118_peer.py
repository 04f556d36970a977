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


def main() -> None:
    """Answer one question."""
    question: dict[str, Any] = json.load(sys.stdin)
    complaints = _Complaints()
    # By name: our own type checker does not see this environment.
    security = importlib.import_module("iso15118.shared.security")
    logging.getLogger().addHandler(complaints)
    refusal = None
    try:
        security.verify_certs(
            bytes.fromhex(question["leaf"]),
            [bytes.fromhex(text) for text in question["between"]],
            bytes.fromhex(question["root"]),
        )
    except Exception as error:  # noqa: BLE001 - whatever it raises is its answer
        refusal = f"{type(error).__name__}: {error}"
    if refusal is None and complaints.texts:
        refusal = "; ".join(complaints.texts)
    sys.stdout.write(json.dumps({"refusal": refusal}) + "\n")


if __name__ == "__main__":
    main()
