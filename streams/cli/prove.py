"""PROVE: verify, merges."""

from __future__ import annotations

from pathlib import Path

import click

from features import tables
from features.codes import codebook
from features.errors import CheckFailed
from features.log import Log
from streams.cli.common import EXISTING, Progress, json_option, load_models, model_option, result, site_option
from streams.merges import merges as merges_of
from streams.verify import conservation, told_of_two_patients
from streams.verify import verify as verify_log


@click.command()
@click.argument("log", type=EXISTING)
@click.option("--scores", type=EXISTING, required=True, help="Scores as issued: from `premonitor scores` or `backfill`.")
@model_option(required=True, help="May be given again.")
@site_option
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


@click.command()
@click.argument("log", type=EXISTING)
@json_option
def merges(log: Path, as_json: bool) -> None:
    """List who was merged into whom, and what a person must look at where a merge was undone.

    \b
    premonitor merges log
    """
    found = merges_of(Log(log, codebook()))
    text = "\n".join(one.sentence() for one in found) or "no merges"
    result({"merges": [one.document() for one in found]}, text, as_json=as_json)


COMMANDS: list[click.Command] = [verify, merges]
