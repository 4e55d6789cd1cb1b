"""MODEL: features, labels, train, backfill."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from features import tables, usecase
from features.clock import NEVER_US, to_us
from features.codes import codebook
from features.errors import InputError
from features.log import Log
from models import artifact
from streams.backfill import backfill as backfill_log
from streams.cli.common import EXISTING, OUT, Progress, json_option, load_models, refuse_existing, result

use_case_option = click.option("--use-case", "use_case_name", required=True, help="Name of a shipped use case, or a .toml file.")


@click.command()
@click.argument("log", type=EXISTING)
@use_case_option
@click.option("--out", type=OUT, required=True)
@json_option
def features(log: Path, use_case_name: str, out: Path, as_json: bool) -> None:
    """Write the row of every index encounter, as known when it became due.

    \b
    premonitor features log --use-case ed_60d_any --out features.parquet
    """
    refuse_existing(out)
    book, progress = codebook(), Progress("rows")
    n = tables.features_table(Log(log, book), usecase.load(use_case_name, book), out, progress)
    progress.done()
    result({"rows": n, "out": str(out)}, f"wrote {n:,} rows to {out}", as_json=as_json)


@click.command()
@click.argument("log", type=EXISTING)
@use_case_option
@click.option("--out", type=OUT, required=True)
@json_option
def labels(log: Path, use_case_name: str, out: Path, as_json: bool) -> None:
    """Write the label of every index encounter, and when it was known.

    \b
    premonitor labels log --use-case ed_60d_any --out labels.parquet
    """
    refuse_existing(out)
    book, progress = codebook(), Progress("rows")
    n = tables.labels_table(Log(log, book), usecase.load(use_case_name, book), out, progress)
    progress.done()
    result({"rows": n, "out": str(out)}, f"wrote {n:,} rows to {out}", as_json=as_json)


@click.command()
@click.argument("log", type=EXISTING)
@use_case_option
@click.option("--out", type=OUT, required=True)
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="Use labels known by this day only (UTC).")
@json_option
def train(log: Path, use_case_name: str, out: Path, until: datetime | None, as_json: bool) -> None:
    """Fit a model on the mature index encounters of a log.

    \b
    premonitor train log --use-case ed_60d_any --out model.json
    """
    from models import train as training  # here: scikit-learn takes seconds to import, and scoring never needs it

    refuse_existing(out)
    book = codebook()
    until_us = to_us(until.replace(tzinfo=UTC)) if until else NEVER_US
    made = training.train(Log(log, book), usecase.load(use_case_name, book), until_us=until_us)
    artifact.save(made, out)
    about = made.training
    text = (
        f"{made.version}: {about['encounters']:,} encounters of {about['patients']:,} patients, {about['events']:,} events\n"
        f"threshold {made.threshold:.3f}: {made.threshold_reason}\nwrote {out}"
    )
    result({"version": made.version, "threshold": made.threshold, "training": about, "out": str(out)}, text, as_json=as_json)


@click.command()
@click.argument("log", type=EXISTING)
@click.option("--model", "models", type=EXISTING, required=True, multiple=True, help="The first is champion, others are shadows.")
@click.option("--out", type=OUT, required=True)
@json_option
def backfill(log: Path, models: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Write the score records of a whole log, byte for byte as they would be issued live.

    \b
    premonitor backfill log --model model.json --out scores.parquet
    """
    refuse_existing(out)
    progress = Progress("scores")
    batches = backfill_log(Log(log, codebook()), load_models(models))
    n = tables.write(out, tables.SCORE_SCHEMA, tables.score_pieces(batches), progress)
    progress.done()
    if n == 0:
        out.unlink()
        raise InputError("the log gives no scores: it has no index encounter of the model's use case, or activates no model")
    result({"scores": n, "out": str(out)}, f"wrote {n:,} scores to {out}", as_json=as_json)


COMMANDS: list[click.Command] = [features, labels, train, backfill]
