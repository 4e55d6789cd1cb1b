"""Model families on identical rows and folds, and what each costs: the only file that knows scikit-learn.

A family is a scikit-learn Pipeline, so that imputation and scaling are learned from the rows that are fitted on and from no others.
Class weights, where asked for, are taken out of the risks again: with w = weight of an event / weight of a visit without one, the odds of
a model that was fitted so are w times too high, and are divided by w (King G., Zeng L., Polit Anal 2001;9:137–63, prior correction). That
is right for the logistic regression; trees, which average, come out a tenth or so too low.

The trees are not tuned: their settings are careful ones for some thousand visits, the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import MissingIndicator, SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

from features.clock import Clock, SystemClock
from features.errors import InputError
from models import guard, metrics
from models.split import Bool, Int, Split, folds

Float = npt.NDArray[np.float64]
Weights = Literal["none", "balanced"]
"""`balanced`: events and visits without one weigh the same in all; taken out of the risks again."""

PENALTIES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""C of scikit-learn, the inverse of the penalty, from the strongest penalty on: each fit starts from the one before."""
THREADS = 1
"""Of BLAS and OpenMP: the sums, and with them the last bits of a model, do not depend on how many cores a machine has."""
TOLERANCE, SEARCH_TOLERANCE = 1e-10, 1e-6
"""Of the gradient of the mean loss, for the model and for the penalty search: Newton steps double the digits, each costs one step."""
RISK_EDGE = 1e-6
"""Risks are kept this far from 0 and 1: a forest says 0 where it has seen no event."""
SEED = 1


