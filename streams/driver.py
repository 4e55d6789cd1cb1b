"""The Driver: the whole pipeline in one thread, with topics in memory and the clock in the caller's hand.

It is `premonitor replay` without Kafka, and what tests drive: the real steps, the real order of effects, and a crash wherever it is asked
for. A crash loses everything but topics, store and commits, as a killed process does.

    feeds ─admit─▶ facts ─score─▶ scores, alerts          every box is the code that runs live
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from features.clock import ManualClock
from features.codes import Codebook
from features.event import FEEDS
from models import score
from models.artifact import Model
from streams.admit import CONTROLS, Admission, Row
from streams.alert_desk import AlertDesk
from streams.align import Align
from streams.bus import partitioner
from streams.steps import ScoreStep
from streams.store import Gap, MemoryStore, Store

Source = tuple[str, int]
"""(topic, partition)"""


class Crash(Exception):
    """The process ends here."""


@dataclass(slots=True)
class Record:
    """A record of a topic in memory, with the fields of a Kafka record that the steps read."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes


@dataclass(slots=True)
class Batch:
    """Records `[start, next)` of one partition."""

    partition: int
    start: int
    next: int
    records: Sequence[Record]


@dataclass
class Topics:
    """What survives a crash of the worker: the topics and the commits."""

    logs: dict[Source, list[Record]] = field(default_factory=dict)
    committed: dict[tuple[str, Source], int] = field(default_factory=dict)

    def append(self, topic: str, partition: int, rows: Iterable[Row], timestamp_ms: int) -> None:
        log = self.logs.setdefault((topic, partition), [])
        for key, value in rows:
            log.append(Record(topic, partition, len(log), timestamp_ms, key, value))

    def read(self, source: Source, start: int, n: int) -> list[Record]:
        return self.logs.get(source, [])[start : start + n]

    def end(self, source: Source) -> int:
        return len(self.logs.get(source, []))

    def values(self, topic: str) -> list[bytes]:
        """All values of a topic, partition by partition."""
        return [r.value for (name, _), log in sorted(self.logs.items()) if name == topic for r in log]


