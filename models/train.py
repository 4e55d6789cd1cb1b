"""Training: an L2 logistic regression on revision 0, patients kept together in the folds, imputation inside them (P6, P8).

The penalty is chosen by patient-grouped cross-validation; the threshold on patients that training never saw, so that the flagged
share is the team's review capacity. `families` fits; what it found is written out as numbers that numpy can score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from features.clock import DAY_US, NEVER_US, rfc3339
from features.cohort import chunks, index_answers
from features.errors import InputError
from features.history import Histories
from features.log import Log
from features.outcome import labels
from features.progress import Progress, unheard
from features.revision import SCORED, Answers
from features.usecase import UseCase
from features.windows import Questions
from features.windows import rows as rows_of
from models import families, guard, split
from models.artifact import FORMAT, Artifact, Column, Model, version_of
from models.families import Weights
from models.score import Float, Scorer
from models.split import Int, Split

EVENTS_MIN = 10
"""With fewer events, or fewer visits without one, nothing is trained."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Labelled index encounters. Shapes (n, p) and (n,)."""

    matrix: Float
    label: Float
    """1.0 or 0.0; rows without a mature label are left out."""
    patient: npt.NDArray[np.int64]
    index_us: npt.NDArray[np.int64]
    settled_us: npt.NDArray[np.int64]
    """When the label was known and its time at risk over, whichever came later."""
    left_out: dict[str, int]
    """How many encounters were not used, by reason."""

    @property
    def is_tuning(self) -> npt.NDArray[np.bool_]:
        """Visits of the patients that choose the threshold."""
        return split.by_patient(self.patient).tuning


def collect(log: Log, use_case: UseCase, *, until_us: int = NEVER_US, delay_us: int = 0, progress: Progress = unheard) -> Rows:
    """The labelled rows of a log whose label was known by `until_us`.

    Args:
        delay_us: Answer the same questions as if everything had become known so much later, for the leakage report; 0: as it was.
    """
    parts: list[tuple[Float, Float, list[str], Int, Int]] = []
    left_out: dict[str, int] = {}
    for chunk in chunks(log, [use_case], progress=progress):
        found = index_answers(chunk, use_case)
        h = chunk.histories
        episode = h.episode[found.encounter]
        told = labels(h, use_case, seg=found.seg, index_us=found.index_us, episode=episode, as_of_us=log.known_until_us)
        eligible = found.status == SCORED
        use = eligible & ~np.isnan(told.label) & (told.mature_us <= min(until_us, log.known_until_us)) & (told.label_known_us <= until_us)
        for reason, mask in (("excluded", ~eligible), ("label not mature", eligible & ~use)):
            left_out[reason] = left_out.get(reason, 0) + int(mask.sum())
        matrix = _delayed(h, use_case, found.where(use), delay_us) if delay_us else found.matrix[use]
        settled_us = np.maximum(told.mature_us, told.label_known_us)[use]
        parts.append((matrix, told.label[use], [chunk.patients[s] for s in found.seg[use]], found.index_us[use], settled_us))
    names = [name for part in parts for name in part[2]]
    return Rows(
        matrix=np.ascontiguousarray(np.concatenate([p[0] for p in parts])) if parts else np.zeros((0, len(use_case.features))),
        label=np.concatenate([p[1] for p in parts]) if parts else np.zeros(0),
        patient=split.numbers(names),
        index_us=np.concatenate([p[3] for p in parts]) if parts else np.zeros(0, np.int64),
        settled_us=np.concatenate([p[4] for p in parts]) if parts else np.zeros(0, np.int64),
        left_out=left_out,
    )


def _delayed(h: Histories, use_case: UseCase, found: Answers, delay_us: int) -> Float:
    """The rows of the same questions if every record had become known `delay_us` later.

    known(k) never falls within a patient, so what would have been known is a shorter stretch of the same history: all places whose known
    time, later by the delay, is not after that of the question.
    """
    asked_us, place = h.known_us[found.due] - delay_us, np.full(len(found.seg), -1, np.int64)
    for seg in np.unique(found.seg).tolist():
        begin, end, mine = int(h.start[seg]), int(h.start[seg + 1]), found.seg == seg
        last = begin + np.searchsorted(h.known_us[begin:end], asked_us[mine], side="right") - 1
        place[mine] = np.where(last >= begin, h.place[np.maximum(last, begin)], -1)
    questions = Questions(found.seg, found.index_us, place, h.episode[found.encounter])
    return rows_of(h, questions, use_case.plan)[:, : len(use_case.features)]


def leakage(
    log: Log, use_case: UseCase, *, delay_us: int = DAY_US, until_us: int = NEVER_US, progress: Progress = unheard
) -> guard.Leakage:
    """Which features move when everything becomes known later at unchanged questions, and which know the label by themselves.

    Raises:
        InputError: no visit with a mature label.
    """
    rows, delayed = (collect(log, use_case, until_us=until_us, delay_us=later_us, progress=progress) for later_us in (0, delay_us))
    if not len(rows.label):
        raise InputError(f"nothing to look at: no visit of {use_case.name} has a mature label. Left out: {rows.left_out}")
    return guard.leakage(rows.matrix, delayed.matrix, rows.label, rows.patient, names=use_case.feature_names, leaks=use_case.leaks)


