"""Alignment: feeds go on in the order of their source time while one of them lags, and a silent one holds for a second at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.clock import ManualClock
from streams.align import Align

CHECKED = settings(max_examples=200, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
CEILING_US = 1_000
"""Later times are from the future."""
BEFORE_US = -(2**62)


class Item(NamedTuple):
    """A record: where it stands and what time it says."""

    source: str
    n: int
    time_us: int


def feed(source: str, times_us: Sequence[int]) -> list[Item]:
    return [Item(source, n, time_us) for n, time_us in enumerate(times_us)]


def clamped(items: Sequence[Item]) -> list[int]:
    """Never earlier than the record before; a time from the future counts as that of the record before."""
    believed = [item.time_us if item.time_us <= CEILING_US else BEFORE_US for item in items]
    return list(accumulate(believed, max, initial=BEFORE_US))[1:]


def read_items(items: Sequence[Item]) -> tuple[list[int], list[Item]]:
    return [item.time_us for item in items], list(items)


@dataclass
class Bench:
    """An `Align` with a clock by hand; reads feeds that are fixed."""

    feeds: dict[str, list[Item]]
    keep_max: int = 20_000
    wait_s: float = 1.0
    clock: ManualClock = field(default_factory=ManualClock)
    read: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.align: Align[str] = Align(
            read=read_items,
            ceiling_us=lambda: CEILING_US,
            monotonic_s=self.clock.monotonic_s,
            wait_s=self.wait_s,
            keep_max=self.keep_max,
        )

    def add(self, source: str, n: int) -> None:
        """Read up to `n` more records of a feed."""
        at = self.read.get(source, 0)
        self.align.add(source, self.feeds[source][at : at + n])
        self.read[source] = min(at + n, len(self.feeds[source]))

    def ended(self) -> set[str]:
        return {source for source, items in self.feeds.items() if self.read.get(source, 0) >= len(items)}

    def take(self, *lagging: str) -> dict[str, list[int]]:
        """What goes on: source → numbers of its records. `lagging`: beside those that were not read to their end."""
        ready = self.align.take(list(self.feeds), self.ended() - set(lagging))
        for times, records in ready.values():
            assert len(times) == len(records) > 0
        return {source: [item.n for item in records] for source, (_, records) in ready.items()}


feeds = st.dictionaries(
    st.sampled_from("abcd"), st.lists(st.integers(0, 30) | st.sampled_from([0, CEILING_US, CEILING_US + 1, 2_000]), max_size=20), min_size=1
)


@CHECKED
@given(feeds, st.binary(max_size=60))
def test_s13_feeds_go_on_in_the_order_of_source_time(times: dict[str, list[int]], plan: bytes) -> None:
    """Any feeds, read in any pieces and any order: what goes on is in the order of clamped source time, each record once."""
    bench = Bench({source: feed(source, some) for source, some in times.items()})
    handed: dict[str, list[Item]] = {source: [] for source in times}
    order: list[int] = []
    for step in plan:
        if step < 192:
            bench.add(sorted(times)[step % len(times)], 1 + step % 5)
        if step >= 128:
            ready = bench.align.take(list(times), bench.ended())
            order += sorted(time_us for some, _ in ready.values() for time_us in some)
            for name, (some, records) in ready.items():
                at = len(handed[name])
                assert some == clamped(bench.feeds[name])[at : at + len(some)]
                handed[name] += records
    for source in times:
        bench.add(source, 100)
    rest = bench.align.take(list(times), bench.ended())
    order += sorted(time_us for some, _ in rest.values() for time_us in some)
    for source, (_, records) in rest.items():
        handed[source] += records
    assert handed == bench.feeds, "once all is read nothing is held back"
    assert order == sorted(order)
    assert bench.align.overdue == 0


def test_a_feed_at_its_end_holds_nobody() -> None:
    """An empty feed, and one that was read to its end: the others go on as far as the lagging ones allow."""
    bench = Bench({"a": feed("a", [1, 9]), "b": feed("b", [2, 4, 6]), "empty": []})
    bench.add("a", 2)
    bench.add("b", 2)
    assert bench.take() == {"a": [0], "b": [0]}, "a is at its end, b goes on to before 4: more of 4 may come"
    bench.add("b", 1)
    assert bench.take() == {"a": [1], "b": [1, 2]}
    assert bench.take() == {}


def test_a_lagging_feed_that_was_not_heard_of_yet_holds_all() -> None:
    """Until its first record nobody knows how far behind it is."""
    bench = Bench({"a": feed("a", [1, 2, 3]), "b": feed("b", [2, 9])})
    bench.add("a", 3)
    assert bench.take() == {}
    bench.add("b", 1)
    assert bench.take()["a"][:1] == [0]


@pytest.mark.parametrize(("seconds", "overdue"), [(0.0, False), (0.999, False), (1.0, True), (30.0, True)])
def test_a_silent_lagging_feed_holds_for_a_second(seconds: float, overdue: bool) -> None:
    """Just below one second it holds, at one second the others go on; that is counted."""
    bench = Bench({"a": feed("a", [1, 2, 3]), "silent": feed("silent", [2])})
    assert bench.take() == {}, "from here on it is waited for"
    bench.clock.advance(seconds=seconds)
    bench.add("a", 3)
    assert bench.take() == ({"a": [0, 1, 2]} if overdue else {})
    assert bench.align.overdue == int(overdue)


@pytest.mark.parametrize(("seconds", "overdue"), [(0.999, False), (1.0, True)])
def test_a_feed_that_fell_silent_holds_for_a_second_after_its_last_word(seconds: float, overdue: bool) -> None:
    """What it delivered goes on; from then on the clock runs."""
    bench = Bench({"a": feed("a", [1, 2, 30]), "b": feed("b", [2, 40])})
    bench.add("b", 1)
    bench.add("a", 2)
    bench.clock.advance(seconds=0.5)
    bench.add("b", 0)  # delivers nothing, but was asked and answered
    first = bench.take("a")
    assert first == {"a": [0]}, "b is at 2, and more of 2 may come"
    bench.clock.advance(seconds=seconds)
    bench.add("a", 1)
    assert (2 in bench.take().get("a", [])) == overdue


def test_a_lagging_feed_with_records_held_back_is_not_silent() -> None:
    """It has told how far it is: however long it takes, nobody overtakes it."""
    bench = Bench({"a": feed("a", [5, 50]), "b": feed("b", [7, 70]), "c": feed("c", [1, 100])})
    for source in "abc":
        bench.add(source, 1)
    bench.take()
    bench.clock.advance(seconds=3_600)
    bench.add("c", 1)
    ready = bench.take("c")
    assert 1 not in ready.get("c", []), "c is at 100, a and b lag at 5 and 7"


@CHECKED
@given(feeds, st.binary(max_size=30))
def test_s13_nobody_is_held_for_more_than_a_second(times: dict[str, list[int]], plan: bytes) -> None:
    """However much is held back for whom: when all that lag have been silent for a second everything goes on."""
    bench = Bench({source: feed(source, some) for source, some in times.items()})
    for step in plan:
        bench.add(sorted(times)[step % len(times)], 1 + step % 3)
        if step >= 128:
            bench.take()
            bench.clock.advance(seconds=step % 4 / 8)
    bench.take(*times)
    bench.clock.advance(seconds=1)
    bench.take(*times)
    assert bench.take(*times) == {}
    assert not any(bench.align._records.values())


def test_a_late_comer_starts_the_clock_anew() -> None:
    """Each word of a feed gives it another second; what was overdue is handed on by the time it has."""
    bench = Bench({"a": feed("a", list(range(20))), "b": feed("b", [3, 4, 5, 6])})
    bench.add("a", 19)
    for n in range(3):
        bench.add("b", 1)
        bench.clock.advance(seconds=0.75)
        bench.take()
        assert bench.align.overdue == 0, n
    bench.clock.advance(seconds=0.25)
    bench.take()
    assert bench.align.overdue == 1


def test_busy_says_that_nobody_had_a_turn() -> None:
    """A poll that was cut short tells nothing of the feeds that it did not reach."""
    bench = Bench({"a": feed("a", [1, 2]), "b": feed("b", [2])})
    bench.take()
    bench.clock.advance(seconds=5)
    bench.add("a", 2)
    bench.align.busy(["a", "b"])
    assert bench.take() == {}
    bench.clock.advance(seconds=0.999)
    assert bench.take() == {}
    bench.clock.advance(seconds=0.001)
    assert bench.take() == {"a": [0, 1]}


def test_a_time_from_the_future_counts_as_that_of_the_record_before() -> None:
    """At the ceiling it is believed, above it not; it neither holds its feed back nor lets others overtake."""
    bench = Bench({"a": feed("a", [5, CEILING_US + 1, 6, CEILING_US]), "b": feed("b", [5, 7])})
    bench.add("a", 4)
    bench.add("b", 2)
    ready = bench.align.take(["a", "b"], ["a", "b"])
    assert ready["a"][0] == [5, 5, 6, CEILING_US]
    alone = Bench({"a": feed("a", [CEILING_US + 1]), "b": feed("b", [5])})
    for source in "ab":
        alone.add(source, 1)
    assert alone.align.take(["a", "b"], ["a", "b"]) == {"a": ([BEFORE_US], alone.feeds["a"]), "b": ([5], alone.feeds["b"])}


def test_the_ceiling_is_asked_at_each_reading() -> None:
    """It moves with the clock: what is from the future now may be believed in a minute."""
    now = [10]
    align: Align[str] = Align(
        read=lambda items: ([item.time_us for item in items], list(items)), ceiling_us=lambda: now[0], monotonic_s=lambda: 0.0
    )
    align.add("a", feed("a", [4, 20]))
    now[0] = 30
    align.add("a", feed("a", [25, 40]))
    assert align.take(["a"], ["a"])["a"][0] == [4, 4, 25, 25]


def test_a_dropped_feed_is_forgotten() -> None:
    """Revoked or read again from an earlier place: nothing held, no time remembered, and its second begins anew."""
    bench = Bench({"a": feed("a", [1, 2]), "b": feed("b", [9, 10, 11])})
    bench.add("a", 1)
    bench.add("b", 2)
    assert bench.take() == {"a": [0]} or bench.take() == {}
    bench.align.drop(["b", "never seen"])
    bench.read["b"] = 0
    assert bench.take() == {}, "b lags and was not heard of"
    bench.add("b", 3)
    bench.add("a", 1)
    assert bench.take()["b"] == [0, 1, 2]


def test_a_source_that_is_not_asked_for_keeps_what_it_has() -> None:
    """Only the sources of the call go on."""
    bench = Bench({"a": feed("a", [1]), "b": feed("b", [1])})
    bench.add("a", 1)
    bench.add("b", 1)
    assert bench.align.take(["a"], ["a"]).keys() == {"a"}
    assert bench.align.take(["a", "b"], ["a", "b"]).keys() == {"b"}


@pytest.mark.parametrize(("keep_max", "full"), [(2, {"b"}), (3, set())])
def test_a_feed_with_too_much_held_back_is_full(keep_max: int, full: set[str]) -> None:
    """More than `keep_max` is too much; when it has gone on there is room again."""
    bench = Bench({"a": feed("a", [1, 90]), "b": feed("b", [20, 21, 22])}, keep_max=keep_max)
    bench.add("a", 1)
    bench.add("b", 3)
    bench.take()
    assert bench.align.full() == full
    bench.add("a", 1)
    bench.take()
    assert bench.align.full() == set()


def test_feeds_that_only_wait_for_each_other_go_on() -> None:
    """Two lagging feeds at one instant, both with more of it held back than may be kept: neither may wait for ever."""
    bench = Bench({"a": feed("a", [5] * 4 + [6]), "b": feed("b", [5] * 4 + [6])}, keep_max=3)
    for source in "ab":
        bench.add(source, 4)
    if bench.take() == {}:
        assert bench.align.full() == {"a", "b"}, "then no more is read of them, and nothing changes"
        assert bench.take() != {}
