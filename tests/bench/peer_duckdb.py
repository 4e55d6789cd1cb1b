"""The rows of the task by DuckDB, from the same Parquet log: ways to find the pairs × ways to aggregate them.

The log has no repeats, no amendments and no results without a number, so there is nothing to fold: less than ours does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb

DAY_US = 86_400_000_000
_EVERY = """
create view every as
select patient_id, source_id, epoch_us(event_time) as us, seq, concept, value from read_parquet('{log}/facts/*.parquet');
create view asked as select patient_id, source_id, us as t, seq as place from every where concept <= {visits_max};
"""
_KNOWN = f"f.us < e.t and f.us >= e.t - {90 * DAY_US} and f.seq < e.place"
_PAIR = "e.place, e.t - f.us as age, f.concept, f.value"
PAIRS = {
    "join": f"select {_PAIR} from asked e join every f on e.patient_id = f.patient_id and {_KNOWN}",
    "quarter": f"""
        select {_PAIR}
        from (select *, unnest([t // {90 * DAY_US}, t // {90 * DAY_US} - 1]) as quarter from asked) e
        join (select *, us // {90 * DAY_US} as quarter from every) f
        on e.patient_id = f.patient_id and e.quarter = f.quarter and {_KNOWN}""",
    "list": f"""
        select place, t - f.us as age, f.concept, f.value from (
            select seq as place, us as t, concept as visit, unnest(list({{'us': us, 'seq': seq, 'concept': concept, 'value': value}}) over (
                partition by patient_id order by us range between {90 * DAY_US} preceding and 1 preceding)) as f from every)
        where visit <= {{visits_max}} and f.seq < place""",
}


def _outside(low: float | None, high: float | None) -> str:
    sides = [f"value < {low}"] if low is not None else []
    return "(" + " or ".join([*sides, *([f"value > {high}"] if high is not None else [])]) + ")"


def _wide(task: dict[str, Any]) -> str:
    """One group an encounter, 46 conditional aggregates."""
    made = []
    for name, (number, low, high) in task["labs"].items():
        for days in (5, 30, 90):
            inside = f"concept = {number} and age <= {days * DAY_US}"
            made.append(f"count(*) filter ({inside}) as {name}_count_{days}d")
            made.append(f"bool_or({inside} and {_outside(low, high)}) as {name}_any_abnormal_{days}d")
            made.append(f"arg_min(value, age) filter ({inside}) as {name}_last_{days}d")
        made.append(f"min(age) filter (concept = {number}) / {DAY_US}.0::double as {name}_days_since_last_90d")
    for days in (5, 30, 90):
        made.append(f"count(*) filter (concept = {task['emergency']} and age <= {days * DAY_US}) as ed_visits_count_{days}d")
        made.append(f"count(*) filter (concept <= {task['visits_max']} and age <= {days * DAY_US}) as visits_count_{days}d")
    return f"select place, {', '.join(made)} from pairs group by place"


def _narrow(task: dict[str, Any]) -> str:
    """One group an encounter and concept: counts, the last result and the last abnormal one tell all; then one an encounter."""
    abnormal = " or ".join(f"concept = {number} and {_outside(low, high)}" for number, low, high in task["labs"].values())
    made = []
    for name, (number, *_) in task["labs"].items():
        for days in (5, 30, 90):
            made.append(f"sum(n{days}) filter (concept = {number}) as {name}_count_{days}d")
            made.append(f"bool_or(abnormal_age <= {days * DAY_US}) filter (concept = {number}) as {name}_any_abnormal_{days}d")
            made.append(f"any_value(last) filter (concept = {number} and youngest <= {days * DAY_US}) as {name}_last_{days}d")
        made.append(f"any_value(youngest) filter (concept = {number}) / {DAY_US}.0::double as {name}_days_since_last_90d")
    for days in (5, 30, 90):
        made.append(f"sum(n{days}) filter (concept = {task['emergency']}) as ed_visits_count_{days}d")
        made.append(f"sum(n{days}) filter (concept <= {task['visits_max']}) as visits_count_{days}d")
    return f"""
        with grouped as (
            select place, concept, count(*) filter (age <= {5 * DAY_US}) as n5, count(*) filter (age <= {30 * DAY_US}) as n30,
                count(*) as n90, min(age) as youngest, arg_min(value, age) as last, min(age) filter ({abnormal}) as abnormal_age
            from pairs group by place, concept)
        select place, {", ".join(made)} from grouped group by place"""


GROUPS = {"wide": _wide, "narrow": _narrow}
PLANS = ["join-wide", "join-narrow", "quarter-narrow", "list-wide"]
"""Each way at least once; the combinations that are left out were slower."""


def run(log: Path, out: Path, plan: str, task: dict[str, Any]) -> None:
    """Write the rows with a plan of `PLANS`."""
    pairs, groups = plan.split("-")
    counted = [c for c in task["columns"] if "count" in c or "abnormal" in c]
    columns = [f"coalesce({c}::double, 0) as {c}" if c in counted else c for c in task["columns"]]
    with duckdb.connect(config={"threads": 2, "preserve_insertion_order": False}) as db:
        db.execute(_EVERY.format(log=log, visits_max=task["visits_max"]))
        db.execute(f"create view pairs as {PAIRS[pairs].replace('{visits_max}', str(task['visits_max']))}")
        keys = "patient_id, source_id as encounter_id, make_timestamptz(t) as index_time"
        rows = f"select {keys}, {', '.join(columns)} from asked left join ({GROUPS[groups](task)}) using (place)"
        db.execute(f"copy ({rows}) to '{out}' (format parquet, compression lz4_raw)")
