"""DATA: import, simulate, schema."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from features import event
from features.codes import codebook
from features.importers.build import Events, FeedCounts, build_log
from streams.cli.common import EXISTING, OUT, Progress, json_option, result

tick_option = click.option(
    "--tick-hours", type=click.FloatRange(1 / 60, 24 * 30), default=24.0, show_default=True, help="Between ticks of the log."
)


def _report(out: Path, counts: dict[str, FeedCounts], as_json: bool) -> None:
    width = max(map(len, counts), default=0)
    lines = []
    for feed, count in sorted(counts.items()):
        reasons = " · ".join(f"{reason} {n:,}" for reason, n in count.rejected.most_common())
        line = f"{feed:<{width}}  {count.rows:>10,} rows → {count.facts:>10,} facts   codes known {count.coded:,}"
        lines.append(line + (f"   rejected {sum(count.rejected.values()):,}: {reasons}" if reasons else ""))
    feeds = {feed: count.as_json() for feed, count in counts.items()}
    result({"log": str(out), "feeds": feeds}, "\n".join([*lines, f"wrote {out}"]), as_json=as_json)


def _build(events: Events, out: Path, source: str, as_json: bool, tick_hours: float) -> None:
    progress = Progress("rows")
    counts = build_log(events, out, book=codebook(), source=source, tick_us=round(tick_hours * 3_600_000_000), progress=progress)
    progress.done()
    _report(out, counts, as_json)


@click.command("import")
@click.argument("kind", type=click.Choice(["eicu", "mimic"]))
@click.argument("source", type=EXISTING)
@click.option("--out", type=OUT, required=True, help="Folder of the log to make.")
@tick_option
@json_option
def import_(kind: str, source: Path, out: Path, tick_hours: float, as_json: bool) -> None:
    """Make a log from a source's tables.

    \b
    premonitor import eicu ~/eicu-demo --out log
    """
    from features.importers import eicu, mimic  # here: pandas takes a second to import, and every other command would pay it

    events = {"eicu": eicu.events, "mimic": mimic.events}[kind](source)
    _build(events, out, f"{kind} {source.name}", as_json, tick_hours)


@click.command()
@click.option("--patients", type=click.IntRange(1, 1_000_000), required=True)
@click.option("--start", type=click.DateTime(["%Y-%m-%d"]), required=True)
@click.option("--end", type=click.DateTime(["%Y-%m-%d"]), required=True)
@click.option("--seed", type=click.IntRange(0), required=True, help="The same seed gives the same bytes.")
@click.option("--out", type=OUT, required=True, help="Folder of the log to make.")
@tick_option
@json_option
def simulate(patients: int, start: datetime, end: datetime, seed: int, out: Path, tick_hours: float, as_json: bool) -> None:
    """Make a log of invented patients, with late, corrected, retracted, repeated and conflicting facts.

    \b
    premonitor simulate --patients 500 --start 2025-01-01 --end 2025-12-31 --seed 1 --out log
    """
    from features.importers import simulator  # here: only this command needs it

    if end <= start:
        raise click.UsageError(f"--end {end:%Y-%m-%d} must be after --start {start:%Y-%m-%d}")
    events = simulator.events(patients=patients, start=start.replace(tzinfo=UTC), end=end.replace(tzinfo=UTC), seed=seed)
    _build(events, out, f"simulated, seed {seed}", as_json, tick_hours)


@click.command()
@click.argument("feed", required=False, type=click.Choice(list(event.FEEDS)))
def schema(feed: str | None) -> None:
    """Print the JSON Schema of the feeds, or of one.

    \b
    premonitor schema labs
    """
    every = event.json_schema()
    click.echo(json.dumps(every[feed] if feed else every, indent=2, sort_keys=True))


COMMANDS: list[click.Command] = [import_, simulate, schema]