class Driver:
    """One worker over topics in memory.

    Args:
        models: The models that the log activates.
        book: The code sets.
        topics: Survives this driver; a new driver over the same topics and stores is the worker after a restart.
        store: Histories; `alert_store` likewise. Default: in memory, new.
        partitions: Of every topic but the controls.
        stamp: As `Settings.known_time`.
        clock: Of the broker's append times.
        at: Called with the name of each step; raises `Crash` where a test wants one.
    """

    def __init__(
        self,
        models: Sequence[Model],
        book: Codebook,
        topics: Topics,
        *,
        store: Store | None = None,
        alert_store: Store | None = None,
        partitions: int = 4,
        stamp: str = "given",
        clock: ManualClock | None = None,
        at: Callable[[str], None] = lambda step: None,
    ) -> None:
        self.topics, self.partitions, self.clock, self.at = topics, partitions, clock or ManualClock(), at
        feeds = {feed: feed for feed in FEEDS} | {CONTROLS: CONTROLS}
        self.partition_of = partitioner(partitions)
        self.admission = Admission(feeds, partitions=partitions, partition_of=self.partition_of, stamp=stamp, book=book)
        use_cases = [m.use_case for m in models]
        self.store = store if store is not None else MemoryStore()
        alert_desk = AlertDesk(alert_store if alert_store is not None else MemoryStore(), use_cases)
        self.step = ScoreStep(self.store, models, rebuild=self._rebuild, alerts=alert_desk, at=at)
        self.sources: list[Source] = [(f, p) for f in FEEDS for p in range(partitions)] + [(CONTROLS, 0)]
        self.read_to = {s: topics.committed.get(("admit", s), 0) for s in self.sources}
        self.align: Align[Source] = Align(
            read=self.admission.read, ceiling_us=lambda: 2**62, monotonic_s=self.clock.monotonic_s, keep_max=2**40
        )
        self.position: dict[int, int] = {}

    async def _rebuild(self, partition: int, patients: list[bytes]) -> None:
        raise Crash(f"{len(patients)} histories of partition {partition} are damaged")

    # --- admission ------------------------------------------------------------------------------------------------------------------

    def admit(self, n: int = 2_000, *, sources: Sequence[Source] | None = None) -> int:
        """One poll of feeds: read up to `n` records of each source, write what may go on, commit. Returns how many went on."""
        for source in sources or self.sources:
            records = self.topics.read(source, self.read_to[source], n)
            if records:
                self.align.add(source, records)
                self.read_to[source] += len(records)
        ended = {s for s in self.sources if self.read_to[s] >= self.topics.end(s)}
        ready = self.align.take(self.sources, ended)
        if not ready:
            return 0
        self.at("admit.polled")
        admitted = self.admission([(topic, *told) for (topic, _), told in ready.items()])
        for partition, rows in sorted(admitted.facts.items()):
            self.topics.append("facts", partition, rows, self.clock.now_us() // 1000)
            self.at("admit.sending")
        self.topics.append("dead-letters", 0, admitted.dead_letters, self.clock.now_us() // 1000)
        self.at("admit.sent")
        for source, (_, told) in ready.items():
            self.topics.committed["admit", source] = told[-1][0] + 1
        return sum(len(told) for _, told in ready.values())

    # --- scoring --------------------------------------------------------------------------------------------------------------------

    async def take_over(self, partition: int) -> None:
        """Begin a partition where both its commit and the stores are complete."""
        committed = self.topics.committed.get(("score", ("facts", partition)), 0)
        self.seek(partition, min(committed, await self.step.place(partition)))

    def seek(self, partition: int, place: int) -> None:
        """Read a partition from `place`."""
        self.step.let_go(partition)
        self.position[partition] = place

    async def score(self, partition: int, n: int = 2_000) -> int:
        """One batch of one partition, to its commit; returns how many records it had. A gap goes back and has none."""
        if partition not in self.position:
            await self.take_over(partition)
        start = self.position[partition]
        records = self.topics.read(("facts", partition), start, n)
        if not records:
            return 0
        self.at("score.polled")
        (outputs,) = await self.step([Batch(partition, start, start + len(records), records)])
        if isinstance(outputs, Gap):
            self.seek(partition, min(outputs.place, start))
            return 0
        if isinstance(outputs, Exception):
            raise outputs
        self.at("score.stored")
        self.topics.append("scores", partition, outputs.scores, self.clock.now_us() // 1000)
        self.at("score.sending")
        self.topics.append("alerts", partition, outputs.alerts, self.clock.now_us() // 1000)
        for key, value in outputs.sent_on:
            self.topics.append("facts", self.partition_of(key or b""), [(key, value)], self.clock.now_us() // 1000)
            self.at("score.sending")
        self.at("score.sent")
        self.position[partition] = start + len(records)
        self.topics.committed["score", ("facts", partition)] = self.position[partition]
        self.step.committed(partition, self.position[partition])
        self.at("score.committed")
        return len(records)

    async def idle_check(self, partition: int) -> bool:
        """Whether a partition without traffic had lost something; if so it is read again from there."""
        if partition not in self.position:
            await self.take_over(partition)
        stored = await self.step.place(partition)
        if stored < self.position[partition]:
            self.seek(partition, stored)
            return True
        return False

    async def drain(self, *, batch: int = 2_000) -> None:
        """Admit and score until nothing is left."""
        while self.admit(batch):
            pass
        while any(self.position.get(p) != self.topics.end(("facts", p)) for p in range(self.partitions)):
            for partition in range(self.partitions):  # a gap goes back and tries again; a merge writes to other partitions
                await self.score(partition, batch)

    def issued(self) -> list[tuple[str, bytes]]:
        """(score id, bytes) of all score records, repeats included."""
        return [(score.decode(value).score_id, value) for value in self.topics.values("scores")]
