"""Splits: patients on one side, labels known at the cut, an empty stretch behind it, and folds that do not depend on the order of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.clock import DAY_US
from features.errors import InputError
from models import split
from models.split import HELD_OUT, TUNING, Int

CHECKED = settings(max_examples=200, deadline=None, print_blob=True)
DAY = 100
"""A made-up day: short, so that equal times and both edges are drawn often."""
small = st.integers(0, 12)


@st.composite
def visits(draw: st.DrawFn) -> tuple[Int, Int, Int]:
    """(patient, index_us, settled_us): few patients with many visits, labels settled at or behind the visit."""
    rows = draw(st.lists(st.tuples(st.integers(0, 300), small, small), max_size=40))
    patient, index, wait = np.array(rows, np.int64).reshape(-1, 3).T
    return patient, index, index + wait


def plain(patient: int, index: int, settled: int, *, cut: int, embargo: int) -> str:
    """The twin: what becomes of one visit."""
    share = (patient // 7) % 5
    if share == HELD_OUT:
        if index >= cut + embargo:
            return "held_out"
        return "in the embargo" if index >= cut else "patient of the other side of the cut"
    if index >= cut + embargo:
        return "patient of the other side of the cut"
    if index >= cut:
        return "in the embargo"
    if settled > cut:
        return "label not settled at the cut"
    return "tuning" if share == TUNING else "train"


@CHECKED
@given(visits(), small, small, small)
def test_a_split_in_time_keeps_its_promises(told: tuple[Int, Int, Int], cut: int, embargo: int, at_risk: int) -> None:
    """No patient on two sides, nothing known after the cut is learned from, nothing in the embargo; every visit is used or counted."""
    patient, index, settled = told
    made = split.in_time(patient, index, settled, cut_us=cut, embargo_us=embargo, at_risk_us=at_risk)
    sides = [set(patient[mask].tolist()) for mask in (made.train, made.tuning, made.held_out)]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    learns = made.train | made.tuning
    assert (settled[learns] <= cut).all() and (index[learns] < cut).all()
    assert (index[made.held_out] >= cut + embargo).all()
    assert (made.train.astype(int) + made.tuning + made.held_out).max(initial=0) <= 1
    used = int((learns | made.held_out).sum())
    assert used + sum(made.left_out.values()) == len(patient), "each visit is used once or left out for one reason"


@CHECKED
@given(visits(), small, small)
def test_a_split_in_time_is_what_a_loop_over_the_visits_says(told: tuple[Int, Int, Int], cut: int, embargo: int) -> None:
    patient, index, settled = told
    made = split.in_time(patient, index, settled, cut_us=cut, embargo_us=embargo, at_risk_us=0)
    expected = [plain(*row, cut=cut, embargo=embargo) for row in zip(*(x.tolist() for x in told), strict=True)]
    for name in ("train", "tuning", "held_out"):
        assert getattr(made, name).tolist() == [e == name for e in expected]
    assert made.left_out == {reason: expected.count(reason) for reason in made.left_out}


TRAINED, TUNED, HELD = 14, 0, 7
"""Patients of the three roles."""


@pytest.mark.parametrize(
    ("patient", "index", "settled", "where"),
    [
        (TRAINED, 9 * DAY, 10 * DAY, "train"),  # the label settles at the cut
        (TRAINED, 9 * DAY, 10 * DAY + 1, ""),  # a microsecond behind it
        (TRAINED, 10 * DAY - 1, 10 * DAY, "train"),  # a microsecond before the cut
        (TRAINED, 10 * DAY, 10 * DAY, ""),  # at the cut
        (TUNED, 10 * DAY - 1, 10 * DAY, "tuning"),
        (TUNED, 10 * DAY, 10 * DAY, ""),
        (HELD, 13 * DAY, 99 * DAY, "held_out"),  # at the end of the embargo
        (HELD, 13 * DAY - 1, 99 * DAY, ""),
        (TRAINED, 13 * DAY, 99 * DAY, ""),  # behind it, but the patient trains
        (HELD, 9 * DAY, 10 * DAY, ""),  # before the cut, but the patient is held out
    ],
)
def test_both_edges_of_the_cut_and_of_the_embargo(patient: int, index: int, settled: int, where: str) -> None:
    one = (np.array([x], np.int64) for x in (patient, index, settled))
    made = split.in_time(*one, cut_us=10 * DAY, embargo_us=3 * DAY, at_risk_us=3 * DAY)
    assert [name for name in ("train", "tuning", "held_out") if getattr(made, name)[0]] == ([where] if where else [])


@pytest.mark.parametrize(("embargo_days", "warned"), [(59, True), (60, False), (61, False), (0, True)])
def test_an_embargo_shorter_than_the_time_at_risk_is_warned_of(embargo_days: int, warned: bool) -> None:
    """With the gap in days; equal is long enough."""
    none = np.zeros(0, np.int64)
    made = split.in_time(none, none, none, cut_us=0, embargo_us=embargo_days * DAY_US, at_risk_us=60 * DAY_US)
    assert bool(made.warning) == warned
    assert not warned or f"is {embargo_days} days, shorter than the time at risk of 60 days" in made.warning


def test_a_negative_embargo_is_refused() -> None:
    """By a microsecond; none at all is allowed."""
    none = np.zeros(0, np.int64)
    split.in_time(none, none, none, cut_us=0, embargo_us=0, at_risk_us=0)
    with pytest.raises(InputError, match="would hold out visits before the cut"):
        split.in_time(none, none, none, cut_us=0, embargo_us=-1, at_risk_us=0)


@CHECKED
@given(visits(), visits(), small, small)
def test_more_data_move_nobody_to_another_side(told: Any, more: Any, cut: int, embargo: int) -> None:
    """The same visits among others, and in another order, are on the same side; so it is without a cut."""
    together = [np.concatenate(pair) for pair in zip(more, told, strict=True)]
    alone = split.in_time(*told, cut_us=cut, embargo_us=embargo, at_risk_us=0)
    among = split.in_time(*together, cut_us=cut, embargo_us=embargo, at_risk_us=0)
    n = len(more[0])
    for name in ("train", "tuning", "held_out"):
        assert (getattr(among, name)[n:] == getattr(alone, name)).all()
    assert (split.by_patient(together[0]).tuning[n:] == split.by_patient(told[0]).tuning).all()
    assert (among.tuning <= split.by_patient(together[0]).tuning).all(), "who tunes with a cut tunes without one"


def test_the_shares_are_as_stated() -> None:
    """Of 10,000 hashed patients a fifth tunes and a fifth is held out, seed 1."""
    patient = np.random.default_rng(1).integers(0, 2**62, 10_000)
    counts = np.bincount(split.share_of(patient), minlength=5)
    assert (np.abs(counts - 2_000) < 200).all(), counts


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Int, Any]:
    rows = draw(st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=60))
    return np.array([p for p, _ in rows], np.int64), np.array([float(y) for _, y in rows])


@CHECKED
@given(labelled(), st.integers(2, 6), st.data())
def test_folds_keep_patients_together_whatever_the_order(rows: tuple[Int, Any], n: int, data: st.DataObject) -> None:
    """Every visit is measured once, by a fold that has not seen its patient; patients with events are dealt evenly."""
    patient, label = rows
    made = split.folds(patient, label, n)
    assert len(made) == min(n, len(np.unique(patient)))
    assert sorted(i for _, held in made for i in held.tolist()) == list(range(len(patient)))
    for fit, held in made:
        assert not set(patient[fit].tolist()) & set(patient[held].tolist())
        assert len(fit) + len(held) == len(patient)
    with_event = set(patient[label == 1].tolist())
    dealt = [len(with_event & set(patient[held].tolist())) for _, held in made]
    assert max(dealt) - min(dealt) <= 1
    order = np.array(data.draw(st.permutations(range(len(patient)))))
    again = split.folds(patient[order], label[order], n)
    assert [set(patient[held].tolist()) for _, held in made] == [set(patient[order][held].tolist()) for _, held in again]
