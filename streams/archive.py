"""Archive: the topic `facts` as a Parquet log, and the counts of the feeds that it came from.

Partitions have no order among each other; the controls, which stand in all of them in the same order, give one. Between two controls
the partitions follow one another. What stands behind a control that has not reached every partition yet is left for the next archive.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from features import codes, fact
from features.codes import Codebook
from features.log import LogWriter, buckets_for
from features.progress import Progress
from streams import dead_letters
from streams.reader import reach, read_topic
from streams.settings import Settings
from streams.topics import Names, committed

Entry = tuple[str | None, bytes]
"""(patient, value); patient None: a control."""


@dataclass
class Merge:
    """Puts the records of several partitions into one order. Feed with `add`, drain with `ready`."""

    partitions: int
    waiting: dict[int, deque[Entry]] = field(default_factory=dict)
    seen: dict[int, set[bytes]] = field(default_factory=dict)
    controls: dict[int, int] = field(default_factory=dict)
    """How many controls wait in each partition."""

    def add(self, partition: int, key: bytes | None, value: bytes, timestamp_us: int) -> None:
        """One record of a partition, in its order. A control that stands there again after a restart is dropped."""
        is_control = int.from_bytes(value[59:61], "little") >= codes.CONTROL_FLOOR
        if is_control:
            seen = self.seen.setdefault(partition, set())
            if value[1:17] in seen:
                return
            seen.add(value[1:17])
            self.controls[partition] = self.controls.get(partition, 0) + 1
        self.waiting.setdefault(partition, deque()).append(
            (None if is_control or key is None else key.decode(), stamped(value, timestamp_us))
        )

    def ready(self) -> Iterator[Entry]:
        """What is complete: everything up to each control that has reached all partitions."""
        while all(self.controls.get(p, 0) for p in range(self.partitions)):
            control: Entry | None = None
            for p in range(self.partitions):
                while (entry := self.waiting[p].popleft())[0] is not None:
                    yield entry
                self.controls[p] -= 1
                control = entry
            if control is not None:
                yield control

    def rest(self) -> Iterator[Entry]:
        """At the end: facts up to the first control that is not everywhere yet."""
        yield from self.ready()
        for p in range(self.partitions):
            for entry in self.waiting.get(p, ()):
                if entry[0] is None:
                    break
                yield entry


def stamped(value: bytes, timestamp_us: int) -> bytes:
    """The record with its stamp written into the head: a log carries what a topic tells by its append time."""
    if int.from_bytes(value[25:33], "little", signed=True) != fact.NO_STAMP:
        return value
    return value[:25] + timestamp_us.to_bytes(8, "little", signed=True) + value[33:]


async def archive(settings: Settings, out: Path, book: Codebook, progress: Progress) -> int:
    """Write the log; returns how many facts it holds.

    Raises:
        ServiceError: Kafka is out of reach.
        InputError: the log exists, or there is no such topic.
    """
    names = Names(settings.prefix)
    reaches = (await reach(settings, [names.facts])).get(names.facts, {}).values()
    merge, buckets = Merge(len(reaches)), buckets_for(sum(r.end - r.begin for r in reaches))
    feeds = await feed_counts(settings)
    with LogWriter(out, book, f"archive of {names.facts}", buckets, progress) as writer:
        async for records in read_topic(settings, names.facts):
            for record in records:
                merge.add(record.partition, record.key, record.value, record.timestamp * 1000)
            _write(writer, merge.ready())
        _write(writer, merge.rest())
        writer.close(feeds=feeds)
    return writer.facts


def _write(writer: LogWriter, entries: Iterator[Entry]) -> None:
    for patient, value in entries:
        if patient is None:
            writer.control(value)
        else:
            writer.fact(patient, value)


async def feed_counts(settings: Settings) -> dict[str, dict[str, Any]]:
    """What admission has read of each feed, and what it rejected by reason."""
    names = Names(settings.prefix)
    rejected: dict[str, Counter[str]] = {}
    for found in (await dead_letters.read(settings)).found.values():
        rejected.setdefault(found.letter.feed, Counter())[found.letter.reason] += 1
    read: Counter[str] = Counter()
    for tp, place in (await committed(settings.kafka(), settings.prefix, "admit")).items():
        if tp.topic in names.feeds:
            read[names.feeds[tp.topic]] += place
    return {feed: {"rows": read[feed], "rejected": dict(rejected.get(feed, {}))} for feed in sorted(read) if read[feed]}
