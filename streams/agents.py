"""All agents on one screen: they move batches and decide nothing. A batch is done when what it gave is acknowledged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import faust

from streams.admit import Admission, Row
from streams.batches import Batch, fresh
from streams.bus import Bus
from streams.metrics import Metrics
from streams.steps import Outputs, ScoreStep
from streams.topics import Names

PartitionOf = Callable[[bytes], int]
Crash = Callable[[str], None]
"""Called at named steps; tests of crashes end the process there."""


def admit_agent(app: faust.App, channel: Any, admission: Admission, bus: Bus, names: Names, metrics: Metrics, crash_at: Crash) -> Any:
    """feeds → facts, dead-letters."""

    @app.agent(channel, name="admit")
    async def admit(polls: Any) -> None:
        async for poll in polls:
            batches = fresh(poll)
            try:
                crash_at("admit.polled")
                admitted = admission([(b.tp.topic, b.times, b.records) for b in batches])
                acks = []
                for partition, rows in admitted.facts.items():
                    acks += await bus.send(names.facts, partition, rows)
                acks += await bus.send(names.dead_letters, 0, admitted.dead_letters)
                crash_at("admit.sent")
                metrics.admitted(admitted.counts)
                for batch in batches:
                    batch.done(acks)  # a feed's records may lie in any partition of facts: all wait for all
            except Exception as error:
                _fail(batches, error)

    return admit


def score_agent(
    app: faust.App, channel: Any, step: ScoreStep, bus: Bus, names: Names, metrics: Metrics, crash_at: Crash, partition_of: PartitionOf
) -> Any:
    """facts → scores, alerts, and of merged patients facts again."""

    @app.agent(channel, name="score")
    async def score(polls: Any) -> None:
        async for poll in polls:
            batches = fresh(poll)
            try:
                crash_at("score.polled")
                for batch, outputs in zip(batches, await step(batches), strict=True):
                    if isinstance(outputs, Outputs):
                        crash_at("score.stored")
                        acks = await bus.send(names.scores, batch.partition, outputs.scores)
                        acks += await bus.send(names.alerts, batch.partition, outputs.alerts)
                        for partition, rows in _by_partition(outputs.sent_on, partition_of).items():
                            acks += await bus.send(names.facts, partition, rows)
                        crash_at("score.sent")
                        metrics.scored(outputs)
                        batch.done(acks)
                    else:
                        batch.failed(outputs)
            except Exception as error:
                _fail(batches, error)

    return score


def _by_partition(rows: Sequence[Row], partition_of: PartitionOf) -> dict[int, list[Row]]:
    """Rows by the partition of their patient, in order."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(partition_of(row[0] or b""), []).append(row)
    return found


def _fail(batches: list[Batch], error: Exception) -> None:
    for batch in batches:
        batch.failed(error)
