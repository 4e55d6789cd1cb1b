"""DATA: simulate, the clinic with known truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from features.clinic import Clinic, Knobs, Scenario, scenario
from features.tables import truth_table
from streams.cli.common import OUT, Progress, json_option, refuse_existing, say
from streams.cli.data import build, tick_option

SHARE = click.FloatRange(0, 1)
DEFAULTS = Knobs()


def _share(name: str, words: str) -> Callable[[Any], Any]:
    return click.option(f"--{name}", type=SHARE, default=getattr(DEFAULTS, name), show_default=True, metavar="SHARE", help=words)


def _read(name: str, read: Callable[[str], Any], form: str, words: str) -> Callable[[Any], Any]:
    """An option that may be given again and again, each time in `form`."""

    def every(ctx: click.Context, param: click.Parameter, texts: tuple[str, ...]) -> tuple[Any, ...]:
        return tuple(map(read, texts))

    return click.option(f"--{name}", multiple=True, metavar=form, callback=every, help=words)


@click.command()
@click.option("--patients", type=click.IntRange(1, 1_000_000), required=True, help="Who ever appear.")
@click.option("--start", type=click.DateTime(["%Y-%m-%d"]), required=True)
@click.option("--end", type=click.DateTime(["%Y-%m-%d"]), required=True)
@click.option("--seed", type=click.IntRange(0), required=True, help="The same seed gives the same bytes.")
@click.option("--out", type=OUT, required=True, help="Folder of the log to make.")
@click.option("--truth", type=OUT, help="Parquet to write: the true 60-day risk at each clinic visit.")
@click.option("--site", "sites", type=click.IntRange(1, 1_000), default=1, show_default=True, help="How many sites, site-1 on.")
@click.option("--volume", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Clinic visits, as a factor.")
@_share("late", "Visits and results told more than a day late.")
@_share("corrected", "Facts that a higher version corrects.")
@_share("retracted", "Facts taken back.")
@_share("duplicated", "Records sent twice.")
@_share("conflicting", "Records told again with other content.")
@_share("missing", "Panels and weights never measured.")
@_share("merges", "Patients told under two ids until a merge.")
@_read("drift", scenario.change, "[GROUP:]FACTOR[@DATE]", "The hazard of an emergency visit times FACTOR from DATE on: 1.5@2025-03-01.")
@_read("slope", scenario.change, "[GROUP:]FACTOR[@DATE]", "Differences in log hazard times FACTOR.")
@_read("case-mix", scenario.change, "SD[@DATE]", "Who enrols from DATE on is frailer by so many standard deviations.")
@_read("bias", scenario.bias, "GROUP=FACTOR", "A group's hazard times FACTOR, which shows in nothing else: black=1.3, site-2=1.5.")
@_read("silent", scenario.outage, "FEED@D..D", "A feed tells nothing from the first day to before the second, for good.")
@_read("half-lost", scenario.outage, "FEED@D..D", "A feed loses each record with a chance of one half.")
@_read("unit-change", scenario.site_change, "SITE@DATE", "A site's hemoglobin comes in g/L, still labelled g/dL: 2@2025-03-01.")
@tick_option
@json_option
def simulate(
    patients: int, start: datetime, end: datetime, seed: int, out: Path, truth: Path | None, tick_hours: float, as_json: bool, **asked: Any
) -> None:
    """Make a log of invented oncology patients, with late, corrected, retracted, repeated and conflicting facts.

    \b
    premonitor simulate --patients 500 --start 2025-01-01 --end 2025-12-31 --seed 1 --out log
    premonitor simulate --patients 500 --start 2025-01-01 --end 2025-12-31 --seed 1 --out log --truth T.parquet --drift 1.5@2025-07-01
    """
    if end <= start:
        raise click.UsageError(f"--end {end:%Y-%m-%d} must be after --start {start:%Y-%m-%d}")
    knobs = Knobs(**{f.name: asked[f.name] for f in fields(Knobs) if f.name in asked})
    world = Scenario(**{f.name: asked[f.name] for f in fields(Scenario) if f.name in asked})
    clinic = Clinic(patients, start.replace(tzinfo=UTC), end.replace(tzinfo=UTC), seed, knobs, world)
    if truth is not None:
        refuse_existing(truth)
    build(clinic.events(), out, f"simulated, seed {seed}", as_json, tick_hours)
    if truth is not None:
        progress = Progress("visits")
        visits = truth_table(clinic, truth, progress)
        progress.done()
        say(f"wrote the truth of {visits:,} visits to {truth}")


COMMANDS: list[click.Command] = [simulate]
