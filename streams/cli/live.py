"""LIVE: topics, worker, scores."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from features import tables
from features.clock import SystemClock
from features.codes import codebook
from features.errors import CheckFailed, InputError
from features.log import Log
from models import score
from streams import archive, preflight, replay, topics, verify
from streams.cli.common import (
    EXISTING,
    OUT,
    Progress,
    json_option,
    kafka_option,
    load_models,
    load_settings,
    model_option,
    refuse_existing,
    result,
    say,
)
from streams.issued import issued


@click.command("topics")
@kafka_option
@click.option("--create", is_flag=True, help="Create those that are missing.")
@click.option("--partitions", type=click.IntRange(1, 4_096), default=topics.PARTITIONS, show_default=True, help="Of facts: chosen once.")
@click.option("--replication", type=click.IntRange(1, 9), default=1, show_default=True)
@json_option
def topics_(kafka_bootstrap: str | None, prefix: str | None, create: bool, partitions: int, replication: int, as_json: bool) -> None:
    """List the topics, or create those that are missing.

    \b
    premonitor topics --create --kafka localhost:9092
    """
    told = load_settings(kafka_bootstrap=kafka_bootstrap, prefix=prefix)
    names = [topics.Names(told.prefix).prefix + t.name for t in topics.TOPICS]
    if create:
        made = asyncio.run(topics.create(told.kafka(), told.prefix, partitions=partitions, replication=replication))
        result({"created": made}, f"created {len(made)} topics" if made else "all topics exist", as_json=as_json)
        return
    counts = asyncio.run(topics.partition_counts(told.kafka(), names))
    lines = [f"{name:<32} {counts.get(name, 'missing')!s:>8}  {t.key:<8}  {t.what}" for name, t in zip(names, topics.TOPICS, strict=True)]
    result({"topics": counts}, "\n".join([f"{'topic':<32} {'parts':>8}  {'key':<8}", *lines]), as_json=as_json)


@click.command()
@model_option(required=True, help="The first of a use case is champion.")
@kafka_option
@click.option("--redis", "redis_url", default=None, metavar="URL", help="[env: PREMONITOR_REDIS_URL]")
@click.option("--name", "worker_name", default=None, help="Unique among the workers, the same after a restart.")
@click.option("--stage", "stages", multiple=True, type=click.Choice(["admit", "score"]), help="Only this stage; default both.")
@click.option("--known-time", type=click.Choice(["append", "given"]), default=None, help="given: history through the feeds.")
@click.option("--batch", "batch_records_max", type=int, default=None, help="Records of a poll at most.")
@click.option("--health-port", type=int, default=None, help="/livez, /readyz and /metrics on 127.0.0.1.")
@click.option("--allow-eviction", is_flag=True, default=None, help="Start although Redis may evict histories (demo only).")
@click.option("--allow-plaintext-sasl", "kafka_allow_plaintext_sasl", is_flag=True, default=None, help="Passwords in the clear.")
def worker(models: tuple[Path, ...], stages: tuple[str, ...], **flags: Any) -> None:
    """Admit feed records and score encounters, until stopped.

    \b
    premonitor worker --model model.json --kafka localhost:9092 --redis redis://localhost:6379/0
    premonitor worker                                                       # in a site folder
    """
    from streams import app  # here: faust takes a second to import, and only the worker needs it

    told = load_settings(stages=list(stages) or None, **flags)
    book, loaded = codebook(), load_models(models, live=True)
    ground = asyncio.run(preflight.prepare(told, loaded, book, say))
    app.run(told, loaded, book, ground, SystemClock())


@click.command()
@kafka_option
@click.option("--out", type=OUT, required=True)
@json_option
def scores(kafka_bootstrap: str | None, prefix: str | None, out: Path, as_json: bool) -> None:
    """Write the score records that were issued; a repeat of the same id and bytes is written once.

    \b
    premonitor scores --kafka localhost:9092 --out scores.parquet
    """
    refuse_existing(out)
    told = load_settings(kafka_bootstrap=kafka_bootstrap, prefix=prefix)
    progress = Progress("scores")
    found = asyncio.run(issued(told, progress))
    if not found:
        raise InputError("no scores have been issued yet")
    n = tables.write(out, tables.SCORE_SCHEMA, tables.score_pieces(_in_pieces([value for _, value in found])), progress)
    progress.done()
    result({"scores": n, "out": str(out)}, f"wrote {n:,} scores to {out}", as_json=as_json)


def _in_pieces(values: list[bytes], size: int = 20_000) -> Iterator[list[tuple[score.Score, bytes]]]:
    for begin in range(0, len(values), size):
        yield [(score.decode(value), value) for value in values[begin : begin + size]]


@click.command("archive")
@kafka_option
@click.option("--out", type=OUT, required=True, help="Folder of the log to make.")
@json_option
def archive_(kafka_bootstrap: str | None, prefix: str | None, out: Path, as_json: bool) -> None:
    """Write the log from the topic facts, with the counts of the feeds.

    \b
    premonitor archive --kafka localhost:9092 --out log
    """
    told = load_settings(kafka_bootstrap=kafka_bootstrap, prefix=prefix)
    progress = Progress("facts")
    n = asyncio.run(archive.archive(told, out, codebook(), progress))
    progress.done()
    result({"facts": n, "log": str(out)}, f"wrote {n:,} facts to {out}", as_json=as_json)


@click.command("replay")
@click.argument("log", type=EXISTING)
@model_option(required=False, help="Needed unless --kafka's workers have it.")
@kafka_option
@click.option("--speed", default="max", show_default=True, help="max, real, or xN such as x60.")
@click.option("--partitions", type=click.IntRange(1, 4_096), default=4, show_default=True, help="In one process.")
@click.option("--compare", type=EXISTING, help="Scores made live; exit 1 at a difference.")
@click.option("--out", type=OUT, help="Write the scores (in one process).")
@json_option
def replay_(
    log: Path,
    models: tuple[Path, ...],
    kafka_bootstrap: str | None,
    prefix: str | None,
    speed: str,
    partitions: int,
    compare: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Re-drive LOG through the live steps, in the order in which its facts became known.

    Without --kafka in one process, in a site folder too. With it into the topic facts of a prefix of its own, where a worker with
    --stage score makes scores.

    \b
    premonitor replay log --model model.json --compare scores.parquet
    """
    opened, loaded, factor = Log(log, codebook()), load_models(models), replay.parse_speed(speed)
    progress = Progress("records")
    if kafka_bootstrap is not None:
        if out is not None or compare is not None:
            raise click.UsageError(
                "with --kafka the workers make the scores: get them with premonitor scores, prove them with premonitor verify"
            )
        told = load_settings(kafka_bootstrap=kafka_bootstrap, prefix=prefix)
        n = asyncio.run(replay.replay_into_facts(opened, loaded, told, speed=factor, progress=progress))
        progress.done()
        result({"records": n, "prefix": told.prefix}, f"wrote {n:,} records to {topics.Names(told.prefix).facts}", as_json=as_json)
        return
    if not loaded:
        raise click.UsageError("without --kafka a replay makes the scores itself: give --model (or set PREMONITOR_MODEL)")
    if out is not None:
        refuse_existing(out)
    made = asyncio.run(replay.replay_in_process(opened, loaded, codebook(), speed=factor, partitions=partitions, progress=progress))
    progress.done()
    values = list(dict.fromkeys(made.values("scores")))
    alerts = len(made.values("alerts"))
    if out is not None:
        tables.write(out, tables.SCORE_SCHEMA, tables.score_pieces(_in_pieces(values)), progress)
    document, text = {"scores": len(values), "alerts": alerts}, f"{len(values):,} scores, {alerts:,} alert records"
    if compare is None:
        result(document, text, as_json=as_json)
        return
    found = verify.compare(tables.read_scores(compare), ((score.decode(v).score_id, v) for v in values))
    result(
        {**document, "missing": found.missing, "extra": found.extra, "different": found.different},
        "\n".join([text, found.sentence(), *found.examples]),
        as_json=as_json,
    )
    if not found.equal:
        raise CheckFailed("the replay differs from the scores that were compared")


COMMANDS: list[click.Command] = [topics_, worker, scores, archive_, replay_]
