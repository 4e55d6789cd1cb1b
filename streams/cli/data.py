"""DATA: import, schema."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import click

from features import event
from features.codes import codebook
from features.importers import ONE_CLOCK
from features.importers.build import Events, FeedCounts, build_log, checked
from streams.cli import own_data
from streams.cli.common import EXISTING, OUT, Progress, json_option, result, say, site_option

tick_option = click.option(
    "--tick-hours", type=click.FloatRange(1 / 60, 24 * 30), default=24.0, show_default=True, help="Between ticks of the log."
)


def _report(out: Path | None, counts: dict[str, FeedCounts], as_json: bool) -> None:
    """A line for each feed; `out` None: nothing was written."""
    width = max(map(len, counts), default=0)
    lines = []
    for feed, count in sorted(counts.items()):
        line = f"{feed:<{width}}  {count.rows:>10,} rows → {count.facts:>10,} events"
        if count.rejected:
            line += f"   rejected {count.rejected.total():,}: {_listed(count.rejected)}"
        if count.codes:
            line += f"   codes known {count.codes_known:,} of {len(count.codes):,} ({count.coded / count.facts:.1%} of events)"
        lines.append(line)
        if count.noted:
            lines.append(f"{'':<{width}}  noted: {_listed(count.noted)}")
    feeds = {feed: count.as_json() for feed, count in counts.items()}
    done = f"wrote {out}" if out else "checked; nothing was written"
    result({"log": str(out) if out else None, "feeds": feeds}, "\n".join([*lines, done]), as_json=as_json)


def _listed(counts: Counter[str]) -> str:
    """Words and how often, the most frequent first."""
    return " · ".join(f"{word.replace('-', ' ')} {n:,}" for word, n in counts.most_common())


def build(events: Events, out: Path | None, source: str, as_json: bool, tick_hours: float) -> None:
    """Make the log `out`, or with None only count."""
    progress, written, book = Progress("rows"), Progress("facts written"), codebook()
    if out is None:
        counts: dict[str, FeedCounts] = {}
        for _ in checked(events, counts, book=book, progress=progress):
            pass
    else:
        tick_us = round(tick_hours * 3_600_000_000)
        counts = build_log(events, out, book=book, source=source, tick_us=tick_us, progress=progress, written=written)
    written.done()
    progress.done()
    _report(out, counts, as_json)


@click.command("import")
@click.argument("kind", type=click.Choice(["csv", "eicu", "events", "meds", "mimic", "synthea"]))
@click.argument("source", type=EXISTING)
@click.option("--out", type=OUT, help="Folder of the log to make.")
@click.option("--check", is_flag=True, help="Only count; nothing is written.")
@click.option("--mapping", type=OUT, help="csv: folder of mappings; default: mapping, of the site folder if there is one.")
@click.option("--suggest", is_flag=True, help="csv: draft the mappings from names and samples, TODO where they do not tell.")
@site_option
@tick_option
@json_option
def import_(
    kind: str, source: Path, out: Path | None, check: bool, mapping: Path | None, suggest: bool, tick_hours: float, as_json: bool
) -> None:
    """Make a log from a source's tables.

    \b
    premonitor import csv ~/export --suggest
    premonitor import csv ~/export --check
    premonitor import csv ~/export --out log
    premonitor import eicu ~/eicu-demo --out log
    """
    if suggest + check + (out is not None) != 1:
        raise click.UsageError("use just one of --out LOG, --check and --suggest")
    folder = own_data.mapping_folder(kind, mapping)
    if suggest:
        own_data.suggest(kind, source, folder, as_json=as_json)
        return
    if kind in ("csv", "events"):
        build(own_data.events(kind, source, folder), out, f"{kind} {source.name}", as_json, tick_hours)
        return
    from features.importers import eicu, meds, mimic, synthea  # here: pandas takes a second to import, every other command would pay it

    events = {"eicu": eicu.events, "meds": meds.events, "mimic": mimic.events, "synthea": synthea.events}[kind](source)
    one_clock = kind in ("meds", "synthea")
    if one_clock:
        say(f"{kind} has {ONE_CLOCK}")
    build(events, out, f"{kind} {source.name}" + (f", {ONE_CLOCK}" if one_clock else ""), as_json, tick_hours)


@click.command()
@click.argument("feed", required=False, type=click.Choice(list(event.FEEDS)))
def schema(feed: str | None) -> None:
    """Print the JSON Schema of the feeds, or of one.

    \b
    premonitor schema labs
    """
    every = event.json_schema()
    click.echo(json.dumps(every[feed] if feed else every, indent=2, sort_keys=True))


COMMANDS: list[click.Command] = [import_, schema]
