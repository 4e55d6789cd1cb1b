"""DATA: check."""

from __future__ import annotations

from typing import IO

import click

from features.codes import codebook
from features.errors import CheckFailed, InputError
from features.event import FEEDS
from streams.check import check as check_lines
from streams.cli.common import Progress, json_option, result
from streams.settings import load


@click.command()
@click.argument("file", metavar="FILE.jsonl|-", type=click.File("rb"))
@click.option("--feed", type=click.Choice(list(FEEDS)), default=None, help='Of all lines; without it each says it in "feed" or "kind".')
@click.option("--known-time", type=click.Choice(["append", "given"]), default=None, help="given: history through the feeds.")
@json_option
def check(file: IO[bytes], feed: str | None, known_time: str | None, as_json: bool) -> None:
    """Say whether admission would take these events, one JSON object a line; needs no Kafka, shows no value.

    Exit code 1 where a line would become a dead letter.

    \b
    premonitor check labs.jsonl --feed labs
    """
    progress = Progress("lines")
    found = check_lines(file, feed, stamp=load(known_time=known_time).known_time, book=codebook(), progress=progress)
    progress.done()
    if not found.lines:
        raise InputError(f"{getattr(file, 'name', '-')}: no line to check")
    width = max(map(len, found.feeds))
    lines = [
        f"{name:<{width}}  {count.lines:>10,} lines → {count.facts:>10,} facts   codes known {count.coded:,}"
        + (f"   rejected {count.rejected.total():,}" if count.rejected else "")
        for name, count in sorted(found.feeds.items())
    ]
    causes = sorted(found.causes.values(), key=lambda cause: (-cause.count, cause.lines))
    document = {
        "lines": found.lines, "rejected": found.rejected, "feeds": {name: count.document() for name, count in found.feeds.items()},
        "causes": [cause.document() for cause in causes],
    }  # fmt: skip
    result(document, "\n".join([*lines, *(cause.sentence() for cause in causes)]), as_json=as_json)
    if found.rejected:
        raise CheckFailed(f"{found.rejected:,} of {found.lines:,} lines would become dead letters; see above")


COMMANDS: list[click.Command] = [check]
