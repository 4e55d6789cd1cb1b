"""Where the score step spends its CPU: the step alone, in this process, over a real Redis, by stage.

    python tests/bench/stages.py --redis redis://127.0.0.1:6379/15 [--events 100000] [--batch 2000]

What the worker adds to it (fetch, produce, commit, the loop) is its own row of the bench less the sum here. The Redis database is emptied.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click


class Stopwatch:
    """CPU time of this thread by stage, each without the stages inside it."""

    def __init__(self) -> None:
        self.spent_s: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._open: list[str] = []
        self._since_s = time.thread_time()

    def _book(self) -> None:
        now_s = time.thread_time()
        if self._open:
            self.spent_s[self._open[-1]] += now_s - self._since_s
        self._since_s = now_s

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        self._book()
        self._open.append(stage)
        self.calls[stage] += 1
        try:
            yield
        finally:
            self._book()
            self._open.pop()

    def wrap(self, owner: Any, name: str, stage: str | Callable[[Any], str]) -> Callable[[], None]:
        """Time a function or method under the name of a stage; returns what undoes it. A name that is gone is passed over."""
        function = inspect.getattr_static(owner, name, None)
        if function is None:
            click.echo(f"no {owner.__name__}.{name} any more: its time counts to the stage around it", err=True)
            return lambda: None

        def stage_of(args: tuple[Any, ...]) -> str:
            return stage if isinstance(stage, str) else stage(args[0])

        if inspect.iscoroutinefunction(function):

            async def timed(*args: Any, **named: Any) -> Any:
                with self(stage_of(args)):
                    return await function(*args, **named)
        else:

            def timed(*args: Any, **named: Any) -> Any:
                with self(stage_of(args)):
                    return function(*args, **named)

        setattr(owner, name, timed)
        return lambda: setattr(owner, name, function)


def watch(stopwatch: Stopwatch) -> list[Callable[[], None]]:
    """Put the stages on the steps; returns what takes them off."""
    from features import history, revision
    from models import score
    from models.score import Desk, Scorer
    from streams import alert
    from streams.alert_desk import AlertDesk
    from streams.steps import ScoreStep
    from streams.store_redis import RedisStore

    def store(self: Any) -> str:
        return "store: score histories" if b"a:" in self._base else "store: fact histories"

    return [
        stopwatch.wrap(*entry)
        for entry in (
            (ScoreStep, "__call__", "step: the rest, score JSON"),
            (ScoreStep, "_pack", "pack facts"),
            (RedisStore, "apply", store),
            (history, "read", "history.read"),
            (Desk, "issue", "Desk.issue: the rest"),
            (score, "answers", "revision.answers"),
            (revision, "rows", "windows.rows"),
            (Scorer, "records", "Scorer.records"),
            (AlertDesk, "__call__", "alerts: the rest"),
            (AlertDesk, "_pack", "alerts: pack"),
            (AlertDesk, "_rows", "alerts: fold and write"),
            (alert, "items", "alerts: items"),
            (alert, "written", "alerts: written"),
        )
    ]


async def drive(step: Any, logs: dict[int, list[Any]], batch: int) -> Counter[str]:
    """Put every record through the step, one partition's batch after another's as a backlog comes."""
    from streams.driver import Batch

    made: Counter[str] = Counter()
    position = dict.fromkeys(logs, 0)
    while any(position[p] < len(log) for p, log in logs.items()):
        for p, log in logs.items():
            records = log[position[p] : position[p] + batch]
            if not records:
                continue
            start, position[p] = position[p], position[p] + len(records)
            (outputs,) = await step([Batch(p, start, position[p], records)])
            if isinstance(outputs, Exception):
                raise outputs
            made["scores"] += len(outputs.scores)
            made["alerts"] += len(outputs.alerts)
            made["histories read"] += outputs.patients_read
            made["records"] += len(records)
    return made


async def measure(events: int, batch: int, redis_url: str | None) -> tuple[Stopwatch, Counter[str]]:
    """One pass over the task; without a Redis the histories are kept in memory."""
    from streams import collector, store_redis
    from streams.alert_desk import AlertDesk
    from streams.settings import Settings
    from streams.steps import ScoreStep
    from streams.store import MemoryStore
    from tests.bench import task

    model = task.model()
    rows = task.fact_rows(task.events(events), model)
    logs = {p: [task.Record("facts", p, n, 0, key, value) for n, (key, value) in enumerate(log)] for p, log in rows.items()}

    async def rebuild(partition: int, patients: Sequence[bytes]) -> None:
        raise AssertionError(f"{len(patients)} histories of partition {partition} are damaged")

    stores: list[Any] = [MemoryStore(), MemoryStore()]
    if redis_url is not None:
        client = store_redis.connect(Settings(redis_url=redis_url))
        await client.flushdb()
        stores = [store_redis.RedisStore(client, prefix="stages.", kind=kind) for kind in "fa"]
    step = ScoreStep(stores[0], [model], rebuild=rebuild, alerts=AlertDesk(stores[1], [model.use_case]))
    collector.start()
    collector.pace("", batch)
    stopwatch = Stopwatch()
    undo = watch(stopwatch)
    try:
        return stopwatch, await drive(step, logs, batch)
    finally:
        for put_back in undo:
            put_back()


@click.command()
@click.option("--events", default=100_000, show_default=True)
@click.option("--batch", default=2_000, show_default=True)
@click.option("--redis", "redis_url", default=None, metavar="URL", help="Its database is emptied. Default: histories in memory.")
@click.option("--passes", default=1, show_default=True, help="The least of so many passes is shown for each stage.")
def main(events: int, batch: int, redis_url: str | None, passes: int) -> None:
    """Print µs of CPU per event by stage of the score step."""
    runs = [asyncio.run(measure(events, batch, redis_url)) for _ in range(passes)]
    stopwatch, made = runs[0]
    per_event = {stage: min(watch.spent_s[stage] for watch, _ in runs) / events * 1e6 for stage in stopwatch.spent_s}
    click.echo(f"{events:,} events, batches of {batch:,}: " + ", ".join(f"{n:,} {what}" for what, n in made.items()))
    for stage, us in sorted(per_event.items(), key=lambda item: -item[1]):
        click.echo(f"{us:8.2f} µs  {us / sum(per_event.values()):5.0%}  {stopwatch.calls[stage]:>9,} x  {stage}")
    click.echo(f"{sum(per_event.values()):8.2f} µs  in all")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main()
