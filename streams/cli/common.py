"""What the commands share: the progress line, JSON output, and how a result is said."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from features.codes import codebook
from models.artifact import Model
from models.artifact import load as load_model

EXISTING = click.Path(exists=True, path_type=Path)
OUT = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")


def say(words: str) -> None:
    """Words for a person: stderr."""
    click.echo(words, err=True)


def result(document: dict[str, Any], text: str, *, as_json: bool) -> None:
    """The result: stdout, as a sentence or as one JSON document with sorted keys."""
    if as_json:
        click.echo(msgspec.json.encode({"format": 1, **document}, order="sorted").decode())
    else:
        click.echo(text)


class Progress:
    """A line that counts: rewritten on a terminal, else one line every 30 s."""

    def __init__(self, what: str) -> None:
        self.what, self.terminal, self.last_s, self.shown = what, sys.stderr.isatty(), time.monotonic(), False

    def __call__(self, n: int) -> None:
        now_s = time.monotonic()
        if now_s - self.last_s < (0.2 if self.terminal else 30.0):
            return
        self.last_s, self.shown = now_s, True
        click.echo(f"\r{self.what} {n:,}" if self.terminal else f"{self.what} {n:,}", err=True, nl=not self.terminal)

    def done(self) -> None:
        if self.shown and self.terminal:
            click.echo("\r" + " " * 60 + "\r", err=True, nl=False)


def refuse_existing(path: Path) -> None:
    """Outputs are never overwritten."""
    if path.exists():
        raise click.UsageError(f"{path} exists already: give another --out or remove it")


def load_models(paths: tuple[Path, ...]) -> list[Model]:
    """The models of repeated `--model`: the first is champion, the others are shadows."""
    return [load_model(path, codebook()) for path in paths]


F = TypeVar("F", bound=Callable[..., Any])


def kafka_option(function: F) -> F:
    """`--kafka` and `--prefix`, for the commands that talk to a broker."""
    function = click.option("--prefix", default=None, help="Of topics and keys, such as prod.")(function)
    return click.option("--kafka", "kafka_bootstrap", default=None, metavar="HOST:PORT", help="[env: PREMONITOR_KAFKA_BOOTSTRAP]")(function)
