"""Evaluation on held-out time: every metric with its interval by patient and its naive one, calibration by risk band and by group.

The result is a document of plain values, sorted and without NaN (null: cannot be told), which `models.page` makes readable.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from features.clock import ALWAYS_US, NEVER_US, rfc3339
from features.log import Log
from features.progress import Progress, unheard
from models import held_out, metrics
from models.artifact import Model
from models.bootstrap import DRAWS, Interval, Metric, intervals
from models.held_out import AGE_BANDS, NOT_RECORDED, HeldOut, training_of
from models.metrics import Bool, Float, Weight

FORMAT = 1
BANDS = 10
"""Risk bands of the calibration curve: tenths of the visits, equal risks kept together."""
HISTOGRAM_BARS = 20
CURVE_POINTS = 50
ATTRIBUTES = ("race", "gender", "ethnicity", "age")

# When a group's calibration can be told. Below this many patients a bootstrap interval is known to be too short, and a wider interval than
# the tolerance says neither that the group is well served nor that it is not.
GROUP_PATIENTS_MIN = 30
TOLERANCE_MAX, TOLERANCE_OF_PREVALENCE = 0.05, 0.5
RULE = (
    f"A group's calibration factor is told where the group has at least {GROUP_PATIENTS_MIN} patients and half of its interval is at most "
    f"{TOLERANCE_MAX * 100:.0f} in 100 visits, or half of the overall frequency of the outcome if that is less. Half an interval counts as "
    "at least what chance alone would give if the risks were right. The visits needed grow with the square of the interval."
)

Shaped = Callable[[HeldOut, float, Weight], Float]
METRICS: dict[str, Shaped] = {
    "prevalence": lambda v, t, w: metrics.prevalence(v.label, w),
    "flagged_share": lambda v, t, w: metrics.flagged_share(v.flagged, w),
    "ppv": lambda v, t, w: metrics.ppv(v.flagged, v.label, w),
    "npv": lambda v, t, w: metrics.npv(v.flagged, v.label, w),
    "sensitivity": lambda v, t, w: metrics.sensitivity(v.flagged, v.label, w),
    "specificity": lambda v, t, w: metrics.specificity(v.flagged, v.label, w),
    "odds_ratio": lambda v, t, w: metrics.odds_ratio(v.flagged, v.label, w),
    "net_benefit": lambda v, t, w: metrics.net_benefit(v.flagged, v.label, t, w),
    "net_benefit_flag_all": lambda v, t, w: metrics.net_benefit(np.ones(len(v.label), bool), v.label, t, w),
    "auroc": lambda v, t, w: metrics.auroc(v.risk, v.label, w),
    "average_precision": lambda v, t, w: metrics.average_precision(v.risk, v.label, w),
    "brier": lambda v, t, w: metrics.brier(v.risk, v.label, w),
    "brier_scaled": lambda v, t, w: metrics.brier_scaled(v.risk, v.label, w),
    "log_loss": lambda v, t, w: metrics.log_loss(v.risk, v.label, w),
    "calibration_factor": lambda v, t, w: metrics.calibration_factor(v.risk, v.label, w),
    "oe_ratio": lambda v, t, w: metrics.oe_ratio(v.risk, v.label, w),
    "calibration_in_the_large": lambda v, t, w: metrics.calibration_in_the_large(v.risk, v.label, w),
    "calibration_slope": lambda v, t, w: metrics.calibration_line(v.risk, v.label, w)[1],
}
"""Name → (visits, threshold, weight) → value."""


def evaluate(
    log: Log,
    model: Model,
    *,
    from_us: int | None = None,
    until_us: int = NEVER_US,
    draws: int = DRAWS,
    seed: int = 0,
    reading: Progress = unheard,
    drawing: Progress = unheard,
) -> dict[str, Any]:
    """Evaluate a model on the mature visits of a log with an index time in [from, until), which must lie behind its training.

    Args:
        from_us: None: behind the last visit of the training.
        draws: Samples of the bootstrap.
        seed: Of the bootstrap; stands in the document.
        reading: Told how many patients were read.
        drawing: Told how many samples were drawn, of twice `draws`.
    Returns:
        The document, as `premonitor evaluate --json` prints it.
    Raises:
        InputError: visits of the training are asked for, or no visit is mature.
    """
    visits = held_out.collect(log, model, from_us=from_us, until_us=until_us, progress=reading)
    training, definition = training_of(model), model.use_case.definition
    about = {
        "format": FORMAT,
        "model": {
            "version": model.version,
            "family": model.artifact.family,
            "threshold": model.artifact.threshold,
            "threshold_reason": model.artifact.threshold_reason,
            "trained_until": None if training.until_us is None else rfc3339(training.until_us),
            "patients_kept_apart": training.held_out_from_us is not None,
            "reads": _reads(model),
        },
        "use_case": {
            "name": definition.name,
            "title": definition.title,
            "hash": model.use_case.content_hash,
            "outcome": _words([model.use_case.book.concepts[c].label for c in model.use_case.outcome_concepts]),
            "horizon_days": definition.outcome.horizon_days,
            "gap_days": definition.outcome.gap_days,
        },
        "period": {
            "from": rfc3339(int(visits.index_us.min())) if visits.from_us == ALWAYS_US else rfc3339(visits.from_us),
            "until": None if visits.until_us == NEVER_US else rfc3339(visits.until_us),
            "first_visit": rfc3339(int(visits.index_us.min())),
            "last_visit": rfc3339(int(visits.index_us.max())),
            "log_known_until": rfc3339(log.known_until_us),
        },
        "left_out": visits.left_out,
    }
    return {**about, **measure(visits, threshold=model.artifact.threshold, draws=draws, seed=seed, drawing=drawing)}


def _reads(model: Model) -> list[str]:
    """Which attributes of a person the model's features read, of those that groups are made of, and cover."""
    use_case = model.use_case
    names = {use_case.book.concepts[c].name for f in use_case.features for c in f.concepts}
    stems = {
        "race": ("person.race.",),
        "gender": ("person.female", "person.male"),
        "ethnicity": ("person.ethnicity.",),
        "age": ("person.birth",),
        "cover": ("coverage.medicaid", "coverage.medicare", "coverage.commercial"),
    }
    return [attribute for attribute, stem in stems.items() if any(name.startswith(stem) for name in names)]


