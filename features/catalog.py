"""The catalogue: what a feature is. Concepts × aggregate × look-back window, each declared once in a use case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from features.clock import DAY_US
from features.codes import Codebook
from features.errors import InputError

Aggregate = Literal[
    "count",
    "any",
    "any_abnormal",
    "distinct_episodes",
    "sum",
    "mean",
    "min",
    "max",
    "last",
    "first",
    "change",
    "percent_change",
    "slope",
    "days_since_last",
    "days_since_first",
    "last_ordinal",
]
"""What is made of the facts in a window. Counts and any_* are 0 where there is none; all others are NaN (null, unknown).

`slope` is the least squares line through (event_time in days, value), per day: sum(dx * dy) / sum(dx * dx), dx and dy being the
distances from their means; null under two distinct times.
"""
AGGREGATES: tuple[str, ...] = get_args(Aggregate)
COUNTS = ("count", "any", "any_abnormal", "distinct_episodes")
WORDS: dict[Aggregate, str] = {
    "count": "how many",
    "any": "1 if there is one, else 0",
    "any_abnormal": "1 if one is outside the limits of normal, else 0",
    "distinct_episodes": "in how many different visits",
    "sum": "sum of the values",
    "mean": "mean of the values",
    "min": "least value",
    "max": "greatest value",
    "last": "last value",
    "first": "first value",
    "change": "last value minus the first",
    "percent_change": "change from the first value to the last in percent of the first",
    "slope": "change a day along the line through all values",
    "days_since_last": "days since the last",
    "days_since_first": "days since the first",
    "last_ordinal": "the source's own number of the last",
}
"""What each aggregate says, for people."""
OF_VALUES = ("sum", "mean", "min", "max", "last", "first", "change", "slope")
"""Aggregates in the unit of the values, a slope in that unit a day: these are divided by a feature's `factor`."""

Episode = Literal["any", "other", "own"]
"""Whose facts: of any visit; of visits other than the index (`not_own`, S5); of the index visit only."""


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of the matrix."""

    name: str
    concepts: tuple[int, ...]
    """Numbers of `features/codes/concepts.csv`, at least one."""
    aggregate: Aggregate
    lookback_us: int | None
    """Length of the window `[index_time − lookback, index_time)`; None: the whole past."""
    episode: Episode = "any"
    leak: bool = False
    """Looks at facts that were not known yet. For audits; training refuses it."""
    factor: float = 1.0
    """What is made of stored values is divided by it."""
    topic: str = ""
    """Reasons are summed by topic."""
    unit: str = ""
    """Of the column's numbers, for people; empty where they are counts, 0 or 1, or have none."""


def feature_name(stem: str, aggregate: str, days: int | None) -> str:
    """The column's name: `hemoglobin_count_30d`, `weight_last`.

    Example:
        >>> feature_name("albumin", "any_abnormal", 5)
        'albumin_any_abnormal_5d'
    """
    return f"{stem}_{aggregate}" if days is None else f"{stem}_{aggregate}_{days}d"


def declare(
    book: Codebook,
    *,
    stem: str,
    concepts: Sequence[str],
    aggregate: Aggregate,
    days: int | None,
    episode: Episode = "any",
    leak: bool = False,
    unit: str | None = None,
    topic: str | None = None,
) -> Feature:
    """A feature from the words of a use case. Lengths of visits and coverage come out in days.

    Raises:
        InputError: an unknown concept or unit.
    """
    numbers = book.numbers(concepts)
    first = book.concepts[numbers[0]]
    lasting = first.kind in ("encounter", "coverage")  # of mixed concepts the first decides
    factor = float(DAY_US) if lasting else 1.0
    if unit is not None:
        if len(numbers) > 1:
            raise InputError(f"features.{stem}: a unit needs one concept, got {len(numbers)}")
        factor = book.factor(numbers[0], unit)
    return Feature(
        name=feature_name(stem, aggregate, days),
        concepts=numbers,
        aggregate=aggregate,
        lookback_us=None if days is None else days * DAY_US,
        episode=episode,
        leak=leak,
        factor=factor,
        topic=topic if topic is not None else first.topic or stem,
        unit=_unit(aggregate, unit or ("days" if lasting else first.unit)),
    )


def _unit(aggregate: Aggregate, of_values: str) -> str:
    """The unit of a column whose values have the unit `of_values`; the 1 of a bare number is not worth a word."""
    if aggregate in ("days_since_last", "days_since_first"):
        return "days"
    if aggregate == "percent_change":
        return "%"
    bare = of_values in ("", "1")
    if aggregate == "slope":
        return "per day" if bare else f"{of_values} per day"
    return of_values if aggregate in OF_VALUES and not bare else ""
