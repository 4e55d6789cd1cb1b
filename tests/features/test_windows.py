"""The window kernel: edges, order of ties, whose facts, and rows that do not depend on the batch (S2, S5, S6)."""

from __future__ import annotations

import struct
from fractions import Fraction
from itertools import combinations, permutations
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features import codes, fact, history
from features.catalog import AGGREGATES, Feature, declare
from features.clock import DAY_US
from features.usecase import UseCase
from features.windows import Plan, Questions, rows
from tests.oracle import fold, windows
from tests.oracle.record import parse
from tests.strategies import (
    BOOK,
    CHECKED,
    EPISODES,
    INDEX_TIMES,
    LONG_AGO_US,
    T_US,
    Telling,
    encounter,
    histories,
    lab,
    log,
    retraction,
    use_cases,
)

Asked = tuple[int, int, int]
"""(index time, place, episode)."""
questions_ = st.tuples(st.sampled_from(INDEX_TIMES), st.integers(-1, 60), st.sampled_from(EPISODES))


def feature(aggregate: str, *, days: int | None = None, concepts: str = "hemoglobin", episode: str = "any") -> Feature:
    """One column."""
    words = {"aggregate": aggregate, "episode": episode}
    return declare(BOOK, stem="x", concepts=concepts.split(), days=days, **words)  # type: ignore[arg-type]


EVERYTHING = [
    feature(aggregate, days=days, concepts=concepts, episode=episode)
    for aggregate in AGGREGATES
    for days in (None, 5, 30, 90)
    for concepts, episode in (("hemoglobin", "any"), ("visit.*", "other"), ("visit.* weight", "own"), ("person.birth hemoglobin", "any"))
]  # fmt: skip


def matrix(patients: list[bytes], questions: list[tuple[int, Asked]], plan: Plan) -> np.ndarray[Any, Any]:
    """Rows for (patient, asked) by the product."""
    index_us, place, episode = zip(*(q for _, q in questions), strict=True)
    seg = np.array([seg for seg, _ in questions])
    asked = Questions(seg, np.array(index_us), np.array(place), np.array(episode, np.uint64))
    return rows(history.read(patients), asked, plan)


def ask(told: list[Telling], *columns: Feature, index_us: int = T_US, place: int = fact.PLACE_MAX, episode: int = 0) -> list[float]:
    """The row of one patient, told in this order at places 0, 1, 2, ..."""
    patient = log(*((telling, n, T_US) for n, telling in enumerate(told)))
    row: list[float] = matrix([patient], [(0, (index_us, place, episode))], Plan(columns, BOOK))[0].tolist()
    return row


COMMON = [feature(aggregate, days=days) for aggregate in ("count", "last", "sum", "slope") for days in (5, 30, 90)]
COMMON += [feature("count", concepts="visit.*", days=90, episode=episode) for episode in ("other", "own")]


@CHECKED
@given(histories(), use_cases(), st.sampled_from(INDEX_TIMES), st.sampled_from(EPISODES))
def test_s5_the_kernel_agrees_with_the_oracle(patient: bytes, use_case: UseCase, one_us: int, episode: int) -> None:
    """Each cell, bit by bit, is what a loop over all facts of the patient says: for any index time, and at any place."""
    records = parse(patient)
    plan = Plan([*use_case.plan.features, *COMMON], BOOK)
    questions = [(one_us, place, episode) for place in (-1, *(r.place for r in records))]
    questions += [(index_us, fact.PLACE_MAX, episode) for index_us in INDEX_TIMES]
    at_the_end = fold.present(records)
    for row, (index_us, place, _) in zip(matrix([patient], [(0, q) for q in questions], plan), questions, strict=True):
        now = fold.present([r for r in records if r.place <= place])
        for got, f in zip(row, plan.features, strict=True):
            want = windows.value(f, at_the_end if f.leak else now, index_us=index_us, episode=episode, book=BOOK)
            assert struct.pack("<d", got) == struct.pack("<d", want), f


