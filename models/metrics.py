"""How good scores are: pure functions of (risk, flagged, label, patient), each with its formula and its source.

Arrays have shape (n,), one entry a visit: `risk` in [0, 1], `flagged` bool, `label` 1.0 or 0.0, `patient` int. `weight` says how often each
visit counts: None is once each; shape (n,) or (draws, n), and then the result has one entry a draw (`models.bootstrap`). A share of
nothing, or a metric that needs both labels and has one, is NaN.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Float = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]
Int = npt.NDArray[np.int64]
Weight = Float | None

Z95 = 1.959963984540054
"""97.5 % quantile of the normal distribution."""
RISK_EDGE = 1e-12
"""Logarithms read a risk nearer to 0 or 1 than this as this far away."""
NEWTON_STEPS_MAX, NEWTON_TOLERANCE = 50, 1e-8
"""Steps are squared at the end: what is left after one of 1e-8 is below the last digit."""


def _mean(value: Float | Bool, weight: Weight, where: Float | Bool | None = None) -> Float:
    """Weighted mean of `value`, over the visits `where`; NaN of none."""
    inside = np.ones(len(value)) if where is None else np.asarray(where, np.float64)
    w = np.ones(len(value)) if weight is None else weight
    return _share(w @ (inside * value), w @ inside)


def _share(part: Float | float, whole: Float | float) -> Float:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.equal(whole, 0.0), np.nan, np.divide(part, whole))


def _logit(risk: Float) -> Float:
    p = np.clip(risk, RISK_EDGE, 1 - RISK_EDGE)
    return np.log(p) - np.log1p(-p)


def _expit(z: Float) -> Float:
    """1 / (1 + e^−z), without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * z))


# --- flags: what a threshold does


def prevalence(label: Float, weight: Weight = None) -> Float:
    """Share of visits with the outcome, Σy / n."""
    return _mean(label, weight)


def flagged_share(flagged: Bool, weight: Weight = None) -> Float:
    """Share of visits that are flagged."""
    return _mean(flagged, weight)


def ppv(flagged: Bool, label: Float, weight: Weight = None) -> Float:
    """Positive predictive value: of the flagged visits, the share with the outcome, TP / (TP + FP)."""
    return _mean(label, weight, flagged)


def npv(flagged: Bool, label: Float, weight: Weight = None) -> Float:
    """Negative predictive value: of the visits not flagged, the share without the outcome, TN / (TN + FN)."""
    return _mean(1.0 - label, weight, ~flagged)


def sensitivity(flagged: Bool, label: Float, weight: Weight = None) -> Float:
    """Of the visits with the outcome, the share flagged, TP / (TP + FN)."""
    return _mean(flagged, weight, label)


def specificity(flagged: Bool, label: Float, weight: Weight = None) -> Float:
    """Of the visits without the outcome, the share not flagged, TN / (TN + FP)."""
    return _mean(~flagged, weight, 1.0 - label)


def table(flagged: Bool, label: Float, weight: Weight = None) -> tuple[Float, Float, Float, Float]:
    """(TP, FP, FN, TN): how many visits are flagged or not, with the outcome or without."""
    w = np.ones(len(label)) if weight is None else weight
    return w @ (flagged * label), w @ (flagged * (1.0 - label)), w @ (~flagged * label), w @ (~flagged * (1.0 - label))


def odds_ratio(flagged: Bool, label: Float, weight: Weight = None) -> Float:
    """TP·TN / (FP·FN): odds of the outcome when flagged over the odds when not. Infinite where only FP or FN is 0. Not a ratio of risks."""
    tp, fp, fn, tn = table(flagged, label, weight)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(tp * tn, fp * fn)


def odds_ratio_wald(tp: float, fp: float, fn: float, tn: float) -> tuple[float, float, float]:
    """(OR, low, high) of one table: exp(ln OR ± z·√(1/TP + 1/FP + 1/FN + 1/TN)), as if visits were independent; NaN where a cell is 0.

    Source: Woolf B., Ann Hum Genet 1955;19:251–3.

    Example:
        >>> tuple(round(x, 1) for x in odds_ratio_wald(13, 46, 28, 531))
        (5.4, 2.6, 11.0)
    """
    if min(tp, fp, fn, tn) <= 0:
        return math.nan, math.nan, math.nan
    log_or = math.log(tp * tn / (fp * fn))
    half = Z95 * math.sqrt(1 / tp + 1 / fp + 1 / fn + 1 / tn)
    return math.exp(log_or), math.exp(log_or - half), math.exp(log_or + half)


