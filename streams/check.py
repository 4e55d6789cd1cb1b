"""Would admission take these events? The same decoder and the same conversion, on lines of a file and without Kafka."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from features import codes, fact
from features.decode import RECORD_BYTES_MAX, decode
from features.errors import Rejected
from features.importers.events import unwrap

UNTOLD = "unknown"
"""Stands for the feed of a line that does not say it."""
LINES_MAX = 20
"""Line numbers that are kept of one cause."""


@dataclass
class Cause:
    """Why lines of a feed are refused: reason and detail of a dead letter, how many, and the numbers of the first ones."""

    feed: str
    reason: str
    detail: str
    count: int = 0
    lines: list[int] = field(default_factory=list)

    def sentence(self) -> str:
        where = ", ".join(f"{n:,}" for n in self.lines) + (", …" if self.count > len(self.lines) else "")
        return f"{self.count:,} × {self.feed} {self.reason}: {self.detail}\n    line{'s' if self.count > 1 else ''} {where}"

    def document(self) -> dict[str, Any]:
        return {"feed": self.feed, "reason": self.reason, "detail": self.detail, "count": self.count, "lines": self.lines}


@dataclass
class Feed:
    """What would become of the lines of one feed."""

    lines: int = 0
    facts: int = 0
    coded: int = 0
    """Facts whose code is in the code sets: the others are kept, and no feature reads them."""
    rejected: Counter[str] = field(default_factory=Counter)

    def document(self) -> dict[str, Any]:
        return {"lines": self.lines, "facts": self.facts, "coded": self.coded, "rejected": dict(sorted(self.rejected.items()))}


@dataclass
class Found:
    """What would become of all lines."""

    feeds: dict[str, Feed] = field(default_factory=dict)
    causes: dict[tuple[str, str, str], Cause] = field(default_factory=dict)

    @property
    def lines(self) -> int:
        return sum(count.lines for count in self.feeds.values())

    @property
    def rejected(self) -> int:
        return sum(cause.count for cause in self.causes.values())


def check(stream: IO[bytes], feed: str | None, *, stamp: str, book: codes.Codebook, progress: Callable[[int], None]) -> Found:
    """Look at each line as admission would at a feed record; nothing is written.

    Empty lines are no events. What several lines make of one fact (repeats, conflicts, amendments) is not looked at: all are admitted.

    Args:
        stream: One JSON object a line.
        feed: Of all lines; None: each says it, as `premonitor import events` reads them.
        stamp: `append` (live) or `given` (history through the feeds), as admission has it.
        book: The code sets.
        progress: Told how many lines were looked at.
    """
    found = Found()
    for n, line, length in _lines(stream):
        if n % 1_000 == 0:
            progress(n)
        if not line.strip():
            continue
        of = feed or UNTOLD
        try:
            if length > RECORD_BYTES_MAX:
                raise Rejected("too-large", f"at most {RECORD_BYTES_MAX} bytes are read. One event a line, not one array of all")
            event = line
            if feed is None:
                of, event = unwrap(line)
            _, value = fact.convert(decode(of, event), feed=of, told=0, stamp=stamp, book=book)
        except Rejected as rejected:
            _count(found, of).rejected[rejected.reason] += 1
            cause = found.causes.setdefault((of, rejected.reason, rejected.detail), Cause(of, rejected.reason, rejected.detail))
            cause.count += 1
            if len(cause.lines) < LINES_MAX:
                cause.lines.append(n)
            continue
        count = _count(found, of)
        count.facts += 1
        count.coded += int(fact.heads([value])["concept"][0]) != codes.OTHER
    return found


def _count(found: Found, feed: str) -> Feed:
    count = found.feeds.setdefault(feed, Feed())
    count.lines += 1
    return count


def _lines(stream: IO[bytes]) -> Iterator[tuple[int, bytes, int]]:
    """(number from 1, line without its end, its bytes) of each line; of one that is too large only the beginning is held."""
    n = 0
    while piece := stream.readline(RECORD_BYTES_MAX + 2):
        n += 1
        line, length = piece.rstrip(b"\r\n"), len(piece.rstrip(b"\r\n"))
        while piece and not piece.endswith(b"\n"):
            piece = stream.readline(1 << 20)
            length += len(piece)
        yield n, line, length
