"""What is refused before anything is fitted, each with a sentence; and which columns look as if they knew the answer.

A model that was trained on a mistake looks better than an honest one, so these checks come first and cannot be switched off. They name
columns, folds and counts, never a patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.clock import rfc3339
from features.errors import InputError
from models import metrics
from models.split import Int, Split

Float = npt.NDArray[np.float64]

SUSPICIOUS_AUROC = 0.95
"""A column that alone orders the visits better than this is more likely a leak than a discovery."""
ALONE_MIN = 10
"""A column is judged alone where it has a value for at least so many visits with the outcome, and as many without."""
NAMED_MAX = 5
"""So many names stand in a sentence."""


def check(
    split: Split, matrix: Float, label: Float, patient: Int, settled_us: Int, *, until_us: int, names: Sequence[str], leaks: Sequence[str]
) -> list[str]:
    """Refuse what must not be trained on, and name the columns that say nothing.

    Args:
        split: Who trains, tunes and is held out.
        matrix: Rows of all visits, shape (n, p), columns called `names`; NaN is null.
        label: 1.0 or 0.0, shape (n,).
        patient: Hash of each visit's patient.
        settled_us: When each label was known and mature.
        until_us: Nothing later was known; for the visits that train and tune, the cut if there is one.
        leaks: Columns that are declared to look ahead.
    Returns:
        The names of the columns that have one value, or none, in training.
    Raises:
        InputError: what was found, where, and what to do.
    """
    refuse_leaks(leaks)
    refuse_unsettled(split, label, settled_us, until_us)
    refuse_shared_patients(split, patient)
    refuse_infinite(matrix, names)
    refuse_one_class(label[split.train], "the training visits")
    constant = constant_columns(matrix[split.train], names)
    if len(constant) == len(names):
        raise InputError("every column is constant in training: there is nothing to learn from. Check the codes of the feeds")
    return constant


def refuse_leaks(leaks: Sequence[str]) -> None:
    """Columns that are declared to look at the future."""
    if leaks:
        raise InputError(f"columns look at the future (leak): {shortened(leaks)}. Take them out of the use case")


def refuse_unsettled(split: Split, label: Float, settled_us: Int, until_us: int) -> None:
    """Labels that were not known, or whose time at risk was not over: of such visits only those with an event have a label at all."""
    learns = split.train | split.tuning
    limit_us = until_us if split.cut_us is None else min(split.cut_us, until_us)
    early = int((learns & (settled_us > limit_us)).sum()) + int((split.held_out & (settled_us > until_us)).sum())
    early += int(((learns | split.held_out) & np.isnan(label)).sum())
    if early:
        raise InputError(
            f"labels not mature: {early} visits have a label that was not settled by {rfc3339(limit_us)}. Leave them out, or wait until "
            f"their time at risk is over"
        )


def refuse_shared_patients(split: Split, patient: Int) -> None:
    """A patient on two sides: what was learned of the person would be measured on the same person."""
    sides = {"training": split.train, "tuning": split.tuning, "held-out": split.held_out}
    seen = [(name, np.unique(patient[mask])) for name, mask in sides.items()]
    for n, (one, mine) in enumerate(seen):
        for other, theirs in seen[n + 1 :]:
            shared = len(np.intersect1d(mine, theirs, assume_unique=True))
            if shared:
                raise InputError(f"{shared} patients are on both sides of the split, {one} and {other}: split by patient (models/split.py)")


def refuse_infinite(matrix: Float, names: Sequence[str]) -> None:
    """A value beyond the floats, which would become the mean of its column."""
    infinite = np.isinf(matrix)
    if not infinite.any():
        return
    columns, rows = np.flatnonzero(infinite.any(axis=0)).tolist(), int(infinite.any(axis=1).sum())
    raise InputError(f"infinite values in {shortened([names[j] for j in columns])}, {rows} rows: mend the source or bound the feature")


def refuse_one_class(label: Float, where: str) -> None:
    """Nothing can be learned from, or measured on, visits that all ended alike."""
    events = int(label.sum())
    if events in (0, len(label)):
        which = "without an event" if events == 0 else "with an event"
        raise InputError(f"one class only: {where} have {len(label)} visits, all {which}. Train on more patients or a longer time")


def refuse_one_class_folds(label: Float, folds: Sequence[tuple[Int, Int]]) -> None:
    """Names the first fold whose visits all ended alike: a penalty chosen on it is chance."""
    for n, parts in enumerate(folds, 1):
        for rows, part in zip(parts, ("to fit on", "to measure on"), strict=True):
            refuse_one_class(label[rows], f"fold {n} of {len(folds)}, the part {part},")


def constant_columns(matrix: Float, names: Sequence[str]) -> list[str]:
    """Columns in which every visit has the same value, or every visit null."""
    if not len(matrix):
        return []
    first = matrix[0]
    same = ((matrix == first) | (np.isnan(matrix) & np.isnan(first))).all(axis=0)
    return [names[j] for j in np.flatnonzero(same).tolist()]


@dataclass(frozen=True, slots=True)
class Leakage:
    """What a person should look at before believing a model."""

    rows: int
    patients: int
    looks_ahead: list[str]
    """Columns that are declared to."""
    moved: list[tuple[str, float]]
    """(column, share of rows whose value is another one if all had become known later), largest first; only those that moved."""
    alone: list[tuple[str, float]]
    """(column, AUROC of the column alone, of its value or of its being null, above 0.5), where it is above `SUSPICIOUS_AUROC`."""


def leakage(matrix: Float, delayed: Float, label: Float, patient: Int, *, names: Sequence[str], leaks: Sequence[str]) -> Leakage:
    """Compare the rows with those of a world in which everything became known later, and each column with the label.

    Args:
        matrix: Rows as trained on, shape (n, p).
        delayed: The same questions, answered with what would have been known.
    """
    moved = ((matrix != delayed) & ~(np.isnan(matrix) & np.isnan(delayed))).mean(axis=0) if len(matrix) else np.zeros(len(names))
    alone = [(name, auroc_alone(matrix[:, j], label)) for j, name in enumerate(names)]
    return Leakage(
        rows=len(matrix),
        patients=len(np.unique(patient)),
        looks_ahead=list(leaks),
        moved=sorted(((n, float(s)) for n, s in zip(names, moved.tolist(), strict=True) if s > 0), key=lambda x: (-x[1], x[0])),
        alone=sorted(((n, a) for n, a in alone if a > SUSPICIOUS_AUROC), key=lambda x: (-x[1], x[0])),
    )


def auroc_alone(column: Float, label: Float) -> float:
    """How well one column orders the visits, in either direction: the better of its value, where it has one, and its being null.

    0.5 says nothing, 1.0 everything; 0.5 too where fewer than `ALONE_MIN` visits of either label are left.
    """
    null = np.isnan(column)
    found = [0.5]
    for value, of in ((column[~null], label[~null]), (null.astype(np.float64), label)):
        if min(of.sum(), len(of) - of.sum()) >= ALONE_MIN:
            area = float(metrics.auroc(value, of))
            found.append(max(area, 1.0 - area))
    return max(found)


def sentences(found: Leakage, delay_days: float) -> str:
    """The report for a person."""
    lines = [
        f"{found.rows:,} visits of {found.patients:,} patients, asked again as if all had become known {delay_days:g} d later",
        f"{len(found.moved)} features moved; was each really known at the time of the question?",
        *(f"  {share:6.1%} of rows  {name}" for name, share in found.moved),
        f"declared to look ahead: {', '.join(found.looks_ahead) or 'none'}",
        f"alone above an AUROC of {SUSPICIOUS_AUROC}: {', '.join(f'{name} {area:.3f}' for name, area in found.alone) or 'none'}",
    ]
    return "\n".join(lines)


def shortened(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more
