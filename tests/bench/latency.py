"""Latency: from the moment at which a feed record is produced to the moment at which its score is read, both stages in one process.

The feeds are paced; times of events are those of the moment, and known time is the log's append time, as live. Before the measured
stretch the worker is given a history of each patient. The stretch tells of each patient once: a result is told hours after its draw,
and where results and visits of months are pressed into seconds, each result changes the answers to all visits before it, which is not
the task. `Delay.answers` tells how near to the task a run was.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from features.clock import DAY_US, SystemClock, rfc3339
from streams.bus import partitioner
from tests.bench import task
from tests.bench.ground import PARTITIONS, Ground, cpu_s
from tests.bench.task import Event

HISTORY_EVENTS = 4
"""Of a patient."""
HISTORY_US = 90 * DAY_US
"""Over so long a time."""
WARM_UP_S = 2.0
"""At the measured pace, before anything counts."""
PATIENCE_S = 60.0


@dataclass
class Delay:
    """Delays of the scores at one pace."""

    rate: int
    scores: int
    """First scores of encounters."""
    missing: int
    wrong: int
    """By `premonitor verify` and the conservation lines, over history and stretch."""
    check: str
    answers: float
    """Scores an event, revisions included."""
    p50_ms: float
    p90_ms: float
    p99_ms: float
    longest_ms: float
    late_ms: float
    """99th percentile of how far behind its pace a record was produced: the bench's own share."""
    worker_us: float
    """CPU of the worker an event, its idle polling included."""

    def sentence(self) -> str:
        spread = f"p50 {self.p50_ms:.1f}, p90 {self.p90_ms:.1f}, p99 {self.p99_ms:.1f}, longest {self.longest_ms:.0f} ms"
        counts = f"{self.scores:,} first scores, {self.missing} missing; {self.answers:.2f} scores an event"
        return f"{self.rate:,} events/s: {spread}; {counts}; {self.worker_us:.0f} µs CPU an event; {self.check}"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Reader(threading.Thread):
    """Notes when the first score of each encounter is read, and counts all scores."""

    def __init__(self, kafka: str, topic: str) -> None:
        super().__init__(daemon=True)
        self.read_s: dict[str, float] = {}
        self.records = 0
        self.ended = threading.Event()
        about = {"group.id": f"{topic}-latency", "enable.auto.commit": False}
        self._consumer = Consumer({"bootstrap.servers": kafka, **about})
        self._consumer.assign([TopicPartition(topic, p, 0) for p in range(PARTITIONS)])

    def run(self) -> None:
        decode = msgspec.json.Decoder(_Scored).decode
        while not self.ended.is_set():
            message = self._consumer.poll(0.1)  # one by one: `consume` would wait for more
            if message is not None and message.error() is None:
                self.records += 1
                self.read_s.setdefault(decode(message.value()).encounter_id, time.perf_counter())
        self._consumer.close()


class _Scored(msgspec.Struct):
    encounter_id: str


@dataclass(frozen=True, slots=True)
class Message:
    """A feed record but for its event time, which is set when it is sent."""

    feed: str
    patient: bytes
    before: bytes
    after: bytes
    past_us: int
    """So long before it is sent it happened."""
    encounter: str
    """Its id where it is one."""

    def value(self, now_us: int) -> bytes:
        return self.before + rfc3339(now_us - self.past_us).encode() + self.after


def live(told: Sequence[Event], *, tag: str, spread_us: int = 0) -> list[Message]:
    """The events to be told anew: each as old as it was when it became known, the known time left to the log.

    Args:
        told: Of the task.
        tag: Begins every id.
        spread_us: The events lie over so long a time before the moment at which they are sent.
    """
    first_us, last_us = told[0].event_us, told[-1].event_us
    made = []
    for number, event in enumerate(told):
        past_us = (
            spread_us * max(0, last_us - event.event_us) // max(1, last_us - first_us) if spread_us else event.known_us - event.event_us
        )
        body = msgspec.json.decode(event.value)
        body["event_time"], body["id"] = "WHEN", f"{tag}{number}"
        del body["known_time"]
        before, _, after = msgspec.json.encode(body).partition(b"WHEN")
        made.append(Message(event.feed, event.patient, before, after, past_us, body["id"] if event.feed == "encounters" else ""))
    return made


