"""START: demo."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from features.errors import CheckFailed, InputError
from streams.cli.common import OUT, say
from streams.replay import parse_speed

if TYPE_CHECKING:
    from streams.demo_run import Proof

EXTRAS = ("confluent_kafka", "fakeredis", "lupa")
SECONDS = 75.0


@click.command()
@click.option("--seconds", type=click.FloatRange(5, 86_400), default=None, help=f"How long the feeds are played.  [default: {SECONDS:.0f}]")
@click.option("--speed", default=None, help="xN times their own time, or max.  [default: what fits --seconds]")
@click.option("--keep", type=OUT, default=None, metavar="DIR", help="Keep log, scores and model in a new folder.")
@click.option("--no-kill", is_flag=True, help="Leave the worker alone.")
@click.option("--kafka", default=None, metavar="HOST:PORT", help="A real Kafka instead of the embedded broker.")
@click.option("--redis", default=None, metavar="URL", help="A real Redis; fake: the one in Python, even where there is a redis-server.")
def demo(seconds: float | None, speed: str | None, keep: Path | None, no_kill: bool, kafka: str | None, redis: str | None) -> None:
    """Run the whole system on this machine: real worker, sample and invented patients, a kill, and the proof.

    Needs neither Docker nor Java, opens nothing but ports of 127.0.0.1, and removes what it wrote. eICU and MIMIC-IV demo patients are
    de-identified samples under the ODbL (see streams/demo_data/SOURCE.md); all others are invented.

    \b
    premonitor demo --seconds 60
    """
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"the demo needs {', '.join(missing)}: pip install 'premonitor[demo]'")
    from streams import demo_run, demo_services, demo_view  # here: every other command would pay for their imports

    factor = parse_speed(speed) if speed is not None else None
    last_s = seconds if seconds is not None else SECONDS if factor is None else float("inf")
    view = demo_view.screen(Console(stderr=True, highlight=False))
    wish = demo_services.Wish(last_s, factor, not no_kill, keep, kafka, redis)
    try:
        demo_run.play(wish, view, lambda proof: _report(proof, keep))
    except KeyboardInterrupt:
        sys.exit(130)


def _report(proof: Proof, keep: Path | None) -> None:
    say("\nThe proof: the log was archived, every score computed anew from it and compared byte for byte.")
    click.echo("\n".join(proof.text()))
    where = keep if keep is not None else Path("demo-run")
    again = [] if keep is not None else [f"premonitor demo --keep {where}"]
    model = f"--model {where}/model.json"
    again += [f"premonitor verify {where}/log --scores {where}/scores.parquet {model}", f"premonitor replay {where}/log {model}"]
    say("\nTo try next:\n" + "\n".join(f"  {line}" for line in again))
    if not proof.holds:
        raise CheckFailed("the proof does not hold; see the lines above")


COMMANDS: list[click.Command] = [demo]
