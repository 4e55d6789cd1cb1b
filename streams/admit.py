"""Admission: feed records become facts or dead letters; control commands become controls in every partition of `facts`.

Stateless: what it writes depends on the record alone, so a record admitted twice after a crash is the same fact told twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Literal, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from features import codes, fact
from features.clock import TIME_MAX_US, TIME_MIN_US
from features.decode import RECORD_BYTES_MAX, decode
from features.errors import Rejected

CONTROLS = "controls"
Row = tuple[bytes | None, bytes]
"""(key, value) of a record to write."""
Int = npt.NDArray[np.int64]


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


Held = tuple[int, int, "Row | DeadLetter"]
"""What is kept of a feed record: its offset, its partition of `facts`, and its row there, or why it is refused. No more: a backlog holds
many, and the records themselves are freed while they are still near in memory."""
EVERYWHERE, NOWHERE = -1, -2
"""In place of a partition: of a control, which stands in all of them; of a record that is refused."""


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

    def read(self, records: Sequence[FeedRecord]) -> tuple[list[int], list[Held]]:
        """What records of one feed partition become: (source times for alignment, what is kept of each).

        The time is the record's own, or in a history the known time that it carries; what cannot be read has no say in the order.
        """
        if not records:
            return [], []
        feed, live, book, partition_of = self._feeds[records[0].topic], self._stamp != "given", self._book, self._partition_of
        first_told = fact.hash64(f"{records[0].topic}|{records[0].partition}")
        times, told = list[int](), list[Held]()
        for record in records:
            offset = record.offset
            try:
                if feed == CONTROLS:
                    time_us, value = self._control(record)
                    told.append((offset, EVERYWHERE, (None, value)))
                else:
                    event = decode(feed, record.value)
                    time_us, value = fact.convert(event, feed=feed, told=(first_told + offset) % 2**64, stamp=self._stamp, book=book)
                    patient = fact.key_of(event).encode()
                    told.append((offset, partition_of(patient), (patient, value)))
                    if live:
                        time_us = record.timestamp * 1000
            except Rejected as rejected:
                time_us = record.timestamp * 1000 if live else TIME_MIN_US
                told.append((offset, NOWHERE, _letter(feed, record, rejected)))
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

    def __call__(self, groups: Sequence[tuple[str, Sequence[int], Sequence[Held]]]) -> Admitted:
        """Admit what was read of several feed partitions up to one source time.

        Args:
            groups: (topic, times, records) of each feed partition, each in its own order, as `read` gives them.
        """
        out = Admitted()
        when, where, rows = list[Int](), list[Int](), list[Any]()
        for topic, times, told in groups:
            if not told:
                continue
            feed = self._feeds[topic]
            _, partitions, some = zip(*told, strict=True)
            when.append(2 * np.array(times, np.int64) + (feed == "encounters"))
            where.append(np.array(partitions, np.int64))
            rows += some
            refused = [row for row in some if isinstance(row, DeadLetter)] if NOWHERE in partitions else []
            for letter in refused:
                out.counts[feed, letter.reason] += 1
                out.dead_letters.append((letter.id.encode(), msgspec.json.encode(letter)))
            if len(told) > len(refused):
                out.counts[feed, "fact"] += len(told) - len(refused)
        if rows:
            out.facts = self._in_order(np.concatenate(when), np.concatenate(where), rows)
        return out

    def _in_order(self, when: Int, where: Int, rows: Sequence[Any]) -> dict[int, list[Row]]:
        """The rows of each partition in the order of `when`; of equal ones the order is that of the groups.

        Args:
            when: Twice the source time of each row and one more for encounters: at one instant they come last (S3). Shape (n,).
            where: Partition of each row, `EVERYWHERE` or `NOWHERE`, shape (n,).
            rows: The rows.
        """
        row = np.arange(len(where))
        if (where == EVERYWHERE).any():
            row = np.repeat(row, np.where(where == EVERYWHERE, self._partitions, 1))
            when, where = when[row], where[row]
            spread = np.flatnonzero(where == EVERYWHERE)
            where[spread] = np.arange(len(spread)) % self._partitions
        order = np.lexsort((when, where))
        bounds = np.searchsorted(where[order], np.arange(self._partitions + 1)).tolist()  # what is refused stands before the first
        edges = enumerate(pairwise(bounds))
        return {partition: [rows[n] for n in row[order[begin:end]].tolist()] for partition, (begin, end) in edges if begin < end}


def _letter(feed: str, record: FeedRecord, rejected: Rejected) -> DeadLetter:
    where = f"{record.topic}[{record.partition}]@{record.offset}"
    key = blake2b(where.encode(), digest_size=8).hexdigest()
    payload = record.value or b""
    return DeadLetter(key, where, feed, rejected.reason, rejected.detail, payload if len(payload) <= RECORD_BYTES_MAX else b"")
