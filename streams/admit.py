"""Admission: feed records become facts or dead letters; control commands become controls in every partition of `facts`.

Stateless: what it writes depends on the record alone, so a record admitted twice after a crash is the same fact told twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from operator import itemgetter
from typing import Any, Literal, NamedTuple, Protocol

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


class Refusal(NamedTuple):
    """Why a record is refused: what a `Rejected` says, without the frames that it went through and all that they hold."""

    reason: str
    detail: str


Read = tuple[FeedRecord, Any]
"""A record and the event in it, decoded once: a struct of `features.decode` or a `Refusal`; of a control None."""


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

    def read(self, records: Sequence[FeedRecord]) -> tuple[list[int], list[Read]]:
        """Decode records of one feed partition: (source times for alignment, records).

        The time is the record's own, or in a history the known time that it carries; what cannot be read has no say in the order.
        """
        feed = self._feeds[records[0].topic] if records else CONTROLS
        if feed == CONTROLS:
            return [self._control_us(record) for record in records], [(record, None) for record in records]
        told: list[Read] = []
        for record in records:
            try:
                told.append((record, decode(feed, record.value)))
            except Rejected as rejected:
                told.append((record, Refusal(rejected.reason, rejected.detail)))
        if self._stamp != "given":
            return [record.timestamp * 1000 for record in records], told
        return [_known_us(event) for _, event in told], told

    def _control_us(self, record: FeedRecord) -> int:
        if b'"activate"' in (record.value or b""):
            return TIME_MIN_US  # an activation holds from where it stands: it waits for nobody
        if self._stamp != "given":
            return record.timestamp * 1000
        try:
            stamp_us = self._command(record.value or b"").stamp_us
        except _UNREADABLE:
            return TIME_MIN_US
        return stamp_us if stamp_us is not None and TIME_MIN_US <= stamp_us < TIME_MAX_US else TIME_MIN_US

    def __call__(self, groups: Sequence[tuple[Sequence[int], Sequence[Read]]]) -> Admitted:
        """Admit what was read of several feed partitions up to one source time.

        Args:
            groups: (times, records) of each feed partition, each in its own order, as `read` gives them.
        """
        out = Admitted()
        timed: dict[int, list[tuple[int, bytes | None, bytes]]] = {}
        stamp, book, partition_of = self._stamp, self._book, self._partition_of
        for times, told in groups:
            if not told:
                continue
            topic, feed = told[0][0].topic, self._feeds[told[0][0].topic]
            first_told = fact.hash64(f"{topic}|{told[0][0].partition}")
            last, refused = int(feed == "encounters"), len(out.dead_letters)
            for time_us, (record, event) in zip(times, told, strict=True):
                if isinstance(event, Refusal):
                    self._refuse(out, feed, record, event)
                    continue
                try:
                    if feed == CONTROLS:
                        value = self._control(record)
                        for partition in range(self._partitions):
                            timed.setdefault(partition, []).append((2 * time_us, None, value))
                    else:
                        number = (first_told + record.offset) % 2**64
                        _, value = fact.convert(event, feed=feed, told=number, stamp=stamp, book=book)
                        patient = fact.key_of(event).encode()
                        timed.setdefault(partition_of(patient), []).append((2 * time_us + last, patient, value))
                except Rejected as rejected:
                    self._refuse(out, feed, record, Refusal(rejected.reason, rejected.detail))
            if taken := len(told) - (len(out.dead_letters) - refused):
                out.counts[feed, "fact"] += taken
        for partition, rows in timed.items():
            rows.sort(key=_ORDER)  # stable: a merge of runs that are sorted already; at one instant encounters come last (S3)
            out.facts[partition] = [(patient, value) for _, patient, value in rows]
        return out

    def _refuse(self, out: Admitted, feed: str, record: FeedRecord, refusal: Refusal) -> None:
        out.counts[feed, refusal.reason] += 1
        where = f"{record.topic}[{record.partition}]@{record.offset}"
        key = blake2b(where.encode(), digest_size=8).hexdigest()
        payload = record.value or b""
        letter = DeadLetter(key, where, feed, *refusal, payload if len(payload) <= RECORD_BYTES_MAX else b"")
        out.dead_letters.append((key.encode(), msgspec.json.encode(letter)))

    def _control(self, record: FeedRecord) -> bytes:
        try:
            command = self._command(record.value or b"")
        except _UNREADABLE:
            raise Rejected("not-a-control", "controls are written by premonitor only") from None
        stamp_us = command.stamp_us if command.stamp_us is not None else record.timestamp * 1000
        complete = command.control != "activate" or {"use_case", "model_version", "role"} <= command.payload.keys()
        if not TIME_MIN_US <= stamp_us < TIME_MAX_US or not complete:
            raise Rejected("not-a-control", "a stamp outside 1900 to 2250, or an activation that names no model")
        payload = {**command.payload, "id": record.offset + 1} if command.control == "activate" else command.payload
        return fact.control(name=command.control, number=record.offset + 1, stamp_us=stamp_us, payload=payload)


def _known_us(event: Any) -> int:
    """The known time of an event; the earliest where it has none, or is refused."""
    known_time = None if isinstance(event, Refusal) else event.known_time
    time_us = to_us(known_time) if known_time is not None else TIME_MIN_US
    return time_us if TIME_MIN_US <= time_us < TIME_MAX_US else TIME_MIN_US


_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_ORDER = itemgetter(0)
