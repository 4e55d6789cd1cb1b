"""Metrics and their intervals: equal to loops over visits, equal to copied rows, and what they say of nothing."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models import bootstrap, metrics
from models.bootstrap import Interval
from tests.bench import coverage
from tests.oracle import metrics as oracle

CHECKED = settings(max_examples=150, deadline=None, print_blob=True)
ROW = st.tuples(st.integers(1, 19).map(lambda n: n / 20), st.booleans(), st.sampled_from([0.0, 1.0]), st.integers(0, 4))
ROWS = st.lists(ROW, min_size=1, max_size=30)
Rows = list[tuple[float, bool, float, int]]
Columns = tuple[metrics.Float, metrics.Bool, metrics.Float, metrics.Int]

BY_NAME: dict[str, Callable[[Columns, metrics.Weight], metrics.Float]] = {
    "prevalence": lambda c, w: metrics.prevalence(c[2], w),
    "flagged_share": lambda c, w: metrics.flagged_share(c[1], w),
    "ppv": lambda c, w: metrics.ppv(c[1], c[2], w),
    "npv": lambda c, w: metrics.npv(c[1], c[2], w),
    "sensitivity": lambda c, w: metrics.sensitivity(c[1], c[2], w),
    "specificity": lambda c, w: metrics.specificity(c[1], c[2], w),
    "odds_ratio": lambda c, w: metrics.odds_ratio(c[1], c[2], w),
    "net_benefit": lambda c, w: metrics.net_benefit(c[1], c[2], 0.3, w),
    "auroc": lambda c, w: metrics.auroc(c[0], c[2], w),
    "average_precision": lambda c, w: metrics.average_precision(c[0], c[2], w),
    "brier": lambda c, w: metrics.brier(c[0], c[2], w),
    "brier_scaled": lambda c, w: metrics.brier_scaled(c[0], c[2], w),
    "log_loss": lambda c, w: metrics.log_loss(c[0], c[2], w),
    "calibration_factor": lambda c, w: metrics.calibration_factor(c[0], c[2], w),
    "oe_ratio": lambda c, w: metrics.oe_ratio(c[0], c[2], w),
    "calibration_in_the_large": lambda c, w: metrics.calibration_in_the_large(c[0], c[2], w),
}


def columns(rows: Rows) -> Columns:
    risk, flagged, label, patient = zip(*rows, strict=True)
    return np.array(risk), np.array(flagged, bool), np.array(label), np.array(patient, np.int64)


def alike(got: object, want: object) -> bool:
    return bool(np.allclose(np.asarray(got, np.float64), np.asarray(want, np.float64), rtol=1e-9, atol=1e-9, equal_nan=True))


@CHECKED
@given(rows=ROWS)
def test_ranks_and_tables_agree_with_the_loops(rows: Rows) -> None:
    """Ties, one class alone and single visits among them."""
    risk, flagged, label, _ = columns(rows)
    assert alike(metrics.auroc(risk, label), oracle.auroc(risk.tolist(), label.tolist()))
    assert alike(metrics.average_precision(risk, label), oracle.average_precision(risk.tolist(), label.tolist()))
    assert tuple(float(x) for x in metrics.table(flagged, label)) == oracle.table(flagged.tolist(), label.tolist())


@CHECKED
@given(rows=ROWS)
def test_the_clustered_error_agrees_with_the_loops(rows: Rows) -> None:
    """And where each patient has one visit it is nearly DeLong's, which divides by one more."""
    risk, _, label, patient = columns(rows)
    with_event, without = set(patient[label == 1].tolist()), set(patient[label == 0].tolist())
    found = metrics.auroc_se_clustered(risk, label, patient)
    if min(len(with_event), len(without)) < 2:
        assert math.isnan(found)
        return
    assert alike(found**2, max(oracle.auroc_variance(risk.tolist(), label.tolist(), patient.tolist()), 0.0))
    alone = np.arange(len(risk))
    assert alike(metrics.auroc_se_clustered(risk, label, alone), metrics.auroc_se_delong(risk, label))


@CHECKED
@given(rows=ROWS, times=st.lists(st.integers(0, 3), min_size=30, max_size=30))
def test_a_weight_is_as_many_copies(rows: Rows, times: list[int]) -> None:
    """Every metric, with a weight of one draw and with those of several at once."""
    count = np.array(times[: len(rows)])
    assume(count.any())
    copied = columns([row for row, n in zip(rows, count.tolist(), strict=True) for _ in range(n)])
    whole, weight = columns(rows), count.astype(np.float64)
    for name, metric in BY_NAME.items():
        want = metric(copied, None)
        assert alike(metric(whole, weight), want), name
        assert alike(metric(whole, np.stack([np.ones(len(rows)), weight])), [metric(whole, None), want]), name


