"""The window kernel: the rows of many questions about many histories at once.

A question is (patient, index time t, place k, episode). A fact is seen iff it rules at k and lies in the look-back window:

      t − W                       t
        [─────── looked at ───────)          both edges tested with equal values (S5)
    place ≤ k < until                        what was known at k, not a fact more (S2, S4)

One function serves one live score and a backfill of millions. A row does not depend on the batch it is computed in (S6): sums run
in (event_time, ordinal, id) order, one after the other. Its twin is a loop over all facts: tests/oracle/windows.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from features.catalog import COUNTS, OF_VALUES, Feature
from features.clock import ALWAYS_US, DAY_US
from features.codes import Codebook
from features.history import NEVER, Array, Bool, Histories, Int, stretches

Float = npt.NDArray[np.float64]
CONCEPTS = 65_536


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked, one entry a row of the matrix, shape (n,)."""

    seg: Int
    event_us: Int
    """The index time t."""
    place: Int
    """The place k: facts at later places are not known."""
    episode: npt.NDArray[np.uint64]
    """Episode of the index encounter, 0 for none."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """Features of one pass whose concept sets do not overlap: concept → group by table look-up."""

    group_of: npt.NDArray[np.int16]
    groups: int
    wanted: tuple[tuple[int | None, tuple[tuple[int, int, Feature], ...]], ...]
    """(look-back, ((group, column, feature), …)), longest look-back first."""


@dataclass(frozen=True, slots=True)
class _Pass:
    """Features that see the same facts of a question."""

    leak: bool
    episode: str
    longest_us: int | None
    reads: Bool
    layers: tuple[_Layer, ...]


class Plan:
    """The features of a use case, arranged for the kernel. Make it once, use it for all batches."""

    def __init__(self, features: Sequence[Feature], book: Codebook) -> None:
        self.features = tuple(features)
        self.reads = np.zeros(CONCEPTS, bool)
        self.low, self.high = np.full(CONCEPTS, -np.inf), np.full(CONCEPTS, np.inf)
        self.numeric = np.zeros(CONCEPTS, bool)
        for number, concept in book.concepts.items():
            self.low[number] = concept.low if concept.low is not None else -np.inf
            self.high[number] = concept.high if concept.high is not None else np.inf
            self.numeric[number] = bool(concept.unit)
        keyed: dict[tuple[bool, str, bool], list[tuple[int, Feature]]] = {}
        for column, f in enumerate(self.features):
            keyed.setdefault((f.leak, f.episode, f.lookback_us is None), []).append((column, f))
            self.reads[list(f.concepts)] = True
        self.passes = tuple(_make_pass(leak, episode, members) for (leak, episode, _), members in keyed.items())
        self.longest_us = max((f.lookback_us or 0 for f in self.features), default=0)
        self.reads_ever = np.zeros(CONCEPTS, bool)
        for f in self.features:
            if f.lookback_us is None:
                self.reads_ever[list(f.concepts)] = True


def _make_pass(leak: bool, episode: str, members: list[tuple[int, Feature]]) -> _Pass:
    reads = np.zeros(CONCEPTS, bool)
    layers: list[dict[tuple[int, ...], list[tuple[int, Feature]]]] = []
    for column, f in members:
        reads[list(f.concepts)] = True
        for layer in layers:
            if f.concepts in layer or not any(set(f.concepts) & set(other) for other in layer):
                layer.setdefault(f.concepts, []).append((column, f))
                break
        else:
            layers.append({f.concepts: [(column, f)]})
    lookbacks = [f.lookback_us for _, f in members if f.lookback_us is not None]
    return _Pass(leak, episode, max(lookbacks) if lookbacks else None, reads, tuple(map(_make_layer, layers)))


def _make_layer(sets: dict[tuple[int, ...], list[tuple[int, Feature]]]) -> _Layer:
    group_of = np.full(CONCEPTS, -1, np.int16)
    wanted: dict[int | None, list[tuple[int, int, Feature]]] = {}
    for group, (concepts, members) in enumerate(sets.items()):
        group_of[list(concepts)] = group
        for column, f in members:
            wanted.setdefault(f.lookback_us, []).append((group, column, f))
    ordered = sorted(wanted.items(), key=lambda item: -(item[0] or 0))
    return _Layer(group_of, len(sets), tuple((lookback, tuple(group)) for lookback, group in ordered))


def rows(histories: Histories, questions: Questions, plan: Plan) -> Float:
    """The matrix: one row a question, one column a feature of the plan.

    Args:
        histories: Folded histories; `questions.seg` counts their patients.
        questions: n questions in any order.
        plan: p features.
    Returns:
        float64, shape (n, p). Counts and any_* are 0.0 and the rest NaN where the window is empty.
    """
    matrix = np.empty((len(plan.features), len(questions.seg))).T  # it is filled, and mostly used, column by column
    if not len(matrix):
        return matrix
    seen = np.flatnonzero(histories.present & plan.reads[histories.concept])
    seen = seen[~(plan.numeric[histories.concept[seen]] & np.isnan(histories.value[seen]))]  # a result without a number is no result
    seen = seen[_in_order(histories, seen)]
    for part in plan.passes:
        mine = seen if len(plan.passes) == 1 else seen[part.reads[histories.concept[seen]]]
        if len(mine):
            _fill(matrix, histories, questions, mine, part, plan)
        else:
            _fill_empty(matrix, part)
    return matrix


def _in_order(h: Histories, index: Int) -> Int:
    """Order of the facts `index` by (patient, event_time, ordinal, id)."""
    seg, time = h.seg[index], h.event_us[index]
    first, span = int(time.min()) if len(time) else 0, int(np.ptp(time)) + 1 if len(time) else 1
    if len(seg) and (int(seg[-1]) + 1) * span < 2**62:  # one number a fact: a quarter of the time of two keys
        key = seg * span + (time - first)
        order = np.argsort(key, kind="stable")
        key = key.take(order)
        if not (key[1:] == key[:-1]).any():  # most often nothing is left to decide
            return order
    return np.lexsort((h.id_lo[index], h.id_hi[index], h.ordinal[index], time, seg))


def _edges(seg: Int, time: Int, asked_seg: Int, *asked: Int) -> list[Int]:
    """For sorted (seg, time): how many come before (asked_seg, asked time), for each of the asked times."""
    first, last = int(time.min()), int(time.max())
    span = last - first + 2
    if (int(max(seg[-1], asked_seg.max())) + 1) * span >= 2**62:  # would overflow: count distinct times instead
        distinct = np.unique(time)
        span = len(distinct) + 1
        key = seg * span + np.searchsorted(distinct, time)
        return [np.searchsorted(key, asked_seg * span + np.searchsorted(distinct, t)) for t in asked]
    key = seg * span + (time - first)
    return [np.searchsorted(key, asked_seg * span + (np.clip(t, first, last + 1) - first)) for t in asked]


def _fill_empty(matrix: Float, part: _Pass) -> None:
    """Write the columns of a pass that sees nothing."""
    for layer in part.layers:
        for _, wanted in layer.wanted:
            for _, column, f in wanted:
                matrix[:, column] = 0.0 if f.aggregate in COUNTS else np.nan


def _fill(matrix: Float, h: Histories, q: Questions, seen: Int, part: _Pass, plan: Plan) -> None:
    """Expand (question, fact) pairs of one pass and aggregate them into its columns."""
    time = h.event_us[seen]
    since = q.event_us - part.longest_us if part.longest_us is not None else np.full_like(q.event_us, ALWAYS_US)
    begin, end = _edges(h.seg[seen], time, q.seg, since, q.event_us)
    ask, pick = stretches(begin, end - begin)  # `pick` is an index into `seen`: near each other, so quick to gather
    until = h.until[seen]
    amended = until != NEVER
    if part.leak:
        known = ~amended[pick]
    else:
        known = h.place.take(seen).take(pick) <= q.place.take(ask)
        if amended.any():
            known &= q.place.take(ask) < until.take(pick)
    if part.episode != "any":
        episode = h.episode[seen][pick]
        own = episode == q.episode[ask]
        known &= own if part.episode == "own" else ~own | (episode == 0)
    facts = _Facts(h, seen, plan)
    for layer in part.layers:
        group = layer.group_of.take(facts.concept).take(pick)
        mine = np.flatnonzero(known & (group >= 0))  # both masks at once: pairs are many, and each gather is a pass over them
        asked, fact = ask.take(mine), pick.take(mine)
        pairs = _Pairs(asked, q.event_us.take(asked) - time.take(fact), group.take(mine), fact)
        for lookback_us, wanted in layer.wanted:  # each a part of the one before
            if lookback_us not in (None, part.longest_us):
                pairs = pairs.where(pairs.age_us <= (lookback_us or 0))
            _aggregate(matrix, facts, pairs, layer.groups, wanted)


class _Facts:
    """The facts that a pass may see, in (patient, event_time, ordinal, id) order, shape (m,)."""

    def __init__(self, h: Histories, seen: Int, plan: Plan) -> None:
        self.h, self.seen, self._plan = h, seen, plan
        self.concept, self.value = h.concept[seen], h.value[seen]

    @cached_property
    def abnormal(self) -> Bool:
        """Whether a value is outside the reference interval."""
        outside: Bool = (self.value < self._plan.low[self.concept]) | (self.value > self._plan.high[self.concept])
        return outside


@dataclass(frozen=True, slots=True)
class _Pairs:
    """(question, fact) pairs, by question and then in (event_time, ordinal, id) order."""

    ask: Int
    age_us: Int
    group: npt.NDArray[np.int16]
    fact: Int
    """Index into `_Facts`."""

    def where(self, mask: Bool) -> _Pairs:
        """The pairs for which the mask holds. `take` gathers in two thirds of the time of indexing, here and wherever pairs are many."""
        keep = np.flatnonzero(mask)
        return _Pairs(self.ask.take(keep), self.age_us.take(keep), self.group.take(keep), self.fact.take(keep))


def _aggregate(matrix: Float, facts: _Facts, pairs: _Pairs, groups: int, wanted: tuple[tuple[int, int, Feature], ...]) -> None:
    """Write the wanted aggregates of one window."""
    n = len(matrix)
    cells = _Cells(facts, pairs, n, groups * n)
    for group, column, f in wanted:
        result = cells.of(f.aggregate)[group * n : (group + 1) * n]
        matrix[:, column] = result / f.factor if f.factor != 1.0 and f.aggregate in OF_VALUES else result


class _Cells:
    """The aggregates of one window, a cell for each question and group; each is made when it is first asked for.

    Not a closure that calls itself: that would be a cycle, and keep its arrays until the collector's next round.
    """

    def __init__(self, facts: _Facts, pairs: _Pairs, questions: int, size: int) -> None:
        self._facts, self._pairs, self._size = facts, pairs, size
        self._cell = pairs.group * np.int64(questions) + pairs.ask  # a group's cells side by side: a column is one stretch
        self._made: dict[str, Array] = {}

    @cached_property
    def _value(self) -> Float:
        return self._facts.value.take(self._pairs.fact)

    def of(self, name: str) -> Array:
        """An aggregate of all cells."""
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def _make(self, name: str) -> Array:
        facts, pairs, cell, size = self._facts, self._pairs, self._cell, self._size
        match name:
            case "count":
                return np.bincount(cell, minlength=size)
            case "any":
                return self.of("count") > 0
            case "any_abnormal":
                return np.bincount(cell.compress(facts.abnormal.take(pairs.fact)), minlength=size) > 0
            case "distinct_episodes":
                return _distinct(cell, facts.h.episode[facts.seen[pairs.fact]], size)
            case "sum":
                return np.where(self.of("any"), np.bincount(cell, weights=self._value, minlength=size), np.nan)
            case "mean":
                return self.of("sum") / np.maximum(self.of("count"), 1)
            case "min" | "max":
                out = np.full(size, np.nan)
                (np.fmin if name == "min" else np.fmax).at(out, cell, self._value)
                return out
            case "last":
                return _last(cell, self._value, size)
            case "first":
                return _last(cell[::-1], self._value[::-1], size)
            case "change":
                return self.of("last") - self.of("first")
            case "percent_change":
                first = self.of("first")
                return 100.0 * (self.of("last") - first) / np.where(first == 0.0, np.nan, first)
            case "slope":
                return _slope(cell, pairs.age_us, self._value, self.of("count"), self.of("mean"))
            case "days_since_last":
                return _last(cell, pairs.age_us, size) / DAY_US
            case "days_since_first":
                return _last(cell[::-1], pairs.age_us[::-1], size) / DAY_US
            case "last_ordinal":
                return _last(cell, facts.h.ordinal[facts.seen[pairs.fact]].astype(np.float64), size)
        raise ValueError(f"no aggregate is called {name}")


def _last(cell: Int, content: Array, size: int) -> Array:
    """What comes last in each cell: of repeated indices numpy keeps the last."""
    out = np.full(size, np.nan)
    out[cell] = content
    return out


def _distinct(cell: Int, episode: npt.NDArray[np.uint64], size: int) -> Array:
    """How many different episodes each cell has."""
    order = np.lexsort((episode, cell))
    c, e = cell[order], episode[order]
    new = np.ones(len(c), bool)
    new[1:] = (c[1:] != c[:-1]) | (e[1:] != e[:-1])
    return np.bincount(c[new], minlength=size)


def _slope(cell: Int, age_us: Int, value: Float, count: Int, mean: Float) -> Float:
    """The least squares line of each cell, in units a day: sum(dx * dy) / sum(dx * dx), both from their means.

    Time is counted from the first fact of the cell, so that nothing is lost before the means are taken away. NaN under two distinct
    times, where a value is missing, and where the numbers are too large.
    """
    size = len(count)
    oldest = np.zeros(size, np.int64)
    oldest[cell[::-1]] = age_us[::-1]  # of repeated indices numpy keeps the last: here the first in time
    x = (oldest[cell] - age_us) / DAY_US
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        dx = x - (np.bincount(cell, weights=x, minlength=size) / np.maximum(count, 1))[cell]
        dy = value - mean[cell]
        spread = np.bincount(cell, weights=dx * dx, minlength=size)
        slope = np.bincount(cell, weights=dx * dy, minlength=size) / spread
    return np.where(np.isfinite(slope), slope, np.nan)  # at one time all x are exactly 0, and 0 / 0 is NaN
