"""Families: what each must keep, the penalty search against a plain one, class weights, and the trade-off table against scikit-learn's."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from features import clinic
from features.clock import DAY_US, ManualClock
from features.codes import codebook
from features.errors import InputError
from features.importers.build import build_log
from models import families, split
from models import train as training
from models.artifact import Model
from models.families import BOOSTING, FAMILIES, FOREST, LOGISTIC, PENALTIES, Family, Float
from models.score import Scorer
from streams.cli import main
from tests.models.test_score import use_case

CHECKED = settings(max_examples=200, deadline=None, print_blob=True)


def invent(n: int, *, seed: int, signal: float = 1.0, p: int = 4, patients: int = 0) -> tuple[Float, Float, Any]:
    """(matrix, label, patient): the first column speaks, a fifth of all values is null, about one visit in six has the event."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n, p))
    label = (rng.random(n) < 1 / (1 + np.exp(2.0 - signal * matrix[:, 0]))).astype(np.float64)
    matrix[rng.random(matrix.shape) < 0.2] = np.nan
    names = rng.integers(0, 2**62, patients or n // 4)
    return matrix, label, rng.choice(names, n)


# --- what every family keeps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_family_keeps_its_promises(family: Family, seed: int) -> None:
    assert families.check(family, seed=seed) == []


def test_only_the_logistic_regression_promises_to_forget_the_order_of_rows() -> None:
    assert [f.name for f in FAMILIES if f.order_free] == [LOGISTIC.name]


def _by_chance() -> Any:
    calls = itertools.count()
    return lambda penalty, seed, weights: FOREST.make(penalty, next(calls), weights)


BROKEN = [
    (replace(FOREST, make=_by_chance()), "the same seed"),
    (replace(FOREST, order_free=True), "order of the rows"),
    (replace(BOOSTING, make=lambda c, s, w: _Level()), "signal"),
]


class _Level:
    """The prevalence, whatever the row."""

    def fit(self, matrix: Float, label: Float) -> _Level:
        self.level = float(label.mean())
        return self

    def predict_proba(self, matrix: Float) -> Float:
        return np.tile([1 - self.level, self.level], (len(matrix), 1))


@pytest.mark.parametrize(("family", "words"), BROKEN)
def test_each_promise_can_be_found_broken(family: Family, words: str) -> None:
    assert [promise for promise in families.check(family) if words in promise]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_infinite_values_are_refused_to_score_too(family: Family) -> None:
    matrix, label, patient = invent(400, seed=3)
    fitted = families.fit(family, matrix, label, patient)
    matrix[7, 2] = -math.inf
    with pytest.raises(InputError, match="infinite values in column 2, 1 rows"):
        fitted.risk(matrix)


# --- the penalty -----------------------------------------------------------------------------------------------------------------------


def plain_losses(matrix: Float, label: Float, patient: Any) -> Float:
    """The twin: every penalty in every fold from nothing, by another solver, on 64 bits."""
    total = np.zeros(len(PENALTIES))
    for fit, held in split.folds(patient, label):
        fill, scale = SimpleImputer(strategy="median"), StandardScaler()
        null = MissingIndicator(features="all").fit(matrix[fit])
        x = np.hstack([scale.fit_transform(fill.fit_transform(matrix[fit])), null.transform(matrix[fit])])
        x_held = np.hstack([scale.transform(fill.transform(matrix[held])), null.transform(matrix[held])])
        for n, penalty in enumerate(PENALTIES):
            model = LogisticRegression(C=penalty, tol=1e-7, max_iter=10_000).fit(x, label[fit])
            total[n] += log_loss(label[held], model.predict_proba(x_held)[:, 1]) * len(held)
    return total


@pytest.mark.parametrize(("seed", "n", "signal"), [(1, 400, 0.2), (2, 400, 1.0), (3, 900, 2.0), (4, 300, 0.0), (5, 1_500, 1.0)])
def test_the_fast_search_has_the_losses_of_the_plain_one(seed: int, n: int, signal: float) -> None:
    """To five digits, for every penalty, on folds of unequal size; the least of them is chosen."""
    matrix, label, patient = invent(n, seed=seed, signal=signal, p=6)
    patient[: n // 4] = patient[0]
    with threadpool_limits(1):
        losses = plain_losses(matrix, label, patient) / n
    np.testing.assert_allclose(families.penalty_losses(matrix, label, patient), losses, rtol=1e-5)
    chosen = losses[PENALTIES.index(families.choose_penalty(matrix, label, patient))]
    assert chosen <= losses.min() * (1 + 2e-5), dict(zip(PENALTIES, losses.tolist(), strict=True))


def test_the_search_does_not_always_say_the_same() -> None:
    chosen = {families.choose_penalty(*invent(n, seed=n, signal=s, p=6)) for n, s in ((300, 0.0), (400, 1.0), (2_500, 2.0))}
    assert len(chosen) > 1, chosen


def test_a_fold_with_one_class_is_named() -> None:
    """Three patients with an event in five folds: the fourth fold measures on visits without one."""
    label = np.zeros(40)
    label[[0, 4, 8]] = 1.0
    with pytest.raises(InputError, match=r"fold 4 of 5, the part to measure on, have 8 visits, all without an event"):
        families.choose_penalty(np.zeros((40, 1)), label, np.repeat(np.arange(10), 4))
    with pytest.raises(InputError, match="one patient only"):
        families.choose_penalty(np.zeros((40, 1)), label, np.zeros(40, np.int64))


# --- class weights ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES, ids=lambda f: f.name)
def test_class_weights_leave_the_level_of_the_risks_alone(family: Family) -> None:
    """On fresh visits mean risk over event rate is near 1 with weights, as without (trees: to a fifth); uncorrected it is above 2."""
    matrix, label, patient = invent(4_000, seed=11)
    fresh, came, _ = invent(20_000, seed=12)
    ratios = {}
    for weight in ("none", "balanced"):
        fitted = families.fit(family, matrix, label, patient, class_weight=weight)
        ratios[weight] = float(fitted.risk(fresh).mean() / came.mean())
    raw = replace(fitted, weight_ratio=1.0).risk(fresh).mean() / came.mean()
    assert 0.93 < ratios["none"] < 1.07 and abs(ratios["balanced"] - 1) < (0.07 if family is LOGISTIC else 0.2) and raw > 2, (ratios, raw)


def rows_of(n: int, *, seed: int) -> training.Rows:
    """Rows for the use case of the tests, three years of index days, labels settled 60 days later."""
    matrix, label, patient = invent(n, seed=seed, p=len(use_case().feature_names))
    matrix[:, 5] = 3.0
    index_us = np.random.default_rng(seed).integers(0, 1_000, n) * DAY_US
    return training.Rows(matrix, label, patient, index_us, index_us + 60 * DAY_US, {"excluded": 2})


@pytest.mark.parametrize("weight", ["none", "balanced"])
def test_the_model_file_says_which_weights_were_used_and_scores_with_the_level_of_the_data(weight: families.Weights) -> None:
    """The written numbers give the fitted risks to 1e-9, weights taken out."""
    rows = rows_of(4_000, seed=21)
    parts = training.split_of(rows, use_case())
    made = training.train_rows(rows, use_case(), parts, class_weight=weight)
    scorer = Scorer(Model(made, use_case()))
    risk = np.array([scorer.risk(x) for x in scorer.logits(rows.matrix).tolist()])
    fitted = families.fit(LOGISTIC, *(x[parts.train] for x in (rows.matrix, rows.label, rows.patient)), class_weight=weight)
    np.testing.assert_allclose(risk, fitted.risk(rows.matrix), rtol=0, atol=1e-9)
    assert made.training["class_weight"] == weight
    assert made.training["constant_columns"] == [use_case().feature_names[5]]
    assert 0.98 < risk[parts.train].mean() / rows.label[parts.train].mean() < 1.02
    flagged = (scorer.logits(rows.matrix[parts.tuning]) >= Model(made, use_case()).threshold_logit).mean()
    assert 0.08 < flagged <= 0.10


def test_the_model_file_says_where_the_cut_was() -> None:
    """Cut, embargo, what was left out and the warning; nothing behind the cut is trained on."""
    rows = rows_of(4_000, seed=22)
    parts = training.split_of(rows, use_case(), cut_us=600 * DAY_US, embargo_us=30 * DAY_US)
    told = training.train_rows(rows, use_case(), parts).training
    assert (told["cut"], told["embargo_days"], told["held_out"]) == ("1971-08-24T00:00:00Z", 30.0, int(parts.held_out.sum()))
    assert "is 30 days, shorter than the time at risk of 60 days" in told["warning"]
    assert told["left_out"]["excluded"] == 2 and told["left_out"]["in the embargo"] > 0
    assert rows.index_us[parts.train].max() <= 540 * DAY_US, "a label of the last 60 days before the cut was not known at it"
    long = training.split_of(rows, use_case(), cut_us=600 * DAY_US)
    assert long.embargo_us == 60 * DAY_US and "warning" not in training.train_rows(rows, use_case(), long).training


# --- the table -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut_us", [None, 600 * DAY_US], ids=["folds", "held out"])
def test_the_table_is_what_scikit_learn_measures_on_the_same_rows(cut_us: int | None) -> None:
    """Each visit measured by a fit that has not seen its patient; flags by the tuning visits of that fit."""
    rows = rows_of(1_200, seed=31)
    parts = training.split_of(rows, use_case(), cut_us=cut_us)
    found = training.compare(rows, use_case(), parts)
    train, tuning = np.flatnonzero(parts.train), np.flatnonzero(parts.tuning)
    rounds = [(train, np.flatnonzero(parts.held_out))]
    if cut_us is None:
        rounds = [(train[fit], train[held]) for fit, held in split.folds(rows.patient[train], rows.label[train])]
    for family, said in zip(FAMILIES, found.families, strict=True):
        risk, label, flagged = [], [], []
        for fit, held in rounds:
            assert not set(rows.patient[fit].tolist()) & set(rows.patient[held].tolist())
            fitted = families.fit(family, rows.matrix[fit], rows.label[fit], rows.patient[fit])
            down = sorted(fitted.risk(rows.matrix[tuning]).tolist(), reverse=True)
            first_out = down[int(0.1 * len(tuning))]
            cut = (min(x for x in down if x > first_out) + first_out) / 2
            mine = fitted.risk(rows.matrix[held])
            risk, label, flagged = [*risk, *mine], [*label, *rows.label[held]], [*flagged, *(mine >= cut)]
        assert (found.visits, found.events) == (len(label), sum(label))
        assert said.auroc == pytest.approx(roc_auc_score(label, risk), abs=1e-12)
        assert said.average_precision == pytest.approx(average_precision_score(label, risk), abs=1e-12)
        assert said.brier == pytest.approx(brier_score_loss(label, risk), abs=1e-12)
        logit = np.log(np.array(risk) / (1 - np.array(risk)))[:, None]
        slope = LogisticRegression(C=1e12, tol=1e-9).fit(logit, label).coef_[0, 0]
        assert said.calibration_slope == pytest.approx(slope, abs=1e-4)
        assert said.flagged == pytest.approx(np.mean(flagged), abs=1e-12)
        assert said.ppv == pytest.approx(np.array(label)[np.array(flagged)].mean(), abs=1e-12)


def test_the_table_as_text() -> None:
    """One line a family under its heads, and what becomes of them in the last line."""
    matrix, label, patient = invent(800, seed=41)
    clock = ManualClock()
    found = families.compare(split.by_patient(patient), matrix, label, patient, capacity=0.1, clock=clock, families=[LOGISTIC, BOOSTING])
    lines = families.table(found).splitlines()
    assert lines[0].startswith(f"measured on {found.visits} training visits, in 5 patient-grouped folds, {found.events} events")
    assert [line.split("  ")[0] for line in lines[1:4]] == ["family", LOGISTIC.name, BOOSTING.name]
    assert all(" 0.0 s " in line for line in lines[2:4]), "time is that of the clock"
    assert lines[-1].startswith("Only the logistic regression is written as a model that the worker scores")
    assert found.families[0].size_bytes < found.families[1].size_bytes


def test_held_out_visits_of_one_class_are_refused() -> None:
    rows = rows_of(1_000, seed=42)
    parts = training.split_of(rows, use_case(), cut_us=600 * DAY_US)
    rows.label[parts.held_out] = 0.0
    with pytest.raises(InputError, match=r"the held-out visits have \d+ visits, all without an event"):
        training.compare(rows, use_case(), parts)


@CHECKED
@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.floats(0.01, 0.99))
def test_never_more_than_the_capacity_lies_above_the_cut(values: list[int], capacity: float) -> None:
    """And no lower cut between the values would do: the next value down would flag too many."""
    array = np.array(values, np.float64)
    cut = families.capacity_cut(array, capacity)
    assert (array >= cut).sum() <= capacity * len(array)
    below = array[array < cut]
    assert not len(below) or (array >= below.max()).sum() > capacity * len(array) - 1e-9


# --- the command -----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families") / "log"
    span = {"start": datetime(2025, 1, 1, tzinfo=UTC), "end": datetime(2026, 1, 1, tzinfo=UTC)}
    build_log(clinic.events(patients=250, seed=1, **span), folder, book=codebook(), source="clinic")
    return folder


def run(*words: str | Path) -> Any:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_the_command_trains_behind_a_cut_and_prints_the_table(log: Path, tmp_path: Path) -> None:
    """The model, the table and the warning, as text and as JSON; the same model either way."""
    words = ("train", log, "--use-case", "ed_60d_any", "--cut", "2025-08-01", "--embargo-days", "10", "--compare")
    said = run(*words, "--out", tmp_path / "a.json")
    assert said.exit_code == 0, said.output
    assert families.ONLY_ONE in said.stdout and "warning: the gap between training and held-out visits is 10 days" in said.stdout
    document = json.loads(run(*words, "--out", tmp_path / "b.json", "--json").stdout)
    assert [line["family"] for line in document["families"]["families"]] == [f.name for f in FAMILIES]
    assert document["families"]["visits"] == document["training"]["held_out"]
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_an_embargo_without_a_cut_is_refused(log: Path, tmp_path: Path) -> None:
    said = run("train", log, "--use-case", "ed_60d_any", "--embargo-days", "10", "--out", tmp_path / "a.json")
    assert said.exit_code == 2 and "give --cut too" in said.output and not (tmp_path / "a.json").exists()
