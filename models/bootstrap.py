"""Intervals from resampling: patients are drawn, each with all of their visits, because the visits of one patient resemble each other.

A draw is a weight for each visit (how often its patient was drawn), never a copy of rows: metrics take weights of many draws at once.
Beside it the naive interval, which draws visits as if each were another patient's, so that a page can show what that hides.
Source: Davison A., Hinkley D., Bootstrap Methods and their Application, 1997, sections 3.8 and 5.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from features.progress import Progress, unheard
from models.metrics import Float, Int

DRAWS = 1_000
CELLS_AT_ONCE = 4_000_000
"""Weights held at a time: draws × visits."""
UNDEFINED_SHARE_MAX = 0.05
"""Where more of the draws than this give no number (no flagged visit was drawn, say), there is no interval."""

Metric = Callable[[Float], Float]
"""Weights of shape (draws, n) → values of shape (draws,) or (draws, k)."""


@dataclass(frozen=True, slots=True)
class Interval:
    """95 % percentile interval; NaN at both ends where it cannot be told."""

    low: float
    high: float

    @property
    def half(self) -> float:
        """Half of its width."""
        return (self.high - self.low) / 2


def weights(cluster: Int, *, draws: int, seed: int) -> Iterator[Float]:
    """Weights of visits, some draws at a time: shapes (≤ draws, n), `draws` in all.

    Args:
        cluster: What is drawn, by visit, shape (n,): its patient, or its own number for the naive interval.
        draws: How many samples.
        seed: Of the random numbers: the same seed gives the same weights.
    """
    number = np.unique(cluster, return_inverse=True)[1]
    clusters = int(number.max(initial=-1)) + 1
    rng = np.random.default_rng(seed)
    at_once = max(CELLS_AT_ONCE // max(len(cluster), 1), 1)
    for begin in range(0, draws if clusters else 0, at_once):
        some = min(at_once, draws - begin)
        drawn = rng.integers(0, clusters, (some, clusters))
        drawn += np.arange(some)[:, None] * clusters
        times = np.bincount(drawn.ravel(), minlength=some * clusters).reshape(some, clusters)
        yield times[:, number].astype(np.float64)


def percentiles(values: Float) -> list[Interval]:
    """The interval of each column of draws, shape (draws,) or (draws, k): the 2.5 and 97.5 % quantiles, each a value that was drawn."""
    columns = values.reshape(len(values), -1).T if len(values) else np.full((values.size and 1, 0), np.nan)
    return [_percentile(column) for column in columns]


def _percentile(column: Float) -> Interval:
    told = column[~np.isnan(column)]
    if len(told) < (1 - UNDEFINED_SHARE_MAX) * len(column) or not len(told):
        return Interval(np.nan, np.nan)
    low, high = np.quantile(told, (0.025, 0.975), method="inverted_cdf")
    return Interval(float(low), float(high))


def intervals(
    metrics: Mapping[str, Metric], cluster: Int, *, draws: int = DRAWS, seed: int, progress: Progress = unheard
) -> dict[str, list[Interval]]:
    """The intervals of metrics on the same draws, by name; a metric with k values has k intervals. `progress` is told of the draws.

    Example:
        >>> label, patient = np.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0]), np.array([1, 1, 2, 2, 3, 3])
        >>> intervals({"prevalence": lambda w: w @ label / w.sum(axis=1)}, patient, seed=1)["prevalence"]
        [Interval(low=0.0, high=1.0)]
    """
    found: dict[str, list[Float]] = {name: [] for name in metrics}
    done = 0
    for weight in weights(cluster, draws=draws, seed=seed):
        for name, metric in metrics.items():
            found[name].append(metric(weight))
        done += len(weight)
        progress(done)
    return {name: percentiles(np.concatenate(values)) if values else [] for name, values in found.items()}
