"""Feeds handed on in the order of their source time while one of them lags (S13). Pure: no Kafka, no asyncio.

Everything read goes on up to the smallest newest time of the feeds that lag; a feed at its end holds nobody back, one that delivers
nothing does so for `wait_s` at most. A record is never earlier than the one before it in its partition, and a time from the future
counts as that of the record before.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from features.clock import ALWAYS_US

Source = TypeVar("Source", bound=Hashable)


class Align(Generic[Source]):
    """Holds back what was read too early. `Source` is a topic partition.

    Args:
        read: From records of one source, their source times in µs and what is held of each.
        ceiling_us: Latest believable time, asked at each `add`.
        monotonic_s: A clock for `wait_s`.
        wait_s: Longest time that a silent, lagging source holds the others.
        keep_max: A source with more records than this held back is reported by `full`.
    """

    def __init__(
        self,
        *,
        read: Callable[[Sequence[Any]], tuple[list[int], list[Any]]],
        ceiling_us: Callable[[], int],
        monotonic_s: Callable[[], float],
        wait_s: float = 1.0,
        keep_max: int = 20_000,
    ) -> None:
        self._read, self._ceiling_us, self._monotonic_s = read, ceiling_us, monotonic_s
        self._wait_s, self._keep_max = wait_s, keep_max
        self._times: dict[Source, list[int]] = {}
        self._records: dict[Source, list[Any]] = {}
        self._newest: dict[Source, int] = {}
        self._heard_s: dict[Source, float] = {}
        self.overdue = 0
        """How often a lagging source delivered nothing for so long that the others went on."""

    def add(self, source: Source, records: Sequence[Any]) -> None:
        """Take what was read of one source."""
        times = self._times.setdefault(source, [])
        told_us, held = self._read(records)
        self._records.setdefault(source, []).extend(held)
        self._heard_s[source] = self._monotonic_s()
        ceiling_us, newest = self._ceiling_us(), self._newest.get(source, ALWAYS_US)
        for time_us in told_us:
            if newest < time_us <= ceiling_us:
                newest = time_us
            times.append(newest)
        self._newest[source] = newest

    def drop(self, sources: Iterable[Source]) -> None:
        """Forget sources: they were revoked, or are read again from an earlier place."""
        for source in sources:
            for held in (self._times, self._records, self._newest, self._heard_s):
                held.pop(source, None)

    def busy(self, sources: Iterable[Source]) -> None:
        """The last reading was cut short: nobody's silence counts."""
        self._heard_s.update(dict.fromkeys(sources, self._monotonic_s()))

    def take(self, sources: Collection[Source], ended: Collection[Source]) -> dict[Source, tuple[list[int], list[Any]]]:
        """What may go on now, by source: (times, records). `ended` are the sources that were read to their end."""
        now_s = self._monotonic_s()
        for source in sources:
            if source in ended:
                self._heard_s[source] = now_s
        lagging = [s for s in sources if s not in ended]
        patient = [s for s in lagging if s in self._newest or now_s - self._heard_s.setdefault(s, now_s) < self._wait_s]
        if any(s not in self._newest for s in patient):
            return {}
        limit = min((self._newest[s] for s in patient), default=None)
        while limit is not None:  # who holds the others and has been silent for too long is passed over
            silent = {s for s in patient if self._newest[s] == limit and now_s - self._heard_s[s] >= self._wait_s}
            if not silent:
                break
            patient = [s for s in patient if s not in silent]
            limit = min((self._newest[s] for s in patient), default=None)
        if len(patient) < len(lagging) and any(self._times.get(s) for s in sources):
            self.overdue += 1
        full = self.full()
        out = {}
        for source in sources:
            times = self._times.get(source)
            if not times:
                continue
            if limit is None:
                n = len(times)
            else:  # more may come at just that instant, unless a source is too full to be read on
                n = (bisect_right if full else bisect_left)(times, limit)
            if n:
                records = self._records[source]
                out[source] = times[:n], records[:n]
                del times[:n], records[:n]
        return out

    def full(self) -> set[Source]:
        """Sources with so much held back that no more should be read of them."""
        return {source for source, records in self._records.items() if len(records) > self._keep_max}
