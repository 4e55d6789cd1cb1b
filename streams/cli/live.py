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
from features.errors import InputError
from models import score
from streams import archive, preflight, settings, topics
from streams.cli.common import EXISTING, OUT, Progress, json_option, kafka_option, load_models, refuse_existing, result, say
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
    told = settings.load(kafka_bootstrap=kafka_bootstrap, prefix=prefix)
    names = [topics.Names(told.prefix).prefix + t.name for t in topics.TOPICS]
    if create:
        made = asyncio.run(topics.create(told.kafka(), told.prefix, partitions=partitions, replication=replication))
        result({"created": made}, f"created {len(made)} topics" if made else "all topics exist", as_json=as_json)
        return
    counts = asyncio.run(topics.partition_counts(told.kafka(), names))
    lines = [f"{name:<32} {counts.get(name, 'missing')!s:>8}  {t.key:<8}  {t.what}" for name, t in zip(names, topics.TOPICS, strict=True)]
    result({"topics": counts}, "\n".join([f"{'topic':<32} {'parts':>8}  {'key':<8}", *lines]), as_json=as_json)


@click.command()
@click.option("--model", "models", type=EXISTING, required=True, multiple=True, help="The first of a use case is champion.")
@kafka_option
@click.option("--redis", "redis_url", default=None, metavar="URL", help="[env: PREMONITOR_REDIS_URL]")
@click.option("--name", "worker_name", default=None, help="Unique among the workers, the same after a restart.")
@click.option("--stage", "stages", multiple=True, type=click.Choice(["admit", "score"]), help="Only this stage; default both.")
@click.option("--known-time", type=click.Choice(["append", "given"]), default=None, help="given: history through the feeds.")
@click.option("--batch", "batch_records_max", type=int, default=None, help="Records of a poll at most; 10000 to catch up.")
@click.option("--health-port", type=int, default=None, help="/livez, /readyz and /metrics on 127.0.0.1.")
@click.option("--allow-eviction", is_flag=True, default=None, help="Start although Redis may evict histories (demo only).")
@click.option("--allow-plaintext-sasl", "kafka_allow_plaintext_sasl", is_flag=True, default=None, help="Passwords in the clear.")
def worker(models: tuple[Path, ...], stages: tuple[str, ...], **flags: Any) -> None:
    """Admit feed records and score encounters, until stopped.

    \b
    premonitor worker --model model.json --kafka localhost:9092 --redis redis://localhost:6379/0
    """
    from streams import app  # here: faust takes a second to import, and only the worker needs it

    told = settings.load(stages=list(stages) or None, **flags)
    book, loaded = codebook(), load_models(models)
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
    told = settings.load(kafka_bootstrap=kafka_bootstrap, prefix=prefix)
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
    told = settings.load(kafka_bootstrap=kafka_bootstrap, prefix=prefix)
    progress = Progress("facts")
    n = asyncio.run(archive.archive(told, out, codebook(), progress))
    progress.done()
    result({"facts": n, "log": str(out)}, f"wrote {n:,} facts to {out}", as_json=as_json)


COMMANDS: list[click.Command] = [topics_, worker, scores, archive_]