@pytest.mark.parametrize("days", [5, 30, 90])
@pytest.mark.parametrize("others", [(), (5, 30, 90), (365,)], ids=["alone", "among others", "beside a longer one"])
def test_s5_edges(days: int, others: tuple[int, ...]) -> None:
    """`[t − W, t)`: a fact stamped t − W is in, one stamped t is not, and so one microsecond on both sides."""
    columns = [feature("count", days=d) for d in dict.fromkeys((days, *others))]
    start_us = T_US - days * DAY_US
    seen = [ask([lab("L", at)], *columns)[0] for at in (start_us - 1, start_us, start_us + 1, T_US - 1, T_US, T_US + 1)]
    assert seen == [0, 1, 1, 1, 0, 0]


def test_s5_the_whole_past_ends_at_the_index() -> None:
    """Without a look-back the left edge is gone and the right one stays open."""
    assert [ask([lab("L", at)], feature("count"))[0] for at in (LONG_AGO_US, T_US - 1, T_US)] == [1, 1, 0]


def test_s5_not_own() -> None:
    """`other` leaves out the episode of the index, `own` keeps only it; facts without an episode are of no visit, so not own."""
    mine, theirs = fact.hash64("mine"), fact.hash64("theirs")
    told = [encounter(f"E{n}", T_US - n - 1, episode=episode) for n, episode in enumerate([mine, theirs, 0])]
    columns = [feature("days_since_last", concepts="visit.*", episode=episode) for episode in ("any", "other", "own")]
    counts = [feature("count", concepts="visit.*", episode=episode) for episode in ("any", "other", "own")]
    assert ask(told, *counts, *columns, episode=mine) == [3, 2, 1, 1 / DAY_US, 2 / DAY_US, 1 / DAY_US]


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_s5_last_is_by_event_time_then_ordinal_then_id(order: tuple[int, ...]) -> None:
    """Of facts at one instant the source's order decides, then the id, never the order of the log."""
    ids = sorted(("A", "B"), key=lambda source: struct.unpack("<QQ", fact.fact_id("lab", source)))
    told = [lab("C", T_US - 9, 1.0, ordinal=9), lab("D", T_US - 5, 2.0, ordinal=0)]
    told += [lab(source, T_US - 5, value, ordinal=1) for source, value in zip(ids, (3.0, 4.0), strict=True)]
    some = [told[n] for n in order]
    assert ask(some, feature("last"), feature("first"), feature("last_ordinal")) == [4.0, 1.0, 1.0]
    assert ask([t for t in some if t.source in "CD"], feature("last"), feature("last_ordinal")) == [2.0, 0.0]
    assert ask([t for t in some if t.source != "C"], feature("first")) == [2.0]


@pytest.mark.parametrize("order", list(permutations(range(4))))
def test_s6_sums_run_in_the_order_of_time(order: tuple[int, ...]) -> None:
    """A sum adds in (event_time, ordinal, id) order whatever the order of the log: 5.0, where backwards is 3.0 and exactly is 4.0."""
    told = [lab("A", T_US - 2, 3.0), *(lab(f"B{n}", T_US - 1, value, ordinal=n) for n, value in enumerate((1e16, -1e16, 1.0)))]
    assert ask([told[n] for n in order], feature("sum"), feature("mean")) == [5.0, 1.25]


@pytest.mark.parametrize(("place", "value"), [(4, None), (5, 13.0), (7, 13.0), (8, 9.0), (9, 9.0), (10, None), (11, None)])
def test_s2_what_is_known_at_a_place(place: int, value: float | None) -> None:
    """A fact is seen from its place on, its amendment from the amendment's, and not from its retraction's on."""
    told = [(lab("L", T_US - 1, 13.0), 5), (lab("L", T_US - 1, 9.0, version=2), 8), (retraction("lab", "L", 3), 10)]
    patient = log(*((telling, at, T_US) for telling, at in told))
    row = matrix([patient], [(0, (T_US, place, 0))], Plan([feature("count"), feature("last")], BOOK))[0]
    assert row[0] == (value is not None)
    assert row[1] == value or (value is None and np.isnan(row[1]))


@pytest.mark.parametrize("known_us", [T_US - DAY_US, T_US + DAY_US])
def test_s3_known_time_and_event_time_apply_on_their_own(known_us: int) -> None:
    """Whether a fact is seen is a matter of its place and its event time; its stamp, before or after either, plays no part."""
    patient = log((lab("before", T_US - 1), 0, known_us), (lab("at", T_US), 1, known_us))
    counts = matrix([patient], [(0, (T_US + after, 1, 0)) for after in (0, 1)], Plan([feature("count")], BOOK))
    assert counts[:, 0].tolist() == [1, 2]


