"""A whole system on real services, as a test sees it: feeds in, a worker process, waiting for it to be done, archive and proof."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from redis import Redis as RedisClient
from redis.exceptions import RedisError

from features.codes import codebook
from features.log import Log
from models import artifact, score
from streams import topics
from streams.archive import archive
from streams.issued import issued
from streams.reader import read_topic
from streams.replay import replay_in_process
from streams.settings import Settings
from streams.verify import Comparison, conservation, verify
from tests.live.services import Kafka, Redis, free_port
from tests.live.worker import PATIENCE_S, Worker, until
from tests.stand_in import any_visit, stand_in

Event = tuple[str, dict[str, Any]]
BOTH = ("admit", "score")
ASK_S = 10.0
"""Longest wait for one answer of a broker that may be frozen."""


@dataclass
class System:
    """Everything under one prefix, so that tests share a broker."""

    kafka: str
    redis: str
    prefix: str
    folder: Path
    model: Path
    partitions: int = 4
    known_time: str = "given"
    workers: list[Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.names = topics.Names(self.prefix)
        self.settings = Settings(kafka_bootstrap=self.kafka, redis_url=self.redis, prefix=self.prefix)
        asyncio.run(topics.create(self.settings.kafka(), self.prefix, partitions=self.partitions))
        self._proofs = itertools.count(1)

    # --- in -------------------------------------------------------------------------------------------------------------------------

    @cached_property
    def _producer(self) -> Producer:
        return Producer({"bootstrap.servers": self.kafka, "linger.ms": 5, "enable.idempotence": True, "log_level": 0, **LARGE})

    def feed(self, events: Iterable[Event]) -> int:
        """Put events on the feeds, each with its known time as the record's time; returns how many."""
        return self.put((feed, json.dumps(e).encode(), e["patient_id"].encode(), record_time_ms(e)) for feed, e in events)

    def put(self, records: Iterable[tuple[str, bytes, bytes | None, int]]) -> int:
        """Put records, good or bad, on feeds: (feed, value, key, time in ms)."""
        n = 0
        for feed, value, key, time_ms in records:
            self._producer.produce(self.prefix + feed, value, key, timestamp=time_ms)
            self._producer.poll(0)
            if len(value) > 1_000_000:
                self._producer.flush(60)  # one by one: the queue is short
            n += 1
        assert self._producer.flush(60) == 0
        return n

    def feed_behind(self, worker: Worker, events: Iterable[Event]) -> None:
        """Tell events while a worker stands still: however fast the machine is, they lie before it when this returns."""
        worker.pause()
        self.feed(events)
        worker.resume()

    # --- workers --------------------------------------------------------------------------------------------------------------------

    def start(self, *flags: str, name: str = "worker-1", env: dict[str, str] | None = None, launcher: Sequence[str] = ()) -> Worker:
        """Start a worker by the installed command, or by a launcher that stands in for it."""
        port = free_port()
        command = [
            *(launcher or [str(Path(sys.executable).with_name("premonitor"))]), "worker", "--model", str(self.model),
            "--kafka", self.kafka, "--redis", self.redis, "--prefix", self.prefix, "--name", name, "--known-time", self.known_time,
            "--health-port", str(port), *flags,
        ]  # fmt: skip
        path = self.folder / f"{name}.log"
        with path.open("ab") as log:
            begin = log.tell()
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **QUICK, **(env or {})})
        worker = Worker(name, process, port, path, begin)
        self.workers.append(worker)
        return worker

    @property
    def running(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.running]

    def stop(self) -> list[int]:
        """Stop all running workers in order; returns their exit codes."""
        return [worker.stop() for worker in self.running]

    def kill(self) -> None:
        """Kill whatever still runs, frozen or not."""
        for worker in self.running:
            worker.kill()

    def close(self) -> None:
        """Leave nothing behind: no process, no client, no topic."""
        self.kill()
        for client in self.__dict__.pop("_groups", {}).values():
            client.close()
        for gone in self._admin.delete_topics([self.prefix + t.name for t in topics.TOPICS]).values():
            gone.exception()

    def log_text(self) -> str:
        return "\n".join(p.read_text(errors="replace") for p in sorted(self.folder.glob("*.log")))

    # --- what is done ---------------------------------------------------------------------------------------------------------------

    @cached_property
    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.kafka, "log_level": 0})

    @cached_property
    def state(self) -> RedisClient:
        """A client of the Redis that holds the state."""
        return RedisClient.from_url(self.redis, socket_timeout=5)

    def _partitions_of(self, names: Sequence[str]) -> list[tuple[str, int]]:
        one = (self.names.controls, self.names.dead_letters)
        return [(name, p) for name in names for p in range(1 if name in one else self.partitions)]

    def ends(self, *names: str) -> dict[tuple[str, int], int]:
        """(topic, partition) → offset of the next record."""
        latest = {TopicPartition(*tp): OffsetSpec.latest() for tp in self._partitions_of(names)}

        def ask() -> dict[tuple[str, int], int] | None:
            asked = self._admin.list_offsets(latest, request_timeout=ASK_S)
            try:
                return {(tp.topic, tp.partition): answer.result().offset for tp, answer in asked.items()}
            except KafkaException:  # a broker that is just back has another epoch than this client will ever know
                del self._admin
                return None

        return until(ask, "the broker tells its offsets") or {}

    @cached_property
    def _groups(self) -> dict[str, Consumer]:
        """Clients that ask for the offsets of the groups and never join them. An `AdminClient` that asks may crash: it has no group."""
        about = {"bootstrap.servers": self.kafka, "enable.auto.commit": False, "log_level": 0}
        return {stage: Consumer({**about, "group.id": f"{self.prefix}premonitor-{stage}"}) for stage in BOTH}

    def committed(self, stage: str, *names: str) -> dict[tuple[str, int], int]:
        """(topic, partition) → place up to which a stage has committed."""
        asked = [TopicPartition(*tp) for tp in self._partitions_of(names)]
        return {(tp.topic, tp.partition): max(tp.offset, 0) for tp in self._groups[stage].committed(asked, timeout=ASK_S)}

    def written(self, *names: str) -> int:
        """How many records stand in topics."""
        return sum(self.ends(*names).values())

    def places(self, kind: str = "f") -> dict[int, int]:
        """Partition → place up to which the state is stored: histories of facts (`f`) or of scores (`a`)."""
        stored = self.state.mget([f"{self.prefix}{kind}:{{{p}}}:place" for p in range(self.partitions)])
        return {p: int(place or 0) for p, place in enumerate(stored)}

    def left(self, stages: Sequence[str] = BOTH) -> int | None:
        """Records that are not committed by a stage, or not in the state; None while a service does not answer."""
        try:
            left = 0
            if "admit" in stages:
                left += self._uncommitted("admit", *self.names.feeds, self.names.controls)
            if "score" in stages:
                left += self._uncommitted("score", self.names.facts)
                for kind in "fa":
                    left += self.written(self.names.facts) - sum(self.places(kind).values())
            return left
        except (KafkaException, RedisError):
            return None

    def _uncommitted(self, stage: str, *names: str) -> int:
        done = self.committed(stage, *names)
        return sum(end - done[tp] for tp, end in self.ends(*names).items())

    def wait_done(self, stages: Sequence[str] = BOTH, patience_s: float = PATIENCE_S) -> None:
        """Until what is on the feeds is committed by admission, and what is on `facts` by scoring and in the state."""

        def done() -> bool:
            left = self.left(stages)
            assert left == 0 or self.running, f"{left} records are not done, and no worker runs\n{self.log_text()[-4000:]}"
            return left == 0

        try:
            until(done, "all is done", patience_s=patience_s)
        except AssertionError as late:
            raise AssertionError(f"{late}; {self.left(stages)} records are left\n{self.log_text()[-4000:]}") from None

    def finish(self) -> None:
        """Of a live run, in which time goes on for ever: until the feeds are admitted; then without time, until all is scored."""
        until(lambda: self.unadmitted() == 0, "the feeds are admitted")
        assert set(self.stop()) == {0}
        self.start("--stage", "score")  # a last tick may stand on `facts` unread
        self.wait_done(["score"])
        self.kill()

    def unadmitted(self) -> int | None:
        """Feed records that admission has not committed; None while the broker does not answer."""
        try:
            return self._uncommitted("admit", *self.names.feeds)
        except KafkaException:
            return None

    # --- proof ----------------------------------------------------------------------------------------------------------------------

    def archived(self) -> Log:
        """The log of `facts` as it is now."""
        path = self.folder / f"log-{next(self._proofs)}"
        asyncio.run(archive(self.settings, path, codebook(), lambda n: None))
        return Log(path, codebook())

    def issued(self) -> list[tuple[str, bytes]]:
        """(score id, bytes) of all score records on the topic, each different one once."""
        return asyncio.run(issued(self.settings))

    def scores(self) -> list[score.Score]:
        return [score.decode(value) for _, value in self.issued()]

    def values(self, topic: str) -> list[bytes]:
        """Everything on a topic."""

        async def read() -> list[bytes]:
            return [record.value async for records in read_topic(self.settings, topic) for record in records]

        return asyncio.run(read())

    def models(self) -> list[artifact.Model]:
        return [artifact.load(self.model, codebook())]

    def replayed(self, log: Log, partitions: int) -> tuple[dict[str, bytes], set[bytes]]:
        """Scores by id, and alerts, of a replay in this process."""
        made = asyncio.run(replay_in_process(log, self.models(), codebook(), partitions=partitions, progress=lambda n: None))
        return {score.decode(value).score_id: value for value in made.values("scores")}, set(made.values("alerts"))

    def prove(self) -> Comparison:
        """Archive, recompute, compare: scores with a backfill, alerts with a replay; the conservation lines must hold."""
        log = self.archived()
        for line in conservation(log):
            assert line.holds, line.sentence()
        found = verify(log, self.models(), self.issued())
        assert found.equal, f"{found.sentence()} {found.examples}\n{self.log_text()[-4000:]}"
        came, expected = set(self.values(self.names.alerts)), self.replayed(log, 1)[1]
        assert came == expected, f"alerts: missing {len(expected - came)}, extra {len(came - expected)}\n{self.log_text()[-4000:]}"
        return found