def wilson(events: float, n: float) -> tuple[float, float]:
    """95 % interval of a share of independent visits: (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n); (0, 1) of none.

    Source: Wilson E. B., J Am Stat Assoc 1927;22:209–12.

    Example:
        >>> tuple(round(x, 4) for x in wilson(82, 275))
        (0.2472, 0.3547)
    """
    if n <= 0:
        return 0.0, 1.0
    p, z2 = events / n, Z95**2
    middle, half = p + z2 / (2 * n), Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max((middle - half) / (1 + z2 / n), 0.0), min((middle + half) / (1 + z2 / n), 1.0)


def net_benefit(flagged: Bool, label: Float, threshold: float, weight: Weight = None) -> Float:
    """TP/n − FP/n · t/(1−t): true flags per visit, less the false ones at the price that a threshold t puts on them.

    Flagging every visit gives prevalence − (1 − prevalence) · t/(1−t), flagging none 0. Source: Vickers A., Elkin E., Med Decis Making
    2006;26:565–74.
    """
    price = threshold / (1.0 - threshold)
    return _mean(flagged * (label - price * (1.0 - label)), weight)


# --- order: do those with the outcome have the higher risk


def auroc(risk: Float, label: Float, weight: Weight = None) -> Float:
    """P(risk of a visit with the outcome > risk of one without) + ½ P(equal). Source: Hanley J., McNeil B., Radiology 1982;143:29–36."""
    events, others = _by_risk(risk, label, weight)
    below = np.cumsum(others, axis=-1) - others
    return _share((events * (below + 0.5 * others)).sum(axis=-1), events.sum(axis=-1) * others.sum(axis=-1))


