"""One measured run: CPU and wall between the first and the last progress of a worker process; start-up apart."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from tests.bench.generation import Generation
from tests.bench.ground import Ground, cpu_s
from tests.bench.matrix import peak_mb
from tests.live.services import ROOT

PATIENCE_S = 600.0
COMMIT_EVERY_S = 0.2
"""Of the workers that are measured: how fine their progress is seen. The default is a second."""
LOOK_EVERY_S = 0.05


@dataclass
class Run:
    """What one run of one row gave. Rates count feed events, not the controls among them."""

    row: str
    events: int
    """Between the two marks."""
    wall_s: float
    worker_s: float
    redis_s: float
    broker_s: float
    start_s: float
    """From the start of the process to its first progress."""
    start_cpu_s: float
    check: str = ""
    """What was compared, in words."""
    wrong: int = 0
    """Missing, extra and different scores."""
    more: dict[str, float] = field(default_factory=dict)

    def per_event_us(self, seconds: float) -> float:
        return seconds / self.events * 1e6


@dataclass(frozen=True)
class Mark:
    """A moment: the clock, the CPU of the three processes, and how far the worker was."""

    at_s: float
    worker_s: float
    redis_s: float
    broker_s: float
    done: float


class Meter:
    """Takes marks of one worker process."""

    def __init__(self, row: str, ground: Ground, worker: subprocess.Popen[bytes]) -> None:
        self.row, self.ground, self.worker, self.begun_s = row, ground, worker, time.monotonic()

    def mark(self, done: float, worker_s: float | None = None) -> Mark:
        used_s = cpu_s(self.worker.pid) if worker_s is None else worker_s
        return Mark(time.monotonic(), used_s, cpu_s(self.ground.redis.pid), cpu_s(self.ground.kafka.pid), done)

    def run(self, first: Mark, last: Mark) -> Run:
        """The stretch between two marks."""
        return Run(
            row=self.row,
            events=max(1, round(last.done - first.done)),
            wall_s=last.at_s - first.at_s,
            worker_s=last.worker_s - first.worker_s,
            redis_s=last.redis_s - first.redis_s,
            broker_s=last.broker_s - first.broker_s,
            start_s=first.at_s - self.begun_s,
            start_cpu_s=first.worker_s,
        )


def of_child(row: str, ground: Ground, module: str, *arguments: str) -> Run:
    """A run of one of our own programs, which says when it begins and when it is done.

    The program prints two JSON lines, `{"done": events so far, "cpu_s": its own CPU}`, at its first event and after its last.
    """
    command = [sys.executable, "-m", f"tests.bench.{module}", "--kafka", ground.kafka.address, *arguments]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    meter, marks = Meter(row, ground, child), []
    errors: list[bytes] = []
    drain = threading.Thread(target=lambda: errors.extend(child.stderr or ()), daemon=True)
    drain.start()
    for line in child.stdout or ():
        _, brace, words = line.partition(b"{")  # a program may draw a cursor before it
        if brace:
            said = json.loads(brace + words)
            marks.append(meter.mark(said["done"], said["cpu_s"]))
    code = child.wait(PATIENCE_S)
    drain.join(5)
    if code != 0 or len(marks) != 2:
        raise RuntimeError(f"{row}: {module} ended with code {code} after {len(marks)} marks\n{b''.join(errors[-30:]).decode()}")
    return meter.run(*marks)


_NO_COORDINATOR = (KafkaError.NOT_COORDINATOR, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.COORDINATOR_LOAD_IN_PROGRESS)


class Progress:
    """How far a stage of the worker has committed, asked without joining its group."""

    def __init__(self, made: Generation, stage: str, records: dict[str, int]) -> None:
        self.total = sum(records.values())
        self._parts = [TopicPartition(topic, p) for topic in records for p in range(made.partitions)]
        self._consumer = Consumer(
            {
                "bootstrap.servers": made.settings.kafka_bootstrap,
                "group.id": f"{made.prefix}premonitor-{stage}",
                "enable.auto.commit": False,
                "log_level": 0,
            }
        )

    def done(self) -> int:
        """Records committed, as far as the broker says; a group that was just made has no coordinator yet."""
        try:
            told = self._consumer.committed(self._parts, timeout=10)
        except KafkaException as error:
            if error.args[0].code() not in _NO_COORDINATOR:
                raise
            return 0
        return sum(max(part.offset, 0) for part in told)

    def close(self) -> None:
        self._consumer.close()


def of_worker(row: str, ground: Ground, made: Generation, stages: Sequence[str], records: dict[str, dict[str, int]], *flags: str) -> Run:
    """A run of the shipped worker over what lies ready for it.

    Args:
        row: Name of the row.
        ground: Broker and Redis.
        made: Where topics and groups are.
        stages: Which stages run.
        records: For each stage, topic → how many records it must commit.
        flags: Further flags of the worker.
    """
    progress = [Progress(made, stage, records[stage]) for stage in stages]
    told = [word for stage in stages for word in ("--stage", stage)]
    worker = made.start(*told, *flags, commit_every_s=str(COMMIT_EVERY_S))
    meter, first = Meter(row, ground, worker), None
    timer, deadline_s = threading.Event(), time.monotonic() + PATIENCE_S
    before = meter.mark(0.0)
    try:
        while True:
            done = [p.done() for p in progress]
            share = statistics.fmean(d / p.total for d, p in zip(done, progress, strict=True))
            now = meter.mark(share * len(ground.told))
            if all(d >= p.total for d, p in zip(done, progress, strict=True)):
                run = meter.run(first or before, now)
                run.more["peak_mb"] = peak_mb(worker.pid)
                return run
            if first is None:
                first, before = (now if share > 0 else None), now
            if worker.poll() is not None or now.at_s > deadline_s:
                raise RuntimeError(f"{row}: {done} of {[p.total for p in progress]} records\n{made.log_text()}")
            timer.wait(LOOK_EVERY_S)
    finally:
        for p in progress:
            p.close()
        made.stop()


def as_json(runs: Sequence[Run]) -> list[dict[str, object]]:
    """Runs as plain values."""
    return [asdict(run) for run in runs]
