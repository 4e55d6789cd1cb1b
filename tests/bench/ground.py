"""What the bench stands on: a broker and a Redis of its own, the task's topics filled, and CPU read from /proc."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import redis
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from models.artifact import Model
from streams.admit import CONTROLS, Row
from streams.bus import Bus, partitioner
from streams.settings import Settings
from tests.bench import task
from tests.bench.generation import Generation
from tests.bench.task import PARTITIONS, Event
from tests.live import services

TICKS_S = os.sysconf("SC_CLK_TCK")
ROWS_AT_ONCE = 500
"""Of a partition of `facts` in one record batch: what a poll of admission gives to each of four partitions."""
FROM_HISTORY = {"retention.ms": "-1", "message.timestamp.after.max.ms": "9223372036854775807"}
OUTPUTS = "scores"


class Kafka(services.Kafka):
    """A broker that runs as Kafka's own start script runs it: with the full compiler and its collector."""

    def _java(self, main: str, *arguments: str) -> list[str]:
        java, *rest = super()._java(main, *arguments)
        kept = [option for option in rest if not option.startswith(("-XX:", "-Xmx"))]
        return [java, "-Xmx1g", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35", *kept]

    @property
    def pid(self) -> int:
        """Of the running process."""
        return pid_of(self)

    def log_bytes(self, topic: str) -> int:
        """What a topic takes on the broker's disk, indexes left out."""
        return sum(p.stat().st_size for p in (self.folder / "data").glob(f"{topic}-*/*.log"))


class Redis(services.Redis):
    """A Redis with its process id and its memory."""

    @property
    def pid(self) -> int:
        """Of the running process."""
        return pid_of(self)

    def used_bytes(self) -> int:
        """`used_memory` of INFO."""
        with redis.Redis.from_url(self.url) as client:
            return int(client.info("memory")["used_memory"])

    def empty(self) -> None:
        """Drop everything, between rows."""
        with redis.Redis.from_url(self.url) as client:
            client.flushall()


def pid_of(service: services.Service) -> int:
    """Process id of a running service."""
    if service._process is None:
        raise services.ServiceFailed("the service does not run")
    return service._process.pid


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, all its threads, user and system."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / TICKS_S


@dataclass
class Ground:
    """Broker, Redis, events and model, and a new prefix for each run."""

    kafka: Kafka
    redis: Redis
    folder: Path
    told: list[Event]
    model: Model
    model_file: Path
    runs: int = 0

    def __post_init__(self) -> None:
        self._admin = AdminClient({"bootstrap.servers": self.kafka.address, "log_level": 0})

    @cached_property
    def _fact_rows(self) -> dict[int, list[Row]]:
        return task.fact_rows(self.told, self.model)

    @property
    def controls(self) -> int:
        """How many controls the task has."""
        return len(task.controls(self.told, self.model))

    @property
    def merged(self) -> str:
        """Topic with all events in known-time order by partition: what the peers read."""
        return "merged-events"

    def head(self, n: int) -> str:
        """Topic with the first `n` events only, for what is too slow for all."""
        return f"head-events-{n}"

    def prepare(self, heads: Iterable[int] = ()) -> None:
        """Fill the topics that all runs share."""
        made = {self.merged: self.told} | {self.head(n): self.told[:n] for n in heads}
        self.make_topics(list(made))
        for topic, told in made.items():
            self._produce((topic, e) for e in told)

    def make_topics(self, names: Sequence[str], config: dict[str, str] | None = None) -> None:
        """Topics outside the product's own."""
        new = [NewTopic(name, PARTITIONS, 1, config=config if config is not None else FROM_HISTORY) for name in names]
        for future in self._admin.create_topics(new).values():
            future.result(30)

    def generation(self, what: str, *, known_time: Literal["append", "given"] = "given") -> Generation:
        """A new generation on an empty Redis: nobody else's topics, groups or keys."""
        self.runs += 1
        self.redis.empty()
        settings = Settings(
            kafka_bootstrap=self.kafka.address, redis_url=self.redis.url, prefix=f"{what}{self.runs}.", known_time=known_time
        )
        return Generation(settings, self.folder / f"{what}{self.runs}", self.model_file, PARTITIONS)

    def fill_facts(self, made: Generation) -> int:
        """A ready log: the rows of `facts` as admission writes them in known-time order; returns how many."""
        rows = self._fact_rows

        async def fill() -> None:
            bus = Bus(made.settings)
            await bus.start()
            try:
                for begin in range(0, max(map(len, rows.values())), ROWS_AT_ONCE):
                    for partition, log in rows.items():
                        for ack in await bus.send(made.names.facts, partition, log[begin : begin + ROWS_AT_ONCE]):
                            await ack
            finally:
                await bus.stop()

        asyncio.run(fill())
        return sum(map(len, rows.values()))

    def fill_feeds(self, made: Generation) -> int:
        """The events on their feeds as a backlog, and the controls; returns how many records."""
        controls = task.controls(self.told, self.model)
        self._produce((made.prefix + e.feed, e) for e in [*controls, *self.told])
        return len(controls) + len(self.told)

    def _produce(self, events: Iterable[tuple[str, Event]]) -> None:
        producer = Producer(
            {"bootstrap.servers": self.kafka.address, "linger.ms": 50, "batch.size": 262_144, "enable.idempotence": True, "log_level": 0}
        )
        partition_of = partitioner(PARTITIONS)
        for topic, e in events:
            partition, stamp_ms = (0, 0) if e.feed == CONTROLS else (partition_of(e.patient), max(e.known_us // 1000, 0))
            while True:
                try:
                    producer.produce(topic, e.value, e.patient or None, partition, timestamp=stamp_ms)
                    break
                except BufferError:
                    producer.poll(0.05)
            producer.poll(0)
        if producer.flush(60):
            raise services.ServiceFailed("the broker did not take the events of the bench")

    def drop(self, made: Generation) -> None:
        """Delete the topics of a run."""
        self.delete(made.all_topics)

    def delete(self, names: Sequence[str]) -> None:
        """Delete topics."""
        for future in self._admin.delete_topics(list(names)).values():
            future.result(30)

    def values(self, topic: str) -> list[bytes]:
        """All values of a topic."""
        return [value for _, value in self.records(topic)]

    def records(self, topic: str) -> list[tuple[bytes | None, bytes]]:
        """(key, value) of all records of a topic, each partition in its order."""
        consumer = Consumer({"bootstrap.servers": self.kafka.address, "group.id": f"read-{topic}", "enable.auto.commit": False})
        found: list[tuple[bytes | None, bytes]] = []
        try:
            parts = [TopicPartition(topic, p, 0) for p in range(PARTITIONS)]
            total = sum(consumer.get_watermark_offsets(part, timeout=10)[1] for part in parts)
            consumer.assign(parts)
            while len(found) < total:
                found += [(m.key(), m.value()) for m in consumer.consume(5_000, 1.0) if m.error() is None]
        finally:
            consumer.close()
        return found