@dataclass(frozen=True, slots=True)
class Fitted:
    """A family fitted on some rows."""

    pipeline: Any
    weight_ratio: float
    """w of the class weights; 1.0: none."""
    penalty: float | None
    """C, where the family chooses one."""

    def risk(self, matrix: Float) -> Float:
        """Probability of the outcome, shape (n,).

        Raises:
            InputError: infinite values.
        """
        guard.refuse_infinite(matrix, _numbered(matrix))
        with threadpool_limits(THREADS):
            p = np.clip(self.pipeline.predict_proba(matrix)[:, 1], RISK_EDGE, 1 - RISK_EDGE)
        if self.weight_ratio == 1.0:
            return np.asarray(p, np.float64)
        return np.asarray(p / (p + self.weight_ratio * (1.0 - p)), np.float64)


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of model. Each passes `check`."""

    name: str
    explained: str
    """How a risk of it can be explained to a person."""
    order_free: bool
    """Promises that the order of the rows changes no risk by more than 1e-9. Trees draw rows and break ties by their order."""
    make: Callable[[float, int, Weights], Any]
    """(C, seed, class weights) → a Pipeline; families without a penalty ignore C."""
    has_penalty: bool
    numbers_bytes: Callable[[Any], int]
    """Bytes of the numbers that scoring needs."""


def fit(family: Family, matrix: Float, label: Float, patient: Int, *, seed: int = SEED, class_weight: Weights = "none") -> Fitted:
    """Fit a family; one that has a penalty chooses it by patient-grouped cross-validation on these rows.

    Args:
        matrix: Rows, shape (n, p); NaN is null.
        label: 1.0 or 0.0, shape (n,).
        patient: Hash of each visit's patient.
    Raises:
        InputError: infinite values; one class, of the whole or of a fold.
    """
    guard.refuse_infinite(matrix, _numbered(matrix))
    guard.refuse_one_class(label, "the visits to fit on")
    with threadpool_limits(THREADS):
        penalty = choose_penalty(matrix, label, patient, class_weight=class_weight) if family.has_penalty else None
        pipeline = family.make(penalty or 1.0, seed, class_weight).fit(matrix, label)
    return Fitted(pipeline, weight_ratio(label, class_weight), penalty)


def weight_ratio(label: Float, class_weight: Weights) -> float:
    """w: how much more an event weighs than a visit without one."""
    return 1.0 if class_weight == "none" else float((len(label) - label.sum()) / label.sum())


def choose_penalty(matrix: Float, label: Float, patient: Int, *, class_weight: Weights = "none") -> float:
    """The C with the least log loss over patient-grouped folds; of equals the stronger penalty. Errors as of `penalty_losses`."""
    return PENALTIES[int(np.argmin(penalty_losses(matrix, label, patient, class_weight=class_weight)))]


def penalty_losses(matrix: Float, label: Float, patient: Int, *, class_weight: Weights = "none") -> Float:
    """Mean log loss of each of `PENALTIES`, every visit measured by a fit that has not seen its patient.

    Imputation and scaling are learned once a fold; down the penalties each fit starts where the one before ended. The search runs on
    scaled values of 32 bits, which halves time and memory, and stops early: losses are right to five digits. The model itself is fitted
    on 64 bits.

    Raises:
        InputError: a fold with one class, or a single patient.
    """
    parts = folds(patient, label)
    if len(parts) < 2:
        raise InputError("one patient only: a penalty cannot be chosen without others to measure it on")
    guard.refuse_one_class_folds(label, parts)
    loss = np.zeros(len(PENALTIES))
    for rows, held in parts:
        prepare = _prepare().fit(matrix[rows])
        x, x_held = (prepare.transform(matrix[part]).astype(np.float32) for part in (rows, held))
        model = _regression(PENALTIES[0], class_weight, tol=SEARCH_TOLERANCE, warm_start=True)
        ratio = weight_ratio(label[rows], class_weight)
        for n, penalty in enumerate(PENALTIES):
            model.set_params(C=penalty).fit(x, label[rows])
            loss[n] += float(metrics.log_loss(Fitted(model, ratio, None).risk(x_held), label[held])) * len(held) / len(label)
    return loss


def _regression(penalty: float, class_weight: Weights, *, tol: float = TOLERANCE, warm_start: bool = False) -> Any:
    weights = None if class_weight == "none" else class_weight
    return LogisticRegression(C=penalty, solver="newton-cholesky", tol=tol, max_iter=200, class_weight=weights, warm_start=warm_start)


def _prepare() -> Any:
    """Null → the median, then mean 0 and deviation 1; behind these an indicator for each column that had nulls."""
    values = Pipeline([("impute", SimpleImputer(strategy="median", keep_empty_features=True)), ("scale", StandardScaler(copy=False))])
    return FeatureUnion([("values", values), ("missing", MissingIndicator(features="missing-only", error_on_new=False))])


def logistic_pipeline(penalty: float, seed: int = SEED, class_weight: Weights = "none") -> Any:
    """The pipeline of the logistic regression; nothing in it is random."""
    return Pipeline([("prepare", _prepare()), ("fit", _regression(penalty, class_weight))])


def _forest_pipeline(penalty: float, seed: int, class_weight: Weights) -> Any:
    weights = None if class_weight == "none" else class_weight
    forest = RandomForestClassifier(n_estimators=200, min_samples_leaf=20, random_state=seed, class_weight=weights)
    return Pipeline([("prepare", _prepare()), ("fit", forest)])


def _boosting_pipeline(penalty: float, seed: int, class_weight: Weights) -> Any:
    weights = None if class_weight == "none" else class_weight
    boosting = HistGradientBoostingClassifier(
        learning_rate=0.05, max_iter=100, max_leaf_nodes=8, min_samples_leaf=40, l2_regularization=10.0, early_stopping=False,
        random_state=seed, class_weight=weights,
    )  # fmt: skip
    seen = ColumnTransformer([("seen", "passthrough", _seen)])  # it cannot bin a column without any value
    return Pipeline([("seen", seen), ("fit", boosting)])  # splits on null by itself, and on ranks: nothing to impute or to scale


def _seen(matrix: Float) -> Bool:
    """Columns that have a value; asked when the pipeline is fitted."""
    return np.asarray(~np.isnan(matrix).all(axis=0))


def _regression_bytes(pipeline: Any) -> int:
    return 8 * int(pipeline.named_steps["fit"].coef_.size + 1 + 3 * pipeline.n_features_in_)


def _forest_bytes(pipeline: Any) -> int:
    trees = [tree.tree_ for tree in pipeline.named_steps["fit"].estimators_]
    return sum(int(tree.__getstate__()["nodes"].nbytes + tree.value.nbytes) for tree in trees)


def _boosting_bytes(pipeline: Any) -> int:
    return sum(int(tree.nodes.nbytes) for stage in pipeline.named_steps["fit"]._predictors for tree in stage)


LOGISTIC = Family(
    name="logistic regression, L2",
    explained="exactly: each topic's share of the logit",
    order_free=True,
    make=logistic_pipeline,
    has_penalty=True,
    numbers_bytes=_regression_bytes,
)
FOREST = Family(
    name="random forest",
    explained="on the whole only: importances",
    order_free=False,
    make=_forest_pipeline,
    has_penalty=False,
    numbers_bytes=_forest_bytes,
)
BOOSTING = Family(
    name="gradient boosting",
    explained="on the whole only: importances",
    order_free=False,
    make=_boosting_pipeline,
    has_penalty=False,
    numbers_bytes=_boosting_bytes,
)
FAMILIES = (LOGISTIC, FOREST, BOOSTING)
ONLY_ONE = (
    "Only the logistic regression is written as a model that the worker scores: readable numbers, the same bits everywhere. "
    "The others are here to compare."
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One line of the trade-off table. Shares and areas in [0, 1]; NaN where there is nothing to measure."""

    family: str
    auroc: float
    average_precision: float
    brier: float
    calibration_slope: float
    flagged: float
    """Share of the measured visits that are flagged, at the threshold that flags the review capacity of the tuning visits."""
    ppv: float
    explained: str
    fit_seconds: float
    """Of all fits, with the choice of the penalty."""
    size_bytes: int
    """Of the numbers that scoring needs; of the last fit."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The trade-off table."""

    measured_on: str
    visits: int
    events: int
    families: list[Measured]


