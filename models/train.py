"""Training: an L2 logistic regression on revision 0, patients kept together in the folds, imputation inside them (P6, P8).

The penalty is chosen by patient-grouped cross-validation; the threshold on patients that training never saw, so that the flagged
share is the team's review capacity. scikit-learn fits; what it found is written out as numbers that numpy can score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import FeatureUnion, Pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from features.clock import NEVER_US, rfc3339
from features.cohort import chunks, index_answers
from features.errors import InputError
from features.fact import hash64
from features.log import Log
from features.outcome import labels
from features.revision import SCORED
from features.usecase import UseCase
from models.artifact import FORMAT, Artifact, Column, Model, version_of
from models.score import Float, Scorer

PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
FOLDS = 5
TUNING_SHARE = 5
"""One patient in five chooses the threshold and is never trained on."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled index encounters. Shapes (n, p) and (n,)."""

    matrix: Float
    label: Float
    """1.0 or 0.0; rows without a mature label are left out."""
    patient: npt.NDArray[np.int64]
    index_us: npt.NDArray[np.int64]
    is_tuning: npt.NDArray[np.bool_]
    left_out: dict[str, int]
    """How many encounters were not used, by reason."""


def collect(log: Log, use_case: UseCase, *, until_us: int = NEVER_US) -> Rows:
    """The labelled rows of a log whose label was known by `until_us`."""
    parts: list[tuple[Float, Float, list[str], npt.NDArray[np.int64]]] = []
    left_out: dict[str, int] = {}
    for chunk in chunks(log, [use_case]):
        found = index_answers(chunk, use_case)
        h = chunk.histories
        episode = h.episode[found.encounter]
        told = labels(h, use_case, seg=found.seg, index_us=found.index_us, episode=episode, as_of_us=log.known_until_us)
        eligible = found.status == SCORED
        use = eligible & ~np.isnan(told.label) & (told.mature_us <= min(until_us, log.known_until_us)) & (told.label_known_us <= until_us)
        for reason, mask in (("excluded", ~eligible), ("label not mature", eligible & ~use)):
            left_out[reason] = left_out.get(reason, 0) + int(mask.sum())
        parts.append((found.matrix[use], told.label[use], [chunk.patients[s] for s in found.seg[use]], found.index_us[use]))
    names = [name for part in parts for name in part[2]]
    patient = np.array([hash64(name) % 2**62 for name in names], np.int64)
    return Rows(
        matrix=np.concatenate([p[0] for p in parts]) if parts else np.zeros((0, len(use_case.features))),
        label=np.concatenate([p[1] for p in parts]) if parts else np.zeros(0),
        patient=patient,
        index_us=np.concatenate([p[3] for p in parts]) if parts else np.zeros(0, np.int64),
        is_tuning=(patient // 7) % TUNING_SHARE == 0,
        left_out=left_out,
    )


def train(log: Log, use_case: UseCase, *, until_us: int = NEVER_US) -> Artifact:
    """Fit, choose penalty and threshold, and write the model out as numbers.

    Raises:
        InputError: a use case with leaks, too few rows, or one class only.
    """
    if use_case.leaks:
        raise InputError(f"use case {use_case.name} has columns that look at the future (leak): {', '.join(use_case.leaks[:5])}")
    rows = collect(log, use_case, until_us=until_us)
    fit, tune = np.flatnonzero(~rows.is_tuning), np.flatnonzero(rows.is_tuning)
    events = int(rows.label[fit].sum())
    if events < 10 or len(fit) - events < 10 or not len(tune):
        raise InputError(
            f"too little to train on: {len(fit)} encounters with {events} events in the training patients, {len(tune)} in the tuning "
            f"patients; at least 10 events and 10 without are needed. Left out: {rows.left_out}"
        )
    penalty = _choose_penalty(rows.matrix[fit], rows.label[fit], rows.patient[fit])
    pipeline = _pipeline(penalty).fit(rows.matrix[fit], rows.label[fit])
    columns, intercept = _written_out(pipeline, rows.matrix[fit], use_case.feature_names)
    draft = Artifact(
        format=FORMAT,
        version="",
        family="logistic regression, L2",
        use_case=use_case.definition.model_dump(mode="json"),
        use_case_hash=use_case.content_hash,
        threshold=0.5,
        threshold_reason="",
        intercept=intercept,
        columns=columns,
        training={
            "from": rfc3339(int(rows.index_us[fit].min())),
            "until": rfc3339(int(rows.index_us[fit].max())),
            "encounters": len(fit),
            "patients": len(np.unique(rows.patient[fit])),
            "events": events,
            "left_out": rows.left_out,
            "penalty_c": penalty,
            "folds": FOLDS,
        },
    )
    threshold, reason = _threshold(Scorer(Model(draft, use_case)), rows.matrix[tune], use_case.definition.capacity)
    done = _replace(draft, threshold=threshold, threshold_reason=reason)
    return _replace(done, version=version_of(done))


def _replace(artifact: Artifact, **changes: object) -> Artifact:
    return Artifact(**{**{name: getattr(artifact, name) for name in Artifact.__struct_fields__}, **changes})


def _pipeline(penalty: float) -> Pipeline:
    values = Pipeline([("impute", SimpleImputer(strategy="median", keep_empty_features=True)), ("scale", StandardScaler())])
    prepare = FeatureUnion([("values", values), ("missing", FunctionTransformer(_missing))])
    return Pipeline([("prepare", prepare), ("fit", LogisticRegression(C=penalty, max_iter=2_000))])


def _missing(matrix: Float) -> Float:
    return np.isnan(matrix).astype(np.float64)


def _choose_penalty(matrix: Float, label: Float, patient: npt.NDArray[np.int64]) -> float:
    """The penalty with the least log loss over patient-grouped folds; of equals the stronger one."""
    folds = min(FOLDS, len(np.unique(patient)))
    if folds < 2:
        return PENALTIES[0]
    losses = []
    for penalty in PENALTIES:
        total, weight = 0.0, 0
        for fit, held in GroupKFold(n_splits=folds).split(matrix, label, patient):
            if len(np.unique(label[fit])) < 2:
                continue
            risk = _pipeline(penalty).fit(matrix[fit], label[fit]).predict_proba(matrix[held])[:, 1]
            total += log_loss(label[held], risk, labels=[0, 1]) * len(held)
            weight += len(held)
        losses.append(total / max(weight, 1))
    return PENALTIES[int(np.argmin(losses))]


def _written_out(pipeline: Pipeline, matrix: Float, names: Sequence[str]) -> tuple[list[Column], float]:
    """The fitted pipeline as plain numbers."""
    union, fitted = pipeline.named_steps["prepare"], pipeline.named_steps["fit"]
    values = dict(union.transformer_list)["values"]
    imputer, scaler = values.named_steps["impute"], values.named_steps["scale"]
    weights, p = fitted.coef_[0], len(names)
    rate = np.isnan(matrix).mean(axis=0)
    columns = [
        Column(
            name=name,
            coefficient=float(weights[j]),
            missing_coefficient=float(weights[p + j]) if rate[j] > 0 else 0.0,
            fill=float(imputer.statistics_[j]),
            mean=float(scaler.mean_[j]),
            scale=float(scaler.scale_[j]),
            missing_rate=float(rate[j]),
        )
        for j, name in enumerate(names)
    ]
    return columns, float(fitted.intercept_[0])


def _threshold(scorer: Scorer, matrix: Float, capacity: float) -> tuple[float, str]:
    """The risk at or above which the team can review all: at most `capacity` of the tuning patients' visits.

    It lies half-way, on the logit, between the last visit that is still flagged and the next one.
    """
    logits = np.sort(scorer.logits(matrix))[::-1]
    allowed = int(capacity * len(logits))
    higher = logits[logits > logits[allowed]] if allowed < len(logits) else logits
    cut = (float(higher[-1]) + float(logits[allowed])) / 2 if len(higher) else float(logits[0]) + 1.0
    threshold = float(np.clip(scorer.risk(cut), 1e-6, 1 - 1e-6))
    flagged = float((logits >= math.log(threshold / (1 - threshold))).mean())
    reason = f"flags {flagged:.1%} of {len(logits)} visits of tuning patients; review capacity {capacity:.0%}"
    return threshold, reason
