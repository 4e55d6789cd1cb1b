"""Measure speed, latency and size: `make bench`. A table of ratios within this run; absolute figures depend on the machine.

python tests/bench/run.py                                    all rows, three repetitions, then latency
python tests/bench/run.py --events 20000 --reps 1 --rates "" a quick look
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

ROWS = ("floor", "bytewax", "risk", "score", "both", "admit", "faust")


def measure_all(
    folder: Path,
    *,
    events: int,
    reps: int,
    only: tuple[str, ...],
    rates: tuple[int, ...],
    seconds: float,
    batch: int,
    say: Any,
    **peer: bool,
) -> dict[str, Any]:
    """Run the rows, interleaved, and then the latencies; returns everything that was measured."""
    from tests.bench import latency, measure, plain, rows, task
    from tests.bench.ground import Ground, Kafka, Redis

    logging.getLogger("aiokafka").setLevel(logging.ERROR)  # a topic that was just made has no leader for a moment: retried
    told, model = task.events(events), task.model()
    plain.check_columns(model.use_case.features)
    expected = plain.answers([e.value for e in told], model)
    say(f"{len(told):,} events, {len(expected):,} answers, {sum(revision > 0 for _, revision in expected):,} of them revisions")
    runs: list[measure.Run] = []
    with Kafka(folder / "kafka") as kafka, Redis(folder / "redis") as redis:
        ground = Ground(kafka, redis, folder, told, model, task.save_model(folder))
        ground.prepare([min(rows.FAUST_EVENTS, events)] if "faust" in only else [])
        bench = rows.Bench(ground, expected, batch=batch, **peer)
        for rep in range(reps):
            for row in only:
                run = getattr(bench, row)()
                runs.append(run)
                us = f"{run.per_event_us(run.worker_s):8.2f} µs CPU, {run.per_event_us(run.wall_s):8.2f} µs wall an event"
                say(f"{rep + 1}/{reps} {row:<8} {us}  {run.check}{'' if not run.wrong else '  WRONG'}")
        delays = [latency.at_rate(ground, rate, seconds) for rate in rates]
        for delay in delays:
            say(delay.sentence())
    load = os.getloadavg()
    return {
        "events": events,
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version(), "load": load},
        "runs": measure.as_json(runs),
        "latency": [delay.as_json() for delay in delays],
    }


@click.command()
@click.option("--events", default=200_000, show_default=True)
@click.option("--reps", default=3, show_default=True, help="Repetitions of all rows, one row after the other.")
@click.option("--only", default=",".join(ROWS), show_default=True, help="Rows, joined by commas.")
@click.option("--rates", default="500,2000", show_default=True, help="Events a second of the latency rows; empty: none.")
@click.option("--seconds", default=15.0, show_default=True, help="How long each rate is held.")
@click.option("--batch", default=0, help="Records of a poll of the worker.  [default: the worker's]")
@click.option("--revise/--no-revise", default=True, show_default=True, help="Whether Bytewax makes revisions too.")
@click.option(
    "--peer-default-memory", is_flag=True, help="Leave Bytewax Python's own collector and the C library's own memory settings, not ours."
)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write what was measured as JSON.")
@click.option("--keep", type=click.Path(file_okay=False, path_type=Path), help="Keep topics and logs of the run in this folder.")
def main(
    events: int, reps: int, only: str, rates: str, seconds: float, batch: int, out: Path | None, keep: Path | None, **peer: bool
) -> None:
    """Print the table of ratios."""
    from tests.bench import table

    chosen = tuple(name.strip() for name in only.split(",") if name.strip())
    if unknown := [name for name in chosen if name not in ROWS]:
        raise click.BadParameter(f"no row is called {unknown[0]}; there are {', '.join(ROWS)}")
    paces = tuple(int(rate) for rate in rates.split(",") if rate.strip())
    folder = keep or Path(tempfile.mkdtemp(prefix="bench-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        found = measure_all(
            folder,
            events=events,
            reps=reps,
            only=chosen,
            rates=paces,
            seconds=seconds,
            batch=batch,
            say=lambda s: click.echo(s, err=True),
            **peer,
        )
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    click.echo(table.table(found))
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if wrong := [*(r["row"] for r in found["runs"] if r["wrong"]), *(f"{d['rate']:,}/s" for d in found["latency"] if d["wrong"])]:
        raise click.ClickException(f"wrong results in: {', '.join(wrong)}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