def test_a_result_without_a_number_is_no_result() -> None:
    """Such a result counts for nothing where its concept has a unit, and like any other fact where it has none."""
    nothing, given_ = lab("L", T_US - 1, float("nan")), lab("M", T_US - 2, 9.0)
    assert ask([nothing, given_], feature("count"), feature("last"), feature("days_since_last")) == [1.0, 9.0, 2 / DAY_US]
    assert ask([lab("R", T_US - 1, float("nan"), concept="ed_registration")], feature("count", concepts="ed_registration")) == [1.0]


@pytest.mark.parametrize(
    ("concept", "value", "abnormal"),
    [("hemoglobin", 12.0, 0), ("hemoglobin", np.nextafter(12.0, 0), 1), ("bilirubin", 1.2, 0), ("bilirubin", np.nextafter(1.2, 2), 1)],
)
def test_limits_of_normal_are_normal(concept: str, value: float, abnormal: int) -> None:
    """Both limits are inclusive."""
    assert ask([lab("L", T_US - 1, value, concept=concept)], feature("any_abnormal", concepts=concept)) == [abnormal]


BY_HAND = {
    "count": 3, "any": 1, "any_abnormal": 1, "distinct_episodes": 2, "sum": 34.5, "mean": 11.5, "min": 10.0, "max": 13.0, "last": 11.5,
    "first": 10.0, "change": 1.5, "percent_change": 15.0, "slope": 0.075, "days_since_last": 10.0, "days_since_first": 30.0,
    "last_ordinal": 3.0,
}  # fmt: skip
"""Of 10.0, 13.0 and 11.5 g/dL, 30, 20 and 10 days before: dx = -10, 0, 10 and dy = -1.5, 1.5, 0 make a slope of 15 / 200."""


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_each_aggregate_by_hand(aggregate: str) -> None:
    """Three results, the oldest on the closed edge of the window; one a microsecond before it and one on the open edge change nothing."""
    told = [
        lab("before", T_US - 30 * DAY_US - 1, 99.0, episode=7, ordinal=8),
        lab("A", T_US - 30 * DAY_US, 10.0, episode=1),
        lab("B", T_US - 20 * DAY_US, 13.0, episode=1),
        lab("C", T_US - 10 * DAY_US, 11.5, episode=2, ordinal=3),
        lab("at", T_US, 1.0, episode=9, ordinal=9),
    ]
    assert ask(told, feature(aggregate, days=30)) == [BY_HAND[aggregate]]
    assert ask(told[1:], feature(aggregate)) == [BY_HAND[aggregate]], "over the whole past, which ends at the index"
    wider = ask(told, feature(aggregate))[0]
    assert (wider == BY_HAND[aggregate]) == (aggregate in ("any", "any_abnormal", "last", "days_since_last", "last_ordinal", "min"))


def test_a_slope_needs_two_times() -> None:
    """None, one, or several results at one instant have no slope; of two instants, each result counts, ties in their order too."""
    one, tied = lab("A", T_US - 4 * DAY_US, 10.0), lab("B", T_US - 4 * DAY_US, 14.0, ordinal=1)
    assert all(np.isnan(ask(told, feature("slope"))[0]) for told in ([], [one], [one, tied]))
    assert ask([one, lab("C", T_US - 4 * DAY_US + 1, 10.0)], feature("slope")) == [0.0], "a microsecond is another time"
    assert ask([one, tied, lab("C", T_US - 2 * DAY_US, 13.0)], feature("slope")) == [pytest.approx(0.5, rel=1e-12)]


def test_a_slope_is_in_the_unit_that_was_asked_for() -> None:
    """Kilograms a day become grams a day."""
    told = [lab("A", T_US - 3 * DAY_US, 70.0, concept="weight"), lab("B", T_US - DAY_US, 69.0, concept="weight")]
    grams = declare(BOOK, stem="x", concepts=["weight"], aggregate="slope", days=30, unit="g")
    assert ask(told, feature("slope", concepts="weight"), grams) == [-0.5, -500.0]
    assert (grams.unit, feature("slope", concepts="weight").unit) == ("g per day", "kg per day")


