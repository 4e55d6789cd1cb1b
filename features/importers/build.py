"""From a source's events to a log: checked as admission checks them, sorted by when they were known, with ticks between."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import msgspec

from features import codes, fact
from features.clock import ALWAYS_US, DAY_US
from features.decode import decode
from features.errors import Rejected
from features.log import LogWriter, buckets_for
from features.merge import Carrier, is_redirect
from features.progress import Progress, unheard

Events = Iterable[tuple[str, dict[str, Any]]]
"""(feed, event in the JSON form of `features.event`); feed `rejected` tells of a row that could not become one."""
NOTES = "import_notes"
"""Key under which an importer lists what it had to decide about an event: a word each, counted for the feed and no part of the fact."""
END_TOLD = "end-told-later"
"""Note of an event that is no row of its own: the end of the row before it, as known when it came."""
Made = tuple[int, bool, int, str, bytes]
"""(known time in µs, whether it is an encounter, number of the event, patient, value for `facts`): sorted, it is the order of a log.
No two have the same number."""
RUN_ROWS = 250_000
"""Rows that are sorted in memory; more of them wait on disk."""
_FRAME_ROWS = 1_000
_encode, _decode = msgspec.msgpack.Encoder().encode, msgspec.msgpack.Decoder(list[Made]).decode


@dataclass
class FeedCounts:
    """What became of a feed's rows (S13): rows = facts less those noted `END_TOLD`, plus the rejected."""

    rows: int = 0
    facts: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    coded: int = 0
    """Facts whose code is in the code sets."""
    codes: dict[tuple[str, str], bool] = field(default_factory=dict)
    """(code system, code) that a fact had → whether it is in the code sets."""
    noted: Counter[str] = field(default_factory=Counter)
    """Facts by what an importer had to decide about them."""

    @property
    def codes_known(self) -> int:
        return sum(self.codes.values())

    def as_json(self) -> dict[str, Any]:
        counts = {"rows": self.rows, "facts": self.facts, "coded": self.coded, "codes": len(self.codes), "codes_known": self.codes_known}
        return {**counts, "rejected": dict(sorted(self.rejected.items())), "noted": dict(sorted(self.noted.items()))}


def build_log(
    events: Events,
    out: Path,
    *,
    book: codes.Codebook,
    source: str,
    tick_us: int = DAY_US,
    progress: Progress = unheard,
    written: Progress = unheard,
) -> dict[str, FeedCounts]:
    """Write a log from events in any order.

    Facts are ordered by known time; at the same instant index encounters come after other facts, then the source's order (S3).
    Ticks stand at multiples of `tick_us` in the two such stretches after any fact: time has no effect where nothing is open.

    `progress` is told how many events were read, `written` how many facts stand in the log.

    Returns:
        What became of each feed's rows.
    """
    counts: dict[str, FeedCounts] = {}
    with LogWriter(out, book, source, written=written) as writer:
        leaving: set[str] = set()
        with TemporaryFile(dir=out.parent) as file:  # without a name: gone when it is closed, and after a kill
            runs = _runs(checked(events, counts, book=book, progress=progress), file, leaving)
            writer.buckets = buckets_for(sum(count.facts for count in counts.values()))
            _write(writer, heapq.merge(*runs), leaving, tick_us)
        writer.close(feeds={feed: count.as_json() for feed, count in sorted(counts.items())})
    return counts


def checked(events: Events, counts: dict[str, FeedCounts], *, book: codes.Codebook, progress: Progress = unheard) -> Iterator[Made]:
    """The facts of events, in the order told; `counts` gets what became of each feed's rows."""
    for n, (feed, event) in enumerate(events):
        if n % 10_000 == 0:
            progress(n)
        if feed == "rejected":
            count = counts.setdefault(event["feed"], FeedCounts())
            count.rows += 1
            count.rejected[event["reason"]] += 1
            continue
        count = counts.setdefault(feed, FeedCounts())
        notes = event.get(NOTES, ())
        own_row = END_TOLD not in notes
        count.rows += own_row
        try:
            decoded = decode(feed, msgspec.json.encode(event))
            known_us, value = fact.convert(decoded, feed=feed, told=n + 1, stamp="given", book=book)
        except Rejected as rejected:
            count.rejected[rejected.reason] += own_row
            continue
        known = int.from_bytes(value[59:61], "little") != codes.OTHER
        count.facts += 1
        count.coded += known
        count.noted.update(notes)
        if hasattr(decoded, "code"):
            count.codes[decoded.code_system, decoded.code] = known
        yield known_us, feed == "encounters", n, fact.key_of(decoded), value


def _runs(made: Iterable[Made], file: IO[bytes], leaving: set[str]) -> list[Iterator[Made]]:
    """The facts in sorted runs: one in memory, or if there are more, all in the file; `leaving` gets the patients whom a merge takes over.

    Merged, the runs are in the order of a log.
    """
    rows: list[Made] = []
    runs: list[Iterator[Made]] = []
    for row in made:
        if is_redirect(row[4]):
            leaving.add(row[3])
        rows.append(row)
        if len(rows) == RUN_ROWS:
            runs.append(_on_disk(rows, file))
            rows = []
    if runs and rows:
        runs.append(_on_disk(rows, file))
        rows = []
    rows.sort()
    return runs or [iter(rows)]


def _on_disk(rows: list[Made], file: IO[bytes]) -> Iterator[Made]:
    """Write rows as a sorted run; returns them as they are read again, some at a time."""
    rows.sort()
    begin = file.tell()
    sizes = [file.write(_encode(rows[n : n + _FRAME_ROWS])) for n in range(0, len(rows), _FRAME_ROWS)]
    return _read(file, begin, sizes)


def _read(file: IO[bytes], begin: int, sizes: list[int]) -> Iterator[Made]:
    for size in sizes:
        file.seek(begin)
        yield from _decode(file.read(size))
        begin += size


def _write(writer: LogWriter, made: Iterable[Made], leaving: set[str], tick_us: int) -> None:
    ticks = 0
    next_tick_us = quiet_from_us = ALWAYS_US
    carrier = Carrier(writer.fact, leaving)
    for known_us, _, _, patient_id, value in made:
        while next_tick_us <= known_us:
            if next_tick_us >= quiet_from_us:  # nothing told for two ticks: skip to the next fact
                next_tick_us = (known_us // tick_us + 1) * tick_us
                break
            ticks += 1
            writer.control(fact.control(name="tick", number=ticks, stamp_us=next_tick_us, payload={}))
            next_tick_us += tick_us
        carrier.fact(patient_id, value)
        quiet_from_us = known_us + 2 * tick_us
    if writer.facts:
        writer.control(fact.control(name="tick", number=ticks + 1, stamp_us=next_tick_us, payload={}))
