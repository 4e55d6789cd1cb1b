"""Documents execute: tables come from the code, every command is documented, and every command in a document exists."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from features.catalog import AGGREGATES
from streams.cli import main
from streams.topics import TOPICS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *(ROOT / p / "README.md" for p in ("features", "models", "streams"))]


def between(text: str, name: str) -> str:
    """What stands between the marks of a generated part."""
    return text.split(f"<!-- {name} -->\n")[1].split(f"\n<!-- /{name} -->")[0]


def test_the_table_of_topics_is_that_of_the_code() -> None:
    """streams/README.md lists the topics that are created."""
    lines = ["| topic | key | partitions | what |", "|---|---|---|---|"]
    lines += [f"| {t.name} | {t.key} | {t.partitions or 'as facts'} | {t.what} |" for t in TOPICS]
    assert between((ROOT / "streams/README.md").read_text(), "topics") == "\n".join(lines)


def test_the_list_of_aggregates_is_that_of_the_code() -> None:
    """features/README.md names every aggregate."""
    assert between((ROOT / "features/README.md").read_text(), "aggregates") == " · ".join(AGGREGATES)


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], click.Command]:
    """All commands that do something, by their words."""
    if isinstance(command, click.Group):
        return {k: v for name, sub in command.commands.items() for k, v in leaves(sub, (*path, name)).items()}
    return {path: command}


COMMANDS = leaves(main)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_a_sentence_and_an_example(path: tuple[str, ...]) -> None:
    """`--help` says what it is for and shows one line that can be pasted."""
    words = COMMANDS[path].help or ""
    assert words.split("\n")[0].rstrip().endswith("."), "the first line is a sentence"
    assert f"premonitor {' '.join(path)}" in words, "an example under \\b"


def examples() -> list[tuple[str, str]]:
    """Every `premonitor …` line in documents and help texts."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text() if document.is_file() else ""
        for block in re.findall(r"```(?:sh|console)?\n(.*?)```", text, re.S):
            found += [
                (document.name, line.removeprefix("$ ")) for line in block.splitlines() if line.removeprefix("$ ").startswith("premonitor ")
            ]
    for path, command in COMMANDS.items():
        lines = [line.strip() for line in (command.help or "").splitlines()]
        found += [(" ".join(path), line) for line in lines if line.startswith("premonitor ")]
    return found


@pytest.mark.parametrize(("where", "line"), examples())
def test_every_example_is_accepted_by_the_command_line(where: str, line: str) -> None:
    """Each command and each option in a document exists."""
    words = shlex.split(line.split(" #")[0].split(" &&")[0])[1:]
    command: click.Command = main
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    assert not isinstance(command, click.Group) or not words or words[0].startswith("-"), f"{where}: no command {words[0]}"
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in known, f"{where}: {word} is no option of it"