def measure(visits: HeldOut, *, threshold: float, draws: int = DRAWS, seed: int, drawing: Progress = unheard) -> dict[str, Any]:
    """The figures of the document, from the visits alone."""
    band = _bands(visits.risk)
    members = _members(visits)
    wanted: dict[str, Metric] = {name: _bound(shaped, visits, threshold) for name, shaped in METRICS.items()}
    wanted["groups"] = _means(visits.risk - visits.label, [mask for _, _, mask in members])
    by_patient = intervals(
        {**wanted, "bands": _means(visits.label, band)},
        visits.patient,
        draws=draws,
        seed=seed,
        progress=drawing,
    )
    naive = intervals(
        wanted,
        np.arange(len(visits.risk)),
        draws=draws,
        seed=seed,
        progress=lambda n: drawing(draws + n),
    )
    bands = [_band(visits, mask, interval) for mask, interval in zip(band, by_patient["bands"], strict=True)]
    seen = metrics.smooth_calibration(visits.risk, visits.label)
    ici, e50, e90 = metrics.calibration_error(visits.risk, seen)
    return {
        "counts": _counts(visits),
        "bootstrap": {"draws": draws, "seed": seed, "interval": "95 % percentile", "drawn": "patients, each with all of their visits"},
        "metrics": {
            name: {"value": _plain(shaped(visits, threshold, None)), "by_patient": _pair(by_patient[name]), "naive": _pair(naive[name])}
            for name, shaped in METRICS.items()
        },
        "calibration_error": {"ici": _plain(ici), "e50": _plain(e50), "e90": _plain(e90)},
        "formulas": _formulas(visits),
        "bands": bands,
        "curve": _curve(visits.risk, seen),
        "histogram": _histogram(visits, bands),
        "groups": [
            _group(visits, attribute, group, mask, interval, alone_interval)
            for (attribute, group, mask), interval, alone_interval in zip(members, by_patient["groups"], naive["groups"], strict=True)
        ],
        "rule": RULE,
        "tolerance": _tolerance(visits),
    }


def _bound(shaped: Shaped, visits: HeldOut, threshold: float) -> Metric:
    return lambda weight: shaped(visits, threshold, weight)


