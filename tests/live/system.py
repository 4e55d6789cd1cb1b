"""A whole system on real services, as a test sees it: feeds in, a worker process, waiting for it to be done, archive and proof."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka import Producer

from features.codes import codebook
from features.event import FEEDS
from features.log import Log
from models import artifact
from streams import topics
from streams.archive import archive
from streams.issued import issued
from streams.settings import Settings
from streams.verify import Comparison, conservation, verify

PATIENCE_S = 120.0


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
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.settings = Settings(kafka_bootstrap=self.kafka, redis_url=self.redis, prefix=self.prefix)
        asyncio.run(topics.create(self.settings.kafka(), self.prefix, partitions=self.partitions))

    def feed(self, events: Iterable[tuple[str, dict[str, Any]]]) -> int:
        """Put events on the feeds, each with its known time as the record's time; returns how many."""
        producer = Producer({"bootstrap.servers": self.kafka, "linger.ms": 20, "enable.idempotence": True, "log_level": 0})
        n = 0
        for feed, event in events:
            producer.produce(self.prefix + feed, json.dumps(event).encode(), event["patient_id"].encode(), timestamp=record_time_ms(event))
            producer.poll(0)
            n += 1
        assert producer.flush(60) == 0
        return n

    def start(self, *flags: str, name: str = "worker-1", env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a worker by the installed command."""
        command = [
            str(Path(sys.executable).with_name("premonitor")), "worker", "--model", str(self.model), "--kafka", self.kafka,
            "--redis", self.redis, "--prefix", self.prefix, "--name", name, "--known-time", self.known_time, *flags,
        ]  # fmt: skip
        log = (self.folder / f"{name}.log").open("ab")
        worker = subprocess.Popen(command, stderr=log, env={**os.environ, "PREMONITOR_SESSION_TIMEOUT_S": "6", **(env or {})})
        self.workers.append(worker)
        return worker

    def stop(self) -> list[int]:
        """Stop all workers in order; returns their exit codes."""
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM)
        codes = [worker.wait(40) for worker in self.workers]
        self.workers.clear()
        return codes

    def log_text(self) -> str:
        return "\n".join(p.read_text() for p in sorted(self.folder.glob("*.log")))

    def wait_done(self, patience_s: float = PATIENCE_S) -> None:
        """Until everything that is on the feeds is committed by admission, and everything on `facts` by scoring."""
        deadline = time.monotonic() + patience_s
        while True:
            left = asyncio.run(self._left())
            if left == 0:
                return
            running = [w for w in self.workers if w.poll() is None]
            if not running or time.monotonic() > deadline:
                raise AssertionError(
                    f"{left} records are not done; exit codes {[w.poll() for w in self.workers]}\n{self.log_text()[-4000:]}"
                )

    async def _left(self) -> int:
        names = topics.Names(self.prefix)
        left = 0
        consumer = AIOKafkaConsumer(bootstrap_servers=self.kafka)
        await consumer.start()
        try:
            for stage, wanted in (("admit", [self.prefix + f for f in FEEDS] + [names.controls]), ("score", [names.facts])):
                tps = [TopicPartition(t, p) for t in wanted for p in range(1 if t == names.controls else self.partitions)]
                done = await topics.committed(self.settings.kafka(), self.prefix, stage)
                left += sum(end - done.get(tp, 0) for tp, end in (await consumer.end_offsets(tps)).items())
        finally:
            await consumer.stop()
        return left

    def archived(self, name: str = "log") -> Log:
        """The log of `facts` as it is now."""
        asyncio.run(archive(self.settings, self.folder / name, codebook(), lambda n: None))
        return Log(self.folder / name, codebook())

    def issued(self) -> list[tuple[str, bytes]]:
        """(score id, bytes) of all score records on the topic, each different one once."""
        return asyncio.run(issued(self.settings))

    def prove(self, name: str = "log") -> Comparison:
        """Archive, recompute, compare; the conservation lines must hold."""
        log = self.archived(name)
        for line in conservation(log):
            assert line.holds, line.sentence()
        found = verify(log, [artifact.load(self.model, codebook())], self.issued())
        assert found.equal, f"{found.sentence()} {found.examples}\n{self.log_text()[-4000:]}"
        return found


def record_time_ms(event: dict[str, Any]) -> int:
    """Source time of an event; MIMIC's years lie in the future, which a broker refuses, so they are moved by 175 years."""
    moment = datetime.fromisoformat(event["known_time"].replace("Z", "+00:00"))
    shift_s = 175 * 365.25 * 86_400 if moment.year > 2100 else 0
    return max(int((moment.timestamp() - shift_s) * 1000), 0)
