"""The metrics once more, by loops over visits and pairs of visits, as their formulas are written."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence


def placement(x: float, others: Sequence[float]) -> float:
    """The share of `others` below x, equal ones half."""
    return sum(1.0 if o < x else 0.5 if o == x else 0.0 for o in others) / len(others)


def auroc(risk: Sequence[float], label: Sequence[float]) -> float:
    events, others = [r for r, y in zip(risk, label, strict=True) if y], [r for r, y in zip(risk, label, strict=True) if not y]
    return sum(placement(e, others) for e in events) / len(events) if events and others else math.nan


def auroc_variance(risk: Sequence[float], label: Sequence[float], patient: Sequence[int]) -> float:
    """Obuchowski's, as in the article: over the sums of placements of each patient."""
    rows = list(zip(risk, label, patient, strict=True))
    events, others = [r for r, y, _ in rows if y], [r for r, y, _ in rows if not y]
    area = auroc(risk, label)
    up, down = defaultdict(float), defaultdict(float)
    for r, y, p in rows:
        if y:
            up[p] += placement(r, others) - area
        else:
            down[p] += 1 - placement(r, events) - area
    m, k, n = len(events), len(others), len({p for _, _, p in rows})
    s10 = len(up) / ((len(up) - 1) * m) * sum(x * x for x in up.values())
    s01 = len(down) / ((len(down) - 1) * k) * sum(x * x for x in down.values())
    s11 = n / (n - 1) * sum(up.get(p, 0.0) * down.get(p, 0.0) for p in {p for _, _, p in rows})
    return s10 / m + s01 / k + 2 * s11 / (m * k)


def average_precision(risk: Sequence[float], label: Sequence[float]) -> float:
    total, before, events = 0.0, 0.0, sum(label)
    for cut in sorted(set(risk), reverse=True):
        chosen = [y for r, y in zip(risk, label, strict=True) if r >= cut]
        recall = sum(chosen) / events if events else math.nan
        total, before = total + (recall - before) * sum(chosen) / len(chosen), recall
    return total


def table(flagged: Sequence[bool], label: Sequence[float]) -> tuple[int, int, int, int]:
    """(TP, FP, FN, TN)."""
    pairs = [(bool(f), bool(y)) for f, y in zip(flagged, label, strict=True)]
    return pairs.count((True, True)), pairs.count((True, False)), pairs.count((False, True)), pairs.count((False, False))


def score_equations(risk: Sequence[float], label: Sequence[float], intercept: float, slope: float) -> tuple[float, float]:
    """What must be 0 at the line that fits best: Σ(y − p) and Σ(y − p)·logit(risk)."""
    z = [math.log(r / (1 - r)) for r in risk]
    miss = [y - 1 / (1 + math.exp(-intercept - slope * x)) for x, y in zip(z, label, strict=True)]
    return sum(miss), sum(m * x for m, x in zip(miss, z, strict=True))