QUICK = {"PREMONITOR_SESSION_TIMEOUT_S": "6", "PREMONITOR_COMMIT_EVERY_S": "0.2"}
LARGE: dict[str, Any] = {"message.max.bytes": 12_000_000}

_numbers = itertools.count(1)


def systems(kafka: Kafka, redis_server: Redis, folder: Path) -> Iterator[Callable[..., System]]:
    """Makes systems for one test, each under a prefix of its own; afterwards nothing of them runs or lies on the broker."""
    model, made = folder / "model.json", list[System]()
    artifact.save(stand_in(any_visit()).artifact, model)

    def make(before: Callable[[str], object] = str, **about: Any) -> System:
        prefix = f"live-{next(_numbers)}."
        before(prefix)
        made.append(System(kafka.address, redis_server.url, prefix, folder / prefix, model, **about))
        return made[-1]

    try:
        yield make
    finally:
        for system in made:
            system.close()


def record_time_ms(event: dict[str, Any]) -> int:
    """Source time of an event; MIMIC's years lie in the future, which a broker refuses, so they are moved by 175 years."""
    moment = datetime.fromisoformat(event["known_time"].replace("Z", "+00:00"))
    shift_s = 175 * 365.25 * 86_400 if moment.year > 2100 else 0
    return max(int((moment.timestamp() - shift_s) * 1000), 0)
