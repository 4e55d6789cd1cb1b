"""How long training takes and how much memory it needs, on invented rows: cross-validation, final fit, threshold, model file.

python tests/bench/training.py                       300,000 visits of 40,000 patients, 150 columns
python tests/bench/training.py --encounters 20000 --compare    a quick look at all families
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

if TYPE_CHECKING:
    from models.train import Rows

LABS, CONCEPTS = 10, ("hemoglobin", "hematocrit", "albumin", "bilirubin")
AGGREGATES = ("count", "any_abnormal", "min", "max", "last")
DAYS = (5, 30, 90)
FIRST_US, DAY_US = 1_577_836_800_000_000, 86_400_000_000
LIMIT_S, LIMIT_GB = 180.0, 4.0


def use_case_text() -> str:
    """150 columns: counts and flags are never null, the smallest, largest and last value of a window are where it is empty."""
    group = '[[features]]\nname = "lab_{}"\nconcepts = ["{}"]\naggregates = {}\ndays = {}\n'
    features = "".join(group.format(n, CONCEPTS[n % len(CONCEPTS)], list(AGGREGATES), list(DAYS)) for n in range(LABS))
    return f'name = "bench"\n{features}[index]\nclasses = ["ambulatory"]\n[outcome]\nconcepts = ["visit.emergency"]\nhorizon_days = 60\n'


def invent(encounters: int, seed: int) -> Rows:
    """Rows as `train.collect` gives them: windows nested in each other, nulls where nothing was counted, one label in ten an event."""
    from models.train import Rows

    rng = np.random.default_rng(seed)
    patient = rng.integers(0, 2**62, max(encounters * 2 // 15, 10))[rng.integers(0, max(encounters * 2 // 15, 10), encounters)]
    columns, logit = [], np.full(encounters, -2.6)
    for _ in range(LABS):
        level = rng.normal(0, 1, encounters)
        counts = np.cumsum([rng.poisson(rate, encounters) for rate in (0.3, 0.6, 1.0)], axis=0)
        noise = [rng.normal(0, 0.5, encounters) for _ in range(3)]
        empty = [np.where(n > 0, 0.0, np.nan) for n in counts]
        columns += [*counts.astype(np.float64), *((level < -1) & (n > 0) for n in counts)]
        for shift in (-0.5, 0.5, 0.0):
            columns += [level + shift + e + gap for e, gap in zip(noise, empty, strict=True)]
        logit += rng.normal(0, 0.2) * level + rng.normal(0, 0.1) * (counts[2] > 2)
    index_us = FIRST_US + rng.integers(0, 1_000, encounters) * DAY_US
    label = (rng.random(encounters) < 1 / (1 + np.exp(-logit))).astype(np.float64)
    return Rows(np.column_stack(columns), label, patient, index_us, index_us + 60 * DAY_US, {})


@click.command()
@click.option("--encounters", default=300_000, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--compare", "with_families", is_flag=True, help="Print the table of families too; outside the limits.")
def main(encounters: int, seed: int, with_families: bool) -> None:
    """Print seconds and peak memory; exit 1 beyond the limits."""
    from features import usecase
    from features.codes import codebook
    from models import families, train

    use_case = usecase.parse(use_case_text(), source="bench.toml", book=codebook())
    rows = invent(encounters, seed)
    n, p = rows.matrix.shape
    events = f"{rows.label.mean():.1%} with the event, {np.isnan(rows.matrix).mean():.0%} null"
    click.echo(f"{n:,} visits of {len(np.unique(rows.patient)):,} patients × {p} columns, {events}; seed {seed}")
    begin, cpu = time.perf_counter(), time.process_time()
    made = train.train_rows(rows, use_case, train.split_of(rows, use_case))
    took, cpu = time.perf_counter() - begin, time.process_time() - cpu
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    click.echo(f"C {made.training['penalty_c']} of {len(families.PENALTIES)} in {made.training['folds']} folds; {made.threshold_reason}")
    click.echo(f"{took:.0f} s ({cpu:.0f} s CPU, {families.THREADS} thread), peak memory {peak_gb:.2f} GB with the rows")
    if with_families:
        click.echo(families.table(train.compare(rows, use_case, train.split_of(rows, use_case))))
    if took > LIMIT_S or peak_gb > LIMIT_GB:
        raise click.ClickException(f"more than {LIMIT_S:.0f} s or {LIMIT_GB:.0f} GB")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
