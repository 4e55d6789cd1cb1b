"""PROVE: verify."""

from __future__ import annotations

from pathlib import Path

import click

from features import tables
from features.codes import codebook
from features.errors import CheckFailed
from features.log import Log
from streams.cli.common import EXISTING, Progress, json_option, load_models, result
from streams.verify import conservation, told_of_two_patients
from streams.verify import verify as verify_log


@click.command()
@click.argument("log", type=EXISTING)
@click.option("--scores", type=EXISTING, required=True, help="Scores as issued: from `premonitor scores` or `backfill`.")
@click.option("--model", "models", type=EXISTING, required=True, multiple=True)
@json_option
def verify(log: Path, scores: Path, models: tuple[Path, ...], as_json: bool) -> None:
    """Prove the issued scores: recompute each from the log and compare bytes.

    \b
    premonitor verify log --scores scores.parquet --model model.json
    """
    progress = Progress("scores")
    opened = Log(log, codebook())
    found = verify_log(opened, load_models(models), tables.read_scores(scores), progress)
    progress.done()
    lines = conservation(opened)
    shared = told_of_two_patients(opened)
    document = {
        "expected": found.expected, "missing": found.missing, "extra": found.extra, "different": found.different,
        "examples": found.examples, "ids_of_two_patients": shared, "feeds": {line.feed: line.__dict__ for line in lines},
    }  # fmt: skip
    words = [f"{len(shared):,} facts stand under two patients: look at both (--json lists their ids)"] if shared else []
    result(document, "\n".join([found.sentence(), *found.examples, *(line.sentence() for line in lines), *words]), as_json=as_json)
    if not found.equal or not all(line.holds for line in lines):
        raise CheckFailed("the issued scores are not those that the log gives; see the lines above")


COMMANDS: list[click.Command] = [verify]
