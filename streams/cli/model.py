"""MODEL: features, labels, leakage, train, evaluate, backfill."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from features import tables
from features.clock import DAY_US, NEVER_US, rfc3339, to_us
from features.codes import codebook
from features.errors import CheckFailed, InputError
from features.log import Log
from models import artifact, page
from models import evaluate as evaluation
from streams.backfill import backfill as backfill_log
from streams.cli.common import (
    EXISTING,
    OUT,
    Progress,
    find_use_case,
    json_option,
    load_models,
    model_option,
    refuse_existing,
    result,
    say,
    site_option,
    use_case_option,
)

if TYPE_CHECKING:
    from models.families import Weights


@click.command()
@click.argument("log", type=EXISTING)
@use_case_option()
@site_option
@click.option("--out", type=OUT, required=True)
@json_option
def features(log: Path, use_case_name: str, out: Path, as_json: bool) -> None:
    """Write the row of every index encounter, as known when it became due.

    \b
    premonitor features log --use-case ed_60d_any --out features.parquet
    """
    refuse_existing(out)
    book, progress = codebook(), Progress("rows")
    n = tables.features_table(Log(log, book), find_use_case(use_case_name), out, progress)
    progress.done()
    result({"rows": n, "out": str(out)}, f"wrote {n:,} rows to {out}", as_json=as_json)


@click.command()
@click.argument("log", type=EXISTING)
@use_case_option()
@site_option
@click.option("--out", type=OUT, required=True)
@json_option
def labels(log: Path, use_case_name: str, out: Path, as_json: bool) -> None:
    """Write the label of every index encounter, and when it was known.

    \b
    premonitor labels log --use-case ed_60d_any --out labels.parquet
    """
    refuse_existing(out)
    book, progress = codebook(), Progress("rows")
    n = tables.labels_table(Log(log, book), find_use_case(use_case_name), out, progress)
    progress.done()
    result({"rows": n, "out": str(out)}, f"wrote {n:,} rows to {out}", as_json=as_json)


@click.command()
@click.argument("log", type=EXISTING)
@use_case_option()
@site_option
@click.option("--delay-days", type=click.FloatRange(min=0, min_open=True), default=1.0, show_default=True, help="How much later.")
@json_option
def leakage(log: Path, use_case_name: str, delay_days: float, as_json: bool) -> None:
    """Name the features that may look ahead: those that move if all becomes known later, those that know the label alone.

    \b
    premonitor leakage log --use-case ed_60d_any
    """
    from models import guard
    from models import train as training

    progress = Progress("patients")
    found = training.leakage(Log(log, codebook()), find_use_case(use_case_name), delay_us=round(delay_days * DAY_US), progress=progress)
    progress.done()
    document = {"delay_days": delay_days, **{name: getattr(found, name) for name in guard.Leakage.__slots__}}
    result(document, guard.sentences(found, delay_days), as_json=as_json)
    if found.alone or found.looks_ahead:
        raise CheckFailed("some features know too much; see the lines above")


@click.command()
@click.argument("log", type=EXISTING)
@use_case_option()
@site_option
@click.option("--out", type=OUT, required=True)
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="Use labels known by this day only (UTC).")
@click.option("--cut", type=click.DateTime(["%Y-%m-%d"]), help="Train before this day (UTC), hold out other patients behind it.")
@click.option("--embargo-days", type=click.IntRange(min=0), help="Left empty behind the cut; default: the time at risk.")
@click.option("--class-weight", type=click.Choice(["none", "balanced"]), default="none", show_default=True)
@click.option("--compare", "with_families", is_flag=True, help="Print a table of model families on the same rows and folds.")
@json_option
def train(
    log: Path,
    use_case_name: str,
    out: Path,
    until: datetime | None,
    cut: datetime | None,
    embargo_days: int | None,
    class_weight: Weights,
    with_families: bool,
    as_json: bool,
) -> None:
    """Fit a model on the mature index encounters of a log.

    \b
    premonitor train log --use-case ed_60d_any --out model.json
    premonitor train log --use-case ed_60d_any --out model.json --cut 2025-07-01 --compare
    """
    from models import families, guard  # here: scikit-learn takes seconds to import, and scoring never needs it
    from models import train as training

    refuse_existing(out)
    if embargo_days is not None and cut is None:
        raise click.UsageError("--embargo-days lies behind a cut: give --cut too")
    until_us, cut_us = (to_us(day.replace(tzinfo=UTC)) if day else None for day in (until, cut))
    until_us, use_case = NEVER_US if until_us is None else until_us, find_use_case(use_case_name)
    progress = Progress("patients")
    rows = training.collect(Log(log, codebook()), use_case, until_us=until_us, progress=progress)
    progress.done()
    say(f"fitting and tuning on the visits of {len(set(rows.patient.tolist())):,} patients")
    parts = training.split_of(rows, use_case, cut_us=cut_us, embargo_us=None if embargo_days is None else embargo_days * DAY_US)
    made = training.train_rows(rows, use_case, parts, until_us=until_us, class_weight=class_weight)
    found = training.compare(rows, use_case, parts, class_weight=class_weight) if with_families else None
    artifact.save(made, out)
    about, document = made.training, {"version": made.version, "threshold": made.threshold, "training": made.training, "out": str(out)}
    lines = [
        f"{made.version}: {about['encounters']:,} encounters of {about['patients']:,} patients, {about['events']:,} events",
        f"threshold {made.threshold:.3f}: {made.threshold_reason}",
    ]
    if cut_us is not None:
        behind = f"{about['held_out']:,} visits of other patients are held out from {rfc3339(cut_us + parts.embargo_us)} on"
        lines += [behind, *([f"warning: {parts.warning}"] if parts.warning else [])]
    if about["constant_columns"]:
        lines.append(f"constant in training, so without effect: {guard.shortened(about['constant_columns'])}")
    if found is not None:
        lines.append(families.table(found))
        document |= {"families": found, "families_note": families.ONLY_ONE}
    result(document, "\n".join([*lines, f"wrote {out}"]), as_json=as_json)


@click.command()
@click.argument("log", type=EXISTING)
@model_option(required=True, help="Of several the first is evaluated.")
@site_option
@click.option("--from", "since", type=click.DateTime(["%Y-%m-%d"]), help="Visits from this day on (UTC); default: after the training.")
@click.option("--until", type=click.DateTime(["%Y-%m-%d"]), help="Visits before this day (UTC); default: all with a mature label.")
@click.option("--out", type=OUT, help="Write the page for a committee, one HTML file.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the draws behind the intervals.")
@json_option
def evaluate(
    log: Path, models: tuple[Path, ...], since: datetime | None, until: datetime | None, out: Path | None, seed: int, as_json: bool
) -> None:
    """Say how good a model is on visits behind its training, with intervals by patient, and for which groups.

    \b
    premonitor evaluate log --model model.json --out evaluation.html
    """
    if out is not None:
        refuse_existing(out)
    from_us, until_us = (to_us(day.replace(tzinfo=UTC)) if day else None for day in (since, until))
    model = load_models(models[:1])[0]
    reading, drawing = Progress("patients"), Progress("samples")
    found = evaluation.evaluate(
        Log(log, codebook()),
        model,
        from_us=from_us,
        until_us=NEVER_US if until_us is None else until_us,
        seed=seed,
        reading=reading,
        drawing=drawing,
    )
    drawing.done()
    written = ""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page.render(found), encoding="utf-8")
        written = f"\nwrote {out}"
    result(found, page.summary(found) + written, as_json=as_json)


@click.command()
@click.argument("log", type=EXISTING)
@model_option(required=True, help="The first is champion, others are shadows.")
@site_option
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


COMMANDS: list[click.Command] = [features, labels, leakage, train, evaluate, backfill]