def average_precision(risk: Float, label: Float, weight: Weight = None) -> Float:
    """Σ (recall_k − recall_k−1) · precision_k over the distinct risks, from the highest down: a step sum, nothing interpolated."""
    events, others = (x[..., ::-1] for x in _by_risk(risk, label, weight))
    tp, fp = np.cumsum(events, axis=-1), np.cumsum(others, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(tp > 0, tp / (tp + fp), 0.0)
    return _share((events * precision).sum(axis=-1), tp[..., -1])


def _by_risk(risk: Float, label: Float, weight: Weight) -> tuple[Float, Float]:
    """Visits with and without the outcome at each distinct risk, ascending, shapes (…, distinct)."""
    order = np.argsort(risk, kind="stable")
    ascending = risk[order]
    first = np.flatnonzero(np.concatenate([[True], ascending[1:] != ascending[:-1]]))
    w = np.ones(len(risk)) if weight is None else weight
    events, others = (w * label)[..., order], (w * (1.0 - label))[..., order]
    return np.add.reduceat(events, first, axis=-1), np.add.reduceat(others, first, axis=-1)


def auroc_se_delong(risk: Float, label: Float) -> float:
    """Standard error of the AUROC as if visits were independent: √(var(V₁₀)/m + var(V₀₁)/k) of m visits with the outcome and k without.

    V₁₀ of a visit with the outcome is the share of those without that lie below it (ties count half); V₀₁ likewise, above. Source:
    DeLong E. et al., Biometrics 1988;44:837–45, through ranks as in Sun X., Xu W., IEEE Signal Process Lett 2014;21:1389–93.
    """
    of_events, of_others = _placements(risk, label)
    if min(len(of_events), len(of_others)) < 2:
        return math.nan
    return math.sqrt(float(of_events.var(ddof=1) / len(of_events) + of_others.var(ddof=1) / len(of_others)))


def auroc_se_clustered(risk: Float, label: Float, patient: Int) -> float:
    """Standard error of the AUROC where the visits of a patient go together.

    With the placements V of DeLong summed by patient, less their expectation: S₁₀, S₀₁, and S₁₁ between a patient's visits with the outcome
    and without; var = S₁₀/m + S₀₁/k + 2·S₁₁/(m·k). Source: Obuchowski N., Biometrics 1997;53:567–78.
    """
    of_events, of_others = _placements(risk, label)
    m, k = len(of_events), len(of_others)
    number = np.unique(patient, return_inverse=True)[1]
    patients, event = int(number.max(initial=-1)) + 1, label == 1.0
    with_event, without = len(np.unique(number[event])), len(np.unique(number[~event]))
    if min(with_event, without) < 2:
        return math.nan
    area = float(of_events.mean())
    excess = np.bincount(number[event], of_events - area, patients)
    excess_others = np.bincount(number[~event], of_others - area, patients)
    s10 = with_event / ((with_event - 1) * m) * float(excess @ excess)
    s01 = without / ((without - 1) * k) * float(excess_others @ excess_others)
    s11 = patients / (patients - 1) * float(excess @ excess_others)
    return math.sqrt(s10 / m + s01 / k + 2 * s11 / (m * k))


def _placements(risk: Float, label: Float) -> tuple[Float, Float]:
    """V₁₀ of the visits with the outcome and V₀₁ of those without, in their order."""
    events, others = risk[label == 1.0], risk[label != 1.0]
    return _share(_below(events, others), len(others)), 1.0 - _share(_below(others, events), len(events))


def _below(x: Float, y: Float) -> Float:
    """For each x, how many y lie below it; equal ones count half."""
    ascending = np.sort(y)
    return 0.5 * (np.searchsorted(ascending, x, side="left") + np.searchsorted(ascending, x, side="right")).astype(np.float64)


# --- level: does a risk of 20 in 100 mean 20 in 100


def brier(risk: Float, label: Float, weight: Weight = None) -> Float:
    """Mean of (risk − y)². Source: Brier G., Mon Weather Rev 1950;78:1–3."""
    return _mean((risk - label) ** 2, weight)


def brier_scaled(risk: Float, label: Float, weight: Weight = None) -> Float:
    """1 − Brier / (p(1−p)), p the prevalence: 0 says no more than the prevalence does, 1 is perfect.

    Source: Steyerberg E. et al., Epidemiology 2010;21:128–38.
    """
    p = prevalence(label, weight)
    return 1.0 - _share(brier(risk, label, weight), p * (1.0 - p))


def log_loss(risk: Float, label: Float, weight: Weight = None) -> Float:
    """Mean of −ln(risk given to what came true), natural logarithm, risks kept `RISK_EDGE` away from 0 and 1."""
    p = np.clip(risk, RISK_EDGE, 1 - RISK_EDGE)
    return _mean(-np.where(label == 1.0, np.log(p), np.log1p(-p)), weight)


def calibration_factor(risk: Float, label: Float, weight: Weight = None) -> Float:
    """Mean predicted − mean observed: 0 is ideal, +0.02 over-states by 2 in 100, −0.02 under-states by 2 in 100.

    The paper's summary of calibration fairness (P10). A difference of shares, not the ratio, which is `oe_ratio`.
    """
    return _mean(risk - label, weight)


def oe_ratio(risk: Float, label: Float, weight: Weight = None) -> Float:
    """Observed / expected, Σy / Σrisk: 1 is ideal, above 1 the risks are too low, below 1 too high."""
    return _share(_mean(label, weight), _mean(risk, weight))


def _damping(move: Float) -> Float:
    """How much of a Newton step to take, ln(1 + r) / r with r the farthest that it moves a logit: whole steps can run away.

    Source: Sun T., Tran-Dinh Q., Math Program 2019;178:145–213 (generalised self-concordance, ν = 2).
    """
    r = np.maximum(np.abs(move), 1e-300)
    return np.log1p(r) / r


def calibration_in_the_large(risk: Float, label: Float, weight: Weight = None) -> Float:
    """a in logit P(y) = a + logit(risk), slope held at 1: 0 is ideal, below 0 the risks are too high on the whole.

    Fitted by Newton steps. Source: Van Calster B. et al., BMC Med 2019;17:230.
    """
    z, w = _logit(risk), np.ones(len(risk)) if weight is None else weight
    rate = prevalence(label, weight)
    a = np.where((rate > 0) & (rate < 1), _logit(rate) - _logit(_mean(risk, weight)), np.nan)
    step = np.zeros_like(a)
    for _ in range(NEWTON_STEPS_MAX):
        p = _expit(z + a[..., None])
        step = _share((w * (label - p)).sum(axis=-1), (w * p * (1.0 - p)).sum(axis=-1))
        a = a + _damping(step) * step
        if not (np.abs(step) > NEWTON_TOLERANCE).any():
            break
    return np.where(np.abs(step) > 1e-6, np.nan, a)


def calibration_in_the_large_se(risk: Float, label: Float) -> float:
    """Its standard error as if visits were independent: 1 / √Σp(1−p) at the fitted p."""
    p = _expit(_logit(risk) + calibration_in_the_large(risk, label))
    return 1.0 / math.sqrt(float((p * (1.0 - p)).sum()))


def calibration_line(risk: Float, label: Float, weight: Weight = None) -> tuple[Float, Float]:
    """(intercept, slope) of logit P(y) = intercept + slope · logit(risk), fitted together by Newton steps.

    A slope below 1 says that the risks are spread too far (over-fitted), above 1 not far enough. NaN where all risks are equal, where one
    label is missing, or where no finite line fits. Source: Cox D., Biometrika 1958;45:562–5.
    """
    z, w = _logit(risk), np.ones(len(risk)) if weight is None else weight
    centre = float(z.mean()) if len(z) else 0.0
    x = z - centre  # nearer to zero, so that the two equations are less alike
    rate = prevalence(label, weight)
    told = (rate > 0) & (rate < 1)
    a, b = np.where(told, _logit(rate), np.nan), np.zeros(np.shape(rate))
    if w.ndim == 2:  # draws lie around the line of all visits
        of_all, slope = calibration_line(risk, label)
        if np.isfinite(slope):
            a, b = np.where(told, of_all + slope * centre, np.nan), np.full(np.shape(rate), float(slope))
    for _ in range(NEWTON_STEPS_MAX):
        p = _expit(a[..., None] + b[..., None] * x)
        miss, h = w * (label - p), w * p * (1.0 - p)
        g0, g1, h00, h01, h11 = miss.sum(axis=-1), miss @ x, h.sum(axis=-1), h @ x, h @ (x * x)
        det = h00 * h11 - h01 * h01
        det = np.where(det > 1e-12 * h00 * h11, det, np.nan)
        da, db = (h11 * g0 - h01 * g1) / det, (h00 * g1 - h01 * g0) / det
        damping = _damping(np.maximum(np.abs(da + db * x.min()), np.abs(da + db * x.max())))
        a, b = a + damping * da, b + damping * db
        if not (np.maximum(np.abs(da), np.abs(db)) > NEWTON_TOLERANCE).any():
            break
    fitted = np.maximum(np.abs(da), np.abs(db)) <= 1e-6
    return np.where(fitted, a - b * centre, np.nan), np.where(fitted, b, np.nan)


def calibration_slope_se(risk: Float, label: Float, patient: Int | None = None) -> float:
    """Standard error of the slope of `calibration_line`.

    Without `patient` from the inverse information, as if visits were independent. With it the sandwich
    H⁻¹(Σ gᵢgᵢᵀ)H⁻¹ · G/(G−1) · (n−1)/(n−2) over the scores gᵢ of G patients. Source: Liang K., Zeger S., Biometrika 1986;73:13–22.
    """
    a, b = calibration_line(risk, label)
    x = np.column_stack([np.ones(len(risk)), _logit(risk)])
    if not np.isfinite(b):
        return math.nan
    p = _expit(a + b * x[:, 1])
    inverse = np.linalg.inv((x * (p * (1.0 - p))[:, None]).T @ x)
    if patient is None:
        return math.sqrt(float(inverse[1, 1]))
    number = np.unique(patient, return_inverse=True)[1]
    patients, n = int(number.max()) + 1, len(risk)
    score = np.column_stack([np.bincount(number, x[:, j] * (label - p), patients) for j in (0, 1)])
    variance = (inverse @ (score.T @ score) @ inverse)[1, 1] * _small_sample(patients, n)
    return math.sqrt(float(variance))


def _small_sample(patients: int, n: int) -> float:
    return math.nan if min(patients - 1, n - 2) < 1 else patients / (patients - 1) * (n - 1) / (n - 2)


SMOOTH_POINTS_MAX = 2_000


def smooth_calibration(risk: Float, label: Float, *, span: float = 0.75) -> Float:
    """Observed frequency near each risk, shape (n,): local straight lines with tricube weights over the nearest `span` of the visits.

    As lowess without robustness steps, kept within 0 and 1. Of more than `SMOOTH_POINTS_MAX` distinct risks the lines are fitted at so
    many of their quantiles, and joined by straight ones. Source: Cleveland W., J Am Stat Assoc 1979;74:829–36.
    """
    at = np.unique(risk)
    if len(at) > SMOOTH_POINTS_MAX:
        at = np.unique(np.quantile(at, np.linspace(0, 1, SMOOTH_POINTS_MAX)))
    near = max(int(span * len(risk) + 1e-10), 1)
    fitted = np.empty(len(at))
    for i, centre in enumerate(at.tolist()):
        x = risk - centre
        far = np.abs(x)
        reach = float(np.partition(far, near - 1)[near - 1])
        w = (1.0 - (far / reach) ** 3).clip(0.0) ** 3 if reach > 0 else (far == 0).astype(np.float64)
        s0, s1, s2, t0, t1 = w.sum(), w @ x, w @ (x * x), w @ label, (w * x) @ label
        det = s0 * s2 - s1 * s1
        fitted[i] = (s2 * t0 - s1 * t1) / det if det > 1e-12 * s0 * s2 else t0 / s0
    return np.interp(risk, at, fitted).clip(0.0, 1.0)


def calibration_error(risk: Float, seen: Float) -> tuple[float, float, float]:
    """(ICI, E50, E90): mean, median and 90 % quantile of |seen − risk| over the visits, `seen` from `smooth_calibration`.

    Source: Austin P., Steyerberg E., Stat Med 2019;38:4051–65.
    """
    error = np.abs(seen - risk)
    return float(error.mean()), float(np.quantile(error, 0.5)), float(np.quantile(error, 0.9))