def _means(value: Float, masks: list[Bool]) -> Metric:
    """Weighted means of `value` within each of k masks, shape (draws, k)."""
    inside = np.stack(masks, axis=1).astype(np.float64)

    def metric(weight: Float) -> Float:
        n = weight @ inside
        return np.where(n > 0, (weight @ (inside * value[:, None])) / np.maximum(n, 1.0), np.nan)

    return metric


def _counts(visits: HeldOut) -> dict[str, int]:
    event = visits.label == 1.0
    return {
        "visits": len(visits.risk),
        "patients": len(np.unique(visits.patient)),
        "events": int(event.sum()),
        "patients_with_event": len(np.unique(visits.patient[event])),
        "flagged": int(visits.flagged.sum()),
        "patients_flagged": len(np.unique(visits.patient[visits.flagged])),
        "flagged_with_event": int((visits.flagged & event).sum()),
        "patients_with_event_never_flagged": len(np.setdiff1d(visits.patient[event], visits.patient[visits.flagged])),
        "patients_seen_before": visits.seen_before,
    }


def _formulas(visits: HeldOut) -> dict[str, Any]:
    """Intervals and standard errors by formula: those of published tables, to compare with."""
    tp, fp, fn, tn = (float(x) for x in metrics.table(visits.flagged, visits.label))
    _, low, high = metrics.odds_ratio_wald(tp, fp, fn, tn)
    return {
        "table": {"tp": int(tp), "fp": int(fp), "fn": int(fn), "tn": int(tn)},
        "odds_ratio_wald": [_plain(low), _plain(high)],
        "ppv_wilson": list(metrics.wilson(tp, tp + fp)),
        "npv_wilson": list(metrics.wilson(tn, tn + fn)),
        "sensitivity_wilson": list(metrics.wilson(tp, tp + fn)),
        "specificity_wilson": list(metrics.wilson(tn, tn + fp)),
        "auroc_se_delong": _plain(metrics.auroc_se_delong(visits.risk, visits.label)),
        "auroc_se_clustered": _plain(metrics.auroc_se_clustered(visits.risk, visits.label, visits.patient)),
        "calibration_slope_se": _plain(metrics.calibration_slope_se(visits.risk, visits.label)),
        "calibration_slope_se_clustered": _plain(metrics.calibration_slope_se(visits.risk, visits.label, visits.patient)),
    }


def _bands(risk: Float) -> list[Bool]:
    """Masks of the bands, ascending; a risk on an edge is in the upper band, and no band is empty."""
    edges = np.unique(np.quantile(risk, np.arange(1, BANDS) / BANDS, method="inverted_cdf"))
    number = np.searchsorted(edges, risk, side="right")
    return [number == n for n in np.unique(number)]


def _band(visits: HeldOut, mask: Bool, interval: Interval) -> dict[str, Any]:
    n, patients, events = int(mask.sum()), len(np.unique(visits.patient[mask])), int(visits.label[mask].sum())
    if events in (0, n):  # no draw differs: the interval of as many shares as there are patients, which is the wider
        interval = Interval(*metrics.wilson(patients * events / n, patients))
    return {
        "lowest": float(visits.risk[mask].min()),
        "highest": float(visits.risk[mask].max()),
        "visits": n,
        "patients": patients,
        "events": events,
        "predicted": float(visits.risk[mask].mean()),
        "observed": events / n,
        "by_patient": _pair([interval]),
    }


def _curve(risk: Float, seen: Float) -> list[list[float]]:
    """(risk, smooth observed) from the 1 % to the 99 % quantile of the risks: beyond, a smooth line says more than the visits do."""
    order = np.argsort(risk, kind="stable")
    first, last = np.quantile(risk, (0.01, 0.99)).tolist()
    at = np.linspace(first, last, CURVE_POINTS)
    points: list[list[float]] = np.stack([at, np.interp(at, risk[order], seen[order])], axis=1).tolist()
    return points


def _histogram(visits: HeldOut, bands: list[dict[str, Any]]) -> dict[str, Any]:
    """How many visits have which risk, in bars of equal width up to what the curve shows; the last bar holds all above it too."""
    shown = max(max(band["predicted"], band["by_patient"][1] or 0.0) for band in bands)
    edges = np.linspace(0.0, min(max(math.ceil(shown * 10 - 1e-9) / 10, 0.1), 1.0), HISTOGRAM_BARS + 1)
    bar = np.clip(np.searchsorted(edges, visits.risk, side="right") - 1, 0, HISTOGRAM_BARS - 1)
    return {"edges": edges.tolist(), "visits": np.bincount(bar, minlength=HISTOGRAM_BARS).tolist()}