@CHECKED
@given(rows=ROWS, times=st.lists(st.integers(0, 3), min_size=30, max_size=30))
def test_the_calibration_line_solves_its_equations(rows: Rows, times: list[int]) -> None:
    """Where a line is told; where one label is missing or all risks are equal none is."""
    weight = np.array(times[: len(rows)], np.float64)
    told = [row for row, n in zip(rows, weight.tolist(), strict=True) for _ in range(int(n))]
    risk, _, label, _ = columns(rows)
    intercept, slope = (float(x[0]) for x in metrics.calibration_line(risk, label, weight[None, :]))
    if len({y for _, _, y, _ in told}) < 2 or len({r for r, _, _, _ in told}) < 2:
        assert math.isnan(intercept)
        assert math.isnan(slope)
    elif not math.isnan(slope):
        equations = oracle.score_equations([r for r, *_ in told], [row[2] for row in told], intercept, slope)
        assert equations == pytest.approx((0.0, 0.0), abs=1e-5)


def test_a_line_that_separates_is_none() -> None:
    """No finite slope fits perfect order."""
    slope = metrics.calibration_line(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.0, 0.0, 1.0, 1.0]))[1]
    assert math.isnan(float(slope))


def test_a_line_far_from_flat_is_found() -> None:
    """Whole Newton steps run away here: many low risks without an event, the few high ones nearly all with one."""
    risk = np.concatenate([np.full(790, 0.02), np.full(10, 0.03), np.full(24, 0.6)])
    label = np.concatenate([np.zeros(790), [1.0], np.zeros(9), np.ones(23), [0.0]])
    intercept, slope = (float(x) for x in metrics.calibration_line(risk, label))
    assert oracle.score_equations(risk.tolist(), label.tolist(), intercept, slope) == pytest.approx((0.0, 0.0), abs=1e-6)


def test_a_known_line_is_found() -> None:
    """Risks that are half as far spread as they should be, and too low by a known shift, at any number of visits."""
    z = np.linspace(-3, 2, 6)
    true = 1 / (1 + np.exp(-(0.4 + 2.0 * z)))
    n = 1_000_000
    events = np.round(true * n)
    risk = np.repeat(1 / (1 + np.exp(-z)), 2)
    label, weight = np.tile([1.0, 0.0], 6), np.column_stack([events, n - events]).ravel()
    intercept, slope = metrics.calibration_line(risk, label, weight)
    assert (float(intercept), float(slope)) == pytest.approx((0.4, 2.0), abs=1e-4)


def test_the_signs_of_level() -> None:
    """Risks of 30 in 100 where 20 are seen: over-stated by 10 in 100, O/E 2/3, an offset below 0."""
    risk, label = np.full(10, 0.3), np.array([1.0] * 2 + [0.0] * 8)
    assert float(metrics.calibration_factor(risk, label)) == pytest.approx(0.10)
    assert float(metrics.oe_ratio(risk, label)) == pytest.approx(2 / 3)
    assert float(metrics.calibration_in_the_large(risk, label)) == pytest.approx(math.log(0.2 / 0.8) - math.log(0.3 / 0.7))


def test_shares_of_nothing_are_not_told() -> None:
    """No flagged visit: no PPV; no event: no sensitivity, AUROC or offset; all else is told."""
    risk, none, label = np.array([0.1, 0.4]), np.zeros(2, bool), np.zeros(2)
    for value in (
        metrics.ppv(none, label),
        metrics.sensitivity(none, label),
        metrics.odds_ratio(none, label),
        metrics.auroc(risk, label),
        metrics.average_precision(risk, label),
        metrics.brier_scaled(risk, label),
        metrics.calibration_in_the_large(risk, label),
    ):
        assert math.isnan(float(value))
    assert float(metrics.npv(none, label)) == 1.0
    assert float(metrics.oe_ratio(risk, label)) == 0.0
    assert math.isnan(metrics.auroc_se_delong(risk, label))
    assert all(math.isnan(x) for x in metrics.odds_ratio_wald(1, 2, 0, 4))


def test_risks_of_0_and_1_do_not_break_logarithms() -> None:
    """They count as `RISK_EDGE` away; a sure risk that fails costs much, not infinitely much."""
    risk, label = np.array([0.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0, 1.0, 0.0])
    assert float(metrics.log_loss(risk, label)) == pytest.approx(-math.log(metrics.RISK_EDGE) / 2, rel=1e-6)
    assert math.isfinite(float(metrics.calibration_line(risk, label)[1]))


