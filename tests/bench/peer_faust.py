"""The other peer: Faust as its tutorials show it, a Record an event and a read and a write of Redis for each.

It does the easier task, without revisions, on the head of the events, where histories are short.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from datetime import datetime
from typing import Any

import click
import faust
import msgspec
import redis.asyncio as aioredis

from tests.bench import plain, task
from tests.bench.child import Teller


class FeedEvent(faust.Record, serializer="json"):
    """An event of either feed."""

    id: str
    patient_id: str
    event_time: str
    known_time: str
    kind: str
    encounter_class: str = ""
    code: str = ""
    value: float = 0.0


class Score(faust.Record, serializer="json"):
    """What is written for an encounter."""

    encounter_id: str
    patient_id: str
    revision: int
    risk: float
    flagged: bool
    contributions: Any
    missing: Any


def worker(kafka: str, redis_url: str, read: str, write: str, events: int) -> faust.App:
    """The app; it ends the process when it has seen all events."""
    model, teller, seen = task.model(), Teller(), 0
    limits, logistic = plain.intervals(model), plain.Logistic(model)
    folder = tempfile.mkdtemp(prefix="bench-faust-")
    app = faust.App(
        write + "-faust", broker=f"kafka://{kafka}", store="memory://", web_enabled=False, datadir=folder, topic_disable_leader=True
    )
    source = app.topic(read, value_type=FeedEvent, key_type=bytes, key_serializer="raw")
    scores = app.topic(write, value_type=Score, key_type=bytes, key_serializer="raw")
    client = aioredis.Redis.from_url(redis_url)

    async def finish() -> None:
        await app.producer.flush()
        await app.consumer.commit()
        teller.end(events)
        os._exit(0)

    @app.agent(source)
    async def answer_all(stream: Any) -> None:
        nonlocal seen
        async for event in stream:
            teller.begin()
            stored = await client.get("history:" + event.patient_id)
            patient = plain.Patient()
            patient.facts = [tuple(fact) for fact in msgspec.json.decode(stored)] if stored else []
            times = [datetime.fromisoformat(text) for text in (event.event_time, event.known_time)]
            told = plain.Told(event.id, event.patient_id, *times, event.kind, event.encounter_class, event.code, event.value)
            for answer in patient.tell(told, limits, logistic, revise=False):
                reasons = answer.flagged, answer.contributions, answer.missing
                score = Score(answer.encounter_id, answer.patient_id, 0, answer.risk, *reasons)
                await scores.send(key=event.patient_id.encode(), value=score)
            await client.set("history:" + event.patient_id, msgspec.json.encode(patient.facts))
            seen += 1
            if seen == events:
                app.loop.create_task(finish())

    return app


@click.command()
@click.option("--kafka", required=True)
@click.option("--redis", "redis_url", required=True)
@click.option("--read", required=True)
@click.option("--write", required=True)
@click.option("--events", type=int, required=True)
def main(kafka: str, redis_url: str, read: str, write: str, events: int) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    app = worker(kafka, redis_url, read, write, events)
    faust.Worker(app, loglevel="ERROR", redirect_stdouts=False, loop=loop, quiet=True).execute_from_commandline()


if __name__ == "__main__":
    main()