def split_of(rows: Rows, use_case: UseCase, *, cut_us: int | None = None, embargo_us: int | None = None) -> Split:
    """Who trains, tunes and is held out; without a cut nobody is held out. The embargo is the time at risk unless it is given."""
    if cut_us is None:
        return split.by_patient(rows.patient)
    at_risk_us = use_case.at_risk_us
    embargo_us = at_risk_us if embargo_us is None else embargo_us
    return split.in_time(rows.patient, rows.index_us, rows.settled_us, cut_us=cut_us, embargo_us=embargo_us, at_risk_us=at_risk_us)


def train(log: Log, use_case: UseCase, *, until_us: int = NEVER_US) -> Artifact:
    """Fit, choose penalty and threshold, and write the model out as numbers.

    Raises:
        InputError: a use case with leaks, too few rows, or what `guard` refuses.
    """
    guard.refuse_leaks(use_case.leaks)
    rows = collect(log, use_case, until_us=until_us)
    return train_rows(rows, use_case, split_of(rows, use_case), until_us=until_us)


def train_rows(rows: Rows, use_case: UseCase, parts: Split, *, until_us: int = NEVER_US, class_weight: Weights = "none") -> Artifact:
    """`train`, on rows that were collected and split.

    Args:
        until_us: No label was known later.
        class_weight: Taken out of the intercept again, so that the risks stay risks.
    """
    fit, tune = np.flatnonzero(parts.train), np.flatnonzero(parts.tuning)
    events = int(rows.label[fit].sum())
    if events < EVENTS_MIN or len(fit) - events < EVENTS_MIN or not len(tune):
        raise InputError(
            f"too little to train on: {len(fit)} encounters with {events} events in the training patients, {len(tune)} in the tuning "
            f"patients; at least {EVENTS_MIN} events and {EVENTS_MIN} without are needed. Left out: {rows.left_out | parts.left_out}"
        )
    constant = guard.check(
        parts, rows.matrix, rows.label, rows.patient, rows.settled_us,
        until_us=until_us, names=use_case.feature_names, leaks=use_case.leaks,
    )  # fmt: skip
    fitted = families.fit(families.LOGISTIC, rows.matrix[fit], rows.label[fit], rows.patient[fit], class_weight=class_weight)
    columns, intercept = _written_out(fitted.pipeline, rows.matrix[fit], use_case.feature_names)
    draft = Artifact(
        format=FORMAT,
        version="",
        family=families.LOGISTIC.name,
        use_case=use_case.definition.model_dump(mode="json"),
        use_case_hash=use_case.content_hash,
        threshold=0.5,
        threshold_reason="",
        intercept=intercept - math.log(fitted.weight_ratio),
        columns=columns,
        training={
            "from": rfc3339(int(rows.index_us[fit].min())),
            "until": rfc3339(int(rows.index_us[fit].max())),
            "encounters": len(fit),
            "patients": len(np.unique(rows.patient[fit])),
            "events": events,
            "left_out": rows.left_out | parts.left_out,
            "penalty_c": fitted.penalty,
            "folds": split.FOLDS,
            "class_weight": class_weight,
            "constant_columns": constant,
        }
        | _told(parts),
    )
    threshold, reason = _threshold(Scorer(Model(draft, use_case)), rows.matrix[tune], use_case.definition.capacity)
    done = _replace(draft, threshold=threshold, threshold_reason=reason)
    return _replace(done, version=version_of(done))


def _told(parts: Split) -> dict[str, Any]:
    """What the model file says of a split in time; without a cut nothing."""
    if parts.cut_us is None:
        return {}
    about = {"cut": rfc3339(parts.cut_us), "embargo_days": parts.embargo_us / DAY_US, "held_out": int(parts.held_out.sum())}
    return about | ({"warning": parts.warning} if parts.warning else {})


def compare(rows: Rows, use_case: UseCase, parts: Split, *, class_weight: Weights = "none") -> families.Comparison:
    """All families on the rows of `train_rows`."""
    capacity = use_case.definition.capacity
    return families.compare(parts, rows.matrix, rows.label, rows.patient, capacity=capacity, class_weight=class_weight)


def _replace(artifact: Artifact, **changes: object) -> Artifact:
    return Artifact(**{**{name: getattr(artifact, name) for name in Artifact.__struct_fields__}, **changes})


def _written_out(pipeline: Any, matrix: Float, names: Sequence[str]) -> tuple[list[Column], float]:
    """The fitted pipeline as plain numbers."""
    union, fitted = pipeline.named_steps["prepare"], pipeline.named_steps["fit"]
    values = dict(union.transformer_list)["values"]
    imputer, scaler = values.named_steps["impute"], values.named_steps["scale"]
    weights, rate = fitted.coef_[0], np.isnan(matrix).mean(axis=0)
    missing = np.zeros(len(names))
    missing[dict(union.transformer_list)["missing"].features_] = weights[len(names) :]
    columns = [
        Column(
            name=name,
            coefficient=float(weights[j]),
            missing_coefficient=float(missing[j]),
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
    logits = scorer.logits(matrix)
    cut = families.capacity_cut(logits, capacity)
    threshold = float(np.clip(scorer.risk(cut), 1e-6, 1 - 1e-6))
    flagged = float((logits >= math.log(threshold / (1 - threshold))).mean())
    reason = f"flags {flagged:.1%} of {len(logits):,} visits of tuning patients; review capacity {capacity:.0%}"
    return threshold, reason