@pytest.mark.parametrize(
    ("events", "n", "want"), [(0, 0, (0.0, 1.0)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (5, 10, (0.2366, 0.7634))]
)
def test_wilson_at_its_ends(events: int, n: int, want: tuple[float, float]) -> None:
    assert metrics.wilson(events, n) == pytest.approx(want, abs=5e-5)


def test_smooth_calibration_of_a_straight_line_is_the_line() -> None:
    """Local lines give back what is linear, with many distinct risks too, where they are joined."""
    for n in (50, 3 * metrics.SMOOTH_POINTS_MAX):
        risk = np.linspace(0.1, 0.9, n)
        assert np.abs(metrics.smooth_calibration(risk, 0.2 + 0.5 * risk) - (0.2 + 0.5 * risk)).max() < 1e-9
    assert metrics.smooth_calibration(np.full(4, 0.3), np.array([0.0, 0.0, 0.0, 1.0])).tolist() == [0.25] * 4


# --- intervals by drawing


def drawn(cluster: metrics.Int, draws: int, seed: int) -> metrics.Float:
    return np.concatenate(list(bootstrap.weights(cluster, draws=draws, seed=seed)))


def test_patients_are_drawn_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Visits of a patient weigh the same, all patients together as many as there are, in however many pieces they are drawn."""
    patient = np.array([7, 7, 3, 9, 9, 9])
    whole = drawn(patient, 50, seed=4)
    assert whole.shape == (50, 6)
    assert (whole[:, 0] == whole[:, 1]).all()
    assert (whole[:, 3] == whole[:, 4]).all()
    assert (whole[:, [0, 2, 3]].sum(axis=1) == 3).all()
    assert (whole == drawn(patient, 50, seed=4)).all()
    assert not (whole == drawn(patient, 50, seed=5)).all()
    monkeypatch.setattr(bootstrap, "CELLS_AT_ONCE", 6 * 7)
    assert drawn(patient, 50, seed=4).shape == (50, 6)


def test_an_interval_is_that_of_copied_rows() -> None:
    """The 2.5 and 97.5 % values of the metric over the same draws, each made by copying rows."""
    rng = np.random.default_rng(11)
    patient = np.repeat(np.arange(40), 3)
    risk = rng.uniform(0.05, 0.6, 120)
    label = (rng.uniform(size=120) < risk).astype(np.float64)
    found = bootstrap.intervals({"auroc": lambda w: metrics.auroc(risk, label, w)}, patient, draws=200, seed=2)["auroc"][0]
    copies = [np.repeat(np.arange(120), row.astype(int)) for row in drawn(patient, 200, seed=2)]
    values = sorted(oracle.auroc(risk[rows].tolist(), label[rows].tolist()) for rows in copies)
    assert (found.low, found.high) == pytest.approx((values[4], values[194]), abs=1e-12)


def test_an_interval_that_few_draws_tell_is_none() -> None:
    """Up to 5 % of the draws may give no number; beyond, there is no interval; infinite values stand at their end."""
    told = np.arange(100, dtype=np.float64)
    for missing, is_told in ((5, True), (6, False)):
        values = told.copy()
        values[:missing] = np.nan
        assert math.isfinite(bootstrap.percentiles(values)[0].low) is is_told
    assert bootstrap.percentiles(np.array([1.0] * 50 + [np.inf] * 50))[0] == Interval(1.0, math.inf)
    assert math.isnan(bootstrap.percentiles(np.full(10, np.nan))[0].high)


def test_visits_that_are_alike_widen_the_interval_by_patient() -> None:
    """Ten equal visits a patient: the interval by patient is about √10 times the naive one."""
    label = np.repeat((np.arange(60) < 20).astype(np.float64), 10)
    one = {"p": lambda w: metrics.prevalence(label, w)}
    by_patient = bootstrap.intervals(one, np.repeat(np.arange(60), 10), draws=500, seed=3)["p"][0]
    naive = bootstrap.intervals(one, np.arange(600), draws=500, seed=3)["p"][0]
    assert by_patient.half / naive.half == pytest.approx(math.sqrt(10), rel=0.25)


def test_the_measure_of_coverage_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make intervals` in its short form; what it measures decides nothing here."""
    monkeypatch.setattr(coverage, "TRUTH_PATIENTS", 2_000)
    monkeypatch.setattr(coverage, "TRUTH_PIECES", 2)
    true, by_patient, naive = coverage.coverage(repeats=4, patients=80, draws=60, seed=1)
    assert (true[0] > 0.05, true[1] > true[0]) == (True, True)
    for held in (by_patient, naive):
        assert held.shape == (3,)
        assert ((held >= 0) & (held <= 1)).all()
