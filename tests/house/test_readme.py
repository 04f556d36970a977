"""The documents tell of the program that is there: commands in them parse, links lead somewhere."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from birthmark.edge.cli.main import command_tree

HOUSE = Path(__file__).resolve().parents[2]
WITH_COMMANDS = [HOUSE / "README.md", HOUSE / "docs/operating.md"]
WITH_LINKS = [HOUSE / "README.md", HOUSE / "ARCHITECTURE.md", *sorted((HOUSE / "docs").rglob("*.md"))]

TREE = typer.main.get_command(command_tree())
PROMPT = re.compile(r"(?:\$ )?birthmark ")


def blocks_and_prose(text: str) -> tuple[list[str], str]:
    """Return the lines of all fenced blocks, a backslash joining two, and the text without the blocks."""
    lines: list[str] = []

    def take(block: re.Match[str]) -> str:
        lines.extend(re.sub(r"\\\n\s*", " ", block[1]).splitlines())
        return ""

    return lines, re.sub(r"^```\w*\n(.*?)^```$", take, text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> Iterator[str]:
    """Yield every command line of a document, in a block or between backticks, without the program's name."""
    lines, prose = blocks_and_prose(text)
    for line in lines:
        if PROMPT.match(line):
            yield PROMPT.sub("", line.split("  #")[0].removesuffix("&"), count=1)
    for named in re.finditer(r"`birthmark ([^`]+)`((?:, `[a-z-]+`)*)", prose):
        yield named[1]
        # "`birthmark run open`, `show`, `close`": siblings of the command before them.
        yield from (f"{named[1].split()[0]} {sibling}" for sibling in re.findall(r"`([a-z-]+)`", named[2]))


def complaint(line: str) -> str:
    """Return what is wrong with a command line, if anything: a command or an option that does not exist.

    One that gives options and leaves nothing out ("…") gives all that are required.
    """
    words = [word for word in shlex.split(line) if word != "…"]
    whole = "…" not in shlex.split(line) and any(word.startswith("-") for word in words)
    command: Any = TREE
    while words and getattr(command, "commands", None):
        name = words.pop(0)
        if name in {"COMMAND", "--help"}:
            return ""
        if name not in command.commands:
            return f"there is no command {name}"
        command = command.commands[name]
    if getattr(command, "commands", None):
        return f"{command.name} is a group of commands"
    known = {spelled: one for one in command.params for spelled in one.opts if spelled.startswith("-")}
    needed = {spelled for spelled, one in known.items() if one.required} if whole else set()
    arguments = sum(one.nargs for one in command.params if one.param_type_name == "argument")
    while words:
        word, _, value = words.pop(0).partition("=")
        if word == "--help":
            continue
        if not word.startswith("-"):
            arguments -= 1
        elif word not in known:
            return f"{command.name} has no option {word}"
        needed.discard(word)
        if word in known and not known[word].is_flag and not value:
            if not words or words[0].startswith("--"):
                # Prose may name an option without a value: "--token-module", but then it is the last.
                return f"{word} has no value" if words else ""
            words.pop(0)
    if needed:
        return f"{command.name} lacks {', '.join(sorted(needed))}"
    return "too many arguments" if arguments < 0 else ""


LINES = [(path.name, line) for path in WITH_COMMANDS for line in commands(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize(("document", "line"), LINES, ids=lambda text: text)
def test_a_command_in_a_document_is_one_of_ours(document: str, line: str) -> None:
    assert complaint(line) == "", f"{document}: birthmark {line}"


def test_the_documents_show_commands_and_the_check_would_notice() -> None:
    """Nothing would be checked if nothing were found, or if nothing were ever wrong."""
    assert len(LINES) >= 25
    assert len({line for name, line in LINES if name == "README.md"}) >= 8
    wrong = ["run reopen R1", "runs list", "run", "run open R1 --amount 3", "run open R1 R2", "serve --quiet"]
    wrong += ["bootstrap issue --out DIR", "station renew ST01 --until 2030-01-01"]
    assert [line for line in wrong if not complaint(line)] == []
    shown = "```\n$ birthmark nonsense --x  # why\n```\nSay `birthmark run open R1`, `shut`.\n"
    assert list(commands(shown)) == ["nonsense --x", "run open R1", "run shut"]


@pytest.mark.parametrize("document", WITH_LINKS, ids=lambda path: str(path.relative_to(HOUSE)))
def test_a_link_in_a_document_leads_to_a_file(document: Path) -> None:
    _, prose = blocks_and_prose(document.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", prose)]
    missing = [
        target
        for target in targets
        if target and not re.match(r"[a-z]+:", target) and not (document.parent / target).exists()
    ]
    assert missing == []