def once_each(told: Iterable[Event]) -> list[Event]:
    """Of each patient the first event."""
    first: dict[bytes, Event] = {}
    for event in told:
        first.setdefault(event.patient, event)
    return list(first.values())


def at_rate(ground: Ground, rate: int, seconds: float) -> Delay:
    """The delays at one pace."""
    n = round((WARM_UP_S + seconds) * rate)
    people = 2 * n  # of so many about half are told of among as many events
    told = task.events((1 + HISTORY_EVENTS) * people, patients=people)
    past, now = told[:-people], once_each(told[-people:])[:n]
    made, now_us = ground.generation("pace", known_time="append"), SystemClock().now_us
    at_once = {"linger.ms": 0, "acks": 1, "queue.buffering.max.messages": 1_000_000}
    producer = Producer({"bootstrap.servers": ground.kafka.address, "log_level": 0, **at_once})
    partition_of = partitioner(PARTITIONS)

    def produce(message: Message) -> None:
        producer.produce(made.prefix + message.feed, message.value(now_us()), message.patient, partition_of(message.patient))
        producer.poll(0)

    wanted = set()
    for message in live(past, tag="past", spread_us=HISTORY_US):
        produce(message)
        wanted |= {message.encounter} - {""}
    producer.flush(30)
    reader = Reader(ground.kafka.address, made.names.scores)
    reader.start()
    worker = made.start()
    try:
        await_scores(reader, wanted)
        coming = live(now, tag="now")
        gc.collect()
        gc.freeze()  # a full collection here would hold the reader for a tenth of a second
        before_s, before = cpu_s(worker.pid), reader.records
        made_s, late_s = pace(coming, produce, rate)
        producer.flush(30)
        counted = {name: at_s for name, at_s in made_s.items() if at_s >= min(made_s.values()) + WARM_UP_S}
        await_scores(reader, counted.keys())
        worker_us, answers = (cpu_s(worker.pid) - before_s) / len(now) * 1e6, (reader.records - before) / len(now)
    finally:
        reader.ended.set()
        reader.join(10)
        made.stop()
    delays_ms = np.array([reader.read_s[name] - at_s for name, at_s in counted.items() if name in reader.read_s]) * 1e3
    p50, p90, p99 = np.percentile(delays_ms, [50, 90, 99]).tolist()
    wrong, check = made.proof(ground.model, made.issued(), fed=True)
    ground.drop(made)
    late_ms = float(np.percentile(late_s, 99)) * 1e3
    missing, longest = len(counted) - len(delays_ms), float(delays_ms.max())
    return Delay(rate, len(delays_ms), missing, wrong, check, answers, p50, p90, p99, longest, late_ms, worker_us)


def pace(messages: Iterable[Message], produce: Callable[[Message], None], rate: int) -> tuple[dict[str, float], list[float]]:
    """Produce at a rate: (when each encounter was produced, how far behind the pace each record was)."""
    made_s: dict[str, float] = {}
    late_s: list[float] = []
    timer, begun_s = threading.Event(), time.perf_counter()
    for number, message in enumerate(messages):
        due_s = begun_s + number / rate
        while (left_s := due_s - time.perf_counter()) > 0:
            timer.wait(left_s)
        late_s.append(-left_s)
        if message.encounter:
            made_s[message.encounter] = time.perf_counter()
        produce(message)
    return made_s, late_s


def await_scores(reader: Reader, wanted: Set[str]) -> None:
    """Until all are read, or for so long."""
    timer, deadline_s = threading.Event(), time.monotonic() + PATIENCE_S
    while not wanted <= reader.read_s.keys() and time.monotonic() < deadline_s:
        timer.wait(0.1)
