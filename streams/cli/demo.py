"""START: demo."""

from __future__ import annotations

import importlib.util
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource
from rich.console import Console

from features.codes import codebook
from features.errors import CheckFailed, InputError
from features.log import Log
from streams.cli.common import EXISTING, OUT, load_models, model_option, say, site_option
from streams.replay import parse_speed

if TYPE_CHECKING:
    from streams.demo_run import Proof
    from streams.demo_services import Wish

EXTRAS = ("confluent_kafka", "fakeredis", "lupa")
SECONDS = 75.0


@click.command()
@click.option("--log", "own", type=EXISTING, default=None, metavar="LOG", help="Play this log instead: your own history, marked REPLAY.")
@model_option(required=False, help="For --log: a model file or folder, more are shadows.")
@site_option
@click.option("--seconds", type=click.FloatRange(5, 86_400), default=None, help=f"How long the feeds are played.  [default: {SECONDS:.0f}]")
@click.option("--speed", default=None, help="xN times their own time, or max.  [default: what fits --seconds]")
@click.option("--keep", type=OUT, default=None, metavar="DIR", help="Keep log, scores and the demo's own model in a new folder.")
@click.option("--no-kill", is_flag=True, help="Leave the worker alone.")
@click.option("--kafka", default=None, metavar="HOST:PORT", help="A real Kafka instead of the embedded broker.")
@click.option("--redis", default=None, metavar="URL", help="A real Redis; fake: the one in Python, even where there is a redis-server.")
@click.pass_context
def demo(
    ctx: click.Context,
    own: Path | None,
    models: tuple[Path, ...],
    seconds: float | None,
    speed: str | None,
    keep: Path | None,
    no_kill: bool,
    kafka: str | None,
    redis: str | None,
) -> None:
    """Run the whole system on this machine: real worker, sample and invented patients, a kill, and the proof.

    Needs neither Docker nor Java, opens nothing but ports of 127.0.0.1, and removes what it wrote. eICU and MIMIC-IV demo patients are
    de-identified samples under the ODbL (see streams/demo_data/SOURCE.md); all others are invented.

    With --log a site's own history instead: the topics are thrown away, nothing leaves this machine. Of more than 20,000 events the last
    are played. In a site folder the models of premonitor.toml are those of the log.

    \b
    premonitor demo --seconds 60
    premonitor demo --log log --model models/v1
    """
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"the demo needs {', '.join(missing)}: pip install 'premonitor[demo]'")
    if own is not None:
        _check_own(own, models, kafka, redis)
    elif ctx.get_parameter_source("models") is ParameterSource.COMMANDLINE:
        raise InputError("--model is for your own history: add --log LOG. Without a log the demo trains a model for its own patients")
    from streams import demo_run, demo_services, demo_view  # here: every other command would pay for their imports

    factor = parse_speed(speed) if speed is not None else None
    last_s = seconds if seconds is not None else SECONDS if factor is None else float("inf")
    view = demo_view.screen(Console(stderr=True, highlight=False))
    wish = demo_services.Wish(last_s, factor, not no_kill, keep, kafka, redis, own, models if own is not None else ())
    try:
        demo_run.play(wish, view, lambda proof: _report(proof, wish))
    except KeyboardInterrupt:
        sys.exit(130)


def _check_own(own: Path, models: tuple[Path, ...], kafka: str | None, redis: str | None) -> None:
    """Log and models are readable and nothing leaves the machine, before anything is started."""
    if not models:
        raise InputError("--log needs a model: add --model PATH, or list it under models in premonitor.toml. Make one: premonitor train")
    if kafka is not None or redis not in (None, "fake"):
        remedy = "premonitor replay LOG --kafka HOST:PORT --prefix replay.try1."
        raise InputError(f"--log plays on the embedded broker and Redis alone, so that no patient leaves this machine. Elsewhere: {remedy}")
    load_models(models, live=True)
    Log(own, codebook())


def _report(proof: Proof, wish: Wish) -> None:
    say("\nThe proof: the log was archived, every score computed anew from it and compared byte for byte.")
    click.echo("\n".join(proof.text()))
    where = wish.keep or Path("demo-run")
    model = shlex.join(word for path in wish.models or [where / "model.json"] for word in ("--model", str(path)))
    own = "" if wish.log is None else f" {shlex.join(('--log', str(wish.log)))} {model}"
    again = [] if wish.keep is not None else [f"premonitor demo --keep {where}{own}"]
    again += [f"premonitor verify {where}/log --scores {where}/scores.parquet {model}", f"premonitor replay {where}/log {model}"]
    say("\nTo try next:\n" + "\n".join(f"  {line}" for line in again))
    if not proof.holds:
        raise CheckFailed("the proof does not hold; see the lines above")


COMMANDS: list[click.Command] = [demo]
