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
    "days_since_last",
    "days_since_first",
    "last_ordinal",
]
"""What is made of the facts in a window. Counts and any_* are 0 where there is none; all others are NaN (null, unknown)."""
AGGREGATES: tuple[str, ...] = get_args(Aggregate)
COUNTS = ("count", "any", "any_abnormal", "distinct_episodes")

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
    factor = float(DAY_US) if first.kind in ("encounter", "coverage") else 1.0  # of mixed concepts the first decides
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
    )
