"""The value of one feature for one question, by a loop over all facts that are there (S5, S6)."""

from __future__ import annotations

from math import isfinite, isnan, nan

from features.catalog import Feature
from features.codes import Codebook
from tests.oracle.record import Record

DAY_US = 86_400_000_000
SCALED = ("sum", "mean", "min", "max", "last", "first", "change", "slope")


def seen(feature: Feature, fact: Record, index_us: int, episode: int, book: Codebook) -> bool:
    """Whether the fact is in the feature's window `[index − lookback, index)` and of the right episode."""
    if fact.concept not in feature.concepts or fact.event_us >= index_us:
        return False
    if feature.lookback_us is not None and fact.event_us < index_us - feature.lookback_us:
        return False
    if isnan(fact.value) and book.concepts[fact.concept].unit:  # a result without a number is no result
        return False
    if feature.episode == "other":
        return fact.episode == 0 or fact.episode != episode
    return feature.episode == "any" or fact.episode == episode


def value(feature: Feature, facts: list[Record], *, index_us: int, episode: int, book: Codebook) -> float:
    """What the feature says about these facts; NaN (null) where there are none, but 0 for counts and any_*."""
    found = [f for f in facts if seen(feature, f, index_us, episode, book)]
    found.sort(key=lambda f: (f.event_us, f.ordinal, f.id))
    number = aggregate(feature.aggregate, found, index_us, book)
    return number / feature.factor if feature.aggregate in SCALED else number


def aggregate(name: str, found: list[Record], index_us: int, book: Codebook) -> float:
    """One aggregate of facts in (event_time, ordinal, id) order."""
    limits = [(f.value, book.concepts[f.concept].low, book.concepts[f.concept].high) for f in found]
    counts = {
        "count": len(found),
        "any": bool(found),
        "any_abnormal": any((low is not None and v < low) or (high is not None and v > high) for v, low, high in limits),
        "distinct_episodes": len({f.episode for f in found}),
    }
    if name in counts or not found:
        return float(counts.get(name, nan))
    total = 0.0
    for f in found:
        total += f.value
    first, last = found[0], found[-1]
    if name in ("min", "max"):
        numbers = [f.value for f in found if not isnan(f.value)]
        return (min if name == "min" else max)(numbers, default=nan)
    if name == "percent_change":
        return 100.0 * (last.value - first.value) / first.value if first.value else nan
    if name == "slope":
        return slope([(f.event_us - first.event_us) / DAY_US for f in found], [f.value for f in found])
    values = {"sum": total, "mean": total / len(found), "last": last.value, "first": first.value, "change": last.value - first.value}
    ages = {"days_since_last": last, "days_since_first": first}
    values |= {n: (index_us - f.event_us) / DAY_US for n, f in ages.items()}
    return float((values | {"last_ordinal": last.ordinal})[name])


def slope(x: list[float], y: list[float]) -> float:
    """The least squares line through the points, each sum from the first point to the last; NaN where it is not defined."""
    if len(set(x)) < 2:
        return nan
    mean_x = mean_y = products = squares = 0.0
    for a, b in zip(x, y, strict=True):
        mean_x, mean_y = mean_x + a, mean_y + b
    mean_x, mean_y = mean_x / len(x), mean_y / len(y)
    for a, b in zip(x, y, strict=True):
        products += (a - mean_x) * (b - mean_y)
        squares += (a - mean_x) * (a - mean_x)
    found = products / squares
    return found if isfinite(found) else nan
