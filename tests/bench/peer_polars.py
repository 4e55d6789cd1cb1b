"""The rows of the task by Polars, from the same Parquet log: ways to find the pairs × ways to aggregate them, all lazy.

The log has no repeats, no amendments and no results without a number, so there is nothing to fold: less than ours does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

DAY_US = 86_400_000_000
KEYS = [pl.col("patient_id"), pl.col("source_id").alias("encounter_id"), pl.col("us").alias("t"), pl.col("seq").alias("place")]
_KNOWN = (pl.col("us") < pl.col("t")) & (pl.col("us") >= pl.col("t") - 90 * DAY_US) & (pl.col("seq") < pl.col("place"))


def _read(log: Path, task: dict[str, Any]) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """Index encounters, and all facts."""
    every = pl.scan_parquet(log / "facts" / "*.parquet").with_columns(pl.col("event_time").cast(pl.Int64).alias("us"))
    encounters = every.filter(pl.col("concept") <= task["visits_max"]).select(KEYS)
    return encounters, every.select("patient_id", "us", "seq", "concept", "value")


def _by_join(encounters: pl.LazyFrame, facts: pl.LazyFrame) -> pl.LazyFrame:
    """All pairs of a patient, then those that the window holds."""
    return encounters.join(facts, on="patient_id").filter(_KNOWN)


def _by_join_where(encounters: pl.LazyFrame, facts: pl.LazyFrame) -> pl.LazyFrame:
    """An inequality join."""
    same = pl.col("patient_id") == pl.col("patient_id_right")
    return encounters.join_where(facts, same, _KNOWN)


def _by_quarter(encounters: pl.LazyFrame, facts: pl.LazyFrame) -> pl.LazyFrame:
    """A join on the stretch of 90 days too: an encounter looks at its own and at the one before."""
    quarter = pl.col("t") // (90 * DAY_US)
    asked = encounters.with_columns(pl.concat_list(quarter, quarter - 1).alias("quarter")).explode("quarter")
    told = facts.with_columns((pl.col("us") // (90 * DAY_US)).alias("quarter"))
    return asked.join(told, on=["patient_id", "quarter"]).filter(_KNOWN)


def _by_position(encounters: pl.LazyFrame, facts: pl.LazyFrame) -> pl.LazyFrame:
    """Facts sorted by patient and time; two as-of joins give the first and the last of each window, which are then listed."""
    told = facts.sort("patient_id", "us").with_row_index("n").with_columns(pl.col("n").cast(pl.Int64))
    edges = told.select("patient_id", "us", "n").sort("us")
    found = encounters.sort("t").with_columns((pl.col("t") - 90 * DAY_US).alias("since"))
    end = found.join_asof(edges, left_on="t", right_on="us", by="patient_id", strategy="backward", allow_exact_matches=False)
    both = end.rename({"n": "last"}).drop("us", strict=False).join_asof(
        edges.rename({"n": "first"}), left_on="since", right_on="us", by="patient_id", strategy="forward"
    )  # fmt: skip
    pairs = both.select("place", "t", pl.int_ranges("first", pl.col("last") + 1).alias("n")).explode("n").drop_nulls("n")
    return pairs.join(told.drop("patient_id"), on="n").filter(_KNOWN)


def _outside(low: float | None, high: float | None) -> pl.Expr:
    """Outside the reference interval, of which a side may be open."""
    sides = [pl.col("value") < low] if low is not None else []
    return pl.any_horizontal(*sides, *([pl.col("value") > high] if high is not None else []))


def _days(age: pl.Expr) -> pl.Expr:
    """Divided column by column: by a constant, Polars multiplies with its inverse, and a quarter of the results differ in the last bit."""
    return age.cast(pl.Float64) / (age * 0 + DAY_US).cast(pl.Float64)


def _wide(encounters: pl.LazyFrame, pairs: pl.LazyFrame, task: dict[str, Any]) -> pl.LazyFrame:
    """One group an encounter, 46 conditional aggregates."""
    age, concept, value = pl.col("age"), pl.col("concept"), pl.col("value")
    made = []
    for name, (number, low, high) in task["labs"].items():
        for days in (5, 30, 90):
            inside = (concept == number) & (age <= days * DAY_US)
            made += [
                inside.sum().alias(f"{name}_count_{days}d"),
                (inside & _outside(low, high)).any().alias(f"{name}_any_abnormal_{days}d"),
                value.filter(inside).last().alias(f"{name}_last_{days}d"),
            ]
        made.append(_days(age.filter(concept == number).last()).alias(f"{name}_days_since_last_90d"))
    for days in (5, 30, 90):
        near = age <= days * DAY_US
        made.append(((concept == task["emergency"]) & near).sum().alias(f"ed_visits_count_{days}d"))
        made.append(((concept <= task["visits_max"]) & near).sum().alias(f"visits_count_{days}d"))
    told = pairs.with_columns((pl.col("t") - pl.col("us")).alias("age")).sort("us")
    return encounters.join(told.group_by("place", maintain_order=False).agg(made), on="place", how="left")


def _narrow(encounters: pl.LazyFrame, pairs: pl.LazyFrame, task: dict[str, Any]) -> pl.LazyFrame:
    """One group an encounter and concept: counts, the last result and the last abnormal one tell all; then a join each concept."""
    age = pl.col("age")
    abnormal = pl.any_horizontal((pl.col("concept") == lab[0]) & _outside(*lab[1:]) for lab in task["labs"].values())
    told = pairs.select("place", "concept", "value", (pl.col("t") - pl.col("us")).alias("age"))
    told = told.with_columns(pl.when(abnormal).then(age).alias("abnormal_age"))
    grouped = told.group_by("place", "concept").agg(
        (age <= 5 * DAY_US).sum().alias("n5"),
        (age <= 30 * DAY_US).sum().alias("n30"),
        pl.len().alias("n90"),
        age.min().alias("youngest"),
        pl.col("value").get(age.arg_min()).alias("last"),
        pl.col("abnormal_age").min(),
    )
    result = encounters
    for name, (number, _, _) in task["labs"].items():
        mine = grouped.filter(pl.col("concept") == number)
        columns = [pl.col(f"n{days}").alias(f"{name}_count_{days}d") for days in (5, 30, 90)]
        for days in (5, 30, 90):
            columns.append((pl.col("abnormal_age") <= days * DAY_US).alias(f"{name}_any_abnormal_{days}d"))
            columns.append(pl.when(pl.col("youngest") <= days * DAY_US).then(pl.col("last")).alias(f"{name}_last_{days}d"))
        columns.append(_days(pl.col("youngest")).alias(f"{name}_days_since_last_90d"))
        result = result.join(mine.select("place", *columns), on="place", how="left")
    emergency, every = pl.col("concept") == task["emergency"], pl.col("concept") <= task["visits_max"]
    counts = [pl.col(f"n{days}").filter(emergency).sum().alias(f"ed_visits_count_{days}d") for days in (5, 30, 90)]
    counts += [pl.col(f"n{days}").sum().alias(f"visits_count_{days}d") for days in (5, 30, 90)]
    return result.join(grouped.filter(every).group_by("place").agg(counts), on="place", how="left")


PAIRS = {"join": _by_join, "join_where": _by_join_where, "quarter": _by_quarter, "position": _by_position}
GROUPS = {"wide": _wide, "narrow": _narrow}
PLANS = ["join-wide", "join-narrow", "join_where-narrow", "quarter-narrow", "position-wide"]
"""Each way at least once; the combinations that are left out were slower."""


def run(log: Path, out: Path, plan: str, task: dict[str, Any]) -> None:
    """Write the rows with a plan of `PLANS`."""
    pairs, groups = plan.split("-")
    encounters, facts = _read(log, task)
    made = GROUPS[groups](encounters, PAIRS[pairs](encounters, facts), task)
    counted = [c for c in task["columns"] if "count" in c or "abnormal" in c]
    rest = [c for c in task["columns"] if c not in counted]
    keys = [pl.col("patient_id"), pl.col("encounter_id"), pl.col("t").cast(pl.Datetime("us", "UTC")).alias("index_time")]
    columns = [pl.col(counted).fill_null(0).cast(pl.Float64), pl.col(rest).cast(pl.Float64)]
    made.select(*keys, *columns).collect(engine="streaming").write_parquet(out, compression="lz4", statistics=True)
