"""START: init."""

from __future__ import annotations

from pathlib import Path

import click

from streams import site
from streams.cli.common import OUT, json_option, result

USE_CASE = "ed_60d_any"


@click.command()
@click.argument("folder", metavar="DIR", type=OUT)
@click.option("--use-case", "use_case", default=USE_CASE, show_default=True, help="Shipped use case, of which the site gets a copy.")
@json_option
def init(folder: Path, use_case: str, as_json: bool) -> None:
    """Begin a site folder, for git: commands that run in it take their defaults from its premonitor.toml.

    \b
    premonitor init my-clinic --use-case ed_60d_any
    """
    files = [str(path) for path in site.begin(folder, use_case)]
    text = "\n".join([*(f"wrote {name}" for name in files), f"next: cd {folder} and read {site.FILE}; premonitor settings show"])
    result({"folder": str(folder), "files": files}, text, as_json=as_json)


COMMANDS: list[click.Command] = [init]
