"""Admission: feed records become facts or dead letters; control commands become controls in every partition of `facts`.

Stateless: what it writes depends on the record alone, so a record admitted twice after a crash is the same fact told twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from operator import itemgetter
from typing import Any, Literal, Protocol

import msgspec

from features import codes, fact
from features.clock import TIME_MAX_US, TIME_MIN_US
from features.decode import RECORD_BYTES_MAX, decode
from features.errors import Rejected

CONTROLS = "controls"
Row = tuple[bytes | None, bytes]
"""(key, value) of a record to write."""


class FeedRecord(Protocol):
    """What is needed of a Kafka record."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    """Milliseconds."""
    key: bytes | None
    value: bytes | None


class Command(msgspec.Struct, frozen=True):
    """A record of the topic `controls`."""

    control: Literal["tick", "activate"]
    stamp_us: int | None = None
    """When it holds from; None: the append time."""
    payload: dict[str, Any] = {}


class DeadLetter(msgspec.Struct, frozen=True):
    """A feed record that could not become a fact. `where` is topic[partition]@offset; `payload` is the record as it came."""

    id: str
    where: str
    feed: str
    reason: str
    detail: str
    payload: bytes
    """Empty where it was too large; it still lies in the feed."""


Read = tuple[int, bytes | None, "bytes | DeadLetter"]
"""What is kept of a feed record: its offset, and patient and value for `facts` (of a control no patient), or why it is refused. No more:
a backlog holds many, and the records themselves are freed while they are still near in memory."""


@dataclass
class Admitted:
    """What one group of feed records became."""

    facts: dict[int, list[Row]] = field(default_factory=dict)
    """By partition of `facts`, in the order of source time."""
    dead_letters: list[Row] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(feed, "fact" or the reason of its rejection) → records."""


class Admission:
    """The admission step.

    Args:
        feeds: Topic → feed; the topic of controls under `CONTROLS`.
        partitions: Of `facts`.
        partition_of: Partition of `facts` of a patient.
        stamp: `append` (live) or `given` (history through the feeds).
        book: The code sets of this generation.
    """

    def __init__(
        self, feeds: dict[str, str], *, partitions: int, partition_of: Callable[[bytes], int], stamp: str, book: codes.Codebook
    ) -> None:
        self._feeds, self._partitions, self._partition_of, self._stamp, self._book = feeds, partitions, partition_of, stamp, book
        self._command = msgspec.json.Decoder(Command).decode

    def read(self, records: Sequence[FeedRecord]) -> tuple[list[int], list[Read]]:
        """What records of one feed partition become: (source times for alignment, what is kept of each).

        The time is the record's own, or in a history the known time that it carries; what cannot be read has no say in the order.
        """
        if not records:
            return [], []
        feed, live, book = self._feeds[records[0].topic], self._stamp != "given", self._book
        first_told = fact.hash64(f"{records[0].topic}|{records[0].partition}")
        times, told = list[int](), list[Read]()
        for record in records:
            offset = record.offset
            try:
                if feed == CONTROLS:
                    time_us, value = self._control(record)
                    patient = None
                else:
                    event = decode(feed, record.value)
                    time_us, value = fact.convert(event, feed=feed, told=(first_told + offset) % 2**64, stamp=self._stamp, book=book)
                    patient = fact.key_of(event).encode()
                    if live:
                        time_us = record.timestamp * 1000
                told.append((offset, patient, value))
            except Rejected as rejected:
                time_us = record.timestamp * 1000 if live else TIME_MIN_US
                told.append((offset, None, _letter(feed, record, rejected)))
            times.append(time_us)
        return times, told

    def _control(self, record: FeedRecord) -> tuple[int, bytes]:
        """(source time, value for `facts`) of a command. An activation holds from where it stands: it waits for nobody."""
        try:
            command = self._command(record.value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Rejected("not-a-control", "controls are written by premonitor only") from None
        append_us, number = record.timestamp * 1000, record.offset + 1
        stamp_us = command.stamp_us if command.stamp_us is not None else append_us
        complete = command.control != "activate" or {"use_case", "model_version", "role"} <= command.payload.keys()
        if not TIME_MIN_US <= stamp_us < TIME_MAX_US or not complete:
            raise Rejected("not-a-control", "a stamp outside 1900 to 2250, or an activation that names no model")
        payload = {**command.payload, "id": number} if command.control == "activate" else command.payload
        value = fact.control(name=command.control, number=number, stamp_us=stamp_us, payload=payload)
        if command.control == "activate":
            return TIME_MIN_US, value
        if self._stamp != "given":
            return append_us, value
        return stamp_us if command.stamp_us is not None else TIME_MIN_US, value

    def __call__(self, groups: Sequence[tuple[str, Sequence[int], Sequence[Read]]]) -> Admitted:
        """Admit what was read of several feed partitions up to one source time.

        Args:
            groups: (topic, times, records) of each feed partition, each in its own order, as `read` gives them.
        """
        out, partition_of = Admitted(), self._partition_of
        timed: dict[int, list[tuple[int, bytes | None, bytes]]] = {}
        for topic, times, told in groups:
            feed = self._feeds[topic]
            last, refused = int(feed == "encounters"), len(out.dead_letters)
            for time_us, (_, patient, value) in zip(times, told, strict=True):
                if isinstance(value, DeadLetter):
                    out.counts[feed, value.reason] += 1
                    out.dead_letters.append((value.id.encode(), msgspec.json.encode(value)))
                elif patient is not None:
                    timed.setdefault(partition_of(patient), []).append((2 * time_us + last, patient, value))
                else:
                    for partition in range(self._partitions):
                        timed.setdefault(partition, []).append((2 * time_us, None, value))
            if taken := len(told) - (len(out.dead_letters) - refused):
                out.counts[feed, "fact"] += taken
        for partition, rows in timed.items():
            rows.sort(key=_ORDER)  # stable: a merge of runs that are sorted already; at one instant encounters come last (S3)
            out.facts[partition] = [(patient, value) for _, patient, value in rows]
        return out


def _letter(feed: str, record: FeedRecord, rejected: Rejected) -> DeadLetter:
    where = f"{record.topic}[{record.partition}]@{record.offset}"
    key = blake2b(where.encode(), digest_size=8).hexdigest()
    payload = record.value or b""
    return DeadLetter(key, where, feed, rejected.reason, rejected.detail, payload if len(payload) <= RECORD_BYTES_MAX else b"")


_ORDER = itemgetter(0)