def _members(visits: HeldOut) -> list[tuple[str, str, Bool]]:
    """(attribute, group, mask): larger groups first, ages in order, those not recorded last."""
    members = []
    order = {words: n for n, (_, words) in enumerate(AGE_BANDS)}
    for attribute in ATTRIBUTES:
        names, counts = np.unique(visits.groups[attribute], return_counts=True)
        sizes = dict(zip(names.tolist(), counts.tolist(), strict=True))
        for name in sorted(sizes, key=lambda g: (g == NOT_RECORDED, order.get(g, 0), -sizes[g], g)):
            members.append((attribute, name, visits.groups[attribute] == name))
    return members


def _tolerance(visits: HeldOut) -> float:
    return min(TOLERANCE_MAX, TOLERANCE_OF_PREVALENCE * float(visits.label.mean()))


def _group(visits: HeldOut, attribute: str, group: str, mask: Bool, by_patient: Interval, naive: Interval) -> dict[str, Any]:
    risk, label, patients = visits.risk[mask], visits.label[mask], len(np.unique(visits.patient[mask]))
    needed = _visits_needed(risk, patients, by_patient, _tolerance(visits))
    if needed and (patients < GROUP_PATIENTS_MIN or by_patient.half < _chance_half(risk)):
        by_patient = Interval(math.nan, math.nan)  # a short interval of few patients, or of none with an event, would mislead
    return {
        "attribute": attribute,
        "group": group,
        "visits": len(risk),
        "patients": patients,
        "events": int(label.sum()),
        "predicted": float(risk.mean()),
        "observed": float(label.mean()),
        "calibration_factor": float(metrics.calibration_factor(risk, label)),
        "by_patient": _pair([by_patient]),
        "naive": _pair([naive]),
        "oe_ratio": _plain(metrics.oe_ratio(risk, label)),
        "verdict": _verdict(by_patient, needed),
        "more_visits_needed": needed,
    }


def _visits_needed(risk: Float, patients: int, interval: Interval, tolerance: float) -> int:
    """About how many more visits of this group would let its calibration be told, by `RULE`; 0 where it can be told now."""
    n = len(risk)
    chance = _chance_half(risk)  # no event in few visits is no certainty
    half = max(chance, interval.half) if math.isfinite(interval.half) else max(chance, 0.5)
    for_width = n * ((half / tolerance) ** 2 - 1.0) if tolerance > 0 else math.inf
    for_patients = (GROUP_PATIENTS_MIN - patients) * n / patients
    more = max(for_width, for_patients)
    if more <= 0:
        return 0
    return _rounded_up(more) if math.isfinite(more) else _rounded_up(n)


def _chance_half(risk: Float) -> float:
    """Half of the interval that independent visits would have if the risks were right."""
    return metrics.Z95 * math.sqrt(float((risk * (1.0 - risk)).mean()) / len(risk))


def _rounded_up(x: float) -> int:
    """To two digits: 237 → 240.

    Example:
        >>> [_rounded_up(x) for x in (0.2, 7.1, 99.5, 237.0, 1001.0)]
        [1, 8, 100, 240, 1100]
    """
    unit = 10 ** max(math.floor(math.log10(x)) - 1, 0) if x >= 1 else 1
    return math.ceil(x / unit) * unit


def _verdict(interval: Interval, needed: int) -> str:
    """`cannot tell`, `over-states`, `under-states`, or `no sign` of either."""
    if needed:
        return "cannot tell"
    return "over-states" if interval.low > 0 else "under-states" if interval.high < 0 else "no sign"


def _words(labels: list[str]) -> str:
    return " or ".join(dict.fromkeys(labels))


def _plain(x: Float | float) -> float | None:
    """A number for JSON; None where there is none."""
    value = float(x)
    return value if math.isfinite(value) else None


def _pair(found: list[Interval]) -> list[float | None]:
    return [_plain(found[0].low), _plain(found[0].high)]
