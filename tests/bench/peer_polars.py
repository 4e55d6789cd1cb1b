"""The rows of the task by Polars, from the same Parquet log: one plan each function, all of them lazy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from tests.bench.wide import ABNORMAL_BELOW_ABOVE, DAY_US, EMERGENCY, LABS, LONGEST_US, VISITS_MAX, WINDOWS_DAYS


def _read(log: Path) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """Index encounters and facts. The log has no repeats, no amendments and no results without a number: nothing to fold."""
    every = pl.scan_parquet(log / "facts" / "*.parquet").with_columns(pl.col("event_time").cast(pl.Int64).alias("us"))
    keys = [pl.col("patient_id"), pl.col("source_id").alias("encounter_id"), pl.col("us").alias("t"), pl.col("seq").alias("place")]
    return every.filter(pl.col("concept") <= VISITS_MAX).select(keys), every.select("patient_id", "us", "seq", "concept", "value")


def _columns() -> list[pl.Expr]:
    """The 46 columns of a group of (age, concept, value), in order of event time."""
    age, concept, value = pl.col("age"), pl.col("concept"), pl.col("value")
    made = []
    for name, number in LABS.items():
        low, high = ABNORMAL_BELOW_ABOVE[number]
        for days in WINDOWS_DAYS:
            inside = (concept == number) & (age <= days * DAY_US)
            made += [
                inside.sum().cast(pl.Float64).alias(f"{name}_count_{days}d"),
                (inside & ((value < low) | (value > high))).any().cast(pl.Float64).alias(f"{name}_any_abnormal_{days}d"),
                value.filter(inside).last().alias(f"{name}_last_{days}d"),
            ]
        made.append((age.filter(concept == number).last() / DAY_US).alias(f"{name}_days_since_last_90d"))
    for days in WINDOWS_DAYS:
        near = age <= days * DAY_US
        made.append(((concept == EMERGENCY) & near).sum().cast(pl.Float64).alias(f"ed_visits_count_{days}d"))
        made.append(((concept <= VISITS_MAX) & near).sum().cast(pl.Float64).alias(f"visits_count_{days}d"))
    return made