def compare(
    split: Split,
    matrix: Float,
    label: Float,
    patient: Int,
    *,
    capacity: float,
    families: Sequence[Family] = FAMILIES,
    class_weight: Weights = "none",
    seed: int = SEED,
    clock: Clock | None = None,
) -> Comparison:
    """Fit and measure each family on the same rows.

    With held-out visits: fitted once on the training visits, measured on those. Without: over patient-grouped folds of the training
    visits, each visit measured by the model that has not seen its patient. The threshold always comes from the tuning visits.

    Raises:
        InputError: infinite values; one class.
    """
    train, tuning, held_out = (np.flatnonzero(mask) for mask in (split.train, split.tuning, split.held_out))
    if split.cut_us is not None:
        guard.refuse_one_class(label[held_out], "the held-out visits")
        rounds, where = [(train, held_out)], "held-out visits"
    else:
        parts = folds(patient[train], label[train])
        guard.refuse_one_class_folds(label[train], parts)
        rounds, where = [(train[rows], train[held]) for rows, held in parts], f"training visits, in {len(parts)} patient-grouped folds"
    measured = np.concatenate([held for _, held in rounds])
    found = []
    for family in families:
        risk, flagged, seconds, size = np.zeros(len(matrix)), np.zeros(len(matrix), bool), 0.0, 0
        for rows, held in rounds:
            begin = (clock or SystemClock()).monotonic_s()
            fitted = fit(family, matrix[rows], label[rows], patient[rows], seed=seed, class_weight=class_weight)
            seconds += (clock or SystemClock()).monotonic_s() - begin
            size = family.numbers_bytes(fitted.pipeline)
            risk[held] = fitted.risk(matrix[held])
            flagged[held] = risk[held] >= capacity_cut(fitted.risk(matrix[tuning]), capacity)
        found.append(_measured(family, risk[measured], flagged[measured], label[measured], seconds, size))
    return Comparison(where, len(measured), int(label[measured].sum()), found)


