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
from features.clock import TIME_MAX_US, TIME_MIN_US, to_us
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
        self._only_known, self._only_stamp = msgspec.json.Decoder(_OnlyKnown).decode, msgspec.json.Decoder(_OnlyStamp).decode

    def time_of(self, record: FeedRecord) -> int:
        """Source time for alignment: the record's own, or in a history the known time that it carries."""
        if self._feeds[record.topic] == CONTROLS and b'"activate"' in (record.value or b""):
            return TIME_MIN_US  # an activation holds from where it stands: it waits for nobody
        if self._stamp != "given":
            return record.timestamp * 1000
        value = record.value or b""
        try:
            if len(value) > RECORD_BYTES_MAX:
                return TIME_MIN_US  # will be refused: it has no say in the order
            if self._feeds[record.topic] == CONTROLS:
                time_us = self._only_stamp(value).stamp_us
            else:
                known_time = self._only_known(value).known_time
                time_us = to_us(known_time) if known_time is not None else None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return TIME_MIN_US
        return time_us if time_us is not None and TIME_MIN_US <= time_us < TIME_MAX_US else TIME_MIN_US

    def __call__(self, groups: Sequence[tuple[Sequence[int], Sequence[FeedRecord]]]) -> Admitted:
        """Admit what was read of several feed partitions up to one source time.

        Args:
            groups: (times, records) of each feed partition, each in its own order.
        """
        out = Admitted()
        timed: dict[int, list[tuple[int, bytes | None, bytes]]] = {}
        for times, records in groups:
            if not records:
                continue
            feed = self._feeds[records[0].topic]
            first_told = fact.hash64(f"{records[0].topic}|{records[0].partition}")
            last, refused = int(feed == "encounters"), len(out.dead_letters)
            for time_us, record in zip(times, records, strict=True):
                try:
                    if feed == CONTROLS:
                        value = self._control(record)
                        for partition in range(self._partitions):
                            timed.setdefault(partition, []).append((2 * time_us, None, value))
                    else:
                        event = decode(feed, record.value)
                        told = (first_told + record.offset) % 2**64
                        _, value = fact.convert(event, feed=feed, told=told, stamp=self._stamp, book=self._book)
                        patient = fact.key_of(event).encode()
                        timed.setdefault(self._partition_of(patient), []).append((2 * time_us + last, patient, value))
                except Rejected as rejected:
                    out.counts[feed, rejected.reason] += 1
                    out.dead_letters.append(self._dead_letter(feed, record, rejected))
            if taken := len(records) - (len(out.dead_letters) - refused):
                out.counts[feed, "fact"] += taken
        for partition, rows in timed.items():
            rows.sort(key=_ORDER)  # stable: a merge of runs that are sorted already; at one instant encounters come last (S3)
            out.facts[partition] = [(patient, value) for _, patient, value in rows]
        return out

    def _control(self, record: FeedRecord) -> bytes:
        try:
            command = self._command(record.value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise Rejected("not-a-control", "controls are written by premonitor only") from None
        stamp_us = command.stamp_us if command.stamp_us is not None else record.timestamp * 1000
        complete = command.control != "activate" or {"use_case", "model_version", "role"} <= command.payload.keys()
        if not TIME_MIN_US <= stamp_us < TIME_MAX_US or not complete:
            raise Rejected("not-a-control", "a stamp outside 1900 to 2250, or an activation that names no model")
        payload = {**command.payload, "id": record.offset + 1} if command.control == "activate" else command.payload
        return fact.control(name=command.control, number=record.offset + 1, stamp_us=stamp_us, payload=payload)

    def _dead_letter(self, feed: str, record: FeedRecord, rejected: Rejected) -> Row:
        where = f"{record.topic}[{record.partition}]@{record.offset}"
        key = blake2b(where.encode(), digest_size=8).hexdigest()
        payload = record.value or b""
        letter = DeadLetter(key, where, feed, rejected.reason, rejected.detail, payload if len(payload) <= RECORD_BYTES_MAX else b"")
        return key.encode(), msgspec.json.encode(letter)


class _OnlyKnown(msgspec.Struct):
    known_time: fact.AwareTime | None = None


class _OnlyStamp(msgspec.Struct):
    stamp_us: int | None = None


_ORDER = itemgetter(0)