@pytest.mark.parametrize("level", [0.0, 1e9, -1e12])
def test_a_slope_is_stable(level: float) -> None:
    """Neither a high level of the values nor results a century old take digits from it that the values had."""
    told = [lab(f"L{n}", T_US - 36_500 * DAY_US + n * DAY_US, level + 0.5 * n) for n in range(20)]
    assert ask(told, feature("slope")) == [pytest.approx(0.5, rel=1e-9 if level else 1e-13)]


def test_a_slope_of_what_is_not_a_number_or_too_large_is_null() -> None:
    """Facts without a value have none, and so have values whose products no number holds."""
    nothing = [lab(f"R{n}", T_US - n, float("nan"), concept="ed_registration") for n in (1, 2)]
    assert np.isnan(ask(nothing, feature("slope", concepts="ed_registration"))[0])
    assert np.isnan(ask([lab("A", T_US - 9 * DAY_US, -1e308), lab("B", T_US - 1, 1e308)], feature("slope"))[0])


@CHECKED
@given(st.lists(st.tuples(st.integers(1, 90 * 24), st.integers(-400, 400)), min_size=2, max_size=12, unique_by=lambda point: point[0]))
def test_a_slope_is_that_of_exact_fractions(points: list[tuple[int, int]]) -> None:
    """To 1e-9 of the steepest line between two of the points."""
    told = [lab(f"L{n}", T_US - hours * DAY_US // 24, tenths / 10) for n, (hours, tenths) in enumerate(points)]
    x, y = zip(*((Fraction(-hours, 24), Fraction(tenths, 10)) for hours, tenths in points), strict=True)
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    exact = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    steepest = max(abs((b - d) / (a - c)) for (a, b), (c, d) in combinations(list(zip(x, y, strict=True)), 2))
    assert abs(ask(told, feature("slope"))[0] - exact) <= 1e-9 * max(steepest, Fraction(1, 10**6))


def test_an_empty_window_is_null_and_counts_zero() -> None:
    """Counts and any_* are 0 where there is nothing, all others are null."""
    empty = dict(zip(AGGREGATES, ask([], *(feature(aggregate) for aggregate in AGGREGATES)), strict=True))
    assert [name for name, value in empty.items() if value == 0] == ["count", "any", "any_abnormal", "distinct_episodes"]
    assert sum(np.isnan(list(empty.values()))) == len(AGGREGATES) - 4


def test_a_change_in_percent_of_nothing_is_null() -> None:
    """From 0 there is no change in percent."""
    told = [lab("L", T_US - 2, 0.0), lab("M", T_US - 1, 2.0)]
    assert np.isnan(ask(told, feature("percent_change"))[0])
    assert ask([told[0]._replace(value=4.0), told[1]], feature("percent_change")) == [-50.0]


@settings(CHECKED, max_examples=12)
@given(st.lists(histories(), min_size=6, max_size=6), st.lists(questions_, min_size=7, max_size=7), st.randoms(use_true_random=False))
def test_s6_rows_do_not_depend_on_the_batch(some: list[bytes], questions: list[Asked], random: Random) -> None:
    """Batches of 1, of 7 and of 2,000 patients in any order give each question the same 64 bits in each column."""
    plan = Plan(EVERYTHING, BOOK)
    born = Telling("person", "P", 1, LONG_AGO_US, BOOK.by_name["person.birth"].number)  # so that 2,000 patients take the long way
    patients = [*some, log((born, 0, T_US), (lab("L", T_US - 1, 0.1), 1, T_US))]
    alone = np.concatenate([matrix([patient], [(0, q)], plan) for patient, q in zip(patients, questions, strict=True)])
    seven = matrix(patients, [(n, q) for n, q in enumerate(questions)], plan)
    which = [n % 7 for n in range(2_000)]
    random.shuffle(which)
    many = matrix([patients[n] for n in which], [(seg, questions[n]) for seg, n in enumerate(which)], plan)
    assert seven.tobytes() == alone.tobytes()
    assert many.tobytes() == alone[which].tobytes()


def test_s6_the_long_way_is_taken() -> None:
    """A batch of 2,000 patients with a birth in 1910 is more than (patient, microsecond) as one number holds."""
    assert 2_000 * (T_US - LONG_AGO_US) >= 2**62


def test_every_concept_that_a_feature_reads_has_a_number_below_the_controls() -> None:
    """No feature can read a tick or a name."""
    assert max(BOOK.concepts) < codes.CONTROL_FLOOR