def table(found: Comparison) -> str:
    """The trade-off table as text, with what becomes of it in the last line."""
    heads = ("family", "AUROC", "avg. precision", "Brier", "slope", "flagged", "PPV", "fit", "size", "explained")
    lines = [heads]
    for m in found.families:
        areas = (f"{m.auroc:.3f}", f"{m.average_precision:.3f}", f"{m.brier:.4f}", f"{m.calibration_slope:.2f}")
        lines.append((m.family, *areas, f"{m.flagged:.1%}", f"{m.ppv:.1%}", f"{m.fit_seconds:.1f} s", f"{m.size_bytes:,} B", m.explained))
    widths = [max(len(line[n]) for line in lines) for n in range(len(heads))]
    left = (0, len(heads) - 1)
    texts = [
        "  ".join(cell.ljust(width) if n in left else cell.rjust(width) for n, (cell, width) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    title = f"measured on {found.visits:,} {found.measured_on}, {found.events:,} events; threshold from the tuning visits"
    return "\n".join([title, *(text.rstrip() for text in texts), ONLY_ONE])


def _measured(family: Family, risk: Float, flagged: Bool, label: Float, seconds: float, size: int) -> Measured:
    return Measured(
        family=family.name,
        auroc=float(metrics.auroc(risk, label)),
        average_precision=float(metrics.average_precision(risk, label)),
        brier=float(metrics.brier(risk, label)),
        calibration_slope=float(metrics.calibration_line(risk, label)[1]),
        flagged=float(metrics.flagged_share(flagged)),
        ppv=float(metrics.ppv(flagged, label)),
        explained=family.explained,
        fit_seconds=seconds,
        size_bytes=size,
    )


def capacity_cut(values: Float, capacity: float) -> float:
    """The value at or above which at most the share `capacity` lies: half-way between the last that is flagged and the next one.

    Where the highest value alone is too often there for the capacity: above it, and nothing is flagged.

    Example:
        >>> capacity_cut(np.array([0.1, 0.2, 0.6, 0.8]), 0.5)
        0.4
    """
    ordered = np.sort(values)[::-1]
    allowed = int(capacity * len(ordered))
    if allowed >= len(ordered):
        return float(ordered[-1])
    higher = ordered[ordered > ordered[allowed]]
    return (float(higher[-1]) + float(ordered[allowed])) / 2 if len(higher) else float(ordered[0]) + 1.0


def _numbered(matrix: Float) -> list[str]:
    return [f"column {j}" for j in range(matrix.shape[1])]


def check(family: Family, *, seed: int = SEED) -> list[str]:
    """What every family must keep, on invented rows: the promises that it breaks, as sentences; none for a good one."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(200), 4)
    matrix = rng.normal(size=(len(patient), 5))
    label = (rng.random(len(patient)) < 1 / (1 + np.exp(2.0 - 1.5 * matrix[:, 0]))).astype(np.float64)
    matrix[rng.random(matrix.shape) < 0.2] = np.nan
    matrix[:, 3] = np.nan
    matrix[:, 4] = 7.0  # the same for all: a null, and a value

    def risk(rows: Int, asked: Float) -> Float:
        return fit(family, matrix[rows], label[rows], patient[rows], seed=seed).risk(asked)

    def refuses(x: Float, y: Float, words: str) -> bool:
        try:
            fit(family, x, y, patient, seed=seed)
        except InputError as error:
            return words in str(error)
        return False

    every = np.arange(len(patient))
    first, shuffled = risk(every, matrix), rng.permutation(every)
    other_constant, infinite = matrix.copy(), matrix.copy()
    other_constant[:, 4], infinite[5, 1] = 8.0, np.inf
    kept = {
        "the same rows and the same seed give the same risks": bool((first == risk(every, matrix)).all()),
        "the order of the rows changes nothing": not family.order_free or bool((np.abs(first - risk(shuffled, matrix)) <= 1e-9).all()),
        "nulls are accepted, in one value and in a whole column": bool(((first > 0) & (first < 1)).all()),
        "it finds a signal in spite of nulls": float(metrics.auroc(first, label)) > 0.7,
        "infinite values are refused, with the column": refuses(infinite, label, "column 1"),
        "one class only is refused, and named": refuses(matrix, 0 * label, "without an event")
        and refuses(matrix, 0 * label + 1, "with an ev"),
        "a column that was constant in training says nothing later": bool((first == risk(every, other_constant)).all()),
    }
    return [f"{family.name} breaks a promise: {promise}" for promise, holds in kept.items() if not holds]
