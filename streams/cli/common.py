"""What the commands share: options and the site folder that fills them, the progress line, and how a result is said."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from features.codes import codebook
from features.usecase import UseCase
from features.usecase import load as load_use_case
from models.artifact import Model
from models.artifact import load as load_model
from streams import settings, site

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


# --- the site folder and the options that it fills ------------------------------------------------------------------------------------

F = TypeVar("F", bound=Callable[..., Any])
_SITE = "premonitor.site"


def _enter(ctx: click.Context, param: click.Parameter, told: str | None) -> None:
    ctx.meta[_SITE] = site.find(told, Path.cwd())


_SITE_HELP = "Site folder, or none; default: the nearest upwards.  [env: PREMONITOR_SITE]"
site_option = click.option(
    "--site", metavar="DIR", envvar="PREMONITOR_SITE", is_eager=True, expose_value=False, callback=_enter, help=_SITE_HELP
)
"""`--site`, for the commands that take defaults from the site folder; once each."""


def here() -> site.Site | None:
    """The site folder of the running command, if there is one."""
    found: site.Site | None = click.get_current_context().meta.get(_SITE)
    return found


def load_settings(**flags: Any) -> settings.Settings:
    """Settings from flags (None: not given), environment, site folder and defaults."""
    found = here()
    return settings.load(found.settings if found else None, **flags)


def kafka_option(function: F) -> F:
    """`--kafka`, `--prefix` and `--site`, for the commands that talk to a broker."""
    function = click.option("--prefix", default=None, help="Of topics and keys, such as prod.")(function)
    function = click.option("--kafka", "kafka_bootstrap", default=None, metavar="HOST:PORT", help="[env: PREMONITOR_KAFKA_BOOTSTRAP]")(
        function
    )
    return site_option(function)


def model_option(*, required: bool, help: str) -> Callable[[F], F]:
    """`--model`, which the site folder fills. `models` is a tuple of paths; only those of flags and environment are known to exist."""

    def fill(ctx: click.Context, param: click.Parameter, given: tuple[Path, ...]) -> tuple[Path, ...]:
        found = here()
        paths = given or (found.models if found else ())
        if required and not paths:
            raise click.MissingParameter(ctx=ctx, param=param)
        return paths

    return click.option("--model", "models", type=EXISTING, multiple=True, envvar="PREMONITOR_MODEL", callback=fill, help=help)


def use_case_option(*, required: bool = True) -> Callable[[F], F]:
    """`--use-case`, which the site folder fills, as `use_case_name`."""

    def fill(ctx: click.Context, param: click.Parameter, given: str | None) -> str | None:
        found = here()
        name = given or (found.definition.use_case if found else None)
        if required and name is None:
            raise click.MissingParameter(ctx=ctx, param=param)
        return name

    words = "Name of one of the site's or a shipped use case, or a .toml file."
    return click.option("--use-case", "use_case_name", envvar="PREMONITOR_USE_CASE", callback=fill, help=words)


def find_use_case(name: str) -> UseCase:
    """The use case of a `--use-case`: the site's own comes before a shipped one of the same name."""
    found = here()
    return found.use_case(name, codebook()) if found else load_use_case(name, codebook())


def load_models(paths: tuple[Path, ...], *, live: bool = False) -> list[Model]:
    """The models of repeated `--model`: the first is champion, the others are shadows.

    Args:
        paths: Files or folders.
        live: Whether each must have been trained with the site's own use case of its name, where the site has one. Not so for proofs of
            what was issued earlier.
    """
    book, found = codebook(), here()
    models = [load_model(path, book) for path in paths]
    for path, model in zip(paths, models, strict=True):
        if live and found and found.has_use_case(model.use_case.name):
            load_model(path, book, use_case=found.use_case(model.use_case.name, book))
    return models
